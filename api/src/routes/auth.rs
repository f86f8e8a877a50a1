//! `/v1/auth`: signing in, staying signed in, signing out.

use axum::{
    extract::State,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use comptoir_domain::{
    audit::{Action, Actor, Event},
    credential::{Email, PASSWORD_CHARS_MAX},
    digest::Sha256,
    id::AccountId,
};
use comptoir_http::{client_ip, jwt::Jwks};
use comptoir_store::{
    accounts, audit,
    sessions::{self, Method, RefreshError},
};
use serde::Deserialize;
use time::Duration;
use tracing::Instrument as _;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    AppState, Problem,
    auth::{
        note,
        session::{self, Continued, REFRESH_LIFETIME, SignedIn, SignedInBody, TokensBody},
    },
    extract::Json,
    notices::{self, Notice},
};

/// Longer texts are no refresh tokens.
const REFRESH_LENGTH_MAX: usize = 64;
/// How long others may keep the public keys. A next key is published at least so long before it signs.
const JWKS_MAX_AGE: Duration = Duration::minutes(5);

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(create_token))
        .routes(routes!(refresh_token))
        .routes(routes!(end_session))
        .routes(routes!(end_current_session))
        .routes(routes!(list_public_keys))
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct SignIn {
    email: String,
    #[schema(format = Password)]
    password: String,
    /// What continues the session: `tokens` when absent.
    #[serde(default)]
    #[schema(nullable = false)]
    session: Option<Continued>,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct RefreshTokenBody {
    /// What signing in, or the last refresh, gave.
    refresh_token: String,
}

/// Signs in with e-mail and password.
#[utoipa::path(
    post, path = "/v1/auth/token", tag = "auth", security(()),
    request_body = SignIn,
    responses(
        (status = 200, body = SignedInBody),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn create_token(
    State(state): State<AppState>,
    headers: HeaderMap,
    Json(body): Json<SignIn>,
) -> Result<Response, Problem> {
    let continued = body.session.unwrap_or_default();
    if continued == Continued::Cookie {
        session::require_own_page(&headers, &state)?;
    }
    // Too long for any password of ours; hashing it would only cost us.
    if body.password.chars().count() > PASSWORD_CHARS_MAX {
        return Err(invalid_grant());
    }
    let attempt = state
        .sign_ins
        .attempt(&body.email, client_ip::current())
        .await?;
    let known = match body.email.parse::<Email>() {
        Ok(email) => accounts::find_password(&mut *state.db.acquire().await?, &email).await?,
        Err(_) => None,
    };
    let (account, hash) = known.unzip();
    if state.passwords.verify(body.password, hash).await?
        && let Some(account) = account
    {
        let begun = session::begin(&state, (account, Method::Password), continued).await;
        if begun.is_ok() {
            attempt.succeeded();
        } else {
            note_refusal(&state, Some(account), (Action::SessionRefused, "password")).await?;
        }
        return begun;
    }
    let action = if attempt.is_last() {
        Action::SessionThrottled
    } else {
        Action::SessionRefused
    };
    note_refusal(&state, account, (action, "password")).await?;
    Err(invalid_grant())
}

/// Keeps a failed sign-in in the audit log, also one to no account: both take as long.
pub(super) async fn note_refusal(
    state: &AppState,
    account: Option<AccountId>,
    (action, method): (Action, &'static str),
) -> Result<(), Problem> {
    let mut event = Event::new(Actor::Anonymous, action, method).from(client_ip::origin());
    event.account = account;
    note(state, event, state.now()).await
}

/// Exchanges a refresh token for a new pair. A token that was spent before ends the sign-in it came from.
#[utoipa::path(
    post, path = "/v1/auth/refresh", tag = "auth", security(()),
    request_body = RefreshTokenBody,
    responses(
        (status = 200, body = TokensBody),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn refresh_token(
    State(state): State<AppState>,
    Json(body): Json<RefreshTokenBody>,
) -> Result<Response, Problem> {
    if body.refresh_token.len() > REFRESH_LENGTH_MAX {
        return Err(invalid_grant());
    }
    let origin = client_ip::origin();
    // In a task of its own: a client that hangs up must not leave a transaction half done.
    let spend = async move {
        let now = state.now();
        let refresh = session::fresh_secret(Continued::Tokens);
        let (spent, next) = (
            Sha256::of(body.refresh_token.as_bytes()),
            Sha256::of(refresh.as_bytes()),
        );
        let mut tx = state.db.begin().await?;
        match sessions::rotate(&mut tx, spent, next, now, now + REFRESH_LIFETIME).await {
            Ok(whose) => {
                tx.commit().await?;
                let (account, session) = (whose.1, whose.0);
                let body = session::tokens(&state, (account, session), refresh);
                Ok((session::no_store(), Json(body)).into_response())
            }
            Err(RefreshError::Reused { session, account }) => {
                let notice = Notice::SessionReused {};
                notices::write(&mut tx, &state.keys, account, &notice, now).await?;
                let event =
                    Event::new(Actor::Anonymous, Action::SessionReused, session.to_string());
                let event = event.of_account(account).from(origin);
                audit::append(&mut tx, &event, now).await?;
                tx.commit().await?;
                tracing::warn!(session.id = %session, "a spent refresh token was shown again; its session is ended");
                Err(invalid_grant())
            }
            Err(RefreshError::Invalid) => Err(invalid_grant()),
            Err(error @ RefreshError::Database(_)) => Err(Problem::internal(&error)),
        }
    };
    let done = tokio::spawn(spend.in_current_span()).await;
    done.map_err(|error| Problem::internal(&error))?
}

/// Signs out: the refresh token, all that descend from the same sign-in, and its access tokens are worth nothing from
/// now on.
#[utoipa::path(
    post, path = "/v1/auth/logout", tag = "auth", security(()),
    request_body = RefreshTokenBody,
    responses(
        (status = 204),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn end_session(
    State(state): State<AppState>,
    Json(body): Json<RefreshTokenBody>,
) -> Result<Response, Problem> {
    let token = Sha256::of(body.refresh_token.as_bytes());
    let found = sessions::find_by_refresh_token(&mut *state.db.acquire().await?, token).await?;
    match found {
        Some(live) => session::finish(&state, live.0, live.1).await,
        None => Ok(StatusCode::NO_CONTENT.into_response()),
    }
}

/// Signs out of the session that this request is made with, of a browser or a program.
#[utoipa::path(
    delete, path = "/v1/auth/session", tag = "auth", security(("session" = [])),
    responses(
        (status = 204),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn end_current_session(
    State(state): State<AppState>,
    caller: SignedIn,
) -> Result<Response, Problem> {
    session::finish(&state, caller.session, caller.identity.account).await
}

/// The public keys of access tokens (RFC 7517).
#[utoipa::path(
    get, path = "/.well-known/jwks.json", tag = "auth", security(()),
    responses((status = 200, body = Jwks)),
)]
async fn list_public_keys(State(state): State<AppState>) -> Response {
    let caching = format!("public, max-age={}", JWKS_MAX_AGE.whole_seconds());
    let caching = [(header::CACHE_CONTROL, caching)];
    (caching, Json(state.keys.jwks())).into_response()
}

/// The same words whatever was wrong.
pub(super) fn invalid_grant() -> Problem {
    Problem::new(
        StatusCode::UNAUTHORIZED,
        "invalid_grant",
        "E-mail and password, or the refresh token, are not valid",
    )
    .header(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))
}
