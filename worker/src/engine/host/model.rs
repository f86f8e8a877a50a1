//! A loaded version: what its inputs must be, and its program over rows of several calls at once.

use std::{fs::File, io::BufReader, path::Path};

use comptoir_domain::{
    program::{
        Program, Role,
        graph::{ScalarType, SymInt, TensorMeta},
        operators,
    },
    tensors::{are_booleans, dtype_name},
};
use comptoir_wire::calls::{self, DIMENSIONS_MAX, TENSORS_MAX, Tensor as Sent};
use tch::{Device, Tensor};

use super::HostTask;
use crate::{
    aten::AtenError,
    engine::{
        failure::{Code, Failure},
        files::{self, TensorFile},
        plan::Phase,
        runner::Runner,
        state::{ProgramFile, State, unreadable},
    },
};

/// Bytes of an answer beside its tensors' elements, at most.
const ANSWER_HEAD_BYTES: u64 = 64 << 10;

/// A row of an input or an output.
struct Row {
    name: String,
    dtype: ScalarType,
    sizes: Vec<u64>,
    bytes: usize,
}

/// A stored tensor that runs may change.
struct Kept {
    name: String,
    tensor: Tensor,
    version: i64,
    /// What it holds before a run; none for weights, which no run may change.
    before: Option<Tensor>,
}

/// A program with its tensors, ready for calls.
pub struct Model {
    runner: Runner,
    device: Device,
    inputs: Vec<Row>,
    outputs: Vec<Row>,
    /// Rows of one run.
    rows_min: u64,
    rows_max: u64,
    kept: Vec<Kept>,
    draws: bool,
    state: State,
}

/// What came out of rows.
pub struct Computed {
    /// The bytes of each output.
    pub outputs: Vec<Vec<u8>>,
    /// Rows of the largest run that they took.
    pub batch_rows: u64,
}

/// Why nothing came out.
pub enum Stopped {
    /// The program does not compute these rows.
    Rows(Failure),
    /// The program does what none may, and computes nothing more.
    Program(Failure),
}

impl Model {
    /// Loads files of the scratch folder.
    pub fn load(task: &HostTask, device: Device) -> Result<Self, Failure> {
        let mut archive = open_program(&task.program)?;
        let program = archive.program().clone();
        let mut runner = Runner::new(&program, Phase::Inference, device)?;
        let mut state = State::load(&mut archive, device)?;
        if let Some(weights) = &task.weights {
            let mut file = TensorFile::open(weights)
                .map_err(|error| error.into_failure(Code::InvalidWeights, "open the weights"))?;
            state.apply(&mut file)?;
        }
        runner.attach(&state)?;
        let rows_max = u64::from(task.batch_max).max(program.batch.min);
        let rows = |tensors: &mut dyn Iterator<Item = (&str, &TensorMeta)>| -> Result<_, Failure> {
            let rows = tensors.map(row).collect::<Result<Vec<_>, _>>()?;
            if rows.len() > TENSORS_MAX {
                let reason = format!("calls carry at most {TENSORS_MAX} tensors");
                return Err(Failure::new(Code::InvalidProgram, reason));
            }
            Ok(rows)
        };
        Ok(Self {
            inputs: rows(&mut program.user_inputs())?,
            outputs: rows(&mut program.user_outputs())?,
            rows_min: program.batch.min,
            rows_max: rows_max.min(program.batch.max),
            kept: kept(&program, &state).map_err(|error| failed("keep buffers", &error))?,
            draws: program.graph.nodes.iter().any(|node| draws(&node.target)),
            runner,
            device,
            state,
        })
    }

    /// The tensors that it computes with.
    #[must_use]
    pub const fn state(&self) -> &State {
        &self.state
    }

    /// Rows of one run at most.
    #[must_use]
    pub const fn rows_max(&self) -> u64 {
        self.rows_max
    }

    /// How many rows a call has. It is refused where its inputs are not those of the program.
    pub fn rows(&self, inputs: &[Sent]) -> Result<u64, String> {
        if inputs.len() != self.inputs.len() {
            let (found, expected) = (inputs.len(), self.inputs.len());
            return Err(format!("{found} inputs; the program has {expected}"));
        }
        let rows = inputs.first().and_then(Sent::rows).unwrap_or(0);
        for (input, expected) in inputs.iter().zip(&self.inputs) {
            let name = &expected.name;
            if input.dtype != expected.dtype {
                let (found, expected) = (dtype_name(input.dtype), dtype_name(expected.dtype));
                return Err(format!(
                    "input `{name}` is {found}; the program takes {expected}"
                ));
            }
            if input.shape.get(1..) != Some(&expected.sizes) {
                let (found, expected) = (&input.shape, &expected.sizes);
                return Err(format!(
                    "input `{name}` has the shape {found:?}; the program takes rows of {expected:?}"
                ));
            }
            if input.rows() != Some(rows) {
                return Err(format!("input `{name}` has other rows than the first"));
            }
            if input.dtype == ScalarType::Bool && !are_booleans(&input.bytes) {
                return Err(format!(
                    "input `{name}` has a boolean that is neither 0 nor 1"
                ));
            }
        }
        if rows == 0 {
            return Err("there is no row".to_owned());
        }
        // A row of no bytes counts as one.
        let row: usize = self.outputs.iter().map(|output| output.bytes).sum();
        let bytes = rows.saturating_mul((row as u64).max(1));
        if bytes > calls::CALL_BYTES_MAX as u64 - ANSWER_HEAD_BYTES {
            return Err(format!("{rows} rows would make an answer of {bytes} bytes"));
        }
        Ok(rows)
    }

    /// Runs the program over all rows of some calls, which were counted before.
    pub fn compute(&mut self, calls: &[&[Sent]], rows: u64) -> Result<Computed, Stopped> {
        let inputs: Vec<Vec<u8>> = (0..self.inputs.len())
            .map(|index| {
                let parts: Vec<&[u8]> = calls
                    .iter()
                    .map(|inputs| inputs[index].bytes.as_slice())
                    .collect();
                parts.concat()
            })
            .collect();
        let mut computed = Computed {
            outputs: vec![Vec::new(); self.outputs.len()],
            batch_rows: 0,
        };
        let mut start = 0;
        while start < rows {
            let length = self.rows_max.min(rows - start);
            let batch_rows = length.max(self.rows_min);
            let outputs = self.run(&inputs, start, (length, batch_rows));
            self.reset().map_err(Stopped::Program)?;
            let outputs = outputs.map_err(Stopped::Rows)?;
            for ((whole, output), row) in
                computed.outputs.iter_mut().zip(outputs).zip(&self.outputs)
            {
                // What was computed of rows that only fill the batch up is let go.
                whole.extend_from_slice(&output[..index(length) * row.bytes]);
            }
            computed.batch_rows = computed.batch_rows.max(batch_rows);
            start += length;
        }
        Ok(computed)
    }

    /// One run over some rows, the first of them repeated until they are as many as the program needs.
    fn run(
        &mut self,
        inputs: &[Vec<u8>],
        start: u64,
        (length, batch_rows): (u64, u64),
    ) -> Result<Vec<Vec<u8>>, Failure> {
        if self.draws {
            // Random operators draw the same numbers in every batch, on every worker.
            tch::manual_seed(0);
        }
        let batch = inputs.iter().zip(&self.inputs).map(|(bytes, row)| {
            let from = index(start) * row.bytes;
            let part = &bytes[from..from + index(length) * row.bytes];
            let shape = [&[batch_rows], row.sizes.as_slice()].concat();
            let tensor = if batch_rows == length {
                files::from_bytes(row.dtype, &shape, part)?
            } else {
                let first = part[..row.bytes].repeat(index(batch_rows - length));
                files::from_bytes(row.dtype, &shape, &[part, &first].concat())?
            };
            Ok(tensor.f_to_device(self.device)?)
        });
        let batch = batch
            .collect::<Result<Vec<_>, AtenError>>()
            .map_err(|error| failed("put a batch together", &error))?;
        let outputs = self.runner.run(&batch)?;
        let bytes = outputs.iter().map(files::to_bytes);
        bytes
            .collect::<Result<_, _>>()
            .map_err(|error| failed("read what came out", &error))
    }

    /// Gives buffers back what they held before, so that no batch sees anything of another.
    fn reset(&mut self) -> Result<(), Failure> {
        for kept in &mut self.kept {
            let version = kept
                .tensor
                .f_internal_version()
                .map_err(|error| failed(&kept.name, &error.into()))?;
            if version == kept.version {
                continue;
            }
            let Some(before) = &kept.before else {
                let reason = format!("the program changes its weight `{}`", kept.name);
                return Err(Failure::new(Code::InvalidProgram, reason));
            };
            let restore = || -> Result<i64, AtenError> {
                kept.tensor.shallow_clone().f_copy_(before)?;
                Ok(kept.tensor.f_internal_version()?)
            };
            kept.version = restore().map_err(|error| failed(&kept.name, &error))?;
        }
        Ok(())
    }

    /// What of the outputs of several calls is that of one.
    #[must_use]
    pub fn part(&self, computed: &Computed, start: u64, rows: u64) -> Vec<Sent> {
        let parts = self.outputs.iter().zip(&computed.outputs);
        parts
            .map(|(row, bytes)| Sent {
                dtype: row.dtype,
                shape: [&[rows], row.sizes.as_slice()].concat(),
                bytes: bytes[index(start) * row.bytes..][..index(rows) * row.bytes].to_vec(),
            })
            .collect()
    }
}

/// Rows of calls fit into memory.
fn index(rows: u64) -> usize {
    usize::try_from(rows).expect("rows were counted against bytes in memory")
}

fn row((name, meta): (&str, &TensorMeta)) -> Result<Row, Failure> {
    let unfit = |reason: &str| {
        let reason = format!("`{name}` {reason}");
        Failure::new(Code::InvalidProgram, reason)
    };
    if meta.sizes.len() > DIMENSIONS_MAX {
        return Err(unfit("has more dimensions than calls carry"));
    }
    let sizes = meta.sizes.iter().skip(1).map(|size| match size {
        SymInt::Int(size) => u64::try_from(*size).ok(),
        SymInt::Expr(_) => None,
    });
    let sizes: Option<Vec<u64>> = sizes.collect();
    let sizes = sizes.ok_or_else(|| unfit("has rows without a size"))?;
    let bytes = comptoir_domain::program::contiguous_bytes(meta.dtype, &sizes);
    let bytes = bytes.and_then(|bytes| usize::try_from(bytes).ok());
    Ok(Row {
        name: name.to_owned(),
        dtype: meta.dtype,
        bytes: bytes.ok_or_else(|| unfit("has rows without an end"))?,
        sizes,
    })
}

/// Does it draw numbers?
fn draws(target: &str) -> bool {
    ["rand", "bernoulli"].iter().any(|it| target.contains(it))
}

/// Stored tensors of a program that may change any; none of one that cannot.
fn kept(program: &Program, state: &State) -> Result<Vec<Kept>, AtenError> {
    let writes = |target: &str| {
        operators::writes(target, "self") || operators::writes(target, "running_mean")
    };
    let assigns = program.user_outputs().count() < program.signature.output_specs.len();
    if !assigns && !program.graph.nodes.iter().any(|it| writes(&it.target)) {
        return Ok(Vec::new());
    }
    let keep = |(name, tensor): (&String, &Tensor)| {
        let is_buffer = matches!(program.tensors[name].role, Role::Buffer { .. });
        Ok(Kept {
            name: name.clone(),
            version: tensor.f_internal_version()?,
            before: is_buffer.then(|| copy_of(tensor)).transpose()?,
            tensor: tensor.shallow_clone(),
        })
    };
    state.firsts().map(keep).collect()
}

/// An archive of the scratch folder.
pub(super) fn open_program(path: &Path) -> Result<ProgramFile, Failure> {
    let file = File::open(path)
        .map_err(|error| Failure::new(Code::Machine, format_args!("open the program: {error}")))?;
    ProgramFile::open(BufReader::new(file)).map_err(unreadable)
}

pub(super) fn copy_of(tensor: &Tensor) -> Result<Tensor, AtenError> {
    let mut copy = tensor.f_empty_like()?;
    copy.f_copy_(tensor)?;
    Ok(copy)
}

pub(super) fn failed(what: &str, error: &AtenError) -> Failure {
    Failure::from_aten(Code::Machine, what, error)
}
