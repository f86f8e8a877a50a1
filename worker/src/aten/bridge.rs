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

    unsafe extern "C++" {
        include!("comptoir-worker/shim/shim.h");

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
