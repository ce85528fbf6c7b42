//! Held to `transformers`' models for question answering on the values that `reference/spans.py` made.

mod golden;

use adalora_adapter::{Arena, Form, Layout};
use adalora_models::{Checkpoint, Encoder, Input, Loss, SpanHead};
use golden::{assert_near, reference, tensors};
use tch::{Device, Kind};

#[test]
fn logits_loss_and_gradients() {
    for (name, checkpoint) in [("spans-bert", "bert-random"), ("spans-deberta", "deberta-odd")] {
        let recorded = tensors(name);
        let checkpoint = Checkpoint::open(&reference(checkpoint)).unwrap();
        let start = SpanHead::start(&checkpoint, 0);
        assert_eq!(start.drawn, ["qa_outputs.weight", "qa_outputs.bias"], "the checkpoint is a classifier's");
        let arena = Arena::new(Layout::new(Form::Svd, vec![]), start.extras, Device::Cpu, 0);
        for (name, leaf) in arena.extras() {
            tch::no_grad(|| leaf.shallow_clone().copy_(&recorded[name]));
        }
        let head = SpanHead::new(&arena);
        let encoder = Encoder::new(&checkpoint, Some(0.0), Device::Cpu);
        for linear in encoder.linears() {
            let _ = linear.weight().set_requires_grad(true);
        }
        let ids = recorded["input_ids"].shallow_clone();
        let types = recorded.get("token_type_ids");
        let input = Input {
            type_ids: types.map_or_else(|| ids.zeros_like(), |types| types.shallow_clone()),
            ids,
            mask: Some(recorded["attention_mask"].to_kind(Kind::Bool)),
        };
        let logits = head.forward(&encoder.forward(&input, None), input.mask.as_ref());
        let padding = recorded["attention_mask"].logical_not().unsqueeze(-1);
        assert_near(&logits.masked_fill(&padding, 0.0), &recorded["logits"], &format!("{name}: logits"));
        let rows = logits.size()[0] as f64;
        let loss = Loss::Spans(recorded["spans"].shallow_clone()).sum(&logits) / rows;
        assert_near(&loss, &recorded["loss"], &format!("{name}: loss"));
        loss.backward();
        let linears = encoder.linears().into_iter();
        let weights = linears.map(|linear| (format!("{}.weight", linear.path()), linear.weight().grad()));
        let head = arena.extras().iter().map(|(name, leaf)| (name.clone(), leaf.grad()));
        let mut compared = 0;
        for (parameter, gradient) in weights.chain(head) {
            let Some(expected) = recorded.get(&format!("grad.{parameter}")) else { continue };
            // Most are below 1: compared relative to their largest.
            let scale = expected.abs().max();
            assert_near(&(gradient / &scale), &(expected / &scale), &format!("{name}: {parameter}"));
            compared += 1;
        }
        assert_eq!(compared, recorded.keys().filter(|key| key.starts_with("grad.")).count(), "{name}");
        assert!(compared > 4);
        // A constant on all logits of a side changes nothing.
        assert!(arena.extra("qa_outputs.bias").grad().abs().max().double_value(&[]) < 1e-6);
    }
}

#[test]
fn a_head_that_the_checkpoint_has_is_taken() {
    let folder = tempfile::tempdir().unwrap();
    let name = "model.safetensors";
    std::fs::copy(reference("bert-random").join("config.json"), folder.path().join("config.json")).unwrap();
    let head = tensors("spans-bert");
    let mut stored = tch::Tensor::read_safetensors(reference("bert-random").join(name)).unwrap();
    for part in ["qa_outputs.weight", "qa_outputs.bias"] {
        stored.push((part.into(), head[part].shallow_clone()));
    }
    tch::Tensor::write_safetensors(&stored, folder.path().join(name)).unwrap();
    let start = SpanHead::start(&Checkpoint::open(folder.path()).unwrap(), 0);
    assert!(start.drawn.is_empty(), "{:?}", start.drawn);
    for extra in start.extras {
        assert_eq!(extra.start, head[&extra.name]);
    }
}
