//! Held to `transformers` on the values that `reference/bert.py` made.

mod golden;

use std::collections::HashMap;
use std::path::PathBuf;

use adalora_adapter::{Arena, Form, Layout, Site};
use adalora_models::{Checkpoint, Encoder, Head, Input, Loss};
use golden::{assert_near, at_tokens, reference, tensors};
use tch::{Device, Kind, Tensor};

fn input(recorded: &HashMap<String, Tensor>) -> Input {
    Input {
        ids: recorded["input_ids"].shallow_clone(),
        type_ids: recorded["token_type_ids"].shallow_clone(),
        mask: Some(recorded["attention_mask"].to_kind(Kind::Bool)),
    }
}

/// An encoder whose own weights get gradients, which in use they never do.
fn with_gradients(checkpoint: &Checkpoint) -> Encoder {
    let bert = Encoder::new(checkpoint, Some(0.0), Device::Cpu);
    for linear in bert.linears() {
        let _ = linear.weight().set_requires_grad(true);
    }
    bert
}

#[test]
fn logits_and_gradients_on_a_random_checkpoint() {
    let recorded = tensors("bert-random");
    let checkpoint = Checkpoint::open(&reference("bert-random")).unwrap();
    let bert = with_gradients(&checkpoint);
    let start = Head::start(&checkpoint, 3, 0);
    assert!(start.drawn.is_empty(), "the checkpoint has a head: {:?}", start.drawn);
    let arena = Arena::new(Layout::new(Form::Svd, vec![]), start.extras, Device::Cpu, 0);
    let head = Head::new(checkpoint.config(), &arena, 0.0);

    let hidden = bert.forward(&input(&recorded), None);
    assert_near(
        &at_tokens(&hidden, &recorded["attention_mask"]),
        &at_tokens(&recorded["last_hidden_state"], &recorded["attention_mask"]),
        "last hidden state",
    );
    let logits = head.forward(&hidden, None);
    assert_near(&logits, &recorded["logits"], "logits");
    let loss = Loss::Classes(recorded["labels"].shallow_clone()).sum(&logits) / 5.0;
    assert_near(&loss, &recorded["loss"], "loss");
    loss.backward();
    for linear in bert.linears() {
        let name = format!("grad.bert.{}.weight", linear.path());
        assert_near(&linear.weight().grad(), &recorded[&name], &name);
    }
    for (name, leaf) in arena.extras() {
        assert_near(&leaf.grad(), &recorded[&format!("grad.{name}")], name);
    }
}

#[test]
fn old_names_without_prefix_and_without_pooler() {
    let recorded = tensors("bert-legacy");
    let checkpoint = Checkpoint::open(&reference("bert-legacy")).unwrap();
    let hidden = Encoder::new(&checkpoint, None, Device::Cpu).forward(&input(&recorded), None);
    assert_near(
        &at_tokens(&hidden, &recorded["attention_mask"]),
        &at_tokens(&recorded["last_hidden_state"], &recorded["attention_mask"]),
        "last hidden state",
    );
    let drawn = Head::start(&checkpoint, 2, 0).drawn;
    assert_eq!(
        drawn,
        ["bert.pooler.dense.weight", "bert.pooler.dense.bias", "classifier.weight", "classifier.bias"]
    );
}

/// The increments are exactly 0 at the start: not one bit of the output may change.
#[test]
fn adapters_at_their_start_change_nothing() {
    let recorded = tensors("bert-random");
    let checkpoint = Checkpoint::open(&reference("bert-random")).unwrap();
    let plain = Encoder::new(&checkpoint, None, Device::Cpu).forward(&input(&recorded), None);
    for form in [Form::Svd, Form::Lora] {
        let mut bert = Encoder::new(&checkpoint, None, Device::Cpu);
        let sites: Vec<_> = checkpoint
            .config()
            .linears()
            .into_iter()
            .map(|shape| Site { path: shape.path, d_in: shape.d_in, d_out: shape.d_out, rank: 3 })
            .collect();
        let places: Vec<usize> = (0..sites.len()).collect();
        let arena = Arena::new(Layout::new(form, sites), vec![], Device::Cpu, 5);
        bert.attach(&places, arena.adapters(2.5));
        let adapted = bert.forward(&input(&recorded), None);
        assert_eq!(adapted, plain, "{form:?}");
        // And they are in place: a change of theirs changes the output.
        let _ = tch::no_grad(|| arena.param().shallow_clone().fill_(0.1));
        assert_ne!(bert.forward(&input(&recorded), None), plain, "{form:?}");
    }
}

/// The real checkpoint, which `just setup` fetches.
#[test]
fn bert_tiny() {
    let folder = std::env::var_os("ADALORA_MATERIALS")
        .map_or_else(
            || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../.materials")),
            PathBuf::from,
        )
        .join("bert-tiny");
    assert!(folder.is_dir(), "{} is not there: run `just setup`", folder.display());
    let recorded = tensors("bert-tiny");
    let checkpoint = Checkpoint::open(&folder).unwrap();
    let bert = with_gradients(&checkpoint);
    let hidden = bert.forward(&input(&recorded), None);

    let positions = recorded["positions"].unsqueeze(-1).expand([-1, -1, 128], false);
    assert_near(&hidden.gather(1, &positions, false), &recorded["hidden"], "hidden states");
    let mask = recorded["attention_mask"].to_kind(Kind::Float);
    assert_near(
        &(hidden.mean_dim(-1, false, Kind::Float) * &mask),
        &(&recorded["mean"] * &mask),
        "mean over the hidden width",
    );

    let tokens = mask.sum(Kind::Float) * 128.0;
    let loss = (hidden.square() * mask.unsqueeze(-1)).sum(Kind::Float) / tokens;
    assert_near(&loss, &recorded["loss"], "loss");
    loss.backward();
    let linear =
        |path: &str| bert.linears().into_iter().find(|linear| linear.path() == path).unwrap().weight().grad();
    let scaled = |got: Tensor, expected: &Tensor, what: &str| {
        // Gradients are far below 1: compared relative to their largest.
        let scale = expected.abs().max();
        assert_near(&(got / &scale), &(expected / &scale), what);
    };
    scaled(linear("encoder.layer.0.attention.self.query"), &recorded["grad.layer.0.query"], "query gradient");
    let output = linear("encoder.layer.1.output.dense");
    scaled(
        output.narrow(0, 0, 16).narrow(1, 0, 16),
        &recorded["grad.layer.1.output.corner"],
        "output gradient",
    );
    scaled(output.norm(), &recorded["grad.layer.1.output.norm"], "norm of the output gradient");
}

#[test]
fn in_bf16_hidden_states_are_near_and_a_row_of_padding_is_finite() {
    let recorded = tensors("bert-random");
    let checkpoint = Checkpoint::open(&reference("bert-random")).unwrap();
    let mut input = input(&recorded);
    let mask = input.mask.take().unwrap();
    let _ = mask.get(0).fill_(0.0);
    input.mask = Some(mask.shallow_clone());
    let hidden = |kind| Encoder::new(&checkpoint.to_kind(kind), None, Device::Cpu).forward(&input, None);
    let (exact, rounded) = (hidden(Kind::Float), hidden(Kind::BFloat16));
    assert_eq!(rounded.kind(), Kind::BFloat16);
    let rounded = rounded.to_kind(Kind::Float);
    assert!(bool::try_from(rounded.isfinite().all()).unwrap());
    let tokens = mask.to_kind(Kind::Float).unsqueeze(-1);
    let difference = ((&exact - rounded) * &tokens).abs().max().double_value(&[]);
    let largest = (exact * tokens).abs().max().double_value(&[]);
    // 8 bits of mantissa, through a few layers.
    assert!(difference < 0.05 * largest && difference > 0.0, "{difference} of {largest}");
}
