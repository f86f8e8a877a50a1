//! The graph of a `torch.export` archive: serde types of `models/model.json`, schema 8.x.
//!
//! Names follow PyTorch's own schema (`torch/_export/serde/schema.py`). What a run or a price never reads (stack traces,
//! size hints, call signatures of submodules) is skipped while parsing, so that it can neither matter nor cost memory.

use std::{collections::BTreeMap, fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{self, IgnoredAny, MapAccess, Visitor},
};

use super::symbolic::Expr;

/// The whole document.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct ExportedProgram {
    pub graph_module: GraphModule,
    /// Bounds of each symbol, by its name (`s77`).
    #[serde(deserialize_with = "unique_map")]
    pub range_constraints: BTreeMap<String, RangeConstraint>,
    pub schema_version: SchemaVersion,
    /// `TRAINING` for training IR; other dialects are decomposed and can only infer.
    #[serde(default)]
    pub verifiers: Vec<String>,
    #[serde(default)]
    pub torch_version: String,
}

/// The graph and what its inputs and outputs mean.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct GraphModule {
    pub graph: Graph,
    pub signature: GraphSignature,
}

/// Nodes in execution order over named values.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Graph {
    pub inputs: Vec<Argument>,
    pub outputs: Vec<Argument>,
    pub nodes: Vec<Node>,
    /// Shape and dtype of every tensor value, graph inputs included.
    #[serde(deserialize_with = "unique_map")]
    pub tensor_values: BTreeMap<String, TensorMeta>,
    #[serde(deserialize_with = "unique_map")]
    pub sym_int_values: BTreeMap<String, SymInt>,
}

/// One operator call.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Node {
    /// Such as `torch.ops.aten.linear.default` or `_operator.mul`.
    pub target: String,
    pub inputs: Vec<NamedArgument>,
    pub outputs: Vec<Argument>,
}

impl Node {
    /// The argument of this schema name, if the export recorded one (defaults are left out).
    #[must_use]
    pub fn input(&self, name: &str) -> Option<&Argument> {
        self.inputs
            .iter()
            .find(|input| input.name == name)
            .map(|input| &input.arg)
    }
}

/// An argument with its name in the operator's schema.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct NamedArgument {
    pub name: String,
    pub arg: Argument,
    #[serde(default)]
    pub kind: Option<ArgumentKind>,
}

/// How the export passed an argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "u8")]
pub enum ArgumentKind {
    Unknown,
    Positional,
    Keyword,
}

/// A value given to, or made by, a node. Sub-graphs, custom objects and nested lists do not exist here: they do not parse.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub enum Argument {
    #[serde(rename = "as_none", deserialize_with = "skipped")]
    None,
    #[serde(rename = "as_tensor")]
    Tensor(TensorArgument),
    #[serde(rename = "as_tensors")]
    Tensors(Vec<TensorArgument>),
    #[serde(rename = "as_optional_tensor")]
    OptionalTensor(OptionalTensorArgument),
    #[serde(rename = "as_optional_tensors")]
    OptionalTensors(Vec<OptionalTensorArgument>),
    #[serde(rename = "as_int")]
    Int(i64),
    #[serde(rename = "as_ints")]
    Ints(Vec<i64>),
    #[serde(rename = "as_float")]
    Float(Number),
    #[serde(rename = "as_floats")]
    Floats(Vec<Number>),
    #[serde(rename = "as_bool")]
    Bool(bool),
    #[serde(rename = "as_bools")]
    Bools(Vec<bool>),
    #[serde(rename = "as_string")]
    String(String),
    #[serde(rename = "as_strings")]
    Strings(Vec<String>),
    #[serde(rename = "as_sym_int")]
    SymInt(SymIntArgument),
    #[serde(rename = "as_sym_ints")]
    SymInts(Vec<SymIntArgument>),
    #[serde(rename = "as_scalar_type")]
    ScalarType(ScalarType),
    #[serde(rename = "as_memory_format")]
    MemoryFormat(MemoryFormat),
    #[serde(rename = "as_layout")]
    Layout(Layout),
    #[serde(rename = "as_device")]
    Device(Device),
}

/// A reference to a tensor value by name.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct TensorArgument {
    pub name: String,
}

/// An element of a `Tensor?[]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub enum OptionalTensorArgument {
    #[serde(rename = "as_tensor")]
    Tensor(TensorArgument),
    #[serde(rename = "as_none", deserialize_with = "skipped")]
    None,
}

/// An integer argument: a constant, or the name of a value in `sym_int_values`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub enum SymIntArgument {
    #[serde(rename = "as_name")]
    Name(String),
    #[serde(rename = "as_int")]
    Int(i64),
}

/// A floating-point number; the exporter writes the three JSON cannot hold as strings.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Number(pub f64);

/// What is recorded about a tensor.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct TensorMeta {
    pub dtype: ScalarType,
    pub sizes: Vec<SymInt>,
    #[serde(default)]
    pub requires_grad: bool,
    pub strides: Vec<SymInt>,
    pub storage_offset: SymInt,
    pub layout: Layout,
}

/// A size: a constant, or an expression over the symbols of `range_constraints`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub enum SymInt {
    #[serde(rename = "as_int")]
    Int(i64),
    #[serde(rename = "as_expr")]
    Expr(SymExpr),
}

/// A symbolic size. The hint (its value for the example batch) is not read: nothing may depend on it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct SymExpr {
    #[serde(rename = "expr_str")]
    pub expr: Expr,
}

/// A device recorded by the export. The runner decides where values live; this is only read to be ignored.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Device {
    #[serde(rename = "type")]
    pub kind: String,
    pub index: Option<i64>,
}

/// What graph inputs and outputs are, in order.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct GraphSignature {
    pub input_specs: Vec<InputSpec>,
    pub output_specs: Vec<OutputSpec>,
}

/// What one graph input is.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InputSpec {
    UserInput {
        arg: Argument,
    },
    Parameter {
        arg: TensorArgument,
        parameter_name: String,
    },
    Buffer {
        arg: TensorArgument,
        buffer_name: String,
        persistent: bool,
    },
    TensorConstant {
        arg: TensorArgument,
        tensor_constant_name: String,
    },
    #[serde(deserialize_with = "skipped")]
    CustomObj,
    #[serde(deserialize_with = "skipped")]
    Token,
    #[serde(deserialize_with = "skipped")]
    ConstantInput,
}

/// What one graph output is.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OutputSpec {
    UserOutput {
        arg: Argument,
    },
    LossOutput {
        arg: TensorArgument,
    },
    BufferMutation {
        arg: TensorArgument,
        buffer_name: String,
    },
    ParameterMutation {
        arg: TensorArgument,
        parameter_name: String,
    },
    UserInputMutation {
        arg: TensorArgument,
        user_input_name: String,
    },
    #[serde(deserialize_with = "skipped")]
    GradientToParameter,
    #[serde(deserialize_with = "skipped")]
    GradientToUserInput,
    #[serde(deserialize_with = "skipped")]
    Token,
}

/// Bounds of a symbol, both inclusive; absent is unbounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct RangeConstraint {
    pub min_val: Option<i64>,
    pub max_val: Option<i64>,
}

/// Version of the document's schema. A new major is a breaking change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct SchemaVersion {
    pub major: u32,
    pub minor: u32,
}

/// Element types by the numbers of the export's schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(try_from = "u8")]
pub enum ScalarType {
    U8,
    I8,
    I16,
    I32,
    I64,
    F16,
    F32,
    F64,
    Bool,
    Bf16,
}

impl ScalarType {
    /// Bytes of one element.
    #[must_use]
    pub const fn size(self) -> u64 {
        match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::I16 | Self::F16 | Self::Bf16 => 2,
            Self::I32 | Self::F32 => 4,
            Self::I64 | Self::F64 => 8,
        }
    }

    /// Whether gradients exist for it.
    #[must_use]
    pub const fn is_float(self) -> bool {
        matches!(self, Self::F16 | Self::Bf16 | Self::F32 | Self::F64)
    }
}

/// Memory formats by the numbers of the export's schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "u8")]
pub enum MemoryFormat {
    Contiguous,
    ChannelsLast,
    ChannelsLast3d,
    Preserve,
}

/// Layouts by the numbers of the export's schema: only strided tensors are data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "u8")]
pub enum Layout {
    Strided,
}

impl TryFrom<u8> for ArgumentKind {
    type Error = String;

    fn try_from(code: u8) -> Result<Self, String> {
        match code {
            0 => Ok(Self::Unknown),
            1 => Ok(Self::Positional),
            2 => Ok(Self::Keyword),
            other => Err(format!("unknown argument kind {other}")),
        }
    }
}

impl TryFrom<u8> for ScalarType {
    type Error = String;

    fn try_from(code: u8) -> Result<Self, String> {
        Ok(match code {
            1 => Self::U8,
            2 => Self::I8,
            3 => Self::I16,
            4 => Self::I32,
            5 => Self::I64,
            6 => Self::F16,
            7 => Self::F32,
            8 => Self::F64,
            12 => Self::Bool,
            13 => Self::Bf16,
            other => return Err(format!("element type {other} is not supported")),
        })
    }
}

impl TryFrom<u8> for MemoryFormat {
    type Error = String;

    fn try_from(code: u8) -> Result<Self, String> {
        Ok(match code {
            1 => Self::Contiguous,
            2 => Self::ChannelsLast,
            3 => Self::ChannelsLast3d,
            4 => Self::Preserve,
            other => return Err(format!("memory format {other} is not supported")),
        })
    }
}

impl TryFrom<u8> for Layout {
    type Error = String;

    fn try_from(code: u8) -> Result<Self, String> {
        match code {
            7 => Ok(Self::Strided),
            other => Err(format!("tensor layout {other} is not strided")),
        }
    }
}

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NumberVisitor;
        impl Visitor<'_> for NumberVisitor {
            type Value = Number;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number, \"Infinity\", \"-Infinity\" or \"NaN\"")
            }

            fn visit_f64<E>(self, value: f64) -> Result<Number, E> {
                Ok(Number(value))
            }

            #[expect(
                clippy::cast_precision_loss,
                reason = "a float written without a fraction; Python would round it the same way"
            )]
            fn visit_i64<E>(self, value: i64) -> Result<Number, E> {
                Ok(Number(value as f64))
            }

            #[expect(
                clippy::cast_precision_loss,
                reason = "a float written without a fraction; Python would round it the same way"
            )]
            fn visit_u64<E>(self, value: u64) -> Result<Number, E> {
                Ok(Number(value as f64))
            }

            fn visit_str<E: de::Error>(self, value: &str) -> Result<Number, E> {
                match value {
                    "Infinity" => Ok(Number(f64::INFINITY)),
                    "-Infinity" => Ok(Number(f64::NEG_INFINITY)),
                    "NaN" => Ok(Number(f64::NAN)),
                    _ => Err(E::invalid_value(de::Unexpected::Str(value), &self)),
                }
            }
        }
        deserializer.deserialize_any(NumberVisitor)
    }
}

/// Reads and forgets a variant's content.
fn skipped<'de, D: Deserializer<'de>>(deserializer: D) -> Result<(), D::Error> {
    IgnoredAny::deserialize(deserializer).map(|_| ())
}

/// A map in which a name may stand only once: with "last wins" two readers could see two programs.
pub(crate) fn unique_map<'de, D, V>(deserializer: D) -> Result<BTreeMap<String, V>, D::Error>
where
    D: Deserializer<'de>,
    V: Deserialize<'de>,
{
    struct UniqueVisitor<V>(PhantomData<V>);
    impl<'de, V: Deserialize<'de>> Visitor<'de> for UniqueVisitor<V> {
        type Value = BTreeMap<String, V>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object without repeated names")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Self::Value, A::Error> {
            let mut map = BTreeMap::new();
            while let Some((name, value)) = access.next_entry::<String, V>()? {
                if map.contains_key(&name) {
                    return Err(de::Error::custom(format_args!(
                        "the name {name:?} stands twice"
                    )));
                }
                map.insert(name, value);
            }
            Ok(map)
        }
    }
    deserializer.deserialize_map(UniqueVisitor(PhantomData))
}
