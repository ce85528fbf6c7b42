//! Training: one optimizer step from top to bottom, and the evaluation on the dev set.

use adalora::{AdamW, AllocationError, Arena, LearningRate, Orthogonality, RankAllocator, Start};
use adalora_kernels::clip::{clip, norm};
use adalora_models::{Checkpoint, Encoder, Head, Input, Loss, ModelError};
use adalora_report::{DevRecord, TrainRecord};
use adalora_tasks::{Batch, Dataset, Labels, dev_order, epoch_order};
use tch::{Device, Kind, Tensor};

use crate::experiment::{Gradient, ModelSpec, ObservationSpec, RunSpec, Weights};
use crate::plan::Plan;

/// A model in training.
#[derive(Debug)]
pub struct Trainer<'a> {
    spec: &'a RunSpec,
    plan: &'a Plan,
    dataset: &'a Dataset,
    seed: u64,
    device: Device,
    encoder: Encoder,
    head: Head,
    arena: Arena,
    orthogonality: Option<Orthogonality>,
    allocator: Option<RankAllocator>,
    optimizer: AdamW,
    lr: LearningRate,
    /// Finished optimizer steps.
    finished: usize,
    /// Batches of the epoch that the next step is in, with the epoch's number.
    order: Option<(usize, Vec<Vec<usize>>)>,
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
    /// A run ended with another number of live triplets than its budget.
    #[error(
        "the run ended with {live} live triplets and {nonzero} values of lambda that are not 0; its budget is {budget}"
    )]
    OffBudget {
        /// Triplets that the last allocation kept.
        live: usize,
        /// Values of lambda that are not 0.
        nonzero: usize,
        /// Triplets that should live.
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
        let (dropout, classifier_dropout) = match &spec.model {
            ModelSpec::Pretrained(model) => (model.dropout, model.classifier_dropout),
            ModelSpec::Random(_) => (None, None),
        };
        let config = checkpoint.config();
        let classifier_dropout =
            classifier_dropout.or(dropout).unwrap_or_else(|| config.classifier_dropout());

        let mut encoder = Encoder::new(checkpoint, dropout, device);
        let start = Head::start(checkpoint, plan.outputs, seed);
        let arena = Arena::new(plan.layout.clone(), start.extras, device, seed);
        encoder.attach(&plan.places, arena.adapters(spec.adapter.alpha() / spec.adapter.rank() as f64));
        let head = Head::new(config, &arena, classifier_dropout);

        let orthogonality = spec.orthogonality.map(|form| Orthogonality::new(form, arena.layout()));
        let allocator = spec.importance.as_ref().zip(plan.schedule.clone()).map(|(importance, schedule)| {
            let metric = importance.start(&Start { layout: arena.layout(), device, seed });
            RankAllocator::new(metric, schedule, &arena)
        });
        let optimizer = AdamW::new(&spec.optimizer, &arena);
        let lr = LearningRate::new(&spec.optimizer, plan.total_steps);
        Ok(Self {
            spec,
            plan,
            dataset,
            seed,
            device,
            encoder,
            head,
            arena,
            orthogonality,
            allocator,
            optimizer,
            lr,
            finished: 0,
            order: None,
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
        let rows: usize = batches.iter().map(|batch| batch.rows).sum();
        // Dropout becomes a function of seed and step.
        tch::manual_seed(dropout_seed(self.seed, step));

        let mut loss = Tensor::zeros([], (Kind::Float, self.device));
        for batch in &batches {
            let share = self.loss(batch, true).0 / rows as f64;
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
        if let Some(allocator) = &mut self.allocator {
            let allocated = allocator.update(step, &self.arena);
            if allocated.is_err() {
                // A loss that is not finite is the cause, importance that is not finite its consequence.
                self.mean_loss()?;
            }
            allocated?;
        }
        self.arena.zero_grad();
        self.finished += 1;
        Ok(())
    }

    fn observe(&mut self, when: Weights, step: usize, seen: Option<&Tensor>) {
        if let (Some(allocator), Some(observed), Some(seen)) =
            (&mut self.allocator, &self.spec.observation, seen)
            && observed.weights == when
        {
            allocator.observe_gradient(step, &self.arena, seen);
        }
    }

    /// Loss summed over the rows of a batch, and the logits.
    fn loss(&self, batch: &Batch, train: bool) -> (Tensor, Tensor) {
        let input = self.input(batch);
        let logits = self.head.forward(&self.encoder.forward(&input, train), train).to_kind(Kind::Float);
        let loss = match &batch.labels {
            Labels::Classes(classes) => Loss::Classes(Tensor::from_slice(classes).to(self.device)),
            Labels::Scores { width, values } => {
                Loss::Scores(Tensor::from_slice(values).view([-1, *width as i64]).to(self.device))
            }
        };
        (loss.sum(&logits), logits)
    }

    fn input(&self, batch: &Batch) -> Input {
        let matrix = |values: &[i64]| {
            Tensor::from_slice(values).view([batch.rows as i64, batch.width as i64]).to(self.device)
        };
        let padded = batch.mask.iter().any(|token| !token);
        Input {
            ids: matrix(&batch.ids),
            type_ids: matrix(&batch.type_ids),
            mask: padded.then(|| {
                Tensor::from_slice(&batch.mask).view([batch.rows as i64, batch.width as i64]).to(self.device)
            }),
        }
    }

    /// The batches of a step: `accumulate` of them, fewer at the end of an epoch. A function of seed and step.
    fn batches(&mut self, step: usize) -> Vec<Batch> {
        let epoch = step / self.plan.steps_per_epoch;
        if self.order.as_ref().is_none_or(|(of, _)| *of != epoch) {
            let size = self.spec.train.batch_size;
            self.order = Some((epoch, epoch_order(&self.dataset.train, size, self.seed, epoch as u64)));
        }
        let (_, order) = self.order.as_ref().expect("the order of this epoch was made above");
        let accumulate = self.spec.train.accumulate;
        let first = step % self.plan.steps_per_epoch * accumulate;
        let indices = &order[first..(first + accumulate).min(order.len())];
        indices
            .iter()
            .map(|indices| Batch::collate(&self.dataset.train, indices, self.dataset.pad_id))
            .collect()
    }

    /// What happened since the last record.
    ///
    /// # Errors
    ///
    /// A loss that is not finite.
    pub fn record(&mut self, seconds: f64) -> Result<TrainRecord, TrainError> {
        let loss = self.mean_loss()?;
        let since = std::mem::take(&mut self.recorded);
        let budget = self.allocator.as_ref().map(|allocator| allocator.schedule().budget(self.finished - 1));
        Ok(TrainRecord {
            step: self.finished,
            loss,
            orthogonality: since.orthogonality.map(|term| term.double_value(&[])),
            lr: since.lr,
            grad_norm: since.grad_norm.map_or(f64::NAN, |norm| norm.double_value(&[])),
            budget,
            live: self.allocator.as_ref().map(RankAllocator::live_count),
            seconds,
        })
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

    /// Loss and scores on the dev set.
    pub fn evaluate(&self, seconds: f64) -> DevRecord {
        let _guard = tch::no_grad_guard();
        let order = dev_order(&self.dataset.dev, self.spec.train.batch_size);
        let (mut loss, mut classes, mut scores) = (0.0, Vec::new(), Vec::new());
        for indices in &order {
            let batch = Batch::collate(&self.dataset.dev, indices, self.dataset.pad_id);
            let (sum, logits) = self.loss(&batch, false);
            loss += sum.double_value(&[]);
            match batch.labels {
                Labels::Classes(_) => classes
                    .extend(Vec::<i64>::try_from(logits.argmax(1, false)).expect("one class for each row")),
                Labels::Scores { .. } => {
                    scores.extend(Vec::<f32>::try_from(logits.view(-1)).expect("a flat f32 tensor"))
                }
            }
        }
        let labels = Labels::of(order.iter().flatten().map(|&index| &self.dataset.dev[index]));
        let predicted = match &labels {
            Labels::Classes(_) => Labels::Classes(classes),
            Labels::Scores { width, .. } => Labels::Scores { width: *width, values: scores },
        };
        let scores = self.dataset.evaluation.iter();
        DevRecord {
            step: self.finished,
            loss: loss / self.dataset.dev.len() as f64,
            scores: scores.map(|own| (own.name().to_owned(), own.score(&predicted, &labels))).collect(),
            seconds,
        }
    }

    /// Checks that a finished run has exactly the triplets of its budget.
    ///
    /// # Errors
    ///
    /// If it has more or fewer.
    pub fn check_budget(&self) -> Result<(), TrainError> {
        let Some(allocator) = &self.allocator else { return Ok(()) };
        let (live, nonzero, budget) =
            (allocator.pattern().live_count(), self.nonzero(), allocator.schedule().target());
        if live == budget && nonzero <= budget {
            Ok(())
        } else {
            Err(TrainError::OffBudget { live, nonzero, budget })
        }
    }

    /// Values of lambda that are not 0.
    fn nonzero(&self) -> usize {
        self.arena.layout().lambda(self.arena.param()).ne(0.0).sum(Kind::Int64).int64_value(&[]) as usize
    }

    /// Live triplets of each adapter: all, until a pattern is chosen.
    pub fn ranks(&self) -> Vec<usize> {
        match &self.allocator {
            Some(allocator) => allocator.pattern().ranks(),
            None => self.arena.layout().ranks(),
        }
    }

    /// One flag for each triplet, adapters one after another.
    pub fn live(&self) -> Vec<bool> {
        match &self.allocator {
            Some(allocator) => allocator.pattern().live().to_vec(),
            None => vec![true; self.arena.layout().triplet_count()],
        }
    }

    /// The trained parameters.
    pub fn arena(&self) -> &Arena {
        &self.arena
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

/// Splitmix64 of both, so that neighbouring steps and seeds have nothing in common.
fn dropout_seed(seed: u64, step: usize) -> i64 {
    let mut z = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(step as u64);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (z ^ (z >> 31)) as i64
}
