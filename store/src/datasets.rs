//! Datasets: their cards, and whether they are listed.

use std::collections::HashMap;

use comptoir_domain::{
    card::Card,
    dataset::DatasetState,
    id::{AccountId, DatasetId, TakedownId},
};
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{PgTransaction, codec::to_enum, violates};

/// A dataset as it is stored.
#[derive(Debug, Clone)]
pub struct Dataset {
    /// Which.
    pub id: DatasetId,
    /// Whose.
    pub account: AccountId,
    /// What its seller says of it.
    pub card: Card,
    /// Is it offered?
    pub state: DatasetState,
    /// Why it is not recommended any more.
    pub deprecation: Option<String>,
    /// The takedown that blocks it, and since when.
    pub blocked: Option<(TakedownId, OffsetDateTime)>,
    /// When it was made.
    pub created_at: OffsetDateTime,
    /// When its card or state last changed.
    pub updated_at: OffsetDateTime,
}

/// Why a dataset was not made.
#[derive(Debug, thiserror::Error)]
pub enum CreateDatasetError {
    /// The account has one of that name.
    #[error("the account has a dataset of that name")]
    NameTaken,
    /// Postgres failed.
    #[error("create a dataset")]
    Database(#[from] sqlx::Error),
}

/// Why a dataset is not listed.
#[derive(Debug, thiserror::Error)]
pub enum ListDatasetError {
    /// None of its versions is ready.
    #[error("no version is ready")]
    NothingReady,
    /// Postgres failed.
    #[error("list a dataset")]
    Database(#[from] sqlx::Error),
}

struct Row {
    dataset_id: Uuid,
    account_id: Uuid,
    name: String,
    title: String,
    description: String,
    licence: String,
    provenance: String,
    tags: Vec<String>,
    state: String,
    deprecation: Option<String>,
    blocked_by: Option<Uuid>,
    blocked_at: Option<OffsetDateTime>,
    created_at: OffsetDateTime,
    updated_at: OffsetDateTime,
}

impl TryFrom<Row> for Dataset {
    type Error = sqlx::Error;

    fn try_from(row: Row) -> sqlx::Result<Self> {
        Ok(Self {
            id: DatasetId(row.dataset_id),
            account: AccountId(row.account_id),
            card: Card {
                name: row.name,
                title: row.title,
                description: row.description,
                licence: row.licence,
                provenance: row.provenance,
                tags: row.tags,
            },
            state: to_enum("state", &row.state, DatasetState::parse)?,
            deprecation: row.deprecation,
            blocked: row.blocked_by.map(TakedownId).zip(row.blocked_at),
            created_at: row.created_at,
            updated_at: row.updated_at,
        })
    }
}

/// Makes a dataset, which nobody sees yet but its seller.
///
/// # Errors
/// When the account has one of that name.
pub async fn create(
    conn: &mut PgConnection,
    account: AccountId,
    card: &Card,
    now: OffsetDateTime,
) -> Result<Dataset, CreateDatasetError> {
    let id = DatasetId::generate();
    sqlx::query!(
        "INSERT INTO datasets (dataset_id, account_id, name, title, description, licence, provenance, tags, state, created_at, updated_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, 'draft', $9, $9)",
        id.0,
        account.0,
        card.name,
        card.title,
        card.description,
        card.licence,
        card.provenance,
        &card.tags,
        now,
    )
    .execute(conn)
    .await
    .map_err(|error| {
        if violates(&error, "datasets_name_once") {
            CreateDatasetError::NameTaken
        } else {
            error.into()
        }
    })?;
    Ok(Dataset {
        id,
        account,
        card: card.clone(),
        state: DatasetState::Draft,
        deprecation: None,
        blocked: None,
        created_at: now,
        updated_at: now,
    })
}

/// The dataset, if the account may look at it: its own, a listed one, or one that it has or had a right to.
pub async fn find(
    conn: &mut PgConnection,
    account: AccountId,
    id: DatasetId,
) -> sqlx::Result<Option<Dataset>> {
    let row = sqlx::query_as!(
        Row,
        "SELECT dataset_id, account_id, name, title, description, licence, provenance, tags, state, deprecation, blocked_by, blocked_at,
           created_at, updated_at
         FROM datasets AS d WHERE dataset_id = $1 AND (account_id = $2 OR state = 'listed'
           OR EXISTS (SELECT FROM entitlements AS e WHERE e.account_id = $2 AND e.dataset_id = d.dataset_id))",
        id.0,
        account.0,
    )
    .fetch_optional(conn)
    .await?;
    row.map(Dataset::try_from).transpose()
}

/// The account's dataset, which nobody else changes until the transaction ends.
pub async fn lock(
    tx: &mut PgTransaction<'_>,
    account: AccountId,
    id: DatasetId,
) -> sqlx::Result<Option<Dataset>> {
    let row = sqlx::query_as!(
        Row,
        "SELECT dataset_id, account_id, name, title, description, licence, provenance, tags, state, deprecation, blocked_by, blocked_at,
           created_at, updated_at
         FROM datasets WHERE dataset_id = $1 AND account_id = $2 FOR NO KEY UPDATE",
        id.0,
        account.0,
    )
    .fetch_optional(&mut **tx)
    .await?;
    row.map(Dataset::try_from).transpose()
}

/// The account's datasets, newest first.
pub async fn list(
    conn: &mut PgConnection,
    account: AccountId,
    before: Option<DatasetId>,
    limit: i64,
) -> sqlx::Result<Vec<Dataset>> {
    let rows = sqlx::query_as!(
        Row,
        "SELECT dataset_id, account_id, name, title, description, licence, provenance, tags, state, deprecation, blocked_by, blocked_at,
           created_at, updated_at
         FROM datasets WHERE account_id = $1 AND ($2::uuid IS NULL OR dataset_id < $2) ORDER BY dataset_id DESC LIMIT $3",
        account.0,
        before.map(|id| id.0),
        limit,
    )
    .fetch_all(conn)
    .await?;
    rows.into_iter().map(Dataset::try_from).collect()
}

/// Writes what the seller says of a dataset that is locked: all but its name, which stays.
pub async fn update(tx: &mut PgTransaction<'_>, dataset: &Dataset) -> sqlx::Result<()> {
    sqlx::query!(
        "UPDATE datasets SET title = $2, description = $3, licence = $4, provenance = $5, tags = $6, deprecation = $7, updated_at = $8
         WHERE dataset_id = $1",
        dataset.id.0,
        dataset.card.title,
        dataset.card.description,
        dataset.card.licence,
        dataset.card.provenance,
        &dataset.card.tags,
        dataset.deprecation,
        dataset.updated_at,
    )
    .execute(&mut **tx)
    .await
    .map(drop)
}

/// Shows a dataset that is locked to everybody who signed in.
///
/// # Errors
/// When it has nothing to show.
pub async fn show(
    tx: &mut PgTransaction<'_>,
    id: DatasetId,
    now: OffsetDateTime,
) -> Result<(), ListDatasetError> {
    let done = sqlx::query!(
        "UPDATE datasets SET state = 'listed', updated_at = $2
         WHERE dataset_id = $1 AND EXISTS (SELECT FROM dataset_versions AS v WHERE v.dataset_id = $1 AND v.state = 'ready')",
        id.0,
        now,
    )
    .execute(&mut **tx)
    .await?;
    if done.rows_affected() == 0 {
        return Err(ListDatasetError::NothingReady);
    }
    Ok(())
}

/// Hides a dataset that is locked, and was listed, from everybody but its seller.
pub async fn withdraw(
    tx: &mut PgTransaction<'_>,
    id: DatasetId,
    now: OffsetDateTime,
) -> sqlx::Result<()> {
    sqlx::query!(
        "UPDATE datasets SET state = 'withdrawn', updated_at = $2 WHERE dataset_id = $1 AND state = 'listed'",
        id.0,
        now,
    )
    .execute(&mut **tx)
    .await
    .map(drop)
}

/// The takedown that blocks a dataset, if one does.
pub async fn blocked_by(
    conn: &mut PgConnection,
    id: DatasetId,
) -> sqlx::Result<Option<TakedownId>> {
    let blocked_by = sqlx::query_scalar!(
        "SELECT blocked_by FROM datasets WHERE dataset_id = $1",
        id.0,
    )
    .fetch_optional(conn)
    .await?;
    Ok(blocked_by.flatten().map(TakedownId))
}

/// That a dataset is blocked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Block {
    /// The takedown that blocks it.
    pub by: TakedownId,
    /// Since when.
    pub since: OffsetDateTime,
}

/// Those of some datasets that are blocked. None of the others is blocked before the transaction ends. Ask before ledger accounts are locked.
pub async fn blocks(
    tx: &mut PgTransaction<'_>,
    datasets: &[DatasetId],
) -> sqlx::Result<HashMap<DatasetId, Block>> {
    let ids: Vec<Uuid> = datasets.iter().map(|it| it.0).collect();
    if ids.is_empty() {
        return Ok(HashMap::new());
    }
    let rows = sqlx::query!(
        r#"SELECT dataset_id AS "dataset!", blocked_by AS "by!", blocked_at AS "since!" FROM blocks($1)"#,
        &ids,
    )
    .fetch_all(&mut **tx)
    .await?;
    let blocks = rows.into_iter().map(|row| {
        let by = TakedownId(row.by);
        let block = Block {
            by,
            since: row.since,
        };
        (DatasetId(row.dataset), block)
    });
    Ok(blocks.collect())
}

/// What blocks one dataset, as [`blocks`] says.
pub async fn block(tx: &mut PgTransaction<'_>, dataset: DatasetId) -> sqlx::Result<Option<Block>> {
    Ok(blocks(tx, &[dataset]).await?.remove(&dataset))
}

/// Whose a dataset is that was listed at some time, or is the account's own. The connection must see everybody.
pub async fn seller_of_published(
    conn: &mut PgConnection,
    account: AccountId,
    id: DatasetId,
) -> sqlx::Result<Option<AccountId>> {
    let seller = sqlx::query_scalar!(
        "SELECT account_id FROM datasets WHERE dataset_id = $1 AND (state <> 'draft' OR account_id = $2)",
        id.0,
        account.0,
    )
    .fetch_optional(conn)
    .await?;
    Ok(seller.map(AccountId))
}
