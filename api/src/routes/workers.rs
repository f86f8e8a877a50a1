//! `/v1/workers`: the account's own workers.

use axum::{extract::State, response::Response};
use comptoir_domain::{amount::Amount, id::WorkerId, job::Device};
use comptoir_store::{
    jobs::explain::LIVE_FOR,
    listed_workers::{self, Filter, ListedWorker},
    recalls,
    wake::Channel,
    workers,
};
use serde::Serialize;
use time::OffsetDateTime;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    AppState, Problem,
    auth::{Caller, needs},
    etag::Conditions,
    extract::{Json, Path},
    page::{List, Page, PageQuery},
};

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(list_workers))
        .routes(routes!(find_worker))
        .routes(routes!(revoke_worker))
}

#[derive(Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum WorkerObject {
    Worker,
}

/// How a worker is.
#[derive(Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum WorkerState {
    /// It was heard of in the last minute, and has no work.
    Idle,
    /// It was heard of in the last minute, and works.
    Busy,
    /// It was not heard of for a minute.
    Offline,
    /// Its owner took it out.
    Revoked,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Worker)]
struct WorkerBody {
    #[schema(value_type = String, example = "wrk_01h455vb4pex5vsknk084sn02q")]
    id: WorkerId,
    object: WorkerObject,
    name: String,
    state: WorkerState,
    device: Device,
    device_name: String,
    /// Memory for one job.
    memory_bytes: i64,
    /// Threads per job.
    threads: i32,
    /// Whose results it equals bit by bit.
    numeric_class: String,
    libtorch: String,
    version: String,
    /// The lowest rate it works for: nano base units per 10^9 multiply-adds.
    #[schema(value_type = String, pattern = "^(0|[1-9][0-9]*)$")]
    price_floor_nano: Amount,
    /// Its jobs run without the walls that keep them from its host, because its owner allowed it.
    unsandboxed: bool,
    /// Attempts that it works on now.
    open_attempts: i64,
    /// Attempts whose result was accepted.
    accepted_attempts: i64,
    /// Attempts that failed, were lost or were rejected.
    failed_attempts: i64,
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339::option")]
    #[schema(required = true)]
    last_seen_at: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339::option")]
    #[schema(required = true)]
    revoked_at: Option<OffsetDateTime>,
    /// What the operator decided: `draining` gets nothing more, `quarantined` lost what it had too. `null`: nothing.
    #[schema(required = true)]
    control: Option<&'static str>,
}

impl WorkerBody {
    fn new(worker: ListedWorker, now: OffsetDateTime) -> Self {
        let is_live = worker
            .last_seen_at
            .is_some_and(|seen_at| seen_at >= now - LIVE_FOR);
        let state = match (worker.revoked_at, is_live, worker.leases) {
            (Some(_), _, _) => WorkerState::Revoked,
            (None, false, _) => WorkerState::Offline,
            (None, true, 0) => WorkerState::Idle,
            (None, true, _) => WorkerState::Busy,
        };
        Self {
            id: worker.id,
            object: WorkerObject::Worker,
            name: worker.name,
            state,
            device: worker.device,
            device_name: worker.device_name,
            memory_bytes: worker.memory_bytes,
            threads: worker.threads,
            numeric_class: worker.numeric_class,
            libtorch: worker.libtorch,
            version: worker.version,
            price_floor_nano: worker.price_floor_nano,
            unsandboxed: worker.unsandboxed,
            open_attempts: worker.leases,
            accepted_attempts: worker.accepted,
            failed_attempts: worker.failed,
            created_at: worker.joined_at,
            last_seen_at: worker.last_seen_at,
            revoked_at: worker.revoked_at,
            control: worker.control.map(|(control, ..)| control.as_str()),
        }
    }
}

/// The account's workers, newest first.
#[utoipa::path(
    get, path = "/v1/workers", tag = "workers", security(("session" = []), ("api_key" = ["workers:read"])),
    params(PageQuery),
    responses(
        (status = 200, body = Page<WorkerBody>),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn list_workers(
    State(state): State<AppState>,
    caller: Caller<needs::WorkersRead>,
    list: List,
) -> Result<Page<WorkerBody>, Problem> {
    let before: Option<WorkerId> = list.position(&state, &caller)?;
    let mut connection = caller.read(&state).await?;
    let rows = listed_workers::list(
        &mut connection,
        Filter::of(caller.account),
        before,
        list.fetch(),
    )
    .await?;
    let now = state.now();
    Ok(list.page(
        &state,
        &caller,
        rows,
        |row| row.id,
        |row| WorkerBody::new(row, now),
    ))
}

/// One worker.
#[utoipa::path(
    get, path = "/v1/workers/{id}", tag = "workers", security(("session" = []), ("api_key" = ["workers:read"])),
    params(("id" = String, Path)),
    responses(
        (status = 200, body = WorkerBody, headers(("ETag" = String))),
        (status = 304),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn find_worker(
    State(state): State<AppState>,
    caller: Caller<needs::WorkersRead>,
    Path(id): Path<WorkerId>,
    conditions: Conditions,
) -> Result<Response, Problem> {
    let worker = listed_workers::find(
        &mut *caller.read(&state).await?,
        Filter::of(caller.account),
        id,
    )
    .await?;
    let worker = worker.ok_or_else(Problem::not_found)?;
    Ok(conditions.answer(WorkerBody::new(worker, state.now())))
}

/// Takes a worker out for good: it gets no more work and no more tokens, and what it has goes to others at once. Doing it
/// again changes nothing.
#[utoipa::path(
    post, path = "/v1/workers/{id}/revoke", tag = "workers", security(("session" = []), ("api_key" = ["workers:write"])),
    params(("id" = String, Path)),
    responses(
        (status = 200, body = WorkerBody),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn revoke_worker(
    State(state): State<AppState>,
    caller: Caller<needs::WorkersWrite>,
    Path(id): Path<WorkerId>,
) -> Result<Json<WorkerBody>, Problem> {
    let now = state.now();
    let mut tx = state.db.begin().await?;
    if !workers::revoke(&mut tx, caller.account, id, now).await? {
        return Err(Problem::not_found());
    }
    let recalled = recalls::of_worker(&mut tx, id, now)
        .await
        .map_err(|error| Problem::internal(&error))?;
    let worker = listed_workers::find(&mut tx, Filter::of(caller.account), id)
        .await?
        .ok_or_else(Problem::not_found)?;
    tx.commit().await?;
    state.wake.publish(Channel::Worker(id));
    for job in recalled.jobs {
        state.wake.publish(Channel::Job(job));
        state.wake.publish(Channel::Work);
    }
    Ok(Json(WorkerBody::new(worker, now)))
}
