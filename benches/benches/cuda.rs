//! Each operation on the flat buffers of a GPU, the plain tensor reference beside the kernels, at the 72 adapters of
//! DeBERTaV3-base and r = 12: 1.99 million values, f32. The device is waited for before the clock stops. Without a GPU
//! nothing is measured.

use adalora_benches::deberta_base;
use adalora_kernels::orthogonality::Join;
use adalora_kernels::{adamw, clip, cuda, orthogonality, selection, smoothing, triplets};
use criterion::{Criterion, criterion_group};
use tch::{Cuda, Device, Kind, Tensor};

const DEVICE: Device = Device::Cuda(0);

fn flat(len: i64) -> Tensor {
    Tensor::randn([len], (Kind::Float, DEVICE)) * 0.1
}

/// Largest difference relative to the largest value.
fn difference(a: &Tensor, b: &Tensor) -> f64 {
    ((a - b).abs().max() / b.abs().max()).double_value(&[])
}

fn pair(criterion: &mut Criterion, name: &str, mut kernels: impl FnMut(), mut reference: impl FnMut()) {
    let mut group = criterion.benchmark_group(format!("{name}, 1.99M f32, cuda"));
    let mut measure = |which: &str, operation: &mut dyn FnMut()| {
        group.bench_function(which, |b| {
            b.iter(|| {
                operation();
                Cuda::synchronize(0);
            })
        });
    };
    measure("kernels", &mut kernels);
    measure("reference", &mut reference);
    group.finish();
}

fn operations(criterion: &mut Criterion) {
    let layout = deberta_base(12);
    let rows = layout.rows();
    let len = layout.entries() as i64;
    let (param, grad) = (flat(len), flat(len));

    let [(mut s, mut u), (mut s0, mut u0)] = [(); 2].map(|()| (param.zeros_like(), param.zeros_like()));
    let [mut score, mut score0] =
        [(); 2].map(|()| Tensor::zeros([rows.triplets() as i64], (Kind::Float, DEVICE)));
    smoothing::smooth_and_score(&mut s, &mut u, &mut score, &param, &grad, 0.85, 0.85, rows);
    smoothing::score_reference(&mut s0, &mut u0, &mut score0, &param, &grad, 0.85, 0.85, rows);
    assert_eq!((&s, &u), (&s0, &u0));
    assert!(difference(&score, &score0) < 1e-6);
    let importance = score.copy();
    pair(
        criterion,
        "smoothing with score",
        || smoothing::smooth_and_score(&mut s, &mut u, &mut score, &param, &grad, 0.85, 0.85, rows),
        || smoothing::score_reference(&mut s0, &mut u0, &mut score0, &param, &grad, 0.85, 0.85, rows),
    );

    assert!(difference(&triplets::mean(&param, rows), &triplets::reference(&param, rows)) < 1e-5);
    pair(
        criterion,
        "triplet importance",
        || drop(triplets::mean(&param, rows)),
        || drop(triplets::reference(&param, rows)),
    );

    let [mut masked, mut masked0] =
        [(); 2].map(|()| Tensor::zeros([rows.triplets() as i64], (Kind::Bool, DEVICE)));
    let budget = rows.triplets() / 2;
    selection::keep_top(&importance, rows, budget, 1, &mut masked);
    selection::reference(&importance, rows, budget, 1, &mut masked0);
    assert_eq!(masked, masked0);
    pair(
        criterion,
        "selection, min_r 1",
        || selection::keep_top(&importance, rows, budget, 1, &mut masked),
        || selection::reference(&importance, rows, budget, 1, &mut masked0),
    );

    for (name, join) in [("mean of norms", Join::MeanOfNorms), ("sum of squares", Join::SumOfSquares)] {
        let (into, into0) = (grad.zeros_like(), grad.zeros_like());
        let value = orthogonality::add_gradient(&param, &into, rows, join, 0.1);
        let value0 = orthogonality::reference(&param, &into0, rows, join, 0.1);
        assert!(difference(&value, &value0) < 1e-5 && difference(&into, &into0) < 1e-5);
        pair(
            criterion,
            &format!("orthogonality with gradient, {name}"),
            || drop(orthogonality::add_gradient(&param, &into, rows, join, 1e-9)),
            || drop(orthogonality::reference(&param, &into0, rows, join, 1e-9)),
        );
    }

    // With a bound below 0 every iteration scales, by -1 from the second on, so that nothing fades away.
    let (mut own, mut own0) = (grad.copy(), grad.copy());
    assert!(difference(&clip::norm(&own), &clip::reference(&own)) < 1e-5);
    pair(
        criterion,
        "norm and clip",
        || {
            let norm = clip::norm(&own);
            drop(clip::clip(&mut own, &norm, -1.0));
        },
        || {
            let norm = clip::reference(&own0);
            drop(clip::clip_reference(&mut own0, &norm, -1.0));
        },
    );

    let update = adamw::Update { lr: 1e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, count: 3 };
    let decay = [(0..len as usize, 0.01)];
    let (mut w, mut m, mut v) = (param.copy(), flat(len), flat(len).square());
    let (mut w0, mut m0, mut v0) = (w.copy(), m.copy(), v.copy());
    adamw::step(&mut w, &grad, &mut m, &mut v, &decay, update);
    adamw::reference(&mut w0, &grad, &mut m0, &mut v0, &decay, update);
    assert!(difference(&w, &w0) < 1e-6);
    pair(
        criterion,
        "adamw",
        || adamw::step(&mut w, &grad, &mut m, &mut v, &decay, update),
        || adamw::reference(&mut w0, &grad, &mut m0, &mut v0, &decay, update),
    );
}

criterion_group!(benches, operations);

fn main() {
    cuda::open();
    if !Cuda::is_available() {
        println!("no GPU: the CUDA kernels are not measured");
        return;
    }
    cuda::prepare(DEVICE).unwrap_or_else(|error| panic!("{error}"));
    benches();
    Criterion::default().configure_from_args().final_summary();
}
