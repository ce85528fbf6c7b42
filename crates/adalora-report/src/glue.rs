//! The average over tasks of GLUE, as the paper takes it and as most others do.

use std::collections::BTreeMap;

/// Which scores stand for a task that has several.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Convention {
    /// The paper's "All": QQP counts with the mean of accuracy and F1.
    Mixed,
    /// QQP counts with its accuracy.
    AccuracyOnly,
}

/// What both have in common, and where they part.
pub(crate) const EXPLANATION: &str = "CoLA counts with Matthews' correlation, STS-B with the mean of its two \
    correlations, MNLI with the mean of matched and mismatched accuracy, other tasks with accuracy. Mixed, as in the \
    paper, takes the mean of accuracy and F1 for QQP; accuracy only takes its accuracy. Without QQP the two are one.";

/// Whether a data set's name is that of a task of GLUE.
pub(crate) fn is_task(task: &str) -> bool {
    scores_of(task, Convention::Mixed).is_some()
}

/// Whether the conventions part in this task.
pub(crate) fn differs(task: &str) -> bool {
    scores_of(task, Convention::Mixed) != scores_of(task, Convention::AccuracyOnly)
}

/// What a task counts with; `None` for a task of another collection, or without one of the scores.
pub(crate) fn score(task: &str, scores: &BTreeMap<String, f64>, convention: Convention) -> Option<f64> {
    let names = scores_of(task, convention)?;
    let sum = names.iter().map(|name| scores.get(*name).copied()).sum::<Option<f64>>()?;
    Some(sum / names.len() as f64)
}

/// The scores whose mean a task counts with.
fn scores_of(task: &str, convention: Convention) -> Option<&'static [&'static str]> {
    Some(match (task, convention) {
        ("cola", _) => &["matthews"],
        ("sts-b", _) => &["pearson", "spearman"],
        ("mnli", _) => &["accuracy-matched", "accuracy-mismatched"],
        ("qqp", Convention::Mixed) => &["accuracy", "f1"],
        ("qqp", Convention::AccuracyOnly) | ("sst-2" | "mrpc" | "qnli" | "rte", _) => &["accuracy"],
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use approx::assert_relative_eq;

    use super::*;

    #[test]
    fn averages_are_those_of_the_papers_table_1() {
        // Full fine-tuning: "All" is 88.09; with QQP's accuracy alone it is 88.26.
        let row: [(&str, &[(&str, f64)]); 8] = [
            ("mnli", &[("accuracy-matched", 89.90), ("accuracy-mismatched", 90.12)]),
            ("sst-2", &[("accuracy", 95.63)]),
            ("cola", &[("matthews", 69.19)]),
            ("qqp", &[("accuracy", 92.40), ("f1", 89.80)]),
            ("qnli", &[("accuracy", 94.03)]),
            ("rte", &[("accuracy", 83.75)]),
            // The table gives one number for each of these two: their other score must not count.
            ("mrpc", &[("accuracy", 89.46), ("f1", 0.0)]),
            ("sts-b", &[("pearson", 91.60), ("spearman", 91.60)]),
        ];
        let average = |convention| {
            let of = |(task, scores): &(&str, &[(&str, f64)])| {
                let scores = scores.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect();
                score(task, &scores, convention).unwrap()
            };
            row.iter().map(of).sum::<f64>() / 8.0
        };
        assert_relative_eq!(average(Convention::Mixed), 88.09, epsilon = 0.015);
        assert_relative_eq!(average(Convention::AccuracyOnly), 88.26, epsilon = 0.015);
        assert!(differs("qqp") && !differs("mrpc") && !is_task("rotten-tomatoes") && !is_task("wnli"));
    }
}
