//! A program made ready to run: names become slots, operators are looked up, and the phase is fixed.

use comptoir_domain::program::{
    Program,
    graph::{Argument, InputSpec, OutputSpec, ScalarType, TensorMeta},
};
use tch::Kind;

use super::{
    failure::{Code, Failure},
    planner::Planner,
};
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
        let planner = Planner::of(program);
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
        if phase == Phase::Inference {
            plan.leave_out_counters(program);
        }
        plan.forget_what_nobody_reads();
        Ok(plan)
    }

    /// Leaves out what counts in a buffer that nothing else reads, as batch norm counts the batches of a training.
    fn leave_out_counters(&mut self, program: &Program) {
        let mut reads = vec![0_usize; self.names.len()];
        let ends = self.mutations.iter().map(|(_, slot)| *slot);
        let read = self.calls.iter().flat_map(|call| call.action.reads());
        for slot in read.chain(self.outputs.iter().copied()).chain(ends) {
            reads[slot] += 1;
        }
        let payload_of = |name: &str| program.tensors.get(name).map(|it| &it.payload);
        let stored: Vec<Slot> = self
            .stored
            .iter()
            .filter(|(name, _)| {
                let same = |(other, _): &&(String, Slot)| payload_of(other) == payload_of(name);
                self.stored.iter().filter(same).count() == 1
            })
            .map(|(_, slot)| *slot)
            .collect();
        let is_unread = |bind: &Bind| match bind {
            Bind::Drop => true,
            Bind::One(slot) => reads[*slot] == 0,
            Bind::Many(_) => false,
        };
        self.calls.retain(|call| {
            let counts = call.target == "torch.ops.aten.add_.Tensor"
                && call.outputs.iter().all(is_unread)
                && call
                    .action
                    .reads()
                    .iter()
                    .all(|slot| reads[*slot] == 1 && stored.contains(slot));
            !counts
        });
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
