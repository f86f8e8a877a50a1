//! `/v1/contributions` and `/v1/datasets/{dataset}/contributions`: what others offer to add to a dataset, and what its owner answers.

mod answers;
mod body;

use axum::{extract::State, http::StatusCode, response::Response};
use comptoir_domain::id::{ContributionId, DatasetId};
use comptoir_store::{
    assets,
    contributions::{self, NewContribution, OfferError, Side},
    datasets, limits, tenant,
};
use utoipa_axum::{router::OpenApiRouter, routes};

use self::body::{ContributionBody, ContributionFilter, NewContributionBody};
use super::takedowns::blocked;
use crate::{
    AppState, Problem,
    auth::{Caller, Identity, needs},
    etag::Conditions,
    extract::Path,
    idempotency::{self, IdempotentJson, Reply},
    limiting::limited,
    page::{List, Page},
    quoting::no_asset,
};

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(list_dataset_contributions, create_contribution))
        .routes(routes!(list_contributions))
        .routes(routes!(find_contribution))
        .merge(answers::router())
}

/// Longest note to an owner, in bytes.
const NOTE_BYTES_MAX: usize = 4_096;

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
