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
    /// An adapter over leaves of the arena. `scale` is what a [`ScalePolicy`](crate::ScalePolicy) gives; where that
    /// changes, another adapter over the same leaves takes the place of this one.
    pub fn new(leaves: &Leaves, scale: f64) -> Self {
        Self {
            q: leaves.q.shallow_clone(),
            p: leaves.p.shallow_clone(),
            lambda: leaves.lambda.as_ref().map(Tensor::shallow_clone),
            scale,
        }
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

    /// `(..., d_in)` to `(..., d_out)`, in the dtype of the weight: `x Wᵀ + b + scale * x Qᵀ diag(lambda) Pᵀ`.
    pub fn forward(&self, input: &Tensor) -> Tensor {
        let [output] = Self::forward_together([self], input);
        output
    }

    /// [`forward`](Self::forward) of layers that see the same input, as query, key and value do.
    ///
    /// Lambda and scale are folded into the factor `Q` of `r` rows, and the product is accumulated into the layer's
    /// output by one `addmm` in place: no operation but that one touches a tensor of the output's width. PEFT's form
    /// of the same product scales the output twice, which is most of what AdaLoRA costs there. All `Q` are joined, so
    /// that the input is read once for all adapters, and its gradient is written once.
    ///
    /// What is `r` wide is kept as `(r, rows)`. Matrix products on the CPU take half as long that way, in this pass and
    /// in the backward pass, which takes its orientation from here. Joining the frozen weights as well was measured and
    /// gains nothing.
    pub fn forward_together<const N: usize>(layers: [&Self; N], input: &Tensor) -> [Tensor; N] {
        let (mut shape, kind) = (input.size(), input.kind());
        let d_in = shape.pop().expect("an input has a width");
        let rows = input.reshape([-1, d_in]);
        let adapters = layers.map(Self::active);
        let scaled: Vec<_> =
            adapters.iter().flatten().map(|adapter| adapter.scaled_q().to_kind(kind)).collect();
        let ranks: Vec<_> = adapters.iter().flatten().map(|adapter| adapter.rank()).collect();
        let hidden = match scaled.as_slice() {
            [] => Vec::new(),
            [one] => vec![one.matmul(&rows.tr())],
            _ => Tensor::cat(&scaled, 0).matmul(&rows.tr()).split_with_sizes(ranks, 0),
        };
        let mut hidden = hidden.into_iter();
        let mut index = 0;
        layers.map(|layer| {
            let mut output = rows.linear(&layer.weight, layer.bias.as_ref());
            if let Some(adapter) = adapters[index] {
                let hidden = hidden.next().expect("one part for each adapter");
                let _ = output.addmm_(&hidden.tr(), &adapter.p.to_kind(kind));
            }
            index += 1;
            let shape = [shape.as_slice(), &[layer.weight.size()[0]]].concat();
            output.view(shape.as_slice())
        })
    }

    /// The adapter, unless it is merged.
    fn active(&self) -> Option<&Adapter> {
        self.adapter.as_ref().filter(|_| self.unmerged.is_none())
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
    fn layers_together_give_what_each_gives_alone() {
        let [(a, first), (b, second), (_c, third)] =
            [(Form::Svd, 3), (Form::Svd, 1), (Form::Svd, 0)].map(|(form, rank)| randomised(form, rank));
        let x = Tensor::randn([2, 5, 6], (Kind::Float, Device::Cpu)).set_requires_grad(true);
        let mut results = Vec::new();
        for together in [true, false] {
            for arena in [&a, &b] {
                arena.zero_grad();
                let _ = tch::no_grad(|| arena.param().shallow_clone().fill_(0.3));
            }
            let outputs = if together {
                Linear::forward_together([&first, &second, &third], &x)
            } else {
                [&first, &second, &third].map(|layer| layer.forward(&x))
            };
            let weighted = outputs
                .iter()
                .zip([1.0, -2.0, 3.0])
                .map(|(y, weight)| (y.square() * weight).sum(Kind::Float));
            let loss = Tensor::stack(&weighted.collect::<Vec<_>>(), 0).sum(Kind::Float);
            let gradient = Tensor::run_backward(&[loss], &[&x], true, false).remove(0);
            results.push([Tensor::stack(&outputs, 0), gradient]);
        }
        for (one, other) in results[0].iter().zip(&results[1]) {
            let difference = (one - other).abs().max().double_value(&[]);
            assert!(difference < 1e-4, "{difference}");
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
