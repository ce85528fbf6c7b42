//! Importance as the uncertainty of the sensitivity alone.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;

use crate::sensitivity_uncertainty::{Averages, SensitivityUncertainty};
use crate::{BetaError, ImportanceMetric, Observation, Start};

/// `[importance.uncertainty]`
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Uncertainty(SensitivityUncertainty);

impl Uncertainty {
    pub(crate) fn problems(&self) -> Vec<BetaError> {
        self.0.problems()
    }

    pub(crate) fn start(&self, start: &Start) -> OnlyUncertainty {
        OnlyUncertainty(self.0.averages(start))
    }
}

#[derive(Debug)]
pub(crate) struct OnlyUncertainty(Averages);

impl ImportanceMetric for OnlyUncertainty {
    fn observe(&mut self, seen: &Observation) {
        self.0.observe(seen);
    }

    fn importance(&self, seen: &Observation) -> Tensor {
        seen.layout.triplet_mean(&self.0.uncertainty)
    }

    fn entry_scores(&self) -> Option<Tensor> {
        Some(self.0.uncertainty.copy())
    }

    fn state(&mut self) -> Vec<(&'static str, &mut Tensor)> {
        self.0.state()
    }
}
