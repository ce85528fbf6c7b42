//! Everything that can go wrong with a data set, each with the value, the rule and the way out.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use crate::evaluation::Evaluation;
use crate::squad::QuestionProblem;

/// Why a data set or a checkpoint cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TaskError {
    /// No manifest has this name.
    #[error("no data set or checkpoint `{name}`; {}", guess(name, near))]
    UnknownName {
        /// What was asked for.
        name: String,
        /// Names that look like it.
        near: Vec<String>,
    },
    /// A checkpoint where a data set is needed.
    #[error("`{0}` is a checkpoint, not a data set: name it as the model, not as the task's data")]
    NotData(String),
    /// A repository of data sets that no manifest reads.
    #[error(
        "no manifest reads `{0}`: write one that says which of its files and columns are the task, see docs/add-a-task.md"
    )]
    NoManifestReads(String),
    /// A data set where a checkpoint is needed.
    #[error("`{0}` is a data set, not a checkpoint: name it as the task's data, not as the model")]
    NotCheckpoint(String),
    /// The manifest is there, the files are not.
    #[error("`{name}` is not in {}: run `{}`", .folder.display(), fetch_command(name))]
    NotFetched {
        /// Name of the manifest, or of a repository on the hub.
        name: String,
        /// Where it would be.
        folder: PathBuf,
    },
    /// The manifest is there, the files are not, and there are two ways to have them.
    #[error(
        "`{name}` is not there: run `adalora fetch {name}`, or put {} into {}: {how}",
        listed(files), .folder.display()
    )]
    NotThere {
        /// Name of the manifest.
        name: String,
        /// What is missing of the folder.
        files: Vec<String>,
        /// Where it would be.
        folder: PathBuf,
        /// Where it comes from.
        how: String,
    },
    /// Files that only the user can provide are missing.
    #[error("`{name}` cannot be fetched; put {} into {}: {how}", listed(files), .folder.display())]
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
    /// The hub does not give a file.
    #[error("{repository}: {problem}{}", if problem.is_of_connection() { by_hand } else { "" })]
    Hub {
        /// `OWNER/NAME`.
        repository: String,
        /// Why not.
        problem: HubProblem,
        /// For whoever is not connected, the end of the sentence: where to put which files instead.
        by_hand: String,
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
    /// A file is no Parquet file, or uses what is not read.
    #[error("{}: {source}: fetch or copy it anew, or write it anew with snappy or no compression", .file.display())]
    Parquet {
        /// The data file.
        file: PathBuf,
        /// What the parquet crate said.
        source: Box<parquet::errors::ParquetError>,
    },
    /// A row breaks a rule. Nothing is dropped, so the file or the manifest has to change.
    #[error("{}, {place}: {problem}", .file.display())]
    Row {
        /// The data file.
        file: PathBuf,
        /// Where in it.
        place: Place,
        /// What is wrong.
        problem: RowProblem,
    },
    /// A file of questions is not as SQuAD's are. Nothing is dropped, so the file has to change.
    #[error("{}, {place}: {problem}", .file.display())]
    Questions {
        /// The data file.
        file: PathBuf,
        /// Which part of it, as `data[0].paragraphs[3].qas[2]`.
        place: String,
        /// What is wrong.
        problem: QuestionProblem,
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
    /// A data set of another kind than the task.
    #[error("`{name}` is no data set for [task.{task}]: `adalora list` says which task a data set is for")]
    OtherTask {
        /// Name of the data set.
        name: String,
        /// The task that asks for it.
        task: &'static str,
    },
    /// A sample of no example, or of more than there are.
    #[error(
        "{key} ({asked}) must be 1 to {available}, the examples that `{name}` has there; leave it out for all"
    )]
    Rows {
        /// Name of the data set.
        name: String,
        /// The setting.
        key: &'static str,
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
    /// A new vocabulary has no room for what every one has.
    #[error(
        "a vocabulary of {vocabulary} tokens is too small: it needs at least {least}, special tokens and all bytes among them"
    )]
    Vocabulary {
        /// What is asked for.
        vocabulary: usize,
        /// The least that can be made.
        least: usize,
    },
    /// No vocabulary can be learned from the texts.
    #[error("no vocabulary can be learned from `{name}`: {source}")]
    NoVocabulary {
        /// Name of the data set.
        name: String,
        /// What the tokenizers crate said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A line that should hold two texts.
    #[error(
        "line {line} has {tabs} tabs; this task has pairs: write the two texts with one tab between them"
    )]
    NotAPair {
        /// The line, from 1.
        line: usize,
        /// Tabs in it.
        tabs: usize,
    },
    /// Windows that share so much that they do not get on.
    #[error(
        "max_length ({max_length}) must be at least {least}: special tokens, one token of the question, and one more \
         of the context than windows share (stride = {stride})"
    )]
    Stride {
        /// Tokens that neighbouring windows share.
        stride: usize,
        /// What the experiment asks for.
        max_length: usize,
        /// The least that makes sense for this tokenizer and stride.
        least: usize,
    },
    /// A folder without a tokenizer.
    #[error("{} holds neither tokenizer.json nor spm.model nor vocab.json and merges.txt: fetch the checkpoint, or copy its tokenizer there", .0.display())]
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

/// Why the hub does not give a file.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum HubProblem {
    /// No connection.
    #[error("cannot reach {endpoint} ({reason}): check the connection, or set HF_ENDPOINT to a mirror")]
    Unreachable {
        /// The hub's address.
        endpoint: String,
        /// What the system said.
        reason: String,
    },
    /// Not to be asked, and not in the cache.
    #[error("{missing} is not in the cache, and HF_HUB_OFFLINE is set: unset it")]
    Offline {
        /// What is missing.
        missing: String,
    },
    /// The address is no address.
    #[error("`{url}` is no address: correct HF_ENDPOINT, such as https://huggingface.co")]
    BadAddress {
        /// What was to be opened.
        url: String,
    },
    /// Not there, or not for everybody: the hub does not tell which.
    #[error(
        "there is no {page}, or it is private: check the name, or set HF_TOKEN to a token that may read it"
    )]
    NotFound {
        /// Its page.
        page: String,
    },
    /// The same with a token.
    #[error(
        "there is no {page}, or your token may not read it: check the name and the token (HF_TOKEN, or `hf auth login`)"
    )]
    NotFoundWithToken {
        /// Its page.
        page: String,
    },
    /// Its terms are not accepted.
    #[error("access is restricted: ask for it at {page}, and set HF_TOKEN to a token of that account")]
    Gated {
        /// Its page.
        page: String,
    },
    /// No such branch, tag or commit.
    #[error("there is no revision `{revision}`: name a branch, tag or commit that its page shows")]
    NoRevision {
        /// What was asked for.
        revision: String,
    },
    /// No such file.
    #[error("there is no file `{file}` at {revision}: correct the name in the manifest, or the revision")]
    NoFile {
        /// Its path.
        file: String,
        /// The commit.
        revision: String,
    },
    /// Files that a checkpoint needs are not in the repository.
    #[error("this is no checkpoint that can be used: it holds no {lacks}")]
    NotCheckpoint {
        /// What is missing.
        lacks: String,
    },
    /// Another answer.
    #[error("the server answered with status {status}: try again later")]
    Status {
        /// The status of HTTP.
        status: u16,
    },
    /// An answer without what the hub's answers have.
    #[error("the answer of {url} is not one of the hub: check HF_ENDPOINT and what stands between")]
    NotAHub {
        /// What was asked.
        url: String,
    },
    /// The connection was lost.
    #[error(
        "`{file}` broke off after {done} of {size} bytes ({reason}): run the command again, it goes on from there"
    )]
    BrokenOff {
        /// Its path.
        file: String,
        /// Bytes that are there.
        done: u64,
        /// Bytes of the file.
        size: u64,
        /// How it was lost.
        reason: String,
    },
    /// What came is not what the hub names.
    #[error(
        "`{file}` arrived damaged and was thrown away: its hash is not {expected}; run the command again"
    )]
    Corrupted {
        /// Its path.
        file: String,
        /// What the hub names.
        expected: String,
    },
    /// What the hub has is not what the manifest names.
    #[error("`{file}` has sha256 {found}, but its manifest names {expected}: correct the one that is wrong")]
    OtherFile {
        /// Its path.
        file: String,
        /// In the manifest.
        expected: String,
        /// Of the file.
        found: String,
    },
}

impl HubProblem {
    /// Whether the files could be there if only the hub could be reached.
    fn is_of_connection(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Offline { .. })
    }
}

/// A rule of manifests beyond their syntax.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ManifestRule {
    /// A package without a version.
    #[error("package `{0}` must be pinned: `name==version`")]
    PackageNotPinned(String),
    /// No source, or several that exclude each other.
    #[error("source names {0}: name one of wheel, folder and hub; GLUE may have a folder and the hub")]
    Sources(usize),
    /// A task of GLUE whose own files are not read.
    #[error("GLUE's own files of `{0}` are not read: take it from the hub alone")]
    OnlyOnTheHub(String),
    /// Not the name of a repository.
    #[error("repository `{0}` must be `OWNER/NAME`, as in its address on the hub")]
    Repository(String),
    /// A checkpoint on the hub without its files.
    #[error("source.hub.files is empty: name the files of the checkpoint")]
    NoHubFiles,
    /// A data set on the hub with files.
    #[error("source.hub.files has no effect: the format of a data set names its files")]
    UnusedHubFiles,
    /// Not a sha256.
    #[error("sha256 `{0}` must be 64 digits of lower-case hexadecimal")]
    NotSha256(String),
    /// A hash for a file that is never read.
    #[error("sha256 of `{file}` has no effect: the files read are {}", listed(files))]
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
    /// A column's number where columns have names.
    #[error("column {0} is a number, but the columns of a Parquet file have names")]
    NumberInParquet(usize),
    /// A side without a file.
    #[error("split.files names no file for a side: train and dev need one or more each")]
    NoFiles,
    /// An empty list of dev sets.
    #[error("split.files.dev is empty: name at least one file, the headline's first")]
    NoDevSet,
    /// Two dev sets with one name.
    #[error("dev set `{0}` is listed twice")]
    DevSetTwice(String),
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

/// Where in a data file a row is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Its first line in a text, from 1.
    Line(usize),
    /// Its number in a Parquet file, from 1.
    Row(usize),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line(number) => write!(f, "line {number}"),
            Self::Row(number) => write!(f, "row {number}"),
        }
    }
}

/// What is wrong with a row of a data file.
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
    /// No value.
    #[error("column {column} holds no value: fill or remove the row")]
    Null {
        /// Name of the column.
        column: String,
    },
    /// A value that is no text, number or truth value.
    #[error("column {column} holds {value}, which is neither text nor a number: name another column")]
    Kind {
        /// Name of the column.
        column: String,
        /// In the file.
        value: String,
    },
    /// A number where a text is needed.
    #[error("column {column} holds the number {value} where text is needed: name another column")]
    NotText {
        /// Name of the column.
        column: String,
        /// In the file.
        value: String,
    },
    /// A line that is no JSON object.
    #[error("{said}: expected an object with the texts `{}` and `{}`, on a line of its own", keys[0], keys[1])]
    Json {
        /// What the parser said.
        said: String,
        /// What is read of the object.
        keys: [String; 2],
    },
    /// An object without a value that is read.
    #[error("there is no `{key}` beside {}: correct the line, or name another key", found.join(", "))]
    NoKey {
        /// What is read.
        key: String,
        /// What is there.
        found: Vec<String>,
    },
    /// A text without a visible character.
    #[error("the text in column {column} is empty: fill or remove the row")]
    EmptyText {
        /// Name or number.
        column: String,
    },
}

/// `a, b and c`.
pub(crate) fn listed(names: &[String]) -> String {
    match names {
        [first @ .., last] if !first.is_empty() => format!("{} and {last}", first.join(", ")),
        _ => names.concat(),
    }
}

/// Names that may be meant by one that is not known, as the end of a sentence; nothing if none is near.
pub(crate) fn near(name: &str, known: &[&str]) -> String {
    let like = |known: &&&str| {
        strsim::damerau_levenshtein(&name.to_lowercase(), &known.to_lowercase()) * 3 <= known.len()
    };
    match known.iter().filter(like).copied().collect::<Vec<_>>()[..] {
        [] => String::new(),
        ref names => format!(" (did you mean `{}`?)", names.join("` or `")),
    }
}

fn guess(name: &str, names: &[String]) -> String {
    match names {
        [] if name.contains('/') => format!(
            "a repository of the hub is fetched by `adalora fetch model {name}` or `adalora fetch data {name}`"
        ),
        [] => "`adalora list` shows all, and a repository of the hub is named OWNER/NAME".into(),
        names => format!("did you mean `{}`?", names.join("` or `")),
    }
}

fn fetch_command(name: &str) -> String {
    format!("adalora fetch {}{name}", if name.contains('/') { "model " } else { "" })
}
