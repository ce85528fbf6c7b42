//! Each operation on the flat buffers, the plain tensor reference beside the single pass, at the 72 adapters of
//! DeBERTaV3-base and r = 12: 1.99 million values, f32, on the CPU. Threads: `RAYON_NUM_THREADS` for the single pass,
//! `OMP_NUM_THREADS` for libtorch.

use adalora_benches::deberta_base;
use adalora_kernels::orthogonality::{Join, add_gradient};
use adalora_kernels::{adamw, smoothing};
use criterion::{Criterion, criterion_group, criterion_main};
use tch::{Device, Kind, Tensor};

fn flat(len: i64) -> Tensor {
    Tensor::randn([len], (Kind::Float, Device::Cpu)) * 0.1
}

/// Largest difference relative to the largest value.
fn difference(a: &Tensor, b: &Tensor) -> f64 {
    ((a - b).abs().max() / b.abs().max()).double_value(&[])
}

fn kernels(criterion: &mut Criterion) {
    let layout = deberta_base(12);
    let len = layout.entries() as i64;
    assert_eq!(len, 1_991_520);
    let (param, grad) = (flat(len), flat(len));

    let mut group = criterion.benchmark_group("smoothing, 1.99M f32, cpu");
    let (mut s, mut u) = (param.zeros_like(), param.zeros_like());
    let (mut s0, mut u0) = (param.zeros_like(), param.zeros_like());
    smoothing::smooth(&mut s, &mut u, &param, &grad, 0.85, 0.85);
    smoothing::reference(&mut s0, &mut u0, &param, &grad, 0.85, 0.85);
    assert_eq!((&s, &u), (&s0, &u0));
    group.bench_function("one pass", |b| {
        b.iter(|| smoothing::smooth(&mut s, &mut u, &param, &grad, 0.85, 0.85))
    });
    group.bench_function("reference", |b| {
        b.iter(|| smoothing::reference(&mut s0, &mut u0, &param, &grad, 0.85, 0.85));
    });
    group.finish();

    let mut group = criterion.benchmark_group("adamw, 1.99M f32, cpu");
    let update = adamw::Update { lr: 1e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, count: 3 };
    let decay = [(0..len as usize, 0.01)];
    let (mut w, mut m, mut v) = (param.copy(), flat(len), flat(len).square());
    let (mut w0, mut m0, mut v0) = (w.copy(), m.copy(), v.copy());
    adamw::step(&mut w, &grad, &mut m, &mut v, &decay, update);
    adamw::reference(&mut w0, &grad, &mut m0, &mut v0, &decay, update);
    assert!(difference(&w, &w0) < 1e-6);
    group.bench_function("one pass", |b| {
        b.iter(|| adamw::step(&mut w, &grad, &mut m, &mut v, &decay, update));
    });
    group.bench_function("reference", |b| {
        b.iter(|| adamw::reference(&mut w0, &grad, &mut m0, &mut v0, &decay, update));
    });
    group.finish();

    let value =
        add_gradient(&param, &grad.zeros_like(), layout.rows(), Join::MeanOfNorms, 0.1).double_value(&[]);
    assert!(value.is_finite() && value > 0.0);
    let into = grad.copy();
    let mut group = criterion.benchmark_group("orthogonality with gradient, 144 factors, cpu");
    for (name, join) in [("mean of norms", Join::MeanOfNorms), ("sum of squares", Join::SumOfSquares)] {
        group.bench_function(name, |b| b.iter(|| add_gradient(&param, &into, layout.rows(), join, 1e-9)));
    }
    group.finish();

    let mut group = criterion.benchmark_group("triplet importance, 864 triplets, cpu");
    group.bench_function("row means", |b| b.iter(|| layout.triplet_mean(&param)));
    group.finish();
}

criterion_group!(benches, kernels);
criterion_main!(benches);
