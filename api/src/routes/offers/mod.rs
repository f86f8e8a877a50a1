//! `/v1/datasets/{dataset}/offers` and `/v1/offers`: on what terms datasets can be had.

mod body;
mod quotes;

use axum::{
    extract::State,
    http::StatusCode,
    response::{IntoResponse as _, Response},
};
use comptoir_domain::{
    id::{DatasetId, OfferId},
    offer::OfferKind,
};
use comptoir_store::{
    PgTransaction, assets, datasets, limits,
    offers::{self, CreateOfferError, NewOffer, NewPrice, Offer},
    tenant,
};
use time::OffsetDateTime;
use utoipa_axum::{router::OpenApiRouter, routes};

use self::body::{NewOfferBody, NewPriceBody, OfferBody, check_price, terms};
pub(super) use self::quotes::{seconds, too_dear};
use super::accounts::in_task;
use crate::{
    AppState, Problem,
    auth::{Caller, Identity, needs},
    etag::Conditions,
    extract::{Json, Path},
    idempotency::{self, IdempotentJson, Reply},
    limiting::limited,
    page::{List, Page, PageQuery},
    quoting::no_asset,
};

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(list_offers, create_offer))
        .routes(routes!(find_offer))
        .routes(routes!(price_offer))
        .routes(routes!(close_offer))
        .merge(quotes::router())
}

/// Offers a dataset of yours on some terms. They never change; the price may. It is on sale while the dataset is listed and the offer is not
/// closed.
#[utoipa::path(
    post, path = "/v1/datasets/{dataset}/offers", tag = "market", security(("session" = []), ("api_key" = ["datasets:write"])),
    params(("dataset" = String, Path), ("Idempotency-Key" = String, Header)),
    request_body = NewOfferBody,
    responses(
        (status = 201, body = OfferBody, headers(("Location" = String))),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn create_offer(
    State(state): State<AppState>,
    caller: Caller<needs::DatasetsWrite>,
    Path(dataset): Path<DatasetId>,
    request: IdempotentJson<NewOfferBody>,
) -> Result<Response, Problem> {
    let (now, account, body) = (state.now(), caller.account, request.body);
    let platform_ppm = state.config.market_ppm;
    let terms = terms(&body)?;
    // Whoever sells has an address that is paid.
    if terms.kind != OfferKind::Free {
        caller.owner()?;
    }
    idempotency::run(&state, &caller, request.key, move |tx| {
        Box::pin(async move {
            limits::refuse_frozen(tx, account).await.map_err(limited)?;
            let found = datasets::lock(tx, account, dataset).await?;
            found.ok_or_else(Problem::not_found)?;
            let asset = assets::current(tx).await.map_err(no_asset)?;
            let price = body.price.amount_of(&asset, "/price")?;
            check_price(&terms, price)?;
            let new = NewOffer {
                dataset,
                account,
                asset_id: asset.id,
                terms: &terms,
                price,
                platform_ppm,
            };
            let id = offers::create(tx, &new, now).await.map_err(not_created)?;
            let offer = offers::find(tx, id, now).await?;
            let body = OfferBody::new(offer.ok_or_else(Problem::not_found)?, &asset);
            Ok(Reply::created(format!("/v1/offers/{id}"), &body))
        })
    })
    .await
}

fn not_created(error: CreateOfferError) -> Problem {
    match error {
        CreateOfferError::NoVersion => {
            Problem::invalid("/version", "the dataset has no such ready version")
        }
        CreateOfferError::ComputesAlready => Problem::new(
            StatusCode::CONFLICT,
            "compute_offer_stands",
            "The dataset has an open offer to compute on it",
        ),
        CreateOfferError::Database(error) => error.into(),
    }
}

/// The offers of a dataset that is yours, listed, or one that you have; newest first. Closed ones are for who made them.
#[utoipa::path(
    get, path = "/v1/datasets/{dataset}/offers", tag = "market", security(("session" = []), ("api_key" = ["datasets:read"])),
    params(("dataset" = String, Path), PageQuery),
    responses(
        (status = 200, body = Page<OfferBody>),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn list_offers(
    State(state): State<AppState>,
    caller: Caller<needs::DatasetsRead>,
    Path(dataset): Path<DatasetId>,
    list: List,
) -> Result<Page<OfferBody>, Problem> {
    let before: Option<OfferId> = list.position(&state, &caller)?;
    let mut connection = caller.read(&state).await?;
    let known = datasets::find(&mut connection, caller.account, dataset).await?;
    known.ok_or_else(Problem::not_found)?;
    let asset = assets::current(&mut connection).await.map_err(no_asset)?;
    let of = (dataset, caller.account);
    let rows = offers::list(&mut connection, of, before, list.fetch(), state.now()).await?;
    Ok(list.page(
        &state,
        &caller,
        rows,
        |row| row.id,
        |row| OfferBody::new(row, &asset),
    ))
}

/// One offer: yours, one of a listed dataset, or one that you took.
#[utoipa::path(
    get, path = "/v1/offers/{offer}", tag = "market", security(("session" = []), ("api_key" = ["datasets:read"])),
    params(("offer" = String, Path)),
    responses(
        (status = 200, body = OfferBody, headers(("ETag" = String))),
        (status = 304),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn find_offer(
    State(state): State<AppState>,
    caller: Caller<needs::DatasetsRead>,
    Path(id): Path<OfferId>,
    conditions: Conditions,
) -> Result<Response, Problem> {
    let mut connection = caller.read(&state).await?;
    let offer = offers::find(&mut connection, id, state.now()).await?;
    let offer = offer.ok_or_else(Problem::not_found)?;
    let asset = assets::find(&mut connection, offer.asset_id)
        .await
        .map_err(no_asset)?;
    Ok(conditions.answer(OfferBody::new(offer, &asset)))
}

/// Gives an offer of yours another price. It counts at once; a higher one of a subscription only after a notice of seven days or a whole
/// period, whichever is longer, and never for who allowed less.
#[utoipa::path(
    post, path = "/v1/offers/{offer}/prices", tag = "market", security(("session" = []), ("api_key" = ["datasets:write"])),
    params(("offer" = String, Path), ("Idempotency-Key" = String, Header)),
    request_body = NewPriceBody,
    responses(
        (status = 201, body = OfferBody, headers(("Location" = String))),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn price_offer(
    State(state): State<AppState>,
    caller: Caller<needs::DatasetsWrite>,
    Path(id): Path<OfferId>,
    request: IdempotentJson<NewPriceBody>,
) -> Result<Response, Problem> {
    let (now, account, wanted) = (state.now(), caller.account, request.body.price);
    let platform_ppm = state.config.market_ppm;
    idempotency::run(&state, &caller, request.key, move |tx| {
        Box::pin(async move {
            limits::refuse_frozen(tx, account).await.map_err(limited)?;
            if !offers::lock(tx, account, id).await? {
                return Err(Problem::not_found());
            }
            let offer = offers::find(tx, id, now).await?;
            let offer = offer.ok_or_else(Problem::not_found)?;
            if offer.closed_at.is_some() {
                return Err(closed());
            }
            let asset = assets::find(tx, offer.asset_id).await.map_err(no_asset)?;
            let amount = wanted.amount_of(&asset, "/price")?;
            check_price(&offer.terms, amount)?;
            let price = NewPrice {
                amount,
                platform_ppm,
                effective_at: offer
                    .terms
                    .price_counts_from(offer.price.amount, amount, now),
            };
            offers::add_price(tx, id, &price, now).await?;
            let changed = offers::find(tx, id, now).await?;
            let body = OfferBody::new(changed.ok_or_else(Problem::not_found)?, &asset);
            Ok(Reply::created(format!("/v1/offers/{id}"), &body))
        })
    })
    .await
}

/// An offer that the caller may see. One that it does not see any more, because its dataset was withdrawn, is not on sale: that there was one is no
/// secret. What was never listed stays one.
pub(super) async fn offered(
    tx: &mut PgTransaction<'_>,
    id: OfferId,
    now: OffsetDateTime,
) -> Result<Option<Offer>, Problem> {
    let offer = offers::find(tx, id, now).await?;
    if offer.is_none() {
        tenant::widen(tx).await?;
        if offers::was_withdrawn(tx, id).await? {
            return Err(closed());
        }
    }
    Ok(offer)
}

/// What is told of an offer that is not on sale any more.
pub(super) fn closed() -> Problem {
    Problem::new(
        StatusCode::CONFLICT,
        "not_on_sale",
        "The offer is closed, its dataset is not listed, or its seller is frozen",
    )
}

/// Closes an offer of yours: nobody takes it any more, and subscriptions of it end with their period. What was taken stays. Again changes
/// nothing.
#[utoipa::path(
    post, path = "/v1/offers/{offer}/close", tag = "market", security(("session" = []), ("api_key" = ["datasets:write"])),
    params(("offer" = String, Path)),
    responses(
        (status = 200, body = OfferBody),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn close_offer(
    State(state): State<AppState>,
    caller: Caller<needs::DatasetsWrite>,
    Path(id): Path<OfferId>,
) -> Result<Response, Problem> {
    let identity = Identity::clone(&caller);
    in_task(async move {
        let now = state.now();
        let mut tx = identity.begin(&state).await?;
        if !offers::lock(&mut tx, identity.account, id).await? {
            return Err(Problem::not_found());
        }
        offers::close(&mut tx, id, now).await?;
        let offer = offers::find(&mut tx, id, now).await?;
        let offer = offer.ok_or_else(Problem::not_found)?;
        let asset = assets::find(&mut tx, offer.asset_id)
            .await
            .map_err(no_asset)?;
        tx.commit().await?;
        Ok(Json(OfferBody::new(offer, &asset)).into_response())
    })
    .await
}
