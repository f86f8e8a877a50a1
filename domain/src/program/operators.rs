//! Which operators may run, and whether a graph calls them soundly.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    InvalidProgram,
    graph::{
        Argument, Graph, GraphSignature, InputSpec, Node, OptionalTensorArgument, SymIntArgument,
        TensorArgument,
    },
    operator_table::OPERATORS,
};

/// How the multiply-adds of an operator follow from recorded shapes. `meter.rs` computes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// Views, element-wise functions, reductions, normalisation, pooling, lookups, symbolic arithmetic: not counted.
    Free,
    /// `linear(input, weight)`: elements of the output × the weight's second dimension.
    Linear,
    /// A matrix product whose left operand is this argument: elements of the output × its last dimension.
    Matmul(&'static str),
    /// `conv*d`, and `convolution` unless it is transposed: elements of the output × elements of one filter.
    Convolution,
    /// `conv_transpose*d`: elements of the input × elements of one filter.
    TransposedConvolution,
    /// `scaled_dot_product_attention`: (elements of the query + elements of the output) × number of keys.
    Attention,
    /// `einsum` of two tensors: the product of the sizes of all its letters.
    Einsum,
}

/// The rule of an operator that may run, by its target in the export.
#[must_use]
pub fn rule(target: &str) -> Option<Rule> {
    let at = OPERATORS
        .binary_search_by(|(listed, _)| listed.cmp(&target))
        .ok()?;
    Some(OPERATORS[at].1)
}

/// Every target that may run.
pub fn targets() -> impl Iterator<Item = &'static str> {
    OPERATORS.iter().map(|(target, _)| *target)
}

/// The operator's name and overload for ATen's dispatcher (`aten::add`, `Tensor`); `None` for symbolic arithmetic in Python.
/// The overload named `default` is the empty one.
#[must_use]
pub fn aten_name(target: &str) -> Option<(String, &str)> {
    let (name, overload) = target.strip_prefix("torch.ops.aten.")?.split_once('.')?;
    Some((
        format!("aten::{name}"),
        if overload == "default" { "" } else { overload },
    ))
}

/// Checks every call: the operator is listed, what it reads was defined before, what it makes is new and described, and
/// what it writes in place is a buffer or a value of the program itself.
pub(super) fn check(graph: &Graph, signature: &GraphSignature) -> Result<(), InvalidProgram> {
    let mut scope = Scope {
        graph,
        defined: BTreeSet::new(),
        protected: BTreeSet::new(),
    };
    for argument in &graph.inputs {
        scope.define(argument)?;
    }
    for spec in &signature.input_specs {
        match spec {
            InputSpec::UserInput {
                arg: Argument::Tensor(arg),
            }
            | InputSpec::Parameter { arg, .. }
            | InputSpec::TensorConstant { arg, .. } => scope.protected.insert(&arg.name),
            _ => continue,
        };
    }
    for node in &graph.nodes {
        if rule(&node.target).is_none() {
            return Err(InvalidProgram::UnknownOperator(node.target.clone()));
        }
        scope.check_inputs(node)?;
        node.outputs
            .iter()
            .try_for_each(|output| scope.define(output))?;
    }
    graph
        .outputs
        .iter()
        .try_for_each(|output| scope.check_read(output))
}

struct Scope<'a> {
    graph: &'a Graph,
    defined: BTreeSet<&'a str>,
    /// Parameters, constants and user inputs: an operator that wrote them would change what later batches see.
    protected: BTreeSet<&'a str>,
}

impl<'a> Scope<'a> {
    fn check_inputs(&self, node: &'a Node) -> Result<(), InvalidProgram> {
        let mut names = BTreeMap::new();
        for input in &node.inputs {
            if names.insert(&input.name, &input.arg).is_some() {
                return Err(InvalidProgram::Redefined(format!(
                    "{}({})",
                    node.target, input.name
                )));
            }
            self.check_read(&input.arg)?;
            if let Argument::Tensor(tensor) = &input.arg
                && writes(&node.target, &input.name)
                && self.protected.contains(tensor.name.as_str())
            {
                let (target, value) = (node.target.clone(), tensor.name.clone());
                return Err(InvalidProgram::ForeignWrite { target, value });
            }
        }
        Ok(())
    }

    fn check_read(&self, argument: &Argument) -> Result<(), InvalidProgram> {
        let known = |name: &String| {
            if self.defined.contains(name.as_str()) {
                Ok(())
            } else {
                Err(InvalidProgram::Undefined(name.clone()))
            }
        };
        let optional = |argument: &OptionalTensorArgument| match argument {
            OptionalTensorArgument::Tensor(tensor) => known(&tensor.name),
            OptionalTensorArgument::None => Ok(()),
        };
        let symbolic = |argument: &SymIntArgument| match argument {
            SymIntArgument::Name(name) => known(name),
            SymIntArgument::Int(_) => Ok(()),
        };
        match argument {
            Argument::Tensor(tensor) => known(&tensor.name),
            Argument::Tensors(tensors) => tensors.iter().try_for_each(|tensor| known(&tensor.name)),
            Argument::OptionalTensor(tensor) => optional(tensor),
            Argument::OptionalTensors(tensors) => tensors.iter().try_for_each(optional),
            Argument::SymInt(int) => symbolic(int),
            Argument::SymInts(ints) => ints.iter().try_for_each(symbolic),
            _ => Ok(()),
        }
    }

    fn define(&mut self, output: &'a Argument) -> Result<(), InvalidProgram> {
        match output {
            Argument::Tensor(tensor) => self.define_tensor(tensor),
            Argument::Tensors(tensors) => tensors
                .iter()
                .try_for_each(|tensor| self.define_tensor(tensor)),
            Argument::SymInt(SymIntArgument::Name(name))
                if self.graph.sym_int_values.contains_key(name) =>
            {
                self.define_name(name)
            }
            Argument::None => Ok(()),
            _ => Err(InvalidProgram::Unsupported(
                "a call that makes neither tensors nor sizes",
            )),
        }
    }

    fn define_tensor(&mut self, tensor: &'a TensorArgument) -> Result<(), InvalidProgram> {
        if !self.graph.tensor_values.contains_key(&tensor.name) {
            return Err(InvalidProgram::Undescribed(tensor.name.clone()));
        }
        self.define_name(&tensor.name)
    }

    fn define_name(&mut self, name: &'a str) -> Result<(), InvalidProgram> {
        if self.defined.insert(name) {
            Ok(())
        } else {
            Err(InvalidProgram::Redefined(name.to_owned()))
        }
    }
}

/// Whether the operator changes this argument in place: `add_` its `self`, batch norm its running statistics.
#[must_use]
pub fn writes(target: &str, argument: &str) -> bool {
    let in_place = aten_name(target).is_some_and(|(name, _)| name.ends_with('_'));
    (in_place && argument == "self")
        || (target.contains("batch_norm") && matches!(argument, "running_mean" | "running_var"))
}
