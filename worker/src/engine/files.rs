//! Tensors in files of the scratch folder.

use std::{
    fs::File,
    io::{self, BufWriter, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use comptoir_domain::{
    digest::Sha256,
    program::graph::ScalarType,
    tensors::{self, InvalidTensors, PREFIX_BYTES, TensorView, TensorsHeader},
};
use sha2::Digest as _;
use tch::{Kind, Tensor};

use super::{failure::Code, failure::Failure, plan::kind_of, sealed::SealedReader};
use crate::aten::AtenError;

/// A tensor file cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error(transparent)]
    Content(#[from] InvalidTensors),
    #[error("{0}")]
    Disk(#[from] io::Error),
    #[error(transparent)]
    Aten(#[from] AtenError),
    #[error("tensor `{0}` has an element type that files do not hold")]
    Kind(String),
}

impl FileError {
    /// The failure it is, where wrong content is a matter of `code`.
    #[must_use]
    pub fn into_failure(self, code: Code, what: &str) -> Failure {
        match self {
            Self::Disk(error) | Self::Content(InvalidTensors::Io(error)) => {
                Failure::new(Code::Machine, format_args!("{what}: {error}"))
            }
            Self::Aten(error) => Failure::from_aten(Code::Machine, what, &error),
            Self::Content(_) | Self::Kind(_) => Failure::new(code, format_args!("{what}: {self}")),
        }
    }
}

/// Where the bytes of a tensor file are.
trait Bytes: Read + Seek {}

impl<T: Read + Seek> Bytes for T {}

/// An opened file; only the tensors asked for are read.
pub struct TensorFile {
    file: Box<dyn Bytes>,
    header: TensorsHeader,
}

impl TensorFile {
    /// Opens a file and checks its header.
    pub fn open(path: &Path) -> Result<Self, FileError> {
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        Self::read(Box::new(file), length)
    }

    /// Opens a file of a dataset, and checks its header.
    pub fn sealed(file: SealedReader) -> Result<Self, FileError> {
        let length = file.length();
        Self::read(Box::new(file), length)
    }

    fn read(mut file: Box<dyn Bytes>, length: u64) -> Result<Self, FileError> {
        let mut head = Vec::new();
        let begin = &mut file;
        begin.take(PREFIX_BYTES as u64).read_to_end(&mut head)?;
        let prefix = *head
            .first_chunk::<PREFIX_BYTES>()
            .ok_or(InvalidTensors::Truncated)?;
        let rest = tensors::head_bytes(prefix)? - PREFIX_BYTES as u64;
        (&mut file).take(rest).read_to_end(&mut head)?;
        let header = TensorsHeader::read_sized(&head, length)?;
        Ok(Self { file, header })
    }

    /// What it holds.
    #[must_use]
    pub const fn header(&self) -> &TensorsHeader {
        &self.header
    }

    /// One tensor, in host memory.
    pub fn tensor(&mut self, name: &str) -> Result<Tensor, FileError> {
        let info = self.header.tensor(name)?.clone();
        let length =
            usize::try_from(info.bytes.end - info.bytes.start).map_err(io::Error::other)?;
        let mut bytes = vec![0; length];
        self.file.seek(SeekFrom::Start(info.bytes.start))?;
        self.file.read_exact(&mut bytes)?;
        if info.dtype == ScalarType::Bool && !tensors::are_booleans(&bytes) {
            return Err(InvalidTensors::Boolean(name.to_owned()).into());
        }
        Ok(from_bytes(info.dtype, &info.shape, &bytes)?)
    }
}

/// A row-major tensor from little-endian bytes.
pub fn from_bytes(dtype: ScalarType, shape: &[u64], bytes: &[u8]) -> Result<Tensor, AtenError> {
    let needed = comptoir_domain::program::contiguous_bytes(dtype, shape);
    assert_eq!(
        needed,
        Some(bytes.len() as u64),
        "the bytes are those of the shape: whoever read them checked"
    );
    let sizes: Vec<i64> = shape
        .iter()
        .map(|size| i64::try_from(*size).expect("its bytes are in memory"))
        .collect();
    Ok(Tensor::f_from_data_size(bytes, &sizes, kind_of(dtype))?)
}

/// The bytes of a tensor, row-major and little-endian, wherever it lives.
pub fn to_bytes(tensor: &Tensor) -> Result<Vec<u8>, AtenError> {
    let _guard = tch::no_grad_guard();
    let mut bytes = vec![0; tensor.numel() * tensor.f_kind()?.elt_size_in_bytes()];
    tensor.f_copy_data_u8(&mut bytes, tensor.numel())?;
    Ok(bytes)
}

/// A file that was written.
#[derive(Debug)]
pub struct Saved {
    pub path: PathBuf,
    pub sha256: Sha256,
    pub bytes: u64,
}

/// Writes named tensors in canonical form: equal tensors give equal files. A file is there whole or not at all.
pub fn save(folder: &Path, name: &str, named: &[(String, Tensor)]) -> Result<Saved, FileError> {
    let mut contents = Vec::with_capacity(named.len());
    for (name, tensor) in named {
        let kind = tensor.f_kind().map_err(AtenError::from)?;
        let dtype = dtype_of(kind).ok_or_else(|| FileError::Kind(name.clone()))?;
        let size = |size| u64::try_from(size).expect("a tensor has no negative size");
        let shape: Vec<u64> = tensor.size().into_iter().map(size).collect();
        contents.push((name, dtype, shape, to_bytes(tensor)?));
    }
    let views = contents
        .iter()
        .map(|(name, dtype, shape, data)| TensorView {
            name,
            dtype: *dtype,
            shape,
            data,
        });
    let unfinished = folder.join(format!("{name}.part"));
    let mut out = Hashed {
        inner: BufWriter::new(File::create(&unfinished)?),
        digest: sha2::Sha256::new(),
        bytes: 0,
    };
    tensors::write(&mut out, views)?;
    out.flush()?;
    std::fs::rename(&unfinished, folder.join(name))?;
    Ok(Saved {
        path: name.into(),
        sha256: Sha256(out.digest.finalize().into()),
        bytes: out.bytes,
    })
}

struct Hashed<W> {
    inner: W,
    digest: sha2::Sha256,
    bytes: u64,
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.digest.update(&bytes[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

const fn dtype_of(kind: Kind) -> Option<ScalarType> {
    Some(match kind {
        Kind::Uint8 => ScalarType::U8,
        Kind::Int8 => ScalarType::I8,
        Kind::Int16 => ScalarType::I16,
        Kind::Int => ScalarType::I32,
        Kind::Int64 => ScalarType::I64,
        Kind::Half => ScalarType::F16,
        Kind::Float => ScalarType::F32,
        Kind::Double => ScalarType::F64,
        Kind::Bool => ScalarType::Bool,
        Kind::BFloat16 => ScalarType::Bf16,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_saved_file_is_read_back_and_its_hash_is_that_of_its_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let tensor = Tensor::from_slice(&[1_f32, -2.5, f32::NAN]).reshape([3, 1]);
        let named = [
            ("w".to_owned(), tensor),
            ("n".to_owned(), Tensor::from_slice(&[7_i64])),
        ];
        let saved = save(folder.path(), "x.safetensors", &named).unwrap();
        let bytes = std::fs::read(folder.path().join(&saved.path)).unwrap();
        assert_eq!(
            (saved.sha256, saved.bytes),
            (Sha256::of(&bytes), bytes.len() as u64)
        );
        let mut file = TensorFile::open(&folder.path().join("x.safetensors")).unwrap();
        assert_eq!(
            to_bytes(&file.tensor("w").unwrap()).unwrap(),
            to_bytes(&named[0].1).unwrap()
        );
        assert!(file.tensor("absent").is_err());
    }
}
