//! What a running attempt tells the server while it runs: events in order, and checkpoints.

use std::{collections::BTreeMap, time::Instant};

use comptoir_wire::{
    EVENTS_MAX,
    attempt::{AttemptEvent, EventKind, EventsRequest, SegmentRequest},
    heartbeat::Held,
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{
    client::{CallError, Client},
    transfer::{self, GaveUp, insist},
};
use crate::engine::{EpochMetrics, Segment};

/// How often a checkpoint is uploaded again that the server says it lacks.
const MISSING_MAX: u32 = 3;
/// Shortest time between two progress events.
const PROGRESS_EVERY_MS: u64 = 1_000;
/// Progress is told at most once in this part of the time that an attempt has run, so that no attempt, however long,
/// runs out of events.
const PROGRESS_PART: u64 = 500;

/// One side of an attempt's reports.
#[derive(Debug, Clone, Copy)]
pub struct Stream<'a> {
    /// Whom to tell.
    pub client: &'a Client,
    /// About which attempt.
    pub held: Held,
    /// Ends it; is ended by a server that says that the lease is gone.
    pub cancel: &'a CancellationToken,
}

impl Stream<'_> {
    /// Sends events until there are no more.
    pub async fn events(&self, mut events: mpsc::Receiver<EventKind>) {
        let mut seq = 0;
        while let Some(first) = events.recv().await {
            let mut batch = vec![first];
            while batch.len() < EVENTS_MAX
                && let Ok(event) = events.try_recv()
            {
                batch.push(event);
            }
            let numbered = newest_progress(batch).into_iter().map(|event| {
                seq += 1;
                AttemptEvent { seq, event }
            });
            let request = EventsRequest {
                events: numbered.collect(),
            };
            let sent = insist(self.cancel, "reporting events", || {
                self.client.report(self.held, &request)
            });
            match sent.await {
                Ok(_) => {}
                Err(gave_up) if self.is_over(&gave_up) => return,
                // They are for show: the result does not depend on them.
                Err(GaveUp::Refused(error)) => {
                    tracing::warn!(attempt = %self.held.attempt_id, %error, "events were not taken");
                }
                Err(GaveUp::Cancelled) => return,
            }
        }
    }

    /// Uploads checkpoints and reports them until there are no more.
    pub async fn segments(&self, mut segments: mpsc::Receiver<Segment>) {
        let mut is_open = true;
        while let Some(segment) = segments.recv().await {
            let index = segment.segment;
            if is_open {
                match self.keep(&segment).await {
                    Ok(()) => {
                        tracing::info!(attempt = %self.held.attempt_id, segment = index, "checkpoint kept");
                    }
                    Err(gave_up) if self.is_over(&gave_up) => is_open = false,
                    Err(gave_up) => {
                        is_open = false;
                        tracing::warn!(
                            attempt = %self.held.attempt_id, segment = index, ?gave_up,
                            "a checkpoint was not taken; the attempt goes on without"
                        );
                    }
                }
            }
            transfer::discard(&segment.path);
        }
    }

    async fn keep(&self, segment: &Segment) -> Result<(), GaveUp> {
        let request = SegmentRequest {
            segment: segment.segment,
            checkpoint: segment.sha256,
        };
        let mut missing = 0;
        loop {
            transfer::upload(
                self.client,
                self.held,
                (segment.sha256, &segment.path),
                self.cancel,
            )
            .await?;
            let kept = insist(self.cancel, "reporting a checkpoint", || {
                self.client.record(self.held, &request)
            });
            match kept.await {
                Err(GaveUp::Refused(error))
                    if error.code() == Some("checkpoint_not_uploaded") && missing < MISSING_MAX =>
                {
                    missing += 1;
                }
                other => return other.map(drop),
            }
        }
    }

    /// Is there nobody left to tell? Then the attempt ends too.
    fn is_over(&self, gave_up: &GaveUp) -> bool {
        match gave_up {
            GaveUp::Cancelled => true,
            GaveUp::Refused(error) if lease_is_gone(error) => {
                tracing::warn!(attempt = %self.held.attempt_id, "the lease is gone; the attempt is dropped");
                self.cancel.cancel();
                true
            }
            GaveUp::Refused(_) => false,
        }
    }
}

/// Does a refusal mean that the attempt is no longer this worker's?
#[must_use]
pub fn lease_is_gone(error: &CallError) -> bool {
    error.is_stale() || error.is_final()
}

/// Of progress events in a row only the last matters.
fn newest_progress(events: Vec<EventKind>) -> Vec<EventKind> {
    let mut kept: Vec<EventKind> = Vec::with_capacity(events.len());
    for event in events {
        let is_progress = |event: &EventKind| matches!(event, EventKind::Progress { .. });
        if is_progress(&event) && kept.last().is_some_and(is_progress) {
            kept.pop();
        }
        kept.push(event);
    }
    kept
}

/// The metrics of an epoch, for the server.
#[must_use]
pub fn metrics(epoch: &EpochMetrics) -> EventKind {
    let finite = |value: f64| value.is_finite().then_some(value);
    let mut values = BTreeMap::from([
        ("loss".to_owned(), finite(epoch.loss)),
        ("learning_rate".to_owned(), finite(epoch.learning_rate)),
        ("seconds".to_owned(), finite(epoch.seconds)),
    ]);
    if let Some(accuracy) = epoch.accuracy {
        values.insert("accuracy".to_owned(), finite(accuracy));
    }
    EventKind::Metrics {
        epoch: epoch.epoch,
        step: epoch.step,
        values,
    }
}

/// Decides which progress is worth an event.
#[derive(Debug)]
pub struct Pace {
    started: Instant,
    told_at_ms: Option<u64>,
}

impl Pace {
    /// From now.
    #[must_use]
    pub const fn new(now: Instant) -> Self {
        Self {
            started: now,
            told_at_ms: None,
        }
    }

    /// Is it time to tell?
    pub fn is_due(&mut self, now: Instant) -> bool {
        let run_ms =
            u64::try_from(now.duration_since(self.started).as_millis()).unwrap_or(u64::MAX);
        let pause_ms = PROGRESS_EVERY_MS.max(run_ms / PROGRESS_PART);
        let is_due = self
            .told_at_ms
            .is_none_or(|told| run_ms.saturating_sub(told) >= pause_ms);
        if is_due {
            self.told_at_ms = Some(run_ms);
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn progress_of_a_month_leaves_room_for_ten_thousand_epochs() {
        let now = Instant::now();
        let mut pace = Pace::new(now);
        let month = 30 * 24 * 3_600;
        let told = (0..=month * 2)
            .filter(|half| pace.is_due(now + Duration::from_millis(half * 500)))
            .count();
        assert!(told > 1_000 && told < 9_000, "{told}");
    }

    #[test]
    fn only_the_last_of_progress_in_a_row_is_sent_and_metrics_keep_their_place() {
        let progress = |done| EventKind::Progress { done, of: 9 };
        let epoch = |epoch| EventKind::Metrics {
            epoch,
            step: 1,
            values: BTreeMap::new(),
        };
        let kept = newest_progress(vec![
            progress(1),
            progress(2),
            epoch(0),
            progress(3),
            epoch(1),
            progress(4),
            progress(5),
        ]);
        assert_eq!(
            kept,
            [progress(2), epoch(0), progress(3), epoch(1), progress(5)]
        );
    }
}
