//! Bottleneck adapters: two small trained layers with a nonlinearity between, and where a block has them.

use adalora_adapter::Arena;
use tch::{Device, Tensor};

use crate::bert::LayerNorm;
use crate::{Activation, Checkpoint};

/// Where bottlenecks stand in each block, and with which nonlinearity.
///
/// A sublayer says `y` of its input `x`, and the block goes on with `LayerNorm(y + x)`. With a bottleneck `b`:
///
/// ```text
/// Houlsby    LayerNorm(y + b(y) + x)                  after attention and after the feed-forward part
/// Pfeiffer   LayerNorm(y + b(LayerNorm(y + x)) + x)   after the feed-forward part alone
/// ```
///
/// LayerNorm is one and the same in both places and stays frozen, as in AdapterHub's library and the code of AdaLoRA's
/// authors; Houlsby et al. trained theirs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placement {
    /// Houlsby et al. (2019), with the SiLU of the two codes; the original has GELU.
    Houlsby,
    /// Pfeiffer et al. (2021), with ReLU.
    Pfeiffer,
}

impl Placement {
    /// Paths of the sublayers of a block that have a bottleneck.
    pub(crate) fn sublayers(self) -> &'static [&'static str] {
        match self {
            Self::Houlsby => &["attention.output", "output"],
            Self::Pfeiffer => &["output"],
        }
    }

    fn nonlinearity(self) -> Activation {
        match self {
            Self::Houlsby => Activation::Silu,
            Self::Pfeiffer => Activation::Relu,
        }
    }
}

/// Names of the two layers of the bottleneck after the sublayer at `path`, as in AdapterHub's library for an adapter that
/// is called `default`.
pub(crate) fn layers(path: &str) -> [String; 2] {
    ["adapter_down.0", "adapter_up"].map(|layer| format!("{path}.adapters.default.{layer}"))
}

/// `up(f(down(x)))` over leaves of the arena, f32.
#[derive(Debug)]
struct Bottleneck {
    placement: Placement,
    /// Weight and bias of the two layers.
    down: [Tensor; 2],
    up: [Tensor; 2],
}

impl Bottleneck {
    /// In the dtype of `x`.
    fn forward(&self, x: &Tensor) -> Tensor {
        let layer = |[weight, bias]: &[Tensor; 2], x: &Tensor| {
            x.linear(&weight.to_kind(x.kind()), Some(bias.to_kind(x.kind())))
        };
        layer(&self.up, &self.placement.nonlinearity().apply(&layer(&self.down, x)))
    }
}

/// The end of a sublayer: what it says and what it was given are added and normalised.
#[derive(Debug)]
pub(crate) struct Residual {
    /// Path of the sublayer.
    path: String,
    norm: LayerNorm,
    bottleneck: Option<Bottleneck>,
}

impl Residual {
    pub(crate) fn load(checkpoint: &Checkpoint, path: String, device: Device) -> Self {
        Self { norm: LayerNorm::load(checkpoint, &path, device), path, bottleneck: None }
    }

    /// Puts the arena's bottleneck in, if the placement has one here. Names begin with `prefix` there.
    pub(crate) fn insert(&mut self, placement: Placement, prefix: &str, arena: &Arena) {
        let sublayer = self.path.split('.').skip(3).collect::<Vec<_>>().join(".");
        if placement.sublayers().contains(&sublayer.as_str()) {
            let [down, up] = layers(&format!("{prefix}{}", self.path))
                .map(|name| ["weight", "bias"].map(|part| arena.extra(&format!("{name}.{part}"))));
            self.bottleneck = Some(Bottleneck { placement, down, up });
        }
    }

    /// From what the sublayer says and what it was given.
    pub(crate) fn forward(&self, said: Tensor, given: &Tensor) -> Tensor {
        let Some(bottleneck) = &self.bottleneck else { return self.norm.forward(&(said + given)) };
        let seen = match bottleneck.placement {
            Placement::Houlsby => said.shallow_clone(),
            Placement::Pfeiffer => self.norm.forward(&(&said + given)),
        };
        self.norm.forward(&(said + bottleneck.forward(&seen) + given))
    }
}
