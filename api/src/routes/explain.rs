//! `/v1/jobs/{id}/explain`: why a job waits.

use axum::extract::State;
use comptoir_domain::{
    amount::Amount,
    id::JobId,
    job::{
        Device, JobState,
        waiting::{self, Demand, Judged, Obstacle, StatusReason},
    },
};
use comptoir_store::jobs::{
    self, Job,
    explain::{self, Waiting, WorkerClass},
};
use serde::Serialize;
use sqlx::PgConnection;
use time::OffsetDateTime;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    AppState, Problem,
    auth::{Caller, needs},
    extract::{Json, Path},
};

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(explain_job))
}

#[derive(Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum ExplanationObject {
    Explanation,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Explanation)]
struct ExplanationBody {
    #[schema(value_type = String, example = "job_01h455vb4pex5vsknk084sn02q")]
    id: JobId,
    object: ExplanationObject,
    state: JobState,
    /// `null` once the job ended.
    #[schema(required = true)]
    status_reason: Option<StatusReason>,
    /// The reason in a sentence.
    #[schema(required = true)]
    hint: Option<&'static str>,
    /// Replicas that are claimed before this job's, counted up to 10000; `null` when none of it waits.
    #[schema(required = true)]
    queue_position: Option<i64>,
    /// Workers that could take it now.
    eligible_workers: u64,
    /// What its waiting replicas ask of a worker.
    #[schema(required = true)]
    demand: Option<DemandBody>,
    /// Every class of workers, and what keeps how many of each from it.
    classes: Vec<ClassBody>,
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Demand)]
struct DemandBody {
    /// Replicas that wait.
    replicas: u64,
    /// Must all replicas run in one numeric class?
    one_class: bool,
    device: Device,
    min_memory_bytes: u64,
    /// The rate that is paid: nano base units per 10^9 multiply-adds.
    #[schema(value_type = String, pattern = "^(0|[1-9][0-9]*)$")]
    rate_nano: Amount,
    /// The numeric class they are bound to.
    #[schema(required = true)]
    numeric_class: Option<String>,
    /// When the first of them may be claimed, if that is still to come.
    #[serde(with = "time::serde::rfc3339::option")]
    #[schema(required = true)]
    ready_at: Option<OffsetDateTime>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = WorkerClass)]
struct ClassBody {
    device: Device,
    numeric_class: String,
    /// Workers of the class that could take it now.
    eligible_workers: u64,
    /// What keeps the others from it: the first that applies to each.
    obstacles: Vec<ObstacleBody>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = WorkerObstacle)]
struct ObstacleBody {
    obstacle: Obstacle,
    workers: u64,
}

impl From<Waiting> for DemandBody {
    fn from(waiting: Waiting) -> Self {
        Self {
            replicas: waiting.demand.replicas,
            one_class: waiting.demand.one_class,
            device: waiting.device,
            min_memory_bytes: waiting.min_memory_bytes,
            rate_nano: waiting.rate_nano,
            numeric_class: waiting.numeric_class,
            ready_at: waiting.ready_at,
        }
    }
}

impl From<WorkerClass> for ClassBody {
    fn from(class: WorkerClass) -> Self {
        let obstacle = |it: &Judged| {
            Some(ObstacleBody {
                obstacle: it.obstacle?,
                workers: it.workers,
            })
        };
        Self {
            device: class.device,
            numeric_class: class.numeric_class,
            eligible_workers: eligible(&class.judged),
            obstacles: class.judged.iter().filter_map(obstacle).collect(),
        }
    }
}

fn eligible(judged: &[Judged]) -> u64 {
    judged
        .iter()
        .filter(|it| it.obstacle.is_none())
        .map(|it| it.workers)
        .sum()
}

/// Says why a job waits: what it asks, and what keeps each class of workers from it.
#[utoipa::path(
    get, path = "/v1/jobs/{id}/explain", tag = "jobs", security(("session" = []), ("api_key" = ["jobs:read"])),
    params(("id" = String, Path)),
    responses(
        (status = 200, body = ExplanationBody),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn explain_job(
    State(state): State<AppState>,
    caller: Caller<needs::JobsRead>,
    Path(id): Path<JobId>,
) -> Result<Json<ExplanationBody>, Problem> {
    let mut connection = state.db.acquire().await?;
    let job = jobs::find(&mut connection, caller.account, id)
        .await?
        .ok_or_else(Problem::not_found)?;
    let (waiting, classes) = look(&mut connection, &job, state.now()).await?;
    let status_reason = judge(&job, waiting.as_ref(), &classes);
    Ok(Json(ExplanationBody {
        id,
        object: ExplanationObject::Explanation,
        state: job.state,
        status_reason,
        hint: status_reason.map(StatusReason::hint),
        queue_position: waiting.as_ref().map(|it| it.position),
        eligible_workers: classes.iter().map(|class| eligible(&class.judged)).sum(),
        demand: waiting.map(DemandBody::from),
        classes: classes.into_iter().map(ClassBody::from).collect(),
        created_at: job.created_at,
    }))
}

/// Why a job stands where it stands, as its owner is told: looked for among all workers, beyond the wall of the tenant.
pub(super) async fn reason_for_owner(
    state: &AppState,
    job: &Job,
) -> sqlx::Result<Option<StatusReason>> {
    if job.state.is_final() {
        return Ok(None);
    }
    let mut connection = state.db.acquire().await?;
    reason(&mut connection, job, state.now()).await
}

/// Why a job stands where it stands. The connection sees all workers.
pub(super) async fn reason(
    connection: &mut PgConnection,
    job: &Job,
    now: OffsetDateTime,
) -> sqlx::Result<Option<StatusReason>> {
    let (waiting, classes) = look(connection, job, now).await?;
    Ok(judge(job, waiting.as_ref(), &classes))
}

async fn look(
    connection: &mut PgConnection,
    job: &Job,
    now: OffsetDateTime,
) -> sqlx::Result<(Option<Waiting>, Vec<WorkerClass>)> {
    if job.state.is_final() {
        return Ok((None, Vec::new()));
    }
    let Some(waiting) = explain::waiting(connection, job.id).await? else {
        return Ok((None, Vec::new()));
    };
    let classes = explain::classes(connection, job.id, &waiting, now).await?;
    Ok((Some(waiting), classes))
}

pub(super) fn judge(
    job: &Job,
    waiting: Option<&Waiting>,
    classes: &[WorkerClass],
) -> Option<StatusReason> {
    let nothing_waits = Demand {
        replicas: 0,
        one_class: false,
    };
    let demand = waiting.map_or(nothing_waits, |it| it.demand);
    let is_resting = waiting.is_some_and(|it| it.ready_at.is_some());
    let judged: Vec<Vec<Judged>> = classes.iter().map(|class| class.judged.clone()).collect();
    waiting::reason(job.state, demand, is_resting, &judged)
}
