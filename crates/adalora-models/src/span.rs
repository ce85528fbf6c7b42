//! A head that points at the first and the last token of an answer, as `transformers`' models for question answering.

use adalora_adapter::Arena;
use adalora_adapter::random::Random;
use tch::{Kind, Tensor};

use crate::{Checkpoint, HeadStart, head};

const LAYER: &str = "qa_outputs";

/// The trained head, f32: one linear layer on every token. Any encoder's hidden states will do.
#[derive(Debug)]
pub struct SpanHead {
    layer: (Tensor, Tensor),
}

impl SpanHead {
    /// First values of the head: the checkpoint's if it has them, else drawn as by [`Head::start`](crate::Head::start).
    pub fn start(checkpoint: &Checkpoint, seed: u64) -> HeadStart {
        let mut start = HeadStart::default();
        start.layer(checkpoint, LAYER, 2, &mut Random::new(seed, "head"));
        start
    }

    /// The head over an arena that was built with [`start`](Self::start)'s extras.
    pub fn new(arena: &Arena) -> Self {
        Self { layer: head::layer(arena, LAYER) }
    }

    /// Logits that a token is the first and that it is the last of the answer, `(rows, width, 2)`, f32, from hidden states
    /// `(rows, width, hidden)` of any dtype. Those of padding, where the input's `mask` is false, are minus infinity;
    /// `transformers` lets padding compete, so that a loss depends on how much of it there is.
    pub fn forward(&self, hidden: &Tensor, mask: Option<&Tensor>) -> Tensor {
        let logits = hidden.to_kind(Kind::Float).linear(&self.layer.0, Some(&self.layer.1));
        match mask {
            Some(mask) => logits.masked_fill(&mask.logical_not().unsqueeze(-1), f64::NEG_INFINITY),
            None => logits,
        }
    }
}
