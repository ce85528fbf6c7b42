//! Training: one optimizer step from top to bottom, and the evaluation on the dev set.

mod state;

use std::collections::BTreeMap;
use std::sync::Arc;

use adalora::{
    AdamW, AllocationError, Arena, BudgetAction, BudgetSchedule, BudgetUnit, Form, LearningRate,
    Orthogonality, RankAllocator, RankPattern, Start,
};
use adalora_adapter::squared_residuals;
use adalora_kernels::clip::{clip, norm};
use adalora_kernels::dropout::Dropout;
use adalora_models::{Checkpoint, Dropouts, Model, ModelError, Settled};
use adalora_report::{DevRecord, Residuals, Shares, TrainRecord};
use adalora_tasks::{Batch, Dataset, Prefetch, TaskError, epoch_order};
use serde_json::Value;
use tch::{Device, Kind, Tensor};

use crate::experiment::{Gradient, ModelSpec, ObservationSpec, RunSpec, TrainSpec, Weights};
use crate::inference;
use crate::plan::Plan;

pub use state::{MisfitState, State};

/// A model in training.
#[derive(Debug)]
pub struct Trainer<'a> {
    spec: &'a RunSpec,
    plan: &'a Plan,
    dataset: &'a Dataset,
    seed: u64,
    device: Device,
    precision: Settled,
    model: Model,
    dropouts: Dropouts,
    arena: Arena,
    orthogonality: Option<Orthogonality>,
    /// `None` where ranks are fixed, and once the arena is compact.
    allocator: Option<RankAllocator>,
    /// The final pattern, once the arena holds only its triplets.
    compacted: Option<RankPattern>,
    optimizer: AdamW,
    lr: LearningRate,
    /// Finished optimizer steps.
    finished: usize,
    /// The batches of the coming steps, a function of the seed.
    batches: Prefetch,
    recorded: Since,
    /// Parameters of the head that the checkpoint lacks.
    drawn: Vec<String>,
}

/// What happened since the last record; on the device, so that a step reads nothing back.
#[derive(Debug, Default)]
struct Since {
    losses: Vec<Tensor>,
    orthogonality: Option<Tensor>,
    grad_norm: Option<Tensor>,
    lr: f64,
}

/// Why training could not go on.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The loss is NaN or infinite.
    #[error(
        "the loss is {loss} at step {step}: the run has diverged; a smaller optimizer.lr or a clip may help"
    )]
    Diverged {
        /// The first such step, counted from 1.
        step: usize,
        /// Its loss.
        loss: f64,
    },
    /// Ranks could not be allocated.
    #[error(transparent)]
    Allocation(#[from] AllocationError),
    /// What the model writes has no way back to text.
    #[error(transparent)]
    Task(#[from] TaskError),
    /// A run ended with another number of live triplets than its budget.
    #[error(
        "the run ended with {live} live {unit} and {nonzero} triplets that are not 0; its budget is {budget}, of which \
         nothing may be left that a dropped triplet would fit into"
    )]
    OffBudget {
        /// In what the budget is counted.
        unit: BudgetUnit,
        /// What the last allocation kept.
        live: usize,
        /// Triplets that are not 0.
        nonzero: usize,
        /// What should live.
        budget: usize,
    },
}

impl<'a> Trainer<'a> {
    /// Puts model, adapters, allocator and optimizer together, at step 0.
    ///
    /// # Errors
    ///
    /// A checkpoint that cannot be loaded.
    pub fn new(
        spec: &'a RunSpec,
        plan: &'a Plan,
        dataset: &'a Dataset,
        checkpoint: &Checkpoint,
        seed: u64,
        device: Device,
    ) -> Result<Self, ModelError> {
        let (inside, classifier) = match &spec.model {
            ModelSpec::Pretrained(model) => (model.dropout, model.classifier_dropout),
            ModelSpec::Random(_) => (None, None),
        };
        let config = checkpoint.config();
        let classifier = classifier.or(inside).unwrap_or_else(|| config.classifier_dropout());
        let dropouts = Dropouts { inside, classifier };

        let widest = dataset.train.iter().map(|example| example.ids.len()).max().unwrap_or(0);
        let precision = spec.train.precision.settle(config, spec.train.batch_size * widest, device);
        let tuning = spec.adapter.tuning();
        let start = plan.purpose.start(checkpoint, seed);
        let extras = tuning.start(checkpoint, seed).into_iter().chain(start.extras).collect();
        let arena = Arena::new(plan.layout.clone(), extras, device, seed);
        spec.adapter.start().apply(&arena);
        let frozen = checkpoint.to_kind(precision.kind());
        let mut model = Model::new(plan.purpose, &frozen, tuning, &arena, dropouts, device);
        let ranks = plan.layout.ranks();
        let scales = spec.adapter.scales(&ranks, &ranks);
        if let Some(source) = &plan.warm_start {
            source.saved.write_to(&arena, &scales);
        }
        model.attach(&plan.places, arena.scaled_adapters(&scales));

        let orthogonality = spec.orthogonality.map(Orthogonality::new);
        let allocator = spec.importance.as_ref().zip(plan.schedule.clone()).map(|(importance, schedule)| {
            let metric = importance.start(&Start { layout: arena.layout(), device, seed });
            RankAllocator::new(metric, schedule, &arena)
        });
        let optimizer = AdamW::new(&spec.optimizer, &arena);
        let batches = batches_after(0, spec, plan, dataset, seed);
        let lr = LearningRate::new(&spec.optimizer, plan.total_steps);
        Ok(Self {
            spec,
            plan,
            dataset,
            seed,
            device,
            precision,
            model,
            dropouts,
            arena,
            orthogonality,
            allocator,
            compacted: None,
            optimizer,
            lr,
            finished: 0,
            batches,
            recorded: Since::default(),
            drawn: start.drawn,
        })
    }

    /// One optimizer step.
    ///
    /// # Errors
    ///
    /// If ranks could not be allocated, or a loss since the last record was not finite and that is why.
    pub fn step(&mut self) -> Result<(), TrainError> {
        let step = self.finished;
        let batches = self.batches(step);
        let units: usize = batches.iter().map(|batch| batch.labels.units()).sum();
        let dropout = Dropout::new(self.seed, step as u64);

        let mut loss = Tensor::zeros([], (Kind::Float, self.device));
        for batch in &batches {
            let smoothing = self.spec.task.label_smoothing();
            let (sum, _) = inference::loss(&self.model, batch, smoothing, self.device, Some(&dropout));
            let share = sum / units as f64;
            share.backward();
            loss += share.detach();
        }
        let observed = self.spec.observation.as_ref();
        let task_gradient = observed
            .filter(|observed| observed.regularizer == Some(false))
            .map(|_| self.arena.adapter_grad().copy());
        let orthogonality = self.orthogonality.as_ref().map(|term| term.add_gradient(&self.arena));
        let seen = observed.map(|observed| SeenGradient::before_clip(observed, task_gradient, &self.arena));
        let grad_norm = norm(self.arena.grad());
        let factor =
            self.spec.train.clip.map(|max| clip(&mut self.arena.grad().shallow_clone(), &grad_norm, max));
        let seen = seen.map(|seen| seen.after_clip(factor.as_ref(), &self.arena));
        let lr = self.lr.at(step);

        self.observe(Weights::BeforeStep, step, seen.as_ref());
        self.optimizer.step(&self.arena, lr);
        self.observe(Weights::AfterStep, step, seen.as_ref());

        self.recorded.losses.push(loss);
        self.recorded.orthogonality = orthogonality;
        self.recorded.grad_norm = Some(grad_norm);
        self.recorded.lr = lr;
        let allocated = self.allocator.as_mut().map(|allocator| allocator.update(step, &self.arena));
        if let Some(Err(_)) = allocated {
            // A loss that is not finite is the cause, importance that is not finite its consequence.
            self.mean_loss()?;
        }
        let action = allocated.transpose()?;
        if let Some(masked) = self.allocator.as_ref().and_then(RankAllocator::masked) {
            self.optimizer.follow_mask(masked, self.arena.layout());
        }
        if self.spec.adapter.scale().follows_rank() && matches!(action, Some(BudgetAction::Allocate { .. })) {
            let live = self.ranks()?;
            self.attach(&live);
        }
        self.arena.zero_grad();
        let last_allocation = self.plan.schedule.as_ref().map(BudgetSchedule::last_allocation);
        if self.spec.train.compact && last_allocation == Some(step) {
            self.compact()?;
        }
        self.finished += 1;
        Ok(())
    }

    /// Puts adapters on their layers, of the scale that applies where `live` triplets of each are left.
    fn attach(&mut self, live: &[usize]) {
        let scales = self.spec.adapter.scales(&self.plan.layout.ranks(), live);
        self.model.attach(&self.plan.places, self.arena.scaled_adapters(&scales));
    }

    /// Drops the triplets that are dead for good, with their moments and the metric's state. Scales stay.
    fn compact(&mut self) -> Result<(), TrainError> {
        if let Some(pattern) = self.pattern()?.cloned() {
            self.compact_to(pattern);
        }
        Ok(())
    }

    fn compact_to(&mut self, pattern: RankPattern) {
        self.allocator = None;
        let (arena, kept) = self.arena.compact(pattern.live());
        self.optimizer.keep(&kept, &arena);
        self.model.renew_head(&self.plan.config, &arena, self.dropouts);
        self.arena = arena;
        self.attach(&pattern.ranks());
        self.compacted = Some(pattern);
    }

    fn observe(&mut self, when: Weights, step: usize, seen: Option<&Tensor>) {
        if let (Some(allocator), Some(observed), Some(seen)) =
            (&mut self.allocator, &self.spec.observation, seen)
            && observed.weights == when
        {
            allocator.observe_gradient(step, &self.arena, seen);
        }
    }

    /// The batches of a step: `accumulate` of them, fewer at the end of an epoch.
    fn batches(&mut self, step: usize) -> Vec<Batch> {
        let TrainSpec { batch_size, accumulate, .. } = self.spec.train;
        let batches_per_epoch = self.dataset.train.len().div_ceil(batch_size);
        let first = step % self.plan.steps_per_epoch * accumulate;
        self.batches.by_ref().take(accumulate.min(batches_per_epoch - first)).collect()
    }

    /// What happened since the last record.
    ///
    /// # Errors
    ///
    /// A loss that is not finite.
    pub fn record(&mut self, seconds: f64) -> Result<TrainRecord, TrainError> {
        let loss = self.mean_loss()?;
        let since = std::mem::take(&mut self.recorded);
        let budget = self.plan.schedule.as_ref().map(|schedule| schedule.budget(self.finished - 1));
        let compact = self.plan.schedule.as_ref().zip(self.compacted.as_ref());
        let compact = compact.map(|(schedule, pattern)| schedule.spent(pattern));
        Ok(TrainRecord {
            step: self.finished,
            loss,
            orthogonality: since.orthogonality.map(|term| term.double_value(&[])),
            residuals: self.residuals(),
            shares: self.shares(),
            lr: since.lr,
            grad_norm: since.grad_norm.map_or(f64::NAN, |norm| norm.double_value(&[])),
            budget,
            live: self.allocator.as_ref().map(RankAllocator::live).or(compact),
            seconds,
        })
    }

    /// How far the factors are from orthonormal; a regularizer of LoRA has another aim.
    fn residuals(&self) -> Option<Residuals> {
        let layout = self.arena.layout();
        let svd = layout.form() == Form::Svd && layout.adapters() > 0;
        let column = |values: &Tensor, at| {
            Vec::try_from(values.select(1, at).contiguous()).expect("one f32 for each adapter")
        };
        svd.then(|| squared_residuals(&self.arena))
            .map(|all| Residuals { q: column(&all, 0), p: column(&all, 1) })
    }

    /// What decides importance, while it still changes.
    fn shares(&self) -> Option<Shares> {
        let observes = |schedule: &BudgetSchedule| schedule.observes(self.finished - 1);
        let allocator =
            self.allocator.as_ref().filter(|_| self.plan.schedule.as_ref().is_some_and(observes))?;
        let shares: Vec<f32> = allocator.shares()?.try_into().expect("three f32");
        Some(Shares { lambda: shares[0], p: shares[1], q: shares[2] })
    }

    /// Mean loss of the steps since the last record.
    fn mean_loss(&self) -> Result<f64, TrainError> {
        let losses =
            Vec::<f32>::try_from(Tensor::stack(&self.recorded.losses, 0)).expect("losses are f32 scalars");
        // Called from within a step too, before that step is counted.
        let first = self.finished.max(self.recorded.losses.len()) - self.recorded.losses.len();
        if let Some(at) = losses.iter().position(|loss| !loss.is_finite()) {
            return Err(TrainError::Diverged { step: first + at + 1, loss: f64::from(losses[at]) });
        }
        Ok(losses.iter().map(|&loss| f64::from(loss)).sum::<f64>() / losses.len() as f64)
    }

    /// Loss on the first dev set and the scores on all; and what the model said in words, if it did, an object for each
    /// question or document.
    ///
    /// # Errors
    ///
    /// A tokenizer that has no way back to text.
    pub fn evaluate(&self, seconds: f64) -> Result<(DevRecord, Vec<Value>), TrainError> {
        let spec = self.spec;
        let (smoothing, generation) = (spec.task.label_smoothing(), spec.task.generation());
        let sets = self.dataset.dev.iter().map(|set| {
            let batches = (spec.train.batch_size, self.dataset.pad_id);
            let (loss, said) = inference::evaluate(
                &self.model,
                &set.examples,
                batches,
                (smoothing, generation),
                self.device,
            );
            Ok((loss, set.score(said, &self.dataset.evaluation)?))
        });
        let sets: Vec<_> = sets.collect::<Result<_, TaskError>>()?;
        let loss = sets[0].0;
        let (mut scores, mut intervals, mut outputs) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
        for (_, scored) in sets {
            scores.extend(scored.scores);
            intervals.extend(scored.intervals.into_iter().map(|(name, own)| (name, [own.low, own.high])));
            outputs.extend(scored.outputs);
        }
        Ok((DevRecord { step: self.finished, loss, scores, intervals, seconds }, outputs))
    }

    /// Checks that a finished run has exactly the triplets of its budget, or all that fit into its parameters.
    ///
    /// # Errors
    ///
    /// If it has more or fewer, or the last allocation had no importance to go by.
    pub fn check_budget(&mut self) -> Result<(), TrainError> {
        let nonzero = self.arena.layout().unmasked(self.arena.param());
        let plan = self.plan;
        let (Some(schedule), Some(pattern)) = (&plan.schedule, self.pattern()?) else { return Ok(()) };
        if schedule.is_met_by(pattern) && nonzero <= pattern.live_count() {
            Ok(())
        } else {
            let (unit, live, budget) = (schedule.unit(), schedule.spent(pattern), schedule.target());
            Err(TrainError::OffBudget { unit, live, nonzero, budget })
        }
    }

    /// The triplets that the last allocation kept; `None` where ranks are fixed.
    fn pattern(&mut self) -> Result<Option<&RankPattern>, TrainError> {
        match (&self.compacted, &mut self.allocator) {
            (Some(pattern), _) => Ok(Some(pattern)),
            (None, Some(allocator)) => Ok(Some(allocator.pattern()?)),
            (None, None) => Ok(None),
        }
    }

    /// Live triplets of each adapter: all, until a pattern is chosen.
    ///
    /// # Errors
    ///
    /// If the last allocation had no importance to go by.
    pub fn ranks(&mut self) -> Result<Vec<usize>, TrainError> {
        let initial = self.plan.layout.ranks();
        Ok(self.pattern()?.map_or(initial, RankPattern::ranks))
    }

    /// A copy of the trained parameters without dead triplets, and which triplets live.
    ///
    /// # Errors
    ///
    /// If the last allocation had no importance to go by.
    pub fn adapter(&mut self) -> Result<(Arena, RankPattern), TrainError> {
        let initial = self.plan.layout.ranks();
        let pattern = self.pattern()?.cloned().unwrap_or_else(|| RankPattern::full(&initial));
        let all = vec![true; self.arena.layout().triplet_count()];
        let live = if self.compacted.is_some() { &all } else { pattern.live() };
        Ok((self.arena.compact(live).0, pattern))
    }

    /// The dtype that the frozen encoder computes in.
    pub fn precision(&self) -> Settled {
        self.precision
    }

    /// Finished optimizer steps.
    pub fn finished(&self) -> usize {
        self.finished
    }

    /// Parameters of the head that the checkpoint lacks, which were drawn instead.
    pub fn drawn(&self) -> &[String] {
        &self.drawn
    }
}

/// The batches that follow the first `finished` steps.
fn batches_after(finished: usize, spec: &RunSpec, plan: &Plan, dataset: &Dataset, seed: u64) -> Prefetch {
    let TrainSpec { batch_size, accumulate, .. } = spec.train;
    let (epoch, step) = (finished / plan.steps_per_epoch, finished % plan.steps_per_epoch);
    let examples = Arc::clone(&dataset.train);
    let order = (epoch as u64..).flat_map(move |epoch| epoch_order(&examples, batch_size, seed, epoch));
    Prefetch::new(Arc::clone(&dataset.train), dataset.pad_id, order.skip(step * accumulate))
}

/// The gradient that the importance metric sees, while it is made.
enum SeenGradient {
    /// A copy that clipping does not touch.
    Done(Tensor),
    /// A copy that is to be clipped like the arena's.
    Clip(Tensor),
    /// The arena's own, once clipped.
    Arena,
}

impl SeenGradient {
    fn before_clip(observed: &ObservationSpec, task_gradient: Option<Tensor>, arena: &Arena) -> Self {
        match (observed.gradient, task_gradient) {
            (Gradient::Raw, Some(copy)) => Self::Done(copy),
            (Gradient::Raw, None) => Self::Done(arena.adapter_grad().copy()),
            (Gradient::Clipped, Some(copy)) => Self::Clip(copy),
            (Gradient::Clipped, None) => Self::Arena,
        }
    }

    fn after_clip(self, factor: Option<&Tensor>, arena: &Arena) -> Tensor {
        match (self, factor) {
            (Self::Clip(copy), Some(factor)) => copy * factor,
            (Self::Done(copy) | Self::Clip(copy), _) => copy,
            (Self::Arena, _) => arena.adapter_grad(),
        }
    }
}
