//! Sends what is due. Several processes may: each takes what no other has. A receiver that is slow, or dead, takes slots of its own
//! kind alone, and holds nobody else up.

use std::time::{Duration, Instant};

use comptoir_domain::webhook::{ANSWER_BYTES_KEPT, ANSWER_BYTES_READ_MAX, Secret};
use comptoir_store::{
    PgTransaction, tenant,
    webhooks::{
        Cause,
        deliveries::DeliveryState,
        sending::{self, Class, DueDelivery, Outcome, Recorded},
    },
};
use reqwest::{Response, StatusCode, header, redirect::Policy};
use time::OffsetDateTime;
use tokio::{
    task::{JoinError, JoinSet},
    time::MissedTickBehavior,
};

use super::{
    ATTEMPT_SECONDS, ATTEMPTS, DISABLED, body,
    guard::{Guard, Refusal},
    open, signature,
};
use crate::{
    AppState,
    auth::keys::random,
    notices::{self, Notice},
};

/// Attempts that a process makes at once at endpoints that are well,
const WELL_AT_ONCE: usize = 64;
/// and at those that are slow, or failed last.
const TROUBLED_AT_ONCE: usize = 32;
/// How long connecting may take.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// An answer that takes longer makes its receiver one of the slow.
const SLOW_FROM: Duration = Duration::from_secs(3);
/// How often is looked for what is due, when nothing ends meanwhile.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Idle connections are kept for a burst, and no longer.
const IDLE_MAX: Duration = Duration::from_secs(10);

/// What posts messages. It follows no redirect, goes through no proxy, keeps no cookie, and connects to what the guard has judged.
#[derive(Debug, Clone)]
pub struct Client(reqwest::Client);

impl Client {
    /// A client that connects to what the guard lets through.
    ///
    /// # Errors
    /// When no TLS backend can be set up.
    pub fn new(guard: &Guard) -> reqwest::Result<Self> {
        let builder = reqwest::Client::builder()
            .user_agent(concat!("comptoir/", env!("CARGO_PKG_VERSION"), " webhooks"))
            .redirect(Policy::none())
            .no_proxy()
            .dns_resolver(guard.clone())
            .connect_timeout(CONNECT_MAX)
            .pool_max_idle_per_host(1)
            .pool_idle_timeout(IDLE_MAX);
        builder.build().map(Self)
    }
}

/// Attempts that are being made.
pub struct Sender {
    state: AppState,
    well: JoinSet<()>,
    troubled: JoinSet<()>,
}

impl Sender {
    /// One that sends nothing yet.
    #[must_use]
    pub fn new(state: AppState) -> Self {
        Self {
            state,
            well: JoinSet::new(),
            troubled: JoinSet::new(),
        }
    }

    /// Begins what is due, as far as there are slots; says how much that was.
    ///
    /// # Errors
    /// When Postgres fails.
    pub async fn begin(&mut self) -> sqlx::Result<usize> {
        let well = take(&self.state, Class::Well, &mut self.well, WELL_AT_ONCE).await?;
        let troubled = take(
            &self.state,
            Class::Troubled,
            &mut self.troubled,
            TROUBLED_AT_ONCE,
        )
        .await?;
        Ok(well + troubled)
    }

    /// Waits until everything that was begun has ended.
    pub async fn finish(&mut self) {
        while !(self.well.is_empty() && self.troubled.is_empty()) {
            self.one_ended().await;
        }
    }

    async fn one_ended(&mut self) {
        let ended = tokio::select! {
            Some(ended) = self.well.join_next() => ended,
            Some(ended) = self.troubled.join_next() => ended,
            else => return,
        };
        broke_off(ended);
    }

    /// Sends for ever. Where much is due the next look comes as soon as there is a slot, and not a second later.
    pub async fn run(mut self) {
        let mut every = tokio::time::interval(LOOK_EVERY);
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let begun = self.begin().await.unwrap_or_else(|error| {
                tracing::warn!(%error, "webhook deliveries that are due are not read; it is tried again");
                0
            });
            if begun == 0 {
                every.tick().await;
                continue;
            }
            tokio::select! {
                () = self.one_ended() => {}
                _ = every.tick() => {}
            }
        }
    }
}

fn broke_off(ended: Result<(), JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "an attempt at a webhook delivery broke off; its lease runs out");
    }
}

async fn take(
    state: &AppState,
    class: Class,
    running: &mut JoinSet<()>,
    at_once: usize,
) -> sqlx::Result<usize> {
    while let Some(ended) = running.try_join_next() {
        broke_off(ended);
    }
    let room = i64::try_from(at_once.saturating_sub(running.len())).unwrap_or(0);
    if room == 0 {
        return Ok(0);
    }
    let mut connection = state.db.acquire().await?;
    let due = sending::take_due(&mut connection, class, state.now(), room).await?;
    drop(connection);
    let taken = due.len();
    for delivery in due {
        let state = state.clone();
        running.spawn(async move { attempt(&state, &delivery).await });
    }
    Ok(taken)
}

/// Sends once, and writes down what came of it.
async fn attempt(state: &AppState, due: &DueDelivery) {
    let outcome = post(state, due).await;
    metrics::histogram!(ATTEMPT_SECONDS).record(f64::from(outcome.latency_ms) / 1_000.0);
    match write_down(state, due, &outcome).await {
        Ok(recorded) => tell(due, &outcome, recorded.as_ref()),
        Err(error) => {
            tracing::error!(delivery.id = %due.id, %error, "what came of a webhook delivery is not written down; it is sent again");
        }
    }
}

async fn write_down(
    state: &AppState,
    due: &DueDelivery,
    outcome: &Outcome,
) -> sqlx::Result<Option<Recorded>> {
    let now = state.now();
    let jitter = u16::from_le_bytes(random::<2>()) % 1_001;
    let mut tx = tenant::begin(&state.db, (due.account, None)).await?;
    let recorded = sending::record(&mut tx, due, outcome, jitter, now).await?;
    if let Some((cause, since)) = recorded.as_ref().and_then(|it| it.disabled) {
        notify(state, &mut tx, due, (cause, since), now).await?;
    }
    tx.commit().await?;
    Ok(recorded)
}

async fn notify(
    state: &AppState,
    tx: &mut PgTransaction<'_>,
    due: &DueDelivery,
    (cause, since): (Cause, OffsetDateTime),
    now: OffsetDateTime,
) -> sqlx::Result<()> {
    let notice = Notice::WebhookDisabled {
        endpoint: due.endpoint.to_string(),
        url: due.url.clone(),
        gone: cause == Cause::Gone,
        since,
    };
    notices::write(tx, &state.keys, due.account, &notice, now).await
}

/// One line for each attempt that failed; those that did not are many.
fn tell(due: &DueDelivery, outcome: &Outcome, recorded: Option<&Recorded>) {
    let Some(recorded) = recorded else {
        metrics::counter!(ATTEMPTS, "outcome" => "lost").increment(1);
        tracing::warn!(delivery.id = %due.id, "a webhook delivery took longer than its lease, or its endpoint is gone");
        return;
    };
    let word = match recorded.state {
        DeliveryState::Delivered => "delivered",
        DeliveryState::Pending => "retried",
        DeliveryState::Failed | DeliveryState::Cancelled => "failed",
    };
    metrics::counter!(ATTEMPTS, "outcome" => word).increment(1);
    let (attempt, latency_ms, status) = (recorded.number, outcome.latency_ms, outcome.status);
    match outcome.error {
        None => {
            tracing::debug!(delivery.id = %due.id, endpoint.id = %due.endpoint, attempt, latency_ms, "webhook delivered");
        }
        Some(error) => {
            tracing::warn!(delivery.id = %due.id, endpoint.id = %due.endpoint, attempt, latency_ms, status, error, "webhook not delivered");
        }
    }
    if let Some((cause, since)) = recorded.disabled {
        metrics::counter!(DISABLED, "cause" => cause.as_str()).increment(1);
        tracing::warn!(endpoint.id = %due.endpoint, cause = cause.as_str(), %since, "webhook endpoint disabled");
    }
}

/// What a receiver answered.
struct Answer {
    status: StatusCode,
    beginning: Vec<u8>,
}

async fn post(state: &AppState, due: &DueDelivery) -> Outcome {
    let (started_at, started) = (state.now(), Instant::now());
    let posted =
        tokio::time::timeout(state.webhooks.attempt_max, send(state, due, started_at)).await;
    let posted = posted.unwrap_or(Err("timeout"));
    let taken = started.elapsed();
    let (answer, error) = match posted {
        Ok(answer) => {
            let error = judge(answer.status);
            (Some(answer), error)
        }
        Err(error) => (None, Some(error)),
    };
    let status = answer.as_ref().map(|answer| answer.status);
    Outcome {
        started_at,
        latency_ms: i32::try_from(taken.as_millis()).unwrap_or(i32::MAX),
        is_slow: taken >= SLOW_FROM,
        status: status.and_then(|status| i16::try_from(status.as_u16()).ok()),
        error,
        answer: answer.map(|answer| answer.beginning),
        is_gone: status == Some(StatusCode::GONE),
    }
}

/// Why an answer counts as a failure.
fn judge(status: StatusCode) -> Option<&'static str> {
    if status.is_success() {
        None
    } else if status.is_redirection() {
        Some("redirect")
    } else if status == StatusCode::GONE {
        Some("gone")
    } else {
        Some("status")
    }
}

async fn send(
    state: &AppState,
    due: &DueDelivery,
    now: OffsetDateTime,
) -> Result<Answer, &'static str> {
    let url = state.webhooks.guard.check(&due.url).await;
    let url = url.map_err(Refusal::code)?;
    let message = body::message(&due.event).map_err(|error| {
        tracing::error!(
            error = &error as &dyn std::error::Error,
            "an event cannot be put into words"
        );
        "unreadable_event"
    })?;
    let secrets = secrets(state, due).ok_or("unreadable_secret")?;
    let (id, timestamp) = (due.event.id.to_string(), now.unix_timestamp());
    let signature = signature(&secrets, &id, timestamp, &message);
    let request = state.webhooks.client.0.post(url);
    let request = request
        .header(header::CONTENT_TYPE, "application/json")
        .header("webhook-id", id)
        .header("webhook-timestamp", timestamp)
        .header("webhook-signature", signature)
        .body(message);
    let response = request.send().await.map_err(|error| word_of(&error))?;
    Ok(read(response).await)
}

/// The secret, and the one before while it holds.
fn secrets(state: &AppState, due: &DueDelivery) -> Option<Vec<Secret>> {
    let sealed = [Some(&due.secret), due.previous_secret.as_ref()];
    let opened = sealed
        .into_iter()
        .flatten()
        .map(|sealed| open(&state.keys, due.endpoint, sealed));
    opened.collect::<Result<_, _>>().ok()
}

/// The beginning of an answer. What breaks off, or goes on and on, was an answer nonetheless: its status is what counts.
async fn read(mut response: Response) -> Answer {
    let status = response.status();
    let (mut beginning, mut read) = (Vec::new(), 0_usize);
    while read < ANSWER_BYTES_READ_MAX {
        let Ok(Some(chunk)) = response.chunk().await else {
            break;
        };
        read = read.saturating_add(chunk.len());
        let room = ANSWER_BYTES_KEPT.saturating_sub(beginning.len());
        beginning.extend(chunk.iter().take(room));
    }
    Answer { status, beginning }
}

/// The causes may name addresses of ours, and are left out.
fn word_of(error: &reqwest::Error) -> &'static str {
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        if let Some(refusal) = inner.downcast_ref::<Refusal>() {
            return refusal.code();
        }
        cause = inner.source();
    }
    if error.is_timeout() {
        "timeout"
    } else if error.is_connect() {
        "connect"
    } else {
        "broken_off"
    }
}
