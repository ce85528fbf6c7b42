//! Held to PEFT's layers and regularizer, on the values that `reference/lora_layer.py` made.

use std::collections::HashMap;

use adalora_adapter::{Arena, Form, Layout, Linear, Orthogonality, OrthogonalityForm, Site};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

fn reference(name: &str) -> (Value, HashMap<String, Tensor>) {
    let path = format!("{}/../../reference/values/{name}", env!("CARGO_MANIFEST_DIR"));
    let json = serde_json::from_str(&std::fs::read_to_string(format!("{path}.json")).unwrap()).unwrap();
    (json, Tensor::read_safetensors(format!("{path}.safetensors")).unwrap().into_iter().collect())
}

fn assert_near(got: &Tensor, expected: &Tensor, what: &str) {
    assert_eq!(got.size(), expected.size(), "{what}");
    if expected.numel() == 0 {
        return;
    }
    let scale = expected.abs().max().double_value(&[]).max(1.0);
    let worst = (got - expected).abs().max().double_value(&[]) / scale;
    assert!(worst < 2e-6, "{what}: {worst:e}");
}

#[test]
fn output_gradients_and_merged_weight_of_a_layer() {
    let (json, tensors) = reference("layers");
    for (name, case) in json["cases"].as_object().unwrap() {
        let get = |of: &str| &tensors[&format!("{name}.{of}")];
        let form = if case["form"] == "lora" { Form::Lora } else { Form::Svd };
        // A compacted layer has only the live triplets, and still the scale of the initial rank.
        let part = |of: &str| tensors.get(&format!("{name}.compact.{of}")).unwrap_or_else(|| get(of));
        let (rank, d_in) = part("a").size2().unwrap();
        let d_out = part("b").size()[0];
        let site =
            Site { path: "fc".into(), d_in: d_in as usize, d_out: d_out as usize, rank: rank as usize };
        let arena = Arena::new(Layout::new(form, vec![site]), vec![], Device::Cpu, 0);
        let mut views = arena.layout().triplets(arena.param(), 0);
        views.q.copy_(part("a"));
        views.p.copy_(&part("b").tr());
        if let Some(lambda) = &mut views.lambda {
            lambda.copy_(&part("e").squeeze_dim(1));
        }
        let mut layer = Linear::new("fc", get("weight").copy(), Some(get("bias").copy()));
        layer.attach(arena.adapters(case["scale"].as_f64().unwrap()).next().unwrap());

        let x = get("x").copy().set_requires_grad(true);
        let y = layer.forward(&x);
        assert_near(&y, get("output"), &format!("{name}: output"));
        (y * get("cotangent")).sum(Kind::Float).backward();
        let grads = arena.layout().triplets(arena.grad(), 0);
        assert_near(&x.grad(), get("grad.x"), &format!("{name}: gradient of x"));
        assert_near(&grads.q, get("grad.a"), &format!("{name}: gradient of Q"));
        assert_near(&grads.p.tr(), get("grad.b"), &format!("{name}: gradient of P"));
        if let Some(lambda) = grads.lambda {
            assert_near(&lambda.unsqueeze(1), get("grad.e"), &format!("{name}: gradient of lambda"));
        }
        layer.merge();
        assert_near(layer.weight(), get("merged"), &format!("{name}: merged weight"));
        assert_near(&layer.forward(&x), get("merged_output"), &format!("{name}: output of the merged layer"));
    }
}

#[test]
fn lora_starts_as_in_peft() {
    let (json, _) = reference("layers");
    for start in json["start"].as_array().unwrap() {
        let get = |key: &str| start[key].as_u64().unwrap() as usize;
        let number = |key: &str| start[key].as_f64().unwrap();
        let site = Site { path: "fc".into(), d_in: get("d_in"), d_out: 5, rank: get("r") };
        let arena = Arena::new(Layout::new(Form::Lora, vec![site]), vec![], Device::Cpu, 1);
        let views = arena.layout().triplets(arena.param(), 0);
        let largest = views.q.abs().max().double_value(&[]);
        assert!(largest <= number("bound") && largest > 0.99 * number("bound"), "{start}: {largest}");
        let deviation = views.q.std(true).double_value(&[]);
        assert!((deviation / number("std_of_uniform") - 1.0).abs() < 0.03, "{start}: {deviation}");
        assert_eq!(views.p.abs().max().double_value(&[]), 0.0);
    }
}

#[test]
fn orthogonality_in_both_forms() {
    let (json, tensors) = reference("orthogonality");
    let gamma = json["gamma"].as_f64().unwrap();
    for (name, case) in json["cases"].as_object().unwrap() {
        let rank = case["r"].as_u64().unwrap() as usize;
        let shapes = case["shapes"].as_array().unwrap();
        let sites = shapes.iter().enumerate().map(|(i, shape)| {
            let width = |at: usize| shape[at].as_u64().unwrap() as usize;
            Site { path: format!("layer{}", i + 1), d_in: width(0), d_out: width(1), rank }
        });
        let arena = Arena::new(Layout::new(Form::Svd, sites.collect()), vec![], Device::Cpu, 0);
        for form in ["mean-of-norms", "sum-of-squares"] {
            let spec: OrthogonalityForm =
                serde_json::from_value(json!({ form: { "gamma": gamma } })).unwrap();
            for (i, site) in arena.layout().sites().iter().enumerate() {
                let mut views = arena.layout().triplets(arena.param(), i);
                views.q.copy_(&tensors[&format!("{name}.{}.a", site.path)]);
                views.p.copy_(&tensors[&format!("{name}.{}.b", site.path)].tr());
            }
            arena.zero_grad();
            let value = gamma * Orthogonality::new(spec).add_gradient(&arena).double_value(&[]);
            let expected = case[form].as_f64().unwrap();
            assert!(
                (value - expected).abs() <= 2e-6 * expected.max(1.0),
                "{name}, {form}: {value} for {expected}"
            );
            for (i, site) in arena.layout().sites().iter().enumerate() {
                let grads = arena.layout().triplets(arena.grad(), i);
                let recorded = |field: &str| &tensors[&format!("{name}.{form}.{}.{field}", site.path)];
                assert_near(&grads.q, recorded("a"), &format!("{name}, {form}: gradient of Q"));
                assert_near(&grads.p.tr(), recorded("b"), &format!("{name}, {form}: gradient of P"));
            }
        }
    }
}

/// The authors' regularizer for LoRA, of whose start half is 0.
#[test]
fn mean_of_cosines() {
    let (json, tensors) = reference("cosines");
    for (name, case) in json["cases"].as_object().unwrap() {
        let rank = case["r"].as_u64().unwrap() as usize;
        let shapes = case["shapes"].as_array().unwrap();
        let sites = shapes.iter().enumerate().map(|(i, shape)| {
            let width = |at: usize| shape[at].as_u64().unwrap() as usize;
            Site { path: format!("layer{}", i + 1), d_in: width(0), d_out: width(1), rank }
        });
        let arena = Arena::new(Layout::new(Form::Lora, sites.collect()), vec![], Device::Cpu, 0);
        for (i, site) in arena.layout().sites().iter().enumerate() {
            let mut views = arena.layout().triplets(arena.param(), i);
            views.q.copy_(&tensors[&format!("{name}.{}.lora_A", site.path)]);
            views.p.copy_(&tensors[&format!("{name}.{}.lora_B", site.path)].tr());
        }
        let spec: OrthogonalityForm =
            serde_json::from_value(json!({ "mean-of-cosines": { "gamma": 1.0 } })).unwrap();
        let value = Orthogonality::new(spec).add_gradient(&arena).double_value(&[]);
        assert!((value - case["value"].as_f64().unwrap()).abs() < 1e-6, "{name}: {value}");
        for (i, site) in arena.layout().sites().iter().enumerate() {
            let grads = arena.layout().triplets(arena.grad(), i);
            let recorded = |field: &str| &tensors[&format!("{name}.grad.{}.{field}", site.path)];
            assert_near(&grads.q, recorded("lora_A"), &format!("{name}: gradient of A"));
            assert_near(&grads.p.tr(), recorded("lora_B"), &format!("{name}: gradient of B"));
        }
    }
}
