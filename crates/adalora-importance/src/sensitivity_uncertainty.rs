//! The paper's importance: smoothed sensitivity times smoothed uncertainty.

use adalora_kernels::smoothing::{smooth, smooth_and_score};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use crate::{BetaError, ImportanceMetric, Observation, Start, check_betas};

/// `[importance.sensitivity-uncertainty]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
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
        let triplets = start.layout.triplet_count() as i64;
        Running {
            averages: self.averages(start),
            importance: Tensor::zeros([triplets], (Kind::Float, start.device)),
        }
    }

    pub(crate) fn averages(&self, start: &Start) -> Averages {
        let (sensitivity, uncertainty) = (start.zeros(), start.zeros());
        Averages { beta1: self.beta1, beta2: self.beta2, sensitivity, uncertainty }
    }
}

/// The two running averages, element by element.
#[derive(Debug)]
pub(crate) struct Averages {
    beta1: f64,
    beta2: f64,
    /// Shape `(entries,)`.
    sensitivity: Tensor,
    /// Shape `(entries,)`.
    pub(crate) uncertainty: Tensor,
}

impl Averages {
    pub(crate) fn observe(&mut self, seen: &Observation) {
        smooth(&mut self.sensitivity, &mut self.uncertainty, seen.param, seen.grad, self.beta1, self.beta2);
    }

    pub(crate) fn state(&mut self) -> Vec<(&'static str, &mut Tensor)> {
        vec![("sensitivity", &mut self.sensitivity), ("uncertainty", &mut self.uncertainty)]
    }
}

/// The averages and what they come to; [`Inverse`](crate::Inverse) is made from it too.
#[derive(Debug)]
pub(crate) struct Running {
    averages: Averages,
    /// Shape `(triplets,)`: `s = I-bar * U-bar` for each entry, then equation 7.
    importance: Tensor,
}

impl ImportanceMetric for Running {
    /// One pass, which leaves the importance as well: an allocation then has nothing to compute.
    fn observe(&mut self, seen: &Observation) {
        let Averages { beta1, beta2, sensitivity, uncertainty } = &mut self.averages;
        let (score, rows) = (&mut self.importance, seen.layout.rows());
        smooth_and_score(sensitivity, uncertainty, score, seen.param, seen.grad, *beta1, *beta2, rows);
    }

    fn importance(&self, _seen: &Observation) -> Tensor {
        self.importance.copy()
    }

    fn entry_scores(&self) -> Option<Tensor> {
        Some(&self.averages.sensitivity * &self.averages.uncertainty)
    }

    fn state(&mut self) -> Vec<(&'static str, &mut Tensor)> {
        let mut state = self.averages.state();
        state.push(("importance", &mut self.importance));
        state
    }
}
