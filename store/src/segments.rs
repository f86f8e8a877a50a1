//! Checkpoints of training: each segment of a replica counts once, for whoever reached its end first.

use comptoir_domain::{digest::Sha256, job::JobSpec, segment::step_at_end};
use serde_json::json;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{PgTransaction, attempts::HeldAttempt, events};

/// Why a checkpoint was not kept.
#[derive(Debug, thiserror::Error)]
pub enum SegmentError {
    /// Only training has segments, and only before the result is sealed.
    #[error("the attempt has no segments to come")]
    NoSegments,
    /// Not the one after the last, or past the end of the run.
    #[error("the next segment is {expected}")]
    OutOfOrder {
        /// Which one it is.
        expected: u32,
    },
    /// The attempt did not upload the blob.
    #[error("the checkpoint was not uploaded by this attempt")]
    NotUploaded,
    /// The database failed.
    #[error("keep a checkpoint")]
    Database(#[from] sqlx::Error),
}

/// Keeps a checkpoint of an attempt that is locked. One that is known changes nothing. The last segment comes back.
pub async fn record(
    tx: &mut PgTransaction<'_>,
    held: &HeldAttempt,
    segment: u32,
    checkpoint: Sha256,
    now: OffsetDateTime,
) -> Result<u32, SegmentError> {
    let JobSpec::Training(spec) = &held.spec else {
        return Err(SegmentError::NoSegments);
    };
    if held.sealed {
        return Err(SegmentError::NoSegments);
    }
    let last = sqlx::query!(
        "SELECT segment, step_to FROM segments WHERE replica_id = $1 ORDER BY segment DESC LIMIT 1",
        held.replica.0,
    )
    .fetch_optional(&mut **tx)
    .await?;
    let (next, from) = last.map_or((0, 0), |last| (last.segment + 1, last.step_to));
    let expected = next.unsigned_abs();
    if segment < expected {
        return Ok(expected - 1);
    }
    let step = step_at_end(spec, held.rows, segment).filter(|_| segment == expected);
    let step = step
        .and_then(|step| i64::try_from(step).ok())
        .ok_or(SegmentError::OutOfOrder { expected })?;
    let kept = sqlx::query!(
        "INSERT INTO segments (replica_id, segment, attempt_id, step_from, step_to, checkpoint_sha256, created_at)
         SELECT $1, $2, attempt_id, $4, $5, sha256, $7
         FROM attempt_blobs WHERE attempt_id = $3 AND sha256 = $6
             AND NOT EXISTS (SELECT FROM replicas WHERE replica_id = $1 AND replay_piece IS NOT NULL)",
        held.replica.0,
        next,
        held.attempt.0,
        from,
        step,
        &checkpoint.0,
        now,
    )
    .execute(&mut **tx)
    .await?;
    if kept.rows_affected() == 0 {
        return Err(SegmentError::NotUploaded);
    }
    let data = json!({ "replica": held.ordinal, "attempt": held.number, "segment": segment, "step": step });
    events::append(tx, held.job, events::kind::CHECKPOINT, &data, now).await?;
    Ok(segment)
}

/// Voids what a failed attempt of this owner resumed from, if others made it: their segments and all that rest on them.
/// They are neither resumed from nor paid for any more, and may be made anew. How many there were.
pub(crate) async fn void(
    tx: &mut PgTransaction<'_>,
    replica: Uuid,
    failed: Uuid,
    owner: Uuid,
    now: OffsetDateTime,
) -> sqlx::Result<u64> {
    let voided = sqlx::query!(
        "WITH others AS (
             SELECT min(segments.segment) AS first
             FROM segments
             JOIN attempts ON attempts.attempt_id = segments.attempt_id
             JOIN workers ON workers.worker_id = attempts.worker_id
             WHERE segments.replica_id = $1 AND workers.account_id <> $3
         ), gone AS (
             DELETE FROM segments USING others
             WHERE segments.replica_id = $1 AND segments.segment >= others.first
             RETURNING segments.*
         )
         INSERT INTO segments_voided
             (voided_by, segment, replica_id, attempt_id, step_from, step_to, checkpoint_sha256, created_at, voided_at)
         SELECT $2, segment, replica_id, attempt_id, step_from, step_to, checkpoint_sha256, created_at, $4 FROM gone",
        replica,
        failed,
        owner,
        now,
    )
    .execute(&mut **tx)
    .await?;
    Ok(voided.rows_affected())
}
