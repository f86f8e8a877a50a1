//! Texts that are written a token at a time, several by turns. What the program keeps between tokens is a copy of its own for each text, which begins as the
//! archive stores it; weights are those of the program that answers, and never change.

use std::{collections::VecDeque, time::Instant};

use comptoir_domain::{
    program::{Program, Role, graph::ScalarType},
    sampling::Sampler,
};
use comptoir_wire::calls::{self as wire, Answer, FaultCause, Written};
use tch::{Device, Tensor};
use uuid::Uuid;

use super::{
    WritingTask,
    faults::{fault, of},
    model::{copy_of, failed, open_program},
};
use crate::{
    aten::AtenError,
    engine::{
        failure::{Code, Failure},
        files,
        plan::Phase,
        runner::{Runner, Seat},
        state::State,
    },
};

/// A text that is asked for.
pub struct Wanted {
    /// Its call.
    pub id: Uuid,
    /// When nobody waits for it any more.
    pub ends_at: Instant,
    /// Whether it waited for the version to be loaded.
    pub was_cold: bool,
    /// What it goes on from, and how.
    pub ask: wire::Write,
}

/// A text that is being written.
struct Text {
    wanted: Wanted,
    sampler: Sampler,
    /// Tokens that went through the program.
    fed: usize,
    /// Tokens that were written here.
    written: u32,
    is_cancelled: bool,
    /// What the program keeps of it, once it has its turn.
    kept: Option<Vec<Tensor>>,
}

/// A buffer that each text has for itself.
struct Buffer {
    seat: Seat,
    first: Tensor,
}

/// Where a number goes in.
struct Port {
    dtype: ScalarType,
    shape: Vec<u64>,
}

/// A program that writes texts.
pub struct Writer {
    runner: Runner,
    device: Device,
    /// The inputs, in the program's order, and which of them takes numbers of tokens.
    inputs: [Port; 2],
    ids: usize,
    logits: usize,
    context: u32,
    texts_max: usize,
    buffers: Vec<Buffer>,
    weights: Vec<(String, Tensor, i64)>,
    texts: VecDeque<Text>,
    /// Whose buffers the program has.
    seated: Option<Uuid>,
}

impl Writer {
    /// Loads a program of the scratch folder, which computes with the weights of the other.
    pub fn load(task: &WritingTask, weights: &State, device: Device) -> Result<Self, Failure> {
        let mut archive = open_program(&task.program)?;
        let program = archive.program().clone();
        let mut runner = Runner::new(&program, Phase::Inference, device)?;
        let mut state = State::load(&mut archive, device)?;
        drop(archive);
        state.share(weights)?;
        runner.attach(&state)?;
        let (inputs, ids) = ports(&program, task)?;
        let mut outputs = program.user_outputs();
        let logits = outputs.position(|(name, _)| name == task.logits);
        let weights = weights_of(&state).map_err(|error| failed("read weights", &error))?;
        Ok(Self {
            buffers: buffers(&program, &state, &runner)?,
            runner,
            device,
            inputs,
            ids,
            logits: logits.ok_or_else(|| invalid(format_args!("no output `{}`", task.logits)))?,
            context: task.context,
            texts_max: usize::try_from(task.texts_max).unwrap_or(usize::MAX).max(1),
            weights,
            texts: VecDeque::new(),
            seated: None,
        })
    }

    /// Is a text not ended?
    #[must_use]
    pub fn is_busy(&self) -> bool {
        !self.texts.is_empty()
    }

    /// Takes a text, or says why not.
    pub fn take(&mut self, wanted: Wanted) -> Result<(), String> {
        let ask = &wanted.ask;
        let tokens = u64::try_from(ask.tokens.len()).unwrap_or(u64::MAX);
        if tokens.saturating_add(ask.tokens_max.into()) > self.context.into() {
            let (more, context) = (ask.tokens_max, self.context);
            return Err(format!(
                "{tokens} tokens and {more} more; a text has {context} at most"
            ));
        }
        let sampler = Sampler::new(ask.sampling).map_err(|error| error.to_string())?;
        self.texts.push_back(Text {
            wanted,
            sampler,
            fed: 0,
            written: 0,
            is_cancelled: false,
            kept: None,
        });
        Ok(())
    }

    /// Nobody waits for a text any more.
    pub fn cancel(&mut self, id: Uuid) {
        for text in self.texts.iter_mut().filter(|it| it.wanted.id == id) {
            text.is_cancelled = true;
        }
    }

    /// One token through the program for each text that has its turn; says what came of it, and whether that was the last of it. Fails where the
    /// program does what none may.
    pub fn turn(&mut self, say: &mut dyn FnMut(Uuid, bool, &Answer)) -> Result<(), Failure> {
        for _ in 0..self.texts.len().min(self.texts_max) {
            let Some(mut text) = self.texts.pop_front() else {
                break;
            };
            let id = text.wanted.id;
            let answer = match self.step(&mut text) {
                Ok(None) => None,
                Ok(Some(written)) => Some(Answer::Written(written)),
                Err(Ended::Program(failure)) => return Err(failure),
                Err(Ended::Text(failure)) => Some(Answer::Fault(of(&failure))),
                Err(Ended::Unwanted) => {
                    let detail = "nobody waits for it any more";
                    Some(Answer::Fault(fault(FaultCause::Late, detail)))
                }
            };
            let is_last = match &answer {
                None => false,
                Some(Answer::Written(_)) => text.is_over(),
                Some(_) => true,
            };
            if let Some(answer) = answer {
                say(id, is_last, &answer);
            }
            // Those that have their turn stay in front of those that wait for one.
            if !is_last {
                let place = self.texts.len().min(self.texts_max - 1);
                self.texts.insert(place, text);
            }
        }
        Ok(())
    }

    /// Feeds the next token; what is written, once all that are there were fed.
    fn step(&mut self, text: &mut Text) -> Result<Option<Written>, Ended> {
        if text.is_cancelled || text.wanted.ends_at <= Instant::now() {
            return Err(Ended::Unwanted);
        }
        self.seat(text)?;
        let logits = self.feed(text.wanted.ask.tokens[text.fed], text.fed)?;
        text.fed += 1;
        if text.fed < text.wanted.ask.tokens.len() {
            return Ok(None);
        }
        let token = text.draw(&logits)?;
        Ok(Some(Written {
            tokens: vec![token],
            was_cold: text.wanted.was_cold,
        }))
    }

    /// Gives the program the buffers of a text.
    fn seat(&mut self, text: &mut Text) -> Result<(), Ended> {
        if self.seated == Some(text.wanted.id) {
            return Ok(());
        }
        if text.kept.is_none() {
            let firsts = self.buffers.iter().map(|it| copy_of(&it.first));
            let copies = firsts.collect::<Result<_, _>>();
            text.kept = Some(copies.map_err(|error| Ended::Text(failed("keep buffers", &error)))?);
        }
        let kept = text.kept.iter().flatten();
        for (buffer, tensor) in self.buffers.iter().zip(kept) {
            self.runner
                .exchange(&buffer.seat, tensor)
                .map_err(Ended::Program)?;
        }
        self.seated = Some(text.wanted.id);
        Ok(())
    }

    /// The numbers of the tokens that may come behind one at a place.
    fn feed(&mut self, token: u32, place: usize) -> Result<Vec<f32>, Ended> {
        let place = u32::try_from(place).expect("a context has fewer");
        let numbers = if self.ids == 0 {
            [token, place]
        } else {
            [place, token]
        };
        let inputs = self.inputs.iter().zip(numbers).map(|(port, number)| {
            let tensor = port.tensor(number)?;
            Ok(tensor.f_to_device(self.device)?)
        });
        let inputs = inputs.collect::<Result<Vec<_>, AtenError>>();
        let inputs = inputs.map_err(|error| Ended::Text(failed("put a token in", &error)))?;
        let outputs = self.runner.run(&inputs);
        self.look_at_weights().map_err(Ended::Program)?;
        let logits = files::to_bytes(&outputs.map_err(Ended::Text)?[self.logits]);
        let logits = logits.map_err(|error| Ended::Text(failed("read what came out", &error)))?;
        let numbers = logits.as_chunks().0.iter();
        Ok(numbers.map(|it| f32::from_le_bytes(*it)).collect())
    }

    /// What a text writes must not change those of others.
    fn look_at_weights(&self) -> Result<(), Failure> {
        for (name, tensor, version) in &self.weights {
            let now = tensor.f_internal_version();
            if now.map_err(|error| failed(name, &error.into()))? != *version {
                return Err(invalid(format_args!(
                    "the program changes its weight `{name}`"
                )));
            }
        }
        Ok(())
    }
}

/// Why nothing more is written.
enum Ended {
    /// Nobody waits.
    Unwanted,
    /// The program does not compute this text.
    Text(Failure),
    /// The program does what none may.
    Program(Failure),
}

impl Text {
    fn draw(&mut self, logits: &[f32]) -> Result<u32, Ended> {
        let ask = &mut self.wanted.ask;
        let end = usize::try_from(ask.vocabulary_end).unwrap_or(usize::MAX);
        let logits = &logits[..end.min(logits.len())];
        let place = u64::from(ask.written) + u64::from(self.written);
        let drawn = self.sampler.draw(logits, place);
        let token =
            drawn.map_err(|error| Ended::Text(Failure::new(Code::OperatorFailed, error)))?;
        self.written += 1;
        ask.tokens.push(token);
        Ok(token)
    }

    /// Is everything written?
    fn is_over(&self) -> bool {
        let ask = &self.wanted.ask;
        let has_ended = ask.tokens.last().is_some_and(|it| ask.ends.contains(it));
        has_ended || self.written >= ask.tokens_max
    }
}

impl Port {
    fn tensor(&self, number: u32) -> Result<Tensor, AtenError> {
        let bytes = i64::from(number).to_le_bytes();
        // The first bytes of a small number are the number.
        let size = usize::try_from(self.dtype.size()).expect("an element has a few bytes");
        files::from_bytes(self.dtype, &self.shape, &bytes[..size])
    }
}

/// The inputs, and which of them takes numbers of tokens.
fn ports(program: &Program, task: &WritingTask) -> Result<([Port; 2], usize), Failure> {
    let mut ports = Vec::new();
    let mut ids = None;
    for (at, (name, meta)) in program.user_inputs().enumerate() {
        if name == task.ids {
            ids = Some(at);
        } else if name != task.positions {
            return Err(invalid(format_args!("nothing fills the input `{name}`")));
        }
        if !matches!(meta.dtype, ScalarType::I64 | ScalarType::I32) {
            return Err(invalid(format_args!(
                "input `{name}` takes no numbers of tokens"
            )));
        }
        ports.push(Port {
            dtype: meta.dtype,
            shape: vec![1; meta.sizes.len()],
        });
    }
    match (<[Port; 2]>::try_from(ports), ids) {
        (Ok(ports), Some(ids)) => Ok((ports, ids)),
        _ => Err(invalid("it does not take a token and its place")),
    }
}

/// What each text has for itself: the buffers that are not saved.
fn buffers(program: &Program, state: &State, runner: &Runner) -> Result<Vec<Buffer>, Failure> {
    let is_kept = |name: &str| {
        let role = program.tensors.get(name).map(|it| &it.role);
        matches!(role, Some(Role::Buffer { persistent: false }))
    };
    let firsts = state.firsts().filter(|(name, _)| is_kept(name));
    let buffers = firsts.map(|(first, tensor)| {
        let copy = copy_of(tensor).map_err(|error| failed(first, &error))?;
        Ok(Buffer {
            seat: runner.seat(&state.names_of(first)),
            first: copy,
        })
    });
    buffers.collect()
}

fn weights_of(state: &State) -> Result<Vec<(String, Tensor, i64)>, AtenError> {
    let saved = state.saved().into_iter();
    let versions = saved.map(|(name, tensor)| {
        let version = tensor.f_internal_version()?;
        Ok((name, tensor, version))
    });
    versions.collect()
}

fn invalid(reason: impl std::fmt::Display) -> Failure {
    Failure::new(Code::InvalidProgram, reason)
}
