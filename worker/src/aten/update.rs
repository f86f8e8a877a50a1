//! In-place updates with a factor, which optimizers are made of and `tch` lacks.

use tch::Tensor;

use super::{AtenError, bridge::ffi, own};

pub use ffi::AdamStep;

/// `tensor += other * factor`
#[expect(
    unsafe_code,
    reason = "pointers come from tensors that are borrowed for the whole call"
)]
pub fn add_scaled(tensor: &Tensor, other: &Tensor, factor: f64) -> Result<(), AtenError> {
    // SAFETY: borrowed from living `tch::Tensor`s.
    Ok(unsafe { ffi::add_scaled(raw(tensor), raw(other), factor) }?)
}

/// `tensor *= factor`
#[expect(
    unsafe_code,
    reason = "pointers come from tensors that are borrowed for the whole call"
)]
pub fn scale(tensor: &Tensor, factor: f64) -> Result<(), AtenError> {
    // SAFETY: borrowed from a living `tch::Tensor`.
    Ok(unsafe { ffi::scale(raw(tensor), factor) }?)
}

/// `tensor + other * factor`
#[expect(
    unsafe_code,
    reason = "pointers come from tensors that are borrowed for the whole call"
)]
pub fn sum(tensor: &Tensor, other: &Tensor, factor: f64) -> Result<Tensor, AtenError> {
    // SAFETY: borrowed from living `tch::Tensor`s.
    Ok(own(unsafe { ffi::sum(raw(tensor), raw(other), factor) }?))
}

/// Moves a parameter, and the means of its gradients and of their squares, by one step of Adam.
#[expect(
    unsafe_code,
    reason = "pointers come from tensors that are borrowed for the whole call"
)]
pub fn adam(
    parameter: &Tensor,
    gradient: &Tensor,
    mean: &Tensor,
    square: &Tensor,
    step: &AdamStep,
) -> Result<(), AtenError> {
    // SAFETY: borrowed from living `tch::Tensor`s.
    Ok(unsafe { ffi::adam(raw(parameter), raw(gradient), raw(mean), raw(square), step) }?)
}

fn raw(tensor: &Tensor) -> *const ffi::Tensor {
    tensor.as_ptr().cast()
}
