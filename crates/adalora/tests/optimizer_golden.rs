//! Held to PyTorch's AdamW with the schedules of `transformers`, on the values that `reference/adamw.py` made.

use std::collections::HashMap;

use adalora::*;
use adalora_kernels::clip::{clip, norm};
use serde_json::Value;
use tch::{Device, Tensor};

const VALUES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../reference/values");
const NAMES: [&str; 4] = ["a", "b", "c", "d"];

#[test]
fn fifty_steps_with_clipping_and_two_rates_of_decay() {
    let json: Value =
        serde_json::from_str(&std::fs::read_to_string(format!("{VALUES}/adamw.json")).unwrap()).unwrap();
    let tensors: HashMap<_, _> =
        Tensor::read_safetensors(format!("{VALUES}/adamw.safetensors")).unwrap().into_iter().collect();
    let settings = &json["settings"];
    let warm_up = settings["warmup_steps"].as_u64().unwrap() as usize;
    for (schedule, of) in [
        ("linear", LearningRateSpec::Linear(WarmUp { warm_up })),
        ("constant", LearningRateSpec::Constant(WarmUp { warm_up })),
    ] {
        // Weights decay like the parameters `a` and `b` there, biases do not, like `c` and `d`.
        let kind = |name| match name {
            "a" => ParameterKind::Weight,
            "b" => ParameterKind::Encoder,
            _ => ParameterKind::Bias,
        };
        let extras = NAMES.map(|name| Extra {
            name: name.into(),
            start: tensors[&format!("initial.{name}")].copy(),
            kind: kind(name),
        });
        let arena = Arena::new(Layout::new(Form::Svd, vec![]), extras.into(), Device::Cpu, 0);
        let spec = AdamWSpec {
            lr: settings["lr"].as_f64().unwrap(),
            schedule: of,
            weight_decay: WeightDecay { head: 0.1, encoder: 0.1, ..Default::default() },
            ..Default::default()
        };
        let mut optimizer = AdamW::new(&spec, &arena);
        let lr = LearningRate::new(&spec, 50);
        for step in 0..50 {
            for name in NAMES {
                let grad = tensors[&format!("grad.{name}")].get(step as i64);
                arena.extra(name).grad().copy_(&grad);
            }
            let grad_norm = norm(arena.grad());
            let _ =
                clip(&mut arena.grad().shallow_clone(), &grad_norm, settings["max_norm"].as_f64().unwrap());
            let expected = json[schedule]["lr"][step].as_f64().unwrap();
            assert!(
                (lr.at(step) - expected).abs() <= 1e-15,
                "{schedule}, step {step}: {} for {expected}",
                lr.at(step)
            );
            optimizer.step(&arena, lr.at(step));
            if (step + 1) % 10 == 0 {
                for name in NAMES {
                    let after = tensors[&format!("{schedule}.after.{name}")].get((step / 10) as i64);
                    let difference = (arena.extra(name) - &after).abs();
                    let worst = (difference / (after.abs() + 1e-3)).max().double_value(&[]);
                    assert!(worst < 1e-6, "{schedule}, {name} after step {step}: {worst:e}");
                }
            }
        }
    }
}
