//! `/v1/datasets/{dataset}/releases`: results of others' jobs that wait for the consent of the dataset's seller.

use axum::{
    extract::State,
    response::{IntoResponse as _, Response},
};
use comptoir_domain::{
    dataset_input::release_due_at,
    digest::Sha256,
    id::{DatasetId, DatasetVersionId, JobId},
};
use comptoir_store::{
    datasets,
    wake::Channel,
    withheld_results::{self, Released, Withheld, Withholding},
};
use serde::Serialize;
use sqlx::PgConnection;
use time::OffsetDateTime;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    AppState, Problem,
    auth::{Caller, Identity, needs},
    extract::{Json, Path},
    page::{List, Page, PageQuery},
    routes::{accounts::in_task, withheld},
};

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(list_dataset_releases))
        .routes(routes!(release_dataset_results))
}

#[derive(Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum ReleaseObject {
    DatasetRelease,
}

/// A job that completed on a dataset: what ran, and how large its results are. What they are is not told.
#[derive(Serialize, ToSchema)]
#[schema(as = DatasetRelease)]
struct ReleaseBody {
    object: ReleaseObject,
    #[schema(value_type = String, example = "job_01h455vb4pex5vsknk084sn02q")]
    job_id: JobId,
    /// The version that it read.
    #[schema(value_type = String)]
    dataset_version: DatasetVersionId,
    /// `training` or `inference`.
    kind: String,
    /// The SHA-256 of the program that ran.
    #[schema(value_type = String)]
    program: Sha256,
    /// The SHA-256 of the weights that it ran with; `null` where they are its own.
    #[schema(value_type = Option<String>, required = true)]
    weights: Option<Sha256>,
    /// Bytes of all results.
    output_bytes: u64,
    #[serde(with = "time::serde::rfc3339")]
    completed_at: OffsetDateTime,
    /// Until when you may release them.
    #[serde(with = "time::serde::rfc3339")]
    due_at: OffsetDateTime,
    /// When you released them; `null` where you did not.
    #[serde(with = "time::serde::rfc3339::option")]
    #[schema(required = true)]
    released_at: Option<OffsetDateTime>,
    /// When they were denied, since you had not released them in time; `null` where they were not.
    #[serde(with = "time::serde::rfc3339::option")]
    #[schema(required = true)]
    denied_at: Option<OffsetDateTime>,
}

impl From<Withheld> for ReleaseBody {
    fn from(it: Withheld) -> Self {
        Self {
            object: ReleaseObject::DatasetRelease,
            job_id: it.job,
            dataset_version: it.version,
            kind: it.kind,
            program: it.program,
            weights: it.weights,
            output_bytes: it.output_bytes,
            completed_at: it.completed_at,
            due_at: release_due_at(it.completed_at),
            released_at: it.released_at,
            denied_at: it.denied_at,
        }
    }
}

/// 404 for a dataset that is not the caller's.
async fn require_own(
    connection: &mut PgConnection,
    caller: &Identity,
    dataset: DatasetId,
) -> Result<(), Problem> {
    let found = datasets::find(connection, caller.account, dataset).await?;
    let own = found.filter(|it| it.account == caller.account);
    own.map(drop).ok_or_else(Problem::not_found)
}

/// Jobs of others on your dataset whose results waited, or wait, for you: newest first.
#[utoipa::path(
    get, path = "/v1/datasets/{dataset}/releases", tag = "datasets", security(("session" = []), ("api_key" = ["datasets:read"])),
    params(("dataset" = String, Path), PageQuery),
    responses(
        (status = 200, body = Page<ReleaseBody>),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn list_dataset_releases(
    State(state): State<AppState>,
    caller: Caller<needs::DatasetsRead>,
    Path(dataset): Path<DatasetId>,
    list: List,
) -> Result<Page<ReleaseBody>, Problem> {
    let before: Option<JobId> = list.position(&state, &caller)?;
    let mut connection = caller.read(&state).await?;
    require_own(&mut connection, &caller, dataset).await?;
    let of = (caller.account, dataset);
    let rows = withheld_results::list(&mut connection, of, before, list.fetch()).await?;
    Ok(list.page(&state, &caller, rows, |row| row.job, ReleaseBody::from))
}

/// Gives the owner of a job its results. Releasing them again changes nothing; they cannot be taken back. 403 `release_denied` a week after the job
/// completed: they were denied.
#[utoipa::path(
    post, path = "/v1/datasets/{dataset}/releases/{job}", tag = "datasets", security(("session" = []), ("api_key" = ["datasets:write"])),
    params(("dataset" = String, Path), ("job" = String, Path)),
    responses(
        (status = 200, body = ReleaseBody),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn release_dataset_results(
    State(state): State<AppState>,
    caller: Caller<needs::DatasetsWrite>,
    Path((dataset, job)): Path<(DatasetId, JobId)>,
) -> Result<Response, Problem> {
    let (now, caller) = (state.now(), Identity::clone(&caller));
    in_task(async move {
        let mut tx = caller.begin(&state).await?;
        let of = (caller.account, dataset);
        let released = withheld_results::release(&mut tx, of, job, now).await?;
        let found = withheld_results::find(&mut tx, of, job).await?;
        let found = found.ok_or_else(Problem::not_found)?;
        tx.commit().await?;
        if found.denied_at.is_some() {
            return Err(withheld(Withholding::Denied));
        }
        if released == Released::Now {
            tracing::info!(%job, %dataset, "results of a job released by the dataset's seller");
            state.wake.publish(Channel::Job(job));
        }
        Ok(Json(ReleaseBody::from(found)).into_response())
    })
    .await
}
