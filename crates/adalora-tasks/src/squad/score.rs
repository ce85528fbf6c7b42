//! Exact match and F1 as the official scripts of SQuAD v1.1 and v2.0 count them, and the latter's search for a threshold.

use std::collections::HashMap;
use std::sync::LazyLock;

use regex::Regex;

use super::SquadVersion;
use super::window::is_space;

/// How near a predicted answer is to the nearest of those that annotators gave, each in 0..1.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct AnswerScore {
    /// 1 if both are the same but for case, punctuation, articles and white space.
    pub exact: f64,
    /// Harmonic mean of precision and recall of their words.
    pub f1: f64,
}

impl AnswerScore {
    /// Compares a predicted answer, which is empty if there is none, with an annotator's.
    ///
    /// The scripts differ where nothing is left of an answer but articles and punctuation: F1 is then 0 for v1.1, while
    /// for v2.0 it is 1 if nothing is left of either, and such an answer of an annotator counts only if all of them are
    /// such, as if there were none.
    pub fn of(version: SquadVersion, predicted: &str, answers: &[&str]) -> Self {
        let predicted = normalized(predicted);
        let mut answers: Vec<String> = answers.iter().map(|answer| normalized(answer)).collect();
        if version == SquadVersion::V2 {
            answers.retain(|answer| !answer.is_empty());
            if answers.is_empty() {
                answers.push(String::new());
            }
        }
        let scores = answers.iter().map(|answer| Self {
            exact: f64::from(u8::from(*answer == predicted)),
            f1: f1(version, &predicted, answer),
        });
        scores.fold(Self::default(), |best, own| Self {
            exact: best.exact.max(own.exact),
            f1: best.f1.max(own.f1),
        })
    }
}

impl AnswerScore {
    /// `None` of none.
    pub(crate) fn mean(scores: impl Iterator<Item = Self>) -> Option<Self> {
        let (mut count, mut sum) = (0.0, Self::default());
        for Self { exact, f1 } in scores {
            count += 1.0;
            sum = Self { exact: sum.exact + exact, f1: sum.f1 + f1 };
        }
        (count > 0.0).then_some(Self { exact: sum.exact / count, f1: sum.f1 / count })
    }
}

/// In lower case, without punctuation of ASCII and without articles, with single blanks between words.
fn normalized(text: &str) -> String {
    // What Python takes for a word, so that an article is a whole one: unlike in `\w` here, marks are not part of it.
    static WORD: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"[\p{L}\p{N}_]+").expect("a valid pattern"));
    let text: String = text.to_lowercase().chars().filter(|own| !own.is_ascii_punctuation()).collect();
    let text = WORD.replace_all(&text, |word: &regex::Captures| match &word[0] {
        "a" | "an" | "the" => " ".to_owned(),
        word => word.to_owned(),
    });
    text.split(is_space).filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
}

/// Of two normalized answers.
fn f1(version: SquadVersion, predicted: &str, answer: &str) -> f64 {
    let words = |text: &'_ str| text.split(' ').filter(|word| !word.is_empty()).count();
    let [of_predicted, of_answer] = [words(predicted), words(answer)];
    if version == SquadVersion::V2 && (of_predicted == 0 || of_answer == 0) {
        return f64::from(u8::from(of_predicted == of_answer));
    }
    let mut left: HashMap<&str, usize> = HashMap::new();
    answer.split(' ').filter(|word| !word.is_empty()).for_each(|word| *left.entry(word).or_default() += 1);
    let same = predicted.split(' ').filter(|word| match left.get_mut(word) {
        Some(count) if *count > 0 => {
            *count -= 1;
            true
        }
        _ => false,
    });
    let same = same.count() as f64;
    if same == 0.0 {
        return 0.0;
    }
    let [precision, recall] = [of_predicted, of_answer].map(|all| same / all as f64);
    2.0 * precision * recall / (precision + recall)
}

/// Where it is best to say that there is no answer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BestThreshold {
    /// Mean score there, in 0..1.
    pub score: f64,
    /// A question is taken to have no answer if its odds are above this. 0 if it is best that none has one.
    pub threshold: f64,
}

/// One question for [`BestThreshold::of`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rated {
    /// By how much no answer is likelier than the one that was found.
    pub(crate) odds: f64,
    /// Of the answer that was found.
    pub(crate) score: f64,
    /// Whether there is an answer.
    pub(crate) answerable: bool,
    /// Whether the one that was found is not empty.
    pub(crate) answered: bool,
}

impl BestThreshold {
    /// As `find_best_thresh` of the official script of v2.0, which looks behind each question, also between those with
    /// the same odds.
    pub(crate) fn of(questions: &[Rated]) -> Self {
        let mut order: Vec<&Rated> = questions.iter().collect();
        order.sort_by(|one, other| one.odds.total_cmp(&other.odds));
        let mut score = questions.iter().filter(|question| !question.answerable).count() as f64;
        let mut best = Self { score, threshold: 0.0 };
        for question in order {
            score += match (question.answerable, question.answered) {
                (true, _) => question.score,
                (false, true) => -1.0,
                (false, false) => 0.0,
            };
            if score > best.score {
                best = Self { score, threshold: question.odds };
            }
        }
        Self { score: best.score / questions.len() as f64, ..best }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde::Deserialize;

    use super::*;

    #[derive(Deserialize)]
    struct Recorded {
        pairs: Vec<Pair>,
        thresholds: Vec<Threshold>,
    }

    #[derive(Deserialize)]
    struct Pair {
        prediction: String,
        answers: Vec<String>,
        /// Absent where there is no answer.
        #[serde(rename = "v1.1")]
        v1: Option<[f64; 2]>,
        #[serde(rename = "v2.0")]
        v2: [f64; 2],
    }

    #[derive(Deserialize)]
    struct Threshold {
        answerable: Vec<bool>,
        answered: Vec<bool>,
        scores: Vec<f64>,
        odds: Vec<f64>,
        /// In percent.
        best: f64,
        threshold: f64,
    }

    fn recorded() -> Recorded {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../reference/values/squad/scores.json");
        let text = std::fs::read_to_string(file).expect("reference values");
        serde_json::from_str(&text).expect("reference values")
    }

    #[test]
    fn exact_match_and_f1_as_in_the_official_scripts() {
        let pairs = recorded().pairs;
        assert!(pairs.len() > 50);
        for Pair { prediction, answers, v1, v2 } in pairs {
            let answers: Vec<&str> = answers.iter().map(String::as_str).collect();
            for (version, expected) in [(SquadVersion::V1, v1), (SquadVersion::V2, Some(v2))] {
                if let Some([exact, f1]) = expected {
                    let own = AnswerScore::of(version, &prediction, &answers);
                    assert_eq!(own, AnswerScore { exact, f1 }, "{version:?}: {prediction:?} {answers:?}");
                }
            }
        }
    }

    #[test]
    fn the_best_threshold_as_in_the_official_script() {
        for Threshold { answerable, answered, scores, odds, best, threshold } in recorded().thresholds {
            let questions: Vec<_> = (0..odds.len())
                .map(|at| Rated {
                    odds: odds[at],
                    score: scores[at],
                    answerable: answerable[at],
                    answered: answered[at],
                })
                .collect();
            let own = BestThreshold::of(&questions);
            assert!((100.0 * own.score - best).abs() < 1e-12, "{own:?} {best}");
            assert_eq!(own.threshold, threshold);
        }
    }
}
