//! `config.json` of a BERT-family encoder.

use serde::Deserialize;

use super::{Activation, layer_norm, usual_range};

/// Sizes of a BERT-family encoder. Keys that we do not read are about other things.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct BertConfig {
    /// Tokens in the vocabulary.
    pub vocab_size: usize,
    /// Width of the hidden states.
    pub hidden_size: usize,
    /// Blocks.
    pub num_hidden_layers: usize,
    /// Attention heads.
    pub num_attention_heads: usize,
    /// Width of the feed-forward part.
    pub intermediate_size: usize,
    /// Longest sequence, in tokens.
    pub max_position_embeddings: usize,
    /// Segments.
    pub type_vocab_size: usize,
    /// Added to the variance in LayerNorm.
    pub layer_norm_eps: f64,
    /// The nonlinearity of the feed-forward part.
    pub hidden_act: Activation,
    /// Dropout of embeddings and of what a block adds.
    pub hidden_dropout_prob: f64,
    /// Dropout of attention weights.
    pub attention_probs_dropout_prob: f64,
    /// Dropout before the classifier, where it differs.
    #[serde(default)]
    pub classifier_dropout: Option<f64>,
    /// Standard deviation of fresh weights.
    #[serde(default = "usual_range")]
    pub initializer_range: f64,
}

impl BertConfig {
    /// Name and shape of the tensors that are not in a block.
    pub(super) fn own_tensors(&self) -> Vec<(String, Vec<i64>)> {
        let hidden = self.hidden_size as i64;
        let tables = [
            ("word", self.vocab_size),
            ("position", self.max_position_embeddings),
            ("token_type", self.type_vocab_size),
        ];
        let tables = tables
            .map(|(name, rows)| (format!("embeddings.{name}_embeddings.weight"), vec![rows as i64, hidden]));
        tables.into_iter().chain(layer_norm("embeddings.LayerNorm", hidden)).collect()
    }
}
