//! The choice of the triplets that live, and the mask that it ends in.
//!
//! The order of triplets is total: by importance, the earlier first among equal ones, `-0` equal to `0`, a NaN behind
//! all numbers. `adalora_budget::RankPattern::keep_top` makes the same choice on the host, and refuses what is not
//! finite, which cannot be refused here: nothing is read back from a device.

use tch::{Device, Kind, Tensor};

use crate::cuda;
use crate::host;
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
    if host::all_on_host(&[importance]) && masked.device() == Device::Cpu {
        on_host(host::slice(importance), rows.groups(), budget, min_r, host::flags_mut(masked));
    } else if let Some(gpu) = cuda::kernels_for(&[importance], &[masked]) {
        cuda::selection::keep_top(gpu, importance, rows, budget, min_r, masked);
    } else {
        reference(importance, rows, budget, min_r, masked);
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

fn on_host(importance: &[f32], groups: &[usize], budget: usize, min_r: usize, masked: &mut [bool]) {
    let mut keys: Vec<u64> = importance.iter().enumerate().map(|(at, &score)| key(score, at)).collect();
    if min_r > 0 {
        let mut rest = keys.as_mut_slice();
        for &own in groups {
            let group = rest.split_off_mut(..own).expect("the groups are all triplets");
            let least = least_of_best(group, min_r);
            group.iter_mut().filter(|key| **key >= least).for_each(|key| *key |= FLOOR);
        }
    }
    let least = least_of_best(&keys, budget);
    for (masked, key) in masked.iter_mut().zip(keys) {
        *masked = key < least;
    }
}

/// In the key of a triplet that is among the `min_r` best of its adapter.
const FLOOR: u64 = 1 << 63;

/// The order of triplets as the order of numbers: the floor bit, then the importance in 32 bits that keep its order,
/// then the index in 31 bits, the earlier the larger. No two triplets have one key.
fn key(importance: f32, index: usize) -> u64 {
    // Makes -0 a 0.
    let importance = importance + 0.0;
    let bits = importance.to_bits();
    let ordered = match (importance.is_nan(), importance.is_sign_negative()) {
        (true, _) => 0,
        (false, true) => !bits,
        (false, false) => bits | 1 << 31,
    };
    (u64::from(ordered) << 31) | (0x7fff_ffff - index as u64)
}

/// The smallest of the `count` largest keys.
fn least_of_best(keys: &[u64], count: usize) -> u64 {
    if count == 0 {
        return u64::MAX;
    }
    let Some(at) = keys.len().checked_sub(count) else { return 0 };
    let mut keys = keys.to_vec();
    *keys.select_nth_unstable(at).1
}

/// Sets the lambda of the masked triplets to 0 in place; both tensors are `(triplets,)`.
///
/// One write in libtorch on every device, so there is nothing to add.
pub fn mask(lambda: &mut Tensor, masked: &Tensor) {
    let _ = lambda.masked_fill_(masked, 0.0);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::rows;
    use proptest::prelude::*;

    /// What lives after each of both functions.
    fn live(importance: &[f32], ranks: &[usize], budget: usize, min_r: usize) -> [Vec<bool>; 2] {
        let adapters: Vec<_> = ranks.iter().map(|&rank| (1, 1, rank)).collect();
        [keep_top, reference].map(|keep| {
            let mut masked = Tensor::from_slice(&vec![budget.is_multiple_of(2); importance.len()]);
            keep(&Tensor::from_slice(importance), &rows(&adapters, true), budget, min_r, &mut masked);
            Vec::try_from(masked.logical_not()).unwrap()
        })
    }

    #[test]
    fn ties_zeros_and_what_is_no_number() {
        let nan = f32::NAN;
        for (importance, ranks, budget, min_r, expected) in [
            // Of equal triplets the earlier, and the two zeros are equal.
            (&[2.0, 2.0, 2.0][..], &[3][..], 2, 0, &[true, true, false][..]),
            (&[-1.0, -0.0, 0.0, 0.0], &[4], 2, 0, &[false, true, true, false]),
            // A NaN, of either sign, comes behind every number.
            (&[nan, f32::NEG_INFINITY, -nan, 1.0], &[4], 2, 0, &[false, true, false, true]),
            (&[nan, 1.0, -nan], &[3], 2, 0, &[true, true, false]),
            // The best of each adapter before all others; an adapter without triplets takes none.
            (&[9.0, 8.0, 1.0, 2.0], &[2, 0, 2], 2, 1, &[true, false, false, true]),
            (&[9.0, 8.0, 1.0], &[2, 1], 3, 2, &[true, true, true]),
            (&[1.0, 2.0], &[2], 0, 0, &[false, false]),
            (&[1.0, 2.0], &[2], 5, 0, &[true, true]),
            (&[], &[0], 0, 1, &[]),
        ] {
            let live = live(importance, ranks, budget, min_r);
            assert_eq!(live, [expected, expected], "{importance:?}, {budget} of {ranks:?}, at least {min_r}");
        }
    }

    #[test]
    fn a_mask_is_held_by_one_write() {
        let mut lambda = Tensor::from_slice(&[1f32, f32::NAN, -3.0]);
        mask(&mut lambda, &Tensor::from_slice(&[false, true, true]));
        assert_eq!(Vec::<f32>::try_from(lambda).unwrap(), [1.0, 0.0, 0.0]);
    }

    #[test]
    #[should_panic(expected = "floors")]
    fn floors_above_the_budget_are_a_mistake() {
        live(&[1.0, 2.0], &[1, 1], 1, 1);
    }

    fn bits() -> impl Strategy<Value = f32> {
        prop_oneof![any::<u32>().prop_map(f32::from_bits), (-2i8..3).prop_map(f32::from), Just(-0.0)]
    }

    proptest! {
        #[test]
        fn keys_choose_what_sorting_chooses(
            adapters in proptest::collection::vec(proptest::collection::vec(bits(), 0..6), 0..8),
            min_r in 0..4usize,
            share in 0.0..1.1f64,
        ) {
            let ranks: Vec<usize> = adapters.iter().map(Vec::len).collect();
            let importance = adapters.concat();
            let floors: usize = ranks.iter().map(|&rank| rank.min(min_r)).sum();
            let budget = floors.max((share * importance.len() as f64) as usize);
            let [own, sorted] = live(&importance, &ranks, budget, min_r);
            prop_assert_eq!(&own, &sorted);
            prop_assert_eq!(own.iter().filter(|&&live| live).count(), budget.min(importance.len()));
        }
    }
}
