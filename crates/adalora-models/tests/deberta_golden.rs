//! Held to `transformers` and PEFT on the values that `reference/deberta.py` made.

mod golden;

use std::collections::HashMap;
use std::fs::File;

use adalora_adapter::{Arena, Form, Layout, Leaves, Site};
use adalora_models::{Checkpoint, Encoder, Head, Input, Loss};
use golden::{assert_near, at_tokens, reference, tensors};
use tch::{Device, Kind, Tensor};

/// An encoder with the recorded adapters on all its linear layers, and its head.
struct Model {
    encoder: Encoder,
    head: Head,
    arena: Arena,
}

impl Model {
    fn new(name: &str, recorded: &HashMap<String, Tensor>, kind: Kind) -> Self {
        let info = info(name);
        let rank = info["rank"].as_u64().unwrap() as usize;
        let checkpoint = Checkpoint::open(&reference(name)).unwrap().to_kind(kind);
        let config = checkpoint.config();
        let sites = config.linears().into_iter();
        let sites = sites.map(|shape| Site { path: shape.path, d_in: shape.d_in, d_out: shape.d_out, rank });
        let layout = Layout::new(Form::Svd, sites.collect());
        let outputs = recorded["grad.classifier.bias"].numel();
        let start = Head::start(&checkpoint, outputs, 0);
        assert!(start.drawn.is_empty(), "the checkpoint has a head: {:?}", start.drawn);
        let arena = Arena::new(layout, start.extras, Device::Cpu, 0);
        {
            let _guard = tch::no_grad_guard();
            for (site, Leaves { q, p, lambda }) in arena.layout().sites().iter().zip(arena.leaves()) {
                let recorded = |part: &str| &recorded[&format!("{}.lora_{part}", site.path)];
                q.shallow_clone().copy_(recorded("A"));
                p.shallow_clone().copy_(&recorded("B").tr());
                lambda.as_ref().unwrap().shallow_clone().copy_(&recorded("E").squeeze_dim(1));
            }
        }
        let mut encoder = Encoder::new(&checkpoint, Some(0.0), Device::Cpu);
        let places: Vec<usize> = (0..encoder.linears().len()).collect();
        encoder.attach(&places, arena.adapters(info["scale"].as_f64().unwrap()));
        let head = Head::new(config, &arena, 0.0);
        Self { encoder, head, arena }
    }

    /// The gradients, with the names and shapes of PEFT.
    fn gradients(&self) -> Vec<(String, Tensor)> {
        let sites = self.arena.layout().sites().iter().zip(self.arena.leaves());
        let adapters = sites.flat_map(|(site, leaves)| {
            let lambda = leaves.lambda.as_ref().unwrap().grad().unsqueeze(1);
            [("A", leaves.q.grad()), ("B", leaves.p.grad().tr()), ("E", lambda)]
                .map(|(part, grad)| (format!("grad.{}.lora_{part}", site.path), grad))
        });
        let head = self.arena.extras().iter().map(|(name, leaf)| (format!("grad.{name}"), leaf.grad()));
        adapters.chain(head).collect()
    }
}

fn info(name: &str) -> serde_json::Value {
    serde_json::from_reader(File::open(reference(&format!("{name}.json"))).unwrap()).unwrap()
}

fn batches(name: &str) -> Vec<String> {
    serde_json::from_value(info(name)["batches"].clone()).unwrap()
}

fn input(recorded: &HashMap<String, Tensor>, batch: &str) -> Input {
    let ids = recorded[&format!("{batch}.input_ids")].shallow_clone();
    let mask = recorded[&format!("{batch}.attention_mask")].to_kind(Kind::Bool);
    let padded = mask.logical_not().any().int64_value(&[]) == 1;
    Input { type_ids: ids.zeros_like(), ids, mask: padded.then_some(mask) }
}

#[test]
fn hidden_states_logits_and_gradients() {
    for name in ["deberta-odd", "deberta-small"] {
        let recorded = tensors(name);
        let model = Model::new(name, &recorded, Kind::Float);
        let mut loss = Tensor::zeros([], (Kind::Float, Device::Cpu));
        for batch in batches(name) {
            let recorded = |what: &str| &recorded[&format!("{batch}.{what}")];
            let hidden = model.encoder.forward(&input(&tensors(name), &batch), None);
            let mask = recorded("attention_mask");
            let first = recorded("hidden").size()[1];
            assert_near(
                &at_tokens(&hidden.narrow(1, 0, first), &mask.narrow(1, 0, first)),
                &at_tokens(recorded("hidden"), &mask.narrow(1, 0, first)),
                &format!("{name}, {batch}: hidden states"),
            );
            let logits = model.head.forward(&hidden, None);
            assert_near(&logits, recorded("logits"), &format!("{name}, {batch}: logits"));
            let labels = recorded("labels").shallow_clone();
            loss += Loss::Classes(labels).sum(&logits) / logits.size()[0];
        }
        assert_near(&loss, &recorded["loss"], "loss");
        loss.backward();
        let gradients = model.gradients();
        assert_eq!(gradients.len(), recorded.keys().filter(|key| key.starts_with("grad.")).count());
        for (key, gradient) in gradients {
            // Most are below 1: compared relative to their largest.
            let scale = recorded[&key].abs().max();
            assert_near(&(gradient / &scale), &(&recorded[&key] / &scale), &format!("{name}: {key}"));
        }
    }
}

/// One of the rows is all padding: its scores are all the lowest number that there is.
#[test]
fn bf16_is_near_f32_and_finite() {
    for name in ["deberta-odd", "deberta-small"] {
        let recorded = tensors(name);
        let model = Model::new(name, &recorded, Kind::BFloat16);
        let mut loss = Tensor::zeros([], (Kind::Float, Device::Cpu));
        for batch in batches(name) {
            let hidden = model.encoder.forward(&input(&recorded, &batch), None);
            assert_eq!(hidden.kind(), Kind::BFloat16);
            assert_eq!(hidden.isfinite().all().int64_value(&[]), 1, "{name}, {batch}");
            let logits = model.head.forward(&hidden, None);
            let exact = &recorded[&format!("{batch}.logits")];
            let deviation =
                |logits: &Tensor| ((logits - exact).abs().max() / exact.abs().max()).double_value(&[]);
            // That of `transformers` in bf16 is up to 0.019.
            assert!(deviation(&logits) < 0.04, "{name}, {batch}: {}", deviation(&logits));
            loss += Loss::Classes(recorded[&format!("{batch}.labels")].shallow_clone()).sum(&logits);
        }
        loss.backward();
        for (key, gradient) in model.gradients() {
            assert_eq!(gradient.isfinite().all().int64_value(&[]), 1, "{name}: {key}");
            assert_eq!(gradient.kind(), Kind::Float);
        }
    }
}
