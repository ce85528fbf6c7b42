//! A rank pattern as a file: what a run has found, to be trained from scratch.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use adalora_report::{RANKS_FILE, Ranks, SETTINGS_FILE, STATUS_FILE, Status, write_file};
use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::run_folder::identity;

/// The file: a table of layers with their ranks, and where they come from.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PatternFile {
    /// Folder of the run that found it; absent in a pattern that was written by hand.
    pub run: Option<String>,
    /// Identity of that run, the SHA-256 of its settings.
    pub identity: Option<String>,
    /// Rank by path of the layer. 0 leaves a layer plain.
    pub ranks: BTreeMap<String, usize>,
}

/// Writes the ranks that a finished run ended with.
///
/// # Errors
///
/// A run that has not finished, or a file that is there already.
pub fn export(run: &Path, file: &Path) -> Result<()> {
    let text = |name: &str| {
        let path = run.join(name);
        std::fs::read_to_string(&path).with_context(|| path.display().to_string())
    };
    let status: Status = serde_json::from_str(&text(STATUS_FILE)?).with_context(|| STATUS_FILE.to_owned())?;
    if !matches!(status, Status::Finished { .. }) {
        bail!(
            "{} is {}: its ranks are not final; export them once it has finished",
            run.display(),
            status.state()
        );
    }
    if file.exists() {
        bail!("{} is there already: give another name, or move it away", file.display());
    }
    let ranks = Ranks::read(&run.join(RANKS_FILE))?;
    let last = ranks.as_ref().and_then(|ranks| Some((&ranks.adapters, ranks.rows.last()?)));
    let (adapters, last) =
        last.with_context(|| format!("{} has no ranks", run.join(RANKS_FILE).display()))?;
    let mut pattern = format!(
        "# Rank of each adapted layer after step {}.\nrun = {:?}\nidentity = {:?}\n\n[ranks]\n",
        last.step,
        run.display().to_string(),
        identity(&text(SETTINGS_FILE)?)
    );
    for (path, rank) in adapters.iter().zip(&last.ranks) {
        writeln!(pattern, "{path:?} = {rank}").expect("text can be written to");
    }
    Ok(write_file(file, &pattern)?)
}

impl PatternFile {
    /// Reads a pattern.
    ///
    /// # Errors
    ///
    /// What is wrong with the file.
    pub fn read(file: &Path) -> Result<Self, String> {
        let text = std::fs::read_to_string(file).map_err(|error| {
            format!("{error}; adalora export-pattern writes such a file from a finished run")
        })?;
        toml::from_str(&text).map_err(|error| error.to_string())
    }

    /// The rank of each adapted layer.
    ///
    /// # Errors
    ///
    /// Layers of the pattern that are not adapted, and adapted ones that it does not have, by name; ranks that are all 0.
    pub fn ranks_of(&self, paths: &[&str]) -> Result<Vec<usize>, String> {
        let mut problems = Vec::new();
        let unknown = self.ranks.keys().map(String::as_str).filter(|path| !paths.contains(path));
        let lacking = paths.iter().copied().filter(|path| !self.ranks.contains_key(*path));
        for (what, names) in [
            ("has ranks for layers that are not adapted here", unknown.collect::<Vec<_>>()),
            ("has no rank for adapted layers", lacking.collect()),
        ] {
            if let Some((first, others)) = names.split_first() {
                let more =
                    if others.is_empty() { String::new() } else { format!(" and {} more", others.len()) };
                problems.push(format!("{what}: `{first}`{more}"));
            }
        }
        if !problems.is_empty() {
            return Err(problems.join("; "));
        }
        let ranks: Vec<_> = paths.iter().map(|path| self.ranks[*path]).collect();
        if ranks.iter().all(|rank| *rank == 0) {
            return Err("has rank 0 for every layer: nothing would be adapted".into());
        }
        Ok(ranks)
    }
}
