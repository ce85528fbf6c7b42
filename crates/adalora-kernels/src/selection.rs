//! The choice of the triplets that live, and the mask that it ends in.
//!
//! The order of triplets is total: by importance, the earlier first among equal ones, `-0` equal to `0`, a NaN behind
//! all numbers. `adalora_budget::RankPattern::keep_top` makes the same choice on the host, and refuses what is not
//! finite, which cannot be refused here: nothing is read back from a device.

use tch::{Kind, Tensor};

use crate::cuda;
use crate::rows::Rows;

/// Sets `masked`, a Bool tensor `(triplets,)`, to true but for the `budget` triplets of the largest importance
/// (all, if there are fewer), first among them the `min_r` best of each adapter where it has so many.
///
/// `importance` is f32, `(triplets,)`.
///
/// # Panics
///
/// If the floors exceed the budget.
pub fn keep_top(importance: &Tensor, rows: &Rows, budget: usize, min_r: usize, masked: &mut Tensor) {
    assert_eq!(importance.numel(), rows.triplets(), "one importance for each triplet");
    let floors: usize = rows.groups().iter().map(|&own| own.min(min_r)).sum();
    assert!(floors <= budget, "the floors of all adapters fit into the budget");
    match cuda::kernels_for(&[importance], &[masked]) {
        Some(gpu) => cuda::selection::keep_top(gpu, importance, rows, budget, min_r, masked),
        None => reference(importance, rows, budget, min_r, masked),
    }
}

/// [`keep_top`] in plain tensor operations, on any device.
pub fn reference(importance: &Tensor, rows: &Rows, budget: usize, min_r: usize, masked: &mut Tensor) {
    let device = importance.device();
    let triplets = rows.triplets() as i64;
    // Stable sorts by the least of several keys first: importance, then whether it is a number, then the floor.
    let number = importance.isnan().logical_not();
    let mut order = importance.argsort_stable(true, 0, true);
    order = sort_by(&order, &number);
    if min_r > 0 {
        let groups = rows.groups().iter().enumerate();
        let of: Vec<i64> = groups.flat_map(|(group, &own)| vec![group as i64; own]).collect();
        let places: Vec<i64> = rows.groups().iter().flat_map(|&own| 0..own as i64).collect();
        // Sorted by adapter, a triplet's place within its adapter is that of the position where it stands.
        let by_adapter = order.index_select(
            0,
            &Tensor::from_slice(&of).to(device).index_select(0, &order).argsort_stable(true, 0, false),
        );
        let floor = number.zeros_like().index_copy(
            0,
            &by_adapter,
            &Tensor::from_slice(&places).to(device).lt(min_r as i64),
        );
        order = sort_by(&order, &floor);
    }
    let dropped = Tensor::arange(triplets, (Kind::Int64, device)).ge(budget as i64);
    let _ = masked.index_copy_(0, &order, &dropped);
}

/// `order` with the triplets for which `first` holds before the others.
fn sort_by(order: &Tensor, first: &Tensor) -> Tensor {
    let keys = first.index_select(0, order).to_kind(Kind::Uint8);
    order.index_select(0, &keys.argsort_stable(true, 0, true))
}

/// Sets the lambda of the masked triplets to 0 in place; both tensors are `(triplets,)`.
///
/// One write in libtorch on every device, so there is nothing to add.
pub fn mask(lambda: &mut Tensor, masked: &Tensor) {
    let _ = lambda.masked_fill_(masked, 0.0);
}
