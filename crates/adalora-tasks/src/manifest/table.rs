//! `[format.delimited]` and `[format.parquet]`: tables of texts with a class or a score.

use std::collections::BTreeSet;
use std::fmt;

use serde::Deserialize;

use crate::dataset::Target;
use crate::error::ManifestRule;
use crate::evaluation::Evaluation;

/// `[format.delimited]`: text files of one row for each example.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DelimitedTable {
    delimiter: char,
    quoting: bool,
    header: bool,
    text: Vec<Column>,
    label: Column,
    only: Option<RowFilter>,
    labels: LabelRule,
    split: Split,
    evaluation: Vec<Evaluation>,
}

/// `[format.parquet]`: Parquet files of one row for each example.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ParquetTable {
    text: Vec<Column>,
    label: Column,
    only: Option<RowFilter>,
    labels: LabelRule,
    split: Split,
    evaluation: Vec<Evaluation>,
}

/// How a data set is read: which columns of which files, what they mean, and what is reported.
#[derive(Debug, Clone)]
pub struct Table {
    pub(crate) encoding: Encoding,
    /// One column, or two for a pair of texts.
    pub(crate) text: Vec<Column>,
    pub(crate) label: Column,
    /// Which rows belong to this data set, if a file holds several.
    pub(crate) only: Option<RowFilter>,
    pub(crate) labels: LabelRule,
    pub(crate) split: Split,
    /// What the task reports, the headline first.
    pub(crate) evaluation: Vec<Evaluation>,
    /// Whether a text may be empty, instead of being an error.
    pub(crate) empty_texts: bool,
}

#[derive(Debug, Clone)]
pub(crate) enum Encoding {
    Delimited(Delimited),
    Parquet,
}

#[derive(Debug, Clone)]
pub(crate) struct Delimited {
    /// One ASCII character between columns.
    pub(crate) delimiter: char,
    /// Whether a field may stand in double quotes, and hold delimiters and line ends there.
    pub(crate) quoting: bool,
    /// Whether the first line names the columns.
    pub(crate) header: bool,
    /// Columns in a row; `None` if the first line tells.
    pub(crate) columns: Option<usize>,
}

/// A column's name in the header, or its number from 1.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged, expecting = "a column is its name in the header or its number from 1")]
pub(crate) enum Column {
    Name(String),
    Number(usize),
}

/// Rows in which `column` holds exactly `equals`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RowFilter {
    pub(crate) column: Column,
    pub(crate) equals: String,
}

/// `labels.classes` or `labels.scalar`.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) enum LabelRule {
    /// Names of the classes in their order, and how the file spells them if it does so otherwise.
    Classes { names: Vec<String>, values: Option<Vec<String>> },
    /// A number in a range, ends included.
    Scalar { range: [f64; 2] },
}

/// `split.files` or `split.shuffled`.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) enum Split {
    /// A file for each side, or several to evaluate on.
    Files { train: String, dev: DevFiles },
    /// One file; after a shuffle by `seed` the first `dev` rows are held out.
    Shuffled { file: String, dev: usize, seed: u64 },
}

/// `split.files.dev`
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged, expecting = "dev is a file, or a list of `{ name, file }`")]
pub(crate) enum DevFiles {
    One(String),
    /// The headline's first.
    Several(Vec<DevFile>),
}

/// One of several files to evaluate on.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DevFile {
    /// What tells its scores from those of the others.
    pub(crate) name: String,
    pub(crate) file: String,
}

impl From<DelimitedTable> for Table {
    fn from(table: DelimitedTable) -> Self {
        let DelimitedTable { delimiter, quoting, header, text, label, only, labels, split, evaluation } =
            table;
        let encoding = Encoding::Delimited(Delimited { delimiter, quoting, header, columns: None });
        Self { encoding, text, label, only, labels, split, evaluation, empty_texts: false }
    }
}

impl From<ParquetTable> for Table {
    fn from(table: ParquetTable) -> Self {
        let ParquetTable { text, label, only, labels, split, evaluation } = table;
        let encoding = Encoding::Parquet;
        Self { encoding, text, label, only, labels, split, evaluation, empty_texts: false }
    }
}

impl Split {
    /// Every file that is read.
    pub(crate) fn files(&self) -> Vec<String> {
        match self {
            Self::Files { train, dev: DevFiles::One(dev) } => vec![train.clone(), dev.clone()],
            Self::Files { train, dev: DevFiles::Several(dev) } => {
                [train].into_iter().chain(dev.iter().map(|dev| &dev.file)).cloned().collect()
            }
            Self::Shuffled { file, .. } => vec![file.clone()],
        }
    }

    fn check(&self) -> Result<(), ManifestRule> {
        match self {
            Self::Shuffled { dev: 0, .. } => Err(ManifestRule::NothingHeldOut),
            Self::Files { dev: DevFiles::Several(dev), .. } => {
                match first_twice(dev.iter().map(|dev| &dev.name)) {
                    None if dev.is_empty() => Err(ManifestRule::NoDevSet),
                    None => Ok(()),
                    Some(name) => Err(ManifestRule::DevSetTwice(name.clone())),
                }
            }
            _ => Ok(()),
        }
    }
}

impl Table {
    /// What a model for this data has to predict.
    pub fn target(&self) -> Target {
        match &self.labels {
            LabelRule::Classes { names, .. } => Target::Classes(names.clone()),
            LabelRule::Scalar { .. } => Target::Scores { width: 1 },
        }
    }

    /// Texts of an example: 1, or 2 for a pair.
    pub fn text_columns(&self) -> usize {
        self.text.len()
    }

    /// What the task reports, the headline first.
    pub fn evaluation(&self) -> &[Evaluation] {
        &self.evaluation
    }

    pub(super) fn check(&self) -> Result<(), ManifestRule> {
        if let Encoding::Delimited(Delimited { delimiter, .. }) = &self.encoding
            && (!delimiter.is_ascii() || ['"', '\r', '\n'].contains(delimiter))
        {
            return Err(ManifestRule::Delimiter(*delimiter));
        }
        if !(1..=2).contains(&self.text.len()) {
            return Err(ManifestRule::TextColumns(self.text.len()));
        }
        let filter = self.only.as_ref().map(|only| &only.column);
        for column in self.text.iter().chain([&self.label]).chain(filter) {
            match (column, &self.encoding) {
                (Column::Name(name), Encoding::Delimited(Delimited { header: false, .. })) => {
                    return Err(ManifestRule::NameWithoutHeader(name.clone()));
                }
                (Column::Number(0), Encoding::Delimited(_)) => return Err(ManifestRule::ColumnZero),
                (Column::Number(number), Encoding::Parquet) => {
                    return Err(ManifestRule::NumberInParquet(*number));
                }
                _ => {}
            }
        }
        match &self.labels {
            LabelRule::Classes { names, values } => {
                if names.len() < 2 {
                    return Err(ManifestRule::TooFewClasses(names.len()));
                }
                for list in [Some(names), values.as_ref()].into_iter().flatten() {
                    if let Some(twice) = first_twice(list) {
                        return Err(ManifestRule::ClassTwice(twice.clone()));
                    }
                }
                if let Some(values) = values.as_ref().filter(|values| values.len() != names.len()) {
                    return Err(ManifestRule::ClassValues { names: names.len(), values: values.len() });
                }
            }
            LabelRule::Scalar { range: [low, high] } => {
                if !(low.is_finite() && high.is_finite() && low < high) {
                    return Err(ManifestRule::EmptyRange { low: *low, high: *high });
                }
            }
        }
        self.split.check()?;
        if self.evaluation.is_empty() {
            return Err(ManifestRule::NoEvaluation);
        }
        self.evaluation.iter().try_for_each(|evaluation| evaluation.fits(&self.target()))
    }
}

impl From<&str> for Column {
    fn from(name: &str) -> Self {
        Self::Name(name.into())
    }
}

impl From<usize> for Column {
    fn from(number: usize) -> Self {
        Self::Number(number)
    }
}

impl fmt::Display for Column {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => write!(f, "`{name}`"),
            Self::Number(number) => write!(f, "{number}"),
        }
    }
}

fn first_twice<'a>(names: impl IntoIterator<Item = &'a String>) -> Option<&'a String> {
    let mut seen = BTreeSet::new();
    names.into_iter().find(|name| !seen.insert(*name))
}
