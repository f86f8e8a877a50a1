//! The service on a listener, with what it tidies beside answering.

use std::{io, time::Duration};

use comptoir_http::server::{self, Limits};
use comptoir_store::idempotency;
use tokio::net::TcpListener;

use crate::AppState;

/// How often expired replies are forgotten.
const TIDY_EVERY: Duration = Duration::from_mins(1);
/// Replies that one round forgets at most.
const FORGET_MAX: i64 = 1000;

/// Serves the API until `shutdown` resolves, then lets requests finish.
///
/// # Errors
/// When the listener fails.
pub async fn serve(
    listener: TcpListener,
    state: AppState,
    limits: Limits,
    shutdown: impl Future<Output = ()> + Send,
) -> io::Result<()> {
    let tidying = tokio::spawn(tidy(state.clone()));
    let (router, _) = crate::app(state);
    let served = server::serve(listener, router, limits, shutdown).await;
    tidying.abort();
    served
}

async fn tidy(state: AppState) {
    let mut every = tokio::time::interval(TIDY_EVERY);
    loop {
        every.tick().await;
        match forget(&state).await {
            Ok(0) => {}
            Ok(forgotten) => tracing::info!(forgotten, "expired replies forgotten"),
            Err(error) => tracing::warn!(%error, "expired replies not forgotten"),
        }
    }
}

async fn forget(state: &AppState) -> sqlx::Result<u64> {
    idempotency::forget_expired(&mut *state.db.acquire().await?, state.now(), FORGET_MAX).await
}
