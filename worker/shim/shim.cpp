#include "comptoir-worker/shim/shim.h"

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <ATen/core/Generator.h>
#include <ATen/core/List.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <dlfcn.h>
#include <torch/headeronly/version.h>

#include "comptoir-worker/shim/arguments.h"
#include "comptoir-worker/src/aten/bridge.rs.h"

namespace comptoir {
namespace {

at::Generator generator_of(std::int32_t cuda_index) {
  return at::globalContext().defaultGenerator(device_of(cuda_index));
}

}  // namespace

rust::Vec<rust::String> Operator::argument_names() const {
  rust::Vec<rust::String> names;
  for (const c10::Argument &argument : handle_.schema().arguments()) {
    names.push_back(argument.name());
  }
  return names;
}

bool Operator::takes_tensor() const {
  for (const c10::Argument &argument : handle_.schema().arguments()) {
    if (argument.type()->repr_str().find("Tensor") != std::string::npos) {
      return true;
    }
  }
  return false;
}

std::unique_ptr<Operator> find_operator(rust::Str name, rust::Str overload) {
  auto handle = c10::Dispatcher::singleton().findSchema({text(name), text(overload)});
  TORCH_CHECK(handle.has_value(), "libtorch has no operator ", text(name), ".", text(overload));
  return std::make_unique<Operator>(std::move(*handle));
}

std::unique_ptr<Call> new_call(const Operator &op) { return std::make_unique<Call>(op); }

void Call::set(rust::Str name, c10::IValue value) {
  const bool fresh = arguments_.emplace(text(name), std::move(value)).second;
  TORCH_CHECK(fresh, "argument '", text(name), "' is given twice");
}

void Call::set_none(rust::Str name) { set(name, c10::IValue()); }
void Call::set_tensor(rust::Str name, const at::Tensor *tensor) { set(name, *tensor); }
void Call::set_empty_tensors(rust::Str name) { set(name, OptionalTensors()); }
void Call::set_int(rust::Str name, std::int64_t value) { set(name, value); }
void Call::set_float(rust::Str name, double value) { set(name, value); }
void Call::set_bool(rust::Str name, bool value) { set(name, value); }
void Call::set_string(rust::Str name, rust::Str value) { set(name, text(value)); }
void Call::set_device(rust::Str name, std::int32_t cuda_index) { set(name, device_of(cuda_index)); }

void Call::append_tensor(rust::Str name, const at::Tensor *tensor) {
  const auto list = arguments_.find(text(name));
  TORCH_CHECK(list != arguments_.end() && list->second.isOptionalTensorList(), "argument '", text(name),
              "' is not a list of tensors");
  auto tensors = c10::impl::toTypedList<std::optional<at::Tensor>>(list->second.toList());
  tensors.push_back(tensor == nullptr ? std::nullopt : std::optional<at::Tensor>(*tensor));
}

void Call::set_ints(rust::Str name, rust::Slice<const std::int64_t> values) {
  set(name, std::vector<std::int64_t>(values.begin(), values.end()));
}

void Call::set_floats(rust::Str name, rust::Slice<const double> values) {
  set(name, std::vector<double>(values.begin(), values.end()));
}

void Call::set_bools(rust::Str name, rust::Slice<const bool> values) {
  c10::List<bool> list;
  for (const bool value : values) {
    list.push_back(value);
  }
  set(name, std::move(list));
}

void Call::run() {
  const c10::FunctionSchema &schema = handle_.schema();
  std::size_t given = 0;
  for (const c10::Argument &argument : schema.arguments()) {
    const auto found = arguments_.find(argument.name());
    if (found != arguments_.end()) {
      c10::IValue value = coerce(std::move(found->second), argument);
      check(value, argument, schema);
      stack_.push_back(std::move(value));
      ++given;
    } else {
      TORCH_CHECK(argument.default_value().has_value(), "argument '", argument.name(), "' is missing: ", schema);
      stack_.push_back(*argument.default_value());
    }
  }
  TORCH_CHECK(given == arguments_.size(), "an argument is not in the schema: ", schema);
  arguments_.clear();
  handle_.callBoxed(stack_);
}

ResultKind Call::kind(std::size_t index) const {
  const c10::IValue &value = stack_.at(index);
  if (value.isTensor()) {
    return value.toTensor().defined() ? ResultKind::Tensor : ResultKind::None;
  }
  if (value.isTensorList()) {
    return ResultKind::Tensors;
  }
  if (value.isInt() || (value.isSymInt() && !value.toSymInt().is_symbolic())) {
    return ResultKind::Int;
  }
  if (value.isDouble()) {
    return ResultKind::Float;
  }
  if (value.isBool()) {
    return ResultKind::Bool;
  }
  return value.isNone() ? ResultKind::None : ResultKind::Unsupported;
}

at::Tensor *Call::tensor(std::size_t index) const { return new at::Tensor(stack_.at(index).toTensor()); }

std::size_t Call::tensors(std::size_t index) const { return stack_.at(index).toTensorList().size(); }

at::Tensor *Call::tensor_of_list(std::size_t index, std::size_t element) const {
  const auto list = stack_.at(index).toTensorList();
  TORCH_CHECK(element < list.size(), "a list of ", list.size(), " tensors has no element ", element);
  return new at::Tensor(list.get(element));
}

std::int64_t Call::integer(std::size_t index) const { return stack_.at(index).toInt(); }
double Call::real(std::size_t index) const { return stack_.at(index).toDouble(); }
bool Call::boolean(std::size_t index) const { return stack_.at(index).toBool(); }

void set_threads(std::int32_t threads) { at::set_num_threads(threads); }

void configure(std::int32_t threads, bool cuda) {
  set_threads(threads);
  at::set_num_interop_threads(1);
  at::Context &context = at::globalContext();
  context.setDeterministicAlgorithms(true, /*warn_only=*/false);
  // Uninitialised tensors of a program are zero-filled by the runner; filling every internal one costs time and buys nothing.
  context.setDeterministicFillUninitializedMemory(false);
  context.setDeterministicCuDNN(true);
  context.setDeterministicMkldnn(true);
  context.setBenchmarkCuDNN(false);
  context.setFloat32MatmulPrecision("highest");
  context.setAllowTF32CuBLAS(false);
  context.setAllowTF32CuDNN(false);
  if (cuda) {
    // Of the attention kernels only the plain one gives the same gradients twice there; on the CPU all do.
    context.setSDPUseFlash(false);
    context.setSDPUseMemEfficient(false);
    context.setSDPUseCuDNN(false);
    context.setSDPUseMath(true);
  }
}

at::Tensor *generator_state(std::int32_t cuda_index) {
  at::Generator generator = generator_of(cuda_index);
  const std::lock_guard<std::mutex> lock(generator.mutex());
  return new at::Tensor(generator.get_state());
}

void set_generator_state(std::int32_t cuda_index, const at::Tensor *state) {
  at::Generator generator = generator_of(cuda_index);
  const std::lock_guard<std::mutex> lock(generator.mutex());
  generator.set_state(*state);
}

void open_cuda() {
  if (dlopen("libtorch_cuda.so", RTLD_NOW | RTLD_GLOBAL) == nullptr) {
    const char *reason = dlerror();
    throw std::runtime_error(reason == nullptr ? "libtorch_cuda.so does not load" : reason);
  }
}

std::int32_t cuda_devices() { return at::globalContext().hasCUDA() ? at::detail::getCUDAHooks().getNumGPUs() : 0; }

std::uint64_t cuda_memory(std::int32_t cuda_index) {
  at::globalContext().lazyInitDevice(c10::kCUDA);
  return at::getDeviceAllocator(c10::kCUDA)->getMemoryInfo(static_cast<c10::DeviceIndex>(cuda_index)).second;
}

rust::String headers_version() { return TORCH_VERSION; }
rust::String build_configuration() { return at::show_config(); }
rust::String cpu_capability() { return at::get_cpu_capability(); }

}  // namespace comptoir
