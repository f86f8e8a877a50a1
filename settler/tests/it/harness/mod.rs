//! A chain with the contracts on it, a database that knows them, and a settler with its own rights.

pub mod audit;
mod money;
pub mod process;
pub mod proxy;

use std::{sync::Arc, time::Duration};

use alloy::{
    primitives::{Address, U256},
    signers::local::PrivateKeySigner,
    sol_types::SolCall,
};
use comptoir_contracts_bindings::{
    ComptoirToken,
    Settlement::{self, SettlementInstance},
};
use comptoir_devchain::Anvil;
use comptoir_domain::{
    amount::Amount,
    asset::Asset,
    job::Device,
    price::{PriceVersion, Rate},
    settlement::BatchState,
};
use comptoir_settler::{
    BatchPolicy, Config, Finality, Progress, Settler,
    chain::RPC_TIMEOUT,
    deploy::{self, Caps, Deployed, Deployment, Sender, Token, Windows},
    fees::FeePolicy,
    health::Health,
};
use comptoir_store::{
    assets::{self, NewAsset},
    batches::{self, Batch, Filter},
    objects::Objects,
    pool::{self, ServiceRole},
    prices::{self, NewPrice},
    reconciliation,
};
use serde_json::json;
use sqlx::PgPool;
use tempfile::TempDir;
use time::{OffsetDateTime, macros::datetime};

pub const NOW: OffsetDateTime = datetime!(2026-11-22 09:00 UTC);
/// Blocks until a block is final.
pub const DEPTH: u64 = 4;
pub const PLATFORM: Address = Address::repeat_byte(0xff);
const TOKEN: u128 = 10_u128.pow(18);

/// The first accounts of anvil's published mnemonic.
const KEYS: [&str; 7] = [
    "0xac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80",
    "0x59c6995e998f97a5a0044966f0945389dc9e86dae88c7a8412f4603b6b78690d",
    "0x5de4111afa1a4b94908f83103eb1f1706367c2e68ca870fc3fb9a804cdab365a",
    "0x7c852118294e51e653712a81e05800f419141751be58f605c371e15141b007a6",
    "0x47e179ec197488593b187f80a00eb0da91f1b9d0b13f8733639f19c30a34926a",
    "0x8b3a350cf5c34c9194ca85829a2df0ec3153be0318b5e2d3348e872092edffba",
    "0x92db14e403b83dfe3df233f83dfa3a0d7096f21ca9b0d6d6b8d88b2b4ec1564e",
];

#[derive(Clone, Copy)]
pub enum Key {
    Deployer,
    Admin,
    Settler,
    Guardian,
    Alice,
    Bob,
    Carol,
}

impl Key {
    pub fn signer(self) -> PrivateKeySigner {
        KEYS[self as usize].parse().unwrap()
    }

    pub fn address(self) -> Address {
        self.signer().address()
    }
}

pub struct World {
    pub anvil: Anvil,
    pub owner: PgPool,
    pub db: PgPool,
    pub scheduler: PgPool,
    pub api: PgPool,
    pub objects: Objects,
    pub folder: TempDir,
    pub health: Arc<Health>,
    pub deployed: Deployed,
    pub asset: Asset,
    pub price: PriceVersion,
}

pub fn amount(base: u128) -> Amount {
    Amount::from_base(base).unwrap()
}

pub const fn tokens(count: u128) -> u128 {
    count * TOKEN
}

impl World {
    pub async fn new(owner: PgPool) -> Self {
        Self::on(Anvil::start(&[]).await, owner).await
    }

    /// What is deployed.
    pub fn plan() -> Deployment {
        Deployment {
            token: Token::New {
                holder: Key::Alice.address(),
                initial_supply: U256::from(tokens(1_000_000)),
                cap: U256::from(tokens(1_000_000)),
            },
            admin: Key::Admin.address(),
            timelock_delay: Duration::from_hours(48),
            settler: Key::Settler.address(),
            guardian: Key::Guardian.address(),
            windows: Windows::DEVELOPMENT,
            caps: Caps {
                per_batch: tokens(100),
                per_day: tokens(150),
            },
        }
    }

    pub async fn on(anvil: Anvil, owner: PgPool) -> Self {
        let deployed = deploy::deploy(anvil.url.clone(), Key::Deployer.signer(), &Self::plan())
            .await
            .unwrap();
        let connect = |role| pool::connect((*owner.connect_options()).clone(), role, 4);
        let folder = TempDir::new().unwrap();
        let objects =
            Objects::open(&url::Url::from_directory_path(folder.path()).unwrap()).unwrap();
        let (asset, price) = register(&owner, &deployed).await;
        Self {
            db: connect(ServiceRole::Settler).await.unwrap(),
            scheduler: connect(ServiceRole::Scheduler).await.unwrap(),
            api: connect(ServiceRole::Api).await.unwrap(),
            owner,
            anvil,
            objects,
            folder,
            health: Arc::default(),
            deployed,
            asset,
            price,
        }
    }

    pub fn config(&self) -> Config {
        Config {
            rpcs: vec![self.anvil.url.clone()],
            rpc_timeout: RPC_TIMEOUT,
            signer: Arc::new(Key::Settler.signer()),
            signer_timeout: Duration::from_secs(10),
            start_block: self.deployed.start_block,
            finality: Finality::Depth(DEPTH),
            finality_stall: Duration::from_mins(30),
            // The chain has the clock of the machine, the settler the test's.
            head_stale: Duration::MAX,
            batches: BatchPolicy {
                interval: Duration::ZERO,
                ..BatchPolicy::default()
            },
            fees: FeePolicy::default(),
            poll: Duration::from_millis(100),
            holder: "test".to_owned(),
        }
    }

    pub async fn lead_with(&self, config: Config) -> Option<Settler> {
        let parts = (self.db.clone(), self.objects.clone(), self.asset);
        Settler::lead(parts, config, Arc::clone(&self.health), NOW)
            .await
            .unwrap()
    }

    /// Leads once the settler before it is gone: its lock goes with its connection.
    pub async fn lead_after(&self, before: Settler, config: Config) -> Settler {
        drop(before);
        self.lead_when_free(config).await
    }

    pub async fn settler_when_free(&self) -> Settler {
        self.lead_when_free(self.config()).await
    }

    pub async fn lead_when_free(&self, config: Config) -> Settler {
        for _ in 0..1_000 {
            if let Some(settler) = self.lead_with(config.clone()).await {
                return settler;
            }
        }
        panic!("the lead does not become free");
    }

    pub async fn lead(&self) -> Option<Settler> {
        self.lead_with(self.config()).await
    }

    pub async fn settler(&self) -> Settler {
        self.lead().await.expect("nobody else leads")
    }

    pub fn sender(&self, key: Key) -> Sender {
        Sender::new(self.anvil.url.clone(), key.signer()).unwrap()
    }

    pub async fn call(&self, key: Key, call: impl SolCall) {
        self.sender(key)
            .call(self.deployed.settlement, call.abi_encode().into())
            .await
            .unwrap();
    }

    /// What the timelock executes when ADMIN's delay has passed.
    pub async fn as_admin(&self, call: impl SolCall) {
        let admin = self.deployed.timelock;
        self.anvil
            .ask("anvil_impersonateAccount", json!([admin]))
            .await;
        self.anvil.set_ether(admin, u128::from(u64::MAX)).await;
        self.send_unchecked(admin, call.abi_encode()).await;
    }

    /// Sends a call that may fail, from an account that the node signs for; returns whether it succeeded.
    pub async fn send_unchecked(&self, from: Address, calldata: Vec<u8>) -> bool {
        let call = self.unchecked(from, calldata);
        let hash = self.anvil.ask("eth_sendTransaction", json!([call])).await;
        let mined = async {
            loop {
                let receipt = self.anvil.ask("eth_getTransactionReceipt", json!([hash]));
                let receipt = receipt.await;
                if !receipt.is_null() {
                    return receipt["status"] == "0x1";
                }
            }
        };
        let mined = tokio::time::timeout(process::WAIT_MAX, mined).await;
        mined.expect("the call is mined")
    }

    /// Such a call, for whoever sends it.
    pub fn unchecked(&self, from: Address, calldata: Vec<u8>) -> serde_json::Value {
        json!({
            "from": from,
            "to": self.deployed.settlement,
            "data": alloy::hex::encode_prefixed(calldata),
            "gas": "0x100000",
        })
    }

    pub fn contract(&self) -> SettlementInstance<&alloy::providers::RootProvider> {
        Settlement::new(self.deployed.settlement, &self.anvil.node)
    }

    pub async fn tokens_of(&self, owner: Address) -> u128 {
        let token = ComptoirToken::new(self.deployed.token, &self.anvil.node);
        token
            .balanceOf(owner)
            .call()
            .await
            .unwrap()
            .try_into()
            .unwrap()
    }

    /// A person has looked at why settling stood still.
    pub async fn resume(&self) {
        let mut conn = self.owner.acquire().await.unwrap();
        let cleared = reconciliation::clear_halt(&mut conn, self.asset.id, NOW);
        assert!(cleared.await.unwrap(), "settling stood still");
    }

    /// Newest first.
    pub async fn batches(&self) -> Vec<Batch> {
        let mut conn = self.api.acquire().await.unwrap();
        batches::list(
            &mut conn,
            self.asset.id,
            Filter {
                before: None,
                limit: 1_000,
            },
        )
        .await
        .unwrap()
    }

    pub async fn states(&self) -> Vec<(u64, u32, BatchState)> {
        let batches = self.batches().await;
        batches
            .iter()
            .map(|it| (it.header.id, it.header.generation, it.state))
            .collect()
    }

    /// Mines and steps until the newest batch can be claimed from.
    pub async fn until_claimable(&self, settler: &mut Settler) -> Batch {
        for _ in 0..20 {
            settler.step(NOW).await.unwrap();
            let newest = self.batches().await.into_iter().next();
            if let Some(batch) = newest.filter(|batch| batch.state == BatchState::Claimable) {
                return batch;
            }
            self.anvil.pass(21).await;
            self.anvil.mine(DEPTH).await;
        }
        panic!("no batch became claimable: {:?}", self.states().await);
    }

    /// Steps until nothing changes any more.
    pub async fn settle_down(&self, settler: &mut Settler) {
        for _ in 0..20 {
            if settler.step(NOW).await.unwrap() == Progress::default() {
                return;
            }
        }
        panic!(
            "the settler does not come to rest: {:?}",
            self.states().await
        );
    }
}

async fn register(owner: &PgPool, deployed: &Deployed) -> (Asset, PriceVersion) {
    let mut conn = owner.acquire().await.unwrap();
    let new = NewAsset {
        chain_id: deployed.chain_id,
        token: deployed.token,
        contract: deployed.settlement,
        symbol: deployed.symbol.clone(),
        decimals: deployed.decimals,
        platform: PLATFORM,
    };
    let asset = assets::register(&mut conn, &new, NOW).await.unwrap();
    // One base unit for each multiply-add, a tenth of it the platform's.
    let price = NewPrice {
        device: Device::Cpu,
        rate_nano: Rate::from_nano(10_u128.pow(18)).unwrap(),
        minimum: amount(1),
        platform_ppm: 100_000,
        effective_at: NOW,
    };
    (
        asset,
        prices::publish(&mut conn, asset.id, price).await.unwrap(),
    )
}
