//! The kernels on every GPU of this machine: `just test-cuda`. Ignored by default; a failure where there is no GPU.

use std::sync::Once;

use tch::{Cuda, Device, Kind, Tensor};

use super::compare::{self, Flat, Random, layout};
use super::gpu::Gpu;
use super::{kernels_for, open, prepare};
use crate::orthogonality::Join;

/// Every GPU with its device; at least one.
fn gpus() -> Vec<(Device, &'static Gpu)> {
    static OPENED: Once = Once::new();
    OPENED.call_once(open);
    let count = if Cuda::is_available() { Cuda::device_count() as usize } else { 0 };
    assert!(count > 0, "no GPU: these tests need one, and a libtorch with CUDA that sees it");
    (0..count)
        .map(|index| {
            let device = Device::Cuda(index);
            prepare(device).unwrap_or_else(|error| panic!("{error}"));
            let tensor = Tensor::zeros([1], (Kind::Float, device));
            (device, kernels_for(&[&tensor], &[]).expect("they are prepared"))
        })
        .collect()
}

/// Holds on every GPU, twice with the same bits.
fn on_each(compare: impl Fn(&Gpu, Device) -> Vec<Tensor>) {
    for (device, gpu) in gpus() {
        let [once, again] = [(); 2].map(|()| compare(gpu, device));
        // Whatever is not equal to itself is compared by the bits.
        let bits = |all: &[Tensor]| all.iter().map(compare::bits).collect::<Vec<_>>();
        assert!(bits(&once) == bits(&again), "{device:?} computes something else the second time");
    }
}

#[test]
#[ignore = "needs a GPU: just test-cuda"]
fn smooth() {
    on_each(compare::smooth);
}

#[test]
#[ignore = "needs a GPU: just test-cuda"]
fn smooth_and_score() {
    on_each(compare::smooth_and_score);
}

#[test]
#[ignore = "needs a GPU: just test-cuda"]
fn triplet_mean() {
    on_each(compare::triplet_mean);
}

#[test]
#[ignore = "needs a GPU: just test-cuda"]
fn keep_top() {
    on_each(|on, device| compare::keep_top(on, device, 200_000));
}

#[test]
#[ignore = "needs a GPU: just test-cuda"]
fn orthogonality() {
    on_each(|on, device| compare::orthogonality(on, device, 300));
}

#[test]
#[ignore = "needs a GPU: just test-cuda"]
fn norm_and_clip() {
    on_each(compare::norm_and_clip);
}

#[test]
#[ignore = "needs a GPU: just test-cuda"]
fn adamw() {
    on_each(compare::adamw);
}

/// What callers call takes the kernels, whose sums have other bits than the plain references'; and takes its turn
/// with libtorch's own operations on the same stream.
#[test]
#[ignore = "needs a GPU: just test-cuda"]
fn public_functions_take_the_kernels() {
    for (device, gpu) in gpus() {
        let rows = layout(&[(300, 500, 7), (1000, 20, 12)], true);
        let mut random = Random::new(9);
        let flat: Vec<_> =
            [(); 4].map(|()| Flat::new(&random.normal(rows.entries()), device, 0)).into_iter().collect();
        let [s, u, w, g] = [0, 1, 2, 3].map(|i| &flat[i].own);
        let score = || Tensor::zeros([rows.triplets() as i64], (Kind::Float, device));

        let (mut a, mut b) = (score(), score());
        let (mut s1, mut u1) = (s + 0.5, u + 0.5);
        crate::smoothing::smooth_and_score(&mut s1, &mut u1, &mut a, w, g, 0.85, 0.85, &rows);
        let (mut s2, mut u2) = (s + 0.5, u + 0.5);
        super::smoothing::smooth_and_score(gpu, &mut s2, &mut u2, &mut b, w, g, 0.85, 0.85, &rows);
        assert_eq!((a, s1), (b, s2));

        assert_eq!(crate::triplets::mean(w, &rows), super::triplets::mean(gpu, w, &rows));
        assert_eq!(crate::clip::norm(g), super::clip::norm(gpu, g));

        let (into1, into2) = (g * 1.0, g * 1.0);
        let value1 = crate::orthogonality::add_gradient(w, &into1, &rows, Join::MeanOfNorms, 0.1);
        let value2 = super::orthogonality::add_gradient(gpu, w, &into2, &rows, Join::MeanOfNorms, 0.1);
        assert_eq!((value1, into1), (value2, into2));
    }
}
