//! The clockwork: what happens to jobs without anyone asking. A step does one bounded round and is safe to repeat, also
//! at the same moment in several schedulers; the runner owns pace, retry and end.

pub mod deadlines;
pub mod faults;
pub mod holdback;
pub mod verdicts;

use std::time::{Duration, Instant};

use comptoir_store::{
    faults::FaultError, holdback::HoldbackError, jobs::EndError, queue, verdicts::VerdictError,
};
use sqlx::PgPool;

use crate::{
    SchedulerState,
    compare::CompareError,
    metrics::{LEASED, STEP_ERRORS, STEP_SECONDS, WAITING},
};

/// How long a step rests when nothing wakes it; also what Redis lost costs.
const PACE: Duration = Duration::from_secs(1);
/// How often the queue is counted.
const COUNT_PACE: Duration = Duration::from_secs(5);
/// What one round takes on at most.
pub(crate) const ROUND_MAX: i64 = 64;

/// What one round did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// How many things were moved on.
    pub done: usize,
    /// Is there probably more to do at once?
    pub more: bool,
}

impl Progress {
    /// A round that took on `found` things and moved `done` of them.
    pub(crate) fn of(found: usize, done: usize) -> Self {
        Self {
            done,
            more: done > 0 && i64::try_from(found).is_ok_and(|found| found >= ROUND_MAX),
        }
    }
}

/// Why a round ended early. What it did before holds.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// A fault was not recorded.
    #[error("record a fault")]
    Fault(#[from] FaultError),
    /// A job was not ended.
    #[error("end a job")]
    End(#[from] EndError),
    /// A verdict was not recorded.
    #[error("give a verdict")]
    Verdict(#[from] VerdictError),
    /// Held-back pay was not moved.
    #[error("move held-back pay")]
    Holdback(#[from] HoldbackError),
    /// Results could not be compared.
    #[error("compare results")]
    Compare(#[from] CompareError),
    /// The database failed.
    #[error("read what is due")]
    Database(#[from] sqlx::Error),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Leases,
    Reveals,
    Deadlines,
    Verdicts,
    Holdbacks,
    Proceeds,
    AuditPay,
    Seeds,
}

impl Step {
    const fn name(self) -> &'static str {
        match self {
            Self::Leases => "leases",
            Self::Reveals => "reveals",
            Self::Deadlines => "deadlines",
            Self::Verdicts => "verdicts",
            Self::Holdbacks => "holdbacks",
            Self::Proceeds => "proceeds",
            Self::AuditPay => "audit_pay",
            Self::Seeds => "seeds",
        }
    }

    async fn round(self, state: &SchedulerState) -> Result<Progress, StepError> {
        let now = state.now();
        match self {
            Self::Leases => faults::expire_leases(state, now).await,
            Self::Reveals => faults::fail_missing_reveals(state, now).await,
            Self::Deadlines => deadlines::expire_jobs(state, now).await,
            Self::Verdicts => verdicts::rule_due(state, now).await,
            Self::Holdbacks => holdback::move_pay(state, now).await,
            Self::Proceeds => holdback::move_proceeds(state, now).await,
            Self::AuditPay => holdback::pay_audits(state, now).await,
            Self::Seeds => holdback::show_seed(state, now).await,
        }
    }
}

/// Runs every step until the service closes.
pub async fn run(state: SchedulerState) {
    tokio::join!(
        repeat(&state, Step::Leases),
        repeat(&state, Step::Reveals),
        repeat(&state, Step::Deadlines),
        repeat(&state, Step::Verdicts),
        repeat(&state, Step::Holdbacks),
        repeat(&state, Step::Proceeds),
        repeat(&state, Step::AuditPay),
        repeat(&state, Step::Seeds),
        count(&state),
    );
}

async fn repeat(state: &SchedulerState, step: Step) {
    while !state.closing.is_cancelled() {
        let started = Instant::now();
        let progress = step.round(state).await;
        ::metrics::histogram!(STEP_SECONDS, "step" => step.name())
            .record(started.elapsed().as_secs_f64());
        match progress {
            Ok(Progress { more: true, .. }) => continue,
            Ok(Progress { .. }) => {}
            Err(error) => {
                ::metrics::counter!(STEP_ERRORS, "step" => step.name()).increment(1);
                tracing::error!(step = step.name(), error = chain(&error), "step failed");
            }
        }
        tokio::select! {
            () = tokio::time::sleep(PACE) => {}
            () = state.verdict_due.notified(), if step == Step::Verdicts => {}
            () = state.closing.cancelled() => {}
        }
    }
}

async fn count(state: &SchedulerState) {
    while !state.closing.is_cancelled() {
        match depth(&state.db).await {
            Ok((waiting, leased)) => {
                ::metrics::gauge!(WAITING)
                    .set(f64::from(i32::try_from(waiting).unwrap_or(i32::MAX)));
                ::metrics::gauge!(LEASED).set(f64::from(i32::try_from(leased).unwrap_or(i32::MAX)));
            }
            Err(error) => tracing::warn!(%error, "queue not counted"),
        }
        tokio::select! {
            () = tokio::time::sleep(COUNT_PACE) => {}
            () = state.closing.cancelled() => {}
        }
    }
}

async fn depth(db: &PgPool) -> sqlx::Result<(i64, i64)> {
    queue::depth(&mut *db.acquire().await?).await
}

/// An error with its causes, in one line.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |cause| cause.source());
    causes
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ")
}
