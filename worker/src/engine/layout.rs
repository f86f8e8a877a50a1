//! Lays a plan out on a tape.

use tch::Device;

use super::{
    failure::{Code, Failure},
    plan::{Action, Bind, Call, Int, Plan, Slot, Source},
};
use crate::aten::{Arguments, AtenError, Results, Tape};

/// A tape with all calls of a plan. Stored tensors outlive its runs.
pub(super) fn lay_out(plan: &Plan, device: Device) -> Result<Tape, Failure> {
    let is_tensor: Vec<bool> = plan.records.iter().map(Option::is_some).collect();
    let mut is_kept = vec![false; is_tensor.len()];
    for (_, slot) in &plan.stored {
        is_kept[*slot] = true;
    }
    let mut tape = Tape::new(&is_tensor, &is_kept);
    for call in &plan.calls {
        let Action::Aten {
            operator,
            arguments,
            zero,
        } = &call.action
        else {
            tape.pause();
            continue;
        };
        let give = |to: &mut Arguments<'_>| {
            let mut each = arguments.iter();
            each.try_for_each(|(name, source)| give(to, name, source, device))
        };
        tape.call(operator, *zero, give, |to| bind(to, call, &is_kept))
            .map_err(|error| Failure::from_aten(Code::InvalidProgram, &call.target, &error))?;
    }
    Ok(tape)
}

fn give(
    to: &mut Arguments<'_>,
    name: &str,
    source: &Source,
    device: Device,
) -> Result<(), AtenError> {
    match source {
        Source::None => to.none(name),
        Source::Tensor(slot) | Source::Int(Int::Made(slot)) => to.slot(name, *slot),
        Source::Tensors(slots) => to.tensors(name, slots),
        Source::Int(Int::Known(value)) => to.int(name, *value),
        Source::Ints(ints) => {
            let (known, slots): (Vec<i64>, Vec<Option<Slot>>) = ints
                .iter()
                .map(|int| match int {
                    Int::Known(value) => (*value, None),
                    Int::Made(slot) => (0, Some(*slot)),
                })
                .unzip();
            to.ints(name, &known, &slots)
        }
        Source::Float(value) => to.float(name, *value),
        Source::Floats(values) => to.floats(name, values),
        Source::Bool(flag) => to.bool(name, *flag),
        Source::Bools(flags) => to.bools(name, flags),
        Source::Text(text) => to.text(name, text),
        Source::Device => to.device(name, device),
    }
}

fn bind(to: &mut Results<'_>, call: &Call, is_kept: &[bool]) {
    for bind in &call.outputs {
        match bind {
            Bind::Drop => to.one(None),
            Bind::One(slot) => to.one(Some(*slot)),
            Bind::Many(slots) => to.many(slots),
        }
    }
    for slot in &call.release {
        if !is_kept[*slot] {
            to.release(*slot);
        }
    }
}
