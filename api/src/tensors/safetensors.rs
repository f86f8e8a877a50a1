//! Tensors as a safetensors file: exact, and nothing to parse but its head.

use comptoir_domain::tensors::{Tensors, dtype_name};
use comptoir_wire::calls::Tensor;
use serde::Serialize;
use std::collections::BTreeMap;

use super::{Port, Refusals, escape};

/// Heads are padded with spaces, so that data begins at a multiple of this.
const ALIGNED_TO: usize = 8;

/// Reads the inputs of a program from a file: tensors in the order of the ports, all with as many rows.
///
/// # Errors
/// What does not fit.
pub(crate) fn read_file(file: &[u8], ports: &[Port]) -> Result<Vec<Tensor>, Refusals> {
    let tensors = Tensors::read(file);
    let tensors = tensors.map_err(|error| vec![(String::new(), error.to_string())])?;
    let mut refusals = Refusals::new();
    for view in tensors.iter() {
        if !ports.iter().any(|port| port.name == view.name) {
            let pointer = format!("/inputs/{}", escape(view.name));
            refusals.push((pointer, "the model has no such input".to_owned()));
        }
    }
    let mut rows = None;
    let mut read = Vec::with_capacity(ports.len());
    for port in ports {
        let Ok(view) = tensors.tensor(&port.name) else {
            refusals.push((port.pointer(), "it is missing".to_owned()));
            continue;
        };
        let first = view.shape.first().copied();
        let fits = view.dtype == port.dtype
            && first.is_some_and(|rows| rows > 0)
            && view.shape.get(1..) == Some(port.row.as_slice());
        if !fits || rows.is_some_and(|rows| first != Some(rows)) {
            let (dtype, row) = (dtype_name(port.dtype), &port.row);
            let rows = rows.map_or_else(|| "rows".to_owned(), |it: u64| it.to_string());
            let detail = format!(
                "{dtype} of [{rows}, {row:?}] is wanted, and {} of {:?} found",
                dtype_name(view.dtype),
                view.shape
            );
            refusals.push((port.pointer(), detail));
            continue;
        }
        rows = first;
        read.push(Tensor {
            dtype: port.dtype,
            shape: view.shape.to_vec(),
            bytes: view.data.to_vec(),
        });
    }
    if refusals.is_empty() {
        Ok(read)
    } else {
        Err(refusals)
    }
}

#[derive(Serialize)]
struct Entry {
    dtype: &'static str,
    shape: Vec<u64>,
    data_offsets: (usize, usize),
}

/// Tensors by name as a file.
pub(crate) fn write_file<'a>(tensors: impl IntoIterator<Item = (&'a str, &'a Tensor)>) -> Vec<u8> {
    let mut entries: BTreeMap<&str, Entry> = BTreeMap::new();
    let mut data = Vec::new();
    for (name, tensor) in tensors {
        let from = data.len();
        data.extend_from_slice(&tensor.bytes);
        let entry = Entry {
            dtype: dtype_name(tensor.dtype),
            shape: tensor.shape.clone(),
            data_offsets: (from, data.len()),
        };
        entries.insert(name, entry);
    }
    let mut head = serde_json::to_vec(&entries).expect("names and numbers have a JSON form");
    head.resize(head.len().next_multiple_of(ALIGNED_TO), b' ');
    let length = u64::try_from(head.len()).expect("a length fits");
    [&length.to_le_bytes(), head.as_slice(), &data].concat()
}
