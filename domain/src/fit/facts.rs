//! What a price and a check need of a program, read from its archive once and kept.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    program::{
        Batch, Program, Role, contiguous_bytes,
        graph::{ScalarType, SymInt, TensorMeta},
        meter::{self, MeterError},
    },
    tensors::dtype_name,
};

/// Facts of another version were read by other rules and are read again.
pub const FACTS_VERSION: i32 = 1;
/// Powers of the batch that the size of a value is kept for.
const POWERS: usize = 4;

/// What is known of a program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgramFacts {
    /// The version of PyTorch that exported it.
    pub torch_version: String,
    /// Whether a training job has something to learn.
    pub is_trainable: bool,
    /// The smallest batch it holds for.
    pub batch_min: u64,
    /// The largest batch it holds for.
    pub batch_max: u64,
    /// The user's inputs, in order.
    pub inputs: Vec<RowShape>,
    /// The user's outputs, in order.
    pub outputs: Vec<RowShape>,
    /// What a weights file may hold, by name: everything the program stores.
    pub weights: BTreeMap<String, Weight>,
    /// Multiply-adds of one row.
    pub madds_per_row: u64,
    /// Bytes of everything the archive stores.
    pub stored_bytes: u64,
    /// Bytes of what training changes.
    pub learned_bytes: u64,
    /// Bytes of every value of one run, as a polynomial of the batch: coefficients from the power 0 on.
    pub value_bytes: Vec<i64>,
}

/// A stored tensor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Weight {
    /// The first of its names: tied tensors have several, and a file needs one of them.
    pub saved_as: String,
    /// As safetensors files name it.
    pub dtype: String,
    /// All dimensions.
    pub sizes: Vec<u64>,
    /// Whether a weights file must hold it: a parameter or a saved buffer.
    pub is_needed: bool,
}

/// An input or output without its first dimension, the rows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowShape {
    /// Its name in the program.
    pub name: String,
    /// As safetensors files name it.
    pub dtype: String,
    /// Dimensions of one row.
    pub row: Vec<u64>,
    /// Bytes of one row.
    pub row_bytes: u64,
}

/// Why a program has no facts.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoFacts {
    /// It cannot be priced.
    #[error(transparent)]
    Meter(#[from] MeterError),
    /// Its sizes pass 64 bits.
    #[error("`{0}` is larger than can be run")]
    TooLarge(String),
}

impl ProgramFacts {
    /// Reads them off a checked program.
    pub fn of(program: &Program) -> Result<Self, NoFacts> {
        let mut weights = BTreeMap::new();
        let (mut stored_bytes, mut learned_bytes) = (0_u64, 0_u64);
        for (name, tensor) in &program.tensors {
            let saved_as = program.saved_name(name).unwrap_or(name).to_owned();
            if saved_as == *name {
                let bytes = contiguous_bytes(tensor.dtype, &tensor.sizes);
                let bytes = bytes.ok_or_else(|| NoFacts::TooLarge(name.clone()))?;
                stored_bytes = stored_bytes.saturating_add(bytes);
                let learns = matches!(
                    tensor.role,
                    Role::Parameter {
                        requires_grad: true
                    }
                );
                learned_bytes = learned_bytes.saturating_add(if learns { bytes } else { 0 });
            }
            let weight = Weight {
                saved_as,
                dtype: dtype_name(tensor.dtype).to_owned(),
                sizes: tensor.sizes.clone(),
                is_needed: matches!(
                    tensor.role,
                    Role::Parameter { .. } | Role::Buffer { persistent: true }
                ),
            };
            weights.insert(name.clone(), weight);
        }
        Ok(Self {
            torch_version: program.torch_version.clone(),
            is_trainable: program.is_trainable(),
            batch_min: program.batch.min,
            batch_max: program.batch.max,
            inputs: rows(program.user_inputs())?,
            outputs: rows(program.user_outputs())?,
            weights,
            madds_per_row: meter::multiply_adds_per_row(program)?,
            stored_bytes,
            learned_bytes,
            value_bytes: value_bytes(program),
        })
    }

    /// The batches that it holds for.
    #[must_use]
    pub fn batch(&self) -> Batch {
        Batch {
            symbol: String::new(),
            min: self.batch_min,
            max: self.batch_max,
        }
    }
}

impl RowShape {
    /// Does an element type and shape, first dimension aside, agree?
    #[must_use]
    pub fn fits(&self, dtype: ScalarType, shape: &[u64]) -> bool {
        self.dtype == dtype_name(dtype) && shape.get(1..) == Some(&self.row)
    }
}

fn rows<'a>(
    values: impl Iterator<Item = (&'a str, &'a TensorMeta)>,
) -> Result<Vec<RowShape>, NoFacts> {
    values
        .map(|(name, meta)| {
            let too_large = || NoFacts::TooLarge(name.to_owned());
            let plain = |size: &SymInt| match size {
                SymInt::Int(size) => u64::try_from(*size).ok(),
                SymInt::Expr(_) => None,
            };
            let row: Option<Vec<u64>> = meta.sizes.iter().skip(1).map(plain).collect();
            let row = row.ok_or_else(too_large)?;
            let row_bytes = contiguous_bytes(meta.dtype, &row).ok_or_else(too_large)?;
            let dtype = dtype_name(meta.dtype).to_owned();
            Ok(RowShape {
                name: name.to_owned(),
                dtype,
                row,
                row_bytes,
            })
        })
        .collect()
}

/// An estimate, and only used as one: a value whose size is no polynomial of the batch is left out, and what
/// passes 64 bits stays at their end.
fn value_bytes(program: &Program) -> Vec<i64> {
    let mut sum = vec![0_i64; POWERS];
    for meta in program.graph.tensor_values.values() {
        let size = i128::from(meta.dtype.size());
        let polynomial = meta.sizes.iter().try_fold(
            crate::program::symbolic::Polynomial::constant(size),
            |product, size| product.mul(&program.batch.polynomial(size)?),
        );
        let Ok(polynomial) = polynomial else { continue };
        for (power, sum) in sum.iter_mut().enumerate() {
            let coefficient = polynomial.coefficient(power);
            let coefficient = i64::try_from(coefficient).unwrap_or(if coefficient < 0 {
                i64::MIN
            } else {
                i64::MAX
            });
            *sum = sum.saturating_add(coefficient);
        }
    }
    sum
}
