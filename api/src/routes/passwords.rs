//! `/v1/auth/password`: a password that was forgotten is replaced.

use axum::{
    extract::State,
    http::StatusCode,
    response::{IntoResponse as _, Response},
};
use comptoir_domain::{
    audit::{Action, Actor, Event},
    credential::{Email, check_password},
    digest::Sha256,
};
use comptoir_http::client_ip;
use comptoir_store::{
    accounts, audit, password_resets,
    sessions::{self, EndReason},
};
use serde::Deserialize;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{accounts::in_task, auth::invalid_grant};
use crate::{
    AppState, Problem,
    extract::Json,
    notices::{self, Notice},
};

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(request_reset))
        .routes(routes!(reset_password))
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct ResetRequest {
    #[schema(format = Email, max_length = 254)]
    email: String,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewPassword {
    /// What the mail said; good once, for half an hour.
    token: String,
    #[schema(format = Password, min_length = 12, max_length = 128)]
    password: String,
}

/// Asks for a mail by which the account's password can be replaced. The answer is the same, and takes as long, whether the
/// address has an account or not.
#[utoipa::path(
    post, path = "/v1/auth/password/resets", tag = "auth", security(()),
    request_body = ResetRequest,
    responses(
        (status = 202),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn request_reset(
    State(state): State<AppState>,
    Json(body): Json<ResetRequest>,
) -> Result<StatusCode, Problem> {
    let email: Email = body
        .email
        .parse()
        .map_err(|error| Problem::invalid("/email", format!("{error}")))?;
    let client = client_ip::current();
    // Each may send a mail.
    let attempt = state.sign_ins.attempt(email.as_str(), client).await?;
    attempt.counts();
    // A step takes it from there: whether there is such an account makes no difference here.
    password_resets::request(&mut *state.db.acquire().await?, &email, state.now()).await?;
    Ok(StatusCode::ACCEPTED)
}

/// Replaces the password with what the mail said. Everybody who was signed in to the account is signed out; its API keys
/// work on.
#[utoipa::path(
    post, path = "/v1/auth/password", tag = "auth", security(()),
    request_body = NewPassword,
    responses(
        (status = 204),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn reset_password(
    State(state): State<AppState>,
    Json(body): Json<NewPassword>,
) -> Result<Response, Problem> {
    let origin = client_ip::origin();
    let token = Sha256::of(body.token.as_bytes());
    let email = {
        let mut connection = state.db.acquire().await?;
        let account = password_resets::find(&mut connection, token, state.now()).await?;
        let account = account.ok_or_else(invalid_token)?;
        let account = accounts::find(&mut connection, account).await?;
        let email = account.and_then(|account| account.email);
        email.ok_or_else(invalid_token)?
    };
    let email: Email = email.parse().map_err(|error| Problem::internal(&error))?;
    check_password(&body.password, &email)
        .map_err(|error| Problem::invalid("/password", error.to_string()))?;
    let hash = state.passwords.hash(body.password).await?;
    in_task(async move {
        let now = state.now();
        let mut tx = state.db.begin().await?;
        let spent = password_resets::spend(&mut tx, token, &hash, now).await?;
        let account = spent.ok_or_else(invalid_token)?;
        sessions::end_all(&mut tx, account, EndReason::PasswordReset, now).await?;
        let notice = Notice::PasswordChanged {};
        notices::write(&mut tx, &state.keys, account, &notice, now).await?;
        let (actor, action) = (Actor::Account(account), Action::PasswordChanged);
        let event = Event::new(actor, action, account.to_string())
            .of_account(account)
            .from(origin);
        audit::append(&mut tx, &event, now)
            .await
            .map_err(|error| Problem::internal(&error))?;
        tx.commit().await?;
        Ok(StatusCode::NO_CONTENT.into_response())
    })
    .await
}

fn invalid_token() -> Problem {
    invalid_grant().detail("The token was used or has expired; ask for another")
}
