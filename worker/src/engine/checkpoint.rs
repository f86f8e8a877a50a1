//! Checkpoints: everything a training needs to go on as if it had never stopped.
//!
//! A checkpoint is a canonical safetensors file. Tensors are numbered in the order of their names in the module, since
//! names may be as long as the format allows: `state.N` are the program's tensors, `first.N`, `second.N` and `steps` what
//! the optimizer remembers of its N-th parameter, `generator` the random generator of the device, `counts` and `loss`
//! how far the epoch is. Two machines of one numeric class write the same bytes.

use std::path::Path;

use comptoir_domain::tensors::TENSORS_MAX;
use tch::{Device, Tensor};

use super::{
    failure::{Code, Failure},
    files::{self, Saved, TensorFile},
    optimizer::{Memory, Optimizer},
    state::State,
};
use crate::aten::{self, AtenError};

/// Tensors of a checkpoint besides the program's and two for each parameter.
const OTHERS: usize = 4;

/// How far a training is.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Progress {
    /// Optimizer steps done, in all.
    pub step: u64,
    /// Rows seen in this epoch.
    pub rows: u64,
    /// Loss of each row seen in this epoch, added up.
    pub loss: f64,
    /// Class indices that were the likeliest in this epoch.
    pub correct: u64,
    /// Class indices looked at in this epoch.
    pub judged: u64,
}

impl Progress {
    /// A step over so many rows was taken.
    #[expect(
        clippy::cast_precision_loss,
        reason = "rows of a batch are far below 2^53"
    )]
    pub fn took(&mut self, rows: u64, loss: f64, correct: Option<(i64, i64)>) {
        self.step += 1;
        self.rows += rows;
        self.loss += loss * rows as f64;
        if let Some((correct, judged)) = correct {
            self.correct += correct.unsigned_abs();
            self.judged += judged.unsigned_abs();
        }
    }

    /// Forgets the epoch that has ended.
    pub fn start_epoch(&mut self) {
        *self = Self {
            step: self.step,
            ..Self::default()
        };
    }

    /// The mean over the rows of this epoch.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "rows are far below 2^53")]
    pub fn mean_loss(&self) -> f64 {
        self.loss / self.rows.max(1) as f64
    }

    /// The share of class indices of this epoch that were the likeliest.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "rows are far below 2^53")]
    pub fn accuracy(&self) -> f64 {
        self.correct as f64 / self.judged.max(1) as f64
    }
}

/// Refuses a program whose checkpoint would hold more tensors than a file may.
pub fn check_size(state: &State, parameters: usize) -> Result<(), Failure> {
    let tensors = state.firsts().count() + 2 * parameters + OTHERS;
    if tensors > TENSORS_MAX {
        let reason = format!("a checkpoint would hold {tensors} tensors; files hold {TENSORS_MAX}");
        return Err(Failure::new(Code::InvalidProgram, reason));
    }
    Ok(())
}

/// Writes the checkpoint at the end of a segment.
pub fn save(
    scratch: &Path,
    segment: u32,
    state: &State,
    optimizer: &Optimizer,
    progress: &Progress,
    device: Device,
) -> Result<Saved, Failure> {
    let mut named: Vec<(String, Tensor)> = Vec::new();
    for (index, (_, tensor)) in state.firsts().enumerate() {
        named.push((format!("state.{index}"), tensor.shallow_clone()));
    }
    for (index, memory) in optimizer.memories().iter().enumerate() {
        for (slot, tensor) in [("first", &memory.first), ("second", &memory.second)] {
            if let Some(tensor) = tensor {
                named.push((format!("{slot}.{index}"), tensor.shallow_clone()));
            }
        }
    }
    let steps: Vec<i64> = optimizer
        .memories()
        .iter()
        .map(|memory| i64::from(memory.steps))
        .collect();
    let counts = [
        progress.step,
        progress.rows,
        progress.correct,
        progress.judged,
    ]
    .map(u64::cast_signed);
    named.push(("steps".to_owned(), Tensor::from_slice(&steps)));
    named.push(("counts".to_owned(), Tensor::from_slice(&counts)));
    named.push(("loss".to_owned(), Tensor::from_slice(&[progress.loss])));
    let generator = aten::generator_state(device);
    named.push((
        "generator".to_owned(),
        generator.map_err(|error| broken("save a checkpoint", &error))?,
    ));
    let name = format!("checkpoint-{segment}.safetensors");
    files::save(scratch, &name, &named)
        .map_err(|error| error.into_failure(Code::Machine, "save a checkpoint"))
}

/// Puts a fresh training back to where a checkpoint was made.
pub fn restore(
    path: &Path,
    state: &State,
    optimizer: &mut Optimizer,
    device: Device,
) -> Result<Progress, Failure> {
    let _guard = tch::no_grad_guard();
    let file = TensorFile::open(path)
        .map_err(|error| error.into_failure(Code::InvalidCheckpoint, "open a checkpoint"))?;
    let mut reader = Reader { file };
    for (index, (_, target)) in state.firsts().enumerate() {
        let tensor = reader.tensor(&format!("state.{index}"))?;
        if tensor.size() != target.size() || tensor.f_kind().ok() != target.f_kind().ok() {
            return Err(Failure::new(
                Code::InvalidCheckpoint,
                "the checkpoint is of another program",
            ));
        }
        target
            .shallow_clone()
            .f_copy_(&tensor)
            .map_err(|error| broken("restore a tensor", &error.into()))?;
    }
    let steps = reader.integers("steps")?;
    if steps.len() != optimizer.memories().len() {
        return Err(Failure::new(
            Code::InvalidCheckpoint,
            "the checkpoint is of another program",
        ));
    }
    let mut memories = Vec::with_capacity(steps.len());
    for (index, steps) in steps.into_iter().enumerate() {
        let steps =
            u32::try_from(steps).map_err(|error| Failure::new(Code::InvalidCheckpoint, error))?;
        let first = reader.optional(&format!("first.{index}"), device)?;
        let second = reader.optional(&format!("second.{index}"), device)?;
        memories.push(Memory {
            steps,
            first,
            second,
        });
    }
    optimizer.restore(memories);
    let generator = reader.tensor("generator")?;
    aten::set_generator_state(device, &generator)
        .map_err(|error| broken("restore the generator", &error))?;
    let counts = reader.integers("counts")?;
    let loss = reader
        .tensor("loss")?
        .f_double_value(&[0])
        .map_err(|error| broken("read the loss", &error.into()))?;
    let [step, rows, correct, judged] = counts[..] else {
        return Err(Failure::new(
            Code::InvalidCheckpoint,
            "the checkpoint does not say how far it is",
        ));
    };
    let [step, rows, correct, judged] = [step, rows, correct, judged].map(i64::unsigned_abs);
    Ok(Progress {
        step,
        rows,
        loss,
        correct,
        judged,
    })
}

struct Reader {
    file: TensorFile,
}

impl Reader {
    fn tensor(&mut self, name: &str) -> Result<Tensor, Failure> {
        self.file
            .tensor(name)
            .map_err(|error| error.into_failure(Code::InvalidCheckpoint, "read a checkpoint"))
    }

    fn optional(&mut self, name: &str, device: Device) -> Result<Option<Tensor>, Failure> {
        if !self.file.header().tensors.contains_key(name) {
            return Ok(None);
        }
        let tensor = self.tensor(name)?;
        tensor
            .f_to_device(device)
            .map(Some)
            .map_err(|error| broken("restore the optimizer", &error.into()))
    }

    fn integers(&mut self, name: &str) -> Result<Vec<i64>, Failure> {
        let tensor = self.tensor(name)?;
        let mut integers = vec![0_i64; tensor.numel()];
        let length = integers.len();
        tensor
            .f_copy_data(&mut integers, length)
            .map_err(|error| broken("read a checkpoint", &error.into()))?;
        Ok(integers)
    }
}

fn broken(what: &str, error: &AtenError) -> Failure {
    Failure::from_aten(Code::InvalidCheckpoint, what, error)
}
