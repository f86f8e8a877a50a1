//! Nested arrays as tensors, read straight into bytes of the element type that the program takes, and written from them.

use std::{cell::RefCell, fmt};

use comptoir_domain::program::graph::ScalarType;
use comptoir_text::Overlong;
use comptoir_wire::calls::Tensor;
use half::{bf16, f16};
use serde::{
    Serialize, Serializer,
    de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor},
    ser::SerializeSeq as _,
};

use super::{Port, Refusals, escape};
use crate::calls::{Asking, Texts};

/// Rows of one call at most, before a byte of them is kept.
const ROWS_MAX: u64 = 65_536;

/// What a body asks for.
#[derive(Debug)]
pub(crate) enum Sent {
    /// Inputs, in the order of the ports, all with as many rows.
    Tensors(Vec<Tensor>),
    /// Texts.
    Texts(Asking),
}

/// Reads `{"inputs": {name: nested array}}`, or `{"texts": …, "truncate": …}`.
///
/// # Errors
/// What does not fit: the first thing in the text, or every input that is missing.
pub(crate) fn read_body(text: &[u8], ports: &[Port]) -> Result<Sent, Refusals> {
    let at = RefCell::new(String::new());
    let refused = |detail: String| vec![(at.borrow().clone(), detail)];
    let mut json = serde_json::Deserializer::from_slice(text);
    let body = Body { ports, at: &at };
    let read = body.deserialize(&mut json);
    let read = read.map_err(|error| refused(error.to_string()))?;
    json.end().map_err(|error| refused(error.to_string()))?;
    let read = match read {
        Fields::Tensors(read) => read,
        Fields::Texts(asking) => return Ok(Sent::Texts(asking)),
    };
    let missing = ports.iter().zip(&read).filter(|(_, it)| it.is_none());
    let missing: Refusals = missing
        .map(|(port, _)| (port.pointer(), "it is missing".to_owned()))
        .collect();
    if missing.is_empty() {
        Ok(Sent::Tensors(read.into_iter().flatten().collect()))
    } else {
        Err(missing)
    }
}

/// The whole body.
struct Body<'a> {
    ports: &'a [Port],
    /// Where the reader is.
    at: &'a RefCell<String>,
}

type Read = Vec<Option<Tensor>>;

/// What a body has.
enum Fields {
    Tensors(Read),
    Texts(Asking),
}

impl<'de> DeserializeSeed<'de> for Body<'_> {
    type Value = Fields;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Fields, D::Error> {
        from.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Body<'_> {
    type Value = Fields;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with `inputs` or `texts`")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
        let (mut read, mut texts, mut truncate) = (None, None, None);
        while let Some(field) = map.next_key::<String>()? {
            *self.at.borrow_mut() = format!("/{}", escape(&field));
            let is_again = match field.as_str() {
                "inputs" => {
                    let inputs = Inputs {
                        ports: self.ports,
                        at: self.at,
                    };
                    read.replace(map.next_value_seed(inputs)?).is_some()
                }
                "texts" => texts.replace(map.next_value::<Texts>()?).is_some(),
                "truncate" => truncate.replace(map.next_value::<bool>()?).is_some(),
                _ => return Err(A::Error::custom("there is no such field")),
            };
            if is_again {
                return Err(A::Error::custom("it is given twice"));
            }
        }
        let wrong = |field: &str, why| {
            field.clone_into(&mut self.at.borrow_mut());
            Err(A::Error::custom(why))
        };
        match (read, texts, truncate) {
            (Some(read), None, None) => {
                "/inputs".clone_into(&mut self.at.borrow_mut());
                Ok(Fields::Tensors(read))
            }
            (None, Some(texts), truncate) => Ok(Fields::Texts(Asking {
                texts,
                overlong: match truncate {
                    Some(true) => Overlong::Cut,
                    Some(false) | None => Overlong::Refuse,
                },
                field: "texts",
            })),
            (None, None, _) => wrong("/inputs", "it is missing, and so are `texts`"),
            (Some(_), Some(_), _) => wrong("/texts", "a call has `inputs` or `texts`"),
            (Some(_), None, Some(_)) => wrong("/truncate", "texts alone are cut"),
        }
    }
}

struct Inputs<'a> {
    ports: &'a [Port],
    at: &'a RefCell<String>,
}

impl<'de> DeserializeSeed<'de> for Inputs<'_> {
    type Value = Read;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Read, D::Error> {
        from.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Inputs<'_> {
    type Value = Read;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of inputs")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Read, A::Error> {
        let mut read: Read = self.ports.iter().map(|_| None).collect();
        while let Some(name) = map.next_key::<String>()? {
            *self.at.borrow_mut() = format!("/inputs/{}", escape(&name));
            let place = self.ports.iter().position(|it| it.name == name);
            let Some(place) = place else {
                map.next_value::<IgnoredAny>()?;
                return Err(A::Error::custom("the model has no such input"));
            };
            let rows = read.iter().flatten().find_map(Tensor::rows);
            let tensor = map.next_value_seed(Whole(&self.ports[place]))?;
            if rows.is_some_and(|rows| tensor.rows() != Some(rows)) {
                return Err(A::Error::custom(
                    "it has another number of rows than the inputs before it",
                ));
            }
            if read[place].replace(tensor).is_some() {
                return Err(A::Error::custom("it is given twice"));
            }
        }
        Ok(read)
    }
}

/// A tensor: any number of rows.
struct Whole<'a>(&'a Port);

impl<'de> DeserializeSeed<'de> for Whole<'_> {
    type Value = Tensor;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Tensor, D::Error> {
        from.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Whole<'_> {
    type Value = Tensor;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of rows")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Tensor, A::Error> {
        let Self(port) = self;
        let mut bytes = Vec::new();
        let mut rows = 0_u64;
        while let Some(()) = seq.next_element_seed(Level {
            dtype: port.dtype,
            sizes: &port.row,
            bytes: &mut bytes,
        })? {
            rows += 1;
            // A row without elements has no bytes that would bound it.
            if rows > ROWS_MAX {
                return Err(A::Error::custom(format_args!("more than {ROWS_MAX} rows")));
            }
        }
        if rows == 0 {
            return Err(A::Error::custom("there is no row"));
        }
        let sizes = std::iter::once(rows).chain(port.row.iter().copied());
        Ok(Tensor {
            dtype: port.dtype,
            shape: sizes.collect(),
            bytes,
        })
    }
}

/// An array of exactly these sizes, or a number where there is none.
struct Level<'a> {
    dtype: ScalarType,
    sizes: &'a [u64],
    bytes: &'a mut Vec<u8>,
}

impl<'de> DeserializeSeed<'de> for Level<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        if self.sizes.is_empty() {
            from.deserialize_any(self)
        } else {
            from.deserialize_seq(self)
        }
    }
}

impl<'de> Visitor<'de> for Level<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.sizes.first(), self.dtype) {
            (Some(size), _) => write!(f, "an array of {size}"),
            (None, ScalarType::Bool) => f.write_str("true or false"),
            (None, dtype) if dtype.is_float() => f.write_str("a number"),
            (None, _) => f.write_str("a whole number"),
        }
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let Some((size, sizes)) = self.sizes.split_first() else {
            return Err(A::Error::custom("the array is nested too deep"));
        };
        let wrong = |found: u64| {
            A::Error::custom(format_args!(
                "an array of {size} is wanted, and one of {found} found"
            ))
        };
        for place in 0..*size {
            let next = Level {
                dtype: self.dtype,
                sizes,
                bytes: &mut *self.bytes,
            };
            seq.next_element_seed(next)?.ok_or_else(|| wrong(place))?;
        }
        match seq.next_element::<IgnoredAny>()? {
            None => Ok(()),
            Some(_) => Err(A::Error::custom(format_args!(
                "an array of {size} is wanted, and a longer one found"
            ))),
        }
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<(), E> {
        if self.sizes.is_empty() && self.dtype == ScalarType::Bool {
            self.bytes.push(value.into());
            Ok(())
        } else {
            Err(E::invalid_type(serde::de::Unexpected::Bool(value), &self))
        }
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<(), E> {
        match i64::try_from(value) {
            Ok(value) => self.visit_i64(value),
            Err(_) if self.dtype.is_float() => self.visit_f64(rounded(value)),
            Err(_) => Err(E::custom(format_args!("{value} is too large"))),
        }
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<(), E> {
        fn whole<E: serde::de::Error, T: TryFrom<i64>>(value: i64) -> Result<T, E> {
            T::try_from(value)
                .map_err(|_| E::custom(format_args!("{value} does not fit the element type")))
        }
        match self.dtype {
            ScalarType::U8 => self.bytes.push(whole::<E, u8>(value)?),
            ScalarType::I8 => self.bytes.extend(whole::<E, i8>(value)?.to_le_bytes()),
            ScalarType::I16 => self.bytes.extend(whole::<E, i16>(value)?.to_le_bytes()),
            ScalarType::I32 => self.bytes.extend(whole::<E, i32>(value)?.to_le_bytes()),
            ScalarType::I64 => self.bytes.extend(value.to_le_bytes()),
            ScalarType::F32 | ScalarType::F64 | ScalarType::F16 | ScalarType::Bf16 => {
                return self.visit_f64(rounded(value));
            }
            ScalarType::Bool => {
                return Err(E::invalid_type(serde::de::Unexpected::Signed(value), &self));
            }
        }
        Ok(())
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<(), E> {
        match self.dtype {
            ScalarType::F32 => {
                let narrow = narrow(value);
                if !narrow.is_finite() {
                    return Err(E::custom(format_args!("{value} is too large")));
                }
                self.bytes.extend(narrow.to_le_bytes());
            }
            ScalarType::F64 => self.bytes.extend(value.to_le_bytes()),
            ScalarType::F16 | ScalarType::Bf16 => {
                return Err(E::custom("half-precision numbers are sent as safetensors"));
            }
            ScalarType::U8
            | ScalarType::I8
            | ScalarType::I16
            | ScalarType::I32
            | ScalarType::I64
            | ScalarType::Bool => {
                return Err(E::invalid_type(serde::de::Unexpected::Float(value), &self));
            }
        }
        Ok(())
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "numbers of a body are rounded to what the program computes with"
)]
const fn narrow(value: f64) -> f32 {
    value as f32
}

/// The nearest number that a float has, as JSON readers round.
fn rounded(value: impl TryInto<i128>) -> f64 {
    let whole: i128 = value.try_into().unwrap_or_default();
    #[expect(clippy::cast_precision_loss, reason = "as JSON readers do")]
    let rounded = whole as f64;
    rounded
}

/// Reads the numbers of a tensor of a known shape, nested as it is or flat: both mean the same, row by row.
///
/// # Errors
/// Why they are not.
pub(crate) fn read_numbers(
    text: &str,
    dtype: ScalarType,
    shape: &[u64],
) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let mut json = serde_json::Deserializer::from_str(text);
    let is_flat = text
        .trim_start()
        .strip_prefix('[')
        .is_some_and(|rest| !rest.trim_start().starts_with('['));
    let elements = shape
        .iter()
        .try_fold(1_u64, |product, size| product.checked_mul(*size));
    let flat = [elements.ok_or("the shape is larger than any tensor")?];
    let sizes = if is_flat { &flat } else { shape };
    let level = Level {
        dtype,
        sizes,
        bytes: &mut bytes,
    };
    level
        .deserialize(&mut json)
        .map_err(|error| error.to_string())?;
    Ok(bytes)
}

/// A tensor as nested arrays. A number that is none, or has no end, is `null`: JSON has no word for it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Nested<'a>(pub &'a Tensor);

impl Serialize for Nested<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let Self(tensor) = self;
        Part {
            dtype: tensor.dtype,
            shape: &tensor.shape,
            bytes: &tensor.bytes,
        }
        .serialize(to)
    }
}

/// So much of a tensor.
#[derive(Debug, Clone, Copy)]
struct Part<'a> {
    dtype: ScalarType,
    shape: &'a [u64],
    bytes: &'a [u8],
}

impl Serialize for Part<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let Some((size, rest)) = self.shape.split_first() else {
            return number(self.dtype, self.bytes, to);
        };
        let size = usize::try_from(*size).unwrap_or_default();
        let mut seq = to.serialize_seq(Some(size))?;
        let each = self.bytes.len().checked_div(size).unwrap_or_default();
        for place in 0..size {
            let part = Part {
                dtype: self.dtype,
                shape: rest,
                bytes: self
                    .bytes
                    .get(place * each..(place + 1) * each)
                    .unwrap_or_default(),
            };
            seq.serialize_element(&part)?;
        }
        seq.end()
    }
}

fn number<S: Serializer>(dtype: ScalarType, bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
    fn of<const N: usize>(bytes: &[u8]) -> [u8; N] {
        bytes.first_chunk().copied().unwrap_or([0; N])
    }
    match dtype {
        ScalarType::Bool => to.serialize_bool(of::<1>(bytes) != [0]),
        ScalarType::U8 => to.serialize_u8(u8::from_le_bytes(of(bytes))),
        ScalarType::I8 => to.serialize_i8(i8::from_le_bytes(of(bytes))),
        ScalarType::I16 => to.serialize_i16(i16::from_le_bytes(of(bytes))),
        ScalarType::I32 => to.serialize_i32(i32::from_le_bytes(of(bytes))),
        ScalarType::I64 => to.serialize_i64(i64::from_le_bytes(of(bytes))),
        ScalarType::F32 => to.serialize_f32(f32::from_le_bytes(of(bytes))),
        ScalarType::F64 => to.serialize_f64(f64::from_le_bytes(of(bytes))),
        ScalarType::Bf16 => to.serialize_f32(bf16::from_le_bytes(of(bytes)).to_f32()),
        ScalarType::F16 => to.serialize_f32(f16::from_le_bytes(of(bytes)).to_f32()),
    }
}
