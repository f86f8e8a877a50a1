//! What a client sees happen to a job, in order and without gaps.

use comptoir_domain::id::{AccountId, JobId};
use serde_json::Value;
use sqlx::PgConnection;
use time::OffsetDateTime;

use crate::PgTransaction;

/// Kinds of events. `queued` … `expired` are states; the others what happens in between.
pub mod kind {
    /// The job waits for a worker: at creation, and whenever it must run again.
    pub const QUEUED: &str = "queued";
    /// A worker took a replica.
    pub const LEASED: &str = "leased";
    /// Metrics of one epoch.
    pub const METRICS: &str = "metrics";
    /// How far an attempt is.
    pub const PROGRESS: &str = "progress";
    /// A checkpoint was reached.
    pub const CHECKPOINT: &str = "checkpoint";
    /// An attempt failed or was lost; the job goes on.
    pub const ATTEMPT_FAILED: &str = "attempt_failed";
    /// A replica has sealed its result; others have not.
    pub const SEALED: &str = "sealed";
    /// Every replica has sealed its result.
    pub const VERIFYING: &str = "verifying";
    /// Verified, charged, receipted.
    pub const COMPLETED: &str = "completed";
    /// Ended without a result.
    pub const FAILED: &str = "failed";
    /// Taken back by its owner.
    pub const CANCELLED: &str = "cancelled";
    /// Not done by its deadline.
    pub const EXPIRED: &str = "expired";
    /// Something of what it cost was given back. It may come after the end.
    pub const REFUNDED: &str = "refunded";
}

/// One event.
#[derive(Debug, Clone, PartialEq)]
pub struct JobEvent {
    /// 1, 2, 3 … within the job.
    pub seq: i64,
    /// One of [`kind`].
    pub kind: String,
    /// A JSON object whose fields follow from the kind.
    pub data: Value,
    /// When it happened.
    pub created_at: OffsetDateTime,
}

/// Appends an event. The job's row stays locked to the end of the transaction, so numbers have no gaps and
/// appear in order. Wake [`crate::wake::Channel::Job`] after the commit.
pub async fn append(
    tx: &mut PgTransaction<'_>,
    job: JobId,
    kind: &str,
    data: &Value,
    now: OffsetDateTime,
) -> sqlx::Result<i64> {
    sqlx::query_scalar!(
        "WITH numbered AS (
             UPDATE jobs SET event_seq = event_seq + 1 WHERE job_id = $1 RETURNING event_seq
         )
         INSERT INTO job_events (job_id, seq, kind, data, created_at)
         SELECT $1, event_seq, $2, $3, $4 FROM numbered
         RETURNING seq",
        job.0,
        kind,
        data,
        now,
    )
    .fetch_one(&mut **tx)
    .await
}

/// The events after `seq`, oldest first.
pub async fn after(
    conn: &mut PgConnection,
    job: JobId,
    seq: i64,
    limit: i64,
) -> sqlx::Result<Vec<JobEvent>> {
    sqlx::query_as!(
        JobEvent,
        "SELECT seq, kind, data, created_at FROM job_events
         WHERE job_id = $1 AND seq > $2 ORDER BY seq LIMIT $3",
        job.0,
        seq,
        limit,
    )
    .fetch_all(conn)
    .await
}

/// Where an account's job stands in its events: how many there are, and whether more may come.
pub async fn progress(
    conn: &mut PgConnection,
    account: AccountId,
    job: JobId,
) -> sqlx::Result<Option<Progress>> {
    sqlx::query_as!(
        Progress,
        r#"SELECT event_seq AS last_seq, finished_at IS NOT NULL AS "ended!"
           FROM jobs WHERE job_id = $1 AND account_id = $2"#,
        job.0,
        account.0,
    )
    .fetch_optional(conn)
    .await
}

/// Where a job stands in its events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// The number of its last event.
    pub last_seq: i64,
    /// Has it ended? Then no event follows.
    pub ended: bool,
}
