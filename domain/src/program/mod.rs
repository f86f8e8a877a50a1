//! Models as data: programs exported by `torch.export`, read, checked and priced without running anything.

pub mod archive;
pub mod batch;
pub mod graph;
pub mod meter;
mod operator_table;
pub mod operators;
pub mod stored;
pub mod symbolic;

use std::collections::BTreeMap;

pub use archive::{Archive, ArchiveError};
pub use batch::{Batch, BatchOutOfRange};
pub use stored::{Role, StoredTensor};

use stored::NAME_BYTES_MAX;

use graph::{
    Argument, ExportedProgram, Graph, GraphSignature, InputSpec, OutputSpec, ScalarType, TensorMeta,
};

/// Dimensions of one tensor.
pub const DIMENSIONS_MAX: usize = 16;
/// Operator calls of one program.
pub const NODES_MAX: usize = 50_000;
/// Named values of one program, its inputs included.
pub const VALUES_MAX: usize = 200_000;

/// A program that was read and checked: every operator is on the list, every value is defined before it is used and
/// described, every stored tensor fits its payload, and the first dimension of user inputs and outputs is the batch.
#[derive(Debug, Clone, PartialEq)]
pub struct Program {
    /// Operator calls in execution order.
    pub graph: Graph,
    /// What the graph's inputs and outputs are, in their order.
    pub signature: GraphSignature,
    /// Parameters, buffers and constants, by their names in the module.
    pub tensors: BTreeMap<String, StoredTensor>,
    /// The one dimension left open, if it is.
    pub batch: Batch,
    /// Whether it was exported as training IR; other dialects can only infer.
    pub training_ir: bool,
    /// The version of PyTorch that exported it, for display.
    pub torch_version: String,
    saved_names: BTreeMap<String, String>,
}

/// Why a graph is not a program that can run here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidProgram {
    #[error("the program has more than {max} {what}")]
    TooMany { what: &'static str, max: usize },
    #[error("{0} is empty, longer than {NAME_BYTES_MAX} bytes, or has control characters")]
    Name(&'static str),
    #[error("operator `{0}` is not on the list of operators that may run")]
    UnknownOperator(String),
    #[error("value `{0}` is used before anything defines it")]
    Undefined(String),
    #[error("value `{0}` is defined twice")]
    Redefined(String),
    #[error("value `{0}` has no recorded shape, or one that cannot be")]
    Undescribed(String),
    #[error("operator `{target}` writes into `{value}`, which is not the program's to change")]
    ForeignWrite { target: String, value: String },
    #[error("the program has {0}, which jobs do not support")]
    Unsupported(&'static str),
    #[error("signature and graph disagree about `{0}`")]
    Signature(String),
    #[error("`{name}` is recorded as {recorded} but stored as {stored}")]
    StoredDiffers {
        name: String,
        recorded: String,
        stored: String,
    },
    #[error("no stored tensor for `{0}`")]
    NotStored(String),
    #[error(
        "export the program with one dynamic dimension, the batch, first in every input and output, or for a single row: {0}"
    )]
    NotBatched(String),
}

impl Program {
    /// Checks a parsed document against its stored tensors.
    pub fn check(
        exported: ExportedProgram,
        tensors: BTreeMap<String, StoredTensor>,
    ) -> Result<Self, InvalidProgram> {
        let training_ir = exported
            .verifiers
            .iter()
            .any(|dialect| dialect == "TRAINING");
        let ExportedProgram {
            graph_module,
            range_constraints,
            torch_version,
            ..
        } = exported;
        let (graph, signature) = (graph_module.graph, graph_module.signature);
        check_limits(&graph)?;
        check_names(&graph, &torch_version)?;
        check_signature(&graph, &signature)?;
        operators::check(&graph, &signature)?;
        let tensors = match_stored(&graph, &signature, tensors)?;
        let batch = Batch::of(&graph, &signature, &range_constraints)?;
        let saved_names = stored::saved_names(&tensors);
        Ok(Self {
            graph,
            signature,
            tensors,
            batch,
            training_ir,
            torch_version,
            saved_names,
        })
    }

    /// Names and shapes of the user's inputs, in order; jobs name their tensors after them.
    pub fn user_inputs(&self) -> impl Iterator<Item = (&str, &TensorMeta)> {
        self.signature
            .input_specs
            .iter()
            .filter_map(|spec| match spec {
                InputSpec::UserInput {
                    arg: Argument::Tensor(tensor),
                } => self.described(&tensor.name),
                _ => None,
            })
    }

    /// Names and shapes of the user's outputs, in order; a job's `output` counts them from 0.
    pub fn user_outputs(&self) -> impl Iterator<Item = (&str, &TensorMeta)> {
        self.signature
            .output_specs
            .iter()
            .filter_map(|spec| match spec {
                OutputSpec::UserOutput {
                    arg: Argument::Tensor(tensor),
                } => self.described(&tensor.name),
                _ => None,
            })
    }

    /// Whether a training job has something to learn.
    #[must_use]
    pub fn is_trainable(&self) -> bool {
        let learns = |tensor: &StoredTensor| {
            matches!(
                tensor.role,
                Role::Parameter {
                    requires_grad: true
                }
            )
        };
        self.training_ir && self.tensors.values().any(learns)
    }

    /// For a tensor of several names, the one under which it is saved: the first in byte order.
    #[must_use]
    pub fn saved_name(&self, name: &str) -> Option<&str> {
        self.saved_names.get(name).map(String::as_str)
    }

    fn described<'a>(&'a self, name: &'a str) -> Option<(&'a str, &'a TensorMeta)> {
        self.graph.tensor_values.get(name).map(|meta| (name, meta))
    }
}

fn check_limits(graph: &Graph) -> Result<(), InvalidProgram> {
    let values = graph.tensor_values.len() + graph.sym_int_values.len();
    if graph.nodes.len() > NODES_MAX {
        return Err(InvalidProgram::TooMany {
            what: "operator calls",
            max: NODES_MAX,
        });
    }
    if values > VALUES_MAX {
        return Err(InvalidProgram::TooMany {
            what: "values",
            max: VALUES_MAX,
        });
    }
    for (name, meta) in &graph.tensor_values {
        if meta.sizes.len() > DIMENSIONS_MAX || meta.strides.len() != meta.sizes.len() {
            return Err(InvalidProgram::Undescribed(name.clone()));
        }
    }
    Ok(())
}

/// Names are kept, shown and compared; Postgres keeps no NUL, and nobody reads what has no end.
fn check_names(graph: &Graph, torch_version: &str) -> Result<(), InvalidProgram> {
    let tensors = graph.tensor_values.keys();
    let mut names = tensors.chain(graph.sym_int_values.keys());
    if !names.all(|name| stored::is_name(name)) {
        return Err(InvalidProgram::Name("the name of a value"));
    }
    if !torch_version.is_empty() && !stored::is_name(torch_version) {
        return Err(InvalidProgram::Name("the version of PyTorch"));
    }
    Ok(())
}

/// The signature names the graph's inputs and outputs one by one; two lists that differ would be two programs.
fn check_signature(graph: &Graph, signature: &GraphSignature) -> Result<(), InvalidProgram> {
    let inputs = signature
        .input_specs
        .iter()
        .map(input_value)
        .collect::<Result<Vec<_>, _>>()?;
    let outputs = signature
        .output_specs
        .iter()
        .map(output_value)
        .collect::<Result<Vec<_>, _>>()?;
    for (named, listed) in [(inputs, &graph.inputs), (outputs, &graph.outputs)] {
        if named.len() != listed.len() {
            return Err(InvalidProgram::Signature(format!("{} values", named.len())));
        }
        for (name, argument) in named.into_iter().zip(listed) {
            if !matches!(argument, Argument::Tensor(tensor) if tensor.name == name) {
                return Err(InvalidProgram::Signature(name.to_owned()));
            }
            if !graph.tensor_values.contains_key(name) {
                return Err(InvalidProgram::Undescribed(name.to_owned()));
            }
        }
    }
    Ok(())
}

fn input_value(spec: &InputSpec) -> Result<&str, InvalidProgram> {
    match spec {
        InputSpec::UserInput {
            arg: Argument::Tensor(tensor),
        } => Ok(&tensor.name),
        InputSpec::UserInput { .. } | InputSpec::ConstantInput => {
            Err(InvalidProgram::Unsupported("an input that is not a tensor"))
        }
        InputSpec::Parameter { arg, .. }
        | InputSpec::Buffer { arg, .. }
        | InputSpec::TensorConstant { arg, .. } => Ok(&arg.name),
        InputSpec::CustomObj => Err(InvalidProgram::Unsupported("a custom object")),
        InputSpec::Token => Err(InvalidProgram::Unsupported("a side effect token")),
    }
}

fn output_value(spec: &OutputSpec) -> Result<&str, InvalidProgram> {
    match spec {
        OutputSpec::UserOutput {
            arg: Argument::Tensor(tensor),
        } => Ok(&tensor.name),
        OutputSpec::BufferMutation { arg, .. } => Ok(&arg.name),
        OutputSpec::UserOutput { .. } => Err(InvalidProgram::Unsupported(
            "an output that is not a tensor",
        )),
        OutputSpec::ParameterMutation { .. } => Err(InvalidProgram::Unsupported(
            "a change of its own parameters",
        )),
        OutputSpec::UserInputMutation { .. } => {
            Err(InvalidProgram::Unsupported("a change of its inputs"))
        }
        OutputSpec::LossOutput { .. }
        | OutputSpec::GradientToParameter
        | OutputSpec::GradientToUserInput => Err(InvalidProgram::Unsupported("a backward graph")),
        OutputSpec::Token => Err(InvalidProgram::Unsupported("a side effect token")),
    }
}

/// Keeps the tensors the graph reads, each under its role; shape and dtype must be those the graph recorded.
fn match_stored(
    graph: &Graph,
    signature: &GraphSignature,
    mut stored: BTreeMap<String, StoredTensor>,
) -> Result<BTreeMap<String, StoredTensor>, InvalidProgram> {
    let mut matched = BTreeMap::new();
    for spec in &signature.input_specs {
        let (name, value, is_saved) = match spec {
            InputSpec::Parameter {
                arg,
                parameter_name,
            } => (parameter_name, &arg.name, true),
            InputSpec::Buffer {
                arg,
                buffer_name,
                persistent,
            } => (buffer_name, &arg.name, *persistent),
            InputSpec::TensorConstant {
                arg,
                tensor_constant_name,
            } => (tensor_constant_name, &arg.name, false),
            _ => continue,
        };
        let mut tensor = stored
            .remove(name)
            .ok_or_else(|| InvalidProgram::NotStored(name.clone()))?;
        let meta = &graph.tensor_values[value];
        if !tensor.matches(meta) {
            return Err(InvalidProgram::StoredDiffers {
                name: name.clone(),
                recorded: stored::describe(meta.dtype, &meta.sizes),
                stored: stored::describe(tensor.dtype, &tensor.sizes),
            });
        }
        tensor.value.clone_from(value);
        tensor.role = match spec {
            InputSpec::Parameter { .. } => Role::Parameter {
                requires_grad: tensor.requires_grad() && tensor.dtype.is_float(),
            },
            InputSpec::Buffer { .. } => Role::Buffer {
                persistent: is_saved,
            },
            _ => Role::Constant,
        };
        matched.insert(name.clone(), tensor);
    }
    Ok(matched)
}

/// Bytes of one row-major tensor of these sizes; `None` where 64 bits do not hold them.
#[must_use]
pub fn contiguous_bytes(dtype: ScalarType, sizes: &[u64]) -> Option<u64> {
    sizes
        .iter()
        .try_fold(dtype.size(), |bytes, size| bytes.checked_mul(*size))
}
