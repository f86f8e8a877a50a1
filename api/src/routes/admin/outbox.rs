//! `/v1/admin/outbox`: what waits to go out, and sending it again.

use axum::http::StatusCode;
use comptoir_domain::audit::Action;
use comptoir_store::{
    admin_outbox::{self, Backlog},
    wake::Channel,
};
use serde::Serialize;
use time::OffsetDateTime;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    ReasonBody,
    guard::{Admin, FreshAdmin},
};
use crate::{AppState, Problem, extract::Json};

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(find_outbox))
        .routes(routes!(replay_wake_ups))
        .routes(routes!(replay_notices))
}

#[derive(Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum OutboxObject {
    Outbox,
}

/// What waits, and since when the oldest of it does.
#[derive(Serialize, ToSchema)]
#[schema(as = Outbox)]
struct OutboxBody {
    object: OutboxObject,
    /// Jobs that have not ended.
    open_jobs: i64,
    /// Workers with work.
    busy_workers: i64,
    /// Jobs whose verdict is due.
    verdicts: WaitingBody,
    /// Receipts that no batch has yet: they go into the next.
    receipts: WaitingBody,
    /// Releases that wait for a batch.
    releases: WaitingBody,
    /// Transactions that are wanted on the chain. The settler sends their bytes again by itself.
    transactions: WaitingBody,
    /// Messages to owners of accounts that were not sent yet.
    notices: WaitingBody,
    /// Messages that were given up.
    notices_given_up: WaitingBody,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Waiting)]
struct WaitingBody {
    count: i64,
    #[serde(with = "time::serde::rfc3339::option")]
    #[schema(required = true)]
    oldest_at: Option<OffsetDateTime>,
}

impl From<admin_outbox::Waiting> for WaitingBody {
    fn from(waiting: admin_outbox::Waiting) -> Self {
        Self {
            count: waiting.count,
            oldest_at: waiting.oldest_at,
        }
    }
}

impl From<Backlog> for OutboxBody {
    fn from(backlog: Backlog) -> Self {
        Self {
            object: OutboxObject::Outbox,
            open_jobs: backlog.open_jobs,
            busy_workers: backlog.busy_workers,
            verdicts: backlog.verdicts.into(),
            receipts: backlog.receipts.into(),
            releases: backlog.releases.into(),
            transactions: backlog.transactions.into(),
            notices: backlog.notices.into(),
            notices_given_up: backlog.notices_given_up.into(),
        }
    }
}

/// What waits to go out.
#[utoipa::path(
    get, path = "/v1/admin/outbox",
    responses((status = 200, body = OutboxBody)),
)]
async fn find_outbox(admin: Admin) -> Result<Json<OutboxBody>, Problem> {
    let mut connection = admin.read().await?;
    Ok(Json(admin_outbox::backlog(&mut connection).await?.into()))
}

/// Publishes a wake-up to everybody who waits, in every process: for work, for a job's events, for a worker's orders. A wake-up
/// carries nothing and only says "look again", so one too many does no harm. It helps where wake-ups were lost, and costs one look
/// of each waiter at the database. Nothing else is sent again by it.
#[utoipa::path(
    post, path = "/v1/admin/outbox/wake-ups/replay",
    request_body = ReasonBody,
    responses((status = 204)),
)]
async fn replay_wake_ups(
    admin: FreshAdmin,
    Json(body): Json<ReasonBody>,
) -> Result<StatusCode, Problem> {
    let event = admin
        .event(Action::OutboxReplayed, "wake-ups")
        .with("reason", body.checked()?);
    admin.act(event, |_, _| Box::pin(async { Ok(()) })).await?;
    admin.state.wake.publish(Channel::Every);
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Serialize, ToSchema)]
#[schema(as = ReplayedNotices)]
struct ReplayedBody {
    /// Messages that are due now.
    notices: u64,
}

/// Has messages to owners of accounts sent: those that wait for another attempt are due now, and those of the last seven days
/// that were given up begin anew. What was sent is not sent again, and neither is a way to a new password.
#[utoipa::path(
    post, path = "/v1/admin/outbox/notices/replay",
    request_body = ReasonBody,
    responses((status = 200, body = ReplayedBody)),
)]
async fn replay_notices(
    admin: FreshAdmin,
    Json(body): Json<ReasonBody>,
) -> Result<Json<ReplayedBody>, Problem> {
    let event = admin
        .event(Action::OutboxReplayed, "notices")
        .with("reason", body.checked()?);
    let now = admin.state.now();
    let work = admin.act(event, move |tx, event| {
        Box::pin(async move {
            let notices = admin_outbox::replay_notices(tx, now).await?;
            event.note("notices", notices);
            Ok(Json(ReplayedBody { notices }))
        })
    });
    work.await
}
