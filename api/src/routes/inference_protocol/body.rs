//! Bodies of the protocol: JSON, and behind it the bytes of tensors that are not in it.

use comptoir_domain::{
    fit::RowShape,
    id::{CallId, ModelId, ModelVersionId, ReceiptId},
};
use comptoir_wire::calls::Tensor;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::datatype;
use crate::{
    Problem,
    calls::{Answered, Callable},
    tensors::{Nested, Port, read_numbers},
};

/// Tensors that one body has at most.
const TENSORS_MAX: usize = 64;
/// Characters of the name that a client gives its request.
const ID_CHARS_MAX: usize = 200;

/// A request: its name, its inputs in the program's order, and the outputs that are wanted.
#[derive(Debug)]
pub(super) struct Asking {
    pub id: Option<String>,
    pub inputs: Vec<Tensor>,
    pub outputs: Outputs,
}

#[derive(Deserialize)]
struct RequestBody<'a> {
    id: Option<String>,
    #[serde(default)]
    parameters: Parameters,
    #[serde(borrow)]
    inputs: Vec<InputBody<'a>>,
    outputs: Option<Vec<OutputBody>>,
}

#[derive(Deserialize, Default, Clone, Copy)]
struct Parameters {
    binary_data_size: Option<usize>,
    binary_data: Option<bool>,
    #[serde(default)]
    binary_data_output: bool,
    #[serde(default)]
    classification: Option<u32>,
    #[serde(default)]
    shared_memory_region: Option<IsThere>,
}

/// Something that is not looked at.
#[derive(Clone, Copy)]
struct IsThere;

impl<'de> Deserialize<'de> for IsThere {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        serde::de::IgnoredAny::deserialize(from).map(|_| Self)
    }
}

#[derive(Deserialize)]
struct InputBody<'a> {
    name: String,
    shape: Vec<u64>,
    datatype: String,
    #[serde(default)]
    parameters: Parameters,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct OutputBody {
    name: String,
    #[serde(default)]
    parameters: Parameters,
}

/// The outputs that are wanted, and in which form.
#[derive(Debug)]
pub(super) struct Outputs {
    /// `None`: all.
    named: Option<Vec<(String, bool)>>,
    are_binary: bool,
}

impl Asking {
    /// Reads a body whose first `json_length` bytes are JSON; all of them where that is not said.
    pub(super) fn read(
        body: &[u8],
        json_length: Option<usize>,
        ports: &[Port],
    ) -> Result<Self, Problem> {
        let (json, mut binary) = match json_length {
            None => (body, &[][..]),
            Some(length) => body.split_at_checked(length).ok_or_else(|| {
                Problem::malformed("Inference-Header-Content-Length is more than the body has")
            })?,
        };
        let read: RequestBody<'_> =
            serde_json::from_slice(json).map_err(|error| Problem::malformed(error.to_string()))?;
        if read
            .id
            .as_ref()
            .is_some_and(|it| it.chars().count() > ID_CHARS_MAX)
        {
            let detail = format!("expected {ID_CHARS_MAX} characters at most");
            return Err(Problem::invalid("/id", detail));
        }
        if read.inputs.len() > TENSORS_MAX {
            let detail = format!("expected {TENSORS_MAX} at most");
            return Err(Problem::invalid("/inputs", detail));
        }
        let mut inputs: Vec<Option<Tensor>> = ports.iter().map(|_| None).collect();
        for (number, input) in read.inputs.iter().enumerate() {
            let refused = |detail: String| Problem::invalid(format!("/inputs/{number}"), detail);
            let port = ports.iter().position(|it| it.name == input.name);
            let place =
                port.ok_or_else(|| refused(format!("the model has no input `{}`", input.name)))?;
            let tensor = input.tensor(&ports[place], &mut binary).map_err(refused)?;
            if inputs[place].replace(tensor).is_some() {
                return Err(refused(format!("`{}` is given twice", input.name)));
            }
        }
        if !binary.is_empty() {
            let detail = format!("{} bytes are behind the last tensor", binary.len());
            return Err(Problem::malformed(detail));
        }
        let missing = ports.iter().zip(&inputs).find(|(_, it)| it.is_none());
        if let Some((port, _)) = missing {
            let detail = format!("`{}` is missing", port.name);
            return Err(Problem::invalid("/inputs", detail));
        }
        let inputs: Vec<Tensor> = inputs.into_iter().flatten().collect();
        let rows = inputs.first().and_then(Tensor::rows);
        if inputs.iter().any(|it| it.rows() != rows) {
            let detail = "all inputs have the same number of rows";
            return Err(Problem::invalid("/inputs", detail));
        }
        let are_binary = read.parameters.binary_data_output;
        let named = read.outputs.map(|outputs| {
            let wanted = outputs.into_iter().map(OutputBody::wanted(are_binary));
            wanted.collect::<Result<Vec<_>, _>>()
        });
        Ok(Self {
            id: read.id,
            inputs,
            outputs: Outputs {
                named: named.transpose()?,
                are_binary,
            },
        })
    }
}

impl InputBody<'_> {
    /// The tensor, whose bytes may be the next of those behind the JSON.
    fn tensor(&self, port: &Port, binary: &mut &[u8]) -> Result<Tensor, String> {
        let wanted = datatype::name(port.dtype);
        if datatype::of(&self.datatype) != Some(port.dtype) {
            return Err(format!("{wanted} is wanted, and {} found", self.datatype));
        }
        let rows = self.shape.first().copied().unwrap_or_default();
        if rows == 0 || self.shape.get(1..) != Some(port.row.as_slice()) {
            let row = port.row.iter().map(u64::to_string);
            let wanted: Vec<String> = std::iter::once("rows".to_owned()).chain(row).collect();
            let (wanted, found) = (wanted.join(", "), &self.shape);
            return Err(format!(
                "a shape of [{wanted}] is wanted, and {found:?} found"
            ));
        }
        if self.parameters.shared_memory_region.is_some() {
            return Err("there is no shared memory".to_owned());
        }
        let tensor = |bytes| Tensor {
            dtype: port.dtype,
            shape: self.shape.clone(),
            bytes,
        };
        let tensor = match (self.data, self.parameters.binary_data_size) {
            (Some(data), None) => tensor(read_numbers(data.get(), port.dtype, &self.shape)?),
            (None, Some(size)) => {
                let (bytes, rest) = binary
                    .split_at_checked(size)
                    .ok_or("there are fewer bytes behind the JSON than it says")?;
                *binary = rest;
                tensor(bytes.to_vec())
            }
            (Some(_), Some(_)) | (None, None) => {
                return Err("either `data` or `binary_data_size` is wanted".to_owned());
            }
        };
        if tensor.expected_bytes() == u64::try_from(tensor.bytes.len()).ok() {
            Ok(tensor)
        } else {
            Err("its data is not as long as its shape".to_owned())
        }
    }
}

impl OutputBody {
    fn wanted(are_binary: bool) -> impl Fn(Self) -> Result<(String, bool), Problem> {
        move |it| {
            if it.parameters.classification.is_some() {
                let detail = format!("`{}`: there is no classification", it.name);
                return Err(Problem::invalid("/outputs", detail));
            }
            Ok((it.name, it.parameters.binary_data.unwrap_or(are_binary)))
        }
    }
}

impl Outputs {
    /// Which of the program's outputs, by place, and whether as bytes.
    pub(super) fn of(&self, outputs: &[RowShape]) -> Result<Vec<(usize, String, bool)>, Problem> {
        let all = || {
            let names = outputs.iter().enumerate();
            names.map(|(place, it)| (place, it.name.clone(), self.are_binary))
        };
        let Some(named) = &self.named else {
            return Ok(all().collect());
        };
        let wanted = named.iter().map(|(name, is_binary)| {
            let place = outputs.iter().position(|it| it.name == *name);
            place
                .map(|place| (place, name.clone(), *is_binary))
                .ok_or_else(|| {
                    Problem::invalid("/outputs", format!("the model has no output `{name}`"))
                })
        });
        wanted.collect()
    }
}

/// An answer to the request of this name.
#[derive(Debug)]
pub(super) struct Written<'a> {
    pub id: Option<String>,
    pub callable: &'a Callable,
    pub answered: &'a Answered,
}

#[derive(Serialize)]
struct ResponseBody<'a> {
    model_name: ModelId,
    model_version: ModelVersionId,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    parameters: CallParameters,
    outputs: Vec<TensorBody<'a>>,
}

/// What a call was, and what it costs in base units.
#[derive(Serialize)]
struct CallParameters {
    call: CallId,
    cost: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    receipt: Option<ReceiptId>,
}

#[derive(Serialize)]
struct TensorBody<'a> {
    name: &'a str,
    datatype: &'static str,
    shape: &'a [u64],
    #[serde(skip_serializing_if = "Option::is_none")]
    parameters: Option<BinarySize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Nested<'a>>,
}

#[derive(Serialize)]
struct BinarySize {
    binary_data_size: usize,
}

impl Written<'_> {
    /// The JSON of an answer, and the bytes behind it where some output is wanted so.
    pub(super) fn with(
        &self,
        wanted: &[(usize, String, bool)],
    ) -> Result<(Vec<u8>, Option<Vec<u8>>), Problem> {
        let tensors = &self.answered.outputs.tensors;
        let chosen = wanted
            .iter()
            .filter_map(|(place, name, is_binary)| Some((tensors.get(*place)?, name, *is_binary)));
        let chosen: Vec<_> = chosen.collect();
        let outputs = chosen.iter().map(|&(tensor, name, is_binary)| TensorBody {
            name,
            datatype: datatype::name(tensor.dtype),
            shape: &tensor.shape,
            parameters: is_binary.then_some(BinarySize {
                binary_data_size: tensor.bytes.len(),
            }),
            data: (!is_binary).then_some(Nested(tensor)),
        });
        let body = ResponseBody {
            model_name: self.callable.model.id,
            model_version: self.callable.version.id,
            id: self.id.as_deref(),
            parameters: CallParameters {
                call: self.answered.id,
                cost: self.answered.cost.decimal(),
                receipt: self.answered.receipt,
            },
            outputs: outputs.collect(),
        };
        let json = serde_json::to_vec(&body).map_err(|error| Problem::internal(&error))?;
        let binary = chosen.iter().filter(|(_, _, is_binary)| *is_binary);
        let binary: Vec<_> = binary.map(|(tensor, ..)| tensor.bytes.as_slice()).collect();
        let is_any = chosen.iter().any(|(_, _, is_binary)| *is_binary);
        Ok((json, is_any.then(|| binary.concat())))
    }
}
