//! Which bytes of datasets were handed out, and to whom.

use comptoir_domain::id::{
    AccountId, DatasetFileId, DatasetId, DatasetLinkId, DatasetServingId, DatasetVersionId,
    PurchaseId,
};
use sqlx::PgConnection;
use time::OffsetDateTime;

use crate::PgTransaction;

/// Bytes that are handed out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Served {
    /// To whom.
    pub account: AccountId,
    /// Of what.
    pub dataset: DatasetId,
    /// Of which version.
    pub version: DatasetVersionId,
    /// Of which file.
    pub file: DatasetFileId,
    /// By what right; `None`: it is the seller's own, or a sample.
    pub purchase: Option<PurchaseId>,
    /// By which link; `None`: with a credential.
    pub link: Option<DatasetLinkId>,
    /// From which byte on.
    pub first_byte: u64,
    /// How many were asked for.
    pub bytes: u64,
}

/// A serving as it is stored.
#[derive(Debug, Clone, Copy)]
pub struct Serving {
    /// Which.
    pub id: DatasetServingId,
    /// What was handed out.
    pub served: Served,
    /// When.
    pub created_at: OffsetDateTime,
}

/// Notes what is about to be handed out.
///
/// # Errors
/// When the statement fails.
pub async fn write(
    tx: &mut PgTransaction<'_>,
    it: &Served,
    now: OffsetDateTime,
) -> sqlx::Result<()> {
    sqlx::query!(
        "INSERT INTO dataset_servings (serving_id, account_id, dataset_id, version_id, file_id, purchase_id, dataset_link_id, first_byte, bytes, created_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
        DatasetServingId::generate().0,
        it.account.0,
        it.dataset.0,
        it.version.0,
        it.file.0,
        it.purchase.map(|id| id.0),
        it.link.map(|id| id.0),
        it.first_byte.cast_signed(),
        it.bytes.cast_signed(),
        now,
    )
    .execute(&mut **tx)
    .await
    .map(drop)
}

/// Notes that the first bytes of a purchase are about to be handed out. Again changes nothing.
///
/// # Errors
/// When the statement fails.
pub async fn begin(
    tx: &mut PgTransaction<'_>,
    purchase: PurchaseId,
    now: OffsetDateTime,
) -> sqlx::Result<()> {
    sqlx::query!(
        "INSERT INTO purchase_servings (purchase_id, served_at) VALUES ($1, $2) ON CONFLICT (purchase_id) DO NOTHING",
        purchase.0,
        now,
    )
    .execute(&mut **tx)
    .await
    .map(drop)
}

/// Was anything of the purchase handed out?
///
/// # Errors
/// When the statement fails.
pub async fn has_begun(conn: &mut PgConnection, purchase: PurchaseId) -> sqlx::Result<bool> {
    sqlx::query_scalar!(
        r#"SELECT EXISTS (SELECT FROM purchase_servings WHERE purchase_id = $1) AS "has_begun!""#,
        purchase.0,
    )
    .fetch_one(conn)
    .await
}

/// What was handed out of a dataset, newest first.
///
/// # Errors
/// When the statement fails.
pub async fn list(
    conn: &mut PgConnection,
    dataset: DatasetId,
    before: Option<DatasetServingId>,
    limit: i64,
) -> sqlx::Result<Vec<Serving>> {
    let rows = sqlx::query!(
        "SELECT serving_id, account_id, dataset_id, version_id, file_id, purchase_id, dataset_link_id, first_byte, bytes, created_at
         FROM dataset_servings WHERE dataset_id = $1 AND ($2::uuid IS NULL OR serving_id < $2) ORDER BY serving_id DESC LIMIT $3",
        dataset.0,
        before.map(|it| it.0),
        limit,
    )
    .fetch_all(conn)
    .await?;
    let servings = rows.into_iter().map(|row| Serving {
        id: DatasetServingId(row.serving_id),
        served: Served {
            account: AccountId(row.account_id),
            dataset: DatasetId(row.dataset_id),
            version: DatasetVersionId(row.version_id),
            file: DatasetFileId(row.file_id),
            purchase: row.purchase_id.map(PurchaseId),
            link: row.dataset_link_id.map(DatasetLinkId),
            first_byte: row.first_byte.unsigned_abs(),
            bytes: row.bytes.unsigned_abs(),
        },
        created_at: row.created_at,
    });
    Ok(servings.collect())
}
