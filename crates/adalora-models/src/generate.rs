//! Generation of text, greedy and by beam search.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use crate::bart::Decoding;
use crate::search::{Candidate, Search, repeating};
use crate::{Bart, BartConfig, Source};

/// How text is generated. Lengths count the start token, as `transformers` counts them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Generation {
    /// Hypotheses at a time; 1 is greedy.
    pub beams: usize,
    /// Tokens at most.
    pub max_length: usize,
    /// No end before as many tokens.
    #[serde(default)]
    pub min_length: usize,
    /// A finished hypothesis has the score `log p / length^length_penalty`: above 0 prefers longer ones.
    #[serde(default = "one")]
    pub length_penalty: f64,
    /// No sequence of as many tokens comes twice; 0 is no limit.
    #[serde(default)]
    pub no_repeat_ngram: usize,
    /// When a beam search is over.
    #[serde(default)]
    pub early_stopping: EarlyStopping,
    /// Whether the first token is always the one that texts begin with.
    #[serde(default = "yes")]
    pub forced_bos: bool,
    /// Whether the token at the greatest length is always the end.
    #[serde(default = "yes")]
    pub forced_eos: bool,
}

/// When a beam search is over, with as many finished hypotheses as there are beams.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(from = "Spelled", into = "Spelled")]
pub enum EarlyStopping {
    /// `false`: when the best running one would be worse if it ended now.
    #[default]
    No,
    /// `true`: at once.
    Yes,
    /// `"never"`: when the best running one would be worse at the greatest length, where longer ones are preferred.
    Never,
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "true, false or \"never\"")]
enum Spelled {
    Flag(bool),
    Word(Word),
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Word {
    Never,
}

impl From<Spelled> for EarlyStopping {
    fn from(spelled: Spelled) -> Self {
        match spelled {
            Spelled::Flag(false) => Self::No,
            Spelled::Flag(true) => Self::Yes,
            Spelled::Word(Word::Never) => Self::Never,
        }
    }
}

impl From<EarlyStopping> for Spelled {
    fn from(stopping: EarlyStopping) -> Self {
        match stopping {
            EarlyStopping::No => Self::Flag(false),
            EarlyStopping::Yes => Self::Flag(true),
            EarlyStopping::Never => Self::Word(Word::Never),
        }
    }
}

fn one() -> f64 {
    1.0
}

fn yes() -> bool {
    true
}

impl Generation {
    /// The rules that these settings break, each with the key that it is about.
    pub fn problems(&self, config: &BartConfig) -> Vec<(&'static str, String)> {
        let &Self { beams, max_length, min_length, length_penalty, .. } = self;
        let positions = config.max_position_embeddings;
        let rules = [
            (beams >= 1, "beams", "must be at least 1".to_owned()),
            (
                2 * beams <= config.vocab_size,
                "beams",
                format!("({beams}) must not exceed half the vocabulary ({})", config.vocab_size),
            ),
            (
                max_length >= 2,
                "max_length",
                format!("({max_length}) must be at least 2: the start and a token"),
            ),
            (
                max_length <= positions,
                "max_length",
                format!("({max_length}) must not exceed the model's positions ({positions})"),
            ),
            (
                min_length < max_length,
                "min_length",
                format!("({min_length}) must be below max_length ({max_length})"),
            ),
            (length_penalty.is_finite(), "length_penalty", "must be a finite number".into()),
        ];
        rules.into_iter().filter(|(holds, ..)| !holds).map(|(_, key, rule)| (key, rule)).collect()
    }

    /// The token that follows so many, where there is no choice.
    fn forced(&self, config: &BartConfig, length: usize) -> Option<i64> {
        if self.forced_eos && length == self.max_length - 1 {
            Some(config.eos_token_id)
        } else if self.forced_bos && length == 1 {
            Some(config.bos_token_id)
        } else {
            None
        }
    }

    /// Sets the logits `(rows, vocabulary)` of tokens that may not follow to minus infinity.
    fn ban(&self, config: &BartConfig, logits: &mut Tensor, histories: &[&[i64]]) {
        if histories[0].len() < self.min_length {
            let _ = logits.select(1, config.eos_token_id).fill_(f64::NEG_INFINITY);
        }
        if self.no_repeat_ngram > 0 {
            let vocabulary = logits.size()[1];
            let banned: Vec<i64> = histories
                .iter()
                .enumerate()
                .flat_map(|(row, tokens)| {
                    repeating(tokens, self.no_repeat_ngram).map(move |token| row as i64 * vocabulary + token)
                })
                .collect();
            if !banned.is_empty() {
                let banned = Tensor::from_slice(&banned).to(logits.device());
                let _ = logits.view(-1).index_fill_(0, &banned, f64::NEG_INFINITY);
            }
        }
    }
}

impl Bart {
    /// Texts for the rows of a batch: tokens without the start token, with the end if there is one. The same tokens as
    /// `transformers` 5.24 finds, with and without beams.
    ///
    /// # Panics
    ///
    /// If `how` breaks one of its [rules](Generation::problems).
    pub fn generate(&self, source: &Source, how: &Generation) -> Vec<Vec<i64>> {
        let _guard = tch::no_grad_guard();
        let problems = how.problems(self.config());
        assert!(
            problems.is_empty(),
            "settings of generation are checked before a model is loaded: {problems:?}"
        );
        let encoded = self.encode(source, None);
        let decoding = Decoding::new(self, &encoded, how.beams, how.max_length - 1);
        let items = source.ids.size()[0] as usize;
        if how.beams == 1 {
            self.greedy(decoding, items, how)
        } else {
            self.beam_search(decoding, items, how)
        }
    }

    fn greedy(&self, mut decoding: Decoding, items: usize, how: &Generation) -> Vec<Vec<i64>> {
        let (config, start) = (self.config(), self.config().decoder_start_token_id);
        let mut texts = vec![vec![start]; items];
        let mut open: Vec<usize> = (0..items).collect();
        for length in 1..how.max_length {
            let histories: Vec<&[i64]> = open.iter().map(|&item| texts[item].as_slice()).collect();
            let last: Vec<i64> = histories.iter().map(|history| history[length - 1]).collect();
            let mut logits = decoding.step(&last);
            let tokens = match how.forced(config, length) {
                Some(token) => vec![token; open.len()],
                None => {
                    how.ban(config, &mut logits, &histories);
                    Vec::<i64>::try_from(logits.argmax(1, false)).expect("one token for each row")
                }
            };
            let mut kept = Vec::new();
            for (row, (&item, token)) in open.iter().zip(tokens).enumerate() {
                texts[item].push(token);
                if token != config.eos_token_id {
                    kept.push(row as i64);
                }
            }
            if kept.is_empty() {
                break;
            }
            open = kept.iter().map(|&row| open[row as usize]).collect();
            decoding.keep(&kept, &kept);
        }
        texts.into_iter().map(|text| text[1..].to_vec()).collect()
    }

    fn beam_search(&self, mut decoding: Decoding, items: usize, how: &Generation) -> Vec<Vec<i64>> {
        let config = self.config();
        let (start, eos) = (config.decoder_start_token_id, config.eos_token_id);
        let mut searches: Vec<_> = (0..items).map(|_| Search::new(how, start, eos)).collect();
        let mut open: Vec<usize> = (0..items).collect();
        for length in 1.. {
            let histories: Vec<&[i64]> = open
                .iter()
                .flat_map(|&item| searches[item].running.iter().map(|own| own.tokens.as_slice()))
                .collect();
            let last: Vec<i64> = histories.iter().map(|history| history[length - 1]).collect();
            let best = match how.forced(config, length) {
                Some(token) => {
                    if length < how.max_length - 1 {
                        // For the keys and values.
                        let _ = decoding.step(&last);
                    }
                    vec![vec![(token, 0.0)]; last.len()]
                }
                None => {
                    let logits = decoding.step(&last);
                    self.best(logits, &histories, how)
                }
            };
            let (mut kept, mut rows, mut still) = (Vec::new(), Vec::new(), Vec::new());
            for (place, (&item, best)) in open.iter().zip(best.chunks(how.beams)).enumerate() {
                let search = &mut searches[item];
                let candidates = best.iter().zip(&search.running).enumerate();
                let candidates = candidates.flat_map(|(beam, (best, own))| {
                    best.iter().map(move |&(token, score)| Candidate {
                        beam,
                        token,
                        score: own.score + score,
                    })
                });
                let parents = search.advance(candidates.collect());
                if !search.done {
                    still.push(item);
                    kept.push(place as i64);
                    rows.extend(parents.iter().map(|&beam| (place * how.beams + beam) as i64));
                }
            }
            if still.is_empty() {
                break;
            }
            open = still;
            decoding.keep(&kept, &rows);
        }
        searches.into_iter().map(Search::best).collect()
    }

    /// For each row the likeliest tokens that may follow, twice as many as there are beams, and the logarithms of their
    /// probabilities, which those that may not follow have a share in.
    fn best(&self, mut logits: Tensor, histories: &[&[i64]], how: &Generation) -> Vec<Vec<(i64, f32)>> {
        let total = logits.logsumexp(1, false);
        how.ban(self.config(), &mut logits, histories);
        let count = 2 * how.beams;
        let (values, tokens) = logits.topk(count as i64, 1, true, true);
        let scores = Vec::<f32>::try_from((values - total.unsqueeze(1)).to_kind(Kind::Float).view(-1));
        let scores = scores.expect("f32 scores");
        let tokens = Vec::<i64>::try_from(tokens.view(-1)).expect("tokens are integers");
        let rows = tokens.chunks(count).zip(scores.chunks(count));
        rows.map(|(tokens, scores)| tokens.iter().copied().zip(scores.iter().copied()).collect()).collect()
    }
}
