//! `/v1/models`: what creators say of their models, and who may find them. Descriptions are kept and handed on as text: nothing of them is
//! rendered here.

mod generate;
mod infer;
mod manifest;
mod prices;
mod schema;
mod versions;

pub(super) use prices::ModelPriceBody;

use axum::{
    extract::State,
    http::StatusCode,
    response::{IntoResponse as _, Response},
};
use comptoir_domain::{
    id::{AccountId, ModelId},
    model::Visibility,
};
use comptoir_store::{
    limits,
    models::{self, CreateModelError, Model, Shelf, ShowModelError},
};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::accounts::in_task;
use crate::{
    AppState, Problem,
    auth::{Caller, Identity, needs},
    card::{CardPatch, NewCard},
    etag::Conditions,
    extract::{Json, Path},
    idempotency::{self, IdempotentJson, Reply},
    limiting::limited,
    page::{List, Page},
};

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(list_models, create_model))
        .routes(routes!(find_model, update_model))
        .routes(routes!(show_model))
        .merge(versions::router())
        .merge(prices::router())
        .merge(infer::router())
        .merge(generate::router())
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Showing {
    visibility: Visibility,
    /// Do you decide who of those who find it calls it? Left out: as it is.
    gated: Option<bool>,
}

#[derive(Deserialize, ToSchema, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ModelFilter {
    /// Yours alone.
    #[serde(default)]
    own: bool,
}

#[derive(Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum ModelObject {
    Model,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Model)]
struct ModelBody {
    #[schema(value_type = String, example = "mdl_01h455vb4pex5vsknk084sn02q")]
    id: ModelId,
    object: ModelObject,
    /// Seconds since 1970, as clients of `OpenAI` expect it.
    created: i64,
    /// Whose it is, under the name that clients of `OpenAI` expect.
    #[schema(value_type = String)]
    owned_by: AccountId,
    name: String,
    title: String,
    /// Markdown that a stranger wrote: treat it so.
    description: String,
    /// An SPDX licence expression.
    licence: String,
    provenance: String,
    tags: Vec<String>,
    visibility: Visibility,
    /// Its creator decides who calls it: ask with `POST /v1/models/{model}/admissions`.
    gated: bool,
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    updated_at: OffsetDateTime,
}

impl From<Model> for ModelBody {
    fn from(model: Model) -> Self {
        Self {
            id: model.id,
            object: ModelObject::Model,
            created: model.created_at.unix_timestamp(),
            owned_by: model.account,
            name: model.card.name,
            title: model.card.title,
            description: model.card.description,
            licence: model.card.licence,
            provenance: model.card.provenance,
            tags: model.card.tags,
            visibility: model.visibility,
            gated: model.is_gated,
            created_at: model.created_at,
            updated_at: model.updated_at,
        }
    }
}

/// Makes a model, which nobody finds yet but you.
#[utoipa::path(
    post, path = "/v1/models", tag = "models", security(("session" = []), ("api_key" = ["models:write"])),
    params(("Idempotency-Key" = String, Header)),
    request_body = NewCard,
    responses(
        (status = 201, body = ModelBody, headers(("Location" = String))),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn create_model(
    State(state): State<AppState>,
    caller: Caller<needs::ModelsWrite>,
    request: IdempotentJson<NewCard>,
) -> Result<Response, Problem> {
    let (now, account) = (state.now(), caller.account);
    let card = request.body.accept()?;
    idempotency::run(&state, &caller, request.key, move |tx| {
        Box::pin(async move {
            limits::refuse_frozen(tx, account).await.map_err(limited)?;
            let made = models::create(tx, account, &card, now).await;
            let made = made.map_err(|error| match error {
                CreateModelError::NameTaken => Problem::new(
                    StatusCode::CONFLICT,
                    "model_name_taken",
                    "The account has a model of that name",
                ),
                CreateModelError::Database(error) => error.into(),
            })?;
            let body = ModelBody::from(made);
            Ok(Reply::created(format!("/v1/models/{}", body.id), &body))
        })
    })
    .await
}

/// Yours and the public ones, newest first.
#[utoipa::path(
    get, path = "/v1/models", tag = "models", security(("session" = []), ("api_key" = ["models:read"])),
    params(ModelFilter, crate::page::PageQuery),
    responses(
        (status = 200, body = Page<ModelBody>),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn list_models(
    State(state): State<AppState>,
    caller: Caller<needs::ModelsRead>,
    list: List<ModelFilter>,
) -> Result<Page<ModelBody>, Problem> {
    let before: Option<ModelId> = list.position(&state, &caller)?;
    let mut connection = caller.read(&state).await?;
    let shelf = if list.filter.own {
        Shelf::Own(caller.account)
    } else {
        Shelf::All(caller.account)
    };
    let rows = models::list(&mut connection, shelf, before, list.fetch()).await?;
    Ok(list.page(&state, &caller, rows, |row| row.id, ModelBody::from))
}

/// A model of yours, or one that is not private.
#[utoipa::path(
    get, path = "/v1/models/{model}", tag = "models", security(("session" = []), ("api_key" = ["models:read"])),
    params(("model" = String, Path)),
    responses(
        (status = 200, body = ModelBody, headers(("ETag" = String))),
        (status = 304),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn find_model(
    State(state): State<AppState>,
    caller: Caller<needs::ModelsRead>,
    Path(id): Path<ModelId>,
    conditions: Conditions,
) -> Result<Response, Problem> {
    let found = models::find(&mut *caller.read(&state).await?, caller.account, id).await?;
    let model = found.ok_or_else(Problem::not_found)?;
    Ok(conditions.answer(ModelBody::from(model)))
}

/// Changes what a model says of itself. Its name stays, and so does every version.
#[utoipa::path(
    patch, path = "/v1/models/{model}", tag = "models", security(("session" = []), ("api_key" = ["models:write"])),
    params(("model" = String, Path), ("If-Match" = String, Header, description = "The `ETag` that the model was read with")),
    request_body(content = CardPatch, content_type = "application/merge-patch+json"),
    responses(
        (status = 200, body = ModelBody, headers(("ETag" = String))),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn update_model(
    State(state): State<AppState>,
    caller: Caller<needs::ModelsWrite>,
    Path(id): Path<ModelId>,
    conditions: Conditions,
    Json(patch): Json<CardPatch>,
) -> Result<Response, Problem> {
    let identity = Identity::clone(&caller);
    in_task(async move {
        let mut tx = identity.begin(&state).await?;
        let found = models::lock(&mut tx, identity.account, id).await?;
        let mut model = found.ok_or_else(Problem::not_found)?;
        conditions.require_match(&ModelBody::from(model.clone()))?;
        patch.apply(&mut model.card)?;
        model.updated_at = state.now();
        models::update(&mut tx, &model).await?;
        tx.commit().await?;
        Ok(conditions.answer(ModelBody::from(model)))
    })
    .await
}

/// Says who may find a model and call it: `private` takes it back from everybody but you, and where it is `gated` you decide who calls it. What is shown
/// has a version and a price. Again changes nothing.
#[utoipa::path(
    post, path = "/v1/models/{model}/visibility", tag = "models", security(("session" = []), ("api_key" = ["models:write"])),
    params(("model" = String, Path)),
    request_body = Showing,
    responses(
        (status = 200, body = ModelBody),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn show_model(
    State(state): State<AppState>,
    caller: Caller<needs::ModelsWrite>,
    Path(id): Path<ModelId>,
    Json(Showing { visibility, gated }): Json<Showing>,
) -> Result<Response, Problem> {
    let identity = Identity::clone(&caller);
    in_task(async move {
        let mut tx = identity.begin(&state).await?;
        let found = models::lock(&mut tx, identity.account, id).await?;
        let model = found.ok_or_else(Problem::not_found)?;
        if visibility != Visibility::Private {
            limits::refuse_frozen(&mut tx, identity.account)
                .await
                .map_err(limited)?;
        }
        let showing = (visibility, gated.unwrap_or(model.is_gated));
        let shown = models::show(&mut tx, &model, showing, state.now()).await;
        shown.map_err(not_shown)?;
        let found = models::find(&mut tx, identity.account, id).await?;
        let model = found.ok_or_else(Problem::not_found)?;
        tx.commit().await?;
        Ok(Json(ModelBody::from(model)).into_response())
    })
    .await
}

fn not_shown(error: ShowModelError) -> Problem {
    let conflict = |code, title| Problem::new(StatusCode::CONFLICT, code, title);
    match error {
        ShowModelError::NoVersion => conflict("no_version", "The model has no version yet"),
        ShowModelError::NoPrice => conflict("no_price", "The model has no price yet"),
        ShowModelError::Database(error) => error.into(),
    }
}
