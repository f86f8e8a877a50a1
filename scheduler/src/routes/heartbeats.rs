//! Heartbeats: all leases of a worker, renewed in one call.

use std::collections::HashMap;

use axum::extract::State;
use comptoir_http::{Problem, extract::Json};
use comptoir_store::{attempts, queue, workers};
use comptoir_wire::heartbeat::{HeartbeatReply, HeartbeatRequest, LeaseState, LeaseStatus};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{detached, exceeded};
use crate::{SchedulerState, auth::Caller};

pub(super) fn router() -> OpenApiRouter<SchedulerState> {
    OpenApiRouter::new().routes(routes!(renew))
}

/// Renew leases
///
/// Every 10 s, all leases in one call, those of sealed attempts too until their reveal is accepted. Each lives on for
/// 30 s. A worker that hears no answer for 20 s stops its attempts: they will be somebody else's.
#[utoipa::path(
    post, path = "/v1/heartbeats", tag = "work", request_body = HeartbeatRequest,
    responses(
        (status = 200, body = HeartbeatReply),
        (status = 401, body = Problem, content_type = "application/problem+json"),
        (status = 403, description = "`worker_revoked`", body = Problem, content_type = "application/problem+json"),
        (status = 422, body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn renew(
    State(state): State<SchedulerState>,
    Caller(worker): Caller,
    Json(request): Json<HeartbeatRequest>,
) -> Result<Json<HeartbeatReply>, Problem> {
    request.check().map_err(exceeded)?;
    let now = state.now();
    detached(async move {
        let held: Vec<_> = request
            .leases
            .iter()
            .map(|it| (it.attempt_id, it.lease_token))
            .collect();
        let mut tx = state.db.begin().await?;
        workers::forgo_durability(&mut tx).await?;
        if worker.is_seen_anew(now) {
            workers::note_seen(&mut tx, worker.id, now).await?;
        }
        let renewed: HashMap<_, _> = queue::renew(&mut tx, worker.id, &held)
            .await?
            .into_iter()
            .collect();
        let asked: Vec<_> = held.iter().map(|(attempt, _)| *attempt).collect();
        let cancelled = attempts::cancelled(&mut tx, worker.id, &asked).await?;
        tx.commit().await?;
        let status = |attempt| match renewed.get(&attempt) {
            Some(expires_at) => (LeaseState::Ok, Some(*expires_at)),
            None if cancelled.contains(&attempt) => (LeaseState::Cancelled, None),
            None => (LeaseState::Lost, None),
        };
        let leases = asked.into_iter().map(|attempt_id| {
            let (status, expires_at) = status(attempt_id);
            LeaseStatus {
                attempt_id,
                status,
                expires_at,
            }
        });
        Ok(Json(HeartbeatReply {
            leases: leases.collect(),
        }))
    })
    .await
}
