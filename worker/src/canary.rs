//! The canary suite: fixed small computations whose exact bits tell which machines compute alike.
//!
//! Every input is built from integers, so only libtorch, its device and its threads can make a difference. Results of two
//! workers are compared bit by bit only within one class.

use comptoir_domain::{
    digest::Sha256,
    job::{self, Optimizer as Rule, spec::AdamOptions},
};
use serde::{Deserialize, Serialize};
use sha2::Digest as _;
use tch::{Device, Kind, Reduction, Tensor};

use crate::{
    aten::AtenError,
    engine::{files, optimizer::Optimizer},
};

/// Hexadecimal digits of the digest in a class's name.
const NAME_DIGITS: usize = 16;
/// Optimizer steps of the training canaries: rounding that differs has grown by then.
const STEPS: usize = 8;

/// A measured numeric class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Class {
    /// The kind of device.
    pub device: job::Device,
    /// Threads that compute.
    pub threads: u16,
    /// Of all outputs of the suite.
    pub digest: Sha256,
}

impl std::fmt::Display for Class {
    /// Such as `cpu-1t-0123456789abcdef`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let digest = self.digest.to_string();
        write!(
            f,
            "{}-{}t-{}",
            self.device,
            self.threads,
            &digest[..NAME_DIGITS]
        )
    }
}

/// Runs the suite in this process, which must be configured and otherwise unused.
pub fn measure(kind: job::Device, device: Device, threads: u16) -> Result<Class, AtenError> {
    let mut digest = sha2::Sha256::new();
    tch::manual_seed(0);
    let mut add = |name: &str, tensor: &Tensor| -> Result<(), AtenError> {
        digest.update(name);
        digest.update(files::to_bytes(tensor)?);
        Ok(())
    };
    forward(device, &mut add)?;
    let adam = AdamOptions {
        learning_rate: 0.01,
        beta1: 0.9,
        beta2: 0.999,
        epsilon: 1e-8,
        weight_decay: 0.01,
    };
    let sgd = Rule::Sgd {
        learning_rate: 0.05,
        momentum: 0.9,
        weight_decay: 0.001,
        nesterov: true,
    };
    for (name, rule) in [
        ("sgd", sgd),
        ("adam", Rule::Adam(adam.clone())),
        ("adamw", Rule::Adamw(adam)),
    ] {
        for weight in train(rule, device)? {
            add(name, &weight)?;
        }
    }
    Ok(Class {
        device: kind,
        threads,
        digest: Sha256(digest.finalize().into()),
    })
}

type Add<'a> = dyn FnMut(&str, &Tensor) -> Result<(), AtenError> + 'a;

fn forward(device: Device, add: &mut Add<'_>) -> Result<(), AtenError> {
    let _guard = tch::no_grad_guard();
    let none = None::<Tensor>;
    let a = integers(1, &[192, 320], device)?;
    let b = integers(2, &[320, 128], device)?;
    add("matmul", &a.f_matmul(&b)?)?;
    add("sum", &a.f_sum(Kind::Float)?)?;
    add("mean", &a.f_mean(Kind::Float)?)?;
    add("exp", &a.f_exp()?)?;
    add("tanh", &a.f_tanh()?)?;
    add("gelu", &a.f_gelu("none")?)?;
    add("rsqrt", &a.f_square()?.f_add_scalar(1.0)?.f_rsqrt()?)?;
    add("softmax", &a.f_softmax(-1, Kind::Float)?)?;
    add("log_softmax", &a.f_log_softmax(-1, Kind::Float)?)?;
    add(
        "layer_norm",
        &a.f_layer_norm([320], none.as_ref(), none.as_ref(), 1e-5, false)?,
    )?;
    let image = integers(3, &[4, 8, 24, 24], device)?;
    let filter = integers(4, &[16, 8, 3, 3], device)?;
    let convolved = image.f_conv2d(&filter, none.as_ref(), [1, 1], [1, 1], [1, 1], 1)?;
    add("conv2d", &convolved)?;
    add(
        "max_pool2d",
        &convolved.f_max_pool2d([2, 2], [2, 2], [0, 0], [1, 1], false)?,
    )?;
    let normed = convolved.f_batch_norm(
        none.as_ref(),
        none.as_ref(),
        none.as_ref(),
        none.as_ref(),
        true,
        0.1,
        1e-5,
        false,
    )?;
    add("batch_norm", &normed)?;
    let heads = |seed| integers(seed, &[2, 4, 48, 16], device);
    let (query, key, value) = (heads(5)?, heads(6)?, heads(7)?);
    let attention = Tensor::f_scaled_dot_product_attention(
        &query, &key, &value, none, 0.0, false, None, false,
    )?;
    add("attention", &attention)?;
    add("dropout", &a.f_dropout(0.5, true)?)
}

/// Trains a small classifier; its weights at the end.
fn train(rule: Rule, device: Device) -> Result<Vec<Tensor>, AtenError> {
    let input = integers(8, &[64, 48], device)?;
    let target = Tensor::from_slice(&(0..64).map(|row| row * 7 % 10).collect::<Vec<i64>>())
        .f_to_device(device)?;
    let shapes: [&[i64]; 4] = [&[96, 48], &[96], &[10, 96], &[10]];
    let weights = (9..)
        .zip(shapes)
        .map(|(seed, shape)| {
            Ok(integers(seed, shape, device)?
                .f_mul_scalar(0.125)?
                .f_set_requires_grad(true)?)
        })
        .collect::<Result<Vec<_>, AtenError>>()?;
    let learning_rate = rule.learning_rate();
    let mut optimizer = Optimizer::new(rule, weights.len());
    for _ in 0..STEPS {
        let hidden = input.f_linear(&weights[0], Some(&weights[1]))?.f_relu()?;
        let logits = hidden.f_linear(&weights[2], Some(&weights[3]))?;
        let loss =
            logits.f_cross_entropy_loss::<Tensor>(&target, None, Reduction::Mean, -100, 0.0)?;
        let gradients = Tensor::f_run_backward(&[&loss], &weights, false, false)?;
        optimizer.step(&weights, &gradients, learning_rate)?;
    }
    Ok(weights)
}

/// Numbers between -1 and 1 that floats hold exactly, from a generator on integers.
fn integers(seed: u32, shape: &[i64], device: Device) -> Result<Tensor, AtenError> {
    let count: i64 = shape.iter().product();
    let mut state = seed;
    let numbers: Vec<f32> = (0..count)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let high = i16::from_le_bytes([state.to_le_bytes()[2], state.to_le_bytes()[3]]);
            f32::from(high) / 32_768.0
        })
        .collect();
    Ok(Tensor::f_from_slice(&numbers)?
        .f_reshape(shape)?
        .f_to_device(device)?)
}
