//! Runs a plan through libtorch's dispatcher: a tape calls operator after operator, and only sizes are computed here.

use std::collections::BTreeMap;

use comptoir_domain::program::{
    Batch, Program,
    graph::{ScalarType, TensorMeta},
    symbolic::ExprError,
};
use tch::{Device, Tensor};

use super::{
    failure::{Code, Failure},
    layout,
    plan::{Action, Arithmetic, Bind, Call, Int, Phase, Plan, Slot},
    planner::aten_code,
    state::State,
};
use crate::aten::{self, AtenError, Fault, Tape};

/// Batch sizes whose records are kept.
const RECORDS_MAX: usize = 256;

/// A program that runs, over and over, in one phase on one device.
pub struct Runner {
    plan: Plan,
    tape: Tape,
    batch: Batch,
    /// The set of records for each batch size seen.
    records: BTreeMap<i64, usize>,
    /// The batch size of the last run.
    rows: Option<i64>,
    /// Buffers that take a value when a run has ended.
    mutated: Vec<(Tensor, Slot)>,
}

/// Where a stored tensor goes.
#[derive(Debug)]
pub struct Seat {
    slots: Vec<Slot>,
    /// Places among the buffers that take a value when a run has ended.
    mutated: Vec<usize>,
}

impl Runner {
    /// Prepares a program.
    pub fn new(program: &Program, phase: Phase, device: Device) -> Result<Self, Failure> {
        let plan = Plan::new(program, phase)?;
        Ok(Self {
            tape: layout::lay_out(&plan, device)?,
            plan,
            batch: program.batch.clone(),
            records: BTreeMap::new(),
            rows: None,
            mutated: Vec::new(),
        })
    }

    /// Gives it its stored tensors, which runs read and change in place. Before the first run, and once.
    pub fn attach(&mut self, state: &State) -> Result<(), Failure> {
        for (name, slot) in &self.plan.stored {
            self.tape
                .keep(*slot, state.tensor(name)?)
                .map_err(|error| during(name, &error))?;
        }
        for (buffer, slot) in &self.plan.mutations {
            self.mutated
                .push((state.tensor(buffer)?.shallow_clone(), *slot));
        }
        Ok(())
    }

    /// Where a stored tensor goes that runs change, by each of its names.
    #[must_use]
    pub fn seat(&self, names: &[&String]) -> Seat {
        let is_named = |name: &String| names.contains(&name);
        let stored = self.plan.stored.iter().filter(|(name, _)| is_named(name));
        let mutations = self.plan.mutations.iter().enumerate();
        let mutations = mutations.filter(|(_, (name, _))| is_named(name));
        Seat {
            slots: stored.map(|(_, slot)| *slot).collect(),
            mutated: mutations.map(|(at, _)| at).collect(),
        }
    }

    /// Puts another tensor there, of the same shape and element type, for the runs that follow.
    pub fn exchange(&mut self, seat: &Seat, tensor: &Tensor) -> Result<(), Failure> {
        for slot in &seat.slots {
            let name = &self.plan.names[*slot];
            self.tape
                .keep(*slot, tensor)
                .map_err(|error| during(name, &error))?;
        }
        for at in &seat.mutated {
            self.mutated[*at].0 = tensor.shallow_clone();
        }
        Ok(())
    }

    /// Runs it on a batch: the user's inputs in order, on the device, in; the user's outputs out.
    ///
    /// Every value that is read must be what the export recorded: prices are computed from those records.
    pub fn run(&mut self, inputs: &[Tensor]) -> Result<Vec<Tensor>, Failure> {
        let outputs = self.fill(inputs).and_then(|()| self.compute());
        self.tape.clear();
        outputs
    }

    fn fill(&mut self, inputs: &[Tensor]) -> Result<(), Failure> {
        if inputs.len() != self.plan.inputs.len() {
            return Err(Failure::new(
                Code::InvalidInput,
                "the program has another number of inputs",
            ));
        }
        let rows = inputs
            .first()
            .and_then(|input| input.size().first().copied())
            .unwrap_or(0);
        self.expect(rows)?;
        for (slot, input) in self.plan.inputs.iter().zip(inputs) {
            let fits = self.tape.put(*slot, input);
            if !fits.map_err(|error| during("take an input", &error))? {
                return Err(self.mismatch(*slot, rows, Code::InvalidInput));
            }
        }
        Ok(())
    }

    fn compute(&mut self) -> Result<Vec<Tensor>, Failure> {
        let mut at = 0;
        loop {
            at = self
                .tape
                .run(at)
                .map_err(|(at, fault)| self.failure(at, fault))?;
            let Some(call) = self.plan.calls.get(at) else {
                break;
            };
            if let (Some(slot), size) = self.size(call)? {
                self.tape
                    .put_size(slot, size)
                    .map_err(|error| during(&call.target, &error))?;
            }
            at += 1;
        }
        if !self.mutated.is_empty() {
            let _guard = tch::no_grad_guard();
            for (target, slot) in &self.mutated {
                let new = self.value(*slot)?;
                aten::copy_into(target, &new).map_err(|error| during("keep a buffer", &error))?;
            }
        }
        let outputs = self.plan.outputs.iter();
        outputs.map(|slot| self.value(*slot)).collect()
    }

    fn value(&self, slot: Slot) -> Result<Tensor, Failure> {
        self.tape
            .tensor(slot)
            .map_err(|_| self.absent(slot, "tensor"))
    }

    /// Chooses the records of a batch size, which are computed when it is seen first.
    fn expect(&mut self, rows: i64) -> Result<(), Failure> {
        if self.rows == Some(rows) {
            return Ok(());
        }
        let set = match self.records.get(&rows) {
            Some(known) => *known,
            None => self.add_records(rows)?,
        };
        self.tape.choose_records(set);
        self.rows = Some(rows);
        Ok(())
    }

    fn add_records(&mut self, rows: i64) -> Result<usize, Failure> {
        let set = if self.records.len() < RECORDS_MAX {
            self.tape.add_records()
        } else {
            let (_, set) = self.records.pop_first().expect("there are several");
            set
        };
        for (slot, record) in self.plan.records.iter().enumerate() {
            // A record whose size has no value fits nothing, which matters only where the value is read.
            if let Some(record) = record
                && let Ok((dtype, sizes)) = shape(&self.batch, record, rows)
            {
                self.tape
                    .record(set, slot, aten_code(dtype), &sizes)
                    .map_err(|error| during("read the records", &error))?;
            }
        }
        self.records.insert(rows, set);
        Ok(set)
    }

    /// What a computation on sizes makes, and where that goes.
    fn size(&self, call: &Call) -> Result<(Option<Slot>, i64), Failure> {
        let (Action::Integers(arithmetic, operands), [bind]) =
            (&call.action, call.outputs.as_slice())
        else {
            return Err(self.unlike(call));
        };
        let operands = operands
            .iter()
            .map(|operand| match operand {
                Int::Known(known) => Ok(*known),
                Int::Made(slot) => {
                    let made = self.tape.size(*slot);
                    made.map_err(|_| self.absent(*slot, "size"))
                }
            })
            .collect::<Result<Vec<_>, Failure>>()?;
        let overflow = || {
            Failure::new(
                Code::OperatorFailed,
                format_args!("`{}` of {operands:?}", call.target),
            )
        };
        let size = compute(*arithmetic, &operands).ok_or_else(overflow)?;
        match bind {
            Bind::Drop => Ok((None, size)),
            Bind::One(slot) if self.plan.records[*slot].is_none() => Ok((Some(*slot), size)),
            Bind::One(_) | Bind::Many(_) => Err(self.unlike(call)),
        }
    }

    fn failure(&self, at: usize, fault: Fault) -> Failure {
        let call = &self.plan.calls[at];
        match fault {
            Fault::Operator(error) => during(&call.target, &error),
            Fault::Unlike => self.unlike(call),
            Fault::Mismatch(slot) => {
                self.mismatch(slot, self.rows.unwrap_or_default(), Code::InvalidProgram)
            }
            Fault::Absent(slot) => self.absent(slot, "value"),
        }
    }

    fn unlike(&self, call: &Call) -> Failure {
        let first = call.outputs.iter().find_map(|bind| match bind {
            Bind::One(slot) => Some(self.plan.names[*slot].as_str()),
            Bind::Many(_) | Bind::Drop => None,
        });
        let name = first.unwrap_or("of the list");
        Failure::new(
            Code::InvalidProgram,
            format_args!(
                "`{}` does not make the value `{name}` as recorded",
                call.target
            ),
        )
    }

    fn mismatch(&self, slot: Slot, rows: i64, code: Code) -> Failure {
        let name = &self.plan.names[slot];
        let made = self
            .tape
            .tensor(slot)
            .map(|made| (made.kind(), made.size()));
        let recorded = self.plan.records[slot]
            .as_ref()
            .map(|record| shape(&self.batch, record, rows));
        let reason = format!("value `{name}` is {made:?} where the program records {recorded:?}");
        Failure::new(code, reason)
    }

    fn absent(&self, slot: Slot, what: &str) -> Failure {
        Failure::new(
            Code::InvalidProgram,
            format_args!("no {what} `{}` at this point", self.plan.names[slot]),
        )
    }
}

fn shape(
    batch: &Batch,
    record: &TensorMeta,
    rows: i64,
) -> Result<(ScalarType, Vec<i64>), ExprError> {
    let sizes = batch.sizes(record, u64::try_from(rows).unwrap_or(0))?;
    Ok((record.dtype, sizes))
}

fn during(what: &str, error: &AtenError) -> Failure {
    Failure::from_aten(Code::OperatorFailed, what, error)
}

/// Division and remainder round down, as Python's do.
fn compute(arithmetic: Arithmetic, operands: &[i64]) -> Option<i64> {
    let (a, b) = (operands[0], operands.get(1).copied().unwrap_or(0));
    match arithmetic {
        Arithmetic::Add => a.checked_add(b),
        Arithmetic::Sub => a.checked_sub(b),
        Arithmetic::Mul => a.checked_mul(b),
        Arithmetic::FloorDiv => {
            let quotient = a.checked_div(b)?;
            let is_exact = a.checked_rem(b)? == 0;
            if is_exact || (a < 0) == (b < 0) {
                Some(quotient)
            } else {
                quotient.checked_sub(1)
            }
        }
        Arithmetic::Mod => {
            let remainder = a.checked_rem(b)?;
            if remainder == 0 || (remainder < 0) == (b < 0) {
                Some(remainder)
            } else {
                remainder.checked_add(b)
            }
        }
        Arithmetic::Pow => a.checked_pow(u32::try_from(b).ok()?),
        Arithmetic::Neg => a.checked_neg(),
        Arithmetic::Max => Some(a.max(b)),
        Arithmetic::Min => Some(a.min(b)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_divide_as_in_python() {
        let both = |a, b| {
            (
                compute(Arithmetic::FloorDiv, &[a, b]).unwrap(),
                compute(Arithmetic::Mod, &[a, b]).unwrap(),
            )
        };
        assert_eq!(both(7, 2), (3, 1));
        assert_eq!(both(-7, 2), (-4, 1));
        assert_eq!(both(7, -2), (-4, -1));
        assert_eq!(both(-7, -2), (3, -1));
        assert_eq!(both(6, -2), (-3, 0));
        assert_eq!(compute(Arithmetic::FloorDiv, &[1, 0]), None);
        assert_eq!(compute(Arithmetic::Pow, &[3, 4]), Some(81));
        assert_eq!(compute(Arithmetic::Pow, &[3, 40]), None);
    }
}
