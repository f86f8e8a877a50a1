//! `/v1/webhook-endpoints/{id}/deliveries`: what was sent to an endpoint, what it answered, and sending it again.

use axum::{extract::State, response::Response};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use comptoir_domain::{
    id::{WebhookDeliveryId, WebhookEndpointId, WebhookEventId},
    webhook::{EventType, KEPT_FOR},
};
use comptoir_store::webhooks::{
    self as endpoints,
    deliveries::{self, Attempt, Delivery, DeliveryFilter, DeliveryState, REDELIVERED_MAX},
};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{accounts::in_task, webhook_endpoints::refuse_disabled};
use crate::{
    AppState, Problem,
    auth::{Caller, Identity, needs},
    etag::Conditions,
    extract::{Json, Path},
    page::{List, Page, PageQuery},
};
use axum::response::IntoResponse as _;

/// Attempts of one delivery that are shown: three rounds of the schedule.
const ATTEMPTS_SHOWN: i64 = 30;

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(list_webhook_deliveries))
        .routes(routes!(find_webhook_delivery))
        .routes(routes!(redeliver_webhook))
        .routes(routes!(redeliver_webhooks_since))
}

#[derive(Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum DeliveryObject {
    WebhookDelivery,
}

/// How a delivery stands.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = WebhookDeliveryState)]
enum StateBody {
    /// It is tried, again where it failed.
    Pending,
    /// The endpoint took it.
    Delivered,
    /// It did not, however often it was tried.
    Failed,
    /// The endpoint was disabled before it did.
    Cancelled,
}

impl From<DeliveryState> for StateBody {
    fn from(state: DeliveryState) -> Self {
        match state {
            DeliveryState::Pending => Self::Pending,
            DeliveryState::Delivered => Self::Delivered,
            DeliveryState::Failed => Self::Failed,
            DeliveryState::Cancelled => Self::Cancelled,
        }
    }
}

impl From<StateBody> for DeliveryState {
    fn from(state: StateBody) -> Self {
        match state {
            StateBody::Pending => Self::Pending,
            StateBody::Delivered => Self::Delivered,
            StateBody::Failed => Self::Failed,
            StateBody::Cancelled => Self::Cancelled,
        }
    }
}

/// What came of one attempt.
#[derive(Serialize, ToSchema)]
#[schema(as = WebhookAttempt)]
struct AttemptBody {
    /// 1, 2, 3 … within the delivery.
    number: i16,
    #[serde(with = "time::serde::rfc3339")]
    started_at: OffsetDateTime,
    latency_ms: i32,
    /// The status of the answer; `null` when there was none.
    #[schema(required = true)]
    status: Option<i16>,
    /// Why it counts as failed: `status`, `redirect`, `gone`, `timeout`, `connect`, `broken_off`, `host_unknown`,
    /// `address_refused`, `port_refused`, `url_refused`; more may come. `null`: it was taken.
    #[schema(required = true)]
    error: Option<String>,
    /// The first 1024 bytes of the answer, what is no UTF-8 of it replaced; `null` when there was none.
    #[schema(required = true)]
    answer: Option<String>,
    /// The same bytes in base64, when they are no text.
    #[schema(required = true)]
    answer_base64: Option<String>,
}

impl From<Attempt> for AttemptBody {
    fn from(attempt: Attempt) -> Self {
        let binary = |bytes: &Vec<u8>| {
            let is_text = std::str::from_utf8(bytes).is_ok();
            (!is_text).then(|| BASE64_STANDARD.encode(bytes))
        };
        let text = |bytes: &Vec<u8>| String::from_utf8_lossy(bytes).into_owned();
        Self {
            number: attempt.number,
            started_at: attempt.started_at,
            latency_ms: attempt.latency_ms,
            status: attempt.status,
            error: attempt.error,
            answer_base64: attempt.answer.as_ref().and_then(binary),
            answer: attempt.answer.as_ref().map(text),
        }
    }
}

#[derive(Serialize, ToSchema)]
#[schema(as = WebhookDelivery)]
struct DeliveryBody {
    #[schema(value_type = String, example = "whd_01h455vb4pex5vsknk084sn02q")]
    id: WebhookDeliveryId,
    object: DeliveryObject,
    #[schema(value_type = String, example = "evt_01h455vb4pex5vsknk084sn02q")]
    event_id: WebhookEventId,
    event_type: EventType,
    state: StateBody,
    /// Attempts so far.
    attempts: i16,
    #[serde(with = "time::serde::rfc3339::option")]
    #[schema(required = true)]
    next_attempt_at: Option<OffsetDateTime>,
    /// What came of the last attempt.
    #[schema(required = true)]
    last_attempt: Option<AttemptBody>,
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339::option")]
    #[schema(required = true)]
    ended_at: Option<OffsetDateTime>,
}

impl From<Delivery> for DeliveryBody {
    fn from(delivery: Delivery) -> Self {
        Self {
            id: delivery.id,
            object: DeliveryObject::WebhookDelivery,
            event_id: delivery.event,
            event_type: delivery.kind,
            state: delivery.state.into(),
            attempts: delivery.attempts,
            next_attempt_at: delivery.next_attempt_at,
            last_attempt: delivery.last.map(AttemptBody::from),
            created_at: delivery.created_at,
            ended_at: delivery.ended_at,
        }
    }
}

#[derive(Serialize, ToSchema)]
#[schema(as = WebhookDeliveryWithAttempts)]
struct DeliveryWithAttempts {
    #[serde(flatten)]
    shown: DeliveryBody,
    /// What came of each attempt, oldest first; of the newest 30.
    log: Vec<AttemptBody>,
}

/// Which deliveries to list.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct DeliveryQuery {
    /// Only those in this state.
    state: Option<StateBody>,
    /// Only those of this event.
    #[param(value_type = Option<String>)]
    event_id: Option<WebhookEventId>,
}

/// Deliveries to a webhook endpoint, newest first.
#[utoipa::path(
    get, path = "/v1/webhook-endpoints/{id}/deliveries", tag = "webhooks",
    security(("session" = []), ("api_key" = ["webhooks:read"])),
    params(("id" = String, Path), PageQuery, DeliveryQuery),
    responses(
        (status = 200, body = Page<DeliveryBody>),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn list_webhook_deliveries(
    State(state): State<AppState>,
    caller: Caller<needs::WebhooksRead>,
    list: List<DeliveryQuery>,
    Path(id): Path<WebhookEndpointId>,
) -> Result<Page<DeliveryBody>, Problem> {
    let before: Option<WebhookDeliveryId> = list.position(&state, &caller)?;
    let filter = DeliveryFilter {
        state: list.filter.state.map(DeliveryState::from),
        event: list.filter.event_id,
    };
    let mut connection = caller.read(&state).await?;
    let endpoint = endpoints::find(&mut connection, caller.account, id).await?;
    endpoint.ok_or_else(Problem::not_found)?;
    let owner = (caller.account, id);
    let rows = deliveries::list(&mut connection, owner, filter, before, list.fetch()).await?;
    Ok(list.page(&state, &caller, rows, |row| row.id, DeliveryBody::from))
}

/// One delivery with what came of each attempt.
#[utoipa::path(
    get, path = "/v1/webhook-endpoints/{id}/deliveries/{delivery_id}", tag = "webhooks",
    security(("session" = []), ("api_key" = ["webhooks:read"])),
    params(("id" = String, Path), ("delivery_id" = String, Path)),
    responses(
        (status = 200, body = DeliveryWithAttempts, headers(("ETag" = String))),
        (status = 304),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn find_webhook_delivery(
    State(state): State<AppState>,
    caller: Caller<needs::WebhooksRead>,
    Path((id, delivery)): Path<(WebhookEndpointId, WebhookDeliveryId)>,
    conditions: Conditions,
) -> Result<Response, Problem> {
    let mut connection = caller.read(&state).await?;
    let found = deliveries::find(&mut connection, (caller.account, id), delivery).await?;
    let found = found.ok_or_else(Problem::not_found)?;
    let log = deliveries::attempts(&mut connection, delivery, ATTEMPTS_SHOWN).await?;
    Ok(conditions.answer(DeliveryWithAttempts {
        shown: found.into(),
        log: log.into_iter().map(AttemptBody::from).collect(),
    }))
}

/// Sends one event again, now and by the schedule, whether it was delivered or not. While it is being sent this changes nothing.
#[utoipa::path(
    post, path = "/v1/webhook-endpoints/{id}/deliveries/{delivery_id}/redeliver", tag = "webhooks",
    security(("session" = []), ("api_key" = ["webhooks:write"])),
    params(("id" = String, Path), ("delivery_id" = String, Path)),
    responses(
        (status = 200, body = DeliveryBody),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn redeliver_webhook(
    State(state): State<AppState>,
    caller: Caller<needs::WebhooksWrite>,
    Path((id, delivery)): Path<(WebhookEndpointId, WebhookDeliveryId)>,
) -> Result<Response, Problem> {
    let (now, identity) = (state.now(), Identity::clone(&caller));
    in_task(async move {
        let mut tx = identity.begin(&state).await?;
        let endpoint = endpoints::lock(&mut tx, identity.account, id).await?;
        let endpoint = endpoint.ok_or_else(Problem::not_found)?;
        let owner = (identity.account, id);
        let found = deliveries::find(&mut tx, owner, delivery).await?;
        found.ok_or_else(Problem::not_found)?;
        refuse_disabled(&endpoint)?;
        deliveries::redeliver(&mut tx, delivery, now).await?;
        let begun = deliveries::find(&mut tx, owner, delivery).await?;
        let begun = begun.ok_or_else(Problem::not_found)?;
        tx.commit().await?;
        Ok(Json(DeliveryBody::from(begun)).into_response())
    })
    .await
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct RedeliverSince {
    /// What happened since then; 30 days back at most, as events are kept, and when absent.
    #[serde(default, with = "comptoir_http::moment::option")]
    since: Option<OffsetDateTime>,
}

#[derive(Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum RedeliveryObject {
    WebhookRedelivery,
}

/// What is sent again.
#[derive(Serialize, ToSchema)]
#[schema(as = WebhookRedelivery)]
struct RedeliveryBody {
    object: RedeliveryObject,
    /// How many events.
    redelivered: u64,
    /// Are there more? Then ask again.
    has_more: bool,
}

/// Sends again what happened since a time and the endpoint did not take: what failed, what was cancelled, and what happened while it
/// was disabled. The oldest 1000 events of it at once.
#[utoipa::path(
    post, path = "/v1/webhook-endpoints/{id}/redeliver", tag = "webhooks",
    security(("session" = []), ("api_key" = ["webhooks:write"])),
    params(("id" = String, Path)),
    request_body = RedeliverSince,
    responses(
        (status = 200, body = RedeliveryBody),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn redeliver_webhooks_since(
    State(state): State<AppState>,
    caller: Caller<needs::WebhooksWrite>,
    Path(id): Path<WebhookEndpointId>,
    Json(body): Json<RedeliverSince>,
) -> Result<Response, Problem> {
    let (now, identity) = (state.now(), Identity::clone(&caller));
    let oldest = now.saturating_sub(KEPT_FOR);
    let since = body.since.unwrap_or(oldest);
    if since > now || since < oldest {
        let detail = "expected a time in the last 30 days";
        return Err(Problem::invalid("/since", detail));
    }
    in_task(async move {
        let mut tx = identity.begin(&state).await?;
        let endpoint = endpoints::lock(&mut tx, identity.account, id).await?;
        refuse_disabled(&endpoint.ok_or_else(Problem::not_found)?)?;
        let owner = (identity.account, id);
        let redelivered = deliveries::redeliver_since(&mut tx, owner, since, now).await?;
        tx.commit().await?;
        let body = RedeliveryBody {
            object: RedeliveryObject::WebhookRedelivery,
            redelivered,
            has_more: redelivered >= REDELIVERED_MAX.unsigned_abs(),
        };
        Ok(Json(body).into_response())
    })
    .await
}
