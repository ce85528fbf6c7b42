//! The worth of a triplet from the worth of its entries.
//!
//! For each triplet the mean over its `Q` row, plus the mean over its `P` row, plus its lambda entry: AdaLoRA (2023),
//! equation 7, summed in the order of the authors' code.

use rayon::prelude::*;
use tch::{Kind, Tensor};

use crate::cuda;
use crate::host::{self, LANES};
use crate::rows::Rows;

/// Equation 7 of any flat tensor of at least `rows.entries()` values. `(triplets,)`.
pub fn mean(entries: &Tensor, rows: &Rows) -> Tensor {
    if host::all_on_host(&[entries]) {
        Tensor::from_slice(&on_host(host::slice(entries), rows))
    } else if let Some(gpu) = cuda::kernels_for(&[entries], &[]) {
        cuda::triplets::mean(gpu, entries, rows)
    } else {
        reference(entries, rows)
    }
}

/// [`mean`] in plain tensor operations, on any device.
pub fn reference(entries: &Tensor, rows: &Rows) -> Tensor {
    let mean = Tensor::zeros([rows.triplets() as i64], (Kind::Float, entries.device()));
    for factor in rows.factors() {
        let mut own = mean.narrow(0, factor.first as i64, factor.rows as i64);
        own += factor.view(entries).mean_dim(1i64, false, Kind::Float);
    }
    let lambda = rows.lambda();
    if lambda.is_empty() { mean } else { mean + entries.narrow(0, lambda.start as i64, lambda.len() as i64) }
}

fn on_host(entries: &[f32], rows: &Rows) -> Vec<f32> {
    let mut means = vec![0.0; rows.row_count()];
    let of_block = rows.split_rows(&mut means);
    (rows.blocks(), of_block, rows.split(entries)).into_par_iter().for_each(|(block, means, values)| {
        host::vectorised(
            #[inline(always)]
            || {
                for (mean, row) in means.iter_mut().zip(values.chunks_exact(block.cols)) {
                    *mean = (sum(row) / block.cols as f64) as f32;
                }
            },
        );
    });
    let mut worth = vec![0.0; rows.triplets()];
    rows.gather(&means, &mut worth);
    for (worth, lambda) in worth.iter_mut().zip(&entries[rows.lambda()]) {
        *worth += lambda;
    }
    worth
}

#[inline(always)]
fn sum(row: &[f32]) -> f64 {
    let mut sum = 0.0;
    for piece in row.chunks(host::PIECE) {
        let mut lanes = [0f32; LANES];
        let (whole, rest) = piece.as_chunks::<LANES>();
        for values in whole {
            for i in 0..LANES {
                lanes[i] += values[i];
            }
        }
        for (lane, value) in lanes.iter_mut().zip(rest) {
            *lane += value;
        }
        sum += host::total(lanes);
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_near, normal, on_any_threads, shapes, values};

    #[test]
    fn one_pass_equals_the_reference() {
        for rows in shapes() {
            // A buffer goes on behind the adapters; the values there belong to nobody.
            let entries = normal(5, rows.entries() + 3);
            let got = on_any_threads(|| values(&mean(&normal(5, rows.entries() + 3), &rows)));
            assert_near(&Tensor::from_slice(&got), &reference(&entries, &rows), 1e-6, &format!("{rows:?}"));
        }
    }
}
