//! The paper's importance: smoothed sensitivity times smoothed uncertainty.

use adalora_kernels::smoothing::smooth;
use serde::{Deserialize, Serialize};
use tch::Tensor;

use crate::{BetaError, ImportanceMetric, Observation, Start, check_betas};

/// `[importance.sensitivity-uncertainty]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SensitivityUncertainty {
    /// Weight of the past in the average of sensitivity, strictly between 0 and 1.
    pub beta1: f64,
    /// Weight of the past in the average of uncertainty, strictly between 0 and 1.
    pub beta2: f64,
}

impl Default for SensitivityUncertainty {
    /// 0.85 for both, as in all experiments of the paper.
    fn default() -> Self {
        Self { beta1: 0.85, beta2: 0.85 }
    }
}

impl SensitivityUncertainty {
    pub(crate) fn problems(&self) -> Vec<BetaError> {
        check_betas(&[("beta1", self.beta1), ("beta2", self.beta2)])
    }

    pub(crate) fn start(&self, start: &Start) -> Running {
        let (sensitivity, uncertainty) = (start.zeros(), start.zeros());
        Running { beta1: self.beta1, beta2: self.beta2, sensitivity, uncertainty }
    }
}

/// The two running averages, element by element; also what [`Uncertainty`](crate::Uncertainty) and
/// [`Inverse`](crate::Inverse) are made from.
#[derive(Debug)]
pub(crate) struct Running {
    beta1: f64,
    beta2: f64,
    /// Shape `(entries,)`.
    sensitivity: Tensor,
    /// Shape `(entries,)`.
    pub(crate) uncertainty: Tensor,
}

impl ImportanceMetric for Running {
    fn observe(&mut self, seen: &Observation) {
        smooth(&mut self.sensitivity, &mut self.uncertainty, seen.param, seen.grad, self.beta1, self.beta2);
    }

    /// `s = I-bar * U-bar` for each entry, then equation 7.
    fn importance(&self, seen: &Observation) -> Tensor {
        seen.layout.triplet_mean(&(&self.sensitivity * &self.uncertainty))
    }

    fn state(&mut self) -> Vec<(&'static str, &mut Tensor)> {
        vec![("sensitivity", &mut self.sensitivity), ("uncertainty", &mut self.uncertainty)]
    }
}
