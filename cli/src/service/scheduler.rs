//! Puts the worker-facing service together.

use anyhow::Context as _;
use comptoir_http::{jwt::SigningKey, server::Limits};
use comptoir_scheduler::{SchedulerState, keys::Keys};
use comptoir_store::pool::ServiceRole;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::{
    config::SchedulerArgs,
    parts::{self, Running},
};
use crate::keys::ServiceKeys;

/// Runs it until a signal.
///
/// # Errors
/// When it cannot start, or its listener fails.
pub async fn run(args: SchedulerArgs) -> anyhow::Result<()> {
    let stop = super::until_signal()?;
    parts::serve_metrics(args.common.metrics_listen, &stop).await?;
    start(args, stop).await?.ended().await
}

/// Starts it; it ends when `stop` is cancelled.
///
/// # Errors
/// When a part does not come up.
pub async fn start(args: SchedulerArgs, stop: CancellationToken) -> anyhow::Result<Running> {
    let keys = ServiceKeys::read(&args.web.keys)?;
    let signing = SigningKey::from_pem(&keys.signing_pem).context("jwt.pem")?;
    let state = SchedulerState::new(
        parts::connect(&args.common, ServiceRole::Scheduler).await?,
        super::now,
        parts::objects(&args.common)?,
        parts::wake(&args.web)?,
        Keys::new(signing, &[], &parts::origin(&args.web.public_url)),
    );
    let listener = TcpListener::bind(args.listen)
        .await
        .with_context(|| format!("listen on {}", args.listen))?;
    let address = listener.local_addr()?;
    tracing::info!(%address, "scheduler listens");
    let serving =
        comptoir_scheduler::serve(listener, state, Limits::default(), stop.cancelled_owned());
    Ok(Running::spawn("scheduler", address, async {
        Ok(serving.await?)
    }))
}
