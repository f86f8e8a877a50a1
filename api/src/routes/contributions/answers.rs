//! What becomes of a contribution: accepted, rejected, withdrawn.

use axum::{
    extract::State,
    response::{IntoResponse as _, Response},
};
use comptoir_domain::{asset::Asset, id::ContributionId};
use comptoir_store::{
    PgTransaction, assets,
    contributions::{self, AcceptError, Acceptance, AnswerError},
    limits, tenant,
};
use futures::future::BoxFuture;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    body::{AcceptanceBody, ContributionBody, Rejection},
    conflict,
};
use crate::{
    AppState, Problem,
    auth::{Caller, Identity, needs},
    availability,
    extract::{Json, Path},
    idempotency::{self, IdempotentJson, Reply},
    limiting::limited,
    quoting::no_asset,
    routes::{
        accounts::in_task, submit::above_spend_limit, takedowns::blocked, withdrawals::hold_refused,
    },
};

/// Longest reason, in characters.
const REASON_MAX: usize = 1_000;

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(accept_contribution))
        .routes(routes!(reject_contribution))
        .routes(routes!(withdraw_contribution))
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
