//! The child's side: loads a version once, then takes calls as they come and answers them.

use std::{
    fs::File,
    io::{self, Write as _},
    time::{Duration, Instant},
};

use comptoir_wire::calls::{self, Answer, Ask, Fault, FaultCause, Outputs, Tensor};
use nix::sys::signal::{Signal, raise};
use serde_bytes::ByteBuf;
use tch::Device;
use uuid::Uuid;

use super::{
    FramesError, FromHost, HostTask, Model, ToHost, encode,
    faults::{fault, of},
    fitting,
    model::Stopped,
    queue::{Queue, Waiting},
    read,
    writer::{Wanted, Writer},
};
use crate::engine::failure::Failure;

/// Hosts a version until nobody is left to answer. Ends with an error where it cannot go on; the parent was told then.
pub fn serve(task: &HostTask, device: Device, mut pipe: File) -> Result<(), FramesError> {
    let _guard = tch::no_grad_guard();
    let failure = match Loaded::load(task, device) {
        Ok(loaded) => {
            send(&mut pipe, &[FromHost::Loaded])?;
            let queue: &'static Queue = Box::leak(Box::default());
            std::thread::Builder::new()
                .name("calls".to_owned())
                .spawn(move || listen(queue))?;
            loaded.answer(queue, &mut pipe)?
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
                    ask: calls::call(&call).map(|call| call.ask),
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

/// A version: the program that answers, and the one that writes texts.
struct Loaded {
    model: Model,
    writer: Option<Writer>,
}

/// Frames that leave together.
#[derive(Default)]
struct Said(Vec<FromHost>);

impl Said {
    fn say(&mut self, id: Uuid, is_last: bool, answer: &Answer) {
        self.0.push(FromHost::Answer {
            id,
            is_last,
            answer: ByteBuf::from(calls::encode(answer)),
        });
    }

    fn refuse(&mut self, id: Uuid, fault: Fault) {
        self.say(id, true, &Answer::Fault(fault));
    }
}

/// A call that is computed with others.
struct Judged {
    id: Uuid,
    was_cold: bool,
    inputs: Vec<Tensor>,
    rows: u64,
}

impl Loaded {
    fn load(task: &HostTask, device: Device) -> Result<Self, Failure> {
        let model = Model::load(task, device)?;
        let writer = task.writing.as_ref();
        let writer = writer.map(|it| Writer::load(it, model.state(), device));
        Ok(Self {
            writer: writer.transpose()?,
            model,
        })
    }

    /// Answers calls until a program does what no program may.
    fn answer(mut self, queue: &Queue, pipe: &mut File) -> Result<Failure, FramesError> {
        loop {
            let is_writing = self.writer.as_ref().is_some_and(Writer::is_busy);
            let taken = queue.take(self.model.rows_max(), is_writing);
            let mut said = Said::default();
            let mut batch = Vec::with_capacity(taken.calls.len());
            for call in taken.calls {
                let id = call.id;
                match self.judge(call) {
                    Ok(call) => batch.extend(call),
                    Err(fault) => said.refuse(id, fault),
                }
            }
            let ended = run(&mut self.model, &batch, &mut said).and_then(|()| {
                let Some(writer) = &mut self.writer else {
                    return Ok(());
                };
                for id in taken.cancelled {
                    writer.cancel(id);
                }
                writer.turn(&mut |id, is_last, answer| said.say(id, is_last, answer))
            });
            send(pipe, &said.0)?;
            if let Err(failure) = ended {
                return Ok(failure);
            }
        }
    }

    /// Looks whether a call can be computed, and still has to be. A text goes to its writer.
    fn judge(&mut self, call: Waiting) -> Result<Option<Judged>, Fault> {
        if call.is_cancelled {
            return Err(fault(FaultCause::Late, "it was cancelled"));
        }
        if call.ends_at <= Instant::now() {
            return Err(fault(FaultCause::Late, "nobody waits for it any more"));
        }
        let caller = |reason: String| fault(FaultCause::Caller, &reason);
        match call.ask {
            Ok(Ask::Infer(inputs)) => Ok(Some(Judged {
                rows: self.model.rows(&inputs).map_err(caller)?,
                id: call.id,
                was_cold: call.was_cold,
                inputs,
            })),
            Ok(Ask::Write(ask)) => {
                let writer = self.writer.as_mut();
                let writer = writer.ok_or_else(|| caller("it writes no texts".to_owned()))?;
                let wanted = Wanted {
                    id: call.id,
                    ends_at: call.ends_at,
                    was_cold: call.was_cold,
                    ask,
                };
                writer.take(wanted).map_err(caller)?;
                Ok(None)
            }
            Err(malformed) => Err(caller(malformed.to_string())),
        }
    }
}

/// Computes calls together. Where that fails, each is computed alone, so that only those fail that make it fail.
fn run(model: &mut Model, batch: &[Judged], said: &mut Said) -> Result<(), Failure> {
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
                said.say(call.id, true, &Answer::Outputs(outputs));
                start += call.rows;
            }
            Ok(())
        }
        (Err(Stopped::Program(failure)), _) => Err(failure),
        (Err(Stopped::Rows(failure)), [call]) => {
            said.refuse(call.id, of(&failure));
            Ok(())
        }
        (Err(Stopped::Rows(_)), calls) => {
            let mut each = calls.chunks(1);
            each.try_for_each(|call| run(model, call, said))
        }
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
