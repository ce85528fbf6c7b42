//! Which triplets live: Algorithm 1 of the paper.

use adalora_adapter::{Arena, Form, Layout};
use adalora_budget::{BudgetAction, BudgetSchedule, BudgetUnit, RankPattern};
use adalora_importance::{ImportanceMetric, Observation};
use adalora_kernels::selection::keep_top;
use tch::{Device, Kind, Tensor};

/// Shrinks the ranks of an arena's adapters along a budget.
///
/// After each optimizer step it masks what the budget says: of the triplets of all adapters together, the most important
/// ones that `b(t)` has room for keep their lambda, the others' becomes 0. `P`, `Q` and the optimizer's moments stay, so
/// that a triplet may come back at a later allocation. LoRA's doublets have no lambda: both their rows become 0, from
/// which they do not come back but by momentum ([`Layout::mask`]).
///
/// Counted in triplets, the choice is made where the arena lives, and nothing is read back for it: on another device
/// than the CPU the host does not wait at an allocation. Counted in parameters, each choice depends on those before it;
/// it is made on the host, which reads the importance and sends the mask.
#[derive(Debug)]
pub struct RankAllocator {
    metric: Box<dyn ImportanceMetric>,
    schedule: BudgetSchedule,
    layout: Layout,
    /// `(triplets,)`, true where the last allocation masks a triplet.
    masked: Tensor,
    /// What it keeps, in the budget's unit.
    kept: usize,
    /// Whether the last update masked anything, so that only those live.
    masking: bool,
    /// Steps observed so far.
    observed: usize,
    /// What `masked` says, as far as it has been read.
    pattern: RankPattern,
    /// The last allocation, until it is read into `pattern`.
    unread: Option<Allocation>,
}

/// An allocation whose outcome has not been read.
#[derive(Debug)]
struct Allocation {
    step: usize,
    /// `(triplets,)`
    importance: Tensor,
}

/// Why ranks could not be allocated.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AllocationError {
    /// The metric has not seen every step until this allocation.
    #[error(
        "allocation at step {step} after {observed} observed steps, expected {expected}: \
         call `observe` once for each optimizer step, after `backward` and before `zero_grad`"
    )]
    NotObserved {
        /// The step of the allocation, 0-based.
        step: usize,
        /// Calls of `observe` so far.
        observed: usize,
        /// Calls that were due.
        expected: usize,
    },
    /// A NaN or an infinity.
    #[error("allocation at step {step}: the importance of triplet {triplet} of `{adapter}` is not finite")]
    NotFinite {
        /// The step of the allocation, 0-based.
        step: usize,
        /// Path of the adapted layer.
        adapter: String,
        /// Triplet inside the adapter.
        triplet: usize,
    },
    /// Every triplet has the importance 0.
    #[error(
        "allocation at step {step}: all triplets have importance 0, from `{adapter}` on: no gradient has reached the \
         adapters, or the learning rate is still 0, which a larger t_init mends"
    )]
    AllZero {
        /// The step of the allocation, 0-based.
        step: usize,
        /// Path of the first adapted layer.
        adapter: String,
    },
}

impl RankAllocator {
    /// An allocator for the adapters of `arena`, all of whose triplets live.
    pub fn new(metric: Box<dyn ImportanceMetric>, schedule: BudgetSchedule, arena: &Arena) -> Self {
        let layout = arena.layout().clone();
        let triplets = layout.triplet_count();
        let masked = Tensor::zeros([triplets as i64], (Kind::Bool, arena.param().device()));
        let pattern = RankPattern::full(&layout.ranks());
        let (kept, masking, observed, unread) = (schedule.initial(), false, 0, None);
        Self { metric, schedule, layout, masked, kept, masking, observed, pattern, unread }
    }

    /// Lets the metric see step `step` (0-based), once its gradient is in the arena. Called before the optimizer's
    /// step as in the paper, or after it as in the authors' code and PEFT. After the last allocation there is
    /// nothing to learn and nothing happens.
    pub fn observe(&mut self, step: usize, arena: &Arena) {
        self.observe_gradient(step, arena, &arena.adapter_grad());
    }

    /// [`observe`](Self::observe) with another gradient than the arena's, such as the one from before clipping.
    /// `grad` is flat, `(entries,)`.
    pub fn observe_gradient(&mut self, step: usize, arena: &Arena, grad: &Tensor) {
        if self.schedule.observes(step) {
            let _guard = tch::no_grad_guard();
            self.metric.observe(&Observation { param: &arena.adapter_param(), grad, layout: arena.layout() });
            self.observed += 1;
        }
    }

    /// Masks what the budget says after the optimizer's step `step` (0-based), and tells what was done.
    ///
    /// # Errors
    ///
    /// At an allocation: a step that was not observed; on the CPU also importance that is not finite or 0
    /// everywhere, which on another device [`pattern`](Self::pattern) finds when it is asked for.
    pub fn update(&mut self, step: usize, arena: &Arena) -> Result<BudgetAction, AllocationError> {
        let _guard = tch::no_grad_guard();
        let action = self.schedule.action(step);
        self.masking = action != BudgetAction::Free;
        match action {
            BudgetAction::Free => {}
            BudgetAction::Allocate { budget } => {
                self.allocate(step, budget, arena)?;
                self.apply(arena);
            }
            BudgetAction::Hold => self.apply(arena),
        }
        Ok(action)
    }

    fn allocate(&mut self, step: usize, budget: usize, arena: &Arena) -> Result<(), AllocationError> {
        let expected = (0..=step).rev().find(|&t| self.schedule.observes(t)).map_or(0, |last| last + 1);
        if self.observed != expected {
            return Err(AllocationError::NotObserved { step, observed: self.observed, expected });
        }
        let layout = &self.layout;
        let seen = Observation { param: &arena.adapter_param(), grad: &arena.adapter_grad(), layout };
        let importance = self.metric.importance(&seen);
        if importance.device() == Device::Cpu || self.schedule.unit() == BudgetUnit::Parameters {
            self.check(step, &importance)?;
        }
        match self.schedule.unit() {
            BudgetUnit::Triplets => {
                keep_top(&importance, layout.rows(), budget, self.schedule.min_r(), &mut self.masked);
                self.kept = budget.min(layout.triplet_count());
                self.unread = Some(Allocation { step, importance });
            }
            BudgetUnit::Parameters => {
                let scores: Vec<f32> =
                    (&importance).try_into().expect("an importance metric returns one f32 vector");
                let chosen = self.schedule.choose(budget, &scores, &layout.ranks());
                self.pattern = chosen.expect("importance was checked");
                let masked: Vec<bool> = self.pattern.live().iter().map(|live| !live).collect();
                self.masked.copy_(&Tensor::from_slice(&masked));
                self.kept = self.schedule.spent(&self.pattern);
                self.unread = None;
            }
        }
        Ok(())
    }

    /// Whether a choice can be made from this importance, which is read for it.
    fn check(&self, step: usize, importance: &Tensor) -> Result<(), AllocationError> {
        let importance: Vec<f32> =
            importance.try_into().expect("an importance metric returns one f32 vector");
        let path = |adapter: usize| self.layout.sites()[adapter].path.clone();
        if importance.iter().all(|&score| score == 0.0) && !importance.is_empty() {
            return Err(AllocationError::AllZero { step, adapter: path(0) });
        }
        let Some(at) = importance.iter().position(|score| !score.is_finite()) else { return Ok(()) };
        let own = |&adapter: &usize| self.layout.triplet_range(adapter).contains(&at);
        let adapter = (0..self.layout.adapters()).find(own).expect("each triplet has its adapter");
        let triplet = at - self.layout.triplet_range(adapter).start;
        Err(AllocationError::NotFinite { step, adapter: path(adapter), triplet })
    }

    fn apply(&self, arena: &Arena) {
        self.layout.mask(arena.param(), &self.masked);
    }

    /// The triplets that the last allocation kept; all of them before the first. The first call after an allocation
    /// waits for the device.
    ///
    /// # Errors
    ///
    /// If the importance that the last allocation went by was not finite, or 0 everywhere.
    pub fn pattern(&mut self) -> Result<&RankPattern, AllocationError> {
        if let Some(Allocation { step, importance }) = &self.unread {
            self.check(*step, importance)?;
            let live = self.masked.logical_not().try_into().expect("a mask is one vector of flags");
            self.pattern = RankPattern::new(&self.layout.ranks(), live);
            self.unread = None;
        }
        Ok(&self.pattern)
    }

    /// Which triplets the last update masked, `(triplets,)` on the arena's device; `None` if it masked none.
    pub fn masked(&self) -> Option<&Tensor> {
        self.masking.then_some(&self.masked)
    }

    /// What lives after the last update, in the budget's unit: all between two allocations, the pattern's otherwise.
    pub fn live(&self) -> usize {
        if self.masking { self.kept } else { self.schedule.initial() }
    }

    /// What part of a triplet's importance comes from lambda, from its column of P and from its row of Q: mean over all
    /// triplets, `(3,)`. `None` for a metric that is no sum of these. A triplet with importance 0 counts with zeros.
    pub fn shares(&self) -> Option<Tensor> {
        let _guard = tch::no_grad_guard();
        let entries = self.metric.entry_scores()?;
        let shaped = (0..self.layout.adapters()).map(|adapter| self.layout.triplets(&entries, adapter));
        let (mut p, mut q) = (Vec::new(), Vec::new());
        for of in shaped {
            p.push(of.p.mean_dim(1, false, Kind::Float));
            q.push(of.q.mean_dim(1, false, Kind::Float));
        }
        let (p, q) = (Tensor::cat(&p, 0), Tensor::cat(&q, 0));
        // LoRA's doublets have no lambda.
        let svd = self.layout.form() == Form::Svd;
        let lambda = if svd { self.layout.lambda(&entries) } else { p.zeros_like() };
        let parts = Tensor::stack(&[lambda, p, q], 0);
        let whole = parts.sum_dim_intlist(0, true, Kind::Float).clamp_min(f64::from(f32::MIN_POSITIVE));
        Some((parts / whole).mean_dim(1, false, Kind::Float))
    }

    /// The budget's schedule.
    pub fn schedule(&self) -> &BudgetSchedule {
        &self.schedule
    }

    /// The metric, for its state.
    pub fn metric(&mut self) -> &mut dyn ImportanceMetric {
        &mut *self.metric
    }

    /// The tensors that a checkpoint must hold, by name: the last allocation's mask, and the metric's own.
    pub fn state(&mut self) -> Vec<(String, &mut Tensor)> {
        let metric = self.metric.state().into_iter().map(|(name, tensor)| (format!("metric.{name}"), tensor));
        std::iter::once(("masked".to_owned(), &mut self.masked)).chain(metric).collect()
    }

    /// Goes on after `finished` optimizer steps, with what a checkpoint had as [`state`](Self::state) in its place.
    /// Everything else follows from the schedule.
    pub fn resume(&mut self, finished: usize) {
        let live = self.masked.logical_not().try_into().expect("a mask is one vector of flags");
        self.pattern = RankPattern::new(&self.layout.ranks(), live);
        self.kept = self.schedule.spent(&self.pattern);
        self.masking = finished > 0 && self.schedule.action(finished - 1) != BudgetAction::Free;
        self.observed = (0..finished).filter(|&step| self.schedule.observes(step)).count();
        self.unread = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use adalora_adapter::Site;
    use adalora_budget::{BudgetSpec, Phases};
    use adalora_importance::{ImportanceSpec, Start};

    fn set_up(spec: ImportanceSpec, total_steps: usize) -> (RankAllocator, Arena) {
        set_up_with(spec, Some(1), None, total_steps)
    }

    fn set_up_with(
        spec: ImportanceSpec,
        target_r: Option<usize>,
        target_parameters: Option<usize>,
        total_steps: usize,
    ) -> (RankAllocator, Arena) {
        let site = |path: &str, d_in, d_out| Site { path: path.into(), d_in, d_out, rank: 3 };
        let layout = Layout::new(Form::Svd, vec![site("first", 4, 2), site("second", 2, 5)]);
        let arena = Arena::new(layout, vec![], Device::Cpu, 1);
        let phases = Phases { target_r, target_parameters, t_init: 1, t_final: 2, delta_t: 2, min_r: 0 };
        let (ranks, costs) = (arena.layout().ranks(), arena.layout().triplet_costs());
        let schedule = BudgetSchedule::new(&BudgetSpec::Cubic(phases), &ranks, &costs, total_steps).unwrap();
        let start = Start { layout: arena.layout(), device: Device::Cpu, seed: 1 };
        (RankAllocator::new(spec.start(&start), schedule, &arena), arena)
    }

    fn lambda(arena: &Arena) -> Tensor {
        arena.layout().lambda(arena.param())
    }

    #[test]
    fn a_step_that_was_not_observed_is_an_error() {
        let (mut allocator, arena) = set_up(ImportanceSpec::all().remove(0), 10);
        let _ = arena.param().shallow_clone().fill_(1.0);
        let _ = arena.grad().shallow_clone().fill_(1.0);
        allocator.observe(0, &arena);
        assert_eq!(allocator.update(1, &arena), Ok(BudgetAction::Free));
        let error = allocator.update(2, &arena).unwrap_err();
        assert_eq!(error, AllocationError::NotObserved { step: 2, observed: 1, expected: 3 });
    }

    #[test]
    fn useless_importance_is_an_error_that_names_the_adapter() {
        let (mut allocator, arena) = set_up(ImportanceSpec::all().remove(0), 10);
        (0..3).for_each(|step| allocator.observe(step, &arena));
        let error = allocator.update(2, &arena).unwrap_err();
        assert_eq!(error, AllocationError::AllZero { step: 2, adapter: "first".into() });

        let (mut allocator, arena) = set_up(ImportanceSpec::all().remove(0), 10);
        let _ = arena.layout().triplets(arena.grad(), 1).q.get(2).fill_(f64::NAN);
        (0..3).for_each(|step| allocator.observe(step, &arena));
        let error = allocator.update(2, &arena).unwrap_err();
        assert_eq!(error, AllocationError::NotFinite { step: 2, adapter: "second".into(), triplet: 2 });
    }

    #[test]
    fn a_budget_of_parameters_is_kept_to_the_last_triplet_that_fits() {
        // Triplets of 7 and of 8 parameters, 45 at first, and 24 at the end.
        let (mut allocator, arena) =
            set_up_with(ImportanceSpec::Magnitude(Default::default()), None, Some(24), 10);
        let mut live = Vec::new();
        for step in 0..10 {
            lambda(&arena).copy_(&Tensor::from_slice(&[1f32, 6.0, 2.0, 5.0, 4.0, 3.0]));
            allocator.observe(step, &arena);
            allocator.update(step, &arena).unwrap();
            live.push(allocator.live());
        }
        /* Python: [int(24 + 21 * (1 - (t - 1) / 7) ** 3) for t in (2, 4, 6)] is 37, 27, 24. In the order of lambda
        7, 8, 8, 8, 7, 7 fit into 37 up to the fourth (31), into 27 up to the third (23). */
        assert_eq!(live, [45, 45, 31, 45, 23, 45, 23, 45, 23, 23]);
        let schedule = allocator.schedule().clone();
        let pattern = allocator.pattern().unwrap();
        assert_eq!(pattern.live(), [false, true, false, true, true, false]);
        assert!(schedule.is_met_by(pattern), "1 is left, and no triplet has so few");
        let nonzero = Vec::<f32>::try_from(lambda(&arena)).unwrap();
        assert_eq!(nonzero, [0.0, 6.0, 0.0, 5.0, 4.0, 0.0]);
    }

    #[test]
    fn masked_triplets_may_come_back_until_the_final_phase_and_then_never() {
        let (mut allocator, arena) = set_up(ImportanceSpec::Magnitude(Default::default()), 10);
        let mut live_counts = Vec::new();
        for step in 0..10 {
            // Each step another order of the six triplets.
            let values: Vec<f32> = (0..6).map(|i| ((i + step) % 6 + 1) as f32).collect();
            lambda(&arena).copy_(&Tensor::from_slice(&values));
            allocator.observe(step, &arena);
            allocator.update(step, &arena).unwrap();
            live_counts.push(lambda(&arena).ne(0.0).sum(Kind::Int64).int64_value(&[]));
        }
        // Allocations at 2, 4, 6 and 8 with budgets 4, 2, 2 and 2; all live in between; held at 9.
        assert_eq!(live_counts, [6, 6, 4, 6, 2, 6, 2, 6, 2, 2]);
        let held: Vec<_> = (0..6).filter(|&i| allocator.pattern().unwrap().live()[i]).collect();
        // At step 8 triplet i had the value (i + 8) % 6 + 1: the largest are 3 (6) and 2 (5).
        assert_eq!(held, [2, 3]);
    }

    #[test]
    fn shares_say_where_importance_comes_from() {
        // |w g| is 1 for each lambda, 3 for each entry of P and 0.5 for each of Q; the mean over a row forgets its width.
        let expected = [1.0, 3.0, 0.5].map(|part| part / 4.5);
        let (mut allocator, arena) = set_up(ImportanceSpec::Sensitivity(Default::default()), 10);
        let _ = arena.param().shallow_clone().fill_(1.0);
        let _ = lambda(&arena).fill_(-1.0);
        let _ = arena.grad().shallow_clone().fill_(1.0);
        for adapter in 0..2 {
            let triplets = arena.layout().triplets(arena.grad(), adapter);
            let _ = (triplets.p.shallow_clone().fill_(-3.0), triplets.q.shallow_clone().fill_(0.5));
        }
        allocator.observe(0, &arena);
        let shares: Vec<f64> = allocator.shares().unwrap().try_into().unwrap();
        for (own, expected) in shares.iter().zip(expected) {
            assert!((own - expected).abs() < 1e-6, "{shares:?}");
        }

        // The paper's score is the product of two averages, each proportional to |w g|: parts count with their squares.
        let (mut allocator, arena) = set_up(ImportanceSpec::all().remove(0), 10);
        let _ = arena.param().shallow_clone().fill_(1.0);
        let _ = lambda(&arena).fill_(2.0);
        let _ = arena.grad().shallow_clone().fill_(1.0);
        allocator.observe(0, &arena);
        let shares: Vec<f64> = allocator.shares().unwrap().try_into().unwrap();
        for (own, expected) in shares.iter().zip([4.0, 1.0, 1.0].map(|part| part / 6.0)) {
            assert!((own - expected).abs() < 1e-6, "{shares:?}");
        }
        assert!(set_up(ImportanceSpec::Magnitude(Default::default()), 10).0.shares().is_none());
    }
}
