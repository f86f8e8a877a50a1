//! Operators of libtorch by name, and its process-wide switches: what `tch` lacks.

mod bridge;
mod tape;
pub mod update;

use std::pin::Pin;

use cxx::UniquePtr;
use tch::{Device, TchError, Tensor};

use self::bridge::ffi;
pub use self::tape::{Arguments, Fault, Results, Tape, copy_into};

/// libtorch refused or failed; its own sentence.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct AtenError(String);

impl AtenError {
    /// Did it run out of memory, on either device?
    #[must_use]
    pub fn is_out_of_memory(&self) -> bool {
        ["allocate memory", "bad_alloc", "out of memory"]
            .iter()
            .any(|sign| self.0.contains(sign))
    }
}

impl From<cxx::Exception> for AtenError {
    fn from(error: cxx::Exception) -> Self {
        Self(error.what().to_owned())
    }
}

impl From<TchError> for AtenError {
    fn from(error: TchError) -> Self {
        let text = error.to_string();
        // tch passes the C++ backtrace on; the sentence before it is the error.
        let sentence = text
            .split("\nException raised from")
            .next()
            .unwrap_or(&text);
        Self(sentence.to_owned())
    }
}

/// An argument of a call.
#[derive(Debug)]
pub enum Input<'a> {
    None,
    Tensor(&'a Tensor),
    Tensors(Vec<Option<&'a Tensor>>),
    Int(i64),
    Ints(Vec<i64>),
    Float(f64),
    Floats(Vec<f64>),
    Bool(bool),
    Bools(&'a [bool]),
    Text(&'a str),
    Device(Device),
}

/// A result of a call. A tensor that the operator left undefined is `None`.
#[derive(Debug)]
pub enum Output {
    None,
    Tensor(Tensor),
    Tensors(Vec<Tensor>),
    Int(i64),
    Float(f64),
    Bool(bool),
}

/// An operator of the dispatcher, looked up once and called often.
pub struct Operator {
    raw: UniquePtr<ffi::Operator>,
    arguments: Vec<String>,
}

impl Operator {
    /// The operator of a name such as `aten::linear` and an overload such as `using_ints`, empty for the default one.
    pub fn find(name: &str, overload: &str) -> Result<Self, AtenError> {
        let raw = ffi::find_operator(name, overload)?;
        let arguments = raw.argument_names();
        Ok(Self { raw, arguments })
    }

    /// Does its schema have an argument of this name?
    #[must_use]
    pub fn has_argument(&self, name: &str) -> bool {
        self.arguments.iter().any(|argument| argument == name)
    }

    /// Does its schema take a tensor? One that does not and yields one is a factory.
    #[must_use]
    pub fn takes_tensor(&self) -> bool {
        self.raw.takes_tensor()
    }

    /// Calls it with arguments by schema name. Those left out take the schema's defaults; types are checked against it.
    pub fn call<'a>(
        &self,
        inputs: impl IntoIterator<Item = (&'a str, Input<'a>)>,
    ) -> Result<Vec<Output>, AtenError> {
        let mut call = ffi::new_call(&self.raw);
        for (name, input) in inputs {
            set(call.pin_mut(), name, &input)?;
        }
        call.pin_mut().run()?;
        (0..call.results())
            .map(|index| result(&call, index))
            .collect()
    }

    /// Calls an operator that yields one tensor.
    pub fn tensor<'a>(
        &self,
        inputs: impl IntoIterator<Item = (&'a str, Input<'a>)>,
    ) -> Result<Tensor, AtenError> {
        match self.call(inputs)?.pop() {
            Some(Output::Tensor(tensor)) => Ok(tensor),
            other => Err(AtenError(format!("expected a tensor, found {other:?}"))),
        }
    }
}

fn set(mut call: Pin<&mut ffi::Call>, name: &str, input: &Input<'_>) -> Result<(), AtenError> {
    match input {
        Input::None => call.set_none(name)?,
        Input::Tensor(tensor) => set_tensor(call, name, tensor)?,
        Input::Tensors(tensors) => {
            call.as_mut().set_empty_tensors(name)?;
            for tensor in tensors {
                append_tensor(call.as_mut(), name, *tensor)?;
            }
        }
        Input::Int(value) => call.set_int(name, *value)?,
        Input::Ints(values) => call.set_ints(name, values)?,
        Input::Float(value) => call.set_float(name, *value)?,
        Input::Floats(values) => call.set_floats(name, values)?,
        Input::Bool(value) => call.set_bool(name, *value)?,
        Input::Bools(values) => call.set_bools(name, values)?,
        Input::Text(value) => call.set_string(name, value)?,
        Input::Device(device) => call.set_device(name, cuda_index(*device))?,
    }
    Ok(())
}

fn result(call: &ffi::Call, index: usize) -> Result<Output, AtenError> {
    Ok(match call.kind(index)? {
        ffi::ResultKind::Tensor => Output::Tensor(own(call.tensor(index)?)),
        ffi::ResultKind::Tensors => Output::Tensors(
            (0..call.tensors(index)?)
                .map(|element| Ok(own(call.tensor_of_list(index, element)?)))
                .collect::<Result<_, AtenError>>()?,
        ),
        ffi::ResultKind::Int => Output::Int(call.integer(index)?),
        ffi::ResultKind::Float => Output::Float(call.real(index)?),
        ffi::ResultKind::Bool => Output::Bool(call.boolean(index)?),
        ffi::ResultKind::None => Output::None,
        _ => {
            return Err(AtenError(
                "an operator yields a value of a kind that programs cannot hold".to_owned(),
            ));
        }
    })
}

#[expect(
    unsafe_code,
    reason = "the pointer comes from a tensor that is borrowed for the whole call; C++ copies the handle"
)]
fn set_tensor(call: Pin<&mut ffi::Call>, name: &str, tensor: &Tensor) -> Result<(), AtenError> {
    // SAFETY: `tch::Tensor` owns an `at::Tensor` behind this pointer for as long as it lives.
    Ok(unsafe { call.set_tensor(name, tensor.as_ptr().cast()) }?)
}

#[expect(
    unsafe_code,
    reason = "as `set_tensor`; null stands for an absent tensor and is not followed"
)]
fn append_tensor(
    call: Pin<&mut ffi::Call>,
    name: &str,
    tensor: Option<&Tensor>,
) -> Result<(), AtenError> {
    let pointer = tensor.map_or(std::ptr::null(), Tensor::as_ptr);
    // SAFETY: null, or borrowed from a living `tch::Tensor`.
    Ok(unsafe { call.append_tensor(name, pointer.cast()) }?)
}

#[expect(
    unsafe_code,
    reason = "takes over an `at::Tensor` that the shim allocated for us with `new`"
)]
fn own(tensor: *mut ffi::Tensor) -> Tensor {
    // SAFETY: the shim hands out each pointer once; tch frees it with `delete`.
    unsafe { Tensor::from_ptr(tensor.cast()) }
}

/// Has one thread do everything, until [`configure`] says how many there are. No other is started.
pub fn use_one_thread() -> Result<(), AtenError> {
    Ok(ffi::set_threads(1)?)
}

/// Fixes threads and turns on every determinism switch. Once per process, before any work but that of one thread.
pub fn configure(threads: u16, device: Device) -> Result<(), AtenError> {
    Ok(ffi::configure(i32::from(threads), device.is_cuda())?)
}

/// The state of a device's random generator, as bytes.
pub fn generator_state(device: Device) -> Result<Tensor, AtenError> {
    Ok(own(ffi::generator_state(cuda_index(device))?))
}

/// Puts a device's random generator back to a state.
#[expect(
    unsafe_code,
    reason = "the pointer comes from a tensor that is borrowed for the whole call"
)]
pub fn set_generator_state(device: Device, state: &Tensor) -> Result<(), AtenError> {
    // SAFETY: borrowed from a living `tch::Tensor`; C++ reads it and lets go.
    Ok(unsafe { ffi::set_generator_state(cuda_index(device), state.as_ptr().cast()) }?)
}

/// Loads libtorch's CUDA half. Without it only the CPU is there.
pub fn open_cuda() -> Result<(), AtenError> {
    Ok(ffi::open_cuda()?)
}

/// Memory in bytes of each CUDA device that libtorch sees.
pub fn cuda_devices() -> Result<Vec<u64>, AtenError> {
    (0..ffi::cuda_devices()?)
        .map(|index| Ok(ffi::cuda_memory(index)?))
        .collect()
}

/// Version of libtorch that this binary was compiled against.
pub fn headers_version() -> Result<String, AtenError> {
    Ok(ffi::headers_version()?)
}

/// How the libtorch in use was built, in its own words.
pub fn build_configuration() -> Result<String, AtenError> {
    Ok(ffi::build_configuration()?)
}

/// The vector instructions that libtorch uses: `DEFAULT`, `AVX2`, `AVX512`, …
pub fn cpu_capability() -> Result<String, AtenError> {
    Ok(ffi::cpu_capability()?)
}

fn cuda_index(device: Device) -> i32 {
    match device {
        Device::Cuda(index) => {
            i32::try_from(index).expect("a CUDA device index comes from a count that is an i32")
        }
        Device::Cpu | Device::Mps | Device::Vulkan => -1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn linear() -> Operator {
        Operator::find("aten::linear", "").unwrap()
    }

    #[test]
    fn an_operator_is_called_by_name_and_its_gradient_flows() {
        let weight = Tensor::from_slice(&[1_f32, 2.0])
            .reshape([1, 2])
            .set_requires_grad(true);
        let input = Tensor::from_slice(&[3_f32, 4.0]).reshape([1, 2]);
        let output = linear()
            .tensor([
                ("weight", Input::Tensor(&weight)),
                ("input", Input::Tensor(&input)),
            ])
            .unwrap();
        assert!((output.double_value(&[0, 0]) - 11.0).abs() < f64::EPSILON);
        output.sum(tch::Kind::Float).backward();
        assert!((weight.grad().double_value(&[0, 1]) - 4.0).abs() < f64::EPSILON);
    }

    #[test]
    fn arguments_are_checked_against_the_schema() {
        let input = Tensor::from_slice(&[1_f32]);
        let failure =
            |inputs: Vec<(&'static str, Input<'_>)>| linear().call(inputs).unwrap_err().to_string();
        assert!(failure(vec![("input", Input::Tensor(&input))]).contains("'weight' is missing"));
        assert!(
            failure(vec![
                ("input", Input::Tensor(&input)),
                ("weight", Input::Text("w"))
            ])
            .contains("'weight' is str where the schema wants Tensor")
        );
        assert!(
            failure(vec![
                ("input", Input::Tensor(&input)),
                ("weight", Input::Tensor(&input)),
                ("speed", Input::Int(1))
            ])
            .contains("not in the schema")
        );
        assert!(Operator::find("aten::fork_bomb", "").is_err());
    }

    #[test]
    fn a_c_plus_plus_exception_is_an_error_of_one_sentence() {
        let one = Tensor::from_slice(&[1_f32]);
        let wide = Tensor::from_slice(&[1_f32, 2.0]).reshape([1, 2]);
        let error = linear()
            .call([
                ("input", Input::Tensor(&one)),
                ("weight", Input::Tensor(&wide)),
            ])
            .unwrap_err()
            .to_string();
        assert!(!error.contains("frame #"), "{error}");
    }

    #[test]
    fn lists_take_the_type_that_the_schema_wants() {
        let tensor = Tensor::from_slice(&[1_f32, 2.0, 3.0, 4.0]).reshape([1, 1, 2, 2]);
        let upsample = Operator::find("aten::upsample_nearest2d", "vec").unwrap();
        let output = upsample
            .tensor([
                ("input", Input::Tensor(&tensor)),
                ("output_size", Input::None),
                ("scale_factors", Input::Ints(vec![2, 2])),
            ])
            .unwrap();
        assert_eq!(output.size(), [1, 1, 4, 4]);
        let index = Operator::find("aten::index", "Tensor").unwrap();
        let rows = Tensor::from_slice(&[1_i64]);
        let picked = index
            .tensor([
                ("self", Input::Tensor(&tensor)),
                ("indices", Input::Tensors(vec![None, None, Some(&rows)])),
            ])
            .unwrap();
        assert_eq!(picked.size(), [1, 1, 1, 2]);
        let parts = Operator::find("aten::unbind", "int").unwrap();
        let mut outputs = parts
            .call([("self", Input::Tensor(&tensor)), ("dim", Input::Int(2))])
            .unwrap();
        assert!(matches!(outputs.pop(), Some(Output::Tensors(parts)) if parts.len() == 2));
    }

    #[test]
    fn a_number_stands_for_a_tensor_without_deciding_the_type() {
        let count = Tensor::from_slice(&[1_i64]);
        let add = Operator::find("aten::add_", "Tensor").unwrap();
        add.call([("self", Input::Tensor(&count)), ("other", Input::Int(1))])
            .unwrap();
        assert_eq!(
            (count.int64_value(&[0]), count.kind()),
            (2, tch::Kind::Int64)
        );
    }

    #[test]
    fn the_generator_goes_back_to_a_state() {
        let draw = || f64::try_from(Tensor::rand([1], tch::kind::FLOAT_CPU)).unwrap();
        tch::manual_seed(3);
        let state = generator_state(Device::Cpu).unwrap();
        let first = draw();
        assert_ne!(first.to_bits(), draw().to_bits());
        set_generator_state(Device::Cpu, &state).unwrap();
        assert_eq!(first.to_bits(), draw().to_bits());
    }
}
