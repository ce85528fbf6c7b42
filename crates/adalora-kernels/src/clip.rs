//! Gradient norm and clipping, as `torch.nn.utils.clip_grad_norm_`.

use tch::{Kind, Tensor};

use crate::cuda;

/// Scales `grad` in place so that its Euclidean norm, `norm`, becomes at most `max_norm`, and returns the factor, a
/// scalar on the same device: `min(1, max_norm / (norm + 1e-6))`, like PyTorch's.
pub fn clip(grad: &mut Tensor, norm: &Tensor, max_norm: f64) -> Tensor {
    match cuda::kernels_for(&[grad, norm], &[]) {
        Some(gpu) => cuda::clip::clip(gpu, grad, norm, max_norm),
        None => clip_reference(grad, norm, max_norm),
    }
}

/// [`clip`] in plain tensor operations, on any device.
pub fn clip_reference(grad: &mut Tensor, norm: &Tensor, max_norm: f64) -> Tensor {
    let factor = (max_norm / (norm + 1e-6)).clamp_max(1.0);
    let _ = grad.g_mul_(&factor);
    factor
}

/// The Euclidean norm of a flat buffer, a scalar on the same device.
pub fn norm(grad: &Tensor) -> Tensor {
    match cuda::kernels_for(&[grad], &[]) {
        Some(gpu) => cuda::clip::norm(gpu, grad),
        None => reference(grad),
    }
}

/// [`norm`] in plain tensor operations, on any device.
pub fn reference(grad: &Tensor) -> Tensor {
    grad.linalg_norm(2.0, None::<i64>, false, Kind::Float)
}
