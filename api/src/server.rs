//! The service on a listener, with what it tidies beside answering.

use std::{io, time::Duration};

use comptoir_http::server::{self, Limits};
use comptoir_store::{
    accounts, dataset_checks::Takes, idempotency, notices, password_resets, sessions, siwe_nonces,
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{
    AppState,
    calls::Calls,
    checking,
    metrics::CHECKER_READY,
    steps, sweeping,
    webhooks::{self, sender::Sender, upkeep},
};

/// How often what has expired is forgotten.
const TIDY_EVERY: Duration = Duration::from_mins(1);
/// How often what is due is looked for.
const STEP_EVERY: Duration = Duration::from_secs(2);
/// The checkers, each with a version of another account at a time; each takes a child of half a gigabyte. One is for what is checked soon: a
/// huge file holds a checker until it is read, and what is small waits for none.
const CHECKERS: [Takes; 2] = [Takes::All, Takes::Small];
/// Rows of a table that one round forgets at most.
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
    let stepping = tokio::spawn(take_steps(state.clone()));
    webhooks::describe();
    let sending = tokio::spawn(Sender::new(state.clone()).run());
    let closing = CancellationToken::new();
    let calling = tokio::spawn(Calls::run(state.clone(), closing.clone()));
    let checking = CHECKERS.map(|takes| tokio::spawn(check(state.clone(), takes)));
    let sweeping = tokio::spawn(sweeping::run(state.clone()));
    let (router, _) = crate::app(state);
    let served = server::serve(listener, router, limits, shutdown).await;
    // Once nobody waits for an answer any more, what was called is charged.
    closing.cancel();
    calling.await.map_err(io::Error::other)?;
    tidying.abort();
    stepping.abort();
    sweeping.abort();
    // What is being sent is sent again, by whoever comes next.
    sending.abort();
    for checker in checking {
        checker.abort();
    }
    served
}

/// Bounded steps, one after the other; at once where the last one had much to do.
async fn take_steps(state: AppState) {
    let mut every = tokio::time::interval(STEP_EVERY);
    loop {
        every.tick().await;
        if let Err(error) = steps::step(&state).await {
            let error: &dyn std::error::Error = &error;
            let cause = error.source().map(ToString::to_string);
            tracing::warn!(%error, cause, "a step is not done; it is tried again");
        }
    }
}

/// Versions that are to be published, in turns.
async fn check(state: AppState, takes: Takes) {
    let mut every = tokio::time::interval(STEP_EVERY);
    let mut was_ready = true;
    loop {
        every.tick().await;
        let ready = state.checker.ready();
        metrics::gauge!(CHECKER_READY).set(f64::from(u8::from(ready.is_ok())));
        if let Err(error) = &ready
            && was_ready
        {
            tracing::error!(%error, "versions of datasets wait: their files are not checked on this machine");
        }
        was_ready = ready.is_ok();
        if was_ready {
            check_all(&state, takes).await;
        }
    }
}

/// Checks until nothing waits any more, or something fails.
async fn check_all(state: &AppState, takes: Takes) {
    loop {
        match checking::step(state, takes).await {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => {
                let causes =
                    std::iter::successors(Some(&error as &dyn std::error::Error), |it| it.source());
                let causes: Vec<_> = causes.map(ToString::to_string).collect();
                let error = causes.join(": ");
                tracing::error!(error, "a version is not checked; it is tried again");
                return;
            }
        }
    }
}

async fn tidy(state: AppState) {
    let mut every = tokio::time::interval(TIDY_EVERY);
    loop {
        every.tick().await;
        match forget_expired(&state).await {
            Ok(0) => {}
            Ok(forgotten) => tracing::info!(forgotten, "what had expired is forgotten"),
            Err(error) => tracing::warn!(%error, "what has expired is not forgotten"),
        }
        if let Err(error) = upkeep::round(&state).await {
            tracing::warn!(%error, "webhooks are not tidied up");
        }
    }
}

/// One bounded round of forgetting what has expired: kept replies, tokens, sessions, challenges, nonces, notices that were
/// sent long ago; says how many.
///
/// # Errors
/// When Postgres fails.
pub async fn forget_expired(state: &AppState) -> sqlx::Result<u64> {
    let now = state.now();
    let mut connection = state.db.acquire().await?;
    let replies = idempotency::forget_expired(&mut connection, now, FORGET_MAX).await?;
    let tokens = sessions::forget_expired(&mut connection, now, FORGET_MAX).await?;
    let challenges = accounts::forget_challenges(&mut connection, now, FORGET_MAX).await?;
    let nonces = siwe_nonces::forget_expired(&mut connection, now, FORGET_MAX).await?;
    let resets = password_resets::forget_expired(&mut connection, now, FORGET_MAX).await?;
    let notices = notices::forget_old(&mut connection, now, FORGET_MAX).await?;
    Ok(replies + tokens + challenges + nonces + resets + notices)
}
