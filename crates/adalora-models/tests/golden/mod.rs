//! What the tests against recorded values share.

use std::collections::HashMap;
use std::path::PathBuf;

use tch::Tensor;

pub(crate) fn reference(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../reference/values")).join(name)
}

pub(crate) fn tensors(name: &str) -> HashMap<String, Tensor> {
    Tensor::read_safetensors(reference(&format!("{name}.safetensors"))).unwrap().into_iter().collect()
}

pub(crate) fn assert_near(got: &Tensor, expected: &Tensor, what: &str) {
    assert_eq!(got.size(), expected.size(), "{what}");
    let scale = expected.abs().max().double_value(&[]).max(1.0);
    let worst = (got - expected).abs().max().double_value(&[]) / scale;
    assert!(worst < 1e-5, "{what}: {worst:e}");
}

/// Values where there are tokens: what stands at padding is nobody's business.
#[allow(dead_code, reason = "not every test that shares this file has hidden states")]
pub(crate) fn at_tokens(values: &Tensor, mask: &Tensor) -> Tensor {
    values * mask.unsqueeze(-1)
}
