//! `/v1/prices`: what work costs now.

use axum::{extract::State, response::Response};
use comptoir_domain::{
    asset::Asset,
    job::Device,
    price::{PriceVersion, Rate},
};
use comptoir_store::{
    assets,
    prices::{self, PriceError},
};
use serde::Serialize;
use time::OffsetDateTime;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    AppState, Problem,
    auth::{Caller, needs},
    etag::Conditions,
    extract::Path,
    money::MoneyBody,
    page::{List, Page, PageQuery},
    quoting::no_asset,
};

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(list_prices))
        .routes(routes!(find_price))
}

#[derive(Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum PriceObject {
    Price,
}

/// A published price for one kind of device: a job costs max(multiply-adds × `rate_nano` / 10^18, `minimum`).
#[derive(Serialize, ToSchema)]
#[schema(as = Price)]
struct PriceBody {
    /// The price version. Quotes and receipts name it.
    id: i32,
    object: PriceObject,
    device: Device,
    /// Nano base units per 10^9 multiply-adds.
    #[schema(value_type = String, pattern = "^(0|[1-9][0-9]*)$", example = "250000000")]
    rate_nano: Rate,
    /// The least that a job costs.
    minimum: MoneyBody,
    /// The platform's share of a charge, in millionths.
    platform_ppm: u32,
    /// Since when quotes use it.
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
}

impl PriceBody {
    fn new(version: &PriceVersion, created_at: OffsetDateTime, asset: &Asset) -> Self {
        Self {
            id: version.id,
            object: PriceObject::Price,
            device: version.device,
            rate_nano: version.rate_nano,
            minimum: MoneyBody::new(version.minimum, asset),
            platform_ppm: version.platform_ppm,
            created_at,
        }
    }
}

/// The current price of each kind of device.
#[utoipa::path(
    get, path = "/v1/prices", tag = "money", security(("session" = []), ("api_key" = ["jobs:read"])),
    params(PageQuery),
    responses(
        (status = 200, body = Page<PriceBody>),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn list_prices(
    State(state): State<AppState>,
    caller: Caller<needs::JobsRead>,
    list: List,
) -> Result<Page<PriceBody>, Problem> {
    let after: Option<Device> = list.position(&state, &caller)?;
    let mut connection = state.db.acquire().await?;
    let asset = assets::current(&mut connection).await.map_err(no_asset)?;
    let mut rows = prices::list_current(&mut connection, asset.id, state.now()).await?;
    // There are as many rows as kinds of device, in the order of their names.
    rows.retain(|(version, _)| after.is_none_or(|after| version.device.as_str() > after.as_str()));
    let key = |(version, _): &(PriceVersion, OffsetDateTime)| version.device;
    Ok(list.page(&state, &caller, rows, key, |(version, since)| {
        PriceBody::new(&version, since, &asset)
    }))
}

/// One price version, also one that is no longer current: what a receipt's charge is recomputed with.
#[utoipa::path(
    get, path = "/v1/prices/{id}", tag = "money", security(("session" = []), ("api_key" = ["jobs:read"])),
    params(("id" = i32, Path)),
    responses(
        (status = 200, body = PriceBody, headers(("ETag" = String))),
        (status = 304),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn find_price(
    State(state): State<AppState>,
    _: Caller<needs::JobsRead>,
    Path(id): Path<i32>,
    conditions: Conditions,
) -> Result<Response, Problem> {
    let mut connection = state.db.acquire().await?;
    let found = prices::find_published(&mut connection, id).await;
    let (version, asset_id, since) = found.map_err(|error| match error {
        PriceError::NotPublished => Problem::not_found(),
        PriceError::Database(error) => error.into(),
    })?;
    let asset = assets::find(&mut connection, asset_id)
        .await
        .map_err(no_asset)?;
    Ok(conditions.answer(PriceBody::new(&version, since, &asset)))
}
