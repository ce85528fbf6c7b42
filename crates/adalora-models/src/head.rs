//! Pooler, classifier and loss on top of an encoder, as `transformers`' `BertForSequenceClassification`.

use adalora_adapter::random::Random;
use adalora_adapter::{Arena, Extra, ParameterKind};
use adalora_kernels::dropout::Dropout;
use tch::{Kind, Reduction, Tensor};

use crate::Checkpoint;

const POOLER: &str = "bert.pooler.dense";
const CLASSIFIER: &str = "classifier";

/// First values of the head's parameters.
#[derive(Debug)]
pub struct HeadStart {
    /// The parameters, for the arena.
    pub extras: Vec<Extra>,
    /// Those that the checkpoint lacks and that were drawn instead.
    pub drawn: Vec<String>,
}

/// The trained head: `classifier(dropout(tanh(pooler(first token))))`.
#[derive(Debug)]
pub struct Head {
    pooler: (Tensor, Tensor),
    classifier: (Tensor, Tensor),
    dropout: f64,
}

/// What a batch should have been.
#[derive(Debug)]
pub enum Loss {
    /// Cross entropy with the classes, `(rows,)`, `Int64`.
    Classes(Tensor),
    /// Mean squared error with the scores, `(rows, outputs)`, `Float`.
    Scores(Tensor),
}

impl Head {
    /// First values for a head of `outputs` logits: the checkpoint's pooler and, if it has as many outputs, its
    /// classifier; what is absent is drawn as `transformers` does, weights normal with `initializer_range` and
    /// biases 0.
    pub fn start(checkpoint: &Checkpoint, outputs: usize, seed: u64) -> HeadStart {
        let config = checkpoint.config();
        let (hidden, outputs) = (config.hidden_size as i64, outputs as i64);
        let mut random = Random::new(seed, "head");
        let mut start = HeadStart { extras: Vec::new(), drawn: Vec::new() };
        for (name, rows) in [(POOLER, hidden), (CLASSIFIER, outputs)] {
            let parts = [
                ("weight", vec![rows, hidden], ParameterKind::Weight),
                ("bias", vec![rows], ParameterKind::Bias),
            ];
            for (part, shape, kind) in parts {
                let name = format!("{name}.{part}");
                let stored = checkpoint.find(name.strip_prefix("bert.").unwrap_or(&name));
                let value = match stored.filter(|tensor| tensor.size() == shape) {
                    Some(stored) => stored,
                    None => {
                        start.drawn.push(name.clone());
                        let deviation = if part == "weight" { config.initializer_range as f32 } else { 0.0 };
                        random.normal(&shape, deviation)
                    }
                };
                start.extras.push(Extra { name, start: value, kind });
            }
        }
        start
    }

    /// The head over an arena that was built with [`start`](Self::start)'s extras.
    pub fn new(arena: &Arena, dropout: f64) -> Self {
        let layer =
            |name: &str| (arena.extra(&format!("{name}.weight")), arena.extra(&format!("{name}.bias")));
        Self { pooler: layer(POOLER), classifier: layer(CLASSIFIER), dropout }
    }

    /// Logits, `(rows, outputs)`, f32, from hidden states `(rows, width, hidden)` of any dtype. Without `dropout` nothing is dropped.
    pub fn forward(&self, hidden: &Tensor, dropout: Option<&Dropout>) -> Tensor {
        let first = hidden.select(1, 0).to_kind(Kind::Float);
        let pooled = first.linear(&self.pooler.0, Some(&self.pooler.1)).tanh();
        let pooled = dropout.map_or_else(|| pooled.shallow_clone(), |own| own.apply(&pooled, self.dropout));
        pooled.linear(&self.classifier.0, Some(&self.classifier.1))
    }
}

impl Loss {
    /// The loss summed over the rows: a mean over any number of batches is their sum over their rows.
    pub fn sum(&self, logits: &Tensor) -> Tensor {
        match self {
            Self::Classes(classes) => {
                logits.cross_entropy_loss::<Tensor>(classes, None, Reduction::Sum, -100, 0.0)
            }
            Self::Scores(scores) => {
                let outputs = scores.size()[1] as f64;
                logits.mse_loss(scores, Reduction::Sum) / outputs
            }
        }
    }
}
