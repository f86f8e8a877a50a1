//! The event stream of a job, resumed where it broke off.

use std::{ops::ControlFlow, time::Duration};

use anyhow::Context as _;
use comptoir_domain::job::JobState;
use futures::TryStreamExt as _;
use reqwest::Method;
use serde_json::Value;

use super::http::{Api, ApiError};

/// Longest event that is read; the service sends far shorter ones.
const EVENT_BYTES_MAX: usize = 1 << 20;
/// Pause before a broken stream is resumed.
const RESUME_AFTER: Duration = Duration::from_secs(1);
/// Broken streams in a row without one event between them before we give up.
const BREAKS_MAX: u32 = 30;

/// One thing that happened to a job.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// Gapless number, from 1.
    pub seq: u64,
    /// What kind of thing.
    pub kind: String,
    /// Its facts.
    pub data: Value,
}

/// Gives every event of a job to `on_event`, from the first after `after` until it breaks, or to the last.
///
/// # Errors
/// When the job is not there, or the service stays away.
pub async fn follow(
    api: &Api,
    job: &str,
    mut after: u64,
    mut on_event: impl FnMut(&Event) -> ControlFlow<()>,
) -> anyhow::Result<()> {
    let mut breaks = 0;
    loop {
        let before = after;
        match read(api, job, &mut after, &mut on_event).await {
            Ok(()) => return Ok(()),
            Err(Break::Refused(
                error @ (ApiError::Problem {
                    status: 400..=499, ..
                }
                | ApiError::SignedOut { .. }
                | ApiError::Unrenewed(_)),
            )) => return Err(error.into()),
            Err(Break::Refused(error)) if breaks >= BREAKS_MAX => return Err(error.into()),
            Err(Break::Cut) if breaks >= BREAKS_MAX => {
                anyhow::bail!("the event stream keeps breaking off")
            }
            Err(_) => {}
        }
        breaks = if after > before { 0 } else { breaks + 1 };
        tokio::time::sleep(RESUME_AFTER).await;
    }
}

enum Break {
    Refused(ApiError),
    Cut,
}

async fn read(
    api: &Api,
    job: &str,
    after: &mut u64,
    on_event: &mut impl FnMut(&Event) -> ControlFlow<()>,
) -> Result<(), Break> {
    let request = api
        .request(Method::GET, &format!("/v1/jobs/{job}/events"))
        .header("last-event-id", after.to_string());
    let response = api.send(request).await.map_err(Break::Refused)?;
    let mut stream = response.bytes_stream();
    let mut buffer = Vec::new();
    while let Ok(Some(chunk)) = stream.try_next().await {
        buffer.extend_from_slice(&chunk);
        while let Some(event) = take_event(&mut buffer).map_err(|_| Break::Cut)? {
            *after = event.seq;
            let last = JobState::parse(&event.kind).is_some_and(JobState::is_final);
            if on_event(&event).is_break() || last {
                return Ok(());
            }
        }
        if buffer.len() > EVENT_BYTES_MAX {
            return Err(Break::Cut);
        }
    }
    Err(Break::Cut)
}

/// Takes the first whole event of a job from the buffer.
fn take_event(buffer: &mut Vec<u8>) -> anyhow::Result<Option<Event>> {
    while let Some(message) = take_message(buffer)? {
        if let Some(id) = message.id {
            return Ok(Some(Event {
                seq: id.parse().context("an event without a number")?,
                kind: message.kind,
                data: message.data,
            }));
        }
    }
    Ok(None)
}

/// A server-sent event.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    /// Its identifier, where it has one.
    pub id: Option<String>,
    /// What it is called.
    pub kind: String,
    /// What it says.
    pub data: Value,
}

/// Gives every event of an answer to `on_message`, until that breaks or the answer ends.
///
/// # Errors
/// When the answer breaks off, or is no stream of events.
pub async fn each(
    response: reqwest::Response,
    mut on_message: impl FnMut(Message) -> ControlFlow<()>,
) -> anyhow::Result<()> {
    let mut stream = response.bytes_stream();
    let mut buffer = Vec::new();
    while let Some(chunk) = stream.try_next().await? {
        buffer.extend_from_slice(&chunk);
        while let Some(message) = take_message(&mut buffer)? {
            if on_message(message).is_break() {
                return Ok(());
            }
        }
        anyhow::ensure!(buffer.len() <= EVENT_BYTES_MAX, "an event without an end");
    }
    Ok(())
}

/// Takes the first whole event from the buffer; comments and `retry` are skipped.
fn take_message(buffer: &mut Vec<u8>) -> anyhow::Result<Option<Message>> {
    while let Some(end) = buffer.windows(2).position(|pair| pair == b"\n\n") {
        let block: Vec<u8> = buffer.drain(..end + 2).collect();
        let text = std::str::from_utf8(&block)?;
        let field = |name: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
                .map(str::trim_start)
        };
        if let Some(data) = field("data") {
            return Ok(Some(Message {
                id: field("id").map(str::to_owned),
                kind: field("event").unwrap_or("message").to_owned(),
                data: serde_json::from_str(data).context("an event that is not JSON")?,
            }));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_taken_whole_and_comments_skipped() {
        let mut buffer =
            b"retry: 3000\n\n: heartbeat\n\nid: 4\nevent: leased\ndata: {\"a\":1}\n\nid: 5\nev"
                .to_vec();
        let event = take_event(&mut buffer).unwrap().unwrap();
        assert_eq!(
            (event.seq, event.kind.as_str(), &event.data["a"]),
            (4, "leased", &serde_json::json!(1))
        );
        assert_eq!(take_event(&mut buffer).unwrap(), None);
        assert_eq!(buffer, b"id: 5\nev");
    }
}
