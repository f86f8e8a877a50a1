//! Attempts that end without a result: the replica goes back to the queue, or the job fails.

use comptoir_domain::{
    id::{AttemptId, JobId, WorkerId},
    job::{
        Cause, JobState, Tier,
        state::{EndedAs, InvalidTransition},
    },
    lease::{self, AfterFailure},
    policy::reputation::Offence,
};
use serde_json::json;
use sqlx::PgConnection;
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use crate::{
    PgTransaction, attempts,
    codec::to_enum,
    events,
    jobs::{self, EndError, Failure},
    queue::interval,
    segments, worker_records,
};

/// The code of a job whose attempts are spent.
pub const ATTEMPTS_EXHAUSTED: &str = "attempts_exhausted";
/// The code of an attempt whose lease ran out.
pub const LEASE_LOST: &str = "lease_lost";
/// The code of an attempt that did not show the result that it had sealed.
pub const REVEAL_MISSING: &str = "reveal_missing";
/// The code of an attempt that could not read the checkpoint to go on from.
pub const INVALID_CHECKPOINT: &str = "invalid_checkpoint";

/// How an attempt ended without a result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Who answers for it.
    pub cause: Cause,
    /// A stable word for programs.
    pub code: String,
    /// A sentence for people.
    pub detail: String,
    /// When this fault still applies.
    pub condition: Condition,
}

/// What must still hold of the attempt for a fault to apply, judged under its lock by the database's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// It runs or is sealed.
    Open,
    /// Its lease has run out.
    LeaseRunOut,
    /// It did not reveal in time.
    RevealOverdue,
}

/// What a fault led to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settled {
    /// The job.
    pub job: JobId,
    /// Is it tried again? Else the job has failed.
    pub retried: bool,
    /// Workers whose lease on the job ended with it.
    pub workers: Vec<WorkerId>,
}

/// Why a fault was not recorded.
#[derive(Debug, thiserror::Error)]
pub enum FaultError {
    /// The job could not be ended.
    #[error("end the job of a failed attempt")]
    End(#[from] EndError),
    /// The job is in a state that has no open attempts.
    #[error("requeue the replica of a failed attempt")]
    Invalid(#[from] InvalidTransition),
    /// The database failed.
    #[error("record a failed attempt")]
    Database(#[from] sqlx::Error),
}

/// Ends an attempt without a result, if that still applies: `None` where it does not. One per transaction: ending the
/// job moves money. What a checkpoint of another owner may have caused voids that checkpoint and blames no client.
pub async fn settle(
    tx: &mut PgTransaction<'_>,
    attempt: AttemptId,
    fault: &Fault,
    now: OffsetDateTime,
) -> Result<Option<Settled>, FaultError> {
    let Some(job) = sqlx::query_scalar!(
        "SELECT job_id FROM attempts WHERE attempt_id = $1",
        attempt.0
    )
    .fetch_optional(&mut **tx)
    .await?
    else {
        return Ok(None);
    };
    attempts::lock_jobs(tx, &[job]).await?;
    let Some(ended) = end_attempt(tx, attempt, fault, now).await? else {
        return Ok(None);
    };
    if let Some(offence) = offence(fault) {
        worker_records::strike(tx, attempt, offence, now).await?;
    }
    let voided = if fault.cause == Cause::Client || fault.code == INVALID_CHECKPOINT {
        segments::void(tx, ended.replica, attempt.0, ended.owner, now).await?
    } else {
        0
    };
    let job = JobId(job);
    let cause = answering(tx, job, fault.cause).await?;
    let after = lease::after_failure(ended.number.unsigned_abs(), cause);
    let data = json!({
        "replica": ended.ordinal, "attempt": ended.number, "cause": fault.cause, "code": fault.code,
        "detail": fault.detail, "retried": matches!(after, AfterFailure::Retry { .. }), "segments_voided": voided,
    });
    events::append(tx, job, events::kind::ATTEMPT_FAILED, &data, now).await?;
    match after {
        AfterFailure::Retry { after } => {
            requeue(tx, job, ended.replica, after, now).await?;
            Ok(Some(Settled {
                job,
                retried: true,
                workers: Vec::new(),
            }))
        }
        AfterFailure::GiveUp => {
            let workers = give_up(tx, job, cause, fault, now).await?;
            Ok(Some(Settled {
                job,
                retried: false,
                workers,
            }))
        }
    }
}

/// What a fault says of the worker. That it blames the client, or could not read another's checkpoint, says nothing.
fn offence(fault: &Fault) -> Option<Offence> {
    let own = fault.cause == Cause::Worker && fault.code != INVALID_CHECKPOINT;
    own.then_some(match fault.condition {
        Condition::RevealOverdue => Offence::Unrevealed,
        Condition::Open | Condition::LeaseRunOut => Offence::Failed,
    })
}

pub(crate) struct EndedAttempt {
    pub(crate) replica: Uuid,
    pub(crate) ordinal: i16,
    pub(crate) number: i32,
    owner: Uuid,
}

/// Who answers to the job for a fault: the client only if as many owners as its tier asks for say so, none of them on
/// what another had left.
async fn answering(conn: &mut PgConnection, job: JobId, reported: Cause) -> sqlx::Result<Cause> {
    if reported != Cause::Client {
        return Ok(reported);
    }
    let row = sqlx::query!(
        r#"SELECT jobs.tier, (
               SELECT count(DISTINCT workers.account_id)
               FROM attempts JOIN workers ON workers.worker_id = attempts.worker_id
               WHERE attempts.job_id = $1 AND attempts.cause = 'client'
                   AND NOT EXISTS (SELECT FROM segments_voided WHERE voided_by = attempts.attempt_id)
           ) AS "owners!"
           FROM jobs WHERE job_id = $1"#,
        job.0,
    )
    .fetch_one(conn)
    .await?;
    let tier = to_enum("tier", &row.tier, Tier::parse)?;
    let at_fault = lease::is_client_at_fault(tier, row.owners.unsigned_abs());
    Ok(if at_fault { reported } else { Cause::Worker })
}

pub(crate) async fn end_attempt(
    conn: &mut PgConnection,
    attempt: AttemptId,
    fault: &Fault,
    now: OffsetDateTime,
) -> sqlx::Result<Option<EndedAttempt>> {
    let (run_out, overdue) = (
        fault.condition == Condition::LeaseRunOut,
        fault.condition == Condition::RevealOverdue,
    );
    let state = if run_out { "lost" } else { "failed" };
    sqlx::query_as!(
        EndedAttempt,
        "UPDATE attempts
         SET state = $2, cause = $3, code = $4, detail = $5, ended_at = $6
         FROM queue, replicas, workers
         WHERE attempts.attempt_id = $1 AND attempts.state IN ('running', 'sealed')
           AND queue.replica_id = attempts.replica_id AND queue.attempt_id = attempts.attempt_id
           AND replicas.replica_id = attempts.replica_id AND workers.worker_id = attempts.worker_id
           AND (NOT $7 OR queue.lease_expires_at <= clock_timestamp())
           AND (NOT $8 OR attempts.reveal_by <= clock_timestamp())
         RETURNING attempts.replica_id AS replica, replicas.ordinal, attempts.number,
             workers.account_id AS owner",
        attempt.0,
        state,
        fault.cause.as_str(),
        fault.code,
        fault.detail,
        now,
        run_out,
        overdue,
    )
    .fetch_optional(conn)
    .await
}

/// Puts the replica back. A training job that nobody has begun may settle on another numeric class.
pub(crate) async fn requeue(
    tx: &mut PgTransaction<'_>,
    job: JobId,
    replica: Uuid,
    after: Duration,
    now: OffsetDateTime,
) -> Result<(), FaultError> {
    sqlx::query!(
        "UPDATE queue
         SET worker_id = NULL, attempt_id = NULL, lease_token = NULL, lease_expires_at = NULL,
             ready_at = clock_timestamp() + $2::interval
         WHERE replica_id = $1",
        replica,
        interval(after),
    )
    .execute(&mut **tx)
    .await?;
    sqlx::query!(
        "UPDATE replicas SET state = 'queued', owner_account_id = NULL WHERE replica_id = $1",
        replica
    )
    .execute(&mut **tx)
    .await?;
    let row = sqlx::query!(
        r#"SELECT state,
             EXISTS (SELECT FROM replicas WHERE job_id = $1 AND replicas.state = 'leased') AS "running!",
             NOT EXISTS (SELECT FROM replicas WHERE job_id = $1 AND replicas.state <> 'queued')
                 AND NOT EXISTS (SELECT FROM segments JOIN replicas USING (replica_id) WHERE job_id = $1) AS "untouched!"
           FROM jobs WHERE job_id = $1"#,
        job.0,
    )
    .fetch_one(&mut **tx)
    .await?;
    let state = to_enum("state", &row.state, JobState::parse)?;
    let state = if row.running {
        state.lease()?
    } else {
        state.requeue()?
    };
    sqlx::query!(
        "UPDATE jobs SET state = $2, numeric_class = CASE WHEN NOT $3 THEN numeric_class END WHERE job_id = $1",
        job.0,
        state.as_str(),
        row.untouched,
    )
    .execute(&mut **tx)
    .await?;
    if state == JobState::Queued {
        events::append(
            tx,
            job,
            events::kind::QUEUED,
            &json!({ "state": state }),
            now,
        )
        .await?;
    }
    Ok(())
}

/// Fails the job. What the client got wrong is told as it is; else the last of the attempts is told.
async fn give_up(
    tx: &mut PgTransaction<'_>,
    job: JobId,
    cause: Cause,
    fault: &Fault,
    now: OffsetDateTime,
) -> Result<Vec<WorkerId>, FaultError> {
    let failure = match cause {
        Cause::Client => Failure {
            cause,
            code: fault.code.clone(),
            detail: Some(fault.detail.clone()),
        },
        Cause::Worker | Cause::Operator | Cause::Chain => Failure {
            cause,
            code: ATTEMPTS_EXHAUSTED.to_owned(),
            detail: Some(format!(
                "the last of {} attempts ended with {}: {}",
                lease::ATTEMPTS_MAX,
                fault.code,
                fault.detail
            )),
        },
    };
    Ok(jobs::end(tx, job, EndedAs::Failed, Some(&failure), now)
        .await?
        .workers)
}

/// Sealed attempts that did not reveal in time.
pub async fn reveals_overdue(conn: &mut PgConnection, limit: i64) -> sqlx::Result<Vec<AttemptId>> {
    let rows = sqlx::query_scalar!(
        "SELECT attempt_id FROM attempts
         WHERE ended_at IS NULL AND state = 'sealed' AND reveal_by <= clock_timestamp()
         ORDER BY reveal_by LIMIT $1",
        limit,
    )
    .fetch_all(conn)
    .await?;
    Ok(rows.into_iter().map(AttemptId).collect())
}

/// Jobs whose deadline has passed.
pub async fn past_deadline(
    conn: &mut PgConnection,
    now: OffsetDateTime,
    limit: i64,
) -> sqlx::Result<Vec<JobId>> {
    let rows = sqlx::query_scalar!(
        "SELECT job_id FROM jobs WHERE finished_at IS NULL AND deadline_at <= $1 ORDER BY deadline_at LIMIT $2",
        now,
        limit,
    )
    .fetch_all(conn)
    .await?;
    Ok(rows.into_iter().map(JobId).collect())
}
