//! The queue: leases on replicas, in batches, on the database's clock.
//!
//! Locks are taken in one order: queue rows (by replica), then jobs (by id). A claim skips what is locked, so it
//! waits for nobody.

use comptoir_domain::{
    digest::Sha256,
    id::{AttemptId, JobId, LeaseToken, ReplicaId, WorkerId},
    job::{JobSpec, JobState},
    lease,
    policy::Standing,
};
use sqlx::{PgConnection, postgres::types::PgInterval};
use time::{Duration, OffsetDateTime};

use crate::{
    PgTransaction,
    codec::{to_digest, to_document, to_numeric},
    events, unstable,
    workers::Worker,
};

/// A lease that was just given.
#[derive(Debug, Clone, PartialEq)]
pub struct Leased {
    /// The job.
    pub job: JobId,
    /// The execution of it.
    pub replica: ReplicaId,
    /// The new attempt.
    pub attempt: AttemptId,
    /// The secret of the lease.
    pub token: LeaseToken,
    /// When it ends unless it is renewed.
    pub expires_at: OffsetDateTime,
    /// When the job ends, done or not.
    pub deadline_at: OffsetDateTime,
    /// What to compute.
    pub spec: JobSpec,
    /// Memory that it was quoted to need.
    pub memory_bytes: u64,
    /// Where to go on.
    pub resume: Option<Checkpoint>,
    /// Where to stop, if a piece of a training is replayed.
    pub until_step: Option<u64>,
}

/// The end of the last segment that a replica finished.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checkpoint {
    /// Its number.
    pub segment: u32,
    /// Optimizer steps done.
    pub step: u64,
    /// Its blob.
    pub sha256: Sha256,
    /// Size of the blob.
    pub bytes: u64,
}

/// Why nothing was leased.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// Two workers of one owner reached for one job in the same moment. Nothing was taken: claim again.
    #[error("another worker of the owner was faster")]
    Raced,
    /// The database failed.
    #[error("claim work")]
    Database(#[from] sqlx::Error),
}

/// Leases up to `wanted` replicas to a worker: what it can run and is allowed to, by priority, oldest first. A
/// training job keeps to the numeric class of whoever takes it first. A worker with a poor record gets what others have
/// left for a while, and one that is barred gets nothing. One whose class honest workers could not agree in gets nothing that must be
/// verified of that program.
pub async fn claim(
    tx: &mut PgTransaction<'_>,
    worker: &Worker,
    wanted: u16,
    now: OffsetDateTime,
) -> Result<Vec<Leased>, ClaimError> {
    let Standing::Offered { after } = worker.standing else {
        return Ok(Vec::new());
    };
    // Walks the queue in its order: a planner that knows nothing of a deep one sorts it, which took a second at 100,000 jobs. What is
    // forbidden counts as dear, and dear plans would be compiled.
    sqlx::query!(
        r#"SELECT set_config(name, 'off', true) AS "set!" FROM unnest(ARRAY['enable_sort', 'jit']) AS it (name)"#
    )
    .fetch_all(&mut **tx)
    .await?;
    let taken = take(tx, worker, (after, wanted), now).await?;
    if taken.is_empty() {
        return Ok(Vec::new());
    }
    announce(tx, worker, &taken, now).await?;
    describe(tx, worker.id, &taken)
        .await
        .map_err(ClaimError::from)
}

/// Takes queue rows; the ids of their jobs. Who gets which is told in the statement.
async fn take(
    tx: &mut PgTransaction<'_>,
    worker: &Worker,
    (after, wanted): (Duration, u16),
    now: OffsetDateTime,
) -> Result<Vec<JobId>, ClaimError> {
    let fresh = (0..wanted).map(|_| (AttemptId::generate().0, LeaseToken::generate().0));
    let (attempts, tokens): (Vec<_>, Vec<_>) = fresh.unzip();
    let taken = sqlx::query_file_scalar!(
        "src/queue/take.sql",
        worker.id.0,
        worker.account.0,
        worker.device.as_str(),
        i64::try_from(worker.memory_bytes).unwrap_or(i64::MAX),
        to_numeric(worker.price_floor_nano),
        worker.numeric_class,
        i64::from(wanted),
        &attempts,
        &tokens,
        interval(lease::LEASE),
        interval(lease::PREFER_OTHERS),
        now,
        interval(after),
        unstable::marked_since(now),
    )
    .fetch_all(&mut **tx)
    .await
    .map_err(raced_or_failed)?;
    Ok(taken.into_iter().map(JobId).collect())
}

fn raced_or_failed(error: sqlx::Error) -> ClaimError {
    if crate::violates(&error, "replicas_owner_once") {
        ClaimError::Raced
    } else {
        error.into()
    }
}

/// Moves the jobs to `leased` and tells their owners.
async fn announce(
    tx: &mut PgTransaction<'_>,
    worker: &Worker,
    jobs: &[JobId],
    now: OffsetDateTime,
) -> sqlx::Result<()> {
    let jobs: Vec<_> = jobs.iter().map(|job| job.0).collect();
    sqlx::query!(
        "WITH changed AS (
             UPDATE jobs
             SET state = $3, event_seq = event_seq + 1, started_at = coalesce(started_at, $2),
                 numeric_class = CASE WHEN kind = 'training' THEN coalesce(numeric_class, $4) END
             WHERE job_id = ANY ($1)
             RETURNING job_id, event_seq
         )
         INSERT INTO job_events (job_id, seq, kind, data, created_at)
         SELECT changed.job_id, changed.event_seq, $5,
             jsonb_build_object(
                 'replica', replicas.ordinal, 'attempt', queue.attempt,
                 'resumed_at_step', (SELECT max(step_to) FROM segments WHERE segments.replica_id = queue.replica_id)
             ),
             $2
         FROM changed
         JOIN queue ON queue.job_id = changed.job_id AND queue.worker_id = $6
         JOIN replicas ON replicas.replica_id = queue.replica_id",
        &jobs,
        now,
        JobState::Leased.as_str(),
        worker.numeric_class,
        events::kind::LEASED,
        worker.id.0,
    )
    .execute(&mut **tx)
    .await
    .map(drop)
}

/// What a worker must know of the leases it has on these jobs.
async fn describe(
    conn: &mut PgConnection,
    worker: WorkerId,
    jobs: &[JobId],
) -> sqlx::Result<Vec<Leased>> {
    let jobs: Vec<_> = jobs.iter().map(|job| job.0).collect();
    let rows = sqlx::query!(
        r#"SELECT queue.job_id, queue.replica_id, queue.attempt_id AS "attempt_id!", queue.lease_token AS "lease_token!",
             queue.lease_expires_at AS "lease_expires_at!", jobs.deadline_at, quotes.spec, queue.min_memory_bytes,
             last.segment AS "segment?", last.step_to AS "step_to?", last.checkpoint_sha256 AS "checkpoint_sha256?",
             last.bytes AS "bytes?", replicas.replay_until
           FROM queue
           JOIN replicas ON replicas.replica_id = queue.replica_id
           JOIN jobs ON jobs.job_id = queue.job_id
           JOIN quotes ON quotes.quote_id = jobs.quote_id
           LEFT JOIN LATERAL (
               SELECT segment, step_to, checkpoint_sha256, blobs.bytes
               FROM (
                   SELECT segment, step_to, checkpoint_sha256 FROM segments WHERE segments.replica_id = queue.replica_id
                   UNION ALL
                   SELECT replay_piece - 1, replay_from, replay_checkpoint WHERE replay_checkpoint IS NOT NULL
               ) reached JOIN blobs ON blobs.sha256 = checkpoint_sha256
               ORDER BY segment DESC LIMIT 1
           ) last ON true
           WHERE queue.job_id = ANY ($1) AND queue.worker_id = $2
           ORDER BY queue.attempt_id"#,
        &jobs,
        worker.0,
    )
    .fetch_all(conn)
    .await?;
    rows.into_iter()
        .map(|row| {
            let resume = row.checkpoint_sha256.map(|sha256| {
                Ok::<_, sqlx::Error>(Checkpoint {
                    segment: row.segment.unwrap_or_default().unsigned_abs(),
                    step: row.step_to.unwrap_or_default().unsigned_abs(),
                    sha256: to_digest("checkpoint_sha256", &sha256)?,
                    bytes: row.bytes.unwrap_or_default().unsigned_abs(),
                })
            });
            Ok(Leased {
                job: JobId(row.job_id),
                replica: ReplicaId(row.replica_id),
                attempt: AttemptId(row.attempt_id),
                token: LeaseToken(row.lease_token),
                expires_at: row.lease_expires_at,
                deadline_at: row.deadline_at,
                spec: to_document("spec", row.spec)?,
                memory_bytes: row.min_memory_bytes.unsigned_abs(),
                resume: resume.transpose()?,
                until_step: row.replay_until.map(i64::unsigned_abs),
            })
        })
        .collect()
}

/// The sizes of blobs, by digest.
pub async fn blob_sizes(
    conn: &mut PgConnection,
    blobs: impl IntoIterator<Item = Sha256>,
) -> sqlx::Result<std::collections::BTreeMap<Sha256, u64>> {
    let wanted: Vec<Vec<u8>> = blobs.into_iter().map(|sha256| sha256.0.to_vec()).collect();
    let rows = sqlx::query!(
        "SELECT sha256, bytes FROM blobs WHERE sha256 = ANY ($1)",
        &wanted
    )
    .fetch_all(conn)
    .await?;
    rows.into_iter()
        .map(|row| Ok((to_digest("sha256", &row.sha256)?, row.bytes.unsigned_abs())))
        .collect()
}

/// Renews leases that their worker still has; when each ends now. Of the others nothing is said.
pub async fn renew(
    tx: &mut PgTransaction<'_>,
    worker: WorkerId,
    held: &[(AttemptId, LeaseToken)],
) -> sqlx::Result<Vec<(AttemptId, OffsetDateTime)>> {
    let (attempts, tokens): (Vec<_>, Vec<_>) = held
        .iter()
        .map(|(attempt, token)| (attempt.0, token.0))
        .unzip();
    let rows = sqlx::query!(
        r#"WITH held AS MATERIALIZED (
               SELECT queue.replica_id
               FROM unnest($1::uuid[], $2::uuid[]) AS asked (attempt_id, lease_token)
               JOIN attempts ON attempts.attempt_id = asked.attempt_id AND attempts.worker_id = $3
               JOIN queue ON queue.replica_id = attempts.replica_id
                   AND queue.attempt_id = asked.attempt_id AND queue.lease_token = asked.lease_token
               WHERE queue.lease_expires_at > clock_timestamp()
               ORDER BY queue.replica_id
               FOR NO KEY UPDATE OF queue
           )
           UPDATE queue SET lease_expires_at = clock_timestamp() + $4::interval
           FROM held WHERE queue.replica_id = held.replica_id
           RETURNING queue.attempt_id AS "attempt_id!", queue.lease_expires_at AS "lease_expires_at!""#,
        &attempts,
        &tokens,
        worker.0,
        interval(lease::LEASE),
    )
    .fetch_all(&mut **tx)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| (AttemptId(row.attempt_id), row.lease_expires_at))
        .collect())
}

/// Attempts whose lease has run out.
pub async fn run_out(conn: &mut PgConnection, limit: i64) -> sqlx::Result<Vec<AttemptId>> {
    let rows = sqlx::query_scalar!(
        "SELECT attempts.attempt_id
         FROM attempts
         JOIN queue ON queue.replica_id = attempts.replica_id AND queue.attempt_id = attempts.attempt_id
         WHERE attempts.ended_at IS NULL AND queue.lease_expires_at <= clock_timestamp()
         ORDER BY queue.lease_expires_at LIMIT $1",
        limit,
    )
    .fetch_all(conn)
    .await?;
    Ok(rows.into_iter().map(AttemptId).collect())
}

/// How many replicas wait and how many are leased.
pub async fn depth(conn: &mut PgConnection) -> sqlx::Result<(i64, i64)> {
    let row = sqlx::query!(
        r#"SELECT count(*) FILTER (WHERE lease_token IS NULL) AS "waiting!",
             count(*) FILTER (WHERE lease_token IS NOT NULL) AS "leased!"
           FROM queue"#,
    )
    .fetch_one(conn)
    .await?;
    Ok((row.waiting, row.leased))
}

/// A duration for Postgres.
pub(crate) fn interval(duration: Duration) -> PgInterval {
    let microseconds = i64::try_from(duration.whole_microseconds()).unwrap_or(i64::MAX);
    PgInterval {
        months: 0,
        days: 0,
        microseconds,
    }
}
