//! What the services are put together from.

use std::{net::SocketAddr, num::NonZeroU32, sync::Arc, time::Duration};

use anyhow::Context as _;
use comptoir_http::{
    metrics::Exporter,
    rate_limit::{Policy, RateLimits, Shared},
};
use comptoir_store::{
    objects::Objects,
    pool::{self, ServiceRole},
    relay::Relay,
    wake::Wake,
};
use secrecy::ExposeSecret as _;
use sqlx::{PgPool, postgres::PgConnectOptions};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use url::Url;

use super::config::{Common, Web};

/// Separates deployments that share one Redis.
const NAMESPACE: &str = "main";
/// Connections for what is rare.
const FEW_CONNECTIONS: u32 = 4;

/// A service that was started.
pub struct Running {
    name: &'static str,
    /// Where it listens.
    pub address: SocketAddr,
    task: JoinHandle<anyhow::Result<()>>,
}

impl Running {
    /// Runs a service in a task of its own.
    #[must_use]
    pub fn spawn(
        name: &'static str,
        address: SocketAddr,
        service: impl Future<Output = anyhow::Result<()>> + Send + 'static,
    ) -> Self {
        Self {
            name,
            address,
            task: tokio::spawn(service),
        }
    }

    /// Waits until it has ended.
    ///
    /// # Errors
    /// When it failed or panicked.
    pub async fn ended(self) -> anyhow::Result<()> {
        self.task
            .await
            .with_context(|| format!("{} panicked", self.name))?
            .context(self.name)
    }
}

/// A pool in the role of a service.
///
/// # Errors
/// When Postgres does not answer or refuses the role.
pub async fn connect(common: &Common, role: ServiceRole) -> anyhow::Result<PgPool> {
    let options: PgConnectOptions = common
        .database_url
        .expose_secret()
        .parse()
        .context("DATABASE_URL is no Postgres URL")?;
    pool::connect(options, role, common.connections_max)
        .await
        .with_context(|| format!("connect to the database as {role:?}"))
}

/// A pool of a few connections, for what is rare.
///
/// # Errors
/// When Postgres does not answer or refuses the role.
pub async fn connect_few(common: &Common, role: ServiceRole) -> anyhow::Result<PgPool> {
    let few = Common {
        connections_max: common.connections_max.min(FEW_CONNECTIONS),
        ..common.clone()
    };
    connect(&few, role).await
}

/// The object store.
///
/// # Errors
/// When the URL names none.
pub fn objects(common: &Common) -> anyhow::Result<Objects> {
    Objects::open(&common.objects_url).context("open the object store")
}

/// Wake-ups, through Redis where one is configured.
///
/// # Errors
/// When the URL is no Redis URL.
pub fn wake(web: &Web) -> anyhow::Result<Wake> {
    web.redis_url.as_ref().map_or_else(
        || Ok(Wake::local()),
        |url| Wake::start(url.expose_secret(), NAMESPACE).context("REDIS_URL is no Redis URL"),
    )
}

/// What calls of models travel through; without Redis they do not leave the process.
///
/// # Errors
/// When the URL is no Redis URL.
pub fn relay(web: &Web) -> anyhow::Result<Relay> {
    web.redis_url.as_ref().map_or_else(
        || Ok(Relay::local()),
        |url| Relay::start(url.expose_secret(), NAMESPACE).context("REDIS_URL is no Redis URL"),
    )
}

/// Buckets in Redis that all replicas share, where one is configured.
///
/// # Errors
/// When the URL is no Redis URL.
pub fn shared_limits(web: &Web) -> anyhow::Result<Option<Arc<Shared>>> {
    let Some(url) = &web.redis_url else {
        return Ok(None);
    };
    let shared =
        Shared::new(url.expose_secret(), NAMESPACE).context("REDIS_URL is no Redis URL")?;
    Ok(Some(Arc::new(shared)))
}

/// So many requests a minute with a credential, and without one from one address. A rate of 0 is none, and limits
/// nothing; both are set, or neither.
///
/// # Errors
/// When only one of them is 0.
pub fn rate_limits(
    (service, credentials, anonymous): (&'static str, u32, u32),
    shared: Option<&Arc<Shared>>,
) -> anyhow::Result<Option<RateLimits>> {
    match (NonZeroU32::new(credentials), NonZeroU32::new(anonymous)) {
        (Some(credentials), Some(anonymous)) => Ok(Some(RateLimits::new(
            per_minute(service, credentials),
            per_minute("anonymous", anonymous),
            shared,
        ))),
        (None, None) => Ok(None),
        (Some(_), None) | (None, Some(_)) => {
            anyhow::bail!("the two rate limits are both 0, or neither is")
        }
    }
}

/// So many requests a minute.
#[must_use]
pub const fn per_minute(name: &'static str, quota: NonZeroU32) -> Policy {
    Policy {
        name,
        quota,
        window: Duration::from_mins(1),
    }
}

/// Scheme, host and port, without a slash at the end.
#[must_use]
pub fn origin(url: &Url) -> String {
    url.origin().ascii_serialization()
}

/// Serves metrics where asked to, until `stop` is cancelled; says where.
///
/// # Errors
/// When the address cannot be listened on.
pub async fn serve_metrics(
    listen: Option<SocketAddr>,
    stop: &CancellationToken,
) -> anyhow::Result<Option<SocketAddr>> {
    let Some(listen) = listen else {
        return Ok(None);
    };
    let exporter = Exporter::install().context("install the metrics recorder")?;
    let listener = TcpListener::bind(listen)
        .await
        .with_context(|| format!("listen on {listen}"))?;
    let address = listener.local_addr()?;
    tracing::info!(%address, "metrics listens");
    let stop = stop.clone();
    tokio::spawn(async move {
        if let Err(error) = exporter.serve(listener, stop.cancelled_owned()).await {
            tracing::error!(%error, "metrics ended");
        }
    });
    Ok(Some(address))
}
