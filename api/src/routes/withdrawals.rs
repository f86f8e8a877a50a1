//! `/v1/withdrawals`: from the balance to what can be claimed on-chain.

use axum::{extract::State, http::StatusCode, response::Response};
use comptoir_domain::{
    asset::Asset,
    id::{AccountId, ReleaseId},
};
use comptoir_store::{
    assets,
    holds::HoldError,
    limits,
    releases::{self, Release, ReleaseState, WithdrawalError},
};
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;
use time::OffsetDateTime;
use tracing::Instrument as _;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    AppState, Problem,
    auth::{Caller, needs},
    etag::Conditions,
    extract::{Json, Path},
    idempotency::{self, IdempotentJson, Reply},
    limiting::limited,
    money::MoneyBody,
    page::{List, Page, PageQuery},
    quoting::no_asset,
};

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(list_withdrawals, create_withdrawal))
        .routes(routes!(find_withdrawal))
        .routes(routes!(cancel_withdrawal))
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewWithdrawal {
    /// How much of what is available.
    amount: MoneyBody,
}

#[derive(Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum WithdrawalObject {
    Withdrawal,
}

#[derive(Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum WithdrawalState {
    /// It waits for the next batch, perhaps with its second part.
    Queued,
    /// All of it is released: claim it once its batch is active.
    Released,
    /// What was not released yet went back to what is available.
    Cancelled,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Withdrawal)]
struct WithdrawalBody {
    #[schema(value_type = String, example = "rel_01h455vb4pex5vsknk084sn02q")]
    id: ReleaseId,
    object: WithdrawalObject,
    state: WithdrawalState,
    /// Who can claim it, as CAIP-10 names it.
    owner: String,
    /// How much was asked for.
    amount: MoneyBody,
    /// How much of it batches have released so far. The contract limits what one batch releases.
    released: MoneyBody,
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
    /// When the last of it was released.
    #[serde(with = "time::serde::rfc3339::option")]
    #[schema(required = true)]
    released_at: Option<OffsetDateTime>,
}

impl WithdrawalBody {
    fn new(release: &Release, asset: &Asset) -> Self {
        Self {
            id: release.id,
            object: WithdrawalObject::Withdrawal,
            state: match release.state {
                ReleaseState::Queued => WithdrawalState::Queued,
                ReleaseState::Released => WithdrawalState::Released,
                ReleaseState::Cancelled => WithdrawalState::Cancelled,
            },
            owner: asset.caip10(release.owner),
            amount: MoneyBody::new(release.amount, asset),
            released: MoneyBody::new(release.released, asset),
            created_at: release.created_at,
            released_at: release.released_at,
        }
    }
}

/// Asks for money to become claimable on-chain. It is held at once and released with the next batches, oldest
/// first, as the contract's limits allow.
#[utoipa::path(
    post, path = "/v1/withdrawals", tag = "money", security(("session" = []), ("api_key" = ["payouts:write"])),
    params(("Idempotency-Key" = String, Header)),
    request_body = NewWithdrawal,
    responses(
        (status = 201, body = WithdrawalBody, headers(("Location" = String))),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn create_withdrawal(
    State(state): State<AppState>,
    caller: Caller<needs::PayoutsWrite>,
    request: IdempotentJson<NewWithdrawal>,
) -> Result<Response, Problem> {
    let (owner, now) = ((caller.account, caller.owner()?), state.now());
    let wanted = request.body.amount;
    idempotency::run(&state, &caller, request.key, move |tx| {
        Box::pin(async move {
            limits::refuse_frozen(tx, owner.0).await.map_err(limited)?;
            let asset = assets::current(tx).await.map_err(no_asset)?;
            let amount = wanted.amount_of(&asset, "/amount")?;
            let release = releases::request_withdrawal(tx, asset.id, owner, amount, now)
                .await
                .map_err(refused)?;
            let body = WithdrawalBody::new(&release, &asset);
            Ok(Reply::created(
                format!("/v1/withdrawals/{}", release.id),
                &body,
            ))
        })
    })
    .await
}

/// The account's withdrawals, newest first.
#[utoipa::path(
    get, path = "/v1/withdrawals", tag = "money", security(("session" = []), ("api_key" = ["balance:read"])),
    params(PageQuery),
    responses(
        (status = 200, body = Page<WithdrawalBody>),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn list_withdrawals(
    State(state): State<AppState>,
    caller: Caller<needs::BalanceRead>,
    list: List,
) -> Result<Page<WithdrawalBody>, Problem> {
    let before: Option<ReleaseId> = list.position(&state, &caller)?;
    let mut connection = caller.read(&state).await?;
    let asset = assets::current(&mut connection).await.map_err(no_asset)?;
    let rows =
        releases::list_withdrawals(&mut connection, caller.account, before, list.fetch()).await?;
    Ok(list.page(
        &state,
        &caller,
        rows,
        |row| row.id,
        |row| WithdrawalBody::new(&row, &asset),
    ))
}

/// One withdrawal.
#[utoipa::path(
    get, path = "/v1/withdrawals/{id}", tag = "money", security(("session" = []), ("api_key" = ["balance:read"])),
    params(("id" = String, Path)),
    responses(
        (status = 200, body = WithdrawalBody, headers(("ETag" = String))),
        (status = 304),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn find_withdrawal(
    State(state): State<AppState>,
    caller: Caller<needs::BalanceRead>,
    Path(id): Path<ReleaseId>,
    conditions: Conditions,
) -> Result<Response, Problem> {
    let mut connection = caller.read(&state).await?;
    Ok(conditions.answer(read(&mut connection, caller.account, id).await?))
}

async fn read(
    connection: &mut PgConnection,
    account: AccountId,
    id: ReleaseId,
) -> Result<WithdrawalBody, Problem> {
    let release = releases::find_withdrawal(connection, account, id).await?;
    let release = release.ok_or_else(Problem::not_found)?;
    let asset = assets::current(connection).await.map_err(no_asset)?;
    Ok(WithdrawalBody::new(&release, &asset))
}

/// Takes back what no batch has released yet. Cancelling again changes nothing.
#[utoipa::path(
    post, path = "/v1/withdrawals/{id}/cancel", tag = "money", security(("session" = []), ("api_key" = ["payouts:write"])),
    params(("id" = String, Path)),
    responses(
        (status = 200, body = WithdrawalBody),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn cancel_withdrawal(
    State(state): State<AppState>,
    caller: Caller<needs::PayoutsWrite>,
    Path(id): Path<ReleaseId>,
) -> Result<Json<WithdrawalBody>, Problem> {
    let account = caller.account;
    // In a task of its own: a client that hangs up must not leave a transaction half done.
    let work = async move {
        let mut tx = caller.begin(&state).await?;
        releases::cancel_withdrawal(&mut tx, account, id, state.now())
            .await
            .map_err(refused)?;
        let body = read(&mut tx, account, id).await?;
        tx.commit().await?;
        Ok(Json(body))
    };
    let done = tokio::spawn(work.in_current_span()).await;
    done.map_err(|error| Problem::internal(&error))?
}

fn refused(error: WithdrawalError) -> Problem {
    match error {
        WithdrawalError::Nothing => Problem::invalid("/amount/amount", "expected at least 1"),
        WithdrawalError::NotFound => Problem::not_found(),
        WithdrawalError::AlreadyReleased => Problem::new(
            StatusCode::CONFLICT,
            "withdrawal_released",
            "The withdrawal is released",
        ),
        WithdrawalError::Hold(error) => hold_refused(error),
        WithdrawalError::Database(error) => error.into(),
    }
}

/// Why money cannot be held.
pub(crate) fn hold_refused(error: HoldError) -> Problem {
    match error {
        HoldError::InsufficientFunds { available } => Problem::new(
            StatusCode::PAYMENT_REQUIRED,
            "insufficient_funds",
            "The available balance does not cover this",
        )
        .detail(format!("{available} base units are available")),
        HoldError::Leaving => Problem::new(
            StatusCode::CONFLICT,
            "exit_requested",
            "The account's address asked the contract to leave",
        ),
        HoldError::Database(error) => error.into(),
        HoldError::AlreadyPlaced | HoldError::NotHeld | HoldError::Post(_) => {
            Problem::internal(&error)
        }
    }
}
