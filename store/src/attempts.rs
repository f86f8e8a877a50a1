//! Attempts: what a worker commits to, shows, uploads and reports, each write fenced by the lease token.

use comptoir_domain::{
    digest::Sha256,
    id::{AccountId, AttemptId, JobId, LeaseToken, ReplicaId, WorkerId},
    job::JobSpec,
    price::Meter,
};
use sqlx::PgConnection;
use time::OffsetDateTime;

use crate::{
    PgTransaction,
    codec::{self, to_digest, to_document},
    events,
};

/// An attempt that its worker holds a lease on.
#[derive(Debug, Clone, PartialEq)]
pub struct HeldAttempt {
    /// The attempt.
    pub attempt: AttemptId,
    /// The execution that it tries.
    pub replica: ReplicaId,
    /// Which execution of the job that is.
    pub ordinal: i16,
    /// Which try.
    pub number: i32,
    /// The job.
    pub job: JobId,
    /// Who pays for it.
    pub account: AccountId,
    /// What it computes.
    pub spec: JobSpec,
    /// Over how many rows.
    pub rows: u64,
    /// Its last reported event.
    pub event_seq: u64,
    /// Has it committed to a result already?
    pub sealed: bool,
}

/// Why a worker may not touch an attempt.
#[derive(Debug, thiserror::Error)]
pub enum HeldError {
    /// It does not exist, or another worker has it.
    #[error("no such attempt of this worker")]
    Unknown,
    /// The lease is gone.
    #[error("the lease is stale")]
    Stale,
    /// The database failed.
    #[error("find an attempt")]
    Database(#[from] sqlx::Error),
}

/// The attempt, if this worker holds it under this token.
pub async fn held(
    conn: &mut PgConnection,
    worker: WorkerId,
    attempt: AttemptId,
    token: Option<LeaseToken>,
) -> Result<HeldAttempt, HeldError> {
    let row = sqlx::query!(
        r#"SELECT attempts.replica_id, replicas.ordinal, attempts.number, attempts.job_id, jobs.account_id, quotes.spec, quotes.meter,
             attempts.event_seq, attempts.state,
             (queue.lease_token = $3 AND queue.attempt_id = attempts.attempt_id
                 AND queue.lease_expires_at > clock_timestamp()) AS held
           FROM attempts
           JOIN replicas ON replicas.replica_id = attempts.replica_id
           JOIN jobs ON jobs.job_id = attempts.job_id
           JOIN quotes ON quotes.quote_id = jobs.quote_id
           LEFT JOIN queue ON queue.replica_id = attempts.replica_id
           WHERE attempts.attempt_id = $1 AND attempts.worker_id = $2"#,
        attempt.0,
        worker.0,
        token.map(|token| token.0),
    )
    .fetch_optional(conn)
    .await?
    .ok_or(HeldError::Unknown)?;
    if row.held != Some(true) {
        return Err(HeldError::Stale);
    }
    Ok(HeldAttempt {
        attempt,
        replica: ReplicaId(row.replica_id),
        ordinal: row.ordinal,
        number: row.number,
        job: JobId(row.job_id),
        account: AccountId(row.account_id),
        spec: to_document("spec", row.spec)?,
        rows: to_document::<Meter>("meter", row.meter)?.rows(),
        event_seq: row.event_seq.unsigned_abs(),
        sealed: row.state == "sealed",
    })
}

/// Locks the attempt's lease and job to the end of the transaction, so that nothing happens to them meanwhile, then
/// finds the attempt as it stands.
pub async fn lock_held(
    tx: &mut PgTransaction<'_>,
    worker: WorkerId,
    attempt: AttemptId,
    token: Option<LeaseToken>,
) -> Result<HeldAttempt, HeldError> {
    lock(tx, std::iter::once((worker, attempt))).await?;
    held(tx, worker, attempt, token).await
}

/// Locks jobs with all their queue rows.
pub(crate) async fn lock_jobs(tx: &mut PgTransaction<'_>, jobs: &[uuid::Uuid]) -> sqlx::Result<()> {
    sqlx::query!(
        "SELECT FROM queue WHERE job_id = ANY ($1) ORDER BY replica_id FOR NO KEY UPDATE",
        jobs
    )
    .execute(&mut **tx)
    .await?;
    sqlx::query!(
        "SELECT FROM jobs WHERE job_id = ANY ($1) ORDER BY job_id FOR NO KEY UPDATE",
        jobs
    )
    .execute(&mut **tx)
    .await
    .map(drop)
}

/// The size of a blob that the attempt may read: an input of its job, a checkpoint of its replica or the one that it replays
/// from, or what it uploaded.
pub async fn readable(
    conn: &mut PgConnection,
    held: &HeldAttempt,
    sha256: Sha256,
) -> sqlx::Result<Option<u64>> {
    let bytes = sqlx::query_scalar!(
        "SELECT bytes FROM blobs
         WHERE sha256 = $1 AND ($2
             OR EXISTS (SELECT FROM segments WHERE replica_id = $3 AND checkpoint_sha256 = $1)
             OR EXISTS (SELECT FROM replicas WHERE replica_id = $3 AND replay_checkpoint = $1)
             OR EXISTS (SELECT FROM attempt_blobs WHERE attempt_id = $4 AND attempt_blobs.sha256 = $1))",
        &sha256.0,
        held.spec.blobs().contains(&sha256),
        held.replica.0,
        held.attempt.0,
    )
    .fetch_optional(conn)
    .await?;
    Ok(bytes.map(i64::unsigned_abs))
}

/// Appends what the worker reports to the job's events, once each: what it repeats is passed over.
/// `reported` is in rising order; the highest number that is known now comes back.
pub async fn report(
    tx: &mut PgTransaction<'_>,
    held: &HeldAttempt,
    reported: &[(u64, &'static str, serde_json::Value)],
    now: OffsetDateTime,
) -> sqlx::Result<u64> {
    let mut last = held.event_seq;
    for (seq, kind, data) in reported {
        if *seq > last {
            events::append(tx, held.job, kind, data, now).await?;
            last = *seq;
        }
    }
    sqlx::query!(
        "UPDATE attempts SET event_seq = $2 WHERE attempt_id = $1",
        held.attempt.0,
        i64::try_from(last).unwrap_or(i64::MAX),
    )
    .execute(&mut **tx)
    .await?;
    Ok(last)
}

/// Those of a worker's attempts whose job was cancelled, failed or expired under them.
pub async fn cancelled(
    conn: &mut PgConnection,
    worker: WorkerId,
    attempts: &[AttemptId],
) -> sqlx::Result<Vec<AttemptId>> {
    let attempts: Vec<_> = attempts.iter().map(|attempt| attempt.0).collect();
    let rows = sqlx::query_scalar!(
        "SELECT attempt_id FROM attempts WHERE attempt_id = ANY ($1) AND worker_id = $2 AND state = 'cancelled'",
        &attempts,
        worker.0,
    )
    .fetch_all(conn)
    .await?;
    Ok(rows.into_iter().map(AttemptId).collect())
}

/// Has this worker's attempt failed with this very code? Then the report of it is a repetition.
pub async fn failed_with(
    conn: &mut PgConnection,
    worker: WorkerId,
    attempt: AttemptId,
    code: &str,
) -> sqlx::Result<bool> {
    sqlx::query_scalar!(
        r#"SELECT EXISTS (
               SELECT FROM attempts WHERE attempt_id = $1 AND worker_id = $2 AND state = 'failed' AND code = $3
           ) AS "failed!""#,
        attempt.0,
        worker.0,
        code,
    )
    .fetch_one(conn)
    .await
}

/// What a worker should do about the attempts that it holds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Orders {
    /// Show the result, by then.
    pub reveal: Vec<(AttemptId, OffsetDateTime)>,
    /// Stop: the lease is gone, whatever the reason.
    pub cancel: Vec<AttemptId>,
}

/// The orders for a worker's attempts.
pub async fn orders(
    conn: &mut PgConnection,
    worker: WorkerId,
    held: &[(AttemptId, LeaseToken)],
) -> sqlx::Result<Orders> {
    let (attempts, tokens): (Vec<_>, Vec<_>) = held
        .iter()
        .map(|(attempt, token)| (attempt.0, token.0))
        .unzip();
    let rows = sqlx::query!(
        r#"SELECT asked.attempt_id AS "attempt_id!", attempts.reveal_by,
             (queue.lease_token IS NOT NULL) AS "held!"
           FROM unnest($1::uuid[], $2::uuid[]) AS asked (attempt_id, lease_token)
           LEFT JOIN attempts ON attempts.attempt_id = asked.attempt_id AND attempts.worker_id = $3
           LEFT JOIN queue ON queue.replica_id = attempts.replica_id
               AND queue.attempt_id = asked.attempt_id AND queue.lease_token = asked.lease_token
               AND queue.lease_expires_at > clock_timestamp()"#,
        &attempts,
        &tokens,
        worker.0,
    )
    .fetch_all(conn)
    .await?;
    let mut orders = Orders::default();
    for row in rows {
        match (row.held, row.reveal_by) {
            (false, _) => orders.cancel.push(AttemptId(row.attempt_id)),
            (true, Some(by)) => orders.reveal.push((AttemptId(row.attempt_id), by)),
            (true, None) => {}
        }
    }
    Ok(orders)
}

/// A worker's attempt whose seal, reveal or failure was reported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reported {
    /// The job.
    pub job: JobId,
    /// `running`, `sealed`, …
    pub state: String,
    /// What it committed to.
    pub seal: Option<Sha256>,
    /// Is it too late to show the result? `None`: not told to.
    pub overdue: Option<bool>,
    /// The salt that it showed.
    pub salt: Option<[u8; 32]>,
    /// Is the token's lease alive?
    pub held: bool,
    /// `training`, `inference`, or `replay` for a piece of training that ends with a checkpoint.
    pub kind: String,
    /// What it uploaded.
    pub uploads: Vec<Sha256>,
}

/// Locks the jobs of workers' attempts, to the end of the transaction.
pub(crate) async fn lock(
    tx: &mut PgTransaction<'_>,
    attempts: impl Iterator<Item = (WorkerId, AttemptId)>,
) -> sqlx::Result<()> {
    let (workers, attempts): (Vec<_>, Vec<_>) = attempts
        .map(|(worker, attempt)| (worker.0, attempt.0))
        .unzip();
    let jobs = sqlx::query_scalar!(
        "SELECT DISTINCT job_id FROM UNNEST($1::uuid[], $2::uuid[]) AS it (attempt, worker)
         JOIN attempts ON attempts.attempt_id = it.attempt AND attempts.worker_id = it.worker",
        &attempts,
        &workers,
    )
    .fetch_all(&mut **tx)
    .await?;
    lock_jobs(tx, &jobs).await
}

/// Attempts as they stand, each in its place, if it is the worker's. Lock them first.
pub(crate) async fn reported(
    conn: &mut PgConnection,
    reports: impl Iterator<Item = (WorkerId, AttemptId, LeaseToken)>,
) -> sqlx::Result<Vec<Option<Reported>>> {
    let (mut workers, mut attempts, mut tokens) = (vec![], vec![], vec![]);
    for (worker, attempt, token) in reports {
        workers.push(worker.0);
        attempts.push(attempt.0);
        tokens.push(token.0);
    }
    let rows = sqlx::query!(
        r#"SELECT it.place AS "place!", attempts.job_id, attempts.state, attempts.seal, attempts.salt,
             (attempts.reveal_by <= clock_timestamp()) AS overdue,
             CASE WHEN replicas.replay_ends IS FALSE THEN 'replay' ELSE jobs.kind END AS "kind!", (queue.lease_token IS NOT NULL) AS "held!",
             ARRAY(SELECT sha256 FROM attempt_blobs WHERE attempt_blobs.attempt_id = attempts.attempt_id) AS "uploads!"
           FROM UNNEST($1::uuid[], $2::uuid[], $3::uuid[]) WITH ORDINALITY AS it (attempt, worker, token, place)
           JOIN attempts ON attempts.attempt_id = it.attempt AND attempts.worker_id = it.worker
           JOIN jobs ON jobs.job_id = attempts.job_id
           JOIN replicas ON replicas.replica_id = attempts.replica_id
           LEFT JOIN queue ON queue.replica_id = attempts.replica_id
               AND queue.attempt_id = it.attempt AND queue.lease_token = it.token
               AND queue.lease_expires_at > clock_timestamp()"#,
        &attempts,
        &workers,
        &tokens,
    )
    .fetch_all(conn)
    .await?;
    let mut known: Vec<Option<Reported>> = attempts.iter().map(|_| None).collect();
    for row in rows {
        let uploads = row.uploads.iter().map(|sha256| to_digest("sha256", sha256));
        let found = Reported {
            job: JobId(row.job_id),
            state: row.state,
            seal: row.seal.map(|seal| to_digest("seal", &seal)).transpose()?,
            overdue: row.overdue,
            salt: row.salt.and_then(|salt| salt.try_into().ok()),
            held: row.held,
            kind: row.kind,
            uploads: uploads.collect::<Result<_, _>>()?,
        };
        codec::put(&mut known, row.place, Some(found));
    }
    Ok(known)
}
