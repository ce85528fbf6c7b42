//! Each operation on the flat buffers, the plain tensor reference beside the pass on the CPU, at the 72 adapters of
//! DeBERTaV3-base and r = 12: 1.99 million values in 144 factors and 864 triplets, f32. Threads: `RAYON_NUM_THREADS`
//! for the passes, `OMP_NUM_THREADS` for libtorch.
//!
//! What a pass over the buffers costs at least is measured beside it: the memory limit. For the update of importance
//! both are also timed in turn, and their ratio printed.

use std::hint::black_box;

use adalora_benches::{deberta_base, medians_in_turn};
use adalora_kernels::orthogonality::{self, Join};
use adalora_kernels::{adamw, clip, selection, smoothing, triplets};
use criterion::{Criterion, criterion_group, criterion_main};
use rayon::prelude::*;
use tch::{Device, Kind, Tensor};

const ENTRIES: usize = 1_991_520;

/// Values that one task of a pass works on, as in the kernels.
const CHUNK: usize = 16 * 1024;

fn flat() -> Tensor {
    Tensor::randn([ENTRIES as i64], (Kind::Float, Device::Cpu)) * 0.1
}

/// Largest difference relative to the largest value.
fn difference(a: &Tensor, b: &Tensor) -> f64 {
    ((a - b).abs().max() / b.abs().max()).double_value(&[])
}

/// The streams of the update of importance, and next to nothing done with them: four are read, two of them written.
fn in_place(a: &mut [f32], b: &mut [f32], c: &[f32], d: &[f32]) {
    let (a, b) = (a.par_chunks_mut(CHUNK), b.par_chunks_mut(CHUNK));
    (a, b, c.par_chunks(CHUNK), d.par_chunks(CHUNK)).into_par_iter().for_each(|(a, b, c, d)| {
        for (((a, b), c), d) in a.iter_mut().zip(b).zip(c).zip(d) {
            *a = 0.5 * *a + c;
            *b = 0.5 * *b + d;
        }
    });
}

/// STREAM's triad.
fn triad(a: &mut [f32], b: &[f32], c: &[f32]) {
    let (a, b, c) = (a.par_chunks_mut(CHUNK), b.par_chunks(CHUNK), c.par_chunks(CHUNK));
    (a, b, c).into_par_iter().for_each(|(a, b, c)| {
        for ((a, b), c) in a.iter_mut().zip(b).zip(c) {
            *a = b + 3.0 * c;
        }
    });
}

fn importance(criterion: &mut Criterion) {
    let layout = deberta_base(12);
    let rows = layout.rows();
    assert_eq!((rows.entries(), rows.triplets()), (ENTRIES, 864));
    let (param, grad) = (flat(), flat());
    let (mut s, mut u) = (param.zeros_like(), param.zeros_like());
    let (mut s0, mut u0) = (param.zeros_like(), param.zeros_like());
    let zeros = || Tensor::zeros([864], (Kind::Float, Device::Cpu));
    let (mut score, mut score0) = (zeros(), zeros());
    let beta = 0.85;

    let mut group = criterion.benchmark_group("importance, 1.99M f32, cpu");
    smoothing::smooth(&mut s, &mut u, &param, &grad, beta, beta);
    smoothing::reference(&mut s0, &mut u0, &param, &grad, beta, beta);
    assert_eq!((&s, &u), (&s0, &u0));
    group.bench_function("update", |b| {
        b.iter(|| smoothing::smooth(&mut s, &mut u, &param, &grad, beta, beta));
    });
    group.bench_function("update, reference", |b| {
        b.iter(|| smoothing::reference(&mut s0, &mut u0, &param, &grad, beta, beta));
    });

    let fresh = || (param.zeros_like(), param.zeros_like());
    let ((mut s, mut u), (mut s0, mut u0)) = (fresh(), fresh());
    smoothing::smooth_and_score(&mut s, &mut u, &mut score, &param, &grad, beta, beta, rows);
    smoothing::score_reference(&mut s0, &mut u0, &mut score0, &param, &grad, beta, beta, rows);
    assert_eq!((&s, &u), (&s0, &u0));
    assert!(difference(&score, &score0) < 1e-6);
    group.bench_function("update and score", |b| {
        b.iter(|| smoothing::smooth_and_score(&mut s, &mut u, &mut score, &param, &grad, beta, beta, rows));
    });
    group.bench_function("update and score, reference", |b| {
        b.iter(|| {
            smoothing::score_reference(&mut s0, &mut u0, &mut score0, &param, &grad, beta, beta, rows);
        });
    });

    let [mut a, mut b, mut e] = [0.0; 3].map(|value| vec![value; ENTRIES]);
    let (c, d) = (vec![0.1f32; ENTRIES], vec![0.2f32; ENTRIES]);
    group.bench_function("memory limit: in place over the same streams", |bench| {
        bench.iter(|| in_place(&mut a, &mut b, &c, &d));
    });
    group.bench_function("memory limit: triad", |bench| bench.iter(|| triad(&mut e, &c, &d)));
    group.finish();

    // In turn, so that what else the machine does falls on all alike.
    let [limit, triad, plain, scored] = medians_in_turn([
        &mut || in_place(&mut a, &mut b, &c, &d),
        &mut || triad(&mut e, &c, &d),
        &mut || smoothing::smooth(&mut s0, &mut u0, &param, &grad, beta, beta),
        &mut || smoothing::smooth_and_score(&mut s, &mut u, &mut score, &param, &grad, beta, beta, rows),
    ]);
    // The triad moves 16 bytes a value, with the line that is read before it is written; the update 24.
    let triad = triad * 24.0 / 16.0;
    println!(
        "in turn, {} threads: memory limit {limit:.3} ms in place, {triad:.3} ms from the triad; \
         update {plain:.3} ms, {:.2} and {:.2} times; update and score {scored:.3} ms, {:.2} and {:.2} times\n",
        rayon::current_num_threads(),
        plain / limit,
        plain / triad,
        scored / limit,
        scored / triad,
    );
}

fn choice(criterion: &mut Criterion) {
    let layout = deberta_base(12);
    let rows = layout.rows();
    let entries = flat();
    let mut group = criterion.benchmark_group("choice, 864 triplets, cpu");
    let (mean, mean0) = (triplets::mean(&entries, rows), triplets::reference(&entries, rows));
    assert!(difference(&mean, &mean0) < 1e-6);
    group.bench_function("row means", |b| b.iter(|| triplets::mean(&entries, rows)));
    group.bench_function("row means, reference", |b| b.iter(|| triplets::reference(&entries, rows)));

    let masked = || Tensor::zeros([864], (Kind::Bool, Device::Cpu));
    let (mut chosen, mut chosen0) = (masked(), masked());
    for (name, min_r) in [("keep 288", 0), ("keep 288, 2 of each", 2)] {
        selection::keep_top(&mean, rows, 288, min_r, &mut chosen);
        selection::reference(&mean, rows, 288, min_r, &mut chosen0);
        assert_eq!(chosen, chosen0);
        assert_eq!(chosen.sum(Kind::Int64).int64_value(&[]), 864 - 288);
        group.bench_function(name, |b| {
            b.iter(|| selection::keep_top(&mean, rows, 288, min_r, &mut chosen));
        });
        group.bench_function(format!("{name}, reference"), |b| {
            b.iter(|| selection::reference(&mean, rows, 288, min_r, &mut chosen0));
        });
    }
    let mut lambda = layout.lambda(&entries);
    selection::mask(&mut lambda, &chosen);
    assert_eq!(lambda.ne(0.0).sum(Kind::Int64).int64_value(&[]), 288);
    group.bench_function("mask", |b| b.iter(|| selection::mask(&mut lambda, &chosen)));
    group.finish();
}

fn regularizer(criterion: &mut Criterion) {
    let layout = deberta_base(12);
    let rows = layout.rows();
    let (param, mut grad) = (flat(), flat());
    let mut group = criterion.benchmark_group("orthogonality with gradient, 144 factors, cpu");
    for (name, join) in [("mean of norms", Join::MeanOfNorms), ("sum of squares", Join::SumOfSquares)] {
        let (into, into0) = (grad.copy(), grad.copy());
        let value = orthogonality::add_gradient(&param, &into, rows, join, 0.1);
        let value0 = orthogonality::reference(&param, &into0, rows, join, 0.1);
        assert!(difference(&value, &value0) < 1e-6 && difference(&into, &into0) < 1e-6);
        assert!(difference(&into, &grad) > 1e-6);
        group.bench_function(name, |b| {
            b.iter(|| orthogonality::add_gradient(&param, &into, rows, join, 1e-9));
        });
        group.bench_function(format!("{name}, reference"), |b| {
            b.iter(|| orthogonality::reference(&param, &into0, rows, join, 1e-9));
        });
    }
    group.finish();

    let mut group = criterion.benchmark_group("norm and clip, 1.99M f32, cpu");
    let exact = grad.to_kind(Kind::Double).square().sum(Kind::Double).sqrt();
    assert!(difference(&clip::norm(&grad).to_kind(Kind::Double), &exact) < 1e-7);
    assert!(difference(&clip::reference(&grad).to_kind(Kind::Double), &exact) < 1e-4);
    group.bench_function("norm", |b| b.iter(|| clip::norm(&grad)));
    group.bench_function("norm, reference", |b| b.iter(|| clip::reference(&grad)));
    let norm = clip::norm(&grad);
    let factor = clip::clip(&mut grad, &norm, 1.0).double_value(&[]);
    assert!((clip::norm(&grad).double_value(&[]) - 1.0).abs() < 1e-5 && factor < 1.0);
    group.bench_function("clip", |b| b.iter(|| black_box(clip::clip(&mut grad, &norm, 1e9))));
    group.finish();
}

fn optimizer(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("adamw, 1.99M f32, cpu");
    let update = adamw::Update { lr: 1e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, count: 3 };
    let decay = [(0..ENTRIES, 0.01)];
    let grad = flat();
    let (mut w, mut m, mut v) = (flat(), flat(), flat().square());
    let (mut w0, mut m0, mut v0) = (w.copy(), m.copy(), v.copy());
    adamw::step(&mut w, &grad, &mut m, &mut v, &decay, update);
    adamw::reference(&mut w0, &grad, &mut m0, &mut v0, &decay, update);
    assert!(difference(&w, &w0) < 1e-6);
    group.bench_function("step", |b| {
        b.iter(|| adamw::step(&mut w, &grad, &mut m, &mut v, &decay, update));
    });
    group.bench_function("step, reference", |b| {
        b.iter(|| adamw::reference(&mut w0, &grad, &mut m0, &mut v0, &decay, update));
    });
    group.finish();
}

criterion_group!(benches, importance, choice, regularizer, optimizer);
criterion_main!(benches);
