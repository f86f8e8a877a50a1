//! Reads a program's nodes for a plan: what each calls, with what, and where results go.

use std::collections::BTreeMap;

use comptoir_domain::program::{
    Program,
    graph::{Argument, MemoryFormat, Node, OptionalTensorArgument, ScalarType, SymIntArgument},
    operators,
};

use super::{
    failure::{Code, Failure},
    plan::{Action, Arithmetic, Bind, Call, Int, Phase, Slot, Source},
};
use crate::aten::Operator;

/// Turns names into slots.
pub(super) struct Planner<'a> {
    slots: BTreeMap<&'a str, Slot>,
    pub(super) names: Vec<&'a str>,
}

impl<'a> Planner<'a> {
    pub(super) fn of(program: &'a Program) -> Self {
        let tensors = program.graph.tensor_values.keys();
        let names: Vec<&str> = tensors
            .chain(program.graph.sym_int_values.keys())
            .map(String::as_str)
            .collect();
        let slots = names
            .iter()
            .enumerate()
            .map(|(slot, name)| (*name, slot))
            .collect();
        Self { slots, names }
    }

    pub(super) fn slot(&self, name: &str) -> Result<Slot, Failure> {
        let unknown = || {
            Failure::new(
                Code::InvalidProgram,
                format_args!("value `{name}` is not described"),
            )
        };
        self.slots.get(name).copied().ok_or_else(unknown)
    }

    pub(super) fn call(&self, node: &Node, phase: Phase) -> Result<Call, Failure> {
        if operators::rule(&node.target).is_none() {
            let reason = format!(
                "operator `{}` is not on the list of operators that may run",
                node.target
            );
            return Err(Failure::new(Code::InvalidProgram, reason));
        }
        let action = match operators::aten_name(&node.target) {
            Some((name, overload)) => self.aten(node, &name, overload, phase)?,
            None => self.integers(node)?,
        };
        let outputs = node
            .outputs
            .iter()
            .map(|output| self.bind(output))
            .collect::<Result<_, _>>()?;
        Ok(Call {
            target: node.target.clone(),
            action,
            outputs,
            release: Vec::new(),
        })
    }

    fn aten(
        &self,
        node: &Node,
        name: &str,
        overload: &str,
        phase: Phase,
    ) -> Result<Action, Failure> {
        let operator = Operator::find(name, overload)
            .map_err(|error| Failure::from_aten(Code::InvalidProgram, &node.target, &error))?;
        let mut arguments = Vec::with_capacity(node.inputs.len());
        for input in &node.inputs {
            arguments.push((input.name.clone(), self.source(&input.arg)?));
        }
        let mut set = |name: &str, source: Source| {
            arguments.retain(|(present, _)| present != name);
            arguments.push((name.to_owned(), source));
        };
        // Normalisation without running statistics always takes those of the batch; libtorch's kernels do not check.
        let given = |name: &str| {
            matches!(
                node.input(name),
                Some(
                    Argument::Tensor(_)
                        | Argument::OptionalTensor(OptionalTensorArgument::Tensor(_))
                )
            )
        };
        let is_stateless =
            name.contains("batch_norm") && !(given("running_mean") && given("running_var"));
        for flag in ["train", "training"] {
            if operator.has_argument(flag) {
                set(flag, Source::Bool(phase == Phase::Training || is_stateless));
            }
        }
        if phase == Phase::Inference && operator.has_argument("dropout_p") {
            set("dropout_p", Source::Float(0.0));
        }
        let has_device = node
            .input("device")
            .is_some_and(|device| matches!(device, Argument::Device(_)));
        if operator.has_argument("device") && (has_device || !operator.takes_tensor()) {
            set("device", Source::Device);
        }
        let zero = name == "aten::empty"
            || name.starts_with("aten::empty_")
            || name.starts_with("aten::new_empty");
        Ok(Action::Aten {
            operator,
            arguments,
            zero,
        })
    }

    fn integers(&self, node: &Node) -> Result<Action, Failure> {
        let (arithmetic, operands) = match node.target.as_str() {
            "_operator.add" => (Arithmetic::Add, 2),
            "_operator.sub" => (Arithmetic::Sub, 2),
            "_operator.mul" => (Arithmetic::Mul, 2),
            "_operator.floordiv" => (Arithmetic::FloorDiv, 2),
            "_operator.mod" => (Arithmetic::Mod, 2),
            "_operator.pow" => (Arithmetic::Pow, 2),
            "_operator.neg" => (Arithmetic::Neg, 1),
            "torch.sym_max" => (Arithmetic::Max, 2),
            "torch.sym_min" => (Arithmetic::Min, 2),
            other => {
                return Err(Failure::new(
                    Code::InvalidProgram,
                    format_args!("`{other}` has no meaning here"),
                ));
            }
        };
        let ints = node
            .inputs
            .iter()
            .map(|input| match self.source(&input.arg)? {
                Source::Int(int) => Ok(int),
                _ => Err(Failure::new(
                    Code::InvalidProgram,
                    format_args!("`{}` takes sizes", node.target),
                )),
            })
            .collect::<Result<Vec<_>, _>>()?;
        if ints.len() != operands {
            let reason = format!(
                "`{}` takes {operands} sizes, not {}",
                node.target,
                ints.len()
            );
            return Err(Failure::new(Code::InvalidProgram, reason));
        }
        Ok(Action::Integers(arithmetic, ints))
    }

    fn source(&self, argument: &Argument) -> Result<Source, Failure> {
        let optional = |argument: &OptionalTensorArgument| match argument {
            OptionalTensorArgument::Tensor(tensor) => self.slot(&tensor.name).map(Some),
            OptionalTensorArgument::None => Ok(None),
        };
        Ok(match argument {
            Argument::None => Source::None,
            Argument::Tensor(tensor) => Source::Tensor(self.slot(&tensor.name)?),
            Argument::OptionalTensor(tensor) => {
                optional(tensor)?.map_or(Source::None, Source::Tensor)
            }
            Argument::Tensors(tensors) => Source::Tensors(
                tensors
                    .iter()
                    .map(|tensor| self.slot(&tensor.name).map(Some))
                    .collect::<Result<_, _>>()?,
            ),
            Argument::OptionalTensors(tensors) => {
                Source::Tensors(tensors.iter().map(optional).collect::<Result<_, _>>()?)
            }
            Argument::Int(int) => Source::Int(Int::Known(*int)),
            Argument::Ints(ints) => Source::Ints(ints.iter().copied().map(Int::Known).collect()),
            Argument::SymInt(int) => Source::Int(self.int(int)?),
            Argument::SymInts(ints) => Source::Ints(
                ints.iter()
                    .map(|int| self.int(int))
                    .collect::<Result<_, _>>()?,
            ),
            Argument::Float(number) => Source::Float(number.0),
            Argument::Floats(numbers) => {
                Source::Floats(numbers.iter().map(|number| number.0).collect())
            }
            Argument::Bool(flag) => Source::Bool(*flag),
            Argument::Bools(flags) => Source::Bools(flags.clone()),
            Argument::String(text) => Source::Text(text.clone()),
            Argument::ScalarType(dtype) => Source::Int(Int::Known(i64::from(aten_code(*dtype)))),
            Argument::MemoryFormat(format) => Source::Int(Int::Known(match format {
                MemoryFormat::Contiguous => 0,
                MemoryFormat::Preserve => 1,
                MemoryFormat::ChannelsLast => 2,
                MemoryFormat::ChannelsLast3d => 3,
            })),
            // Strided, the only layout there is.
            Argument::Layout(_) => Source::Int(Int::Known(0)),
            Argument::Device(_) => Source::Device,
            Argument::Strings(_) => {
                return Err(Failure::new(
                    Code::InvalidProgram,
                    "a list of strings as argument",
                ));
            }
        })
    }

    fn int(&self, argument: &SymIntArgument) -> Result<Int, Failure> {
        match argument {
            SymIntArgument::Int(int) => Ok(Int::Known(*int)),
            SymIntArgument::Name(name) => self.slot(name).map(Int::Made),
        }
    }

    fn bind(&self, output: &Argument) -> Result<Bind, Failure> {
        match output {
            Argument::None => Ok(Bind::Drop),
            Argument::Tensor(tensor) => self.slot(&tensor.name).map(Bind::One),
            Argument::SymInt(SymIntArgument::Name(name)) => self.slot(name).map(Bind::One),
            Argument::Tensors(tensors) => {
                let slots = tensors
                    .iter()
                    .map(|tensor| self.slot(&tensor.name).map(Some));
                slots.collect::<Result<_, _>>().map(Bind::Many)
            }
            _ => Err(Failure::new(
                Code::InvalidProgram,
                "a call that makes neither tensors nor sizes",
            )),
        }
    }
}

/// The element type's number in ATen; the export's own numbers differ.
pub(super) const fn aten_code(dtype: ScalarType) -> u8 {
    match dtype {
        ScalarType::U8 => 0,
        ScalarType::I8 => 1,
        ScalarType::I16 => 2,
        ScalarType::I32 => 3,
        ScalarType::I64 => 4,
        ScalarType::F16 => 5,
        ScalarType::F32 => 6,
        ScalarType::F64 => 7,
        ScalarType::Bool => 11,
        ScalarType::Bf16 => 15,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libtorch_has_every_operator_on_the_list() {
        for target in operators::targets() {
            if let Some((name, overload)) = operators::aten_name(target) {
                assert!(Operator::find(&name, overload).is_ok(), "{target}");
            }
        }
    }
}
