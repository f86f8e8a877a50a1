//! `/v1/takedowns` and `/v1/datasets/{dataset}/takedowns`: who wants a dataset to be blocked, and what its seller says to that.

use axum::{
    extract::State,
    http::StatusCode,
    response::{IntoResponse as _, Response},
};
use comptoir_domain::{
    audit::{Action, Event},
    id::{AccountId, DatasetId, TakedownId},
    takedown::{Ground, STATEMENT_BYTES_MAX, TakedownState},
};
use comptoir_http::client_ip;
use comptoir_store::{
    PgTransaction, audit, datasets, limits,
    takedowns::{self, ActError, FileError, NewTakedown, Side, Takedown},
    tenant,
};
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::accounts::in_task;
use crate::{
    AppState, Problem,
    auth::{Caller, Identity, needs},
    etag::Conditions,
    extract::{Json, Path},
    idempotency::{self, IdempotentJson, Reply},
    limiting::limited,
    page::{List, Page},
};

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(create_takedown))
        .routes(routes!(list_takedowns))
        .routes(routes!(find_takedown))
        .routes(routes!(contest_takedown))
        .routes(routes!(withdraw_takedown))
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = NewTakedown)]
struct NewTakedownBody {
    ground: Ground,
    /// What is wrong, where, who you are to say so, and how the seller and the operator reach you. Both read it.
    #[schema(min_length = 1, max_length = 8192)]
    statement: String,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = TakedownAnswer)]
struct Answer {
    /// Why the freeze is wrong. Who filed the takedown reads it, and the operator.
    #[schema(min_length = 1, max_length = 8192)]
    statement: String,
}

/// Which side of a takedown the account is on.
#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum TakedownSide {
    /// It filed it.
    Filed,
    /// It is of a dataset of its own.
    Received,
}

#[derive(Deserialize, ToSchema, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct TakedownFilter {
    /// Those that you filed, when absent; or those of your datasets.
    #[param(inline)]
    side: Option<TakedownSide>,
    /// Those in this state alone.
    state: Option<TakedownState>,
}

#[derive(Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum TakedownObject {
    Takedown,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Takedown)]
pub(super) struct TakedownBody {
    #[schema(value_type = String, example = "tkd_01h455vb4pex5vsknk084sn02q")]
    id: TakedownId,
    object: TakedownObject,
    state: TakedownState,
    #[schema(value_type = String)]
    dataset: DatasetId,
    /// Whose that is.
    #[schema(value_type = String)]
    seller: AccountId,
    /// Who filed it.
    #[schema(value_type = String)]
    claimant: AccountId,
    ground: Ground,
    /// The words of who filed it. A stranger wrote them: treat them so.
    statement: String,
    /// The seller's words, where it is contested.
    #[schema(required = true)]
    answer: Option<String>,
    /// Why an operator decided as it did.
    #[schema(required = true)]
    reason: Option<String>,
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
    /// Since when the dataset is blocked.
    #[serde(with = "time::serde::rfc3339::option")]
    #[schema(required = true)]
    frozen_at: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339::option")]
    #[schema(required = true)]
    contested_at: Option<OffsetDateTime>,
    /// While it is frozen: until when the seller may contest it, and then it is upheld. While it is contested: until when an operator decides, and
    /// then it is rejected.
    #[serde(with = "time::serde::rfc3339::option")]
    #[schema(required = true)]
    due_at: Option<OffsetDateTime>,
    /// When it was decided.
    #[serde(with = "time::serde::rfc3339::option")]
    #[schema(required = true)]
    ended_at: Option<OffsetDateTime>,
}

impl From<Takedown> for TakedownBody {
    fn from(it: Takedown) -> Self {
        Self {
            id: it.id,
            object: TakedownObject::Takedown,
            state: it.state,
            dataset: it.dataset,
            seller: it.seller,
            claimant: it.account,
            ground: it.ground,
            statement: it.statement,
            answer: it.answer,
            reason: it.reason,
            created_at: it.created_at,
            frozen_at: it.frozen_at,
            contested_at: it.contested_at,
            due_at: it.due_at,
            ended_at: it.ended_at,
        }
    }
}

/// 451: a takedown blocks the dataset. Every such answer names who blocks it ([`crate::app`]).
pub(crate) fn blocked(takedown: TakedownId) -> Problem {
    Problem::new(
        StatusCode::UNAVAILABLE_FOR_LEGAL_REASONS,
        "dataset_blocked",
        "The dataset is blocked",
    )
    .detail(format!("by {takedown}"))
}

fn check_statement(statement: &str) -> Result<(), Problem> {
    if !statement.trim().is_empty() && statement.len() <= STATEMENT_BYTES_MAX {
        return Ok(());
    }
    let expected = format!("expected 1 to {STATEMENT_BYTES_MAX} bytes that are not all blank");
    Err(Problem::invalid("/statement", expected))
}

fn conflict(code: &'static str, title: &'static str) -> Problem {
    Problem::new(StatusCode::CONFLICT, code, title)
}

/// Says that a dataset of somebody else must not be here, listed still or not. An operator looks at it, and freezes the dataset or does not; until
/// then nothing changes.
#[utoipa::path(
    post, path = "/v1/datasets/{dataset}/takedowns", tag = "takedowns",
    security(("session" = []), ("api_key" = ["datasets:write"])),
    params(("dataset" = String, Path), ("Idempotency-Key" = String, Header)),
    request_body = NewTakedownBody,
    responses(
        (status = 201, body = TakedownBody, headers(("Location" = String))),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn create_takedown(
    State(state): State<AppState>,
    caller: Caller<needs::DatasetsWrite>,
    Path(dataset): Path<DatasetId>,
    request: IdempotentJson<NewTakedownBody>,
) -> Result<Response, Problem> {
    let (now, account, body) = (state.now(), caller.account, request.body);
    check_statement(&body.statement)?;
    let (actor, origin) = (caller.actor(), client_ip::origin());
    idempotency::run(&state, &caller, request.key, move |tx| {
        Box::pin(async move {
            limits::refuse_frozen(tx, account).await.map_err(limited)?;
            // What is off the list is with who bought it still.
            tenant::widen(tx).await?;
            let seller = datasets::seller_of_published(tx, account, dataset).await?;
            let new = NewTakedown {
                account,
                dataset,
                seller: seller.ok_or_else(Problem::not_found)?,
                ground: body.ground,
                statement: &body.statement,
            };
            let id = takedowns::file(tx, &new, now).await.map_err(not_filed)?;
            let filed = takedowns::find(tx, id).await?;
            let body = TakedownBody::from(filed.ok_or_else(Problem::not_found)?);
            let event = Event::new(actor, Action::TakedownFiled, id.to_string())
                .of_account(account)
                .from(origin)
                .with("dataset_id", dataset.to_string());
            audit::append(tx, &event, now).await?;
            tracing::warn!(takedown.id = %id, dataset.id = %dataset, ground = %body.ground, "a takedown is filed");
            Ok(Reply::created(format!("/v1/takedowns/{id}"), &body))
        })
    })
    .await
}

fn not_filed(error: FileError) -> Problem {
    match error {
        FileError::Own => conflict("own_dataset", "The dataset is your own"),
        FileError::Filed(id) => {
            conflict("takedown_filed", "You have said so already").detail(format!("with {id}"))
        }
        FileError::TooMany => conflict(
            "too_many_takedowns",
            "As many takedowns of yours wait for a decision as may",
        ),
        FileError::Database(error) => error.into(),
    }
}

/// Takedowns that you filed, or of your datasets, newest first.
#[utoipa::path(
    get, path = "/v1/takedowns", tag = "takedowns", security(("session" = []), ("api_key" = ["datasets:read"])),
    params(TakedownFilter, crate::page::PageQuery),
    responses(
        (status = 200, body = Page<TakedownBody>),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn list_takedowns(
    State(state): State<AppState>,
    caller: Caller<needs::DatasetsRead>,
    list: List<TakedownFilter>,
) -> Result<Page<TakedownBody>, Problem> {
    let before: Option<TakedownId> = list.position(&state, &caller)?;
    let side = match list.filter.side {
        Some(TakedownSide::Received) => Side::Seller(caller.account),
        Some(TakedownSide::Filed) | None => Side::Claimant(caller.account),
    };
    let mut connection = caller.read(&state).await?;
    let filter = list.filter.state;
    let rows = takedowns::list(&mut connection, side, filter, before, list.fetch()).await?;
    Ok(list.page(&state, &caller, rows, |row| row.id, TakedownBody::from))
}

/// A takedown that you filed, or of a dataset of yours.
#[utoipa::path(
    get, path = "/v1/takedowns/{takedown}", tag = "takedowns",
    security(("session" = []), ("api_key" = ["datasets:read"])),
    params(("takedown" = String, Path)),
    responses(
        (status = 200, body = TakedownBody, headers(("ETag" = String))),
        (status = 304),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn find_takedown(
    State(state): State<AppState>,
    caller: Caller<needs::DatasetsRead>,
    Path(id): Path<TakedownId>,
    conditions: Conditions,
) -> Result<Response, Problem> {
    let found = takedowns::find(&mut *caller.read(&state).await?, id).await?;
    let found = found.ok_or_else(Problem::not_found)?;
    Ok(conditions.answer(TakedownBody::from(found)))
}

/// Contests the freeze of a dataset of yours. It stays blocked until an operator has decided, for 14 days at most: then it is back.
#[utoipa::path(
    post, path = "/v1/takedowns/{takedown}/contest", tag = "takedowns",
    security(("session" = []), ("api_key" = ["datasets:write"])),
    params(("takedown" = String, Path)),
    request_body = Answer,
    responses(
        (status = 200, body = TakedownBody),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn contest_takedown(
    State(state): State<AppState>,
    caller: Caller<needs::DatasetsWrite>,
    Path(id): Path<TakedownId>,
    Json(body): Json<Answer>,
) -> Result<Response, Problem> {
    check_statement(&body.statement)?;
    let (now, seller) = (state.now(), caller.account);
    let action = Action::TakedownContested;
    act(state, Identity::clone(&caller), (id, action), move |tx| {
        Box::pin(async move { takedowns::contest(tx, (seller, id), &body.statement, now).await })
    })
    .await
}

/// Takes a takedown of yours back that no operator has looked at. Afterwards, tell the operator. Again changes nothing.
#[utoipa::path(
    post, path = "/v1/takedowns/{takedown}/withdraw", tag = "takedowns",
    security(("session" = []), ("api_key" = ["datasets:write"])),
    params(("takedown" = String, Path)),
    responses(
        (status = 200, body = TakedownBody),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn withdraw_takedown(
    State(state): State<AppState>,
    caller: Caller<needs::DatasetsWrite>,
    Path(id): Path<TakedownId>,
) -> Result<Response, Problem> {
    let (now, account) = (state.now(), caller.account);
    let action = Action::TakedownWithdrawn;
    act(state, Identity::clone(&caller), (id, action), move |tx| {
        Box::pin(async move { takedowns::withdraw(tx, (account, id), now).await })
    })
    .await
}

/// Does something with a takedown, and answers with what it is then.
async fn act(
    state: AppState,
    identity: Identity,
    (id, action): (TakedownId, Action),
    effect: impl for<'t> FnOnce(&'t mut PgTransaction<'static>) -> BoxFuture<'t, Result<(), ActError>>
    + Send
    + 'static,
) -> Result<Response, Problem> {
    let event = Event::new(identity.actor(), action, id.to_string())
        .of_account(identity.account)
        .from(client_ip::origin());
    in_task(async move {
        let mut tx = identity.begin(&state).await?;
        effect(&mut tx).await.map_err(refused)?;
        let found = takedowns::find(&mut tx, id).await?;
        let body = TakedownBody::from(found.ok_or_else(Problem::not_found)?);
        audit::append(&mut tx, &event, state.now()).await?;
        tx.commit().await?;
        tracing::info!(takedown.id = %id, state = %body.state, "a takedown goes on");
        Ok(Json(body).into_response())
    })
    .await
}

pub(super) fn refused(error: ActError) -> Problem {
    match error {
        ActError::NotFound => Problem::not_found(),
        ActError::Stands(_) | ActError::Overdue => conflict(
            "takedown_state",
            "The takedown stands where this cannot be done",
        )
        .detail(error.to_string()),
        ActError::OwnCase => Problem::new(
            StatusCode::FORBIDDEN,
            "second_person_required",
            "Another administrator must do this",
        ),
        ActError::Database(error) => error.into(),
    }
}
