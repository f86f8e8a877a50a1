//! The stream that a worker takes calls of models from, and the blobs of the versions that it hosts.

use std::time::Duration;

use axum::{
    extract::{
        State,
        ws::{Message, WebSocket, WebSocketUpgrade, rejection::WebSocketUpgradeRejection},
    },
    http::{HeaderMap, StatusCode},
    response::Response,
};
use comptoir_domain::{digest::Sha256, policy::Standing};
use comptoir_http::{Problem, extract::Path};
use comptoir_store::{model_versions, queue, workers::Worker};
use comptoir_wire::calls::{
    self, FRAMES_MAX, HOSTED_MAX, MESSAGE_BYTES_MAX, SUBPROTOCOL, TICKET_HEADER, ToWorker,
};
use futures::{SinkExt as _, StreamExt as _, stream::SplitSink};
use tokio::time::{Instant, MissedTickBehavior};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::blobs::serve;
use crate::{
    SchedulerState,
    auth::{self, Caller},
    calls::{Connection, Frames, Ticket},
};

/// A worker from which nothing was heard for this long is gone. It sends pings more often.
const SILENCE_MAX: Duration = Duration::from_secs(30);
/// How often it is looked whether a worker still may.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How long a worker may take to read what is written to it.
const WRITE_TIMEOUT: Duration = Duration::from_secs(20);

pub(super) fn router() -> OpenApiRouter<SchedulerState> {
    OpenApiRouter::new()
        .routes(routes!(stream))
        .routes(routes!(blob))
}

/// Take calls
///
/// A WebSocket with the subprotocol `comptoir-calls-1`. Its binary messages are postcard documents: orders, calls and cancellations to the
/// worker, what it hosts and its answers from it. A worker pings it every ten seconds; a second stream of a worker replaces the first.
#[utoipa::path(
    get, path = "/v1/calls", tag = "calls",
    responses(
        (status = 101, description = "The stream is open"),
        (status = 400, body = Problem, content_type = "application/problem+json"),
        (status = 401, body = Problem, content_type = "application/problem+json"),
        (status = 403, description = "`worker_revoked`, `worker_barred`", body = Problem, content_type = "application/problem+json"),
        (status = 426, description = "`upgrade_required`", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn stream(
    State(state): State<SchedulerState>,
    Caller(worker): Caller,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, Problem> {
    if worker.standing == Standing::Barred {
        return Err(auth::barred());
    }
    let upgrade = upgrade.map_err(|rejection| not_upgraded(&rejection))?;
    let upgrade = upgrade
        .protocols([SUBPROTOCOL])
        .max_message_size(MESSAGE_BYTES_MAX)
        .max_frame_size(MESSAGE_BYTES_MAX);
    if upgrade.selected_protocol().is_none() {
        let detail = format!("The subprotocol is `{SUBPROTOCOL}`");
        return Err(upgrade_required().detail(detail));
    }
    Ok(upgrade.on_upgrade(move |socket| attend(state, worker, socket)))
}

fn not_upgraded(rejection: &WebSocketUpgradeRejection) -> Problem {
    upgrade_required().detail(rejection.body_text())
}

fn upgrade_required() -> Problem {
    Problem::new(
        StatusCode::UPGRADE_REQUIRED,
        "upgrade_required",
        "The route is a WebSocket",
    )
}

/// The life of a stream.
async fn attend(state: SchedulerState, worker: Worker, socket: WebSocket) {
    let (connection, frames) = state.calls.connect(worker.id, worker.account);
    tracing::info!(worker = %worker.id, "a worker takes calls");
    let (sink, mut messages) = socket.split();
    let mut writing = tokio::spawn(write(sink, frames));
    let mut look = tokio::time::interval(LOOK_EVERY);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut heard_at = Instant::now();
    let why = loop {
        tokio::select! {
            message = messages.next() => match message {
                Some(Ok(message)) => {
                    heard_at = Instant::now();
                    if let Err(why) = hear(&state, &connection, &message) {
                        break why;
                    }
                }
                Some(Err(error)) => break error.to_string(),
                None => break "it closed the stream".to_owned(),
            },
            _ = look.tick() => match may_go_on(&state, &worker).await {
                Ok(()) if heard_at.elapsed() < SILENCE_MAX => {}
                Ok(()) => break "it fell silent".to_owned(),
                Err(why) => break why,
            },
            _ = &mut writing => break "a newer stream took its place, or it does not read".to_owned(),
            () = state.closing.cancelled() => break "the service closes".to_owned(),
        }
    };
    writing.abort();
    state.calls.disconnect(&connection);
    tracing::info!(worker = %worker.id, why, "a worker takes no more calls");
}

/// Takes what a worker says; an error ends the stream.
fn hear(state: &SchedulerState, connection: &Connection, message: &Message) -> Result<(), String> {
    let frames = match message {
        Message::Binary(frames) => frames,
        Message::Ping(_) | Message::Pong(_) => return Ok(()),
        Message::Text(_) => return Err("a text is no frame".to_owned()),
        Message::Close(_) => return Err("it closed the stream".to_owned()),
    };
    let frames = calls::unpack(frames).map_err(|error| error.to_string())?;
    for frame in frames {
        if let calls::FromWorker::Hosting(hosting) = &frame
            && hosting.loaded.len() > HOSTED_MAX
        {
            return Err("it hosts more versions than anybody may".to_owned());
        }
        state.calls.take(connection, frame);
    }
    Ok(())
}

/// A worker that was taken out or barred meanwhile takes no more calls.
async fn may_go_on(state: &SchedulerState, worker: &Worker) -> Result<(), String> {
    match state.groups.workers.find(worker.id).await {
        Ok(Some(now)) if now.revoked => Err("it was taken out of service".to_owned()),
        Ok(Some(now)) if now.standing == Standing::Barred => Err("it was barred".to_owned()),
        Ok(None) => Err("it is not known any more".to_owned()),
        // Where it failed, whether it may is not known now: it is looked again.
        Ok(Some(_)) | Err(_) => Ok(()),
    }
}

/// Writes frames, those that wait together as one message.
async fn write(mut sink: SplitSink<WebSocket, Message>, mut frames: Frames) {
    let mut waiting = Vec::with_capacity(FRAMES_MAX);
    while frames.recv_many(&mut waiting, FRAMES_MAX).await > 0 {
        for message in messages(&mut waiting) {
            let sending = sink.send(Message::Binary(message.into()));
            match tokio::time::timeout(WRITE_TIMEOUT, sending).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => return,
            }
        }
    }
}

/// Frames as messages, each as large as it may be.
fn messages(frames: &mut Vec<ToWorker>) -> Vec<Vec<u8>> {
    let (mut messages, mut together, mut bytes) = (Vec::new(), Vec::new(), 0);
    for frame in frames.drain(..) {
        let size = match &frame {
            ToWorker::Call(call) => call.len(),
            ToWorker::Host(order) => order.ticket.len(),
            ToWorker::Cancel(_) => 0,
        };
        // What a frame has beside its bytes is far below this.
        let size = size + 256;
        if bytes + size > MESSAGE_BYTES_MAX && !together.is_empty() {
            messages.push(calls::pack(&std::mem::take(&mut together)));
            bytes = 0;
        }
        bytes += size;
        together.push(frame);
    }
    messages.push(calls::pack(&together));
    messages
}

/// Fetch a blob of a hosted version
///
/// The program or the weights of a version that the worker was told to host, by the ticket of that order.
#[utoipa::path(
    get, path = "/v1/calls/blobs/{sha256}", tag = "calls",
    params(
        ("sha256" = String, Path, description = "The blob"),
        ("comptoir-host-ticket" = String, Header, description = "The ticket of the order"),
        ("range" = Option<String>, Header, description = "`bytes=FROM-` or `bytes=FROM-TO`, to go on after a broken download"),
    ),
    responses(
        (status = 200, description = "All bytes", content_type = "application/octet-stream"),
        (status = 206, description = "The bytes of the range", content_type = "application/octet-stream"),
        (status = 401, body = Problem, content_type = "application/problem+json"),
        (status = 403, description = "`worker_revoked`, `no_ticket`", body = Problem, content_type = "application/problem+json"),
        (status = 404, body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn blob(
    State(state): State<SchedulerState>,
    Caller(worker): Caller,
    Path(sha256): Path<Sha256>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let ticket = headers.get(TICKET_HEADER).and_then(|it| it.to_str().ok());
    let ticket = ticket.and_then(|it| Ticket::read(it, &state.keys, state.now()));
    let ticket = ticket
        .filter(|it| it.worker == worker.id)
        .ok_or_else(no_ticket)?;
    let mut conn = state.db.acquire().await?;
    let version = model_versions::find_hosted(&mut conn, ticket.version).await?;
    let manifest = version.ok_or_else(Problem::not_found)?.manifest;
    if !manifest.hosted().contains(&sha256) {
        return Err(Problem::not_found());
    }
    let sizes = queue::blob_sizes(&mut conn, [sha256]).await?;
    drop(conn);
    let bytes = *sizes.get(&sha256).ok_or_else(Problem::not_found)?;
    serve(&state, (sha256, bytes), &headers).await
}

fn no_ticket() -> Problem {
    Problem::new(
        StatusCode::FORBIDDEN,
        "no_ticket",
        "The worker was not told to host this, or too long ago",
    )
}
