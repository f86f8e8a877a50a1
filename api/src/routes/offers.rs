//! `/v1/datasets/{dataset}/offers` and `/v1/offers`: on what terms datasets can be had.

use axum::{
    extract::State,
    http::StatusCode,
    response::{IntoResponse as _, Response},
};
use comptoir_domain::{
    amount::Amount,
    asset::Asset,
    digest::Sha256,
    id::{AccountId, DatasetId, DatasetVersionId, OfferId},
    offer::{OfferKind, Terms},
    sale::{Sale, SaleKind, Time},
};
use comptoir_store::{
    PgTransaction, assets, datasets, limits,
    offers::{self, CreateOfferError, NewOffer, NewPrice, Offer, Price},
    tenant,
};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{accounts::in_task, takedowns::blocked};
use crate::{
    AppState, Problem,
    auth::{Caller, Identity, needs},
    etag::Conditions,
    extract::{Json, Path},
    idempotency::{self, IdempotentJson, Reply},
    limiting::limited,
    money::MoneyBody,
    page::{List, Page, PageQuery},
    quoting::no_asset,
};

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(list_offers, create_offer))
        .routes(routes!(find_offer))
        .routes(routes!(price_offer))
        .routes(routes!(close_offer))
        .routes(routes!(quote_offer))
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = NewOffer)]
struct NewOfferBody {
    kind: OfferKind,
    /// Of the purchase (`buy`), of a second (`rent`), of a period (`subscribe`), of a job (`compute_only`); 0 where it is `free`.
    price: MoneyBody,
    /// The version that is offered; left out: every version, future ones too.
    #[schema(value_type = Option<String>)]
    version: Option<DatasetVersionId>,
    /// How long you have to answer whoever asks for it; left out: nobody has to ask.
    #[schema(minimum = 3_600, maximum = 2_592_000)]
    answer_seconds: Option<u32>,
    /// For how long a purchase of which nothing was read can be given back.
    #[serde(default)]
    #[schema(maximum = 2_592_000)]
    refund_seconds: u32,
    /// The period of a subscription, or the longest rental.
    #[schema(minimum = 60, maximum = 31_622_400)]
    period_seconds: Option<u32>,
    /// The seconds that are charged at least, of those agreed, once something was read, however early its buyer ends it; left out: 3,600 of a rental
    /// and 86,400 of a period, or all of a shorter `period_seconds`.
    #[schema(maximum = 31_622_400)]
    minimum_seconds: Option<u32>,
    /// SHA-256 of the programs that may compute on it; left out: any.
    #[schema(value_type = Option<Vec<String>>, min_items = 1, max_items = 1000)]
    programs: Option<Vec<Sha256>>,
    /// The most bytes that the results of a job on it may have.
    #[schema(minimum = 1)]
    output_bytes_max: Option<u64>,
    /// Do results of jobs on it wait for your consent?
    #[serde(default)]
    is_released_by_seller: bool,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = NewPrice)]
struct NewPriceBody {
    price: MoneyBody,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Wish {
    /// How long a rental is to last.
    #[schema(minimum = 1)]
    seconds: Option<u32>,
}

#[derive(Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum OfferObject {
    Offer,
}

/// One of an offer's prices.
#[derive(Serialize, ToSchema)]
struct OfferPrice {
    /// Its number, from 1.
    number: i32,
    price: MoneyBody,
    /// What the platform takes of it, in millionths.
    platform_ppm: u32,
    /// From when on it counts.
    #[serde(with = "time::serde::rfc3339")]
    effective_at: OffsetDateTime,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Offer)]
struct OfferBody {
    #[schema(value_type = String, example = "off_01h455vb4pex5vsknk084sn02q")]
    id: OfferId,
    object: OfferObject,
    #[schema(value_type = String)]
    dataset: DatasetId,
    #[schema(value_type = String)]
    seller: AccountId,
    kind: OfferKind,
    /// The version that is offered; `null`: every version, future ones too.
    #[schema(required = true, value_type = Option<String>)]
    version: Option<DatasetVersionId>,
    /// The price that counts now.
    price: OfferPrice,
    /// The price that will, once its notice is over.
    #[schema(required = true)]
    next_price: Option<OfferPrice>,
    /// How long the seller has to answer whoever asks for it; `null`: nobody has to ask.
    #[schema(required = true)]
    answer_seconds: Option<u32>,
    refund_seconds: u32,
    #[schema(required = true)]
    period_seconds: Option<u32>,
    /// The seconds that are charged at least, of those agreed, once something was read.
    minimum_seconds: u32,
    #[schema(required = true, value_type = Option<Vec<String>>)]
    programs: Option<Vec<Sha256>>,
    #[schema(required = true)]
    output_bytes_max: Option<u64>,
    is_released_by_seller: bool,
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
    /// When it was closed; `null`: it stands.
    #[serde(with = "time::serde::rfc3339::option")]
    #[schema(required = true)]
    closed_at: Option<OffsetDateTime>,
}

impl OfferBody {
    fn new(offer: Offer, asset: &Asset) -> Self {
        let price = |it: Price| OfferPrice {
            number: it.number,
            price: MoneyBody::new(it.amount, asset),
            platform_ppm: it.platform_ppm,
            effective_at: it.effective_at,
        };
        let terms = offer.terms;
        Self {
            id: offer.id,
            object: OfferObject::Offer,
            dataset: offer.dataset,
            seller: offer.account,
            kind: terms.kind,
            version: terms.version,
            price: price(offer.price),
            next_price: offer.next_price.map(price),
            answer_seconds: terms.answer_seconds,
            refund_seconds: terms.refund_seconds,
            period_seconds: terms.period_seconds,
            minimum_seconds: terms.minimum_seconds,
            programs: terms.programs,
            output_bytes_max: terms.output_bytes_max,
            is_released_by_seller: terms.is_released_by_seller,
            created_at: offer.created_at,
            closed_at: offer.closed_at,
        }
    }
}

#[derive(Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum OfferQuoteObject {
    OfferQuote,
}

/// What taking an offer would hold, and charge at most.
#[derive(Serialize, ToSchema)]
struct OfferQuote {
    object: OfferQuoteObject,
    #[schema(value_type = String)]
    offer: OfferId,
    /// What `expected_price` of a purchase must be. A rental or period that ends early is charged for the seconds used.
    price: MoneyBody,
    /// What it costs at least once something was read, even if it is ended at once.
    minimum: MoneyBody,
    /// Which of the offer's prices it is.
    price_number: i32,
    #[schema(required = true)]
    seconds: Option<u32>,
}

/// What an offer costs at least once something was read: what ending it at once would.
fn least(offer: &Offer, seconds: Option<u32>) -> Option<Amount> {
    let Some(kind) = SaleKind::of(offer.terms.kind) else {
        return Some(Amount::ZERO);
    };
    let sale = Sale {
        kind,
        offer: offer.id,
        price_number: offer.price.number.cast_unsigned(),
        price: offer.price.amount,
        time: seconds.map(|agreed_seconds| Time {
            agreed_seconds,
            used_seconds: 0,
            minimum_seconds: offer.terms.minimum_seconds,
        }),
    };
    sale.gross()
}

fn terms(body: &NewOfferBody) -> Result<Terms, Problem> {
    let terms = Terms {
        kind: body.kind,
        version: body.version,
        answer_seconds: body.answer_seconds,
        refund_seconds: body.refund_seconds,
        period_seconds: body.period_seconds,
        minimum_seconds: body
            .minimum_seconds
            .unwrap_or_else(|| body.kind.minimum_seconds(body.period_seconds)),
        programs: body.programs.clone(),
        output_bytes_max: body.output_bytes_max,
        is_released_by_seller: body.is_released_by_seller,
    };
    Problem::refuse(terms.refusals())?;
    Ok(terms)
}

fn check_price(terms: &Terms, price: Amount) -> Result<(), Problem> {
    match terms.refuses_price(price) {
        Some(why) => Err(Problem::invalid("/price/amount", why)),
        None => Ok(()),
    }
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

/// Says what taking an offer would cost now.
#[utoipa::path(
    post, path = "/v1/offers/{offer}/quote", tag = "market", security(("session" = []), ("api_key" = ["datasets:read"])),
    params(("offer" = String, Path)),
    request_body = Wish,
    responses(
        (status = 200, body = OfferQuote),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn quote_offer(
    State(state): State<AppState>,
    caller: Caller<needs::DatasetsRead>,
    Path(id): Path<OfferId>,
    Json(wish): Json<Wish>,
) -> Result<Response, Problem> {
    let mut connection = caller.read(&state).await?;
    let offer = offered(&mut connection, id, state.now()).await?;
    let offer = offer.ok_or_else(Problem::not_found)?;
    let asset = assets::find(&mut connection, offer.asset_id)
        .await
        .map_err(no_asset)?;
    if let Some(takedown) = datasets::blocked_by(&mut connection, offer.dataset).await? {
        return Err(blocked(takedown));
    }
    if !offers::is_on_sale(&mut connection, id).await? {
        return Err(closed());
    }
    let seconds = seconds(&offer.terms, wish.seconds)?;
    let held = offer.terms.held(offer.price.amount, seconds);
    let quote = OfferQuote {
        object: OfferQuoteObject::OfferQuote,
        offer: offer.id,
        price: MoneyBody::new(held.ok_or_else(too_dear)?, &asset),
        minimum: MoneyBody::new(least(&offer, seconds).ok_or_else(too_dear)?, &asset),
        price_number: offer.price.number,
        seconds,
    };
    Ok(Json(quote).into_response())
}

/// For how long an offer is taken.
pub(super) fn seconds(terms: &Terms, wished: Option<u32>) -> Result<Option<u32>, Problem> {
    let lasts = terms.lasts(wished);
    lasts.map_err(|why| Problem::invalid("/seconds", why.to_string()))
}

pub(super) fn too_dear() -> Problem {
    Problem::invalid("/seconds", "it costs more than any amount")
}
