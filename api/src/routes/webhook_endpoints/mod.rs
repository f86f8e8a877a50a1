//! `/v1/webhook-endpoints`: where an account wants to be told what happens.

mod body;
mod secrets;

use axum::{
    extract::State,
    http::StatusCode,
    response::{IntoResponse as _, Response},
};
use comptoir_domain::{
    audit::{Action, Event},
    id::WebhookEndpointId,
    webhook::Secret,
};
use comptoir_http::client_ip;
use comptoir_store::{
    PgTransaction, audit, limits,
    webhooks::{self as endpoints, CreateEndpointError, Endpoint, Settings},
};
use time::OffsetDateTime;
use utoipa_axum::{router::OpenApiRouter, routes};

use self::body::{
    EndpointBody, EndpointWithSecret, NewWebhookEndpoint, WebhookEndpointPatch, refuse_bad,
};
use super::accounts::in_task;
use crate::{
    AppState, Problem,
    auth::{Caller, Identity, keys::random, needs},
    etag::Conditions,
    extract::{Json, Path},
    idempotency::{self, IdempotentJson, Reply},
    limiting::limited,
    page::{List, Page, PageQuery},
    webhooks::{guard::Refusal, seal},
};

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(list_webhook_endpoints, create_webhook_endpoint))
        .routes(routes!(
            find_webhook_endpoint,
            update_webhook_endpoint,
            delete_webhook_endpoint
        ))
        .merge(secrets::router())
}

/// The URL as it is understood, when something may be sent there.
async fn checked(state: &AppState, url: &str) -> Result<String, Problem> {
    let refused = |refusal: Refusal| Problem::invalid("/url", refusal.to_string());
    let url = state.webhooks.guard.check(url).await.map_err(refused)?;
    Ok(url.into())
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
