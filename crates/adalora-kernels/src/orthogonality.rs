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

mod tiles;

use rayon::prelude::*;
use tch::{Kind, Tensor};

use crate::cuda;
use crate::host;
use crate::rows::{Factor, Rows};

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
    if host::all_on_host(&[param, grad]) {
        // The gradient's values change through another handle on its storage.
        let (mut grad, param) = (grad.shallow_clone(), host::slice(param));
        Tensor::from(on_host(param, host::slice_mut(&mut grad), rows.factors(), join, weight))
    } else if let Some(gpu) = cuda::kernels_for(&[param, grad], &[]) {
        cuda::orthogonality::add_gradient(gpu, param, grad, rows, join, weight)
    } else {
        reference(param, grad, rows, join, weight)
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

fn on_host(param: &[f32], mut grad: &mut [f32], factors: &[Factor], join: Join, weight: f64) -> f32 {
    let share = 1.0 / factors.len().max(1) as f64;
    let grads: Vec<&mut [f32]> = factors
        .iter()
        .map(|factor| grad.split_off_mut(..factor.range().len()).expect("a gradient for each parameter"))
        .collect();
    let scale = |square: f64| match join {
        Join::SumOfSquares => 4.0 * weight,
        Join::MeanOfNorms if square == 0.0 => 0.0,
        Join::MeanOfNorms => 2.0 * weight * share / square.sqrt(),
    };
    let terms = factors.par_iter().zip(grads).filter(|(factor, _)| factor.rows > 0);
    let squares: Vec<f64> = terms
        .map(|(factor, grad)| {
            let &Factor { cols, .. } = factor;
            tiles::Term { factor: &param[factor.range()], cols, grad, scale }.run()
        })
        .collect();
    let value: f64 = match join {
        Join::SumOfSquares => squares.iter().sum(),
        Join::MeanOfNorms => squares.iter().map(|square| square.sqrt()).sum::<f64>() * share,
    };
    value as f32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_near, normal, on_any_threads, rows, shapes, values};
    use approx::assert_relative_eq;
    use tch::Device;

    /// Both functions.
    type AddGradient = fn(&Tensor, &Tensor, &Rows, Join, f64) -> Tensor;
    const BOTH: [AddGradient; 2] = [add_gradient, reference];

    #[test]
    fn closed_form_equals_autograd() {
        let rows = rows(&[(5, 7, 3), (4, 4, 0), (16, 2, 2)], false);
        let len = rows.entries();
        for (join, add) in
            [Join::SumOfSquares, Join::MeanOfNorms].into_iter().flat_map(|join| BOTH.map(|add| (join, add)))
        {
            let param = normal(3, len).set_requires_grad(true);
            let grad = normal(4, len);
            let value = add(&param.detach(), &grad, &rows, join, 0.3);
            let square = |factor: &Factor| {
                let a = factor.view(&param);
                let eye = Tensor::eye(factor.rows as i64, (Kind::Float, Device::Cpu));
                (a.matmul(&a.tr()) - eye).square().sum(Kind::Float)
            };
            let squares = rows.factors().iter().filter(|factor| factor.rows > 0).map(square);
            let expected: Tensor = match join {
                Join::SumOfSquares => squares.sum(),
                Join::MeanOfNorms => squares.map(|square| square.sqrt()).sum::<Tensor>() / 6.0,
            };
            (&expected * 0.3).backward();
            assert_relative_eq!(value.double_value(&[]), expected.double_value(&[]), max_relative = 1e-6);
            // Added to what was there.
            assert_near(&(grad - normal(4, len)), &param.grad(), 1e-6, &format!("{join:?}"));
        }
    }

    #[test]
    fn tiles_equal_the_reference() {
        for rows in shapes() {
            // The buffers go on behind the adapters.
            let len = rows.entries() + 5;
            for join in [Join::SumOfSquares, Join::MeanOfNorms] {
                let run = |add: fn(&Tensor, &Tensor, &Rows, Join, f64) -> Tensor| {
                    let grad = normal(4, len);
                    let value = add(&(normal(3, len) * 0.1), &grad, &rows, join, 0.3).double_value(&[]);
                    (value, values(&grad))
                };
                let ((value, grad), (value0, grad0)) = (on_any_threads(|| run(add_gradient)), run(reference));
                assert_relative_eq!(value, value0, max_relative = 1e-5);
                let what = format!("{join:?}, {rows:?}");
                assert_near(&Tensor::from_slice(&grad), &Tensor::from_slice(&grad0), 1e-5, &what);
            }
        }
    }

    #[test]
    fn an_orthonormal_factor_has_no_gradient() {
        let rows = Rows::new(vec![Factor { offset: 0, rows: 2, cols: 2, first: 0 }], 4..4, vec![2]);
        let param = Tensor::from_slice(&[1f32, 0.0, 0.0, 1.0]);
        for add in BOTH {
            let grad = Tensor::zeros([4], (Kind::Float, Device::Cpu));
            assert_eq!(add(&param, &grad, &rows, Join::MeanOfNorms, 0.1).double_value(&[]), 0.0);
            assert_eq!(values(&grad), [0.0; 4]);
        }
    }
}
