//! Importance as the smoothed sensitivity alone: the paper's ablation `s = I`.
//!
//! The authors' ablation code smooths as well; the paper's table does not say. `beta = 0` would be the raw
//! sensitivity of one batch, which nobody has reported.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;

use crate::{BetaError, ImportanceMetric, Observation, Start, check_betas};

/// `[importance.sensitivity]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Sensitivity {
    /// Weight of the past in the average, strictly between 0 and 1.
    pub beta: f64,
}

impl Default for Sensitivity {
    /// 0.85, the paper's `beta1`.
    fn default() -> Self {
        Self { beta: 0.85 }
    }
}

impl Sensitivity {
    pub(crate) fn problems(&self) -> Vec<BetaError> {
        check_betas(&[("beta", self.beta)])
    }

    pub(crate) fn start(&self, start: &Start) -> Running {
        Running { beta: self.beta, mean: start.zeros() }
    }
}

#[derive(Debug)]
pub(crate) struct Running {
    beta: f64,
    /// Shape `(entries,)`.
    mean: Tensor,
}

impl ImportanceMetric for Running {
    fn observe(&mut self, seen: &Observation) {
        let _ = self.mean.lerp_(&(seen.param * seen.grad).abs(), 1.0 - self.beta);
    }

    fn importance(&self, seen: &Observation) -> Tensor {
        seen.layout.triplet_mean(&self.mean)
    }

    fn entry_scores(&self) -> Option<Tensor> {
        Some(self.mean.copy())
    }

    fn state(&mut self) -> Vec<(&'static str, &mut Tensor)> {
        vec![("mean", &mut self.mean)]
    }
}
