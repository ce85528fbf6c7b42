//! Running averages of sensitivity and of its uncertainty, element by element.
//!
//! With the sensitivity `I = |w * g|`:
//!
//! ```text
//! sensitivity <- beta1 * sensitivity + (1 - beta1) * I
//! uncertainty <- beta2 * uncertainty + (1 - beta2) * |I - sensitivity|
//! ```
//!
//! The second line uses the average that the first has just made, and neither is corrected for its start at 0.
//! AdaLoRA (2023), equations 8 to 10, in the order of the authors' code.

use rayon::prelude::*;
use tch::Tensor;

use crate::cuda;
use crate::host;
use crate::rows::Rows;
use crate::triplets;

/// Updates both averages in place. All tensors are flat and of one length; `param` and `grad` are only read.
pub fn smooth(
    sensitivity: &mut Tensor,
    uncertainty: &mut Tensor,
    param: &Tensor,
    grad: &Tensor,
    beta1: f64,
    beta2: f64,
) {
    if host::all_on_host(&[sensitivity, uncertainty, param, grad]) {
        on_host(sensitivity, uncertainty, param, grad, beta1, beta2);
    } else if let Some(gpu) = cuda::kernels_for(&[sensitivity, uncertainty, param, grad], &[]) {
        cuda::smoothing::smooth(gpu, sensitivity, uncertainty, param, grad, beta1, beta2);
    } else {
        reference(sensitivity, uncertainty, param, grad, beta1, beta2);
    }
}

/// [`smooth`] in plain tensor operations, on any device.
pub fn reference(
    sensitivity: &mut Tensor,
    uncertainty: &mut Tensor,
    param: &Tensor,
    grad: &Tensor,
    beta1: f64,
    beta2: f64,
) {
    let now = (param * grad).abs();
    let _ = sensitivity.g_mul_scalar_(beta1);
    *sensitivity += &now * (1.0 - beta1);
    let deviation = (now - &*sensitivity).abs();
    let _ = uncertainty.g_mul_scalar_(beta2);
    *uncertainty += deviation * (1.0 - beta2);
}

/// [`smooth`], and with the averages still at hand the importance of each triplet from their product: sets `score`,
/// `(triplets,)`, to [`triplets::mean`] of `sensitivity * uncertainty`. The flat tensors have `rows.entries()` values.
#[expect(clippy::too_many_arguments)]
pub fn smooth_and_score(
    sensitivity: &mut Tensor,
    uncertainty: &mut Tensor,
    score: &mut Tensor,
    param: &Tensor,
    grad: &Tensor,
    beta1: f64,
    beta2: f64,
    rows: &Rows,
) {
    if let Some(gpu) = cuda::kernels_for(&[sensitivity, uncertainty, score, param, grad], &[]) {
        cuda::smoothing::smooth_and_score(
            gpu,
            sensitivity,
            uncertainty,
            score,
            param,
            grad,
            beta1,
            beta2,
            rows,
        );
    } else {
        score_reference(sensitivity, uncertainty, score, param, grad, beta1, beta2, rows);
    }
}

/// [`smooth_and_score`] in plain tensor operations, on any device.
#[expect(clippy::too_many_arguments)]
pub fn score_reference(
    sensitivity: &mut Tensor,
    uncertainty: &mut Tensor,
    score: &mut Tensor,
    param: &Tensor,
    grad: &Tensor,
    beta1: f64,
    beta2: f64,
    rows: &Rows,
) {
    reference(sensitivity, uncertainty, param, grad, beta1, beta2);
    score.copy_(&triplets::reference(&(&*sensitivity * &*uncertainty), rows));
}

fn on_host(
    sensitivity: &mut Tensor,
    uncertainty: &mut Tensor,
    param: &Tensor,
    grad: &Tensor,
    beta1: f64,
    beta2: f64,
) {
    let (keep1, take1) = (beta1 as f32, (1.0 - beta1) as f32);
    let (keep2, take2) = (beta2 as f32, (1.0 - beta2) as f32);
    let sensitivity = host::slice_mut(sensitivity).par_chunks_mut(host::CHUNK);
    let uncertainty = host::slice_mut(uncertainty).par_chunks_mut(host::CHUNK);
    let param = host::slice(param).par_chunks(host::CHUNK);
    let grad = host::slice(grad).par_chunks(host::CHUNK);
    (sensitivity, uncertainty, param, grad).into_par_iter().for_each(
        |(sensitivity, uncertainty, param, grad)| {
            for (((s, u), w), g) in sensitivity.iter_mut().zip(uncertainty).zip(param).zip(grad) {
                let now = (w * g).abs();
                *s = keep1 * *s + take1 * now;
                *u = keep2 * *u + take2 * (now - *s).abs();
            }
        },
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    #[test]
    fn one_pass_equals_the_reference_bit_for_bit() {
        tch::manual_seed(1);
        let flat = |len| Tensor::randn([len], (Kind::Float, Device::Cpu));
        for len in [0, 1, 1000, 2 * host::CHUNK as i64 + 5] {
            let (param, grad) = (flat(len), flat(len));
            let start = (flat(len).abs(), flat(len).abs());
            let (mut s, mut u) = (start.0.copy(), start.1.copy());
            smooth(&mut s, &mut u, &param, &grad, 0.85, 0.6);
            let (mut s0, mut u0) = start;
            reference(&mut s0, &mut u0, &param, &grad, 0.85, 0.6);
            assert_eq!((s, u), (s0, u0), "{len} values");
        }
    }
}
