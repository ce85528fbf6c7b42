//! What a task reports about a model: one number from predictions and labels.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::dataset::{Labels, Target};
use crate::error::ManifestRule;
use crate::rouge::Rouge;

/// A number that tells how good predictions are; larger is better.
///
/// The first in a task's list is its headline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Evaluation {
    /// Fraction of examples whose class is right.
    Accuracy,
    /// Harmonic mean of precision and recall: of class 1, for two classes, 0 if it is never found; or of the words of an
    /// answer, as SQuAD counts them, on average over questions.
    F1,
    /// Matthews correlation coefficient, in -1..1, for any number of classes (Gorodkin 2004). 0 if all predictions,
    /// or all labels, are one class.
    Matthews,
    /// Pearson's correlation of one score, in -1..1. NaN if either side is constant.
    Pearson,
    /// Spearman's correlation of one score, in -1..1: Pearson's of the ranks, where ties share their mean rank. NaN
    /// if either side is constant.
    Spearman,
    /// Coefficient of determination over all outputs: one minus squared error over squared deviation from the labels'
    /// mean, both summed over examples and outputs. NaN if every output's labels are constant.
    R2,
    /// Share of questions whose answer is one of the right ones, as SQuAD compares them.
    ExactMatch,
    /// Words that a summary and its reference have in common: mean F1, see [`Rouge`].
    #[serde(rename = "rouge1")]
    Rouge1,
    /// Pairs of neighbouring words.
    #[serde(rename = "rouge2")]
    Rouge2,
    /// The longest common subsequence.
    #[serde(rename = "rougeL")]
    RougeL,
    /// The same, sentence by sentence.
    #[serde(rename = "rougeLsum")]
    RougeLsum,
}

impl Evaluation {
    /// The name in manifests and tables, for example `matthews`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Accuracy => "accuracy",
            Self::F1 => "f1",
            Self::Matthews => "matthews",
            Self::Pearson => "pearson",
            Self::Spearman => "spearman",
            Self::R2 => "r2",
            Self::ExactMatch => "exact-match",
            Self::Rouge1 => "rouge1",
            Self::Rouge2 => "rouge2",
            Self::RougeL => "rougeL",
            Self::RougeLsum => "rougeLsum",
        }
    }

    /// Compares predictions with labels of the same examples, in the same order. NaN for no examples, and where the
    /// number is undefined; see each variant.
    ///
    /// # Panics
    ///
    /// If the two differ in kind or length, or the evaluation does not fit the target, which a manifest cannot ask
    /// for.
    pub fn score(self, predicted: &Labels, labels: &Labels) -> f64 {
        match (predicted, labels) {
            (Labels::Classes(predicted), Labels::Classes(labels)) => {
                assert_eq!(predicted.len(), labels.len(), "one prediction for each label");
                match self {
                    Self::Accuracy => accuracy(predicted, labels),
                    Self::F1 => f1(predicted, labels),
                    Self::Matthews => matthews(predicted, labels),
                    _ => panic!("{self} does not compare classes"),
                }
            }
            (
                Labels::Scores { width: predicted_width, values: predicted },
                Labels::Scores { width, values: labels },
            ) => {
                assert_eq!(
                    (predicted_width, predicted.len()),
                    (width, labels.len()),
                    "one prediction for each label"
                );
                let [predicted, labels] = [predicted, labels].map(|side| widen(side));
                match self {
                    Self::Pearson => pearson(&predicted, &labels),
                    Self::Spearman => pearson(&ranks(&predicted), &ranks(&labels)),
                    Self::R2 => r2(&predicted, &labels, *width),
                    _ => panic!("{self} does not compare scores"),
                }
            }
            _ => panic!("predictions and labels are of one kind, classes or scores"),
        }
    }

    /// One of the overlaps of a summary with its reference.
    pub(crate) fn of_summary(self, rouge: &Rouge) -> f64 {
        let overlap = match self {
            Self::Rouge1 => rouge.rouge1,
            Self::Rouge2 => rouge.rouge2,
            Self::RougeL => rouge.rouge_l,
            Self::RougeLsum => rouge.rouge_lsum,
            other => panic!("{other} does not compare summaries"),
        };
        overlap.f1
    }

    /// Whether this can be computed for `target`.
    pub(crate) fn fits(self, target: &Target) -> Result<(), ManifestRule> {
        let (fits, needs) = match self {
            Self::Accuracy | Self::Matthews => (matches!(target, Target::Classes(_)), "classes"),
            Self::F1 => (matches!(target, Target::Classes(names) if names.len() == 2), "exactly two classes"),
            Self::Pearson | Self::Spearman => {
                (matches!(target, Target::Scores { width: 1 }), "one score for each example")
            }
            Self::R2 => (matches!(target, Target::Scores { .. }), "scores"),
            Self::ExactMatch => (matches!(target, Target::Answers), "answers"),
            Self::Rouge1 | Self::Rouge2 | Self::RougeL | Self::RougeLsum => {
                (matches!(target, Target::Summaries), "summaries")
            }
        };
        if fits { Ok(()) } else { Err(ManifestRule::EvaluationMismatch { evaluation: self, needs }) }
    }
}

impl fmt::Display for Evaluation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

fn widen(values: &[f32]) -> Vec<f64> {
    values.iter().copied().map(f64::from).collect()
}

fn accuracy(predicted: &[i64], labels: &[i64]) -> f64 {
    let right = predicted.iter().zip(labels).filter(|(p, l)| p == l).count();
    right as f64 / labels.len() as f64
}

fn f1(predicted: &[i64], labels: &[i64]) -> f64 {
    if labels.is_empty() {
        return f64::NAN;
    }
    let positive = |side: &[i64]| side.iter().filter(|class| **class == 1).count();
    let found = predicted.iter().zip(labels).filter(|(p, l)| **p == 1 && **l == 1).count();
    let all = positive(predicted) + positive(labels);
    if all == 0 { 0.0 } else { 2.0 * found as f64 / all as f64 }
}

fn matthews(predicted: &[i64], labels: &[i64]) -> f64 {
    if labels.is_empty() {
        return f64::NAN;
    }
    let classes = 1 + *predicted.iter().chain(labels).max().expect("there is a label") as usize;
    let count = |side: &[i64]| {
        let mut counts = vec![0.0; classes];
        for class in side {
            counts[*class as usize] += 1.0;
        }
        counts
    };
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>();
    let (predicted_counts, label_counts) = (count(predicted), count(labels));
    let rows = labels.len() as f64;
    let right = accuracy(predicted, labels) * rows;
    let covariance = right * rows - dot(&predicted_counts, &label_counts);
    let variances = (rows * rows - dot(&predicted_counts, &predicted_counts))
        * (rows * rows - dot(&label_counts, &label_counts));
    if variances == 0.0 { 0.0 } else { covariance / variances.sqrt() }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

fn is_constant(values: &[f64]) -> bool {
    values.iter().all(|value| *value == values[0])
}

fn pearson(a: &[f64], b: &[f64]) -> f64 {
    // Asked exactly: rounding of the mean would turn a constant side into a correlation of noise.
    if is_constant(a) || is_constant(b) {
        return f64::NAN;
    }
    let (mean_a, mean_b) = (mean(a), mean(b));
    let (mut both, mut squares_a, mut squares_b) = (0.0, 0.0, 0.0);
    for (x, y) in a.iter().zip(b) {
        both += (x - mean_a) * (y - mean_b);
        squares_a += (x - mean_a).powi(2);
        squares_b += (y - mean_b).powi(2);
    }
    // As in scipy, rounding must not lead outside the range.
    (both / (squares_a.sqrt() * squares_b.sqrt())).clamp(-1.0, 1.0)
}

/// Ranks from 1; equal values share the mean of their ranks. All NaN if a value is NaN, since it has no rank.
fn ranks(values: &[f64]) -> Vec<f64> {
    if values.iter().any(|value| value.is_nan()) {
        return vec![f64::NAN; values.len()];
    }
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|a, b| values[*a].total_cmp(&values[*b]));
    let mut ranks = vec![0.0; values.len()];
    let mut before = 0;
    for ties in order.chunk_by(|a, b| values[*a] == values[*b]) {
        let shared = before as f64 + (ties.len() + 1) as f64 / 2.0;
        for index in ties {
            ranks[*index] = shared;
        }
        before += ties.len();
    }
    ranks
}

fn r2(predicted: &[f64], labels: &[f64], width: usize) -> f64 {
    let mut residual = 0.0;
    let mut total = 0.0;
    for output in 0..width {
        let column: Vec<f64> = labels.iter().skip(output).step_by(width).copied().collect();
        if !is_constant(&column) {
            let mean = mean(&column);
            total += column.iter().map(|y| (y - mean).powi(2)).sum::<f64>();
        }
    }
    for (p, y) in predicted.iter().zip(labels) {
        residual += (y - p).powi(2);
    }
    if total == 0.0 { f64::NAN } else { 1.0 - residual / total }
}

#[cfg(test)]
mod tests {
    use approx::assert_relative_eq;

    use super::*;

    fn classes(values: &[i64]) -> Labels {
        Labels::Classes(values.to_vec())
    }

    fn scores(width: usize, values: &[f32]) -> Labels {
        Labels::Scores { width, values: values.to_vec() }
    }

    // Golden values: scikit-learn 1.9.1, scipy 1.17.1, numpy 2.4.6, inputs drawn by numpy's default_rng(7).

    #[test]
    fn two_classes_as_scikit_learn() {
        let predicted = classes(&[1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 0, 0, 1, 0, 1, 0, 0, 1, 0, 0, 0]);
        let labels = classes(&[1, 0, 1, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 1, 0, 0, 1, 0, 1, 1, 0, 0]);
        let score = |evaluation: Evaluation| evaluation.score(&predicted, &labels);
        // Python: accuracy_score(l, p), f1_score(l, p), matthews_corrcoef(l, p)
        assert_relative_eq!(score(Evaluation::Accuracy), 0.5416666666666666, max_relative = 1e-14);
        assert_relative_eq!(score(Evaluation::F1), 0.5925925925925926, max_relative = 1e-14);
        assert_relative_eq!(score(Evaluation::Matthews), 0.08606629658238706, max_relative = 1e-14);
    }

    #[test]
    fn four_classes_as_scikit_learn() {
        let predicted = classes(&[1, 0, 0, 2, 3, 1, 3, 3, 3, 2, 1, 2, 1, 1, 1, 0, 3, 0, 0, 0, 3, 2, 3, 0]);
        let labels = classes(&[1, 0, 1, 2, 3, 2, 3, 0, 2, 1, 1, 0, 0, 1, 1, 0, 3, 0, 0, 0, 0, 2, 0, 1]);
        // Python: matthews_corrcoef(l, p)
        let matthews = Evaluation::Matthews.score(&predicted, &labels);
        assert_relative_eq!(matthews, 0.45188068709933593, max_relative = 1e-14);
    }

    #[test]
    fn correlations_as_scipy() {
        // Ties on both sides.
        let predicted = [1.9, 4.1, 2.8, 4.2, 2.0, 1.0, 4.3, 4.2, 0.8, 5.0, 2.3, 6.2];
        let labels = [2.5, 4.5, 0.5, 3.5, 2.5, 0.5, 4.5, 4.5, 2.5, 5.0, 3.0, 4.5];
        let (predicted, labels) = (scores(1, &predicted), scores(1, &labels));
        // Python: pearsonr(p.astype('f4').astype('f8'), l)[0], spearmanr(p, l)[0]
        let pearson = Evaluation::Pearson.score(&predicted, &labels);
        let spearman = Evaluation::Spearman.score(&predicted, &labels);
        assert_relative_eq!(pearson, 0.7725247641512897, max_relative = 1e-13);
        assert_relative_eq!(spearman, 0.8258013992834221, max_relative = 1e-13);
    }

    #[test]
    fn r2_over_all_outputs_as_scikit_learn() {
        let predicted = [
            0.07, -0.48, 3.49, 0.01, 1.98, -0.19, 1.07, -2.22, 1.03, -1.75, -4.06, -2.24, -0.72, -0.28, 11.88,
        ];
        let labels =
            [0.65, -0.04, 3.35, -0.34, 2.1, -0.05, 0.58, -2.58, 1.75, -1.69, -4.08, -1.5, -0.9, 0.32, 11.2];
        // Python: r2_score(l, p, multioutput='variance_weighted'), both float32, rows of 3
        let r2 = Evaluation::R2.score(&scores(3, &predicted), &scores(3, &labels));
        assert_relative_eq!(r2, 0.9762949641747483, max_relative = 1e-13);
    }

    #[test]
    fn degenerate_inputs_are_zero_or_nan_and_never_a_panic() {
        // Python: f1_score([0, 0], [0, 0]), matthews_corrcoef([0, 1], [1, 1]), matthews_corrcoef([1, 1], [0, 1])
        assert_eq!(Evaluation::F1.score(&classes(&[0, 0]), &classes(&[0, 0])), 0.0);
        assert_eq!(Evaluation::Matthews.score(&classes(&[1, 1]), &classes(&[0, 1])), 0.0);
        assert_eq!(Evaluation::Matthews.score(&classes(&[0, 1]), &classes(&[1, 1])), 0.0);
        for evaluation in [Evaluation::Pearson, Evaluation::Spearman] {
            // Python: pearsonr([1, 1], [0, 1]), spearmanr([1, 1], [0, 1])
            assert!(evaluation.score(&scores(1, &[0.1, 0.1, 0.1]), &scores(1, &[0.0, 1.0, 3.0])).is_nan());
            assert!(evaluation.score(&scores(1, &[0.0, 1.0]), &scores(1, &[2.0, 2.0])).is_nan());
            assert!(evaluation.score(&scores(1, &[0.0, f32::NAN]), &scores(1, &[2.0, 3.0])).is_nan());
        }
        assert!(Evaluation::R2.score(&scores(2, &[0.0, 1.0]), &scores(2, &[2.0, 2.0])).is_nan());
        for evaluation in [Evaluation::Accuracy, Evaluation::F1, Evaluation::Matthews] {
            assert!(evaluation.score(&classes(&[]), &classes(&[])).is_nan());
        }
        for evaluation in [Evaluation::Pearson, Evaluation::Spearman, Evaluation::R2] {
            assert!(evaluation.score(&scores(1, &[]), &scores(1, &[])).is_nan());
        }
    }

    #[test]
    fn perfect_predictions_score_one() {
        let (two, three) = (classes(&[0, 1, 1, 0]), classes(&[2, 1, 0, 1]));
        for evaluation in [Evaluation::Accuracy, Evaluation::F1, Evaluation::Matthews] {
            assert_eq!(evaluation.score(&two, &two), 1.0);
        }
        assert_eq!(Evaluation::Matthews.score(&three, &three), 1.0);
        let graded = scores(1, &[0.3, 0.1, 7.0, 0.1]);
        for evaluation in [Evaluation::Pearson, Evaluation::Spearman, Evaluation::R2] {
            assert_relative_eq!(evaluation.score(&graded, &graded), 1.0, max_relative = 1e-15);
        }
    }

    #[test]
    #[should_panic(expected = "pearson does not compare classes")]
    fn a_score_for_classes_is_our_own_mistake() {
        Evaluation::Pearson.score(&classes(&[1]), &classes(&[1]));
    }
}
