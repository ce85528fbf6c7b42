//! What a trainer must remember to go on as if it had never stopped.

use std::collections::BTreeMap;

use adalora::{RankAllocator, RankPattern};
use tch::{Device, Kind, Tensor};

use super::{Since, TrainError, Trainer, batches_after};

/// Losses since the last record, `(n,)`.
const LOSSES: &str = "losses";
/// Which of the initial triplets the arena still holds, one flag each; only once it is compact.
const COMPACTED: &str = "compacted";

/// Everything about a trainer that its settings, its seed and the step do not determine. The order of the data, dropout
/// and the learning rate are functions of these, so there is no generator to save.
#[derive(Debug)]
pub struct State {
    /// Finished optimizer steps.
    pub step: usize,
    /// By name, on the CPU: parameters as they are, dead triplets included until the arena is compact; both moments;
    /// mask and metric of the allocator; losses since the last record.
    pub tensors: BTreeMap<String, Tensor>,
}

/// A state that belongs to another run.
#[derive(Debug, thiserror::Error)]
#[error("the checkpoint does not fit this run: it has {found} as `{name}`, where the run has {own}")]
pub struct MisfitState {
    name: String,
    found: String,
    own: String,
}

impl Trainer<'_> {
    /// A copy of all that the steps to come depend on.
    ///
    /// # Errors
    ///
    /// A loss since the last record that was not finite, or an allocation without importance to go by: what has
    /// diverged is not worth keeping.
    pub fn state(&mut self) -> Result<State, TrainError> {
        if !self.recorded.losses.is_empty() {
            self.mean_loss()?;
        }
        self.pattern()?;
        let mut tensors: BTreeMap<_, _> = self.changing().into_iter().collect();
        let losses = &self.recorded.losses;
        if !losses.is_empty() {
            tensors.insert(LOSSES.into(), Tensor::stack(losses, 0));
        }
        if let Some(pattern) = &self.compacted {
            tensors.insert(COMPACTED.into(), Tensor::from_slice(pattern.live()));
        }
        let tensors = tensors.into_iter().map(|(name, tensor)| (name, tensor.to_device(Device::Cpu).copy()));
        Ok(State { step: self.finished, tensors: tensors.collect() })
    }

    /// Goes on from `state`. `self` is as [`Trainer::new`] made it.
    ///
    /// # Errors
    ///
    /// A state with other tensors than this run's.
    pub fn restore(&mut self, State { step, mut tensors }: State) -> Result<(), MisfitState> {
        let _guard = tch::no_grad_guard();
        let total = self.plan.total_steps;
        if step > total {
            let found = format!("step {step}");
            return Err(MisfitState { name: "step".into(), found, own: format!("{total} steps in all") });
        }
        if let Some(losses) = tensors.get(LOSSES).filter(|losses| losses.dim() != 1) {
            let own = "one value for each step since the last record".into();
            return Err(MisfitState { name: LOSSES.into(), found: describe(losses), own });
        }
        if let Some(live) = tensors.remove(COMPACTED) {
            let initial = self.plan.layout.ranks();
            fits(COMPACTED, Some(&live), &Tensor::from_slice(RankPattern::full(&initial).live()))?;
            self.compact_to(RankPattern::new(&initial, live.try_into().expect("one vector of flags")));
        }
        let losses = tensors.remove(LOSSES);
        for (name, mut own) in self.changing() {
            let found = tensors.remove(&name);
            fits(&name, found.as_ref(), &own)?;
            own.copy_(&found.expect("it fits"));
        }
        if let Some((name, tensor)) = tensors.pop_first() {
            return Err(MisfitState { name, found: describe(&tensor), own: "nothing".into() });
        }
        if let Some(allocator) = &mut self.allocator {
            allocator.resume(step);
            let pattern = allocator.pattern().expect("a pattern that was resumed has been read");
            let live = pattern.ranks();
            self.attach(&live);
        }
        self.optimizer.resume(step);
        self.finished = step;
        self.batches = batches_after(step, self.spec, self.plan, self.dataset, self.seed);
        let losses = losses.map_or_else(Vec::new, |losses| losses.to_device(self.device).unbind(0));
        self.recorded = Since { losses, ..Since::default() };
        Ok(())
    }

    /// Every tensor that a step changes, by name; they share storage with the trainer's.
    fn changing(&mut self) -> Vec<(String, Tensor)> {
        let mut tensors = vec![("param".to_owned(), self.arena.param().shallow_clone())];
        let moments = self.optimizer.state();
        tensors.extend(moments.map(|(name, tensor)| (name.to_owned(), tensor.shallow_clone())));
        let allocator = self.allocator.as_mut().map(RankAllocator::state);
        let allocator = allocator.into_iter().flatten();
        tensors.extend(allocator.map(|(name, tensor)| (name, tensor.shallow_clone())));
        tensors
    }
}

fn fits(name: &str, found: Option<&Tensor>, own: &Tensor) -> Result<(), MisfitState> {
    let same = |found: &Tensor| found.size() == own.size() && found.kind() == own.kind();
    if found.is_some_and(same) {
        return Ok(());
    }
    let found = found.map_or("nothing".into(), describe);
    Err(MisfitState { name: name.into(), found, own: describe(own) })
}

fn describe(tensor: &Tensor) -> String {
    let (kind, shape): (Kind, _) = (tensor.kind(), tensor.size());
    format!("{kind:?} values of shape {shape:?}")
}
