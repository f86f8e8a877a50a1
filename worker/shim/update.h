// Optimizer updates that tch has no words for: factors inside in-place operators.
#pragma once

#include <ATen/core/Tensor.h>

namespace comptoir {

struct AdamStep;

// self += other * factor
void add_scaled(const at::Tensor *self, const at::Tensor *other, double factor);
// self *= factor
void scale(const at::Tensor *self, double factor);
// self + other * factor
at::Tensor *sum(const at::Tensor *self, const at::Tensor *other, double factor);
// One step of Adam, in the order of operations of PyTorch's single-tensor implementation.
void adam(const at::Tensor *parameter, const at::Tensor *gradient, const at::Tensor *mean, const at::Tensor *square,
          const AdamStep &step);

}  // namespace comptoir
