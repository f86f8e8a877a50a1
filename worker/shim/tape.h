// A program laid out for running: every operator, argument and type check is settled before the first run, so that a
// run only moves handles and calls kernels.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/ivalue.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "comptoir-worker/shim/shim.h"
#include "rust/cxx.h"

namespace comptoir {

enum class TapeFault : std::uint8_t;

// What a value must be, by its record.
struct Record {
  bool known = false;
  c10::ScalarType type = c10::ScalarType::Undefined;
  std::vector<std::int64_t> sizes;
};

// Where an argument comes from.
struct Operand {
  enum class From : std::uint8_t { Constant, Slot, Coerced, Ints, Tensors } from = From::Constant;
  std::size_t slot = 0;
  // The constant; for a list that is filled in each time, the list.
  c10::IValue value;
  // For a list: where each element comes from, below zero none; and the known integers.
  std::vector<std::int64_t> slots;
  std::vector<std::int64_t> known;
  bool optional_elements = false;
  // What a coerced value becomes.
  const c10::Argument *argument = nullptr;
};

// Where a result goes.
struct Bind {
  bool many = false;
  // Below zero nobody reads it.
  std::vector<std::int64_t> slots;
};

struct Instruction {
  // Absent where the caller does the work itself.
  std::optional<c10::OperatorHandle> op;
  std::vector<Operand> operands;
  std::vector<Bind> binds;
  std::vector<std::size_t> release;
  bool zero = false;
};

class Tape {
 public:
  // Values, by whether each is a tensor; the others are integers. Kept values outlive a run.
  void lay_out(rust::Slice<const bool> is_tensor, rust::Slice<const bool> is_kept);

  // One instruction: its operator, its arguments by schema name, its results, and `end`.
  void begin(const Operator &op);
  void give_none(rust::Str name);
  void give_slot(rust::Str name, std::size_t slot);
  void give_tensors(rust::Str name, rust::Slice<const std::int64_t> slots);
  void give_int(rust::Str name, std::int64_t value);
  // Integers: those whose slot is below zero are known.
  void give_ints(rust::Str name, rust::Slice<const std::int64_t> known, rust::Slice<const std::int64_t> slots);
  void give_float(rust::Str name, double value);
  void give_floats(rust::Str name, rust::Slice<const double> values);
  void give_bool(rust::Str name, bool value);
  void give_bools(rust::Str name, rust::Slice<const bool> values);
  void give_string(rust::Str name, rust::Str value);
  void give_device(rust::Str name, std::int32_t cuda_index);
  void bind(bool many, rust::Slice<const std::int64_t> slots);
  void release(std::size_t slot);
  void end(bool zero);
  // An instruction that the caller does.
  void pause();

  // A set of records, one for each value; later runs are checked against the set chosen last.
  std::size_t add_records();
  void record(std::size_t set, std::size_t slot, std::int8_t type, rust::Slice<const std::int64_t> sizes);
  void choose_records(std::size_t set) { chosen_ = set; }

  void set_tensor(std::size_t slot, const at::Tensor *tensor);
  void set_int(std::size_t slot, std::int64_t value);
  at::Tensor *tensor(std::size_t slot) const;
  std::int64_t integer(std::size_t slot) const;
  bool matches(std::size_t slot) const;

  // Runs from an instruction to the next that is the caller's, or to the end; which one that is.
  std::size_t run(std::size_t from);
  // Lets go of everything but kept values.
  void clear();

  // Where and how the last run failed.
  std::size_t failed_at() const { return at_; }
  TapeFault fault() const { return fault_; }
  std::size_t failed_slot() const { return failed_slot_; }

 private:
  void give(rust::Str name, Operand operand);
  Operand settle(Operand operand, const c10::Argument &argument, const c10::FunctionSchema &schema) const;
  void push(Operand &operand);
  void store(const Instruction &instruction);
  void keep(std::size_t slot, c10::IValue &&value);
  bool matches(std::size_t slot, const at::Tensor &tensor) const;

  std::vector<c10::IValue> values_;
  std::vector<bool> is_tensor_;
  std::vector<std::size_t> transient_;
  std::vector<Instruction> instructions_;
  std::vector<std::vector<Record>> records_;
  std::size_t chosen_ = 0;
  std::vector<c10::IValue> stack_;

  Instruction open_;
  std::vector<std::pair<std::string, Operand>> given_;

  std::size_t at_ = 0;
  TapeFault fault_{};
  std::size_t failed_slot_ = 0;
};

std::unique_ptr<Tape> new_tape();

// `target` takes the content of a value.
void copy_into(const at::Tensor *target, const at::Tensor *source);

}  // namespace comptoir
