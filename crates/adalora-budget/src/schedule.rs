//! `b(t)`: how many triplets live after each optimizer step, and when they are chosen anew.

use std::f64::consts::PI;
use std::fmt;
use std::ops::RangeInclusive;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::pattern::{RankPattern, SelectionError};

/// `[budget.cubic]` and its siblings: the curve along which the budget shrinks, and its phases.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum BudgetSpec {
    /// `1 - (1 - x)^3` of the reduction is done at the fraction `x` of the window: the paper's.
    Cubic(Phases),
    /// Shrinks by the same amount at every step of the window.
    Linear(Phases),
    /// Half a cosine: slow at both ends of the window.
    Cosine(Phases),
    /// The target at once, from the first allocation after `t_init` on.
    Constant(Phases),
}

/// Target and phases, common to all curves. Steps are optimizer steps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Phases {
    /// Average rank at the end; the final budget is `target_r` times the number of adapters. Either this or
    /// `target_parameters`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_r: Option<usize>,
    /// Parameters of all live triplets at the end, at most: the budget counts parameters then. Either this or
    /// `target_r`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_parameters: Option<usize>,
    /// Steps of warm-up, in which all triplets live.
    pub t_init: usize,
    /// Steps of the final phase, in which the last pattern is held.
    pub t_final: usize,
    /// Steps between two allocations, counted from step 0. In between all triplets may live again.
    #[serde(default = "every_step")]
    pub delta_t: usize,
    /// Live triplets that every adapter keeps at least. 0 as in the paper: an adapter may vanish.
    #[serde(default)]
    pub min_r: usize,
}

fn every_step() -> usize {
    1
}

impl Phases {
    /// In what the budget is counted. Where neither target is given, or both, [`BudgetSchedule::new`] says so.
    pub fn unit(&self) -> BudgetUnit {
        if self.target_parameters.is_some() { BudgetUnit::Parameters } else { BudgetUnit::Triplets }
    }
}

/// In what a budget is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BudgetUnit {
    /// Live triplets, each of which costs 1: paper and both codes.
    Triplets,
    /// Parameters of the live triplets: one of a wider layer costs more.
    Parameters,
}

impl fmt::Display for BudgetUnit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Triplets => "triplets",
            Self::Parameters => "parameters",
        })
    }
}

/// A rule that a [`BudgetSpec`] breaks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BudgetError {
    /// No target.
    #[error("target_r or target_parameters is missing: what the budget shrinks to")]
    TargetMissing,
    /// Two targets.
    #[error(
        "target_r ({target_r}) and target_parameters ({target_parameters}) both say what the budget shrinks to: \
         keep one"
    )]
    TargetTwice {
        /// Average final rank.
        target_r: usize,
        /// Final parameters.
        target_parameters: usize,
    },
    /// Not one triplet fits.
    #[error("target_parameters ({target}) must be at least {cheapest}, which the smallest triplet has")]
    TargetBelowTriplet {
        /// What the file asks for.
        target: usize,
        /// Parameters of a triplet of the narrowest layer.
        cheapest: usize,
    },
    /// The final budget exceeds the initial parameters.
    #[error("target_parameters ({target}) must not exceed the {initial} parameters at the initial rank")]
    ParametersAboveInit {
        /// What the file asks for.
        target: usize,
        /// Parameters at the start.
        initial: usize,
    },
    /// The floors have more parameters than the final budget.
    #[error("min_r ({min_r}) needs {floors} parameters, more than target_parameters ({target})")]
    FloorAboveParameters {
        /// Triplets that every adapter keeps.
        min_r: usize,
        /// Their parameters over all adapters.
        floors: usize,
        /// Final parameters.
        target: usize,
    },
    /// `target_r` is 0.
    #[error("target_r must be at least 1: with 0 no triplet would be left to train")]
    TargetZero,
    /// The final budget exceeds the initial one.
    #[error("target_r ({target_r}) must not exceed the initial rank ({init_r})")]
    TargetAboveInit {
        /// What the file asks for.
        target_r: usize,
        /// Average initial rank, rounded down.
        init_r: usize,
    },
    /// `delta_t` is 0.
    #[error("delta_t must be at least 1: it is the number of steps from one allocation to the next")]
    DeltaZero,
    /// Warm-up and final phase fill the run.
    #[error(
        "t_init ({t_init}) + t_final ({t_final}) leave no step of {total_steps} to shrink the budget; \
         their sum must be below {total_steps}"
    )]
    NoStepToShrink {
        /// Steps of warm-up.
        t_init: usize,
        /// Steps of the final phase.
        t_final: usize,
        /// Steps of the run.
        total_steps: usize,
    },
    /// The floors add up to more than the final budget.
    #[error("min_r ({min_r}) must not exceed target_r ({target_r})")]
    FloorAboveTarget {
        /// Triplets that every adapter keeps.
        min_r: usize,
        /// Average final rank.
        target_r: usize,
    },
}

impl BudgetError {
    /// The key of the specification that breaks the rule, to point at it in a file.
    pub fn key(&self) -> &'static str {
        match self {
            Self::TargetMissing | Self::TargetZero | Self::TargetAboveInit { .. } => "target_r",
            Self::TargetTwice { .. } | Self::TargetBelowTriplet { .. } | Self::ParametersAboveInit { .. } => {
                "target_parameters"
            }
            Self::DeltaZero => "delta_t",
            Self::NoStepToShrink { .. } => "t_final",
            Self::FloorAboveTarget { .. } | Self::FloorAboveParameters { .. } => "min_r",
        }
    }
}

/// What is to be done after an optimizer step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BudgetAction {
    /// Nothing: warm-up, or between two allocations.
    Free,
    /// Choose the most important triplets that the budget has room for and mask the others.
    Allocate {
        /// What may live over all adapters, in the schedule's unit.
        budget: usize,
    },
    /// Mask again what the last allocation masked.
    Hold,
}

/// A budget schedule for one run: a function of the step, without state.
///
/// Steps are 0-based: step `t` is the `t`-th optimizer step, and its action follows that step's update.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BudgetSchedule {
    curve: Curve,
    unit: BudgetUnit,
    /// What a triplet of each adapter takes of the budget.
    costs: Vec<usize>,
    initial: usize,
    target: usize,
    t_init: usize,
    t_final: usize,
    delta_t: usize,
    min_r: usize,
    total_steps: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Curve {
    Cubic,
    Linear,
    Cosine,
    Constant,
}

impl BudgetSpec {
    /// The phases, whatever the curve.
    pub fn phases(&self) -> &Phases {
        match self {
            Self::Cubic(phases) | Self::Linear(phases) | Self::Cosine(phases) | Self::Constant(phases) => {
                phases
            }
        }
    }

    /// Every curve's name in an experiment file, with what it does.
    pub const CURVES: [(&str, &str); 4] = [
        ("cubic", "fast first, then slower: the paper's"),
        ("linear", "the same amount at every step"),
        ("cosine", "slow at both ends"),
        ("constant", "the target at once, at the first allocation"),
    ];

    /// The curve's name in an experiment file.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Cubic(_) => "cubic",
            Self::Linear(_) => "linear",
            Self::Cosine(_) => "cosine",
            Self::Constant(_) => "constant",
        }
    }

    fn curve(&self) -> Curve {
        match self {
            Self::Cubic(_) => Curve::Cubic,
            Self::Linear(_) => Curve::Linear,
            Self::Cosine(_) => Curve::Cosine,
            Self::Constant(_) => Curve::Constant,
        }
    }
}

impl BudgetSchedule {
    /// The schedule of a run of `total_steps` optimizer steps over adapters that start with these ranks, and of which a
    /// triplet has these parameters.
    ///
    /// # Errors
    ///
    /// Every rule that the specification breaks.
    ///
    /// # Panics
    ///
    /// If there is not one rank and one cost for each adapter.
    pub fn new(
        spec: &BudgetSpec,
        ranks: &[usize],
        parameters: &[usize],
        total_steps: usize,
    ) -> Result<Self, Vec<BudgetError>> {
        assert_eq!(ranks.len(), parameters.len(), "a rank and a cost for each adapter");
        let &Phases { target_r, target_parameters, t_init, t_final, delta_t, min_r } = spec.phases();
        let adapters = ranks.len();
        let unit = spec.phases().unit();
        let costs = match unit {
            BudgetUnit::Triplets => vec![1; adapters],
            BudgetUnit::Parameters => parameters.to_vec(),
        };
        let of = |rank: &dyn Fn(usize) -> usize| {
            let costs = ranks.iter().zip(&costs).map(|(own, cost)| rank(*own).saturating_mul(*cost));
            costs.fold(0, usize::saturating_add)
        };
        let initial = of(&|own| own);
        let (target, of_target) = match (target_r, target_parameters) {
            (None, None) => (0, vec![(true, BudgetError::TargetMissing)]),
            (Some(target_r), Some(target_parameters)) => {
                (0, vec![(true, BudgetError::TargetTwice { target_r, target_parameters })])
            }
            (Some(target_r), None) => (
                target_r.saturating_mul(adapters),
                vec![
                    (target_r == 0, BudgetError::TargetZero),
                    (
                        target_r.saturating_mul(adapters) > initial,
                        BudgetError::TargetAboveInit { target_r, init_r: initial / adapters.max(1) },
                    ),
                    (target_r > 0 && min_r > target_r, BudgetError::FloorAboveTarget { min_r, target_r }),
                ],
            ),
            (None, Some(target)) => {
                let cheapest = costs.iter().copied().min().unwrap_or(0);
                let floors = of(&|own| own.min(min_r));
                let rules = vec![
                    (target < cheapest, BudgetError::TargetBelowTriplet { target, cheapest }),
                    (target > initial, BudgetError::ParametersAboveInit { target, initial }),
                    (floors > target, BudgetError::FloorAboveParameters { min_r, floors, target }),
                ];
                (target, rules)
            }
        };
        let of_steps = [
            (delta_t == 0, BudgetError::DeltaZero),
            (t_init + t_final >= total_steps, BudgetError::NoStepToShrink { t_init, t_final, total_steps }),
        ];
        let broken: Vec<_> = of_target
            .into_iter()
            .chain(of_steps)
            .filter_map(|(broken, error)| broken.then_some(error))
            .collect();
        if !broken.is_empty() {
            return Err(broken);
        }
        let curve = spec.curve();
        Ok(Self { curve, unit, costs, initial, target, t_init, t_final, delta_t, min_r, total_steps })
    }

    /// The most important triplets that `budget` has room for: the plain form of what an allocation does.
    ///
    /// # Errors
    ///
    /// Importance that is not finite.
    ///
    /// # Panics
    ///
    /// If there is not one importance for each triplet.
    pub fn choose(
        &self,
        budget: usize,
        importance: &[f32],
        ranks: &[usize],
    ) -> Result<RankPattern, SelectionError> {
        RankPattern::keep_within(importance, ranks, &self.costs, budget, self.min_r)
    }

    /// What a pattern takes of the budget.
    pub fn spent(&self, pattern: &RankPattern) -> usize {
        pattern.cost(&self.costs)
    }

    /// Whether a run with this pattern has ended on its budget. Counted in triplets, all of it is spent. Counted in
    /// parameters, it is not exceeded, and no triplet that was dropped would fit into what is left.
    pub fn is_met_by(&self, pattern: &RankPattern) -> bool {
        let Some(left) = self.target.checked_sub(self.spent(pattern)) else { return false };
        let mut adapters = pattern.by_adapter().zip(&self.costs);
        adapters.all(|(flags, &cost)| cost > left || flags.iter().all(|live| *live))
    }

    /// What may live over all adapters after optimizer step `step`, if it allocates, in the schedule's unit.
    ///
    /// For the cubic curve `b(t) = b_T + (b_0 - b_T) * (1 - (t - t_init) / (T - t_init - t_final))^3` between the
    /// two phases, rounded down. AdaLoRA (2023), equation 14; the numerator printed there subtracts `t_final` once
    /// more, which would start above `b_0`, so this follows the authors' code. The cube is `powf(3.0)` in `f64`
    /// like theirs: `x * x * x` rounds to another budget now and then.
    pub fn budget(&self, step: usize) -> usize {
        if step >= self.last_allocation() {
            return self.target;
        }
        if step <= self.t_init {
            return self.initial;
        }
        let window = (self.total_steps - self.t_init - self.t_final) as f64;
        let left = 1.0 - (step - self.t_init) as f64 / window;
        let share = match self.curve {
            Curve::Cubic => left.powf(3.0),
            Curve::Linear => left,
            Curve::Cosine => 0.5 * (1.0 + (PI * (1.0 - left)).cos()),
            Curve::Constant => 0.0,
        };
        ((self.initial - self.target) as f64 * share + self.target as f64) as usize
    }

    /// What follows optimizer step `step`.
    ///
    /// Allocations fall on multiples of `delta_t`, and one on the end of the reduction whatever `delta_t` is, so
    /// that a run always ends on its budget. The authors' code lacks that last one, PEFT forces it as we do.
    pub fn action(&self, step: usize) -> BudgetAction {
        let last = self.last_allocation();
        if step <= self.t_init && step != last {
            BudgetAction::Free
        } else if step > last {
            BudgetAction::Hold
        } else if step.is_multiple_of(self.delta_t) || step == last {
            BudgetAction::Allocate { budget: self.budget(step) }
        } else {
            BudgetAction::Free
        }
    }

    /// How many steps of the run allocate.
    pub fn allocations(&self) -> usize {
        let last = self.last_allocation();
        let before = last.saturating_sub(1) / self.delta_t;
        before.saturating_sub(self.t_init / self.delta_t) + 1
    }

    /// Whether an importance metric still observes step `step`: before the last allocation, as in both codes.
    /// In a run whose only allocation is at step 0 that step is observed.
    pub fn observes(&self, step: usize) -> bool {
        step < self.last_allocation().max(1)
    }

    /// The step of the last allocation, after which the pattern is held: `T - t_final`, or the last step of the
    /// run where there is no final phase (PEFT's would fall behind the end and never come).
    pub fn last_allocation(&self) -> usize {
        (self.total_steps - self.t_final).min(self.total_steps - 1)
    }

    /// Steps of warm-up, reduction and final phase; the last is empty where `t_final` is 0 or 1.
    pub fn phases(&self) -> [RangeInclusive<usize>; 3] {
        let last = self.last_allocation();
        [0..=self.t_init, self.t_init + 1..=last, last + 1..=self.total_steps - 1]
    }

    /// In what the budget is counted.
    pub fn unit(&self) -> BudgetUnit {
        self.unit
    }

    /// The budget at the start: all triplets, or all parameters.
    pub fn initial(&self) -> usize {
        self.initial
    }

    /// The budget at the end, in the schedule's unit.
    pub fn target(&self) -> usize {
        self.target
    }

    /// Triplets that every adapter keeps at least.
    pub fn min_r(&self) -> usize {
        self.min_r
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn phases(target_r: usize, t_init: usize, t_final: usize, delta_t: usize) -> Phases {
        Phases { target_r: Some(target_r), target_parameters: None, t_init, t_final, delta_t, min_r: 0 }
    }

    fn cubic(target_r: usize, t_init: usize, t_final: usize, delta_t: usize) -> BudgetSpec {
        BudgetSpec::Cubic(phases(target_r, t_init, t_final, delta_t))
    }

    #[test]
    fn cubic_curve_is_the_authors() {
        let schedule = BudgetSchedule::new(&cubic(2, 10, 20, 1), &[3; 16], &[7; 16], 100).unwrap();
        /* Python: [int(32 + 16 * (1 - (t - 10) / 70) ** 3) for t in (10, 11, 45, 80)] */
        assert_eq!([10, 11, 45, 80].map(|t| schedule.budget(t)), [48, 47, 34, 32]);
    }

    #[test]
    fn the_other_curves() {
        let at = |spec: BudgetSpec| {
            let schedule = BudgetSchedule::new(&spec, &[3; 16], &[7; 16], 100).unwrap();
            [10, 11, 30, 45, 79, 80].map(|t| schedule.budget(t))
        };
        /* Python, x = (t - 10) / 70: int(32 + 16 * (1 - x)); int(32 + 16 * .5 * (1 + cos(pi * x))) */
        assert_eq!(at(BudgetSpec::Linear(phases(2, 10, 20, 1))), [48, 47, 43, 40, 32, 32]);
        assert_eq!(at(BudgetSpec::Cosine(phases(2, 10, 20, 1))), [48, 47, 44, 40, 32, 32]);
        assert_eq!(at(BudgetSpec::Constant(phases(2, 10, 20, 1))), [48, 32, 32, 32, 32, 32]);
    }

    #[test]
    fn the_last_allocation_comes_whatever_delta_t_is() {
        let schedule = BudgetSchedule::new(&cubic(1, 4, 8, 5), &[3; 4], &[7; 4], 30).unwrap();
        let allocations: Vec<_> =
            (0..30).filter(|&t| matches!(schedule.action(t), BudgetAction::Allocate { .. })).collect();
        assert_eq!(allocations, [5, 10, 15, 20, 22]);
        assert_eq!(schedule.action(22), BudgetAction::Allocate { budget: 4 });
        assert_eq!(schedule.action(23), BudgetAction::Hold);
    }

    #[test]
    fn every_broken_rule_is_reported() {
        let spec = BudgetSpec::Linear(Phases { delta_t: 0, min_r: 7, ..phases(5, 6, 5, 1) });
        let broken = BudgetSchedule::new(&spec, &[3; 4], &[7; 4], 10).unwrap_err();
        let texts: Vec<_> = broken.iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "target_r (5) must not exceed the initial rank (3)",
                "min_r (7) must not exceed target_r (5)",
                "delta_t must be at least 1: it is the number of steps from one allocation to the next",
                "t_init (6) + t_final (5) leave no step of 10 to shrink the budget; their sum must be below 10",
            ]
        );
    }

    fn parameters(target: Option<usize>, target_r: Option<usize>, min_r: usize) -> BudgetSpec {
        BudgetSpec::Linear(Phases { target_r, target_parameters: target, min_r, ..phases(1, 2, 3, 1) })
    }

    #[test]
    fn a_budget_of_parameters_shrinks_along_the_same_curve() {
        // Two triplets of 5 and three of 2: 16 parameters, down to 9 over steps 2 to 7.
        let schedule = BudgetSchedule::new(&parameters(Some(9), None, 0), &[2, 3], &[5, 2], 10).unwrap();
        assert_eq!((schedule.unit(), schedule.initial(), schedule.target()), (BudgetUnit::Parameters, 16, 9));
        /* Python: [int(9 + 7 * (1 - (t - 2) / 5)) for t in range(2, 8)] */
        assert_eq!([2, 3, 4, 5, 6, 7].map(|t| schedule.budget(t)), [16, 14, 13, 11, 10, 9]);

        let met = |live: [bool; 5]| schedule.is_met_by(&RankPattern::new(&[2, 3], live.to_vec()));
        assert!(met([true, false, true, true, false]), "all of it");
        assert!(!met([true, true, false, false, false]), "more than all of it");
        assert!(!met([true, false, true, false, false]), "another one of 2 would fit");
        let even = BudgetSchedule::new(&parameters(Some(10), None, 0), &[2, 3], &[5, 2], 10).unwrap();
        assert!(
            even.is_met_by(&RankPattern::new(&[2, 3], vec![true, false, true, true, false])),
            "1 is left"
        );
    }

    #[test]
    fn rules_of_a_budget_of_parameters() {
        let broken = |spec: BudgetSpec| {
            let broken = BudgetSchedule::new(&spec, &[2, 3], &[5, 2], 10).unwrap_err();
            broken.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(
            broken(parameters(Some(1), None, 1)),
            [
                "target_parameters (1) must be at least 2, which the smallest triplet has",
                "min_r (1) needs 7 parameters, more than target_parameters (1)",
            ]
        );
        assert_eq!(
            broken(parameters(Some(17), None, 0)),
            ["target_parameters (17) must not exceed the 16 parameters at the initial rank"]
        );
        assert_eq!(
            broken(parameters(Some(9), Some(1), 0)),
            ["target_r (1) and target_parameters (9) both say what the budget shrinks to: keep one"]
        );
        assert_eq!(
            broken(parameters(None, None, 0)),
            ["target_r or target_parameters is missing: what the budget shrinks to"]
        );
    }

    proptest! {
        #[test]
        fn the_budget_never_grows_and_a_run_ends_on_it(
            total in 1..200usize, adapters in 1..20usize, init_r in 1..12usize, delta_t in 1..200usize,
            target in 0.0..1.0f64, warm_up in 0.0..1.0f64, hold in 0.0..1.0f64, curve in 0..4usize,
        ) {
            let t_init = (warm_up * total as f64) as usize;
            let t_final = (hold * (total - t_init) as f64) as usize;
            let phases = phases(1 + (target * init_r as f64) as usize, t_init, t_final, delta_t);
            let curves = [BudgetSpec::Cubic, BudgetSpec::Linear, BudgetSpec::Cosine, BudgetSpec::Constant];
            let schedule = BudgetSchedule::new(&curves[curve](phases), &vec![init_r; adapters], &vec![7; adapters], total).unwrap();
            prop_assert!((1..total).all(|t| schedule.budget(t) <= schedule.budget(t - 1)));
            let last = (0..total).rev().find_map(|t| match schedule.action(t) {
                BudgetAction::Allocate { budget } => Some((t, budget)),
                _ => None,
            });
            prop_assert_eq!(last, Some((schedule.last_allocation(), schedule.target())));
            prop_assert!((schedule.last_allocation() + 1..total).all(|t| schedule.action(t) == BudgetAction::Hold));
            let is_allocation = |t: &usize| matches!(schedule.action(*t), BudgetAction::Allocate { .. });
            prop_assert_eq!(schedule.allocations(), (0..total).filter(is_allocation).count());
            let covered: usize = schedule.phases().into_iter().map(|phase| phase.count()).sum();
            prop_assert_eq!(covered, total);
        }
    }
}
