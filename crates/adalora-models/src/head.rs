//! Pooler, classifier and loss on top of an encoder, as `transformers`' models for sequence classification.

use adalora_adapter::random::Random;
use adalora_adapter::{Arena, Extra, ParameterKind};
use adalora_kernels::dropout::{self, Dropout};
use tch::{Kind, Reduction, Tensor};

use crate::{Activation, Checkpoint, ModelConfig};

const CLASSIFIER: &str = "classifier";

/// First values of a head's parameters.
#[derive(Debug, Default)]
pub struct HeadStart {
    /// The parameters, for the arena.
    pub extras: Vec<Extra>,
    /// Those that the checkpoint lacks and that were drawn instead.
    pub drawn: Vec<String>,
}

/// The trained head, f32: `classifier(dropout(activation(pooler(dropout(first token)))))`.
///
/// The activation is tanh and the first dropout absent for BERT; for DeBERTa the configuration says what they are.
#[derive(Debug)]
pub struct Head {
    pooler: (Tensor, Tensor),
    pooler_dropout: f64,
    activation: Activation,
    classifier: (Tensor, Tensor),
    dropout: f64,
}

const NO_CLASSIFIER: &str = "BART writes, and has no classifier";

/// Path of the pooler in `transformers`' model.
fn pooler_path(config: &ModelConfig) -> &'static str {
    match config {
        ModelConfig::Bert(_) => "bert.pooler.dense",
        ModelConfig::Deberta(_) => "pooler.dense",
        ModelConfig::Bart(_) => panic!("{NO_CLASSIFIER}"),
    }
}

/// What a batch should have been.
#[derive(Debug)]
pub enum Loss {
    /// Cross entropy with the classes, `(rows,)`, `Int64`.
    Classes(Tensor),
    /// Mean squared error with the scores, `(rows, outputs)`, `Float`.
    Scores(Tensor),
    /// Cross entropy with tokens, of logits `(rows, width, vocabulary)`.
    Tokens {
        /// Tokens, `(rows, width)`, `Int64`; -100 where there is none.
        labels: Tensor,
        /// The share of a label that is spread over the whole vocabulary, as by `transformers`' `LabelSmoother`.
        smoothing: f64,
    },
    /// Mean of the cross entropies with the first and the last token of the answer, `(rows, 2)`, `Int64`, of logits
    /// `(rows, width, 2)`.
    Spans(Tensor),
}

impl HeadStart {
    /// Adds a linear layer: the checkpoint's if it has one of `rows` outputs, else one that is drawn as `transformers` does,
    /// weights normal with `initializer_range` and biases 0.
    pub(crate) fn layer(&mut self, checkpoint: &Checkpoint, name: &str, rows: i64, random: &mut Random) {
        let config = checkpoint.config();
        let parts = [
            ("weight", vec![rows, config.hidden_size() as i64], ParameterKind::Weight),
            ("bias", vec![rows], ParameterKind::Bias),
        ];
        for (part, shape, kind) in parts {
            let name = format!("{name}.{part}");
            let stored = checkpoint.find(name.strip_prefix("bert.").unwrap_or(&name));
            let value = match stored.filter(|tensor| tensor.size() == shape) {
                Some(stored) => stored,
                None => {
                    self.drawn.push(name.clone());
                    let deviation = if part == "weight" { config.initializer_range() as f32 } else { 0.0 };
                    random.normal(&shape, deviation)
                }
            };
            self.extras.push(Extra { name, start: value, kind });
        }
    }
}

/// Weight and bias of a layer in an arena.
pub(crate) fn layer(arena: &Arena, name: &str) -> (Tensor, Tensor) {
    (arena.extra(&format!("{name}.weight")), arena.extra(&format!("{name}.bias")))
}

impl Head {
    /// First values for a head of `outputs` logits: the checkpoint's pooler and, if it has as many outputs, its
    /// classifier; what is absent is drawn as `transformers` does, weights normal with `initializer_range` and
    /// biases 0.
    pub fn start(checkpoint: &Checkpoint, outputs: usize, seed: u64) -> HeadStart {
        let config = checkpoint.config();
        let mut random = Random::new(seed, "head");
        let mut start = HeadStart::default();
        start.layer(checkpoint, pooler_path(config), config.hidden_size() as i64, &mut random);
        start.layer(checkpoint, CLASSIFIER, outputs as i64, &mut random);
        start
    }

    /// The head over an arena that was built with [`start`](Self::start)'s extras. `dropout` is the one before the
    /// classifier.
    pub fn new(config: &ModelConfig, arena: &Arena, dropout: f64) -> Self {
        let (activation, pooler_dropout) = match config {
            ModelConfig::Bert(_) => (Activation::Tanh, 0.0),
            ModelConfig::Deberta(config) => (config.pooler_hidden_act, config.pooler_dropout),
            ModelConfig::Bart(_) => panic!("{NO_CLASSIFIER}"),
        };
        Self {
            pooler: layer(arena, pooler_path(config)),
            pooler_dropout,
            activation,
            classifier: layer(arena, CLASSIFIER),
            dropout,
        }
    }

    /// Logits, `(rows, outputs)`, f32, from hidden states `(rows, width, hidden)` of any dtype. Without `dropout` nothing
    /// is dropped.
    pub fn forward(&self, hidden: &Tensor, dropout: Option<&Dropout>) -> Tensor {
        let first = dropout::apply(dropout, &hidden.select(1, 0).to_kind(Kind::Float), self.pooler_dropout);
        let pooled = self.activation.apply(&first.linear(&self.pooler.0, Some(&self.pooler.1)));
        let pooled = dropout::apply(dropout, &pooled, self.dropout);
        pooled.linear(&self.classifier.0, Some(&self.classifier.1))
    }
}

impl Loss {
    /// The loss summed over what is predicted, rows or the labels of [`Tokens`](Self::Tokens): a mean over any number of
    /// batches is their sum over how many of these they have.
    pub fn sum(&self, logits: &Tensor) -> Tensor {
        match self {
            Self::Classes(classes) => {
                logits.cross_entropy_loss::<Tensor>(classes, None, Reduction::Sum, -100, 0.0)
            }
            Self::Scores(scores) => {
                let outputs = scores.size()[1] as f64;
                logits.mse_loss(scores, Reduction::Sum) / outputs
            }
            Self::Tokens { labels, smoothing } => {
                let logits = logits.flatten(0, 1);
                let labels = labels.view(-1);
                logits.cross_entropy_loss::<Tensor>(&labels, None, Reduction::Sum, -100, *smoothing)
            }
            Self::Spans(spans) => {
                logits.cross_entropy_loss::<Tensor>(spans, None, Reduction::Sum, -100, 0.0) / 2.0
            }
        }
    }
}
