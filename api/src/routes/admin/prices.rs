//! `/v1/admin/prices`: published prices, those to come too.

use axum::response::Response;
use comptoir_domain::{
    amount::Amount,
    asset::Asset,
    audit::Action,
    job::Device,
    price::{PLATFORM_PPM_MAX, PriceVersion, Rate},
};
use comptoir_store::{
    assets,
    prices::{self, NewPrice},
};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::guard::{Admin, FreshAdmin};
use crate::{
    AppState, FieldError, Problem,
    idempotency::{IdempotentJson, Reply},
    money::MoneyBody,
    page::{List, Page, PageQuery},
    quoting::no_asset,
};

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(list_price_versions, publish_price))
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewPriceBody {
    device: Device,
    /// Nano base units per 10^9 multiply-adds.
    #[schema(value_type = String, pattern = "^[1-9][0-9]*$")]
    rate_nano: Rate,
    /// The least that a job costs.
    minimum: MoneyBody,
    /// The platform's share of a charge, in millionths.
    #[schema(maximum = 200_000)]
    platform_ppm: u32,
    /// From when on quotes use it; not before now. Quotes made until then keep the price they name.
    #[serde(with = "comptoir_http::moment")]
    effective_at: OffsetDateTime,
}

#[derive(Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum PriceVersionObject {
    Price,
}

#[derive(Serialize, ToSchema)]
#[schema(as = AdminPrice)]
struct PriceVersionBody {
    id: i32,
    object: PriceVersionObject,
    device: Device,
    #[schema(value_type = String, pattern = "^[1-9][0-9]*$")]
    rate_nano: Rate,
    minimum: MoneyBody,
    platform_ppm: u32,
    /// Do quotes use it, or will they only later?
    in_force: bool,
    #[serde(with = "time::serde::rfc3339")]
    effective_at: OffsetDateTime,
}

impl PriceVersionBody {
    fn new(
        version: &PriceVersion,
        effective_at: OffsetDateTime,
        asset: &Asset,
        now: OffsetDateTime,
    ) -> Self {
        Self {
            id: version.id,
            object: PriceVersionObject::Price,
            device: version.device,
            rate_nano: version.rate_nano,
            minimum: MoneyBody::new(version.minimum, asset),
            platform_ppm: version.platform_ppm,
            in_force: effective_at <= now,
            effective_at,
        }
    }
}

/// Every published price, newest first: those that were replaced, and those that are to come.
#[utoipa::path(
    get, path = "/v1/admin/prices",
    params(PageQuery),
    responses((status = 200, body = Page<PriceVersionBody>)),
)]
async fn list_price_versions(admin: Admin, list: List) -> Result<Page<PriceVersionBody>, Problem> {
    let (state, caller) = (&admin.state, &admin.identity);
    let before: Option<i32> = list.position(state, caller)?;
    let mut connection = admin.read().await?;
    let asset = assets::current(&mut connection).await.map_err(no_asset)?;
    let rows = prices::list(&mut connection, asset.id, before, list.fetch()).await?;
    let now = state.now();
    let id = |(version, _): &(PriceVersion, OffsetDateTime)| version.id;
    Ok(list.page(state, caller, rows, id, |(version, since)| {
        PriceVersionBody::new(&version, since, &asset, now)
    }))
}

/// Publishes a price from a time on. A version is never edited or taken back: publish another.
#[utoipa::path(
    post, path = "/v1/admin/prices",
    params(("Idempotency-Key" = String, Header)),
    request_body = NewPriceBody,
    responses((status = 201, body = PriceVersionBody, headers(("Location" = String)))),
)]
async fn publish_price(
    admin: FreshAdmin,
    request: IdempotentJson<NewPriceBody>,
) -> Result<Response, Problem> {
    let (body, now) = (request.body, admin.state.now());
    check(&body, now)?;
    let event = admin.event(Action::PricePublished, "");
    let work = admin.act_once(request.key, event, move |tx, event| {
        Box::pin(async move {
            let asset = assets::current(tx).await.map_err(no_asset)?;
            let new = NewPrice {
                device: body.device,
                rate_nano: body.rate_nano,
                minimum: body.minimum.amount_of(&asset, "/minimum")?,
                platform_ppm: body.platform_ppm,
                effective_at: body.effective_at,
            };
            let version = prices::publish(tx, asset.id, new).await?;
            let shown = PriceVersionBody::new(&version, new.effective_at, &asset, now);
            let reply = Reply::created(format!("/v1/prices/{}", version.id), &shown);
            event.subject = format!("price {}", version.id);
            event.note("device", body.device.as_str());
            event.note("rate_nano", body.rate_nano.to_string());
            event.note("minimum_base", new.minimum.to_string());
            event.note("platform_ppm", body.platform_ppm);
            Ok(reply)
        })
    });
    work.await
}

fn check(body: &NewPriceBody, now: OffsetDateTime) -> Result<(), Problem> {
    let mut errors = Vec::new();
    if body.rate_nano == Rate::default() {
        errors.push(FieldError::new("/rate_nano", "expected at least 1"));
    }
    if body.minimum.amount == Amount::ZERO {
        errors.push(FieldError::new("/minimum/amount", "expected at least 1"));
    }
    if body.platform_ppm > PLATFORM_PPM_MAX {
        let expected = format!("expected 0 to {PLATFORM_PPM_MAX}");
        errors.push(FieldError::new("/platform_ppm", expected));
    }
    if body.effective_at < now {
        errors.push(FieldError::new("/effective_at", "expected now or later"));
    }
    if errors.is_empty() {
        Ok(())
    } else {
        Err(Problem::invalid_fields(errors))
    }
}
