//! The worth of a triplet from the worth of its entries.
//!
//! For each triplet the mean over its `Q` row, plus the mean over its `P` row, plus its lambda entry: AdaLoRA (2023),
//! equation 7, summed in the order of the authors' code.

use tch::{Kind, Tensor};

use crate::cuda;
use crate::rows::Rows;

/// Equation 7 of any flat tensor of at least `rows.entries()` values. `(triplets,)`.
pub fn mean(entries: &Tensor, rows: &Rows) -> Tensor {
    match cuda::kernels_for(&[entries], &[]) {
        Some(gpu) => cuda::triplets::mean(gpu, entries, rows),
        None => reference(entries, rows),
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
