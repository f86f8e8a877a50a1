//! Files of tensors, as the service reads their heads and the worker all of them.

use comptoir_domain::{
    program::graph::ScalarType,
    tensors::{self, PREFIX_BYTES, TensorView, Tensors, TensorsHeader},
};
use safetensors::SafeTensors;

use crate::seeds::Seed;

/// A whole file.
pub fn file(input: &[u8]) -> bool {
    let head = TensorsHeader::read_sized(input, input.len() as u64);
    if let Some(prefix) = input.first_chunk::<PREFIX_BYTES>()
        && let Ok(length) = tensors::head_bytes(*prefix)
        && let Some(alone) = usize::try_from(length).ok().and_then(|it| input.get(..it))
    {
        // The service reads the head alone, and must see what the worker sees.
        let alone = TensorsHeader::read_sized(alone, input.len() as u64);
        assert_eq!(alone.is_ok(), head.is_ok(), "{alone:?}, {head:?}");
    }
    let Ok(read) = Tensors::read(input) else {
        return false;
    };
    assert_eq!(Some(read.header()), head.ok().as_ref());
    let all: usize = read.iter().map(|it| it.data.len()).sum();
    assert_eq!(
        all as u64 + read.header().data_start,
        input.len() as u64,
        "every byte is a tensor's"
    );
    let canonical = tensors::to_bytes(read.iter()).expect("what was read can be written");
    let again = Tensors::read(&canonical).expect("what was written can be read");
    assert!(read.iter().eq(again.iter()), "the same tensors");
    let twice = tensors::to_bytes(again.iter()).expect("what was read can be written");
    assert_eq!(twice, canonical, "one form for equal tensors");
    as_others_read(&read, input);
    true
}

/// What we read, the reference implementation reads, and sees the same in it.
fn as_others_read(read: &Tensors<'_>, input: &[u8]) {
    let others = SafeTensors::deserialize(input).expect("the reference reads what we read");
    assert_eq!(others.len(), read.iter().count());
    for view in read.iter() {
        let other = others.tensor(view.name).expect("the same names");
        let shape: Vec<u64> = other.shape().iter().map(|it| *it as u64).collect();
        assert_eq!((view.shape, view.data), (shape.as_slice(), other.data()));
    }
}

/// Files that are read.
pub fn files() -> Vec<Seed> {
    let views = [
        view("x", ScalarType::F32, &[2, 2], &[0; 16]),
        view("labels", ScalarType::I64, &[2], &[1; 16]),
        view("mask", ScalarType::Bool, &[3], &[0, 1, 1]),
        view("none", ScalarType::Bf16, &[0, 4], &[]),
        view("one", ScalarType::U8, &[], &[9]),
    ];
    let written = |views: &[TensorView<'_>]| {
        tensors::to_bytes(views.iter().copied()).expect("these are tensors")
    };
    let noted = br#"{"__metadata__":{"format":"pt"},"x":{"dtype":"F16","shape":[1,2],"data_offsets":[0,4]}}  "#;
    vec![
        Seed::new("all", written(&views)),
        Seed::new("one", written(&views[..1])),
        Seed::new("none", written(&[])),
        Seed::new("noted", with_head(noted, &[0; 4])),
    ]
}

fn view<'a>(name: &'a str, dtype: ScalarType, shape: &'a [u64], data: &'a [u8]) -> TensorView<'a> {
    TensorView {
        name,
        dtype,
        shape,
        data,
    }
}

fn with_head(head: &[u8], data: &[u8]) -> Vec<u8> {
    let length = (head.len() as u64).to_le_bytes();
    [length.as_slice(), head, data].concat()
}
