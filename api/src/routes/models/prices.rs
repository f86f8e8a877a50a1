//! `/v1/models/{model}/prices`: what calls cost, and who shares it.

use axum::{extract::State, response::Response};
use comptoir_domain::{
    asset::Asset,
    id::ModelId,
    model::{Payee, Shares, Tariff, price_counts_at},
};
use comptoir_store::{
    assets, limits,
    model_prices::{self, ModelPrice},
    models,
};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    AppState, Problem,
    auth::{Caller, needs},
    extract::Path,
    idempotency::{self, IdempotentJson, Reply},
    limiting::limited,
    money::AddressBody,
    page::{List, Page, PageQuery},
    quoting::no_asset,
};

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(list_model_prices, price_model))
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewModelPrice {
    tariff: Tariff,
    /// Who shares it, beside the platform; left out: a tenth for the owner of the worker, and the rest for you.
    #[schema(nullable = false)]
    shares: Option<Shares>,
}

#[derive(Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum ModelPriceObject {
    ModelPrice,
}

/// One who shares what is left of a charge.
#[derive(Serialize, ToSchema)]
struct ModelPayee {
    address: AddressBody,
    /// Against the weights of the others.
    weight: u32,
}

#[derive(Serialize, ToSchema)]
#[schema(as = ModelPrice)]
pub(in crate::routes) struct ModelPriceBody {
    object: ModelPriceObject,
    /// Its number among the model's, from 1; of those in effect the last counts.
    number: i32,
    #[schema(value_type = String)]
    model: ModelId,
    /// The token, as CAIP-19 names it.
    asset: String,
    tariff: Tariff,
    /// What the platform takes of a charge, in millionths.
    platform_ppm: u32,
    /// What the owner of the worker gets that ran the call, in millionths.
    worker_ppm: u32,
    /// Who shares the rest, by weight.
    payees: Vec<ModelPayee>,
    /// From when on it counts.
    #[serde(with = "time::serde::rfc3339")]
    effective_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
}

impl ModelPriceBody {
    pub(in crate::routes) fn new(price: ModelPrice, asset: &Asset) -> Self {
        let payee = |it: Payee| ModelPayee {
            address: AddressBody(it.address),
            weight: it.weight,
        };
        Self {
            object: ModelPriceObject::ModelPrice,
            number: price.number,
            model: price.model,
            asset: asset.caip19(),
            tariff: price.tariff,
            platform_ppm: price.platform_ppm,
            worker_ppm: price.shares.worker_ppm,
            payees: price.shares.payees.into_iter().map(payee).collect(),
            effective_at: price.effective_at,
            created_at: price.created_at,
        }
    }
}

fn check(shares: &Shares) -> Result<(), Problem> {
    let refusals = shares.refusals().into_iter();
    Problem::refuse(refusals.map(|(pointer, why)| (format!("/shares{pointer}"), why)))
}

/// Gives a model of yours a price. It counts at once, unless something of it is dearer than what counts now and others could call the model before:
/// then after seven days. Of the prices in effect the last one given counts.
#[utoipa::path(
    post, path = "/v1/models/{model}/prices", tag = "models", security(("session" = []), ("api_key" = ["models:write"])),
    params(("model" = String, Path), ("Idempotency-Key" = String, Header)),
    request_body = NewModelPrice,
    responses(
        (status = 201, body = ModelPriceBody, headers(("Location" = String))),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn price_model(
    State(state): State<AppState>,
    caller: Caller<needs::ModelsWrite>,
    Path(id): Path<ModelId>,
    request: IdempotentJson<NewModelPrice>,
) -> Result<Response, Problem> {
    let (now, account, body) = (state.now(), caller.account, request.body);
    let shares = match body.shares {
        Some(shares) => shares,
        None => Shares::of_creator(caller.owner()?),
    };
    check(&shares)?;
    let (tariff, platform_ppm) = (body.tariff, state.config.market_ppm);
    idempotency::run(&state, &caller, request.key, move |tx| {
        Box::pin(async move {
            limits::refuse_frozen(tx, account).await.map_err(limited)?;
            let model = models::lock(tx, account, id).await?;
            let model = model.ok_or_else(Problem::not_found)?;
            let asset = assets::current(tx).await.map_err(no_asset)?;
            let last = model_prices::list(tx, id, None, 1).await?.pop();
            let now_paid = model_prices::current(tx, id, now).await?;
            let paid = now_paid.as_ref().map(|it| &it.tariff);
            let effective_at = price_counts_at((&tariff, paid), model.shown_at.is_some(), now);
            let price = ModelPrice {
                model: id,
                number: last.map_or(1, |it| it.number.saturating_add(1)),
                asset_id: asset.id,
                tariff,
                platform_ppm,
                shares,
                effective_at,
                created_at: now,
            };
            model_prices::add(tx, &price).await?;
            let location = format!("/v1/models/{id}/prices");
            Ok(Reply::created(
                location,
                &ModelPriceBody::new(price, &asset),
            ))
        })
    })
    .await
}

/// The prices of a model of yours, or of one that is not private; newest first.
#[utoipa::path(
    get, path = "/v1/models/{model}/prices", tag = "models", security(("session" = []), ("api_key" = ["models:read"])),
    params(("model" = String, Path), PageQuery),
    responses(
        (status = 200, body = Page<ModelPriceBody>),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn list_model_prices(
    State(state): State<AppState>,
    caller: Caller<needs::ModelsRead>,
    Path(id): Path<ModelId>,
    list: List,
) -> Result<Page<ModelPriceBody>, Problem> {
    let before: Option<i32> = list.position(&state, &caller)?;
    let mut connection = caller.read(&state).await?;
    let known = models::find(&mut connection, caller.account, id).await?;
    known.ok_or_else(Problem::not_found)?;
    let asset = assets::current(&mut connection).await.map_err(no_asset)?;
    let rows = model_prices::list(&mut connection, id, before, list.fetch()).await?;
    let body = |row| ModelPriceBody::new(row, &asset);
    Ok(list.page(&state, &caller, rows, |row| row.number, body))
}
