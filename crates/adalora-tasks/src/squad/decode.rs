//! From a model's logits to answers, as `postprocess_qa_predictions` of `transformers`' example `run_qa.py` finds them.
//!
//! Where we differ: a span that stands for no character of the context is no answer; where no span is left at all there
//! is no answer either, and not the word `empty`; padding has no logits that could push out others; and of equal
//! logits the earlier token counts as the larger.

use std::ops::Range;

use super::Window;

/// How answers are looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decoding {
    /// Of the tokens of a window, as many of the likeliest first and last ones are put together, and as many spans are
    /// kept.
    pub n_best: usize,
    /// Tokens of an answer at most.
    pub max_answer_length: usize,
}

impl Default for Decoding {
    /// As in `run_qa.py`.
    fn default() -> Self {
        Self { n_best: 20, max_answer_length: 30 }
    }
}

/// What a model says of the tokens of one window. What is beyond them, as where a batch is padded, is not looked at.
#[derive(Debug, Clone, PartialEq)]
pub struct SpanLogits {
    /// That a token is the first of the answer.
    pub starts: Vec<f32>,
    /// That it is the last.
    pub ends: Vec<f32>,
}

/// A part of the context that may be the answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Span {
    /// Of the context.
    pub bytes: Range<usize>,
    /// Of its first token.
    pub start_logit: f32,
    /// Of its last one.
    pub end_logit: f32,
}

/// What may be the answer to one question.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// The likeliest spans over all windows, the best first.
    pub spans: Vec<Span>,
    /// The score of no answer: the lowest that a window gives it.
    pub null: f32,
}

impl Span {
    /// The sum by which spans are compared.
    pub fn score(&self) -> f32 {
        self.start_logit + self.end_logit
    }
}

impl Found {
    /// By how much the score of no answer is above the best span's; infinite if there is none.
    pub fn null_odds(&self) -> f32 {
        self.spans.first().map_or(f32::INFINITY, |best| self.null - best.start_logit - best.end_logit)
    }
}

impl Decoding {
    /// What the windows of one question say.
    ///
    /// # Panics
    ///
    /// If a window has fewer logits than tokens up to the end of its context, or there is no window.
    pub(crate) fn find(&self, windows: &[Window], logits: &[SpanLogits]) -> Found {
        let mut spans = Vec::new();
        let mut null = f32::INFINITY;
        for (window, SpanLogits { starts, ends }) in windows.iter().zip(logits) {
            null = null.min(starts[0] + ends[0]);
            // One special token ends the context.
            let tokens = (window.context.end + 1).min(starts.len());
            let ends_first = self.largest(&ends[..tokens]);
            for start in self.largest(&starts[..tokens]) {
                for &end in &ends_first {
                    let inside = window.context.contains(&start) && window.context.contains(&end);
                    if !inside || end < start || end - start >= self.max_answer_length {
                        continue;
                    }
                    let [first, last] = [start, end].map(|token| &window.bytes[token - window.context.start]);
                    if first.start < last.end {
                        let bytes = first.start..last.end;
                        spans.push(Span { bytes, start_logit: starts[start], end_logit: ends[end] });
                    }
                }
            }
        }
        spans.sort_by(|one, other| other.score().total_cmp(&one.score()));
        spans.truncate(self.n_best);
        Found { spans, null }
    }

    /// Places of the largest values, the largest first.
    fn largest(&self, values: &[f32]) -> Vec<usize> {
        let mut places: Vec<usize> = (0..values.len()).collect();
        places.sort_by(|&one, &other| values[other].total_cmp(&values[one]));
        places.truncate(self.n_best);
        places
    }
}
