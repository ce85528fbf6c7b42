//! Statistics over the seeds of a variant.

use std::collections::BTreeMap;

use statrs::distribution::{ContinuousCDF, StudentsT};

use crate::ReportError;
use crate::record::{Experiment, RunResult, Status, Variant};
use crate::significance::sign_flip_p;

/// Mean and deviation over seeds. A value that is not finite makes both NaN rather than being left out.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Summary {
    pub(crate) n: usize,
    pub(crate) mean: f64,
    /// Sample standard deviation, with `n - 1`; absent for `n = 1`.
    pub(crate) sd: Option<f64>,
}

impl Summary {
    /// `None` without values.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let values: Vec<_> = values.into_iter().collect();
        let n = values.len();
        if n == 0 {
            return None;
        }
        let mean = values.iter().sum::<f64>() / n as f64;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        Some(Self { n, mean, sd: (n > 1).then(|| (squares / (n - 1) as f64).sqrt()) })
    }

    /// Half the width of the 95 % t interval of the mean, `t(0.975, n - 1) * sd / sqrt(n)`; absent for `n = 1`.
    pub(crate) fn half_width(&self) -> Option<f64> {
        let t = StudentsT::new(0.0, 1.0, (self.n - 1) as f64).ok()?;
        Some(t.inverse_cdf(0.975) * self.sd? / (self.n as f64).sqrt())
    }
}

/// A variant's score less the control's, over the seeds that both have.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Difference {
    pub(crate) of: Summary,
    /// Of the exact sign-flip test.
    pub(crate) p: Option<f64>,
}

impl Difference {
    /// `None` where they share no seed.
    pub(crate) fn new(control: &BTreeMap<u64, f64>, other: &BTreeMap<u64, f64>) -> Option<Self> {
        let pairs = other.iter().filter_map(|(seed, score)| Some(score - control.get(seed)?));
        let pairs: Vec<_> = pairs.collect();
        Some(Self { of: Summary::of(pairs.iter().copied())?, p: sign_flip_p(&pairs) })
    }
}

/// What the finished runs of one variant say together, and how many others there are.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct VariantSummary<'a> {
    pub(crate) name: &'a str,
    pub(crate) runs: RunCounts,
    /// Scores at the last step, in the order of [`ExperimentSummary::evaluations`].
    pub(crate) last: Vec<Option<Summary>>,
    /// Headline score at the best step.
    pub(crate) best: Option<Summary>,
    /// Headline score at the last step less the control's; absent for the control.
    pub(crate) difference: Option<Difference>,
    pub(crate) triplets_initial: Option<Summary>,
    pub(crate) triplets_budget: Option<Summary>,
    pub(crate) adapter_budget: Option<Summary>,
    pub(crate) triplets_live: Option<Summary>,
    pub(crate) adapter_peak: Option<Summary>,
    pub(crate) adapter_final: Option<Summary>,
    pub(crate) head: Option<Summary>,
    pub(crate) recovered: Option<Summary>,
    pub(crate) planted: Option<Summary>,
    pub(crate) wall_seconds: Option<Summary>,
    /// Largest over the finished runs.
    pub(crate) peak_rss_bytes: Option<u64>,
}

/// Runs by state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RunCounts {
    /// Runs that reached their last step.
    pub finished: usize,
    /// Runs that ended by an error.
    pub failed: usize,
    /// Those of them whose loss ceased to be finite.
    pub diverged: usize,
    /// Runs still training, or killed.
    pub running: usize,
    /// Runs stopped by the user.
    pub interrupted: usize,
}

impl RunCounts {
    pub(crate) fn plus(self, other: Self) -> Self {
        Self {
            finished: self.finished + other.finished,
            failed: self.failed + other.failed,
            diverged: self.diverged + other.diverged,
            running: self.running + other.running,
            interrupted: self.interrupted + other.interrupted,
        }
    }

    pub(crate) fn of<'a>(statuses: impl Iterator<Item = &'a Status>) -> Self {
        let mut counts = Self::default();
        for status in statuses {
            match status {
                Status::Finished { .. } => counts.finished += 1,
                Status::Failed { diverged, .. } => {
                    counts.failed += 1;
                    counts.diverged += usize::from(*diverged);
                }
                Status::Running { .. } => counts.running += 1,
                Status::Interrupted { .. } => counts.interrupted += 1,
            }
        }
        counts
    }
}

/// The numbers of all tables.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ExperimentSummary<'a> {
    pub(crate) name: &'a str,
    /// Name of the task, from the first finished run.
    pub(crate) task: &'a str,
    /// Names of the evaluations, the headline first, from the first finished run.
    pub(crate) evaluations: &'a [String],
    /// In the order of the experiment, the control first.
    pub(crate) variants: Vec<VariantSummary<'a>>,
}

impl<'a> ExperimentSummary<'a> {
    /// Fails if no run has finished, or if one lacks a score that the first finished run has.
    pub(crate) fn of(experiment: &'a Experiment) -> Result<Self, ReportError> {
        let runs = || experiment.variants.iter().flat_map(|variant| &variant.runs);
        let first = runs().find_map(|run| run.result.as_ref());
        let first = first.ok_or_else(|| ReportError::NoFinishedRun {
            experiment: experiment.name.clone(),
            runs: RunCounts::of(runs().map(|run| &run.status)),
        })?;
        let evaluations = first.evaluation.as_slice();
        let headline = evaluations
            .first()
            .ok_or_else(|| ReportError::NoEvaluation { variant: first.variant.clone(), seed: first.seed })?;
        let control = scores_at_last(&experiment.variants[0], headline)?;
        let summarize = |(i, variant)| summarize(variant, evaluations, (i > 0).then_some(&control));
        let variants = experiment.variants.iter().enumerate().map(summarize).collect::<Result<_, _>>()?;
        Ok(Self { name: &experiment.name, task: &first.task, evaluations, variants })
    }

    pub(crate) fn headline(&self) -> &'a str {
        &self.evaluations[0]
    }

    pub(crate) fn control(&self) -> &'a str {
        self.variants[0].name
    }
}

fn summarize<'a>(
    variant: &'a Variant,
    evaluations: &[String],
    control: Option<&BTreeMap<u64, f64>>,
) -> Result<VariantSummary<'a>, ReportError> {
    let headline = &evaluations[0];
    let mut last = Vec::with_capacity(evaluations.len());
    for evaluation in evaluations {
        last.push(Summary::of(scores_at_last(variant, evaluation)?.into_values()));
    }
    let best = scores_at_best(variant, headline)?;
    let difference = match control {
        Some(control) => Difference::new(control, &scores_at_last(variant, headline)?),
        None => None,
    };
    let over = |value: fn(&RunResult) -> Option<usize>| {
        Summary::of(variant.results().filter_map(value).map(|value| value as f64))
    };
    Ok(VariantSummary {
        name: &variant.name,
        runs: RunCounts::of(variant.runs.iter().map(|run| &run.status)),
        last,
        best: Summary::of(best.into_values()),
        difference,
        triplets_initial: over(|result| Some(result.triplets.as_ref()?.initial)),
        triplets_budget: over(|result| result.triplets.as_ref()?.budget),
        adapter_budget: over(|result| result.parameters.adapter_budget),
        triplets_live: over(|result| Some(result.triplets.as_ref()?.live)),
        adapter_peak: over(|result| Some(result.parameters.adapter_peak)),
        adapter_final: over(|result| Some(result.parameters.adapter_final)),
        head: over(|result| Some(result.parameters.head)),
        recovered: over(|result| Some(result.planted.as_ref()?.recovered)),
        planted: over(|result| Some(result.planted.as_ref()?.planted)),
        wall_seconds: Summary::of(variant.results().map(|result| result.wall_seconds)),
        peak_rss_bytes: variant.results().map(|result| result.peak_rss_bytes).max(),
    })
}

/// One score of each finished run at its last step, by seed.
pub(crate) fn scores_at_last(variant: &Variant, evaluation: &str) -> Result<BTreeMap<u64, f64>, ReportError> {
    scores(variant, evaluation, |result| &result.last.scores)
}

/// One score of each finished run at its best step, by seed.
pub(crate) fn scores_at_best(variant: &Variant, evaluation: &str) -> Result<BTreeMap<u64, f64>, ReportError> {
    scores(variant, evaluation, |result| &result.best.scores)
}

/// One score of each finished run, by seed.
fn scores(
    variant: &Variant,
    evaluation: &str,
    at: fn(&RunResult) -> &BTreeMap<String, f64>,
) -> Result<BTreeMap<u64, f64>, ReportError> {
    let score = |(seed, result)| match at(result).get(evaluation) {
        Some(&score) => Ok((seed, score)),
        None => Err(ReportError::NoScore {
            variant: variant.name.clone(),
            seed,
            evaluation: evaluation.to_owned(),
        }),
    };
    variant.runs.iter().filter_map(|run| Some((run.seed, run.result.as_ref()?))).map(score).collect()
}

#[cfg(test)]
mod tests {
    use approx::assert_relative_eq;

    use super::*;

    #[test]
    fn deviation_is_that_of_a_sample() {
        /* Python: numpy.mean([.71, .74, .69]), numpy.std([.71, .74, .69], ddof=1) */
        let summary = Summary::of([0.71, 0.74, 0.69]).unwrap();
        assert_relative_eq!(summary.mean, 0.7133333333333333, max_relative = 1e-14);
        assert_relative_eq!(summary.sd.unwrap(), 0.025166114784235857, max_relative = 1e-12);
    }

    #[test]
    fn half_width_is_that_of_the_t_distribution() {
        /* Python: [scipy.stats.t.ppf(.975, k) for k in (1, 2, 3, 4, 5, 9, 29)]; here sd / sqrt(n) = 1 */
        let golden = [
            (1, 12.706204736174694),
            (2, 4.302652729749462),
            (3, 3.1824463052837078),
            (4, 2.7764451051977934),
            (5, 2.5705818356363146),
            (9, 2.262157162798205),
            (29, 2.045229642132703),
        ];
        for (freedom, t) in golden {
            let n = freedom + 1;
            let summary = Summary { n, mean: 0.0, sd: Some((n as f64).sqrt()) };
            assert_relative_eq!(summary.half_width().unwrap(), t, max_relative = 1e-10);
        }
    }

    #[test]
    fn interval_of_a_paired_difference() {
        /* Python: d = numpy.subtract(a, b)
        d.mean(), d.std(ddof=1), scipy.stats.t.ppf(.975, 5) * scipy.stats.sem(d) */
        let a = [0.8012, 0.7954, 0.8121, 0.8033, 0.7991, 0.8102];
        let b = [0.7921, 0.7960, 0.8004, 0.7985, 0.7950, 0.8001];
        let difference =
            Difference::new(&(0..).zip(b).collect::<BTreeMap<_, _>>(), &(0..).zip(a).collect()).unwrap().of;
        assert_eq!(difference.n, 6);
        assert_relative_eq!(difference.mean, 0.0065333333333333354, max_relative = 1e-12);
        assert_relative_eq!(difference.sd.unwrap(), 0.004600289845940891, max_relative = 1e-12);
        assert_relative_eq!(difference.half_width().unwrap(), 0.004827708118181978, max_relative = 1e-10);
    }

    #[test]
    fn only_seeds_that_both_have_are_paired() {
        let control = BTreeMap::from([(1, 0.5), (2, 0.25), (4, 0.0)]);
        let difference = Difference::new(&control, &BTreeMap::from([(2, 0.75), (3, 0.0), (4, 0.5)]));
        assert_eq!(difference.unwrap().of, Summary { n: 2, mean: 0.5, sd: Some(0.0) });
        assert_eq!(Difference::new(&control, &BTreeMap::from([(7, 0.5)])), None);
    }

    #[test]
    fn one_seed_has_no_deviation_and_no_interval() {
        let summary = Summary::of([0.5]).unwrap();
        assert_eq!((summary.mean, summary.sd, summary.half_width()), (0.5, None, None));
        assert_eq!(Summary::of([]), None);
    }

    #[test]
    fn a_score_that_is_not_a_number_is_not_left_out() {
        let summary = Summary::of([0.5, f64::NAN, 0.7]).unwrap();
        assert_eq!(summary.n, 3);
        assert!(
            summary.mean.is_nan() && summary.sd.unwrap().is_nan() && summary.half_width().unwrap().is_nan()
        );
    }
}
