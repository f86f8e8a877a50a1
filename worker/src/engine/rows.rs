//! A job's rows: its input tensors and, for training, its target.

use std::path::{Path, PathBuf};

use comptoir_domain::{
    digest::Sha256,
    job::{JobSpec, TensorRef},
    program::{Program, graph::SymInt},
};
use tch::{Device, Tensor};

use super::{
    failure::{Code, Failure},
    files::{FileError, TensorFile},
    message::JobTask,
    plan::kind_of,
    sealed::SealedReader,
};
use crate::aten::AtenError;

/// Input tensors in the order of the program's inputs, in host memory.
pub struct Rows {
    pub inputs: Vec<Tensor>,
    pub rows: usize,
}

impl Rows {
    /// Loads the inputs of a job and checks them against the program: names, element types, shapes, and that every batch
    /// has a size for which the program holds.
    pub fn load(program: &Program, job: &JobTask, batch_size: u32) -> Result<Self, Failure> {
        let given = job.spec.inputs();
        let (mut inputs, mut rows) = (Vec::new(), None);
        for (name, meta) in program.user_inputs() {
            let wrong = |reason: String| {
                Failure::new(Code::InvalidInput, format_args!("input `{name}` {reason}"))
            };
            let source = given
                .get(name)
                .ok_or_else(|| wrong("is missing".to_owned()))?;
            let tensor = load(job, source)?;
            let kind = tensor
                .f_kind()
                .map_err(|error| read_failed(&error.into()))?;
            if kind != kind_of(meta.dtype) {
                return Err(wrong(format!(
                    "is {kind:?}; the program takes {:?}",
                    kind_of(meta.dtype)
                )));
            }
            let size = tensor.size();
            let row: Vec<SymInt> = size.iter().skip(1).map(|size| SymInt::Int(*size)).collect();
            if size.is_empty() || Some(row.as_slice()) != meta.sizes.get(1..) {
                return Err(wrong(format!(
                    "has the shape {size:?}, which the program does not take"
                )));
            }
            if *rows.get_or_insert(size[0]) != size[0] {
                return Err(wrong(format!(
                    "has {} rows, another input has not",
                    size[0]
                )));
            }
            inputs.push(tensor);
        }
        if let Some(unknown) = given
            .keys()
            .find(|name| !program.user_inputs().any(|(known, _)| known == *name))
        {
            return Err(Failure::new(
                Code::InvalidInput,
                format_args!("the program has no input `{unknown}`"),
            ));
        }
        let rows = usize::try_from(rows.unwrap_or(0)).expect("a tensor has no negative size");
        if rows == 0 {
            return Err(Failure::new(Code::InvalidInput, "there is no row"));
        }
        let allowed = program.batch.allows(rows as u64, u64::from(batch_size));
        allowed.map_err(|reason| Failure::new(Code::InvalidInput, reason))?;
        Ok(Self { inputs, rows })
    }

    /// Some rows of each input, on a device.
    pub fn select(&self, rows: &Tensor, device: Device) -> Result<Vec<Tensor>, AtenError> {
        self.inputs
            .iter()
            .map(|input| select(input, rows, device))
            .collect()
    }

    /// A run of neighbouring rows of each input, on a device.
    pub fn slice(
        &self,
        start: usize,
        length: usize,
        device: Device,
    ) -> Result<Vec<Tensor>, AtenError> {
        let number = |rows| i64::try_from(rows).expect("rows are counted in i64");
        let part = |input: &Tensor| {
            Ok(input
                .f_narrow(0, number(start), number(length))?
                .f_to_device(device)?)
        };
        self.inputs.iter().map(part).collect()
    }
}

/// Some rows of a tensor, on a device.
pub fn select(tensor: &Tensor, rows: &Tensor, device: Device) -> Result<Tensor, AtenError> {
    Ok(tensor.f_index_select(0, rows)?.f_to_device(device)?)
}

/// A tensor that the specification names.
pub fn load(job: &JobTask, source: &TensorRef) -> Result<Tensor, Failure> {
    let mut file = match source.dataset_version {
        None => open(job, source.blob)?,
        Some(_) => open_sealed(job, source.blob)?,
    };
    file.tensor(&source.tensor)
        .map_err(|error| error.into_failure(Code::InvalidInput, "read a tensor of the input"))
}

/// A tensor file that the specification names.
pub fn open(job: &JobTask, blob: Sha256) -> Result<TensorFile, Failure> {
    TensorFile::open(path(job, blob)?)
        .map_err(|error| error.into_failure(Code::InvalidInput, "open the input"))
}

/// A file of a dataset that the specification names.
fn open_sealed(job: &JobTask, sha256: Sha256) -> Result<TensorFile, Failure> {
    let absent = || {
        let reason = format_args!("file {sha256} of a dataset was not handed over");
        Failure::new(Code::Machine, reason)
    };
    let dataset = job.dataset.as_ref().ok_or_else(absent)?;
    let file = dataset.files.iter().find(|it| it.sha256 == sha256);
    let file = file.ok_or_else(absent)?.clone();
    let key = (dataset.version_id, dataset.key.clone());
    SealedReader::open(Path::new("."), key, file)
        .map_err(FileError::from)
        .and_then(TensorFile::sealed)
        .map_err(|error| error.into_failure(Code::InvalidInput, "open a file of a dataset"))
}

/// Where a blob of the specification lies.
pub fn path(job: &JobTask, blob: Sha256) -> Result<&PathBuf, Failure> {
    let absent = || {
        Failure::new(
            Code::Machine,
            format_args!("blob {blob} was not handed over"),
        )
    };
    job.blobs.get(&blob).ok_or_else(absent)
}

/// The archive that the specification names.
pub fn open_program(job: &JobTask, spec: &JobSpec) -> Result<super::state::ProgramFile, Failure> {
    let file = std::fs::File::open(path(job, spec.program())?)
        .map_err(|error| Failure::new(Code::Machine, format_args!("open the program: {error}")))?;
    super::state::ProgramFile::open(std::io::BufReader::new(file)).map_err(super::state::unreadable)
}

fn read_failed(error: &AtenError) -> Failure {
    Failure::from_aten(Code::Machine, "read the input", error)
}
