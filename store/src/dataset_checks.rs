//! Leases on versions that are to be checked: one checker at a time, by the database's clock, and another one where it dies.

use alloy_primitives::B256;
use comptoir_domain::{
    dataset::Facts,
    id::{AccountId, DatasetFileId, DatasetId, DatasetVersionId},
};
use sqlx::{PgConnection, postgres::types::PgInterval};
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use crate::{PgTransaction, dataset_versions::Refusal};

/// A version that is this checker's for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    /// Which version.
    pub version: DatasetVersionId,
    /// Of which dataset.
    pub dataset: DatasetId,
    /// Whose.
    pub account: AccountId,
    /// How often whoever read it ended without a word.
    pub failures: u16,
    /// What reading its files has taken until now.
    pub spent: Duration,
    /// Bytes of what was found in them.
    pub facts_bytes: u64,
    token: Uuid,
}

/// Which versions a checker takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Takes {
    /// Every one.
    All,
    /// Those without a file above 64 MiB that is to be read yet: no reading of one takes long, so that nobody who waits for it waits long.
    Small,
}

/// Takes a version, if one waits: of the account that a checker last worked for the longest ago, and of its versions that failed least. An account
/// has one checker at a time.
pub async fn take(
    conn: &mut PgConnection,
    takes: Takes,
    lifetime: Duration,
) -> sqlx::Result<Option<Lease>> {
    let row = sqlx::query!(
        r#"WITH taken AS MATERIALIZED (
               SELECT version_id FROM dataset_versions AS v
               WHERE state = 'checking' AND NOT EXISTS (SELECT FROM dataset_versions AS o
                   WHERE o.account_id = v.account_id AND o.state = 'checking' AND o.check_until > clock_timestamp())
                   AND ($2 OR NOT EXISTS (SELECT FROM dataset_files AS f
                       WHERE f.version_id = v.version_id AND f.bytes > 67108864 AND f.checked_at IS NULL))
               ORDER BY (SELECT max(o.check_served_at) FROM dataset_versions AS o WHERE o.account_id = v.account_id) NULLS FIRST,
                   check_failures, check_served_at NULLS FIRST, submitted_at
               LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED
           )
           UPDATE dataset_versions AS v SET check_token = gen_random_uuid(), check_until = clock_timestamp() + $1, check_served_at = clock_timestamp()
           FROM taken WHERE taken.version_id = v.version_id
           RETURNING v.version_id, dataset_id, account_id, check_failures, check_spent_ms, check_facts_bytes, check_token AS "check_token!""#,
        interval(lifetime),
        takes == Takes::All,
    )
    .fetch_optional(conn)
    .await?;
    Ok(row.map(|row| Lease {
        version: DatasetVersionId(row.version_id),
        dataset: DatasetId(row.dataset_id),
        account: AccountId(row.account_id),
        failures: row.check_failures.unsigned_abs(),
        spent: Duration::milliseconds(row.check_spent_ms),
        facts_bytes: row.check_facts_bytes.unsigned_abs(),
        token: row.check_token,
    }))
}

/// Keeps a version for longer; false where it is somebody else's by now.
pub async fn renew(
    conn: &mut PgConnection,
    lease: &Lease,
    lifetime: Duration,
) -> sqlx::Result<bool> {
    let done = sqlx::query!(
        "UPDATE dataset_versions SET check_until = clock_timestamp() + $3
         WHERE version_id = $1 AND check_token = $2 AND state = 'checking' AND check_until > clock_timestamp()",
        lease.version.0,
        lease.token,
        interval(lifetime),
    )
    .execute(conn)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Notes that whoever read a version ended without a word; it waits behind the others for its next try.
pub async fn fail(conn: &mut PgConnection, lease: &Lease) -> sqlx::Result<()> {
    sqlx::query!(
        "UPDATE dataset_versions SET check_failures = check_failures + 1 WHERE version_id = $1 AND check_token = $2 AND state = 'checking'",
        lease.version.0,
        lease.token,
    )
    .execute(conn)
    .await
    .map(drop)
}

/// Ends a turn: the version goes on when its account's next one comes.
pub async fn give_way(conn: &mut PgConnection, lease: &Lease) -> sqlx::Result<()> {
    sqlx::query!(
        "UPDATE dataset_versions SET check_token = NULL, check_until = NULL, check_served_at = clock_timestamp()
         WHERE version_id = $1 AND check_token = $2 AND state = 'checking'",
        lease.version.0,
        lease.token,
    )
    .execute(conn)
    .await
    .map(drop)
}

/// Notes how a file was judged, and what that took; says how many files of the version are refused by now. `None` where it is somebody else's, and
/// nothing is to be committed.
pub async fn note(
    tx: &mut PgTransaction<'_>,
    lease: &Lease,
    file: DatasetFileId,
    (facts, refusal): (Option<&Facts>, Option<&Refusal>),
    spent: Duration,
) -> sqlx::Result<Option<u32>> {
    let document = |it: Result<serde_json::Value, serde_json::Error>| {
        it.map_err(|error| sqlx::Error::Encode(error.into()))
    };
    let found = document(serde_json::to_value(facts))?;
    let refused = document(serde_json::to_value(refusal.as_slice()))?;
    let noted = sqlx::query_scalar!(
        r#"UPDATE dataset_versions SET check_served_at = clock_timestamp(), check_spent_ms = check_spent_ms + $3,
             check_facts_bytes = check_facts_bytes + $4, refusals = nullif(coalesce(refusals, '[]') || $5::jsonb, '[]')
           WHERE version_id = $1 AND check_token = $2 AND state = 'checking' AND check_until > clock_timestamp()
           RETURNING coalesce(jsonb_array_length(refusals), 0) AS "refused!""#,
        lease.version.0,
        lease.token,
        i64::try_from(spent.whole_milliseconds()).unwrap_or(i64::MAX),
        i64::try_from(facts.map_or(0, Facts::bytes)).unwrap_or(i64::MAX),
        refused,
    )
    .fetch_optional(&mut **tx)
    .await?;
    let Some(refused) = noted else {
        return Ok(None);
    };
    sqlx::query!(
        "UPDATE dataset_files SET facts = nullif($3::jsonb, 'null'), checked_at = clock_timestamp() WHERE file_id = $1 AND version_id = $2",
        file.0,
        lease.version.0,
        found,
    )
    .execute(&mut **tx)
    .await?;
    Ok(Some(refused.unsigned_abs()))
}

/// Publishes a version whose files are what they say; false where it is somebody else's by now, and nothing is to be committed.
pub async fn accept(
    tx: &mut PgTransaction<'_>,
    lease: &Lease,
    root: B256,
    now: OffsetDateTime,
) -> sqlx::Result<bool> {
    // Numbers are given one after the other.
    sqlx::query!(
        "SELECT dataset_id FROM datasets WHERE dataset_id = $1 FOR NO KEY UPDATE",
        lease.dataset.0,
    )
    .fetch_one(&mut **tx)
    .await?;
    let done = sqlx::query!(
        "UPDATE dataset_versions SET state = 'ready', manifest_root = $3, published_at = $4, check_token = NULL, check_until = NULL,
           number = 1 + (SELECT coalesce(max(number), 0) FROM dataset_versions WHERE dataset_id = $5)
         WHERE version_id = $1 AND check_token = $2 AND state = 'checking' AND check_until > clock_timestamp()",
        lease.version.0,
        lease.token,
        &root.0[..],
        now,
        lease.dataset.0,
    )
    .execute(&mut **tx)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Refuses a version for what was noted; false where it is somebody else's by now.
pub async fn refuse(conn: &mut PgConnection, lease: &Lease) -> sqlx::Result<bool> {
    let done = sqlx::query!(
        "UPDATE dataset_versions SET state = 'refused', check_token = NULL, check_until = NULL
         WHERE version_id = $1 AND check_token = $2 AND state = 'checking' AND check_until > clock_timestamp()",
        lease.version.0,
        lease.token,
    )
    .execute(conn)
    .await?;
    Ok(done.rows_affected() == 1)
}

fn interval(lifetime: Duration) -> PgInterval {
    PgInterval {
        months: 0,
        days: 0,
        microseconds: i64::try_from(lifetime.whole_microseconds()).unwrap_or(i64::MAX),
    }
}
