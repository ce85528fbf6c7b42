//! `config.json` of a model, of any family.

mod bart;
mod bert;
mod deberta;

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;
use tch::Tensor;

use crate::ModelError;

pub use bart::BartConfig;
pub(crate) use bart::POSITION_OFFSET;
pub use bert::BertConfig;
pub use deberta::DebertaConfig;

/// Sizes of a model.
#[derive(Debug, Clone, PartialEq)]
pub enum ModelConfig {
    /// `model_type` is `bert`.
    Bert(BertConfig),
    /// `model_type` is `deberta-v2`, which is what version 3 calls itself too.
    Deberta(DebertaConfig),
    /// `model_type` is `bart`: an encoder and a decoder, which generates text.
    Bart(BartConfig),
}

/// An elementwise nonlinearity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum Activation {
    /// Gaussian, the exact one, by the error function.
    #[serde(rename = "gelu")]
    Gelu,
    /// Its approximation by tanh.
    #[serde(rename = "gelu_new", alias = "gelu_pytorch_tanh")]
    GeluTanh,
    /// Rectified linear.
    #[serde(rename = "relu")]
    Relu,
    /// Hyperbolic tangent.
    #[serde(rename = "tanh")]
    Tanh,
    /// `x` times the logistic function of `x`.
    #[serde(rename = "silu", alias = "swish")]
    Silu,
}

impl Activation {
    pub(crate) fn apply(self, x: &Tensor) -> Tensor {
        match self {
            Self::Gelu => x.gelu("none"),
            Self::GeluTanh => x.gelu("tanh"),
            Self::Relu => x.relu(),
            Self::Tanh => x.tanh(),
            Self::Silu => x.silu(),
        }
    }
}

/// A frozen linear layer by name and size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinearShape {
    /// Path in the model, without the family's [prefix](ModelConfig::prefix).
    pub path: String,
    /// Width of its input.
    pub d_in: usize,
    /// Width of its output.
    pub d_out: usize,
}

impl ModelConfig {
    /// Reads `config.json` of a checkpoint's folder.
    ///
    /// # Errors
    ///
    /// A file that is missing or malformed, or describes a model that we do not have.
    pub fn open(folder: &Path) -> Result<Self, ModelError> {
        let (path, text) = read(folder)?;
        Self::parse(&text).map_err(|rule| ModelError::Config { path, rule })
    }

    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let config = match model_type(text)?.as_str() {
            "bert" => Self::Bert(serde_json::from_str(text).map_err(|error| error.to_string())?),
            "deberta-v2" => Self::Deberta(DebertaConfig::parse(text)?),
            "bart" => return BartConfig::parse(text).map(Self::Bart),
            found => {
                return Err(format!(
                    "model_type is `{found}`; the families that can be run are: bert, deberta-v2, bart"
                ));
            }
        };
        let (hidden, heads) = match &config {
            Self::Bert(config) => {
                within("intermediate_size", config.intermediate_size, SIZES)?;
                within("type_vocab_size", config.type_vocab_size, SIZES)?;
                (config.hidden_size, config.num_attention_heads)
            }
            Self::Deberta(config) => {
                within("intermediate_size", config.intermediate_size, SIZES)?;
                (config.hidden_size, config.num_attention_heads)
            }
            Self::Bart(_) => unreachable!("returned above"),
        };
        within("vocab_size", config.vocab_size(), SIZES)?;
        within("hidden_size", hidden, SIZES)?;
        within("num_hidden_layers", config.layers(), LAYERS)?;
        within("num_attention_heads", heads, SIZES)?;
        within("max_position_embeddings", config.positions(), SIZES)?;
        if hidden.is_multiple_of(heads) {
            Ok(config)
        } else {
            Err(format!("hidden_size ({hidden}) must be a multiple of num_attention_heads ({heads})"))
        }
    }

    /// What `transformers` puts before the path of every layer.
    pub fn prefix(&self) -> &'static str {
        match self {
            Self::Bert(_) => "bert.",
            Self::Deberta(_) => "deberta.",
            Self::Bart(_) => "model.",
        }
    }

    /// Tokens in the vocabulary.
    pub fn vocab_size(&self) -> usize {
        match self {
            Self::Bert(config) => config.vocab_size,
            Self::Deberta(config) => config.vocab_size,
            Self::Bart(config) => config.vocab_size,
        }
    }

    /// Blocks of the encoder.
    pub fn layers(&self) -> usize {
        match self {
            Self::Bert(config) => config.num_hidden_layers,
            Self::Deberta(config) => config.num_hidden_layers,
            Self::Bart(config) => config.encoder_layers,
        }
    }

    /// Width of the hidden states.
    pub fn hidden_size(&self) -> usize {
        match self {
            Self::Bert(config) => config.hidden_size,
            Self::Deberta(config) => config.hidden_size,
            Self::Bart(config) => config.d_model,
        }
    }

    /// Longest sequence, in tokens.
    pub fn positions(&self) -> usize {
        match self {
            Self::Bert(config) => config.max_position_embeddings,
            Self::Deberta(config) => config.max_position_embeddings,
            Self::Bart(config) => config.max_position_embeddings,
        }
    }

    /// Dropout before the classifier; BART is run without one.
    pub fn classifier_dropout(&self) -> f64 {
        match self {
            Self::Bert(config) => config.classifier_dropout.unwrap_or(config.hidden_dropout_prob),
            Self::Deberta(config) => config.cls_dropout.unwrap_or(config.hidden_dropout_prob),
            Self::Bart(_) => 0.0,
        }
    }

    /// Standard deviation of fresh weights.
    pub fn initializer_range(&self) -> f64 {
        match self {
            Self::Bert(config) => config.initializer_range,
            Self::Deberta(config) => config.initializer_range,
            Self::Bart(config) => config.init_std,
        }
    }

    /// Added to the variance in LayerNorm.
    pub(crate) fn layer_norm_eps(&self) -> f64 {
        match self {
            Self::Bert(config) => config.layer_norm_eps,
            Self::Deberta(config) => config.layer_norm_eps,
            Self::Bart(_) => crate::bart::EPSILON,
        }
    }

    /// The linear layers, in the order of the forward pass: those that adapters can be put on.
    pub fn linears(&self) -> Vec<LinearShape> {
        let (layers, attention, hidden, intermediate) = match self {
            Self::Bart(config) => return config.linears(),
            Self::Bert(config) => (
                config.num_hidden_layers,
                ["query", "key", "value"],
                config.hidden_size,
                config.intermediate_size,
            ),
            Self::Deberta(config) => (
                config.num_hidden_layers,
                ["query_proj", "key_proj", "value_proj"],
                config.hidden_size,
                config.intermediate_size,
            ),
        };
        let inner = attention.map(|name| (format!("attention.self.{name}"), hidden, hidden));
        let outer = [
            ("attention.output.dense".to_owned(), hidden, hidden),
            ("intermediate.dense".to_owned(), hidden, intermediate),
            ("output.dense".to_owned(), intermediate, hidden),
        ];
        let block: Vec<_> = inner.into_iter().chain(outer).collect();
        (0..layers)
            .flat_map(|layer| {
                block.iter().map(move |(name, d_in, d_out)| LinearShape {
                    path: format!("encoder.layer.{layer}.{name}"),
                    d_in: *d_in,
                    d_out: *d_out,
                })
            })
            .collect()
    }

    /// Name and shape of every tensor below the head.
    pub fn tensors(&self) -> Vec<(String, Vec<i64>)> {
        let (own, layers) = match self {
            Self::Bart(config) => return config.tensors(),
            Self::Bert(config) => (config.own_tensors(), config.num_hidden_layers),
            Self::Deberta(config) => (config.own_tensors(), config.num_hidden_layers),
        };
        let linears = self.linears().into_iter().flat_map(|LinearShape { path, d_in, d_out }| {
            [
                (format!("{path}.weight"), vec![d_out as i64, d_in as i64]),
                (format!("{path}.bias"), vec![d_out as i64]),
            ]
        });
        let norms = (0..layers).flat_map(|layer| {
            ["attention.output", "output"].map(|part| format!("encoder.layer.{layer}.{part}.LayerNorm"))
        });
        let hidden = self.hidden_size() as i64;
        let norms = norms.flat_map(|norm| layer_norm(&norm, hidden));
        own.into_iter().chain(linears).chain(norms).collect()
    }
}

/// Blocks of a model. A few bytes could otherwise ask for the names of more tensors than memory holds.
const LAYERS: RangeInclusive<usize> = 1..=1000;

/// Every other size of a model: products of two can be counted.
const SIZES: RangeInclusive<usize> = 1..=1 << 24;

fn within(key: &str, size: usize, range: RangeInclusive<usize>) -> Result<(), String> {
    if range.contains(&size) {
        Ok(())
    } else {
        Err(format!("{key} is {size} and must lie in {}..={}", range.start(), range.end()))
    }
}

/// Path and text of a folder's `config.json`.
fn read(folder: &Path) -> Result<(PathBuf, String), ModelError> {
    let path = folder.join("config.json");
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok((path, text)),
        Err(source) => Err(ModelError::File { path, source }),
    }
}

/// What a `config.json` says that it is. The rest is read from the text again: only then an error says at which line.
fn model_type(text: &str) -> Result<String, String> {
    let json: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
    Ok(json.get("model_type").and_then(Value::as_str).unwrap_or("absent").to_owned())
}

/// Names and shapes of a LayerNorm's tensors.
fn layer_norm(path: &str, width: i64) -> [(String, Vec<i64>); 2] {
    ["weight", "bias"].map(|part| (format!("{path}.{part}"), vec![width]))
}

fn usual_range() -> f64 {
    0.02
}
