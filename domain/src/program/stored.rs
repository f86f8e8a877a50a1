//! Tensors an archive stores: where their bytes lie, and what is refused about them before any byte is read.

use std::{collections::BTreeMap, fmt::Write as _};

use serde::Deserialize;

use super::{
    DIMENSIONS_MAX, contiguous_bytes,
    graph::{ScalarType, SymInt, TensorMeta, unique_map},
};

/// Stored tensors of one archive.
pub const TENSORS_MAX: usize = 20_000;
/// Elements of one stored tensor.
pub const ELEMENTS_MAX: u64 = 1 << 31;
/// Longest name of a stored tensor, in bytes.
pub const NAME_BYTES_MAX: usize = 255;

/// One of `model_weights_config.json` and `model_constants_config.json`.
#[derive(Debug, Deserialize)]
pub(super) struct PayloadConfig {
    #[serde(deserialize_with = "unique_map")]
    pub config: BTreeMap<String, PayloadMeta>,
}

/// Where one tensor is.
#[derive(Debug, Deserialize)]
pub(super) struct PayloadMeta {
    pub path_name: String,
    pub use_pickle: bool,
    pub tensor_meta: Option<TensorMeta>,
}

/// What a stored tensor is to the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Learned, unless the export froze it.
    Parameter { requires_grad: bool },
    /// State beside the parameters; `persistent` ones are saved with the weights.
    Buffer { persistent: bool },
    /// A literal of the program.
    Constant,
}

/// A view of the raw little-endian bytes of one payload. Views that are equal in everything are one tensor (tied
/// weights); other views of one payload never overlap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredTensor {
    /// The value it is in the graph.
    pub value: String,
    pub role: Role,
    /// The payload, for [`super::Archive::payload`].
    pub payload: String,
    pub dtype: ScalarType,
    pub sizes: Vec<u64>,
    /// In elements.
    pub strides: Vec<u64>,
    /// In elements.
    pub storage_offset: u64,
}

/// Why a stored tensor is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTensor {
    #[error("it is pickled, and a pickle can run code")]
    Pickled,
    #[error("it is not a plain tensor")]
    NotATensor,
    #[error(
        "its name or that of its payload is empty, longer than {NAME_BYTES_MAX} bytes or not a plain name"
    )]
    Name,
    #[error(
        "its sizes, strides or offset are not plain numbers, or it has more than {DIMENSIONS_MAX} dimensions"
    )]
    Shape,
    #[error("it has more than {ELEMENTS_MAX} elements")]
    TooLarge,
    #[error("its payload `{0}` is missing")]
    NoPayload(String),
    #[error("it needs {needed} bytes of a payload of {available}")]
    OutOfBounds { needed: u64, available: u64 },
    #[error("its elements overlap each other in memory")]
    SelfOverlap,
    #[error("it overlaps another tensor in memory without being the same")]
    Overlap,
    #[error("it has a boolean that is neither 0 nor 1")]
    Boolean,
    #[error("the name is stored twice")]
    Repeated,
}

impl StoredTensor {
    /// Checks one entry of a configuration; `bytes_of` tells the size of a payload.
    pub(super) fn check(
        name: &str,
        folder: &str,
        meta: PayloadMeta,
        bytes_of: impl Fn(&str) -> Option<u64>,
    ) -> Result<Self, InvalidTensor> {
        if meta.use_pickle {
            return Err(InvalidTensor::Pickled);
        }
        let tensor = meta.tensor_meta.ok_or(InvalidTensor::NotATensor)?;
        if !is_name(name) || !is_name(&meta.path_name) || meta.path_name.contains('/') {
            return Err(InvalidTensor::Name);
        }
        let payload = format!("{folder}/{}", meta.path_name);
        let available =
            bytes_of(&payload).ok_or_else(|| InvalidTensor::NoPayload(payload.clone()))?;
        let numbers = |sizes: &[SymInt]| sizes.iter().map(plain).collect::<Option<Vec<u64>>>();
        let checked = Self {
            value: String::new(),
            role: Role::Parameter {
                requires_grad: tensor.requires_grad,
            },
            payload,
            dtype: tensor.dtype,
            sizes: numbers(&tensor.sizes).ok_or(InvalidTensor::Shape)?,
            strides: numbers(&tensor.strides).ok_or(InvalidTensor::Shape)?,
            storage_offset: plain(&tensor.storage_offset).ok_or(InvalidTensor::Shape)?,
        };
        if checked.sizes.len() != checked.strides.len() || checked.sizes.len() > DIMENSIONS_MAX {
            return Err(InvalidTensor::Shape);
        }
        if checked
            .elements()
            .is_none_or(|elements| elements > ELEMENTS_MAX)
        {
            return Err(InvalidTensor::TooLarge);
        }
        if checked.overlaps_itself() {
            return Err(InvalidTensor::SelfOverlap);
        }
        let needed = checked.end_byte().ok_or(InvalidTensor::Shape)?;
        if needed > available {
            return Err(InvalidTensor::OutOfBounds { needed, available });
        }
        Ok(checked)
    }

    /// The number of elements.
    #[must_use]
    pub fn elements(&self) -> Option<u64> {
        self.sizes
            .iter()
            .try_fold(1_u64, |product, size| product.checked_mul(*size))
    }

    /// Whether its elements lie one after the other, last dimension fastest.
    #[must_use]
    pub fn is_contiguous(&self) -> bool {
        let mut expected = 1_u64;
        for (size, stride) in self.sizes.iter().zip(&self.strides).rev() {
            if *size != 1 && *stride != expected {
                return false;
            }
            expected = expected.saturating_mul((*size).max(1));
        }
        true
    }

    /// Whether both are the same tensor under two names.
    #[must_use]
    pub fn is_same_memory(&self, other: &Self) -> bool {
        self.payload == other.payload
            && self.dtype == other.dtype
            && self.sizes == other.sizes
            && self.strides == other.strides
            && self.storage_offset == other.storage_offset
    }

    pub(super) fn matches(&self, meta: &TensorMeta) -> bool {
        self.dtype == meta.dtype
            && self.sizes.len() == meta.sizes.len()
            && self
                .sizes
                .iter()
                .zip(&meta.sizes)
                .all(|(stored, recorded)| plain(recorded) == Some(*stored))
    }

    pub(super) const fn requires_grad(&self) -> bool {
        matches!(
            self.role,
            Role::Parameter {
                requires_grad: true
            }
        )
    }

    /// The first byte behind its last element.
    fn end_byte(&self) -> Option<u64> {
        if self.elements() == Some(0) {
            return Some(0);
        }
        let reach = self
            .sizes
            .iter()
            .zip(&self.strides)
            .try_fold(self.storage_offset, |last, (size, stride)| {
                last.checked_add(size.checked_sub(1)?.checked_mul(*stride)?)
            })?;
        reach.checked_add(1)?.checked_mul(self.dtype.size())
    }

    fn start_byte(&self) -> u64 {
        self.storage_offset.saturating_mul(self.dtype.size())
    }

    /// Whether some dimension steps into what the faster ones cover. Transposed and padded tensors pass; broadcast ones do not.
    fn overlaps_itself(&self) -> bool {
        if self.elements() == Some(0) {
            return false;
        }
        let mut dimensions: Vec<_> = self
            .strides
            .iter()
            .zip(&self.sizes)
            .filter(|(_, size)| **size > 1)
            .collect();
        dimensions.sort_unstable();
        let mut reach = 0_u64;
        for (stride, size) in dimensions {
            if *stride <= reach {
                return true;
            }
            reach = reach.saturating_add(stride.saturating_mul(size - 1));
        }
        false
    }
}

/// Refuses views of one payload that overlap without being the same tensor: writing one would change the other.
pub(super) fn check_overlaps(
    tensors: &BTreeMap<String, StoredTensor>,
) -> Result<(), (String, InvalidTensor)> {
    let mut views: Vec<(&String, &StoredTensor)> = tensors.iter().collect();
    views.sort_by(|(_, a), (_, b)| (&a.payload, a.start_byte()).cmp(&(&b.payload, b.start_byte())));
    let mut reach: Option<(&StoredTensor, u64)> = None;
    for (name, view) in views {
        let end = view.end_byte().unwrap_or(u64::MAX);
        match reach {
            Some((last, _)) if last.is_same_memory(view) => {}
            Some((last, until))
                if last.payload == view.payload && end > 0 && view.start_byte() < until =>
            {
                return Err((name.clone(), InvalidTensor::Overlap));
            }
            _ => reach = Some((view, end)),
        }
    }
    Ok(())
}

/// For each name the first of those that the same tensor has.
pub(super) fn saved_names(tensors: &BTreeMap<String, StoredTensor>) -> BTreeMap<String, String> {
    let mut firsts = BTreeMap::new();
    let first = |(name, it): (&String, &StoredTensor)| {
        // What `is_same_memory` compares.
        let place = (
            it.payload.clone(),
            it.dtype,
            it.sizes.clone(),
            it.strides.clone(),
            it.storage_offset,
        );
        (
            name.clone(),
            firsts.entry(place).or_insert_with(|| name.clone()).clone(),
        )
    };
    tensors.iter().map(first).collect()
}

/// A dtype and shape for people.
pub(super) fn describe<T: std::fmt::Debug>(dtype: ScalarType, sizes: &[T]) -> String {
    let mut text = format!("{dtype:?}");
    write!(text, " {sizes:?}").expect("writing to a string cannot fail");
    text
}

/// Bytes it takes in memory once it is contiguous.
#[must_use]
pub fn bytes(tensor: &StoredTensor) -> Option<u64> {
    contiguous_bytes(tensor.dtype, &tensor.sizes)
}

fn plain(size: &SymInt) -> Option<u64> {
    match size {
        SymInt::Int(int) => u64::try_from(*int).ok(),
        SymInt::Expr(_) => None,
    }
}

pub(super) fn is_name(name: &str) -> bool {
    !name.is_empty() && name.len() <= NAME_BYTES_MAX && !name.contains(|c: char| c.is_control())
}
