//! The folder of one run: what it was asked, what it did, where it stands.

use std::fs::{self, File, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};

use adalora_report::{
    EXPERIMENT_FILE, LogRecord, METRICS_FILE, RANKS_FILE, RESULT_FILE, RunResult, SETTINGS_FILE, STATUS_FILE,
    Status, write_file,
};
use anyhow::{Context, Result, bail};
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::experiment::RunSpec;

/// `runs/EXPERIMENT/VARIANT/seed-N`, held by this process alone.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    metrics: File,
    ranks: csv::Writer<File>,
    /// Locked as long as the run lives; the system unlocks it if the process dies.
    _lock: File,
}

/// What a run folder is found to be.
#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    /// No such run yet, or one that did not finish.
    Open,
    /// Finished with the same settings.
    Finished,
}

/// All settings of a run and its seed, as `resolved.toml` has them.
pub fn resolved(spec: &RunSpec, seed: u64) -> String {
    #[derive(Serialize)]
    struct Resolved<'a> {
        seed: u64,
        #[serde(flatten)]
        spec: &'a RunSpec,
    }
    toml::to_string(&Resolved { seed, spec }).expect("settings can be written as TOML")
}

/// The run's identity: SHA-256 of its resolved settings and seed.
pub fn identity(resolved: &str) -> String {
    Sha256::digest(resolved).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Looks at the folder of a run before it is started.
///
/// # Errors
///
/// A finished run with other settings, which is never overwritten.
pub fn find(path: &Path, spec: &RunSpec, seed: u64) -> Result<Found> {
    let status = match fs::read_to_string(path.join(STATUS_FILE)) {
        Ok(text) => {
            serde_json::from_str(&text).with_context(|| format!("{}/{STATUS_FILE}", path.display()))?
        }
        Err(_) => return Ok(Found::Open),
    };
    if !matches!(status, Status::Finished { .. }) {
        return Ok(Found::Open);
    }
    let own = resolved(spec, seed);
    let settings = path.join(SETTINGS_FILE);
    let before = fs::read_to_string(&settings).with_context(|| settings.display().to_string())?;
    if before == own {
        return Ok(Found::Finished);
    }
    let changed = |text: &str, other: &str| {
        text.lines().find(|line| !other.lines().any(|own| own == *line)).unwrap_or("(absent)").to_owned()
    };
    bail!(
        "{} is finished, with other settings: it had `{}`, the experiment now has `{}`. \
         Give the experiment another name, or move that folder away",
        path.display(),
        changed(&before, &own),
        changed(&own, &before),
    );
}

/// Claims a run for this process, until the file is dropped or the process dies.
fn lock(path: &Path) -> Result<File> {
    let parent = path.parent().expect("a run folder lies in its variant's");
    fs::create_dir_all(parent).with_context(|| parent.display().to_string())?;
    let name = path.file_name().expect("a run folder has a name").to_string_lossy();
    let lock_path = parent.join(format!(".{name}.lock"));
    let lock = File::create(&lock_path).with_context(|| lock_path.display().to_string())?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => bail!("another process is running {}", path.display()),
        Err(TryLockError::Error(error)) => bail!("{}: {error}", lock_path.display()),
    }
}

/// Notes that the process of a run died without a word, and returns that status. A run that another process holds
/// keeps its own.
pub fn mark_failed(path: &Path, reason: String) -> Status {
    let before =
        fs::read_to_string(path.join(STATUS_FILE)).ok().and_then(|text| serde_json::from_str(&text).ok());
    let step = before.as_ref().map_or(0, Status::step);
    let status = Status::Failed { step, reason, diverged: false };
    if matches!(before, Some(Status::Running { .. })) && lock(path).is_ok() {
        let text = serde_json::to_string_pretty(&status).expect("a status can be written");
        let _ = write_file(&path.join(STATUS_FILE), &(text + "\n"));
    }
    status
}

impl RunFolder {
    /// Makes the folder and writes down what is asked. What an unfinished run has left there is set aside under
    /// another name, not deleted.
    ///
    /// # Errors
    ///
    /// If another process has this run, or the folder cannot be written.
    pub fn create(path: &Path, spec: &RunSpec, seed: u64, source: &str, adapters: &[&str]) -> Result<Self> {
        let lock = lock(path)?;
        // Between the first look and the lock another process may have finished the run.
        if find(path, spec, seed)? == Found::Finished {
            bail!("another process has finished {}", path.display());
        }
        if path.exists() {
            let name = path.file_name().expect("a run folder has a name").to_string_lossy();
            let numbered = |n: usize| path.with_file_name(format!("{name}.unfinished-{n}"));
            let aside = (1..).map(numbered).find(|aside| !aside.exists()).expect("some number is free");
            fs::rename(path, &aside).with_context(|| path.display().to_string())?;
        }
        fs::create_dir(path).with_context(|| path.display().to_string())?;
        let file = |name: &str| {
            let path = path.join(name);
            File::create(&path).with_context(|| path.display().to_string())
        };
        write_file(&path.join(EXPERIMENT_FILE), source)?;
        write_file(&path.join(SETTINGS_FILE), &resolved(spec, seed))?;
        let mut ranks = csv::Writer::from_writer(file(RANKS_FILE)?);
        ranks.write_record(std::iter::once("step").chain(adapters.iter().copied()))?;
        let folder = Self { path: path.to_owned(), metrics: file(METRICS_FILE)?, ranks, _lock: lock };
        folder.status(&Status::Running { step: 0 })?;
        Ok(folder)
    }

    /// Appends a line to `metrics.jsonl`.
    ///
    /// # Errors
    ///
    /// If it cannot be written.
    pub fn log(&mut self, record: &LogRecord) -> Result<()> {
        let line = serde_json::to_string(record)? + "\n";
        self.metrics
            .write_all(line.as_bytes())
            .with_context(|| self.path.join(METRICS_FILE).display().to_string())
    }

    /// Appends a row to `ranks.csv`.
    ///
    /// # Errors
    ///
    /// If it cannot be written.
    pub fn ranks(&mut self, step: usize, ranks: &[usize]) -> Result<()> {
        let row = std::iter::once(step).chain(ranks.iter().copied()).map(|number| number.to_string());
        self.ranks.write_record(row)?;
        self.ranks.flush().with_context(|| self.path.join(RANKS_FILE).display().to_string())
    }

    /// Replaces `status.json`.
    ///
    /// # Errors
    ///
    /// If it cannot be written.
    pub fn status(&self, status: &Status) -> Result<()> {
        self.write_json(STATUS_FILE, status)
    }

    /// Writes `result.json`.
    ///
    /// # Errors
    ///
    /// If it cannot be written.
    pub fn result(&self, result: &RunResult) -> Result<()> {
        self.write_json(RESULT_FILE, result)
    }

    /// Writes a JSON file of the run beside its place, and renames it.
    ///
    /// # Errors
    ///
    /// If it cannot be written.
    pub fn write_json(&self, name: &str, value: &impl Serialize) -> Result<()> {
        Ok(write_file(&self.path.join(name), &(serde_json::to_string_pretty(value)? + "\n"))?)
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }
}
