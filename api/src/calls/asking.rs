//! Asking workers: one that is lost, busy or wrong is not asked again, and another one may be.

use axum::http::StatusCode;
use comptoir_domain::id::{CallId, WorkerId};
use comptoir_store::relay::NotSent;
use comptoir_wire::calls::{self as wire, Answer, Ask, Call, Fault, FaultCause, Routed};
use serde_bytes::ByteBuf;
use tokio::time::{Instant, timeout_at};

use super::{
    Calls,
    callable::Callable,
    hosts::{Answers, Came, Host},
};
use crate::{Problem, metrics::CALL_RETRIES};

/// Workers that are asked for one call.
const TRIES_MAX: usize = 2;
/// When a caller may try again whom nobody could answer.
const RETRY_AFTER_S: u32 = 5;

/// Who was asked for a call, and what became of that.
pub(super) struct Tries<'a> {
    calls: &'a Calls,
    id: CallId,
    tried: Vec<WorkerId>,
    last: Option<FaultCause>,
}

impl<'a> Tries<'a> {
    pub(super) const fn new(calls: &'a Calls, id: CallId) -> Self {
        Self {
            calls,
            id,
            tried: Vec::new(),
            last: None,
        }
    }

    /// Asks the next worker.
    ///
    /// # Errors
    /// Where nobody is left to be asked, or nothing can be sent.
    pub(super) fn ask(
        &mut self,
        callable: &Callable,
        ask: Ask,
        until: Instant,
    ) -> Result<Asking<'a>, Problem> {
        let of = (callable.version.id, callable.hosting.memory_bytes);
        let chosen = if self.tried.len() < TRIES_MAX {
            self.calls.hosts.choose(self.id.0, of, &self.tried)
        } else {
            None
        };
        let (host, answers) = chosen.ok_or_else(|| unanswered(self.calls, self.last))?;
        let asking = Asking {
            calls: self.calls,
            id: self.id,
            host,
            answers,
        };
        asking.send(callable, ask, until)?;
        Ok(asking)
    }

    /// What a fault means for the call.
    ///
    /// # Errors
    /// Where no other worker would do better.
    pub(super) fn note(&mut self, host: &Host, fault: &Fault) -> Result<(), Problem> {
        match fault.cause {
            FaultCause::Caller => return Err(not_computed(fault)),
            FaultCause::Version => return Err(broken(fault)),
            FaultCause::Late => return Err(late()),
            cause @ (FaultCause::Worker | FaultCause::Busy | FaultCause::Lost) => {
                tracing::info!(worker = %host.worker, ?cause, detail = fault.detail, "a call is asked elsewhere");
                self.last = Some(cause);
            }
        }
        metrics::counter!(CALL_RETRIES).increment(1);
        self.tried.push(host.worker);
        Ok(())
    }
}

/// A call that was sent; whoever has it is told when nobody waits any more.
pub(super) struct Asking<'a> {
    calls: &'a Calls,
    id: CallId,
    pub host: Host,
    answers: Answers,
}

impl Asking<'_> {
    fn send(&self, callable: &Callable, ask: Ask, until: Instant) -> Result<(), Problem> {
        let within = until.saturating_duration_since(Instant::now());
        let version = callable.version.id.0;
        let call = Call {
            id: self.id.0,
            version,
            within_ms: u32::try_from(within.as_millis()).unwrap_or(u32::MAX),
            ask,
        };
        let routed = Routed::Call {
            worker: self.host.worker.0,
            version,
            call: self.id.0,
            reply_to: self.calls.process,
            body: ByteBuf::from(wire::encode(&call)),
        };
        let sent = self
            .calls
            .relay
            .send(&self.host.mailbox, wire::encode(&routed).into());
        sent.map_err(not_sent)
    }

    /// What comes next, and whether nothing comes behind it.
    pub(super) async fn next(&mut self, until: Instant) -> (Answer, bool) {
        match timeout_at(until, self.answers.recv()).await {
            Ok(Some(Came::Answer { is_last, answer })) => {
                let answer = wire::answer(&answer);
                let wrong = |error| Answer::fault(FaultCause::Worker, format!("{error}"));
                (answer.unwrap_or_else(wrong), is_last)
            }
            Ok(Some(Came::Lost) | None) => (Answer::fault(FaultCause::Lost, ""), true),
            Err(_) => (Answer::fault(FaultCause::Late, ""), true),
        }
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        if let Some(host) = self.calls.hosts.give_up(self.id.0) {
            let cancel = wire::encode(&Routed::Cancel { call: self.id.0 });
            // Where it does not arrive, the worker computes it for nobody.
            self.calls.relay.send(&host.mailbox, cancel.into()).ok();
        }
    }
}

/// The program cannot compute these inputs.
fn not_computed(fault: &Fault) -> Problem {
    Problem::new(
        StatusCode::UNPROCESSABLE_ENTITY,
        "not_computed",
        "The model does not compute these inputs",
    )
    .detail(fault.detail.clone())
}

fn broken(fault: &Fault) -> Problem {
    Problem::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "version_not_served",
        "The version cannot be loaded",
    )
    .detail(fault.detail.clone())
}

fn late() -> Problem {
    let problem = Problem::new(
        StatusCode::GATEWAY_TIMEOUT,
        "call_timeout",
        "No worker answered in time",
    );
    problem
        .detail("Nothing is charged")
        .retry_after(RETRY_AFTER_S)
}

fn not_sent(error: NotSent) -> Problem {
    let detail = format!("{error}: nothing is charged");
    Problem::unavailable(detail).retry_after(RETRY_AFTER_S)
}

fn unanswered(calls: &Calls, last: Option<FaultCause>) -> Problem {
    if !calls.relay.is_connected() {
        return not_sent(NotSent::Away);
    }
    let detail = match last {
        Some(FaultCause::Busy) => "Every worker that hosts it is busy",
        Some(_) => "The workers that were asked did not answer",
        None => "No worker is connected that has the memory for it",
    };
    let problem = Problem::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "no_worker",
        "No worker could answer the call",
    );
    problem
        .detail(format!("{detail}; nothing is charged"))
        .retry_after(RETRY_AFTER_S)
}
