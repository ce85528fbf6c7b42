//! Runs as the tasks of a Slurm array: a list that is frozen when the script is written, the script, and one task of it.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use adalora_report::{create_folder, write_file};
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::grid::Named;
use crate::provenance::Program;

/// Folder of the lists in the folder of an experiment.
const FOLDER: &str = "slurm";
/// The list.
const LIST: &str = "runs.json";
/// The script.
const SCRIPT: &str = "array.sh";

/// What the tasks of an array do, whatever becomes of the experiment file while they wait.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frozen {
    /// Settings of the command line that replace the file's.
    pub overrides: Vec<String>,
    /// `cpu`, `cuda:0` and so on.
    pub device: String,
    /// The program that wrote the list; another one does not run it.
    pub program: Program,
    /// The runs, by the number of their task.
    pub runs: Vec<Named>,
}

/// What the queue is asked for.
#[derive(Debug, Clone)]
pub struct Request {
    /// Time limit of a task, as sbatch takes it.
    pub time: String,
    /// Tasks at a time; as many as the cluster gives where absent.
    pub at_once: Option<usize>,
    /// Seconds before the time limit at which a task is told to stop.
    pub ahead: u32,
    /// Cores of a task.
    pub cores: usize,
    /// More options of sbatch.
    pub options: Vec<String>,
}

impl Frozen {
    /// Writes list, experiment file and script into a new folder of the experiment's, and returns the script's path.
    ///
    /// # Errors
    ///
    /// If there is nothing to run, or the folder cannot be written or is a link.
    pub fn write(&self, experiment: &Path, source: &str, request: &Request) -> Result<PathBuf> {
        if self.runs.is_empty() {
            bail!("every run is finished already: there is nothing to submit");
        }
        let lists = experiment.join(FOLDER);
        create_folder(&lists)?;
        // Lists that are still in the queue keep their numbers.
        let taken = (1..).find(|number: &usize| !lists.join(number.to_string()).exists());
        let folder = lists.join(taken.expect("some number is free").to_string());
        fs::create_dir(&folder).with_context(|| folder.display().to_string())?;
        let folder = folder.canonicalize().with_context(|| folder.display().to_string())?;
        let file = experiment_file(&folder)?;
        let parent = file.parent().expect("it lies in a folder");
        fs::create_dir_all(parent).with_context(|| parent.display().to_string())?;
        write_file(&file, source)?;
        write_file(&folder.join(LIST), &(serde_json::to_string_pretty(self)? + "\n"))?;
        let script = folder.join(SCRIPT);
        write_file(&script, &self.script(&folder, request)?)?;
        Ok(script)
    }

    /// The list in a folder.
    ///
    /// # Errors
    ///
    /// If there is none, or it is malformed.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(LIST);
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        serde_json::from_str(&text).with_context(|| path.display().to_string())
    }

    fn script(&self, folder: &Path, request: &Request) -> Result<String> {
        let program = std::env::current_exe().context("the path of this program is unknown")?;
        let here = std::env::current_dir().context("the current folder cannot be read")?;
        let at_once = request.at_once.map_or_else(String::new, |most| format!("%{most}"));
        let last = self.runs.len() - 1;
        let mut text = String::from("#!/bin/bash\n");
        let mut option = |option: &str| {
            writeln!(text, "#SBATCH {option}").expect("a text can be written to");
        };
        option(&format!("--job-name=adalora-{}", experiment_name(folder)?.replace('/', "-")));
        option(&format!("--array=0-{last}{at_once}"));
        option(&format!("--time={}", request.time));
        option(&format!("--signal=B:USR1@{}", request.ahead));
        option("--requeue");
        option("--open-mode=append");
        option(&format!("--output={}/%a.log", folder.display()));
        option("--ntasks=1");
        option(&format!("--cpus-per-task={}", request.cores));
        request.options.iter().for_each(|own| option(own));
        // The program takes the shell's place, so that signals for the one reach the other.
        write!(
            text,
            "\ncd {} || exit 2\nexec {} task {} \"$SLURM_ARRAY_TASK_ID\"\n",
            quoted(&here),
            quoted(&program),
            quoted(folder),
        )?;
        Ok(text)
    }
}

/// The experiment file's copy in a folder with a list. Its path below `experiments` is the experiment's name.
///
/// # Errors
///
/// A folder that is not in an experiment's.
pub fn experiment_file(folder: &Path) -> Result<PathBuf> {
    Ok(folder.join("experiments").join(format!("{}.toml", experiment_name(folder)?)))
}

/// The path below `runs`.
fn experiment_name(folder: &Path) -> Result<String> {
    let experiment = folder.ancestors().nth(2).unwrap_or(folder);
    let parts: Vec<_> = experiment.iter().map(|part| part.to_string_lossy()).collect();
    let runs = parts.iter().rposition(|part| part == "runs").filter(|runs| runs + 1 < parts.len());
    let runs = runs.with_context(|| format!("{} is not in an experiment's folder", folder.display()))?;
    Ok(parts[runs + 1..].join("/"))
}

/// Every run in the lists of an experiment.
///
/// # Errors
///
/// A list that is malformed.
pub fn listed(experiment: &Path) -> Result<Vec<Named>> {
    let mut runs = Vec::new();
    for folder in fs::read_dir(experiment.join(FOLDER)).into_iter().flatten().flatten() {
        // One that is just being written has no list yet.
        if folder.path().join(LIST).is_file() {
            runs.extend(Frozen::read(&folder.path())?.runs);
        }
    }
    runs.sort();
    runs.dedup();
    Ok(runs)
}

/// Asks Slurm for another turn of the task that this process is, which its time limit has ended.
///
/// After SIGTERM nobody should: whether that was for a more urgent job or for good, Slurm knows.
///
/// # Errors
///
/// If this is no task of Slurm's, or it refuses.
pub fn requeue() -> Result<()> {
    let job = std::env::var("SLURM_JOB_ID").context("SLURM_JOB_ID names no job")?;
    let status = Command::new("scontrol").args(["requeue", &job]).status();
    let status = status.context("scontrol cannot be started")?;
    anyhow::ensure!(status.success(), "scontrol requeue {job} ended with {status}; submit the script again");
    Ok(())
}

/// A path as the shell reads it.
fn quoted(path: &Path) -> String {
    format!("'{}'", path.to_string_lossy().replace('\'', r"'\''"))
}
