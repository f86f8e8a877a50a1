//! `/v1/admin/setup` and `/v1/admin/admins`: becoming an administrator, and ceasing to be one.

use axum::extract::State;
use axum::http::StatusCode;
use comptoir_domain::{
    audit::{Action, Actor, Event},
    credential::check_password,
    id::AccountId,
    setup_token::SetupToken,
};
use comptoir_http::client_ip;
use comptoir_store::{
    accounts::SignUpError,
    admins::{self, RedeemError, RemoveError},
};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::guard::{Admin, FreshAdmin};
use crate::{
    AppState, Problem,
    extract::{Json, Path},
    page::ListObject,
};

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(redeem_setup_token))
        .routes(routes!(list_admins))
        .routes(routes!(remove_admin))
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct SetupBody {
    /// What `comptoir admin bootstrap` printed.
    token: String,
    /// The password that signs in from now on.
    #[schema(format = Password, min_length = 12, max_length = 128)]
    password: String,
}

#[derive(Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum AdminObject {
    Admin,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Admin)]
struct AdminBody {
    /// The account.
    #[schema(value_type = String, example = "acct_01h455vb4pex5vsknk084sn02q")]
    id: AccountId,
    object: AdminObject,
    #[schema(required = true)]
    email: Option<String>,
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
}

impl From<admins::Admin> for AdminBody {
    fn from(admin: admins::Admin) -> Self {
        Self {
            id: admin.account,
            object: AdminObject::Admin,
            email: admin.email,
            created_at: admin.created_at,
        }
    }
}

/// Redeems a setup token, once: the account of its e-mail address is an administrator's from now on, and signs in with this
/// password. Other sign-ins and API keys of that account end.
#[utoipa::path(
    post, path = "/v1/admin/setup", security(()),
    request_body = SetupBody,
    responses((status = 200, body = AdminBody)),
)]
async fn redeem_setup_token(
    State(state): State<AppState>,
    Json(body): Json<SetupBody>,
) -> Result<Json<AdminBody>, Problem> {
    let token: SetupToken = body.token.parse().map_err(|_| token_refused())?;
    let (secret, now) = (token.sha256(), state.now());
    // Asked before the password is hashed, which costs a lot.
    let email = admins::setup_email(&mut *state.admin_db.read().await?, secret, now)
        .await
        .map_err(|error| not_redeemed(&error))?;
    check_password(&body.password, &email)
        .map_err(|error| Problem::invalid("/password", error.to_string()))?;
    let hash = state.passwords.hash(body.password).await?;
    // Who it is, the token says when it is redeemed.
    let event = Event::new(Actor::Anonymous, Action::PlatformRoleGranted, "");
    let event = event.from(client_ip::origin());
    let work = state.admin_db.act(event, now, move |tx, event| {
        Box::pin(async move {
            let account = admins::redeem(tx, secret, &hash, now)
                .await
                .map_err(|error| not_redeemed(&error))?;
            let found = admins::list(tx).await?;
            let admin = found.into_iter().find(|it| it.account == account);
            event.actor = Actor::Account(account);
            event.subject = account.to_string();
            event.account = Some(account);
            admin.ok_or_else(Problem::not_found)
        })
    });
    let admin = work.await?;
    tracing::info!(account = %admin.account, "administrator set up");
    Ok(Json(admin.into()))
}

fn not_redeemed(error: &RedeemError) -> Problem {
    match error {
        RedeemError::Invalid => token_refused(),
        // Somebody signed up with the address in this very moment.
        RedeemError::SignUp(SignUpError::EmailTaken) => {
            Problem::unavailable("The account changed meanwhile")
        }
        RedeemError::SignUp(SignUpError::Database(_)) | RedeemError::Database(_) => {
            Problem::internal(error)
        }
    }
}

fn token_refused() -> Problem {
    Problem::new(
        StatusCode::UNAUTHORIZED,
        "setup_token_refused",
        "The setup token is not valid",
    )
    .header(
        axum::http::header::WWW_AUTHENTICATE,
        axum::http::HeaderValue::from_static("Bearer"),
    )
}

#[derive(Serialize, ToSchema)]
struct AdminList {
    object: ListObject,
    data: Vec<AdminBody>,
    /// There are never more pages.
    has_more: bool,
    #[schema(required = true)]
    next_cursor: Option<String>,
}

/// The administrators.
#[utoipa::path(
    get, path = "/v1/admin/admins",
    responses((status = 200, body = AdminList)),
)]
async fn list_admins(admin: Admin) -> Result<Json<AdminList>, Problem> {
    let admins = admins::list(&mut *admin.read().await?).await?;
    Ok(Json(AdminList {
        object: ListObject::List,
        data: admins.into_iter().map(AdminBody::from).collect(),
        has_more: false,
        next_cursor: None,
    }))
}

/// Takes the role away from an administrator, who may be oneself; never from the last. Nobody gives it through the API:
/// `comptoir admin bootstrap` does, which needs the database.
#[utoipa::path(
    post, path = "/v1/admin/admins/{id}/remove",
    params(("id" = String, Path)),
    responses((status = 204)),
)]
async fn remove_admin(admin: FreshAdmin, Path(id): Path<AccountId>) -> Result<StatusCode, Problem> {
    let event = admin.event(Action::PlatformRoleRevoked, id).of_account(id);
    let work = admin.act(event, move |tx, _| {
        Box::pin(async move {
            admins::remove(tx, id).await.map_err(|error| match error {
                RemoveError::NotAdmin => Problem::not_found(),
                RemoveError::Last => Problem::new(
                    StatusCode::CONFLICT,
                    "last_admin",
                    "The last administrator cannot be removed",
                ),
                RemoveError::Database(error) => error.into(),
            })?;
            Ok(StatusCode::NO_CONTENT)
        })
    });
    work.await
}
