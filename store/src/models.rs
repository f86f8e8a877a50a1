//! Models: their cards, and who may find them.

use comptoir_domain::{
    card::Card,
    id::{AccountId, ModelId},
    model::Visibility,
};
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{PgTransaction, codec::to_enum, violates};

/// A model as it is stored.
#[derive(Debug, Clone)]
pub struct Model {
    /// Which.
    pub id: ModelId,
    /// Whose.
    pub account: AccountId,
    /// What its creator says of it.
    pub card: Card,
    /// Who may find it and call it.
    pub visibility: Visibility,
    /// Does its creator decide who calls it, of those who find it?
    pub is_gated: bool,
    /// When others could call it first: from then on they are told of what gets worse.
    pub shown_at: Option<OffsetDateTime>,
    /// When it was made.
    pub created_at: OffsetDateTime,
    /// When its card or visibility last changed.
    pub updated_at: OffsetDateTime,
}

/// Why a model was not made.
#[derive(Debug, thiserror::Error)]
pub enum CreateModelError {
    /// The account has one of that name.
    #[error("the account has a model of that name")]
    NameTaken,
    /// Postgres failed.
    #[error("create a model")]
    Database(#[from] sqlx::Error),
}

/// Why a model is not shown to others.
#[derive(Debug, thiserror::Error)]
pub enum ShowModelError {
    /// It has no version.
    #[error("the model has no version")]
    NoVersion,
    /// It has no price.
    #[error("the model has no price")]
    NoPrice,
    /// Postgres failed.
    #[error("show a model")]
    Database(#[from] sqlx::Error),
}

/// Which models are listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shelf {
    /// Those of the account.
    Own(AccountId),
    /// Those of the account, and the public ones.
    All(AccountId),
}

struct Row {
    model_id: Uuid,
    account_id: Uuid,
    name: String,
    title: String,
    description: String,
    licence: String,
    provenance: String,
    tags: Vec<String>,
    visibility: String,
    is_gated: bool,
    shown_at: Option<OffsetDateTime>,
    created_at: OffsetDateTime,
    updated_at: OffsetDateTime,
}

impl TryFrom<Row> for Model {
    type Error = sqlx::Error;

    fn try_from(row: Row) -> sqlx::Result<Self> {
        Ok(Self {
            id: ModelId(row.model_id),
            account: AccountId(row.account_id),
            card: Card {
                name: row.name,
                title: row.title,
                description: row.description,
                licence: row.licence,
                provenance: row.provenance,
                tags: row.tags,
            },
            visibility: to_enum("visibility", &row.visibility, Visibility::parse)?,
            is_gated: row.is_gated,
            shown_at: row.shown_at,
            created_at: row.created_at,
            updated_at: row.updated_at,
        })
    }
}

/// Makes a model, which nobody finds yet but its creator.
///
/// # Errors
/// When the account has one of that name.
pub async fn create(
    conn: &mut PgConnection,
    account: AccountId,
    card: &Card,
    now: OffsetDateTime,
) -> Result<Model, CreateModelError> {
    let (id, visibility) = (ModelId::generate(), Visibility::Private);
    sqlx::query!(
        "INSERT INTO models (model_id, account_id, name, title, description, licence, provenance, tags, visibility, created_at, updated_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $10)",
        id.0,
        account.0,
        card.name,
        card.title,
        card.description,
        card.licence,
        card.provenance,
        &card.tags,
        visibility.as_str(),
        now,
    )
    .execute(conn)
    .await
    .map_err(|error| {
        if violates(&error, "models_name_once") {
            CreateModelError::NameTaken
        } else {
            error.into()
        }
    })?;
    Ok(Model {
        id,
        account,
        card: card.clone(),
        visibility,
        is_gated: false,
        shown_at: None,
        created_at: now,
        updated_at: now,
    })
}

/// The model, if the account may look at it: its own, or one that is not private.
///
/// # Errors
/// When the statement fails, or what is stored is not a model.
pub async fn find(
    conn: &mut PgConnection,
    account: AccountId,
    id: ModelId,
) -> sqlx::Result<Option<Model>> {
    let row = sqlx::query_as!(
        Row,
        "SELECT model_id, account_id, name, title, description, licence, provenance, tags, visibility, is_gated, shown_at, created_at, updated_at
         FROM models WHERE model_id = $1 AND (account_id = $2 OR visibility <> 'private')",
        id.0,
        account.0,
    )
    .fetch_optional(conn)
    .await?;
    row.map(Model::try_from).transpose()
}

/// The model, whoever asks: the caller judges who may call it.
///
/// # Errors
/// When the statement fails, or what is stored is not a model.
pub async fn find_called(conn: &mut PgConnection, id: ModelId) -> sqlx::Result<Option<Model>> {
    let row = sqlx::query_as!(
        Row,
        "SELECT model_id, account_id, name, title, description, licence, provenance, tags, visibility, is_gated, shown_at, created_at, updated_at
         FROM models WHERE model_id = $1",
        id.0,
    )
    .fetch_optional(conn)
    .await?;
    row.map(Model::try_from).transpose()
}

/// The account's model, which nobody else changes until the transaction ends.
///
/// # Errors
/// When the statement fails, or what is stored is not a model.
pub async fn lock(
    tx: &mut PgTransaction<'_>,
    account: AccountId,
    id: ModelId,
) -> sqlx::Result<Option<Model>> {
    let row = sqlx::query_as!(
        Row,
        "SELECT model_id, account_id, name, title, description, licence, provenance, tags, visibility, is_gated, shown_at, created_at, updated_at
         FROM models WHERE model_id = $1 AND account_id = $2 FOR NO KEY UPDATE",
        id.0,
        account.0,
    )
    .fetch_optional(&mut **tx)
    .await?;
    row.map(Model::try_from).transpose()
}

/// The models of a shelf, newest first, older than `before`.
///
/// # Errors
/// When the statement fails, or what is stored is not a model.
pub async fn list(
    conn: &mut PgConnection,
    shelf: Shelf,
    before: Option<ModelId>,
    limit: i64,
) -> sqlx::Result<Vec<Model>> {
    let (Shelf::Own(account) | Shelf::All(account)) = shelf;
    // Each by its own index; a model that is both comes once.
    let rows = sqlx::query_as!(
        Row,
        r#"SELECT model_id AS "model_id!", account_id AS "account_id!", name AS "name!", title AS "title!", description AS "description!",
               licence AS "licence!", provenance AS "provenance!", tags AS "tags!", visibility AS "visibility!", is_gated AS "is_gated!", shown_at, created_at AS "created_at!",
               updated_at AS "updated_at!"
           FROM (
               (SELECT * FROM models WHERE account_id = $1 AND ($2::uuid IS NULL OR model_id < $2) ORDER BY model_id DESC LIMIT $3)
               UNION
               (SELECT * FROM models WHERE $4 AND visibility = 'public' AND ($2::uuid IS NULL OR model_id < $2) ORDER BY model_id DESC LIMIT $3)
           ) AS it ORDER BY model_id DESC LIMIT $3"#,
        account.0,
        before.map(|id| id.0),
        limit,
        matches!(shelf, Shelf::All(_)),
    )
    .fetch_all(conn)
    .await?;
    rows.into_iter().map(Model::try_from).collect()
}

/// Writes what the creator says of a model that is locked: all but its name, which stays.
///
/// # Errors
/// When the statement fails.
pub async fn update(tx: &mut PgTransaction<'_>, model: &Model) -> sqlx::Result<()> {
    sqlx::query!(
        "UPDATE models SET title = $2, description = $3, licence = $4, provenance = $5, tags = $6, updated_at = $7 WHERE model_id = $1",
        model.id.0,
        model.card.title,
        model.card.description,
        model.card.licence,
        model.card.provenance,
        &model.card.tags,
        model.updated_at,
    )
    .execute(&mut **tx)
    .await
    .map(drop)
}

/// Lets others find a model that is locked, or nobody, and says whether its creator decides who calls it. Again changes nothing.
///
/// # Errors
/// When others are to find it, and it has nothing to call or no price.
pub async fn show(
    tx: &mut PgTransaction<'_>,
    model: &Model,
    (visibility, is_gated): (Visibility, bool),
    now: OffsetDateTime,
) -> Result<(), ShowModelError> {
    if (model.visibility, model.is_gated) == (visibility, is_gated) {
        return Ok(());
    }
    let has = sqlx::query!(
        r#"SELECT EXISTS (SELECT FROM model_versions WHERE model_id = $1) AS "version!",
             EXISTS (SELECT FROM model_prices WHERE model_id = $1) AS "price!""#,
        model.id.0,
    )
    .fetch_one(&mut **tx)
    .await?;
    match (visibility, has.version, has.price) {
        (Visibility::Private, _, _) | (_, true, true) => {}
        (_, false, _) => return Err(ShowModelError::NoVersion),
        (_, _, false) => return Err(ShowModelError::NoPrice),
    }
    sqlx::query!(
        "UPDATE models SET visibility = $2, is_gated = $4, updated_at = $3, shown_at = CASE WHEN $2 = 'private' THEN shown_at ELSE coalesce(shown_at, $3) END
         WHERE model_id = $1",
        model.id.0,
        visibility.as_str(),
        now,
        is_gated,
    )
    .execute(&mut **tx)
    .await?;
    Ok(())
}
