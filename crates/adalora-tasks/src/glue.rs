//! The GLUE folder format: how each task's files are laid out, which classes it has and what it reports.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::evaluation::Evaluation;
use crate::manifest::{Column, Delimited, DevFile, DevFiles, Encoding, LabelRule, Split, Table};

/// A task of the GLUE benchmark (Wang et al. 2018), as GLUE ships it or as Parquet from the hub.
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
    /// Do the two questions ask the same? Reports accuracy and F1.
    Qqp,
    /// Does the premise entail or contradict the hypothesis, or neither? Reports accuracy, on sentences of the genres
    /// that were trained on and on others.
    Mnli,
    /// Does the first text entail the second? Reports accuracy.
    Rte,
    /// Does the sentence answer the question? Reports accuracy.
    Qnli,
    /// Does the second sentence, with a pronoun resolved, follow from the first? Reports accuracy.
    Wnli,
}

impl GlueTask {
    /// `train.tsv` and `dev.tsv` as GLUE ships them. Class order is that of the copy on the hub.
    ///
    /// `None` for QQP, of whose rows some break off, and for MNLI.
    pub(crate) fn as_shipped(self) -> Option<Table> {
        const ENTAILMENT: [&str; 2] = ["entailment", "not_entailment"];
        const DIGITS: [&str; 2] = ["0", "1"];
        Some(match self {
            // No header: source, label, the author's mark, sentence.
            Self::Cola => self.tabs(4, [4], 2, Some(DIGITS)),
            Self::Sst2 => self.tabs(2, ["sentence"], "label", Some(DIGITS)),
            Self::Mrpc => self.tabs(5, ["#1 String", "#2 String"], "Quality", Some(DIGITS)),
            Self::StsB => self.tabs(10, ["sentence1", "sentence2"], "score", None),
            Self::Rte => self.tabs(4, ["sentence1", "sentence2"], "label", Some(ENTAILMENT)),
            Self::Qnli => self.tabs(4, ["question", "sentence"], "label", Some(ENTAILMENT)),
            Self::Wnli => self.tabs(4, ["sentence1", "sentence2"], "label", Some(DIGITS)),
            Self::Qqp | Self::Mnli => return None,
        })
    }

    /// The Parquet files of `nyu-mll/glue`.
    pub(crate) fn on_the_hub(self) -> Table {
        let (folder, text): (_, &[&str]) = match self {
            Self::Cola => ("cola", &["sentence"]),
            Self::Sst2 => ("sst2", &["sentence"]),
            Self::Mrpc => ("mrpc", &["sentence1", "sentence2"]),
            Self::StsB => ("stsb", &["sentence1", "sentence2"]),
            Self::Qqp => ("qqp", &["question1", "question2"]),
            Self::Mnli => ("mnli", &["premise", "hypothesis"]),
            Self::Rte => ("rte", &["sentence1", "sentence2"]),
            Self::Qnli => ("qnli", &["question", "sentence"]),
            Self::Wnli => ("wnli", &["sentence1", "sentence2"]),
        };
        let file = |split: &str| format!("{folder}/{split}-00000-of-00001.parquet");
        let dev = match self {
            Self::Mnli => DevFiles::Several(
                ["matched", "mismatched"]
                    .map(|name| DevFile { name: name.into(), file: file(&format!("validation_{name}")) })
                    .into(),
            ),
            _ => DevFiles::One(file("validation")),
        };
        Table {
            encoding: Encoding::Parquet,
            text: text.iter().copied().map(Column::from).collect(),
            label: "label".into(),
            only: None,
            labels: self.labels(None),
            split: Split::Files { train: file("train"), dev },
            evaluation: self.evaluation(),
            // Two of its training pairs lack the second question.
            empty_texts: self == Self::Qqp,
        }
    }

    fn labels(self, values: Option<[&str; 2]>) -> LabelRule {
        let names: &[&str] = match self {
            Self::Cola => &["unacceptable", "acceptable"],
            Self::Sst2 => &["negative", "positive"],
            Self::Mrpc => &["not_equivalent", "equivalent"],
            Self::StsB => return LabelRule::Scalar { range: [0.0, 5.0] },
            Self::Qqp => &["not_duplicate", "duplicate"],
            Self::Mnli => &["entailment", "neutral", "contradiction"],
            Self::Rte | Self::Qnli => &["entailment", "not_entailment"],
            Self::Wnli => &["not_entailment", "entailment"],
        };
        let owned = |names: &[&str]| names.iter().copied().map(String::from).collect();
        LabelRule::Classes { names: owned(names), values: values.map(|values| owned(&values)) }
    }

    fn evaluation(self) -> Vec<Evaluation> {
        use Evaluation::{Accuracy, F1, Matthews, Pearson, Spearman};
        match self {
            Self::Cola => vec![Matthews],
            Self::Mrpc | Self::Qqp => vec![Accuracy, F1],
            Self::StsB => vec![Pearson, Spearman],
            Self::Sst2 | Self::Mnli | Self::Rte | Self::Qnli | Self::Wnli => vec![Accuracy],
        }
    }

    /// A tab-separated file without quoting: a `"` is a character like any other. It has a header if columns are named;
    /// `values` is how it spells the classes.
    fn tabs<C: Into<Column>, const N: usize>(
        self,
        columns: usize,
        text: [C; N],
        label: C,
        values: Option<[&str; 2]>,
    ) -> Table {
        let label = label.into();
        let header = matches!(label, Column::Name(_));
        let columns = Some(columns);
        Table {
            encoding: Encoding::Delimited(Delimited { delimiter: '\t', quoting: false, header, columns }),
            text: text.map(Into::into).to_vec(),
            label,
            only: None,
            labels: self.labels(values),
            split: Split::Files { train: "train.tsv".into(), dev: DevFiles::One("dev.tsv".into()) },
            evaluation: self.evaluation(),
            empty_texts: false,
        }
    }
}

impl fmt::Display for GlueTask {
    /// As manifests name it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}
