//! The choice of the triplets that live.

/// Which triplets live: for each adapter, in build order, one flag for each triplet it started with.
///
/// Flat like the importance of all triplets: adapters one after another, triplets inside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RankPattern {
    /// Triplets each adapter started with.
    initial: Vec<usize>,
    live: Vec<bool>,
}

/// Importance that no choice can be made from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SelectionError {
    /// A NaN or an infinity.
    #[error("the importance of triplet {triplet} of adapter {adapter} is not finite")]
    NotFinite {
        /// Adapter, in build order.
        adapter: usize,
        /// Triplet inside the adapter.
        triplet: usize,
    },
}

impl RankPattern {
    /// All triplets live.
    pub fn full(initial: &[usize]) -> Self {
        Self { initial: initial.to_vec(), live: vec![true; initial.iter().sum()] }
    }

    /// The pattern of these flags, adapters one after another.
    ///
    /// # Panics
    ///
    /// If there is not one flag for each triplet.
    pub fn new(initial: &[usize], live: Vec<bool>) -> Self {
        assert_eq!(live.len(), initial.iter().sum::<usize>(), "one flag for each triplet");
        Self { initial: initial.to_vec(), live }
    }

    /// The `budget` triplets of the largest importance, over all adapters; first the `min_r` best of each adapter,
    /// where it has so many.
    ///
    /// Exactly `budget` triplets live (all, if there are fewer). Of equal triplets the earlier one is kept. The
    /// authors' code and PEFT remove everything up to a threshold and so lose more on ties.
    ///
    /// # Errors
    ///
    /// A score that is not finite.
    ///
    /// # Panics
    ///
    /// If there is not one score for each triplet, or the floors exceed the budget.
    pub fn keep_top(
        importance: &[f32],
        initial: &[usize],
        budget: usize,
        min_r: usize,
    ) -> Result<Self, SelectionError> {
        Self::keep_within(importance, initial, &vec![1; initial.len()], budget, min_r)
    }

    /// The most important triplets that fit into a budget, of which a triplet of adapter `k` takes `costs[k]`: first
    /// the `min_r` best of each adapter, where it has so many, then one after another by importance, over all adapters.
    /// One that does not fit into what is left is passed over, and less important ones that cost less may still fit.
    ///
    /// The budget is never exceeded, and no triplet that is dropped would have fitted into what is left. Of equal
    /// triplets the earlier one is tried first. If all costs are 1 this is [`keep_top`](Self::keep_top).
    ///
    /// # Errors
    ///
    /// A score that is not finite.
    ///
    /// # Panics
    ///
    /// If there is not one score for each triplet and one cost for each adapter, or the floors exceed the budget.
    pub fn keep_within(
        importance: &[f32],
        initial: &[usize],
        costs: &[usize],
        budget: usize,
        min_r: usize,
    ) -> Result<Self, SelectionError> {
        assert_eq!(importance.len(), initial.iter().sum::<usize>(), "one importance for each triplet");
        assert_eq!(costs.len(), initial.len(), "one cost for each adapter");
        let mut pattern = Self { initial: initial.to_vec(), live: vec![false; importance.len()] };
        if let Some(at) = importance.iter().position(|score| !score.is_finite()) {
            let (adapter, triplet) = pattern.locate(at);
            return Err(SelectionError::NotFinite { adapter, triplet });
        }
        // A stable sort keeps equal triplets in their order.
        let mut ranking: Vec<usize> = (0..importance.len()).collect();
        ranking.sort_by(|&a, &b| importance[b].partial_cmp(&importance[a]).expect("every score is finite"));
        let owners: Vec<usize> =
            initial.iter().enumerate().flat_map(|(adapter, &count)| vec![adapter; count]).collect();
        let mut left = budget;
        if min_r > 0 {
            let mut kept = vec![0; initial.len()];
            for &at in &ranking {
                let adapter = owners[at];
                if kept[adapter] < min_r {
                    kept[adapter] += 1;
                    pattern.live[at] = true;
                    left = left
                        .checked_sub(costs[adapter])
                        .expect("the floors of all adapters fit into the budget");
                }
            }
        }
        for at in ranking {
            if left == 0 {
                break;
            }
            let cost = costs[owners[at]];
            if !pattern.live[at] && cost <= left {
                pattern.live[at] = true;
                left -= cost;
            }
        }
        Ok(pattern)
    }

    /// One flag for each triplet, adapters one after another.
    pub fn live(&self) -> &[bool] {
        &self.live
    }

    /// Live triplets over all adapters.
    pub fn live_count(&self) -> usize {
        self.live.iter().filter(|&&live| live).count()
    }

    /// What the live triplets cost together, where a triplet of adapter `k` takes `costs[k]`.
    pub fn cost(&self, costs: &[usize]) -> usize {
        self.ranks().iter().zip(costs).map(|(rank, cost)| rank * cost).sum()
    }

    /// The flags of each adapter.
    pub fn by_adapter(&self) -> impl Iterator<Item = &[bool]> {
        let mut rest = self.live.as_slice();
        self.initial.iter().map(move |&count| {
            let (own, others) = rest.split_at(count);
            rest = others;
            own
        })
    }

    /// Live triplets of each adapter.
    pub fn ranks(&self) -> Vec<usize> {
        self.by_adapter().map(|flags| flags.iter().filter(|&&live| live).count()).collect()
    }

    /// Adapter, and triplet inside it, at a flat position.
    fn locate(&self, at: usize) -> (usize, usize) {
        let mut start = 0;
        for (adapter, &count) in self.initial.iter().enumerate() {
            if at < start + count {
                return (adapter, at - start);
            }
            start += count;
        }
        unreachable!("a position below the number of triplets")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ties_go_to_the_earlier_triplet() {
        let pattern = RankPattern::keep_top(&[1.0, 2.0, 2.0, 2.0, 0.0], &[3, 2], 2, 0).unwrap();
        assert_eq!(pattern.live(), [false, true, true, false, false]);
        assert_eq!(pattern.ranks(), [2, 0]);
    }

    #[test]
    fn negative_importance_counts_and_the_two_zeros_tie() {
        let pattern = RankPattern::keep_top(&[-3.0, -1.0, -0.0, 0.0], &[4], 1, 0).unwrap();
        assert_eq!(pattern.live(), [false, false, true, false]);
    }

    #[test]
    fn a_floor_keeps_the_best_of_each_adapter() {
        let pattern = RankPattern::keep_top(&[9.0, 8.0, 7.0, 1.0, 2.0], &[3, 2], 3, 1).unwrap();
        assert_eq!(pattern.live(), [true, true, false, false, true]);
        let ragged = RankPattern::keep_top(&[9.0, 8.0, 7.0, 1.0], &[3, 0, 1], 3, 2).unwrap();
        assert_eq!(ragged.ranks(), [2, 0, 1]);
    }

    #[test]
    fn a_score_that_is_not_finite_is_named() {
        let error = RankPattern::keep_top(&[1.0, 2.0, f32::NAN], &[1, 2], 1, 0).unwrap_err();
        assert_eq!(error, SelectionError::NotFinite { adapter: 1, triplet: 1 });
    }

    #[test]
    fn what_does_not_fit_is_passed_over_and_cheaper_ones_fill_the_rest() {
        // Two triplets of 5 and three of 2. Of 9 the first leaves 4: the second does not fit, two of the others do.
        let within = |budget, min_r| {
            let pattern =
                RankPattern::keep_within(&[9.0, 8.0, 1.0, 7.0, 2.0], &[2, 3], &[5, 2], budget, min_r)
                    .unwrap();
            (pattern.live().to_vec(), pattern.cost(&[5, 2]))
        };
        assert_eq!(within(9, 0), (vec![true, false, false, true, true], 9));
        assert_eq!(within(11, 0), (vec![true, true, false, false, false], 10));
        assert_eq!(within(10, 0), (vec![true, true, false, false, false], 10));
        assert_eq!(within(4, 0), (vec![false, false, false, true, true], 4));
        assert_eq!(within(1, 0), (vec![false; 5], 0));
        assert_eq!(within(10, 1), (vec![true, false, false, true, true], 9));
        assert_eq!(within(100, 0), (vec![true; 5], 16));
    }

    /// The same rule without an order: again and again the most important one of those that fit, the earliest of equals.
    fn plain(
        importance: &[f32],
        initial: &[usize],
        costs: &[usize],
        budget: usize,
        min_r: usize,
    ) -> Vec<bool> {
        let owner = |at: usize| (1..).find(|&n| at < initial[..n].iter().sum()).unwrap() - 1;
        let mut live = vec![false; importance.len()];
        let spent =
            |live: &[bool]| (0..live.len()).filter(|&at| live[at]).map(|at| costs[owner(at)]).sum::<usize>();
        let best = |live: &[bool], may: &dyn Fn(usize) -> bool| {
            let candidates = (0..live.len()).filter(|&at| !live[at] && may(at));
            candidates.fold(None, |best: Option<usize>, at| match best {
                Some(best) if importance[best] >= importance[at] => Some(best),
                _ => Some(at),
            })
        };
        for (adapter, &own) in initial.iter().enumerate() {
            for _ in 0..min_r.min(own) {
                let at = best(&live, &|at| owner(at) == adapter).unwrap();
                live[at] = true;
            }
        }
        while let Some(at) = best(&live, &|at| costs[owner(at)] <= budget - spent(&live)) {
            live[at] = true;
        }
        live
    }

    proptest! {
        #[test]
        fn a_budget_of_costs_is_kept_and_filled(
            adapters in proptest::collection::vec(
                (proptest::collection::vec((-3i8..6).prop_map(f32::from), 0..6), 1..9usize), 1..7),
            min_r in 0..3usize,
            share in 0.0..1.2f64,
        ) {
            let importance: Vec<f32> = adapters.iter().flat_map(|(own, _)| own.clone()).collect();
            let initial: Vec<usize> = adapters.iter().map(|(own, _)| own.len()).collect();
            let costs: Vec<usize> = adapters.iter().map(|(_, cost)| *cost).collect();
            let cost = |ranks: &dyn Fn(usize) -> usize| -> usize {
                (0..costs.len()).map(|adapter| ranks(adapter) * costs[adapter]).sum()
            };
            let floors = cost(&|adapter| initial[adapter].min(min_r));
            let budget = floors.max((share * cost(&|adapter| initial[adapter]) as f64) as usize);
            let pattern = RankPattern::keep_within(&importance, &initial, &costs, budget, min_r).unwrap();
            prop_assert_eq!(pattern.live(), plain(&importance, &initial, &costs, budget, min_r));
            let spent = pattern.cost(&costs);
            prop_assert!(spent <= budget);
            for (adapter, rank) in pattern.ranks().into_iter().enumerate() {
                prop_assert!(rank >= initial[adapter].min(min_r));
                prop_assert!(rank == initial[adapter] || costs[adapter] > budget - spent, "another one would fit");
            }
        }
        #[test]
        fn exactly_the_budget_lives(
            scores in proptest::collection::vec((0u8..6).prop_map(f32::from), 1..60),
            share in 0.0..1.0f64,
        ) {
            let budget = (share * scores.len() as f64) as usize;
            let pattern = RankPattern::keep_top(&scores, &[scores.len()], budget, 0).unwrap();
            prop_assert_eq!(pattern.live_count(), budget);
            let worst_kept = scores.iter().zip(pattern.live()).filter(|(_, live)| **live).map(|(s, _)| *s)
                .fold(f32::INFINITY, f32::min);
            let best_dropped = scores.iter().zip(pattern.live()).filter(|(_, live)| !**live).map(|(s, _)| *s)
                .fold(f32::NEG_INFINITY, f32::max);
            prop_assert!(worst_kept >= best_dropped);
        }
    }
}
