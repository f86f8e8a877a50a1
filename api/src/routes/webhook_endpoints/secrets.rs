//! What an endpoint's messages are signed with, and a test that shows it.

use axum::{extract::State, response::Response};
use comptoir_domain::{
    audit::Action,
    id::WebhookEndpointId,
    webhook::{ROTATION, Secret},
};
use comptoir_http::client_ip;
use comptoir_store::webhooks::{self as endpoints, events};
use time::Duration;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    body::{EndpointTest, EndpointWithSecret, Rotation},
    note, refuse_disabled,
};
use crate::{
    AppState, Problem,
    auth::{Caller, Identity, keys::random, needs},
    extract::Path,
    idempotency::{self, IdempotentJson, Reply},
    webhooks::{body::EventBody, seal},
};

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(rotate_webhook_secret))
        .routes(routes!(test_webhook_endpoint))
}

/// Longest time for which a secret that was replaced signs too, in seconds: a week.
const PREVIOUS_VALID_MAX_S: u32 = 604_800;

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
