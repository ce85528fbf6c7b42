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
use crate::host::{self, LANES};
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
        let (s, u) = (host::slice_mut(sensitivity), host::slice_mut(uncertainty));
        Averages::new(beta1, beta2).pass(s, u, host::slice(param), host::slice(grad));
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
    if host::all_on_host(&[sensitivity, uncertainty, score, param, grad]) {
        let (s, u) = (host::slice_mut(sensitivity), host::slice_mut(uncertainty));
        let (score, param, grad) = (host::slice_mut(score), host::slice(param), host::slice(grad));
        Averages::new(beta1, beta2).pass_and_score(s, u, score, param, grad, rows);
    } else if let Some(gpu) = cuda::kernels_for(&[sensitivity, uncertainty, score, param, grad], &[]) {
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

/// The pass on the CPU.
#[derive(Clone, Copy)]
struct Averages {
    keep1: f32,
    take1: f32,
    keep2: f32,
    take2: f32,
}

impl Averages {
    fn new(beta1: f64, beta2: f64) -> Self {
        let take = |beta: f64| (1.0 - beta) as f32;
        Self { keep1: beta1 as f32, take1: take(beta1), keep2: beta2 as f32, take2: take(beta2) }
    }

    #[inline(always)]
    fn update(self, s: &mut f32, u: &mut f32, w: f32, g: f32) {
        let now = (w * g).abs();
        *s = self.keep1 * *s + self.take1 * now;
        *u = self.keep2 * *u + self.take2 * (now - *s).abs();
    }

    fn pass(self, s: &mut [f32], u: &mut [f32], w: &[f32], g: &[f32]) {
        let (s, u) = (s.par_chunks_mut(host::CHUNK), u.par_chunks_mut(host::CHUNK));
        let (w, g) = (w.par_chunks(host::CHUNK), g.par_chunks(host::CHUNK));
        (s, u, w, g).into_par_iter().for_each(|(s, u, w, g)| {
            host::vectorised(
                #[inline(always)]
                || {
                    for (((s, u), w), g) in s.iter_mut().zip(u).zip(w).zip(g) {
                        self.update(s, u, *w, *g);
                    }
                },
            );
        });
    }

    fn pass_and_score(
        self,
        s: &mut [f32],
        u: &mut [f32],
        score: &mut [f32],
        w: &[f32],
        g: &[f32],
        rows: &Rows,
    ) {
        let lambda = rows.lambda();
        let mut means = vec![0.0; rows.row_count()];
        let (blocks, of_block) = (rows.blocks(), rows.split_rows(&mut means));
        let (mine, yours) = (rows.split_mut(s), rows.split_mut(u));
        (blocks, of_block, mine, yours, rows.split(w), rows.split(g)).into_par_iter().for_each(
            |(block, means, s, u, w, g)| {
                let cols = block.cols;
                let (s, u) = (s.chunks_exact_mut(cols), u.chunks_exact_mut(cols));
                let (w, g) = (w.chunks_exact(cols), g.chunks_exact(cols));
                host::vectorised(
                    #[inline(always)]
                    || {
                        for ((((mean, s), u), w), g) in means.iter_mut().zip(s).zip(u).zip(w).zip(g) {
                            *mean = (self.row(s, u, w, g) / cols as f64) as f32;
                        }
                    },
                );
            },
        );
        rows.gather(&means, score);
        let (s, u) = (&mut s[lambda.clone()], &mut u[lambda.clone()]);
        let (w, g) = (&w[lambda.clone()], &g[lambda]);
        for ((((score, s), u), w), g) in score.iter_mut().zip(s).zip(u).zip(w).zip(g) {
            self.update(s, u, *w, *g);
            *score += *s * *u;
        }
    }

    /// Updates a row, and returns the sum of the products of its new averages.
    #[inline(always)]
    fn row(self, s: &mut [f32], u: &mut [f32], w: &[f32], g: &[f32]) -> f64 {
        let (s, u) = (s.chunks_mut(host::PIECE), u.chunks_mut(host::PIECE));
        let (w, g) = (w.chunks(host::PIECE), g.chunks(host::PIECE));
        let mut sum = 0.0;
        for (((s, u), w), g) in s.zip(u).zip(w).zip(g) {
            let mut lanes = [0f32; LANES];
            let ((s, s_rest), (u, u_rest)) = (s.as_chunks_mut::<LANES>(), u.as_chunks_mut::<LANES>());
            let ((w, w_rest), (g, g_rest)) = (w.as_chunks::<LANES>(), g.as_chunks::<LANES>());
            for (((s, u), w), g) in s.iter_mut().zip(u).zip(w).zip(g) {
                for i in 0..LANES {
                    self.update(&mut s[i], &mut u[i], w[i], g[i]);
                    lanes[i] += s[i] * u[i];
                }
            }
            for ((((lane, s), u), w), g) in lanes.iter_mut().zip(s_rest).zip(u_rest).zip(w_rest).zip(g_rest) {
                self.update(s, u, *w, *g);
                *lane += *s * *u;
            }
            sum += host::total(lanes);
        }
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_near, normal, on_any_threads, shapes, values};
    use tch::{Device, Kind};

    #[test]
    fn one_pass_equals_the_reference_bit_for_bit() {
        for len in [0, 1, 1000, 2 * host::CHUNK + 5] {
            let step = |of: fn(&mut Tensor, &mut Tensor, &Tensor, &Tensor, f64, f64)| {
                let (mut s, mut u) = (normal(1, len).abs(), normal(2, len).abs());
                of(&mut s, &mut u, &normal(3, len), &normal(4, len), 0.85, 0.6);
                (values(&s), values(&u))
            };
            assert_eq!(on_any_threads(|| step(smooth)), step(reference), "{len} values");
        }
    }

    #[test]
    fn the_score_is_that_of_the_averages_which_stay_equal_bit_for_bit() {
        for rows in shapes() {
            let len = rows.entries();
            let run = |reference: bool| {
                let (mut s, mut u) = (normal(1, len).abs(), normal(2, len).abs());
                // What was there before must not matter.
                let mut score = Tensor::full([rows.triplets() as i64], f64::NAN, (Kind::Float, Device::Cpu));
                for step in 0..3 {
                    let (w, g) = (normal(10 + step, len), normal(20 + step, len) * 1e-3);
                    let of = if reference { score_reference } else { smooth_and_score };
                    of(&mut s, &mut u, &mut score, &w, &g, 0.85, 0.6, &rows);
                }
                [s, u, score].map(|tensor| values(&tensor))
            };
            let ([s, u, score], [s0, u0, score0]) = (on_any_threads(|| run(false)), run(true));
            assert!(s == s0 && u == u0, "{rows:?}");
            assert_near(
                &Tensor::from_slice(&score),
                &Tensor::from_slice(&score0),
                1e-6,
                &format!("{rows:?}"),
            );
        }
    }
}
