//! What a run will do, worked out from its settings before anything is trained.

use std::path::{Path, PathBuf};

use adalora::{BudgetSchedule, BudgetUnit, Form, Layout, Site};
use adalora_adapter::target;
use adalora_models::{LinearShape, ModelConfig, Purpose, Tuning};
use adalora_tasks::{Catalogue, Dataset, Target, TaskError};

use crate::experiment::{ModelSpec, Problem, RunSpec, TaskSpec};
use crate::pattern_file::PatternFile;
use crate::planted;
use crate::warm_start::Source;

/// Sizes and steps of one run.
#[derive(Debug)]
pub struct Plan {
    /// Configuration of the model.
    pub config: ModelConfig,
    /// The checkpoint's folder; `None` for a random encoder.
    pub checkpoint: Option<PathBuf>,
    /// Places of the adapted layers among the model's linear layers.
    pub places: Vec<usize>,
    /// The adapted layers.
    pub layout: Layout,
    /// Parameters trained in the encoder itself, or put into it, beside increments.
    pub tuned: usize,
    /// Training examples.
    pub train_rows: usize,
    /// What the model is to say.
    pub purpose: Purpose,
    /// Optimizer steps of an epoch; a last, smaller one counts.
    pub steps_per_epoch: usize,
    /// Optimizer steps of the run.
    pub total_steps: usize,
    /// How the budget shrinks, if it does.
    pub schedule: Option<BudgetSchedule>,
    /// What adapters start from, if not from nothing.
    pub warm_start: Option<Source>,
    /// Paths of the layers in which the teacher of a planted task differs.
    pub planted: Vec<String>,
}

/// Trainable parameters of a run, by one rule for all methods: the head's apart, everything else is the adapter's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParameterCounts {
    /// Of the adapters at the start, or of what else is trained but the head.
    pub adapter_peak: usize,
    /// Of the live triplets at the end, if every adapter kept the same rank: which ones are kept decides, since a
    /// triplet of a wider layer has more parameters. The budget itself where it counts parameters.
    pub adapter_final_if_uniform: usize,
    /// Of pooler and classifier, or of the head that points at answers.
    pub head: usize,
}

impl Plan {
    /// Works a run out.
    ///
    /// # Errors
    ///
    /// Every rule that is broken.
    pub fn new(spec: &RunSpec, catalogue: &Catalogue, data: &DataSize) -> Result<Self, Vec<Problem>> {
        let problem = |key: &str, message: String| Problem { variant: None, key: key.into(), message };
        let (config, checkpoint) = match &spec.model {
            ModelSpec::Pretrained(pretrained) => {
                let folder = checkpoint_folder(&pretrained.checkpoint, catalogue);
                let opened = folder.and_then(|folder| {
                    ModelConfig::open(&folder)
                        .map(|config| (config, folder))
                        .map_err(|error| error.to_string())
                });
                let (config, folder) =
                    opened.map_err(|message| vec![problem("model.pretrained.checkpoint", message)])?;
                (config, Some(folder))
            }
            ModelSpec::Random(encoder) => {
                let TaskSpec::Planted(planted) = &spec.task else {
                    unreachable!("a rule: a random model is for planted tasks")
                };
                (planted::config(encoder, planted.length), None)
            }
        };
        let mut problems = Vec::new();
        for (key, length) in spec.task.lengths() {
            if length > config.positions() {
                let positions = config.positions();
                let message =
                    format!("{key} ({length}) must not exceed the {positions} positions of the checkpoint");
                problems.push(problem(&key, message));
            }
        }
        if !data.purpose.fits(&config) {
            let (task, needed) = match data.purpose {
                Purpose::Write => (spec.task.name(), "a model that writes: bart"),
                _ => (spec.task.name(), "an encoder: bert or deberta-v2"),
            };
            problems.push(problem(
                "model.pretrained.checkpoint",
                format!("is of another family than [task.{task}] needs, which is {needed}"),
            ));
        }
        if let (Some(generation), ModelConfig::Bart(bart)) = (spec.task.generation(), &config) {
            for (key, rule) in generation.problems(bart) {
                let key = format!("task.summaries.generation.{key}");
                problems.push(problem(&key, format!("{key} {rule}")));
            }
        }

        let method = spec.adapter.name();
        if let (Tuning::Bottlenecks(..), ModelConfig::Bart(_)) = (spec.adapter.tuning(), &config) {
            let message = format!("[adapter.{method}] is for encoders: there is no bottleneck for bart");
            problems.push(problem(&format!("adapter.{method}"), message));
        } else if let Tuning::Bottlenecks(_, width) = spec.adapter.tuning()
            && width >= config.hidden_size()
        {
            let hidden = config.hidden_size();
            problems.push(problem(
                &format!("adapter.{method}.width"),
                format!("adapter.{method}.width ({width}) must be below the {hidden} of the hidden states"),
            ));
        }
        let linears = config.linears();
        let paths = || linears.iter().map(|linear| linear.path.as_str());
        let mut select = |key: &str, patterns: &[String]| {
            target::select(patterns, paths()).unwrap_or_else(|error| {
                problems.push(problem(key, error.to_string()));
                Vec::new()
            })
        };
        let places = select(&format!("adapter.{method}.targets"), spec.adapter.targets());
        let planted = match &spec.task {
            TaskSpec::Planted(planted) => select("task.planted.layers", &planted.layers),
            _ => Vec::new(),
        };
        let planted = planted.into_iter().map(|place| linears[place].path.clone()).collect();
        let ranks = match (spec.adapter.ranks(), spec.adapter.rank()) {
            (Some(file), _) => {
                let paths: Vec<_> = places.iter().map(|&place| linears[place].path.as_str()).collect();
                PatternFile::read(file.as_ref()).and_then(|pattern| pattern.ranks_of(&paths)).unwrap_or_else(
                    |message| {
                        problems
                            .push(problem(&format!("adapter.{method}.ranks"), format!("{file}: {message}")));
                        vec![1; places.len()]
                    },
                )
            }
            // Without increments there is no place for one.
            (None, rank) => vec![rank.unwrap_or(0); places.len()],
        };
        let sites = places.iter().zip(ranks).map(|(&place, rank)| {
            let LinearShape { path, d_in, d_out } = linears[place].clone();
            Site { path, d_in, d_out, rank }
        });
        let mut sites: Vec<_> = sites.collect();
        let most = |site: &Site| site.d_in.min(site.d_out);
        if let Some(site) = sites.iter().find(|site| site.rank > most(site)) {
            problems.push(problem(
                &format!("adapter.{method}"),
                format!(
                    "rank {} exceeds what `{}` can have: its weight is {} by {}",
                    site.rank, site.path, site.d_out, site.d_in
                ),
            ));
        }
        // A file of ranks may hold any numbers, also such as cannot be counted with.
        sites.iter_mut().for_each(|site| site.rank = site.rank.min(most(site)));
        // Without increments it has no site, and no form.
        let layout = Layout::new(spec.adapter.form().unwrap_or(Form::Lora), sites);

        let train = &spec.train;
        let batches = data.train_rows.div_ceil(train.batch_size);
        let steps_per_epoch = batches.div_ceil(train.accumulate);
        let total_steps = train.steps.unwrap_or_else(|| train.epochs.unwrap_or(0) * steps_per_epoch);
        if spec.optimizer.schedule.warm_up() >= total_steps {
            problems.push(problem(
                "optimizer.schedule",
                format!(
                    "warm_up ({}) must be below the {total_steps} steps of the run",
                    spec.optimizer.schedule.warm_up()
                ),
            ));
        }
        let schedule = spec.budget.as_ref().and_then(|budget| {
            let made = BudgetSchedule::new(budget, &layout.ranks(), &layout.triplet_costs(), total_steps);
            made.map_err(|broken| {
                // Without adapters the budget's rules have no meaning: the patterns are what is wrong.
                for error in broken.iter().filter(|_| layout.adapters() > 0) {
                    let key = format!("budget.{}.{}", budget.name(), error.key());
                    problems.push(problem(&key, error.to_string()));
                }
            })
            .ok()
        });
        let warm_start = spec.warm_start.as_ref().and_then(|warm_start| {
            let opened = Source::open(warm_start.run.as_ref(), spec, config.prefix(), &layout);
            opened
                .map_err(|reasons| {
                    let message = |reason| format!("{} {reason}", warm_start.run);
                    problems
                        .extend(reasons.into_iter().map(|reason| problem("warm_start.run", message(reason))));
                })
                .ok()
        });
        if !problems.is_empty() {
            return Err(problems);
        }
        Ok(Self {
            tuned: spec.adapter.tuning().parameters(&config),
            config,
            checkpoint,
            places,
            layout,
            train_rows: data.train_rows,
            purpose: data.purpose,
            steps_per_epoch,
            total_steps,
            schedule,
            warm_start,
            planted,
        })
    }

    /// What the budget shrinks to, if it is counted in this unit.
    pub fn target_in(&self, unit: BudgetUnit) -> Option<usize> {
        self.schedule.as_ref().filter(|schedule| schedule.unit() == unit).map(BudgetSchedule::target)
    }

    /// Trainable parameters.
    pub fn parameters(&self) -> ParameterCounts {
        let costs: usize = self.layout.triplet_costs().iter().sum();
        let adapter_peak = self.layout.entries() + self.tuned;
        let adapter_final_if_uniform = match &self.schedule {
            Some(schedule) if schedule.unit() == BudgetUnit::Parameters => schedule.target(),
            Some(schedule) => schedule.target() / self.layout.adapters() * costs,
            None => adapter_peak,
        };
        let head = self.purpose.head_parameters(&self.config);
        ParameterCounts { adapter_peak, adapter_final_if_uniform, head }
    }
}

/// What a plan needs to know of the data.
#[derive(Debug, Clone, Copy)]
pub struct DataSize {
    /// Training examples.
    pub train_rows: usize,
    /// What the model is to say.
    pub purpose: Purpose,
}

impl DataSize {
    /// Of a task on text, once it is read.
    pub fn of(dataset: &Dataset) -> Self {
        Self { train_rows: dataset.train.len(), purpose: purpose(&dataset.target) }
    }
}

/// What a model is to say that predicts this.
pub fn purpose(target: &Target) -> Purpose {
    match target {
        Target::Classes(_) | Target::Scores { .. } => Purpose::Classify { outputs: target.outputs() },
        Target::Answers => Purpose::Answer,
        Target::Summaries => Purpose::Write,
    }
}

/// Reads the data of a task on text, with the tokenizer in a checkpoint's folder.
///
/// # Errors
///
/// What is missing or malformed.
///
/// # Panics
///
/// For a synthetic task, which has no files.
pub fn dataset(task: &TaskSpec, catalogue: &Catalogue, checkpoint: &Path) -> Result<Dataset, TaskError> {
    match task {
        TaskSpec::Text(text) => Dataset::load(catalogue, text, checkpoint),
        TaskSpec::Questions(questions) => Dataset::questions(catalogue, questions, checkpoint),
        TaskSpec::Summaries(summaries) => Dataset::summaries(catalogue, &summaries.reading(), checkpoint),
        TaskSpec::Planted(_) => panic!("a planted task is made, not read"),
    }
}

/// Where a checkpoint lies: a folder, if the name has a `/` and there is one, or what a manifest or a repository of the
/// hub names.
///
/// # Errors
///
/// What to do about a checkpoint that is not there.
pub fn checkpoint_folder(name: &str, catalogue: &Catalogue) -> Result<PathBuf, String> {
    let folder = PathBuf::from(name);
    if name.contains('/') && folder.is_dir() {
        return Ok(folder);
    }
    match catalogue.checkpoint(name) {
        Err(TaskError::UnknownName { .. }) if name.contains('/') => Err(format!("there is no folder {name}")),
        Err(error @ TaskError::NotFetched { .. }) if name.contains('/') => {
            Err(format!("there is no folder {name}, and as a repository of the hub {error}"))
        }
        found => found.map_err(|error| error.to_string()),
    }
}
