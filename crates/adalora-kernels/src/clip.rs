//! Gradient norm and clipping, as `torch.nn.utils.clip_grad_norm_`.

use tch::{Kind, Tensor};

use crate::cuda;

/// Scales `grad` in place so that its Euclidean norm, `norm`, becomes at most `max_norm`, and returns the factor, a
/// scalar on the same device: `min(1, max_norm / (norm + 1e-6))`, like PyTorch's.
pub fn clip(grad: &mut Tensor, norm: &Tensor, max_norm: f64) -> Tensor {
    if let Some(gpu) = cuda::kernels_for(&[grad, norm], &[]) {
        return cuda::clip::clip(gpu, grad, norm, max_norm);
    }
    let factor = (max_norm / (norm + 1e-6)).clamp_max(1.0);
    let _ = grad.g_mul_(&factor);
    factor
}

/// The Euclidean norm of a flat buffer, a scalar on the same device.
pub fn norm(grad: &Tensor) -> Tensor {
    if let Some(gpu) = cuda::kernels_for(&[grad], &[]) {
        return cuda::clip::norm(gpu, grad);
    }
    grad.linalg_norm(2.0, None::<i64>, false, Kind::Float)
}
