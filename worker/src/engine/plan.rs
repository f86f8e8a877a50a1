//! A program made ready to run: names become slots, operators are looked up, and the phase is fixed.

use std::collections::BTreeMap;

use comptoir_domain::program::{
    Program,
    graph::{
        Argument, InputSpec, MemoryFormat, Node, OptionalTensorArgument, OutputSpec, ScalarType,
        SymIntArgument, TensorMeta,
    },
    operators,
};
use tch::Kind;

use super::failure::{Code, Failure};
use crate::aten::Operator;

/// What a program runs for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Dropout drops, batch norm uses and moves its statistics.
    Training,
    /// Neither.
    Inference,
}

/// A value's place while a program runs.
pub type Slot = usize;

/// A program ready to run.
pub struct Plan {
    pub calls: Vec<Call>,
    /// One for each value. What a tensor must be, by its record; none for sizes.
    pub records: Vec<Option<TensorMeta>>,
    /// Names of values, for messages.
    pub names: Vec<String>,
    /// The user's inputs, in order.
    pub inputs: Vec<Slot>,
    /// Stored tensors by their names in the module.
    pub stored: Vec<(String, Slot)>,
    /// The user's outputs, in order.
    pub outputs: Vec<Slot>,
    /// Buffers that take a value when the run has ended, by name.
    pub mutations: Vec<(String, Slot)>,
}

/// One node.
pub struct Call {
    pub target: String,
    pub action: Action,
    pub outputs: Vec<Bind>,
    /// Slots that nothing after this call reads.
    pub release: Vec<Slot>,
}

/// What a node does.
pub enum Action {
    Aten {
        operator: Operator,
        arguments: Vec<(String, Source)>,
        /// `empty*` promises nothing about its content; here it is zeros, the same on every machine.
        zero: bool,
    },
    Integers(Arithmetic, Vec<Int>),
}

/// Arithmetic on sizes, as Python does it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arithmetic {
    Add,
    Sub,
    Mul,
    FloorDiv,
    Mod,
    Pow,
    Neg,
    Max,
    Min,
}

/// Where an argument's value comes from.
pub enum Source {
    None,
    Tensor(Slot),
    Tensors(Vec<Option<Slot>>),
    Int(Int),
    Ints(Vec<Int>),
    Float(f64),
    Floats(Vec<f64>),
    Bool(bool),
    Bools(Vec<bool>),
    Text(String),
    /// The device of the job, whatever the export recorded.
    Device,
}

/// A size: known, or made by an earlier node.
#[derive(Debug, Clone, Copy)]
pub enum Int {
    Known(i64),
    Made(Slot),
}

/// Where results go.
pub enum Bind {
    /// Nobody reads it.
    Drop,
    One(Slot),
    Many(Vec<Option<Slot>>),
}

impl Plan {
    /// Prepares a checked program. The list of operators is asked once more: this is the last door before libtorch.
    pub fn new(program: &Program, phase: Phase) -> Result<Self, Failure> {
        let mut planner = Planner::of(program);
        let calls = program
            .graph
            .nodes
            .iter()
            .map(|node| planner.call(node, phase))
            .collect::<Result<_, _>>()?;
        let mut plan = Self {
            calls,
            inputs: Vec::new(),
            stored: Vec::new(),
            outputs: Vec::new(),
            mutations: Vec::new(),
            records: Vec::new(),
            names: Vec::new(),
        };
        for spec in &program.signature.input_specs {
            if let InputSpec::UserInput {
                arg: Argument::Tensor(tensor),
            } = spec
            {
                plan.inputs.push(planner.slot(&tensor.name)?);
            }
        }
        for (name, tensor) in &program.tensors {
            plan.stored
                .push((name.clone(), planner.slot(&tensor.value)?));
        }
        for spec in &program.signature.output_specs {
            match spec {
                OutputSpec::UserOutput {
                    arg: Argument::Tensor(tensor),
                } => {
                    plan.outputs.push(planner.slot(&tensor.name)?);
                }
                OutputSpec::BufferMutation { arg, buffer_name } => {
                    plan.mutations
                        .push((buffer_name.clone(), planner.slot(&arg.name)?));
                }
                _ => {
                    return Err(Failure::new(
                        Code::InvalidProgram,
                        "an output is neither a tensor nor a buffer",
                    ));
                }
            }
        }
        plan.records = planner
            .names
            .iter()
            .map(|name| program.graph.tensor_values.get(*name).cloned())
            .collect();
        plan.names = planner
            .names
            .iter()
            .map(|name| (*name).to_owned())
            .collect();
        plan.forget_what_nobody_reads();
        Ok(plan)
    }

    /// Drops results that are never read, and releases each value behind its last reader.
    fn forget_what_nobody_reads(&mut self) {
        let mut is_read = vec![false; self.names.len()];
        for slot in self
            .outputs
            .iter()
            .copied()
            .chain(self.mutations.iter().map(|(_, slot)| *slot))
        {
            is_read[slot] = true;
        }
        let kept = is_read.clone();
        for call in self.calls.iter_mut().rev() {
            for bind in &mut call.outputs {
                match bind {
                    Bind::One(slot) if !is_read[*slot] => *bind = Bind::Drop,
                    Bind::Many(slots) => {
                        for slot in slots {
                            *slot = slot.filter(|slot| is_read[*slot]);
                        }
                    }
                    Bind::One(_) | Bind::Drop => {}
                }
            }
            for slot in call.action.reads() {
                if !is_read[slot] {
                    is_read[slot] = true;
                    if !kept[slot] {
                        call.release.push(slot);
                    }
                }
            }
        }
    }
}

impl Action {
    fn reads(&self) -> Vec<Slot> {
        let of_int = |int: &Int| match int {
            Int::Known(_) => None,
            Int::Made(slot) => Some(*slot),
        };
        match self {
            Self::Integers(_, operands) => operands.iter().filter_map(of_int).collect(),
            Self::Aten { arguments, .. } => arguments
                .iter()
                .flat_map(|(_, source)| match source {
                    Source::Tensor(slot) => vec![*slot],
                    Source::Tensors(slots) => slots.iter().copied().flatten().collect(),
                    Source::Int(int) => of_int(int).into_iter().collect(),
                    Source::Ints(ints) => ints.iter().filter_map(of_int).collect(),
                    _ => Vec::new(),
                })
                .collect(),
        }
    }
}

struct Planner<'a> {
    slots: BTreeMap<&'a str, Slot>,
    names: Vec<&'a str>,
}

impl<'a> Planner<'a> {
    fn of(program: &'a Program) -> Self {
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

    fn slot(&self, name: &str) -> Result<Slot, Failure> {
        let unknown = || {
            Failure::new(
                Code::InvalidProgram,
                format_args!("value `{name}` is not described"),
            )
        };
        self.slots.get(name).copied().ok_or_else(unknown)
    }

    fn call(&mut self, node: &Node, phase: Phase) -> Result<Call, Failure> {
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
        for flag in ["train", "training"] {
            if operator.has_argument(flag) {
                set(flag, Source::Bool(phase == Phase::Training));
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
const fn aten_code(dtype: ScalarType) -> u8 {
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

/// The element type as tch names it.
#[must_use]
pub const fn kind_of(dtype: ScalarType) -> Kind {
    match dtype {
        ScalarType::U8 => Kind::Uint8,
        ScalarType::I8 => Kind::Int8,
        ScalarType::I16 => Kind::Int16,
        ScalarType::I32 => Kind::Int,
        ScalarType::I64 => Kind::Int64,
        ScalarType::F16 => Kind::Half,
        ScalarType::F32 => Kind::Float,
        ScalarType::F64 => Kind::Double,
        ScalarType::Bool => Kind::Bool,
        ScalarType::Bf16 => Kind::BFloat16,
    }
}
