//! A frozen linear layer and the increment that is trained on top of it.

use tch::{Kind, Tensor};

use crate::arena::Leaves;

/// The increment `scale * P diag(lambda) Q`, or `scale * B A`, of one layer.
#[derive(Debug)]
pub struct Adapter {
    q: Tensor,
    p: Tensor,
    lambda: Option<Tensor>,
    scale: f64,
}

impl Adapter {
    /// An adapter over leaves of the arena. `scale` is the field's `alpha / r` with the *initial* rank, which does
    /// not change when triplets are masked.
    pub fn new(leaves: &Leaves, scale: f64) -> Self {
        Self {
            q: leaves.q.shallow_clone(),
            p: leaves.p.shallow_clone(),
            lambda: leaves.lambda.as_ref().map(Tensor::shallow_clone),
            scale,
        }
    }

    /// Adds `scale * P diag(lambda) Q x` to each row of `base` in place, in the dtype of `base`.
    ///
    /// `base` is `(rows, d_out)` and `input` is `(rows, d_in)`. Lambda and scale are folded into the factor of `r` rows
    /// and the product is accumulated by one `addmm`: no operation but that one touches a tensor of the output's
    /// width. PEFT's form of the same product scales the output twice, which is most of what AdaLoRA costs there.
    ///
    /// What is `r` wide is kept as `(r, rows)`. Matrix products on the CPU take half as long that way, in this pass and
    /// in the backward pass, which takes its orientation from here.
    fn add_to(&self, base: &mut Tensor, input: &Tensor) {
        let hidden = self.scaled_q().to_kind(base.kind()).matmul(&input.tr());
        let _ = base.addmm_(&hidden.tr(), &self.p.to_kind(base.kind()));
    }

    fn rank(&self) -> i64 {
        self.q.size()[0]
    }

    /// The increment as a matrix `(d_out, d_in)`, f32, without gradient.
    pub fn delta(&self) -> Tensor {
        let _guard = tch::no_grad_guard();
        self.p.tr().matmul(&self.scaled_q())
    }

    /// `scale * diag(lambda) Q`, `(r, d_in)`.
    fn scaled_q(&self) -> Tensor {
        match &self.lambda {
            Some(lambda) => &self.q * (lambda * self.scale).unsqueeze(1),
            None => &self.q * self.scale,
        }
    }
}

/// A frozen linear layer, `y = x Wᵀ + b`, that may carry an adapter.
#[derive(Debug)]
pub struct Linear {
    path: String,
    weight: Tensor,
    bias: Option<Tensor>,
    adapter: Option<Adapter>,
    /// The weight before [`merge`](Self::merge).
    unmerged: Option<Tensor>,
}

impl Linear {
    /// A frozen layer without an adapter. `weight` is `(d_out, d_in)`, `bias` is `(d_out,)`.
    pub fn new(path: impl Into<String>, weight: Tensor, bias: Option<Tensor>) -> Self {
        Self { path: path.into(), weight, bias, adapter: None, unmerged: None }
    }

    /// Path of the layer in the model.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// `(d_in, d_out)`.
    pub fn widths(&self) -> (usize, usize) {
        let (d_out, d_in) = self.weight.size2().expect("a linear layer's weight is a matrix");
        (d_in as usize, d_out as usize)
    }

    /// The weight as it stands, `(d_out, d_in)`.
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// Puts an adapter on the layer in the place of any other. One of rank 0 leaves a plain layer.
    pub fn attach(&mut self, adapter: Adapter) {
        self.adapter = Some(adapter).filter(|adapter| adapter.rank() > 0);
    }

    /// `(..., d_in)` to `(..., d_out)`.
    pub fn forward(&self, input: &Tensor) -> Tensor {
        let (d_in, d_out) = self.widths();
        let rows = input.reshape([-1, d_in as i64]);
        let mut output = rows.linear(&self.weight, self.bias.as_ref());
        if let (Some(adapter), None) = (&self.adapter, &self.unmerged) {
            adapter.add_to(&mut output, &rows);
        }
        let mut shape = input.size();
        shape.pop();
        shape.push(d_out as i64);
        output.view(shape.as_slice())
    }

    /// Adds the increment to the weight: the sum is taken in f32 and cast to the weight's dtype once. Later changes
    /// of the adapter have no effect until [`unmerge`](Self::unmerge). Without an adapter nothing happens.
    pub fn merge(&mut self) {
        if let (Some(adapter), None) = (&self.adapter, &self.unmerged) {
            let merged = (self.weight.to_kind(Kind::Float) + adapter.delta()).to_kind(self.weight.kind());
            self.unmerged = Some(std::mem::replace(&mut self.weight, merged));
        }
    }

    /// Takes the weight from before [`merge`](Self::merge) back. It was kept aside: subtracting the increment would
    /// return another weight in the last places, and a much coarser one in bf16.
    pub fn unmerge(&mut self) {
        if let Some(weight) = self.unmerged.take() {
            self.weight = weight;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arena::Arena;
    use crate::layout::{Form, Layout, Site};
    use tch::Device;

    fn randomised(form: Form, rank: usize) -> (Arena, Linear) {
        let site = Site { path: "fc".into(), d_in: 6, d_out: 4, rank };
        let arena = Arena::new(Layout::new(form, vec![site]), vec![], Device::Cpu, 3);
        let random = |shape: &[i64]| Tensor::randn(shape, (Kind::Float, Device::Cpu));
        let mut linear = Linear::new("fc", random(&[4, 6]), Some(random(&[4])));
        linear.attach(arena.adapters(1.7).next().unwrap());
        (arena, linear)
    }

    fn shake(arena: &Arena) {
        let _guard = tch::no_grad_guard();
        let _ = arena.param().shallow_clone().normal_(0.0, 1.0);
    }

    #[test]
    fn at_the_start_the_output_is_the_base_output_bit_for_bit() {
        for form in [Form::Svd, Form::Lora] {
            let (_arena, linear) = randomised(form, 3);
            let x = Tensor::randn([2, 5, 6], (Kind::Float, Device::Cpu));
            assert_eq!(linear.forward(&x), x.linear(&linear.weight, linear.bias.as_ref()));
        }
    }

    #[test]
    fn merged_and_unmerged_agree_and_unmerging_is_exact() {
        for (form, rank) in [(Form::Svd, 3), (Form::Lora, 2), (Form::Svd, 0)] {
            let (arena, mut linear) = randomised(form, rank);
            shake(&arena);
            let x = Tensor::randn([2, 5, 6], (Kind::Float, Device::Cpu));
            let (before, weight) = (linear.forward(&x), linear.weight().copy());
            linear.merge();
            linear.merge();
            let difference = (linear.forward(&x) - &before).abs().max().double_value(&[]);
            assert!(difference < 1e-4, "{form:?} at rank {rank}: {difference}");
            linear.unmerge();
            assert_eq!(linear.weight(), &weight);
            assert_eq!(linear.forward(&x), before);
        }
    }

    #[test]
    fn the_output_has_the_dtype_of_the_base() {
        let (arena, mut linear) = randomised(Form::Svd, 3);
        shake(&arena);
        linear.weight = linear.weight.to_kind(Kind::BFloat16);
        linear.bias = linear.bias.map(|bias| bias.to_kind(Kind::BFloat16));
        let x = Tensor::randn([5, 6], (Kind::BFloat16, Device::Cpu));
        let y = linear.forward(&x);
        assert_eq!(y.kind(), Kind::BFloat16);
        y.to_kind(Kind::Float).sum(Kind::Float).backward();
        assert!(arena.grad().abs().sum(Kind::Float).double_value(&[]) > 0.0);
        assert_eq!(arena.leaves()[0].q.grad().kind(), Kind::Float);
        linear.merge();
        assert_eq!(linear.weight().kind(), Kind::BFloat16);
    }
}
