//! Importance metrics: how much each triplet is worth.
//!
//! A metric is one file in this crate and one line in the table below. It implements [`ImportanceMetric`], three
//! short methods over flat tensors; see `docs/add-a-metric.md`.

mod inverse;
mod magnitude;
mod random;
mod sensitivity;
mod sensitivity_uncertainty;
mod uncertainty;
mod uniform;

use adalora_adapter::Layout;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Device, Tensor};

pub use inverse::Inverse;
pub use magnitude::Magnitude;
pub use random::Random;
pub use sensitivity::Sensitivity;
pub use sensitivity_uncertainty::SensitivityUncertainty;
pub use uncertainty::Uncertainty;
pub use uniform::Uniform;

/// What a metric sees of one optimizer step: the adapter part of the arena, flat and detached.
///
/// The tensors share storage with the parameters; a metric copies what it keeps.
#[derive(Debug)]
pub struct Observation<'a> {
    /// Parameters, `(entries,)`. From before or after the step, as the experiment says.
    pub param: &'a Tensor,
    /// Gradient of the loss at the parameters from before the step, `(entries,)`.
    pub grad: &'a Tensor,
    /// Which entry belongs to which triplet.
    pub layout: &'a Layout,
}

/// The importance of triplets, learnt from the training steps.
pub trait ImportanceMetric: std::fmt::Debug {
    /// Called once for each optimizer step, while the budget still moves.
    fn observe(&mut self, seen: &Observation);

    /// One value for each triplet, `(triplets,)`; larger means keep. At an allocation the parameters are those after
    /// the step and the gradient is the optimizer's; what `[observation]` asks for is what `observe` was given.
    fn importance(&self, seen: &Observation) -> Tensor;

    /// The scores of the entries whose mean over each row makes up the importance, `(entries,)`; `None` for a metric that
    /// is not made so. A record of training shows from it whether lambda, P or Q decides.
    fn entry_scores(&self) -> Option<Tensor> {
        None
    }

    /// The tensors that a checkpoint must hold, by name; each keeps its shape, dtype and storage, so that a resumed run
    /// can copy the saved values into it.
    fn state(&mut self) -> Vec<(&'static str, &mut Tensor)>;
}

/// What a metric may know when a run starts.
#[derive(Debug)]
pub struct Start<'a> {
    /// The adapters.
    pub layout: &'a Layout,
    /// Where state belongs.
    pub device: Device,
    /// The run's seed.
    pub seed: u64,
}

impl Start<'_> {
    /// A zero for each entry of the adapter part, `(entries,)`: the start of a running average.
    pub fn zeros(&self) -> Tensor {
        Tensor::zeros([self.layout.entries() as i64], (tch::Kind::Float, self.device))
    }
}

/// A setting that a metric cannot work with.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error(
    "{key} ({value}) must lie strictly between 0 and 1: it is the weight of the past in a running average"
)]
pub struct BetaError {
    /// Which setting.
    pub key: &'static str,
    /// Its value.
    pub value: f64,
}

/// The settings among `betas` that are not strictly between 0 and 1.
fn check_betas(betas: &[(&'static str, f64)]) -> Vec<BetaError> {
    let broken = betas.iter().filter(|(_, value)| !(*value > 0.0 && *value < 1.0));
    broken.map(|&(key, value)| BetaError { key, value }).collect()
}

/// The table of metrics: name in an experiment file, settings, one line each.
macro_rules! metrics {
    ($($variant:ident = $name:literal: $summary:literal,)*) => {
        /// `[importance.NAME]`: a metric and its settings.
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
        pub enum ImportanceSpec {
            $(#[doc = $summary] #[serde(rename = $name)] $variant($variant),)*
        }

        impl ImportanceSpec {
            /// Every metric with its default settings.
            pub fn all() -> Vec<Self> {
                vec![$(Self::$variant($variant::default()),)*]
            }

            /// The name in an experiment file.
            pub fn name(&self) -> &'static str {
                match self { $(Self::$variant(_) => $name,)* }
            }

            /// One line that says what the metric is.
            pub fn summary(&self) -> &'static str {
                match self { $(Self::$variant(_) => $summary,)* }
            }

            /// Every setting that breaks a rule.
            pub fn problems(&self) -> Vec<BetaError> {
                match self { $(Self::$variant(settings) => settings.problems(),)* }
            }

            /// The metric at the start of a run.
            pub fn start(&self, start: &Start) -> Box<dyn ImportanceMetric> {
                match self { $(Self::$variant(settings) => Box::new(settings.start(start)),)* }
            }
        }
    };
}

metrics! {
    SensitivityUncertainty = "sensitivity-uncertainty": "smoothed sensitivity times its uncertainty, the paper's",
    Sensitivity = "sensitivity": "smoothed sensitivity alone, the paper's ablation s = I",
    Uncertainty = "uncertainty": "uncertainty of the sensitivity alone",
    Magnitude = "magnitude": "|lambda|, the paper's ablation",
    Random = "random": "control: an order drawn once from the seed",
    Uniform = "uniform": "control: the same rank everywhere",
    Inverse = "inverse": "control: the paper's score negated",
}
