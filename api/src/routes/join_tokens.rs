//! `/v1/join-tokens`: what a new worker joins with.

use axum::{extract::State, response::Response};
use comptoir_domain::{id::JoinTokenId, join_token::JoinToken, name::is_name};
use comptoir_store::{
    join_tokens::{self, JoinTokenRow, NewJoinToken},
    limits,
};
use serde::{Deserialize, Serialize};
use time::{Duration, OffsetDateTime};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    AppState, FieldError, Problem,
    auth::{Caller, keys::random, needs},
    etag::Conditions,
    extract::{Json, Path},
    idempotency::{self, IdempotentJson, Reply},
    limiting::limited,
    page::{List, Page, PageQuery},
};

/// Longest name of a token, in characters.
const NAME_CHARS_MAX: usize = 100;
/// Most workers that join with one token.
const USES_MAX: u16 = 1_000;
/// How long a token holds, in seconds: at least, and at most (which is the default).
const LIFETIME_S: (u32, u32) = (60, 86_400);

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(list_join_tokens, create_join_token))
        .routes(routes!(find_join_token))
        .routes(routes!(revoke_join_token))
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewJoinTokenBody {
    /// What you call it.
    #[schema(min_length = 1, max_length = 100)]
    name: String,
    /// How many workers may join with it: 1 when absent.
    #[serde(default)]
    #[schema(minimum = 1, maximum = 1000)]
    max_uses: Option<u16>,
    /// How long it holds, in seconds: a day when absent, which is the most.
    #[serde(default)]
    #[schema(minimum = 60, maximum = 86400)]
    expires_in_s: Option<u32>,
}

#[derive(Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum JoinTokenObject {
    JoinToken,
}

#[derive(Serialize, ToSchema)]
#[schema(as = JoinToken)]
struct JoinTokenBody {
    #[schema(value_type = String, example = "jtk_01h455vb4pex5vsknk084sn02q")]
    id: JoinTokenId,
    object: JoinTokenObject,
    name: String,
    max_uses: i32,
    /// How many workers have joined with it.
    uses: i32,
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    expires_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339::option")]
    #[schema(required = true)]
    revoked_at: Option<OffsetDateTime>,
}

#[derive(Serialize, ToSchema)]
struct CreatedJoinToken {
    #[serde(flatten)]
    shown: JoinTokenBody,
    /// The token itself. It is shown in this reply alone.
    token: String,
    /// What to run on the machine that is to become a worker.
    command: String,
}

impl From<JoinTokenRow> for JoinTokenBody {
    fn from(row: JoinTokenRow) -> Self {
        Self {
            id: row.id,
            object: JoinTokenObject::JoinToken,
            name: row.name,
            max_uses: row.max_uses,
            uses: row.uses,
            created_at: row.created_at,
            expires_at: row.expires_at,
            revoked_at: row.revoked_at,
        }
    }
}

/// Makes a join token. Earnings go to the account's bound address, so it must have one.
#[utoipa::path(
    post, path = "/v1/join-tokens", tag = "workers", security(("session" = []), ("api_key" = ["workers:write"])),
    params(("Idempotency-Key" = String, Header)),
    request_body = NewJoinTokenBody,
    responses(
        (status = 201, body = CreatedJoinToken, headers(("Location" = String))),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn create_join_token(
    State(state): State<AppState>,
    caller: Caller<needs::WorkersWrite>,
    request: IdempotentJson<NewJoinTokenBody>,
) -> Result<Response, Problem> {
    let (max_uses, lifetime_s) = check(&request.body)?;
    caller.owner()?;
    let (account, now) = (caller.account, state.now());
    // The scheduler signs with the keys of this service, so a worker can recognise it by them.
    let server = state.keys.jwks().fingerprint();
    let token = JoinToken::new(server, JoinTokenId::generate(), random());
    let url = state.config.scheduler_url.clone();
    let body = request.body;
    idempotency::run(&state, &caller, request.key, move |tx| {
        Box::pin(async move {
            limits::refuse_frozen(tx, account).await.map_err(limited)?;
            let new = NewJoinToken {
                id: token.id,
                account,
                name: &body.name,
                secret: token.secret_sha256(),
                max_uses,
                expires_at: now + Duration::seconds(lifetime_s.into()),
            };
            join_tokens::create(tx, &new, now).await?;
            let row = join_tokens::find(tx, account, token.id)
                .await?
                .ok_or_else(Problem::not_found)?;
            let token = token.reveal();
            let command = format!("comptoir-worker join --url {url} --token {token}");
            let created = CreatedJoinToken {
                shown: row.into(),
                token,
                command,
            };
            Ok(Reply::created(
                format!("/v1/join-tokens/{}", created.shown.id),
                &created,
            ))
        })
    })
    .await
}

fn check(body: &NewJoinTokenBody) -> Result<(u16, u32), Problem> {
    let (max_uses, lifetime_s) = (
        body.max_uses.unwrap_or(1),
        body.expires_in_s.unwrap_or(LIFETIME_S.1),
    );
    let mut errors = Vec::new();
    if !is_name(&body.name, NAME_CHARS_MAX) {
        errors.push(FieldError::new(
            "/name",
            format!("expected 1 to {NAME_CHARS_MAX} characters, none of control"),
        ));
    }
    if !(1..=USES_MAX).contains(&max_uses) {
        errors.push(FieldError::new(
            "/max_uses",
            format!("expected 1 to {USES_MAX}"),
        ));
    }
    if !(LIFETIME_S.0..=LIFETIME_S.1).contains(&lifetime_s) {
        let (least, most) = LIFETIME_S;
        errors.push(FieldError::new(
            "/expires_in_s",
            format!("expected {least} to {most}"),
        ));
    }
    if errors.is_empty() {
        Ok((max_uses, lifetime_s))
    } else {
        Err(Problem::invalid_fields(errors))
    }
}

/// The account's join tokens, newest first.
#[utoipa::path(
    get, path = "/v1/join-tokens", tag = "workers", security(("session" = []), ("api_key" = ["workers:read"])),
    params(PageQuery),
    responses(
        (status = 200, body = Page<JoinTokenBody>),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn list_join_tokens(
    State(state): State<AppState>,
    caller: Caller<needs::WorkersRead>,
    list: List,
) -> Result<Page<JoinTokenBody>, Problem> {
    let before: Option<JoinTokenId> = list.position(&state, &caller)?;
    let mut connection = caller.read(&state).await?;
    let rows = join_tokens::list(&mut connection, caller.account, before, list.fetch()).await?;
    Ok(list.page(&state, &caller, rows, |row| row.id, JoinTokenBody::from))
}

/// One join token, without its secret.
#[utoipa::path(
    get, path = "/v1/join-tokens/{id}", tag = "workers", security(("session" = []), ("api_key" = ["workers:read"])),
    params(("id" = String, Path)),
    responses(
        (status = 200, body = JoinTokenBody, headers(("ETag" = String))),
        (status = 304),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn find_join_token(
    State(state): State<AppState>,
    caller: Caller<needs::WorkersRead>,
    Path(id): Path<JoinTokenId>,
    conditions: Conditions,
) -> Result<Response, Problem> {
    let token = join_tokens::find(&mut *caller.read(&state).await?, caller.account, id).await?;
    Ok(conditions.answer(JoinTokenBody::from(token.ok_or_else(Problem::not_found)?)))
}

/// Ends a join token: nobody joins with it any more; those who have stay. Ending it again changes nothing.
#[utoipa::path(
    post, path = "/v1/join-tokens/{id}/revoke", tag = "workers", security(("session" = []), ("api_key" = ["workers:write"])),
    params(("id" = String, Path)),
    responses(
        (status = 200, body = JoinTokenBody),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn revoke_join_token(
    State(state): State<AppState>,
    caller: Caller<needs::WorkersWrite>,
    Path(id): Path<JoinTokenId>,
) -> Result<Json<JoinTokenBody>, Problem> {
    let mut connection = caller.begin(&state).await?;
    if !join_tokens::revoke(&mut connection, caller.account, id, state.now()).await? {
        return Err(Problem::not_found());
    }
    let token = join_tokens::find(&mut connection, caller.account, id).await?;
    connection.commit().await?;
    Ok(Json(token.ok_or_else(Problem::not_found)?.into()))
}
