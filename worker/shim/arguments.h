// Arguments as JSON has them become what a schema wants.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/ivalue.h>

#include <cstdint>
#include <optional>
#include <string>

#include "rust/cxx.h"

namespace comptoir {

using OptionalTensors = c10::List<std::optional<at::Tensor>>;

std::string text(rust::Str value);
c10::Device device_of(std::int32_t cuda_index);
// The type behind an optional one.
c10::TypePtr wanted(const c10::Argument &argument);
// Numbers become what the schema says they are.
c10::IValue coerce(c10::IValue value, const c10::Argument &argument);
// Refuses a value that the schema does not take.
void check(const c10::IValue &value, const c10::Argument &argument, const c10::FunctionSchema &schema);

}  // namespace comptoir
