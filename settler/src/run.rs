//! Runs a settler: leads when it can, steps, and waits longer and longer while that fails.

use std::{sync::Arc, time::Duration};

use comptoir_domain::asset::Asset;
use comptoir_store::{leader::FenceError, objects::Objects};
use sqlx::PgPool;
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;

use crate::{
    alert::Alert,
    chain::ChainError,
    config::Config,
    error::{StepError, causes},
    health::Health,
    settler::{Progress, Settler},
};

/// Steps that finished.
const STEPS: &str = "settler_steps_total";
/// Steps that did not.
const FAILED_STEPS: &str = "settler_failed_steps_total";
/// 1 in the process that leads.
const LEADING: &str = "settler_leading";
/// The longest pause between two steps that fail.
const PAUSE_MAX: Duration = Duration::from_mins(1);
/// What a step that does not finish may be told as.
const FAILURES: [Alert; 5] = [
    Alert::WrongChain,
    Alert::NodesDisagree,
    Alert::NodeFailing,
    Alert::SignerFailing,
    Alert::StepFailing,
];

/// Leads when it can and steps until `shutdown`; `clock` is the wall clock.
///
/// # Errors
/// When the node is on another chain at the start: no step could ever be right.
pub async fn run(
    parts: (PgPool, Objects, Asset),
    config: Config,
    clock: fn() -> OffsetDateTime,
    health: Arc<Health>,
    shutdown: CancellationToken,
) -> Result<(), StepError> {
    let mut settler: Option<Settler> = None;
    let mut failures = 0;
    warn_of_few(config.rpcs.len());
    loop {
        let now = clock();
        let outcome = turn(&mut settler, &parts, &config, &health, now).await;
        metrics::gauge!(LEADING).set(if settler.is_some() { 1.0 } else { 0.0 });
        match outcome {
            Ok(()) => {
                failures = 0;
                for alert in FAILURES {
                    health.alerts.clear(alert);
                }
            }
            Err(error @ StepError::Chain(ChainError::WrongChain { .. })) if settler.is_none() => {
                return Err(error);
            }
            Err(error) => {
                failures += 1;
                failed(&error, &health, now);
                // The lock's session is gone, or another settler leads: begin anew.
                if matches!(
                    error,
                    StepError::Fence(FenceError::Deposed) | StepError::Database(_)
                ) {
                    settler = None;
                }
            }
        }
        tokio::select! {
            () = tokio::time::sleep(pause(config.poll, failures)) => {}
            () = shutdown.cancelled() => return Ok(()),
        }
    }
}

/// How many nodes could lie, or fail, before that is felt.
fn warn_of_few(endpoints: usize) {
    match endpoints {
        1 => tracing::warn!(
            "one RPC endpoint is configured: what it says is believed. With three, one that lies is out-voted"
        ),
        2 => tracing::warn!(
            "two RPC endpoints are configured: where they differ, settling stands still. With three, one is out-voted"
        ),
        _ => tracing::info!(endpoints, "the majority of the RPC endpoints is believed"),
    }
}

/// Leads or stands by; steps where it leads.
async fn turn(
    settler: &mut Option<Settler>,
    (db, objects, asset): &(PgPool, Objects, Asset),
    config: &Config,
    health: &Arc<Health>,
    now: OffsetDateTime,
) -> Result<(), StepError> {
    if settler.is_none() {
        let parts = (db.clone(), objects.clone(), *asset);
        *settler = Settler::lead(parts, config.clone(), Arc::clone(health), now).await?;
        if settler.is_some() {
            tracing::info!(holder = config.holder, "leading");
        }
    }
    let Some(leader) = settler.as_mut() else {
        health.alerts.clear_all();
        health.standing_by(now);
        return Ok(());
    };
    let progress = leader.step(now).await?;
    metrics::counter!(STEPS).increment(1);
    let standing = health.alerts.standing();
    let halt = standing
        .into_iter()
        .find(|(alert, _)| *alert == Alert::SettlingHalted);
    health.stepped(now, halt.map(|(_, detail)| detail));
    if progress != Progress::default() {
        tracing::debug!(?progress, "step");
    }
    Ok(())
}

/// The usual pause, doubled with each failure in a row.
fn pause(poll: Duration, failures: u32) -> Duration {
    let doublings = failures.min(16);
    poll.saturating_mul(1 << doublings).min(PAUSE_MAX.max(poll))
}

fn failed(error: &StepError, health: &Health, now: OffsetDateTime) {
    metrics::counter!(FAILED_STEPS).increment(1);
    let chain = causes(error);
    health.alerts.raise(error.alert(), &chain);
    health.failed(now, chain);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_in_a_row_double_the_pause_up_to_a_minute() {
        let poll = Duration::from_secs(4);
        let pauses: Vec<u64> = (0..7)
            .map(|failures| pause(poll, failures).as_secs())
            .collect();
        assert_eq!(pauses, [4, 8, 16, 32, 60, 60, 60]);
        assert_eq!(pause(Duration::from_mins(2), 9), Duration::from_mins(2));
        assert_eq!(pause(poll, u32::MAX).as_secs(), 60);
    }
}
