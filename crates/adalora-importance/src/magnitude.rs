//! Importance as the size of the singular value: the paper's ablation `S = |lambda|`.

use adalora_adapter::Form;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;

use crate::{BetaError, ImportanceMetric, Observation, Start};

/// `[importance.magnitude]`
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Magnitude {}

impl Magnitude {
    pub(crate) fn problems(&self) -> Vec<BetaError> {
        Vec::new()
    }

    pub(crate) fn start(&self, start: &Start) -> Size {
        assert_eq!(start.layout.form(), Form::Svd, "LoRA has no singular values");
        Size
    }
}

#[derive(Debug)]
pub(crate) struct Size;

impl ImportanceMetric for Size {
    fn observe(&mut self, _seen: &Observation) {}

    fn importance(&self, seen: &Observation) -> Tensor {
        seen.layout.lambda(seen.param).abs()
    }

    fn state(&mut self) -> Vec<(&'static str, &mut Tensor)> {
        Vec::new()
    }
}
