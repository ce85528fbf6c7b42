//! Gradient norm and clipping, as `torch.nn.utils.clip_grad_norm_`.

use rayon::prelude::*;
use tch::{Kind, Tensor};

use crate::cuda;
use crate::host::{self, LANES};

/// The Euclidean norm of a flat buffer, a scalar on the same device.
pub fn norm(grad: &Tensor) -> Tensor {
    if host::all_on_host(&[grad]) {
        Tensor::from(on_host(host::slice(grad)))
    } else if let Some(gpu) = cuda::kernels_for(&[grad], &[]) {
        cuda::clip::norm(gpu, grad)
    } else {
        reference(grad)
    }
}

/// [`norm`] as one tensor operation, on any device.
pub fn reference(grad: &Tensor) -> Tensor {
    grad.linalg_norm(2.0, None::<i64>, false, Kind::Float)
}

fn on_host(grad: &[f32]) -> f32 {
    let squares: Vec<f64> = grad
        .par_chunks(host::CHUNK)
        .map(|values| {
            host::vectorised(
                #[inline(always)]
                || sum_of_squares(values),
            )
        })
        .collect();
    squares.iter().sum::<f64>().sqrt() as f32
}

#[inline(always)]
fn sum_of_squares(values: &[f32]) -> f64 {
    let mut lanes = [0f64; LANES];
    let (whole, rest) = values.as_chunks::<LANES>();
    for values in whole {
        for i in 0..LANES {
            lanes[i] += f64::from(values[i]) * f64::from(values[i]);
        }
    }
    for (lane, &value) in lanes.iter_mut().zip(rest) {
        *lane += f64::from(value) * f64::from(value);
    }
    lanes.iter().sum()
}

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{normal, on_any_threads};
    use approx::assert_relative_eq;

    #[test]
    fn the_norm_is_that_of_double_precision() {
        for len in [0, 1, 1000, 3 * host::CHUNK + 5] {
            let got = on_any_threads(|| norm(&(normal(6, len) * 0.1)).double_value(&[]));
            let grad = normal(6, len) * 0.1;
            let exact = grad.to_kind(Kind::Double).square().sum(Kind::Double).sqrt().double_value(&[]);
            assert_relative_eq!(got, exact, max_relative = 1e-7);
            assert_relative_eq!(reference(&grad).double_value(&[]), exact, max_relative = 1e-4);
        }
    }

    #[test]
    fn clipping_makes_the_norm_the_largest_allowed_and_leaves_a_smaller_one() {
        let mut grad = normal(7, 1000);
        let before = norm(&grad);
        let factor = clip(&mut grad, &before, 2.0);
        assert_relative_eq!(norm(&grad).double_value(&[]), 2.0, max_relative = 1e-6);
        assert_relative_eq!(factor.double_value(&[]), 2.0 / before.double_value(&[]), max_relative = 1e-6);
        let small = grad.copy();
        let _ = clip(&mut grad, &norm(&small), 3.0);
        assert_eq!(grad, small);
    }

    #[test]
    fn a_gradient_that_is_not_finite_has_no_finite_norm() {
        for value in [f64::NAN, f64::INFINITY] {
            let grad = normal(8, 100);
            let _ = grad.get(50).fill_(value);
            assert!(!norm(&grad).double_value(&[]).is_finite());
        }
    }
}
