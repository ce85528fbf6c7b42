//! In which dtype a frozen encoder computes.

use std::time::{Duration, Instant};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use crate::{LinearShape, ModelConfig};

/// `precision = "f32"`. Adapters, head, loss and optimizer are f32 in any case; an adapter's product is cast to the
/// encoder's dtype where it is added.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32 bits.
    #[default]
    F32,
    /// bfloat16: several times as fast on a GPU or on a CPU with AMX, slower on a CPU without.
    Bf16,
    /// Whichever of the two is faster here, found out when the run starts.
    Auto,
}

impl Precision {
    /// The dtype, settled: `Auto` times the widest layer of an encoder, forward and backward, on a batch of `tokens`.
    pub fn settle(self, config: &ModelConfig, tokens: usize, device: Device) -> Settled {
        match self {
            Self::F32 => Settled::F32,
            Self::Bf16 => Settled::Bf16,
            Self::Auto => {
                let took = |settled: Settled| layer_time(config, tokens, settled.kind(), device);
                if took(Settled::Bf16) < took(Settled::F32) { Settled::Bf16 } else { Settled::F32 }
            }
        }
    }
}

/// The dtype that an encoder computes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Settled {
    /// 32 bits.
    F32,
    /// bfloat16.
    Bf16,
}

impl Settled {
    /// As libtorch calls it.
    pub fn kind(self) -> Kind {
        match self {
            Self::F32 => Kind::Float,
            Self::Bf16 => Kind::BFloat16,
        }
    }
}

impl From<Settled> for Precision {
    fn from(settled: Settled) -> Self {
        match settled {
            Settled::F32 => Self::F32,
            Settled::Bf16 => Self::Bf16,
        }
    }
}

/// The shortest of a few passes through the layer of the widest output.
fn layer_time(config: &ModelConfig, tokens: usize, kind: Kind, device: Device) -> Duration {
    let _guard = tch::no_grad_guard();
    let filled = |shape: [i64; 2]| Tensor::full(shape, 0.01, (kind, device));
    let widest = config.linears().into_iter().max_by_key(|shape| shape.d_out);
    let LinearShape { d_in, d_out, .. } = widest.expect("an encoder has linear layers");
    let (input, weight) = (filled([tokens as i64, d_in as i64]), filled([d_out as i64, d_in as i64]));
    let pass = || {
        let start = Instant::now();
        let output = input.linear(&weight, None::<&Tensor>);
        let gradient = output.matmul(&weight);
        // Reading a value waits for the device.
        let _ = gradient.double_value(&[0, 0]);
        start.elapsed()
    };
    // The first pass also loads and sets up what the others use.
    pass();
    (0..5).map(|_| pass()).min().expect("five passes")
}
