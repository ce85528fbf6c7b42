//! What is trained in an encoder beside increments of low rank: all of it, its biases, or bottlenecks put into it.

use adalora_adapter::random::Random;
use adalora_adapter::{Extra, ParameterKind};

use crate::bottleneck::{Placement, layers};
use crate::{Checkpoint, ModelConfig};

/// How an encoder takes part in training. The head is trained in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tuning {
    /// It is frozen; increments on its linear layers may be trained.
    Frozen,
    /// All its tensors are trained.
    Full,
    /// Its bias vectors are trained, those of LayerNorm too: BitFit (Ben Zaken et al., 2022).
    BitFit,
    /// It is frozen and has trained bottlenecks of this width.
    Bottlenecks(Placement, usize),
}

/// A trained tensor of an encoder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TunedTensor {
    /// Name in `transformers`' model, the family's prefix included.
    pub name: String,
    /// Its shape.
    pub shape: Vec<i64>,
    /// [`Encoder`](ParameterKind::Encoder) or [`Bias`](ParameterKind::Bias).
    pub kind: ParameterKind,
}

impl Tuning {
    /// What is trained in an encoder of this configuration.
    pub fn tensors(self, config: &ModelConfig) -> Vec<TunedTensor> {
        let bias = |name: &str| name.ends_with(".bias");
        let own = |wanted: &dyn Fn(&str) -> bool| {
            let own = config.tensors().into_iter().filter(|(name, _)| wanted(name));
            own.map(|(name, shape)| {
                let is_norm = ["LayerNorm", "layer_norm", "layernorm"].iter().any(|part| name.contains(part));
                let never_decays = bias(&name) || is_norm;
                let kind = if never_decays { ParameterKind::Bias } else { ParameterKind::Encoder };
                TunedTensor { name: format!("{}{name}", config.prefix()), shape, kind }
            })
            .collect()
        };
        match self {
            Self::Frozen => Vec::new(),
            Self::Full => own(&|_| true),
            Self::BitFit => own(&bias),
            Self::Bottlenecks(placement, width) => bottlenecks(config, placement, width),
        }
    }

    /// Trained values in an encoder of this configuration.
    pub fn parameters(self, config: &ModelConfig) -> usize {
        self.tensors(config).iter().map(|own| own.shape.iter().product::<i64>() as usize).sum()
    }

    /// First values, for the arena: the checkpoint's own; for bottlenecks weights that are normal with the
    /// configuration's `initializer_range`, and biases 0, so that they add little at first.
    pub fn start(self, checkpoint: &Checkpoint, seed: u64) -> Vec<Extra> {
        let config = checkpoint.config();
        let mut random = Random::new(seed, "bottlenecks");
        let own = self.tensors(config).into_iter().map(|TunedTensor { name, shape, kind }| {
            let start = match self {
                Self::Bottlenecks(..) => {
                    let weight = kind == ParameterKind::Encoder;
                    random.normal(&shape, if weight { config.initializer_range() as f32 } else { 0.0 })
                }
                _ => {
                    let plain = name.strip_prefix(config.prefix()).unwrap_or(&name);
                    checkpoint.find(plain).expect("a checkpoint has every tensor of the encoder")
                }
            };
            Extra { name, start, kind }
        });
        own.collect()
    }
}

fn bottlenecks(config: &ModelConfig, placement: Placement, width: usize) -> Vec<TunedTensor> {
    let (prefix, hidden) = (config.prefix(), config.hidden_size());
    let paths = (0..config.layers()).flat_map(|layer| {
        placement.sublayers().iter().map(move |part| format!("{prefix}encoder.layer.{layer}.{part}"))
    });
    let (hidden, width) = (hidden as i64, width as i64);
    let tensor = |name: &str, part, shape, kind| TunedTensor { name: format!("{name}.{part}"), shape, kind };
    let tensors = paths.flat_map(|path| {
        let [down, up] = layers(&path);
        [
            tensor(&down, "weight", vec![width, hidden], ParameterKind::Encoder),
            tensor(&down, "bias", vec![width], ParameterKind::Bias),
            tensor(&up, "weight", vec![hidden, width], ParameterKind::Encoder),
            tensor(&up, "bias", vec![hidden], ParameterKind::Bias),
        ]
    });
    tensors.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use adalora_adapter::{Form, Layout, Site};

    /// The published configuration, as far as it has to do with sizes.
    const DEBERTA_V3_BASE: &str = r#"{
        "model_type": "deberta-v2", "vocab_size": 128100, "hidden_size": 768, "num_hidden_layers": 12,
        "num_attention_heads": 12, "intermediate_size": 3072, "hidden_act": "gelu", "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1, "max_position_embeddings": 512, "type_vocab_size": 0,
        "initializer_range": 0.02, "layer_norm_eps": 1e-7, "relative_attention": true, "max_relative_positions": -1,
        "position_buckets": 256, "norm_rel_ebd": "layer_norm", "share_att_key": true, "pos_att_type": "p2c|c2p",
        "position_biased_input": false, "pooler_dropout": 0, "pooler_hidden_act": "gelu", "pooler_hidden_size": 768
    }"#;

    /// Table 1 of the paper says 184M, 0.1M, 1.22M / 0.61M / 0.31M, 1.18M / 0.60M / 0.30M, and 1.33M / 0.33M for LoRA:
    /// pooler and classifier (592,130) are counted in the first of them alone. The largest of either bottleneck is
    /// 0.02M off what the layers add up to, and twice the second is what it says.
    #[test]
    fn parameters_of_table_1() {
        let config = ModelConfig::parse(DEBERTA_V3_BASE).unwrap();
        let of = |tuning: Tuning| tuning.parameters(&config);
        assert_eq!(of(Tuning::Frozen), 0);
        assert_eq!(of(Tuning::Full), 183_831_552);
        assert_eq!(of(Tuning::BitFit), 102_912);
        let houlsby = [32, 16, 8].map(|width| of(Tuning::Bottlenecks(Placement::Houlsby, width)));
        assert_eq!(houlsby, [1_198_848, 608_640, 313_536]);
        let pfeiffer = [64, 32, 16].map(|width| of(Tuning::Bottlenecks(Placement::Pfeiffer, width)));
        assert_eq!(pfeiffer, [1_189_632, 599_424, 304_320]);

        let low_rank = |form, rank| {
            let sites = config.linears().into_iter();
            let site = |shape: crate::LinearShape| Site {
                path: shape.path,
                d_in: shape.d_in,
                d_out: shape.d_out,
                rank,
            };
            Layout::new(form, sites.map(site).collect()).entries()
        };
        assert_eq!([8, 2].map(|rank| low_rank(Form::Lora, rank)), [1_327_104, 331_776]);
        assert_eq!([8, 2].map(|rank| low_rank(Form::Svd, rank)), [1_327_104 + 576, 331_776 + 144]);
    }
}
