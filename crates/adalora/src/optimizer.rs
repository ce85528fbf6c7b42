//! AdamW over an arena, and its learning rate as a function of the step.

use std::ops::Range;

use adalora_adapter::{Arena, Layout, ParameterKind};
use adalora_kernels::adamw;
use adalora_kernels::clear::clear;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;

/// `[optimizer]`: AdamW (Loshchilov and Hutter, 2019) with decoupled decay, as PyTorch computes it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AdamWSpec {
    /// Learning rate at its highest.
    pub lr: f64,
    /// How it moves over the run.
    #[serde(default)]
    pub schedule: LearningRateSpec,
    /// Decay of the running averages of the gradient and of its square.
    #[serde(default = "default_betas")]
    pub betas: [f64; 2],
    /// Added to the denominator.
    #[serde(default = "default_eps")]
    pub eps: f64,
    /// Decoupled weight decay for each kind of parameter. Biases and LayerNorm never decay.
    #[serde(default)]
    pub weight_decay: WeightDecay,
    /// What becomes of the running averages of a triplet that is masked.
    #[serde(default, skip_serializing_if = "MaskedMoments::is_default")]
    pub masked_moments: MaskedMoments,
}

/// What becomes of the running averages of a triplet, of its rows of `P` and `Q` and its lambda, when it is masked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum MaskedMoments {
    /// They stay, as in both codes: a triplet that comes back carries its old momentum.
    #[default]
    Keep,
    /// They are set to 0 after each update that masks it. The correction for the start goes on counting all steps, so
    /// that the next update of such a triplet is `(1 - beta1) / sqrt(1 - beta2)` times the learning rate in size: 3.2
    /// times with the usual betas.
    Zero,
}

impl MaskedMoments {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

fn default_betas() -> [f64; 2] {
    [0.9, 0.999]
}

fn default_eps() -> f64 {
    1e-8
}

impl Default for AdamWSpec {
    /// PyTorch's defaults but for the decay, which is 0, and a learning rate of 1e-3 that falls linearly.
    fn default() -> Self {
        Self {
            lr: 1e-3,
            schedule: LearningRateSpec::default(),
            betas: default_betas(),
            eps: default_eps(),
            weight_decay: WeightDecay::default(),
            masked_moments: MaskedMoments::default(),
        }
    }
}

/// Weight decay of each kind of parameter; 0 where absent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct WeightDecay {
    /// Of `P` and `Q`, or LoRA's `B` and `A`. The authors' code decays them like any weight.
    pub factors: f64,
    /// Of the singular values, likewise.
    pub lambda: f64,
    /// Of the weights of head and pooler.
    pub head: f64,
    /// Of the weights that are trained in the encoder: all its own, or those of bottlenecks.
    pub encoder: f64,
}

impl WeightDecay {
    /// The rate of each range of an arena.
    fn over(&self, arena: &Arena) -> Vec<(Range<usize>, f64)> {
        let rate = |kind: &ParameterKind| match kind {
            ParameterKind::Factor => self.factors,
            ParameterKind::Lambda => self.lambda,
            ParameterKind::Weight => self.head,
            ParameterKind::Encoder => self.encoder,
            ParameterKind::Bias => 0.0,
        };
        arena.kinds().iter().map(|(range, kind)| (range.clone(), rate(kind))).collect()
    }
}

/// `schedule = { linear = { warm_up = 100 } }`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum LearningRateSpec {
    /// Rises over the warm-up, then stays.
    Constant(WarmUp),
    /// Rises over the warm-up, then falls to 0 at the end of the run.
    Linear(WarmUp),
}

/// The rise at the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct WarmUp {
    /// Steps until the full learning rate.
    pub warm_up: usize,
}

impl Default for LearningRateSpec {
    /// Linear without warm-up.
    fn default() -> Self {
        Self::Linear(WarmUp::default())
    }
}

impl LearningRateSpec {
    /// Steps of the warm-up.
    pub fn warm_up(&self) -> usize {
        match self {
            Self::Constant(WarmUp { warm_up }) | Self::Linear(WarmUp { warm_up }) => *warm_up,
        }
    }
}

/// The learning rate of one run: a function of the step.
#[derive(Debug, Clone, Copy)]
pub struct LearningRate {
    peak: f64,
    spec: LearningRateSpec,
    total_steps: usize,
}

impl LearningRate {
    /// The learning rate that `spec` asks for in a run of `total_steps` optimizer steps.
    pub fn new(spec: &AdamWSpec, total_steps: usize) -> Self {
        Self { peak: spec.lr, spec: spec.schedule, total_steps }
    }

    /// The rate of step `step` (0-based), as `transformers` computes it: 0 at step 0 where there is a warm-up.
    pub fn at(&self, step: usize) -> f64 {
        let warm_up = self.spec.warm_up();
        let factor = if step < warm_up {
            step as f64 / warm_up as f64
        } else {
            match self.spec {
                LearningRateSpec::Constant(_) => 1.0,
                LearningRateSpec::Linear(_) => {
                    let left = self.total_steps.saturating_sub(step) as f64;
                    left / (self.total_steps - warm_up).max(1) as f64
                }
            }
        };
        self.peak * factor
    }
}

/// AdamW over all parameters of an arena.
#[derive(Debug)]
pub struct AdamW {
    betas: [f64; 2],
    eps: f64,
    weight_decay: WeightDecay,
    masked_moments: MaskedMoments,
    /// Decay of each range of the arena.
    decay: Vec<(Range<usize>, f64)>,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    count: u64,
}

impl AdamW {
    /// An optimizer whose moments are 0.
    pub fn new(spec: &AdamWSpec, arena: &Arena) -> Self {
        Self {
            betas: spec.betas,
            eps: spec.eps,
            weight_decay: spec.weight_decay,
            masked_moments: spec.masked_moments,
            decay: spec.weight_decay.over(arena),
            exp_avg: arena.param().zeros_like(),
            exp_avg_sq: arena.param().zeros_like(),
            count: 0,
        }
    }

    /// Goes on with `arena`, whose values are those that were at `kept` in the arena before: see [`Arena::compact`].
    pub fn keep(&mut self, kept: &Tensor, arena: &Arena) {
        self.decay = self.weight_decay.over(arena);
        for moment in [&mut self.exp_avg, &mut self.exp_avg_sq] {
            *moment = moment.index_select(0, kept);
        }
    }

    /// Follows an update that masked triplets: `masked` is Bool, `(triplets,)`, in the order of `layout`, which is that
    /// of the arena. What it does is said by [`MaskedMoments`].
    pub fn follow_mask(&mut self, masked: &Tensor, layout: &Layout) {
        if self.masked_moments == MaskedMoments::Zero {
            for moment in [&mut self.exp_avg, &mut self.exp_avg_sq] {
                clear(moment, layout.rows(), masked);
            }
        }
    }

    /// The tensors that a checkpoint must hold, by name: both moments, `(len,)` as the arena.
    pub fn state(&mut self) -> [(&'static str, &mut Tensor); 2] {
        [("exp_avg", &mut self.exp_avg), ("exp_avg_sq", &mut self.exp_avg_sq)]
    }

    /// Goes on after `finished` updates, with what a checkpoint had as [`state`](Self::state) in its place.
    pub fn resume(&mut self, finished: usize) {
        self.count = finished as u64;
    }

    /// One update with the gradients in the arena, at the learning rate `lr`.
    pub fn step(&mut self, arena: &Arena, lr: f64) {
        let _guard = tch::no_grad_guard();
        self.count += 1;
        let [beta1, beta2] = self.betas;
        let update = adamw::Update { lr, beta1, beta2, eps: self.eps, count: self.count };
        let mut param = arena.param().shallow_clone();
        adamw::step(&mut param, arena.grad(), &mut self.exp_avg, &mut self.exp_avg_sq, &self.decay, update);
    }
}
