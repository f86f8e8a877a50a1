//! `/v1/auth`: signing in, staying signed in, signing out.

use axum::{
    extract::State,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use comptoir_domain::{
    credential::{Email, PASSWORD_CHARS_MAX},
    digest::Sha256,
    id::AccountId,
};
use comptoir_http::jwt::Jwks;
use comptoir_store::{
    accounts,
    sessions::{self, RefreshError},
};
use serde::{Deserialize, Serialize};
use time::Duration;
use tracing::Instrument as _;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    AppState, Problem,
    auth::keys::{ACCESS_LIFETIME, random},
    extract::Json,
};

/// How long somebody stays signed in without coming back.
const REFRESH_LIFETIME: Duration = Duration::days(30);
/// What a refresh token begins with.
const REFRESH_PREFIX: &str = "crt_";
/// Longer texts are no refresh tokens.
const REFRESH_LENGTH_MAX: usize = 64;

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(create_token))
        .routes(routes!(refresh_token))
        .routes(routes!(end_session))
        .routes(routes!(list_public_keys))
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct SignIn {
    email: String,
    #[schema(format = Password)]
    password: String,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct RefreshTokenBody {
    /// What signing in, or the last refresh, gave.
    refresh_token: String,
}

#[derive(Serialize, ToSchema)]
enum TokenType {
    Bearer,
}

#[derive(Serialize, ToSchema)]
struct TokensBody {
    /// For `Authorization: Bearer`.
    access_token: String,
    token_type: TokenType,
    /// Seconds for which the access token holds.
    expires_in: i64,
    /// Gives the next pair, once.
    refresh_token: String,
    /// Seconds for which the refresh token holds.
    refresh_expires_in: i64,
}

/// Signs in with e-mail and password.
#[utoipa::path(
    post, path = "/v1/auth/token", tag = "auth", security(()),
    request_body = SignIn,
    responses(
        (status = 200, body = TokensBody),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn create_token(
    State(state): State<AppState>,
    Json(body): Json<SignIn>,
) -> Result<Response, Problem> {
    // Too long for any password of ours; hashing it would only cost us.
    if body.password.chars().count() > PASSWORD_CHARS_MAX {
        return Err(invalid_grant());
    }
    let known = match body.email.parse::<Email>() {
        Ok(email) => accounts::find_password(&mut *state.db.acquire().await?, &email).await?,
        Err(_) => None,
    };
    let (account, hash) = known.unzip();
    let matches = state.passwords.verify(body.password, hash).await?;
    let account = account.filter(|_| matches).ok_or_else(invalid_grant)?;
    let refresh = fresh_refresh_token();
    let now = state.now();
    sessions::start(
        &mut *state.db.acquire().await?,
        account,
        Sha256::of(refresh.as_bytes()),
        now,
        now + REFRESH_LIFETIME,
    )
    .await?;
    Ok(tokens(&state, account, refresh))
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
    // In a task of its own: a client that hangs up must not leave a transaction half done.
    let spend = async move {
        let now = state.now();
        let refresh = fresh_refresh_token();
        let (spent, next) = (
            Sha256::of(body.refresh_token.as_bytes()),
            Sha256::of(refresh.as_bytes()),
        );
        let mut tx = state.db.begin().await?;
        match sessions::rotate(&mut tx, spent, next, now, now + REFRESH_LIFETIME).await {
            Ok(account) => {
                tx.commit().await?;
                Ok(tokens(&state, account, refresh))
            }
            Err(RefreshError::Reused) => {
                tx.commit().await?;
                tracing::warn!("a spent refresh token was shown again; its family is revoked");
                Err(invalid_grant())
            }
            Err(RefreshError::Invalid) => Err(invalid_grant()),
            Err(error @ RefreshError::Database(_)) => Err(Problem::internal(&error)),
        }
    };
    let done = tokio::spawn(spend.in_current_span()).await;
    done.map_err(|error| Problem::internal(&error))?
}

/// Signs out: the refresh token, and all that descend from the same sign-in, are worth nothing from now on.
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
) -> Result<StatusCode, Problem> {
    let token = Sha256::of(body.refresh_token.as_bytes());
    sessions::end(&mut *state.db.acquire().await?, token, state.now()).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The public keys of access tokens (RFC 7517).
#[utoipa::path(
    get, path = "/.well-known/jwks.json", tag = "auth", security(()),
    responses((status = 200, body = Jwks)),
)]
async fn list_public_keys(State(state): State<AppState>) -> Response {
    let caching = [(
        header::CACHE_CONTROL,
        HeaderValue::from_static("public, max-age=300"),
    )];
    (caching, Json(state.keys.jwks())).into_response()
}

fn fresh_refresh_token() -> String {
    format!(
        "{REFRESH_PREFIX}{}",
        BASE64_URL_SAFE_NO_PAD.encode(random::<32>())
    )
}

fn tokens(state: &AppState, account: AccountId, refresh_token: String) -> Response {
    let body = TokensBody {
        access_token: state.keys.access_token(account, state.now()),
        token_type: TokenType::Bearer,
        expires_in: ACCESS_LIFETIME.whole_seconds(),
        refresh_token,
        refresh_expires_in: REFRESH_LIFETIME.whole_seconds(),
    };
    let private = [(header::CACHE_CONTROL, HeaderValue::from_static("no-store"))];
    (private, Json(body)).into_response()
}

/// The same words whatever was wrong.
fn invalid_grant() -> Problem {
    Problem::new(
        StatusCode::UNAUTHORIZED,
        "invalid_grant",
        "E-mail and password, or the refresh token, are not valid",
    )
    .header(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))
}
