//! The protocol's names of element types.

use comptoir_domain::program::graph::ScalarType;

const NAMES: &[(ScalarType, &str)] = &[
    (ScalarType::Bool, "BOOL"),
    (ScalarType::U8, "UINT8"),
    (ScalarType::I8, "INT8"),
    (ScalarType::I16, "INT16"),
    (ScalarType::I32, "INT32"),
    (ScalarType::I64, "INT64"),
    (ScalarType::F16, "FP16"),
    (ScalarType::F32, "FP32"),
    (ScalarType::F64, "FP64"),
    (ScalarType::Bf16, "BF16"),
];

/// The name of an element type.
pub(super) fn name(dtype: ScalarType) -> &'static str {
    let named = NAMES.iter().find(|(it, _)| *it == dtype);
    named.map_or("", |(_, name)| name)
}

/// The element type of a name; `None`: it is none that programs take.
pub(super) fn of(name: &str) -> Option<ScalarType> {
    let named = NAMES.iter().find(|(_, it)| *it == name);
    named.map(|(dtype, _)| *dtype)
}
