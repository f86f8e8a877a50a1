//! Jobs that wait or loop beyond bounds, and what an operator does about one.

use comptoir_domain::{
    id::{AccountId, JobId},
    job::{Cause, JobState, Tier, state::EndedAs, state::InvalidTransition},
};
use sqlx::PgConnection;
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use crate::{
    PgTransaction, attempts,
    codec::to_enum,
    faults::FaultError,
    jobs::{self, EndError, Ended, Failure},
    queue::interval,
    recalls::{self, Recalled},
};

/// The code of a job that an operator ended.
pub const ENDED_BY_OPERATOR: &str = "ended_by_operator";

/// From where on a job counts as stuck.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// A replica that could be leased has waited for so long.
    pub waiting: Duration,
    /// A replica was tried so often.
    pub attempts: i32,
    /// The results are all there, and nothing has happened for so long.
    pub silent: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            waiting: Duration::minutes(15),
            attempts: 3,
            silent: Duration::minutes(10),
        }
    }
}

/// Why a job counts as stuck: the first that applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stuck {
    /// It was tried again and again.
    Looping,
    /// No verdict comes.
    Silent,
    /// Nobody takes it.
    Waiting,
}

/// A job that is stuck.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StuckJob {
    /// The job.
    pub id: JobId,
    /// Whose it is.
    pub account: AccountId,
    /// Where it stands.
    pub state: JobState,
    /// `training` or `inference`.
    pub kind: String,
    /// How its result is verified.
    pub tier: Tier,
    /// Why it counts as stuck.
    pub stuck: Stuck,
    /// Tries of the replica that was tried most.
    pub attempts: i32,
    /// Since when its oldest waiting replica could be leased.
    pub waiting_since: Option<OffsetDateTime>,
    /// When something last happened to it.
    pub last_event_at: Option<OffsetDateTime>,
    /// When it was made.
    pub created_at: OffsetDateTime,
    /// When it ends, done or not.
    pub deadline_at: OffsetDateTime,
}

/// Why a job was not moved on.
#[derive(Debug, thiserror::Error)]
pub enum UnstickError {
    /// No such job.
    #[error("no such job")]
    NotFound,
    /// It has ended.
    #[error("the job is {0} already")]
    Ended(JobState),
    /// Its leases were not taken back.
    #[error("take the leases of a job back")]
    Recall(#[from] FaultError),
    /// It was not ended.
    #[error("end a job")]
    End(#[source] EndError),
    /// The database failed.
    #[error("move a job on")]
    Database(#[from] sqlx::Error),
}

struct Row {
    job_id: Uuid,
    account_id: Uuid,
    state: String,
    kind: String,
    tier: String,
    attempts: i32,
    waiting_since: Option<OffsetDateTime>,
    last_event_at: Option<OffsetDateTime>,
    created_at: OffsetDateTime,
    deadline_at: OffsetDateTime,
    looping: bool,
    silent: bool,
}

/// Jobs that are stuck, newest first, made before `before`.
///
/// # Errors
/// When the statement fails.
pub async fn stuck(
    conn: &mut PgConnection,
    bounds: Bounds,
    before: Option<JobId>,
    limit: i64,
    now: OffsetDateTime,
) -> sqlx::Result<Vec<StuckJob>> {
    let rows = sqlx::query_as!(
        Row,
        r#"SELECT job_id, account_id, state, kind, tier, coalesce(tried.attempts, 0) AS "attempts!",
               tried.waiting_since, last.at AS last_event_at, created_at, deadline_at,
               coalesce(tried.attempts >= $1, false) AS "looping!",
               coalesce(state = 'verifying' AND last.at <= $3, false) AS "silent!"
           FROM jobs
               LEFT JOIN LATERAL (
                   SELECT max(attempt) AS attempts, min(ready_at) FILTER (WHERE lease_token IS NULL) AS waiting_since
                   FROM queue WHERE queue.job_id = jobs.job_id
               ) AS tried ON true
               LEFT JOIN LATERAL (
                   SELECT job_events.created_at AS at FROM job_events
                   WHERE job_events.job_id = jobs.job_id ORDER BY seq DESC LIMIT 1
               ) AS last ON true
           WHERE finished_at IS NULL AND ($4::uuid IS NULL OR job_id < $4) AND (
               tried.attempts >= $1 OR tried.waiting_since <= clock_timestamp() - $2::interval
               OR state = 'verifying' AND last.at <= $3
           )
           ORDER BY job_id DESC LIMIT $5"#,
        bounds.attempts,
        interval(bounds.waiting),
        now.saturating_sub(bounds.silent),
        before.map(|it| it.0),
        limit,
    )
    .fetch_all(conn)
    .await?;
    rows.into_iter().map(Row::decode).collect()
}

impl Row {
    fn decode(self) -> sqlx::Result<StuckJob> {
        let stuck = match (self.looping, self.silent) {
            (true, _) => Stuck::Looping,
            (false, true) => Stuck::Silent,
            (false, false) => Stuck::Waiting,
        };
        Ok(StuckJob {
            id: JobId(self.job_id),
            account: AccountId(self.account_id),
            state: to_enum("state", &self.state, JobState::parse)?,
            kind: self.kind,
            tier: to_enum("tier", &self.tier, Tier::parse)?,
            stuck,
            attempts: self.attempts,
            waiting_since: self.waiting_since,
            last_event_at: self.last_event_at,
            created_at: self.created_at,
            deadline_at: self.deadline_at,
        })
    }
}

/// Whose job it is.
///
/// # Errors
/// When the statement fails.
pub async fn account_of(conn: &mut PgConnection, job: JobId) -> sqlx::Result<Option<AccountId>> {
    let account = sqlx::query_scalar!("SELECT account_id FROM jobs WHERE job_id = $1", job.0)
        .fetch_optional(conn)
        .await?;
    Ok(account.map(AccountId))
}

/// Sends a job back to the queue: its leases are taken back, what waits may be leased at once, and a verdict that is due is
/// tried now. What was shown, and the segments that were finished, stay.
///
/// # Errors
/// When there is no such job, or it has ended.
pub async fn requeue(
    tx: &mut PgTransaction<'_>,
    job: JobId,
    now: OffsetDateTime,
) -> Result<Recalled, UnstickError> {
    attempts::lock_jobs(tx, &[job.0]).await?;
    let state = sqlx::query_scalar!("SELECT state FROM jobs WHERE job_id = $1", job.0)
        .fetch_optional(&mut **tx)
        .await?
        .ok_or(UnstickError::NotFound)?;
    let state = to_enum("state", &state, JobState::parse)?;
    if state.is_final() {
        return Err(UnstickError::Ended(state));
    }
    let recalled = recalls::of_job(tx, job, now).await?;
    sqlx::query!(
        "UPDATE queue SET ready_at = least(ready_at, clock_timestamp()) WHERE job_id = $1 AND lease_token IS NULL",
        job.0,
    )
    .execute(&mut **tx)
    .await?;
    sqlx::query!(
        "UPDATE verdicts_due SET due_at = least(due_at, clock_timestamp()) WHERE job_id = $1",
        job.0,
    )
    .execute(&mut **tx)
    .await?;
    Ok(recalled)
}

/// Ends a job for the operator's fault: whatever is held for it goes back in full.
///
/// # Errors
/// When there is no such job, or it has ended.
pub async fn fail(
    tx: &mut PgTransaction<'_>,
    job: JobId,
    reason: &str,
    now: OffsetDateTime,
) -> Result<Ended, UnstickError> {
    let failure = Failure {
        cause: Cause::Operator,
        code: ENDED_BY_OPERATOR.to_owned(),
        detail: Some(reason.to_owned()),
    };
    match jobs::end(tx, job, EndedAs::Failed, Some(&failure), now).await {
        Ok(ended) => Ok(ended),
        Err(EndError::NotFound) => Err(UnstickError::NotFound),
        Err(EndError::Invalid(InvalidTransition { from, .. })) => Err(UnstickError::Ended(from)),
        Err(error) => Err(UnstickError::End(error)),
    }
}
