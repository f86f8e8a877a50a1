//! `/v1/keys`: API keys with scopes.

use axum::{
    extract::State,
    http::StatusCode,
    response::{IntoResponse as _, Response},
};
use comptoir_domain::{
    amount::Amount,
    asset::Asset,
    audit::{Action, Event},
    credential::ApiKey,
    id::ApiKeyId,
    ip_list::{InvalidNetwork, IpList, NETWORKS_MAX, Network},
    name::is_name,
    scope::{Scope, Scopes},
    spend_limit::{SpendLimit, SpendPeriod},
};
use comptoir_http::client_ip;
use comptoir_store::{
    api_keys::{self, ApiKeyRow, CreateKeyError, NewApiKey},
    assets::{self, AssetError},
    audit, limits, spending,
};
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;
use time::OffsetDateTime;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::accounts::in_task;
use crate::{
    AppState, FieldError, Problem,
    auth::{Caller, Identity, insufficient_scope, keys::random, needs},
    etag::Conditions,
    extract::{Json, Path},
    idempotency::{self, IdempotentJson, Reply},
    limiting::limited,
    money::MoneyBody,
    page::{List, Page, PageQuery},
    quoting::no_asset,
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
    #[serde(default, with = "comptoir_http::moment::option")]
    expires_at: Option<OffsetDateTime>,
    /// The addresses and networks that it may be used from; anywhere when absent.
    #[serde(default)]
    #[schema(max_items = 32, example = json!(["203.0.113.0/24"]))]
    allowed_ips: Vec<String>,
    /// What its jobs, purchases and rewards may cost; no limit when absent.
    #[serde(default)]
    spend_limit: Option<SpendLimitBody>,
}

/// What jobs, purchases and rewards of contributions hold counts, and once they ended what they were charged; so do renewals of subscriptions that it made.
#[derive(Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = SpendLimit)]
struct SpendLimitBody {
    amount: MoneyBody,
    period: SpendPeriod,
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
    /// Where it may be used from; empty: anywhere.
    allowed_ips: Vec<String>,
    #[schema(required = true)]
    spend_limit: Option<SpendLimitBody>,
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

impl KeyBody {
    /// Where there is no token yet, no key has a limit either.
    fn new(row: ApiKeyRow, asset: Option<&Asset>) -> Self {
        let limit = row.spend_limit.zip(asset);
        Self {
            id: row.id,
            object: KeyObject::ApiKey,
            name: row.name,
            prefix: row.prefix,
            scopes: row.scopes.iter().collect(),
            allowed_ips: row.allowed_ips.iter().map(|it| it.to_string()).collect(),
            spend_limit: limit.map(|(limit, asset)| SpendLimitBody {
                amount: MoneyBody::new(limit.amount, asset),
                period: limit.period,
            }),
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

#[derive(Serialize, ToSchema)]
struct CurrentKey {
    #[serde(flatten)]
    shown: KeyBody,
    /// The most that what it does may cost in the period: jobs, purchases, renewals of subscriptions that it made, and rewards of contributions that it
    /// accepts; `null` without a spend limit, as the two after it.
    #[schema(required = true)]
    limit: Option<MoneyBody>,
    /// What more of them may still cost.
    #[schema(required = true)]
    remaining: Option<MoneyBody>,
    /// What is held for those that are open, and was charged for those that ended.
    #[schema(required = true)]
    usage: Option<MoneyBody>,
    /// When the next period begins; `null` where none does.
    #[serde(with = "time::serde::rfc3339::option")]
    #[schema(required = true)]
    resets_at: Option<OffsetDateTime>,
}

/// The token; none before one is registered.
async fn token(connection: &mut PgConnection) -> Result<Option<Asset>, Problem> {
    match assets::current(connection).await {
        Ok(asset) => Ok(Some(asset)),
        Err(AssetError::NoneRegistered) => Ok(None),
        Err(error @ AssetError::Database(_)) => Err(Problem::internal(&error)),
    }
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
    let (now, origin, identity) = (state.now(), client_ip::origin(), Identity::clone(&caller));
    let checked = check(&request.body, &caller, now)?;
    let key = ApiKey::from_random(state.config.environment, random());
    let hmac = state.keys.api_key_hmac(&key);
    let body = request.body;
    idempotency::run(&state, &caller, request.key, move |tx| {
        Box::pin(async move {
            limits::refuse_frozen(tx, identity.account)
                .await
                .map_err(limited)?;
            let asset = token(tx).await?;
            let new = NewApiKey {
                name: &body.name,
                prefix: key.shown(),
                hmac,
                scopes: &checked.scopes,
                allowed_ips: &checked.allowed_ips,
                spend_limit: spend_limit(body.spend_limit.as_ref(), asset.as_ref())?,
                expires_at: body.expires_at,
            };
            let row = api_keys::create(tx, identity.account, &new, now).await;
            let row = row.map_err(|error| not_created(&error))?;
            let actor = identity.actor();
            let event = Event::new(actor, Action::ApiKeyCreated, row.id.to_string())
                .of_account(identity.account)
                .from(origin);
            audit::append(tx, &event, now)
                .await
                .map_err(|error| Problem::internal(&error))?;
            let created = CreatedKey {
                shown: KeyBody::new(row, asset.as_ref()),
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

fn not_created(error: &CreateKeyError) -> Problem {
    match error {
        CreateKeyError::TooMany => Problem::new(
            StatusCode::CONFLICT,
            "too_many_keys",
            "The account has as many keys as it may",
        ),
        CreateKeyError::Database(_) => Problem::internal(error),
    }
}

fn spend_limit(
    wanted: Option<&SpendLimitBody>,
    asset: Option<&Asset>,
) -> Result<Option<SpendLimit>, Problem> {
    let Some(wanted) = wanted else {
        return Ok(None);
    };
    let asset = asset.ok_or_else(|| no_asset(AssetError::NoneRegistered))?;
    let amount = wanted.amount.amount_of(asset, "/spend_limit/amount")?;
    let period = wanted.period;
    Ok(Some(SpendLimit { amount, period }))
}

/// What a key may do, and from where.
struct Checked {
    scopes: Scopes,
    allowed_ips: IpList,
}

fn check(new: &NewKey, caller: &Identity, now: OffsetDateTime) -> Result<Checked, Problem> {
    let mut errors = Vec::new();
    if !is_name(&new.name, NAME_CHARS_MAX) {
        errors.push(FieldError::new(
            "/name",
            format!("expected 1 to {NAME_CHARS_MAX} characters, none of control"),
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
    if new.allowed_ips.len() > NETWORKS_MAX {
        errors.push(FieldError::new(
            "/allowed_ips",
            format!("expected {NETWORKS_MAX} networks at most"),
        ));
    }
    let networks = new.allowed_ips.iter().enumerate();
    let parsed = networks.filter_map(|(place, text)| {
        let refused = |error: InvalidNetwork| {
            errors.push(FieldError::new(
                format!("/allowed_ips/{place}"),
                error.to_string(),
            ));
        };
        text.parse::<Network>().map_err(refused).ok()
    });
    let allowed_ips: IpList = parsed.collect();
    if !errors.is_empty() {
        return Err(Problem::invalid_fields(errors));
    }
    if caller.api_key().is_some_and(|key| key.is_restricted) {
        return Err(Problem::new(
            StatusCode::FORBIDDEN,
            "key_restricted",
            "A restricted key makes no other keys",
        ));
    }
    let scopes: Scopes = new.scopes.iter().copied().collect();
    let beyond = scopes.iter().find(|scope| !caller.scopes.allow(*scope));
    match beyond {
        Some(scope) => Err(insufficient_scope(scope)),
        None => Ok(Checked {
            scopes,
            allowed_ips,
        }),
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
    let mut connection = caller.read(&state).await?;
    let asset = token(&mut connection).await?;
    let rows = api_keys::list(&mut connection, caller.account, before, list.fetch()).await?;
    Ok(list.page(
        &state,
        &caller,
        rows,
        |row| row.id,
        |row| KeyBody::new(row, asset.as_ref()),
    ))
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
    let mut connection = caller.read(&state).await?;
    let key = api_keys::find(&mut connection, caller.account, id).await?;
    let key = key.ok_or_else(Problem::not_found)?;
    let asset = token(&mut connection).await?;
    Ok(conditions.answer(KeyBody::new(key, asset.as_ref())))
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
) -> Result<Response, Problem> {
    let (now, origin, identity) = (state.now(), client_ip::origin(), Identity::clone(&caller));
    in_task(async move {
        let mut tx = identity.begin(&state).await?;
        let asset = token(&mut tx).await?;
        let revoked = api_keys::revoke(&mut tx, identity.account, id, now).await?;
        let key = revoked.ok_or_else(Problem::not_found)?;
        // Ending it again changes nothing, and is not worth a line.
        if key.revoked_at == Some(now) {
            let actor = identity.actor();
            let event = Event::new(actor, Action::ApiKeyRevoked, key.id.to_string())
                .of_account(identity.account)
                .from(origin);
            audit::append(&mut tx, &event, now)
                .await
                .map_err(|error| Problem::internal(&error))?;
        }
        tx.commit().await?;
        Ok(Json(KeyBody::new(key, asset.as_ref())).into_response())
    })
    .await
}

/// The API key that this request is made with, and what it may still spend; any key may ask.
#[utoipa::path(
    get, path = "/v1/key", tag = "keys", security(("api_key" = [])),
    responses(
        (status = 200, body = CurrentKey),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn find_current_key(
    State(state): State<AppState>,
    caller: Caller<needs::Nothing>,
) -> Result<Json<CurrentKey>, Problem> {
    let id = caller
        .api_key()
        .ok_or_else(|| Problem::not_found().detail("The request was not made with an API key"))?
        .id;
    let mut connection = caller.read(&state).await?;
    let key = api_keys::find(&mut connection, caller.account, id).await?;
    let key = key.ok_or_else(Problem::not_found)?;
    let asset = token(&mut connection).await?;
    let (limit, now) = (key.spend_limit, state.now());
    let spent = match limit {
        Some(limit) => {
            let starts_on = limit.period.starts_on(key.created_at, now);
            Some(spending::spent(&mut connection, id, starts_on).await?)
        }
        None => None,
    };
    let money = |amount: Option<Amount>| {
        let known = amount.zip(asset.as_ref());
        known.map(|(amount, asset)| MoneyBody::new(amount, asset))
    };
    Ok(Json(CurrentKey {
        limit: money(limit.map(|limit| limit.amount)),
        remaining: money(limit.zip(spent).map(|(limit, spent)| limit.left(spent))),
        usage: money(spent),
        resets_at: limit.and_then(|limit| limit.period.resets_at(now)),
        shown: KeyBody::new(key, asset.as_ref()),
    }))
}
