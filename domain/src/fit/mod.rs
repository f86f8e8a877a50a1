//! Does a job fit its program? Everything that can be said from the heads of files is said before money is
//! held: names, element types, shapes, rows, batches, weights; and how much memory a run needs.

mod facts;

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    digest::Sha256,
    job::{InferenceSpec, JobSpec, Loss, TensorRef, Tier, TrainingSpec},
    price::Meter,
    program::contiguous_bytes,
    replay::PIECE_STEPS_MAX,
    tensors::{TensorInfo, TensorsHeader, dtype_name},
};

pub use facts::{FACTS_VERSION, NoFacts, ProgramFacts, RowShape, Weight};

/// Bytes of the largest result.
pub const OUTPUT_BYTES_MAX: u64 = 1 << 30;
/// Memory of a run beside its tensors: the graph, allocators, scratch of operators.
const MEMORY_FIXED_BYTES: u64 = 256 << 20;
/// Misfits that are told at once.
const MISFITS_MAX: usize = 20;

/// Rows of one batch of a hosted program at most.
const HOSTED_ROWS_MAX: u32 = 256;
/// Bytes of all values of one batch of a hosted program, as far as one row allows.
const HOSTED_VALUE_BYTES: u64 = 512 << 20;

/// Texts that one hosted program writes at a time, at most.
const TEXTS_MAX: u64 = 32;
/// Bytes that they keep from one token to the next, as far as one text allows.
const WRITING_KEPT_BYTES: u64 = 1 << 30;

/// What it takes to answer calls of a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hosting {
    /// Rows of one batch at most.
    pub batch_max: u32,
    /// Texts that are written at a time, at most; 0 where there is no program for that.
    pub texts_max: u32,
    /// Memory that it needs, in bytes.
    pub memory_bytes: u64,
}

/// How a program is hosted, with one that writes texts beside it if there is one: batches as large as its export holds for and a part of a machine's memory
/// allows, and as many texts at a time as another part has room for what each keeps.
#[must_use]
pub fn hosting(program: &ProgramFacts, generate: Option<&ProgramFacts>) -> Hosting {
    let least = u32::try_from(program.batch_min.max(1)).unwrap_or(u32::MAX);
    let most = u32::try_from(program.batch_max).unwrap_or(u32::MAX);
    let fits = |rows: u32| values(program, rows.into()).saturating_mul(2) <= HOSTED_VALUE_BYTES;
    let powers = (0..=HOSTED_ROWS_MAX.ilog2()).rev().map(|power| 1 << power);
    let largest = powers
        .map(|rows: u32| rows.min(most))
        .find(|rows| fits(*rows));
    let batch_max = largest.unwrap_or(1).max(least);
    let outputs = rows_out(program, batch_max.into()).saturating_mul(2);
    let memory_bytes = [
        // As read, and as computed with.
        program.stored_bytes.saturating_mul(2),
        outputs,
        values(program, batch_max.into()).saturating_mul(2),
    ];
    let memory_bytes = memory_bytes
        .into_iter()
        .fold(MEMORY_FIXED_BYTES, u64::saturating_add);
    let (texts_max, for_texts) = generate.map_or((0, 0), writing);
    Hosting {
        batch_max,
        texts_max,
        memory_bytes: memory_bytes.saturating_add(for_texts),
    }
}

/// Texts that a program writes at a time, and the bytes that it needs for that.
fn writing(generate: &ProgramFacts) -> (u32, u64) {
    let kept = kept_bytes(generate);
    let texts_max = (WRITING_KEPT_BYTES / kept.max(1)).clamp(1, TEXTS_MAX);
    let bytes = [
        generate.stored_bytes,
        kept.saturating_mul(texts_max),
        values(generate, 1).saturating_mul(2),
    ];
    let bytes = bytes.into_iter().fold(0, u64::saturating_add);
    (u32::try_from(texts_max).unwrap_or(u32::MAX), bytes)
}

/// Bytes that a program keeps from one step to the next: its buffers that are not saved, and what is constant, which is little.
fn kept_bytes(program: &ProgramFacts) -> u64 {
    let kept = program.weights.iter();
    let kept = kept.filter(|(name, it)| !it.is_needed && it.saved_as == **name);
    let bytes = kept.map(|(_, it)| {
        let dtype = crate::tensors::dtype_of(&it.dtype);
        let bytes = dtype.and_then(|dtype| contiguous_bytes(dtype, &it.sizes));
        bytes.unwrap_or(u64::MAX)
    });
    bytes.fold(0, u64::saturating_add)
}

/// One thing that does not fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Misfit {
    /// RFC 6901 pointer into the specification.
    pub pointer: String,
    /// What is wrong.
    pub detail: String,
}

/// What a fitting job comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fit {
    /// What is counted of it.
    pub meter: Meter,
    /// Memory that a worker must offer.
    pub min_memory_bytes: u64,
    /// Bytes of the tensors that come out.
    pub output_bytes: u64,
}

/// Checks a job against its program and the heads of the tensor files that it names. A file that is not in
/// `files` was refused before and is passed over.
///
/// # Errors
/// What does not fit, at most the first twenty.
pub fn check(
    spec: &JobSpec,
    tier: Tier,
    program: &ProgramFacts,
    files: &BTreeMap<Sha256, TensorsHeader>,
) -> Result<Fit, Vec<Misfit>> {
    let mut check = Check {
        program,
        files,
        rows: None,
        misfits: Vec::new(),
    };
    check.inputs(spec.inputs());
    match spec {
        JobSpec::Training(training) => {
            check.training(training);
            if tier == Tier::Sampled && training.segment_steps > PIECE_STEPS_MAX {
                let detail =
                    "at most 10 with tier sampled: audits replay what lies between two checkpoints";
                check.misfit("/segment_steps", detail);
            }
        }
        JobSpec::Inference(inference) => check.inference(inference),
    }
    if let Some(weights) = spec.weights() {
        check.weights(weights);
    }
    let rows = check.rows.unwrap_or_default();
    let counted = match spec {
        JobSpec::Training(it) => {
            Meter::training(program.madds_per_row.into(), rows, it.epochs, tier)
        }
        JobSpec::Inference(_) => Meter::inference(program.madds_per_row.into(), rows, tier),
    };
    if counted.is_none() {
        check.misfit("", "the job is too large to be priced");
    }
    match counted {
        Some(meter) if check.misfits.is_empty() => Ok(Fit {
            meter,
            min_memory_bytes: memory(spec, rows, program, files),
            output_bytes: output_bytes(spec, rows, program),
        }),
        _ => {
            check.misfits.truncate(MISFITS_MAX);
            Err(check.misfits)
        }
    }
}

struct Check<'a> {
    program: &'a ProgramFacts,
    files: &'a BTreeMap<Sha256, TensorsHeader>,
    /// Of the first tensor that was found.
    rows: Option<u64>,
    misfits: Vec<Misfit>,
}

impl<'a> Check<'a> {
    fn misfit(&mut self, pointer: impl Into<String>, detail: impl Into<String>) {
        self.misfits.push(Misfit {
            pointer: pointer.into(),
            detail: detail.into(),
        });
    }

    fn inputs(&mut self, inputs: &BTreeMap<String, TensorRef>) {
        let program = self.program;
        let names: BTreeSet<&str> = program.inputs.iter().map(|it| it.name.as_str()).collect();
        for input in &program.inputs {
            if !inputs.contains_key(&input.name) {
                self.misfit(
                    "/inputs",
                    format!("the program's input `{}` is missing", input.name),
                );
            }
        }
        for (name, tensor) in inputs {
            let pointer = format!("/inputs/{}", escape(name));
            let Some(expected) = program.inputs.iter().find(|it| it.name == *name) else {
                let names = names.iter().copied().collect::<Vec<_>>().join("`, `");
                self.misfit(
                    pointer,
                    format!("the program has no such input; it has `{names}`"),
                );
                continue;
            };
            if let Some(found) = self.tensor(&pointer, tensor) {
                self.shape(&pointer, found, &expected.dtype, &expected.row);
            }
        }
    }

    /// The tensor that is referred to; its rows must be those of the others.
    fn tensor(&mut self, pointer: &str, tensor: &TensorRef) -> Option<&'a TensorInfo> {
        let Some(found) = self.files.get(&tensor.blob)?.tensors.get(&tensor.tensor) else {
            self.misfit(
                format!("{pointer}/tensor"),
                format!("the file has no tensor `{}`", tensor.tensor),
            );
            return None;
        };
        match (found.rows(), self.rows) {
            (None | Some(0), _) => self.misfit(pointer, "the tensor has no rows"),
            (rows, None) => self.rows = rows,
            (Some(rows), Some(others)) if rows != others => {
                self.misfit(
                    pointer,
                    format!("it has {rows} rows where others have {others}"),
                );
            }
            (Some(_), Some(_)) => {}
        }
        Some(found)
    }

    fn shape(&mut self, pointer: &str, found: &TensorInfo, dtype: &str, row: &[u64]) {
        let found_dtype = dtype_name(found.dtype);
        if found_dtype != dtype {
            self.misfit(
                pointer,
                format!("it holds {found_dtype}; the program takes {dtype}"),
            );
        }
        let found_row = found.shape.get(1..).unwrap_or_default();
        if found_row != row {
            let detail = format!("a row has the shape {found_row:?}; the program takes {row:?}");
            self.misfit(pointer, detail);
        }
    }

    fn batches(&mut self, batch_size: u32) {
        if let Some(rows) = self.rows
            && let Err(error) = self.program.batch().allows(rows, batch_size.into())
        {
            self.misfit("/batch_size", error.to_string());
        }
    }

    fn inference(&mut self, spec: &InferenceSpec) {
        self.batches(spec.batch_size);
        let bytes = rows_out(self.program, self.rows.unwrap_or_default());
        if bytes > OUTPUT_BYTES_MAX {
            self.misfit(
                "/inputs",
                format!(
                    "the outputs would be {bytes} bytes; at most {OUTPUT_BYTES_MAX} are stored"
                ),
            );
        }
    }

    fn training(&mut self, spec: &TrainingSpec) {
        if !self.program.is_trainable {
            let detail =
                "the program was not exported as training IR, or has no parameter to learn";
            self.misfit("/program", detail);
        }
        let target = self.tensor("/target", &spec.target);
        self.batches(spec.batch_size);
        let index = usize::try_from(spec.output).unwrap_or(usize::MAX);
        let Some(output) = self.program.outputs.get(index) else {
            self.misfit(
                "/output",
                format!("the program has {} outputs", self.program.outputs.len()),
            );
            return;
        };
        if !matches!(output.dtype.as_str(), "F16" | "BF16" | "F32" | "F64") {
            self.misfit(
                "/output",
                format!("the output holds {}, which has no gradient", output.dtype),
            );
        }
        let (dtype, row) = match (spec.loss, output.row.split_last()) {
            (Loss::Mse, _) => (output.dtype.as_str(), output.row.as_slice()),
            (Loss::CrossEntropy, Some((1.., positions))) => ("I64", positions),
            (Loss::CrossEntropy, Some(_) | None) => {
                self.misfit("/loss", "the output has no dimension of classes");
                return;
            }
        };
        if let Some(target) = target {
            self.shape("/target", target, dtype, row);
        }
    }

    fn weights(&mut self, weights: Sha256) {
        let Some(file) = self.files.get(&weights) else {
            return;
        };
        for detail in self::weights(self.program, file) {
            self.misfit("/weights", detail);
        }
    }
}

/// Why a file is not one of a program's weights: it holds what the program stores, under any of its names, and nothing else; of tied tensors one.
#[must_use]
pub fn weights(program: &ProgramFacts, file: &TensorsHeader) -> Vec<String> {
    let (mut misfits, mut given) = (Vec::new(), BTreeSet::new());
    for (name, found) in &file.tensors {
        let Some(expected) = program.weights.get(name) else {
            misfits.push(format!("the program stores no `{name}`"));
            continue;
        };
        given.insert(&expected.saved_as);
        let dtype = dtype_name(found.dtype);
        if (dtype, &found.shape) != (expected.dtype.as_str(), &expected.sizes) {
            let Weight {
                dtype: expected_dtype,
                sizes,
                ..
            } = expected;
            let found = &found.shape;
            misfits.push(format!(
                "`{name}` is {dtype} {found:?}; the program has {expected_dtype} {sizes:?}"
            ));
        }
    }
    let needed = program.weights.values().filter(|it| it.is_needed);
    let needed: BTreeSet<_> = needed.map(|it| &it.saved_as).collect();
    let missing = needed.difference(&given);
    misfits.extend(missing.map(|name| format!("`{name}` is missing")));
    misfits
}

/// An estimate that errs upwards: a worker gives a run this much and ends it at more.
fn memory(
    spec: &JobSpec,
    rows: u64,
    program: &ProgramFacts,
    files: &BTreeMap<Sha256, TensorsHeader>,
) -> u64 {
    let data = |tensors: &[&TensorRef]| {
        let infos = tensors
            .iter()
            .filter_map(|it| files.get(&it.blob)?.tensors.get(&it.tensor));
        infos.fold(0_u64, |sum, info| {
            sum.saturating_add(info.bytes.end.saturating_sub(info.bytes.start))
        })
    };
    let mut tensors: Vec<&TensorRef> = spec.inputs().values().collect();
    // Twice: once as read, once as the tensors that are computed with.
    let stored = program.stored_bytes.saturating_mul(2);
    let batch = |batch_size: u32| values(program, u64::from(batch_size).min(rows));
    let working = match spec {
        JobSpec::Training(it) => {
            tensors.push(&it.target);
            // Gradients, two moments, and the checkpoint being written.
            let learned = program.learned_bytes.saturating_mul(4);
            // Values, their gradients, and scratch.
            learned.saturating_add(batch(it.batch_size).saturating_mul(3))
        }
        JobSpec::Inference(it) => {
            let outputs = rows_out(program, rows).saturating_mul(2);
            outputs.saturating_add(batch(it.batch_size).saturating_mul(2))
        }
    };
    [stored, data(&tensors).saturating_mul(2), working]
        .into_iter()
        .fold(MEMORY_FIXED_BYTES, u64::saturating_add)
        .min(i64::MAX.unsigned_abs())
}

/// Bytes of the outputs of so many rows.
fn rows_out(program: &ProgramFacts, rows: u64) -> u64 {
    let outputs = program.outputs.iter();
    let row = outputs.fold(0_u64, |sum, it| sum.saturating_add(it.row_bytes));
    row.saturating_mul(rows)
}

/// Bytes of the tensors that come out: what the program stores, trained, or the outputs of all rows.
fn output_bytes(spec: &JobSpec, rows: u64, program: &ProgramFacts) -> u64 {
    match spec {
        JobSpec::Training(_) => program.stored_bytes,
        JobSpec::Inference(_) => rows_out(program, rows),
    }
}

/// Bytes of all values of one run with this batch.
fn values(program: &ProgramFacts, batch: u64) -> u64 {
    let value = program
        .value_bytes
        .iter()
        .rev()
        .fold(0_i128, |value, coefficient| {
            value
                .saturating_mul(batch.into())
                .saturating_add((*coefficient).into())
        });
    u64::try_from(value.max(0)).unwrap_or(u64::MAX)
}

fn escape(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}

#[cfg(test)]
mod tests;
