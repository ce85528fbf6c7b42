//! Control: the same rank everywhere, as if there were no allocation but the shrinking itself.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;

use crate::{BetaError, ImportanceMetric, Observation, Start};

/// `[importance.uniform]`
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Uniform {}

impl Uniform {
    pub(crate) fn problems(&self) -> Vec<BetaError> {
        Vec::new()
    }

    pub(crate) fn start(&self, start: &Start) -> Index {
        // Counted from 1: a metric that gives 0 to all triplets is taken for one that has learnt nothing.
        let negated = start.layout.ranks().into_iter().flat_map(|rank| (1..=rank).map(|i| -(i as f32)));
        Index { negated: Tensor::from_slice(&negated.collect::<Vec<_>>()).to(start.device) }
    }
}

#[derive(Debug)]
pub(crate) struct Index {
    /// Shape `(triplets,)`: the place of a triplet in its adapter, negated.
    negated: Tensor,
}

impl ImportanceMetric for Index {
    fn observe(&mut self, _seen: &Observation) {}

    fn importance(&self, _seen: &Observation) -> Tensor {
        self.negated.copy()
    }

    /// A function of the layout: nothing to keep.
    fn state(&mut self) -> Vec<(&'static str, &mut Tensor)> {
        Vec::new()
    }
}
