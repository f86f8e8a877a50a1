//! Pay that is held back is released or forfeited, confirming runs are paid by the house, and seeds of draws are shown.

use comptoir_store::{
    draws,
    holdback::{self, Fate, proceeds},
};
use time::OffsetDateTime;

use super::{Progress, ROUND_MAX, StepError};
use crate::{
    SchedulerState,
    metrics::{AUDITS_OWED, HOLDBACKS, PROCEEDS, PROCEEDS_HELD},
};

/// Releases what is past its holdback, and forfeits what barred workers had earned.
pub async fn move_pay(state: &SchedulerState, now: OffsetDateTime) -> Result<Progress, StepError> {
    let forfeited = move_all(state, Fate::Forfeited, now).await?;
    let released = move_all(state, Fate::Released, now).await?;
    Ok(Progress {
        done: forfeited.done + released.done,
        more: forfeited.more || released.more,
    })
}

async fn move_all(
    state: &SchedulerState,
    fate: Fate,
    now: OffsetDateTime,
) -> Result<Progress, StepError> {
    let workers = holdback::due(
        &mut *state.db.acquire().await?,
        (fate, state.dispute_windows),
        now,
        ROUND_MAX,
    )
    .await?;
    let (word, mut done) = (fate.as_str(), 0);
    for worker in &workers {
        let mut tx = state.db.begin().await?;
        let moved =
            holdback::move_due(&mut tx, *worker, (fate, state.dispute_windows), now).await?;
        tx.commit().await?;
        if moved > 0 {
            tracing::info!(%worker, jobs = moved, fate = word, "held-back pay moved");
            metrics::counter!(HOLDBACKS, "fate" => word).increment(moved as u64);
        }
        done += moved;
    }
    Ok(Progress::of(workers.len().max(done), done))
}

/// Releases or forfeits proceeds of datasets whose takedowns are decided.
pub async fn move_proceeds(
    state: &SchedulerState,
    now: OffsetDateTime,
) -> Result<Progress, StepError> {
    let datasets = proceeds::due(&mut *state.db.acquire().await?, now, ROUND_MAX).await?;
    let mut done = 0;
    for dataset in &datasets {
        let mut tx = state.db.begin().await?;
        let (fate, moved) = match proceeds::move_due(&mut tx, *dataset, now).await {
            Ok(it) => it,
            // One that fails waits, and hinders no other.
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::error!(%dataset, error, "held-back proceeds wait");
                continue;
            }
        };
        tx.commit().await?;
        if moved > 0 {
            tracing::info!(%dataset, shares = moved, fate = fate.as_str(), "held-back proceeds moved");
            metrics::counter!(PROCEEDS, "fate" => fate.as_str()).increment(moved as u64);
        }
        done += moved;
    }
    let held = proceeds::held(&mut *state.db.acquire().await?).await?;
    metrics::gauge!(PROCEEDS_HELD).set(f64::from(i32::try_from(held).unwrap_or(i32::MAX)));
    Ok(Progress::of(datasets.len().max(done), done))
}

/// Pays what the house owes for confirming runs, as far as its money goes.
pub async fn pay_audits(
    state: &SchedulerState,
    now: OffsetDateTime,
) -> Result<Progress, StepError> {
    let mut tx = state.db.begin().await?;
    let paid = holdback::pay_owed(&mut tx, now).await?;
    let owed = holdback::owed(&mut tx).await?;
    tx.commit().await?;
    metrics::gauge!(AUDITS_OWED).set(f64::from(i32::try_from(owed).unwrap_or(i32::MAX)));
    Ok(Progress::of(paid, paid))
}

/// Shows the seed of past draws once a batch holds what was drawn from it.
pub async fn show_seed(state: &SchedulerState, now: OffsetDateTime) -> Result<Progress, StepError> {
    let closed = draws::close_seed(&mut *state.db.acquire().await?, now).await?;
    Ok(Progress {
        done: usize::from(closed),
        more: false,
    })
}
