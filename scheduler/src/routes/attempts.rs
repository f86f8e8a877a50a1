//! Metrics and checkpoints of one attempt.

use axum::{extract::State, http::StatusCode};
use comptoir_domain::id::AttemptId;
use comptoir_http::{
    Problem,
    extract::{Json, Path},
};
use comptoir_store::{
    attempts::{self, HeldAttempt, HeldError},
    events::kind,
    segments::{self, SegmentError},
    wake::Channel,
};
use comptoir_wire::attempt::{
    AttemptEvent, EventKind, EventsReply, EventsRequest, SegmentReply, SegmentRequest,
};
use serde_json::{Value, json};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{detached, exceeded};
use crate::{
    SchedulerState,
    auth::{Caller, Lease},
};

pub(super) fn router() -> OpenApiRouter<SchedulerState> {
    OpenApiRouter::new()
        .routes(routes!(report))
        .routes(routes!(record))
}

/// Report metrics and progress
///
/// They become events of the job, once each, whatever is repeated. At most 20,000 of one attempt.
#[utoipa::path(
    post, path = "/v1/attempts/{id}/events", tag = "attempts", request_body = EventsRequest,
    params(
        ("id" = String, Path, description = "The attempt"),
        ("comptoir-lease-token" = String, Header, description = "Its lease token"),
    ),
    responses(
        (status = 200, body = EventsReply),
        (status = 401, body = Problem, content_type = "application/problem+json"),
        (status = 403, description = "`worker_revoked`", body = Problem, content_type = "application/problem+json"),
        (status = 404, body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "`stale_lease`", body = Problem, content_type = "application/problem+json"),
        (status = 422, body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn report(
    State(state): State<SchedulerState>,
    Caller(worker): Caller,
    Path(attempt): Path<AttemptId>,
    Lease(token): Lease,
    Json(request): Json<EventsRequest>,
) -> Result<Json<EventsReply>, Problem> {
    request.check().map_err(exceeded)?;
    let now = state.now();
    detached(async move {
        let mut tx = state.db.begin().await?;
        let held = attempts::lock_held(&mut tx, worker.id, attempt, token)
            .await
            .map_err(held_problem)?;
        let reported: Vec<_> = request
            .events
            .iter()
            .map(|event| describe(&held, event))
            .collect();
        let last_seq = attempts::report(&mut tx, &held, &reported, now).await?;
        tx.commit().await?;
        state.wake.publish(Channel::Job(held.job));
        Ok(Json(EventsReply { last_seq }))
    })
    .await
}

fn describe(held: &HeldAttempt, event: &AttemptEvent) -> (u64, &'static str, Value) {
    let (replica, attempt) = (held.ordinal, held.number);
    match &event.event {
        EventKind::Metrics {
            epoch,
            step,
            values,
        } => {
            let data = json!({
                "replica": replica, "attempt": attempt, "epoch": epoch, "step": step, "values": values,
            });
            (event.seq, kind::METRICS, data)
        }
        EventKind::Progress { done, of } => {
            let data = json!({ "replica": replica, "attempt": attempt, "done": done, "of": of });
            (event.seq, kind::PROGRESS, data)
        }
    }
}

/// Keep a checkpoint
///
/// A retry resumes after the last one kept, and its steps are paid to whoever reached it first. Upload the blob before.
#[utoipa::path(
    post, path = "/v1/attempts/{id}/segments", tag = "attempts", request_body = SegmentRequest,
    params(
        ("id" = String, Path, description = "The attempt"),
        ("comptoir-lease-token" = String, Header, description = "Its lease token"),
    ),
    responses(
        (status = 200, body = SegmentReply),
        (status = 401, body = Problem, content_type = "application/problem+json"),
        (status = 403, description = "`worker_revoked`", body = Problem, content_type = "application/problem+json"),
        (status = 404, body = Problem, content_type = "application/problem+json"),
        (
            status = 409, description = "`stale_lease`, `segment_out_of_order` or `checkpoint_not_uploaded`",
            body = Problem, content_type = "application/problem+json",
        ),
        (status = 422, body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn record(
    State(state): State<SchedulerState>,
    Caller(worker): Caller,
    Path(attempt): Path<AttemptId>,
    Lease(token): Lease,
    Json(request): Json<SegmentRequest>,
) -> Result<Json<SegmentReply>, Problem> {
    let now = state.now();
    detached(async move {
        let mut tx = state.db.begin().await?;
        let held = attempts::lock_held(&mut tx, worker.id, attempt, token)
            .await
            .map_err(held_problem)?;
        let segment = segments::record(&mut tx, &held, request.segment, request.checkpoint, now)
            .await
            .map_err(segment_problem)?;
        tx.commit().await?;
        tracing::info!(job = %held.job, %attempt, segment, "checkpoint kept");
        state.wake.publish(Channel::Job(held.job));
        Ok(Json(SegmentReply { segment }))
    })
    .await
}

/// Why a worker may not touch an attempt.
pub(super) fn held_problem(error: HeldError) -> Problem {
    match error {
        HeldError::Unknown => Problem::not_found(),
        HeldError::Stale => Problem::new(
            StatusCode::CONFLICT,
            "stale_lease",
            "The lease on this attempt is gone",
        ),
        HeldError::Database(error) => error.into(),
    }
}

fn segment_problem(error: SegmentError) -> Problem {
    let out_of_order = || {
        Problem::new(
            StatusCode::CONFLICT,
            "segment_out_of_order",
            "This segment does not come next",
        )
    };
    match error {
        SegmentError::NoSegments => out_of_order().detail("The attempt has no segments to come"),
        SegmentError::OutOfOrder { expected } => {
            out_of_order().detail(format!("The next segment is {expected}"))
        }
        SegmentError::NotUploaded => Problem::new(
            StatusCode::CONFLICT,
            "checkpoint_not_uploaded",
            "The checkpoint was not uploaded by this attempt",
        ),
        SegmentError::Database(error) => error.into(),
    }
}
