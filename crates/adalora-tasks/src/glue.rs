//! The GLUE folder format: how each task's files are laid out, which classes it has and what it reports.

use serde::{Deserialize, Serialize};

use crate::evaluation::Evaluation;
use crate::manifest::{Column, Delimited, LabelRule, Split};

/// A task of the GLUE benchmark (Wang et al. 2018), read from `train.tsv` and `dev.tsv` as GLUE ships them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum GlueTask {
    /// Is the sentence acceptable English? Reports Matthews.
    Cola,
    /// Sentiment of movie snippets. Reports accuracy.
    #[serde(rename = "sst-2")]
    Sst2,
    /// Do the two sentences say the same? Reports accuracy and F1.
    Mrpc,
    /// How similar are the two sentences, 0 to 5? Reports Pearson and Spearman.
    StsB,
    /// Does the first text entail the second? Reports accuracy.
    Rte,
    /// Does the sentence answer the question? Reports accuracy.
    Qnli,
    /// Does the second sentence, with a pronoun resolved, follow from the first? Reports accuracy.
    Wnli,
}

impl GlueTask {
    /// The table of GLUE's files. Class order is that of the Hugging Face copies of GLUE.
    pub(crate) fn layout(self) -> Delimited {
        use Evaluation::{Accuracy, F1, Matthews, Pearson, Spearman};
        const ENTAILMENT: [&str; 2] = ["entailment", "not_entailment"];
        const DIGITS: [&str; 2] = ["0", "1"];
        match self {
            // No header: source, label, the author's mark, sentence.
            Self::Cola => tabs(4, [4], 2, classes(["unacceptable", "acceptable"], DIGITS), &[Matthews]),
            Self::Sst2 => {
                tabs(2, ["sentence"], "label", classes(["negative", "positive"], DIGITS), &[Accuracy])
            }
            Self::Mrpc => tabs(
                5,
                ["#1 String", "#2 String"],
                "Quality",
                classes(["not_equivalent", "equivalent"], DIGITS),
                &[Accuracy, F1],
            ),
            Self::StsB => tabs(
                10,
                ["sentence1", "sentence2"],
                "score",
                LabelRule::Scalar { range: [0.0, 5.0] },
                &[Pearson, Spearman],
            ),
            Self::Rte => {
                tabs(4, ["sentence1", "sentence2"], "label", classes(ENTAILMENT, ENTAILMENT), &[Accuracy])
            }
            Self::Qnli => {
                tabs(4, ["question", "sentence"], "label", classes(ENTAILMENT, ENTAILMENT), &[Accuracy])
            }
            Self::Wnli => tabs(
                4,
                ["sentence1", "sentence2"],
                "label",
                classes(["not_entailment", "entailment"], DIGITS),
                &[Accuracy],
            ),
        }
    }
}

fn classes(names: [&str; 2], values: [&str; 2]) -> LabelRule {
    let [names, values] = [names, values].map(|side| side.map(String::from).to_vec());
    LabelRule::Classes { names, values: Some(values) }
}

/// A tab-separated file without quoting: a `"` is a character like any other. It has a header if columns are named.
fn tabs<C: Into<Column>, const N: usize>(
    columns: usize,
    text: [C; N],
    label: C,
    labels: LabelRule,
    evaluation: &[Evaluation],
) -> Delimited {
    let label = label.into();
    Delimited {
        delimiter: '\t',
        quoting: false,
        header: matches!(label, Column::Name(_)),
        columns: Some(columns),
        text: text.map(Into::into).to_vec(),
        label,
        only: None,
        labels,
        split: Split::Files { train: "train.tsv".into(), dev: "dev.tsv".into() },
        evaluation: evaluation.to_vec(),
    }
}
