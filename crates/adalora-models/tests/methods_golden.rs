//! Full fine-tuning, BitFit and bottlenecks, held to `transformers` and AdapterHub's library on the values that
//! `reference/methods.py` made.

mod golden;

use std::collections::HashMap;

use adalora_adapter::{Arena, Form, Layout};
use adalora_models::{Checkpoint, Encoder, Head, Input, Loss, Placement, Tuning};
use golden::{assert_near, reference, tensors};
use tch::{Device, Kind, Tensor};

const CASES: [(&str, &str); 2] = [("methods-bert", "bert-random"), ("methods-deberta", "deberta-odd")];
const WIDTH: usize = 5;

struct Case {
    recorded: HashMap<String, Tensor>,
    checkpoint: Checkpoint,
}

impl Case {
    fn all() -> [Self; 2] {
        CASES.map(|(values, folder)| Self {
            recorded: tensors(values),
            checkpoint: Checkpoint::open(&reference(folder)).unwrap(),
        })
    }

    fn arena(&self, tuning: Tuning) -> Arena {
        let head = Head::start(&self.checkpoint, 3, 0).extras;
        let extras = tuning.start(&self.checkpoint, 1).into_iter().chain(head).collect();
        Arena::new(Layout::new(Form::Svd, vec![]), extras, Device::Cpu, 0)
    }

    fn logits(&self, tuning: Tuning, arena: &Arena, kind: Kind) -> Tensor {
        let checkpoint = self.checkpoint.to_kind(kind);
        let encoder = Encoder::tuned(&checkpoint, tuning, arena, Some(0.0), Device::Cpu);
        let ids = self.recorded["input_ids"].shallow_clone();
        let types = self.recorded.get("token_type_ids");
        let input = Input {
            type_ids: types.map_or_else(|| ids.zeros_like(), Tensor::shallow_clone),
            ids,
            mask: Some(self.recorded["attention_mask"].to_kind(Kind::Bool)),
        };
        Head::new(self.checkpoint.config(), arena, 0.0).forward(&encoder.forward(&input, None), None)
    }

    fn backward(&self, logits: &Tensor) {
        let labels = &self.recorded["labels"];
        let loss = Loss::Classes(labels.shallow_clone()).sum(logits) / labels.numel() as f64;
        loss.backward();
    }

    /// Gradients that lie in the arena, of all but the head.
    fn assert_gradients(&self, tuning: Tuning, arena: &Arena, method: &str) {
        let tuned = tuning.tensors(self.checkpoint.config());
        assert!(!tuned.is_empty());
        for own in &tuned {
            let expected = &self.recorded[&format!("{method}.grad.{}", own.name)];
            assert_near(&arena.extra(&own.name).grad(), expected, &format!("{method}: {}", own.name));
        }
        // And they are what the optimizer sees.
        let [first, last] =
            [&tuned[0], &tuned[tuned.len() - 1]].map(|own| arena.extra(&own.name).grad().view(-1));
        let count: i64 = tuned.iter().map(|own| own.shape.iter().product::<i64>()).sum();
        assert_eq!(arena.grad().narrow(0, 0, first.numel() as i64), first);
        let last_len = last.numel() as i64;
        assert_eq!(arena.grad().narrow(0, count - last_len, last_len), last);
    }
}

#[test]
fn gradients_of_the_whole_encoder_and_of_its_biases() {
    for case in Case::all() {
        for tuning in [Tuning::Full, Tuning::BitFit] {
            let arena = case.arena(tuning);
            let logits = case.logits(tuning, &arena, Kind::Float);
            assert_near(&logits, &case.recorded["full.logits"], "logits");
            case.backward(&logits);
            case.assert_gradients(tuning, &arena, "full");
            let recorded = case.recorded.keys().filter(|name| name.starts_with("full.grad.")).count();
            let own = tuning.tensors(case.checkpoint.config()).len();
            assert_eq!(own == recorded, tuning == Tuning::Full, "{own} of {recorded}");
        }
    }
}

#[test]
fn logits_and_gradients_of_bottlenecks() {
    for case in Case::all() {
        for (placement, method) in [(Placement::Houlsby, "houlsby"), (Placement::Pfeiffer, "pfeiffer")] {
            let tuning = Tuning::Bottlenecks(placement, WIDTH);
            let arena = case.arena(tuning);
            for own in tuning.tensors(case.checkpoint.config()) {
                let value = &case.recorded[&format!("{method}.{}", own.name)];
                tch::no_grad(|| arena.extra(&own.name).copy_(value));
            }
            let logits = case.logits(tuning, &arena, Kind::Float);
            assert_near(&logits, &case.recorded[&format!("{method}.logits")], method);
            case.backward(&logits);
            case.assert_gradients(tuning, &arena, method);

            let half = case.logits(tuning, &arena, Kind::BFloat16);
            let difference = (half - &logits).abs().max().double_value(&[]);
            let largest = logits.abs().max().double_value(&[]);
            assert!(
                difference > 0.0 && difference < 0.1 * largest,
                "{method} in bf16: {difference} of {largest}"
            );
        }
    }
}

/// Weights of 0.02 and biases of 0: what is added is small, but not nothing, so that both layers learn from the start.
#[test]
fn bottlenecks_add_little_at_first() {
    for case in Case::all() {
        for placement in [Placement::Houlsby, Placement::Pfeiffer] {
            let tuning = Tuning::Bottlenecks(placement, WIDTH);
            let arena = case.arena(tuning);
            let logits = case.logits(tuning, &arena, Kind::Float);
            case.backward(&logits);
            let _guard = tch::no_grad_guard();
            let tuned = tuning.parameters(case.checkpoint.config()) as i64;
            assert!(arena.grad().narrow(0, 0, tuned).abs().max().double_value(&[]) > 0.0);
            let _ = arena.param().narrow(0, 0, tuned).zero_();
            let frozen = case.logits(tuning, &arena, Kind::Float);
            let difference = (&logits - &frozen).abs().max().double_value(&[]);
            assert!(
                difference > 0.0 && difference < 0.1 * frozen.std(false).double_value(&[]),
                "{difference}"
            );
            // Without bottlenecks Pfeiffer's second LayerNorm is the first again, and Houlsby's is the only one.
            assert_near(&frozen, &case.recorded["full.logits"], "logits without bottlenecks");
        }
    }
}
