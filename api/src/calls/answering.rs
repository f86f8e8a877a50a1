//! One call from its price to its answer. What is not answered costs nothing.

use std::{sync::Arc, time::Duration};

use alloy_primitives::Address;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use comptoir_domain::{
    atto::Atto,
    id::{AllowanceId, CallId, ReceiptId, WorkerId},
    model::Usage,
};
use comptoir_store::{allowances as stored, relay::NotSent, usage::UsageEvent};
use comptoir_text::Applied;
use comptoir_wire::calls::{
    self as wire, Answer, Ask, Call, Fault, FaultCause, Outputs, Routed, Tensor,
};
use serde_bytes::ByteBuf;
use time::OffsetDateTime;
use tokio::time::{Instant, timeout_at};

use super::{
    Calls,
    allowances::{Payer, Reservation},
    callable::Callable,
    hosts::{Answers, Came, Host},
};
use crate::{
    AppState, Problem,
    auth::Identity,
    metrics::{CALL_RETRIES, CALL_SECONDS, CALLS},
};

/// How long a call may take, loading the version included.
const CALL_TIMEOUT: Duration = Duration::from_mins(1);
/// Workers that are asked for one call.
const TRIES_MAX: usize = 2;
/// When a caller may try again whom nobody could answer.
const RETRY_AFTER_S: u32 = 5;

const CALL: HeaderName = HeaderName::from_static("comptoir-call");
const COST: HeaderName = HeaderName::from_static("comptoir-cost");
const RECEIPT: HeaderName = HeaderName::from_static("comptoir-receipt");

/// A call that is to be answered.
#[derive(Debug)]
pub(crate) struct Asked {
    pub callable: Arc<Callable>,
    /// One for each of the program's inputs, in their order, and fit for them.
    pub inputs: Vec<Tensor>,
    /// What it comes to.
    pub usage: Usage,
    /// Where the rows are texts, how many tokens each has.
    pub texts: Option<Vec<u32>>,
}

/// A call that was answered, and recorded.
#[derive(Debug)]
pub(crate) struct Answered {
    pub id: CallId,
    /// In the program's order, and fit for them.
    pub outputs: Outputs,
    /// What the version makes of each row, where it says so.
    pub results: Option<Vec<Applied>>,
    pub usage: Usage,
    pub cost: Atto,
    /// The receipt of the charge that it will be part of; `None`: it is free.
    pub receipt: Option<ReceiptId>,
}

impl Answered {
    /// Says which call it was, what it costs, and the receipt it will be part of.
    pub(crate) fn tell(&self, headers: &mut HeaderMap) {
        let fields = [
            (CALL, Some(self.id.to_string())),
            (COST, Some(self.cost.decimal())),
            (RECEIPT, self.receipt.map(|it| it.to_string())),
        ];
        for (name, text) in fields {
            let Some(text) = text else { continue };
            let value = HeaderValue::try_from(text).expect("identifiers and numbers are ASCII");
            headers.insert(name, value);
        }
    }
}

/// What pays for a call.
#[derive(Debug)]
enum Means {
    /// One of the free calls of the day.
    Free {
        /// Which day that is.
        taken_at: OffsetDateTime,
    },
    /// What is reserved for it.
    Paid(Reservation),
}

/// Has a call answered: reserves what it costs, asks a worker, another one where that one is lost, and records it. Goes on to its end
/// when the caller hangs up: what was computed is charged.
pub(crate) async fn answer(
    state: &AppState,
    caller: &Identity,
    asked: Asked,
) -> Result<Answered, Problem> {
    let started = Instant::now();
    let (state, caller) = (state.clone(), caller.clone());
    let answering = async move { pay_and_ask(&state, &caller, asked, started).await };
    let answered = tokio::spawn(answering).await;
    let answered = answered.map_err(|error| Problem::internal(&error))?;
    let outcome = match &answered {
        Ok(_) => "answered",
        Err(problem) if problem.status().is_server_error() => "failed",
        Err(_) => "refused",
    };
    metrics::counter!(CALLS, "outcome" => outcome).increment(1);
    metrics::histogram!(CALL_SECONDS).record(started.elapsed().as_secs_f64());
    answered
}

async fn pay_and_ask(
    state: &AppState,
    caller: &Identity,
    asked: Asked,
    started: Instant,
) -> Result<Answered, Problem> {
    let tariff = &asked.callable.price.tariff;
    let full = tariff.cost(&asked.usage).ok_or_else(too_dear)?;
    let means = means(state, caller, &asked.callable, full).await?;
    let id = CallId::generate();
    let ran = async {
        let (host, outputs) = ask(&state.calls, id, &asked, started + CALL_TIMEOUT).await?;
        let owner = state.calls.owners.address(state, host.owner).await?;
        Ok((host.worker, owner, asked.results(outputs).await?))
    };
    match ran.await {
        Ok((worker, owner, made)) => {
            let ran = (worker, owner);
            let event = means.event(state, caller, (id, &asked, ran), (full, started));
            record(state, event, means, made).await
        }
        Err(problem) => {
            means.take_back(state, caller, &asked.callable).await;
            Err(problem)
        }
    }
}

/// A free call where one is left, else what the call costs.
async fn means(
    state: &AppState,
    caller: &Identity,
    callable: &Callable,
    cost: Atto,
) -> Result<Means, Problem> {
    let per_day = callable.price.tariff.free_calls_per_day;
    if per_day > 0 {
        let mut conn = state.db.acquire().await?;
        let (account, model) = (caller.account, callable.model.id);
        let taken_at = state.now();
        if stored::take_free(&mut conn, account, model, per_day, taken_at).await? {
            return Ok(Means::Free { taken_at });
        }
    }
    let payer = Payer {
        account: caller.account,
        key: caller.api_key().map(|it| it.id),
        address: caller.owner()?,
        asset_id: callable.price.asset_id,
    };
    let reserved = state.calls.allowances.reserve(state, payer, cost).await?;
    Ok(Means::Paid(reserved))
}

impl Means {
    fn allowance(&self) -> Option<AllowanceId> {
        match self {
            Self::Free { .. } => None,
            Self::Paid(reservation) => Some(reservation.allowance),
        }
    }

    fn event(
        &self,
        state: &AppState,
        caller: &Identity,
        (call, asked, (worker, worker_owner)): (CallId, &Asked, (WorkerId, Address)),
        (full, started): (Atto, Instant),
    ) -> UsageEvent {
        UsageEvent {
            call,
            allowance: self.allowance(),
            account: caller.account,
            key: caller.api_key().map(|it| it.id),
            model: asked.callable.model.id,
            version: asked.callable.version.id,
            price: asked.callable.price.number,
            worker,
            worker_owner,
            usage: asked.usage,
            cost: match self {
                Self::Free { .. } => Atto::ZERO,
                Self::Paid(_) => full,
            },
            at: state.now(),
            duration_us: u32::try_from(started.elapsed().as_micros()).unwrap_or(u32::MAX),
        }
    }

    /// The call has no answer: nothing was paid.
    async fn take_back(self, state: &AppState, caller: &Identity, callable: &Callable) {
        let taken_at = match self {
            Self::Paid(reservation) => return reservation.settle(Atto::ZERO),
            Self::Free { taken_at } => taken_at,
        };
        let given_back = async {
            let mut conn = state.db.acquire().await?;
            let (account, model) = (caller.account, callable.model.id);
            stored::give_back_free(&mut conn, account, model, taken_at).await
        };
        if let Err(error) = given_back.await {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, "a free call that failed is not given back");
        }
    }
}

/// Commits the call before it is answered.
///
/// # Errors
/// When it is not taken, or it is not known whether it is. Then it is not answered, and what it reserved stays reserved until its allowance is
/// closed, which knows.
async fn record(
    state: &AppState,
    event: UsageEvent,
    means: Means,
    (outputs, results): (Outputs, Option<Vec<Applied>>),
) -> Result<Answered, Problem> {
    let (id, usage, cost) = (event.call, event.usage, event.cost);
    let recorded = state.calls.recorder.record(state, event).await;
    if let Means::Paid(reservation) = means {
        match &recorded {
            Ok(_) => reservation.settle(cost),
            Err(_) => reservation.give_up(),
        }
    }
    recorded.map(|receipt| Answered {
        id,
        outputs,
        results,
        usage,
        cost,
        receipt,
    })
}

/// Asks workers one after the other until one answers.
async fn ask(
    calls: &Calls,
    id: CallId,
    asked: &Asked,
    until: Instant,
) -> Result<(Host, Outputs), Problem> {
    let callable = &asked.callable;
    let of = (callable.version.id, callable.hosting.memory_bytes);
    let mut tried = Vec::with_capacity(TRIES_MAX);
    let mut last = None;
    while tried.len() < TRIES_MAX {
        let Some((host, answers)) = calls.hosts.choose(id.0, of, &tried) else {
            break;
        };
        let waiting = Waiting { calls, id };
        let sent = waiting.send(&host, asked, until);
        let answer = match sent {
            Ok(()) => first_answer(answers, until).await,
            Err(problem) => return Err(problem),
        };
        drop(waiting);
        match answer {
            Answer::Outputs(outputs) if asked.fits(&outputs) => return Ok((host, outputs)),
            Answer::Outputs(_) => {
                tracing::warn!(worker = %host.worker, version = %callable.version.id, "a worker answers with what the program does not make");
                last = Some(FaultCause::Worker);
            }
            Answer::Fault(fault) => match fault.cause {
                FaultCause::Caller => return Err(not_computed(&fault)),
                FaultCause::Version => return Err(broken(&fault)),
                FaultCause::Late => return Err(late()),
                cause @ (FaultCause::Worker | FaultCause::Busy | FaultCause::Lost) => {
                    tracing::info!(worker = %host.worker, ?cause, detail = fault.detail, "a call is asked elsewhere");
                    last = Some(cause);
                }
            },
        }
        metrics::counter!(CALL_RETRIES).increment(1);
        tried.push(host.worker);
    }
    Err(unanswered(calls, last))
}

/// A call that was sent; whoever has it is told when nobody waits any more.
struct Waiting<'a> {
    calls: &'a Calls,
    id: CallId,
}

impl Waiting<'_> {
    fn send(&self, host: &Host, asked: &Asked, until: Instant) -> Result<(), Problem> {
        let within = until.saturating_duration_since(Instant::now());
        let version = asked.callable.version.id.0;
        let call = Call {
            id: self.id.0,
            version,
            within_ms: u32::try_from(within.as_millis()).unwrap_or(u32::MAX),
            ask: Ask::Infer(asked.inputs.clone()),
        };
        let routed = Routed::Call {
            worker: host.worker.0,
            version,
            call: self.id.0,
            reply_to: self.calls.process,
            body: ByteBuf::from(wire::encode(&call)),
        };
        let sent = self
            .calls
            .relay
            .send(&host.mailbox, wire::encode(&routed).into());
        sent.map_err(not_sent)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if let Some(host) = self.calls.hosts.give_up(self.id.0) {
            let cancel = wire::encode(&Routed::Cancel { call: self.id.0 });
            // Where it does not arrive, the worker computes it for nobody.
            self.calls.relay.send(&host.mailbox, cancel.into()).ok();
        }
    }
}

async fn first_answer(mut answers: Answers, until: Instant) -> Answer {
    let lost = || Answer::fault(FaultCause::Lost, "");
    match timeout_at(until, answers.recv()).await {
        Ok(Some(Came::Answer { is_last: false, .. })) => Answer::fault(
            FaultCause::Worker,
            "it answers in parts that nobody asked for",
        ),
        Ok(Some(Came::Answer { answer, .. })) => wire::answer(&answer)
            .unwrap_or_else(|error| Answer::fault(FaultCause::Worker, error.to_string())),
        Ok(Some(Came::Lost) | None) => lost(),
        Err(_) => Answer::fault(FaultCause::Late, ""),
    }
}

impl Asked {
    /// Are these the outputs of the program for these rows?
    fn fits(&self, outputs: &Outputs) -> bool {
        let expected = &self.callable.facts.outputs;
        let pairs = expected.iter().zip(&outputs.tensors);
        expected.len() == outputs.tensors.len()
            && pairs.into_iter().all(|(port, tensor)| {
                let (rows, row) = tensor.shape.split_first().unzip();
                rows == Some(&self.usage.rows)
                    && row == Some(port.row.as_slice())
                    && port.dtype == comptoir_domain::tensors::dtype_name(tensor.dtype)
            })
    }
}

fn too_dear() -> Problem {
    Problem::new(
        StatusCode::UNPROCESSABLE_ENTITY,
        "cost_too_high",
        "The call costs more than any amount",
    )
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
