//! Links to one file of a dataset, which are read without a credential for a short time.

use comptoir_domain::{
    digest::Sha256,
    id::{AccountId, DatasetFileId, DatasetId, DatasetLinkId, DatasetVersionId},
};
use sqlx::PgConnection;
use time::OffsetDateTime;

/// A link.
#[derive(Debug, Clone, Copy)]
pub struct Link {
    /// Its identifier; its secret is not stored.
    pub id: DatasetLinkId,
    /// By whose right it is read.
    pub account: AccountId,
    /// The dataset.
    pub dataset: DatasetId,
    /// The version.
    pub version: DatasetVersionId,
    /// The file.
    pub file: DatasetFileId,
    /// Does the first use end it?
    pub is_single_use: bool,
    /// Until when it may be used.
    pub expires_at: OffsetDateTime,
}

/// Why a link is not followed.
#[derive(Debug, thiserror::Error)]
pub enum FollowError {
    /// There is none with this secret.
    #[error("no such link")]
    NotFound,
    /// Its time is over.
    #[error("the link is over")]
    Expired,
    /// It was for one use.
    #[error("the link is used")]
    Used,
    /// A statement failed.
    #[error("follow a link")]
    Database(#[from] sqlx::Error),
}

/// Makes a link with this secret.
///
/// # Errors
/// When the statement fails.
pub async fn create(
    conn: &mut PgConnection,
    link: &Link,
    secret: Sha256,
    now: OffsetDateTime,
) -> sqlx::Result<()> {
    sqlx::query!(
        "INSERT INTO dataset_links (dataset_link_id, account_id, dataset_id, version_id, file_id, secret_sha256, is_single_use, created_at, expires_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
        link.id.0,
        link.account.0,
        link.dataset.0,
        link.version.0,
        link.file.0,
        &secret.0[..],
        link.is_single_use,
        now,
        link.expires_at,
    )
    .execute(conn)
    .await
    .map(drop)
}

/// Uses the link with this secret: one for a single use goes to one of all who follow it at the same moment.
///
/// # Errors
/// When it is not to be followed.
pub async fn follow(
    conn: &mut PgConnection,
    secret: Sha256,
    now: OffsetDateTime,
) -> Result<Link, FollowError> {
    let used = sqlx::query!(
        "UPDATE dataset_links SET used_at = coalesce(used_at, $2)
         WHERE secret_sha256 = $1 AND expires_at > $2 AND (used_at IS NULL OR NOT is_single_use)
         RETURNING dataset_link_id, account_id, dataset_id, version_id, file_id, is_single_use, expires_at",
        &secret.0[..],
        now,
    )
    .fetch_optional(&mut *conn)
    .await?;
    if let Some(row) = used {
        return Ok(Link {
            id: DatasetLinkId(row.dataset_link_id),
            account: AccountId(row.account_id),
            dataset: DatasetId(row.dataset_id),
            version: DatasetVersionId(row.version_id),
            file: DatasetFileId(row.file_id),
            is_single_use: row.is_single_use,
            expires_at: row.expires_at,
        });
    }
    let expires_at = sqlx::query_scalar!(
        "SELECT expires_at FROM dataset_links WHERE secret_sha256 = $1",
        &secret.0[..],
    )
    .fetch_optional(conn)
    .await?;
    Err(match expires_at {
        None => FollowError::NotFound,
        Some(at) if at <= now => FollowError::Expired,
        Some(_) => FollowError::Used,
    })
}

/// Forgets links that were over before `before`; says how many.
///
/// # Errors
/// When the statement fails.
pub async fn forget(
    conn: &mut PgConnection,
    before: OffsetDateTime,
    limit: i64,
) -> sqlx::Result<u64> {
    let done = sqlx::query!(
        "DELETE FROM dataset_links WHERE dataset_link_id IN (
             SELECT dataset_link_id FROM dataset_links WHERE expires_at < $1 ORDER BY expires_at LIMIT $2)",
        before,
        limit,
    )
    .execute(conn)
    .await?;
    Ok(done.rows_affected())
}
