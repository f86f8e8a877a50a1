//! What a request may not pass although its shape is right: the limits of the protocol, checked before anything is done.

use comptoir_domain::name::{is_name, is_remark};

use crate::{
    CODE_CHARS_MAX, DETAIL_CHARS_MAX, EVENT_SEQ_MAX, EVENTS_MAX, FACT_CHARS_MAX, LEASES_MAX,
    METRICS_MAX, NAME_CHARS_MAX, OUTPUTS_MAX, REPORTS_MAX, WAIT_MS_MAX,
    attempt::{EventKind, EventsRequest},
    heartbeat::HeartbeatRequest,
    join::{JoinRequest, MEMORY_BYTES_MAX, THREADS_MAX},
    work::WorkRequest,
};

/// A field that passes a limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exceeded {
    /// Where in the request, as a JSON pointer (RFC 6901).
    pub pointer: String,
    /// What would fit.
    pub detail: String,
}

#[derive(Default)]
struct Limits(Vec<Exceeded>);

impl Limits {
    fn require(&mut self, fits: bool, pointer: impl Into<String>, detail: impl Into<String>) {
        if !fits {
            self.0.push(Exceeded {
                pointer: pointer.into(),
                detail: detail.into(),
            });
        }
    }

    fn held(self) -> Result<(), Vec<Exceeded>> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(self.0)
        }
    }
}

impl JoinRequest {
    /// Checks name and facts.
    ///
    /// # Errors
    /// Every field that passes a limit.
    pub fn check(&self) -> Result<(), Vec<Exceeded>> {
        let (mut limits, facts) = (Limits::default(), &self.facts);
        let texts = [
            ("/name", &self.name, NAME_CHARS_MAX),
            ("/facts/device_name", &facts.device_name, FACT_CHARS_MAX),
            ("/facts/numeric_class", &facts.numeric_class, FACT_CHARS_MAX),
            ("/facts/libtorch", &facts.libtorch, FACT_CHARS_MAX),
            ("/facts/version", &facts.version, FACT_CHARS_MAX),
        ];
        for (pointer, text, most) in texts {
            let detail = format!("1 to {most} characters, no control characters");
            limits.require(is_name(text, most), pointer, detail);
        }
        limits.require(
            (1..=MEMORY_BYTES_MAX).contains(&facts.memory_bytes),
            "/facts/memory_bytes",
            format!("1 to {MEMORY_BYTES_MAX}"),
        );
        limits.require(
            (1..=THREADS_MAX).contains(&facts.threads),
            "/facts/threads",
            format!("1 to {THREADS_MAX}"),
        );
        limits.held()
    }
}

impl HeartbeatRequest {
    /// Checks how many leases it names.
    ///
    /// # Errors
    /// Where there are too many.
    pub fn check(&self) -> Result<(), Vec<Exceeded>> {
        let mut limits = Limits::default();
        let fits = self.leases.len() <= REPORTS_MAX;
        limits.require(fits, "/leases", format!("at most {REPORTS_MAX}"));
        limits.held()
    }
}

impl EventsRequest {
    /// Checks how many events there are, their order, and their values.
    ///
    /// # Errors
    /// Every field that passes a limit.
    pub fn check(&self) -> Result<(), Vec<Exceeded>> {
        let (mut limits, events) = (Limits::default(), &self.events);
        if !(1..=EVENTS_MAX).contains(&events.len()) {
            limits.require(false, "/events", format!("1 to {EVENTS_MAX}"));
            return limits.held();
        }
        for (place, event) in events.iter().enumerate() {
            let rises = place == 0 || events[place - 1].seq < event.seq;
            limits.require(
                rises && (1..=EVENT_SEQ_MAX).contains(&event.seq),
                format!("/events/{place}/seq"),
                format!("1 to {EVENT_SEQ_MAX}, each above the one before"),
            );
            let EventKind::Metrics { values, .. } = &event.event else {
                continue;
            };
            limits.require(
                values.len() <= METRICS_MAX
                    && values.keys().all(|name| is_name(name, NAME_CHARS_MAX)),
                format!("/events/{place}/event/values"),
                format!(
                    "at most {METRICS_MAX} values, names of 1 to {NAME_CHARS_MAX} characters, no control characters"
                ),
            );
        }
        limits.held()
    }
}

impl WorkRequest {
    /// Checks an exchange.
    ///
    /// # Errors
    /// Every field that passes a limit.
    pub fn check(&self) -> Result<(), Vec<Exceeded>> {
        let mut limits = Limits::default();
        let wanted = usize::from(self.wanted) <= LEASES_MAX;
        limits.require(wanted, "/wanted", format!("at most {LEASES_MAX}"));
        let waits = self.wait_ms <= WAIT_MS_MAX;
        limits.require(waits, "/wait_ms", format!("at most {WAIT_MS_MAX}"));
        let lists = [
            ("/held", self.held.len()),
            ("/seals", self.seals.len()),
            ("/reveals", self.reveals.len()),
            ("/failures", self.failures.len()),
        ];
        for (pointer, length) in lists {
            let fits = length <= REPORTS_MAX;
            limits.require(fits, pointer, format!("at most {REPORTS_MAX}"));
        }
        for (place, reveal) in self.reveals.iter().enumerate() {
            let names = |name: &String| is_name(name, NAME_CHARS_MAX);
            limits.require(
                (1..=OUTPUTS_MAX).contains(&reveal.outputs.len())
                    && reveal.outputs.keys().all(names),
                format!("/reveals/{place}/outputs"),
                format!(
                    "1 to {OUTPUTS_MAX} outputs, names of 1 to {NAME_CHARS_MAX} characters, no control characters"
                ),
            );
        }
        for (place, failure) in self.failures.iter().enumerate() {
            limits.require(
                is_code(&failure.code),
                format!("/failures/{place}/code"),
                format!("1 to {CODE_CHARS_MAX} lower-case letters, digits and `_`"),
            );
            limits.require(
                is_remark(&failure.detail, DETAIL_CHARS_MAX),
                format!("/failures/{place}/detail"),
                format!(
                    "at most {DETAIL_CHARS_MAX} characters, of control line breaks and tabs alone"
                ),
            );
        }
        limits.held()
    }
}

fn is_code(code: &str) -> bool {
    let inside = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    (1..=CODE_CHARS_MAX).contains(&code.len())
        && code.as_bytes()[0].is_ascii_lowercase()
        && code.bytes().all(inside)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use comptoir_domain::id::{AttemptId, LeaseToken};

    use super::*;
    use crate::{
        attempt::AttemptEvent,
        work::{Failure, FailureCause},
    };

    /// Clears a terminal, in the two forms of an escape, and moves the cursor back.
    const ESCAPES: [&str; 3] = ["\u{1b}[2J", "\u{9b}2J", "loss\r"];

    fn refused(held: Result<(), Vec<Exceeded>>) -> Vec<String> {
        let errors = held.err().unwrap_or_default();
        errors.into_iter().map(|it| it.pointer).collect()
    }

    fn measured(name: &str) -> EventsRequest {
        EventsRequest {
            events: vec![AttemptEvent {
                seq: 1,
                event: EventKind::Metrics {
                    epoch: 0,
                    step: 1,
                    values: BTreeMap::from([(name.to_owned(), Some(0.5))]),
                },
            }],
        }
    }

    fn failed(detail: &str) -> WorkRequest {
        let failure = Failure {
            attempt_id: AttemptId::generate(),
            lease_token: LeaseToken::generate(),
            cause: FailureCause::Worker,
            code: "crashed".to_owned(),
            detail: detail.to_owned(),
        };
        WorkRequest {
            failures: vec![failure],
            ..WorkRequest::default()
        }
    }

    #[test]
    fn what_a_client_reads_writes_nothing_else_on_its_screen() {
        for escape in ESCAPES {
            let metric = refused(measured(escape).check());
            assert_eq!(metric, ["/events/0/event/values"], "{escape:?}");
            let detail = refused(failed(escape).check());
            assert_eq!(detail, ["/failures/0/detail"], "{escape:?}");
        }
        assert_eq!(measured("loss").check(), Ok(()));
        assert_eq!(failed("Traceback:\n\tout of memory").check(), Ok(()));
        assert_eq!(failed("").check(), Ok(()));
    }
}
