//! A service in a process of its own on a chain that outlives it, with people who hold money in it.

use std::{
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use alloy::{
    primitives::Address,
    providers::{DynProvider, Provider as _, ProviderBuilder},
    sol_types::SolCall as _,
};
use comptoir_cli::{
    client::{
        http::Api,
        money::send_deposit,
        wallet::{Sent, Wallet},
    },
    demo::{books::credited, people::Person},
    embedded::{Embedded, Provided, open_to_others},
    up::fund,
};
use comptoir_contracts_bindings::{
    ComptoirToken,
    Settlement::{self, SettlementInstance, commitBatchCall},
};
use comptoir_domain::settlement::{
    Header,
    file::{self, Opening, Sealed},
};
use comptoir_settler::{chain::to_contract, deploy::Sender};
use serde_json::{Value, json};
use tempfile::TempDir;
use url::Url;

use crate::harness::{binary, checkout};

/// One token.
pub const TOKEN: u128 = 10_u128.pow(18);
/// Nothing here takes longer.
const PATIENCE: Duration = Duration::from_mins(2);

/// What a command printed and how it ended.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub said: Value,
    pub trouble: String,
}

pub struct World {
    services: Embedded,
    service: Service,
    pub api: Api,
    pub scheduler: Url,
    pub token: Address,
    pub contract: Address,
    pub rpc: Url,
    pub folder: TempDir,
}

/// The service's process: it ends with the test, also with one that fails.
struct Service(Child);

impl Drop for Service {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

impl World {
    /// Starts Postgres, Redis and a chain, and the service as a process of its own.
    pub async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        open_to_others(folder.path()).unwrap();
        let services = folder.path().join("services");
        let services = Embedded::start(&services, Provided::default())
            .await
            .unwrap();
        let mut service = Command::new(binary("comptoir"))
            .current_dir(checkout())
            .args(["up", "--no-guardian", "--api-port", "0"])
            .args(["--scheduler-port", "0", "--folder"])
            .arg(folder.path().join("node"))
            .env("DATABASE_URL", &services.urls.database)
            .env("REDIS_URL", &services.urls.redis)
            .env("ETH_RPC_URL", &services.urls.ethereum)
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(folder.path().join("service.log")).unwrap())
            .spawn()
            .unwrap();
        let said: Vec<String> = BufReader::new(service.stdout.take().unwrap())
            .lines()
            .map(Result::unwrap)
            .take_while(|line| !line.starts_with("Ctrl-C"))
            .collect();
        let value = |name: &str| {
            let line = said.iter().find(|line| line.starts_with(name));
            let line = line.unwrap_or_else(|| panic!("no {name} in {said:?}"));
            line.split_whitespace().nth(1).unwrap().to_owned()
        };
        Self {
            api: Api::new(value("api").parse().unwrap(), None).unwrap(),
            scheduler: value("scheduler").parse().unwrap(),
            token: value("token").parse().unwrap(),
            contract: value("contract").parse().unwrap(),
            rpc: services.urls.ethereum.parse().unwrap(),
            services,
            service: Service(service),
            folder,
        }
    }

    /// Ends the service as a power cut would. The chain goes on.
    pub fn kill_service(&mut self) {
        self.service.0.kill().unwrap();
        self.service.0.wait().unwrap();
    }

    pub async fn stop(mut self) {
        self.kill_service();
        self.services.stop().await.unwrap();
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The file of one of the service's own keys.
    pub fn key_file(&self, name: &str) -> PathBuf {
        self.path("node/keys").join(format!("{name}.key"))
    }

    pub fn key(&self, name: &str) -> Wallet {
        Wallet::read(&self.key_file(name)).unwrap()
    }

    pub fn node(&self) -> DynProvider {
        ProviderBuilder::new()
            .connect_http(self.rpc.clone())
            .erased()
    }

    pub fn settlement(&self) -> SettlementInstance<DynProvider> {
        Settlement::new(self.contract, self.node())
    }

    pub async fn ask(&self, method: &'static str, params: Value) -> Value {
        self.node()
            .raw_request(method.into(), params)
            .await
            .unwrap()
    }

    /// Lets so much time pass on the chain, and mines a block that shows it.
    pub async fn pass(&self, seconds: u64) {
        self.ask("evm_increaseTime", json!([seconds])).await;
        self.ask("anvil_mine", json!(["0x1"])).await;
    }

    pub async fn tokens_of(&self, owner: Address) -> u128 {
        let token = ComptoirToken::new(self.token, self.node());
        token
            .balanceOf(owner)
            .call()
            .await
            .unwrap()
            .try_into()
            .unwrap()
    }

    /// Gives a wallet ether, and tokens of the first supply.
    pub async fn endow(&self, wallet: &Wallet, base: u128) {
        fund(self.rpc.as_str(), wallet.address()).await.unwrap();
        let deployer = self.key("deployer");
        let sent = deployer.send_tokens(&self.rpc, self.token, wallet.address(), base);
        sent.await.unwrap();
    }

    /// Somebody with an account, a bound address and so much in the service.
    pub async fn person(&self, name: &'static str, base: u128) -> Person {
        let person = Person::arrive(name, &self.api).await.unwrap();
        self.endow(&person.wallet, base).await;
        if base > 0 {
            send_deposit(&person.api, &person.wallet, &self.rpc, base)
                .await
                .unwrap();
            credited(&person, base).await.unwrap();
        }
        person
    }

    /// Deposits for a wallet's own address, whether the service knows it or not.
    pub async fn deposit(&self, wallet: &Wallet, base: u128) -> Sent {
        self.endow(wallet, base).await;
        wallet
            .deposit(&self.rpc, self.token, self.contract, base)
            .await
            .unwrap()
    }

    /// Asks for a release: what makes an idle service seal a batch.
    pub async fn withdraw(&self, person: &Person, base: u128) {
        let mut money = person.api.get("/v1/balance").await.unwrap()["available"].take();
        money["amount"] = base.to_string().into();
        let key = comptoir_cli::client::idempotency_key();
        let body = json!({ "amount": money });
        person
            .api
            .create("/v1/withdrawals", &key, &body)
            .await
            .unwrap();
    }

    /// Waits until the newest batch on the chain has this number.
    pub async fn until_batch(&self, number: u64) {
        self.until(&format!("batch {number}"), async || {
            self.settlement().lastBatch().call().await.unwrap() >= number
        })
        .await;
    }

    pub async fn until(&self, what: &str, mut seen: impl AsyncFnMut() -> bool) {
        let give_up = Instant::now() + PATIENCE;
        while !seen().await {
            assert!(Instant::now() < give_up, "{what} does not come");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// The published leaf file of a batch.
    pub async fn leaves(&self, number: u64) -> Vec<u8> {
        let path = format!("/v1/batches/{number}/leaves");
        let request = self.api.request(reqwest::Method::GET, &path);
        let reply = self.api.send(request).await.unwrap();
        reply.bytes().await.unwrap().to_vec()
    }

    /// What a batch on top of the newest one would begin with.
    pub async fn next_opening(&self, after: &[u8]) -> Opening {
        let (opening, _) = file::read(after).unwrap();
        let settlement = self.settlement();
        let last = settlement.lastBatch().call().await.unwrap();
        Opening {
            id: last + 1,
            generation: settlement.generation().call().await.unwrap(),
            prev_hash: settlement.batchHash(last).call().await.unwrap(),
            ..opening
        }
    }

    /// Commits a header with the settler's own key, as a thief of it would.
    pub async fn commit(&self, header: &Header) {
        let thief = Sender::new(self.rpc.clone(), self.key("settler").signer()).unwrap();
        let calldata = commitBatchCall {
            header: to_contract(header),
        };
        thief
            .call(self.contract, calldata.abi_encode().into())
            .await
            .unwrap();
    }

    /// A command of a person's, with nothing but the chain.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(binary("comptoir"));
        command
            .args(arguments)
            .env("COMPTOIR_PROFILE", self.path("no-profile.json"))
            .env("ETH_RPC_URL", self.rpc.as_str())
            .env("COMPTOIR_CONTRACT", self.contract.to_string())
            .env_remove("COMPTOIR_URL")
            .env_remove("DATABASE_URL")
            .stdin(Stdio::null());
        command
    }

    pub fn comptoir(&self, arguments: &[&str]) -> Ended {
        Ended::of(&mut self.command(arguments))
    }

    /// A command of the operator's, with the database.
    pub fn admin(&self, arguments: &[&str]) -> Ended {
        let mut command = self.command(&[]);
        command.arg("admin").args(arguments);
        Ended::of(command.env("DATABASE_URL", &self.services.urls.database))
    }

    /// Writes a wallet's key where a command can read it.
    pub fn write_key(&self, wallet: &Wallet) -> String {
        let path = self.path(&format!("{}.key", wallet.address()));
        wallet.write(&path).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

impl Ended {
    /// Runs a command to its end.
    pub fn of(command: &mut Command) -> Self {
        let output = command.output().unwrap();
        Self {
            code: output.status.code(),
            said: serde_json::from_slice(&output.stdout).unwrap_or_default(),
            trouble: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// A guardian or watcher in a process of its own; it ends with the test.
pub struct Watching {
    process: Child,
    log: PathBuf,
}

impl Watching {
    pub fn start(mut command: Command, log: &Path) -> Self {
        let file = std::fs::File::create(log).unwrap();
        command.stdout(Stdio::null()).stderr(file);
        Self {
            process: command.spawn().unwrap(),
            log: log.to_owned(),
        }
    }

    /// Waits until its log has a line with this in it.
    pub async fn tells(&self, world: &World, what: &str) {
        world
            .until(what, async || {
                std::fs::read_to_string(&self.log).unwrap().contains(what)
            })
            .await;
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        // It has ended by itself where this fails, and the test has said why.
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

/// The leaves of a file as a batch that begins otherwise.
pub fn reseal(
    bytes: &[u8],
    opening: &Opening,
    change: impl FnOnce(&mut Sealed),
) -> (Sealed, Vec<u8>) {
    let (_, mut leaves) = file::read(bytes).unwrap();
    leaves.receipts.clear();
    change(&mut leaves);
    file::seal(opening, leaves.receipts, leaves.accounts).unwrap()
}

/// Base units in a command's answer.
pub fn amount(value: &Value) -> u128 {
    value.as_str().unwrap().parse().unwrap()
}

/// Somebody nobody knows.
pub fn stranger() -> Wallet {
    Wallet::random()
}
