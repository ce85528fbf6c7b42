//! How far the rows of each factor are from orthogonal, whatever their length, with the gradient in closed form.
//!
//! For a factor with `r` rows `a_i`, and `c_ij` the cosine of rows `i` and `j`:
//!
//! ```text
//! R = mean over factors of (sum of |c_ij| over i != j) / (r (r - 1))
//! dR/da_i = (g_i - (g_i n_i) n_i) / |a_i|      with n_i = a_i / |a_i| and g_i = 2 sum over j of sign(c_ij) n_j
//! ```
//!
//! but for the constants. A row that is 0 has no direction, and no part in it; a factor of fewer than two rows counts as
//! one of value 0. Plain tensor operations: one ablation of the paper uses it.

use adalora_kernels::rows::Rows;
use tch::{Kind, Tensor};

/// Adds `weight * dR/dA` of every factor to `grad` and returns `R`, a scalar on the same device (without `weight`).
pub(crate) fn add_gradient(param: &Tensor, grad: &Tensor, rows: &Rows, weight: f64) -> Tensor {
    let _guard = tch::no_grad_guard();
    let mut value = Tensor::zeros([], (Kind::Float, param.device()));
    for factor in rows.factors().iter().filter(|factor| factor.rows > 1) {
        let share = 1.0 / (rows.factors().len() * factor.rows * (factor.rows - 1)) as f64;
        let a = factor.view(param);
        let length = a.square().sum_dim_intlist(1i64, true, Kind::Float).sqrt();
        // By infinity a row of zeros is divided to zeros, without asking the device.
        let length = length.masked_fill(&length.eq(0.0), f64::INFINITY);
        let direction = &a / &length;
        let cosines = direction.matmul(&direction.tr());
        let signs = cosines.sign().fill_diagonal_(0.0, false);
        value += (&cosines * &signs).sum(Kind::Float) * share;
        let along = signs.matmul(&direction);
        let radial = (&along * &direction).sum_dim_intlist(1i64, true, Kind::Float);
        let mut into = factor.view(grad);
        into += (along - direction * radial) / length * (2.0 * weight * share);
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::{Form, Layout, Site};
    use crate::random::Random;
    use tch::Device;

    #[test]
    fn closed_form_equals_autograd_and_zero_rows_get_none() {
        let site = |d_in, d_out, rank| Site { path: "x".into(), d_in, d_out, rank };
        let layout =
            Layout::new(Form::Lora, vec![site(5, 7, 3), site(4, 3, 0), site(2, 9, 1), site(6, 2, 4)]);
        let param = Random::new(4, "cosine").normal(&[layout.entries() as i64], 0.7);
        let _ = layout.triplets(&param, 0).p.get(1).zero_();
        let _ = layout.triplets(&param, 3).q.zero_();
        let grad = Tensor::ones_like(&param);
        let value = add_gradient(&param, &grad, layout.rows(), 0.3);

        let leaf = param.copy().set_requires_grad(true);
        let factors = layout.rows().factors();
        let mut total = Tensor::zeros([], (Kind::Float, Device::Cpu));
        for factor in factors.iter().filter(|factor| factor.rows > 1) {
            let a = factor.view(&leaf);
            for i in 0..factor.rows as i64 {
                for j in (0..factor.rows as i64).filter(|&j| j != i) {
                    let (one, other) = (a.get(i), a.get(j));
                    let norms = one.norm() * other.norm();
                    if norms.double_value(&[]) > 0.0 {
                        let pairs = (factor.rows * (factor.rows - 1)) as f64;
                        total += (one.dot(&other) / norms).abs() / pairs / factors.len() as f64;
                    }
                }
            }
        }
        total.backward();
        assert!((value - &total).abs().double_value(&[]) < 1e-6);
        let difference = grad - (leaf.grad() * 0.3 + 1.0);
        assert!(difference.abs().max().double_value(&[]) < 1e-6);
    }
}
