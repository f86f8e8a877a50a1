//! Versions of datasets: drafts, their submission, and their end.

use alloy_primitives::B256;
use comptoir_domain::{
    dataset::VersionState,
    envelope::WRAPPED_BYTES,
    id::{AccountId, DatasetId, DatasetVersionId},
};
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    PgTransaction,
    codec::{to_document, to_enum, to_hash},
    entitlements,
    tenant_keys::to_wrapped,
};

/// Drafts and refused versions of one dataset, so that nobody keeps more than a page of them.
const UNPUBLISHED_MAX: i64 = 100;

/// A version as it is stored.
#[derive(Debug, Clone)]
pub struct Version {
    /// Which.
    pub id: DatasetVersionId,
    /// Of which dataset.
    pub dataset: DatasetId,
    /// Whose.
    pub account: AccountId,
    /// Which of the published ones, from 1.
    pub number: Option<u32>,
    /// How far it is.
    pub state: VersionState,
    /// What its seller says of it.
    pub notes: String,
    /// The dataset's licence when it was submitted.
    pub licence: Option<String>,
    /// Its data key; none where it is shredded.
    pub wrapped_key: Option<[u8; WRAPPED_BYTES]>,
    /// What its manifest is.
    pub manifest_root: Option<B256>,
    /// How many files it has.
    pub files: u32,
    /// How many bytes these have.
    pub bytes: u64,
    /// Why it was refused.
    pub refusals: Vec<Refusal>,
    /// When it was made.
    pub created_at: OffsetDateTime,
    /// When it was to be published.
    pub submitted_at: Option<OffsetDateTime>,
    /// When it was.
    pub published_at: Option<OffsetDateTime>,
    /// When its key was thrown away.
    pub shredded_at: Option<OffsetDateTime>,
}

/// Why a file was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// Which.
    pub path: String,
    /// In words.
    pub reason: String,
}

/// Why a draft was not made.
#[derive(Debug, thiserror::Error)]
pub enum CreateVersionError {
    /// The dataset has as many that are not published as it may.
    #[error("the dataset has {UNPUBLISHED_MAX} versions that are not published")]
    TooMany,
    /// Postgres failed.
    #[error("create a version")]
    Database(#[from] sqlx::Error),
}

/// Why a version was not shredded.
#[derive(Debug, thiserror::Error)]
pub enum ShredError {
    /// It is being checked.
    #[error("the version is being checked")]
    Checking,
    /// It was offered to the dataset of another, who reads it.
    #[error("the version is contributed to another dataset")]
    Contributed,
    /// A takedown of its dataset is open: it is what that is about.
    #[error("a takedown of the dataset is not decided")]
    Disputed,
    /// Its dataset is listed, and has no other.
    #[error("the dataset is listed, and has no other version")]
    LastOfListed,
    /// Somebody has a right to it.
    #[error("somebody has a right to the version")]
    Sold,
    /// Postgres failed.
    #[error("shred a version")]
    Database(#[from] sqlx::Error),
}

struct Row {
    version_id: Uuid,
    dataset_id: Uuid,
    account_id: Uuid,
    number: Option<i32>,
    state: String,
    notes: String,
    licence: Option<String>,
    wrapped_key: Option<Vec<u8>>,
    manifest_root: Option<Vec<u8>>,
    files: i32,
    bytes: i64,
    refusals: Option<serde_json::Value>,
    created_at: OffsetDateTime,
    submitted_at: Option<OffsetDateTime>,
    published_at: Option<OffsetDateTime>,
    shredded_at: Option<OffsetDateTime>,
}

impl TryFrom<Row> for Version {
    type Error = sqlx::Error;

    fn try_from(row: Row) -> sqlx::Result<Self> {
        let wrapped = row.wrapped_key.map(|key| to_wrapped("wrapped_key", &key));
        let root = row
            .manifest_root
            .map(|root| to_hash("manifest_root", &root));
        let refusals = row.refusals.map(|it| to_document("refusals", it));
        Ok(Self {
            id: DatasetVersionId(row.version_id),
            dataset: DatasetId(row.dataset_id),
            account: AccountId(row.account_id),
            number: row.number.map(i32::unsigned_abs),
            state: to_enum("state", &row.state, VersionState::parse)?,
            notes: row.notes,
            licence: row.licence,
            wrapped_key: wrapped.transpose()?,
            manifest_root: root.transpose()?,
            files: row.files.unsigned_abs(),
            bytes: row.bytes.unsigned_abs(),
            refusals: refusals.transpose()?.unwrap_or_default(),
            created_at: row.created_at,
            submitted_at: row.submitted_at,
            published_at: row.published_at,
            shredded_at: row.shredded_at,
        })
    }
}

/// Makes a draft of a dataset that is locked.
///
/// # Errors
/// When it has too many.
pub async fn create(
    tx: &mut PgTransaction<'_>,
    (dataset, account): (DatasetId, AccountId),
    (id, wrapped_key): (DatasetVersionId, [u8; WRAPPED_BYTES]),
    notes: &str,
    now: OffsetDateTime,
) -> Result<(), CreateVersionError> {
    let done = sqlx::query!(
        "INSERT INTO dataset_versions (version_id, dataset_id, account_id, state, notes, wrapped_key, created_at)
         SELECT $1, $2, $3, 'draft', $4, $5, $6
         WHERE (SELECT count(*) FROM dataset_versions WHERE dataset_id = $2 AND state IN ('draft', 'checking', 'refused')) < $7",
        id.0,
        dataset.0,
        account.0,
        notes,
        &wrapped_key[..],
        now,
        UNPUBLISHED_MAX,
    )
    .execute(&mut **tx)
    .await?;
    if done.rows_affected() == 0 {
        return Err(CreateVersionError::TooMany);
    }
    Ok(())
}

/// The version, if the account may look at it: its own, a ready one of a listed dataset, or one that it has or had a right to.
pub async fn find(
    conn: &mut PgConnection,
    account: AccountId,
    (dataset, id): (DatasetId, DatasetVersionId),
) -> sqlx::Result<Option<Version>> {
    let row = sqlx::query_as!(
        Row,
        "SELECT version_id, v.dataset_id, v.account_id, number, v.state, notes, v.licence, wrapped_key, manifest_root, files, bytes, refusals, v.created_at,
           submitted_at, published_at, shredded_at
         FROM dataset_versions AS v JOIN datasets AS d USING (dataset_id)
         WHERE version_id = $1 AND dataset_id = $2 AND (v.account_id = $3 OR (v.state = 'ready' AND d.state = 'listed')
           OR (v.state IN ('ready', 'shredded') AND EXISTS (SELECT FROM entitlements AS e
               WHERE e.account_id = $3 AND e.dataset_id = v.dataset_id AND (e.version_id IS NULL OR e.version_id = v.version_id))))",
        id.0,
        dataset.0,
        account.0,
    )
    .fetch_optional(conn)
    .await?;
    row.map(Version::try_from).transpose()
}

/// The version of the dataset if it is ready; the newest ready one where none is named. Who may know of it was decided before.
///
/// # Errors
/// When the statement fails.
pub async fn newest_ready(
    conn: &mut PgConnection,
    dataset: DatasetId,
    version: Option<DatasetVersionId>,
) -> sqlx::Result<Option<Version>> {
    let row = sqlx::query_as!(
        Row,
        "SELECT version_id, dataset_id, account_id, number, state, notes, licence, wrapped_key, manifest_root, files, bytes, refusals, created_at,
           submitted_at, published_at, shredded_at
         FROM dataset_versions
         WHERE dataset_id = $1 AND state = 'ready' AND ($2::uuid IS NULL OR version_id = $2) ORDER BY number DESC LIMIT 1",
        dataset.0,
        version.map(|it| it.0),
    )
    .fetch_optional(conn)
    .await?;
    row.map(Version::try_from).transpose()
}

/// A version, whoever asks: who may know of it was decided before.
pub async fn find_any(
    conn: &mut PgConnection,
    id: DatasetVersionId,
) -> sqlx::Result<Option<Version>> {
    let row = sqlx::query_as!(
        Row,
        "SELECT version_id, dataset_id, account_id, number, state, notes, licence, wrapped_key, manifest_root, files, bytes, refusals, created_at,
           submitted_at, published_at, shredded_at
         FROM dataset_versions WHERE version_id = $1",
        id.0,
    )
    .fetch_optional(conn)
    .await?;
    row.map(Version::try_from).transpose()
}

/// The account's version, which nobody else changes until the transaction ends.
pub async fn lock(
    tx: &mut PgTransaction<'_>,
    account: AccountId,
    (dataset, id): (DatasetId, DatasetVersionId),
) -> sqlx::Result<Option<Version>> {
    let row = sqlx::query_as!(
        Row,
        "SELECT version_id, dataset_id, account_id, number, state, notes, licence, wrapped_key, manifest_root, files, bytes, refusals, created_at,
           submitted_at, published_at, shredded_at
         FROM dataset_versions WHERE version_id = $1 AND dataset_id = $2 AND account_id = $3 FOR NO KEY UPDATE",
        id.0,
        dataset.0,
        account.0,
    )
    .fetch_optional(&mut **tx)
    .await?;
    row.map(Version::try_from).transpose()
}

/// The versions of a dataset that the account may look at, newest first.
pub async fn list(
    conn: &mut PgConnection,
    account: AccountId,
    dataset: DatasetId,
    before: Option<DatasetVersionId>,
    limit: i64,
) -> sqlx::Result<Vec<Version>> {
    let rows = sqlx::query_as!(
        Row,
        "SELECT version_id, v.dataset_id, v.account_id, number, v.state, notes, v.licence, wrapped_key, manifest_root, files, bytes, refusals, v.created_at,
           submitted_at, published_at, shredded_at
         FROM dataset_versions AS v JOIN datasets AS d USING (dataset_id)
         WHERE dataset_id = $1 AND ($3::uuid IS NULL OR version_id < $3) AND (v.account_id = $2 OR (v.state = 'ready' AND d.state = 'listed')
           OR (v.state IN ('ready', 'shredded') AND EXISTS (SELECT FROM entitlements AS e
               WHERE e.account_id = $2 AND e.dataset_id = v.dataset_id AND (e.version_id IS NULL OR e.version_id = v.version_id))))
         ORDER BY version_id DESC LIMIT $4",
        dataset.0,
        account.0,
        before.map(|id| id.0),
        limit,
    )
    .fetch_all(conn)
    .await?;
    rows.into_iter().map(Version::try_from).collect()
}

/// Counts files that a draft, which is locked, has more or fewer now.
pub async fn count(
    tx: &mut PgTransaction<'_>,
    id: DatasetVersionId,
    files: i32,
    bytes: i64,
) -> sqlx::Result<()> {
    sqlx::query!(
        "UPDATE dataset_versions SET files = files + $2, bytes = bytes + $3 WHERE version_id = $1 AND state = 'draft'",
        id.0,
        files,
        bytes,
    )
    .execute(&mut **tx)
    .await
    .map(drop)
}

/// Hands a draft, which is locked and complete, over to be checked.
pub async fn submit(
    tx: &mut PgTransaction<'_>,
    id: DatasetVersionId,
    now: OffsetDateTime,
) -> sqlx::Result<()> {
    sqlx::query!(
        "UPDATE dataset_versions AS v SET state = 'checking', submitted_at = $2, licence = d.licence
         FROM datasets AS d WHERE d.dataset_id = v.dataset_id AND version_id = $1 AND v.state = 'draft'",
        id.0,
        now,
    )
    .execute(&mut **tx)
    .await
    .map(drop)
}

/// Throws away the key of a version that is locked. Again changes nothing. The transaction must see everybody: buyers have rights to it.
///
/// # Errors
/// While it is checked, while a takedown is open, where it is contributed, while somebody has a right to it, and when it is the last that a listed
/// dataset shows. The last three do not count once a takedown was upheld.
pub async fn shred(
    tx: &mut PgTransaction<'_>,
    version: &Version,
    now: OffsetDateTime,
) -> Result<(), ShredError> {
    match version.state {
        VersionState::Shredded => return Ok(()),
        VersionState::Checking => return Err(ShredError::Checking),
        VersionState::Draft | VersionState::Ready | VersionState::Refused => {}
    }
    let takedowns = sqlx::query!(
        r#"SELECT coalesce(bool_or(state = 'upheld'), false) AS "is_upheld!", coalesce(bool_or(state IN ('frozen', 'contested')), false) AS "is_open!"
           FROM takedowns WHERE dataset_id = $1"#,
        version.dataset.0,
    )
    .fetch_one(&mut **tx)
    .await?;
    if takedowns.is_open {
        return Err(ShredError::Disputed);
    }
    // Nobody reads what is blocked for good, whatever right they have.
    if !takedowns.is_upheld {
        refuse_needed(tx, version, now).await?;
    }
    let done = sqlx::query!(
        "UPDATE dataset_versions AS v SET state = 'shredded', wrapped_key = NULL, shredded_at = $2
         WHERE version_id = $1 AND (v.state <> 'ready' OR $3
           OR NOT EXISTS (SELECT FROM datasets AS d WHERE d.dataset_id = v.dataset_id AND d.state = 'listed')
           OR EXISTS (SELECT FROM dataset_versions AS o WHERE o.dataset_id = v.dataset_id AND o.state = 'ready' AND o.version_id <> $1))",
        version.id.0,
        now,
        takedowns.is_upheld,
    )
    .execute(&mut **tx)
    .await?;
    if done.rows_affected() == 0 {
        return Err(ShredError::LastOfListed);
    }
    Ok(())
}

/// Refuses to shred what others contributed with, or have a right to.
async fn refuse_needed(
    tx: &mut PgTransaction<'_>,
    version: &Version,
    now: OffsetDateTime,
) -> Result<(), ShredError> {
    let contributed = sqlx::query_scalar!(
        r#"SELECT EXISTS (SELECT FROM contributions WHERE version_id = $1 AND state IN ('pending', 'accepted')) AS "contributed!""#,
        version.id.0,
    )
    .fetch_one(&mut **tx)
    .await?;
    if contributed {
        return Err(ShredError::Contributed);
    }
    let is_sold = version.state == VersionState::Ready
        && entitlements::is_sold(tx, (version.dataset, version.id), now).await?;
    if is_sold {
        return Err(ShredError::Sold);
    }
    Ok(())
}

/// Throws away the keys of drafts and refused versions that nobody touched since then; says how many.
pub async fn shred_forgotten(
    conn: &mut PgConnection,
    since: OffsetDateTime,
    now: OffsetDateTime,
    limit: i64,
) -> sqlx::Result<u64> {
    let done = sqlx::query!(
        "WITH forgotten AS MATERIALIZED (
             SELECT version_id FROM dataset_versions AS v
             WHERE state IN ('draft', 'refused') AND created_at < $1 AND coalesce(submitted_at, created_at) < $1
               AND NOT EXISTS (SELECT FROM dataset_files AS f WHERE f.version_id = v.version_id AND f.created_at >= $1)
               AND NOT EXISTS (SELECT FROM dataset_files AS f JOIN dataset_parts USING (file_id) WHERE f.version_id = v.version_id AND stored_at >= $1)
             ORDER BY created_at LIMIT $3 FOR NO KEY UPDATE SKIP LOCKED
         )
         UPDATE dataset_versions AS v SET state = 'shredded', wrapped_key = NULL, shredded_at = $2
         FROM forgotten WHERE forgotten.version_id = v.version_id AND v.state IN ('draft', 'refused')",
        since,
        now,
        limit,
    )
    .execute(conn)
    .await?;
    Ok(done.rows_affected())
}

/// A shredded version whose objects are still there.
pub async fn to_remove(conn: &mut PgConnection, limit: i64) -> sqlx::Result<Vec<DatasetVersionId>> {
    let found = sqlx::query_scalar!(
        "SELECT version_id FROM dataset_versions WHERE state = 'shredded' AND objects_removed_at IS NULL ORDER BY shredded_at LIMIT $1",
        limit,
    )
    .fetch_all(conn)
    .await?;
    Ok(found.into_iter().map(DatasetVersionId).collect())
}

/// Notes that the objects of a shredded version are gone, and forgets its parts.
pub async fn removed(
    tx: &mut PgTransaction<'_>,
    id: DatasetVersionId,
    now: OffsetDateTime,
) -> sqlx::Result<()> {
    sqlx::query!(
        "DELETE FROM dataset_parts USING dataset_files AS f WHERE f.file_id = dataset_parts.file_id AND f.version_id = $1",
        id.0,
    )
    .execute(&mut **tx)
    .await?;
    sqlx::query!(
        "UPDATE dataset_versions SET objects_removed_at = $2 WHERE version_id = $1 AND state = 'shredded'",
        id.0,
        now,
    )
    .execute(&mut **tx)
    .await
    .map(drop)
}
