//! What attempts upload: registered and noted for all that wait at once.

use std::collections::{HashMap, HashSet};

use comptoir_domain::{
    digest::Sha256,
    id::{AttemptId, LeaseToken, WorkerId},
    job::JobSpec,
    price::Meter,
    segment::steps_in_all,
};
use sqlx::PgConnection;
use time::OffsetDateTime;

use crate::{
    PgTransaction,
    codec::{self, to_document},
    objects::Stored,
};

/// Blobs of one attempt beside its checkpoints: outputs, and one more checkpoint.
const UPLOADS_MAX: u64 = 17;

/// A blob that an attempt uploads, or wants to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Upload {
    /// Who uploads.
    pub worker: WorkerId,
    /// Its attempt.
    pub attempt: AttemptId,
    /// The secret of its lease; `None` where none came along.
    pub token: Option<LeaseToken>,
    /// The name of the blob.
    pub sha256: Sha256,
}

/// How an upload stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// The attempt does not exist, or another worker has it.
    Unknown,
    /// Its lease is gone.
    Stale,
    /// It has uploaded all that it can need.
    TooMany,
    /// It may be taken, or was.
    Open {
        /// Are the bytes known, whoever uploaded them?
        registered: bool,
    },
}

/// How uploads stand, one answer for each.
pub async fn standing(conn: &mut PgConnection, asked: &[Upload]) -> sqlx::Result<Vec<Standing>> {
    let columns = Columns::of(asked);
    let rows = sqlx::query!(
        r#"SELECT it.place AS "place!", (queue.lease_token IS NOT NULL) AS "held!", (blobs.sha256 IS NOT NULL) AS "registered!",
             EXISTS (SELECT FROM attempt_blobs known WHERE known.attempt_id = it.attempt AND known.sha256 = it.sha256) AS "noted!",
             (SELECT count(*) FROM attempt_blobs other WHERE other.attempt_id = it.attempt) AS "others!"
           FROM UNNEST($1::uuid[], $2::uuid[], $3::uuid[], $4::bytea[]) WITH ORDINALITY
               AS it (attempt, worker, token, sha256, place)
           JOIN attempts ON attempts.attempt_id = it.attempt AND attempts.worker_id = it.worker
           LEFT JOIN queue ON queue.replica_id = attempts.replica_id
               AND queue.attempt_id = it.attempt AND queue.lease_token = it.token
               AND queue.lease_expires_at > clock_timestamp()
           LEFT JOIN blobs ON blobs.sha256 = it.sha256
           ORDER BY it.place"#,
        &columns.attempts,
        &columns.workers,
        &columns.tokens as &[Option<uuid::Uuid>],
        &columns.digests,
    )
    .fetch_all(&mut *conn)
    .await?;
    let mut standing = vec![Standing::Unknown; asked.len()];
    // What each attempt has when those before it in this list are taken.
    let mut uploaded: HashMap<AttemptId, u64> = HashMap::new();
    let mut fresh = HashSet::new();
    for row in rows {
        let Some(upload) = codec::at(asked, row.place) else {
            continue;
        };
        let uploaded = uploaded.entry(upload.attempt);
        let uploaded = uploaded.or_insert(row.others.unsigned_abs());
        let known = row.noted || fresh.contains(&(upload.attempt, upload.sha256));
        let found = if !row.held {
            Standing::Stale
        } else if !known
            && *uploaded >= UPLOADS_MAX
            && *uploaded >= most(conn, upload.attempt).await?
        {
            Standing::TooMany
        } else {
            if !known {
                *uploaded += 1;
                fresh.insert((upload.attempt, upload.sha256));
            }
            Standing::Open {
                registered: row.registered,
            }
        };
        codec::put(&mut standing, row.place, found);
    }
    Ok(standing)
}

/// How many blobs an attempt may upload.
async fn most(conn: &mut PgConnection, attempt: AttemptId) -> sqlx::Result<u64> {
    let row = sqlx::query!(
        "SELECT spec, meter FROM attempts JOIN jobs USING (job_id) JOIN quotes USING (quote_id) WHERE attempt_id = $1",
        attempt.0,
    )
    .fetch_one(conn)
    .await?;
    let checkpoints = match to_document("spec", row.spec)? {
        JobSpec::Training(spec) => {
            let rows = to_document::<Meter>("meter", row.meter)?.rows();
            steps_in_all(&spec, rows) / u64::from(spec.segment_steps.max(1))
        }
        JobSpec::Inference(_) => 0,
    };
    Ok(checkpoints.saturating_add(UPLOADS_MAX))
}

/// Registers blobs whose bytes are stored, and notes that their attempts uploaded them; how each stands. Noting one again changes
/// nothing. Uploads of one attempt that are noted in the same moment by different groups may pass its limit by as many.
pub async fn note(
    tx: &mut PgTransaction<'_>,
    uploads: &[(Upload, Stored)],
    now: OffsetDateTime,
) -> sqlx::Result<Vec<Standing>> {
    let asked: Vec<Upload> = uploads.iter().map(|(upload, _)| *upload).collect();
    let standing = standing(tx, &asked).await?;
    let open = uploads.iter().zip(&standing);
    let open = open.filter(|(_, standing)| matches!(standing, Standing::Open { .. }));
    let (taken, sizes): (Vec<Upload>, Vec<i64>) = open
        .map(|((upload, stored), _)| (*upload, i64::try_from(stored.bytes).unwrap_or(i64::MAX)))
        .unzip();
    let columns = Columns::of(&taken);
    // In the order of the digests: two groups that write the same ones do not wait for each other in a circle.
    sqlx::query!(
        "WITH taken AS (
             SELECT * FROM UNNEST($1::uuid[], $2::bytea[], $3::bigint[]) AS it (attempt, sha256, bytes)
         ), registered AS (
             INSERT INTO blobs (sha256, bytes, created_at)
             SELECT DISTINCT ON (sha256) sha256, bytes, $4::timestamptz FROM taken ORDER BY sha256
             ON CONFLICT (sha256) DO NOTHING
         )
         INSERT INTO attempt_blobs (attempt_id, sha256)
         SELECT attempt, sha256 FROM taken ORDER BY attempt, sha256
         ON CONFLICT (attempt_id, sha256) DO NOTHING",
        &columns.attempts,
        &columns.digests,
        &sizes,
        now,
    )
    .execute(&mut **tx)
    .await?;
    Ok(standing)
}

#[derive(Default)]
struct Columns {
    attempts: Vec<uuid::Uuid>,
    workers: Vec<uuid::Uuid>,
    tokens: Vec<Option<uuid::Uuid>>,
    digests: Vec<Vec<u8>>,
}

impl Columns {
    fn of(uploads: &[Upload]) -> Self {
        let mut columns = Self::default();
        for upload in uploads {
            columns.attempts.push(upload.attempt.0);
            columns.workers.push(upload.worker.0);
            columns.tokens.push(upload.token.map(|token| token.0));
            columns.digests.push(upload.sha256.0.to_vec());
        }
        columns
    }
}
