#include "comptoir-worker/shim/update.h"

#include <ATen/ATen.h>

#include "comptoir-worker/src/aten/bridge.rs.h"

namespace comptoir {

void add_scaled(const at::Tensor *self, const at::Tensor *other, double factor) { self->add_(*other, factor); }

void scale(const at::Tensor *self, double factor) { self->mul_(factor); }

at::Tensor *sum(const at::Tensor *self, const at::Tensor *other, double factor) {
  return new at::Tensor(self->add(*other, factor));
}

void adam(const at::Tensor *parameter, const at::Tensor *gradient, const at::Tensor *mean, const at::Tensor *square,
          const AdamStep &step) {
  mean->lerp_(*gradient, 1.0 - step.beta1);
  square->mul_(step.beta2);
  square->addcmul_(*gradient, *gradient, 1.0 - step.beta2);
  const at::Tensor denominator = square->sqrt().div(step.correction).add_(step.epsilon);
  parameter->addcdiv_(*mean, denominator, -step.step_size);
}

}  // namespace comptoir
