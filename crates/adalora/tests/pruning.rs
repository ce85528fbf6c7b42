//! A pruned doublet of LoRA is dead, a masked triplet may come back: the paper's reason for masking lambda alone.

use adalora::{AdamW, AdamWSpec, Arena, Form, Layout, Linear, Site};
use adalora_adapter::random::Random;
use tch::{Device, Kind, Tensor};

struct Layer {
    arena: Arena,
    linear: Linear,
    input: Tensor,
    target: Tensor,
}

impl Layer {
    /// One layer with two triplets, none of whose values is 0.
    fn new(form: Form) -> Self {
        let mut random = Random::new(3, "pruning");
        let site = Site { path: "layer".into(), d_in: 5, d_out: 4, rank: 2 };
        let arena = Arena::new(Layout::new(form, vec![site]), vec![], Device::Cpu, 1);
        tch::no_grad(|| arena.param().shallow_clone().copy_(&random.normal(&arena.param().size(), 1.0)));
        let mut linear = Linear::new("layer", random.normal(&[4, 5], 1.0), None);
        linear.attach(arena.adapters(0.5).next().expect("one adapter"));
        Self { arena, linear, input: random.normal(&[7, 5], 1.0), target: random.normal(&[7, 4], 1.0) }
    }

    fn backward(&self) {
        self.arena.zero_grad();
        (self.linear.forward(&self.input) - &self.target).square().sum(Kind::Float).backward();
    }

    fn step(&self, optimizer: &mut AdamW) {
        self.backward();
        optimizer.step(&self.arena, 0.01);
    }

    /// Masks the first of the two.
    fn mask(&self) {
        let _guard = tch::no_grad_guard();
        self.arena.layout().mask(self.arena.param(), &Tensor::from_slice(&[true, false]));
        assert_eq!(self.unmasked(), 1);
    }

    fn unmasked(&self) -> usize {
        self.arena.layout().unmasked(&self.arena.param().detach())
    }

    /// Largest gradient of `Q`, `P` and lambda of a triplet; that of an absent lambda is 0.
    fn gradient(&self, triplet: i64) -> [f64; 3] {
        let own = self.arena.layout().triplets(self.arena.grad(), 0);
        let largest = |rows: &Tensor| rows.get(triplet).abs().max().double_value(&[]);
        [largest(&own.q), largest(&own.p), own.lambda.as_ref().map_or(0.0, largest)]
    }
}

#[test]
fn only_a_triplet_has_a_gradient_when_it_is_masked() {
    let (svd, lora) = (Layer::new(Form::Svd), Layer::new(Form::Lora));
    for layer in [&svd, &lora] {
        layer.backward();
        assert!(layer.gradient(0)[..2].iter().all(|&gradient| gradient > 0.01));
        layer.mask();
        layer.backward();
        assert!(layer.gradient(1)[..2].iter().all(|&gradient| gradient > 0.01));
    }
    assert_eq!(lora.gradient(0), [0.0; 3]);
    let [q, p, lambda] = svd.gradient(0);
    assert_eq!([q, p], [0.0; 2]);
    assert!(lambda > 0.01, "{lambda}");
}

#[test]
fn training_brings_a_triplet_back_and_a_doublet_never() {
    let (svd, lora) = (Layer::new(Form::Svd), Layer::new(Form::Lora));
    for (layer, unmasked) in [(&svd, 2), (&lora, 1)] {
        layer.mask();
        let mut optimizer = AdamW::new(&AdamWSpec::default(), &layer.arena);
        for _ in 0..20 {
            layer.step(&mut optimizer);
            assert_eq!(layer.unmasked(), unmasked);
        }
    }
    // The second step after the mask already moves the triplet's rows too.
    svd.backward();
    assert!(svd.gradient(0).iter().all(|&gradient| gradient > 0.0));
}

/// What is left of it is momentum: the optimizer's averages from before the mask move both rows once more.
#[test]
fn momentum_alone_moves_a_pruned_doublet() {
    let layer = Layer::new(Form::Lora);
    let mut optimizer = AdamW::new(&AdamWSpec::default(), &layer.arena);
    layer.step(&mut optimizer);
    layer.mask();
    layer.backward();
    assert_eq!(layer.gradient(0), [0.0; 3]);
    layer.step(&mut optimizer);
    assert_eq!(layer.unmasked(), 2);
}
