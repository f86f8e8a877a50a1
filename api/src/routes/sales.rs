//! `/v1/sales`: what others took of one's datasets, and what one answers to their requests.

use axum::{extract::State, http::StatusCode, response::Response};
use comptoir_domain::{id::PurchaseId, purchase::PurchaseState};
use comptoir_store::{
    limits,
    purchases::{self, AnswerError, Side, TakeError},
};
use serde::Deserialize;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    purchases::{PurchaseBody, PurchasesFilter, change, list_side},
    takedowns::blocked,
};
use crate::{
    AppState, Problem,
    auth::{Caller, Identity, needs},
    availability,
    extract::{Json, Path},
    limiting::limited,
    page::{List, Page},
};

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(list_sales))
        .routes(routes!(approve_sale))
        .routes(routes!(deny_sale))
}

/// Longest reason, in characters.
const REASON_MAX: usize = 1_000;

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Denial {
    /// Why; the buyer reads it.
    #[schema(min_length = 1, max_length = 1000)]
    reason: String,
}

/// What others took of your datasets, newest first; those that wait for your answer are `requested`.
#[utoipa::path(
    get, path = "/v1/sales", tag = "market", security(("session" = []), ("api_key" = ["purchases:read"])),
    params(PurchasesFilter, crate::page::PageQuery),
    responses(
        (status = 200, body = Page<PurchaseBody>),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn list_sales(
    State(state): State<AppState>,
    caller: Caller<needs::PurchasesRead>,
    list: List<PurchasesFilter>,
) -> Result<Page<PurchaseBody>, Problem> {
    let side = Side::Seller(caller.account);
    list_side(&state, &caller, side, &list).await
}

/// Approves a request for an offer of yours: the buyer has its right from now on, or, of a rental, when what it rented before is over. Who bought it
/// elsewhere meanwhile gets its price back. Again changes nothing.
#[utoipa::path(
    post, path = "/v1/sales/{purchase}/approve", tag = "market", security(("session" = []), ("api_key" = ["purchases:write"])),
    params(("purchase" = String, Path)),
    responses(
        (status = 200, body = PurchaseBody),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
        (status = 503, body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn approve_sale(
    State(state): State<AppState>,
    caller: Caller<needs::PurchasesWrite>,
    Path(id): Path<PurchaseId>,
) -> Result<Response, Problem> {
    let (now, seller) = (state.now(), caller.account);
    let available = {
        let mut tx = caller.read_by_index(&state).await?;
        let found = purchases::find(&mut tx, id).await?;
        let request = found.filter(|it| it.seller == seller);
        let request = request.ok_or_else(Problem::not_found)?;
        match request.state {
            PurchaseState::Requested => {
                availability::require(&state, tx, (request.dataset, request.version)).await
            }
            _ => Ok(()),
        }
    };
    change(state, Identity::clone(&caller), id, move |tx, purchase| {
        Box::pin(async move {
            let purchase = purchase.filter(|it| it.seller == seller);
            purchase.ok_or_else(Problem::not_found)?;
            limits::refuse_frozen(tx, seller).await.map_err(limited)?;
            available?;
            let answered = purchases::approve(tx, (seller, id), now).await;
            answered.map_err(not_answered)
        })
    })
    .await
}

/// Denies a request for an offer of yours: what was held for it is the buyer's again. Again changes nothing.
#[utoipa::path(
    post, path = "/v1/sales/{purchase}/deny", tag = "market", security(("session" = []), ("api_key" = ["purchases:write"])),
    params(("purchase" = String, Path)),
    request_body = Denial,
    responses(
        (status = 200, body = PurchaseBody),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn deny_sale(
    State(state): State<AppState>,
    caller: Caller<needs::PurchasesWrite>,
    Path(id): Path<PurchaseId>,
    Json(body): Json<Denial>,
) -> Result<Response, Problem> {
    if !(1..=REASON_MAX).contains(&body.reason.chars().count()) {
        return Err(Problem::invalid("/reason", "expected 1 to 1000 characters"));
    }
    let (now, seller) = (state.now(), caller.account);
    change(state, Identity::clone(&caller), id, move |tx, _| {
        Box::pin(async move {
            let answered = purchases::deny(tx, (seller, id), &body.reason, now).await;
            answered.map_err(not_answered)
        })
    })
    .await
}

fn not_answered(error: AnswerError) -> Problem {
    match error {
        AnswerError::NotFound => Problem::not_found(),
        AnswerError::Answered(state) => Problem::new(
            StatusCode::CONFLICT,
            "request_answered",
            "The request waits for no answer",
        )
        .detail(format!("it is {state}, or its time is over")),
        AnswerError::Grant(TakeError::Blocked(takedown)) => blocked(takedown),
        AnswerError::Grant(TakeError::NothingReady) => availability::nothing_ready(),
        AnswerError::Database(error) | AnswerError::Grant(TakeError::Database(error)) => {
            error.into()
        }
        error @ (AnswerError::Grant(_) | AnswerError::End(_)) => Problem::internal(&error),
    }
}
