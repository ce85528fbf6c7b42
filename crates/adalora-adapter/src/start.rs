//! What `P` and `Q` of a triplet start from.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;

use crate::arena::Arena;
use crate::layout::Form;

/// `adapter.svd.start`: lambda is 0 either way, and the increment with it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum FactorStart {
    /// Normal with standard deviation 0.02: both codes (the paper says neither deviation nor why). A row of width `d`
    /// has a norm of about `0.02 sqrt(d)`, 0.39 at 384, where the regularizer asks for 1.
    #[default]
    Normal,
    /// Orthonormal rows, made from those normal ones: where the regularizer leads. With an increment of a triplet
    /// as large as its lambda, gradients of lambda are larger too, by `1 / (0.0004 sqrt(d_in d_out))`.
    Orthonormal,
}

impl FactorStart {
    /// Whether it is the default, which files need not say.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Makes this the start of a new arena's triplets. Leaves LoRA's factors alone.
    ///
    /// # Panics
    ///
    /// If an orthonormal start is asked for where a rank is above the width of a layer.
    pub fn apply(self, arena: &Arena) {
        if self == Self::Normal || arena.layout().form() == Form::Lora {
            return;
        }
        let _guard = tch::no_grad_guard();
        for adapter in 0..arena.layout().adapters() {
            let views = arena.layout().triplets(arena.param(), adapter);
            for mut rows in [views.q, views.p] {
                rows.copy_(&orthonormal(&rows));
            }
        }
    }
}

/// Orthonormal rows with the span of these, `(r, d)` with `r <= d`, by QR in f64.
fn orthonormal(rows: &Tensor) -> Tensor {
    let (orthonormal, _) = Tensor::linalg_qr(&rows.to_kind(tch::Kind::Double).tr(), "reduced");
    orthonormal.tr()
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;
    use crate::layout::{Layout, Site};
    use crate::orthogonality::squared_residuals;

    fn arena(form: Form, seed: u64) -> Arena {
        let site = |path: &str, d_in, d_out, rank| Site { path: path.into(), d_in, d_out, rank };
        let sites = vec![site("wide", 9, 4, 3), site("none", 5, 5, 0), site("square", 4, 4, 4)];
        Arena::new(Layout::new(form, sites), vec![], Device::Cpu, seed)
    }

    #[test]
    fn orthonormal_rows_span_what_the_normal_ones_do() {
        let (normal, arena) = (arena(Form::Svd, 7), arena(Form::Svd, 7));
        FactorStart::Orthonormal.apply(&arena);
        let residual = squared_residuals(&arena).max().double_value(&[]);
        assert!(residual < 1e-10, "{residual}");

        let [before, after] = [&normal, &arena].map(|arena| arena.layout().triplets(arena.param(), 0).q);
        let projected = before.matmul(&after.tr()).matmul(&after);
        assert!((projected - &before).abs().max().double_value(&[]) < 1e-7);
        assert_eq!(after.size(), [3, 9]);
    }

    #[test]
    fn normal_and_lora_stay() {
        for (form, start) in [(Form::Svd, FactorStart::Normal), (Form::Lora, FactorStart::Orthonormal)] {
            let (before, after) = (arena(form, 7), arena(form, 7));
            start.apply(&after);
            assert_eq!(before.param(), after.param(), "{form:?}");
        }
    }
}
