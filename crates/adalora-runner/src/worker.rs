//! One run in this process, reported line by line to whoever started it.

use std::cell::Cell;
use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use adalora::BudgetUnit;
use adalora_adapter::store::{Description, Tuned, save, save_tuned};
use adalora_models::{Checkpoint, Precision, Purpose, Tuning};
use adalora_report::{
    DevRecord, LogRecord, Parameters, Planted, RunResult, Status, StepScores, TrainRecord, Triplets,
};
use adalora_tasks::{Catalogue, Dataset};
use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};
use tch::Device;

use crate::checkpoint::{Checkpoints, Progress, Saved};
use crate::experiment::{ModelSpec, RunSpec, TaskSpec};
use crate::plan::{DataSize, Plan, checkpoint_folder, dataset};
use crate::planted;
use crate::provenance::{self, Attempt, Origin, Program, Provenance};
use crate::run_folder::{Claim, Found, RunFolder, find, identity, resolved};
use crate::stop::Stop;
use crate::trainer::{TrainError, Trainer};

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
    /// Whether to go on from a checkpoint although something has changed since.
    pub force: bool,
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
    /// Because it was asked to stop; it can go on.
    Stopped,
}

/// A run that was begun under other circumstances than those of today.
#[derive(Debug, thiserror::Error)]
#[error(
    "{} cannot go on from step {step}: {}. Undo that, move the folder away to start anew, or go on all the same with \
     --force, which provenance.json will tell",
    path.display(), changes.join("; ")
)]
struct Changed {
    path: PathBuf,
    step: usize,
    changes: Vec<String>,
}

/// Runs a job from its first step to its last, or on from its newest checkpoint. If nobody listens any more to what it
/// tells, it ends as if it had been asked to stop.
///
/// # Errors
///
/// What stopped it, which is in the folder's `status.json` as well.
pub fn run(
    job: &Job,
    catalogue: &Catalogue,
    device: Device,
    stop: &Stop,
    mut tell: impl FnMut(&Event) -> io::Result<()>,
) -> Result<Outcome> {
    let threads = job.spec.train.threads;
    tch::set_num_threads(threads as i32);
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().ok();
    // A file that grows beyond its limit is then an error that can be told, like a full disk.
    signal_hook::flag::register(signal_hook::consts::SIGXFSZ, Arc::default())?;

    let claim = Claim::of(&job.folder)?;
    if find(&job.folder, &job.spec, job.seed, job.force)? == Found::Finished {
        bail!("{} is finished already", job.folder.display());
    }
    let finished = Cell::new(0);
    let ran = guarded(|| go(job, catalogue, device, &claim, &finished, stop, &mut tell));
    let step = finished.get();
    if ran.as_ref().is_err_and(|error| error.is::<Changed>()) {
        return ran;
    }
    let status = match &ran {
        Ok(Outcome::Finished) => Status::Finished { step },
        Ok(Outcome::Stopped) => Status::Interrupted { step },
        Err(error) => {
            let diverged = matches!(error.downcast_ref(), Some(TrainError::Diverged { .. }));
            Status::Failed { step, reason: in_one_line(error), diverged }
        }
    };
    // What ended the run matters more than that a full disk has no room to say so.
    let written = claim.status(&status);
    let _ = tell(&Event::Ended(status));
    let outcome = ran?;
    written?;
    Ok(outcome)
}

/// What `work` returns, or the panic that it ended with as an error. libtorch's own errors come as panics.
fn guarded<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    let place = Arc::new(Mutex::new(String::new()));
    let noted = Arc::clone(&place);
    let before = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        if let (Some(location), Ok(mut place)) = (info.location(), noted.lock()) {
            *place = location.to_string();
        }
        before(info);
    }));
    let result = panic::catch_unwind(AssertUnwindSafe(work));
    let _ = panic::take_hook();
    result.unwrap_or_else(|payload| {
        let text = payload.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("no message");
        let place = place.lock().map_or_else(|_| String::new(), |place| place.clone());
        Err(anyhow::anyhow!(of_panic(text, &place)))
    })
}

/// A panic in a line. The text of libtorch's errors goes on with a list of addresses.
fn of_panic(text: &str, place: &str) -> String {
    // Of an error that was unwrapped the line ends are written out.
    let line =
        |text: &str| text.split("\\n").next().and_then(|text| text.lines().next()).unwrap_or("").to_owned();
    let memory = ["DefaultCPUAllocator: ", "CUDA out of memory"].iter().find_map(|start| text.find(start));
    match memory {
        Some(at) => format!(
            "out of memory: {}; a smaller train.batch_size, made up for by train.accumulate, needs less",
            line(&text[at..])
        ),
        None => format!("panicked at {place}: {}", line(text)),
    }
}

/// A run in its claimed folder. `finished` is kept at the number of finished steps.
fn go(
    job: &Job,
    catalogue: &Catalogue,
    device: Device,
    claim: &Claim,
    finished: &Cell<usize>,
    stop: &Stop,
    tell: &mut impl FnMut(&Event) -> io::Result<()>,
) -> Result<Outcome> {
    let checkpoints = Checkpoints::of(claim.path());
    let (saved, mut notes) = checkpoints.newest(claim.log_bytes());
    finished.set(saved.as_ref().map_or(0, |saved| saved.progress.step));
    let (checkpoint, dataset, plan) = load(&job.spec, catalogue)?;
    let mut spec = job.spec.clone();
    if let (Precision::Auto, Some(saved)) = (spec.train.precision, &saved) {
        // It was settled by the clock, once for the whole run.
        spec.train.precision = saved.progress.origin.precision.into();
    }
    let mut trainer = Trainer::new(&spec, &plan, &dataset, &checkpoint, job.seed, device)?;
    notes.extend(dataset_notes(&dataset, trainer.drawn()));
    let origin = Origin {
        settings: resolved(&job.spec, job.seed),
        program: Program::own(),
        device: if device.is_cuda() { "cuda" } else { "cpu" }.into(),
        precision: trainer.precision(),
        files: provenance::hashes(&job.spec, &plan, &dataset)?,
    };
    let settings = origin.settings.clone();
    let (folder, progress) = if let Some(Saved { progress, state }) = saved {
        let changes = progress.origin.changes(&origin);
        if !job.force && !changes.is_empty() {
            return Err(Changed { path: job.folder.clone(), step: progress.step, changes }.into());
        }
        trainer.restore(state)?;
        notes.push(format!("goes on from step {}", progress.step));
        let folder = RunFolder::resume(claim, &settings, &job.source, &progress)?;
        (folder, progress.resumed(origin, Attempt::new(trainer.finished(), &job.device, changes)))
    } else {
        let paths: Vec<_> = plan.layout.sites().iter().map(|site| site.path.as_str()).collect();
        let folder = RunFolder::create(claim, &settings, &job.source, &paths)?;
        (folder, Progress::new(origin, Attempt::new(0, &job.device, Vec::new())))
    };
    let (start, before) = (Instant::now(), progress.seconds);
    let mut journal = Journal { claim, folder, checkpoints, progress, finished, start, before };
    journal.provenance(trainer.drawn())?;
    // Whoever does not hear this does not hear the next either, and that one ends the run.
    let _ = tell(&Event::Started { total: plan.total_steps, notes });
    let outcome = train(job, &plan, &dataset, &mut trainer, &mut journal, stop, tell)?;
    journal.provenance(trainer.drawn())?;
    Ok(outcome)
}

/// What a run leaves behind on its way.
struct Journal<'a> {
    claim: &'a Claim,
    folder: RunFolder<'a>,
    checkpoints: Checkpoints,
    /// As the next checkpoint will have it, but for what is measured when it is written.
    progress: Progress,
    finished: &'a Cell<usize>,
    /// When this process began to train.
    start: Instant,
    /// Seconds of training before that.
    before: f64,
}

impl Journal<'_> {
    /// Wall time of training.
    fn seconds(&self) -> f64 {
        self.before + self.start.elapsed().as_secs_f64()
    }

    fn measure(&mut self) -> Result<()> {
        self.progress.seconds = self.seconds();
        self.progress.peak_rss_bytes = self.progress.peak_rss_bytes.max(provenance::peak_rss()?);
        Ok(())
    }

    fn checkpoint(&mut self, trainer: &mut Trainer) -> Result<()> {
        let state = trainer.state()?;
        self.measure()?;
        self.progress.step = state.step;
        self.progress.log_bytes = self.folder.sync()?;
        Ok(self.checkpoints.write(&self.progress, &state)?)
    }

    fn provenance(&mut self, drawn: &[String]) -> Result<()> {
        self.measure()?;
        let Progress { origin, attempts, seconds, peak_rss_bytes, .. } = &self.progress;
        let provenance = Provenance {
            identity: identity(&origin.settings),
            program: &origin.program,
            tch: provenance::TCH,
            libtorch: provenance::libtorch(),
            threads: rayon::current_num_threads(),
            precision: origin.precision,
            files: &origin.files,
            drawn,
            attempts,
            wall_seconds: *seconds,
            peak_rss_bytes: *peak_rss_bytes,
        };
        self.claim.write_json("provenance.json", &provenance)
    }
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
        (ModelSpec::Random(encoder), TaskSpec::Planted(task)) => {
            let purpose = Purpose::Classify { outputs: task.outputs };
            let plan = plan(&DataSize { train_rows: task.train_rows, purpose })?;
            let encoder = Checkpoint::random(plan.config.clone(), task.outputs, encoder.seed);
            let (checkpoint, dataset) = planted::task(encoder, &plan.planted, task);
            Ok((checkpoint, dataset, plan))
        }
        (ModelSpec::Pretrained(_), TaskSpec::Planted(_)) | (ModelSpec::Random(_), _) => {
            anyhow::bail!("a planted task needs a random model, and every other a pretrained one")
        }
        (ModelSpec::Pretrained(model), task) => {
            let folder = checkpoint_folder(&model.checkpoint, catalogue).map_err(anyhow::Error::msg)?;
            let dataset = dataset(task, catalogue, &folder)?;
            let plan = plan(&DataSize::of(&dataset))?;
            Ok((Checkpoint::open(&folder)?, dataset, plan))
        }
    }
}

fn train(
    job: &Job,
    plan: &Plan,
    dataset: &Dataset,
    trainer: &mut Trainer,
    journal: &mut Journal,
    stop: &Stop,
    tell: &mut impl FnMut(&Event) -> io::Result<()>,
) -> Result<Outcome> {
    let headline = &dataset.score_names()[0];
    let every = job.spec.train.checkpoint_every.unwrap_or(job.spec.train.evaluate_every);
    while trainer.finished() < plan.total_steps {
        if stop.is_asked() {
            if trainer.finished() > journal.progress.step {
                journal.checkpoint(trainer)?;
            }
            return Ok(Outcome::Stopped);
        }
        trainer.step()?;
        let step = trainer.finished();
        journal.finished.set(step);
        let end = step == plan.total_steps;
        let mut is_best = false;
        if end || step.is_multiple_of(job.spec.train.record_every) {
            let record = trainer.record(journal.seconds())?;
            journal.folder.log(&LogRecord::Train(record.clone()))?;
            journal.folder.ranks(step, &trainer.ranks()?)?;
            journal.claim.status(&Status::Running { step })?;
            if tell(&Event::Trained(record)).is_err() {
                stop.ask();
            }
        }
        if end || step.is_multiple_of(job.spec.train.evaluate_every) {
            let (record, outputs) = trainer.evaluate(journal.seconds())?;
            journal.folder.outputs(&outputs)?;
            journal.folder.log(&LogRecord::Dev(record.clone()))?;
            let scores = StepScores { step, scores: record.scores.clone() };
            // Only a model that is on its budget can be the best one. A score that is not a number, as of constant
            // predictions, is below every other.
            let on_budget = plan.schedule.as_ref().is_none_or(|schedule| step > schedule.last_allocation());
            let of = |scores: &StepScores| Some(scores.scores[headline]).filter(|score| !score.is_nan());
            let best = &mut journal.progress.best;
            is_best = on_budget && best.as_ref().is_none_or(|best| of(&scores) > of(best));
            if is_best {
                *best = Some(scores.clone());
            }
            journal.progress.last = Some(scores);
            if tell(&Event::Evaluated(record)).is_err() {
                stop.ask();
            }
        }
        if is_best || step.is_multiple_of(every) {
            journal.checkpoint(trainer)?;
        }
    }
    trainer.check_budget()?;
    save_adapter(job, plan, trainer, &journal.folder.adapter())?;
    journal.measure()?;
    let Progress { last, best, seconds, peak_rss_bytes, .. } = journal.progress.clone();
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
    journal.folder.result(&RunResult {
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
            adapter_final: plan.tuned
                + ranks.iter().zip(costs).map(|(rank, cost)| rank * cost).sum::<usize>(),
            head: plan.parameters().head,
            adapter_budget: plan.target_in(BudgetUnit::Parameters),
        },
        triplets: plan.schedule.as_ref().map(|_| Triplets {
            initial: plan.layout.triplet_count(),
            budget: plan.target_in(BudgetUnit::Triplets),
            live: ranks.iter().sum(),
        }),
        warm_start: plan.warm_start.as_ref().map(|source| source.record.clone()),
        wall_seconds: seconds,
        peak_rss_bytes,
        planted,
    })?;
    Ok(Outcome::Finished)
}

fn save_adapter(job: &Job, plan: &Plan, trainer: &mut Trainer, folder: &Path) -> Result<()> {
    let highest = plan.layout.ranks().into_iter().max().unwrap_or(0).max(1);
    let base_model = match &job.spec.model {
        ModelSpec::Pretrained(model) => model.checkpoint.clone(),
        ModelSpec::Random(_) => "random".into(),
    };
    let (arena, pattern) = trainer.adapter()?;
    if job.spec.adapter.form().is_none() {
        let width = match job.spec.adapter.tuning() {
            Tuning::Bottlenecks(_, width) => Some(width),
            _ => None,
        };
        let method = job.spec.adapter.name().to_owned();
        return Ok(save_tuned(
            folder,
            &arena,
            &Tuned { method, base_model_name_or_path: base_model, width },
        )?);
    }
    let description = Description {
        base_model,
        prefix: plan.config.prefix().into(),
        target_modules: plan.layout.sites().iter().map(|site| site.path.clone()).collect(),
        task_type: plan.purpose.task_type(),
        modules_to_save: plan.purpose.modules().iter().map(ToString::to_string).collect(),
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
    Ok(save(folder, &arena, &live, &description)?)
}

fn dataset_notes(dataset: &Dataset, drawn: &[String]) -> Vec<String> {
    let mut notes = Vec::new();
    if !drawn.is_empty() {
        notes.push(format!("drawn, as the checkpoint lacks them: {}", drawn.join(", ")));
    }
    notes.extend_from_slice(&dataset.notes);
    notes
}

/// An error with its causes, each said once: many name their cause themselves.
pub fn in_one_line(error: &anyhow::Error) -> String {
    error.chain().skip(1).map(ToString::to_string).fold(error.to_string(), |text, cause| {
        if text.contains(&cause) { text } else { format!("{text}: {cause}") }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_an_error_that_names_its_place() {
        let error = guarded::<()>(|| panic!("seven is not {}", 8)).unwrap_err().to_string();
        assert!(error.starts_with("panicked at ") && error.ends_with(": seven is not 8"), "{error}");
        assert!(error.contains("worker.rs:"), "{error}");
        assert_eq!(guarded(|| Ok(1)).unwrap(), 1);
    }

    #[test]
    fn libtorch_without_memory_says_so_in_a_line() {
        let huge = || Ok(tch::Tensor::zeros([1 << 50], (tch::Kind::Float, Device::Cpu)));
        let error = guarded(huge).unwrap_err().to_string();
        assert!(error.starts_with("out of memory: DefaultCPUAllocator: "), "{error}");
        assert!(
            error.ends_with("made up for by train.accumulate, needs less") && !error.contains('\n'),
            "{error}"
        );
    }
}
