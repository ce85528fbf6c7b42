//! The folder of one run: what it was asked, what it did, where it stands.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use adalora_report::{
    EXPERIMENT_FILE, EventFile, LogRecord, METRICS_FILE, OUTPUTS_FILE, RANKS_FILE, RESULT_FILE, RunResult,
    SETTINGS_FILE, STATUS_FILE, Status, write_file,
};
use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::checkpoint::{Checkpoints, Progress};
use crate::experiment::RunSpec;
use crate::provenance::{changed_setting, host};

/// The files of a run that grow.
const LOGS: [&str; 2] = [METRICS_FILE, RANKS_FILE];

/// Folder of the trained adapter in the run folder.
pub(crate) const ADAPTER: &str = "adapter";

/// `runs/EXPERIMENT/VARIANT/seed-N` with its logs open, for this process alone.
#[derive(Debug)]
pub struct RunFolder<'a> {
    claim: &'a Claim,
    metrics: File,
    ranks: csv::Writer<File>,
    /// What `metrics.jsonl` says, for TensorBoard.
    events: EventFile,
}

/// A run that no other process touches until this is dropped or the process dies.
#[derive(Debug)]
pub struct Claim {
    path: PathBuf,
    /// The system unlocks it, whatever the process dies of.
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
pub fn resolved(spec: &impl Serialize, seed: u64) -> String {
    #[derive(Serialize)]
    struct Resolved<'a, Spec> {
        seed: u64,
        #[serde(flatten)]
        spec: &'a Spec,
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
/// A finished run with other settings, which is never overwritten; checkpoints of a run with other settings, unless
/// `force` says to go on from them.
pub fn find(path: &Path, spec: &RunSpec, seed: u64, force: bool) -> Result<Found> {
    let status = match fs::read_to_string(path.join(STATUS_FILE)) {
        Ok(text) => {
            serde_json::from_str(&text).with_context(|| format!("{}/{STATUS_FILE}", path.display()))?
        }
        Err(_) => return Ok(Found::Open),
    };
    let finished = matches!(status, Status::Finished { .. });
    if !finished && (force || Checkpoints::of(path).highest().is_none()) {
        return Ok(Found::Open);
    }
    let settings = path.join(SETTINGS_FILE);
    let before = fs::read_to_string(&settings).with_context(|| settings.display().to_string())?;
    let Some((then, now)) = changed_setting(&before, &resolved(spec, seed)) else {
        return Ok(if finished { Found::Finished } else { Found::Open });
    };
    let (state, way_out) = if finished {
        ("is finished", "")
    } else {
        ("has checkpoints", ", or go on from them all the same with --force")
    };
    bail!(
        "{} {state}, with other settings: it had `{then}`, the experiment now has `{now}`. \
         Give the experiment another name, or move that folder away{way_out}",
        path.display(),
    );
}

/// The file whose lock is the claim to a run. It lies beside the run folder, which may be set aside.
fn lock_path(run: &Path) -> PathBuf {
    let name = run.file_name().expect("a run folder has a name").to_string_lossy();
    run.with_file_name(format!(".{name}.lock"))
}

/// A run writes into its own folder alone, which a link in the place of the folder or of a file in it would undo. What
/// lies above it may be one: `runs` on another disk.
fn refuse_links(path: &Path) -> Result<()> {
    let mut unseen = vec![path.to_owned()];
    while let Some(path) = unseen.pop() {
        let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
        ensure!(
            !metadata.is_symlink(),
            "{} is a link, and a run writes into its own folder alone: put the file or folder itself there",
            path.display()
        );
        if metadata.is_dir() {
            let entries = fs::read_dir(&path).with_context(|| path.display().to_string())?;
            unseen.extend(entries.flatten().map(|entry| entry.path()));
        }
    }
    Ok(())
}

/// Who has claimed a run: host and process. `None` if nobody has.
pub fn holder(run: &Path) -> Option<String> {
    let mut file = File::open(lock_path(run)).ok()?;
    let Err(TryLockError::WouldBlock) = file.try_lock_shared() else { return None };
    let mut text = String::new();
    file.read_to_string(&mut text).ok()?;
    Some(text.trim().to_owned())
}

/// How often and how long to wait for a claim: a process that was killed may still be dying, and one that only looks
/// holds a lock for a moment.
const PATIENCE: (usize, Duration) = (10, Duration::from_millis(100));

impl Claim {
    /// Claims a run for this process.
    ///
    /// # Errors
    ///
    /// If another process has it, which is named; if it or something in it is a link.
    pub fn of(path: &Path) -> Result<Self> {
        let parent = path.parent().expect("a run folder lies in its variant's");
        fs::create_dir_all(parent).with_context(|| parent.display().to_string())?;
        let lock_path = lock_path(path);
        refuse_links(&lock_path)?;
        let shown = || lock_path.display().to_string();
        let mut lock = File::options()
            .read(true)
            .write(true)
            .create(true)
            // What it says is of another process until the lock is ours.
            .truncate(false)
            .open(&lock_path)
            .with_context(shown)?;
        for attempt in 1.. {
            match lock.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) if attempt < PATIENCE.0 => std::thread::sleep(PATIENCE.1),
                Err(TryLockError::WouldBlock) => {
                    let by = fs::read_to_string(&lock_path).unwrap_or_default();
                    bail!("another process is running {}: {}", path.display(), by.trim());
                }
                Err(TryLockError::Error(error)) => return Err(error).with_context(shown),
            }
        }
        refuse_links(path)?;
        lock.set_len(0).with_context(shown)?;
        writeln!(lock, "process {} on {}", std::process::id(), host()).with_context(shown)?;
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    /// The run folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Lengths of `metrics.jsonl` and of `ranks.csv`, in bytes; 0 where there is none.
    pub fn log_bytes(&self) -> [u64; 2] {
        LOGS.map(|name| fs::metadata(self.path.join(name)).map_or(0, |metadata| metadata.len()))
    }

    /// Replaces `status.json`.
    ///
    /// # Errors
    ///
    /// If it cannot be written.
    pub fn status(&self, status: &Status) -> Result<()> {
        fs::create_dir_all(&self.path).with_context(|| self.path.display().to_string())?;
        self.write_json(STATUS_FILE, status)
    }

    /// Writes a JSON file of the run beside its place, and renames it.
    ///
    /// # Errors
    ///
    /// If it cannot be written.
    pub fn write_json(&self, name: &str, value: &impl Serialize) -> Result<()> {
        Ok(write_file(&self.path.join(name), &(serde_json::to_string_pretty(value)? + "\n"))?)
    }

    /// Writes down what is asked.
    fn write_settings(&self, settings: &str, source: &str) -> Result<()> {
        write_file(&self.path.join(EXPERIMENT_FILE), source)?;
        Ok(write_file(&self.path.join(SETTINGS_FILE), settings)?)
    }

    /// Opens a log to append to it, after its first `length` bytes.
    fn open_log(&self, name: &str, length: u64) -> Result<File> {
        let path = self.path.join(name);
        let open = || {
            let file = File::options().append(true).create(true).open(&path)?;
            file.set_len(length)?;
            Ok::<_, io::Error>(file)
        };
        open().with_context(|| path.display().to_string())
    }
}

/// The step that a run has come to, as its status says.
pub fn step(path: &Path) -> usize {
    read_status(path).as_ref().map_or(0, Status::step)
}

/// Writes the status of a run whose process died without a word. A run that another process holds by now, or that has
/// finished, keeps its own.
pub fn mark_died(path: &Path, status: &Status) {
    if let Ok(claim) = Claim::of(path)
        && !matches!(read_status(path), Some(Status::Finished { .. }))
    {
        let _ = claim.status(status);
    }
}

fn read_status(path: &Path) -> Option<Status> {
    serde_json::from_str(&fs::read_to_string(path.join(STATUS_FILE)).ok()?).ok()
}

impl<'a> RunFolder<'a> {
    /// Makes the folder and writes down what is asked. What an unfinished run has left there is set aside under
    /// another name, not deleted, if it had come far enough to leave a record or a checkpoint.
    ///
    /// # Errors
    ///
    /// If the folder cannot be written.
    pub fn create(claim: &'a Claim, settings: &str, source: &str, adapters: &[&str]) -> Result<Self> {
        let path = claim.path();
        if claim.log_bytes()[0] > 0 || Checkpoints::of(path).highest().is_some() {
            let name = path.file_name().expect("a run folder has a name").to_string_lossy();
            let numbered = |n: usize| path.with_file_name(format!("{name}.unfinished-{n}"));
            let aside = (1..).map(numbered).find(|aside| !aside.exists()).expect("some number is free");
            fs::rename(path, &aside).with_context(|| path.display().to_string())?;
        }
        claim.status(&Status::Running { step: 0 })?;
        claim.write_settings(settings, source)?;
        let mut folder = Self::open(claim, [0, 0], 0.0)?;
        folder.ranks.write_record(std::iter::once("step").chain(adapters.iter().copied()))?;
        Ok(folder)
    }

    /// Goes on where a checkpoint was written: logs are cut to the lengths that they had then, and the event file is
    /// derived from them anew.
    ///
    /// # Errors
    ///
    /// If the folder cannot be written.
    pub fn resume(claim: &'a Claim, settings: &str, source: &str, progress: &Progress) -> Result<Self> {
        claim.status(&Status::Running { step: progress.step })?;
        claim.write_settings(settings, source)?;
        Self::open(claim, progress.log_bytes, progress.seconds)
    }

    /// `seconds` is how long the run has trained already.
    fn open(claim: &'a Claim, [metrics, ranks]: [u64; 2], seconds: f64) -> Result<Self> {
        let ranks = csv::Writer::from_writer(claim.open_log(RANKS_FILE, ranks)?);
        let metrics = claim.open_log(METRICS_FILE, metrics)?;
        let records = LogRecord::read(&claim.path.join(METRICS_FILE))?;
        let trained = Duration::try_from_secs_f64(seconds).unwrap_or_default();
        let start = SystemTime::now().checked_sub(trained).unwrap_or(SystemTime::UNIX_EPOCH);
        let events = EventFile::create(&claim.path, start, &records)?;
        Ok(Self { claim, metrics, ranks, events })
    }

    /// Brings the logs to the disk; their lengths then.
    ///
    /// # Errors
    ///
    /// If they cannot be written.
    pub fn sync(&mut self) -> Result<[u64; 2]> {
        self.ranks.flush()?;
        for (file, name) in [(&self.metrics, METRICS_FILE), (self.ranks.get_ref(), RANKS_FILE)] {
            file.sync_data().with_context(|| self.claim.path.join(name).display().to_string())?;
        }
        Ok(self.claim.log_bytes())
    }

    /// Appends a line to `metrics.jsonl`, and what it says to the event file.
    ///
    /// # Errors
    ///
    /// If it cannot be written.
    pub fn log(&mut self, record: &LogRecord) -> Result<()> {
        let line = serde_json::to_string(record)? + "\n";
        self.metrics
            .write_all(line.as_bytes())
            .with_context(|| self.claim.path.join(METRICS_FILE).display().to_string())?;
        Ok(self.events.append(record)?)
    }

    /// Replaces what a model said in words at the last evaluation, an object a line. Nothing is written where it has
    /// none.
    ///
    /// # Errors
    ///
    /// If it cannot be written.
    pub fn outputs(&self, outputs: &[serde_json::Value]) -> Result<()> {
        if outputs.is_empty() {
            return Ok(());
        }
        let lines: String = outputs.iter().map(|own| format!("{own}\n")).collect();
        Ok(write_file(&self.claim.path.join(OUTPUTS_FILE), &lines)?)
    }

    /// Appends a row to `ranks.csv`.
    ///
    /// # Errors
    ///
    /// If it cannot be written.
    pub fn ranks(&mut self, step: usize, ranks: &[usize]) -> Result<()> {
        let row = std::iter::once(step).chain(ranks.iter().copied()).map(|number| number.to_string());
        self.ranks.write_record(row)?;
        self.ranks.flush().with_context(|| self.claim.path.join(RANKS_FILE).display().to_string())
    }

    /// Writes `result.json`, and brings it and the adapter to the disk: a run that says it has finished has both, even
    /// if the machine loses its power.
    ///
    /// # Errors
    ///
    /// If it cannot be written.
    pub fn result(&self, result: &RunResult) -> Result<()> {
        self.claim.write_json(RESULT_FILE, result)?;
        let path = self.claim.path();
        let adapter = fs::read_dir(path.join(ADAPTER)).with_context(|| path.display().to_string())?;
        let files = adapter.flatten().map(|entry| entry.path()).chain([path.join(RESULT_FILE)]);
        for file in files {
            let synced = File::open(&file).and_then(|file| file.sync_all());
            synced.with_context(|| file.display().to_string())?;
        }
        Ok(())
    }

    /// Where the trained adapter belongs.
    pub fn adapter(&self) -> PathBuf {
        self.claim.path().join(ADAPTER)
    }
}
