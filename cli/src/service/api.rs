//! Puts the client-facing service together.

use std::sync::Arc;

use anyhow::Context as _;
use comptoir_api::{
    AppState, Config,
    auth::{keys::Keys, password::Hasher},
};
use comptoir_domain::credential::Environment;
use comptoir_http::server::Limits;
use comptoir_store::pool::ServiceRole;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::{
    config::ApiArgs,
    parts::{self, Running},
};
use crate::keys::ServiceKeys;

/// Runs it until a signal.
///
/// # Errors
/// When it cannot start, or its listener fails.
pub async fn run(args: ApiArgs) -> anyhow::Result<()> {
    let stop = super::until_signal()?;
    parts::serve_metrics(args.common.metrics_listen, &stop).await?;
    start(args, stop).await?.ended().await
}

/// Starts it; it ends when `stop` is cancelled.
///
/// # Errors
/// When a part does not come up.
pub async fn start(args: ApiArgs, stop: CancellationToken) -> anyhow::Result<Running> {
    let keys = ServiceKeys::read(&args.web.keys)?;
    let origin = parts::origin(&args.web.public_url);
    let state = AppState {
        db: parts::connect(&args.common, ServiceRole::Api).await?,
        clock: super::now,
        objects: parts::objects(&args.common)?,
        wake: parts::wake(&args.web)?,
        keys: Arc::new(Keys::new(keys.secrets()?, &origin)?),
        config: Arc::new(Config {
            public_origin: origin,
            scheduler_url: parts::origin(&args.scheduler_url),
            environment: environment(args.web.live),
        }),
        passwords: Hasher::default(),
    };
    let listener = TcpListener::bind(args.listen)
        .await
        .with_context(|| format!("listen on {}", args.listen))?;
    let address = listener.local_addr()?;
    tracing::info!(%address, "api listens");
    let serving =
        comptoir_api::server::serve(listener, state, Limits::default(), stop.cancelled_owned());
    Ok(Running::spawn("api", address, async { Ok(serving.await?) }))
}

const fn environment(live: bool) -> Environment {
    if live {
        Environment::Live
    } else {
        Environment::Test
    }
}
