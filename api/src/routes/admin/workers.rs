//! `/v1/admin/workers`: workers of all accounts; draining one, putting one into quarantine, taking one out.

use axum::{http::StatusCode, response::Response};
use comptoir_domain::{
    audit::Action,
    id::{AccountId, WorkerId},
    job::Device,
};
use comptoir_store::{
    admin_workers::{self, Control, ControlError},
    listed_workers::{self, Filter, ListedWorker},
    recalls::{self, Recalled},
    wake::{Channel, Wake},
};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    ReasonBody,
    guard::{Admin, FreshAdmin},
};
use crate::{
    AppState, Problem,
    etag::Conditions,
    extract::{Json, Path},
    page::{List, Page, PageQuery},
};

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(list_all_workers))
        .routes(routes!(find_any_worker))
        .routes(routes!(drain_worker))
        .routes(routes!(quarantine_worker))
        .routes(routes!(restore_worker))
        .routes(routes!(lift_worker_bar))
        .routes(routes!(disable_worker))
}

#[derive(Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum AdminWorkerObject {
    Worker,
}

/// What a worker is let do.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = WorkerControl)]
enum ControlState {
    /// It works.
    Active,
    /// It finishes what it has and gets nothing more.
    Draining,
    /// It gets nothing more, and what it had was taken back.
    Quarantined,
    /// It was taken out for good.
    Disabled,
}

#[derive(Serialize, ToSchema)]
#[schema(as = AdminWorker)]
struct WorkerBody {
    #[schema(value_type = String, example = "wrk_01h455vb4pex5vsknk084sn02q")]
    id: WorkerId,
    object: AdminWorkerObject,
    #[schema(value_type = String)]
    account_id: AccountId,
    name: String,
    control: ControlState,
    /// Why an operator decided so.
    #[schema(required = true)]
    control_reason: Option<String>,
    #[serde(with = "time::serde::rfc3339::option")]
    #[schema(required = true)]
    control_since: Option<OffsetDateTime>,
    /// Since when it gets nothing because two other owners refuted a result of its; `null`: it is not barred.
    #[serde(with = "time::serde::rfc3339::option")]
    #[schema(required = true)]
    barred_at: Option<OffsetDateTime>,
    device: Device,
    numeric_class: String,
    version: String,
    /// Attempts that it works on now.
    open_attempts: i64,
    accepted_attempts: i64,
    failed_attempts: i64,
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339::option")]
    #[schema(required = true)]
    last_seen_at: Option<OffsetDateTime>,
}

impl From<ListedWorker> for WorkerBody {
    fn from(worker: ListedWorker) -> Self {
        let (control, control_reason, control_since) = match (worker.revoked_at, worker.control) {
            (Some(at), _) => (ControlState::Disabled, None, Some(at)),
            (None, Some((Control::Draining, reason, since))) => {
                (ControlState::Draining, Some(reason), Some(since))
            }
            (None, Some((Control::Quarantined, reason, since))) => {
                (ControlState::Quarantined, Some(reason), Some(since))
            }
            (None, None) => (ControlState::Active, None, None),
        };
        Self {
            id: worker.id,
            object: AdminWorkerObject::Worker,
            account_id: worker.account,
            name: worker.name,
            control,
            control_reason,
            control_since,
            barred_at: worker.barred_at,
            device: worker.device,
            numeric_class: worker.numeric_class,
            version: worker.version,
            open_attempts: worker.leases,
            accepted_attempts: worker.accepted,
            failed_attempts: worker.failed,
            created_at: worker.joined_at,
            last_seen_at: worker.last_seen_at,
        }
    }
}

/// Which of the decisions to list.
#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum ControlFilter {
    Draining,
    Quarantined,
}

/// Which workers to list.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct WorkerQuery {
    /// Only those of this account.
    #[param(value_type = Option<String>)]
    account_id: Option<AccountId>,
    /// Only those about which this was decided.
    #[param(inline)]
    control: Option<ControlFilter>,
}

/// Workers of all accounts, newest first.
#[utoipa::path(
    get, path = "/v1/admin/workers",
    params(PageQuery, WorkerQuery),
    responses((status = 200, body = Page<WorkerBody>)),
)]
async fn list_all_workers(
    admin: Admin,
    list: List<WorkerQuery>,
) -> Result<Page<WorkerBody>, Problem> {
    let (state, caller) = (&admin.state, &admin.identity);
    let before: Option<WorkerId> = list.position(state, caller)?;
    let filter = Filter {
        account: list.filter.account_id,
        control: list.filter.control.map(|it| match it {
            ControlFilter::Draining => Control::Draining,
            ControlFilter::Quarantined => Control::Quarantined,
        }),
    };
    let mut connection = admin.read().await?;
    let rows = listed_workers::list(&mut connection, filter, before, list.fetch()).await?;
    Ok(list.page(state, caller, rows, |row| row.id, WorkerBody::from))
}

/// One worker.
#[utoipa::path(
    get, path = "/v1/admin/workers/{id}",
    params(("id" = String, Path)),
    responses(
        (status = 200, body = WorkerBody, headers(("ETag" = String))),
        (status = 304),
    ),
)]
async fn find_any_worker(
    admin: Admin,
    Path(id): Path<WorkerId>,
    conditions: Conditions,
) -> Result<Response, Problem> {
    let worker = listed_workers::find(&mut *admin.read().await?, Filter::default(), id).await?;
    let worker = worker.ok_or_else(Problem::not_found)?;
    Ok(conditions.answer(WorkerBody::from(worker)))
}

/// Gives a worker nothing more; it finishes what it has. Doing it again changes nothing.
#[utoipa::path(
    post, path = "/v1/admin/workers/{id}/drain",
    params(("id" = String, Path)),
    request_body = ReasonBody,
    responses((status = 200, body = WorkerBody)),
)]
async fn drain_worker(
    admin: FreshAdmin,
    Path(id): Path<WorkerId>,
    Json(body): Json<ReasonBody>,
) -> Result<Json<WorkerBody>, Problem> {
    decide(admin, id, Decision::Control(Control::Draining), body).await
}

/// Gives a worker nothing more, and takes back what it has: its jobs go to others at once. Doing it again takes back what it
/// got meanwhile.
#[utoipa::path(
    post, path = "/v1/admin/workers/{id}/quarantine",
    params(("id" = String, Path)),
    request_body = ReasonBody,
    responses((status = 200, body = WorkerBody)),
)]
async fn quarantine_worker(
    admin: FreshAdmin,
    Path(id): Path<WorkerId>,
    Json(body): Json<ReasonBody>,
) -> Result<Json<WorkerBody>, Problem> {
    decide(admin, id, Decision::Control(Control::Quarantined), body).await
}

/// Lets a worker that drains or is in quarantine work again. Doing it again changes nothing.
#[utoipa::path(
    post, path = "/v1/admin/workers/{id}/restore",
    params(("id" = String, Path)),
    request_body = ReasonBody,
    responses((status = 200, body = WorkerBody)),
)]
async fn restore_worker(
    admin: FreshAdmin,
    Path(id): Path<WorkerId>,
    Json(body): Json<ReasonBody>,
) -> Result<Json<WorkerBody>, Problem> {
    decide(admin, id, Decision::Restore, body).await
}

/// Lifts the bar of a worker whose result two other owners refuted: it gets work again, and its trust starts anew. What it lost
/// stays lost. Doing it again changes nothing.
#[utoipa::path(
    post, path = "/v1/admin/workers/{id}/lift-bar",
    params(("id" = String, Path)),
    request_body = ReasonBody,
    responses((status = 200, body = WorkerBody)),
)]
async fn lift_worker_bar(
    admin: FreshAdmin,
    Path(id): Path<WorkerId>,
    Json(body): Json<ReasonBody>,
) -> Result<Json<WorkerBody>, Problem> {
    decide(admin, id, Decision::LiftBar, body).await
}

/// Takes a worker out for good: its tokens are refused, and what it has goes to others at once. Doing it again changes nothing.
#[utoipa::path(
    post, path = "/v1/admin/workers/{id}/disable",
    params(("id" = String, Path)),
    request_body = ReasonBody,
    responses((status = 200, body = WorkerBody)),
)]
async fn disable_worker(
    admin: FreshAdmin,
    Path(id): Path<WorkerId>,
    Json(body): Json<ReasonBody>,
) -> Result<Json<WorkerBody>, Problem> {
    decide(admin, id, Decision::Disable, body).await
}

#[derive(Debug, Clone, Copy)]
enum Decision {
    Control(Control),
    Restore,
    LiftBar,
    Disable,
}

impl Decision {
    const fn action(self) -> Action {
        match self {
            Self::Control(Control::Draining) => Action::WorkerDrained,
            Self::Control(Control::Quarantined) => Action::WorkerQuarantined,
            Self::Restore => Action::WorkerRestored,
            Self::LiftBar => Action::WorkerBarLifted,
            Self::Disable => Action::WorkerRevoked,
        }
    }

    const fn takes_back(self) -> bool {
        matches!(self, Self::Control(Control::Quarantined) | Self::Disable)
    }
}

async fn decide(
    admin: FreshAdmin,
    id: WorkerId,
    decision: Decision,
    body: ReasonBody,
) -> Result<Json<WorkerBody>, Problem> {
    let reason = body.checked()?;
    let event = admin
        .event(decision.action(), id)
        .with("reason", reason.clone());
    let now = admin.state.now();
    let work = admin.act(event, move |tx, event| {
        Box::pin(async move {
            let recalled = match decision {
                Decision::Control(control) => {
                    admin_workers::control(tx, id, (control, &reason), now).await
                }
                Decision::Restore => admin_workers::restore(tx, id).await.map(nothing_recalled),
                Decision::LiftBar => admin_workers::lift_bar(tx, id).await.map(nothing_recalled),
                Decision::Disable => admin_workers::disable(tx, id, now).await,
            };
            let recalled = recalled.map_err(|error| refused(&error))?;
            let worker = listed_workers::find(tx, Filter::default(), id).await?;
            event.account = worker.map(|it| it.account);
            Ok(recalled)
        })
    });
    announce(&admin.state.wake, id, &work.await?);
    let mut worker = find(&admin, id).await?;
    if decision.takes_back() && worker.leases > 0 {
        take_back_late(&admin, decision, id).await?;
        worker = find(&admin, id).await?;
    }
    Ok(Json(worker.into()))
}

fn nothing_recalled((): ()) -> Recalled {
    Recalled::default()
}

async fn find(admin: &FreshAdmin, id: WorkerId) -> Result<ListedWorker, Problem> {
    let worker = listed_workers::find(&mut *admin.read().await?, Filter::default(), id).await?;
    worker.ok_or_else(Problem::not_found)
}

/// What was claimed while the decision was not committed yet did not see it.
async fn take_back_late(
    admin: &FreshAdmin,
    decision: Decision,
    id: WorkerId,
) -> Result<(), Problem> {
    let event = admin.event(decision.action(), id);
    let now = admin.state.now();
    let work = admin.act(event, move |tx, event| {
        Box::pin(async move {
            let late = recalls::of_worker(tx, id, now)
                .await
                .map_err(|error| Problem::internal(&error))?;
            event.note("leases_taken_back_late", late.jobs.len());
            Ok(late)
        })
    });
    announce(&admin.state.wake, id, &work.await?);
    Ok(())
}

fn announce(wake: &Wake, worker: WorkerId, recalled: &Recalled) {
    wake.publish(Channel::Worker(worker));
    for job in &recalled.jobs {
        wake.publish(Channel::Job(*job));
    }
    if !recalled.jobs.is_empty() {
        wake.publish(Channel::Work);
    }
}

fn refused(error: &ControlError) -> Problem {
    match error {
        ControlError::NotFound => Problem::not_found(),
        ControlError::Revoked => Problem::new(
            StatusCode::CONFLICT,
            "worker_disabled",
            "The worker was taken out for good",
        ),
        ControlError::Recall(_) | ControlError::Database(_) => Problem::internal(error),
    }
}
