//! The optimizers, in the order of operations of `PyTorch`'s own single-tensor implementations.

use comptoir_domain::job::{Optimizer as Rule, spec::AdamOptions};
use tch::Tensor;

use crate::aten::{
    AtenError,
    update::{self, AdamStep},
};

/// What the optimizer remembers about one parameter. Nothing before its first gradient.
#[derive(Debug, Default)]
pub struct Memory {
    /// Steps taken with a gradient.
    pub steps: u32,
    /// SGD: the momentum. Adam: the mean of gradients.
    pub first: Option<Tensor>,
    /// Adam: the mean of squared gradients.
    pub second: Option<Tensor>,
}

/// An optimizer over a fixed list of parameters.
pub struct Optimizer {
    rule: Rule,
    memories: Vec<Memory>,
}

impl Optimizer {
    /// A fresh optimizer for so many parameters.
    #[must_use]
    pub fn new(rule: Rule, parameters: usize) -> Self {
        let memories = std::iter::repeat_with(Memory::default)
            .take(parameters)
            .collect();
        Self { rule, memories }
    }

    /// What it remembers, in the order of the parameters.
    #[must_use]
    pub fn memories(&self) -> &[Memory] {
        &self.memories
    }

    /// Goes on from what another run remembered.
    pub fn restore(&mut self, memories: Vec<Memory>) {
        self.memories = memories;
    }

    /// Moves each parameter by its gradient. A parameter that the loss does not reach stays where it is.
    pub fn step(
        &mut self,
        parameters: &[Tensor],
        gradients: &[Tensor],
        learning_rate: f64,
    ) -> Result<(), AtenError> {
        let _guard = tch::no_grad_guard();
        for ((parameter, gradient), memory) in
            parameters.iter().zip(gradients).zip(&mut self.memories)
        {
            if !gradient.defined() {
                continue;
            }
            memory.steps = memory.steps.saturating_add(1);
            match &self.rule {
                Rule::Sgd {
                    momentum,
                    weight_decay,
                    nesterov,
                    ..
                } => {
                    let sgd = Sgd {
                        momentum: *momentum,
                        weight_decay: *weight_decay,
                        nesterov: *nesterov,
                    };
                    self::sgd(&sgd, parameter, gradient, memory, learning_rate)?;
                }
                Rule::Adam(options) => {
                    let gradient = decayed(gradient, parameter, options.weight_decay)?;
                    adam(options, parameter, &gradient, memory, learning_rate)?;
                }
                Rule::Adamw(options) => {
                    update::scale(parameter, 1.0 - learning_rate * options.weight_decay)?;
                    adam(options, parameter, gradient, memory, learning_rate)?;
                }
            }
        }
        Ok(())
    }
}

struct Sgd {
    momentum: f64,
    weight_decay: f64,
    nesterov: bool,
}

fn sgd(
    sgd: &Sgd,
    parameter: &Tensor,
    gradient: &Tensor,
    memory: &mut Memory,
    learning_rate: f64,
) -> Result<(), AtenError> {
    let gradient = decayed(gradient, parameter, sgd.weight_decay)?;
    if sgd.momentum == 0.0 {
        return update::add_scaled(parameter, &gradient, -learning_rate);
    }
    let momentum = match memory.first.take() {
        None => {
            let mut copy = gradient.f_zeros_like()?;
            copy.f_copy_(&gradient)?;
            copy
        }
        Some(momentum) => {
            update::scale(&momentum, sgd.momentum)?;
            update::add_scaled(&momentum, &gradient, 1.0)?;
            momentum
        }
    };
    if sgd.nesterov {
        let ahead = update::sum(&gradient, &momentum, sgd.momentum)?;
        update::add_scaled(parameter, &ahead, -learning_rate)?;
    } else {
        update::add_scaled(parameter, &momentum, -learning_rate)?;
    }
    memory.first = Some(momentum);
    Ok(())
}

fn adam(
    options: &AdamOptions,
    parameter: &Tensor,
    gradient: &Tensor,
    memory: &mut Memory,
    learning_rate: f64,
) -> Result<(), AtenError> {
    let take = |slot: &mut Option<Tensor>| slot.take().map_or_else(|| parameter.f_zeros_like(), Ok);
    let mean = take(&mut memory.first)?;
    let square = take(&mut memory.second)?;
    let step = AdamStep {
        beta1: options.beta1,
        beta2: options.beta2,
        epsilon: options.epsilon,
        correction: (1.0 - power(options.beta2, memory.steps)).sqrt(),
        step_size: learning_rate / (1.0 - power(options.beta1, memory.steps)),
    };
    update::adam(parameter, gradient, &mean, &square, &step)?;
    memory.first = Some(mean);
    memory.second = Some(square);
    Ok(())
}

/// The gradient with the L2 penalty added.
fn decayed(gradient: &Tensor, parameter: &Tensor, decay: f64) -> Result<Tensor, AtenError> {
    if decay == 0.0 {
        return Ok(gradient.shallow_clone());
    }
    update::sum(gradient, parameter, decay)
}

/// A power by squaring. The C library's `pow` may differ in its last bit from one machine to the next; products do not.
fn power(base: f64, exponent: u32) -> f64 {
    let (mut result, mut square, mut left) = (1.0, base, exponent);
    while left > 0 {
        if left & 1 == 1 {
            result *= square;
        }
        square *= square;
        left >>= 1;
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_power_agrees_with_the_c_library_to_the_last_digits() {
        for exponent in [0_u32, 1, 2, 7, 100, 12_345] {
            let expected = 0.999_f64.powf(f64::from(exponent));
            assert!((power(0.999, exponent) - expected).abs() <= 1e-12 * expected);
        }
    }

    #[test]
    fn a_parameter_that_the_loss_does_not_reach_stays() {
        let rule = Rule::Adamw(AdamOptions {
            learning_rate: 0.1,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.5,
        });
        let parameters = [Tensor::from_slice(&[1_f32]), Tensor::from_slice(&[1_f32])];
        let gradients = [Tensor::from_slice(&[1_f32]), Tensor::new()];
        let mut optimizer = Optimizer::new(rule, 2);
        optimizer.step(&parameters, &gradients, 0.1).unwrap();
        // Decay first (1 - 0.1 * 0.5), then a first step of Adam, whose size is the learning rate.
        assert!((parameters[0].double_value(&[0]) - 0.85).abs() < 1e-6);
        assert!((parameters[1].double_value(&[0]) - 1.0).abs() < f64::EPSILON);
        assert_eq!(optimizer.memories()[1].steps, 0);
    }
}
