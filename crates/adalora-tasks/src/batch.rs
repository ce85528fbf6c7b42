//! Batches: in which order examples come, and how a batch is padded.

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use crate::dataset::{Example, Labels};

/// Batches in which examples are sorted by length together. Large enough that a batch holds hardly any padding, small
/// enough that its examples are still a random lot.
const WINDOW: usize = 32;

/// The batches of one training epoch, as indices into `examples`: each example in exactly one of them. All batches
/// have `batch_size` examples, except one if it does not divide their number.
///
/// A function of its arguments alone, so a resumed run needs no state. Examples are shuffled, cut into windows of 32
/// batches, sorted by length inside each window (equal lengths keep their order) and cut into batches, whose order is
/// shuffled. Random numbers are ChaCha8's, keyed by 32 bytes: `seed` and `epoch`, little-endian, then
/// `adalora data order`'s first 16 bytes.
///
/// # Panics
///
/// If `batch_size` is 0.
pub fn epoch_order(examples: &[Example], batch_size: usize, seed: u64, epoch: u64) -> Vec<Vec<usize>> {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&epoch.to_le_bytes());
    key[16..].copy_from_slice(b"adalora data ord");
    let mut random = ChaCha8Rng::from_seed(key);
    let mut order: Vec<usize> = (0..examples.len()).collect();
    order.shuffle(&mut random);
    for window in order.chunks_mut(WINDOW * batch_size) {
        window.sort_by_key(|index| examples[*index].ids.len());
    }
    let mut batches: Vec<_> = order.chunks(batch_size).map(<[usize]>::to_vec).collect();
    batches.shuffle(&mut random);
    batches
}

/// Batches for an evaluation, as indices into `examples`: sorted by length, equal lengths in their order, so there is
/// as little padding as can be.
///
/// # Panics
///
/// If `batch_size` is 0.
pub fn dev_order(examples: &[Example], batch_size: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..examples.len()).collect();
    order.sort_by_key(|index| examples[*index].ids.len());
    order.chunks(batch_size).map(<[usize]>::to_vec).collect()
}

/// Some examples, padded to the longest of them. Matrices are row-major, of shape `(rows, width)`.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// Examples.
    pub rows: usize,
    /// Tokens of the longest example.
    pub width: usize,
    /// Token ids, padded at the end.
    pub ids: Vec<i64>,
    /// Which text of a pair a token belongs to; 0 for padding.
    pub type_ids: Vec<i64>,
    /// Whether there is a token, as opposed to padding.
    pub mask: Vec<bool>,
    /// What is to be predicted for each row.
    pub labels: Labels,
}

impl Batch {
    /// The examples at `indices`, in that order.
    ///
    /// # Panics
    ///
    /// If the examples do not share one kind of label.
    pub fn collate(examples: &[Example], indices: &[usize], pad_id: u32) -> Self {
        let chosen = || indices.iter().map(|index| &examples[*index]);
        let rows = indices.len();
        let width = chosen().map(|example| example.ids.len()).max().unwrap_or(0);
        let mut batch = Self {
            rows,
            width,
            ids: vec![pad_id.into(); rows * width],
            type_ids: vec![0; rows * width],
            mask: vec![false; rows * width],
            labels: Labels::of(chosen()),
        };
        for (row, example) in chosen().enumerate() {
            for (column, (id, type_id)) in example.ids.iter().zip(&example.type_ids).enumerate() {
                let at = row * width + column;
                batch.ids[at] = (*id).into();
                batch.type_ids[at] = (*type_id).into();
                batch.mask[at] = true;
            }
        }
        batch
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::dataset::Label;

    fn of_length(length: usize) -> Example {
        Example { ids: vec![7; length], type_ids: vec![1; length], label: Label::Class(length % 3) }
    }

    fn examples() -> impl Strategy<Value = Vec<Example>> {
        prop::collection::vec(1_usize..40, 0..400)
            .prop_map(|lengths| lengths.into_iter().map(of_length).collect())
    }

    proptest! {
        #[test]
        fn each_example_comes_exactly_once(
            examples in examples(), batch_size in 1_usize..9, seed: u64, epoch: u64,
        ) {
            for batches in [epoch_order(&examples, batch_size, seed, epoch), dev_order(&examples, batch_size)] {
                let mut all = batches.concat();
                all.sort_unstable();
                prop_assert_eq!(all, (0..examples.len()).collect::<Vec<_>>());
                let short = batches.iter().filter(|batch| batch.len() < batch_size).count();
                prop_assert_eq!(short, usize::from(examples.len() % batch_size != 0));
            }
        }

        #[test]
        fn order_is_a_function_of_seed_and_epoch(seed in 0_u64..1000, epoch in 0_u64..1000) {
            let examples: Vec<_> = (0..100).map(|index| of_length(1 + index * 37 % 11)).collect();
            let order = epoch_order(&examples, 4, seed, epoch);
            prop_assert_eq!(&order, &epoch_order(&examples, 4, seed, epoch));
            prop_assert_ne!(&order, &epoch_order(&examples, 4, seed + 1, epoch));
            prop_assert_ne!(&order, &epoch_order(&examples, 4, seed, epoch + 1));
            if seed != epoch {
                prop_assert_ne!(&order, &epoch_order(&examples, 4, epoch, seed));
            }
        }

        #[test]
        fn padding_adds_nothing_but_pads(examples in examples(), pad_id in 0_u32..5) {
            for indices in dev_order(&examples, 5) {
                let batch = Batch::collate(&examples, &indices, pad_id);
                prop_assert_eq!(batch.rows, indices.len());
                prop_assert_eq!(batch.ids.len(), batch.rows * batch.width);
                prop_assert_eq!(Some(batch.width), indices.iter().map(|index| examples[*index].ids.len()).max());
                for (row, index) in indices.iter().enumerate() {
                    let length = examples[*index].ids.len();
                    let cells = row * batch.width..(row + 1) * batch.width;
                    for (column, cell) in cells.enumerate() {
                        let seen = (batch.ids[cell], batch.type_ids[cell], batch.mask[cell]);
                        let padding = (i64::from(pad_id), 0, false);
                        prop_assert_eq!(seen, if column < length { (7, 1, true) } else { padding });
                    }
                }
            }
        }
    }

    /// A resumed run, or one on another machine, must see the same order. Recorded from the first version.
    #[test]
    fn order_never_changes() {
        let examples: Vec<_> = (0..10).map(|index| of_length(1 + index * 7 % 5)).collect();
        assert_eq!(epoch_order(&examples, 4, 3, 0), [vec![0, 5, 3, 8], vec![2, 7], vec![6, 1, 9, 4]]);
    }

    #[test]
    fn sorting_by_length_saves_padding() {
        let examples: Vec<_> = (0..2000).map(|index| of_length(1 + index * 7919 % 97)).collect();
        let padded = |batches: Vec<Vec<usize>>| -> usize {
            batches.iter().map(|batch| Batch::collate(&examples, batch, 0).ids.len()).sum()
        };
        let tokens: usize = examples.iter().map(|example| example.ids.len()).sum();
        let unsorted = (0..2000).collect::<Vec<_>>().chunks(16).map(<[usize]>::to_vec).collect();
        assert!(padded(epoch_order(&examples, 16, 1, 0)) < tokens * 11 / 10);
        assert!(padded(unsorted) > tokens * 15 / 10);
    }

    #[test]
    fn scores_are_collated_row_by_row() {
        let mut examples = [of_length(2), of_length(3)];
        examples[0].label = Label::Scores(vec![0.5, -1.0]);
        examples[1].label = Label::Scores(vec![2.0, 3.0]);
        let batch = Batch::collate(&examples, &[1, 0], 0);
        assert_eq!(batch.labels, Labels::Scores { width: 2, values: vec![2.0, 3.0, 0.5, -1.0] });
    }
}
