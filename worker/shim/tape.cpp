#include "comptoir-worker/shim/tape.h"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <utility>

#include "comptoir-worker/shim/arguments.h"
#include "comptoir-worker/src/aten/bridge.rs.h"

namespace comptoir {
namespace {

std::vector<std::int64_t> copy(rust::Slice<const std::int64_t> values) { return {values.begin(), values.end()}; }

Operand constant(c10::IValue value) {
  Operand operand;
  operand.value = std::move(value);
  return operand;
}

// A list of tensors that is filled in at each run and emptied after it.
void fill(Operand &operand, const std::vector<c10::IValue> &values) {
  if (operand.optional_elements) {
    auto list = c10::impl::toTypedList<std::optional<at::Tensor>>(operand.value.toList());
    list.clear();
    for (const std::int64_t slot : operand.slots) {
      list.push_back(slot < 0 ? std::nullopt : std::optional<at::Tensor>(values[static_cast<std::size_t>(slot)].toTensor()));
    }
  } else {
    auto list = operand.value.toTensorList();
    list.clear();
    for (const std::int64_t slot : operand.slots) {
      list.push_back(values[static_cast<std::size_t>(slot)].toTensor());
    }
  }
}

}  // namespace

std::unique_ptr<Tape> new_tape() { return std::make_unique<Tape>(); }

void copy_into(const at::Tensor *target, const at::Tensor *source) { target->copy_(*source); }

void Tape::lay_out(rust::Slice<const bool> is_tensor, rust::Slice<const bool> is_kept) {
  is_tensor_.assign(is_tensor.begin(), is_tensor.end());
  values_.resize(is_tensor_.size());
  for (std::size_t slot = 0; slot < is_kept.size(); ++slot) {
    if (!is_kept[slot]) {
      transient_.push_back(slot);
    }
  }
}

void Tape::begin(const Operator &op) {
  open_ = Instruction();
  open_.op = op.handle();
  given_.clear();
}

void Tape::give(rust::Str name, Operand operand) {
  for (const auto &[known, _] : given_) {
    TORCH_CHECK(known != text(name), "argument '", known, "' is given twice");
  }
  given_.emplace_back(text(name), std::move(operand));
}

void Tape::give_none(rust::Str name) { give(name, constant(c10::IValue())); }
void Tape::give_int(rust::Str name, std::int64_t value) { give(name, constant(value)); }
void Tape::give_float(rust::Str name, double value) { give(name, constant(value)); }
void Tape::give_bool(rust::Str name, bool value) { give(name, constant(value)); }
void Tape::give_string(rust::Str name, rust::Str value) { give(name, constant(text(value))); }
void Tape::give_device(rust::Str name, std::int32_t cuda_index) { give(name, constant(device_of(cuda_index))); }

void Tape::give_floats(rust::Str name, rust::Slice<const double> values) {
  give(name, constant(std::vector<double>(values.begin(), values.end())));
}

void Tape::give_bools(rust::Str name, rust::Slice<const bool> values) {
  c10::List<bool> list;
  for (const bool value : values) {
    list.push_back(value);
  }
  give(name, constant(std::move(list)));
}

void Tape::give_slot(rust::Str name, std::size_t slot) {
  Operand operand;
  operand.from = Operand::From::Slot;
  operand.slot = slot;
  give(name, std::move(operand));
}

void Tape::give_ints(rust::Str name, rust::Slice<const std::int64_t> known, rust::Slice<const std::int64_t> slots) {
  Operand operand = constant(copy(known));
  operand.known = copy(known);
  for (const std::int64_t slot : slots) {
    if (slot >= 0) {
      operand.from = Operand::From::Ints;
    }
  }
  operand.slots = copy(slots);
  give(name, std::move(operand));
}

void Tape::give_tensors(rust::Str name, rust::Slice<const std::int64_t> slots) {
  Operand operand;
  operand.from = Operand::From::Tensors;
  operand.slots = copy(slots);
  give(name, std::move(operand));
}

void Tape::bind(bool many, rust::Slice<const std::int64_t> slots) { open_.binds.push_back({many, copy(slots)}); }
void Tape::release(std::size_t slot) { open_.release.push_back(slot); }

Operand Tape::settle(Operand operand, const c10::Argument &argument, const c10::FunctionSchema &schema) const {
  const c10::TypePtr type = wanted(argument);
  switch (operand.from) {
    case Operand::From::Constant:
    case Operand::From::Ints:
      operand.value = coerce(std::move(operand.value), argument);
      check(operand.value, argument, schema);
      TORCH_CHECK(operand.from == Operand::From::Constant || operand.value.isIntList(), "argument '", argument.name(),
                  "' is a list of sizes where the schema wants something else: ", schema);
      return operand;
    case Operand::From::Slot:
      if (is_tensor_.at(operand.slot)) {
        TORCH_CHECK(type->kind() == c10::TypeKind::TensorType, "argument '", argument.name(),
                    "' is a tensor where the schema wants ", argument.type()->repr_str(), ": ", schema);
      } else if (type->kind() != c10::TypeKind::IntType && type->kind() != c10::TypeKind::NumberType) {
        // What a size becomes here is known by trying one.
        check(coerce(c10::IValue(static_cast<std::int64_t>(1)), argument), argument, schema);
        operand.from = Operand::From::Coerced;
        operand.argument = &argument;
      }
      return operand;
    case Operand::From::Tensors: {
      const auto list = type->cast<c10::ListType>();
      TORCH_CHECK(list, "argument '", argument.name(), "' is a list of tensors where the schema wants ",
                  argument.type()->repr_str(), ": ", schema);
      operand.optional_elements = list->getElementType()->kind() == c10::TypeKind::OptionalType;
      for (const std::int64_t slot : operand.slots) {
        TORCH_CHECK(slot >= 0 || operand.optional_elements, "a list of tensors may not hold None");
        TORCH_CHECK(slot < 0 || is_tensor_.at(static_cast<std::size_t>(slot)), "a list of tensors holds a size");
      }
      operand.value = operand.optional_elements ? c10::IValue(OptionalTensors()) : c10::IValue(c10::List<at::Tensor>());
      check(operand.value, argument, schema);
      return operand;
    }
    case Operand::From::Coerced:
      return operand;
  }
  return operand;
}

void Tape::end(bool zero) {
  const c10::FunctionSchema &schema = open_.op->schema();
  std::size_t settled = 0;
  for (const c10::Argument &argument : schema.arguments()) {
    const auto found = std::find_if(given_.begin(), given_.end(),
                                    [&](const auto &given) { return given.first == argument.name(); });
    if (found != given_.end()) {
      open_.operands.push_back(settle(std::move(found->second), argument, schema));
      ++settled;
    } else {
      TORCH_CHECK(argument.default_value().has_value(), "argument '", argument.name(), "' is missing: ", schema);
      open_.operands.push_back(constant(*argument.default_value()));
    }
  }
  TORCH_CHECK(settled == given_.size(), "an argument is not in the schema: ", schema);
  open_.zero = zero;
  instructions_.push_back(std::move(open_));
}

void Tape::pause() {
  instructions_.emplace_back();
}

std::size_t Tape::add_records() {
  records_.emplace_back(values_.size());
  return records_.size() - 1;
}

void Tape::record(std::size_t set, std::size_t slot, std::int8_t type, rust::Slice<const std::int64_t> sizes) {
  records_.at(set).at(slot) = {true, static_cast<c10::ScalarType>(type), copy(sizes)};
}

void Tape::set_tensor(std::size_t slot, const at::Tensor *tensor) { values_.at(slot) = *tensor; }
void Tape::set_int(std::size_t slot, std::int64_t value) { values_.at(slot) = value; }

at::Tensor *Tape::tensor(std::size_t slot) const {
  TORCH_CHECK(values_.at(slot).isTensor(), "there is no tensor at this point");
  return new at::Tensor(values_[slot].toTensor());
}

std::int64_t Tape::integer(std::size_t slot) const {
  TORCH_CHECK(values_.at(slot).isInt(), "there is no size at this point");
  return values_[slot].toInt();
}

bool Tape::matches(std::size_t slot) const { return matches(slot, values_.at(slot).toTensor()); }

bool Tape::matches(std::size_t slot, const at::Tensor &tensor) const {
  const Record &record = records_[chosen_][slot];
  return record.known && tensor.scalar_type() == record.type && tensor.sizes() == c10::IntArrayRef(record.sizes);
}

void Tape::push(Operand &operand) {
  const auto present = [this](std::size_t slot) -> const c10::IValue & {
    if (values_[slot].isNone()) {
      fault_ = TapeFault::Absent;
      failed_slot_ = slot;
      throw std::runtime_error("a value is read before it is made");
    }
    return values_[slot];
  };
  switch (operand.from) {
    case Operand::From::Constant:
      stack_.push_back(operand.value);
      return;
    case Operand::From::Slot:
      stack_.push_back(present(operand.slot));
      return;
    case Operand::From::Coerced:
      stack_.push_back(coerce(present(operand.slot), *operand.argument));
      return;
    case Operand::From::Ints: {
      auto list = operand.value.toIntList();
      for (std::size_t index = 0; index < operand.slots.size(); ++index) {
        if (operand.slots[index] >= 0) {
          list.set(index, present(static_cast<std::size_t>(operand.slots[index])).toInt());
        }
      }
      stack_.push_back(operand.value);
      return;
    }
    case Operand::From::Tensors:
      for (const std::int64_t slot : operand.slots) {
        if (slot >= 0) {
          present(static_cast<std::size_t>(slot));
        }
      }
      fill(operand, values_);
      stack_.push_back(operand.value);
      return;
  }
}

void Tape::keep(std::size_t slot, c10::IValue &&value) {
  failed_slot_ = slot;
  if (is_tensor_[slot] && value.isTensor() && value.toTensor().defined()) {
    const bool fits = matches(slot, value.toTensor());
    values_[slot] = std::move(value);
    if (!fits) {
      fault_ = TapeFault::Mismatch;
      throw std::runtime_error("a value is not what the program records");
    }
  } else if (!is_tensor_[slot] && value.isInt()) {
    values_[slot] = std::move(value);
  } else if (!is_tensor_[slot] && value.isSymInt() && !value.toSymInt().is_symbolic()) {
    values_[slot] = value.toSymInt().expect_int();
  } else {
    fault_ = TapeFault::Unlike;
    throw std::runtime_error("a value is of another kind than the program records");
  }
}

void Tape::store(const Instruction &instruction) {
  const auto unlike = [this] {
    fault_ = TapeFault::Unlike;
    throw std::runtime_error("a call makes other values than the program records");
  };
  if (instruction.binds.size() != stack_.size() && !instruction.binds.empty()) {
    unlike();
  }
  for (std::size_t index = 0; index < instruction.binds.size(); ++index) {
    const Bind &bind = instruction.binds[index];
    if (!bind.many) {
      if (bind.slots[0] >= 0) {
        keep(static_cast<std::size_t>(bind.slots[0]), std::move(stack_[index]));
      }
      continue;
    }
    if (!stack_[index].isTensorList() || stack_[index].toTensorList().size() != bind.slots.size()) {
      unlike();
    }
    const auto list = stack_[index].toTensorList();
    for (std::size_t element = 0; element < bind.slots.size(); ++element) {
      if (bind.slots[element] >= 0) {
        keep(static_cast<std::size_t>(bind.slots[element]), c10::IValue(list.get(element)));
      }
    }
  }
}

std::size_t Tape::run(std::size_t from) {
  for (at_ = from; at_ < instructions_.size(); ++at_) {
    Instruction &instruction = instructions_[at_];
    if (!instruction.op.has_value()) {
      return at_;
    }
    fault_ = TapeFault::Operator;
    stack_.clear();
    for (Operand &operand : instruction.operands) {
      push(operand);
    }
    instruction.op->callBoxed(stack_);
    if (instruction.zero) {
      for (const c10::IValue &value : stack_) {
        if (value.isTensor()) {
          value.toTensor().zero_();
        }
      }
    }
    for (Operand &operand : instruction.operands) {
      if (operand.from == Operand::From::Tensors) {
        operand.value.toList().clear();
      }
    }
    store(instruction);
    for (const std::size_t slot : instruction.release) {
      values_[slot] = c10::IValue();
    }
  }
  stack_.clear();
  return at_;
}

void Tape::clear() {
  stack_.clear();
  for (const std::size_t slot : transient_) {
    values_[slot] = c10::IValue();
  }
}

}  // namespace comptoir
