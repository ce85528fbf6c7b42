//! One adapted layer, forward and backward: the frozen layer alone, our form of the product, and PEFT's. r = 12, f32, on
//! the CPU, at layers of MiniLM with 2,048 tokens and of DeBERTaV3-base with 1,024. Threads: `OMP_NUM_THREADS`.

use adalora_adapter::{Arena, Form, Layout, Linear, Site};
use criterion::{Criterion, criterion_group, criterion_main};
use tch::{Device, Kind, Tensor};

const RANK: usize = 12;
const ALPHA: f64 = 16.0;

/// A layer, its adapter's parameters and what goes through it.
struct Layer {
    plain: Linear,
    adapted: Linear,
    arena: Arena,
    input: Tensor,
    gradient: Tensor,
}

impl Layer {
    fn new(d_in: usize, d_out: usize, tokens: i64) -> Self {
        let random = |shape: [i64; 2]| Tensor::randn(shape, (Kind::Float, Device::Cpu));
        let weight = random([d_out as i64, d_in as i64]) * 0.05;
        let bias = random([1, d_out as i64]).view(-1);
        let layer = || Linear::new("layer", weight.shallow_clone(), Some(bias.shallow_clone()));
        let site = Site { path: "layer".into(), d_in, d_out, rank: RANK };
        let arena = Arena::new(Layout::new(Form::Svd, vec![site]), vec![], Device::Cpu, 1);
        let _ = tch::no_grad(|| arena.param().shallow_clone().normal_(0.0, 0.1));
        let mut adapted = layer();
        adapted.attach(arena.adapters(ALPHA / RANK as f64).next().expect("one adapter"));
        let input = random([tokens, d_in as i64]).set_requires_grad(true);
        Self { plain: layer(), adapted, arena, input, gradient: random([tokens, d_out as i64]) }
    }

    /// The output, written as in PEFT's `SVDLinear.forward`.
    fn peft(&self) -> Tensor {
        let leaves = &self.arena.leaves()[0];
        let lambda = leaves.lambda.as_ref().expect("an SVD adapter has lambda").unsqueeze(1);
        let ranknum = Tensor::from_slice(&[RANK as f32 + 1e-5]);
        let product = self.input.matmul(&(&leaves.q * lambda).tr()).matmul(&leaves.p);
        self.plain.forward(&self.input) + product * ALPHA / ranknum
    }

    fn backward(&self, output: &Tensor) {
        (output * &self.gradient).sum(Kind::Float).backward();
        let _ = self.input.grad().zero_();
        self.arena.zero_grad();
    }
}

fn adapters(criterion: &mut Criterion) {
    let shapes = [
        (384, 384, 2048),
        (384, 1536, 2048),
        (1536, 384, 2048),
        (768, 768, 1024),
        (768, 3072, 1024),
        (3072, 768, 1024),
    ];
    for (d_in, d_out, tokens) in shapes {
        let layer = Layer::new(d_in, d_out, tokens);
        let (ours, peft) = (layer.adapted.forward(&layer.input), layer.peft());
        assert!(((&ours - &peft).abs().max() / peft.abs().max()).double_value(&[]) < 1e-5);
        let mut group = criterion.benchmark_group(format!("layer {d_in} to {d_out}, {tokens} tokens, cpu"));
        group.sample_size(20);
        group.bench_function("frozen layer", |b| {
            b.iter(|| layer.backward(&layer.plain.forward(&layer.input)))
        });
        group.bench_function("with adapter", |b| {
            b.iter(|| layer.backward(&layer.adapted.forward(&layer.input)))
        });
        group.bench_function("with adapter, PEFT's form", |b| b.iter(|| layer.backward(&layer.peft())));
        group.finish();
    }
}

criterion_group!(benches, adapters);
criterion_main!(benches);
