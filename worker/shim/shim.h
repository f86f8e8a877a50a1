// What tch lacks of libtorch: operators called by name through the dispatcher, determinism switches, generator state.
// Every function may throw; cxx turns exceptions into Rust errors at the boundary.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/ivalue.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "rust/cxx.h"

namespace rust::behavior {
// A C10 error's `what()` carries a C++ backtrace; callers want the sentence.
template <typename Try, typename Fail>
static void trycatch(Try &&func, Fail &&fail) noexcept try {
  func();
} catch (const c10::Error &error) {
  fail(error.what_without_backtrace());
} catch (const std::exception &error) {
  fail(error.what());
} catch (...) {
  fail("libtorch threw something that is not an exception");
}
}  // namespace rust::behavior

namespace comptoir {

enum class ResultKind : std::uint8_t;

// An operator of the dispatcher, looked up once.
class Operator {
 public:
  explicit Operator(c10::OperatorHandle handle) : handle_(std::move(handle)) {}
  rust::Vec<rust::String> argument_names() const;
  bool takes_tensor() const;
  const c10::OperatorHandle &handle() const { return handle_; }

 private:
  c10::OperatorHandle handle_;
};

std::unique_ptr<Operator> find_operator(rust::Str name, rust::Str overload);

// One call: arguments by schema name, then results by position.
class Call {
 public:
  explicit Call(const Operator &op) : handle_(op.handle()) {}

  void set_none(rust::Str name);
  void set_tensor(rust::Str name, const at::Tensor *tensor);
  // An element of a tensor list; null is `None` in a list of optional tensors.
  void append_tensor(rust::Str name, const at::Tensor *tensor);
  void set_empty_tensors(rust::Str name);
  void set_int(rust::Str name, std::int64_t value);
  void set_ints(rust::Str name, rust::Slice<const std::int64_t> values);
  void set_float(rust::Str name, double value);
  void set_floats(rust::Str name, rust::Slice<const double> values);
  void set_bool(rust::Str name, bool value);
  void set_bools(rust::Str name, rust::Slice<const bool> values);
  void set_string(rust::Str name, rust::Str value);
  // A CUDA device by its index; below zero the CPU.
  void set_device(rust::Str name, std::int32_t cuda_index);

  void run();

  std::size_t results() const { return stack_.size(); }
  ResultKind kind(std::size_t index) const;
  at::Tensor *tensor(std::size_t index) const;
  std::size_t tensors(std::size_t index) const;
  at::Tensor *tensor_of_list(std::size_t index, std::size_t element) const;
  std::int64_t integer(std::size_t index) const;
  double real(std::size_t index) const;
  bool boolean(std::size_t index) const;

 private:
  void set(rust::Str name, c10::IValue value);

  c10::OperatorHandle handle_;
  std::unordered_map<std::string, c10::IValue> arguments_;
  std::vector<c10::IValue> stack_;
};

std::unique_ptr<Call> new_call(const Operator &op);

// How many threads work at once; may be set again. None is started by 1.
void set_threads(std::int32_t threads);
// Once per process, before any work but that of a single thread.
void configure(std::int32_t threads, bool cuda);
at::Tensor *generator_state(std::int32_t cuda_index);
void set_generator_state(std::int32_t cuda_index, const at::Tensor *state);

// Loads libtorch's CUDA half, which registers itself.
void open_cuda();
std::int32_t cuda_devices();
// Whole memory of a CUDA device in bytes.
std::uint64_t cuda_memory(std::int32_t cuda_index);
rust::String headers_version();
rust::String build_configuration();
rust::String cpu_capability();

}  // namespace comptoir
