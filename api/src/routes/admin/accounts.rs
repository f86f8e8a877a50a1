//! `/v1/admin/accounts`: who is there, what they have and may do; holding an account, and letting it go.

use alloy_primitives::Address;
use axum::http::StatusCode;
use axum::response::Response;
use comptoir_domain::{audit::Action, id::AccountId};
use comptoir_store::{
    admin_accounts::{self, ControlError, Controlled, Filter, Holdings},
    assets::{self, AssetError},
    ledger,
};
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;
use time::OffsetDateTime;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    ReasonBody,
    guard::{Admin, FreshAdmin},
    limits::LimitsBody,
};
use crate::{
    AppState, Problem,
    etag::Conditions,
    extract::{Json, Path},
    money::{AddressBody, MoneyBody},
    page::{List, Page, PageQuery},
};

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(list_all_accounts))
        .routes(routes!(find_any_account))
        .routes(routes!(freeze_account))
        .routes(routes!(unfreeze_account))
}

#[derive(Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum AdminAccountObject {
    Account,
}

/// An account, as operators see it.
#[derive(Serialize, ToSchema)]
#[schema(as = AdminAccount)]
struct AccountBody {
    #[schema(value_type = String, example = "acct_01h455vb4pex5vsknk084sn02q")]
    id: AccountId,
    object: AdminAccountObject,
    #[schema(required = true)]
    email: Option<String>,
    /// Of `user`, `provider`, `platform`.
    roles: Vec<String>,
    #[schema(required = true)]
    address: Option<AddressBody>,
    /// Since when it may not spend; `null`: it may.
    #[serde(with = "time::serde::rfc3339::option")]
    #[schema(required = true)]
    frozen_at: Option<OffsetDateTime>,
    #[schema(required = true)]
    frozen_reason: Option<String>,
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
}

/// An account and what it has. What is in its files is nobody's business.
#[derive(Serialize, ToSchema)]
#[schema(as = AdminAccountDetail)]
struct DetailBody {
    #[serde(flatten)]
    account: AccountBody,
    limits: LimitsBody,
    usage: UsageBody,
    /// What its address has; `null` without one, or before there is a token.
    #[schema(required = true)]
    balance: Option<BalancesBody>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = AdminBalances)]
struct BalancesBody {
    available: MoneyBody,
    held: MoneyBody,
    held_back: MoneyBody,
    payable: MoneyBody,
}

#[derive(Serialize, ToSchema)]
#[schema(as = AdminUsage)]
struct UsageBody {
    /// Jobs that have not ended.
    open_jobs: u64,
    /// Jobs submitted today (UTC).
    jobs_today: u64,
    /// Bytes of the blobs that it may read.
    storage_bytes: u64,
    /// API keys that work.
    api_keys: i64,
    /// Sign-ins that live.
    sessions: i64,
    /// Workers that were not taken out.
    workers: i64,
}

impl From<Controlled> for AccountBody {
    fn from(account: Controlled) -> Self {
        let (frozen_at, frozen_reason) = account.frozen.map(|it| (it.at, it.reason)).unzip();
        Self {
            id: account.id,
            object: AdminAccountObject::Account,
            email: account.email,
            roles: account.roles,
            address: account.address.map(AddressBody),
            frozen_at,
            frozen_reason,
            created_at: account.created_at,
        }
    }
}

impl From<Holdings> for UsageBody {
    fn from(holdings: Holdings) -> Self {
        Self {
            open_jobs: holdings.usage.open_jobs,
            jobs_today: holdings.usage.jobs_today,
            storage_bytes: holdings.usage.storage_bytes,
            api_keys: holdings.api_keys,
            sessions: holdings.sessions,
            workers: holdings.workers,
        }
    }
}

/// Which accounts to list.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct AccountQuery {
    /// Only those whose e-mail address begins so.
    email: Option<String>,
    /// Only the one that is bound to this address.
    #[param(value_type = Option<String>, pattern = "^0x[0-9a-fA-F]{40}$")]
    address: Option<Address>,
    /// Only those that may act as this: `user`, `provider`, `platform`.
    role: Option<String>,
    /// Only those that are frozen, or are not.
    frozen: Option<bool>,
}

/// Accounts, newest first.
#[utoipa::path(
    get, path = "/v1/admin/accounts",
    params(PageQuery, AccountQuery),
    responses((status = 200, body = Page<AccountBody>)),
)]
async fn list_all_accounts(
    admin: Admin,
    list: List<AccountQuery>,
) -> Result<Page<AccountBody>, Problem> {
    let before: Option<AccountId> = list.position(&admin.state, &admin.identity)?;
    let email = list.filter.email.as_deref().map(str::to_ascii_lowercase);
    if email.as_deref().is_some_and(|it| it.contains('\0')) {
        return Err(Problem::bad_parameter("email", "not text"));
    }
    let filter = Filter {
        email: email.as_deref(),
        address: list.filter.address,
        role: list.filter.role.as_deref().filter(|it| !it.contains('\0')),
        frozen: list.filter.frozen,
    };
    let mut connection = admin.read().await?;
    let rows = admin_accounts::list(&mut connection, filter, before, list.fetch()).await?;
    let (state, caller) = (&admin.state, &admin.identity);
    Ok(list.page(state, caller, rows, |row| row.id, AccountBody::from))
}

/// One account: what it may do, what it has.
#[utoipa::path(
    get, path = "/v1/admin/accounts/{id}",
    params(("id" = String, Path)),
    responses(
        (status = 200, body = DetailBody, headers(("ETag" = String))),
        (status = 304),
    ),
)]
async fn find_any_account(
    admin: Admin,
    Path(id): Path<AccountId>,
    conditions: Conditions,
) -> Result<Response, Problem> {
    let state = &admin.state;
    let mut connection = admin.read().await?;
    let account = admin_accounts::find(&mut connection, id)
        .await?
        .ok_or_else(Problem::not_found)?;
    let holdings = admin_accounts::holdings(&mut connection, id, state.now()).await?;
    let body = DetailBody {
        limits: LimitsBody::new(account.limits, state.config.limits),
        usage: holdings.into(),
        balance: balance(&mut connection, account.address).await?,
        account: account.into(),
    };
    Ok(conditions.answer(body))
}

async fn balance(
    connection: &mut PgConnection,
    owner: Option<Address>,
) -> Result<Option<BalancesBody>, Problem> {
    let asset = match assets::current(connection).await {
        Ok(asset) => asset,
        Err(AssetError::NoneRegistered) => return Ok(None),
        Err(AssetError::Database(error)) => return Err(error.into()),
    };
    let Some(owner) = owner else { return Ok(None) };
    let balances = ledger::balances(connection, owner, asset.id).await?;
    let money = |amount| MoneyBody::new(amount, &asset);
    Ok(Some(BalancesBody {
        available: money(balances.available),
        held: money(balances.held),
        held_back: money(balances.held_back),
        payable: money(balances.payable),
    }))
}

/// Holds an account: whoever is signed in to it is signed out, and nobody signs in. Its API keys read and cancel, and do nothing
/// else; its workers get no leases. It can leave on-chain. Freezing it again changes nothing.
#[utoipa::path(
    post, path = "/v1/admin/accounts/{id}/freeze",
    params(("id" = String, Path)),
    request_body = ReasonBody,
    responses((status = 200, body = AccountBody)),
)]
async fn freeze_account(
    admin: FreshAdmin,
    Path(id): Path<AccountId>,
    Json(body): Json<ReasonBody>,
) -> Result<Json<AccountBody>, Problem> {
    let reason = body.checked()?;
    let event = admin
        .event(Action::AccountFrozen, id)
        .of_account(id)
        .with("reason", reason.clone());
    let now = admin.state.now();
    let work = admin.act(event, move |tx, event| {
        Box::pin(async move {
            let ended = admin_accounts::freeze(tx, id, &reason, now)
                .await
                .map_err(refused)?;
            event.note("sessions_ended", ended);
            shown(tx, id).await
        })
    });
    work.await.map(Json)
}

/// Lets a frozen account go on. Doing it again changes nothing.
#[utoipa::path(
    post, path = "/v1/admin/accounts/{id}/unfreeze",
    params(("id" = String, Path)),
    request_body = ReasonBody,
    responses((status = 200, body = AccountBody)),
)]
async fn unfreeze_account(
    admin: FreshAdmin,
    Path(id): Path<AccountId>,
    Json(body): Json<ReasonBody>,
) -> Result<Json<AccountBody>, Problem> {
    let event = admin
        .event(Action::AccountUnfrozen, id)
        .of_account(id)
        .with("reason", body.checked()?);
    let now = admin.state.now();
    let work = admin.act(event, move |tx, _| {
        Box::pin(async move {
            admin_accounts::unfreeze(tx, id, now)
                .await
                .map_err(refused)?;
            shown(tx, id).await
        })
    });
    work.await.map(Json)
}

async fn shown(connection: &mut PgConnection, id: AccountId) -> Result<AccountBody, Problem> {
    let account = admin_accounts::find(connection, id).await?;
    Ok(account.ok_or_else(Problem::not_found)?.into())
}

pub(super) fn refused(error: ControlError) -> Problem {
    match error {
        ControlError::NotFound => Problem::not_found(),
        ControlError::IsAdmin => Problem::new(
            StatusCode::CONFLICT,
            "account_is_admin",
            "The account is an administrator's",
        )
        .detail("Take the role away first"),
        ControlError::Database(error) => error.into(),
    }
}
