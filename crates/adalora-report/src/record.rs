//! The records of a run folder: written by the runner, read by the report.
//!
//! ```text
//! runs/EXPERIMENT/variants.json         ["lora", "adalora"]: all variants in order, the first is the control
//! runs/EXPERIMENT/VARIANT/seed-3/
//!   resolved.toml     all settings of the run (optional here: for the list of settings that differ)
//!   status.json       one Status
//!   metrics.jsonl     one LogRecord a line
//!   ranks.csv         header `step,ADAPTER_PATH,...`, then the live rank of each adapter, one row for each record
//!   outputs.jsonl     what was said in words at the last evaluation: an answer or a summary a line
//!   result.json       one RunResult, once the run has finished
//! ```
//!
//! JSON has no NaN and no infinity: `serde_json` writes both as null, and null is read back as NaN.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Component, Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};

use crate::ReportError;

/// File with the variants of an experiment in order, a JSON list of names of which the first is the control.
pub const VARIANTS_FILE: &str = "variants.json";
/// The experiment file that a run was started from, as its author wrote it.
pub const EXPERIMENT_FILE: &str = "experiment.toml";
/// File with all settings of a run.
pub const SETTINGS_FILE: &str = "resolved.toml";
/// File with the [`Status`] of a run.
pub const STATUS_FILE: &str = "status.json";
/// File with the [`LogRecord`]s of a run, one JSON object a line.
pub const METRICS_FILE: &str = "metrics.jsonl";
/// File with the live rank of each adapter of a run, see [`Ranks`].
pub const RANKS_FILE: &str = "ranks.csv";
/// File with what a model said in words at the last evaluation of a run, an object of JSON a line.
pub const OUTPUTS_FILE: &str = "outputs.jsonl";
/// File with the [`RunResult`] of a finished run.
pub const RESULT_FILE: &str = "result.json";

/// Where a run stands: `{"state": "failed", "step": 120, "reason": "loss is NaN at step 120"}`.
///
/// `step` is the number of finished optimizer steps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum Status {
    /// Training, or killed before it could say otherwise.
    Running {
        /// Finished optimizer steps.
        step: usize,
    },
    /// Reached its last step; `result.json` is written.
    Finished {
        /// Finished optimizer steps.
        step: usize,
    },
    /// Ended by an error, for example a loss that is not finite.
    Failed {
        /// Finished optimizer steps.
        step: usize,
        /// The error in one line.
        reason: String,
        /// Whether the loss ceased to be finite.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        diverged: bool,
    },
    /// Stopped by the user or the queue. The next run goes on from its last checkpoint.
    Interrupted {
        /// Finished optimizer steps.
        step: usize,
    },
}

impl Status {
    /// Finished optimizer steps.
    pub fn step(&self) -> usize {
        match self {
            Self::Running { step }
            | Self::Finished { step }
            | Self::Failed { step, .. }
            | Self::Interrupted { step } => *step,
        }
    }

    /// The state as `status.json` spells it.
    pub fn state(&self) -> &'static str {
        match self {
            Self::Running { .. } => "running",
            Self::Finished { .. } => "finished",
            Self::Failed { .. } => "failed",
            Self::Interrupted { .. } => "interrupted",
        }
    }
}

/// One line of `metrics.jsonl`, told apart by its `kind`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum LogRecord {
    /// What training did since the last such record.
    Train(TrainRecord),
    /// An evaluation on the dev split.
    Dev(DevRecord),
}

/// What training did since the last such record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainRecord {
    /// Finished optimizer steps, 1-based.
    pub step: usize,
    /// Task loss without regularizer, mean over the steps since the last record.
    #[serde(deserialize_with = "nan_if_null")]
    pub loss: f64,
    /// The orthogonality regularizer before its weight, at this step; absent without one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub orthogonality: Option<f64>,
    /// How far the factors of each adapter are from orthonormal, in the order of `ranks.csv`; absent for LoRA.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub residuals: Option<Residuals>,
    /// What decides importance; absent without allocation, for a metric that does not tell, and from the last allocation
    /// on.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub shares: Option<Shares>,
    /// Learning rate of this step.
    pub lr: f64,
    /// Euclidean norm over all trainable gradients, before clipping.
    #[serde(deserialize_with = "nan_if_null")]
    pub grad_norm: f64,
    /// Triplets that the schedule allows over all adapters, or parameters where it counts these; absent without
    /// allocation.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub budget: Option<usize>,
    /// What is live over all adapters, counted as the budget is; absent without allocation.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub live: Option<usize>,
    /// Wall time since the start of training, in seconds. Differs between two runs of one seed.
    pub seconds: f64,
}

/// Squared Frobenius norms over the triplets that are in memory, masked ones among them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Residuals {
    /// `||PᵀP - I||²`
    #[serde(deserialize_with = "each_nan_if_null")]
    pub p: Vec<f32>,
    /// `||Q Qᵀ - I||²`
    #[serde(deserialize_with = "each_nan_if_null")]
    pub q: Vec<f32>,
}

/// Parts of a triplet's importance, each from 0 to 1: mean over all triplets.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Shares {
    /// Of lambda.
    #[serde(deserialize_with = "nan_if_null")]
    pub lambda: f32,
    /// Of the mean over its column of P.
    #[serde(deserialize_with = "nan_if_null")]
    pub p: f32,
    /// Of the mean over its row of Q.
    #[serde(deserialize_with = "nan_if_null")]
    pub q: f32,
}

/// An evaluation on the dev split.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DevRecord {
    /// Finished optimizer steps, 1-based.
    pub step: usize,
    /// Mean task loss over the dev split.
    #[serde(deserialize_with = "nan_if_null")]
    pub loss: f64,
    /// Score by name of the evaluation; larger is better.
    #[serde(deserialize_with = "nans_if_null")]
    pub scores: BTreeMap<String, f64>,
    /// Where a score lies in 95 of 100 samples of the dev split with replacement; of summaries alone.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub intervals: BTreeMap<String, [f64; 2]>,
    /// Wall time since the start of training, in seconds. Differs between two runs of one seed.
    pub seconds: f64,
}

/// `ranks.csv`: the live rank of each adapter at each record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ranks {
    /// Paths of the adapted modules, in the order of the columns.
    pub adapters: Vec<String>,
    /// Rows in the order of the file.
    pub rows: Vec<RankRow>,
}

/// One row of [`Ranks`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RankRow {
    /// Finished optimizer steps, 1-based.
    pub step: usize,
    /// Triplets of each adapter that the last allocation kept; all of them before the first.
    pub ranks: Vec<usize>,
}

/// `result.json`: what a finished run found and what it cost.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunResult {
    /// Name of the experiment.
    pub experiment: String,
    /// Name of the variant.
    pub variant: String,
    /// Seed of the run.
    pub seed: u64,
    /// Name of the task.
    pub task: String,
    /// Optimizer steps of the run.
    pub steps: usize,
    /// Names of the evaluations. The first is the headline; larger is better for all.
    pub evaluation: Vec<String>,
    /// Dev scores after the last step.
    pub last: StepScores,
    /// Dev scores at the step with the largest headline score on that same dev split.
    pub best: StepScores,
    /// Trainable parameters.
    pub parameters: Parameters,
    /// Triplets over all adapters; absent without allocation.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub triplets: Option<Triplets>,
    /// The run whose adapter this one started from; absent where it started from nothing.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub warm_start: Option<WarmStart>,
    /// Wall time of the run, in seconds.
    pub wall_seconds: f64,
    /// Largest resident memory of the process, in bytes.
    pub peak_rss_bytes: u64,
    /// How well the ranks found the planted layers; only for a synthetic teacher.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub planted: Option<Planted>,
}

/// Which adapter a run started from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WarmStart {
    /// Folder of the run that trained it.
    pub run: String,
    /// Identity of that run, the SHA-256 of its settings.
    pub identity: String,
    /// SHA-256 of its tensors.
    pub sha256: String,
}

/// Dev scores at one step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepScores {
    /// Finished optimizer steps, 1-based.
    pub step: usize,
    /// Score by name of the evaluation.
    #[serde(deserialize_with = "nans_if_null")]
    pub scores: BTreeMap<String, f64>,
}

/// Numbers of trainable parameters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parameters {
    /// In the adapters at the initial rank.
    pub adapter_peak: usize,
    /// In the adapters once only live triplets are kept.
    pub adapter_final: usize,
    /// Outside the adapters: head, pooler.
    pub head: usize,
    /// That the schedule allows in the adapters at the end; absent unless the budget counts parameters.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub adapter_budget: Option<usize>,
}

/// Numbers of triplets over all adapters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Triplets {
    /// At the start.
    pub initial: usize,
    /// That the schedule allows at the end; absent where the budget counts parameters.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub budget: Option<usize>,
    /// That live at the end.
    pub live: usize,
}

/// Where the ranks went when a teacher with a known update was to be found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Planted {
    /// Live triplets in the adapters that hold the planted update, in each at most the rank that was planted there.
    pub recovered: usize,
    /// Rank of the planted update over all adapters.
    pub planted: usize,
}

/// An experiment folder as read from disk.
#[derive(Debug, Clone, PartialEq)]
pub struct Experiment {
    /// Name of the folder.
    pub name: String,
    /// What the experiment is for, from the file that a run keeps beside its results.
    pub description: Option<String>,
    /// All variants of `variants.json`, in its order; the first is the control.
    pub variants: Vec<Variant>,
}

/// A variant and the runs found for it.
#[derive(Debug, Clone, PartialEq)]
pub struct Variant {
    /// Name of the variant and of its folder.
    pub name: String,
    /// Runs by ascending seed; none if the variant was not started.
    pub runs: Vec<Run>,
}

/// A run folder as read from disk, whatever state the run is in.
#[derive(Debug, Clone, PartialEq)]
pub struct Run {
    /// Seed, from the folder's name.
    pub seed: u64,
    /// Where the run stands. A folder without a status has just been made: running, at step 0.
    pub status: Status,
    /// Settings, if the run has written them.
    pub settings: Option<toml::Table>,
    /// Records in the order of the file.
    pub log: Vec<LogRecord>,
    /// Ranks of the adapters, if the run has written them.
    pub ranks: Option<Ranks>,
    /// Present if and only if the run has finished.
    pub result: Option<RunResult>,
}

impl Experiment {
    /// Reads the folder of an experiment. Folders of variants that `variants.json` does not name are left out.
    ///
    /// # Errors
    ///
    /// `variants.json` is missing or empty, or names a folder outside of this one; a record is malformed; a finished run has no result. A last line of
    /// `metrics.jsonl` or `ranks.csv` without a newline is still being written and is left out instead.
    pub fn read(dir: &Path) -> Result<Self, ReportError> {
        let path = dir.join(VARIANTS_FILE);
        let names: Vec<String> = read_json(&path)?.ok_or_else(|| ReportError::NoVariants(path.clone()))?;
        if names.is_empty() {
            return Err(ReportError::NoVariants(path));
        }
        names.iter().try_for_each(|name| check_inside(&path, name))?;
        let name = match dir.file_name() {
            Some(name) => name.to_string_lossy().into_owned(),
            None => dir.display().to_string(),
        };
        let variants: Vec<_> =
            names.into_iter().map(|name| Variant::read(dir, name)).collect::<Result<_, _>>()?;
        let first = variants.iter().find_map(|variant| {
            let run = variant.runs.first()?;
            Some(dir.join(&variant.name).join(format!("seed-{}", run.seed)).join(EXPERIMENT_FILE))
        });
        let file = first.map(|path| read_settings(&path)).transpose()?.flatten();
        let description = file.and_then(|file| Some(file.get("description")?.as_str()?.to_owned()));
        Ok(Self { name, description, variants })
    }
}

impl Variant {
    fn read(experiment: &Path, name: String) -> Result<Self, ReportError> {
        let dir = experiment.join(&name);
        let entries = match fs::read_dir(&dir) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Self { name, runs: Vec::new() }),
            entries => entries.map_err(|source| ReportError::Io { path: dir.clone(), source })?,
        };
        let mut runs = Vec::new();
        for entry in entries {
            let path = entry.map_err(|source| ReportError::Io { path: dir.clone(), source })?.path();
            if let Some(seed) = seed_of(&path) {
                runs.push(Run::read(&path, seed)?);
            }
        }
        runs.sort_by_key(|run| run.seed);
        Ok(Self { name, runs })
    }

    /// The results of the finished runs, by ascending seed.
    pub fn results(&self) -> impl Iterator<Item = &RunResult> {
        self.runs.iter().filter_map(|run| run.result.as_ref())
    }
}

impl Run {
    /// Reads a run's folder, which need not exist.
    ///
    /// # Errors
    ///
    /// A record that is malformed, or a finished run without a result.
    pub fn read(dir: &Path, seed: u64) -> Result<Self, ReportError> {
        // The status first: a run that finishes meanwhile is then read as running, not as finished without result.
        let status = read_json(&dir.join(STATUS_FILE))?.unwrap_or(Status::Running { step: 0 });
        let result = match &status {
            Status::Finished { .. } => {
                let path = dir.join(RESULT_FILE);
                Some(read_json(&path)?.ok_or(ReportError::NoResult(path))?)
            }
            _ => None,
        };
        Ok(Self {
            seed,
            status,
            settings: read_settings(&dir.join(SETTINGS_FILE))?,
            log: read_lines(&dir.join(METRICS_FILE))?,
            ranks: read_ranks(&dir.join(RANKS_FILE))?,
            result,
        })
    }
}

/// Writes a file beside its place and renames it, so that a reader sees the old file or the new one, never half.
///
/// # Errors
///
/// What the file system says.
pub fn write_file(path: &Path, contents: &str) -> Result<(), ReportError> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(format!(".{}.tmp", std::process::id()));
    let beside = PathBuf::from(beside);
    fs::write(&beside, contents).map_err(|source| ReportError::Io { path: beside.clone(), source })?;
    fs::rename(&beside, path).map_err(|source| ReportError::Io { path: path.to_owned(), source })
}

/// Makes a folder in an experiment's, where it is not there yet.
///
/// # Errors
///
/// A link in its place, which may lead anywhere, or what the file system refuses.
pub fn create_folder(path: &Path) -> Result<(), ReportError> {
    if path.is_symlink() {
        return Err(ReportError::Link(path.to_owned()));
    }
    fs::create_dir_all(path).map_err(|source| ReportError::Io { path: path.to_owned(), source })
}

/// Refuses a name in the file at `path` that leads out of its folder: reports are written below it.
pub(crate) fn check_inside(path: &Path, name: &str) -> Result<(), ReportError> {
    let mut parts = Path::new(name).components();
    if !name.is_empty() && parts.all(|part| matches!(part, Component::Normal(_))) {
        return Ok(());
    }
    let reason = format!("`{name}` is no folder below this one: names must be relative and without `..`");
    Err(ReportError::Malformed { path: path.to_owned(), line: 1, reason })
}

pub(crate) fn seed_of(run: &Path) -> Option<u64> {
    run.file_name()?.to_str()?.strip_prefix("seed-")?.parse().ok()
}

/// The text of a file; `None` if there is none.
fn read_text(path: &Path) -> Result<Option<String>, ReportError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(source) => Err(ReportError::Io { path: path.to_owned(), source }),
    }
}

pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, ReportError> {
    let Some(text) = read_text(path)? else { return Ok(None) };
    serde_json::from_str(&text).map(Some).map_err(|error| malformed_json(path, error.line(), &error))
}

fn read_settings(path: &Path) -> Result<Option<toml::Table>, ReportError> {
    let Some(text) = read_text(path)? else { return Ok(None) };
    text.parse().map(Some).map_err(|error: toml::de::Error| {
        let start = error.span().map_or(0, |span| span.start);
        let line = 1 + text.as_bytes()[..start].iter().filter(|&&byte| byte == b'\n').count();
        ReportError::Malformed { path: path.to_owned(), line, reason: error.message().to_owned() }
    })
}

/// The lines that end in a newline.
fn whole_lines(text: &str) -> &str {
    &text[..text.rfind('\n').map_or(0, |end| end + 1)]
}

/// A file of an object of JSON a line, which need not exist. A last line without a newline is left out.
pub(crate) fn read_lines<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>, ReportError> {
    let text = read_text(path)?.unwrap_or_default();
    let parse = |(i, line)| serde_json::from_str(line).map_err(|error| malformed_json(path, i + 1, &error));
    whole_lines(&text).lines().enumerate().map(parse).collect()
}

impl LogRecord {
    /// Reads a `metrics.jsonl`, which need not exist. A last line without a newline is left out.
    ///
    /// # Errors
    ///
    /// A line that is malformed.
    pub fn read(path: &Path) -> Result<Vec<Self>, ReportError> {
        read_lines(path)
    }
}

impl Ranks {
    /// Reads a `ranks.csv`.
    ///
    /// # Errors
    ///
    /// A file that is malformed; where there is none, `None`.
    pub fn read(path: &Path) -> Result<Option<Self>, ReportError> {
        read_ranks(path)
    }
}

fn read_ranks(path: &Path) -> Result<Option<Ranks>, ReportError> {
    let Some(text) = read_text(path)? else { return Ok(None) };
    let malformed = |line: u64, reason: String| ReportError::Malformed {
        path: path.to_owned(),
        line: line as usize,
        reason,
    };
    let of_csv = |error: csv::Error| {
        let reason = match error.kind() {
            csv::ErrorKind::UnequalLengths { expected_len, len, .. } => {
                format!("{len} fields, where the header has {expected_len}")
            }
            _ => error.to_string(),
        };
        malformed(error.position().map_or(1, |position| position.line()), reason)
    };
    let mut reader = csv::Reader::from_reader(whole_lines(&text).as_bytes());
    let adapters = reader.headers().map_err(of_csv)?.iter().skip(1).map(str::to_owned).collect();
    let mut rows = Vec::new();
    for record in reader.records() {
        let record = record.map_err(of_csv)?;
        let mut numbers = Vec::with_capacity(record.len());
        for field in &record {
            numbers.push(field.parse().map_err(|_| {
                let line = record.position().map_or(1, |position| position.line());
                malformed(line, format!("`{field}` is not a whole number"))
            })?);
        }
        let step = numbers.remove(0);
        rows.push(RankRow { step, ranks: numbers });
    }
    Ok(Some(Ranks { adapters, rows }))
}

fn malformed_json(path: &Path, line: usize, error: &serde_json::Error) -> ReportError {
    // `serde_json` counts lines from the start of the text it was given, which may be one line of the file.
    let text = error.to_string();
    let reason = text.split(" at line ").next().unwrap_or(&text).to_owned();
    ReportError::Malformed { path: path.to_owned(), line, reason }
}

fn nan_if_null<'de, D: Deserializer<'de>, T: Deserialize<'de> + From<f32>>(from: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or(f32::NAN.into()))
}

fn each_nan_if_null<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<f32>, D::Error> {
    let values = Vec::<Option<f32>>::deserialize(from)?;
    Ok(values.into_iter().map(|value| value.unwrap_or(f32::NAN)).collect())
}

fn nans_if_null<'de, D: Deserializer<'de>>(from: D) -> Result<BTreeMap<String, f64>, D::Error> {
    let scores = BTreeMap::<String, Option<f64>>::deserialize(from)?;
    Ok(scores.into_iter().map(|(name, score)| (name, score.unwrap_or(f64::NAN))).collect())
}
