//! `/v1/purchases`: what buyers took.

use axum::{
    extract::State,
    http::StatusCode,
    response::{IntoResponse as _, Response},
};
use comptoir_domain::{
    asset::Asset,
    id::{AccountId, DatasetId, DatasetVersionId, OfferId, PurchaseId, ReceiptId, SubscriptionId},
    offer::{Allows, OfferKind},
    purchase::{Finality, PurchaseState},
};
use comptoir_store::{
    PgTransaction, assets, limits,
    purchases::{self, EndError, Filter, NewPurchase, Purchase, Side, TakeError},
    tenant,
};
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    accounts::in_task,
    offers::{closed, offered, seconds, too_dear},
    submit::above_spend_limit,
    takedowns::blocked,
    withdrawals::hold_refused,
};
use crate::{
    AppState, Problem,
    auth::{Caller, Identity, needs},
    availability,
    etag::Conditions,
    extract::{Json, Path},
    idempotency::{self, IdempotentJson, Reply},
    limiting::limited,
    money::MoneyBody,
    page::{List, Page},
    quoting::no_asset,
};

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(list_purchases, create_purchase))
        .routes(routes!(find_purchase))
        .routes(routes!(refund_purchase))
        .routes(routes!(end_purchase))
}

/// Longest note to a seller, in bytes.
const NOTE_BYTES_MAX: usize = 4_096;
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = NewPurchase)]
struct NewPurchaseBody {
    #[schema(value_type = String)]
    offer: OfferId,
    /// What is to be held for it, as the offer's quote says: if it costs something else by now, nothing is bought.
    expected_price: MoneyBody,
    /// How long a rental is to last.
    #[schema(minimum = 1)]
    seconds: Option<u32>,
    /// The most that a period of a subscription may ever cost; left out: what it costs now.
    cap: Option<MoneyBody>,
    /// Words to the seller of an offer that has to be asked for.
    #[schema(max_length = 4096)]
    note: Option<String>,
}

#[derive(Deserialize, ToSchema, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct PurchasesFilter {
    /// Those in this state alone.
    state: Option<PurchaseState>,
    /// Those of this dataset alone.
    #[param(value_type = Option<String>)]
    #[schema(value_type = Option<String>)]
    dataset: Option<DatasetId>,
}

#[derive(Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum PurchaseObject {
    Purchase,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Purchase)]
pub(super) struct PurchaseBody {
    #[schema(value_type = String, example = "pur_01h455vb4pex5vsknk084sn02q")]
    id: PurchaseId,
    object: PurchaseObject,
    state: PurchaseState,
    kind: OfferKind,
    #[schema(value_type = String)]
    buyer: AccountId,
    #[schema(value_type = String)]
    seller: AccountId,
    #[schema(value_type = String)]
    dataset: DatasetId,
    /// The version; `null`: every version, future ones too.
    #[schema(required = true, value_type = Option<String>)]
    version: Option<DatasetVersionId>,
    #[schema(value_type = String)]
    offer: OfferId,
    /// Which of the offer's prices.
    price_number: i32,
    /// What the buyer may do.
    allows: Allows,
    #[schema(required = true, value_type = Option<String>)]
    subscription: Option<SubscriptionId>,
    /// What is or was held: the most that is charged.
    price: MoneyBody,
    /// What was charged; `null` until the sale is final.
    #[schema(required = true)]
    charged: Option<MoneyBody>,
    /// What made the sale final.
    #[schema(required = true)]
    final_because: Option<Finality>,
    /// The receipt of the charge.
    #[schema(required = true, value_type = Option<String>)]
    receipt: Option<ReceiptId>,
    #[schema(required = true)]
    seconds: Option<u32>,
    /// How many of them are charged at least, once something was read.
    minimum_seconds: u32,
    /// The buyer's words to the seller.
    #[schema(required = true)]
    note: Option<String>,
    /// Why it was denied or refunded.
    #[schema(required = true)]
    reason: Option<String>,
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
    /// Until when the seller answers.
    #[serde(with = "time::serde::rfc3339::option")]
    #[schema(required = true)]
    answer_due_at: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339::option")]
    #[schema(required = true)]
    starts_at: Option<OffsetDateTime>,
    /// Until when the buyer has its right; `null`: for good, or not granted.
    #[serde(with = "time::serde::rfc3339::option")]
    #[schema(required = true)]
    ends_at: Option<OffsetDateTime>,
    /// Until when something bought for good can be given back, as long as nothing of it was read; `null`: not at all, or not granted.
    #[serde(with = "time::serde::rfc3339::option")]
    #[schema(required = true)]
    refundable_until: Option<OffsetDateTime>,
    /// When it is charged at the latest; something bought for good is charged before, once its first byte is served.
    #[serde(with = "time::serde::rfc3339::option")]
    #[schema(required = true)]
    final_at: Option<OffsetDateTime>,
    /// When it was settled, refunded, denied, or lapsed.
    #[serde(with = "time::serde::rfc3339::option")]
    #[schema(required = true)]
    ended_at: Option<OffsetDateTime>,
}

impl PurchaseBody {
    fn new(purchase: Purchase, asset: &Asset) -> Self {
        Self {
            refundable_until: purchase.refundable_until(),
            id: purchase.id,
            object: PurchaseObject::Purchase,
            state: purchase.state,
            kind: purchase.kind,
            buyer: purchase.account,
            seller: purchase.seller,
            dataset: purchase.dataset,
            version: purchase.version,
            offer: purchase.offer,
            price_number: purchase.price_number,
            allows: purchase.kind.allows(),
            subscription: purchase.subscription,
            price: MoneyBody::new(purchase.amount, asset),
            charged: purchase.charged.map(|it| MoneyBody::new(it, asset)),
            final_because: purchase.finality,
            receipt: purchase.receipt,
            seconds: purchase.seconds,
            minimum_seconds: purchase.minimum_seconds,
            note: purchase.note,
            reason: purchase.reason,
            created_at: purchase.created_at,
            answer_due_at: purchase.answer_due_at,
            starts_at: purchase.starts_at,
            ends_at: purchase.ends_at,
            final_at: purchase.final_at,
            ended_at: purchase.ended_at,
        }
    }

    async fn read(tx: &mut PgTransaction<'_>, id: PurchaseId) -> Result<Self, Problem> {
        let purchase = purchases::find(tx, id).await?;
        let purchase = purchase.ok_or_else(Problem::not_found)?;
        let asset = assets::find(tx, purchase.asset_id)
            .await
            .map_err(no_asset)?;
        Ok(Self::new(purchase, &asset))
    }
}

/// Takes an offer: buys, rents, subscribes, or asks for it where it is gated. The price is held, and the right given, in one transaction; it is
/// charged once the sale is final: with the first byte that is served, or when its time or the window in which it can be given back is over.
#[utoipa::path(
    post, path = "/v1/purchases", tag = "market", security(("session" = []), ("api_key" = ["purchases:write"])),
    params(("Idempotency-Key" = String, Header)),
    request_body = NewPurchaseBody,
    responses(
        (status = 201, body = PurchaseBody, headers(("Location" = String))),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
        (status = 503, body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn create_purchase(
    State(state): State<AppState>,
    caller: Caller<needs::PurchasesWrite>,
    request: IdempotentJson<NewPurchaseBody>,
) -> Result<Response, Problem> {
    let (now, body) = (state.now(), request.body);
    if body
        .note
        .as_ref()
        .is_some_and(|it| it.len() > NOTE_BYTES_MAX)
    {
        return Err(Problem::invalid("/note", "expected at most 4096 bytes"));
    }
    let (account, payer, spender) = (caller.account, caller.address, caller.spender());
    let available = {
        let mut tx = caller.read_by_index(&state).await?;
        let offer = offered(&mut tx, body.offer, now).await?;
        let offer = offer.ok_or_else(|| Problem::invalid("/offer", "no such offer"))?;
        availability::require(&state, tx, (offer.dataset, offer.terms.version)).await
    };
    idempotency::run(&state, &caller, request.key, move |tx| {
        Box::pin(async move {
            limits::refuse_frozen(tx, account).await.map_err(limited)?;
            let offer = offered(tx, body.offer, now).await?;
            let offer = offer.ok_or_else(|| Problem::invalid("/offer", "no such offer"))?;
            let asset = assets::find(tx, offer.asset_id).await.map_err(no_asset)?;
            let expected = body.expected_price.amount_of(&asset, "/expected_price")?;
            let cap = body.cap.as_ref().map(|cap| cap.amount_of(&asset, "/cap"));
            let cap = cap.transpose()?;
            if cap.is_some() && offer.terms.kind != OfferKind::Subscribe {
                return Err(Problem::invalid("/cap", "only subscriptions have one"));
            }
            if body.note.is_some() && offer.terms.answer_seconds.is_none() {
                return Err(Problem::invalid(
                    "/note",
                    "nobody has to ask for this offer",
                ));
            }
            let seconds = seconds(&offer.terms, body.seconds)?;
            available?;
            tenant::widen(tx).await?;
            let new = NewPurchase {
                account,
                payer,
                spender,
                expected,
                seconds,
                cap,
                note: body.note,
                offer,
            };
            let taken = purchases::take(tx, &new, now).await;
            let taken = taken.map_err(|error| not_taken(error, &asset))?;
            let body = PurchaseBody::read(tx, taken.id).await?;
            Ok(Reply::created(format!("/v1/purchases/{}", taken.id), &body))
        })
    })
    .await
}

fn not_taken(error: TakeError, asset: &Asset) -> Problem {
    let conflict = |code, title| Problem::new(StatusCode::CONFLICT, code, title);
    match error {
        TakeError::Own => conflict("own_dataset", "The dataset is your own"),
        TakeError::Owned(id) => {
            conflict("already_owned", "You have it already").detail(format!("by {id}"))
        }
        TakeError::Requested(id) => {
            conflict("already_requested", "You asked for it already").detail(format!("with {id}"))
        }
        TakeError::Subscribed(id) => {
            conflict("already_subscribed", "You subscribe already").detail(format!("by {id}"))
        }
        TakeError::PriceChanged(price) => {
            conflict("price_changed", "It does not cost what was expected")
                .detail(format!("it costs {price} base units of {}", asset.caip19()))
        }
        TakeError::TooDear => too_dear(),
        TakeError::NotOnSale => closed(),
        TakeError::NothingReady => availability::nothing_ready(),
        TakeError::Blocked(takedown) => blocked(takedown),
        TakeError::NothingToTake => conflict(
            "nothing_to_take",
            "There is nothing to take: jobs that compute on the dataset name it, and pay for it",
        ),
        TakeError::TooLong(longest) => Problem::invalid(
            "/seconds",
            format!("what is rented would last longer than {longest} seconds from now"),
        ),
        TakeError::AboveCap(price) => {
            Problem::invalid("/cap/amount", format!("a period costs {price} base units"))
        }
        TakeError::NoAddress("buyer") => {
            conflict("address_not_bound", "The account has no bound address")
        }
        TakeError::NoAddress(_) => closed().detail("its seller has no address that could be paid"),
        TakeError::AboveSpendLimit(limit) => above_spend_limit(limit),
        TakeError::Hold(error) => hold_refused(error),
        TakeError::Database(error) => error.into(),
        error @ (TakeError::Split(_) | TakeError::End(_) | TakeError::Asset(_)) => {
            Problem::internal(&error)
        }
    }
}

/// What you took, newest first.
#[utoipa::path(
    get, path = "/v1/purchases", tag = "market", security(("session" = []), ("api_key" = ["purchases:read"])),
    params(PurchasesFilter, crate::page::PageQuery),
    responses(
        (status = 200, body = Page<PurchaseBody>),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn list_purchases(
    State(state): State<AppState>,
    caller: Caller<needs::PurchasesRead>,
    list: List<PurchasesFilter>,
) -> Result<Page<PurchaseBody>, Problem> {
    let side = Side::Buyer(caller.account);
    list_side(&state, &caller, side, &list).await
}

pub(super) async fn list_side(
    state: &AppState,
    caller: &Identity,
    side: Side,
    list: &List<PurchasesFilter>,
) -> Result<Page<PurchaseBody>, Problem> {
    let before: Option<PurchaseId> = list.position(state, caller)?;
    let mut connection = caller.read(state).await?;
    let asset = assets::current(&mut connection).await.map_err(no_asset)?;
    let filter = Filter {
        state: list.filter.state,
        dataset: list.filter.dataset,
    };
    let rows = purchases::list(&mut connection, side, filter, before, list.fetch()).await?;
    Ok(list.page(
        state,
        caller,
        rows,
        |row| row.id,
        |row| PurchaseBody::new(row, &asset),
    ))
}

/// A purchase or sale of yours.
#[utoipa::path(
    get, path = "/v1/purchases/{purchase}", tag = "market", security(("session" = []), ("api_key" = ["purchases:read"])),
    params(("purchase" = String, Path)),
    responses(
        (status = 200, body = PurchaseBody, headers(("ETag" = String))),
        (status = 304),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn find_purchase(
    State(state): State<AppState>,
    caller: Caller<needs::PurchasesRead>,
    Path(id): Path<PurchaseId>,
    conditions: Conditions,
) -> Result<Response, Problem> {
    let mut connection = caller.read(&state).await?;
    Ok(conditions.answer(PurchaseBody::read(&mut connection, id).await?))
}

/// Changes a purchase of the caller, in a transaction that reaches the seller too, and answers with what it is then.
pub(super) async fn change(
    state: AppState,
    identity: Identity,
    id: PurchaseId,
    effect: impl for<'t> FnOnce(
        &'t mut PgTransaction<'static>,
        Option<Purchase>,
    ) -> BoxFuture<'t, Result<(), Problem>>
    + Send
    + 'static,
) -> Result<Response, Problem> {
    in_task(async move {
        let mut tx = identity.begin(&state).await?;
        let purchase = purchases::lock(&mut tx, id).await?;
        tenant::widen(&mut tx).await?;
        effect(&mut tx, purchase).await?;
        let body = PurchaseBody::read(&mut tx, id).await?;
        tx.commit().await?;
        Ok(Json(body).into_response())
    })
    .await
}

fn own(purchase: Option<Purchase>, buyer: AccountId) -> Result<Purchase, Problem> {
    let own = purchase.filter(|it| it.account == buyer);
    own.ok_or_else(Problem::not_found)
}

/// Gives back something that was bought for good, of which nothing was read, until `refundable_until`, or takes back a request of any kind that waits for
/// its answer. The whole price is yours again. Again changes nothing.
#[utoipa::path(
    post, path = "/v1/purchases/{purchase}/refund", tag = "market", security(("session" = []), ("api_key" = ["purchases:write"])),
    params(("purchase" = String, Path)),
    responses(
        (status = 200, body = PurchaseBody),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn refund_purchase(
    State(state): State<AppState>,
    caller: Caller<needs::PurchasesWrite>,
    Path(id): Path<PurchaseId>,
) -> Result<Response, Problem> {
    let (now, buyer) = (state.now(), caller.account);
    change(state, Identity::clone(&caller), id, move |tx, purchase| {
        Box::pin(async move {
            let purchase = own(purchase, buyer)?;
            purchases::refund_to_buyer(tx, &purchase, now)
                .await
                .map_err(not_ended)
        })
    })
    .await
}

/// Ends a rental, or the running period of a subscription, now: it is charged for the seconds used, or its `minimum_seconds` once something was read,
/// and the rest of its price is yours again. A request for one is taken back.
#[utoipa::path(
    post, path = "/v1/purchases/{purchase}/end", tag = "market", security(("session" = []), ("api_key" = ["purchases:write"])),
    params(("purchase" = String, Path)),
    responses(
        (status = 200, body = PurchaseBody),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn end_purchase(
    State(state): State<AppState>,
    caller: Caller<needs::PurchasesWrite>,
    Path(id): Path<PurchaseId>,
) -> Result<Response, Problem> {
    let (now, buyer) = (state.now(), caller.account);
    change(state, Identity::clone(&caller), id, move |tx, purchase| {
        Box::pin(async move {
            let purchase = own(purchase, buyer)?;
            purchases::end_by_buyer(tx, &purchase, now)
                .await
                .map_err(not_ended)
        })
    })
    .await
}

fn is_final(detail: impl Into<String>) -> Problem {
    let (status, code) = (StatusCode::CONFLICT, "purchase_final");
    Problem::new(status, code, "The purchase is final").detail(detail)
}

pub(super) fn not_ended(error: EndError) -> Problem {
    match error {
        EndError::NotFound => Problem::not_found(),
        EndError::NotOpen(state) => is_final(format!("it is {state}")),
        EndError::Served => is_final("something of it was read"),
        EndError::Late => {
            is_final("the time in which it could be given back is over, or its offer gave none")
        }
        EndError::Kind => Problem::new(
            StatusCode::CONFLICT,
            "purchase_kind",
            "What is bought for good is given back by `refund`, and what lasts for some time ended by `end`",
        ),
        EndError::Database(error) => error.into(),
        error @ (EndError::Bill(_) | EndError::Sale(_) | EndError::Hold(_)) => {
            Problem::internal(&error)
        }
    }
}
