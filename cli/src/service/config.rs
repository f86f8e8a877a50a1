//! What the services take from the command line and the environment.

use std::{net::SocketAddr, path::PathBuf};

use anyhow::Context as _;
use clap::Args;
use comptoir_domain::{
    amount::Amount, ip_list::Network, limits::Limits, policy::holdback::DisputeWindows,
    refund::Caps,
};
use secrecy::SecretString;
use time::Duration;
use url::Url;

/// Requests a minute of the client-facing service: with a credential, and from an address without one.
pub const API_RATES: (u32, u32) = (600, 120);
/// Calls of models a minute with one credential.
pub const CALL_RATE: u32 = 60_000;
/// Requests a minute of the worker-facing service. A worker asks often, and many workers may have one address.
pub const SCHEDULER_RATES: (u32, u32) = (12_000, 1_200);

/// A rate that the environment sets, as `serve` takes it; `default` where it does not.
///
/// # Errors
/// When the variable is no number.
pub fn rate_from_env(name: &str, default: u32) -> anyhow::Result<u32> {
    match std::env::var(name) {
        Ok(rate) => rate.parse().with_context(|| format!("{name} is `{rate}`")),
        Err(_) => Ok(default),
    }
}

/// What every service needs.
#[derive(Debug, Clone, Args)]
pub struct Common {
    /// Postgres.
    #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
    pub database_url: SecretString,
    /// Where blobs are kept: `file:///folder` or `s3://bucket/prefix`.
    #[arg(long, env = "COMPTOIR_OBJECTS_URL")]
    pub objects_url: Url,
    /// Prometheus metrics, on a listener of their own [default: none].
    #[arg(long, env = "COMPTOIR_METRICS_LISTEN")]
    pub metrics_listen: Option<SocketAddr>,
    /// Connections to Postgres.
    #[arg(long, env = "COMPTOIR_CONNECTIONS_MAX", default_value_t = 20)]
    pub connections_max: u32,
}

/// What a service with clients or workers needs.
#[derive(Debug, Clone, Args)]
pub struct Web {
    /// Redis, for wake-ups [default: polling alone].
    #[arg(long, env = "REDIS_URL", hide_env_values = true)]
    pub redis_url: Option<SecretString>,
    /// How clients reach the API; the issuer of tokens.
    #[arg(long, env = "COMPTOIR_PUBLIC_URL")]
    pub public_url: Url,
    /// The folder with `jwt.pem` and `pepper`.
    #[arg(long, env = "COMPTOIR_KEYS")]
    pub keys: PathBuf,
    /// The token is worth something: API keys are `ck_live_…`.
    #[arg(long, env = "COMPTOIR_LIVE")]
    pub live: bool,
    /// Proxies of yours in front of the service: so many entries of `X-Forwarded-For`, counted from the right, are theirs.
    #[arg(long, env = "COMPTOIR_TRUSTED_PROXY_HOPS", default_value_t = 0)]
    pub trusted_proxy_hops: usize,
}

/// The client-facing service.
#[derive(Debug, Clone, Args)]
pub struct ApiArgs {
    #[command(flatten)]
    pub common: Common,
    #[command(flatten)]
    pub web: Web,
    /// Where to listen.
    #[arg(long, env = "COMPTOIR_API_LISTEN", default_value = "127.0.0.1:8080")]
    pub listen: SocketAddr,
    /// How workers reach the scheduler; printed in join commands.
    #[arg(long, env = "COMPTOIR_SCHEDULER_URL")]
    pub scheduler_url: Url,
    #[command(flatten)]
    pub allowances: Allowances,
    /// Requests a minute with one credential; 0: as many as it can.
    #[arg(long, env = "COMPTOIR_API_RATE_LIMIT", default_value_t = API_RATES.0)]
    pub rate_limit: u32,
    /// Requests a minute from one address without a credential that was accepted; 0: as many as it can.
    #[arg(long, env = "COMPTOIR_API_RATE_LIMIT_ANONYMOUS", default_value_t = API_RATES.1)]
    pub rate_limit_anonymous: u32,
    /// Calls of models a minute with one credential, which are counted apart; 0: as many as other requests.
    #[arg(long, env = "COMPTOIR_API_CALL_RATE_LIMIT", default_value_t = CALL_RATE)]
    pub call_rate_limit: u32,
    /// Origins whose pages may call, such as `https://shop.example`, with commas between them [default: none].
    #[arg(long, env = "COMPTOIR_CORS_ORIGINS", value_delimiter = ',')]
    pub cors_origins: Vec<String>,
    /// Ethereum JSON-RPC, which judges signatures of wallets that are contracts [default: only keys sign in].
    #[arg(long, env = "ETH_RPC_URL", hide_env_values = true)]
    pub rpc_url: Option<Url>,
    /// Chains that a sign-in message may name, with commas between them [default: the settlement contract's].
    #[arg(long, env = "COMPTOIR_SIGN_IN_CHAINS", value_delimiter = ',')]
    pub sign_in_chains: Vec<u64>,
    /// Where notices go: `smtps://user:password@host`, `smtp://host:port?tls=required`, or `file:///folder` [default: they
    /// wait].
    #[arg(long, env = "COMPTOIR_MAIL_URL", hide_env_values = true)]
    pub mail_url: Option<SecretString>,
    /// Networks that webhooks may go to although they are not on the public internet, also without TLS, with commas between them:
    /// for development [default: none].
    #[arg(long, env = "COMPTOIR_WEBHOOKS_TO_PRIVATE", value_delimiter = ',')]
    pub webhooks_to_private: Vec<Network>,
    /// Whom notices are from [default: `Comptoir <no-reply@HOST>`, of the public URL].
    #[arg(long, env = "COMPTOIR_MAIL_FROM")]
    pub mail_from: Option<String>,
}

/// What accounts may have and do, and what is given back at most.
#[derive(Debug, Clone, Args)]
pub struct Allowances {
    /// Jobs of one account that have not ended.
    #[arg(long, env = "COMPTOIR_OPEN_JOBS_MAX", default_value_t = Limits::DEFAULT.open_jobs)]
    pub open_jobs_max: u64,
    /// Jobs that one account submits on one day (UTC).
    #[arg(long, env = "COMPTOIR_JOBS_PER_DAY_MAX", default_value_t = Limits::DEFAULT.jobs_per_day)]
    pub jobs_per_day_max: u64,
    /// Bytes of the blobs that one account may read.
    #[arg(long, env = "COMPTOIR_STORAGE_BYTES_MAX", default_value_t = Limits::DEFAULT.storage_bytes)]
    pub storage_bytes_max: u64,
    /// Most that one refund gives back, in base units.
    #[arg(long, env = "COMPTOIR_REFUND_MAX_BASE", default_value_t = REFUND_MAX_BASE)]
    pub refund_max_base: u128,
    /// Most that all refunds of 24 hours give back, in base units.
    #[arg(long, env = "COMPTOIR_REFUND_DAY_MAX_BASE", default_value_t = REFUND_DAY_MAX_BASE)]
    pub refund_day_max_base: u128,
    /// What the platform takes of sales of datasets, in millionths; offers and prices that were made before keep theirs.
    #[arg(long, env = "COMPTOIR_MARKET_PPM", default_value_t = MARKET_PPM, value_parser = clap::value_parser!(u32).range(..=200_000))]
    pub market_ppm: u32,
}

/// One twentieth.
const MARKET_PPM: u32 = 50_000;
/// A thousand tokens of 18 decimals.
const REFUND_MAX_BASE: u128 = 1_000_000_000_000_000_000_000;
/// Ten thousand tokens of 18 decimals.
const REFUND_DAY_MAX_BASE: u128 = 10_000_000_000_000_000_000_000;

impl Default for Allowances {
    /// What the command line takes where nothing is said.
    fn default() -> Self {
        let Limits {
            open_jobs,
            jobs_per_day,
            storage_bytes,
        } = Limits::DEFAULT;
        Self {
            open_jobs_max: open_jobs,
            jobs_per_day_max: jobs_per_day,
            storage_bytes_max: storage_bytes,
            refund_max_base: REFUND_MAX_BASE,
            refund_day_max_base: REFUND_DAY_MAX_BASE,
            market_ppm: MARKET_PPM,
        }
    }
}

impl Allowances {
    /// What one account may have and do.
    #[must_use]
    pub const fn limits(&self) -> Limits {
        Limits {
            open_jobs: self.open_jobs_max,
            jobs_per_day: self.jobs_per_day_max,
            storage_bytes: self.storage_bytes_max,
        }
    }

    /// What is given back at most.
    ///
    /// # Errors
    /// When a number is above every amount.
    pub fn refund_caps(&self) -> anyhow::Result<Caps> {
        let amount = |base| Amount::from_base(base).context("a refund is at most 2^120 base units");
        Ok(Caps {
            per_refund: amount(self.refund_max_base)?,
            per_day: amount(self.refund_day_max_base)?,
        })
    }
}

/// The worker-facing service.
#[derive(Debug, Clone, Args)]
pub struct SchedulerArgs {
    #[command(flatten)]
    pub common: Common,
    #[command(flatten)]
    pub web: Web,
    /// Where to listen.
    #[arg(
        long,
        env = "COMPTOIR_SCHEDULER_LISTEN",
        default_value = "127.0.0.1:8081"
    )]
    pub listen: SocketAddr,
    /// Requests a minute of one worker; 0: as many as it can.
    #[arg(long, env = "COMPTOIR_SCHEDULER_RATE_LIMIT", default_value_t = SCHEDULER_RATES.0)]
    pub rate_limit: u32,
    /// Requests a minute from one address without a worker token that was accepted; 0: as many as it can.
    #[arg(
        long,
        env = "COMPTOIR_SCHEDULER_RATE_LIMIT_ANONYMOUS",
        default_value_t = SCHEDULER_RATES.1
    )]
    pub rate_limit_anonymous: u32,
    #[command(flatten)]
    pub disputes: Disputes,
}

/// How long results may be disputed: pay that is held back of a worker that stopped is released after it.
#[derive(Debug, Clone, Args)]
pub struct Disputes {
    /// For so many seconds.
    #[arg(long, env = "COMPTOIR_DISPUTE_WINDOW_S", default_value_t = Self::default().dispute_window_s)]
    pub dispute_window_s: u32,
    /// For so many seconds where the pay is large.
    #[arg(long, env = "COMPTOIR_DISPUTE_WINDOW_LARGE_S", default_value_t = Self::default().dispute_window_large_s)]
    pub dispute_window_large_s: u32,
    /// From so many base units on it is.
    #[arg(long, env = "COMPTOIR_LARGE_PAY_BASE", default_value_t = Self::default().large_pay_base)]
    pub large_pay_base: u128,
}

impl Default for Disputes {
    /// What the command line takes where nothing is said.
    fn default() -> Self {
        let windows = DisputeWindows::default();
        let seconds = |window: Duration| u32::try_from(window.whole_seconds()).unwrap_or(u32::MAX);
        Self {
            dispute_window_s: seconds(windows.usual),
            dispute_window_large_s: seconds(windows.large),
            large_pay_base: windows.large_from.base(),
        }
    }
}

impl Disputes {
    /// The windows.
    ///
    /// # Errors
    /// When an amount is larger than any can be.
    pub fn windows(&self) -> anyhow::Result<DisputeWindows> {
        Ok(DisputeWindows {
            usual: Duration::seconds(self.dispute_window_s.into()),
            large: Duration::seconds(self.dispute_window_large_s.into()),
            large_from: Amount::from_base(self.large_pay_base)
                .context("COMPTOIR_LARGE_PAY_BASE is larger than an amount can be")?,
        })
    }
}

/// The nodes that tell of the chain.
#[derive(Debug, Clone, Args)]
pub struct Endpoints {
    /// Ethereum JSON-RPC.
    #[arg(long, env = "ETH_RPC_URL", hide_env_values = true)]
    pub rpc_url: Url,
    /// Further endpoints, with commas between them, best of other operators: what money rests on counts when most of them
    /// agree. Three bear one that lies or is down [default: none].
    #[arg(
        long,
        env = "COMPTOIR_RPC_URLS_ALSO",
        value_delimiter = ',',
        hide_env_values = true
    )]
    pub rpc_url_also: Vec<Url>,
}

impl Endpoints {
    /// One node alone.
    #[must_use]
    pub const fn one(rpc_url: Url) -> Self {
        Self {
            rpc_url,
            rpc_url_also: Vec::new(),
        }
    }

    /// All of them.
    #[must_use]
    pub fn all(&self) -> Vec<Url> {
        let first = std::iter::once(&self.rpc_url);
        first.chain(&self.rpc_url_also).cloned().collect()
    }
}

/// The chain-facing service.
#[derive(Debug, Clone, Args)]
pub struct SettlerArgs {
    #[command(flatten)]
    pub common: Common,
    #[command(flatten)]
    pub endpoints: Endpoints,
    /// The file with the key that commits batches.
    #[arg(long, env = "COMPTOIR_SETTLER_KEY_FILE")]
    pub key_file: PathBuf,
    /// Health, for whoever watches.
    #[arg(
        long,
        env = "COMPTOIR_SETTLER_LISTEN",
        default_value = "127.0.0.1:8082"
    )]
    pub listen: SocketAddr,
    /// The block before the contract's deployment, as `admin deploy-contracts` printed it.
    #[arg(long, env = "COMPTOIR_START_BLOCK", default_value_t = 0)]
    pub start_block: u64,
    /// Blocks after which a deposit is final [default: the chain's own `finalized` tag].
    #[arg(long, env = "COMPTOIR_FINALITY_DEPTH")]
    pub finality_depth: Option<u64>,
    /// A batch closes this many seconds after the last one,
    #[arg(long, env = "COMPTOIR_BATCH_AFTER_S", default_value_t = 3600)]
    pub batch_after_s: u64,
    /// or with so many receipts,
    #[arg(long, env = "COMPTOIR_BATCH_RECEIPTS", default_value_t = 10_000)]
    pub batch_receipts: u64,
    /// or when its receipts charge so many base units.
    #[arg(
        long,
        env = "COMPTOIR_BATCH_VALUE_BASE",
        default_value_t = 10_000_000_000_000_000_000_000
    )]
    pub batch_value_base: u128,
    /// Milliseconds between two looks at the chain.
    #[arg(long, env = "COMPTOIR_POLL_MS", default_value_t = 4_000)]
    pub poll_ms: u64,
    #[command(flatten)]
    pub care: SettlerCare,
}

/// What transactions may cost, and how long others may take.
#[derive(Debug, Clone, Args)]
pub struct SettlerCare {
    /// Least that is offered to proposers, in gwei for a unit of gas.
    #[arg(long, env = "COMPTOIR_TIP_FLOOR_GWEI", default_value_t = 1)]
    pub tip_floor_gwei: u64,
    /// Most that a transaction offers in all, in gwei for a unit of gas.
    #[arg(long, env = "COMPTOIR_FEE_CEILING_GWEI", default_value_t = 500)]
    pub fee_ceiling_gwei: u64,
    /// Most that may be spent on gas in 24 hours, in gwei [default: one ether].
    #[arg(
        long,
        env = "COMPTOIR_SPEND_PER_DAY_GWEI",
        default_value_t = 1_000_000_000,
        hide_default_value = true
    )]
    pub spend_per_day_gwei: u64,
    /// Blocks after which a transaction that was not mined offers more.
    #[arg(long, env = "COMPTOIR_BUMP_AFTER_BLOCKS", default_value_t = 4)]
    pub bump_after_blocks: u64,
    /// Seconds that an answer of a node may take.
    #[arg(long, env = "COMPTOIR_RPC_TIMEOUT_S", default_value_t = 20)]
    pub rpc_timeout_s: u64,
    /// Seconds that the final block may be behind the newest before that is told, where the node says what is final.
    #[arg(long, env = "COMPTOIR_FINALITY_STALL_S", default_value_t = 1_800)]
    pub finality_stall_s: u64,
    /// Seconds that the newest block may be old, or stay the newest, before that is told.
    #[arg(long, env = "COMPTOIR_HEAD_STALE_S", default_value_t = 120)]
    pub head_stale_s: u64,
}

impl Default for SettlerCare {
    /// What the command line takes where nothing is said.
    fn default() -> Self {
        Self {
            tip_floor_gwei: 1,
            fee_ceiling_gwei: 500,
            spend_per_day_gwei: 1_000_000_000,
            bump_after_blocks: 4,
            rpc_timeout_s: 20,
            finality_stall_s: 1_800,
            head_stale_s: 120,
        }
    }
}
