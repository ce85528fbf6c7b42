//! All trainable parameters in one flat buffer, their gradients in another.

use std::ops::Range;

use tch::{Device, Kind, Tensor};

use crate::layout::{Form, Layout};
use crate::linear::Adapter;
use crate::random::Random;

/// What a trainable parameter is, which decides how it decays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParameterKind {
    /// `P` and `Q`, or LoRA's `B` and `A`.
    Factor,
    /// The singular values.
    Lambda,
    /// A weight matrix of the head or the pooler.
    Weight,
    /// A weight matrix in the encoder: its own, or a bottleneck's.
    Encoder,
    /// A bias or a LayerNorm parameter: never decays.
    Bias,
}

/// A trainable parameter that is no triplet's: of the head, the pooler, or in the encoder.
#[derive(Debug)]
pub struct Extra {
    /// Path of the parameter in the model.
    pub name: String,
    /// Its first value, copied into the arena; the shape counts, the device does not.
    pub start: Tensor,
    /// What it is.
    pub kind: ParameterKind,
}

/// The flat buffers of a run, f32 on one device.
///
/// ```text
/// param   [ adapter 0: Q rows | P rows | adapter 1 ... | all lambda | other trainables ]
/// grad      the same offsets
/// ```
///
/// Layers hold *leaf tensors* that alias `param` and whose gradients alias `grad`: `backward` accumulates straight
/// into the arena, and an optimizer, a metric or a checkpoint is one operation over flat tensors.
#[derive(Debug)]
pub struct Arena {
    layout: Layout,
    param: Tensor,
    grad: Tensor,
    adapters: Vec<Leaves>,
    extras: Vec<(String, Tensor)>,
    kinds: Vec<(Range<usize>, ParameterKind)>,
}

/// Leaf tensors of one adapter.
#[derive(Debug)]
pub struct Leaves {
    /// `(r, d_in)`.
    pub q: Tensor,
    /// `(r, d_out)`.
    pub p: Tensor,
    /// `(r,)`; `None` for LoRA.
    pub lambda: Option<Tensor>,
}

impl Arena {
    /// Allocates the buffers and draws the adapters' start from `seed`.
    ///
    /// SVD: `P` and `Q` normal with standard deviation 0.02, lambda 0, as in both codes (the paper does not say).
    /// LoRA: `A` uniform within `±1/sqrt(d_in)`, which is PEFT's Kaiming-uniform with `a = sqrt(5)`; `B` 0.
    /// Either way the increment is exactly 0.
    pub fn new(layout: Layout, extras: Vec<Extra>, device: Device, seed: u64) -> Self {
        let _guard = tch::no_grad_guard();
        let extra_len: i64 = extras.iter().map(|extra| extra.start.numel() as i64).sum();
        let param = Tensor::zeros([layout.entries() as i64 + extra_len], (Kind::Float, device));

        let mut random = Random::new(seed, "adapters");
        for adapter in 0..layout.adapters() {
            let mut views = layout.triplets(&param, adapter);
            match layout.form() {
                Form::Svd => {
                    views.q.copy_(&random.normal(&views.q.size(), 0.02));
                    views.p.copy_(&random.normal(&views.p.size(), 0.02));
                }
                Form::Lora => {
                    let bound = 1.0 / (layout.sites()[adapter].d_in as f64).sqrt();
                    views.q.copy_(&random.uniform(&views.q.size(), bound));
                }
            }
        }
        let mut offset = layout.entries() as i64;
        for extra in &extras {
            let count = extra.start.numel() as i64;
            param.narrow(0, offset, count).view(extra.start.size().as_slice()).copy_(&extra.start);
            offset += count;
        }
        Self::over(
            layout,
            param,
            extras.iter().map(|extra| (extra.name.as_str(), extra.start.size(), extra.kind)),
        )
    }

    /// Leaves and gradients over a buffer that holds the parameters.
    fn over<'a>(
        layout: Layout,
        param: Tensor,
        extras: impl Iterator<Item = (&'a str, Vec<i64>, ParameterKind)>,
    ) -> Self {
        let grad = param.zeros_like();
        let mut kinds = vec![
            (layout.factor_range(), ParameterKind::Factor),
            (layout.lambda_range(), ParameterKind::Lambda),
        ];
        let mut leaves = Vec::new();
        let mut offset = layout.entries();
        for (name, shape, kind) in extras {
            let count = shape.iter().product::<i64>() as usize;
            let view = param.narrow(0, offset as i64, count as i64).view(shape.as_slice());
            leaves.push((name.to_owned(), leaf(&view, &grad, offset)));
            kinds.push((offset..offset + count, kind));
            offset += count;
        }
        let adapters = (0..layout.adapters())
            .map(|adapter| {
                let views = layout.triplets(&param, adapter);
                let [q, p] = layout.factors(adapter).map(|factor| factor.offset);
                let first = layout.lambda_range().start + layout.triplet_range(adapter).start;
                Leaves {
                    q: leaf(&views.q, &grad, q),
                    p: leaf(&views.p, &grad, p),
                    lambda: views.lambda.map(|lambda| leaf(&lambda, &grad, first)),
                }
            })
            .collect();
        Self { layout, param, grad, adapters, extras: leaves, kinds }
    }

    /// The arena without the triplets that are dead for good: their rows of `P` and `Q` and their lambda are gone.
    /// Gradients are 0. `live` has one flag for each triplet, adapters one after another.
    ///
    /// Also returns where in this arena the values of the new one are, `(len,)`, `Int64`: what an optimizer keeps for
    /// each value is to be taken from there.
    pub fn compact(&self, live: &[bool]) -> (Self, Tensor) {
        let _guard = tch::no_grad_guard();
        let (layout, kept) = self.layout.compact(live);
        let kept: Vec<_> =
            kept.into_iter().chain(self.layout.entries()..self.len()).map(|at| at as i64).collect();
        let kept = Tensor::from_slice(&kept).to_device(self.param.device());
        let extras = self.extras.iter().zip(&self.kinds[2..]);
        let extras = extras.map(|((name, leaf), (_, kind))| (name.as_str(), leaf.size(), *kind));
        (Self::over(layout, self.param.index_select(0, &kept), extras), kept)
    }

    /// The layout of the adapter part.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// All parameters, flat.
    pub fn param(&self) -> &Tensor {
        &self.param
    }

    /// Their gradients, flat; `backward` accumulates here.
    pub fn grad(&self) -> &Tensor {
        &self.grad
    }

    /// The adapter part of the parameters, flat.
    pub fn adapter_param(&self) -> Tensor {
        self.param.narrow(0, 0, self.layout.entries() as i64)
    }

    /// The adapter part of the gradients, flat.
    pub fn adapter_grad(&self) -> Tensor {
        self.grad.narrow(0, 0, self.layout.entries() as i64)
    }

    /// The leaf tensors of each adapter, in build order.
    pub fn leaves(&self) -> &[Leaves] {
        &self.adapters
    }

    /// One adapter for each site, to be attached to its layer, all of one scale.
    pub fn adapters(&self, scale: f64) -> impl Iterator<Item = Adapter> {
        self.adapters.iter().map(move |leaves| Adapter::new(leaves, scale))
    }

    /// One adapter for each site, each of its own scale.
    ///
    /// # Panics
    ///
    /// If there is not one scale for each.
    pub fn scaled_adapters(&self, scales: &[f64]) -> impl Iterator<Item = Adapter> {
        assert_eq!(scales.len(), self.adapters.len(), "one scale for each adapter");
        self.adapters.iter().zip(scales).map(|(leaves, &scale)| Adapter::new(leaves, scale))
    }

    /// The trainable parameters outside the adapters, by name.
    pub fn extras(&self) -> &[(String, Tensor)] {
        &self.extras
    }

    /// The leaf of a trainable parameter outside the adapters.
    ///
    /// # Panics
    ///
    /// If the arena was built without it.
    pub fn extra(&self, name: &str) -> Tensor {
        let found = self.extras.iter().find(|(own, _)| own == name);
        found.map(|(_, leaf)| leaf.shallow_clone()).expect("the arena holds every extra it was built with")
    }

    /// What lies where: ranges in order, covering the whole buffer.
    pub fn kinds(&self) -> &[(Range<usize>, ParameterKind)] {
        &self.kinds
    }

    /// Values of all buffers.
    pub fn len(&self) -> usize {
        self.param.numel()
    }

    /// Whether nothing is trainable.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Clears all gradients.
    pub fn zero_grad(&self) {
        let _ = self.grad.shallow_clone().zero_();
    }
}

/// A leaf over `view`, whose gradient is the part of `grad` that begins at `offset`.
fn leaf(view: &Tensor, grad: &Tensor, offset: usize) -> Tensor {
    let leaf = view.detach().set_requires_grad(true);
    // A leaf has no gradient tensor until a backward pass has made one; then that one can be pointed at the arena.
    tch::with_grad(|| leaf.sum(Kind::Float).backward());
    let own = grad.narrow(0, offset as i64, view.numel() as i64).view(view.size().as_slice());
    leaf.grad().set_data(&own);
    let _ = leaf.grad().zero_();
    leaf
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::Site;

    fn small(form: Form) -> Arena {
        let site = |path: &str, d_in, d_out, rank| Site { path: path.into(), d_in, d_out, rank };
        let layout = Layout::new(form, vec![site("a", 4, 3, 2), site("b", 3, 5, 0), site("c", 2, 2, 3)]);
        let bias = Extra {
            name: "head.bias".into(),
            start: Tensor::from_slice(&[1f32, 2.0, 3.0]),
            kind: ParameterKind::Bias,
        };
        Arena::new(layout, vec![bias], Device::Cpu, 7)
    }

    #[test]
    fn backward_accumulates_into_the_arena() {
        let arena = small(Form::Svd);
        for _ in 0..2 {
            let a = &arena.leaves()[0];
            let loss = a.q.sum(Kind::Float)
                + a.lambda.as_ref().unwrap().sum(Kind::Float) * 3.0
                + (arena.extra("head.bias") * 5.0).sum(Kind::Float);
            loss.backward();
        }
        let grad = Vec::<f32>::try_from(arena.grad()).unwrap();
        assert_eq!(grad[..14], [[2.0; 8].as_slice(), &[0.0; 6]].concat());
        assert_eq!(grad[26..], [6.0, 6.0, 0.0, 0.0, 0.0, 10.0, 10.0, 10.0]);
        arena.zero_grad();
        assert_eq!(arena.grad().abs().sum(Kind::Float).double_value(&[]), 0.0);
    }

    #[test]
    fn leaves_see_what_is_written_to_the_buffer() {
        let arena = small(Form::Svd);
        let _ = arena.param().shallow_clone().fill_(4.0);
        assert_eq!(arena.leaves()[2].p.double_value(&[2, 1]), 4.0);
        assert_eq!(arena.extra("head.bias").double_value(&[0]), 4.0);
    }

    #[test]
    fn compacting_keeps_the_live_triplets_and_what_is_outside_the_adapters() {
        let arena = small(Form::Svd);
        let values: Vec<f32> = (0..arena.len()).map(|i| i as f32).collect();
        arena.param().shallow_clone().copy_(&Tensor::from_slice(&values));
        let (compact, kept) = arena.compact(&[true, false, true, false, true]);
        assert_eq!(compact.layout().ranks(), [1, 0, 2]);
        // Adapter a: Q rows of 4 from 0, P rows of 3 from 8; c: Q rows of 2 from 14, P rows of 2 from 20; lambda from
        // 26; the head from 31.
        let expected = [0, 1, 2, 3, 8, 9, 10, 14, 15, 18, 19, 20, 21, 24, 25, 26, 28, 30, 31, 32, 33];
        assert_eq!(Vec::<i64>::try_from(&kept).unwrap(), expected);
        assert_eq!(Vec::<f32>::try_from(compact.param()).unwrap(), expected.map(|i| i as f32));
        assert_eq!(compact.kinds().len(), arena.kinds().len());
        (compact.extra("head.bias").sum(Kind::Float) + compact.leaves()[2].p.sum(Kind::Float)).backward();
        let grad = Vec::<f32>::try_from(compact.grad()).unwrap();
        assert_eq!(grad[11..], [1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0]);
    }

    #[test]
    fn the_start_is_a_function_of_the_seed_and_adds_nothing() {
        for form in [Form::Svd, Form::Lora] {
            let (one, two) = (small(form), small(form));
            assert_eq!(one.param(), two.param());
            for adapter in one.adapters(2.0) {
                assert_eq!(adapter.delta().abs().sum(Kind::Float).double_value(&[]), 0.0);
            }
        }
    }
}
