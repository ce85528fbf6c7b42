//! Control: the paper's importance negated, which keeps what it would drop.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;

use crate::sensitivity_uncertainty::{Running, SensitivityUncertainty};
use crate::{BetaError, ImportanceMetric, Observation, Start};

/// `[importance.inverse]`
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Inverse(SensitivityUncertainty);

impl Inverse {
    pub(crate) fn problems(&self) -> Vec<BetaError> {
        self.0.problems()
    }

    pub(crate) fn start(&self, start: &Start) -> Negated {
        Negated(self.0.start(start))
    }
}

#[derive(Debug)]
pub(crate) struct Negated(Running);

impl ImportanceMetric for Negated {
    fn observe(&mut self, seen: &Observation) {
        self.0.observe(seen);
    }

    fn importance(&self, seen: &Observation) -> Tensor {
        -self.0.importance(seen)
    }

    fn state(&mut self) -> Vec<(&'static str, &mut Tensor)> {
        self.0.state()
    }
}
