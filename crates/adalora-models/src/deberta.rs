//! The DeBERTaV3 encoder (He et al., 2021), frozen, in the layout of `transformers`' `DebertaV2Model`.

pub(crate) mod relative;

use adalora_adapter::Linear;
use adalora_kernels::dropout::{self, Dropout};
use tch::{Device, Tensor};

use crate::bert::{Input, LayerNorm, additive_mask};
use crate::bottleneck::Residual;
use crate::{Activation, Checkpoint, DebertaConfig};
use relative::{RelativePositions, Window, scores};

/// The encoder. Its own weights need no gradient unless they are leaves of an arena.
///
/// Tokens know where they are from the attention alone, which is disentangled: the score of query `i` and key `j` is
/// `(q_i k_j + q_i K_ij + Q_ij k_j) / sqrt(3 d)`, where `K_ij` and `Q_ij` are the same key and query projections,
/// adapters included, of the embedding of the bucket that the distance `i - j` is in.
#[derive(Debug)]
pub struct Deberta {
    heads: i64,
    activation: Activation,
    dropout: f64,
    attention_dropout: f64,
    words: Tensor,
    norm: LayerNorm,
    positions: RelativePositions,
    convolution: Option<Convolution>,
    blocks: Vec<Block>,
}

#[derive(Debug)]
struct Block {
    query: Linear,
    key: Linear,
    value: Linear,
    attention_output: Linear,
    attention_residual: Residual,
    intermediate: Linear,
    output: Linear,
    output_residual: Residual,
}

/// A convolution of the embeddings that is added to what the first block gives. Version 2 has it.
#[derive(Debug)]
struct Convolution {
    weight: Tensor,
    bias: Tensor,
    groups: i64,
    activation: Activation,
    norm: LayerNorm,
}

impl Deberta {
    /// The frozen encoder of a checkpoint with this configuration, on `device`. `dropout` replaces the
    /// configuration's, both inside attention and outside.
    pub(crate) fn new(
        checkpoint: &Checkpoint,
        config: &DebertaConfig,
        dropout: Option<f64>,
        device: Device,
    ) -> Self {
        let tensor = |name: &str| checkpoint.tensor(name, device);
        let norm = |path: &str| LayerNorm::load(checkpoint, path, device);
        let linear = |path: String| {
            let (weight, bias) = (tensor(&format!("{path}.weight")), tensor(&format!("{path}.bias")));
            Linear::new(path, weight, Some(bias))
        };
        let blocks = (0..config.num_hidden_layers).map(|layer| {
            let path = |part: &str| format!("encoder.layer.{layer}.{part}");
            Block {
                query: linear(path("attention.self.query_proj")),
                key: linear(path("attention.self.key_proj")),
                value: linear(path("attention.self.value_proj")),
                attention_output: linear(path("attention.output.dense")),
                attention_residual: Residual::load(checkpoint, path("attention.output"), device),
                intermediate: linear(path("intermediate.dense")),
                output: linear(path("output.dense")),
                output_residual: Residual::load(checkpoint, path("output"), device),
            }
        });
        let convolution = (config.conv_kernel_size > 0).then(|| Convolution {
            weight: tensor("encoder.conv.conv.weight"),
            bias: tensor("encoder.conv.conv.bias"),
            groups: config.conv_groups as i64,
            activation: config.conv_act,
            norm: norm("encoder.conv"),
        });
        Self {
            heads: config.num_attention_heads as i64,
            activation: config.hidden_act,
            dropout: dropout.unwrap_or(config.hidden_dropout_prob),
            attention_dropout: dropout.unwrap_or(config.attention_probs_dropout_prob),
            words: tensor("embeddings.word_embeddings.weight"),
            norm: norm("embeddings"),
            positions: RelativePositions::new(
                config,
                tensor("encoder.rel_embeddings.weight"),
                norm("encoder"),
            ),
            convolution,
            blocks: blocks.collect(),
        }
    }

    /// The linear layers, in the order of [`ModelConfig::linears`](crate::ModelConfig::linears).
    pub fn linears(&self) -> impl Iterator<Item = &Linear> {
        self.blocks.iter().flat_map(|block| {
            let Block { query, key, value, attention_output, intermediate, output, .. } = block;
            [query, key, value, attention_output, intermediate, output]
        })
    }

    /// The linear layers, to be changed.
    pub fn linears_mut(&mut self) -> impl Iterator<Item = &mut Linear> {
        self.blocks.iter_mut().flat_map(|block| {
            let Block { query, key, value, attention_output, intermediate, output, .. } = block;
            [query, key, value, attention_output, intermediate, output]
        })
    }

    /// The ends of the sublayers, to be changed.
    pub(crate) fn residuals_mut(&mut self) -> impl Iterator<Item = &mut Residual> {
        self.blocks.iter_mut().flat_map(|block| [&mut block.attention_residual, &mut block.output_residual])
    }

    /// Hidden states of the last block, `(rows, width, hidden)`. Without `dropout` nothing is dropped.
    ///
    /// Where there is no token they mean nothing, and are not what `transformers` has there: it masks queries too.
    pub fn forward(&self, input: &Input, dropout: Option<&Dropout>) -> Tensor {
        let (_, width) = input.ids.size2().expect("token ids are a matrix");
        let words = Tensor::embedding(&self.words, &input.ids, -1, false, false);
        let tokens = input.mask.as_ref().map(|mask| mask.unsqueeze(-1).to_kind(words.kind()));
        let at_tokens = |x: Tensor| match &tokens {
            Some(tokens) => x * tokens,
            None => x,
        };
        let embedded = self.drop(at_tokens(self.norm.forward(&words)), dropout);
        let mask = input.mask.as_ref().map(|mask| additive_mask(mask, words.kind()));
        let window = self.positions.window(width);
        let mut hidden = embedded.shallow_clone();
        for (i, block) in self.blocks.iter().enumerate() {
            hidden = self.block(block, &hidden, &window, mask.as_ref(), dropout);
            if let (0, Some(convolution)) = (i, &self.convolution) {
                let local = self.drop(at_tokens(convolution.local(&embedded)), dropout);
                let summed = hidden + convolution.activation.apply(&local);
                hidden = at_tokens(convolution.norm.forward(&summed));
            }
        }
        hidden
    }

    fn drop(&self, x: Tensor, dropout: Option<&Dropout>) -> Tensor {
        dropout::apply(dropout, &x, self.dropout)
    }

    fn block(
        &self,
        block: &Block,
        x: &Tensor,
        window: &Window,
        mask: Option<&Tensor>,
        dropout: Option<&Dropout>,
    ) -> Tensor {
        let context = self.attention(block, x, window, mask, dropout);
        let attended = self.drop(block.attention_output.forward(&context), dropout);
        let x = block.attention_residual.forward(attended, x);
        let wide = self.activation.apply(&block.intermediate.forward(&x));
        let out = self.drop(block.output.forward(&wide), dropout);
        block.output_residual.forward(out, &x)
    }

    fn attention(
        &self,
        block: &Block,
        x: &Tensor,
        window: &Window,
        mask: Option<&Tensor>,
        dropout: Option<&Dropout>,
    ) -> Tensor {
        let (rows, width, hidden) = x.size3().expect("hidden states have three dimensions");
        let size = hidden / self.heads;
        // Heads first: positions are the same in all rows, so that one product for each head serves them all.
        let split = |y: Tensor| y.view([rows, width, self.heads, size]).permute([2, 0, 1, 3]).contiguous();
        let matrices = |y: &Tensor| y.view([self.heads * rows, width, size]);
        let scale = ((3 * size) as f64).sqrt();
        let [query, key, value] = Linear::forward_together([&block.query, &block.key, &block.value], x);
        let [query, key, value] = [query / scale, key, value].map(split);

        let positions = dropout::apply(dropout, &window.embeddings, self.dropout);
        let position_keys = block.key.forward(&positions);
        let position_queries = block.query.forward(&positions) / scale;
        let mut weights = scores(&query, &position_keys, &window.of_queries).contiguous();
        let _ = weights.baddbmm_(&matrices(&query), &matrices(&key).transpose(1, 2));
        let _ = weights.g_add_(&scores(&key, &position_queries, &window.of_keys).transpose(1, 2));
        if let Some(mask) = mask {
            let _ = weights.view([self.heads, rows, width, width]).g_add_(&mask.transpose(0, 1));
        }

        let weights = dropout::apply(dropout, &weights.softmax(-1, None), self.attention_dropout);
        let context = weights.bmm(&matrices(&value)).view([self.heads, rows, width, size]);
        context.permute([1, 2, 0, 3]).reshape([rows, width, hidden])
    }
}

impl Convolution {
    fn local(&self, embedded: &Tensor) -> Tensor {
        let padding = (self.weight.size()[2] - 1) / 2;
        let channels_first = embedded.transpose(1, 2);
        let local = channels_first.conv1d(&self.weight, Some(&self.bias), 1, padding, 1, self.groups);
        local.transpose(1, 2)
    }
}
