//! Where the runs of an experiment stand, as its folder tells: also on another machine than those that run them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::path::Path;

use adalora_report::{STATUS_FILE, Status, VARIANTS_FILE};
use anyhow::{Context, Result};

use crate::run_folder;
use crate::slurm::{self, Named};

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
    let path = experiment.join(VARIANTS_FILE);
    let text = fs::read_to_string(&path)
        .with_context(|| format!("{} has no runs: {}", experiment.display(), path.display()))?;
    let variants: Vec<String> = serde_json::from_str(&text).with_context(|| path.display().to_string())?;
    let listed = slurm::listed(experiment)?;

    let (mut text, mut counts, mut hosts) = (String::new(), BTreeMap::new(), BTreeMap::new());
    let width = variants.iter().map(String::len).max().unwrap_or(0);
    for variant in variants {
        let folder = experiment.join(&variant);
        let of_list = listed.iter().filter(|run| run.variant == variant).map(|Named { seed, .. }| *seed);
        let entries = fs::read_dir(&folder).into_iter().flatten().flatten();
        let begun = entries
            .filter_map(|entry| entry.file_name().to_str()?.strip_prefix("seed-")?.parse::<u64>().ok());
        for seed in of_list.chain(begun).collect::<BTreeSet<_>>() {
            let run = folder.join(format!("seed-{seed}"));
            let status = read_status(&run)?;
            let standing = Standing::of(&run, status.as_ref());
            let step = status.map_or_else(String::new, |status| format!("step {}", status.step()));
            let line = format!("{variant:width$}  seed {seed:<3}  {:8}  {step:10}", standing.name());
            writeln!(text, "{}", format!("{line}  {}", standing.note()).trim_end())?;
            *counts.entry(standing.name()).or_insert(0) += 1;
            if let Standing::Running(holder) = &standing {
                let host = holder.rsplit(' ').next().unwrap_or(holder).to_owned();
                *hosts.entry(host).or_insert(0) += 1;
            }
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

fn read_status(run: &Path) -> Result<Option<Status>> {
    let path = run.join(STATUS_FILE);
    match fs::read_to_string(&path) {
        Ok(text) => Ok(Some(serde_json::from_str(&text).with_context(|| path.display().to_string())?)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| path.display().to_string()),
    }
}
