//! The records of a run folder, and the report over the variants and seeds of an experiment.
//!
//! The runner writes the records ([`Status`], [`LogRecord`], [`Ranks`], [`RunResult`]); [`write()`] reads them back
//! ([`Experiment`]) and derives everything else from them, so that a report can be made anew at any time, also while
//! runs are still going on.
//!
//! Only finished runs are averaged. The others are counted, and those that failed are listed with their reason.

mod curves;
mod glue;
mod grid;
mod heatmap;
mod html;
mod ladder;
mod record;
mod results;
mod runs;
mod samples;
mod settings;
mod significance;
mod statistics;
mod study;
mod svg;
mod table;
mod tensorboard;
mod trajectory;
mod tuning;

use std::path::{Path, PathBuf};

pub use grid::{Choice, GRID_FILE, Grid, GridCell, TUNING_FILE, Tried, Tuned, Tuning};
pub use record::{
    DevRecord, EXPERIMENT_FILE, Experiment, LogRecord, METRICS_FILE, OUTPUTS_FILE, Parameters, Planted,
    RANKS_FILE, RESULT_FILE, RankRow, Ranks, Residuals, Run, RunResult, SETTINGS_FILE, STATUS_FILE, Shares,
    Status, StepScores, TrainRecord, Triplets, VARIANTS_FILE, Variant, WarmStart, create_folder, write_file,
};
pub use runs::runs_csv;
pub use statistics::RunCounts;
pub use tensorboard::{EVENTS_FILE, EventFile};

/// Writes `report/table.{md,csv,tex}`, pictures, `samples.md` where models write, and `report.html` into the folder of an experiment,
/// and returns the Markdown, which reads well in a terminal too. With `[sweep]` each cell gets these, and the experiment
/// the tables over all cells.
///
/// # Errors
///
/// No run has finished, or a record cannot be read: then nothing is written.
pub fn write(experiment_dir: &Path) -> Result<String, ReportError> {
    match Grid::read(experiment_dir)?.filter(|grid| grid.cells.iter().all(|cell| !cell.points.is_empty())) {
        Some(grid) => write_study(experiment_dir, &grid),
        None => write_cell(experiment_dir),
    }
}

fn write_study(dir: &Path, grid: &Grid) -> Result<String, ReportError> {
    let study = study::Study::read(dir, grid)?;
    let tables = study::Tables::of(&study)?;
    for cell in study.groups.iter().flat_map(|group| &group.cells) {
        if cell.headline().is_some() {
            write_cell(&dir.join(&cell.name))?;
        }
    }
    let ladder = ladder::draw(&study)?;
    let page = html::study_page(&study, &tables, ladder.as_deref());
    let markdown = tables.markdown(&study);
    let (latex, ladder) = (tables.latex(&study), ladder.as_deref().map(|ladder| ("ladder.svg", ladder)));
    let files = [
        ("table.md", &*markdown),
        ("table.csv", tables.csv()),
        ("table.tex", &latex),
        ("report.html", &page),
    ];
    write_all(dir, files.into_iter().chain(ladder))?;
    Ok(markdown)
}

fn write_cell(experiment_dir: &Path) -> Result<String, ReportError> {
    let experiment = Experiment::read(experiment_dir)?;
    let results = results::Results::of(&experiment, Choice::read(experiment_dir)?.as_ref())?;
    let ranks = heatmap::draw(&experiment)?;
    let curves = curves::draw(&experiment, results.headline());
    let factors = curves::draw_factors(&experiment);
    let trajectory = trajectory::draw(&experiment)?;
    let samples = samples::read(experiment_dir, &experiment)?;
    let page = html::page(
        &experiment,
        &results,
        &[
            ("Curves", Some(&*curves)),
            ("Where the ranks went", Some(&*ranks)),
            ("Ranks over the steps", trajectory.as_deref()),
            ("P, Q and importance over the steps", factors.as_deref()),
        ],
        samples.as_ref(),
    );
    let samples = samples.map(|samples| samples.markdown(&experiment.name));
    let markdown = results.markdown();

    let (csv, latex) = (results.csv(), results.latex());
    let files = [
        ("table.md", Some(&*markdown)),
        ("table.csv", Some(&*csv)),
        ("table.tex", Some(&*latex)),
        ("ranks.svg", Some(&*ranks)),
        ("curves.svg", Some(&*curves)),
        ("trajectory.svg", trajectory.as_deref()),
        ("factors.svg", factors.as_deref()),
        ("samples.md", samples.as_deref()),
        ("report.html", Some(&*page)),
    ];
    write_all(experiment_dir, files.into_iter().filter_map(|(name, contents)| Some((name, contents?))))?;
    Ok(markdown)
}

fn write_all<'a>(
    experiment_dir: &Path,
    files: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> Result<(), ReportError> {
    let dir = experiment_dir.join("report");
    create_folder(&dir)?;
    for (name, contents) in files {
        write_file(&dir.join(name), contents)?;
    }
    Ok(())
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
    /// A link in the place of a folder of an experiment's.
    #[error(
        "{} is a link, and what is made of an experiment is written into its own folder alone: put the folder itself there, \
         or remove the link",
        .0.display()
    )]
    Link(PathBuf),
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
