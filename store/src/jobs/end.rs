//! A job ends without a result: the hold goes back, whatever still runs is called off.

use comptoir_domain::{
    id::{AccountId, JobId, WorkerId},
    job::{
        JobState,
        state::{EndedAs, InvalidTransition},
    },
};
use serde_json::json;
use time::OffsetDateTime;

use super::Failure;
use crate::{
    PgTransaction, attempts,
    codec::to_enum,
    events,
    holds::{self, HoldError, HoldSource},
};

/// What was called off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// Workers that held a lease on the job: wake [`crate::wake::Channel::Worker`] of each after the commit,
    /// and [`crate::wake::Channel::Job`].
    pub workers: Vec<WorkerId>,
}

/// Why a job could not be ended.
#[derive(Debug, thiserror::Error)]
pub enum EndError {
    /// No such job.
    #[error("no such job")]
    NotFound,
    /// It has ended already.
    #[error(transparent)]
    Invalid(#[from] InvalidTransition),
    /// The hold could not be released.
    #[error("release the hold of the job")]
    Hold(#[from] HoldError),
    /// The database failed.
    #[error("end a job")]
    Database(#[from] sqlx::Error),
}

/// Why a job was not cancelled.
#[derive(Debug, thiserror::Error)]
pub enum CancelError {
    /// No such job, or another account's.
    #[error("no such job")]
    NotFound,
    /// It ended otherwise.
    #[error("the job is {0} already")]
    Ended(JobState),
    /// It could not be ended.
    #[error("cancel a job")]
    End(#[source] EndError),
    /// The database failed.
    #[error("cancel a job")]
    Database(#[from] sqlx::Error),
}

/// Takes back an account's job. A job that is cancelled stays so: nothing changes, nobody is named.
pub async fn cancel(
    tx: &mut PgTransaction<'_>,
    account: AccountId,
    job: JobId,
    now: OffsetDateTime,
) -> Result<Ended, CancelError> {
    let owner = sqlx::query_scalar!("SELECT account_id FROM jobs WHERE job_id = $1", job.0)
        .fetch_optional(&mut **tx)
        .await?;
    if owner != Some(account.0) {
        return Err(CancelError::NotFound);
    }
    match end(tx, job, EndedAs::Cancelled, None, now).await {
        Ok(ended) => Ok(ended),
        Err(EndError::Invalid(InvalidTransition {
            from: JobState::Cancelled,
            ..
        })) => Ok(Ended {
            workers: Vec::new(),
        }),
        Err(EndError::Invalid(InvalidTransition { from, .. })) => Err(CancelError::Ended(from)),
        Err(EndError::NotFound) => Err(CancelError::NotFound),
        Err(error) => Err(CancelError::End(error)),
    }
}

/// Ends a job without a result: releases its hold, ends its replicas and attempts, takes it off the queue and
/// writes the event. A failure belongs to [`EndedAs::Failed`] and to nothing else; the schema sees to it.
pub async fn end(
    tx: &mut PgTransaction<'_>,
    job: JobId,
    ended_as: EndedAs,
    failure: Option<&Failure>,
    now: OffsetDateTime,
) -> Result<Ended, EndError> {
    // Queue rows first, in order: whoever claims or reports holds one when it reaches for the job.
    attempts::lock_jobs(tx, &[job.0]).await?;
    let leased = sqlx::query_scalar!(
        "DELETE FROM queue WHERE job_id = $1 RETURNING worker_id",
        job.0
    )
    .fetch_all(&mut **tx)
    .await?;
    let from = sqlx::query_scalar!("SELECT state FROM jobs WHERE job_id = $1", job.0)
        .fetch_optional(&mut **tx)
        .await?
        .ok_or(EndError::NotFound)?;
    let state = to_enum("state", &from, JobState::parse)?.end(ended_as)?;
    sqlx::query!(
        "UPDATE jobs SET state = $2, failure_cause = $3, failure_code = $4, failure_detail = $5, finished_at = $6
         WHERE job_id = $1",
        job.0,
        state.as_str(),
        failure.map(|it| it.cause.as_str()),
        failure.map(|it| it.code.as_str()),
        failure.and_then(|it| it.detail.as_deref()),
        now,
    )
    .execute(&mut **tx)
    .await?;
    call_off(tx, job, now).await?;
    let data = match failure {
        Some(it) => {
            json!({ "state": state, "cause": it.cause, "code": it.code, "detail": it.detail })
        }
        None => json!({ "state": state }),
    };
    events::append(tx, job, event_of(ended_as), &data, now).await?;
    holds::release(tx, HoldSource::Job(job), now).await?;
    Ok(Ended {
        workers: leased.into_iter().flatten().map(WorkerId).collect(),
    })
}

/// Ends the replicas and attempts that have not ended on their own.
async fn call_off(tx: &mut PgTransaction<'_>, job: JobId, now: OffsetDateTime) -> sqlx::Result<()> {
    sqlx::query!(
        "UPDATE replicas SET state = 'cancelled'
         WHERE job_id = $1 AND state IN ('queued', 'leased', 'sealed', 'revealed')",
        job.0,
    )
    .execute(&mut **tx)
    .await?;
    sqlx::query!(
        "UPDATE attempts SET state = 'cancelled', ended_at = coalesce(ended_at, $2)
         WHERE job_id = $1 AND state IN ('running', 'sealed', 'revealed')",
        job.0,
        now,
    )
    .execute(&mut **tx)
    .await
    .map(drop)
}

const fn event_of(ended_as: EndedAs) -> &'static str {
    match ended_as {
        EndedAs::Failed => events::kind::FAILED,
        EndedAs::Cancelled => events::kind::CANCELLED,
        EndedAs::Expired => events::kind::EXPIRED,
    }
}
