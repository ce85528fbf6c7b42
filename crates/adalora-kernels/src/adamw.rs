//! AdamW with decoupled weight decay, over a flat buffer whose ranges decay differently.
//!
//! Loshchilov and Hutter (2019), in the order of PyTorch's `torch.optim.AdamW`:
//!
//! ```text
//! w <- w * (1 - lr * decay)
//! m <- m + (1 - beta1) * (g - m)
//! v <- beta2 * v + (1 - beta2) * g^2
//! w <- w - lr / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + eps)
//! ```

use std::ops::Range;

use rayon::prelude::*;
use tch::Tensor;

use crate::cuda;
use crate::host;

/// What one update needs to know beside the buffers.
#[derive(Debug, Clone, Copy)]
pub struct Update {
    /// Learning rate at this step.
    pub lr: f64,
    /// Decay rate of the first moment.
    pub beta1: f64,
    /// Decay rate of the second moment.
    pub beta2: f64,
    /// Added to the denominator.
    pub eps: f64,
    /// Updates so far, this one included: 1 at the first.
    pub count: u64,
}

impl Update {
    /// `lr / (1 - beta1^t)` and `sqrt(1 - beta2^t)`.
    pub(crate) fn corrections(&self) -> (f64, f64) {
        let power = self.count as f64;
        (self.lr / (1.0 - self.beta1.powf(power)), (1.0 - self.beta2.powf(power)).sqrt())
    }
}

/// One update of the whole buffer. `decay` gives the rate for each range; the ranges are in order and cover the
/// buffer. All tensors are flat and of one length; `grad` is only read.
pub fn step(
    param: &mut Tensor,
    grad: &Tensor,
    exp_avg: &mut Tensor,
    exp_avg_sq: &mut Tensor,
    decay: &[(Range<usize>, f64)],
    update: Update,
) {
    if host::all_on_host(&[param, grad, exp_avg, exp_avg_sq]) {
        on_host(param, grad, exp_avg, exp_avg_sq, decay, update);
    } else if let Some(gpu) = cuda::kernels_for(&[param, grad, exp_avg, exp_avg_sq], &[]) {
        cuda::adamw::step(gpu, param, grad, exp_avg, exp_avg_sq, decay, update);
    } else {
        reference(param, grad, exp_avg, exp_avg_sq, decay, update);
    }
}

/// [`step`] in plain tensor operations, on any device.
pub fn reference(
    param: &mut Tensor,
    grad: &Tensor,
    exp_avg: &mut Tensor,
    exp_avg_sq: &mut Tensor,
    decay: &[(Range<usize>, f64)],
    update: Update,
) {
    for (range, rate) in decay.iter().filter(|(range, rate)| *rate != 0.0 && !range.is_empty()) {
        let mut part = param.narrow(0, range.start as i64, range.len() as i64);
        let _ = part.g_mul_scalar_(1.0 - update.lr * rate);
    }
    let _ = exp_avg.lerp_(grad, 1.0 - update.beta1);
    let _ = exp_avg_sq.g_mul_scalar_(update.beta2);
    *exp_avg_sq += grad.square() * (1.0 - update.beta2);
    let (rate, root) = update.corrections();
    let denominator = exp_avg_sq.sqrt() / root + update.eps;
    *param -= &*exp_avg / denominator * rate;
}

fn on_host(
    param: &mut Tensor,
    grad: &Tensor,
    exp_avg: &mut Tensor,
    exp_avg_sq: &mut Tensor,
    decay: &[(Range<usize>, f64)],
    update: Update,
) {
    let (rate, root) = update.corrections();
    let (rate, root, eps) = (rate as f32, root as f32, update.eps as f32);
    let take1 = (1.0 - update.beta1) as f32;
    let (keep2, take2) = (update.beta2 as f32, (1.0 - update.beta2) as f32);
    let (param, grad) = (host::slice_mut(param), host::slice(grad));
    let (exp_avg, exp_avg_sq) = (host::slice_mut(exp_avg), host::slice_mut(exp_avg_sq));
    for (range, weight_decay) in decay {
        let shrink = (1.0 - update.lr * weight_decay) as f32;
        let param = param[range.clone()].par_chunks_mut(host::CHUNK);
        let grad = grad[range.clone()].par_chunks(host::CHUNK);
        let exp_avg = exp_avg[range.clone()].par_chunks_mut(host::CHUNK);
        let exp_avg_sq = exp_avg_sq[range.clone()].par_chunks_mut(host::CHUNK);
        (param, grad, exp_avg, exp_avg_sq).into_par_iter().for_each(|(param, grad, exp_avg, exp_avg_sq)| {
            host::vectorised(
                #[inline(always)]
                || {
                    for (((w, g), m), v) in param.iter_mut().zip(grad).zip(exp_avg).zip(exp_avg_sq) {
                        *m += take1 * (g - *m);
                        *v = keep2 * *v + take2 * (g * g);
                        *w = *w * shrink - rate * (*m / (v.sqrt() / root + eps));
                    }
                },
            );
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{normal, on_any_threads, values};
    use approx::assert_relative_eq;

    #[test]
    fn one_pass_equals_the_reference() {
        let len = host::CHUNK + 77;
        let decay = [(0..100, 0.1), (100..100, 0.3), (100..len, 0.0)];
        let run = |reference: bool| {
            let (mut w, mut m, mut v) = (normal(1, len), normal(2, len) * 0.1, normal(3, len).square());
            for count in 1..=3 {
                let update = Update { lr: 1e-2, beta1: 0.9, beta2: 0.999, eps: 1e-8, count };
                let of = if reference { self::reference } else { step };
                of(&mut w, &normal(10 + count, len), &mut m, &mut v, &decay, update);
            }
            [w, m, v].map(|tensor| values(&tensor))
        };
        for (got, expected) in on_any_threads(|| run(false)).iter().zip(&run(true)) {
            for (got, expected) in got.iter().zip(expected) {
                assert_relative_eq!(got, expected, max_relative = 1e-5, epsilon = 1e-7);
            }
        }
    }
}
