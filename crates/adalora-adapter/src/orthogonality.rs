//! The regularizer that keeps the rows of each factor near orthonormal.

use adalora_kernels::orthogonality::{Join, add_gradient};
use serde::{Deserialize, Serialize};
use tch::Tensor;

use crate::arena::Arena;
use crate::cosine;

/// `[orthogonality.sum-of-squares]`, `[orthogonality.mean-of-norms]` and `[orthogonality.mean-of-cosines]`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OrthogonalityForm {
    /// The paper's equation 4: `gamma * sum of ||M||²` over all factors.
    SumOfSquares(Weight),
    /// The authors' code and PEFT: `gamma * mean of ||M||` over all factors. At a gradient norm that differs from
    /// the paper's by a factor of `2 * factors * ||M||`.
    MeanOfNorms(Weight),
    /// The authors' code for LoRA: `gamma * mean of |cosine|` over all pairs of rows of a factor, and over all factors.
    /// It does not touch the rows' lengths.
    MeanOfCosines(Weight),
}

impl OrthogonalityForm {
    /// The name in an experiment file, and the weight.
    pub fn named(&self) -> (&'static str, &Weight) {
        match self {
            Self::SumOfSquares(weight) => ("sum-of-squares", weight),
            Self::MeanOfNorms(weight) => ("mean-of-norms", weight),
            Self::MeanOfCosines(weight) => ("mean-of-cosines", weight),
        }
    }
}

/// The regularizer's weight in the loss.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Weight {
    /// Coefficient; the paper uses 0.1, 0.3 and 0.5.
    pub gamma: f64,
}

/// The regularizer over all factors of an arena.
#[derive(Debug)]
pub struct Orthogonality {
    form: OrthogonalityForm,
}

impl Orthogonality {
    /// The regularizer in the given form.
    pub fn new(form: OrthogonalityForm) -> Self {
        Self { form }
    }

    /// Adds the gradient to the arena's, in closed form, and returns `R` without `gamma`, a scalar on the arena's
    /// device.
    pub fn add_gradient(&self, arena: &Arena) -> Tensor {
        let (param, grad, rows) = (arena.param(), arena.grad(), arena.layout().rows());
        match self.form {
            OrthogonalityForm::SumOfSquares(weight) => {
                add_gradient(param, grad, rows, Join::SumOfSquares, weight.gamma)
            }
            OrthogonalityForm::MeanOfNorms(weight) => {
                add_gradient(param, grad, rows, Join::MeanOfNorms, weight.gamma)
            }
            OrthogonalityForm::MeanOfCosines(weight) => cosine::add_gradient(param, grad, rows, weight.gamma),
        }
    }
}
