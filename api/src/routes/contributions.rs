//! `/v1/contributions` and `/v1/datasets/{dataset}/contributions`: what others offer to add to a dataset, and what its owner answers.

use axum::{
    extract::State,
    http::StatusCode,
    response::{IntoResponse as _, Response},
};
use comptoir_domain::{
    asset::Asset,
    contribution::ContributionState,
    id::{AccountId, ContributionId, DatasetId, DatasetVersionId, ReceiptId},
};
use comptoir_store::{
    PgTransaction, assets,
    contributions::{
        self, AcceptError, Acceptance, AnswerError, Contribution, NewContribution, OfferError, Side,
    },
    datasets, limits, tenant,
};
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;
use time::OffsetDateTime;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    accounts::in_task, submit::above_spend_limit, takedowns::blocked, withdrawals::hold_refused,
};
use crate::{
    AppState, Problem,
    auth::{Caller, Identity, needs},
    availability,
    etag::Conditions,
    extract::{Json, Path},
    idempotency::{self, IdempotentJson, Reply},
    limiting::limited,
    money::MoneyBody,
    page::{List, Page},
    quoting::no_asset,
};

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(list_dataset_contributions, create_contribution))
        .routes(routes!(list_contributions))
        .routes(routes!(find_contribution))
        .routes(routes!(accept_contribution))
        .routes(routes!(reject_contribution))
        .routes(routes!(withdraw_contribution))
}

/// Longest note to an owner, in bytes.
const NOTE_BYTES_MAX: usize = 4_096;
/// Longest reason, in characters.
const REASON_MAX: usize = 1_000;

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = NewContribution)]
struct NewContributionBody {
    /// A ready version of a dataset of yours, listed or not. Its files that have rows count.
    #[schema(value_type = String, example = "dsv_01h455vb4pex5vsknk084sn02q")]
    version: DatasetVersionId,
    /// Words to the owner.
    #[schema(max_length = 4096)]
    note: Option<String>,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = ContributionAcceptance)]
struct AcceptanceBody {
    /// What you expect to pay, as the contribution says.
    expected_reward: MoneyBody,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = ContributionRejection)]
struct Rejection {
    /// Why; the contributor reads it.
    #[schema(min_length = 1, max_length = 1000)]
    reason: String,
}

#[derive(Deserialize, ToSchema, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ContributionFilter {
    /// Those in this state alone.
    state: Option<ContributionState>,
}

#[derive(Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum ContributionObject {
    Contribution,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Contribution)]
struct ContributionBody {
    #[schema(value_type = String, example = "con_01h455vb4pex5vsknk084sn02q")]
    id: ContributionId,
    object: ContributionObject,
    state: ContributionState,
    /// The dataset that it is offered to.
    #[schema(value_type = String)]
    dataset: DatasetId,
    /// Whose that is.
    #[schema(value_type = String)]
    owner: AccountId,
    #[schema(value_type = String)]
    contributor: AccountId,
    /// What is offered: the owner reads its files for as long as the contribution is pending, and for good once it is accepted.
    #[schema(value_type = String)]
    version: DatasetVersionId,
    /// The dataset of that version.
    #[schema(value_type = String)]
    source: DatasetId,
    /// Which terms it was made under.
    terms_number: u32,
    /// What contributors get of later sales under these, in millionths of the seller's side.
    pool_ppm: u32,
    /// Files that have rows.
    files: u32,
    rows: u64,
    /// What it earns when it is accepted.
    reward: MoneyBody,
    /// The contributor's words.
    #[schema(required = true)]
    note: Option<String>,
    /// Why it was rejected.
    #[schema(required = true)]
    reason: Option<String>,
    /// The receipt of the reward.
    #[schema(required = true, value_type = Option<String>)]
    receipt: Option<ReceiptId>,
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
    /// Until when the owner answers.
    #[serde(with = "time::serde::rfc3339")]
    answer_due_at: OffsetDateTime,
    /// When it was accepted, rejected, withdrawn, or lapsed.
    #[serde(with = "time::serde::rfc3339::option")]
    #[schema(required = true)]
    ended_at: Option<OffsetDateTime>,
}

impl ContributionBody {
    fn new(it: Contribution, asset: &Asset) -> Self {
        Self {
            id: it.id,
            object: ContributionObject::Contribution,
            state: it.state,
            dataset: it.dataset,
            owner: it.owner,
            contributor: it.account,
            version: it.version,
            source: it.source,
            terms_number: it.terms_number,
            pool_ppm: it.pool_ppm,
            files: it.files,
            rows: it.rows,
            reward: MoneyBody::new(it.reward, asset),
            note: it.note,
            reason: it.reason,
            receipt: it.receipt,
            created_at: it.created_at,
            answer_due_at: it.answer_due_at,
            ended_at: it.ended_at,
        }
    }

    async fn read(connection: &mut PgConnection, id: ContributionId) -> Result<Self, Problem> {
        let found = contributions::find(connection, id).await?;
        let found = found.ok_or_else(Problem::not_found)?;
        let asset = assets::find(connection, found.asset_id)
            .await
            .map_err(no_asset)?;
        Ok(Self::new(found, &asset))
    }
}

fn conflict(code: &'static str, title: &'static str) -> Problem {
    Problem::new(StatusCode::CONFLICT, code, title)
}

/// Offers a ready version of yours to a listed dataset of somebody else, on its terms. Its owner reads the version's files from now on, and has 30
/// days to answer.
#[utoipa::path(
    post, path = "/v1/datasets/{dataset}/contributions", tag = "contributions",
    security(("session" = []), ("api_key" = ["datasets:write"])),
    params(("dataset" = String, Path), ("Idempotency-Key" = String, Header)),
    request_body = NewContributionBody,
    responses(
        (status = 201, body = ContributionBody, headers(("Location" = String))),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn create_contribution(
    State(state): State<AppState>,
    caller: Caller<needs::DatasetsWrite>,
    Path(dataset): Path<DatasetId>,
    request: IdempotentJson<NewContributionBody>,
) -> Result<Response, Problem> {
    let (now, account, body) = (state.now(), caller.account, request.body);
    let note = body.note;
    if note.as_ref().is_some_and(|it| it.len() > NOTE_BYTES_MAX) {
        return Err(Problem::invalid("/note", "expected at most 4096 bytes"));
    }
    let address = caller.owner();
    idempotency::run(&state, &caller, request.key, move |tx| {
        Box::pin(async move {
            limits::refuse_frozen(tx, account).await.map_err(limited)?;
            let known = datasets::find(tx, account, dataset).await?;
            known.ok_or_else(Problem::not_found)?;
            // Whoever contributes has an address that is paid.
            address?;
            tenant::widen(tx).await?;
            let new = NewContribution {
                account,
                dataset,
                version: body.version,
                note: note.as_deref(),
            };
            let id = contributions::offer(tx, &new, now).await;
            let id = id.map_err(not_offered)?;
            let body = ContributionBody::read(tx, id).await?;
            tracing::info!(contribution.id = %id, body.rows, "a contribution is offered");
            Ok(Reply::created(format!("/v1/contributions/{id}"), &body))
        })
    })
    .await
}

fn not_offered(error: OfferError) -> Problem {
    match error {
        OfferError::Blocked(takedown) => blocked(takedown),
        OfferError::Own => conflict("own_dataset", "The dataset is your own"),
        OfferError::Closed => {
            conflict("contributions_closed", "The dataset takes no contributions")
        }
        OfferError::NoVersion => Problem::invalid("/version", "no such ready version of yours"),
        OfferError::NoRows => Problem::invalid("/version", "no file of it has rows"),
        OfferError::TooManyRows(rows, most) => Problem::invalid(
            "/version",
            format!("it has {rows} rows, and the terms take {most} at once"),
        ),
        OfferError::TooDear(rows) => Problem::invalid(
            "/version",
            format!("what its {rows} rows would earn is more than any amount"),
        ),
        OfferError::TooManyPending => conflict(
            "too_many_contributions",
            "As many of your contributions to the dataset wait for an answer as may",
        ),
        OfferError::Duplicate(path) => conflict(
            "duplicate_contribution",
            "The dataset has, or was offered, the same file",
        )
        .detail(path.to_string()),
        OfferError::Database(error) => error.into(),
    }
}

/// What you offered to datasets of others, newest first.
#[utoipa::path(
    get, path = "/v1/contributions", tag = "contributions", security(("session" = []), ("api_key" = ["datasets:read"])),
    params(ContributionFilter, crate::page::PageQuery),
    responses(
        (status = 200, body = Page<ContributionBody>),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn list_contributions(
    State(state): State<AppState>,
    caller: Caller<needs::DatasetsRead>,
    list: List<ContributionFilter>,
) -> Result<Page<ContributionBody>, Problem> {
    let side = Side::Contributor(caller.account);
    list_side(&state, &caller, side, &list).await
}

/// What was offered to a dataset of yours, newest first; of a dataset of somebody else, what you offered to it.
#[utoipa::path(
    get, path = "/v1/datasets/{dataset}/contributions", tag = "contributions",
    security(("session" = []), ("api_key" = ["datasets:read"])),
    params(("dataset" = String, Path), ContributionFilter, crate::page::PageQuery),
    responses(
        (status = 200, body = Page<ContributionBody>),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn list_dataset_contributions(
    State(state): State<AppState>,
    caller: Caller<needs::DatasetsRead>,
    Path(dataset): Path<DatasetId>,
    list: List<ContributionFilter>,
) -> Result<Page<ContributionBody>, Problem> {
    let mut connection = caller.read(&state).await?;
    let known = datasets::find(&mut connection, caller.account, dataset).await?;
    known.ok_or_else(Problem::not_found)?;
    drop(connection);
    let side = Side::Dataset(dataset, caller.account);
    list_side(&state, &caller, side, &list).await
}

async fn list_side(
    state: &AppState,
    caller: &Identity,
    side: Side,
    list: &List<ContributionFilter>,
) -> Result<Page<ContributionBody>, Problem> {
    let before: Option<ContributionId> = list.position(state, caller)?;
    let mut connection = caller.read(state).await?;
    let asset = assets::current(&mut connection).await.map_err(no_asset)?;
    let filter = list.filter.state;
    let rows = contributions::list(&mut connection, side, filter, before, list.fetch()).await?;
    Ok(list.page(
        state,
        caller,
        rows,
        |row| row.id,
        |row| ContributionBody::new(row, &asset),
    ))
}

/// A contribution of yours, or to a dataset of yours.
#[utoipa::path(
    get, path = "/v1/contributions/{contribution}", tag = "contributions",
    security(("session" = []), ("api_key" = ["datasets:read"])),
    params(("contribution" = String, Path)),
    responses(
        (status = 200, body = ContributionBody, headers(("ETag" = String))),
        (status = 304),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn find_contribution(
    State(state): State<AppState>,
    caller: Caller<needs::DatasetsRead>,
    Path(id): Path<ContributionId>,
    conditions: Conditions,
) -> Result<Response, Problem> {
    let mut connection = caller.read(&state).await?;
    Ok(conditions.answer(ContributionBody::read(&mut connection, id).await?))
}

/// Accepts a contribution to a dataset of yours: its reward is charged at once, and its rows share in later sales. That its files can be read is
/// looked at before. Again changes nothing.
#[utoipa::path(
    post, path = "/v1/contributions/{contribution}/accept", tag = "contributions",
    security(("session" = []), ("api_key" = ["purchases:write"])),
    params(("contribution" = String, Path), ("Idempotency-Key" = String, Header)),
    request_body = AcceptanceBody,
    responses(
        (status = 200, body = ContributionBody),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
        (status = 503, body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn accept_contribution(
    State(state): State<AppState>,
    caller: Caller<needs::PurchasesWrite>,
    Path(id): Path<ContributionId>,
    request: IdempotentJson<AcceptanceBody>,
) -> Result<Response, Problem> {
    let (now, owner, payer) = (state.now(), caller.account, caller.address);
    let (spender, expected) = (caller.spender(), request.body.expected_reward);
    let mut tx = caller.read_by_index(&state).await?;
    let found = contributions::find(&mut tx, id).await?;
    let found = found.filter(|it| it.owner == owner);
    let found = found.ok_or_else(Problem::not_found)?;
    let available = availability::require(&state, tx, (found.source, Some(found.version))).await;
    idempotency::run(&state, &caller, request.key, move |tx| {
        Box::pin(async move {
            limits::refuse_frozen(tx, owner).await.map_err(limited)?;
            let asset = assets::find(tx, found.asset_id).await.map_err(no_asset)?;
            let acceptance = Acceptance {
                owner,
                payer,
                spender,
                expected: expected.amount_of(&asset, "/expected_reward")?,
            };
            available?;
            tenant::widen(tx).await?;
            let accepted = contributions::accept(tx, id, &acceptance, now).await;
            accepted.map_err(|error| not_accepted(error, &asset))?;
            tracing::info!(contribution.id = %id, "a contribution is accepted");
            Ok(Reply::ok(&ContributionBody::read(tx, id).await?))
        })
    })
    .await
}

fn not_accepted(error: AcceptError, asset: &Asset) -> Problem {
    match error {
        AcceptError::Blocked(takedown) => blocked(takedown),
        AcceptError::Answer(error) => not_answered(error),
        AcceptError::RewardChanged(reward) => {
            conflict("price_changed", "It does not earn what was expected").detail(format!(
                "it earns {reward} base units of {}",
                asset.caip19()
            ))
        }
        AcceptError::TooManyContributors => conflict(
            "too_many_contributors",
            "As many others share what the dataset brings as can",
        ),
        AcceptError::TooManyRows => conflict(
            "too_many_rows",
            "The dataset would have more accepted rows than there may be",
        ),
        AcceptError::NoAddress("owner") => {
            conflict("address_not_bound", "The account has no bound address")
        }
        AcceptError::NoAddress(_) => {
            conflict("contributor_unpaid", "The contributor cannot be paid")
        }
        AcceptError::AboveSpendLimit(limit) => above_spend_limit(limit),
        AcceptError::Hold(error) => hold_refused(error),
        AcceptError::Database(error) => error.into(),
        error @ (AcceptError::Split(_) | AcceptError::Sale(_) | AcceptError::Asset(_)) => {
            Problem::internal(&error)
        }
    }
}

fn not_answered(error: AnswerError) -> Problem {
    match error {
        AnswerError::NotFound => Problem::not_found(),
        AnswerError::Answered(state) => conflict(
            "contribution_answered",
            "The contribution waits for no answer",
        )
        .detail(format!("it is {state}, or its time is over")),
        AnswerError::Database(error) => error.into(),
    }
}

/// Ends a contribution in a transaction that reaches both sides, and answers with what it is then.
async fn end(
    state: AppState,
    identity: Identity,
    id: ContributionId,
    effect: impl for<'t> FnOnce(
        &'t mut PgTransaction<'static>,
    ) -> BoxFuture<'t, Result<(), AnswerError>>
    + Send
    + 'static,
) -> Result<Response, Problem> {
    in_task(async move {
        let mut tx = identity.begin(&state).await?;
        tenant::widen(&mut tx).await?;
        effect(&mut tx).await.map_err(not_answered)?;
        let body = ContributionBody::read(&mut tx, id).await?;
        tx.commit().await?;
        tracing::info!(contribution.id = %id, state = %body.state, "a contribution ended");
        Ok(Json(body).into_response())
    })
    .await
}

/// Rejects a contribution to a dataset of yours: you read its files no more. Again changes nothing.
#[utoipa::path(
    post, path = "/v1/contributions/{contribution}/reject", tag = "contributions",
    security(("session" = []), ("api_key" = ["datasets:write"])),
    params(("contribution" = String, Path)),
    request_body = Rejection,
    responses(
        (status = 200, body = ContributionBody),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn reject_contribution(
    State(state): State<AppState>,
    caller: Caller<needs::DatasetsWrite>,
    Path(id): Path<ContributionId>,
    Json(body): Json<Rejection>,
) -> Result<Response, Problem> {
    if !(1..=REASON_MAX).contains(&body.reason.chars().count()) {
        return Err(Problem::invalid("/reason", "expected 1 to 1000 characters"));
    }
    let (now, owner) = (state.now(), caller.account);
    end(state, Identity::clone(&caller), id, move |tx| {
        Box::pin(async move { contributions::reject(tx, (owner, id), &body.reason, now).await })
    })
    .await
}

/// Takes a contribution of yours back that was not answered: its files may be offered again. Again changes nothing.
#[utoipa::path(
    post, path = "/v1/contributions/{contribution}/withdraw", tag = "contributions",
    security(("session" = []), ("api_key" = ["datasets:write"])),
    params(("contribution" = String, Path)),
    responses(
        (status = 200, body = ContributionBody),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn withdraw_contribution(
    State(state): State<AppState>,
    caller: Caller<needs::DatasetsWrite>,
    Path(id): Path<ContributionId>,
) -> Result<Response, Problem> {
    let (now, account) = (state.now(), caller.account);
    end(state, Identity::clone(&caller), id, move |tx| {
        Box::pin(async move { contributions::withdraw(tx, (account, id), now).await })
    })
    .await
}
