//! `/v1/offers/{offer}/quote`: what taking an offer would cost.

use axum::{
    extract::State,
    response::{IntoResponse as _, Response},
};
use comptoir_domain::{
    amount::Amount,
    id::OfferId,
    offer::Terms,
    sale::{Sale, SaleKind, Time},
};
use comptoir_store::{
    assets, datasets,
    offers::{self, Offer},
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{closed, offered};
use crate::{
    AppState, Problem,
    auth::{Caller, needs},
    extract::{Json, Path},
    money::MoneyBody,
    quoting::no_asset,
    routes::takedowns::blocked,
};

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(quote_offer))
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
pub(in crate::routes) fn seconds(
    terms: &Terms,
    wished: Option<u32>,
) -> Result<Option<u32>, Problem> {
    let lasts = terms.lasts(wished);
    lasts.map_err(|why| Problem::invalid("/seconds", why.to_string()))
}

pub(in crate::routes) fn too_dear() -> Problem {
    Problem::invalid("/seconds", "it costs more than any amount")
}
