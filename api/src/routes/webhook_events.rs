//! `/v1/events`: what happened to an account, whether somebody was told or not.

use axum::{extract::State, response::Response};
use comptoir_domain::{id::WebhookEventId, webhook::EventType};
use comptoir_store::webhooks::events::{self, EventFilter, WebhookEvent};
use serde::Deserialize;
use time::OffsetDateTime;
use utoipa::IntoParams;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    AppState, Problem,
    auth::{Caller, needs},
    etag::Conditions,
    extract::Path,
    page::{List, Page, PageQuery},
    webhooks::body::EventBody,
};

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(list_events))
        .routes(routes!(find_event))
}

/// Which events to list.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct EventQuery {
    /// Only those of this type.
    #[serde(rename = "type")]
    #[param(rename = "type")]
    kind: Option<EventType>,
    /// Only those that happened after this time.
    #[serde(default, with = "comptoir_http::moment::option")]
    #[param(value_type = Option<String>, format = DateTime)]
    created_after: Option<OffsetDateTime>,
    /// Only those that happened before this time.
    #[serde(default, with = "comptoir_http::moment::option")]
    #[param(value_type = Option<String>, format = DateTime)]
    created_before: Option<OffsetDateTime>,
}

fn in_words(event: &WebhookEvent) -> Result<EventBody, Problem> {
    EventBody::new(event).map_err(|error| Problem::internal(&error))
}

/// What happened to the account in the last 30 days, newest first. Events are kept of accounts that have a webhook endpoint, and from
/// when they have one.
#[utoipa::path(
    get, path = "/v1/events", tag = "webhooks", security(("session" = []), ("api_key" = ["webhooks:read"])),
    params(PageQuery, EventQuery),
    responses(
        (status = 200, body = Page<EventBody>),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn list_events(
    State(state): State<AppState>,
    caller: Caller<needs::WebhooksRead>,
    list: List<EventQuery>,
) -> Result<Page<EventBody>, Problem> {
    let position: Option<WebhookEventId> = list.position(&state, &caller)?;
    let filter = EventFilter {
        kind: list.filter.kind,
        after: list.filter.created_after,
        before: list.filter.created_before,
    };
    let mut connection = caller.read(&state).await?;
    let account = caller.account;
    let rows = events::list(&mut connection, account, filter, position, list.fetch()).await?;
    let rows: Vec<_> = rows
        .iter()
        .map(|row| Ok((row.id, in_words(row)?)))
        .collect::<Result<_, Problem>>()?;
    Ok(list.page(&state, &caller, rows, |row| row.0, |row| row.1))
}

/// One thing that happened.
#[utoipa::path(
    get, path = "/v1/events/{id}", tag = "webhooks", security(("session" = []), ("api_key" = ["webhooks:read"])),
    params(("id" = String, Path)),
    responses(
        (status = 200, body = EventBody, headers(("ETag" = String))),
        (status = 304),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn find_event(
    State(state): State<AppState>,
    caller: Caller<needs::WebhooksRead>,
    Path(id): Path<WebhookEventId>,
    conditions: Conditions,
) -> Result<Response, Problem> {
    let mut connection = caller.read(&state).await?;
    let found = events::find(&mut connection, caller.account, id).await?;
    let found = found.ok_or_else(Problem::not_found)?;
    Ok(conditions.answer(in_words(&found)?))
}
