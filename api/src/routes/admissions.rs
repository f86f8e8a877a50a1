//! `/v1/admissions` and `/v1/models/{model}/admissions`: who may call a gated model, and what its creator answers to who asks.

use axum::{
    extract::State,
    http::StatusCode,
    response::{IntoResponse as _, Response},
};
use comptoir_domain::{
    admission::{AdmissionState, NOTE_BYTES_MAX, REASON_CHARS_MAX},
    id::{AccountId, AdmissionId, ModelId},
};
use comptoir_store::{
    admissions::{self, Admission, AnswerError, AskError, Filter, Side},
    limits, models,
};
use serde::{Deserialize, Serialize};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
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
        .routes(routes!(create_admission))
        .routes(routes!(list_admissions))
        .routes(routes!(find_admission))
        .routes(routes!(grant_admission))
        .routes(routes!(deny_admission))
        .routes(routes!(revoke_admission))
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = NewAdmission)]
struct NewAdmissionBody {
    /// Words to the creator: who you are, and what for.
    #[schema(min_length = 1, max_length = 4096)]
    note: Option<String>,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = AdmissionRefusal)]
struct Refusal {
    /// Why; who asked reads it.
    #[schema(min_length = 1, max_length = 1000)]
    reason: String,
}

/// Which side of an admission the account is on.
#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum AdmissionSide {
    /// It asked.
    Asked,
    /// It was asked.
    Received,
}

#[derive(Deserialize, ToSchema, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct AdmissionFilter {
    /// Those that you asked for, when absent; or those to your models.
    #[param(inline)]
    side: Option<AdmissionSide>,
    /// Those in this state alone.
    state: Option<AdmissionState>,
    /// Those to this model alone.
    #[param(value_type = Option<String>)]
    #[schema(value_type = Option<String>)]
    model: Option<ModelId>,
}

#[derive(Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum AdmissionObject {
    Admission,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Admission)]
struct AdmissionBody {
    #[schema(value_type = String, example = "adm_01h455vb4pex5vsknk084sn02q")]
    id: AdmissionId,
    object: AdmissionObject,
    state: AdmissionState,
    #[schema(value_type = String)]
    model: ModelId,
    /// Whose the model is.
    #[schema(value_type = String)]
    creator: AccountId,
    /// Who asked.
    #[schema(value_type = String)]
    account: AccountId,
    /// The words of who asked. A stranger wrote them: treat them so.
    #[schema(required = true)]
    note: Option<String>,
    /// Why it was denied or revoked.
    #[schema(required = true)]
    reason: Option<String>,
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
    /// When it was granted or denied.
    #[serde(with = "time::serde::rfc3339::option")]
    #[schema(required = true)]
    answered_at: Option<OffsetDateTime>,
    /// When it was denied or revoked.
    #[serde(with = "time::serde::rfc3339::option")]
    #[schema(required = true)]
    ended_at: Option<OffsetDateTime>,
}

impl From<Admission> for AdmissionBody {
    fn from(it: Admission) -> Self {
        Self {
            id: it.id,
            object: AdmissionObject::Admission,
            state: it.state,
            model: it.model,
            creator: it.creator,
            account: it.account,
            note: it.note,
            reason: it.reason,
            created_at: it.created_at,
            answered_at: it.answered_at,
            ended_at: it.ended_at,
        }
    }
}

/// 403: the model is gated, and its creator did not let the account in.
pub(crate) fn required(model: ModelId) -> Problem {
    Problem::new(
        StatusCode::FORBIDDEN,
        "admission_required",
        "Its creator decides who calls the model",
    )
    .detail(format!("ask with POST /v1/models/{model}/admissions"))
}

fn conflict(code: &'static str, title: &'static str) -> Problem {
    Problem::new(StatusCode::CONFLICT, code, title)
}

/// Asks the creator of a gated model to let you call it. Whoever was denied or sent away may ask again a day later.
#[utoipa::path(
    post, path = "/v1/models/{model}/admissions", tag = "models", security(("session" = []), ("api_key" = ["models:call"])),
    params(("model" = String, Path), ("Idempotency-Key" = String, Header)),
    request_body = NewAdmissionBody,
    responses(
        (status = 201, body = AdmissionBody, headers(("Location" = String))),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn create_admission(
    State(state): State<AppState>,
    caller: Caller<needs::ModelsCall>,
    Path(model): Path<ModelId>,
    request: IdempotentJson<NewAdmissionBody>,
) -> Result<Response, Problem> {
    let (now, account, note) = (state.now(), caller.account, request.body.note);
    let is_bad = |it: &String| it.trim().is_empty() || it.len() > NOTE_BYTES_MAX;
    if note.as_ref().is_some_and(is_bad) {
        let expected = format!("expected 1 to {NOTE_BYTES_MAX} bytes that are not all blank");
        return Err(Problem::invalid("/note", expected));
    }
    idempotency::run(&state, &caller, request.key, move |tx| {
        Box::pin(async move {
            limits::refuse_frozen(tx, account).await.map_err(limited)?;
            let found = models::find(tx, account, model).await?;
            let found = found.ok_or_else(Problem::not_found)?;
            if found.account == account {
                return Err(conflict("own_model", "The model is your own"));
            }
            if !found.is_gated {
                let title = "Everybody who finds the model calls it";
                return Err(conflict("model_not_gated", title));
            }
            let of = (model, found.account);
            let asked = admissions::ask(tx, account, of, note.as_deref(), now).await;
            let id = asked.map_err(not_asked)?;
            let made = admissions::find(tx, id).await?;
            let body = AdmissionBody::from(made.ok_or_else(Problem::not_found)?);
            Ok(Reply::created(format!("/v1/admissions/{id}"), &body))
        })
    })
    .await
}

fn not_asked(error: AskError) -> Problem {
    match error {
        AskError::Open(id, state) => conflict("already_asked", "You have asked already")
            .detail(format!("with {id}, which is {state}")),
        AskError::TooSoon(at) => {
            let at = at.format(&Rfc3339);
            let at = at.expect("times of the service are within the calendar");
            conflict("asked_too_soon", "You were not let in a moment ago")
                .detail(format!("ask again from {at} on"))
        }
        AskError::Database(error) => error.into(),
    }
}

/// Admissions that you asked for, or to your models, newest first.
#[utoipa::path(
    get, path = "/v1/admissions", tag = "models", security(("session" = []), ("api_key" = ["models:read"])),
    params(AdmissionFilter, crate::page::PageQuery),
    responses(
        (status = 200, body = Page<AdmissionBody>),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn list_admissions(
    State(state): State<AppState>,
    caller: Caller<needs::ModelsRead>,
    list: List<AdmissionFilter>,
) -> Result<Page<AdmissionBody>, Problem> {
    let before: Option<AdmissionId> = list.position(&state, &caller)?;
    let side = match list.filter.side {
        Some(AdmissionSide::Received) => Side::Creator(caller.account),
        Some(AdmissionSide::Asked) | None => Side::Caller(caller.account),
    };
    let filter = Filter {
        state: list.filter.state,
        model: list.filter.model,
    };
    let mut connection = caller.read(&state).await?;
    let rows = admissions::list(&mut connection, side, filter, before, list.fetch()).await?;
    Ok(list.page(&state, &caller, rows, |row| row.id, AdmissionBody::from))
}

/// An admission that you asked for, or to a model of yours.
#[utoipa::path(
    get, path = "/v1/admissions/{admission}", tag = "models", security(("session" = []), ("api_key" = ["models:read"])),
    params(("admission" = String, Path)),
    responses(
        (status = 200, body = AdmissionBody, headers(("ETag" = String))),
        (status = 304),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn find_admission(
    State(state): State<AppState>,
    caller: Caller<needs::ModelsRead>,
    Path(id): Path<AdmissionId>,
    conditions: Conditions,
) -> Result<Response, Problem> {
    let found = admissions::find(&mut *caller.read(&state).await?, id).await?;
    let found = found.ok_or_else(Problem::not_found)?;
    Ok(conditions.answer(AdmissionBody::from(found)))
}

/// Lets who asked call a model of yours. Again changes nothing.
#[utoipa::path(
    post, path = "/v1/admissions/{admission}/grant", tag = "models", security(("session" = []), ("api_key" = ["models:write"])),
    params(("admission" = String, Path)),
    responses(
        (status = 200, body = AdmissionBody),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn grant_admission(
    State(state): State<AppState>,
    caller: Caller<needs::ModelsWrite>,
    Path(id): Path<AdmissionId>,
) -> Result<Response, Problem> {
    let identity = Identity::clone(&caller);
    answer(state, identity, id, (AdmissionState::Granted, None)).await
}

/// Says no to who asked to call a model of yours. Again changes nothing.
#[utoipa::path(
    post, path = "/v1/admissions/{admission}/deny", tag = "models", security(("session" = []), ("api_key" = ["models:write"])),
    params(("admission" = String, Path)),
    request_body = Refusal,
    responses(
        (status = 200, body = AdmissionBody),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn deny_admission(
    State(state): State<AppState>,
    caller: Caller<needs::ModelsWrite>,
    Path(id): Path<AdmissionId>,
    Json(Refusal { reason }): Json<Refusal>,
) -> Result<Response, Problem> {
    let identity = Identity::clone(&caller);
    let denied = (AdmissionState::Denied, Some(reason));
    answer(state, identity, id, denied).await
}

/// Takes back that an account calls a model of yours: within two seconds nothing of it is answered any more. Again changes nothing.
#[utoipa::path(
    post, path = "/v1/admissions/{admission}/revoke", tag = "models", security(("session" = []), ("api_key" = ["models:write"])),
    params(("admission" = String, Path)),
    request_body = Refusal,
    responses(
        (status = 200, body = AdmissionBody),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn revoke_admission(
    State(state): State<AppState>,
    caller: Caller<needs::ModelsWrite>,
    Path(id): Path<AdmissionId>,
    Json(Refusal { reason }): Json<Refusal>,
) -> Result<Response, Problem> {
    let identity = Identity::clone(&caller);
    let revoked = (AdmissionState::Revoked, Some(reason));
    answer(state, identity, id, revoked).await
}

/// Notes what the creator says, and answers with what the admission is then.
async fn answer(
    state: AppState,
    identity: Identity,
    id: AdmissionId,
    (said, reason): (AdmissionState, Option<String>),
) -> Result<Response, Problem> {
    let is_bad = |it: &String| !(1..=REASON_CHARS_MAX).contains(&it.chars().count());
    if reason.as_ref().is_some_and(is_bad) {
        let expected = format!("expected 1 to {REASON_CHARS_MAX} characters");
        return Err(Problem::invalid("/reason", expected));
    }
    in_task(async move {
        let mut tx = identity.begin(&state).await?;
        let (by, what) = ((identity.account, id), (said, reason.as_deref()));
        let answered = admissions::answer(&mut tx, by, what, state.now()).await;
        answered.map_err(not_answered)?;
        let found = admissions::find(&mut tx, id).await?;
        let body = AdmissionBody::from(found.ok_or_else(Problem::not_found)?);
        tx.commit().await?;
        Ok(Json(body).into_response())
    })
    .await
}

fn not_answered(error: AnswerError) -> Problem {
    match error {
        AnswerError::NotFound => Problem::not_found(),
        AnswerError::Stands(state) => conflict(
            "admission_state",
            "The admission stands where this cannot be done",
        )
        .detail(format!("it is {state}")),
        AnswerError::Database(error) => error.into(),
    }
}
