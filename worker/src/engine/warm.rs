//! libtorch reads what it wants to know of the machine, and starts its threads, while it still may.

use comptoir_domain::job;
use tch::{Device, Kind, Reduction, Tensor};

use crate::aten::{self, AtenError};

/// More elements than one thread takes for itself, for each thread.
const ELEMENTS_PER_THREAD: i64 = 1 << 16;

/// Runs forward and back what jobs are mostly made of, in this one thread: libraries are loaded, and what they look up
/// in files is looked up.
pub fn look_around(device: job::Device) -> Result<Device, AtenError> {
    aten::use_one_thread()?;
    aten::cpu_capability()?;
    let device = match device {
        job::Device::Cpu => Device::Cpu,
        job::Device::Cuda => {
            aten::open_cuda()?;
            Device::Cuda(0)
        }
    };
    if device == Device::Cpu {
        compute(device)?;
    }
    Ok(device)
}

/// Fixes threads and determinism, and starts the threads and what CUDA starts of its own.
pub fn start(device: Device, threads: u16) -> Result<(), AtenError> {
    aten::configure(threads, device)?;
    if device != Device::Cpu {
        compute(device)?;
    }
    let shape = [ELEMENTS_PER_THREAD * i64::from(threads)];
    let wide = Tensor::f_ones(shape, (Kind::Float, device))?;
    wide.f_exp()?.f_sum(Kind::Float)?.f_double_value(&[])?;
    Ok(())
}

fn compute(device: Device) -> Result<(), AtenError> {
    tch::manual_seed(0);
    let options = (Kind::Float, device);
    let none = None::<Tensor>;
    let filter = Tensor::f_ones([4, 1, 3, 3], options)?.f_set_requires_grad(true)?;
    let image = Tensor::f_ones([2, 1, 8, 8], options)?;
    let convolved = image.f_conv2d(&filter, none.as_ref(), [1, 1], [1, 1], [1, 1], 1)?;
    let heads = convolved.f_dropout(0.5, true)?.f_reshape([2, 4, 8, 8])?;
    let attended = Tensor::f_scaled_dot_product_attention(
        &heads, &heads, &heads, none, 0.0, false, None, false,
    )?;
    let weight = Tensor::f_ones([2, 256], options)?.f_set_requires_grad(true)?;
    let logits = attended
        .f_reshape([2, 256])?
        .f_linear(&weight, None::<&Tensor>)?;
    let target = Tensor::f_zeros([2], (Kind::Int64, device))?;
    let loss = logits.f_cross_entropy_loss::<Tensor>(&target, None, Reduction::Mean, -100, 0.0)?;
    Tensor::f_run_backward(&[&loss], &[&filter, &weight], false, false)?;
    Ok(())
}
