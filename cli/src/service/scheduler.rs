//! Puts the worker-facing service together.

use std::sync::Arc;

use anyhow::Context as _;
use comptoir_http::{Edge, server::Limits};
use comptoir_scheduler::{Calls, SchedulerState, keys::Keys};
use comptoir_store::{data_keys::RootKeyRing, pool::ServiceRole};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::{
    clock,
    config::SchedulerArgs,
    parts::{self, Running},
};
use crate::keys::{self, ServiceKeys};

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
    let secrets = ServiceKeys::read(&args.web.keys)?;
    let shared = parts::shared_limits(&args.web)?;
    let db = parts::connect(&args.common, ServiceRole::Scheduler).await?;
    clock::follow(&db, &stop).await?;
    let mut state = SchedulerState::new(
        db,
        super::now,
        parts::objects(&args.common)?,
        parts::wake(&args.web)?,
        (
            Keys::new(secrets.ring()?, &parts::origin(&args.web.public_url)),
            RootKeyRing::new(keys::root_keys(&args.web.keys)?),
        ),
    );
    state.edge = Edge {
        trusted_proxy_hops: args.web.trusted_proxy_hops,
        limits: parts::rate_limits(
            ("default", args.rate_limit, args.rate_limit_anonymous),
            shared.as_ref(),
        )?,
        ..Edge::default()
    };
    state.calls = Calls::new(parts::relay(&args.web)?);
    state.dispute_windows = args.disputes.windows()?;
    let roots = state.root_keys.clone();
    keys::follow_roots(&args.web.keys, stop.clone(), move |keys| {
        roots.replace(keys);
    });
    let signing = Arc::clone(&state.keys);
    keys::follow(&args.web.keys, stop.clone(), move |ring| {
        signing.replace(ring);
    });
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
