//! `config.json` of a BART encoder-decoder.

use serde::Deserialize;

use super::{Activation, LAYERS, LinearShape, SIZES, layer_norm, usual_range, within};

/// Sizes of BART. Keys that we do not read are about other things.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct BartConfig {
    /// Tokens in the vocabulary.
    pub vocab_size: usize,
    /// Width of the hidden states.
    pub d_model: usize,
    /// Blocks of the encoder.
    pub encoder_layers: usize,
    /// Blocks of the decoder.
    pub decoder_layers: usize,
    /// Attention heads of the encoder.
    pub encoder_attention_heads: usize,
    /// Attention heads of the decoder.
    pub decoder_attention_heads: usize,
    /// Width of the feed-forward part of the encoder.
    pub encoder_ffn_dim: usize,
    /// Width of the feed-forward part of the decoder.
    pub decoder_ffn_dim: usize,
    /// Longest sequence on either side, in tokens.
    pub max_position_embeddings: usize,
    /// The nonlinearity of the feed-forward part.
    pub activation_function: Activation,
    /// Dropout of embeddings and of what a block adds.
    #[serde(default = "usual_dropout")]
    pub dropout: f64,
    /// Dropout of attention weights.
    #[serde(default)]
    pub attention_dropout: f64,
    /// Dropout within the feed-forward part.
    #[serde(default)]
    pub activation_dropout: f64,
    /// Whether the embeddings of tokens are multiplied by the root of `d_model`.
    #[serde(default)]
    pub scale_embedding: bool,
    /// Standard deviation of fresh weights.
    #[serde(default = "usual_range")]
    pub init_std: f64,
    /// Fills shorter sequences of a batch.
    #[serde(default = "one")]
    pub pad_token_id: i64,
    /// First token of a text.
    #[serde(default)]
    pub bos_token_id: i64,
    /// Last token of a text.
    #[serde(default = "two")]
    pub eos_token_id: i64,
    /// What the decoder sees before the first token.
    #[serde(default = "two")]
    pub decoder_start_token_id: i64,
}

/// Keys of which only one value can be run.
#[derive(Deserialize)]
struct Fixed {
    #[serde(default)]
    encoder_layerdrop: f64,
    #[serde(default)]
    decoder_layerdrop: f64,
    #[serde(default = "yes")]
    tie_word_embeddings: bool,
}

/// Rows of a table of positions before that of the first token: fairseq counted from behind the padding token.
pub(crate) const POSITION_OFFSET: i64 = 2;

impl BartConfig {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let config: Self = serde_json::from_str(text).map_err(|error| error.to_string())?;
        within("encoder_layers", config.encoder_layers, LAYERS)?;
        within("decoder_layers", config.decoder_layers, LAYERS)?;
        for (key, size) in [
            ("vocab_size", config.vocab_size),
            ("d_model", config.d_model),
            ("encoder_ffn_dim", config.encoder_ffn_dim),
            ("decoder_ffn_dim", config.decoder_ffn_dim),
            ("max_position_embeddings", config.max_position_embeddings),
        ] {
            within(key, size, SIZES)?;
        }
        for (key, heads) in [
            ("encoder_attention_heads", config.encoder_attention_heads),
            ("decoder_attention_heads", config.decoder_attention_heads),
        ] {
            if heads == 0 || !config.d_model.is_multiple_of(heads) {
                return Err(format!("d_model ({}) must be a multiple of {key} ({heads})", config.d_model));
            }
        }
        let fixed: Fixed = serde_json::from_str(text).map_err(|error| error.to_string())?;
        if !fixed.tie_word_embeddings {
            return Err("tie_word_embeddings must be true: logits are taken with the embedding table".into());
        }
        for (key, layerdrop) in
            [("encoder_layerdrop", fixed.encoder_layerdrop), ("decoder_layerdrop", fixed.decoder_layerdrop)]
        {
            if layerdrop != 0.0 {
                return Err(format!("{key} is {layerdrop}, but blocks are never left out: set it to 0"));
            }
        }
        Ok(config)
    }

    /// The linear layers, in the order of the forward pass: those that adapters can be put on. The layer that gives the
    /// logits is the embedding table and not among them.
    pub fn linears(&self) -> Vec<LinearShape> {
        let hidden = self.d_model;
        let attention = |path: String| {
            ["q_proj", "k_proj", "v_proj", "out_proj"].map(|name| LinearShape {
                path: format!("{path}.{name}"),
                d_in: hidden,
                d_out: hidden,
            })
        };
        let feed_forward = |path: &str, wide: usize| {
            [("fc1", hidden, wide), ("fc2", wide, hidden)].map(|(name, d_in, d_out)| LinearShape {
                path: format!("{path}.{name}"),
                d_in,
                d_out,
            })
        };
        let encoder = (0..self.encoder_layers).flat_map(|layer| {
            let path = format!("encoder.layers.{layer}");
            let own = attention(format!("{path}.self_attn"));
            own.into_iter().chain(feed_forward(&path, self.encoder_ffn_dim))
        });
        let decoder = (0..self.decoder_layers).flat_map(|layer| {
            let path = format!("decoder.layers.{layer}");
            let own = attention(format!("{path}.self_attn"));
            let cross = attention(format!("{path}.encoder_attn"));
            own.into_iter().chain(cross).chain(feed_forward(&path, self.decoder_ffn_dim))
        });
        encoder.chain(decoder).collect()
    }

    /// Name and shape of every tensor but `final_logits_bias`, which a checkpoint may lack.
    pub fn tensors(&self) -> Vec<(String, Vec<i64>)> {
        let hidden = self.d_model as i64;
        let mut tensors = vec![("shared.weight".to_owned(), vec![self.vocab_size as i64, hidden])];
        let sides = [
            ("encoder", self.encoder_layers, &["self_attn_layer_norm", "final_layer_norm"][..]),
            (
                "decoder",
                self.decoder_layers,
                &["self_attn_layer_norm", "encoder_attn_layer_norm", "final_layer_norm"][..],
            ),
        ];
        for (side, layers, norms) in sides {
            let positions = self.max_position_embeddings as i64 + POSITION_OFFSET;
            tensors.push((format!("{side}.embed_positions.weight"), vec![positions, hidden]));
            tensors.extend(layer_norm(&format!("{side}.layernorm_embedding"), hidden));
            for layer in 0..layers {
                for norm in norms {
                    tensors.extend(layer_norm(&format!("{side}.layers.{layer}.{norm}"), hidden));
                }
            }
        }
        for LinearShape { path, d_in, d_out } in self.linears() {
            tensors.push((format!("{path}.weight"), vec![d_out as i64, d_in as i64]));
            tensors.push((format!("{path}.bias"), vec![d_out as i64]));
        }
        tensors
    }

    /// Name and shape of the bias of the logits.
    pub(crate) fn logits_bias(&self) -> (String, Vec<i64>) {
        ("final_logits_bias".into(), vec![1, self.vocab_size as i64])
    }
}

fn usual_dropout() -> f64 {
    0.1
}

fn one() -> i64 {
    1
}

fn two() -> i64 {
    2
}

fn yes() -> bool {
    true
}
