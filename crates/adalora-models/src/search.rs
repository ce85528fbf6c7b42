//! Beam search over the continuations of one item: plain numbers, no tensors.
//!
//! Which hypotheses run on, which are finished and when it is over are those of `transformers` 5.24's `_beam_search`,
//! in f32 as there, so that the same tokens are found.

use crate::{EarlyStopping, Generation};

/// What stands in the place of a score where there is none: lower than any, yet finite.
const NONE: f32 = -1e9;

/// One token more for one of the running hypotheses.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Candidate {
    /// The hypothesis.
    pub(crate) beam: usize,
    /// The token.
    pub(crate) token: i64,
    /// Sum of the logarithms of the probabilities, this token's included.
    pub(crate) score: f32,
}

/// A hypothesis: the start token and what follows.
#[derive(Debug, Clone)]
pub(crate) struct Hypothesis {
    pub(crate) tokens: Vec<i64>,
    pub(crate) score: f32,
}

/// The search for one item.
#[derive(Debug)]
pub(crate) struct Search<'a> {
    how: &'a Generation,
    eos: i64,
    /// As many as there are beams.
    pub(crate) running: Vec<Hypothesis>,
    /// The best so far, at most as many as there are beams, best first. Scores are divided by the length to the power
    /// of the penalty.
    finished: Vec<Hypothesis>,
    /// Whether no hypothesis can still be better than what is finished.
    pub(crate) done: bool,
}

impl<'a> Search<'a> {
    pub(crate) fn new(how: &'a Generation, start: i64, eos: i64) -> Self {
        // All beams are the same, so only the first may have descendants.
        let score = |beam| if beam == 0 { 0.0 } else { NONE };
        let running = (0..how.beams).map(|beam| Hypothesis { tokens: vec![start], score: score(beam) });
        Self { how, eos, running: running.collect(), finished: Vec::new(), done: false }
    }

    /// Goes on by one token, given the best continuations of each hypothesis, twice as many as there are beams, or all
    /// that there are. Returns which hypothesis each of the running ones now continues.
    pub(crate) fn advance(&mut self, mut candidates: Vec<Candidate>) -> Vec<usize> {
        let &Generation { beams, max_length, length_penalty, early_stopping, .. } = self.how;
        // One end for each beam at most: as many can run on.
        candidates.sort_by(|one, other| other.score.total_cmp(&one.score));
        candidates.truncate(2 * beams);
        let length = self.running[0].tokens.len() + 1;
        let ends = |candidate: &Candidate| candidate.token == self.eos || length >= max_length;
        let longer = |candidate: &Candidate| {
            let before = &self.running[candidate.beam].tokens;
            before.iter().copied().chain([candidate.token]).collect()
        };

        let scale = |length: usize| ((length as f64).powf(length_penalty)) as f32;
        let new = candidates.iter().take(beams).filter(|candidate| ends(candidate));
        let new: Vec<_> = new
            .map(|candidate| Hypothesis {
                tokens: longer(candidate),
                score: candidate.score / scale(length - 1),
            })
            .collect();

        let mut going = candidates.clone();
        for candidate in going.iter_mut().filter(|candidate| ends(candidate)) {
            candidate.score += NONE;
        }
        going.sort_by(|one, other| other.score.total_cmp(&one.score));
        going.truncate(beams);
        let running = going
            .iter()
            .map(|candidate| Hypothesis { tokens: longer(candidate), score: candidate.score })
            .collect();
        self.running = running;
        self.finished.extend(new);
        self.finished.sort_by(|one, other| other.score.total_cmp(&one.score));
        self.finished.truncate(beams);

        let full = self.finished.len() == beams;
        let worst = self.finished.last().filter(|_| full).map_or(NONE, |own| own.score);
        let longest = early_stopping == EarlyStopping::Never && length_penalty > 0.0;
        let possible = scale(if longest { max_length - 1 } else { length - 1 });
        let hopeless = self.running[0].score / possible <= worst;
        self.done = hopeless || (full && early_stopping == EarlyStopping::Yes) || length >= max_length;
        going.iter().map(|candidate| candidate.beam).collect()
    }

    /// The best hypothesis, without the start token.
    pub(crate) fn best(self) -> Vec<i64> {
        let best = self.finished.into_iter().next().expect("a search ends with a finished hypothesis");
        best.tokens[1..].to_vec()
    }
}

/// Tokens that would repeat a sequence of `size` tokens.
pub(crate) fn repeating(tokens: &[i64], size: usize) -> impl Iterator<Item = i64> {
    let windows = if tokens.len() < size { &[] } else { tokens };
    let suffix = &tokens[tokens.len() - (size - 1).min(tokens.len())..];
    windows
        .windows(size)
        .filter(move |window| window[..size - 1] == *suffix)
        .map(move |window| window[size - 1])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeats_of_every_size() {
        let banned = |tokens: &[i64], size| repeating(tokens, size).collect::<Vec<_>>();
        let tokens = [2, 5, 6, 5, 7, 5];
        assert_eq!(banned(&tokens, 1), tokens);
        assert_eq!(banned(&tokens, 2), [6, 7]);
        assert_eq!(banned(&[2, 5, 6, 7, 5, 6], 3), [7]);
        assert!(
            banned(&tokens, 3).is_empty() && banned(&tokens, 6).is_empty() && banned(&tokens, 9).is_empty()
        );
    }
}
