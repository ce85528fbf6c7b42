//! What becomes of AdamW's moments when triplets are masked, held to a plain implementation in f64.

use adalora::{
    AdamW, AdamWSpec, Arena, Extra, Form, Layout, MaskedMoments, ParameterKind, Site, WeightDecay,
};
use adalora_adapter::random::Random;
use tch::{Device, Tensor};

const LR: f64 = 0.03;
const STEPS: usize = 9;

/// Ragged, with an adapter of rank 0 and with something behind the adapters.
fn arena() -> Arena {
    let site = |path: &str, d_in, d_out, rank| Site { path: path.into(), d_in, d_out, rank };
    let sites = vec![site("a", 4, 2, 3), site("b", 3, 3, 0), site("c", 2, 5, 2)];
    let bias = Extra {
        name: "head.bias".into(),
        start: Tensor::from_slice(&[0.5f32, -1.0]),
        kind: ParameterKind::Bias,
    };
    let arena = Arena::new(Layout::new(Form::Svd, sites), vec![bias], Device::Cpu, 3);
    let start = Random::new(4, "start").normal(&[arena.len() as i64], 1.0);
    tch::no_grad(|| arena.param().shallow_clone().copy_(&start));
    arena
}

fn gradient(step: usize, len: usize) -> Vec<f32> {
    Random::new(step as u64, "gradient").normal(&[len as i64], 1.0).try_into().unwrap()
}

/// Which triplets are masked after a step: none after every third.
fn masked(step: usize, triplets: usize) -> Option<Vec<bool>> {
    (step % 3 != 2).then(|| (0..triplets).map(|triplet| (triplet * 3 + step) % 5 < 2).collect())
}

/// The triplet of each value, `None` behind the adapters.
fn owners(layout: &Layout, len: usize) -> Vec<Option<usize>> {
    let mut owners = vec![None; len];
    for adapter in 0..layout.adapters() {
        for factor in layout.factors(adapter) {
            for row in 0..factor.rows {
                owners[factor.offset + row * factor.cols..][..factor.cols].fill(Some(factor.first + row));
            }
        }
    }
    for (triplet, at) in layout.lambda_range().enumerate() {
        owners[at] = Some(triplet);
    }
    owners
}

/// AdamW of one value after another, in f64.
fn plain(arena: &Arena, spec: &AdamWSpec) -> Vec<f64> {
    let owners = owners(arena.layout(), arena.len());
    let triplets = arena.layout().triplet_count();
    let start: Vec<f32> = arena.param().try_into().unwrap();
    let [beta1, beta2] = spec.betas;
    let one = |at: usize| {
        let (mut w, mut m, mut v) = (f64::from(start[at]), 0.0, 0.0);
        for step in 0..STEPS {
            let g = f64::from(gradient(step, arena.len())[at]);
            let decay = if owners[at].is_none() {
                0.0
            } else if arena.layout().lambda_range().contains(&at) {
                spec.weight_decay.lambda
            } else {
                spec.weight_decay.factors
            };
            let count = step as i32 + 1;
            w *= 1.0 - LR * decay;
            m = beta1 * m + (1.0 - beta1) * g;
            v = beta2 * v + (1.0 - beta2) * g * g;
            w -= LR * (m / (1.0 - beta1.powi(count))) / ((v / (1.0 - beta2.powi(count))).sqrt() + spec.eps);
            let masked = masked(step, triplets);
            if let (Some(triplet), Some(masked)) = (owners[at], masked)
                && masked[triplet]
            {
                if arena.layout().lambda_range().contains(&at) {
                    w = 0.0;
                }
                if spec.masked_moments == MaskedMoments::Zero {
                    (m, v) = (0.0, 0.0);
                }
            }
        }
        w
    };
    (0..arena.len()).map(one).collect()
}

fn ours(arena: &Arena, spec: &AdamWSpec) -> Vec<f32> {
    let mut optimizer = AdamW::new(spec, arena);
    let layout = arena.layout();
    for step in 0..STEPS {
        arena.grad().shallow_clone().copy_(&Tensor::from_slice(&gradient(step, arena.len())));
        optimizer.step(arena, LR);
        if let Some(masked) = masked(step, layout.triplet_count()) {
            let masked = Tensor::from_slice(&masked);
            let _guard = tch::no_grad_guard();
            let _ = layout.lambda(arena.param()).masked_fill_(&masked, 0.0);
            optimizer.follow_mask(&masked, layout);
        }
    }
    arena.param().try_into().unwrap()
}

#[test]
fn kept_and_zeroed_moments_are_those_of_a_plain_adamw() {
    let mut ends = Vec::new();
    for masked_moments in [MaskedMoments::Keep, MaskedMoments::Zero] {
        let weight_decay = WeightDecay { factors: 0.1, lambda: 0.2, ..WeightDecay::default() };
        let spec = AdamWSpec { masked_moments, weight_decay, ..AdamWSpec::default() };
        let expected = plain(&arena(), &spec);
        let own = ours(&arena(), &spec);
        let worst = own.iter().zip(&expected).map(|(own, plain)| (f64::from(*own) - plain).abs());
        let worst = worst.fold(0.0, f64::max);
        assert!(worst < 1e-5, "{masked_moments:?}: {worst}");
        ends.push(own);
    }
    let behind = arena().layout().entries();
    let differing = (0..behind).filter(|&at| ends[0][at] != ends[1][at]).count();
    assert!(differing > behind / 2, "of {behind} values {differing} depend on the policy");
    assert_eq!(ends[0][behind..], ends[1][behind..], "what is no triplet does not");
}

#[test]
fn a_triplet_that_was_masked_stands_still_without_a_gradient_and_others_coast() {
    let arena = arena();
    let spec = AdamWSpec { masked_moments: MaskedMoments::Zero, ..AdamWSpec::default() };
    let mut optimizer = AdamW::new(&spec, &arena);
    arena.grad().shallow_clone().copy_(&Tensor::from_slice(&gradient(0, arena.len())));
    optimizer.step(&arena, LR);
    let masked = [true, false, true, false, false];
    optimizer.follow_mask(&Tensor::from_slice(&masked), arena.layout());
    let before: Vec<f32> = arena.param().try_into().unwrap();
    let before = before.clone();
    arena.zero_grad();
    optimizer.step(&arena, LR);
    let after: Vec<f32> = arena.param().try_into().unwrap();
    for (at, owner) in owners(arena.layout(), arena.len()).into_iter().enumerate() {
        let stands = owner.is_some_and(|triplet| masked[triplet]);
        assert_eq!(before[at] == after[at], stands, "value {at} of triplet {owner:?}");
    }
}
