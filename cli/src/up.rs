//! Everything on one machine: the backing services, the contracts on a local chain, our three services, and a guardian in a
//! process of its own.

mod contracts;
pub mod guardian;

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

use alloy::primitives::Address;
use anyhow::{Context as _, bail};
use comptoir_domain::{asset::Asset, ip_list::Network};
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;
use url::Url;

use crate::{
    args::UpArgs,
    client::{
        money::send_deposit,
        wallet::{Sent, Wallet},
    },
    demo::{books::credited, people::Person},
    embedded::{Embedded, Folder, Provided},
    keys::{ChainKeys, ServiceKeys},
    secret,
    service::{
        self,
        config::{
            API_RATES, Allowances, ApiArgs, CALL_RATE, Common, Disputes, Endpoints,
            SCHEDULER_RATES, SchedulerArgs, SettlerArgs, SettlerCare, Web, rate_from_env,
        },
        parts::Running,
    },
};

pub use contracts::{commit_gas, fund};

/// One token has 18 decimals.
const TOKEN: u128 = 10_u128.pow(18);
/// Blocks of one second after which a deposit counts on the local chain.
const FINALITY_DEPTH: u64 = 3;
/// The local chain's batches close this soon, so that the way to a claim can be watched.
const BATCH_AFTER_S: u64 = 5;

/// The file that tells a shell how to reach the node as its operator.
const OPERATOR: &str = "operator.env";

/// Where a node keeps its files and listens.
#[derive(Debug, Clone)]
pub struct NodeOptions {
    /// Everything is in here.
    pub folder: PathBuf,
    /// The client API; port 0 takes a free one.
    pub api: SocketAddr,
    /// The worker API; port 0 takes a free one.
    pub scheduler: SocketAddr,
    /// Begin anew.
    pub reset: bool,
    /// Start a guardian beside the services.
    pub guardian: bool,
    /// What runs already, and is used instead of an embedded service.
    pub provided: Provided,
}

/// Everything, running.
pub struct Node {
    embedded: Embedded,
    keys: ChainKeys,
    services: Vec<Running>,
    stop: CancellationToken,
    operator: PathBuf,
    /// Where the guardian's metrics are, if it has one.
    pub guardian: Option<SocketAddr>,
    /// How clients reach it.
    pub api_url: Url,
    /// How workers reach it.
    pub scheduler_url: Url,
    /// What it is paid in.
    pub asset: Asset,
}

/// Runs everything until a signal.
///
/// # Errors
/// When something does not start, or ends by itself.
pub async fn run(args: UpArgs) -> anyhow::Result<()> {
    let signal = service::until_signal()?;
    let loopback = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let options = NodeOptions {
        folder: args.folder,
        api: loopback(args.api_port),
        scheduler: loopback(args.scheduler_port),
        reset: args.reset,
        guardian: !args.no_guardian,
        provided: Provided::from_env(),
    };
    // Before the services start, or what they count first is lost.
    let metrics = service::parts::serve_metrics(Some(loopback(args.metrics_port)), &signal).await?;
    let node = Node::start(options).await?;
    println!(
        "api        {}  (reference: {}docs)",
        node.api_url, node.api_url
    );
    println!("scheduler  {}", node.scheduler_url);
    println!(
        "chain      {} (id {})",
        node.embedded_ethereum(),
        node.asset.chain_id
    );
    if let Some(address) = metrics {
        println!("metrics    http://{address}/metrics");
    }
    if let Some(address) = node.guardian {
        println!("guardian   a process of its own, metrics on http://{address}/metrics");
    }
    println!("token      {}", node.asset.token);
    println!("contract   {}", node.asset.contract);
    println!(
        "operator   (. {} && comptoir admin …)",
        node.operator.display()
    );
    println!("Ctrl-C stops everything; what it knows is kept.");
    let failed = tokio::select! {
        () = signal.cancelled() => false,
        () = node.stop.cancelled() => true,
    };
    node.stop().await?;
    if failed {
        bail!("a service ended by itself: its last log lines say why");
    }
    Ok(())
}

impl Node {
    /// Starts everything, deploying contracts where the chain is new.
    ///
    /// # Errors
    /// When something does not come up; what was started is stopped again.
    pub async fn start(options: NodeOptions) -> anyhow::Result<Self> {
        // What can be refused is refused before anything is touched.
        options.provided.find_programs()?;
        let taken = Folder::take(&options.folder, options.reset).await?;
        let folder = taken.path().to_owned();
        let keys = ChainKeys::read_or_create(&folder.join("keys"))?;
        ServiceKeys::read_or_create(&folder.join("keys"))?;
        let embedded = Embedded::start_in(taken, options.provided.clone()).await?;
        service::migrate_at(&embedded.urls.database).await?;
        let (asset, start_block) = contracts::find_or_deploy(&embedded, &keys).await?;
        let stop = CancellationToken::new();
        let mut node = Self {
            api_url: local_url(options.api)?,
            scheduler_url: local_url(options.scheduler)?,
            embedded,
            keys,
            services: Vec::new(),
            stop,
            guardian: None,
            asset,
            operator: folder.join(OPERATOR),
        };
        node.start_services(&folder, &options, start_block).await?;
        node.write_environment(&folder)?;
        if options.guardian {
            let places = (&node.api_url, node.embedded_ethereum());
            let stop = node.stop.clone();
            let known = (node.asset.contract, node.keys.platform.address());
            let guardian = guardian::start(&folder, places, known, stop).await?;
            node.guardian = Some(guardian.address);
            node.services.push(guardian);
        }
        Ok(node)
    }

    async fn start_services(
        &mut self,
        folder: &Path,
        options: &NodeOptions,
        start_block: u64,
    ) -> anyhow::Result<()> {
        // Tokens name the public URL, so both addresses must be known before either service starts.
        let api = reserve(options.api)?;
        let scheduler = reserve(options.scheduler)?;
        self.api_url = local_url(api)?;
        self.scheduler_url = local_url(scheduler)?;
        let common = Common {
            database_url: self.embedded.urls.database.clone().into(),
            objects_url: kept_in(folder, "objects")?,
            metrics_listen: None,
            connections_max: 20,
        };
        let web = Web {
            redis_url: Some(self.embedded.urls.redis.clone().into()),
            public_url: self.api_url.clone(),
            keys: folder.join("keys"),
            live: false,
            trusted_proxy_hops: 0,
        };
        let api = ApiArgs {
            common: common.clone(),
            web: web.clone(),
            listen: api,
            scheduler_url: self.scheduler_url.clone(),
            rate_limit: rate_from_env("COMPTOIR_API_RATE_LIMIT", API_RATES.0)?,
            rate_limit_anonymous: rate_from_env("COMPTOIR_API_RATE_LIMIT_ANONYMOUS", API_RATES.1)?,
            call_rate_limit: rate_from_env("COMPTOIR_API_CALL_RATE_LIMIT", CALL_RATE)?,
            cors_origins: Vec::new(),
            rpc_url: Some(self.embedded.urls.ethereum.parse()?),
            sign_in_chains: Vec::new(),
            mail_url: Some(kept_in(folder, "mail")?.to_string().into()),
            // Everything of `up` is on this machine, and so are the receivers of whoever tries it.
            webhooks_to_private: loopback(),
            mail_from: Some("Comptoir <no-reply@localhost>".to_owned()),
            allowances: Allowances::default(),
        };
        let scheduler = SchedulerArgs {
            common: common.clone(),
            web,
            listen: scheduler,
            rate_limit: rate_from_env("COMPTOIR_SCHEDULER_RATE_LIMIT", SCHEDULER_RATES.0)?,
            rate_limit_anonymous: rate_from_env(
                "COMPTOIR_SCHEDULER_RATE_LIMIT_ANONYMOUS",
                SCHEDULER_RATES.1,
            )?,
            disputes: Disputes::default(),
        };
        let settler = SettlerArgs {
            common,
            endpoints: Endpoints::one(self.embedded.urls.ethereum.parse()?),
            key_file: folder.join("keys/settler.key"),
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            start_block,
            finality_depth: Some(FINALITY_DEPTH),
            batch_after_s: BATCH_AFTER_S,
            batch_receipts: 10_000,
            batch_value_base: 10_000 * TOKEN,
            poll_ms: 250,
            care: SettlerCare {
                // Gas is free here, and a busy node commits a batch every few seconds.
                spend_per_day_gwei: u64::MAX,
                ..SettlerCare::default()
            },
        };
        self.services
            .push(service::api::start(api, self.stop.clone()).await?);
        self.services
            .push(service::scheduler::start(scheduler, self.stop.clone()).await?);
        self.services
            .push(service::settler::start(settler, self.stop.clone()).await?);
        Ok(())
    }

    /// What verbs of the operator read from the environment, as a file for a shell: passwords and ports differ from node to node.
    fn write_environment(&self, folder: &Path) -> anyhow::Result<()> {
        let objects = kept_in(folder, "objects")?;
        let keys = folder.join("keys");
        let values = [
            ("DATABASE_URL", self.embedded.urls.database.as_str()),
            ("ETH_RPC_URL", self.embedded_ethereum()),
            ("COMPTOIR_OBJECTS_URL", objects.as_str()),
            ("COMPTOIR_KEYS", keys.to_str().context("a path in UTF-8")?),
        ];
        let lines = values
            .map(|(name, value)| format!("export {name}='{}'\n", value.replace('\'', r"'\''")));
        secret::write(&self.operator, &lines.concat())
    }

    /// The chain's RPC endpoint.
    #[must_use]
    pub fn embedded_ethereum(&self) -> &str {
        &self.embedded.urls.ethereum
    }

    /// Owns fees and dust.
    #[must_use]
    pub const fn platform(&self) -> &Wallet {
        &self.keys.platform
    }

    /// How services reach the database.
    #[must_use]
    pub fn database_url(&self) -> &str {
        &self.embedded.urls.database
    }

    /// A look at the database with all rights.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn database(&self) -> anyhow::Result<PgPool> {
        PgPool::connect(&self.embedded.urls.database)
            .await
            .context("connect to the database")
    }

    /// Gives an address ether on the local chain.
    ///
    /// # Errors
    /// When the chain is not anvil.
    pub async fn fund(&self, address: Address) -> anyhow::Result<()> {
        fund(self.embedded_ethereum(), address).await
    }

    /// Sends tokens of the first supply.
    ///
    /// # Errors
    /// When the chain refuses.
    pub async fn give_tokens(&self, to: Address, base: u128) -> anyhow::Result<()> {
        let rpc = self.embedded_ethereum().parse()?;
        let sent = self
            .keys
            .deployer
            .send_tokens(&rpc, self.asset.token, to, base);
        sent.await.map(drop)
    }

    /// Gives a person tokens and ether, deposits the tokens, and waits until they are credited.
    ///
    /// # Errors
    /// When the chain refuses, or the deposit is not credited in time.
    pub async fn deposit_for(&self, person: &Person, base: u128) -> anyhow::Result<Sent> {
        self.fund(person.wallet.address()).await?;
        self.give_tokens(person.wallet.address(), base).await?;
        let rpc = self.embedded_ethereum().parse()?;
        let sent = send_deposit(&person.api, &person.wallet, &rpc, base).await?;
        credited(person, base).await?;
        Ok(sent)
    }

    /// Stops the services, then what they run on.
    ///
    /// # Errors
    /// When a service had failed, or something had to be killed.
    pub async fn stop(self) -> anyhow::Result<()> {
        self.stop.cancel();
        let mut outcome = Ok(());
        for service in self.services {
            if let Err(error) = service.ended().await {
                outcome = Err(error);
            }
        }
        let stopped = self.embedded.stop().await;
        outcome.and(stopped)
    }
}

/// The URL of a folder in the node's folder, which is made where it is missing.
/// This machine alone.
fn loopback() -> Vec<Network> {
    let networks = ["127.0.0.0/8", "::1"];
    let parsed = networks.iter().map(|it| it.parse().expect("a network"));
    parsed.collect()
}

fn kept_in(folder: &Path, name: &str) -> anyhow::Result<Url> {
    let path = folder.join(name);
    std::fs::create_dir_all(&path)?;
    Url::from_directory_path(&path).map_err(|()| anyhow::anyhow!("no URL for {}", path.display()))
}

/// An address whose port is known: the given one, or a free one.
fn reserve(address: SocketAddr) -> anyhow::Result<SocketAddr> {
    let listener =
        std::net::TcpListener::bind(address).with_context(|| format!("listen on {address}"))?;
    Ok(listener.local_addr()?)
}

fn local_url(address: SocketAddr) -> anyhow::Result<Url> {
    Ok(format!("http://{address}").parse()?)
}
