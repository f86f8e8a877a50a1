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
    token: Uuid,
}

/// Takes the version that has waited longest, if one waits: of those that failed least.
pub async fn take(conn: &mut PgConnection, lifetime: Duration) -> sqlx::Result<Option<Lease>> {
    let row = sqlx::query!(
        r#"WITH taken AS MATERIALIZED (
               SELECT version_id FROM dataset_versions
               WHERE state = 'checking' AND (check_until IS NULL OR check_until <= clock_timestamp())
               ORDER BY check_failures, submitted_at LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED
           )
           UPDATE dataset_versions AS v SET check_token = gen_random_uuid(), check_until = clock_timestamp() + $1
           FROM taken WHERE taken.version_id = v.version_id
           RETURNING v.version_id, dataset_id, account_id, check_failures, check_token AS "check_token!""#,
        interval(lifetime),
    )
    .fetch_optional(conn)
    .await?;
    Ok(row.map(|row| Lease {
        version: DatasetVersionId(row.version_id),
        dataset: DatasetId(row.dataset_id),
        account: AccountId(row.account_id),
        failures: row.check_failures.unsigned_abs(),
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

/// Publishes a version whose files are what they say; false where it is somebody else's by now, and nothing is to be committed.
pub async fn accept(
    tx: &mut PgTransaction<'_>,
    lease: &Lease,
    root: B256,
    facts: &[(DatasetFileId, Facts)],
    now: OffsetDateTime,
) -> sqlx::Result<bool> {
    // Numbers are given one after the other.
    sqlx::query!(
        "SELECT dataset_id FROM datasets WHERE dataset_id = $1 FOR NO KEY UPDATE",
        lease.dataset.0,
    )
    .fetch_one(&mut **tx)
    .await?;
    let files: Vec<Uuid> = facts.iter().map(|(file, _)| file.0).collect();
    let found: Vec<_> = facts
        .iter()
        .map(|(_, facts)| serde_json::to_value(facts))
        .collect::<Result<_, _>>()
        .map_err(|error| sqlx::Error::Encode(error.into()))?;
    sqlx::query!(
        "UPDATE dataset_files AS f SET facts = given.facts FROM unnest($1::uuid[], $2::jsonb[]) AS given (file_id, facts)
         WHERE f.file_id = given.file_id AND f.version_id = $3",
        &files,
        &found,
        lease.version.0,
    )
    .execute(&mut **tx)
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

/// Refuses a version; false where it is somebody else's by now.
pub async fn refuse(
    conn: &mut PgConnection,
    lease: &Lease,
    refusals: &[Refusal],
) -> sqlx::Result<bool> {
    let refusals =
        serde_json::to_value(refusals).map_err(|error| sqlx::Error::Encode(error.into()))?;
    let done = sqlx::query!(
        "UPDATE dataset_versions SET state = 'refused', refusals = $3, check_token = NULL, check_until = NULL
         WHERE version_id = $1 AND check_token = $2 AND state = 'checking' AND check_until > clock_timestamp()",
        lease.version.0,
        lease.token,
        refusals,
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
