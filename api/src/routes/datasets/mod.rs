//! `/v1/datasets`: what sellers say of their data, and whether it is listed. Descriptions are kept and handed on as text: nothing of them
//! is rendered here.

mod content;
mod files;
mod links;
mod parts;
mod releases;
mod rereads;
mod servings;
mod versions;

use axum::{
    extract::State,
    http::StatusCode,
    response::{IntoResponse as _, Response},
};
use comptoir_domain::{
    card::check_deprecation,
    dataset::DatasetState,
    id::{AccountId, DatasetId, TakedownId},
};
use comptoir_store::{
    PgTransaction,
    datasets::{self, CreateDatasetError, Dataset, ListDatasetError},
    limits,
};
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

pub use rereads::Rereads;
pub(crate) use versions::require_ready;

use super::accounts::in_task;
use crate::{
    AppState, Problem,
    auth::{Caller, Identity, needs},
    card::{CardPatch, NewCard},
    etag::Conditions,
    extract::{Json, Path},
    idempotency::{self, IdempotentJson, Reply},
    limiting::limited,
    page::{List, Page, PageQuery},
};

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(list_datasets, create_dataset))
        .routes(routes!(find_dataset, update_dataset))
        .routes(routes!(list_dataset))
        .routes(routes!(withdraw_dataset))
        .routes(routes!(deprecate_dataset))
        .routes(routes!(undeprecate_dataset))
        .merge(versions::router())
        .merge(files::router())
        .merge(parts::router())
        .merge(content::router())
        .merge(links::router())
        .merge(releases::router())
        .merge(servings::router())
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Deprecation {
    /// Why it is not recommended any more, and what is instead.
    #[schema(min_length = 1, max_length = 1000)]
    message: String,
}

#[derive(Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum DatasetObject {
    Dataset,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Dataset)]
struct DatasetBody {
    #[schema(value_type = String, example = "ds_01h455vb4pex5vsknk084sn02q")]
    id: DatasetId,
    object: DatasetObject,
    /// Whose it is.
    #[schema(value_type = String)]
    seller: AccountId,
    name: String,
    title: String,
    /// Markdown that a stranger wrote: treat it so.
    description: String,
    /// An SPDX licence expression.
    licence: String,
    provenance: String,
    tags: Vec<String>,
    state: DatasetState,
    /// Why it is not recommended any more; `null` while it is.
    #[schema(required = true)]
    deprecation: Option<String>,
    /// The takedown that blocks it: nothing of it is sold, handed out or computed on. `null`: none does.
    #[schema(required = true, value_type = Option<String>)]
    blocked_by: Option<TakedownId>,
    /// Since when it is blocked.
    #[serde(with = "time::serde::rfc3339::option")]
    #[schema(required = true)]
    blocked_at: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    updated_at: OffsetDateTime,
}

impl From<Dataset> for DatasetBody {
    fn from(dataset: Dataset) -> Self {
        let (blocked_by, blocked_at) = dataset.blocked.unzip();
        Self {
            id: dataset.id,
            object: DatasetObject::Dataset,
            seller: dataset.account,
            name: dataset.card.name,
            title: dataset.card.title,
            description: dataset.card.description,
            licence: dataset.card.licence,
            provenance: dataset.card.provenance,
            tags: dataset.card.tags,
            state: dataset.state,
            deprecation: dataset.deprecation,
            blocked_by,
            blocked_at,
            created_at: dataset.created_at,
            updated_at: dataset.updated_at,
        }
    }
}

/// Makes a dataset, which nobody sees yet but you.
#[utoipa::path(
    post, path = "/v1/datasets", tag = "datasets", security(("session" = []), ("api_key" = ["datasets:write"])),
    params(("Idempotency-Key" = String, Header)),
    request_body = NewCard,
    responses(
        (status = 201, body = DatasetBody, headers(("Location" = String))),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn create_dataset(
    State(state): State<AppState>,
    caller: Caller<needs::DatasetsWrite>,
    request: IdempotentJson<NewCard>,
) -> Result<Response, Problem> {
    let (now, account) = (state.now(), caller.account);
    let card = request.body.accept()?;
    idempotency::run(&state, &caller, request.key, move |tx| {
        Box::pin(async move {
            limits::refuse_frozen(tx, account).await.map_err(limited)?;
            let made = datasets::create(tx, account, &card, now).await;
            let body = DatasetBody::from(made.map_err(|error| not_created(&error))?);
            Ok(Reply::created(format!("/v1/datasets/{}", body.id), &body))
        })
    })
    .await
}

fn not_created(error: &CreateDatasetError) -> Problem {
    match error {
        CreateDatasetError::NameTaken => Problem::new(
            StatusCode::CONFLICT,
            "dataset_name_taken",
            "The account has a dataset of that name",
        ),
        CreateDatasetError::Database(_) => Problem::internal(error),
    }
}

/// Your datasets, newest first.
#[utoipa::path(
    get, path = "/v1/datasets", tag = "datasets", security(("session" = []), ("api_key" = ["datasets:read"])),
    params(PageQuery),
    responses(
        (status = 200, body = Page<DatasetBody>),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn list_datasets(
    State(state): State<AppState>,
    caller: Caller<needs::DatasetsRead>,
    list: List,
) -> Result<Page<DatasetBody>, Problem> {
    let before: Option<DatasetId> = list.position(&state, &caller)?;
    let mut connection = caller.read(&state).await?;
    let rows = datasets::list(&mut connection, caller.account, before, list.fetch()).await?;
    Ok(list.page(&state, &caller, rows, |row| row.id, DatasetBody::from))
}

/// A dataset of yours, or one that is listed.
#[utoipa::path(
    get, path = "/v1/datasets/{dataset}", tag = "datasets", security(("session" = []), ("api_key" = ["datasets:read"])),
    params(("dataset" = String, Path)),
    responses(
        (status = 200, body = DatasetBody, headers(("ETag" = String))),
        (status = 304),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn find_dataset(
    State(state): State<AppState>,
    caller: Caller<needs::DatasetsRead>,
    Path(id): Path<DatasetId>,
    conditions: Conditions,
) -> Result<Response, Problem> {
    let mut connection = caller.read(&state).await?;
    let found = datasets::find(&mut connection, caller.account, id).await?;
    let dataset = found.ok_or_else(Problem::not_found)?;
    Ok(conditions.answer(DatasetBody::from(dataset)))
}

/// Changes what a dataset says of itself. Its name stays, and so does every version.
#[utoipa::path(
    patch, path = "/v1/datasets/{dataset}", tag = "datasets", security(("session" = []), ("api_key" = ["datasets:write"])),
    params(("dataset" = String, Path), ("If-Match" = String, Header, description = "The `ETag` that the dataset was read with")),
    request_body(content = CardPatch, content_type = "application/merge-patch+json"),
    responses(
        (status = 200, body = DatasetBody, headers(("ETag" = String))),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn update_dataset(
    State(state): State<AppState>,
    caller: Caller<needs::DatasetsWrite>,
    Path(id): Path<DatasetId>,
    conditions: Conditions,
    Json(patch): Json<CardPatch>,
) -> Result<Response, Problem> {
    let identity = Identity::clone(&caller);
    in_task(async move {
        let mut tx = identity.begin(&state).await?;
        let found = datasets::lock(&mut tx, identity.account, id).await?;
        let mut dataset = found.ok_or_else(Problem::not_found)?;
        conditions.require_match(&DatasetBody::from(dataset.clone()))?;
        patch.apply(&mut dataset.card)?;
        dataset.updated_at = state.now();
        datasets::update(&mut tx, &dataset).await?;
        tx.commit().await?;
        Ok(conditions.answer(DatasetBody::from(dataset)))
    })
    .await
}

/// Changes a dataset of the caller, which is locked, and answers with what it is then.
async fn change(
    state: AppState,
    identity: Identity,
    id: DatasetId,
    effect: impl for<'t> FnOnce(
        &'t mut PgTransaction<'static>,
        Dataset,
    ) -> BoxFuture<'t, Result<(), Problem>>
    + Send
    + 'static,
) -> Result<Response, Problem> {
    in_task(async move {
        let mut tx = identity.begin(&state).await?;
        let found = datasets::lock(&mut tx, identity.account, id).await?;
        effect(&mut tx, found.ok_or_else(Problem::not_found)?).await?;
        let changed = datasets::find(&mut tx, identity.account, id).await?;
        let changed = changed.ok_or_else(Problem::not_found)?;
        tx.commit().await?;
        Ok(Json(DatasetBody::from(changed)).into_response())
    })
    .await
}

/// Lists a dataset: everybody who signed in sees its card, what its ready versions have in them, and their samples. Again changes nothing.
#[utoipa::path(
    post, path = "/v1/datasets/{dataset}/list", tag = "datasets", security(("session" = []), ("api_key" = ["datasets:write"])),
    params(("dataset" = String, Path)),
    responses(
        (status = 200, body = DatasetBody),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn list_dataset(
    State(state): State<AppState>,
    caller: Caller<needs::DatasetsWrite>,
    Path(id): Path<DatasetId>,
) -> Result<Response, Problem> {
    let now = state.now();
    change(state, Identity::clone(&caller), id, move |tx, dataset| {
        Box::pin(async move {
            limits::refuse_frozen(tx, dataset.account)
                .await
                .map_err(limited)?;
            if dataset.state == DatasetState::Listed {
                return Ok(());
            }
            datasets::show(tx, id, now)
                .await
                .map_err(|error| match error {
                    ListDatasetError::NothingReady => Problem::new(
                        StatusCode::CONFLICT,
                        "nothing_ready",
                        "No version of the dataset is ready",
                    ),
                    ListDatasetError::Database(error) => error.into(),
                })
        })
    })
    .await
}

/// Takes a dataset off the list: nobody sees it any more but you. Again changes nothing.
#[utoipa::path(
    post, path = "/v1/datasets/{dataset}/withdraw", tag = "datasets", security(("session" = []), ("api_key" = ["datasets:write"])),
    params(("dataset" = String, Path)),
    responses(
        (status = 200, body = DatasetBody),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn withdraw_dataset(
    State(state): State<AppState>,
    caller: Caller<needs::DatasetsWrite>,
    Path(id): Path<DatasetId>,
) -> Result<Response, Problem> {
    let now = state.now();
    change(state, Identity::clone(&caller), id, move |tx, _| {
        Box::pin(async move { Ok(datasets::withdraw(tx, id, now).await?) })
    })
    .await
}

/// Says that a dataset is not recommended any more, and why. It stays where it is.
#[utoipa::path(
    post, path = "/v1/datasets/{dataset}/deprecate", tag = "datasets", security(("session" = []), ("api_key" = ["datasets:write"])),
    params(("dataset" = String, Path)),
    request_body = Deprecation,
    responses(
        (status = 200, body = DatasetBody),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn deprecate_dataset(
    State(state): State<AppState>,
    caller: Caller<needs::DatasetsWrite>,
    Path(id): Path<DatasetId>,
    Json(body): Json<Deprecation>,
) -> Result<Response, Problem> {
    if let Some(reason) = check_deprecation(&body.message) {
        return Err(Problem::invalid("/message", reason));
    }
    set_deprecation(state, &caller, id, Some(body.message)).await
}

/// Takes back that a dataset is not recommended any more. Again changes nothing.
#[utoipa::path(
    post, path = "/v1/datasets/{dataset}/undeprecate", tag = "datasets", security(("session" = []), ("api_key" = ["datasets:write"])),
    params(("dataset" = String, Path)),
    responses(
        (status = 200, body = DatasetBody),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn undeprecate_dataset(
    State(state): State<AppState>,
    caller: Caller<needs::DatasetsWrite>,
    Path(id): Path<DatasetId>,
) -> Result<Response, Problem> {
    set_deprecation(state, &caller, id, None).await
}

async fn set_deprecation(
    state: AppState,
    caller: &Identity,
    id: DatasetId,
    deprecation: Option<String>,
) -> Result<Response, Problem> {
    let now = state.now();
    change(state, caller.clone(), id, move |tx, dataset| {
        Box::pin(async move {
            if dataset.deprecation == deprecation {
                return Ok(());
            }
            let changed = Dataset {
                deprecation,
                updated_at: now,
                ..dataset
            };
            Ok(datasets::update(tx, &changed).await?)
        })
    })
    .await
}
