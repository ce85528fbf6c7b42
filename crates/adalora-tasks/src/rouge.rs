//! ROUGE (Lin, 2004): how much of a reference a summary has in common with it, as Python's `rouge-score` 0.1.2 counts it
//! with its stemmer on.

use std::collections::{BTreeSet, HashMap};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::porter;

/// Shares in 0..1 of what two texts have in common.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Overlap {
    /// Share of the summary.
    pub precision: f64,
    /// Share of the reference.
    pub recall: f64,
    /// Harmonic mean of the two; what papers report.
    pub f1: f64,
}

/// The four overlaps of a summary with its reference. 0 where either has no word.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Rouge {
    /// Of words.
    pub rouge1: Overlap,
    /// Of pairs of neighbouring words.
    pub rouge2: Overlap,
    /// Of the longest common subsequence of words.
    pub rouge_l: Overlap,
    /// Of the union, over the sentences of the summary, of such subsequences with each sentence of the reference. A
    /// sentence is a line.
    pub rouge_lsum: Overlap,
}

impl Overlap {
    fn new(common: usize, reference: usize, summary: usize) -> Self {
        let [precision, recall] = [summary, reference].map(|all| common as f64 / all.max(1) as f64);
        let sum = precision + recall;
        let f1 = if sum > 0.0 { 2.0 * precision * recall / sum } else { 0.0 };
        Self { precision, recall, f1 }
    }
}

impl Rouge {
    /// Compares a summary with its reference.
    pub fn score(reference: &str, summary: &str) -> Self {
        let mut words = Words::default();
        let [reference_lines, summary_lines] = [reference, summary].map(|text| words.lines(text));
        let [reference, summary] = [&reference_lines, &summary_lines].map(|lines| lines.concat());
        Self {
            rouge1: sequences(&reference, &summary, 1),
            rouge2: sequences(&reference, &summary, 2),
            rouge_l: Overlap::new(longest(&reference, &summary), reference.len(), summary.len()),
            rouge_lsum: summary_level(&reference_lines, &summary_lines),
        }
    }
}

/// Numbers for stems.
#[derive(Default)]
struct Words(HashMap<String, u32>);

impl Words {
    /// The words of each line, lower-cased and stemmed if they are longer than three characters. All that is not one of
    /// `a-z0-9` separates words.
    fn lines(&mut self, text: &str) -> Vec<Vec<u32>> {
        let lower = text.to_lowercase();
        let line = |line: &str| {
            let words = line.split(|c: char| !c.is_ascii_lowercase() && !c.is_ascii_digit());
            words.filter(|word| !word.is_empty()).map(|word| self.number(word)).collect()
        };
        lower.split('\n').map(line).collect()
    }

    fn number(&mut self, word: &str) -> u32 {
        let stem = if word.len() > 3 { porter::stem(word) } else { word.into() };
        let next = self.0.len() as u32;
        *self.0.entry(stem).or_insert(next)
    }
}

fn counts<'a, T: std::hash::Hash + Eq + 'a>(items: impl Iterator<Item = T>) -> HashMap<T, usize> {
    let mut counts = HashMap::new();
    items.for_each(|item| *counts.entry(item).or_default() += 1);
    counts
}

/// Overlap of sequences of `size` words; each counts as often as both have it.
fn sequences(reference: &[u32], summary: &[u32], size: usize) -> Overlap {
    let [in_reference, in_summary] = [reference, summary].map(|words| counts(words.windows(size)));
    let common =
        in_reference.iter().map(|(words, &count)| count.min(in_summary.get(words).copied().unwrap_or(0)));
    let all = |words: &[u32]| (words.len() + 1).saturating_sub(size);
    Overlap::new(common.sum(), all(reference), all(summary))
}

/// Lengths of the longest common subsequences of all beginnings, `(reference + 1) * (summary + 1)`.
fn table(reference: &[u32], summary: &[u32]) -> Vec<Vec<u32>> {
    let mut table = vec![vec![0; summary.len() + 1]; reference.len() + 1];
    for (i, one) in reference.iter().enumerate() {
        for (j, other) in summary.iter().enumerate() {
            table[i + 1][j + 1] =
                if one == other { table[i][j] + 1 } else { table[i][j + 1].max(table[i + 1][j]) };
        }
    }
    table
}

fn longest(reference: &[u32], summary: &[u32]) -> usize {
    table(reference, summary)[reference.len()][summary.len()] as usize
}

/// Where the words of one of the longest common subsequences stand in the reference: the one that `rouge-score` finds.
fn places(reference: &[u32], summary: &[u32]) -> Vec<usize> {
    let table = table(reference, summary);
    let (mut i, mut j, mut places) = (reference.len(), summary.len(), Vec::new());
    while i > 0 && j > 0 {
        if reference[i - 1] == summary[j - 1] {
            (i, j) = (i - 1, j - 1);
            places.push(i);
        } else if table[i][j - 1] > table[i - 1][j] {
            j -= 1;
        } else {
            i -= 1;
        }
    }
    places
}

fn summary_level(reference: &[Vec<u32>], summary: &[Vec<u32>]) -> Overlap {
    let [mut left_in_reference, mut left_in_summary] =
        [reference, summary].map(|lines| counts(lines.iter().flatten().copied()));
    let mut common = 0;
    for sentence in reference {
        let union: BTreeSet<usize> = summary.iter().flat_map(|other| places(sentence, other)).collect();
        for place in union {
            // A word counts no more often than either text has it.
            let word = sentence[place];
            let left = [&mut left_in_reference, &mut left_in_summary].map(|left| left.get_mut(&word));
            if let [Some(one), Some(other)] = left
                && *one > 0
                && *other > 0
            {
                (*one, *other) = (*one - 1, *other - 1);
                common += 1;
            }
        }
    }
    let all = |lines: &[Vec<u32>]| lines.iter().map(Vec::len).sum();
    Overlap::new(common, all(reference), all(summary))
}

/// A mean and where it lies in 95 of 100 samples.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Interval {
    /// The 2.5th percentile.
    pub low: f64,
    /// The median of the samples' means.
    pub middle: f64,
    /// The 97.5th percentile.
    pub high: f64,
}

/// Bootstrap interval of the mean, from 1,000 samples with replacement, as `rouge-score`'s aggregator takes it: a
/// function of the scores alone, as its random numbers always begin alike. NaN for no scores.
pub fn bootstrap(scores: &[f64]) -> Interval {
    const SAMPLES: usize = 1000;
    let mut random = ChaCha8Rng::seed_from_u64(0);
    let mut means: Vec<f64> = (0..SAMPLES)
        .map(|_| {
            let drawn = scores.iter().map(|_| scores[random.random_range(0..scores.len())]);
            drawn.sum::<f64>() / scores.len() as f64
        })
        .collect();
    means.sort_by(f64::total_cmp);
    let percentile = |share: f64| {
        let place = share * (SAMPLES - 1) as f64;
        let (below, above) = (means[place.floor() as usize], means[place.ceil() as usize]);
        below + (above - below) * place.fract()
    };
    Interval { low: percentile(0.025), middle: percentile(0.5), high: percentile(0.975) }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use serde::Deserialize;
    use serde::de::DeserializeOwned;
    use sha2::{Digest, Sha256};

    use super::*;

    /// What `reference/rouge.py` made.
    #[derive(Deserialize)]
    struct Values {
        stems: Vec<(String, String)>,
        pairs: Vec<Pair>,
        interval: Vec<[f64; 3]>,
        real: Vec<Real>,
    }

    #[derive(Deserialize)]
    struct Pair {
        reference: String,
        summary: String,
        /// Precision, recall and F1 of ROUGE-1, -2, -L and -Lsum.
        scores: [[f64; 3]; 4],
    }

    #[derive(Deserialize)]
    struct Real {
        file: String,
        pairs: usize,
        means: [[f64; 3]; 4],
        sha256: String,
    }

    fn recorded<T: DeserializeOwned>() -> T {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../reference/values/rouge.json");
        serde_json::from_str(&std::fs::read_to_string(path).expect("reference values")).expect("as written")
    }

    fn flat(rouge: &Rouge) -> [[f64; 3]; 4] {
        [rouge.rouge1, rouge.rouge2, rouge.rouge_l, rouge.rouge_lsum]
            .map(|own| [own.precision, own.recall, own.f1])
    }

    #[test]
    fn stems_as_in_python() {
        let Values { stems, .. } = recorded();
        assert!(stems.len() > 800);
        for (word, stem) in stems {
            assert_eq!(porter::stem(&word), stem, "{word}");
        }
    }

    #[test]
    fn scores_as_in_python() {
        let Values { pairs, .. } = recorded();
        assert!(pairs.len() > 50);
        for Pair { reference, summary, scores } in pairs {
            let found = flat(&Rouge::score(&reference, &summary));
            // Reading a number from JSON may round it another way: the real pairs are held to the last bit.
            for (found, score) in found.iter().flatten().zip(scores.iter().flatten()) {
                assert!(
                    (found - score).abs() <= f64::EPSILON,
                    "{reference:?}, {summary:?}: {found:?}, {score:?}"
                );
            }
        }
    }

    /// Their random numbers are others: intervals differ by what another seed makes of them.
    #[test]
    fn intervals_are_near_those_of_python() {
        let Values { pairs, interval, .. } = recorded();
        for (kind, expected) in interval.into_iter().enumerate() {
            let scores: Vec<f64> = pairs.iter().map(|pair| pair.scores[kind][2]).collect();
            let own = bootstrap(&scores);
            assert_eq!(own, bootstrap(&scores));
            let width = expected[2] - expected[0];
            for (own, expected) in [own.low, own.middle, own.high].into_iter().zip(expected) {
                assert!((own - expected).abs() < 0.1 * width, "{own} and {expected} of {width}");
            }
        }
    }

    #[derive(Deserialize)]
    struct Row {
        document: String,
        summary: String,
    }

    /// The beginning of a document as the summary, a line for each sentence.
    fn beginning(document: &str) -> String {
        lines(&document.chars().take(400).collect::<String>())
    }

    fn lines(text: &str) -> String {
        text.replace('\n', " ").replace(". ", ".\n")
    }

    /// Real pairs, which may not be passed on: `cargo test -p adalora-tasks rouge -- --ignored` with ADALORA_SUMMARIES
    /// naming the folder of XSum and CNN/DailyMail files.
    #[test]
    #[ignore = "needs the folder ADALORA_SUMMARIES with the files that reference/rouge.py names"]
    fn real_pairs_as_in_python() {
        let folder = PathBuf::from(std::env::var_os("ADALORA_SUMMARIES").expect("ADALORA_SUMMARIES"));
        let Values { real, .. } = recorded();
        assert!(real.iter().map(|file| file.pairs).sum::<usize>() >= 500);
        for Real { file, pairs, means, sha256 } in real {
            let content = std::fs::read_to_string(folder.join(&file)).expect("a file of the folder");
            let rows = content.lines().map(|line| serde_json::from_str(line).expect("a row"));
            let scores: Vec<_> = rows
                .map(|row: Row| flat(&Rouge::score(&lines(&row.summary), &beginning(&row.document))))
                .collect();
            assert_eq!(scores.len(), pairs, "{file}");
            for (kind, expected) in means.iter().enumerate() {
                for (part, expected) in expected.iter().enumerate() {
                    let mean = scores.iter().map(|score| score[kind][part]).sum::<f64>() / pairs as f64;
                    assert!((mean - expected).abs() < 1e-12, "{file}: {mean} and {expected}");
                }
            }
            // And each of them to the last bit.
            let mut hasher = Sha256::new();
            scores.iter().flatten().flatten().for_each(|value| hasher.update(value.to_le_bytes()));
            let found: String = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(found, sha256, "{file}");
        }
    }
}
