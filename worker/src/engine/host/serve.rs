//! The child's side: loads a version once, then takes calls as they come and answers them.

use std::{
    fs::File,
    io::{self, Write as _},
    time::{Duration, Instant},
};

use comptoir_domain::{job::Cause, name::to_remark};
use comptoir_wire::{
    DETAIL_CHARS_MAX,
    calls::{self, Answer, Ask, Fault, FaultCause, Outputs, Tensor},
};
use nix::sys::signal::{Signal, raise};
use serde_bytes::ByteBuf;
use tch::Device;
use uuid::Uuid;

use super::{
    FramesError, FromHost, HostTask, Model, ToHost, encode, fitting,
    model::Stopped,
    queue::{Queue, Waiting},
    read,
};
use crate::engine::failure::Failure;

/// Hosts a version until nobody is left to answer. Ends with an error where it cannot go on; the parent was told then.
pub fn serve(task: &HostTask, device: Device, mut pipe: File) -> Result<(), FramesError> {
    let _guard = tch::no_grad_guard();
    let failure = match Model::load(task, device) {
        Ok(model) => {
            send(&mut pipe, &[FromHost::Loaded])?;
            let queue: &'static Queue = Box::leak(Box::default());
            std::thread::Builder::new()
                .name("calls".to_owned())
                .spawn(move || listen(queue))?;
            answer(model, queue, &mut pipe)?
        }
        Err(failure) => failure,
    };
    send(&mut pipe, &[FromHost::Failed(failure)])?;
    Ok(())
}

/// Takes calls. When the parent's end of the pipe closes, or what comes out of it is none, nobody is left to compute for.
fn listen(queue: &Queue) {
    let mut stdin = io::stdin().lock();
    while let Ok(Some(frames)) = read::<ToHost>(&mut stdin) {
        let now = Instant::now();
        let mut calls: Vec<Waiting> = Vec::with_capacity(frames.len());
        for frame in frames {
            match frame {
                ToHost::Call {
                    id,
                    within_ms,
                    was_cold,
                    call,
                } => calls.push(Waiting {
                    id,
                    ends_at: now + Duration::from_millis(within_ms.into()),
                    was_cold,
                    is_cancelled: false,
                    inputs: calls::call(&call).map(|call| match call.ask {
                        Ask::Infer(inputs) => inputs,
                    }),
                }),
                ToHost::Cancel(id) => {
                    queue.cancel(id);
                    for call in calls.iter_mut().filter(|call| call.id == id) {
                        call.is_cancelled = true;
                    }
                }
            }
        }
        queue.push(calls);
    }
    raise(Signal::SIGKILL).expect("a process may end itself");
}

/// Answers calls until the program does what no program may.
fn answer(mut model: Model, queue: &Queue, pipe: &mut File) -> Result<Failure, FramesError> {
    loop {
        let taken = queue.take(model.rows_max());
        let mut frames = Vec::with_capacity(taken.len());
        let mut add = |id: Uuid, answer: &Answer| {
            frames.push(FromHost::Answer {
                id,
                answer: ByteBuf::from(calls::encode(answer)),
            });
        };
        let mut batch = Vec::with_capacity(taken.len());
        for call in taken {
            match judge(&model, call) {
                Ok(call) => batch.push(call),
                Err((id, fault)) => add(id, &Answer::Fault(fault)),
            }
        }
        let ended = run(&mut model, &batch, &mut add);
        send(pipe, &frames)?;
        if let Err(failure) = ended {
            return Ok(failure);
        }
    }
}

/// A call that is computed.
struct Judged {
    id: Uuid,
    was_cold: bool,
    inputs: Vec<Tensor>,
    rows: u64,
}

/// Looks whether a call can be computed, and still has to be.
fn judge(model: &Model, call: Waiting) -> Result<Judged, (Uuid, Fault)> {
    let refuse = |cause, detail: &str| (call.id, fault(cause, detail));
    if call.is_cancelled {
        return Err(refuse(FaultCause::Late, "it was cancelled"));
    }
    if call.ends_at <= Instant::now() {
        return Err(refuse(FaultCause::Late, "nobody waits for it any more"));
    }
    let caller = |reason: &str| refuse(FaultCause::Caller, reason);
    let rows = match &call.inputs {
        Ok(inputs) => model.rows(inputs).map_err(|reason| caller(&reason))?,
        Err(malformed) => return Err(caller(&malformed.to_string())),
    };
    Ok(Judged {
        id: call.id,
        was_cold: call.was_cold,
        inputs: call.inputs.unwrap_or_default(),
        rows,
    })
}

/// Computes calls together. Where that fails, each is computed alone, so that only those fail that make it fail.
fn run(
    model: &mut Model,
    batch: &[Judged],
    add: &mut dyn FnMut(Uuid, &Answer),
) -> Result<(), Failure> {
    if batch.is_empty() {
        return Ok(());
    }
    let started = Instant::now();
    let inputs: Vec<&[Tensor]> = batch.iter().map(|it| it.inputs.as_slice()).collect();
    let rows = batch.iter().map(|it| it.rows).sum();
    match (model.compute(&inputs, rows), batch) {
        (Ok(computed), _) => {
            let compute_us = u32::try_from(started.elapsed().as_micros()).unwrap_or(u32::MAX);
            let mut start = 0;
            for call in batch {
                let outputs = Outputs {
                    tensors: model.part(&computed, start, call.rows),
                    batch_rows: u32::try_from(computed.batch_rows).unwrap_or(u32::MAX),
                    compute_us,
                    was_cold: call.was_cold,
                };
                add(call.id, &Answer::Outputs(outputs));
                start += call.rows;
            }
            Ok(())
        }
        (Err(Stopped::Program(failure)), _) => Err(failure),
        (Err(Stopped::Rows(failure)), [call]) => {
            add(call.id, &Answer::Fault(of(&failure)));
            Ok(())
        }
        (Err(Stopped::Rows(_)), calls) => {
            let mut each = calls.chunks(1);
            each.try_for_each(|call| run(model, call, add))
        }
    }
}

/// What a failed run says of the calls in it.
fn of(failure: &Failure) -> Fault {
    let cause = match failure.cause() {
        Cause::Client => FaultCause::Caller,
        Cause::Worker | Cause::Operator | Cause::Chain => FaultCause::Worker,
    };
    fault(cause, &failure.to_string())
}

/// A fault whose detail may be what a library or a program said.
fn fault(cause: FaultCause, detail: &str) -> Fault {
    Fault {
        cause,
        detail: to_remark(detail, DETAIL_CHARS_MAX),
    }
}

fn send(pipe: &mut File, frames: &[FromHost]) -> Result<(), FramesError> {
    let mut left = frames;
    while !left.is_empty() {
        let (now, later) = left.split_at(fitting(left));
        pipe.write_all(&encode(now))?;
        left = later;
    }
    Ok(())
}
