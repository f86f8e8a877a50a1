//! Tensors in files: safetensors, read within limits and written in one canonical form.
//!
//! A file is 8 bytes (length of the header, little-endian), the header (JSON: name → dtype, shape, offsets) and the bytes of
//! all tensors, row-major and little-endian. The header alone tells names and shapes, so a few kilobytes of a large file
//! are enough to check a job. Written files are canonical: tensors stand by element size, largest first (so that each is
//! aligned), then by name; the header has no metadata and no spaces but those that pad it to 8 bytes. Equal tensors
//! therefore give equal bytes, and equal digests.

mod entries;

use std::{
    collections::BTreeMap,
    io::{self, Write},
    ops::Range,
};

use serde::{Deserialize, Serialize};

use crate::program::{DIMENSIONS_MAX, contiguous_bytes, graph::ScalarType};

/// Bytes before the header: its length.
pub const PREFIX_BYTES: usize = 8;
/// Bytes of a header.
pub const HEADER_BYTES_MAX: u64 = 16 << 20;
/// Tensors of one file.
pub const TENSORS_MAX: usize = 20_000;
/// Longest tensor name, in bytes.
pub const NAME_BYTES_MAX: usize = 255;
/// Bytes of all tensors of one file.
pub const DATA_BYTES_MAX: u64 = 1 << 40;

/// Why bytes are not a file of tensors.
#[derive(Debug, thiserror::Error)]
pub enum InvalidTensors {
    #[error("the file is shorter than its header says")]
    Truncated,
    #[error("the header is longer than {HEADER_BYTES_MAX} bytes")]
    HeaderTooLong,
    #[error("not a safetensors file: its header is not an object")]
    NotTensors,
    #[error("the header is not valid")]
    Header(#[from] serde_json::Error),
    #[error("the file has more than {TENSORS_MAX} tensors")]
    TooManyTensors,
    #[error(
        "a tensor name is empty, longer than {NAME_BYTES_MAX} bytes, or has control characters"
    )]
    Name,
    #[error("tensor `{0}` has an element type that is not supported")]
    Dtype(String),
    #[error("tensor `{0}` has more than {DIMENSIONS_MAX} dimensions or more bytes than can be")]
    Shape(String),
    #[error(
        "the bytes of tensor `{0}` do not fit its shape, or overlap or leave a gap to the tensor before it"
    )]
    Offsets(String),
    #[error("the file has {found} bytes of tensors instead of {expected}")]
    Length { expected: u64, found: u64 },
    #[error("there is no tensor `{0}`")]
    Missing(String),
    #[error("tensor `{0}` has a boolean that is neither 0 nor 1")]
    Boolean(String),
    #[error("the name `{0}` is given twice")]
    Repeated(String),
    #[error("write tensors")]
    Io(#[from] io::Error),
}

/// What a file says about its tensors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorsHeader {
    /// By name.
    pub tensors: BTreeMap<String, TensorInfo>,
    /// Where the tensors' bytes begin.
    pub data_start: u64,
    /// How many there are.
    pub data_bytes: u64,
}

/// One tensor of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    pub dtype: ScalarType,
    pub shape: Vec<u64>,
    /// Its bytes, counted from the start of the file.
    pub bytes: Range<u64>,
}

impl TensorInfo {
    /// The first dimension, which jobs count rows by.
    #[must_use]
    pub fn rows(&self) -> Option<u64> {
        self.shape.first().copied()
    }
}

/// A tensor in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TensorView<'a> {
    pub name: &'a str,
    pub dtype: ScalarType,
    pub shape: &'a [u64],
    /// Row-major, little-endian.
    pub data: &'a [u8],
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    dtype: String,
    #[serde(deserialize_with = "entries::shape")]
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

/// How many bytes from the start of a file hold its whole header, by the file's first 8 bytes.
pub fn head_bytes(prefix: [u8; PREFIX_BYTES]) -> Result<u64, InvalidTensors> {
    let header = u64::from_le_bytes(prefix);
    if header > HEADER_BYTES_MAX {
        return Err(InvalidTensors::HeaderTooLong);
    }
    Ok(header + PREFIX_BYTES as u64)
}

impl TensorsHeader {
    /// Reads the header from the start of a file, which may go on behind it.
    pub fn read(head: &[u8]) -> Result<Self, InvalidTensors> {
        let prefix = head
            .first_chunk::<PREFIX_BYTES>()
            .ok_or(InvalidTensors::Truncated)?;
        let data_start = head_bytes(*prefix)?;
        let end = usize::try_from(data_start).map_err(|_| InvalidTensors::HeaderTooLong)?;
        let json = head
            .get(PREFIX_BYTES..end)
            .ok_or(InvalidTensors::Truncated)?;
        if json.first() != Some(&b'{') {
            return Err(InvalidTensors::NotTensors);
        }
        let entries = entries::read(json)?;
        let mut tensors = BTreeMap::new();
        for (name, entry) in entries {
            let info = entry.check(&name, data_start)?;
            tensors.insert(name, info);
        }
        let data_bytes = check_layout(&tensors, data_start)?;
        Ok(Self {
            tensors,
            data_start,
            data_bytes,
        })
    }

    /// Reads the header of a whole file of this length, and checks that nothing is missing or left over.
    pub fn read_sized(head: &[u8], file_bytes: u64) -> Result<Self, InvalidTensors> {
        let header = Self::read(head)?;
        let found = file_bytes
            .checked_sub(header.data_start)
            .ok_or(InvalidTensors::Truncated)?;
        if found != header.data_bytes {
            return Err(InvalidTensors::Length {
                expected: header.data_bytes,
                found,
            });
        }
        Ok(header)
    }

    /// One tensor's description.
    pub fn tensor(&self, name: &str) -> Result<&TensorInfo, InvalidTensors> {
        self.tensors
            .get(name)
            .ok_or_else(|| InvalidTensors::Missing(name.to_owned()))
    }
}

/// A whole file in memory.
#[derive(Debug, Clone)]
pub struct Tensors<'a> {
    header: TensorsHeader,
    file: &'a [u8],
}

impl<'a> Tensors<'a> {
    /// Reads a file; every boolean is checked, since a byte that is neither 0 nor 1 is no boolean to a machine.
    pub fn read(file: &'a [u8]) -> Result<Self, InvalidTensors> {
        let header = TensorsHeader::read_sized(file, file.len() as u64)?;
        let tensors = Self { header, file };
        for view in tensors.iter() {
            if view.dtype == ScalarType::Bool && !are_booleans(view.data) {
                return Err(InvalidTensors::Boolean(view.name.to_owned()));
            }
        }
        Ok(tensors)
    }

    /// The header.
    #[must_use]
    pub const fn header(&self) -> &TensorsHeader {
        &self.header
    }

    /// One tensor.
    pub fn tensor(&self, name: &str) -> Result<TensorView<'_>, InvalidTensors> {
        let (name, info) = self
            .header
            .tensors
            .get_key_value(name)
            .ok_or_else(|| InvalidTensors::Missing(name.to_owned()))?;
        Ok(self.view(name, info))
    }

    /// All tensors, by name.
    pub fn iter(&self) -> impl Iterator<Item = TensorView<'_>> {
        self.header
            .tensors
            .iter()
            .map(|(name, info)| self.view(name, info))
    }

    fn view<'b>(&'b self, name: &'b str, info: &'b TensorInfo) -> TensorView<'b> {
        let at = |byte| usize::try_from(byte).expect("the file is in memory, so its offsets fit");
        let data = &self.file[at(info.bytes.start)..at(info.bytes.end)];
        TensorView {
            name,
            dtype: info.dtype,
            shape: &info.shape,
            data,
        }
    }
}

/// Whether bytes can be read as booleans.
#[must_use]
pub fn are_booleans(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte <= 1)
}

/// Writes the canonical file of these tensors, in whatever order they come.
pub fn write<'a>(
    mut out: impl Write,
    tensors: impl IntoIterator<Item = TensorView<'a>>,
) -> Result<(), InvalidTensors> {
    let mut sorted: Vec<TensorView<'_>> = tensors.into_iter().collect();
    sorted.sort_by(|a, b| (b.dtype.size(), a.name).cmp(&(a.dtype.size(), b.name)));
    if sorted.len() > TENSORS_MAX {
        return Err(InvalidTensors::TooManyTensors);
    }
    let (mut header, mut offset, mut seen) =
        (String::from("{"), 0_u64, std::collections::BTreeSet::new());
    for view in &sorted {
        check_name(view.name)?;
        if !seen.insert(view.name) {
            return Err(InvalidTensors::Repeated(view.name.to_owned()));
        }
        let bytes =
            contiguous_bytes(view.dtype, view.shape).filter(|_| view.shape.len() <= DIMENSIONS_MAX);
        let end = offset
            .saturating_add(bytes.ok_or_else(|| InvalidTensors::Shape(view.name.to_owned()))?);
        if view.data.len() as u64 != end - offset || end > DATA_BYTES_MAX {
            return Err(InvalidTensors::Offsets(view.name.to_owned()));
        }
        let entry = Entry {
            dtype: dtype_name(view.dtype).to_owned(),
            shape: view.shape.to_vec(),
            data_offsets: (offset, end),
        };
        if header.len() > 1 {
            header.push(',');
        }
        header.push_str(&serde_json::to_string(view.name)?);
        header.push(':');
        header.push_str(&serde_json::to_string(&entry)?);
        offset = end;
    }
    header.push('}');
    header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
    if header.len() as u64 > HEADER_BYTES_MAX {
        return Err(InvalidTensors::HeaderTooLong);
    }
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(header.as_bytes())?;
    sorted
        .iter()
        .try_for_each(|view| out.write_all(view.data))?;
    Ok(())
}

/// The canonical file of these tensors in memory.
pub fn to_bytes<'a>(
    tensors: impl IntoIterator<Item = TensorView<'a>>,
) -> Result<Vec<u8>, InvalidTensors> {
    let mut bytes = Vec::new();
    write(&mut bytes, tensors)?;
    Ok(bytes)
}

impl Entry {
    fn check(self, name: &str, data_start: u64) -> Result<TensorInfo, InvalidTensors> {
        check_name(name)?;
        let dtype = dtype_of(&self.dtype).ok_or_else(|| InvalidTensors::Dtype(name.to_owned()))?;
        let bytes = contiguous_bytes(dtype, &self.shape)
            .filter(|bytes| *bytes <= DATA_BYTES_MAX && self.shape.len() <= DIMENSIONS_MAX)
            .ok_or_else(|| InvalidTensors::Shape(name.to_owned()))?;
        let (start, end) = self.data_offsets;
        if end.checked_sub(start) != Some(bytes) || end > DATA_BYTES_MAX {
            return Err(InvalidTensors::Offsets(name.to_owned()));
        }
        Ok(TensorInfo {
            dtype,
            shape: self.shape,
            bytes: data_start + start..data_start + end,
        })
    }
}

/// The tensors' bytes must follow one another from the start; returns how many there are.
fn check_layout(
    tensors: &BTreeMap<String, TensorInfo>,
    data_start: u64,
) -> Result<u64, InvalidTensors> {
    let mut by_place: Vec<_> = tensors.iter().collect();
    by_place.sort_by_key(|(_, info)| (info.bytes.start, info.bytes.end));
    let mut reached = data_start;
    for (name, info) in by_place {
        if info.bytes.start != reached {
            return Err(InvalidTensors::Offsets(name.clone()));
        }
        reached = info.bytes.end;
    }
    if reached - data_start > DATA_BYTES_MAX {
        return Err(InvalidTensors::HeaderTooLong);
    }
    Ok(reached - data_start)
}

fn check_name(name: &str) -> Result<(), InvalidTensors> {
    let is_name = !name.is_empty()
        && name.len() <= NAME_BYTES_MAX
        && name != "__metadata__"
        && !name.contains(|c: char| c.is_control());
    if is_name {
        Ok(())
    } else {
        Err(InvalidTensors::Name)
    }
}

/// An element type by its name in safetensors files.
#[must_use]
pub fn dtype_of(name: &str) -> Option<ScalarType> {
    Some(match name {
        "BOOL" => ScalarType::Bool,
        "U8" => ScalarType::U8,
        "I8" => ScalarType::I8,
        "I16" => ScalarType::I16,
        "I32" => ScalarType::I32,
        "I64" => ScalarType::I64,
        "F16" => ScalarType::F16,
        "BF16" => ScalarType::Bf16,
        "F32" => ScalarType::F32,
        "F64" => ScalarType::F64,
        _ => return None,
    })
}

/// The name of an element type in safetensors files.
#[must_use]
pub const fn dtype_name(dtype: ScalarType) -> &'static str {
    match dtype {
        ScalarType::Bool => "BOOL",
        ScalarType::U8 => "U8",
        ScalarType::I8 => "I8",
        ScalarType::I16 => "I16",
        ScalarType::I32 => "I32",
        ScalarType::I64 => "I64",
        ScalarType::F16 => "F16",
        ScalarType::Bf16 => "BF16",
        ScalarType::F32 => "F32",
        ScalarType::F64 => "F64",
    }
}

#[cfg(test)]
mod tests;
