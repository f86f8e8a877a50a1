//! The exchange: what a worker reports is taken, then it gets leases and orders, at once or when there are any.

use std::time::Duration;

use axum::extract::State;
use comptoir_domain::{
    id::{AttemptId, LeaseToken},
    policy::Standing,
};
use comptoir_http::{Problem, extract::Json};
use comptoir_store::{
    attempts::{self, Orders},
    queue::Leased,
    wake::{Channel, Subscription},
    workers::Worker,
};
use comptoir_wire::{
    attempt::Checkpoint,
    work::{BlobSize, Lease, Limits, RevealOrder, WorkReply, WorkRequest},
};
use tokio::time::Instant;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{detached, exceeded, reports};
use crate::{
    BLOB_BYTES_MAX, SchedulerState,
    auth::{self, Caller},
    groups::{Claim, Claimed, NotClaimed},
    metrics::{LEASES, POLLS},
};

/// How long a held request waits between two looks when nothing wakes it.
const POLL: Duration = Duration::from_secs(1);
/// How often a claim is tried again when another worker of the owner was faster.
const RACES_MAX: u32 = 3;

pub(super) fn router() -> OpenApiRouter<SchedulerState> {
    OpenApiRouter::new().routes(routes!(exchange))
}

/// Report and ask for work
///
/// The one loop of a worker. The reply comes at once when it has acks, leases or orders, else when one appears, at the
/// latest after `wait_ms`.
#[utoipa::path(
    post, path = "/v1/work", tag = "work", request_body = WorkRequest,
    responses(
        (status = 200, body = WorkReply),
        (status = 401, body = Problem, content_type = "application/problem+json"),
        (status = 403, description = "`worker_revoked`, `worker_barred`", body = Problem, content_type = "application/problem+json"),
        (status = 422, body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn exchange(
    State(state): State<SchedulerState>,
    Caller(worker): Caller,
    Json(request): Json<WorkRequest>,
) -> Result<Json<WorkReply>, Problem> {
    request.check().map_err(exceeded)?;
    if worker.standing == Standing::Barred && asks_only(&request) {
        return Err(auth::barred());
    }
    // Subscribed before the first look, so that nothing is missed between a look and the wait after it.
    let mut work = state.wake.subscribe(Channel::Work);
    let mut orders = state.wake.subscribe(Channel::Worker(worker.id));
    let until = Instant::now() + Duration::from_millis(u64::from(request.wait_ms));
    let wanted = request.wanted;
    let taken = detached(reports::take(state.clone(), worker.clone(), request)).await?;
    loop {
        let seen = detached(look(
            state.clone(),
            worker.clone(),
            taken.open.clone(),
            wanted,
        ))
        .await?;
        let left = until.saturating_duration_since(Instant::now());
        let silent = taken.acks.is_empty() && seen.is_empty();
        if !silent || left.is_zero() || state.closing.is_cancelled() {
            return Ok(Json(WorkReply {
                acks: taken.acks,
                ..seen.into_reply()
            }));
        }
        wait(&state, (&mut work, &mut orders), left.min(POLL), wanted > 0).await;
    }
}

/// Does the worker want leases, and nothing else? One that is barred still reports, and shows what it sealed.
fn asks_only(request: &WorkRequest) -> bool {
    request.wanted > 0
        && request.held.is_empty()
        && request.seals.is_empty()
        && request.reveals.is_empty()
        && request.failures.is_empty()
}

async fn wait(
    state: &SchedulerState,
    (work, orders): (&mut Subscription, &mut Subscription),
    at_most: Duration,
    wants_work: bool,
) {
    let _polling = Polling::begin();
    tokio::select! {
        () = work.wait(at_most), if wants_work => {}
        () = orders.wait(at_most) => {}
        () = state.closing.cancelled() => {}
    }
}

/// Counts a held request, to its end however it ends.
struct Polling;

impl Polling {
    fn begin() -> Self {
        metrics::gauge!(POLLS).increment(1.0);
        Self
    }
}

impl Drop for Polling {
    fn drop(&mut self) {
        metrics::gauge!(POLLS).decrement(1.0);
    }
}

/// What there is for a worker at one moment.
struct Seen {
    leases: Vec<Lease>,
    orders: Orders,
}

async fn look(
    state: SchedulerState,
    worker: Worker,
    held: Vec<(AttemptId, LeaseToken)>,
    wanted: u16,
) -> Result<Seen, Problem> {
    let leases = if wanted == 0 {
        Vec::new()
    } else {
        claim(&state, &worker, wanted).await?
    };
    let orders = if held.is_empty() {
        Orders::default()
    } else {
        attempts::orders(&mut *state.db.acquire().await?, worker.id, &held).await?
    };
    Ok(Seen { leases, orders })
}

async fn claim(
    state: &SchedulerState,
    worker: &Worker,
    wanted: u16,
) -> Result<Vec<Lease>, Problem> {
    for _ in 0..RACES_MAX {
        let claim = Claim {
            worker: worker.clone(),
            wanted,
            now: state.now(),
        };
        let Claimed { leased, sizes } = match state.groups.claim(claim).await {
            Ok(claimed) => claimed,
            Err(NotClaimed::Raced) => continue,
            Err(NotClaimed::Failed(problem)) => return Err(problem),
        };
        for leased in &leased {
            tracing::info!(
                job = %leased.job, attempt = %leased.attempt, worker = %worker.id,
                resumed_at_step = leased.resume.map(|checkpoint| checkpoint.step), "replica leased"
            );
            state.wake.publish(Channel::Job(leased.job));
        }
        metrics::counter!(LEASES).increment(leased.len() as u64);
        let size = |sha256| BlobSize {
            sha256,
            bytes: sizes.get(&sha256).copied().unwrap_or_default(),
        };
        return Ok(leased
            .into_iter()
            .map(|leased| to_lease(leased, size))
            .collect());
    }
    Ok(Vec::new())
}

fn to_lease(leased: Leased, size: impl Fn(comptoir_domain::digest::Sha256) -> BlobSize) -> Lease {
    Lease {
        attempt_id: leased.attempt,
        lease_token: leased.token,
        expires_at: leased.expires_at,
        deadline_at: leased.deadline_at,
        blobs: leased.spec.blobs().into_iter().map(size).collect(),
        job: leased.spec,
        resume: leased.resume.map(|checkpoint| Checkpoint {
            segment: checkpoint.segment,
            step: checkpoint.step,
            sha256: checkpoint.sha256,
            bytes: checkpoint.bytes,
        }),
        until_step: leased.until_step,
        limits: Limits {
            memory_bytes: leased.memory_bytes,
            blob_bytes_max: BLOB_BYTES_MAX,
        },
    }
}

impl Seen {
    fn is_empty(&self) -> bool {
        self.leases.is_empty() && self.orders.reveal.is_empty() && self.orders.cancel.is_empty()
    }

    fn into_reply(self) -> WorkReply {
        let reveal = self.orders.reveal.into_iter();
        WorkReply {
            leases: self.leases,
            acks: Vec::new(),
            reveal: reveal
                .map(|(attempt_id, reveal_by)| RevealOrder {
                    attempt_id,
                    reveal_by,
                })
                .collect(),
            cancel: self.orders.cancel,
        }
    }
}
