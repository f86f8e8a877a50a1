//! One call from its price to its answer. What is not answered costs nothing.

use std::{sync::Arc, time::Duration};

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use comptoir_domain::{
    atto::Atto,
    id::{CallId, ReceiptId},
    model::Usage,
};
use comptoir_text::Applied;
use comptoir_wire::calls::{Answer, Ask, Fault, FaultCause, Outputs, Tensor};
use tokio::time::Instant;

use super::{
    Calls,
    asking::Tries,
    callable::Callable,
    hosts::Host,
    paying::{Served, means},
};
use crate::{
    AppState, Problem,
    auth::Identity,
    metrics::{CALL_SECONDS, CALLS},
};

/// How long a call may take, loading the version included.
pub(super) const CALL_TIMEOUT: Duration = Duration::from_mins(1);

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
        tell(headers, self.id, Some((self.cost, self.receipt)));
    }
}

/// Says which call it is; once it was charged what it costs, and the receipt it will be part of.
pub(crate) fn tell(
    headers: &mut HeaderMap,
    id: CallId,
    charged: Option<(Atto, Option<ReceiptId>)>,
) {
    let (cost, receipt) = charged.unzip();
    let fields = [
        (CALL, Some(id.to_string())),
        (COST, cost.map(Atto::decimal)),
        (RECEIPT, receipt.flatten().map(|it| it.to_string())),
    ];
    for (name, text) in fields {
        let Some(text) = text else { continue };
        let value = HeaderValue::try_from(text).expect("identifiers and numbers are ASCII");
        headers.insert(name, value);
    }
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
    note(&answered, started);
    answered
}

/// Counts a call.
pub(super) fn note<T>(answered: &Result<T, Problem>, started: Instant) {
    let outcome = match answered {
        Ok(_) => "answered",
        Err(problem) if problem.status().is_server_error() => "failed",
        Err(_) => "refused",
    };
    metrics::counter!(CALLS, "outcome" => outcome).increment(1);
    metrics::histogram!(CALL_SECONDS).record(started.elapsed().as_secs_f64());
}

async fn pay_and_ask(
    state: &AppState,
    caller: &Identity,
    asked: Asked,
    started: Instant,
) -> Result<Answered, Problem> {
    let callable = &asked.callable;
    let means = means(state, caller, callable, &asked.usage).await?;
    let id = CallId::generate();
    let ran = async {
        let (host, outputs) = ask(&state.calls, id, &asked, started + CALL_TIMEOUT).await?;
        let owner = state.calls.owners.address(state, host.owner).await?;
        Ok((host.worker, owner, asked.results(outputs).await?))
    };
    let (worker, worker_owner, (outputs, results)) = match ran.await {
        Ok(ran) => ran,
        Err(problem) => {
            means.take_back(state, caller, callable).await;
            return Err(problem);
        }
    };
    let served = Served {
        call: id,
        worker,
        worker_owner,
        usage: asked.usage,
        started,
    };
    let charged = means.charge(state, caller, callable, served).await?;
    Ok(Answered {
        id,
        outputs,
        results,
        usage: asked.usage,
        cost: charged.cost,
        receipt: charged.receipt,
    })
}

/// Asks workers one after the other until one answers.
async fn ask(
    calls: &Calls,
    id: CallId,
    asked: &Asked,
    until: Instant,
) -> Result<(Host, Outputs), Problem> {
    let mut tries = Tries::new(calls, id);
    loop {
        let mut asking = tries.ask(&asked.callable, Ask::Infer(asked.inputs.clone()), until)?;
        let fault = match asking.next(until).await {
            (Answer::Outputs(outputs), true) if asked.fits(&outputs) => {
                return Ok((asking.host.clone(), outputs));
            }
            (Answer::Fault(fault), _) => fault,
            (Answer::Outputs(_) | Answer::Written(_), _) => {
                tracing::warn!(worker = %asking.host.worker, version = %asked.callable.version.id, "a worker answers with what the program does not make");
                let detail = "it answers with what the program does not make";
                Fault {
                    cause: FaultCause::Worker,
                    detail: detail.to_owned(),
                }
            }
        };
        let host = asking.host.clone();
        drop(asking);
        tries.note(&host, &fault)?;
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
