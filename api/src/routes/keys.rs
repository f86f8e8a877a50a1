//! `/v1/keys`: API keys with scopes.

use axum::{extract::State, response::Response};
use comptoir_domain::{
    credential::ApiKey,
    id::ApiKeyId,
    scope::{Scope, Scopes},
};
use comptoir_store::api_keys::{self, ApiKeyRow, NewApiKey};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    AppState, FieldError, Problem,
    auth::{Caller, Identity, insufficient_scope, keys::random, needs},
    etag::Conditions,
    extract::{Json, Path},
    idempotency::{self, IdempotentJson, Reply},
    page::{List, Page, PageQuery},
};

/// Longest name of a key, in characters.
const NAME_CHARS_MAX: usize = 100;

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(list_keys, create_key))
        .routes(routes!(find_key))
        .routes(routes!(revoke_key))
        .routes(routes!(find_current_key))
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewKey {
    /// What you call it.
    #[schema(min_length = 1, max_length = 100)]
    name: String,
    /// What it may do; an API key gives no more than it has.
    #[schema(min_items = 1)]
    scopes: Vec<Scope>,
    /// Until when it works; for ever when absent.
    #[serde(default, with = "time::serde::rfc3339::option")]
    expires_at: Option<OffsetDateTime>,
}

#[derive(Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum KeyObject {
    ApiKey,
}

#[derive(Serialize, ToSchema)]
#[schema(as = ApiKey)]
struct KeyBody {
    #[schema(value_type = String, example = "key_01h455vb4pex5vsknk084sn02q")]
    id: ApiKeyId,
    object: KeyObject,
    name: String,
    /// The beginning of the key, to tell keys apart.
    prefix: String,
    scopes: Vec<Scope>,
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339::option")]
    #[schema(required = true)]
    expires_at: Option<OffsetDateTime>,
    /// To the minute.
    #[serde(with = "time::serde::rfc3339::option")]
    #[schema(required = true)]
    last_used_at: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339::option")]
    #[schema(required = true)]
    revoked_at: Option<OffsetDateTime>,
}

impl From<ApiKeyRow> for KeyBody {
    fn from(row: ApiKeyRow) -> Self {
        Self {
            id: row.id,
            object: KeyObject::ApiKey,
            name: row.name,
            prefix: row.prefix,
            scopes: row.scopes.iter().collect(),
            created_at: row.created_at,
            expires_at: row.expires_at,
            last_used_at: row.last_used_at,
            revoked_at: row.revoked_at,
        }
    }
}

#[derive(Serialize, ToSchema)]
struct CreatedKey {
    #[serde(flatten)]
    shown: KeyBody,
    /// The key itself. It is shown in this reply alone.
    key: String,
}

/// Creates an API key.
#[utoipa::path(
    post, path = "/v1/keys", tag = "keys", security(("session" = []), ("api_key" = ["keys:write"])),
    params(("Idempotency-Key" = String, Header)),
    request_body = NewKey,
    responses(
        (status = 201, body = CreatedKey, headers(("Location" = String))),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn create_key(
    State(state): State<AppState>,
    caller: Caller<needs::KeysWrite>,
    request: IdempotentJson<NewKey>,
) -> Result<Response, Problem> {
    let now = state.now();
    let scopes = check(&request.body, &caller, now)?;
    let (account, key) = (
        caller.account,
        ApiKey::from_random(state.config.environment, random()),
    );
    let hmac = state.keys.api_key_hmac(&key);
    let new = request.body;
    idempotency::run(&state, &caller, request.key, move |tx| {
        Box::pin(async move {
            let new = NewApiKey {
                name: &new.name,
                prefix: key.shown(),
                hmac,
                scopes: &scopes,
                expires_at: new.expires_at,
            };
            let row = api_keys::create(tx, account, &new, now).await?;
            let created = CreatedKey {
                shown: row.into(),
                key: key.reveal().to_owned(),
            };
            Ok(Reply::created(
                format!("/v1/keys/{}", created.shown.id),
                &created,
            ))
        })
    })
    .await
}

fn check(new: &NewKey, caller: &Identity, now: OffsetDateTime) -> Result<Scopes, Problem> {
    let mut errors = Vec::new();
    if !(1..=NAME_CHARS_MAX).contains(&new.name.chars().count()) {
        errors.push(FieldError::new(
            "/name",
            format!("expected 1 to {NAME_CHARS_MAX} characters"),
        ));
    }
    if new.scopes.is_empty() {
        errors.push(FieldError::new("/scopes", "expected at least one scope"));
    }
    if new.expires_at.is_some_and(|expires_at| expires_at <= now) {
        errors.push(FieldError::new(
            "/expires_at",
            "expected a time in the future",
        ));
    }
    if !errors.is_empty() {
        return Err(Problem::invalid_fields(errors));
    }
    let scopes: Scopes = new.scopes.iter().copied().collect();
    let beyond = scopes.iter().find(|scope| !caller.scopes.allow(*scope));
    match beyond {
        Some(scope) => Err(insufficient_scope(scope)),
        None => Ok(scopes),
    }
}

/// The account's API keys, newest first.
#[utoipa::path(
    get, path = "/v1/keys", tag = "keys", security(("session" = []), ("api_key" = ["keys:read"])),
    params(PageQuery),
    responses(
        (status = 200, body = Page<KeyBody>),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn list_keys(
    State(state): State<AppState>,
    caller: Caller<needs::KeysRead>,
    list: List,
) -> Result<Page<KeyBody>, Problem> {
    let before: Option<ApiKeyId> = list.position(&state, &caller)?;
    let mut connection = state.db.acquire().await?;
    let rows = api_keys::list(&mut connection, caller.account, before, list.fetch()).await?;
    Ok(list.page(&state, &caller, rows, |row| row.id, KeyBody::from))
}

/// One API key.
#[utoipa::path(
    get, path = "/v1/keys/{id}", tag = "keys", security(("session" = []), ("api_key" = ["keys:read"])),
    params(("id" = String, Path)),
    responses(
        (status = 200, body = KeyBody, headers(("ETag" = String))),
        (status = 304),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn find_key(
    State(state): State<AppState>,
    caller: Caller<needs::KeysRead>,
    Path(id): Path<ApiKeyId>,
    conditions: Conditions,
) -> Result<Response, Problem> {
    let key = api_keys::find(&mut *state.db.acquire().await?, caller.account, id).await?;
    Ok(conditions.answer(KeyBody::from(key.ok_or_else(Problem::not_found)?)))
}

/// Ends an API key. Ending it again changes nothing.
#[utoipa::path(
    post, path = "/v1/keys/{id}/revoke", tag = "keys", security(("session" = []), ("api_key" = ["keys:write"])),
    params(("id" = String, Path)),
    responses(
        (status = 200, body = KeyBody),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn revoke_key(
    State(state): State<AppState>,
    caller: Caller<needs::KeysWrite>,
    Path(id): Path<ApiKeyId>,
) -> Result<Json<KeyBody>, Problem> {
    let key = api_keys::revoke(
        &mut *state.db.acquire().await?,
        caller.account,
        id,
        state.now(),
    )
    .await?;
    Ok(Json(key.ok_or_else(Problem::not_found)?.into()))
}

/// The API key that this request is made with; any key may ask.
#[utoipa::path(
    get, path = "/v1/key", tag = "keys", security(("api_key" = [])),
    responses(
        (status = 200, body = KeyBody),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn find_current_key(
    State(state): State<AppState>,
    caller: Caller<needs::Nothing>,
) -> Result<Json<KeyBody>, Problem> {
    let id = caller
        .api_key
        .ok_or_else(|| Problem::not_found().detail("The request was not made with an API key"))?;
    let key = api_keys::find(&mut *state.db.acquire().await?, caller.account, id).await?;
    Ok(Json(key.ok_or_else(Problem::not_found)?.into()))
}
