//! `/v1/models/{model}/versions`: what a model consists of, pinned by a digest.

use axum::{
    extract::State,
    http::StatusCode,
    response::{IntoResponse as _, Response},
};
use comptoir_domain::{
    card::{check_deprecation, check_notes},
    digest::Sha256,
    fit::ProgramFacts,
    id::{JobId, ModelId, ModelVersionId},
    model::{Manifest, retires_at_earliest},
};
use comptoir_store::{
    limits,
    model_versions::{self, CreateVersionError, NewVersion, RetireError, Version},
    models,
};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{super::accounts::in_task, manifest, schema::CallSchema};
use crate::{
    AppState, Problem,
    auth::{Caller, Identity, needs},
    etag::Conditions,
    extract::{Json, Path},
    idempotency::{self, IdempotentJson, Reply},
    limiting::limited,
    page::{List, Page, PageQuery},
    reading,
};

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(list_model_versions, create_model_version))
        .routes(routes!(find_model_version))
        .routes(routes!(deprecate_model_version))
        .routes(routes!(undeprecate_model_version))
}

/// Put together from blobs of yours (`manifest`), or from the result of a training job of yours (`job`).
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewModelVersion {
    #[schema(nullable = false)]
    manifest: Option<Manifest>,
    /// A training job that is completed: its program, with the weights that it learned.
    #[schema(value_type = Option<String>, nullable = false)]
    job: Option<JobId>,
    /// What is new.
    #[serde(default)]
    #[schema(max_length = 16384)]
    notes: String,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct VersionDeprecation {
    /// Why it is not recommended any more, and what is instead.
    #[schema(min_length = 1, max_length = 1000)]
    message: String,
    /// When calls of it end: thirty days from now at the earliest, unless nobody else ever could call it. Left out: they do not.
    #[serde(default, with = "time::serde::rfc3339::option")]
    retires_at: Option<OffsetDateTime>,
}

#[derive(Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum ModelVersionObject {
    ModelVersion,
}

#[derive(Serialize, ToSchema)]
#[schema(as = ModelVersion)]
struct VersionBody {
    #[schema(value_type = String, example = "mdv_01h455vb4pex5vsknk084sn02q")]
    id: ModelVersionId,
    object: ModelVersionObject,
    #[schema(value_type = String)]
    model: ModelId,
    /// Its number among the model's, from 1.
    number: i32,
    /// What names everything in it: the SHA-256 of the canonical form (RFC 8785) of `manifest`.
    #[schema(value_type = String)]
    digest: Sha256,
    manifest: Manifest,
    schema: CallSchema,
    /// The job that trained it; `null`: it was put together from blobs.
    #[schema(required = true, value_type = Option<String>)]
    job: Option<JobId>,
    /// The model's when it was published.
    licence: String,
    notes: String,
    /// Why it is not recommended any more; `null` while it is.
    #[schema(required = true)]
    deprecation: Option<String>,
    /// When calls of it end.
    #[serde(with = "time::serde::rfc3339::option")]
    #[schema(required = true)]
    retires_at: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
}

impl VersionBody {
    fn new(version: Version, infer: &ProgramFacts) -> Self {
        let schema = CallSchema::new(&version.manifest, infer);
        Self {
            id: version.id,
            object: ModelVersionObject::ModelVersion,
            model: version.model,
            number: version.number,
            digest: version.digest,
            manifest: version.manifest,
            schema,
            job: version.job,
            licence: version.licence,
            notes: version.notes,
            deprecation: version.deprecation,
            retires_at: version.retires_at,
            created_at: version.created_at,
        }
    }

    /// With the schema of its program, which was read when it was published.
    async fn read(state: &AppState, version: Version) -> Result<Self, Problem> {
        let infer = version.manifest.programs.infer;
        let facts = reading::known_program(state, infer).await;
        let facts = facts.map_err(|error| Problem::internal(&error))?;
        let facts = facts.ok_or_else(|| Problem::internal(&sqlx::Error::RowNotFound))?;
        Ok(Self::new(version, &facts))
    }
}

/// Publishes a version of a model of yours. It never changes; receipts of its calls name its digest.
#[utoipa::path(
    post, path = "/v1/models/{model}/versions", tag = "models", security(("session" = []), ("api_key" = ["models:write"])),
    params(("model" = String, Path), ("Idempotency-Key" = String, Header)),
    request_body = NewModelVersion,
    responses(
        (status = 201, body = VersionBody, headers(("Location" = String))),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn create_model_version(
    State(state): State<AppState>,
    caller: Caller<needs::ModelsWrite>,
    Path(model): Path<ModelId>,
    request: IdempotentJson<NewModelVersion>,
) -> Result<Response, Problem> {
    let (now, account, body) = (state.now(), caller.account, request.body);
    let known = models::find(&mut *caller.read(&state).await?, account, model).await?;
    if known.is_none_or(|it| it.account != account) {
        return Err(Problem::not_found());
    }
    if let Some(reason) = check_notes(&body.notes) {
        return Err(Problem::invalid("/notes", reason));
    }
    let (manifest, job) =
        manifest::wanted(&state, &caller, (body.manifest.as_ref(), body.job)).await?;
    let infer = manifest::check(&state, account, &manifest).await?;
    idempotency::run(&state, &caller, request.key, move |tx| {
        Box::pin(async move {
            limits::refuse_frozen(tx, account).await.map_err(limited)?;
            let locked = models::lock(tx, account, model).await?;
            let locked = locked.ok_or_else(Problem::not_found)?;
            let new = NewVersion {
                model,
                account,
                manifest: &manifest,
                job,
                licence: &locked.card.licence,
                notes: &body.notes,
            };
            let made = model_versions::create(tx, &new, now).await;
            let id = made.map_err(not_created)?;
            let version = model_versions::find(tx, (model, id)).await?;
            let version = version.ok_or_else(Problem::not_found)?;
            let body = VersionBody::new(version, &infer);
            let location = format!("/v1/models/{model}/versions/{id}");
            Ok(Reply::created(location, &body))
        })
    })
    .await
}

fn not_created(error: CreateVersionError) -> Problem {
    match error {
        CreateVersionError::Known(id) => Problem::new(
            StatusCode::CONFLICT,
            "model_version_exists",
            "The model has a version of the same parts",
        )
        .detail(id.to_string()),
        CreateVersionError::Database(error) => error.into(),
    }
}

/// The versions of a model of yours, or of one that is not private; newest first.
#[utoipa::path(
    get, path = "/v1/models/{model}/versions", tag = "models", security(("session" = []), ("api_key" = ["models:read"])),
    params(("model" = String, Path), PageQuery),
    responses(
        (status = 200, body = Page<VersionBody>),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn list_model_versions(
    State(state): State<AppState>,
    caller: Caller<needs::ModelsRead>,
    Path(model): Path<ModelId>,
    list: List,
) -> Result<Page<VersionBody>, Problem> {
    let before: Option<i32> = list.position(&state, &caller)?;
    let mut connection = caller.read(&state).await?;
    let known = models::find(&mut connection, caller.account, model).await?;
    known.ok_or_else(Problem::not_found)?;
    let rows = model_versions::list(&mut connection, model, before, list.fetch()).await?;
    drop(connection);
    let mut bodies = Vec::with_capacity(rows.len());
    for row in rows {
        bodies.push(VersionBody::read(&state, row).await?);
    }
    Ok(list.page(&state, &caller, bodies, |it| it.number, |it| it))
}

/// A version of a model of yours, or of one that is not private.
#[utoipa::path(
    get, path = "/v1/models/{model}/versions/{version}", tag = "models", security(("session" = []), ("api_key" = ["models:read"])),
    params(("model" = String, Path), ("version" = String, Path)),
    responses(
        (status = 200, body = VersionBody, headers(("ETag" = String))),
        (status = 304),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn find_model_version(
    State(state): State<AppState>,
    caller: Caller<needs::ModelsRead>,
    Path(place): Path<(ModelId, ModelVersionId)>,
    conditions: Conditions,
) -> Result<Response, Problem> {
    let found = model_versions::find(&mut *caller.read(&state).await?, place).await?;
    let version = found.ok_or_else(Problem::not_found)?;
    Ok(conditions.answer(VersionBody::read(&state, version).await?))
}

/// Says that a version is not recommended any more, why, and when calls of it end. That may be put off later, and not brought forward.
#[utoipa::path(
    post, path = "/v1/models/{model}/versions/{version}/deprecate", tag = "models", security(("session" = []), ("api_key" = ["models:write"])),
    params(("model" = String, Path), ("version" = String, Path)),
    request_body = VersionDeprecation,
    responses(
        (status = 200, body = VersionBody),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn deprecate_model_version(
    State(state): State<AppState>,
    caller: Caller<needs::ModelsWrite>,
    Path(place): Path<(ModelId, ModelVersionId)>,
    Json(body): Json<VersionDeprecation>,
) -> Result<Response, Problem> {
    if let Some(reason) = check_deprecation(&body.message) {
        return Err(Problem::invalid("/message", reason));
    }
    set_deprecation(state, &caller, place, Some(body)).await
}

/// Takes back that a version is not recommended any more, and its retirement. Again changes nothing.
#[utoipa::path(
    post, path = "/v1/models/{model}/versions/{version}/undeprecate", tag = "models", security(("session" = []), ("api_key" = ["models:write"])),
    params(("model" = String, Path), ("version" = String, Path)),
    responses(
        (status = 200, body = VersionBody),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn undeprecate_model_version(
    State(state): State<AppState>,
    caller: Caller<needs::ModelsWrite>,
    Path(place): Path<(ModelId, ModelVersionId)>,
) -> Result<Response, Problem> {
    set_deprecation(state, &caller, place, None).await
}

async fn set_deprecation(
    state: AppState,
    caller: &Identity,
    place: (ModelId, ModelVersionId),
    deprecation: Option<VersionDeprecation>,
) -> Result<Response, Problem> {
    let identity = caller.clone();
    in_task(async move {
        let mut tx = identity.begin(&state).await?;
        let model = models::lock(&mut tx, identity.account, place.0).await?;
        let model = model.ok_or_else(Problem::not_found)?;
        let version = model_versions::find(&mut tx, place).await?;
        let version = version.ok_or_else(Problem::not_found)?;
        let (message, retires_at) = match deprecation {
            Some(it) => (Some(it.message), it.retires_at),
            None => (None, None),
        };
        let earliest = retires_at_earliest(model.shown_at.is_some(), state.now());
        // What was announced is repeated freely.
        if retires_at.is_some_and(|at| at < earliest && Some(at) != version.retires_at) {
            let detail = "its callers hear of it thirty days before";
            return Err(Problem::invalid("/retires_at", detail));
        }
        let done = model_versions::deprecate(&mut tx, version.id, message.as_deref(), retires_at);
        done.await.map_err(|error| match error {
            RetireError::BroughtForward => {
                Problem::invalid("/retires_at", "what was announced is not brought forward")
            }
            RetireError::Database(error) => error.into(),
        })?;
        let version = model_versions::find(&mut tx, place).await?;
        tx.commit().await?;
        let body = VersionBody::read(&state, version.ok_or_else(Problem::not_found)?).await?;
        Ok(Json(body).into_response())
    })
    .await
}
