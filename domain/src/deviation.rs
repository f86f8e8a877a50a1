//! How far two files of tensors are apart, for results of different numeric classes.

use crate::{
    program::graph::ScalarType,
    tensors::{InvalidTensors, TensorView, Tensors},
    verdict::Deviation,
};

/// The deviation of two safetensors files, the worst over their tensors. Only fp32 may deviate: every other tensor is
/// the same bit by bit, or the files cannot agree. Neither can files of different names, types or shapes, nor a file
/// that is none.
#[must_use]
pub fn of_files(left: &[u8], right: &[u8]) -> Deviation {
    compare(left, right).unwrap_or(Deviation::TOTAL)
}

fn compare(left: &[u8], right: &[u8]) -> Result<Deviation, InvalidTensors> {
    let (left, right) = (Tensors::read(left)?, Tensors::read(right)?);
    let (mut of_left, mut of_right) = (left.iter(), right.iter());
    let mut worst = Deviation::default();
    loop {
        worst = match (of_left.next(), of_right.next()) {
            (None, None) => return Ok(worst),
            (Some(ours), Some(theirs)) => worst.worse(of_tensors(ours, theirs)),
            (Some(_), None) | (None, Some(_)) => Deviation::TOTAL,
        };
    }
}

fn of_tensors(left: TensorView<'_>, right: TensorView<'_>) -> Deviation {
    if (left.name, left.dtype, left.shape) != (right.name, right.dtype, right.shape) {
        Deviation::TOTAL
    } else if left.data == right.data {
        Deviation::default()
    } else if left.dtype == ScalarType::F32 {
        Deviation::between(floats(left.data), floats(right.data))
    } else {
        Deviation::TOTAL
    }
}

fn floats(bytes: &[u8]) -> impl Iterator<Item = f32> {
    bytes
        .as_chunks()
        .0
        .iter()
        .map(|bytes| f32::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensors::to_bytes;

    fn file(name: &str, dtype: ScalarType, shape: &[u64], data: &[u8]) -> Vec<u8> {
        to_bytes([TensorView {
            name,
            dtype,
            shape,
            data,
        }])
        .unwrap()
    }

    fn floats_file(values: &[f32]) -> Vec<u8> {
        let data: Vec<u8> = values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        file("y", ScalarType::F32, &[values.len() as u64], &data)
    }

    #[test]
    fn fp32_deviates_within_the_tolerance_of_two_classes() {
        let near = of_files(&floats_file(&[1.0, 2.0]), &floats_file(&[1.0, 2.000_000_2]));
        assert!(near.is_tolerable() && near.max_ref > 0.0, "{near:?}");
        assert!(!of_files(&floats_file(&[1.0, 2.0]), &floats_file(&[1.0, 2.001])).is_tolerable());
    }

    #[test]
    fn integers_agree_bit_by_bit_or_not_at_all() {
        let one = file("y", ScalarType::I64, &[1], &1_000_000_i64.to_le_bytes());
        let two = file("y", ScalarType::I64, &[1], &1_000_001_i64.to_le_bytes());
        assert!(of_files(&one, &one).is_tolerable());
        assert!(!of_files(&one, &two).is_tolerable());
    }

    #[test]
    fn other_names_types_shapes_or_files_do_not_agree() {
        let zeros = [0; 8];
        let ours = file("y", ScalarType::F32, &[2], &zeros);
        for theirs in [
            file("z", ScalarType::F32, &[2], &zeros),
            file("y", ScalarType::I32, &[2], &zeros),
            file("y", ScalarType::F32, &[2, 1], &zeros),
            file("y", ScalarType::F32, &[1], &zeros[..4]),
            b"not tensors".to_vec(),
        ] {
            assert!(!of_files(&ours, &theirs).is_tolerable());
            assert!(!of_files(&theirs, &ours).is_tolerable());
        }
    }
}
