//! BART (Lewis et al., 2020), an encoder and a decoder of text, frozen, in the layout of `transformers`'
//! `BartForConditionalGeneration`.

mod decoding;

use adalora_adapter::{Adapter, Linear};
use adalora_kernels::dropout::{self, Dropout};
use tch::{Device, Kind, Tensor};

use crate::bert::{LayerNorm, additive, additive_mask, attention};
use crate::config::POSITION_OFFSET;
use crate::{Activation, BartConfig, Checkpoint, ModelConfig};

pub(crate) use decoding::Decoding;

/// LayerNorm's epsilon, which `config.json` does not say.
pub(crate) const EPSILON: f64 = 1e-5;

/// What the encoder reads: token sequences of one batch, padded to one length.
#[derive(Debug)]
pub struct Source {
    /// Token ids, `(rows, width)`, `Int64`.
    pub ids: Tensor,
    /// True where there is a token, `(rows, width)`, `Bool`; `None` where no row is padded.
    pub mask: Option<Tensor>,
}

/// Encoder, decoder and the layer that gives the logits, which is the embedding table. Its own weights need no
/// gradient; adapters on its linear layers do.
#[derive(Debug)]
pub struct Bart {
    config: BartConfig,
    words: Tensor,
    logits_bias: Tensor,
    encoder: Side,
    encoder_blocks: Vec<EncoderBlock>,
    decoder: Side,
    decoder_blocks: Vec<DecoderBlock>,
}

/// What stands before the blocks of either side.
#[derive(Debug)]
struct Side {
    heads: i64,
    positions: Tensor,
    norm: LayerNorm,
}

#[derive(Debug)]
struct Attention {
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    norm: LayerNorm,
}

#[derive(Debug)]
struct FeedForward {
    wide: Linear,
    output: Linear,
    norm: LayerNorm,
}

#[derive(Debug)]
struct EncoderBlock {
    own: Attention,
    feed_forward: FeedForward,
}

#[derive(Debug)]
struct DecoderBlock {
    own: Attention,
    cross: Attention,
    feed_forward: FeedForward,
}

/// What the encoder makes of a source.
#[derive(Debug)]
pub struct Encoded {
    /// Hidden states of the last block, `(rows, width, d_model)`.
    pub hidden: Tensor,
    /// Added to the scores of attention, `(rows, 1, 1, width)`.
    mask: Option<Tensor>,
}

impl Bart {
    /// The model of a checkpoint, on `device`, in the dtype of its tensors. `dropout` replaces all three of the
    /// configuration.
    ///
    /// # Panics
    ///
    /// For a checkpoint of another family.
    pub fn of(checkpoint: &Checkpoint, dropout: Option<f64>, device: Device) -> Self {
        let ModelConfig::Bart(config) = checkpoint.config() else { panic!("an encoder alone cannot write") };
        Self::new(config, dropout, |name| checkpoint.tensor(name, device))
    }

    /// The model with this configuration and these tensors, by the names of [`BartConfig::tensors`] and
    /// `final_logits_bias`; the device is theirs. `dropout` replaces all three of the configuration.
    pub fn new(config: &BartConfig, dropout: Option<f64>, tensor: impl Fn(&str) -> Tensor) -> Self {
        let mut config = config.clone();
        if let Some(dropout) = dropout {
            (config.dropout, config.attention_dropout, config.activation_dropout) =
                (dropout, dropout, dropout);
        }
        let norm = |path: &str| {
            LayerNorm::new(tensor(&format!("{path}.weight")), tensor(&format!("{path}.bias")), EPSILON)
        };
        let linear = |path: String| {
            let (weight, bias) = (tensor(&format!("{path}.weight")), tensor(&format!("{path}.bias")));
            Linear::new(path, weight, Some(bias))
        };
        let attention = |block: &str, name: &str| Attention {
            query: linear(format!("{block}.{name}.q_proj")),
            key: linear(format!("{block}.{name}.k_proj")),
            value: linear(format!("{block}.{name}.v_proj")),
            output: linear(format!("{block}.{name}.out_proj")),
            norm: norm(&format!("{block}.{name}_layer_norm")),
        };
        let feed_forward = |block: &str| FeedForward {
            wide: linear(format!("{block}.fc1")),
            output: linear(format!("{block}.fc2")),
            norm: norm(&format!("{block}.final_layer_norm")),
        };
        let side = |name: &str, heads: usize| Side {
            heads: heads as i64,
            positions: tensor(&format!("{name}.embed_positions.weight")),
            norm: norm(&format!("{name}.layernorm_embedding")),
        };
        let encoder_blocks = (0..config.encoder_layers).map(|layer| {
            let path = format!("encoder.layers.{layer}");
            EncoderBlock { own: attention(&path, "self_attn"), feed_forward: feed_forward(&path) }
        });
        let decoder_blocks = (0..config.decoder_layers).map(|layer| {
            let path = format!("decoder.layers.{layer}");
            DecoderBlock {
                own: attention(&path, "self_attn"),
                cross: attention(&path, "encoder_attn"),
                feed_forward: feed_forward(&path),
            }
        });
        let words = tensor("shared.weight");
        let logits_bias = tensor("final_logits_bias").view(-1).to_kind(words.kind());
        Self {
            words,
            logits_bias,
            encoder: side("encoder", config.encoder_attention_heads),
            encoder_blocks: encoder_blocks.collect(),
            decoder: side("decoder", config.decoder_attention_heads),
            decoder_blocks: decoder_blocks.collect(),
            config,
        }
    }

    /// The configuration, with the dropout that is used.
    pub fn config(&self) -> &BartConfig {
        &self.config
    }

    /// The linear layers, in the order of [`BartConfig::linears`].
    pub fn linears(&self) -> Vec<&Linear> {
        let encoder = self.encoder_blocks.iter().flat_map(|block| {
            let EncoderBlock { own, feed_forward } = block;
            [own.linears().as_slice(), &feed_forward.linears()].concat()
        });
        let decoder = self.decoder_blocks.iter().flat_map(|block| {
            let DecoderBlock { own, cross, feed_forward } = block;
            [own.linears().as_slice(), &cross.linears(), &feed_forward.linears()].concat()
        });
        encoder.chain(decoder).collect()
    }

    /// The linear layers, to be changed.
    pub fn linears_mut(&mut self) -> Vec<&mut Linear> {
        let encoder = self.encoder_blocks.iter_mut().flat_map(|block| {
            let EncoderBlock { own, feed_forward } = block;
            own.linears_mut().into_iter().chain(feed_forward.linears_mut())
        });
        let decoder = self.decoder_blocks.iter_mut().flat_map(|block| {
            let DecoderBlock { own, cross, feed_forward } = block;
            own.linears_mut().into_iter().chain(cross.linears_mut()).chain(feed_forward.linears_mut())
        });
        encoder.chain(decoder).collect()
    }

    /// Puts adapters on the layers at the given places of [`linears`](Self::linears), in increasing order.
    pub fn attach(&mut self, places: &[usize], adapters: impl Iterator<Item = Adapter>) {
        let mut layers = self.linears_mut();
        for (&place, adapter) in places.iter().zip(adapters) {
            layers[place].attach(adapter);
        }
    }

    /// Logits of each next token, `(rows, width, vocabulary)`, f32, for decoder tokens `(rows, width)`, each of which
    /// sees those before it. Padding belongs at their end. Without `dropout` nothing is dropped.
    pub fn forward(&self, source: &Source, tokens: &Tensor, dropout: Option<&Dropout>) -> Tensor {
        self.logits(&self.decode(&self.encode(source, dropout), tokens, dropout))
    }

    /// What the decoder sees when it is to give `labels`, `(rows, width)`: the start token, then the labels but the
    /// last, with padding in the place of -100.
    pub fn decoder_tokens(&self, labels: &Tensor) -> Tensor {
        let (rows, width) = labels.size2().expect("labels are a matrix");
        let start =
            Tensor::full([rows, 1], self.config.decoder_start_token_id, (Kind::Int64, labels.device()));
        let shifted = labels.narrow(1, 0, width - 1);
        let shifted = shifted.masked_fill(&shifted.eq(-100), self.config.pad_token_id);
        Tensor::cat(&[start, shifted], 1)
    }

    /// The encoder's part of [`forward`](Self::forward).
    pub fn encode(&self, source: &Source, dropout: Option<&Dropout>) -> Encoded {
        let mut hidden = self.embed(&self.encoder, &source.ids, 0, dropout);
        let mask = source.mask.as_ref().map(|mask| additive_mask(mask, hidden.kind()));
        let heads = self.encoder.heads;
        for EncoderBlock { own, feed_forward } in &self.encoder_blocks {
            let [query, key, value] = Linear::forward_together([&own.query, &own.key, &own.value], &hidden)
                .map(|y| split(&y, heads));
            let dropped = dropout.zip(Some(self.config.attention_dropout));
            let context = join(&attention(&query, &key, &value, mask.as_ref(), dropped));
            hidden = self.add(own, &hidden, &context, dropout);
            hidden = self.feed_forward(feed_forward, &hidden, dropout);
        }
        Encoded { hidden, mask }
    }

    fn decode(&self, encoded: &Encoded, tokens: &Tensor, dropout: Option<&Dropout>) -> Tensor {
        let mut hidden = self.embed(&self.decoder, tokens, 0, dropout);
        let width = tokens.size()[1];
        let causal = Tensor::ones([width, width], (Kind::Bool, tokens.device())).tril(0);
        let causal = additive(&causal, hidden.kind());
        let (heads, dropped) = (self.decoder.heads, dropout.zip(Some(self.config.attention_dropout)));
        for DecoderBlock { own, cross, feed_forward } in &self.decoder_blocks {
            let [query, key, value] = Linear::forward_together([&own.query, &own.key, &own.value], &hidden)
                .map(|y| split(&y, heads));
            let context = join(&attention(&query, &key, &value, Some(&causal), dropped));
            hidden = self.add(own, &hidden, &context, dropout);
            let query = split(&cross.query.forward(&hidden), heads);
            let [key, value] = cross.of_source(encoded, heads);
            let context = join(&attention(&query, &key, &value, encoded.mask.as_ref(), dropped));
            hidden = self.add(cross, &hidden, &context, dropout);
            hidden = self.feed_forward(feed_forward, &hidden, dropout);
        }
        hidden
    }

    fn logits(&self, hidden: &Tensor) -> Tensor {
        hidden.linear(&self.words, Some(&self.logits_bias)).to_kind(Kind::Float)
    }

    /// Embeddings of tokens, the first of which stands at position `first`.
    fn embed(&self, side: &Side, ids: &Tensor, first: i64, dropout: Option<&Dropout>) -> Tensor {
        let width = ids.size()[1];
        let mut words = Tensor::embedding(&self.words, ids, -1, false, false);
        if self.config.scale_embedding {
            words *= (self.config.d_model as f64).sqrt();
        }
        let summed = words + side.positions.narrow(0, first + POSITION_OFFSET, width);
        dropout::apply(dropout, &side.norm.forward(&summed), self.config.dropout)
    }

    /// Adds what attention gives to `x`.
    fn add(&self, attention: &Attention, x: &Tensor, context: &Tensor, dropout: Option<&Dropout>) -> Tensor {
        let attended = dropout::apply(dropout, &attention.output.forward(context), self.config.dropout);
        attention.norm.forward(&(attended + x))
    }

    fn feed_forward(&self, block: &FeedForward, x: &Tensor, dropout: Option<&Dropout>) -> Tensor {
        let activation: Activation = self.config.activation_function;
        let wide = activation.apply(&block.wide.forward(x));
        let wide = dropout::apply(dropout, &wide, self.config.activation_dropout);
        let output = dropout::apply(dropout, &block.output.forward(&wide), self.config.dropout);
        block.norm.forward(&(output + x))
    }
}

impl Attention {
    fn linears(&self) -> [&Linear; 4] {
        [&self.query, &self.key, &self.value, &self.output]
    }

    fn linears_mut(&mut self) -> [&mut Linear; 4] {
        [&mut self.query, &mut self.key, &mut self.value, &mut self.output]
    }

    /// Keys and values of the source, `(rows, heads, width, size)`.
    fn of_source(&self, encoded: &Encoded, heads: i64) -> [Tensor; 2] {
        Linear::forward_together([&self.key, &self.value], &encoded.hidden).map(|y| split(&y, heads))
    }
}

impl FeedForward {
    fn linears(&self) -> [&Linear; 2] {
        [&self.wide, &self.output]
    }

    fn linears_mut(&mut self) -> [&mut Linear; 2] {
        [&mut self.wide, &mut self.output]
    }
}

/// `(rows, width, hidden)` to `(rows, heads, width, size)`.
fn split(x: &Tensor, heads: i64) -> Tensor {
    let (rows, width, hidden) = x.size3().expect("hidden states have three dimensions");
    x.view([rows, width, heads, hidden / heads]).transpose(1, 2)
}

/// `(rows, heads, width, size)` to `(rows, width, hidden)`.
fn join(x: &Tensor) -> Tensor {
    let (rows, heads, width, size) = x.size4().expect("heads have four dimensions");
    x.transpose(1, 2).reshape([rows, width, heads * size])
}
