//! `/v1/jobs/{id}/events`: what happens to a job, as it happens (server-sent events).

use std::{collections::VecDeque, convert::Infallible, time::Duration};

use axum::{
    extract::State,
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
};
use comptoir_domain::{
    id::{AccountId, JobId},
    job::JobState,
};
use comptoir_store::{
    events::{self, JobEvent},
    tenant,
    wake::{Channel, Subscription},
};
use futures::stream;
use serde_json::{Value, json};
use time::format_description::well_known::Rfc3339;
use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::Instant,
};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    AppState, Problem,
    auth::{Caller, needs},
    extract::Path,
};

/// Pause before a client connects again.
const RETRY: Duration = Duration::from_secs(3);
/// How often a quiet stream shows that it lives.
const HEARTBEAT_EVERY: Duration = Duration::from_secs(15);
/// How often a stream looks for events, whether it is woken or not.
const POLL_EVERY: Duration = Duration::from_secs(1);
/// A stream ends after this long; the client resumes it with credentials that are checked again.
const STREAM_MAX: Duration = Duration::from_hours(1);
/// Streams of this process at once.
const STREAMS_AT_ONCE: usize = 1_000;
/// Events that are read at once.
const BATCH: i64 = 100;

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
const ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

static STREAMS: Semaphore = Semaphore::const_new(STREAMS_AT_ONCE);

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(follow_job))
}

/// One event of the stream.
#[derive(ToSchema)]
#[schema(as = JobEvent)]
#[expect(dead_code, reason = "it only describes the stream")]
struct EventBody {
    /// The number of the event within the job: 1, 2, 3 …
    id: String,
    /// `queued`, `leased`, `metrics`, `checkpoint`, `attempt_failed`, `verifying`, `completed`, `failed`, `cancelled`,
    /// `expired`; more may come.
    event: String,
    /// `created_at` is in each.
    #[schema(value_type = Object)]
    data: Value,
}

/// Follows a job: its events from the first, or from the one after `Last-Event-ID`, until it has ended. A stream
/// whose last event you have answers 204.
#[utoipa::path(
    get, path = "/v1/jobs/{id}/events", tag = "jobs", security(("session" = []), ("api_key" = ["jobs:read"])),
    params(("id" = String, Path), ("Last-Event-ID" = Option<u64>, Header)),
    responses(
        (status = 200, body = EventBody, content_type = "text/event-stream"),
        (status = 204, description = "The job has ended, and no event is left"),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn follow_job(
    State(state): State<AppState>,
    caller: Caller<needs::JobsRead>,
    Path(id): Path<JobId>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let after = last_event_id(&headers)?;
    // Subscribed before the first look, so that nothing falls between.
    let woken = state.wake.subscribe(Channel::Job(id));
    let progress = events::progress(&mut *caller.read(&state).await?, caller.account, id).await?;
    let progress = progress.ok_or_else(Problem::not_found)?;
    if progress.ended && progress.last_seq <= after {
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    let permit = STREAMS
        .try_acquire()
        .map_err(|_| Problem::unavailable("Too many streams at once"))?;
    let feed = Feed {
        state,
        account: caller.account,
        job: id,
        after,
        woken,
        read: VecDeque::new(),
        ends_at: Instant::now() + STREAM_MAX,
        is_open: true,
        _permit: permit,
    };
    let first = stream::once(async { Ok::<_, Infallible>(Event::default().retry(RETRY)) });
    let rest = stream::unfold(feed, |mut feed| async move {
        let event = feed.next().await?;
        Some((Ok(event), feed))
    });
    let alive = KeepAlive::new().interval(HEARTBEAT_EVERY).text("heartbeat");
    let sse = Sse::new(futures::StreamExt::chain(first, rest)).keep_alive(alive);
    let headers = [
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
        (ACCEL_BUFFERING, HeaderValue::from_static("no")),
    ];
    // Ours come last: `Sse` sets a weaker cache header of its own.
    let mut response = sse.into_response();
    for (name, value) in headers {
        response.headers_mut().insert(name, value);
    }
    Ok(response)
}

fn last_event_id(headers: &HeaderMap) -> Result<i64, Problem> {
    let Some(value) = headers.get(LAST_EVENT_ID) else {
        return Ok(0);
    };
    let number = value.to_str().ok().and_then(|it| it.parse::<u32>().ok());
    number
        .map(i64::from)
        .ok_or_else(|| Problem::malformed("Last-Event-ID is not the number of an event"))
}

/// One client's place in a job's events.
struct Feed {
    state: AppState,
    account: AccountId,
    job: JobId,
    /// The last event that was sent.
    after: i64,
    woken: Subscription,
    /// Events that were read and not sent yet.
    read: VecDeque<JobEvent>,
    ends_at: Instant,
    is_open: bool,
    _permit: SemaphorePermit<'static>,
}

impl Feed {
    /// The next event. `None` after the last one, and when the database fails: the client resumes.
    async fn next(&mut self) -> Option<Event> {
        while self.is_open && Instant::now() < self.ends_at {
            if let Some(event) = self.read.pop_front() {
                self.after = event.seq;
                self.is_open = !JobState::parse(&event.kind).is_some_and(JobState::is_final);
                return Some(to_event(event));
            }
            match self.look().await {
                Ok(true) => {}
                Ok(false) => return None,
                Err(error) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, job.id = %self.job, "event stream broken off");
                    return None;
                }
            }
        }
        None
    }

    /// Reads what is new, or waits for it. False when nothing will come any more.
    async fn look(&mut self) -> sqlx::Result<bool> {
        let mut connection = tenant::read(&self.state.db, (self.account, None)).await?;
        let read = events::after(&mut connection, self.job, self.after, BATCH).await?;
        self.read = read.into();
        if !self.read.is_empty() {
            return Ok(true);
        }
        let progress = events::progress(&mut connection, self.account, self.job).await?;
        drop(connection);
        let Some(progress) = progress else {
            return Ok(false);
        };
        if progress.last_seq <= self.after {
            if progress.ended {
                return Ok(false);
            }
            self.woken.wait(POLL_EVERY).await;
        }
        Ok(true)
    }
}

fn to_event(event: JobEvent) -> Event {
    let created_at = event.created_at.format(&Rfc3339).unwrap_or_default();
    let mut data = event.data;
    if let Some(fields) = data.as_object_mut() {
        fields.insert("created_at".to_owned(), json!(created_at));
    }
    // JSON text has no line breaks, so it is one line of the stream.
    Event::default()
        .id(event.seq.to_string())
        .event(event.kind)
        .data(data.to_string())
}
