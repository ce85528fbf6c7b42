//! The BERT encoder (Devlin et al., 2019), frozen, in the layout of `transformers`' `BertModel`.

use adalora_adapter::{Adapter, Linear};
use adalora_kernels::dropout::{self, Dropout};
use tch::{Device, Kind, Tensor};

use crate::bottleneck::Residual;
use crate::{Activation, BertConfig, Checkpoint};

/// Token sequences of one batch, padded to one length.
#[derive(Debug)]
pub struct Input {
    /// Token ids, `(rows, width)`, `Int64`.
    pub ids: Tensor,
    /// Segment of each token, `(rows, width)`, `Int64`.
    pub type_ids: Tensor,
    /// True where there is a token, `(rows, width)`, `Bool`; `None` where no row is padded.
    pub mask: Option<Tensor>,
}

/// The encoder. Its own weights need no gradient unless they are leaves of an arena.
#[derive(Debug)]
pub struct Bert {
    heads: i64,
    activation: Activation,
    dropout: f64,
    attention_dropout: f64,
    words: Tensor,
    positions: Tensor,
    types: Tensor,
    norm: LayerNorm,
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

#[derive(Debug)]
pub(crate) struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
}

impl LayerNorm {
    pub(crate) fn new(weight: Tensor, bias: Tensor, eps: f64) -> Self {
        Self { weight, bias, eps }
    }

    pub(crate) fn load(checkpoint: &Checkpoint, path: &str, device: Device) -> Self {
        let tensor = |name: &str| checkpoint.tensor(&format!("{path}.LayerNorm.{name}"), device);
        Self::new(tensor("weight"), tensor("bias"), checkpoint.config().layer_norm_eps())
    }

    /// Whether its weights are leaves of an arena.
    pub(crate) fn is_trained(&self) -> bool {
        self.weight.requires_grad() || self.bias.requires_grad()
    }

    pub(crate) fn forward(&self, x: &Tensor) -> Tensor {
        x.layer_norm(self.weight.size(), Some(&self.weight), Some(&self.bias), self.eps, false)
    }
}

impl Bert {
    /// The frozen encoder of a checkpoint with this configuration, on `device`. `dropout` replaces the
    /// configuration's, both inside attention and outside.
    pub(crate) fn new(
        checkpoint: &Checkpoint,
        config: &BertConfig,
        dropout: Option<f64>,
        device: Device,
    ) -> Self {
        let load = |name: &str| checkpoint.tensor(name, device);
        let residual = |path: String| Residual::load(checkpoint, path, device);
        let linears = checkpoint.config().linears().into_iter().map(|shape| {
            let [weight, bias] = ["weight", "bias"].map(|name| load(&format!("{}.{name}", shape.path)));
            Linear::new(shape.path, weight, Some(bias))
        });
        let mut linears = linears.into_iter();
        let mut next = || linears.next().expect("six linear layers in each block");
        let blocks = (0..config.num_hidden_layers)
            .map(|layer| Block {
                query: next(),
                key: next(),
                value: next(),
                attention_output: next(),
                attention_residual: residual(format!("encoder.layer.{layer}.attention.output")),
                intermediate: next(),
                output: next(),
                output_residual: residual(format!("encoder.layer.{layer}.output")),
            })
            .collect();
        let embedding = |name: &str| load(&format!("embeddings.{name}_embeddings.weight"));
        let &BertConfig {
            num_attention_heads,
            hidden_act,
            hidden_dropout_prob,
            attention_probs_dropout_prob,
            ..
        } = config;
        Self {
            heads: num_attention_heads as i64,
            activation: hidden_act,
            dropout: dropout.unwrap_or(hidden_dropout_prob),
            attention_dropout: dropout.unwrap_or(attention_probs_dropout_prob),
            words: embedding("word"),
            positions: embedding("position"),
            types: embedding("token_type"),
            norm: LayerNorm::load(checkpoint, "embeddings", device),
            blocks,
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

    /// Puts adapters on the layers at the given places of [`linears`](Self::linears), in increasing order.
    pub fn attach(&mut self, places: &[usize], adapters: impl Iterator<Item = Adapter>) {
        let mut layers: Vec<_> = self.linears_mut().collect();
        for (&place, adapter) in places.iter().zip(adapters) {
            layers[place].attach(adapter);
        }
    }

    /// Hidden states of the last block, `(rows, width, hidden)`. Without `dropout` nothing is dropped.
    pub fn forward(&self, input: &Input, dropout: Option<&Dropout>) -> Tensor {
        let (_, width) = input.ids.size2().expect("token ids are a matrix");
        let embedding = |table: &Tensor, ids: &Tensor| Tensor::embedding(table, ids, -1, false, false);
        let summed = embedding(&self.words, &input.ids)
            + embedding(&self.types, &input.type_ids)
            + self.positions.narrow(0, 0, width);
        let mut hidden = self.drop(self.norm.forward(&summed), dropout);
        let mask = input.mask.as_ref().map(|mask| additive_mask(mask, hidden.kind()));
        for block in &self.blocks {
            hidden = self.block(block, &hidden, mask.as_ref(), dropout);
        }
        hidden
    }

    fn drop(&self, x: Tensor, dropout: Option<&Dropout>) -> Tensor {
        dropout::apply(dropout, &x, self.dropout)
    }

    fn block(&self, block: &Block, x: &Tensor, mask: Option<&Tensor>, dropout: Option<&Dropout>) -> Tensor {
        let (rows, width, hidden) = x.size3().expect("hidden states have three dimensions");
        let split = |y: Tensor| y.view([rows, width, self.heads, hidden / self.heads]).transpose(1, 2);
        let [query, key, value] =
            Linear::forward_together([&block.query, &block.key, &block.value], x).map(split);
        let context = attention(&query, &key, &value, mask, dropout.zip(Some(self.attention_dropout)));
        let context = context.transpose(1, 2).reshape([rows, width, hidden]);
        let attended = self.drop(block.attention_output.forward(&context), dropout);
        let x = block.attention_residual.forward(attended, x);
        let wide = self.activation.apply(&block.intermediate.forward(&x));
        let out = self.drop(block.output.forward(&wide), dropout);
        block.output_residual.forward(out, &x)
    }
}

/// Scaled dot-product attention over `(rows, heads, width, size)`, with dropout of the attention weights.
///
/// On the CPU libtorch's fused attention knows no dropout, and what it does instead looks for rows without any key and
/// scales both sides; where there is dropout the same is written out here.
pub(crate) fn attention(
    query: &Tensor,
    key: &Tensor,
    value: &Tensor,
    mask: Option<&Tensor>,
    dropout: Option<(&Dropout, f64)>,
) -> Tensor {
    let p = dropout.map_or(0.0, |(_, p)| p);
    match dropout {
        Some((dropout, p)) if p > 0.0 && query.device() == Device::Cpu => {
            let scale = 1.0 / (query.size()[3] as f64).sqrt();
            let mut scores = (query * scale).matmul(&key.transpose(2, 3));
            if let Some(mask) = mask {
                scores += mask;
            }
            dropout.apply(&scores.softmax(-1, scores.kind()), p).matmul(value)
        }
        _ => {
            let scale = None::<f64>;
            Tensor::scaled_dot_product_attention(query, key, value, mask, p, false, scale, false)
        }
    }
}

/// [`additive`] for tokens `(rows, width)`, as scores of attention want it: `(rows, 1, 1, width)`.
pub(crate) fn additive_mask(tokens: &Tensor, kind: Kind) -> Tensor {
    additive(tokens, kind).unsqueeze(1).unsqueeze(1)
}

/// 0 where `seen` is true, about the lowest finite number of the dtype where it is not. Not minus infinity, from which a
/// row without any token would get NaN.
pub(crate) fn additive(seen: &Tensor, kind: Kind) -> Tensor {
    let lowest = match kind {
        Kind::BFloat16 => -3.389e38,
        Kind::Half => -65504.0,
        _ => f64::from(f32::MIN),
    };
    seen.zeros_like().to_kind(kind).masked_fill(&seen.logical_not(), lowest)
}
