//! The records of a run folder, and the report over the variants and seeds of an experiment.
//!
//! The runner writes the records ([`Status`], [`LogRecord`], [`Ranks`], [`RunResult`]); [`write()`] reads them back
//! ([`Experiment`]) and derives everything else from them, so that a report can be made anew at any time, also while
//! runs are still going on.
//!
//! Only finished runs are averaged. The others are counted, and those that failed are listed with their reason.

mod curves;
mod heatmap;
mod html;
mod record;
mod results;
mod settings;
mod statistics;
mod svg;
mod table;

use std::fs;
use std::path::{Path, PathBuf};

pub use record::{
    DevRecord, EXPERIMENT_FILE, Experiment, LogRecord, METRICS_FILE, Parameters, Planted, RANKS_FILE,
    RESULT_FILE, RankRow, Ranks, Run, RunResult, SETTINGS_FILE, STATUS_FILE, Status, StepScores, TrainRecord,
    Triplets, VARIANTS_FILE, Variant, WarmStart, write_file,
};
pub use statistics::RunCounts;

/// Writes `report/table.{md,csv,tex}`, `ranks.svg`, `curves.svg` and `report.html` into the folder of an experiment,
/// and returns the Markdown, which reads well in a terminal too.
///
/// # Errors
///
/// No run has finished, or a record cannot be read: then nothing is written.
pub fn write(experiment_dir: &Path) -> Result<String, ReportError> {
    let experiment = Experiment::read(experiment_dir)?;
    let results = results::Results::of(&experiment)?;
    let ranks = heatmap::draw(&experiment)?;
    let curves = curves::draw(&experiment, results.headline());
    let page = html::page(&experiment, &results, &ranks, &curves);
    let markdown = results.markdown();

    let dir = experiment_dir.join("report");
    fs::create_dir_all(&dir).map_err(|source| ReportError::Io { path: dir.clone(), source })?;
    for (name, contents) in [
        ("table.md", &markdown),
        ("table.csv", &results.csv()),
        ("table.tex", &results.latex()),
        ("ranks.svg", &ranks),
        ("curves.svg", &curves),
        ("report.html", &page),
    ] {
        write_file(&dir.join(name), contents)?;
    }
    Ok(markdown)
}

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// The file system refused.
    #[error("cannot read or write {}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the file system says.
        source: std::io::Error,
    },
    /// A record cannot be read.
    #[error("{}, line {line}: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// 1-based line.
        line: usize,
        /// What the parser says.
        reason: String,
    },
    /// `variants.json` is missing or empty, so that order and control are unknown.
    #[error(
        "{} must list the variants in order, the control first: run the experiment once, or write the list",
        .0.display()
    )]
    NoVariants(PathBuf),
    /// A run says that it has finished and has no result.
    #[error("{} is missing though the run has finished: delete the run's folder and run it again", .0.display())]
    NoResult(PathBuf),
    /// There is nothing to average yet.
    #[error(
        "no run of {experiment} has finished yet: {} failed, {} running, {} interrupted",
        runs.failed, runs.running, runs.interrupted
    )]
    NoFinishedRun {
        /// Name of the experiment.
        experiment: String,
        /// Runs by state.
        runs: RunCounts,
    },
    /// A result names no evaluation, so that there is no headline.
    #[error("the result of {variant}, seed {seed}, names no evaluation; it must name at least one")]
    NoEvaluation {
        /// Name of the variant.
        variant: String,
        /// Seed of the run.
        seed: u64,
    },
    /// Runs that are to be compared were evaluated differently.
    #[error(
        "the result of {variant}, seed {seed}, has no score `{evaluation}`, which other runs have: run it again"
    )]
    NoScore {
        /// Name of the variant.
        variant: String,
        /// Seed of the run.
        seed: u64,
        /// The missing evaluation.
        evaluation: String,
    },
    /// Runs of one variant adapt different modules.
    #[error("{variant}, seed {seed}, adapts other modules than the seeds before it: run the variant again")]
    AdaptersDiffer {
        /// Name of the variant.
        variant: String,
        /// Seed of the run.
        seed: u64,
    },
}
