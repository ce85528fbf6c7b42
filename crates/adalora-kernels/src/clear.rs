//! Sets all that belongs to masked triplets to 0, in a buffer that is laid out as the parameters are.

use tch::{Device, Tensor};

use crate::host;
use crate::rows::Rows;

/// Sets the rows and the lambda of masked triplets to 0 in place. `flat` is f32, at least `rows.entries()` values;
/// `masked` is Bool, `(triplets,)`. What lies behind the adapters stays.
///
/// There is no CUDA kernel: on another device than the CPU it is [`reference()`], one operation for each factor.
pub fn clear(flat: &mut Tensor, rows: &Rows, masked: &Tensor) {
    assert_eq!(masked.numel(), rows.triplets(), "one flag for each triplet");
    if host::all_on_host(&[flat]) && masked.device() == Device::Cpu {
        on_host(host::slice_mut(flat), rows, &Vec::try_from(masked).expect("a mask is one vector of flags"));
    } else {
        reference(flat, rows, masked);
    }
}

/// [`clear`] in plain tensor operations, on any device.
pub fn reference(flat: &mut Tensor, rows: &Rows, masked: &Tensor) {
    for factor in rows.factors() {
        let own = masked.narrow(0, factor.first as i64, factor.rows as i64).unsqueeze(1);
        let _ = factor.view(flat).masked_fill_(&own, 0.0);
    }
    let lambda = rows.lambda();
    if !lambda.is_empty() {
        let _ = flat.narrow(0, lambda.start as i64, lambda.len() as i64).masked_fill_(masked, 0.0);
    }
}

fn on_host(flat: &mut [f32], rows: &Rows, masked: &[bool]) {
    for factor in rows.factors().iter().filter(|factor| factor.rows > 0) {
        let own = flat[factor.range()].chunks_exact_mut(factor.cols);
        for (row, _) in own.zip(&masked[factor.first..]).filter(|(_, masked)| **masked) {
            row.fill(0.0);
        }
    }
    for (lambda, _) in flat[rows.lambda()].iter_mut().zip(masked).filter(|(_, masked)| **masked) {
        *lambda = 0.0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{normal, shapes, values};

    #[test]
    fn one_pass_equals_the_reference_and_touches_nothing_else() {
        for rows in shapes() {
            let masked: Vec<bool> = (0..rows.triplets()).map(|triplet| triplet % 3 != 1).collect();
            let (mut one, mut other) = (normal(3, rows.entries() + 4), normal(3, rows.entries() + 4));
            clear(&mut one, &rows, &Tensor::from_slice(&masked));
            reference(&mut other, &rows, &Tensor::from_slice(&masked));
            assert_eq!(values(&one), values(&other), "{rows:?}");

            // Normal values are not 0, so each 0 was put there.
            let zeros = values(&one).iter().filter(|value| **value == 0.0).count();
            let of_factors = rows.factors().iter().map(|factor| {
                masked[factor.first..][..factor.rows].iter().filter(|masked| **masked).count() * factor.cols
            });
            let of_lambda = masked.iter().take(rows.lambda().len()).filter(|masked| **masked).count();
            assert_eq!(zeros, of_factors.sum::<usize>() + of_lambda, "{rows:?}");
        }
    }
}
