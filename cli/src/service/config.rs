//! What the services take from the command line and the environment.

use std::{net::SocketAddr, path::PathBuf};

use clap::Args;
use secrecy::SecretString;
use url::Url;

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
}

/// The chain-facing service.
#[derive(Debug, Clone, Args)]
pub struct SettlerArgs {
    #[command(flatten)]
    pub common: Common,
    /// Ethereum JSON-RPC.
    #[arg(long, env = "ETH_RPC_URL", hide_env_values = true)]
    pub rpc_url: Url,
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
}
