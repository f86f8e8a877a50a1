//! Versions of models: what they consist of, by digests, and whether they are recommended still.

use comptoir_domain::{
    digest::Sha256,
    id::{AccountId, JobId, ModelId, ModelVersionId},
    model::Manifest,
};
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    PgTransaction,
    codec::{to_digest, to_document},
    violates,
};

/// A version as it is stored.
#[derive(Debug, Clone)]
pub struct Version {
    /// Which.
    pub id: ModelVersionId,
    /// Of which model.
    pub model: ModelId,
    /// Its number among the model's, from 1.
    pub number: i32,
    /// What it consists of.
    pub manifest: Manifest,
    /// What names all of that.
    pub digest: Sha256,
    /// The job that trained it; `None`: it was put together from blobs.
    pub job: Option<JobId>,
    /// The model's licence when it was published.
    pub licence: String,
    /// What its creator says of it.
    pub notes: String,
    /// When it was published.
    pub created_at: OffsetDateTime,
    /// Why it is not recommended any more.
    pub deprecation: Option<String>,
    /// When calls of it end.
    pub retires_at: Option<OffsetDateTime>,
}

/// A version that is to be published.
#[derive(Debug, Clone, Copy)]
pub struct NewVersion<'a> {
    /// The model, which is locked.
    pub model: ModelId,
    /// Whose.
    pub account: AccountId,
    /// What it consists of: read, and found to fit together.
    pub manifest: &'a Manifest,
    /// The job that trained it.
    pub job: Option<JobId>,
    /// The model's licence.
    pub licence: &'a str,
    /// What its creator says of it.
    pub notes: &'a str,
}

/// Why a version was not published.
#[derive(Debug, thiserror::Error)]
pub enum CreateVersionError {
    /// The model has one of the same parts.
    #[error("{0} has the same parts")]
    Known(ModelVersionId),
    /// Postgres failed.
    #[error("publish a version of a model")]
    Database(#[from] sqlx::Error),
}

/// Why a retirement is not announced.
#[derive(Debug, thiserror::Error)]
pub enum RetireError {
    /// It was announced for later.
    #[error("a retirement is not brought forward")]
    BroughtForward,
    /// Postgres failed.
    #[error("deprecate a version of a model")]
    Database(#[from] sqlx::Error),
}

struct Row {
    version_id: Uuid,
    model_id: Uuid,
    number: i32,
    manifest: serde_json::Value,
    manifest_sha256: Vec<u8>,
    job_id: Option<Uuid>,
    licence: String,
    notes: String,
    created_at: OffsetDateTime,
    deprecation: Option<String>,
    retires_at: Option<OffsetDateTime>,
}

impl TryFrom<Row> for Version {
    type Error = sqlx::Error;

    fn try_from(row: Row) -> sqlx::Result<Self> {
        Ok(Self {
            id: ModelVersionId(row.version_id),
            model: ModelId(row.model_id),
            number: row.number,
            manifest: to_document("manifest", row.manifest)?,
            digest: to_digest("manifest_sha256", &row.manifest_sha256)?,
            job: row.job_id.map(JobId),
            licence: row.licence,
            notes: row.notes,
            created_at: row.created_at,
            deprecation: row.deprecation,
            retires_at: row.retires_at,
        })
    }
}

/// Publishes a version under the model's next number.
///
/// # Errors
/// When the model has one of the same parts.
pub async fn create(
    tx: &mut PgTransaction<'_>,
    new: &NewVersion<'_>,
    now: OffsetDateTime,
) -> Result<ModelVersionId, CreateVersionError> {
    let (id, digest) = (ModelVersionId::generate(), new.manifest.digest());
    let known = sqlx::query_scalar!(
        "SELECT version_id FROM model_versions WHERE model_id = $1 AND manifest_sha256 = $2",
        new.model.0,
        &digest.0,
    )
    .fetch_optional(&mut **tx)
    .await?;
    if let Some(known) = known {
        return Err(CreateVersionError::Known(ModelVersionId(known)));
    }
    let manifest = serde_json::to_value(new.manifest);
    let manifest = manifest.map_err(|error| sqlx::Error::Encode(error.into()))?;
    sqlx::query!(
        "INSERT INTO model_versions (version_id, model_id, account_id, number, manifest, manifest_sha256, job_id, licence, notes, created_at)
         SELECT $1, $2, $3, coalesce(max(number), 0) + 1, $4, $5, $6, $7, $8, $9 FROM model_versions WHERE model_id = $2",
        id.0,
        new.model.0,
        new.account.0,
        manifest,
        &digest.0,
        new.job.map(|it| it.0),
        new.licence,
        new.notes,
        now,
    )
    .execute(&mut **tx)
    .await?;
    Ok(id)
}

/// A version of a model that the connection may see.
///
/// # Errors
/// When the statement fails, or what is stored is not a version.
pub async fn find(
    conn: &mut PgConnection,
    (model, id): (ModelId, ModelVersionId),
) -> sqlx::Result<Option<Version>> {
    let row = sqlx::query_as!(
        Row,
        "SELECT version_id, model_id, number, manifest, manifest_sha256, job_id, licence, notes, created_at, deprecation, retires_at
         FROM model_versions WHERE model_id = $1 AND version_id = $2",
        model.0,
        id.0,
    )
    .fetch_optional(conn)
    .await?;
    row.map(Version::try_from).transpose()
}

/// A version by its identifier alone, for whoever hosts it.
///
/// # Errors
/// When the statement fails, or what is stored is not a version.
pub async fn find_hosted(
    conn: &mut PgConnection,
    id: ModelVersionId,
) -> sqlx::Result<Option<Version>> {
    let row = sqlx::query_as!(
        Row,
        "SELECT version_id, model_id, number, manifest, manifest_sha256, job_id, licence, notes, created_at, deprecation, retires_at
         FROM model_versions WHERE version_id = $1",
        id.0,
    )
    .fetch_optional(conn)
    .await?;
    row.map(Version::try_from).transpose()
}

/// The versions of a model that the connection may see, newest first, before the number `before`.
///
/// # Errors
/// When the statement fails, or what is stored is not a version.
pub async fn list(
    conn: &mut PgConnection,
    model: ModelId,
    before: Option<i32>,
    limit: i64,
) -> sqlx::Result<Vec<Version>> {
    let rows = sqlx::query_as!(
        Row,
        "SELECT version_id, model_id, number, manifest, manifest_sha256, job_id, licence, notes, created_at, deprecation, retires_at
         FROM model_versions WHERE model_id = $1 AND ($2::integer IS NULL OR number < $2) ORDER BY number DESC LIMIT $3",
        model.0,
        before,
        limit,
    )
    .fetch_all(conn)
    .await?;
    rows.into_iter().map(Version::try_from).collect()
}

/// Says that a version is not recommended any more, why, and when calls of it end; or takes that back.
///
/// # Errors
/// When that was announced for later.
pub async fn deprecate(
    tx: &mut PgTransaction<'_>,
    id: ModelVersionId,
    deprecation: Option<&str>,
    retires_at: Option<OffsetDateTime>,
) -> Result<(), RetireError> {
    let done = sqlx::query!(
        "UPDATE model_versions SET deprecation = $2, retires_at = $3 WHERE version_id = $1",
        id.0,
        deprecation,
        retires_at,
    )
    .execute(&mut **tx)
    .await;
    done.map(drop).map_err(|error| {
        if violates(&error, "model_versions_retire_later") {
            RetireError::BroughtForward
        } else {
            error.into()
        }
    })
}
