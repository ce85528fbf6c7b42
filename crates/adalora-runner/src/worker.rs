//! One run in this process, reported line by line to whoever started it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use adalora::BudgetUnit;
use adalora_models::{Checkpoint, Settled};
use adalora_report::{
    DevRecord, LogRecord, Parameters, Planted, RunResult, Status, StepScores, TrainRecord, Triplets,
    WarmStart,
};
use adalora_tasks::{Catalogue, Dataset, FileHash};
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tch::Device;

use crate::experiment::{ModelSpec, RunSpec, TaskSpec};
use crate::plan::{DataSize, Plan};
use crate::planted;
use crate::run_folder::{RunFolder, identity, resolved};
use crate::trainer::Trainer;

/// Which run.
#[derive(Debug, Clone)]
pub struct Job {
    /// The experiment's name.
    pub experiment: String,
    /// The variant's name.
    pub variant: String,
    /// Its settings.
    pub spec: RunSpec,
    /// The seed.
    pub seed: u64,
    /// `cpu`, `cuda:0` and so on.
    pub device: String,
    /// The run folder.
    pub folder: PathBuf,
    /// The experiment file's text, kept beside the results.
    pub source: String,
}

/// A line of a worker's standard output.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum Event {
    /// The data is read and training begins.
    Started {
        /// Optimizer steps of the run.
        total: usize,
        /// What a user should know, such as parameters that the checkpoint lacks.
        notes: Vec<String>,
    },
    /// A record of training.
    Trained(TrainRecord),
    /// An evaluation.
    Evaluated(DevRecord),
    /// The end.
    Ended(Status),
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// At its last step.
    Finished,
    /// By Ctrl-C or SIGTERM.
    Interrupted,
}

#[derive(Serialize)]
struct Provenance<'a> {
    adalora: &'static str,
    identity: String,
    device: &'a str,
    threads: usize,
    /// The dtype of the frozen encoder, which `precision = "auto"` leaves to the machine.
    precision: Settled,
    files: Vec<FileHash>,
    #[serde(skip_serializing_if = "Option::is_none")]
    warm_start: Option<&'a WarmStart>,
    drawn: &'a [String],
}

/// Runs a job from its first step to its last. If nobody listens any more to what it tells, it ends as if interrupted.
///
/// # Errors
///
/// What stopped it, which is in the folder's `status.json` as well.
pub fn run(
    job: &Job,
    catalogue: &Catalogue,
    device: Device,
    mut tell: impl FnMut(&Event) -> io::Result<()>,
) -> Result<Outcome> {
    let threads = job.spec.train.threads;
    tch::set_num_threads(threads as i32);
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().ok();
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&stop))?;
    }

    let (checkpoint, dataset, plan) = load(&job.spec, catalogue)?;
    let mut trainer = Trainer::new(&job.spec, &plan, &dataset, &checkpoint, job.seed, device)?;
    let paths: Vec<_> = plan.layout.sites().iter().map(|site| site.path.as_str()).collect();
    let mut folder = RunFolder::create(&job.folder, &job.spec, job.seed, &job.source, &paths)?;
    folder.write_json(
        "provenance.json",
        &Provenance {
            adalora: env!("CARGO_PKG_VERSION"),
            identity: identity(&resolved(&job.spec, job.seed)),
            device: &job.device,
            threads,
            precision: trainer.precision(),
            files: hashes(&job.spec, &plan, &dataset)?,
            warm_start: plan.warm_start.as_ref().map(|source| &source.record),
            drawn: trainer.drawn(),
        },
    )?;
    // Whoever does not hear this does not hear the next either, and that one ends the run.
    let _ = tell(&Event::Started { total: plan.total_steps, notes: notes(&dataset, trainer.drawn()) });

    let trained = train(job, &plan, &dataset, &mut trainer, &mut folder, &stop, &mut tell);
    let step = trainer.finished();
    let status = match &trained {
        Ok(Outcome::Finished) => Status::Finished { step },
        Ok(Outcome::Interrupted) => Status::Interrupted { step },
        Err(error) => Status::Failed { step, reason: in_one_line(error) },
    };
    folder.status(&status)?;
    let _ = tell(&Event::Ended(status));
    trained
}

/// Checkpoint, data and plan of a run.
///
/// # Errors
///
/// What is missing or malformed.
pub fn load(spec: &RunSpec, catalogue: &Catalogue) -> Result<(Checkpoint, Dataset, Plan)> {
    let plan = |data: &DataSize| {
        Plan::new(spec, catalogue, data).map_err(|problems| anyhow::anyhow!(problems[0].message.clone()))
    };
    match (&spec.model, &spec.task) {
        (ModelSpec::Pretrained(model), TaskSpec::Text(text)) => {
            let folder =
                crate::plan::checkpoint_folder(&model.checkpoint, catalogue).map_err(anyhow::Error::msg)?;
            let dataset = Dataset::load(catalogue, text, &folder)?;
            let plan = plan(&DataSize::of(&dataset))?;
            Ok((Checkpoint::open(&folder)?, dataset, plan))
        }
        (ModelSpec::Random(encoder), TaskSpec::Planted(task)) => {
            let plan = plan(&DataSize { train_rows: task.train_rows, outputs: task.outputs })?;
            let encoder = Checkpoint::random(plan.config.clone(), task.outputs, encoder.seed);
            let (checkpoint, dataset) = planted::task(encoder, &plan.planted, task);
            Ok((checkpoint, dataset, plan))
        }
        _ => anyhow::bail!("a planted task needs a random model, and text a pretrained one"),
    }
}

fn train(
    job: &Job,
    plan: &Plan,
    dataset: &Dataset,
    trainer: &mut Trainer,
    folder: &mut RunFolder,
    stop: &AtomicBool,
    tell: &mut impl FnMut(&Event) -> io::Result<()>,
) -> Result<Outcome> {
    let start = Instant::now();
    let seconds = || start.elapsed().as_secs_f64();
    let mut best: Option<StepScores> = None;
    let mut last = None;
    let headline = &dataset.score_names()[0];
    while trainer.finished() < plan.total_steps {
        if stop.load(Ordering::Relaxed) {
            return Ok(Outcome::Interrupted);
        }
        trainer.step()?;
        let step = trainer.finished();
        let end = step == plan.total_steps;
        if end || step.is_multiple_of(job.spec.train.record_every) {
            let record = trainer.record(seconds())?;
            folder.log(&LogRecord::Train(record.clone()))?;
            folder.ranks(step, &trainer.ranks()?)?;
            folder.status(&Status::Running { step })?;
            if tell(&Event::Trained(record)).is_err() {
                return Ok(Outcome::Interrupted);
            }
        }
        if end || step.is_multiple_of(job.spec.train.evaluate_every) {
            let record = trainer.evaluate(seconds());
            folder.log(&LogRecord::Dev(record.clone()))?;
            let scores = StepScores { step, scores: record.scores.clone() };
            // Only a model that is on its budget can be the best one. A score that is not a number, as of constant
            // predictions, is below every other.
            let on_budget = plan.schedule.as_ref().is_none_or(|schedule| step > schedule.last_allocation());
            let of = |scores: &StepScores| Some(scores.scores[headline]).filter(|score| !score.is_nan());
            if on_budget && best.as_ref().is_none_or(|best| of(&scores) > of(best)) {
                best = Some(scores.clone());
            }
            last = Some(scores);
            if tell(&Event::Evaluated(record)).is_err() {
                return Ok(Outcome::Interrupted);
            }
        }
    }
    trainer.check_budget()?;
    save_adapter(job, plan, trainer, folder)?;
    let last = last.expect("a run has a step, and ends with an evaluation");
    let ranks = trainer.ranks()?;
    let of_planted = |site: &adalora::Site| plan.planted.contains(&site.path);
    let planted = match &job.spec.task {
        // Without a budget nothing was chosen, so that nothing can have been found.
        TaskSpec::Planted(task) if plan.schedule.is_some() => {
            let sites = plan.layout.sites().iter().zip(&ranks);
            // A layer that got more than was planted there has not found more.
            let recovered =
                sites.filter(|(site, _)| of_planted(site)).map(|(_, &rank)| rank.min(task.rank)).sum();
            Some(Planted { recovered, planted: plan.planted.len() * task.rank })
        }
        _ => None,
    };
    let costs = plan.layout.triplet_costs();
    folder.result(&RunResult {
        experiment: job.experiment.clone(),
        variant: job.variant.clone(),
        seed: job.seed,
        task: dataset.name.clone(),
        steps: plan.total_steps,
        evaluation: dataset.score_names(),
        best: best.unwrap_or_else(|| last.clone()),
        last,
        parameters: Parameters {
            adapter_peak: plan.parameters().adapter_peak,
            adapter_final: ranks.iter().zip(costs).map(|(rank, cost)| rank * cost).sum(),
            head: plan.parameters().head,
            adapter_budget: plan.target_in(BudgetUnit::Parameters),
        },
        triplets: plan.schedule.as_ref().map(|_| Triplets {
            initial: plan.layout.triplet_count(),
            budget: plan.target_in(BudgetUnit::Triplets),
            live: ranks.iter().sum(),
        }),
        warm_start: plan.warm_start.as_ref().map(|source| source.record.clone()),
        wall_seconds: seconds(),
        peak_rss_bytes: peak_rss()?,
        planted,
    })?;
    Ok(Outcome::Finished)
}

fn save_adapter(job: &Job, plan: &Plan, trainer: &mut Trainer, folder: &RunFolder) -> Result<()> {
    let (arena, pattern) = trainer.adapter()?;
    let highest = plan.layout.ranks().into_iter().max().unwrap_or(0).max(1);
    let base_model = match &job.spec.model {
        ModelSpec::Pretrained(model) => model.checkpoint.clone(),
        ModelSpec::Random(_) => "random".into(),
    };
    let description = adalora_adapter::store::Description {
        base_model,
        prefix: plan.config.prefix().into(),
        target_modules: plan.layout.sites().iter().map(|site| site.path.clone()).collect(),
        modules_to_save: vec!["classifier".into(), "pooler".into()],
        init_r: highest,
        target_r: match &job.spec.budget {
            Some(_) => pattern.live_count().div_ceil(plan.layout.adapters()),
            None => highest,
        },
        alpha: job.spec.adapter.alpha(),
        scales: job.spec.adapter.scales(&plan.layout.ranks(), &pattern.ranks()),
        total_steps: plan.total_steps,
    };
    let live: Vec<_> = pattern.by_adapter().collect();
    Ok(adalora_adapter::store::save(&folder.path().join("adapter"), &arena, &live, &description)?)
}

fn notes(dataset: &Dataset, drawn: &[String]) -> Vec<String> {
    let mut notes = Vec::new();
    if !drawn.is_empty() {
        notes.push(format!("drawn, as the checkpoint lacks them: {}", drawn.join(", ")));
    }
    if dataset.truncated > 0 {
        notes.push(format!(
            "{} examples are longer than task.text.max_length and were truncated",
            dataset.truncated
        ));
    }
    notes
}

/// An error with its causes, each said once: many name their cause themselves.
pub fn in_one_line(error: &anyhow::Error) -> String {
    error.chain().skip(1).map(ToString::to_string).fold(error.to_string(), |text, cause| {
        if text.contains(&cause) { text } else { format!("{text}: {cause}") }
    })
}

/// Hashes of everything that was read.
fn hashes(spec: &RunSpec, plan: &Plan, dataset: &Dataset) -> Result<Vec<FileHash>> {
    let mut files = dataset.files.clone();
    if let Some(file) = spec.adapter.ranks() {
        files.push(hash(Path::new(file))?);
    }
    if let Some(checkpoint) = &plan.checkpoint {
        for path in [checkpoint.join("config.json"), adalora_models::tensors_file(checkpoint)?] {
            files.push(hash(&path)?);
        }
    }
    Ok(files)
}

fn hash(path: &Path) -> Result<FileHash> {
    let bytes = std::fs::read(path).with_context(|| path.display().to_string())?;
    let sha256 = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(FileHash { file: path.display().to_string(), sha256 })
}

/// Largest resident memory of this process so far, in bytes.
fn peak_rss() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status").context("/proc/self/status")?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .context("no VmHWM in /proc/self/status")?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().context("VmHWM")?;
    Ok(kib * 1024)
}
