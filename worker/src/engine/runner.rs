//! Runs a plan node by node through libtorch's dispatcher.

use std::{cell::RefCell, collections::BTreeMap, rc::Rc};

use comptoir_domain::program::{Batch, Program, graph::TensorMeta, symbolic::ExprError};
use tch::{Device, Kind, Tensor};

use super::{
    failure::{Code, Failure},
    plan::{Action, Arithmetic, Bind, Call, Int, Phase, Plan, Slot, Source, kind_of},
    state::State,
};
use crate::aten::{AtenError, Input, Output};

/// What a tensor must be. A record whose size has no value matters only where the value is read.
type Expected = Result<(Kind, Vec<i64>), ExprError>;

/// A program that runs, over and over, in one phase on one device.
pub struct Runner {
    plan: Plan,
    batch: Batch,
    device: Device,
    /// The recorded shapes for each batch size seen.
    expected: RefCell<BTreeMap<i64, Rc<Vec<Option<Expected>>>>>,
}

/// A value while a program runs.
enum Value {
    Tensor(Tensor),
    Int(i64),
}

impl Runner {
    /// Prepares a program.
    pub fn new(program: &Program, phase: Phase, device: Device) -> Result<Self, Failure> {
        let plan = Plan::new(program, phase)?;
        Ok(Self {
            plan,
            batch: program.batch.clone(),
            device,
            expected: RefCell::default(),
        })
    }

    /// Runs it on a batch: the user's inputs in order, on the device, in; the user's outputs out.
    ///
    /// Every value that is read must be what the export recorded: prices are computed from those records.
    pub fn run(&self, state: &State, inputs: &[Tensor]) -> Result<Vec<Tensor>, Failure> {
        let mut values: Vec<Option<Value>> = std::iter::repeat_with(|| None)
            .take(self.plan.names.len())
            .collect();
        let rows = inputs
            .first()
            .and_then(|input| input.size().first().copied())
            .unwrap_or(0);
        let expected = self.expected(rows);
        if inputs.len() != self.plan.inputs.len() {
            return Err(Failure::new(
                Code::InvalidInput,
                "the program has another number of inputs",
            ));
        }
        for (slot, input) in self.plan.inputs.iter().zip(inputs) {
            self.keep(
                &mut values,
                &expected,
                *slot,
                input.shallow_clone(),
                Code::InvalidInput,
            )?;
        }
        for (name, slot) in &self.plan.stored {
            values[*slot] = Some(Value::Tensor(state.tensor(name)?.shallow_clone()));
        }
        for call in &self.plan.calls {
            let outputs = self.execute(call, &values)?;
            self.store(call, outputs, &mut values, &expected)?;
            for slot in &call.release {
                values[*slot] = None;
            }
        }
        for (buffer, slot) in &self.plan.mutations {
            let _guard = tch::no_grad_guard();
            let new = self.tensor(&values, *slot)?;
            let mut target = state.tensor(buffer)?.shallow_clone();
            target.f_copy_(new).map_err(|error| during(buffer, error))?;
        }
        self.plan
            .outputs
            .iter()
            .map(|slot| self.tensor(&values, *slot).map(Tensor::shallow_clone))
            .collect()
    }

    fn expected(&self, rows: i64) -> Rc<Vec<Option<Expected>>> {
        if let Some(known) = self.expected.borrow().get(&rows) {
            return Rc::clone(known);
        }
        let batch = u64::try_from(rows).unwrap_or(0);
        let shape = |record: &TensorMeta| {
            self.batch
                .sizes(record, batch)
                .map(|sizes| (kind_of(record.dtype), sizes))
        };
        let shapes = self
            .plan
            .records
            .iter()
            .map(|record| record.as_ref().map(shape))
            .collect();
        let shapes = Rc::new(shapes);
        self.expected.borrow_mut().insert(rows, Rc::clone(&shapes));
        shapes
    }

    fn execute(&self, call: &Call, values: &[Option<Value>]) -> Result<Vec<Output>, Failure> {
        match &call.action {
            Action::Integers(arithmetic, operands) => {
                let operands = operands
                    .iter()
                    .map(|int| self.int(values, *int))
                    .collect::<Result<Vec<_>, _>>()?;
                let result = compute(*arithmetic, &operands);
                let overflow = || {
                    Failure::new(
                        Code::OperatorFailed,
                        format_args!("`{}` of {operands:?}", call.target),
                    )
                };
                Ok(vec![Output::Int(result.ok_or_else(overflow)?)])
            }
            Action::Aten {
                operator,
                arguments,
                zero,
            } => {
                let inputs = arguments
                    .iter()
                    .map(|(name, source)| Ok((name.as_str(), self.input(values, source)?)))
                    .collect::<Result<Vec<_>, Failure>>()?;
                let outputs = operator
                    .call(inputs)
                    .map_err(|error| during(&call.target, error))?;
                if *zero {
                    for output in &outputs {
                        if let Output::Tensor(tensor) = output {
                            let _zeroed = tensor
                                .shallow_clone()
                                .f_zero_()
                                .map_err(|error| during(&call.target, error))?;
                        }
                    }
                }
                Ok(outputs)
            }
        }
    }

    fn store(
        &self,
        call: &Call,
        outputs: Vec<Output>,
        values: &mut [Option<Value>],
        expected: &[Option<Expected>],
    ) -> Result<(), Failure> {
        if outputs.len() != call.outputs.len() && !call.outputs.is_empty() {
            return Err(self.unlike(call));
        }
        for (bind, output) in call.outputs.iter().zip(outputs) {
            match (bind, output) {
                (Bind::Drop, _) => {}
                (Bind::One(slot), Output::Tensor(tensor)) => {
                    self.keep(values, expected, *slot, tensor, Code::InvalidProgram)?;
                }
                (Bind::One(slot), Output::Int(int)) if expected[*slot].is_none() => {
                    values[*slot] = Some(Value::Int(int));
                }
                (Bind::Many(slots), Output::Tensors(tensors)) if slots.len() == tensors.len() => {
                    for (slot, tensor) in slots.iter().zip(tensors) {
                        if let Some(slot) = slot {
                            self.keep(values, expected, *slot, tensor, Code::InvalidProgram)?;
                        }
                    }
                }
                _ => return Err(self.unlike(call)),
            }
        }
        Ok(())
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

    fn keep(
        &self,
        values: &mut [Option<Value>],
        expected: &[Option<Expected>],
        slot: Slot,
        tensor: Tensor,
        code: Code,
    ) -> Result<(), Failure> {
        let made = (
            tensor
                .f_kind()
                .map_err(|error| during("read a type", error))?,
            tensor.size(),
        );
        match &expected[slot] {
            Some(Ok(recorded)) if *recorded == made => {
                values[slot] = Some(Value::Tensor(tensor));
                Ok(())
            }
            recorded => {
                let name = &self.plan.names[slot];
                let reason =
                    format!("value `{name}` is {made:?} where the program records {recorded:?}");
                Err(Failure::new(code, reason))
            }
        }
    }

    fn input<'a>(
        &'a self,
        values: &'a [Option<Value>],
        source: &'a Source,
    ) -> Result<Input<'a>, Failure> {
        Ok(match source {
            Source::None => Input::None,
            Source::Tensor(slot) => Input::Tensor(self.tensor(values, *slot)?),
            Source::Tensors(slots) => {
                let tensors = slots
                    .iter()
                    .map(|slot| slot.map(|slot| self.tensor(values, slot)).transpose());
                Input::Tensors(tensors.collect::<Result<_, _>>()?)
            }
            Source::Int(int) => Input::Int(self.int(values, *int)?),
            Source::Ints(ints) => Input::Ints(
                ints.iter()
                    .map(|int| self.int(values, *int))
                    .collect::<Result<_, _>>()?,
            ),
            Source::Float(number) => Input::Float(*number),
            Source::Floats(numbers) => Input::Floats(numbers.clone()),
            Source::Bool(flag) => Input::Bool(*flag),
            Source::Bools(flags) => Input::Bools(flags),
            Source::Text(text) => Input::Text(text),
            Source::Device => Input::Device(self.device),
        })
    }

    fn tensor<'a>(&self, values: &'a [Option<Value>], slot: Slot) -> Result<&'a Tensor, Failure> {
        match &values[slot] {
            Some(Value::Tensor(tensor)) => Ok(tensor),
            Some(Value::Int(_)) | None => Err(self.absent(slot, "tensor")),
        }
    }

    fn int(&self, values: &[Option<Value>], int: Int) -> Result<i64, Failure> {
        match int {
            Int::Known(int) => Ok(int),
            Int::Made(slot) => match values[slot] {
                Some(Value::Int(int)) => Ok(int),
                Some(Value::Tensor(_)) | None => Err(self.absent(slot, "size")),
            },
        }
    }

    fn absent(&self, slot: Slot, what: &str) -> Failure {
        Failure::new(
            Code::InvalidProgram,
            format_args!("no {what} `{}` at this point", self.plan.names[slot]),
        )
    }
}

fn during(what: &str, error: impl Into<AtenError>) -> Failure {
    Failure::from_aten(Code::OperatorFailed, what, &error.into())
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
