//! `config.json` of a DeBERTaV3 encoder.

use serde::Deserialize;
use serde_json::{Value, json};

use super::{Activation, SIZES, layer_norm, usual_range, within};

/// Sizes of a DeBERTaV3 encoder, and of one of version 2 that is built in the same way. Keys that we do not read are
/// about other things.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct DebertaConfig {
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
    /// Longest sequence, in tokens. Only relative positions have parameters, so this is a limit of the data and not of
    /// the model.
    pub max_position_embeddings: usize,
    /// Buckets of relative positions on either side; beyond half of them a bucket is wider the further away it is.
    pub position_buckets: i64,
    /// Distance that the last bucket ends with; below 1 it is `max_position_embeddings`.
    #[serde(default = "unlimited")]
    pub max_relative_positions: i64,
    /// Added to the variance in LayerNorm.
    pub layer_norm_eps: f64,
    /// The nonlinearity of the feed-forward part.
    pub hidden_act: Activation,
    /// Dropout of embeddings, of relative positions and of what a block adds.
    pub hidden_dropout_prob: f64,
    /// Dropout of attention weights.
    pub attention_probs_dropout_prob: f64,
    /// Width of the convolution beside the first block; 0 where there is none.
    #[serde(default)]
    pub conv_kernel_size: usize,
    /// Groups of channels of that convolution.
    #[serde(default = "one")]
    pub conv_groups: usize,
    /// The nonlinearity after it.
    #[serde(default = "tanh")]
    pub conv_act: Activation,
    /// Dropout before the pooler.
    #[serde(default)]
    pub pooler_dropout: f64,
    /// The nonlinearity of the pooler.
    #[serde(default = "gelu")]
    pub pooler_hidden_act: Activation,
    /// Dropout before the classifier, where it differs.
    #[serde(default)]
    pub cls_dropout: Option<f64>,
    /// Standard deviation of fresh weights.
    #[serde(default = "usual_range")]
    pub initializer_range: f64,
}

fn unlimited() -> i64 {
    -1
}

fn one() -> usize {
    1
}

fn tanh() -> Activation {
    Activation::Tanh
}

fn gelu() -> Activation {
    Activation::Gelu
}

impl DebertaConfig {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let json: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let problems = unlike_version_3(&json);
        if !problems.is_empty() {
            return Err(format!("only DeBERTa as version 3 has it can be run: {}", problems.join("; ")));
        }
        let config: Self = serde_json::from_str(text).map_err(|error| error.to_string())?;
        within("hidden_size", config.hidden_size, SIZES)?;
        within("conv_groups", config.conv_groups, SIZES)?;
        let (buckets, furthest) = (config.position_buckets, config.furthest());
        if buckets < 2 || furthest <= buckets / 2 + 1 {
            return Err(format!(
                "position_buckets ({buckets}) must be at least 2, and max_relative_positions ({furthest}) more than half of that and one"
            ));
        }
        within("position_buckets", buckets as usize, SIZES)?;
        let (kernel, groups, hidden) = (config.conv_kernel_size, config.conv_groups, config.hidden_size);
        within("conv_kernel_size", kernel.max(1), SIZES)?;
        if kernel > 0 && (kernel.is_multiple_of(2) || !hidden.is_multiple_of(groups)) {
            return Err(format!(
                "conv_kernel_size ({kernel}) must be odd and hidden_size ({hidden}) a multiple of conv_groups ({groups})"
            ));
        }
        Ok(config)
    }

    /// The distance that the last bucket ends with.
    pub(crate) fn furthest(&self) -> i64 {
        if self.max_relative_positions < 1 {
            self.max_position_embeddings as i64
        } else {
            self.max_relative_positions
        }
    }

    /// Name and shape of the tensors that are not in a block.
    pub(super) fn own_tensors(&self) -> Vec<(String, Vec<i64>)> {
        let hidden = self.hidden_size as i64;
        let mut all = vec![
            ("embeddings.word_embeddings.weight".to_owned(), vec![self.vocab_size as i64, hidden]),
            ("encoder.rel_embeddings.weight".to_owned(), vec![2 * self.position_buckets, hidden]),
        ];
        all.extend(layer_norm("embeddings.LayerNorm", hidden));
        all.extend(layer_norm("encoder.LayerNorm", hidden));
        if self.conv_kernel_size > 0 {
            let inputs = hidden / self.conv_groups as i64;
            let kernel = self.conv_kernel_size as i64;
            all.push(("encoder.conv.conv.weight".to_owned(), vec![hidden, inputs, kernel]));
            all.push(("encoder.conv.conv.bias".to_owned(), vec![hidden]));
            all.extend(layer_norm("encoder.conv.LayerNorm", hidden));
        }
        all
    }
}

/// Settings in which a configuration differs from version 3, with what they must be. Absent ones have the defaults of
/// `transformers`' `DebertaV2Config`, most of which are not version 3.
fn unlike_version_3(config: &Value) -> Vec<String> {
    let hidden = config.get("hidden_size").and_then(Value::as_u64).unwrap_or(0);
    let heads = config.get("num_attention_heads").and_then(Value::as_u64).unwrap_or(0);
    let fixed = [
        ("relative_attention", json!(false), json!(true)),
        ("position_biased_input", json!(true), json!(false)),
        ("share_att_key", json!(false), json!(true)),
        ("norm_rel_ebd", json!("none"), json!("layer_norm")),
        ("type_vocab_size", json!(0), json!(0)),
        ("embedding_size", json!(hidden), json!(hidden)),
        ("pooler_hidden_size", json!(hidden), json!(hidden)),
        ("attention_head_size", json!(hidden.checked_div(heads)), json!(hidden.checked_div(heads))),
    ];
    let mut problems: Vec<String> = fixed
        .iter()
        .filter_map(|(key, default, wanted)| {
            let found = config.get(key).filter(|found| !found.is_null()).unwrap_or(default);
            (found != wanted).then(|| format!("{key} is {found} and must be {wanted}"))
        })
        .collect();
    let terms = match config.get("pos_att_type") {
        Some(Value::String(text)) => text.split('|').map(|term| term.trim().to_lowercase()).collect(),
        Some(Value::Array(terms)) => terms.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        _ => Vec::new(),
    };
    if ["c2p", "p2c"].iter().any(|term| !terms.iter().any(|own| own == term)) {
        problems.push(format!("pos_att_type is {terms:?} and must be [\"p2c\", \"c2p\"]"));
    }
    problems
}
