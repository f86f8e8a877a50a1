//! `/v1/jobs`: listed, watched, taken back, collected.

use axum::{extract::State, http::StatusCode, response::Response};
use comptoir_domain::{id::JobId, job::JobState};
use comptoir_store::{
    assets,
    jobs::{self, CancelError, JobFilter},
    wake::Channel,
    withheld_results::Withholding,
};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use tracing::Instrument as _;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    explain,
    job_body::{JobBody, JobKind, OutputBody},
    withheld,
};
use crate::{
    AppState, Problem,
    auth::{Caller, Identity, needs},
    etag::Conditions,
    extract::{Json, Path},
    page::{List, ListObject, Page, PageQuery},
    quoting::no_asset,
};

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(list_jobs, super::submit::create_job))
        .routes(routes!(find_job))
        .routes(routes!(cancel_job))
        .routes(routes!(list_results))
}

/// The account's job with the reason why it waits.
pub(super) async fn read(
    state: &AppState,
    caller: &Identity,
    job: JobId,
) -> Result<JobBody, Problem> {
    let (job, asset) = {
        let mut connection = caller.read(state).await?;
        let job = jobs::find(&mut connection, caller.account, job).await?;
        let job = job.ok_or_else(Problem::not_found)?;
        let asset = assets::current(&mut connection).await.map_err(no_asset)?;
        (job, asset)
    };
    let reason = explain::reason_for_owner(state, &job).await?;
    Ok(JobBody::new(job, reason, &asset))
}

/// Which jobs to list.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct JobQuery {
    /// Only those in this state.
    state: Option<JobState>,
    /// Only those of this kind.
    kind: Option<JobKind>,
    /// Only those made after this time.
    #[serde(default, with = "comptoir_http::moment::option")]
    #[param(value_type = Option<String>, format = DateTime)]
    created_after: Option<OffsetDateTime>,
    /// Only those made before this time.
    #[serde(default, with = "comptoir_http::moment::option")]
    #[param(value_type = Option<String>, format = DateTime)]
    created_before: Option<OffsetDateTime>,
}

/// The account's jobs, newest first.
#[utoipa::path(
    get, path = "/v1/jobs", tag = "jobs", security(("session" = []), ("api_key" = ["jobs:read"])),
    params(PageQuery, JobQuery),
    responses(
        (status = 200, body = Page<JobBody>),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn list_jobs(
    State(state): State<AppState>,
    caller: Caller<needs::JobsRead>,
    list: List<JobQuery>,
) -> Result<Page<JobBody>, Problem> {
    let before: Option<JobId> = list.position(&state, &caller)?;
    let filter = JobFilter {
        state: list.filter.state,
        kind: list.filter.kind.map(JobKind::as_str),
        created_after: list.filter.created_after,
        created_before: list.filter.created_before,
    };
    let mut connection = caller.read(&state).await?;
    let asset = assets::current(&mut connection).await.map_err(no_asset)?;
    let rows = jobs::list(
        &mut connection,
        caller.account,
        filter,
        before,
        list.fetch(),
    )
    .await?;
    Ok(list.page(
        &state,
        &caller,
        rows,
        |row| row.id,
        |row| JobBody::new(row, None, &asset),
    ))
}

/// One job.
#[utoipa::path(
    get, path = "/v1/jobs/{id}", tag = "jobs", security(("session" = []), ("api_key" = ["jobs:read"])),
    params(("id" = String, Path)),
    responses(
        (status = 200, body = JobBody, headers(("ETag" = String))),
        (status = 304),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn find_job(
    State(state): State<AppState>,
    caller: Caller<needs::JobsRead>,
    Path(id): Path<JobId>,
    conditions: Conditions,
) -> Result<Response, Problem> {
    Ok(conditions.answer(read(&state, &caller, id).await?))
}

/// Takes a job back: what runs is called off, what is held goes back. Taking it back again changes nothing.
#[utoipa::path(
    post, path = "/v1/jobs/{id}/cancel", tag = "jobs", security(("session" = []), ("api_key" = ["jobs:write"])),
    params(("id" = String, Path)),
    responses(
        (status = 200, body = JobBody),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn cancel_job(
    State(state): State<AppState>,
    caller: Caller<needs::JobsWrite>,
    Path(id): Path<JobId>,
) -> Result<Json<JobBody>, Problem> {
    let caller = Identity::clone(&caller);
    // In a task of its own: a client that hangs up must not leave a transaction half done.
    let work = async move {
        let now = state.now();
        let mut tx = caller.begin(&state).await?;
        let ended = jobs::cancel(&mut tx, caller.account, id, now)
            .await
            .map_err(not_cancelled)?;
        tx.commit().await?;
        state.wake.publish(Channel::Job(id));
        ended
            .workers
            .into_iter()
            .for_each(|worker| state.wake.publish(Channel::Worker(worker)));
        read(&state, &caller, id).await.map(Json)
    };
    let done = tokio::spawn(work.in_current_span()).await;
    done.map_err(|error| Problem::internal(&error))?
}

/// What a completed job produced.
#[derive(Serialize, ToSchema)]
struct Results {
    object: ListObject,
    data: Vec<OutputBody>,
    /// There are never more pages.
    has_more: bool,
    #[schema(required = true)]
    next_cursor: Option<String>,
}

/// The results of a completed job: names, digests, sizes. The bytes are at `/v1/blobs/{sha256}`. 403 `awaiting_release` while they wait for
/// the seller of the dataset that it computed on, 403 `release_denied` where that one did not release them in time.
#[utoipa::path(
    get, path = "/v1/jobs/{id}/results", tag = "jobs", security(("session" = []), ("api_key" = ["jobs:read"])),
    params(("id" = String, Path)),
    responses(
        (status = 200, body = Results),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn list_results(
    State(state): State<AppState>,
    caller: Caller<needs::JobsRead>,
    Path(id): Path<JobId>,
) -> Result<Json<Results>, Problem> {
    let job = jobs::find(&mut *caller.read(&state).await?, caller.account, id).await?;
    let job = job.ok_or_else(Problem::not_found)?;
    if job.state != JobState::Completed {
        let problem = Problem::new(
            StatusCode::CONFLICT,
            "job_not_completed",
            "The job has no results",
        );
        return Err(problem.detail(format!("The job is {}", job.state)));
    }
    if job.awaits_release {
        return Err(withheld(Withholding::Awaits));
    }
    if job.release_denied {
        return Err(withheld(Withholding::Denied));
    }
    let data = job.outputs.into_iter().map(OutputBody::from).collect();
    Ok(Json(Results {
        object: ListObject::List,
        data,
        has_more: false,
        next_cursor: None,
    }))
}

fn not_cancelled(error: CancelError) -> Problem {
    match error {
        CancelError::NotFound => Problem::not_found(),
        CancelError::Ended(state) => {
            let title = "The job has ended in another way";
            Problem::new(StatusCode::CONFLICT, "job_ended", title)
                .detail(format!("The job is {state}"))
        }
        CancelError::Database(error) => error.into(),
        CancelError::End(_) => Problem::internal(&error),
    }
}
