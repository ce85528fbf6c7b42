//! The regularizer that keeps the rows of each factor near orthonormal.

use adalora_kernels::orthogonality::{Join, add_gradient};
use serde::{Deserialize, Serialize};
use tch::Tensor;

use crate::arena::Arena;

/// `[orthogonality.sum-of-squares]` and `[orthogonality.mean-of-norms]`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OrthogonalityForm {
    /// The paper's equation 4: `gamma * sum of ||M||²` over all factors.
    SumOfSquares(Weight),
    /// The authors' code and PEFT: `gamma * mean of ||M||` over all factors. At a gradient norm that differs from
    /// the paper's by a factor of `2 * factors * ||M||`.
    MeanOfNorms(Weight),
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
    join: Join,
    gamma: f64,
}

impl Orthogonality {
    /// The regularizer in the given form.
    pub fn new(form: OrthogonalityForm) -> Self {
        let (join, gamma) = match form {
            OrthogonalityForm::SumOfSquares(weight) => (Join::SumOfSquares, weight.gamma),
            OrthogonalityForm::MeanOfNorms(weight) => (Join::MeanOfNorms, weight.gamma),
        };
        Self { join, gamma }
    }

    /// Adds the gradient to the arena's, in closed form, and returns `R` without `gamma`, a scalar on the arena's
    /// device.
    pub fn add_gradient(&self, arena: &Arena) -> Tensor {
        add_gradient(arena.param(), arena.grad(), arena.layout().rows(), self.join, self.gamma)
    }
}
