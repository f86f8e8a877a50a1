//! The service on a listener, with its clockwork beside it.

use std::io;

use comptoir_http::server::{self, Limits};
use tokio::net::TcpListener;

use crate::{Calls, SchedulerState, app, metrics, steps};

/// Serves the worker protocol and runs the timed steps until `shutdown` resolves; then answers held requests, and ends
/// the steps between two rounds.
///
/// # Errors
/// When the listener fails.
pub async fn serve(
    listener: TcpListener,
    state: SchedulerState,
    limits: Limits,
    shutdown: impl Future<Output = ()> + Send,
) -> io::Result<()> {
    metrics::describe();
    let closing = state.closing.clone();
    let clockwork = tokio::spawn(steps::run(state.clone()));
    let calls = tokio::spawn(Calls::run(state.clone()));
    let (router, _) = app(state);
    let asked = async move {
        shutdown.await;
        closing.cancel();
    };
    let served = server::serve(listener, router, limits, asked).await;
    clockwork.await.map_err(io::Error::other)?;
    calls.await.map_err(io::Error::other)?;
    served
}
