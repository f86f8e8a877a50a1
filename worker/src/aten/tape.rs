//! A program laid out for running: what an operator is called with is settled once, and a run only calls.

use std::pin::Pin;

use cxx::UniquePtr;
use tch::{Device, Tensor};

use super::{AtenError, Operator, bridge::ffi, cuda_index, own};

/// A laid out program and its values, each in a slot.
pub struct Tape {
    raw: UniquePtr<ffi::Tape>,
}

/// Why a run stopped, and at which call.
#[derive(Debug)]
pub enum Fault {
    /// The operator refused.
    Operator(AtenError),
    /// It made other kinds of values than the program records.
    Unlike,
    /// What it made in this slot is not what the program records; the value is still there.
    Mismatch(usize),
    /// This slot is read before anything was made in it.
    Absent(usize),
}

impl Tape {
    /// An empty program over so many slots: whether each holds a tensor or else a size, and whether its value outlives a
    /// run.
    #[must_use]
    pub fn new(is_tensor: &[bool], is_kept: &[bool]) -> Self {
        let mut raw = ffi::new_tape();
        raw.pin_mut().lay_out(is_tensor, is_kept);
        Self { raw }
    }

    /// Adds a call. `arguments` gives them, `results` says where results go and which slots are free afterwards; `zero`
    /// fills tensors that come out with zeros. Types are checked against the schema here.
    pub fn call(
        &mut self,
        operator: &Operator,
        zero: bool,
        arguments: impl FnOnce(&mut Arguments<'_>) -> Result<(), AtenError>,
        results: impl FnOnce(&mut Results<'_>),
    ) -> Result<(), AtenError> {
        self.raw.pin_mut().begin(&operator.raw);
        arguments(&mut Arguments(self.raw.pin_mut()))?;
        results(&mut Results(self.raw.pin_mut()));
        Ok(self.raw.pin_mut().end(zero)?)
    }

    /// Adds a place where a run stops and the caller makes a size.
    pub fn pause(&mut self) {
        self.raw.pin_mut().pause();
    }

    /// Adds a set of records, to be chosen before a run; in it no tensor fits yet.
    pub fn add_records(&mut self) -> usize {
        self.raw.pin_mut().add_records()
    }

    /// Says what the tensor of a slot must be: its element type by ATen's number, and its sizes.
    pub fn record(
        &mut self,
        set: usize,
        slot: usize,
        dtype: u8,
        sizes: &[i64],
    ) -> Result<(), AtenError> {
        let dtype = i8::try_from(dtype).expect("ATen has fewer element types than that");
        Ok(self.raw.pin_mut().record(set, slot, dtype, sizes)?)
    }

    /// Later runs are checked against this set.
    pub fn choose_records(&mut self, set: usize) {
        self.raw.pin_mut().choose_records(set);
    }

    /// Puts a tensor into a slot; false if it is not what the chosen records say.
    pub fn put(&mut self, slot: usize, tensor: &Tensor) -> Result<bool, AtenError> {
        self.keep(slot, tensor)?;
        Ok(self.raw.matches(slot)?)
    }

    /// Puts a tensor into a slot, whatever it is.
    #[expect(
        unsafe_code,
        reason = "the pointer comes from a tensor that is borrowed for the whole call; C++ copies the handle"
    )]
    pub fn keep(&mut self, slot: usize, tensor: &Tensor) -> Result<(), AtenError> {
        // SAFETY: borrowed from a living `tch::Tensor`.
        Ok(unsafe { self.raw.pin_mut().set_tensor(slot, tensor.as_ptr().cast()) }?)
    }

    /// Puts a size into a slot.
    pub fn put_size(&mut self, slot: usize, size: i64) -> Result<(), AtenError> {
        Ok(self.raw.pin_mut().set_int(slot, size)?)
    }

    /// The tensor of a slot.
    pub fn tensor(&self, slot: usize) -> Result<Tensor, AtenError> {
        Ok(own(self.raw.tensor(slot)?))
    }

    /// The size of a slot.
    pub fn size(&self, slot: usize) -> Result<i64, AtenError> {
        Ok(self.raw.integer(slot)?)
    }

    /// Runs from a call up to the next pause, or to the end: which one that is. On a fault, the call that failed.
    pub fn run(&mut self, from: usize) -> Result<usize, (usize, Fault)> {
        let error = match self.raw.pin_mut().run(from) {
            Ok(stopped) => return Ok(stopped),
            Err(error) => error,
        };
        let slot = self.raw.failed_slot();
        let fault = match self.raw.fault() {
            ffi::TapeFault::Unlike => Fault::Unlike,
            ffi::TapeFault::Mismatch => Fault::Mismatch(slot),
            ffi::TapeFault::Absent => Fault::Absent(slot),
            _ => Fault::Operator(error.into()),
        };
        Err((self.raw.failed_at(), fault))
    }

    /// Lets go of every value that does not outlive a run.
    pub fn clear(&mut self) {
        self.raw.pin_mut().clear();
    }
}

/// Gives a call its arguments, by schema name.
pub struct Arguments<'a>(Pin<&'a mut ffi::Tape>);

impl Arguments<'_> {
    pub fn none(&mut self, name: &str) -> Result<(), AtenError> {
        Ok(self.0.as_mut().give_none(name)?)
    }

    /// What a slot holds by then.
    pub fn slot(&mut self, name: &str, slot: usize) -> Result<(), AtenError> {
        Ok(self.0.as_mut().give_slot(name, slot)?)
    }

    /// The tensors of slots.
    pub fn tensors(&mut self, name: &str, slots: &[Option<usize>]) -> Result<(), AtenError> {
        Ok(self.0.as_mut().give_tensors(name, &numbers(slots))?)
    }

    pub fn int(&mut self, name: &str, value: i64) -> Result<(), AtenError> {
        Ok(self.0.as_mut().give_int(name, value)?)
    }

    /// Integers: known ones, or for each that is not the slot that holds it by then.
    pub fn ints(
        &mut self,
        name: &str,
        known: &[i64],
        slots: &[Option<usize>],
    ) -> Result<(), AtenError> {
        Ok(self.0.as_mut().give_ints(name, known, &numbers(slots))?)
    }

    pub fn float(&mut self, name: &str, value: f64) -> Result<(), AtenError> {
        Ok(self.0.as_mut().give_float(name, value)?)
    }

    pub fn floats(&mut self, name: &str, values: &[f64]) -> Result<(), AtenError> {
        Ok(self.0.as_mut().give_floats(name, values)?)
    }

    pub fn bool(&mut self, name: &str, value: bool) -> Result<(), AtenError> {
        Ok(self.0.as_mut().give_bool(name, value)?)
    }

    pub fn bools(&mut self, name: &str, values: &[bool]) -> Result<(), AtenError> {
        Ok(self.0.as_mut().give_bools(name, values)?)
    }

    pub fn text(&mut self, name: &str, value: &str) -> Result<(), AtenError> {
        Ok(self.0.as_mut().give_string(name, value)?)
    }

    pub fn device(&mut self, name: &str, device: Device) -> Result<(), AtenError> {
        Ok(self.0.as_mut().give_device(name, cuda_index(device))?)
    }
}

/// Says where a call's results go.
pub struct Results<'a>(Pin<&'a mut ffi::Tape>);

impl Results<'_> {
    /// The next result, a tensor or a size, goes into a slot, or nowhere.
    pub fn one(&mut self, slot: Option<usize>) {
        self.0.as_mut().bind(false, &numbers(&[slot]));
    }

    /// The next result is a list of tensors.
    pub fn many(&mut self, slots: &[Option<usize>]) {
        self.0.as_mut().bind(true, &numbers(slots));
    }

    /// Nothing reads this slot any more.
    pub fn release(&mut self, slot: usize) {
        self.0.as_mut().release(slot);
    }
}

/// Slots as C++ takes them: below zero none.
fn numbers(slots: &[Option<usize>]) -> Vec<i64> {
    let number = |slot: &Option<usize>| {
        slot.map_or(-1, |slot| {
            i64::try_from(slot).expect("slots are counted by the nodes of a limited graph")
        })
    };
    slots.iter().map(number).collect()
}

/// `target` takes the content of `source`.
#[expect(
    unsafe_code,
    reason = "both pointers come from tensors that are borrowed for the whole call"
)]
pub fn copy_into(target: &Tensor, source: &Tensor) -> Result<(), AtenError> {
    // SAFETY: borrowed from living `tch::Tensor`s.
    Ok(unsafe { ffi::copy_into(target.as_ptr().cast(), source.as_ptr().cast()) }?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(name: &str, overload: &str) -> Operator {
        Operator::find(name, overload).unwrap()
    }

    /// Slot 0 a tensor, slot 1 its first size, slot 2 a tensor that is made: the first, flattened to that size.
    fn flatten() -> Tape {
        let mut tape = Tape::new(&[true, false, true], &[false; 3]);
        let first = |to: &mut Arguments<'_>| {
            to.slot("self", 0)?;
            to.int("dim", 0)
        };
        tape.call(&find("aten::sym_size", "int"), false, first, |to| {
            to.one(Some(1));
        })
        .unwrap();
        let flat = |to: &mut Arguments<'_>| {
            to.slot("self", 0)?;
            to.ints("size", &[0, -1], &[Some(1), None])
        };
        tape.call(&find("aten::view", ""), false, flat, |to| {
            to.one(Some(2));
            to.release(0);
        })
        .unwrap();
        for rows in [2, 3] {
            let set = tape.add_records();
            tape.record(set, 0, 6, &[rows, 2, 2]).unwrap();
            tape.record(set, 2, 6, &[rows, 4]).unwrap();
        }
        tape
    }

    #[test]
    fn sizes_made_by_one_call_are_arguments_of_the_next_run_after_run() {
        let mut tape = flatten();
        for (set, rows) in [(0, 2), (1, 3), (0, 2)] {
            tape.choose_records(set);
            let input = Tensor::zeros([rows, 2, 2], tch::kind::FLOAT_CPU);
            assert!(tape.put(0, &input).unwrap());
            assert_eq!(tape.run(0).unwrap(), 2, "the end");
            assert_eq!(tape.size(1).unwrap(), rows);
            assert_eq!(tape.tensor(2).unwrap().size(), [rows, 4]);
            assert!(tape.tensor(0).is_err(), "it was released");
            tape.clear();
            assert!(tape.tensor(2).is_err(), "it was let go");
        }
    }

    #[test]
    fn what_is_made_must_be_what_the_record_says() {
        let mut tape = flatten();
        tape.choose_records(0);
        assert!(
            !tape
                .put(0, &Tensor::zeros([3, 2, 2], tch::kind::FLOAT_CPU))
                .unwrap()
        );
        assert!(matches!(tape.run(0), Err((1, Fault::Mismatch(2)))));
        tape.clear();
        assert!(matches!(tape.run(0), Err((0, Fault::Absent(0)))));
        let none = tape.add_records();
        tape.choose_records(none);
        let input = Tensor::zeros([2, 2, 2], tch::kind::FLOAT_CPU);
        assert!(!tape.put(0, &input).unwrap(), "nothing fits no record");
    }

    #[test]
    fn an_argument_of_the_wrong_type_is_refused_when_it_is_laid_out() {
        let mut tape = Tape::new(&[true, false, true], &[false; 3]);
        let relu = find("aten::relu", "");
        let mut lay = |give: &dyn Fn(&mut Arguments<'_>) -> Result<(), AtenError>| {
            tape.call(&relu, false, give, |to| to.one(Some(2)))
                .unwrap_err()
                .to_string()
        };
        assert!(lay(&|_| Ok(())).contains("'self' is missing"));
        assert!(lay(&|to| to.text("self", "x")).contains("is str where the schema wants Tensor"));
        assert!(lay(&|to| to.tensors("self", &[Some(0)])).contains("list of tensors"));
        let twice = lay(&|to| {
            to.slot("self", 0)?;
            to.slot("self", 0)
        });
        assert!(twice.contains("given twice"), "{twice}");
        let unknown = lay(&|to| {
            to.slot("self", 0)?;
            to.int("speed", 1)
        });
        assert!(unknown.contains("not in the schema"), "{unknown}");
        let sum = find("aten::sum", "");
        let dtype = |to: &mut Arguments<'_>| {
            to.slot("self", 0)?;
            to.slot("dtype", 0)
        };
        let refused = tape.call(&sum, false, dtype, |to| to.one(Some(2)));
        assert!(
            refused
                .unwrap_err()
                .to_string()
                .contains("is a tensor where")
        );
    }
}
