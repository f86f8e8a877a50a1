//! How a session begins and is continued: with tokens for programs, with a cookie for browsers.

use axum::{
    extract::FromRequestParts,
    http::{HeaderMap, HeaderValue, Method as HttpMethod, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
};
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use comptoir_domain::{
    audit::{Action, Actor, Event, Origin},
    digest::Sha256,
    id::{AccountId, SessionId},
};
use comptoir_http::{
    client_ip,
    credential::{SESSION_COOKIE, session_cookie},
};
use comptoir_store::{
    PgTransaction, audit,
    limits::LimitError,
    sessions::{self, Credential, EndReason, Method, StartError},
};
use serde::{Deserialize, Serialize};
use time::{Duration, OffsetDateTime};
use tracing::Instrument as _;
use utoipa::ToSchema;

use super::{
    Caller, Identity,
    keys::{ACCESS_LIFETIME, random},
    needs,
};
use crate::{AppState, Problem, extract::Json, limiting::limited};

/// How long somebody stays signed in without coming back.
pub const REFRESH_LIFETIME: Duration = Duration::days(30);
/// How long a browser stays signed in.
pub const COOKIE_LIFETIME: Duration = Duration::days(7);
/// What a refresh token begins with.
const REFRESH_PREFIX: &str = "crt_";

/// What continues a session.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Continued {
    /// An access token and a refresh token, in the reply.
    #[default]
    Tokens,
    /// A cookie, for the browser on our own pages.
    Cookie,
}

#[derive(Serialize, ToSchema)]
enum TokenType {
    Bearer,
}

/// What a program keeps.
#[derive(Serialize, ToSchema)]
#[schema(as = Tokens)]
pub struct TokensBody {
    /// For `Authorization: Bearer`. It ends with its session.
    access_token: String,
    token_type: TokenType,
    /// Seconds for which the access token holds.
    expires_in: i64,
    /// Gives the next pair, once.
    refresh_token: String,
    /// Seconds for which the refresh token holds.
    refresh_expires_in: i64,
}

#[derive(Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum SessionObject {
    Session,
}

/// A session of a browser.
#[derive(Serialize, ToSchema)]
#[schema(as = Session)]
pub struct SessionBody {
    #[schema(value_type = String)]
    id: SessionId,
    object: SessionObject,
    #[schema(value_type = String)]
    account: AccountId,
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    expires_at: OffsetDateTime,
}

/// The answer to signing in.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub enum SignedInBody {
    /// With `session: tokens`.
    Tokens(TokensBody),
    /// With `session: cookie`, beside the cookie.
    Cookie(SessionBody),
}

/// Starts a session for whoever proved to be the account's; the reply carries what continues it.
///
/// # Errors
/// When the account is frozen, or Postgres fails.
pub async fn begin(
    state: &AppState,
    (account, method): (AccountId, Method),
    continued: Continued,
) -> Result<Response, Problem> {
    let (state, origin) = (state.clone(), client_ip::origin());
    let work = async move {
        let mut tx = state.db.begin().await?;
        let answer = begin_in(&mut tx, &state, (account, method), continued, origin).await?;
        tx.commit().await?;
        Ok(answer.into_response())
    };
    let done = tokio::spawn(work.in_current_span()).await;
    done.map_err(|error| Problem::internal(&error))?
}

/// [`begin`] in a transaction of the caller's.
///
/// # Errors
/// When the account is frozen, or Postgres fails.
pub async fn begin_in(
    tx: &mut PgTransaction<'_>,
    state: &AppState,
    (account, method): (AccountId, Method),
    continued: Continued,
    origin: Origin,
) -> Result<(HeaderMap, Json<SignedInBody>), Problem> {
    let now = state.now();
    let secret = fresh_secret(continued);
    let hash = Sha256::of(secret.as_bytes());
    let (credential, lifetime) = match continued {
        Continued::Tokens => (Credential::RefreshToken(hash), REFRESH_LIFETIME),
        Continued::Cookie => (Credential::Cookie(hash), COOKIE_LIFETIME),
    };
    let expires_at = now + lifetime;
    let started = sessions::start(tx, (account, method), credential, now, expires_at).await;
    let session = started.map_err(not_started)?;
    let actor = Actor::Account(account);
    let event = Event::new(actor, Action::SessionStarted, session.to_string())
        .of_account(account)
        .from(origin);
    audit::append(tx, &event, now).await?;
    let (headers, body) = match continued {
        Continued::Tokens => {
            let body = tokens(state, (account, session), secret);
            (no_store(), SignedInBody::Tokens(body))
        }
        Continued::Cookie => {
            let body = SessionBody {
                id: session,
                object: SessionObject::Session,
                account,
                created_at: now,
                expires_at,
            };
            let headers = set_cookie(&secret, COOKIE_LIFETIME);
            (headers, SignedInBody::Cookie(body))
        }
    };
    Ok((headers, Json(body)))
}

fn not_started(error: StartError) -> Problem {
    match error {
        StartError::Frozen => limited(LimitError::Frozen)
            .detail("Nobody signs in to it; its API keys read and cancel"),
        StartError::Database(error) => error.into(),
    }
}

/// A secret that was never used before.
#[must_use]
pub fn fresh_secret(continued: Continued) -> String {
    let prefix = match continued {
        Continued::Tokens => REFRESH_PREFIX,
        Continued::Cookie => "",
    };
    format!("{prefix}{}", BASE64_URL_SAFE_NO_PAD.encode(random::<32>()))
}

/// The pair of tokens that continues a session.
#[must_use]
pub fn tokens(
    state: &AppState,
    (account, session): (AccountId, SessionId),
    refresh_token: String,
) -> TokensBody {
    TokensBody {
        access_token: state.keys.access_token(account, session, state.now()),
        token_type: TokenType::Bearer,
        expires_in: ACCESS_LIFETIME.whole_seconds(),
        refresh_token,
        refresh_expires_in: REFRESH_LIFETIME.whole_seconds(),
    }
}

/// Nobody on the way may keep the reply.
#[must_use]
pub fn no_store() -> HeaderMap {
    HeaderMap::from_iter([(header::CACHE_CONTROL, HeaderValue::from_static("no-store"))])
}

/// Only our own pages send the cookie, no script reads it, and none but this host may set it.
fn set_cookie(secret: &str, lifetime: Duration) -> HeaderMap {
    let seconds = lifetime.whole_seconds();
    let cookie = format!(
        "{SESSION_COOKIE}={secret}; Path=/; Max-Age={seconds}; HttpOnly; Secure; SameSite=Strict"
    );
    let cookie = HeaderValue::try_from(cookie).expect("the secret is base64");
    let mut headers = no_store();
    headers.insert(header::SET_COOKIE, cookie);
    headers
}

/// Ends a session, and with it whatever names it; takes the cookie away.
///
/// # Errors
/// When Postgres fails.
pub async fn finish(
    state: &AppState,
    session: SessionId,
    account: AccountId,
) -> Result<Response, Problem> {
    let (state, origin) = (state.clone(), client_ip::origin());
    let work = async move {
        let now = state.now();
        let mut tx = state.db.begin().await?;
        sessions::end(&mut tx, session, EndReason::Logout, now).await?;
        let actor = Actor::Account(account);
        let event = Event::new(actor, Action::SessionEnded, session.to_string())
            .of_account(account)
            .from(origin);
        audit::append(&mut tx, &event, now).await?;
        tx.commit().await?;
        Ok((StatusCode::NO_CONTENT, set_cookie("", Duration::ZERO)).into_response())
    };
    let done = tokio::spawn(work.in_current_span()).await;
    done.map_err(|error| Problem::internal(&error))?
}

/// Who the cookie of the request names. What changes something must come from our own pages.
pub(super) async fn by_cookie(
    parts: &Parts,
    state: &AppState,
) -> Result<Option<Identity>, Problem> {
    let Some(cookie) = session_cookie(&parts.headers) else {
        return Ok(None);
    };
    let hash = Sha256::of(cookie.as_bytes());
    let mut connection = state.db.acquire().await?;
    let live = sessions::find_by_cookie(&mut connection, hash, state.now()).await?;
    let safe = [HttpMethod::GET, HttpMethod::HEAD, HttpMethod::OPTIONS];
    if live.is_some() && !safe.contains(&parts.method) {
        require_own_page(&parts.headers, state)?;
    }
    Ok(live.map(Identity::of_session))
}

/// Refuses a request that another site made a browser send: 403. `SameSite` says the same, in newer browsers alone.
///
/// # Errors
/// When `Origin` is missing, or is not our own.
pub fn require_own_page(headers: &HeaderMap, state: &AppState) -> Result<(), Problem> {
    let mut origins = headers.get_all(header::ORIGIN).iter();
    let ours = origins.next().is_some_and(|origin| {
        origin.as_bytes() == state.config.public_origin.as_bytes() && origins.next().is_none()
    });
    if ours {
        Ok(())
    } else {
        Err(Problem::new(
            StatusCode::FORBIDDEN,
            "origin_refused",
            "A cookie is taken from pages of this service alone",
        ))
    }
}

/// Somebody who signed in; an API key is not enough.
#[derive(Debug)]
pub struct SignedIn {
    /// Whose account.
    pub identity: Identity,
    /// The session of the request.
    pub session: SessionId,
}

impl FromRequestParts<AppState> for SignedIn {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, Problem> {
        let caller = Caller::<needs::Nothing>::from_request_parts(parts, state).await?;
        let session = caller.session()?;
        Ok(Self {
            identity: caller.identity,
            session,
        })
    }
}
