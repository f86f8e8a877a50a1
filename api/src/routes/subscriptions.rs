//! `/v1/subscriptions`: purchases that renew themselves.

use axum::{
    extract::State,
    response::{IntoResponse as _, Response},
};
use comptoir_domain::{
    asset::Asset,
    id::{OfferId, PurchaseId, SubscriptionId},
    purchase::{SubscriptionEnd, SubscriptionState},
};
use comptoir_store::{
    assets,
    subscriptions::{self, Subscription},
    tenant,
};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{accounts::in_task, purchases::not_ended};
use crate::{
    AppState, Problem,
    auth::{Caller, Identity, needs},
    etag::Conditions,
    extract::{Json, Path},
    money::MoneyBody,
    page::{List, Page, PageQuery},
    quoting::no_asset,
};

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(list_subscriptions))
        .routes(routes!(find_subscription, update_subscription))
        .routes(routes!(cancel_subscription))
}

#[derive(Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum SubscriptionObject {
    Subscription,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Subscription)]
struct SubscriptionBody {
    #[schema(value_type = String, example = "sub_01h455vb4pex5vsknk084sn02q")]
    id: SubscriptionId,
    object: SubscriptionObject,
    state: SubscriptionState,
    #[schema(value_type = String)]
    offer: OfferId,
    /// The most that a period may cost.
    cap: MoneyBody,
    /// The newest of its periods.
    #[schema(value_type = String)]
    period: PurchaseId,
    /// Why it ends or ended.
    #[schema(required = true)]
    ended_because: Option<SubscriptionEnd>,
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339::option")]
    #[schema(required = true)]
    ended_at: Option<OffsetDateTime>,
}

impl SubscriptionBody {
    fn new(subscription: &Subscription, asset: &Asset) -> Self {
        Self {
            id: subscription.id,
            object: SubscriptionObject::Subscription,
            state: subscription.state,
            offer: subscription.offer,
            cap: MoneyBody::new(subscription.cap, asset),
            period: subscription.period,
            ended_because: subscription.ended_because,
            created_at: subscription.created_at,
            ended_at: subscription.ended_at,
        }
    }
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct SubscriptionPatch {
    /// The most that a period may cost, from the next one on.
    cap: MoneyBody,
}

/// What you subscribe to, newest first.
#[utoipa::path(
    get, path = "/v1/subscriptions", tag = "market", security(("session" = []), ("api_key" = ["purchases:read"])),
    params(PageQuery),
    responses(
        (status = 200, body = Page<SubscriptionBody>),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn list_subscriptions(
    State(state): State<AppState>,
    caller: Caller<needs::PurchasesRead>,
    list: List,
) -> Result<Page<SubscriptionBody>, Problem> {
    let before: Option<SubscriptionId> = list.position(&state, &caller)?;
    let mut connection = caller.read(&state).await?;
    let asset = assets::current(&mut connection).await.map_err(no_asset)?;
    let rows = subscriptions::list(&mut connection, caller.account, before, list.fetch()).await?;
    Ok(list.page(
        &state,
        &caller,
        rows,
        |row| row.id,
        |row| SubscriptionBody::new(&row, &asset),
    ))
}

/// A subscription of yours.
#[utoipa::path(
    get, path = "/v1/subscriptions/{subscription}", tag = "market", security(("session" = []), ("api_key" = ["purchases:read"])),
    params(("subscription" = String, Path)),
    responses(
        (status = 200, body = SubscriptionBody, headers(("ETag" = String))),
        (status = 304),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn find_subscription(
    State(state): State<AppState>,
    caller: Caller<needs::PurchasesRead>,
    Path(id): Path<SubscriptionId>,
    conditions: Conditions,
) -> Result<Response, Problem> {
    let mut connection = caller.read(&state).await?;
    let found = subscriptions::find(&mut connection, caller.account, id).await?;
    let subscription = found.ok_or_else(Problem::not_found)?;
    let asset = assets::current(&mut connection).await.map_err(no_asset)?;
    Ok(conditions.answer(SubscriptionBody::new(&subscription, &asset)))
}

/// Changes the most that a period may cost.
#[utoipa::path(
    patch, path = "/v1/subscriptions/{subscription}", tag = "market", security(("session" = []), ("api_key" = ["purchases:write"])),
    params(("subscription" = String, Path), ("If-Match" = String, Header, description = "The `ETag` that the subscription was read with")),
    request_body(content = SubscriptionPatch, content_type = "application/merge-patch+json"),
    responses(
        (status = 200, body = SubscriptionBody, headers(("ETag" = String))),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn update_subscription(
    State(state): State<AppState>,
    caller: Caller<needs::PurchasesWrite>,
    Path(id): Path<SubscriptionId>,
    conditions: Conditions,
    Json(patch): Json<SubscriptionPatch>,
) -> Result<Response, Problem> {
    let identity = Identity::clone(&caller);
    in_task(async move {
        let mut tx = identity.begin(&state).await?;
        let found = subscriptions::lock(&mut tx, identity.account, id).await?;
        let mut subscription = found.ok_or_else(Problem::not_found)?;
        let asset = assets::current(&mut tx).await.map_err(no_asset)?;
        conditions.require_match(&SubscriptionBody::new(&subscription, &asset))?;
        subscription.cap = patch.cap.amount_of(&asset, "/cap")?;
        subscriptions::set_cap(&mut tx, id, subscription.cap).await?;
        tx.commit().await?;
        Ok(conditions.answer(SubscriptionBody::new(&subscription, &asset)))
    })
    .await
}

/// Ends a subscription with its period, which is paid for; a next one that was begun ahead is given back. To end it now, end the period. One that its
/// seller has not answered ends at once. Again changes nothing.
#[utoipa::path(
    post, path = "/v1/subscriptions/{subscription}/cancel", tag = "market", security(("session" = []), ("api_key" = ["purchases:write"])),
    params(("subscription" = String, Path)),
    responses(
        (status = 200, body = SubscriptionBody),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn cancel_subscription(
    State(state): State<AppState>,
    caller: Caller<needs::PurchasesWrite>,
    Path(id): Path<SubscriptionId>,
) -> Result<Response, Problem> {
    let identity = Identity::clone(&caller);
    in_task(async move {
        let mut tx = identity.begin(&state).await?;
        let found = subscriptions::find(&mut tx, identity.account, id).await?;
        found.ok_or_else(Problem::not_found)?;
        tenant::widen(&mut tx).await?;
        let now = state.now();
        subscriptions::cancel(&mut tx, (identity.account, id), now)
            .await
            .map_err(not_ended)?;
        let changed = subscriptions::find(&mut tx, identity.account, id).await?;
        let changed = changed.ok_or_else(Problem::not_found)?;
        let asset = assets::current(&mut tx).await.map_err(no_asset)?;
        tx.commit().await?;
        Ok(Json(SubscriptionBody::new(&changed, &asset)).into_response())
    })
    .await
}
