//! What the tests of several operations share.

use rand::SeedableRng;
use rand::distr::Distribution;
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;
use tch::Tensor;

use crate::rows::{Factor, Rows};

/// Standard normal values, f32 on the CPU, `(len,)`.
pub(crate) fn normal(seed: u64, len: usize) -> Tensor {
    let rng = ChaCha8Rng::seed_from_u64(seed);
    Tensor::from_slice(&StandardNormal.sample_iter(rng).take(len).collect::<Vec<f32>>())
}

/// Two factors for each adapter, given as widths and rank, and lambda where it is asked for.
pub(crate) fn rows(adapters: &[(usize, usize, usize)], lambda: bool) -> Rows {
    let (mut factors, mut offset, mut first) = (Vec::new(), 0, 0);
    for &(d_in, d_out, rank) in adapters {
        for cols in [d_in, d_out] {
            factors.push(Factor { offset, rows: rank, cols, first });
            offset += rank * cols;
        }
        first += rank;
    }
    let lambda = if lambda { first } else { 0 };
    Rows::new(factors, offset..offset + lambda, adapters.iter().map(|adapter| adapter.2).collect())
}

/// Ragged shapes with rank 0 among them, with and without lambda; rows that are shorter and longer than a vector, a
/// piece and a chunk; none at all.
pub(crate) fn shapes() -> Vec<Rows> {
    let ragged = [(5, 3, 3), (4, 4, 0), (7, 16, 1), (33, 70, 12), (129, 1, 8), (1, 1, 2)];
    let long = [(17_000, 9, 1), (4097, 40, 1), (768, 3072, 7), (6, 6, 0)];
    let none = [(8, 8, 0)];
    [true, false]
        .into_iter()
        .flat_map(|lambda| [&ragged[..], &long, &none, &[]].map(|of| rows(of, lambda)))
        .collect()
}

/// What `work` gives on one thread, after a check that it gives the same on two.
pub(crate) fn on_any_threads<T: PartialEq + std::fmt::Debug + Send>(work: impl Fn() -> T + Sync) -> T {
    let [one, two] = [1, 2].map(|threads| {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a small pool").install(&work)
    });
    assert!(one == two, "one thread and two differ");
    one
}

/// The values of a flat f32 tensor.
pub(crate) fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.try_into().expect("a flat f32 tensor")
}

/// Asserts that no value differs by more than `tolerance` times the largest.
pub(crate) fn assert_near(got: &Tensor, expected: &Tensor, tolerance: f64, what: &str) {
    assert_eq!(got.size(), expected.size(), "{what}");
    if got.numel() > 0 {
        let scale = expected.abs().max().double_value(&[]);
        let worst = (got - expected).abs().max().double_value(&[]);
        assert!(worst <= tolerance * scale, "{what}: {worst:e} at a scale of {scale:e}");
    }
}
