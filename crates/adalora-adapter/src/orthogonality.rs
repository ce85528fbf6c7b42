//! The regularizer that keeps the rows of each factor near orthonormal.

use adalora_kernels::orthogonality::{Join, add_gradient};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use crate::arena::Arena;
use crate::cosine;

/// `[orthogonality.sum-of-squares]`, `[orthogonality.mean-of-norms]` and `[orthogonality.mean-of-cosines]`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
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
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Weight {
    /// Coefficient; the paper uses 0.1, 0.3 and 0.5.
    pub gamma: f64,
}

/// How far each factor is from orthonormal, whether there is a regularizer or not: `||Q Qᵀ - I||²` and
/// `||PᵀP - I||²` of each adapter, `(adapters, 2)`, over the triplets that the arena holds, masked ones among them.
pub fn squared_residuals(arena: &Arena) -> Tensor {
    let _guard = tch::no_grad_guard();
    let square = |factor: Tensor| {
        let eye = Tensor::eye(factor.size()[0], (Kind::Float, factor.device()));
        (factor.matmul(&factor.tr()) - eye).square().sum(Kind::Float)
    };
    let layout = arena.layout();
    let squares = (0..layout.adapters()).flat_map(|adapter| {
        let triplets = layout.triplets(arena.param(), adapter);
        [square(triplets.q), square(triplets.p)]
    });
    let squares: Vec<_> = squares.collect();
    if squares.is_empty() {
        return Tensor::zeros([0, 2], (Kind::Float, arena.param().device()));
    }
    Tensor::stack(&squares, 0).view([-1, 2])
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

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;
    use crate::{Form, Layout, Site};

    #[test]
    fn squared_residuals_sum_to_the_regularizer() {
        let site = |path: &str, d_in, d_out, rank| Site { path: path.into(), d_in, d_out, rank };
        let sites = vec![site("first", 4, 6, 3), site("second", 5, 2, 0), site("third", 7, 5, 1)];
        let arena = Arena::new(Layout::new(Form::Svd, sites), vec![], Device::Cpu, 1);
        let residuals = squared_residuals(&arena);
        assert_eq!(residuals.size(), [3, 2]);
        let form = OrthogonalityForm::SumOfSquares(Weight { gamma: 1.0 });
        let sum = Orthogonality::new(form).add_gradient(&arena);
        let (own, sum) = (residuals.sum(Kind::Double).double_value(&[]), sum.double_value(&[]));
        assert!((own - sum).abs() < 1e-6 * sum, "{own} {sum}");
        // One row: (1 - |q|²)².
        let row = arena.layout().triplets(arena.param(), 2).q;
        let single = (1.0 - row.square().sum(Kind::Double).double_value(&[])).powi(2);
        assert!((residuals.double_value(&[2, 0]) - single).abs() < 1e-5 * single);
        assert_eq!(residuals.double_value(&[1, 0]), 0.0);
    }
}
