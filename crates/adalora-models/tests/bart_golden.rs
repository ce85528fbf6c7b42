//! Held to `transformers` and PEFT on the values that `reference/bart.py` made.

mod golden;

use std::collections::HashMap;
use std::fs::File;

use adalora_adapter::{Arena, Form, Layout, Leaves, Site};
use adalora_models::{Bart, Checkpoint, EarlyStopping, Generation, Loss, ModelConfig, Source};
use golden::{assert_near, at_tokens, reference, tensors};
use serde::Deserialize;
use serde_json::Value;
use tch::{Device, Kind, Tensor};

fn info(name: &str) -> Value {
    serde_json::from_reader(File::open(reference(&format!("{name}.json"))).unwrap()).unwrap()
}

fn model(checkpoint: &Checkpoint) -> Bart {
    Bart::of(checkpoint, Some(0.0), Device::Cpu)
}

/// The model with the recorded adapters on all its linear layers.
fn adapted(name: &str, recorded: &HashMap<String, Tensor>) -> (Bart, Arena) {
    let info = info(name);
    let rank = info["rank"].as_u64().unwrap() as usize;
    let checkpoint = Checkpoint::open(&reference(name)).unwrap();
    let sites = checkpoint.config().linears().into_iter();
    let sites = sites.map(|shape| Site { path: shape.path, d_in: shape.d_in, d_out: shape.d_out, rank });
    let arena = Arena::new(Layout::new(Form::Svd, sites.collect()), vec![], Device::Cpu, 0);
    {
        let _guard = tch::no_grad_guard();
        for (site, Leaves { q, p, lambda }) in arena.layout().sites().iter().zip(arena.leaves()) {
            let recorded = |part: &str| &recorded[&format!("{}.lora_{part}", site.path)];
            q.shallow_clone().copy_(recorded("A"));
            p.shallow_clone().copy_(&recorded("B").tr());
            lambda.as_ref().unwrap().shallow_clone().copy_(&recorded("E").squeeze_dim(1));
        }
    }
    let mut bart = model(&checkpoint);
    let places: Vec<usize> = (0..bart.linears().len()).collect();
    bart.attach(&places, arena.adapters(info["scale"].as_f64().unwrap()));
    (bart, arena)
}

fn source(recorded: &HashMap<String, Tensor>, batch: &str) -> Source {
    let mask = recorded[&format!("{batch}.attention_mask")].to_kind(Kind::Bool);
    let padded = mask.logical_not().any().int64_value(&[]) == 1;
    Source { ids: recorded[&format!("{batch}.input_ids")].shallow_clone(), mask: padded.then_some(mask) }
}

#[test]
fn hidden_states_logits_losses_and_gradients() {
    for name in ["bart-odd", "bart-plain"] {
        let recorded = tensors(name);
        let (bart, arena) = adapted(name, &recorded);
        let batches: Vec<String> = serde_json::from_value(info(name)["batches"].clone()).unwrap();
        for batch in batches {
            let recorded = |what: &str| &recorded[&format!("{batch}.{what}")];
            let what = |what: &str| format!("{name}, {batch}: {what}");
            let source = source(&tensors(name), &batch);
            let encoded = bart.encode(&source, None).hidden;
            assert_near(
                &at_tokens(&encoded, recorded("attention_mask")),
                recorded("encoded"),
                &what("encoded"),
            );
            let labels = recorded("labels");
            let logits = bart.forward(&source, &bart.decoder_tokens(labels), None);
            assert_near(&at_tokens(&logits, &labels.ne(-100)), recorded("logits"), &what("logits"));
            let count = labels.ne(-100).sum(Kind::Int64);
            let loss =
                |smoothing| Loss::Tokens { labels: labels.shallow_clone(), smoothing }.sum(&logits) / &count;
            assert_near(&loss(0.0), recorded("loss"), &what("loss"));
            assert_near(&loss(0.1), recorded("loss.smoothed"), &what("smoothed loss"));
            loss(0.1).backward();
        }
        let sites = arena.layout().sites().iter().zip(arena.leaves());
        for (site, leaves) in sites {
            let lambda = leaves.lambda.as_ref().unwrap().grad().unsqueeze(1);
            for (part, gradient) in [("A", leaves.q.grad()), ("B", leaves.p.grad().tr()), ("E", lambda)] {
                let key = format!("grad.{}.lora_{part}", site.path);
                // Most are below 1: compared relative to their largest.
                let scale = recorded[&key].abs().max();
                assert_near(&(gradient / &scale), &(&recorded[&key] / &scale), &format!("{name}: {key}"));
            }
        }
        assert_eq!(
            3 * arena.leaves().len(),
            recorded.keys().filter(|key| key.starts_with("grad.")).count(),
            "every adapter has its gradient"
        );
    }
}

/// What merging is for: generation asks the adapters nothing.
#[test]
fn merged_and_unmerged_agree() {
    let recorded = tensors("bart-odd");
    let (mut bart, _arena) = adapted("bart-odd", &recorded);
    let source = source(&recorded, "padded");
    let tokens = bart.decoder_tokens(&recorded["padded.labels"]);
    let before = bart.forward(&source, &tokens, None);
    bart.linears_mut().into_iter().for_each(|linear| linear.merge());
    assert_near(&bart.forward(&source, &tokens, None), &before, "merged");
    bart.linears_mut().into_iter().for_each(|linear| linear.unmerge());
    assert_eq!(bart.forward(&source, &tokens, None), before);
}

#[derive(Deserialize)]
struct Generated {
    bias_of_the_end: f64,
    input_ids: Vec<Vec<i64>>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    num_beams: usize,
    max_length: usize,
    min_length: usize,
    length_penalty: f64,
    no_repeat_ngram_size: usize,
    early_stopping: EarlyStopping,
    forced_bos_token_id: Option<i64>,
    forced_eos_token_id: Option<i64>,
    tokens: Vec<Vec<i64>>,
}

#[test]
fn the_same_tokens_for_every_setting() {
    // Thousands of steps of a few microseconds: where other programs keep the cores busy, threads wait for each other
    // a hundred times as long.
    tch::set_num_threads(1);
    let generated: Generated = serde_json::from_value(info("bart-generated")).unwrap();
    let checkpoint = Checkpoint::open(&reference("bart-odd")).unwrap();
    let ModelConfig::Bart(config) = checkpoint.config() else { panic!("a BART") };
    let bart = Bart::new(config, None, |name| {
        let tensor = checkpoint.tensor(name, Device::Cpu).copy();
        if name == "final_logits_bias" {
            let _ = tensor.select(1, config.eos_token_id).g_add_scalar_(generated.bias_of_the_end);
        }
        tensor
    });
    let width = generated.input_ids.iter().map(Vec::len).max().unwrap();
    let padded = generated.input_ids.iter().flat_map(|row| {
        let padding = std::iter::repeat_n(config.pad_token_id, width - row.len());
        row.iter().copied().chain(padding)
    });
    let ids = Tensor::from_slice(&padded.collect::<Vec<_>>()).view([-1, width as i64]);
    let source = Source { mask: Some(ids.ne(config.pad_token_id)), ids };
    assert!(generated.cases.len() >= 90);
    for case in generated.cases {
        let how = Generation {
            beams: case.num_beams,
            max_length: case.max_length,
            min_length: case.min_length,
            length_penalty: case.length_penalty,
            no_repeat_ngram: case.no_repeat_ngram_size,
            early_stopping: case.early_stopping,
            forced_bos: case.forced_bos_token_id.is_some(),
            forced_eos: case.forced_eos_token_id.is_some(),
        };
        assert_eq!(bart.generate(&source, &how), case.tokens, "{how:?}");
    }
}
