//! `/v1/accounts` and `/v1/account`: signing up, and the account.

use axum::{
    extract::State,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use comptoir_domain::{
    audit::{Action, Actor, Event},
    credential::check_password,
    id::{AccountId, AddressChangeId},
};
use comptoir_http::client_ip;
use comptoir_store::{
    accounts::{self, Account, SignUpError},
    address_changes::{self, AddressChange},
    audit,
};
use serde::{Deserialize, Deserializer, Serialize};
use sqlx::PgConnection;
use time::OffsetDateTime;
use tracing::Instrument as _;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    AppState, FieldError, Problem,
    auth::{Caller, needs},
    etag::Conditions,
    extract::Json,
    mail,
    money::AddressBody,
};

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(create_account))
        .routes(routes!(find_account, update_account))
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewAccount {
    #[schema(format = Email, max_length = 254)]
    email: String,
    #[schema(format = Password, min_length = 12, max_length = 128)]
    password: String,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct AccountPatch {
    /// Are earnings to be released on-chain without being asked for?
    #[serde(default, deserialize_with = "present")]
    #[schema(nullable = false)]
    auto_release: Option<bool>,
}

/// In a merge patch `null` removes; nothing here can be removed.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<bool>, D::Error> {
    bool::deserialize(deserializer).map(Some)
}

#[derive(Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum AccountObject {
    Account,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Account)]
pub(super) struct AccountBody {
    #[schema(value_type = String, example = "acct_01h455vb4pex5vsknk084sn02q")]
    id: AccountId,
    object: AccountObject,
    /// `null` where only a wallet signs in.
    #[schema(required = true)]
    email: Option<String>,
    /// Of `user`, `provider`, `platform`.
    roles: Vec<String>,
    /// The bound address; `null` before one is bound.
    #[schema(required = true)]
    address: Option<AddressBody>,
    #[serde(with = "time::serde::rfc3339::option")]
    #[schema(required = true)]
    address_bound_at: Option<OffsetDateTime>,
    /// A change of the address that waits for its time.
    #[schema(required = true)]
    address_change: Option<AddressChangeBody>,
    /// Are earnings released on-chain without being asked for?
    auto_release: bool,
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
}

#[derive(Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum AddressChangeObject {
    AddressChange,
}

/// Until its time has come, `POST /v1/account/address/cancel` takes it back.
#[derive(Serialize, ToSchema)]
#[schema(as = AddressChange)]
struct AddressChangeBody {
    #[schema(value_type = String)]
    id: AddressChangeId,
    object: AddressChangeObject,
    /// Where the account will be paid.
    address: AddressBody,
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    effective_at: OffsetDateTime,
}

impl AccountBody {
    fn new(account: Account, change: Option<AddressChange>) -> Self {
        Self {
            id: account.id,
            object: AccountObject::Account,
            email: account.email,
            roles: account.roles,
            address: account.address.map(AddressBody),
            address_bound_at: account.address_bound_at,
            address_change: change.map(|change| AddressChangeBody {
                id: change.id,
                object: AddressChangeObject::AddressChange,
                address: AddressBody(change.new),
                created_at: change.requested_at,
                effective_at: change.effective_at,
            }),
            auto_release: account.auto_release,
            created_at: account.created_at,
        }
    }

    /// The account as it is now.
    pub(super) async fn read(
        connection: &mut PgConnection,
        account: AccountId,
    ) -> Result<Self, Problem> {
        let found = accounts::find(connection, account).await?;
        let change = address_changes::find_pending(connection, account).await?;
        Ok(Self::new(found.ok_or_else(Problem::not_found)?, change))
    }
}

/// Signs up. An e-mail address has one account, so the request may be repeated without an `Idempotency-Key`.
#[utoipa::path(
    post, path = "/v1/accounts", tag = "accounts", security(()),
    request_body = NewAccount,
    responses(
        (status = 201, body = AccountBody, headers(("Location" = String))),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn create_account(
    State(state): State<AppState>,
    Json(body): Json<NewAccount>,
) -> Result<Response, Problem> {
    let email = mail::sendable(&body.email).map_err(|error| {
        Problem::invalid_fields([FieldError::new("/email", format!("{error}"))])
    })?;
    check_password(&body.password, &email)
        .map_err(|error| Problem::invalid("/password", error.to_string()))?;
    let hash = state.passwords.hash(body.password).await?;
    let origin = client_ip::origin();
    in_task(async move {
        let now = state.now();
        let mut tx = state.db.begin().await?;
        let account = accounts::create(&mut tx, &email, &hash, now)
            .await
            .map_err(|error| match error {
                SignUpError::EmailTaken => Problem::new(
                    StatusCode::CONFLICT,
                    "email_taken",
                    "The e-mail address has an account",
                ),
                SignUpError::Database(_) => Problem::internal(&error),
            })?;
        let subject = account.id.to_string();
        let event = Event::new(Actor::Account(account.id), Action::AccountCreated, subject)
            .of_account(account.id)
            .from(origin);
        audit::append(&mut tx, &event, now)
            .await
            .map_err(|error| Problem::internal(&error))?;
        tx.commit().await?;
        let location = [(header::LOCATION, HeaderValue::from_static("/v1/account"))];
        let body = Json(AccountBody::new(account, None));
        Ok((StatusCode::CREATED, location, body).into_response())
    })
    .await
}

/// The caller's account.
#[utoipa::path(
    get, path = "/v1/account", tag = "accounts", security(("session" = []), ("api_key" = ["account:read"])),
    responses(
        (status = 200, body = AccountBody, headers(("ETag" = String))),
        (status = 304),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn find_account(
    State(state): State<AppState>,
    caller: Caller<needs::AccountRead>,
    conditions: Conditions,
) -> Result<Response, Problem> {
    let mut connection = caller.read(&state).await?;
    Ok(conditions.answer(AccountBody::read(&mut connection, caller.account).await?))
}

/// Changes the caller's account.
#[utoipa::path(
    patch, path = "/v1/account", tag = "accounts", security(("session" = []), ("api_key" = ["account:write"])),
    params(("If-Match" = String, Header, description = "The `ETag` that the account was read with")),
    request_body(content = AccountPatch, content_type = "application/merge-patch+json"),
    responses(
        (status = 200, body = AccountBody, headers(("ETag" = String))),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn update_account(
    State(state): State<AppState>,
    caller: Caller<needs::AccountWrite>,
    conditions: Conditions,
    Json(patch): Json<AccountPatch>,
) -> Result<Response, Problem> {
    let account = caller.account;
    in_task(async move {
        let mut tx = caller.begin(&state).await?;
        accounts::lock(&mut tx, account).await?;
        conditions.require_match(&AccountBody::read(&mut tx, account).await?)?;
        if let Some(auto_release) = patch.auto_release {
            accounts::set_auto_release(&mut tx, account, auto_release).await?;
        }
        let changed = AccountBody::read(&mut tx, account).await?;
        tx.commit().await?;
        Ok(conditions.answer(changed))
    })
    .await
}

/// A transaction that a client's hanging up does not leave half done.
pub(super) async fn in_task(
    work: impl Future<Output = Result<Response, Problem>> + Send + 'static,
) -> Result<Response, Problem> {
    let done = tokio::spawn(work.in_current_span()).await;
    done.map_err(|error| Problem::internal(&error))?
}
