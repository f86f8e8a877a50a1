#include "comptoir-worker/shim/arguments.h"

#include <ATen/ScalarOps.h>

#include <optional>

namespace comptoir {
namespace {

// Lists arrive as what JSON can say: ints for floats, tensors that may be absent for tensors. The schema knows better.
c10::IValue coerce_list(const c10::IValue &value, const c10::Type &element) {
  if (value.isIntList() && element.kind() == c10::TypeKind::FloatType) {
    c10::List<double> reals;
    for (const std::int64_t integer : value.toIntVector()) {
      reals.push_back(static_cast<double>(integer));
    }
    return reals;
  }
  if (value.isOptionalTensorList() && element.kind() == c10::TypeKind::TensorType) {
    c10::List<at::Tensor> tensors;
    for (const std::optional<at::Tensor> &tensor : value.toOptionalTensorVector()) {
      TORCH_CHECK(tensor.has_value(), "a list of tensors may not hold None");
      tensors.push_back(*tensor);
    }
    return tensors;
  }
  return value;
}

}  // namespace

std::string text(rust::Str value) { return {value.data(), value.size()}; }

c10::Device device_of(std::int32_t cuda_index) {
  return cuda_index < 0 ? c10::Device(c10::kCPU)
                        : c10::Device(c10::kCUDA, static_cast<c10::DeviceIndex>(cuda_index));
}

c10::TypePtr wanted(const c10::Argument &argument) {
  const c10::TypePtr type = argument.type();
  const auto optional = type->cast<c10::OptionalType>();
  return optional ? optional->getElementType() : type;
}

c10::IValue coerce(c10::IValue value, const c10::Argument &argument) {
  if (value.isNone() && argument.type()->cast<c10::OptionalType>()) {
    return value;
  }
  const c10::TypePtr type = wanted(argument);
  if (const auto list = type->cast<c10::ListType>()) {
    if (value.isInt() && argument.N().has_value()) {
      return std::vector<std::int64_t>(static_cast<std::size_t>(*argument.N()), value.toInt());
    }
    return coerce_list(value, *list->getElementType());
  }
  // A number where a tensor is wanted is what Python makes of it: a tensor that does not decide the result's type.
  if (type->kind() == c10::TypeKind::TensorType && (value.isScalar() || value.isBool())) {
    return at::native::wrapped_scalar_tensor(value.toScalar());
  }
  if (type->kind() == c10::TypeKind::FloatType && value.isInt()) {
    return static_cast<double>(value.toInt());
  }
  return value;
}

void check(const c10::IValue &value, const c10::Argument &argument, const c10::FunctionSchema &schema) {
  const bool scalar_from_bool = argument.type()->kind() == c10::TypeKind::NumberType && value.isBool();
  TORCH_CHECK(scalar_from_bool || value.type()->isSubtypeOf(*argument.type()), "argument '", argument.name(),
              "' is ", value.type()->repr_str(), " where the schema wants ", argument.type()->repr_str(), ": ", schema);
}

}  // namespace comptoir
