//! Leases that are taken back: by the owner of a worker that is taken out, or by an operator. The job is not to blame and the
//! replica goes back to the queue at once; what the worker sends for it afterwards is stale.

use std::collections::BTreeSet;

use comptoir_domain::{
    id::{AttemptId, JobId, WorkerId},
    job::Cause,
};
use serde_json::json;
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use crate::{
    PgTransaction, attempts, events,
    faults::{self, Condition, Fault, FaultError},
};

/// The code of an attempt whose worker was taken out, or put into quarantine.
pub const WORKER_WITHDRAWN: &str = "worker_withdrawn";
/// The code of an attempt that an operator called off so that the job runs elsewhere.
pub const REQUEUED: &str = "requeued";

/// What was taken back. Wake [`crate::wake::Channel::Job`] of each job, [`crate::wake::Channel::Worker`] of each worker and
/// [`crate::wake::Channel::Work`] after the commit.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Recalled {
    /// Jobs that wait again.
    pub jobs: BTreeSet<JobId>,
    /// Workers that held a lease on them.
    pub workers: BTreeSet<WorkerId>,
}

/// Takes every lease of a worker back. Its sealed results that were not shown count for nothing.
///
/// # Errors
/// When the database fails.
pub async fn of_worker(
    tx: &mut PgTransaction<'_>,
    worker: WorkerId,
    now: OffsetDateTime,
) -> Result<Recalled, FaultError> {
    let jobs = sqlx::query_scalar!(
        "SELECT DISTINCT job_id FROM attempts
         WHERE worker_id = $1 AND ended_at IS NULL AND state IN ('running', 'sealed')",
        worker.0,
    )
    .fetch_all(&mut **tx)
    .await?;
    let detail = "the worker was taken out of service";
    recall(tx, &jobs, Some(worker), (WORKER_WITHDRAWN, detail), now).await
}

/// Takes every lease on a job back.
///
/// # Errors
/// When the database fails.
pub async fn of_job(
    tx: &mut PgTransaction<'_>,
    job: JobId,
    now: OffsetDateTime,
) -> Result<Recalled, FaultError> {
    let detail = "an operator sent the job back to the queue";
    recall(tx, &[job.0], None, (REQUEUED, detail), now).await
}

async fn recall(
    tx: &mut PgTransaction<'_>,
    jobs: &[Uuid],
    worker: Option<WorkerId>,
    (code, detail): (&str, &str),
    now: OffsetDateTime,
) -> Result<Recalled, FaultError> {
    attempts::lock_jobs(tx, jobs).await?;
    let open = sqlx::query!(
        "SELECT attempt_id, job_id, worker_id FROM attempts
         WHERE job_id = ANY ($1) AND ($2::uuid IS NULL OR worker_id = $2) AND state IN ('running', 'sealed')
         ORDER BY attempt_id",
        jobs,
        worker.map(|it| it.0),
    )
    .fetch_all(&mut **tx)
    .await?;
    let fault = Fault {
        cause: Cause::Operator,
        code: code.to_owned(),
        detail: detail.to_owned(),
        condition: Condition::Open,
    };
    let mut recalled = Recalled::default();
    for row in open {
        let job = JobId(row.job_id);
        let attempt = AttemptId(row.attempt_id);
        let Some(ended) = faults::end_attempt(tx, attempt, &fault, now).await? else {
            continue;
        };
        let data = json!({
            "replica": ended.ordinal, "attempt": ended.number, "cause": fault.cause, "code": fault.code,
            "detail": fault.detail, "retried": true, "segments_voided": 0,
        });
        events::append(tx, job, events::kind::ATTEMPT_FAILED, &data, now).await?;
        faults::requeue(tx, job, ended.replica, Duration::ZERO, now).await?;
        recalled.jobs.insert(job);
        recalled.workers.insert(WorkerId(row.worker_id));
    }
    Ok(recalled)
}
