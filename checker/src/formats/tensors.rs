//! safetensors: the header, which says all; the tensors' bytes are not looked at.

use comptoir_domain::{
    dataset::{Column, Facts},
    tensors::{PREFIX_BYTES, TensorsHeader, dtype_name, head_bytes},
};

use super::Refusal;
use crate::source::Source;

/// Finds the tensors of a file.
pub fn read(source: &Source) -> Result<Facts, Refusal> {
    let mut prefix = [0; PREFIX_BYTES];
    if source.bytes() < PREFIX_BYTES as u64 {
        return Err(Refusal::of("the file is shorter than a header"));
    }
    source.read(0, &mut prefix)?;
    let count = head_bytes(prefix).map_err(Refusal::of)?;
    if count > source.bytes() {
        return Err(Refusal::of("the file is shorter than its header says"));
    }
    let mut head = vec![0; usize::try_from(count).map_err(Refusal::of)?];
    source.read(0, &mut head)?;
    let header = TensorsHeader::read_sized(&head, source.bytes()).map_err(Refusal::of)?;
    let columns = header.tensors.into_iter().map(|(name, info)| {
        let shape: Vec<_> = info.shape.iter().map(ToString::to_string).collect();
        let kind = format!("{}[{}]", dtype_name(info.dtype), shape.join(","));
        Column { name, kind }
    });
    Ok(Facts {
        rows: None,
        columns: columns.collect(),
    })
}
