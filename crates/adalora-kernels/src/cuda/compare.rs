//! The kernels against the plain references: any shape, any alignment, NaN around every buffer, a result that is the
//! same whenever it is computed.
//!
//! Each function takes where kernels run and where their tensors lie, and returns what they wrote, to be compared bit
//! for bit with what another call returns. The references run on the CPU.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;
use tch::{Device, Kind, Tensor};

use super::{Launch, adamw, clip, orthogonality, selection, smoothing, triplets};
use crate::adamw::Update;
use crate::orthogonality::Join;
use crate::rows::{Factor, Rows};

/// NaN before and behind each buffer: a multiple of what makes 16 bytes.
const MARGIN: usize = 64;

pub(super) struct Random(ChaCha8Rng);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }

    pub(super) fn normal(&mut self, len: usize) -> Tensor {
        let values: Vec<f32> = (0..len).map(|_| self.0.sample(StandardNormal)).collect();
        Tensor::from_slice(&values)
    }
}

/// A flat buffer on a device with NaN around it, `shift` values behind a 16-byte boundary.
pub(super) struct Flat {
    whole: Tensor,
    pub(super) own: Tensor,
    start: usize,
}

impl Flat {
    pub(super) fn new(values: &Tensor, device: Device, shift: usize) -> Self {
        let len = values.numel();
        let whole = Tensor::full([(len + 2 * MARGIN) as i64], f64::NAN, (Kind::Float, device));
        let own = whole.narrow(0, (MARGIN + shift) as i64, len as i64);
        own.shallow_clone().copy_(values);
        Self { whole, own, start: MARGIN + shift }
    }

    /// The values, on the CPU, after a look at what lies around them.
    pub(super) fn values(&self) -> Tensor {
        let whole = Vec::<f32>::try_from(&self.whole.to(Device::Cpu)).unwrap();
        let end = self.start + self.own.numel();
        let around = whole[..self.start].iter().chain(&whole[end..]);
        assert!(around.copied().all(f32::is_nan), "a kernel wrote outside of its buffer");
        Tensor::from_slice(&whole[self.start..end])
    }
}

/// Shifts of four buffers: all at a boundary, all behind one alike, each another way.
const SHIFTS: [[usize; 4]; 3] = [[0; 4], [3; 4], [0, 1, 2, 3]];

/// Adapters of `(d_in, d_out, r)`, laid out as the arena does.
pub(super) fn layout(adapters: &[(usize, usize, usize)], lambda: bool) -> Rows {
    let (mut factors, mut offset, mut first) = (Vec::new(), 0, 0);
    for &(d_in, d_out, rows) in adapters {
        for cols in [d_in, d_out] {
            factors.push(Factor { offset, rows, cols, first });
            offset += rows * cols;
        }
        first += rows;
    }
    let groups = adapters.iter().map(|&(_, _, r)| r).collect();
    Rows::new(factors, offset..offset + if lambda { first } else { 0 }, groups)
}

/// Ranks that differ, rank 0, rows of any length.
pub(super) fn layouts() -> Vec<Rows> {
    let ragged = [(5, 3, 2), (7, 9, 0), (770, 33, 3), (1, 1, 1), (64, 1300, 17), (8, 12, 0), (36, 20, 33)];
    let even = [(64, 96, 12), (96, 64, 12)];
    vec![
        layout(&ragged, true),
        layout(&ragged, false),
        layout(&even, true),
        layout(&[(4, 5, 0)], true),
        layout(&[], true),
    ]
}

#[track_caller]
pub(super) fn assert_near(got: &Tensor, expected: &Tensor, tolerance: f64) {
    assert_eq!(got.size(), expected.size());
    if got.numel() > 0 {
        let largest = expected.abs().max().double_value(&[]).max(f64::MIN_POSITIVE);
        let difference = (got - expected).abs().max().double_value(&[]) / largest;
        // A NaN is no small difference.
        assert!(difference <= tolerance, "differs by {difference} of the largest");
    }
}

/// What two results are compared by, whether a NaN or not.
pub(super) fn bits(tensor: &Tensor) -> Vec<u32> {
    Vec::<f32>::try_from(tensor.to_kind(Kind::Float).flatten(0, -1))
        .unwrap()
        .into_iter()
        .map(f32::to_bits)
        .collect()
}

pub(super) fn smooth(on: &impl Launch, device: Device) -> Vec<Tensor> {
    let mut random = Random::new(1);
    let mut written = Vec::new();
    for len in [0, 1, 3, 6, 1000, 9001] {
        for shifts in SHIFTS {
            let start = [(); 4].map(|()| random.normal(len));
            let flat: Vec<_> =
                std::iter::zip(&start, shifts).map(|(x, shift)| Flat::new(x, device, shift)).collect();
            let [mut s, mut u] = [0, 1].map(|i| flat[i].own.shallow_clone());
            smoothing::smooth(on, &mut s, &mut u, &flat[2].own, &flat[3].own, 0.85, 0.6);
            let [mut s0, mut u0, param, grad] = start;
            crate::smoothing::reference(&mut s0, &mut u0, &param, &grad, 0.85, 0.6);
            let [s, u] = [0, 1].map(|i| flat[i].values());
            assert_eq!((&s, &u), (&s0, &u0), "{len} values, {shifts:?}");
            written.extend([s, u]);
        }
    }
    written
}

pub(super) fn smooth_and_score(on: &impl Launch, device: Device) -> Vec<Tensor> {
    let mut random = Random::new(2);
    let mut written = Vec::new();
    for rows in layouts() {
        for shifts in SHIFTS {
            let start = [(); 4].map(|()| random.normal(rows.entries()));
            let flat: Vec<_> =
                std::iter::zip(&start, shifts).map(|(x, shift)| Flat::new(x, device, shift)).collect();
            let [mut s, mut u] = [0, 1].map(|i| flat[i].own.shallow_clone());
            let score = Flat::new(&random.normal(rows.triplets()), device, 1);
            let mut into = score.own.shallow_clone();
            smoothing::smooth_and_score(
                on,
                &mut s,
                &mut u,
                &mut into,
                &flat[2].own,
                &flat[3].own,
                0.85,
                0.6,
                &rows,
            );
            let [mut s0, mut u0, param, grad] = start;
            let mut score0 = Tensor::zeros([rows.triplets() as i64], (Kind::Float, Device::Cpu));
            crate::smoothing::score_reference(&mut s0, &mut u0, &mut score0, &param, &grad, 0.85, 0.6, &rows);
            let [s, u] = [0, 1].map(|i| flat[i].values());
            assert_eq!((&s, &u), (&s0, &u0), "{shifts:?}");
            assert_near(&score.values(), &score0, 1e-6);
            written.extend([s, u, score.values()]);
        }
    }
    written
}

pub(super) fn triplet_mean(on: &impl Launch, device: Device) -> Vec<Tensor> {
    let mut random = Random::new(3);
    let mut written = Vec::new();
    for rows in layouts() {
        for shift in 0..4 {
            let entries = random.normal(rows.entries());
            let mean = triplets::mean(on, &Flat::new(&entries, device, shift).own, &rows).to(Device::Cpu);
            assert_near(&mean, &crate::triplets::reference(&entries, &rows), 1e-6);
            written.push(mean);
        }
    }
    written
}

/// `largest` triplets at most.
pub(super) fn keep_top(on: &impl Launch, device: Device, largest: usize) -> Vec<Tensor> {
    let mut random = Random::new(4);
    let mut written = Vec::new();
    let groups = |count: usize, r: usize| vec![(1, 1, r); count];
    let shapes =
        [vec![(1, 1, 3), (1, 1, 0), (1, 1, 1), (1, 1, 5)], groups(6, 12), groups(largest.div_ceil(50), 50)];
    for (shape, kind) in shapes.iter().flat_map(|shape| (0..4).map(move |kind| (shape, kind))) {
        let rows = layout(shape, true);
        let len = rows.triplets();
        let mut scores = Vec::<f32>::try_from(random.normal(len)).unwrap();
        for (at, score) in scores.iter_mut().enumerate() {
            match kind {
                // Many ties; zeros of both signs.
                1 => *score = (*score * 1.5).round() * 0.5,
                2 => *score = 0.25,
                // What is no number, and no finite one.
                3 if at % 3 == 0 => {
                    *score = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -f32::NAN, -0.0][at % 5]
                }
                _ => {}
            }
        }
        let importance = Flat::new(&Tensor::from_slice(&scores), device, 1);
        for min_r in [0, 1, 3] {
            let floors: usize = rows.groups().iter().map(|&own| own.min(min_r)).sum();
            let budgets = match min_r {
                0 => vec![0, 1, len / 2, len - 1, len, len + 1],
                _ => vec![floors, floors + 1, len - 1],
            };
            for budget in budgets.into_iter().filter(|&budget| budget >= floors) {
                // One flag more on both sides, of which nobody knows.
                let around = Tensor::ones([len as i64 + 2], (Kind::Bool, device));
                let mut masked = around.narrow(0, 1, len as i64);
                selection::keep_top(on, &importance.own, &rows, budget, min_r, &mut masked);
                let masked = masked.to(Device::Cpu);
                let mut expected = Tensor::zeros([len as i64], (Kind::Bool, Device::Cpu));
                let scores = Tensor::from_slice(&scores);
                crate::selection::reference(&scores, &rows, budget, min_r, &mut expected);
                assert_eq!(masked, expected, "budget {budget} of {len}, floor {min_r}, kind {kind}");
                let live = len - masked.sum(Kind::Int64).int64_value(&[]) as usize;
                assert_eq!(live, budget.min(len));
                let all = Vec::<bool>::try_from(around.to(Device::Cpu)).unwrap();
                assert!(all[0] && all[len + 1], "a kernel wrote outside of its buffer");
                written.push(masked);
            }
        }
    }
    written
}

/// Ranks up to `largest`.
pub(super) fn orthogonality(on: &impl Launch, device: Device, largest: usize) -> Vec<Tensor> {
    let mut random = Random::new(5);
    let mut written = Vec::new();
    let high = layout(&[(largest + 3, 40, largest), (33, 257, 16)], true);
    for rows in layouts().into_iter().chain([high]) {
        for join in [Join::SumOfSquares, Join::MeanOfNorms] {
            let (param, start) = (random.normal(rows.entries()) * 0.3, random.normal(rows.entries()));
            let (flat, grad) = (Flat::new(&param, device, 1), Flat::new(&start, device, 2));
            // A weight with which what is added outweighs what was there.
            let value =
                orthogonality::add_gradient(on, &flat.own, &grad.own, &rows, join, 30.0).to(Device::Cpu);
            let grad0 = start.copy();
            let value0 = crate::orthogonality::reference(&param, &grad0, &rows, join, 30.0);
            let grad = grad.values();
            if rows.factors().is_empty() {
                assert_eq!(value.double_value(&[]), 0.0);
            } else {
                assert_near(&value, &value0, 1e-6);
            }
            assert_near(&grad, &grad0, 1e-6);
            written.extend([value, grad]);
        }
    }
    // Orthonormal rows: norm 0, gradient 0.
    let rows = layout(&[(6, 5, 4)], true);
    let [q, p] = [6, 5].map(|cols| Tensor::eye_m(4, cols, (Kind::Float, Device::Cpu)).flatten(0, 1));
    let param = Tensor::cat(&[q, p, random.normal(4)], 0);
    for join in [Join::SumOfSquares, Join::MeanOfNorms] {
        let start = random.normal(rows.entries());
        let (param, grad) = (Flat::new(&param, device, 0), Flat::new(&start, device, 0));
        let value = orthogonality::add_gradient(on, &param.own, &grad.own, &rows, join, 0.3);
        assert_eq!((value.double_value(&[]), grad.values()), (0.0, start));
    }
    written
}

pub(super) fn norm_and_clip(on: &impl Launch, device: Device) -> Vec<Tensor> {
    let mut random = Random::new(6);
    let mut written = Vec::new();
    for len in [0, 1, 5, 1000, 70_001] {
        for (shift, max_norm) in [(0, 0.5), (1, 1e9), (2, 1.0)] {
            let start = random.normal(len);
            let flat = Flat::new(&start, device, shift);
            let norm = clip::norm(on, &flat.own);
            let factor = clip::clip(on, &mut flat.own.shallow_clone(), &norm, max_norm).to(Device::Cpu);
            let norm0 = crate::clip::reference(&start);
            let factor0 = crate::clip::clip_reference(&mut start.copy(), &norm0, max_norm);
            assert_near(&norm.to(Device::Cpu), &norm0, 1e-6);
            assert_near(&factor, &factor0, 1e-6);
            assert_eq!(flat.values(), &start * &factor);
            written.extend([norm.to(Device::Cpu), factor, flat.values()]);
        }
    }
    let flat = Flat::new(&Tensor::from_slice(&[1.0, f32::NAN, 2.0]), device, 0);
    let norm = clip::norm(on, &flat.own);
    let factor = clip::clip(on, &mut flat.own.shallow_clone(), &norm, 1.0);
    assert!(factor.double_value(&[]).is_nan(), "a diverged run stays one");
    assert!(flat.values().isnan().all().int64_value(&[]) == 1);
    written
}

pub(super) fn adamw(on: &impl Launch, device: Device) -> Vec<Tensor> {
    let mut random = Random::new(7);
    let mut written = Vec::new();
    // Ranges that end inside of four values; neighbours of one rate; more than one launch takes.
    let few =
        vec![(0..1001, 0.1), (1001..1001, 0.3), (1001..1502, 0.1), (1502..9003, 0.0), (9003..9005, 0.2)];
    let many: Vec<_> = (0..200).map(|i| (i * 7..(i + 1) * 7, 0.1 * (i % 3) as f64)).collect();
    for decay in [vec![(0..3, 0.5)], few, many, vec![]] {
        let len = decay.last().map_or(0, |(range, _)| range.end);
        for shifts in SHIFTS {
            let start = [random.normal(len), random.normal(len) * 0.1, random.normal(len).square()];
            let flat: Vec<_> =
                std::iter::zip(&start, shifts).map(|(x, shift)| Flat::new(x, device, shift)).collect();
            let [mut w0, mut m0, mut v0] = start;
            for count in 1..=3 {
                let grad = random.normal(len);
                let update = Update { lr: 1e-2, beta1: 0.9, beta2: 0.999, eps: 1e-8, count };
                let [mut w, mut m, mut v] = [0, 1, 2].map(|i| flat[i].own.shallow_clone());
                let on_device = Flat::new(&grad, device, shifts[3]);
                adamw::step(on, &mut w, &on_device.own, &mut m, &mut v, &decay, update);
                crate::adamw::reference(&mut w0, &grad, &mut m0, &mut v0, &decay, update);
            }
            for (got, expected) in std::iter::zip(&flat, [w0, m0, v0]) {
                assert_near(&got.values(), &expected, 1e-6);
                written.push(got.values());
            }
        }
    }
    written
}
