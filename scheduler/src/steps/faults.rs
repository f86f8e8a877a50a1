//! Leases that ran out and reveals that did not come: the replica goes back to the queue, or the job fails.

use comptoir_domain::{id::AttemptId, job::Cause};
use comptoir_store::{
    faults::{self, Condition, Fault, FaultError, LEASE_LOST, REVEAL_MISSING, Settled},
    queue,
    wake::Channel,
};
use time::OffsetDateTime;

use super::{Progress, ROUND_MAX, StepError};
use crate::{SchedulerState, metrics::FAULTS};

/// Takes back the leases that ran out.
pub async fn expire_leases(
    state: &SchedulerState,
    now: OffsetDateTime,
) -> Result<Progress, StepError> {
    let lost = queue::run_out(&mut *state.db.acquire().await?, ROUND_MAX).await?;
    let fault = Fault {
        cause: Cause::Worker,
        code: LEASE_LOST.to_owned(),
        detail: "the worker was not heard in time".to_owned(),
        condition: Condition::LeaseRunOut,
    };
    settle_all(state, &lost, &fault, now).await
}

/// Fails sealed attempts that were told to reveal and did not.
pub async fn fail_missing_reveals(
    state: &SchedulerState,
    now: OffsetDateTime,
) -> Result<Progress, StepError> {
    let overdue = faults::reveals_overdue(&mut *state.db.acquire().await?, ROUND_MAX).await?;
    let fault = Fault {
        cause: Cause::Worker,
        code: REVEAL_MISSING.to_owned(),
        detail: "the sealed result was not shown in time".to_owned(),
        condition: Condition::RevealOverdue,
    };
    settle_all(state, &overdue, &fault, now).await
}

async fn settle_all(
    state: &SchedulerState,
    attempts: &[AttemptId],
    fault: &Fault,
    now: OffsetDateTime,
) -> Result<Progress, StepError> {
    let mut done = 0;
    for attempt in attempts {
        let mut tx = state.db.begin().await?;
        if let Some(settled) = faults::settle(&mut tx, *attempt, fault, now).await? {
            tx.commit().await?;
            announce(state, *attempt, fault, &settled);
            done += 1;
        }
    }
    Ok(Progress::of(attempts.len(), done))
}

/// Ends one attempt without a result, in a transaction of its own.
pub(crate) async fn settle_one(
    state: &SchedulerState,
    attempt: AttemptId,
    fault: &Fault,
    now: OffsetDateTime,
) -> Result<bool, FaultError> {
    let mut tx = state.db.begin().await?;
    let settled = faults::settle(&mut tx, attempt, fault, now).await?;
    tx.commit().await?;
    if let Some(settled) = &settled {
        announce(state, attempt, fault, settled);
    }
    Ok(settled.is_some())
}

/// Tells those who wait, after the commit.
pub(crate) fn announce(
    state: &SchedulerState,
    attempt: AttemptId,
    fault: &Fault,
    settled: &Settled,
) {
    let Settled {
        job,
        retried,
        ref workers,
    } = *settled;
    tracing::info!(%job, %attempt, cause = %fault.cause, code = fault.code, retried, "attempt ended without a result");
    let code = match fault.condition {
        Condition::LeaseRunOut => LEASE_LOST,
        Condition::RevealOverdue => REVEAL_MISSING,
        Condition::Open => "reported",
    };
    metrics::counter!(FAULTS, "code" => code, "retried" => if retried { "yes" } else { "no" })
        .increment(1);
    state.wake.publish(Channel::Job(job));
    if retried {
        state.wake.publish(Channel::Work);
    }
    for worker in workers {
        state.wake.publish(Channel::Worker(*worker));
    }
}
