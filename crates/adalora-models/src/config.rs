//! `config.json` of a BERT-family encoder.

use std::path::Path;

use serde::Deserialize;

use crate::ModelError;

/// The nonlinearity of the feed-forward part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum Activation {
    /// The exact one, by the error function.
    #[serde(rename = "gelu")]
    Gelu,
    /// The approximation by tanh.
    #[serde(rename = "gelu_new", alias = "gelu_pytorch_tanh")]
    GeluTanh,
    /// Rectified linear.
    #[serde(rename = "relu")]
    Relu,
}

/// Sizes of a BERT-family encoder. Keys that we do not read are about other things.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct BertConfig {
    /// Which family; only `bert` for now.
    pub model_type: String,
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

fn usual_range() -> f64 {
    0.02
}

/// A frozen linear layer by name and size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinearShape {
    /// Path in the model, without the `bert.` prefix.
    pub path: String,
    /// Width of its input.
    pub d_in: usize,
    /// Width of its output.
    pub d_out: usize,
}

impl BertConfig {
    /// Reads `config.json` of a checkpoint's folder.
    ///
    /// # Errors
    ///
    /// A file that is missing or malformed, or describes a model that we do not have.
    pub fn open(folder: &Path) -> Result<Self, ModelError> {
        let path = folder.join("config.json");
        let text = std::fs::read_to_string(&path)
            .map_err(|source| ModelError::File { path: path.clone(), source })?;
        let problem = |rule: String| ModelError::Config { path: path.clone(), rule };
        let kind =
            serde_json::from_str::<serde_json::Value>(&text).map_err(|error| problem(error.to_string()))?;
        match kind.get("model_type").and_then(|kind| kind.as_str()) {
            Some("bert") => {}
            found => {
                let found = found.unwrap_or("absent");
                return Err(problem(format!(
                    "model_type is `{found}`; the families that can be run are: bert"
                )));
            }
        }
        let config: Self = serde_json::from_str(&text).map_err(|error| problem(error.to_string()))?;
        if !config.hidden_size.is_multiple_of(config.num_attention_heads) {
            return Err(problem(format!(
                "hidden_size ({}) must be a multiple of num_attention_heads ({})",
                config.hidden_size, config.num_attention_heads
            )));
        }
        Ok(config)
    }

    /// The linear layers of the encoder, in the order of the forward pass: those that adapters can be put on.
    pub fn linears(&self) -> Vec<LinearShape> {
        let (hidden, intermediate) = (self.hidden_size, self.intermediate_size);
        let block = [
            ("attention.self.query", hidden, hidden),
            ("attention.self.key", hidden, hidden),
            ("attention.self.value", hidden, hidden),
            ("attention.output.dense", hidden, hidden),
            ("intermediate.dense", hidden, intermediate),
            ("output.dense", intermediate, hidden),
        ];
        (0..self.num_hidden_layers)
            .flat_map(|layer| {
                block.map(|(name, d_in, d_out)| LinearShape {
                    path: format!("encoder.layer.{layer}.{name}"),
                    d_in,
                    d_out,
                })
            })
            .collect()
    }

    /// Name and shape of every tensor of the encoder.
    pub(crate) fn tensors(&self) -> Vec<(String, Vec<i64>)> {
        let hidden = self.hidden_size as i64;
        let mut all = vec![
            ("embeddings.word_embeddings.weight".to_owned(), vec![self.vocab_size as i64, hidden]),
            (
                "embeddings.position_embeddings.weight".to_owned(),
                vec![self.max_position_embeddings as i64, hidden],
            ),
            ("embeddings.token_type_embeddings.weight".to_owned(), vec![self.type_vocab_size as i64, hidden]),
        ];
        for LinearShape { path, d_in, d_out } in self.linears() {
            all.push((format!("{path}.weight"), vec![d_out as i64, d_in as i64]));
            all.push((format!("{path}.bias"), vec![d_out as i64]));
        }
        let norms = (0..self.num_hidden_layers).flat_map(|layer| {
            ["attention.output", "output"].map(|part| format!("encoder.layer.{layer}.{part}.LayerNorm"))
        });
        for norm in std::iter::once("embeddings.LayerNorm".to_owned()).chain(norms) {
            all.push((format!("{norm}.weight"), vec![hidden]));
            all.push((format!("{norm}.bias"), vec![hidden]));
        }
        all
    }
}
