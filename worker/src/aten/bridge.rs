//! The boundary to C++ (`shim/shim.h`): raw, used by `aten` alone.
#![expect(
    unsafe_code,
    reason = "calls into C++; each pointer passed is borrowed from a live tch tensor or owned by the caller"
)]

#[cxx::bridge(namespace = "comptoir")]
pub(super) mod ffi {
    /// What a result is.
    #[derive(Debug)]
    enum ResultKind {
        None,
        Tensor,
        Tensors,
        Int,
        Float,
        Bool,
        Unsupported,
    }

    /// The numbers of one step of Adam.
    #[derive(Debug, Clone, Copy)]
    struct AdamStep {
        beta1: f64,
        beta2: f64,
        epsilon: f64,
        /// The root of one less the power of `beta2`.
        correction: f64,
        /// The learning rate by one less the power of `beta1`.
        step_size: f64,
    }

    /// How a run of a tape failed.
    #[derive(Debug)]
    enum TapeFault {
        Operator,
        Unlike,
        Mismatch,
        Absent,
    }

    unsafe extern "C++" {
        include!("comptoir-worker/shim/shim.h");
        include!("comptoir-worker/shim/tape.h");
        include!("comptoir-worker/shim/update.h");

        #[namespace = "at"]
        type Tensor;
        type Operator;
        type Call;

        fn find_operator(name: &str, overload: &str) -> Result<UniquePtr<Operator>>;
        fn argument_names(self: &Operator) -> Vec<String>;
        fn takes_tensor(self: &Operator) -> bool;

        fn new_call(op: &Operator) -> UniquePtr<Call>;
        fn set_none(self: Pin<&mut Call>, name: &str) -> Result<()>;
        unsafe fn set_tensor(self: Pin<&mut Call>, name: &str, tensor: *const Tensor)
        -> Result<()>;
        unsafe fn append_tensor(
            self: Pin<&mut Call>,
            name: &str,
            tensor: *const Tensor,
        ) -> Result<()>;
        fn set_empty_tensors(self: Pin<&mut Call>, name: &str) -> Result<()>;
        fn set_int(self: Pin<&mut Call>, name: &str, value: i64) -> Result<()>;
        fn set_ints(self: Pin<&mut Call>, name: &str, values: &[i64]) -> Result<()>;
        fn set_float(self: Pin<&mut Call>, name: &str, value: f64) -> Result<()>;
        fn set_floats(self: Pin<&mut Call>, name: &str, values: &[f64]) -> Result<()>;
        fn set_bool(self: Pin<&mut Call>, name: &str, value: bool) -> Result<()>;
        fn set_bools(self: Pin<&mut Call>, name: &str, values: &[bool]) -> Result<()>;
        fn set_string(self: Pin<&mut Call>, name: &str, value: &str) -> Result<()>;
        fn set_device(self: Pin<&mut Call>, name: &str, cuda_index: i32) -> Result<()>;
        fn run(self: Pin<&mut Call>) -> Result<()>;

        fn results(self: &Call) -> usize;
        fn kind(self: &Call, index: usize) -> Result<ResultKind>;
        fn tensor(self: &Call, index: usize) -> Result<*mut Tensor>;
        fn tensors(self: &Call, index: usize) -> Result<usize>;
        fn tensor_of_list(self: &Call, index: usize, element: usize) -> Result<*mut Tensor>;
        fn integer(self: &Call, index: usize) -> Result<i64>;
        fn real(self: &Call, index: usize) -> Result<f64>;
        fn boolean(self: &Call, index: usize) -> Result<bool>;

        type Tape;
        fn new_tape() -> UniquePtr<Tape>;
        fn lay_out(self: Pin<&mut Tape>, is_tensor: &[bool], is_kept: &[bool]);
        fn begin(self: Pin<&mut Tape>, op: &Operator);
        fn give_none(self: Pin<&mut Tape>, name: &str) -> Result<()>;
        fn give_slot(self: Pin<&mut Tape>, name: &str, slot: usize) -> Result<()>;
        fn give_tensors(self: Pin<&mut Tape>, name: &str, slots: &[i64]) -> Result<()>;
        fn give_int(self: Pin<&mut Tape>, name: &str, value: i64) -> Result<()>;
        fn give_ints(self: Pin<&mut Tape>, name: &str, known: &[i64], slots: &[i64]) -> Result<()>;
        fn give_float(self: Pin<&mut Tape>, name: &str, value: f64) -> Result<()>;
        fn give_floats(self: Pin<&mut Tape>, name: &str, values: &[f64]) -> Result<()>;
        fn give_bool(self: Pin<&mut Tape>, name: &str, value: bool) -> Result<()>;
        fn give_bools(self: Pin<&mut Tape>, name: &str, values: &[bool]) -> Result<()>;
        fn give_string(self: Pin<&mut Tape>, name: &str, value: &str) -> Result<()>;
        fn give_device(self: Pin<&mut Tape>, name: &str, cuda_index: i32) -> Result<()>;
        fn bind(self: Pin<&mut Tape>, many: bool, slots: &[i64]);
        fn release(self: Pin<&mut Tape>, slot: usize);
        fn end(self: Pin<&mut Tape>, zero: bool) -> Result<()>;
        fn pause(self: Pin<&mut Tape>);
        fn add_records(self: Pin<&mut Tape>) -> usize;
        fn record(
            self: Pin<&mut Tape>,
            set: usize,
            slot: usize,
            dtype: i8,
            sizes: &[i64],
        ) -> Result<()>;
        fn choose_records(self: Pin<&mut Tape>, set: usize);
        unsafe fn set_tensor(
            self: Pin<&mut Tape>,
            slot: usize,
            tensor: *const Tensor,
        ) -> Result<()>;
        fn set_int(self: Pin<&mut Tape>, slot: usize, value: i64) -> Result<()>;
        fn tensor(self: &Tape, slot: usize) -> Result<*mut Tensor>;
        fn integer(self: &Tape, slot: usize) -> Result<i64>;
        fn matches(self: &Tape, slot: usize) -> Result<bool>;
        fn run(self: Pin<&mut Tape>, from: usize) -> Result<usize>;
        fn clear(self: Pin<&mut Tape>);
        fn failed_at(self: &Tape) -> usize;
        fn failed_slot(self: &Tape) -> usize;
        fn fault(self: &Tape) -> TapeFault;
        unsafe fn copy_into(target: *const Tensor, source: *const Tensor) -> Result<()>;

        unsafe fn add_scaled(
            tensor: *const Tensor,
            other: *const Tensor,
            factor: f64,
        ) -> Result<()>;
        unsafe fn scale(tensor: *const Tensor, factor: f64) -> Result<()>;
        unsafe fn sum(
            tensor: *const Tensor,
            other: *const Tensor,
            factor: f64,
        ) -> Result<*mut Tensor>;
        unsafe fn adam(
            parameter: *const Tensor,
            gradient: *const Tensor,
            mean: *const Tensor,
            square: *const Tensor,
            step: &AdamStep,
        ) -> Result<()>;

        fn set_threads(threads: i32) -> Result<()>;
        fn configure(threads: i32, cuda: bool) -> Result<()>;
        fn generator_state(cuda_index: i32) -> Result<*mut Tensor>;
        unsafe fn set_generator_state(cuda_index: i32, state: *const Tensor) -> Result<()>;

        fn open_cuda() -> Result<()>;
        fn cuda_devices() -> Result<i32>;
        fn cuda_memory(cuda_index: i32) -> Result<u64>;
        fn headers_version() -> Result<String>;
        fn build_configuration() -> Result<String>;
        fn cpu_capability() -> Result<String>;
    }
}
