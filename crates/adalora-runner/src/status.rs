//! Where the runs of an experiment stand, as its folder tells: also on another machine than those that run them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::path::Path;

use adalora_report::{Grid, STATUS_FILE, Status, VARIANTS_FILE};
use anyhow::{Context, Result};

use crate::grid::Named;
use crate::run_folder;
use crate::slurm;

/// Where a run stands.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Standing {
    Finished,
    /// Claimed by the process that is named.
    Running(String),
    Failed(String),
    /// Stopped or killed; its next start goes on from the last checkpoint.
    Stopped,
    /// In a list, and not begun.
    Waiting,
}

impl Standing {
    const ORDER: [&str; 5] = ["finished", "running", "waiting", "stopped", "failed"];

    fn of(folder: &Path, status: Option<&Status>) -> Self {
        match (status, run_folder::holder(folder)) {
            (Some(Status::Finished { .. }), _) => Self::Finished,
            (_, Some(holder)) => Self::Running(holder),
            (Some(Status::Failed { reason, .. }), None) => Self::Failed(reason.clone()),
            (Some(Status::Running { .. } | Status::Interrupted { .. }), None) => Self::Stopped,
            (None, None) => Self::Waiting,
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Finished => "finished",
            Self::Running(_) => "running",
            Self::Failed(_) => "failed",
            Self::Stopped => "stopped",
            Self::Waiting => "waiting",
        }
    }

    fn note(&self) -> &str {
        match self {
            Self::Running(holder) => holder,
            Self::Failed(reason) => reason,
            Self::Stopped => "goes on when it is started again",
            Self::Finished | Self::Waiting => "",
        }
    }
}

/// One line for each run and one with the sums, which counts those that run by machine.
///
/// # Errors
///
/// A folder that is no experiment's, or a file in it that is malformed.
pub fn describe(experiment: &Path) -> Result<String> {
    let tuning = Grid::read(experiment)?.and_then(|grid| grid.tuning);
    let runs = runs(experiment)?;

    let (mut text, mut counts, mut hosts) = (String::new(), BTreeMap::new(), BTreeMap::new());
    let label = |run: &Named| {
        let label = run.label(tuning.as_ref());
        label.split(" seed ").next().unwrap_or(&label).to_owned()
    };
    let width = runs.iter().map(|run| label(run).len()).max().unwrap_or(0);
    for run in &runs {
        let folder = run.folder(experiment, tuning.as_ref());
        let status = read_status(&folder)?;
        let standing = Standing::of(&folder, status.as_ref());
        let step = status.map_or_else(String::new, |status| format!("step {}", status.step()));
        let line = format!("{:width$}  seed {:<3}  {:8}  {step:10}", label(run), run.seed, standing.name());
        writeln!(text, "{}", format!("{line}  {}", standing.note()).trim_end())?;
        *counts.entry(standing.name()).or_insert(0) += 1;
        if let Standing::Running(holder) = &standing {
            let host = holder.rsplit(' ').next().unwrap_or(holder).to_owned();
            *hosts.entry(host).or_insert(0) += 1;
        }
    }
    let hosts: Vec<_> = hosts.iter().map(|(host, count)| format!("{count} on {host}")).collect();
    let sums = Standing::ORDER.iter().filter_map(|name| {
        let count = counts.get(name)?;
        let hosts = if *name == "running" { format!(" ({})", hosts.join(", ")) } else { String::new() };
        Some(format!("{count} {name}{hosts}"))
    });
    writeln!(text, "\n{}", sums.collect::<Vec<_>>().join(", "))?;
    Ok(text)
}

/// Every run that is in a list or was begun, cell by cell, in the order of the variants.
fn runs(experiment: &Path) -> Result<Vec<Named>> {
    let grid = Grid::read(experiment)?;
    let listed = slurm::listed(experiment)?;
    let cells: Vec<_> = match &grid {
        Some(grid) => grid.cells.iter().map(|cell| cell.name.clone()).collect(),
        None => vec![String::new()],
    };
    let mut all = Vec::new();
    for cell in cells {
        let path = experiment.join(&cell).join(VARIANTS_FILE);
        let text = fs::read_to_string(&path)
            .with_context(|| format!("{} has no runs: {}", experiment.display(), path.display()))?;
        let variants: Vec<String> =
            serde_json::from_str(&text).with_context(|| path.display().to_string())?;
        for variant in variants {
            let named = |value, seed| Named { cell: cell.clone(), variant: variant.clone(), value, seed };
            let mut own = BTreeSet::new();
            own.extend(listed.iter().filter(|run| run.cell == cell && run.variant == variant).cloned());
            let tuning = grid.as_ref().and_then(|grid| grid.tuning.as_ref());
            for (value, name) in tuning.iter().flat_map(|tuning| tuning.values.iter().enumerate()) {
                let folder = experiment.join(&cell).join("tuning").join(&variant).join(name);
                own.extend(seeds(&folder).map(|seed| named(value, seed)));
            }
            // Which value was chosen does not matter for where a run lies.
            let listed: BTreeSet<_> = own.iter().map(|run| run.seed).collect();
            let folder = experiment.join(&cell).join(&variant);
            own.extend(seeds(&folder).filter(|seed| !listed.contains(seed)).map(|seed| named(0, seed)));
            all.extend(own);
        }
    }
    Ok(all)
}

/// Seeds of the run folders in a folder.
fn seeds(folder: &Path) -> impl Iterator<Item = u64> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.strip_prefix("seed-")?.parse::<u64>().ok())
}

fn read_status(run: &Path) -> Result<Option<Status>> {
    let path = run.join(STATUS_FILE);
    match fs::read_to_string(&path) {
        Ok(text) => Ok(Some(serde_json::from_str(&text).with_context(|| path.display().to_string())?)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| path.display().to_string()),
    }
}
