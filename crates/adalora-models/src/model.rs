//! A model with what stands on top of it: a classifier, a head that points at answers, or a decoder that writes.

use adalora_adapter::{Adapter, Arena, Linear};
use tch::Device;

use crate::{Bart, Checkpoint, Encoder, Head, HeadStart, ModelConfig, SpanHead, Tuning};

/// What a model is to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// A class or scores of a text, from pooler and classifier.
    Classify {
        /// Logits of the classifier.
        outputs: usize,
    },
    /// Where in a text an answer stands.
    Answer,
    /// Another text, which takes a decoder.
    Write,
}

impl Purpose {
    /// Whether models of this family can serve it.
    pub fn fits(self, config: &ModelConfig) -> bool {
        (self == Self::Write) == matches!(config, ModelConfig::Bart(_))
    }

    /// First values of the head; a decoder has none of its own, since it takes logits with the embedding table.
    pub fn start(self, checkpoint: &Checkpoint, seed: u64) -> HeadStart {
        match self {
            Self::Classify { outputs } => Head::start(checkpoint, outputs, seed),
            Self::Answer => SpanHead::start(checkpoint, seed),
            Self::Write => HeadStart::default(),
        }
    }

    /// Parameters of the head.
    pub fn head_parameters(self, config: &ModelConfig) -> usize {
        let hidden = config.hidden_size();
        match self {
            Self::Classify { outputs } => hidden * hidden + hidden + outputs * (hidden + 1),
            Self::Answer => 2 * (hidden + 1),
            Self::Write => 0,
        }
    }

    /// The head's modules in `transformers`' model.
    pub fn modules(self) -> &'static [&'static str] {
        match self {
            Self::Classify { .. } => &["classifier", "pooler"],
            Self::Answer => &["qa_outputs"],
            Self::Write => &[],
        }
    }

    /// What PEFT calls it.
    pub fn task_type(self) -> &'static str {
        match self {
            Self::Classify { .. } => "SEQ_CLS",
            Self::Answer => "QUESTION_ANS",
            Self::Write => "SEQ_2_SEQ_LM",
        }
    }

    /// The class of `transformers` that such a model is.
    pub fn architecture(self, config: &ModelConfig) -> String {
        let family = match config {
            ModelConfig::Bert(_) => "Bert",
            ModelConfig::Deberta(_) => "DebertaV2",
            ModelConfig::Bart(_) => "Bart",
        };
        let purpose = match self {
            Self::Classify { .. } => "SequenceClassification",
            Self::Answer => "QuestionAnswering",
            Self::Write => "ConditionalGeneration",
        };
        format!("{family}For{purpose}")
    }
}

/// A model whose linear layers may carry adapters.
#[derive(Debug)]
pub enum Model {
    /// Says a class or scores of a text.
    Classifier(Encoder, Head),
    /// Says where in a text an answer stands.
    Reader(Encoder, SpanHead),
    /// Writes a text.
    Writer(Bart),
}

/// Dropout in training.
#[derive(Debug, Clone, Copy, Default)]
pub struct Dropouts {
    /// Inside the model, on attention weights and hidden states; the configuration's own where absent.
    pub inside: Option<f64>,
    /// Before the classifier.
    pub classifier: f64,
}

impl Model {
    /// The model as `tuning` trains it, over an arena with [`Tuning::start`]'s and [`Purpose::start`]'s values.
    ///
    /// # Panics
    ///
    /// If the family does not [fit](Purpose::fits) the purpose.
    pub fn new(
        purpose: Purpose,
        checkpoint: &Checkpoint,
        tuning: Tuning,
        arena: &Arena,
        dropouts: Dropouts,
        device: Device,
    ) -> Self {
        let config = checkpoint.config();
        assert!(purpose.fits(config), "rules ask for a family that fits: {purpose:?}");
        let encoder = || Encoder::tuned(checkpoint, tuning, arena, dropouts.inside, device);
        match purpose {
            Purpose::Classify { .. } => {
                Self::Classifier(encoder(), Head::new(config, arena, dropouts.classifier))
            }
            Purpose::Answer => Self::Reader(encoder(), SpanHead::new(arena)),
            Purpose::Write => Self::Writer(Bart::of(&checkpoint.over(arena), dropouts.inside, device)),
        }
    }

    /// Takes the head from another arena.
    pub fn renew_head(&mut self, config: &ModelConfig, arena: &Arena, dropouts: Dropouts) {
        match self {
            Self::Classifier(_, head) => *head = Head::new(config, arena, dropouts.classifier),
            Self::Reader(_, head) => *head = SpanHead::new(arena),
            Self::Writer(_) => {}
        }
    }

    /// The linear layers that adapters can be put on, in the order of [`ModelConfig::linears`].
    pub fn linears_mut(&mut self) -> Vec<&mut Linear> {
        match self {
            Self::Classifier(encoder, _) | Self::Reader(encoder, _) => encoder.linears_mut(),
            Self::Writer(bart) => bart.linears_mut(),
        }
    }

    /// Puts adapters on the layers at `places`, in their order.
    pub fn attach(&mut self, places: &[usize], adapters: impl Iterator<Item = Adapter>) {
        match self {
            Self::Classifier(encoder, _) | Self::Reader(encoder, _) => encoder.attach(places, adapters),
            Self::Writer(bart) => bart.attach(places, adapters),
        }
    }
}
