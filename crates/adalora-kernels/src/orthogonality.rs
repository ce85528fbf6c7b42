//! How far the rows of each factor are from orthonormal, with the gradient in closed form.
//!
//! For a factor `A (r, d)` with rows as vectors, and `M = A Aᵀ - I`:
//!
//! ```text
//! sum of squares   R = sum over factors of ||M||²                 dR/dA = 4 M A
//! mean of norms    R = mean over factors of ||M||                 dR/dA = 2 M A / (factors * ||M||)
//! ```
//!
//! The first is AdaLoRA (2023), equation 4; the second is what the authors' code and PEFT compute. Where `||M||` is
//! exactly 0 the gradient of the second is 0. Masked triplets take part, as in both codes.

use tch::{Kind, Tensor};

use crate::cuda;
use crate::rows::Rows;

/// How the residuals of all factors are joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Join {
    /// Sum of squared Frobenius norms.
    SumOfSquares,
    /// Mean of Frobenius norms. A factor without rows counts as one with norm 0.
    MeanOfNorms,
}

/// Adds `weight * dR/dA` of every factor to `grad` and returns `R`, a scalar on the same device (without `weight`).
pub fn add_gradient(param: &Tensor, grad: &Tensor, rows: &Rows, join: Join, weight: f64) -> Tensor {
    match cuda::kernels_for(&[param, grad], &[]) {
        Some(gpu) => cuda::orthogonality::add_gradient(gpu, param, grad, rows, join, weight),
        None => reference(param, grad, rows, join, weight),
    }
}

/// [`add_gradient`] in plain tensor operations, on any device.
pub fn reference(param: &Tensor, grad: &Tensor, rows: &Rows, join: Join, weight: f64) -> Tensor {
    let _guard = tch::no_grad_guard();
    let factors = rows.factors();
    let mut value = Tensor::zeros([], (Kind::Float, param.device()));
    let share = 1.0 / factors.len() as f64;
    for factor in factors.iter().filter(|factor| factor.rows > 0) {
        let a = factor.view(param);
        let residual = a.matmul(&a.tr()) - Tensor::eye(factor.rows as i64, (Kind::Float, param.device()));
        let square = residual.square().sum(Kind::Float);
        let mut into = factor.view(grad);
        match join {
            Join::SumOfSquares => {
                into += residual.matmul(&a) * (4.0 * weight);
                value += square;
            }
            Join::MeanOfNorms => {
                let norm = square.sqrt();
                // Dividing by infinity where the norm is 0 makes the gradient 0 without asking the device.
                let divisor = norm.masked_fill(&norm.eq(0.0), f64::INFINITY);
                into += residual.matmul(&a) * (2.0 * weight * share) / divisor;
                value += norm * share;
            }
        }
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows::Factor;
    use approx::assert_relative_eq;
    use tch::Device;

    fn rows() -> Rows {
        let factor = |offset, rows, cols, first| Factor { offset, rows, cols, first };
        Rows::new(vec![factor(0, 3, 5, 0), factor(15, 0, 4, 3), factor(15, 2, 7, 3)], 29..29, vec![3, 0, 2])
    }

    #[test]
    fn closed_form_equals_autograd() {
        tch::manual_seed(3);
        for join in [Join::SumOfSquares, Join::MeanOfNorms] {
            let param = Tensor::randn([29], (Kind::Float, Device::Cpu)).set_requires_grad(true);
            let grad = Tensor::zeros([29], (Kind::Float, Device::Cpu));
            let value = add_gradient(&param.detach(), &grad, &rows(), join, 0.3);
            let expected = {
                let square = |factor: &Factor| {
                    let a = factor.view(&param);
                    let eye = Tensor::eye(factor.rows as i64, (Kind::Float, Device::Cpu));
                    (a.matmul(&a.tr()) - eye).square().sum(Kind::Float)
                };
                let live = [square(&rows().factors()[0]), square(&rows().factors()[2])];
                match join {
                    Join::SumOfSquares => &live[0] + &live[1],
                    Join::MeanOfNorms => (live[0].sqrt() + live[1].sqrt()) / 3.0,
                }
            };
            (&expected * 0.3).backward();
            assert_relative_eq!(value.double_value(&[]), expected.double_value(&[]), max_relative = 1e-6);
            let difference = (grad - param.grad()).abs().max().double_value(&[]);
            assert!(difference < 1e-6, "{join:?} differs by {difference}");
        }
    }

    #[test]
    fn an_orthonormal_factor_has_no_gradient() {
        let rows = Rows::new(vec![Factor { offset: 0, rows: 2, cols: 2, first: 0 }], 4..4, vec![2]);
        let param = Tensor::from_slice(&[1f32, 0.0, 0.0, 1.0]);
        let grad = Tensor::zeros([4], (Kind::Float, Device::Cpu));
        let value = add_gradient(&param, &grad, &rows, Join::MeanOfNorms, 0.1);
        assert_eq!(value.double_value(&[]), 0.0);
        assert_eq!(Vec::<f32>::try_from(grad).unwrap(), [0.0; 4]);
    }
}
