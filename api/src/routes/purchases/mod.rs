//! `/v1/purchases`: what buyers took.

mod body;
mod taking;

use axum::{
    extract::State,
    http::StatusCode,
    response::{IntoResponse as _, Response},
};
use comptoir_domain::{
    id::{AccountId, DatasetId, PurchaseId},
    purchase::PurchaseState,
};
use comptoir_store::{
    PgTransaction, assets,
    purchases::{self, EndError, Filter, Purchase, Side},
    tenant,
};
use futures::future::BoxFuture;
use serde::Deserialize;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

pub(super) use self::body::PurchaseBody;
pub use self::taking::Purchases;
use super::accounts::in_task;
use crate::{
    AppState, Problem,
    auth::{Caller, Identity, needs},
    etag::Conditions,
    extract::{Json, Path},
    page::{List, Page},
    quoting::no_asset,
};

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(list_purchases))
        .merge(taking::router())
        .routes(routes!(find_purchase))
        .routes(routes!(refund_purchase))
        .routes(routes!(end_purchase))
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
