//! `/v1/webhook-endpoints`: where an account wants to be told what happens.

use axum::{
    extract::State,
    http::StatusCode,
    response::{IntoResponse as _, Response},
};
use comptoir_domain::{
    audit::{Action, Event},
    id::WebhookEndpointId,
    webhook::{DESCRIPTION_CHARS_MAX, EventType, ROTATION, Secret},
};
use comptoir_http::client_ip;
use comptoir_store::{
    PgTransaction, audit, limits,
    webhooks::{self as endpoints, Cause, CreateEndpointError, Endpoint, Settings, events},
};
use serde::{Deserialize, Deserializer, Serialize};
use time::{Duration, OffsetDateTime};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::accounts::in_task;
use crate::{
    AppState, FieldError, Problem,
    auth::{Caller, Identity, keys::random, needs},
    etag::Conditions,
    extract::{Json, Path},
    idempotency::{self, IdempotentJson, Reply},
    limiting::limited,
    page::{List, Page, PageQuery},
    webhooks::{body::EventBody, guard::Refusal, seal},
};

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(list_webhook_endpoints, create_webhook_endpoint))
        .routes(routes!(
            find_webhook_endpoint,
            update_webhook_endpoint,
            delete_webhook_endpoint
        ))
        .routes(routes!(rotate_webhook_secret))
        .routes(routes!(test_webhook_endpoint))
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewWebhookEndpoint {
    /// Where events are sent: https, at port 443, 4443 or 8443 of a host on the public internet.
    #[schema(
        format = "uri",
        max_length = 2000,
        example = "https://example.org/hooks/comptoir"
    )]
    url: String,
    /// What you call it.
    #[serde(default)]
    #[schema(min_length = 1, max_length = 200)]
    description: Option<String>,
    /// What it is told of; of everything, and of what is new in later versions, when absent or `null`.
    #[serde(default)]
    #[schema(min_items = 1, max_items = 100)]
    event_types: Option<Vec<EventType>>,
    /// Is it told anything yet?
    #[serde(default = "yes")]
    #[schema(default = true)]
    enabled: bool,
}

const fn yes() -> bool {
    true
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct WebhookEndpointPatch {
    /// Where events are sent from now on.
    #[serde(default, deserialize_with = "present")]
    #[schema(nullable = false, format = "uri", max_length = 2000)]
    url: Option<String>,
    /// What you call it; `null`: nothing.
    #[serde(default)]
    #[schema(value_type = Option<String>, min_length = 1, max_length = 200)]
    description: Change<String>,
    /// What it is told of; `null`: of everything.
    #[serde(default)]
    #[schema(value_type = Option<Vec<EventType>>, min_items = 1, max_items = 100)]
    event_types: Change<Vec<EventType>>,
    /// Is it told anything?
    #[serde(default, deserialize_with = "present")]
    #[schema(nullable = false)]
    enabled: Option<bool>,
}

/// What a merge patch says of a field that may be `null`.
#[derive(Default)]
enum Change<T> {
    /// It does not name it.
    #[default]
    Kept,
    /// It does; nothing: `null`.
    Set(Option<T>),
}

impl<T> Change<T> {
    const fn named(&self) -> Option<&T> {
        match self {
            Self::Kept => None,
            Self::Set(value) => value.as_ref(),
        }
    }

    fn over(self, before: Option<T>) -> Option<T> {
        match self {
            Self::Kept => before,
            Self::Set(value) => value,
        }
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Change<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Option::deserialize(deserializer).map(Self::Set)
    }
}

/// In a merge patch `null` removes; this cannot be removed.
fn present<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Rotation {
    /// For how many seconds the secret that is replaced signs too; 24 hours when absent.
    #[serde(default)]
    #[schema(minimum = 0, maximum = 604_800, default = 86_400)]
    previous_valid_s: Option<u32>,
}

/// Longest time for which a secret that was replaced signs too, in seconds: a week.
const PREVIOUS_VALID_MAX_S: u32 = 604_800;

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct EndpointTest {}

#[derive(Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum EndpointObject {
    WebhookEndpoint,
}

/// Why an endpoint is told nothing.
#[derive(Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum DisabledReason {
    /// You said so.
    Owner,
    /// It answered 410.
    Gone,
    /// It failed for three days.
    Failing,
}

#[derive(Serialize, ToSchema)]
#[schema(as = WebhookEndpoint)]
struct EndpointBody {
    #[schema(value_type = String, example = "we_01h455vb4pex5vsknk084sn02q")]
    id: WebhookEndpointId,
    object: EndpointObject,
    /// As the service understands it.
    #[schema(format = "uri")]
    url: String,
    #[schema(required = true)]
    description: Option<String>,
    /// What it is told of; `null`: of everything.
    #[schema(required = true)]
    event_types: Option<Vec<EventType>>,
    enabled: bool,
    #[schema(required = true)]
    disabled_reason: Option<DisabledReason>,
    #[serde(with = "time::serde::rfc3339::option")]
    #[schema(required = true)]
    disabled_at: Option<OffsetDateTime>,
    /// The first failure after the last success.
    #[serde(with = "time::serde::rfc3339::option")]
    #[schema(required = true)]
    failing_since: Option<OffsetDateTime>,
    /// Until when the secret before this one signs too.
    #[serde(with = "time::serde::rfc3339::option")]
    #[schema(required = true)]
    previous_secret_until: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
}

impl From<Endpoint> for EndpointBody {
    fn from(endpoint: Endpoint) -> Self {
        let reason = endpoint.disabled.map(|(cause, _)| match cause {
            Cause::Owner => DisabledReason::Owner,
            Cause::Gone => DisabledReason::Gone,
            Cause::Failing => DisabledReason::Failing,
        });
        Self {
            id: endpoint.id,
            object: EndpointObject::WebhookEndpoint,
            url: endpoint.url,
            description: endpoint.description,
            event_types: endpoint.event_types,
            enabled: endpoint.disabled.is_none(),
            disabled_reason: reason,
            disabled_at: endpoint.disabled.map(|(_, at)| at),
            failing_since: endpoint.failing_since,
            previous_secret_until: endpoint.previous_secret_until,
            created_at: endpoint.created_at,
        }
    }
}

#[derive(Serialize, ToSchema)]
#[schema(as = WebhookEndpointWithSecret)]
struct EndpointWithSecret {
    #[serde(flatten)]
    shown: EndpointBody,
    /// What messages are signed with. It is shown in this reply alone.
    #[schema(example = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")]
    secret: String,
}

/// The URL as it is understood, when something may be sent there.
async fn checked(state: &AppState, url: &str) -> Result<String, Problem> {
    let refused = |refusal: Refusal| Problem::invalid("/url", refusal.to_string());
    let url = state.webhooks.guard.check(url).await.map_err(refused)?;
    Ok(url.into())
}

fn refuse_bad(description: Option<&str>, event_types: Option<&[EventType]>) -> Result<(), Problem> {
    let mut errors = Vec::new();
    let is_long = |text: &str| !(1..=DESCRIPTION_CHARS_MAX).contains(&text.chars().count());
    if description.is_some_and(is_long) {
        let detail = format!("expected 1 to {DESCRIPTION_CHARS_MAX} characters");
        errors.push(FieldError::new("/description", detail));
    }
    // One type twice is a mistake; so a list is never longer than all of them.
    let is_bad = |types: &[EventType]| {
        let mut sorted = types.to_vec();
        sorted.sort_unstable();
        sorted.dedup();
        types.is_empty() || sorted.len() < types.len()
    };
    if event_types.is_some_and(is_bad) {
        let detail = "expected types of events, each once; null for all of them";
        errors.push(FieldError::new("/event_types", detail));
    }
    if errors.is_empty() {
        Ok(())
    } else {
        Err(Problem::invalid_fields(errors))
    }
}

async fn note(
    tx: &mut PgTransaction<'_>,
    by: &Identity,
    action: Action,
    (endpoint, url): (WebhookEndpointId, &str),
    (origin, now): (comptoir_domain::audit::Origin, OffsetDateTime),
) -> Result<(), Problem> {
    // A URL may be as long as a detail, and what is behind the host may be a secret of the receiver's.
    let host = url::Url::parse(url).ok();
    let host = host
        .as_ref()
        .and_then(url::Url::host_str)
        .unwrap_or_default();
    let event = Event::new(by.actor(), action, endpoint.to_string())
        .of_account(by.account)
        .with("host", host)
        .from(origin);
    let appended = audit::append(tx, &event, now).await;
    appended
        .map_err(|error| Problem::internal(&error))
        .map(drop)
}

/// Creates a webhook endpoint. The reply shows its secret, once.
#[utoipa::path(
    post, path = "/v1/webhook-endpoints", tag = "webhooks", security(("session" = []), ("api_key" = ["webhooks:write"])),
    params(("Idempotency-Key" = String, Header)),
    request_body = NewWebhookEndpoint,
    responses(
        (status = 201, body = EndpointWithSecret, headers(("Location" = String))),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn create_webhook_endpoint(
    State(state): State<AppState>,
    caller: Caller<needs::WebhooksWrite>,
    request: IdempotentJson<NewWebhookEndpoint>,
) -> Result<Response, Problem> {
    let (now, origin, identity) = (state.now(), client_ip::origin(), Identity::clone(&caller));
    let body = request.body;
    refuse_bad(body.description.as_deref(), body.event_types.as_deref())?;
    let url = checked(&state, &body.url).await?;
    let (id, secret) = (WebhookEndpointId::generate(), Secret::from_random(random()));
    let sealed = seal(&state.keys, id, &secret);
    idempotency::run(&state, &caller, request.key, move |tx| {
        Box::pin(async move {
            let frozen = limits::refuse_frozen(tx, identity.account).await;
            frozen.map_err(limited)?;
            let settings = Settings {
                url: &url,
                description: body.description.as_deref(),
                event_types: body.event_types.as_deref(),
                enabled: body.enabled,
            };
            let made = endpoints::create(tx, (identity.account, id), &settings, &sealed, now).await;
            let made = made.map_err(|error| not_created(&error))?;
            let action = Action::WebhookEndpointCreated;
            note(tx, &identity, action, (id, &url), (origin, now)).await?;
            let created = EndpointWithSecret {
                shown: made.into(),
                secret: secret.reveal(),
            };
            Ok(Reply::created(
                format!("/v1/webhook-endpoints/{id}"),
                &created,
            ))
        })
    })
    .await
}

fn not_created(error: &CreateEndpointError) -> Problem {
    match error {
        CreateEndpointError::TooMany => Problem::new(
            StatusCode::CONFLICT,
            "too_many_webhook_endpoints",
            "The account has as many webhook endpoints as it may",
        ),
        CreateEndpointError::Database(_) => Problem::internal(error),
    }
}

/// The account's webhook endpoints, newest first.
#[utoipa::path(
    get, path = "/v1/webhook-endpoints", tag = "webhooks", security(("session" = []), ("api_key" = ["webhooks:read"])),
    params(PageQuery),
    responses(
        (status = 200, body = Page<EndpointBody>),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn list_webhook_endpoints(
    State(state): State<AppState>,
    caller: Caller<needs::WebhooksRead>,
    list: List,
) -> Result<Page<EndpointBody>, Problem> {
    let before: Option<WebhookEndpointId> = list.position(&state, &caller)?;
    let mut connection = caller.read(&state).await?;
    let rows = endpoints::list(&mut connection, caller.account, before, list.fetch()).await?;
    Ok(list.page(&state, &caller, rows, |row| row.id, EndpointBody::from))
}

/// One webhook endpoint.
#[utoipa::path(
    get, path = "/v1/webhook-endpoints/{id}", tag = "webhooks", security(("session" = []), ("api_key" = ["webhooks:read"])),
    params(("id" = String, Path)),
    responses(
        (status = 200, body = EndpointBody, headers(("ETag" = String))),
        (status = 304),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn find_webhook_endpoint(
    State(state): State<AppState>,
    caller: Caller<needs::WebhooksRead>,
    Path(id): Path<WebhookEndpointId>,
    conditions: Conditions,
) -> Result<Response, Problem> {
    let mut connection = caller.read(&state).await?;
    let found = endpoints::find(&mut connection, caller.account, id).await?;
    let found = found.ok_or_else(Problem::not_found)?;
    Ok(conditions.answer(EndpointBody::from(found)))
}

/// Changes a webhook endpoint. One that is enabled again is told what happens from now on; what it missed is sent on request.
#[utoipa::path(
    patch, path = "/v1/webhook-endpoints/{id}", tag = "webhooks", security(("session" = []), ("api_key" = ["webhooks:write"])),
    params(
        ("id" = String, Path),
        ("If-Match" = String, Header, description = "The `ETag` that the endpoint was read with"),
    ),
    request_body(content = WebhookEndpointPatch, content_type = "application/merge-patch+json"),
    responses(
        (status = 200, body = EndpointBody, headers(("ETag" = String))),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn update_webhook_endpoint(
    State(state): State<AppState>,
    caller: Caller<needs::WebhooksWrite>,
    Path(id): Path<WebhookEndpointId>,
    conditions: Conditions,
    Json(patch): Json<WebhookEndpointPatch>,
) -> Result<Response, Problem> {
    let (now, origin, identity) = (state.now(), client_ip::origin(), Identity::clone(&caller));
    refuse_bad(
        patch.description.named().map(String::as_str),
        patch.event_types.named().map(Vec::as_slice),
    )?;
    let url = match &patch.url {
        Some(url) => Some(checked(&state, url).await?),
        None => None,
    };
    in_task(async move {
        let mut tx = identity.begin(&state).await?;
        let found = endpoints::lock(&mut tx, identity.account, id).await?;
        let before = found.ok_or_else(Problem::not_found)?;
        conditions.require_match(&EndpointBody::from(before.clone()))?;
        let description = patch.description.over(before.description);
        let event_types = patch.event_types.over(before.event_types);
        let settings = Settings {
            url: url.as_deref().unwrap_or(&before.url),
            description: description.as_deref(),
            event_types: event_types.as_deref(),
            enabled: patch.enabled.unwrap_or(before.disabled.is_none()),
        };
        let owner = (identity.account, id);
        endpoints::update(&mut tx, owner, &settings, now).await?;
        let action = Action::WebhookEndpointUpdated;
        note(
            &mut tx,
            &identity,
            action,
            (id, settings.url),
            (origin, now),
        )
        .await?;
        let changed = endpoints::find(&mut tx, identity.account, id).await?;
        let changed = changed.ok_or_else(Problem::not_found)?;
        tx.commit().await?;
        Ok(conditions.answer(EndpointBody::from(changed)))
    })
    .await
}

/// Deletes a webhook endpoint with its log. What is on its way is not sent any more.
#[utoipa::path(
    delete, path = "/v1/webhook-endpoints/{id}", tag = "webhooks", security(("session" = []), ("api_key" = ["webhooks:write"])),
    params(("id" = String, Path)),
    responses(
        (status = 204),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn delete_webhook_endpoint(
    State(state): State<AppState>,
    caller: Caller<needs::WebhooksWrite>,
    Path(id): Path<WebhookEndpointId>,
) -> Result<Response, Problem> {
    let (now, origin, identity) = (state.now(), client_ip::origin(), Identity::clone(&caller));
    in_task(async move {
        let mut tx = identity.begin(&state).await?;
        let found = endpoints::find(&mut tx, identity.account, id).await?;
        let deleted = endpoints::delete(&mut tx, identity.account, id).await?;
        let found = found.filter(|_| deleted).ok_or_else(Problem::not_found)?;
        let action = Action::WebhookEndpointDeleted;
        note(&mut tx, &identity, action, (id, &found.url), (origin, now)).await?;
        tx.commit().await?;
        Ok(StatusCode::NO_CONTENT.into_response())
    })
    .await
}

/// Replaces the secret of an endpoint. Both sign for a while, so that a receiver can be told of the new one; the reply shows it, once.
/// Repeated before that while is over, the secret of before is the one that was made last.
#[utoipa::path(
    post, path = "/v1/webhook-endpoints/{id}/rotate", tag = "webhooks", security(("session" = []), ("api_key" = ["webhooks:write"])),
    params(("id" = String, Path), ("Idempotency-Key" = String, Header)),
    request_body = Rotation,
    responses(
        (status = 200, body = EndpointWithSecret),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn rotate_webhook_secret(
    State(state): State<AppState>,
    caller: Caller<needs::WebhooksWrite>,
    Path(id): Path<WebhookEndpointId>,
    request: IdempotentJson<Rotation>,
) -> Result<Response, Problem> {
    let (now, origin, identity) = (state.now(), client_ip::origin(), Identity::clone(&caller));
    let seconds = request.body.previous_valid_s;
    if seconds.is_some_and(|seconds| seconds > PREVIOUS_VALID_MAX_S) {
        let detail = format!("expected {PREVIOUS_VALID_MAX_S} at most");
        return Err(Problem::invalid("/previous_valid_s", detail));
    }
    let valid_for = seconds.map_or(ROTATION, |seconds| Duration::seconds(seconds.into()));
    let secret = Secret::from_random(random());
    let sealed = seal(&state.keys, id, &secret);
    idempotency::run(&state, &caller, request.key, move |tx| {
        Box::pin(async move {
            let found = endpoints::lock(tx, identity.account, id).await?;
            let found = found.ok_or_else(Problem::not_found)?;
            let owner = (identity.account, id);
            endpoints::rotate(tx, owner, &sealed, now.saturating_add(valid_for)).await?;
            let action = Action::WebhookSecretRotated;
            note(tx, &identity, action, (id, &found.url), (origin, now)).await?;
            let rotated = endpoints::find(tx, identity.account, id).await?;
            Ok(Reply::ok(&EndpointWithSecret {
                shown: rotated.ok_or_else(Problem::not_found)?.into(),
                secret: secret.reveal(),
            }))
        })
    })
    .await
}

/// Sends a test to an endpoint, whatever it is told of. The answer is the event; what came of it is in the endpoint's deliveries.
#[utoipa::path(
    post, path = "/v1/webhook-endpoints/{id}/test", tag = "webhooks", security(("session" = []), ("api_key" = ["webhooks:write"])),
    params(("id" = String, Path), ("Idempotency-Key" = String, Header)),
    request_body = EndpointTest,
    responses(
        (status = 201, body = EventBody, headers(("Location" = String))),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn test_webhook_endpoint(
    State(state): State<AppState>,
    caller: Caller<needs::WebhooksWrite>,
    Path(id): Path<WebhookEndpointId>,
    request: IdempotentJson<EndpointTest>,
) -> Result<Response, Problem> {
    let (now, account) = (state.now(), caller.account);
    idempotency::run(&state, &caller, request.key, move |tx| {
        Box::pin(async move {
            // Locked, so that it is not disabled before the test is on its way.
            let found = endpoints::lock(tx, account, id).await?;
            refuse_disabled(&found.ok_or_else(Problem::not_found)?)?;
            let event = events::create_test(tx, account, id, now).await?;
            let event = events::find(tx, account, event).await?;
            let event = event.ok_or_else(Problem::not_found)?;
            let body = EventBody::new(&event).map_err(|error| Problem::internal(&error))?;
            Ok(Reply::created(format!("/v1/events/{}", event.id), &body))
        })
    })
    .await
}

/// Nothing is sent to an endpoint that is disabled: 409.
pub(super) fn refuse_disabled(endpoint: &Endpoint) -> Result<(), Problem> {
    if endpoint.disabled.is_none() {
        return Ok(());
    }
    Err(Problem::new(
        StatusCode::CONFLICT,
        "webhook_endpoint_disabled",
        "The endpoint is disabled",
    ))
}
