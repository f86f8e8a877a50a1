//! `/v1/admin/jobs`: jobs that wait or loop beyond bounds, and what is done about one.

use comptoir_domain::{
    audit::Action,
    id::{AccountId, JobId},
    job::{JobState, Tier, waiting::StatusReason},
};
use comptoir_store::{
    admin_jobs::{self, Bounds, Stuck, StuckJob, UnstickError},
    jobs,
    wake::{Channel, Wake},
};
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;
use time::{Duration, OffsetDateTime};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    ReasonBody,
    guard::{Admin, FreshAdmin},
    job_ended,
};
use crate::{
    AppState, Problem,
    extract::{Json, Path},
    page::{List, Page, PageQuery},
    routes::explain,
};

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(list_stuck_jobs))
        .routes(routes!(requeue_job))
        .routes(routes!(fail_job))
}

#[derive(Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum StuckObject {
    StuckJob,
}

/// Why a job counts as stuck.
#[derive(Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum StuckKind {
    /// A replica could be leased, and nobody takes it.
    Waiting,
    /// A replica was tried again and again.
    Looping,
    /// The results are all there, and no verdict comes.
    Silent,
}

#[derive(Serialize, ToSchema)]
#[schema(as = StuckJob)]
struct StuckBody {
    #[schema(value_type = String, example = "job_01h455vb4pex5vsknk084sn02q")]
    id: JobId,
    object: StuckObject,
    #[schema(value_type = String)]
    account_id: AccountId,
    state: JobState,
    kind: String,
    tier: Tier,
    stuck: StuckKind,
    /// What its owner is told.
    #[schema(required = true)]
    status_reason: Option<StatusReason>,
    /// The same in a sentence.
    #[schema(required = true)]
    hint: Option<&'static str>,
    /// Tries of the replica that was tried most.
    attempts: i32,
    /// Since when its oldest waiting replica could be leased.
    #[serde(with = "time::serde::rfc3339::option")]
    #[schema(required = true)]
    waiting_since: Option<OffsetDateTime>,
    /// When something last happened to it.
    #[serde(with = "time::serde::rfc3339::option")]
    #[schema(required = true)]
    last_event_at: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    deadline_at: OffsetDateTime,
}

impl StuckBody {
    fn new(job: StuckJob, status_reason: Option<StatusReason>) -> Self {
        Self {
            id: job.id,
            object: StuckObject::StuckJob,
            account_id: job.account,
            state: job.state,
            kind: job.kind,
            tier: job.tier,
            stuck: match job.stuck {
                Stuck::Waiting => StuckKind::Waiting,
                Stuck::Looping => StuckKind::Looping,
                Stuck::Silent => StuckKind::Silent,
            },
            status_reason,
            hint: status_reason.map(StatusReason::hint),
            attempts: job.attempts,
            waiting_since: job.waiting_since,
            last_event_at: job.last_event_at,
            created_at: job.created_at,
            deadline_at: job.deadline_at,
        }
    }
}

/// From where on a job counts as stuck.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct StuckQuery {
    /// A replica that could be leased has waited for so many seconds: 900 when absent.
    #[param(value_type = Option<u64>, maximum = 4_294_967_295_u64)]
    waiting_s: Option<u32>,
    /// A replica was tried so often: 3 when absent.
    #[param(maximum = 65_535)]
    attempts: Option<u16>,
    /// The results are all there, and nothing has happened for so many seconds: 600 when absent.
    #[param(value_type = Option<u64>, maximum = 4_294_967_295_u64)]
    silent_s: Option<u32>,
}

impl StuckQuery {
    fn bounds(&self) -> Bounds {
        let default = Bounds::default();
        let seconds = |given: Option<u32>, default| {
            given.map_or(default, |it| Duration::seconds(i64::from(it)))
        };
        Bounds {
            waiting: seconds(self.waiting_s, default.waiting),
            attempts: self.attempts.map_or(default.attempts, i32::from),
            silent: seconds(self.silent_s, default.silent),
        }
    }
}

/// Jobs of all accounts that wait or loop beyond bounds, newest first, with the reason that their owner is told.
#[utoipa::path(
    get, path = "/v1/admin/jobs/stuck",
    params(PageQuery, StuckQuery),
    responses((status = 200, body = Page<StuckBody>)),
)]
async fn list_stuck_jobs(admin: Admin, list: List<StuckQuery>) -> Result<Page<StuckBody>, Problem> {
    let before: Option<JobId> = list.position(&admin.state, &admin.identity)?;
    let (bounds, now) = (list.filter.bounds(), admin.state.now());
    let mut connection = admin.read().await?;
    let jobs = admin_jobs::stuck(&mut connection, bounds, before, list.fetch(), now).await?;
    let mut rows = Vec::with_capacity(jobs.len());
    for job in jobs {
        let reason = reason(&mut connection, &job, now).await?;
        rows.push((job, reason));
    }
    let id = |(job, _): &(StuckJob, Option<StatusReason>)| job.id;
    let (state, caller) = (&admin.state, &admin.identity);
    Ok(list.page(state, caller, rows, id, |(job, reason)| {
        StuckBody::new(job, reason)
    }))
}

/// What the owner of a job is told. The job may have ended meanwhile.
async fn reason(
    connection: &mut PgConnection,
    job: &StuckJob,
    now: OffsetDateTime,
) -> sqlx::Result<Option<StatusReason>> {
    match jobs::find(connection, job.account, job.id).await? {
        Some(job) => explain::reason(connection, &job, now).await,
        None => Ok(None),
    }
}

#[derive(Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum UnstuckObject {
    Job,
}

/// A job that was moved on.
#[derive(Serialize, ToSchema)]
#[schema(as = UnstuckJob)]
struct UnstuckBody {
    #[schema(value_type = String)]
    id: JobId,
    object: UnstuckObject,
    /// Workers whose lease on it was taken back.
    leases_taken_back: usize,
}

/// Sends a job back to the queue: leases on it are taken back, what waits may be leased at once, and a verdict that is due is
/// tried now. Segments that were finished stay.
#[utoipa::path(
    post, path = "/v1/admin/jobs/{id}/requeue",
    params(("id" = String, Path)),
    request_body = ReasonBody,
    responses((status = 200, body = UnstuckBody)),
)]
async fn requeue_job(
    admin: FreshAdmin,
    Path(id): Path<JobId>,
    Json(body): Json<ReasonBody>,
) -> Result<Json<UnstuckBody>, Problem> {
    let event = admin
        .event(Action::JobUnstuck, id)
        .with("how", "requeued")
        .with("reason", body.checked()?);
    let now = admin.state.now();
    let work = admin.act(event, move |tx, event| {
        Box::pin(async move {
            let recalled = admin_jobs::requeue(tx, id, now)
                .await
                .map_err(|error| refused(&error))?;
            event.account = admin_jobs::account_of(tx, id).await?;
            Ok(recalled)
        })
    });
    let recalled = work.await?;
    let workers = recalled.workers.len();
    announce(&admin.state.wake, id, recalled.workers);
    admin.state.wake.publish(Channel::Work);
    Ok(Json(UnstuckBody {
        id,
        object: UnstuckObject::Job,
        leases_taken_back: workers,
    }))
}

/// Ends a job, the operator at fault: everything that is held for it goes back.
#[utoipa::path(
    post, path = "/v1/admin/jobs/{id}/fail",
    params(("id" = String, Path)),
    request_body = ReasonBody,
    responses((status = 200, body = UnstuckBody)),
)]
async fn fail_job(
    admin: FreshAdmin,
    Path(id): Path<JobId>,
    Json(body): Json<ReasonBody>,
) -> Result<Json<UnstuckBody>, Problem> {
    let reason = body.checked()?;
    let event = admin
        .event(Action::JobUnstuck, id)
        .with("how", "failed")
        .with("reason", reason.clone());
    let now = admin.state.now();
    let work = admin.act(event, move |tx, event| {
        Box::pin(async move {
            let ended = admin_jobs::fail(tx, id, &reason, now)
                .await
                .map_err(|error| refused(&error))?;
            event.account = admin_jobs::account_of(tx, id).await?;
            Ok(ended)
        })
    });
    let ended = work.await?;
    let workers = ended.workers.len();
    announce(&admin.state.wake, id, ended.workers);
    Ok(Json(UnstuckBody {
        id,
        object: UnstuckObject::Job,
        leases_taken_back: workers,
    }))
}

fn announce(
    wake: &Wake,
    job: JobId,
    workers: impl IntoIterator<Item = comptoir_domain::id::WorkerId>,
) {
    wake.publish(Channel::Job(job));
    for worker in workers {
        wake.publish(Channel::Worker(worker));
    }
}

fn refused(error: &UnstickError) -> Problem {
    match error {
        UnstickError::NotFound => Problem::not_found(),
        UnstickError::Ended(state) => job_ended(state),
        UnstickError::Recall(_) | UnstickError::End(_) | UnstickError::Database(_) => {
            Problem::internal(error)
        }
    }
}
