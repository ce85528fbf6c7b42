//! The tables of an experiment: scores, sizes and costs, and what must be said under them.

use crate::ReportError;
use crate::grid::Choice;
use crate::record::{Experiment, Status};
use crate::significance::{SIGNIFICANT, fewest_pairs, smallest_sign_flip_p};
use crate::statistics::{Difference, ExperimentSummary, Summary, VariantSummary};
use crate::table::{
    ABSENT, Alignment, Table, difference, duration, escape_latex, escape_markdown, mean_of_whole, memory,
    score, whole,
};
use crate::tuning;

/// What can be drawn up from the finished runs of an experiment.
pub(crate) struct Results<'a> {
    summary: ExperimentSummary<'a>,
    pub(crate) scores: Table,
    pub(crate) scores_notes: Vec<String>,
    pub(crate) costs: Table,
    pub(crate) costs_notes: Vec<String>,
    /// What was tried and chosen, with `[tuning]`.
    pub(crate) tuning: Option<(Table, Vec<String>)>,
    /// One line for each run that failed.
    pub(crate) failures: Vec<String>,
}

impl<'a> Results<'a> {
    pub(crate) fn of(experiment: &'a Experiment, choice: Option<&Choice>) -> Result<Self, ReportError> {
        let summary = ExperimentSummary::of(experiment)?;
        Ok(Self {
            scores: scores(&summary),
            scores_notes: scores_notes(&summary),
            costs: costs(&summary),
            costs_notes: costs_notes(&summary),
            tuning: choice.map(tuned),
            failures: failures(experiment),
            summary,
        })
    }

    pub(crate) fn task(&self) -> &'a str {
        self.summary.task
    }

    pub(crate) fn headline(&self) -> &'a str {
        self.summary.headline()
    }

    /// `table.md`, which is printed to the terminal too.
    pub(crate) fn markdown(&self) -> String {
        let bullets = |notes: &[String]| -> String {
            notes.iter().map(|note| format!("- {}\n", escape_markdown(note))).collect()
        };
        let mut text = format!(
            "# {}: dev scores on {}\n\n{}\n{}\n{}\n{}",
            escape_markdown(self.summary.name),
            escape_markdown(self.summary.task),
            self.scores.markdown(),
            bullets(&self.scores_notes),
            self.costs.markdown(),
            bullets(&self.costs_notes),
        );
        if let Some((table, notes)) = &self.tuning {
            text.push_str(&format!("\n{}\n{}", table.markdown(), bullets(notes)));
        }
        if !self.failures.is_empty() {
            text.push_str("\nFailed runs:\n\n");
            text.push_str(&bullets(&self.failures));
        }
        text
    }

    /// `table.tex`: two floats to `\input`.
    pub(crate) fn latex(&self) -> String {
        let name = self.summary.name;
        let float = |subject: &str, table: &Table, notes: &[String]| {
            let caption =
                escape_latex(&format!("{name}: {subject} on {}. {}", self.summary.task, notes.join(" ")));
            let label =
                format!("tab:{name}-{subject}").replace(|c: char| !c.is_alphanumeric() && c != ':', "-");
            format!(
                "\n\\begin{{table}}\n  \\centering\n  \\footnotesize\\setlength{{\\tabcolsep}}{{4pt}}\n  \
                 \\caption{{{caption}}}\n  \\label{{{label}}}\n{}\\end{{table}}\n",
                table.latex()
            )
        };
        let tuning = self.tuning.as_ref().map(|(table, notes)| float("tuning", table, notes));
        format!(
            "% Needs \\usepackage{{booktabs}}.\n{}{}{}",
            float("dev scores", &self.scores, &self.scores_notes),
            float("costs", &self.costs, &self.costs_notes),
            tuning.unwrap_or_default()
        )
    }

    /// `table.csv`: one row for each variant, numbers in full precision, empty where there is none.
    pub(crate) fn csv(&self) -> String {
        let mut lines = Vec::with_capacity(self.summary.variants.len());
        for variant in &self.summary.variants {
            let mut row = CsvRow::default();
            row.put("variant", Some(variant.name));
            row.put("finished", Some(variant.runs.finished));
            row.put("failed", Some(variant.runs.failed));
            row.put("diverged", Some(variant.runs.diverged));
            row.put("running", Some(variant.runs.running));
            row.put("interrupted", Some(variant.runs.interrupted));
            for (evaluation, &last) in self.summary.evaluations.iter().zip(&variant.last) {
                row.put_summary(&format!("{evaluation}_last"), last);
            }
            let column = format!("{}_difference", self.headline());
            let of = variant.difference.map(|difference| difference.of);
            let bounds = of.and_then(|of| Some((of.mean, of.half_width()?)));
            row.put_summary(&column, of);
            row.put(&format!("{column}_low"), bounds.map(|(mean, half)| mean - half));
            row.put(&format!("{column}_high"), bounds.map(|(mean, half)| mean + half));
            row.put(&format!("{column}_pairs"), of.map(|of| of.n));
            row.put(&format!("{column}_p"), variant.difference.and_then(|difference| difference.p));
            row.put_summary(&format!("{}_best", self.headline()), variant.best);
            row.put_summary("triplets_initial", variant.triplets_initial);
            row.put_summary("triplets_budget", variant.triplets_budget);
            row.put_summary("triplets_live", variant.triplets_live);
            row.put_summary("adapter_parameters_peak", variant.adapter_peak);
            row.put_summary("adapter_parameters_final", variant.adapter_final);
            row.put_summary("adapter_parameters_budget", variant.adapter_budget);
            row.put_summary("head_parameters", variant.head);
            row.put_summary("planted_recovered", variant.recovered);
            row.put_summary("planted_triplets", variant.planted);
            row.put_summary("wall_seconds", variant.wall_seconds);
            row.put("peak_rss_bytes_max", variant.peak_rss_bytes);
            lines.push(row);
        }
        CsvRow::file(&lines)
    }
}

/// Filled alike for every variant, so that all rows have the columns of the first.
#[derive(Default)]
pub(crate) struct CsvRow {
    columns: Vec<String>,
    values: Vec<String>,
}

impl CsvRow {
    /// The rows below the names of their columns; there is one at least.
    pub(crate) fn file(rows: &[Self]) -> String {
        let mut writer = csv::Writer::from_writer(Vec::new());
        let in_memory = "a CSV writer into memory does not fail";
        writer.write_record(&rows[0].columns).expect(in_memory);
        for row in rows {
            writer.write_record(&row.values).expect(in_memory);
        }
        String::from_utf8(writer.into_inner().expect(in_memory)).expect("it was given text")
    }

    pub(crate) fn put(&mut self, column: &str, value: Option<impl ToString>) {
        self.columns.push(column.to_owned());
        self.values.push(value.map_or_else(String::new, |value| value.to_string()));
    }

    pub(crate) fn put_summary(&mut self, column: &str, of: Option<Summary>) {
        self.put(&format!("{column}_mean"), of.map(|of| of.mean));
        self.put(&format!("{column}_sd"), of.and_then(|of| of.sd));
    }
}

/// One cell for each variant.
fn cells(
    summary: &ExperimentSummary,
    cell: impl Fn(&VariantSummary) -> Option<String>,
) -> impl Iterator<Item = String> {
    summary.variants.iter().map(move |variant| cell(variant).unwrap_or_else(|| ABSENT.to_owned()))
}

/// The mean difference and its interval, if it has one.
pub(crate) fn with_interval(Difference { of, .. }: &Difference) -> String {
    let bounds = of.half_width().map(|half| [of.mean - half, of.mean + half].map(difference).join(", "));
    let mean = difference(of.mean);
    bounds.map_or(mean.clone(), |bounds| format!("{mean} [{bounds}]"))
}

pub(crate) fn mean_and_deviation(of: &Summary) -> String {
    match of.sd {
        Some(sd) => format!("{} ± {}", score(of.mean), score(sd)),
        None => score(of.mean),
    }
}

fn unfinished(variant: &VariantSummary) -> usize {
    variant.runs.running + variant.runs.interrupted
}

/// Pairs of a variant where they are fewer than its finished seeds.
fn has_lone_seeds(variant: &VariantSummary) -> bool {
    variant.difference.is_some_and(|difference| difference.of.n < variant.runs.finished)
}

/// A column that would say the same of every variant is left out; [`scores_notes`] then says it once.
fn scores(summary: &ExperimentSummary) -> Table {
    use Alignment::{Left, Right};
    let any = |condition: fn(&VariantSummary) -> bool| summary.variants.iter().any(condition);
    let headline = summary.headline();
    let mut table = Table::default();
    table.column("variant", Left, summary.variants.iter().map(|variant| variant.name.to_owned()));
    table.column("n", Right, cells(summary, |variant| Some(variant.runs.finished.to_string())));
    if any(|variant| variant.runs.failed > 0) {
        table.column("failed", Right, cells(summary, |variant| Some(variant.runs.failed.to_string())));
    }
    if any(|variant| variant.runs.diverged > 0) {
        table.column("diverged", Right, cells(summary, |variant| Some(variant.runs.diverged.to_string())));
    }
    if any(|variant| unfinished(variant) > 0) {
        table.column("unfinished", Right, cells(summary, |variant| Some(unfinished(variant).to_string())));
    }
    let last = |at: usize| cells(summary, move |variant| variant.last[at].as_ref().map(mean_and_deviation));
    table.column(format!("{headline}, last step"), Right, last(0));
    let paired = cells(summary, |variant| Some(with_interval(&variant.difference?)));
    if summary.variants.len() > 1 {
        table.column(format!("Δ to {} [95 %]", summary.control()), Right, paired);
    }
    if any(has_lone_seeds) {
        table.column("pairs", Right, cells(summary, |variant| Some(variant.difference?.of.n.to_string())));
    }
    let best = cells(summary, |variant| variant.best.as_ref().map(mean_and_deviation));
    table.column(format!("{headline}, best step"), Right, best);
    for (at, evaluation) in summary.evaluations.iter().enumerate().skip(1) {
        table.column(format!("{evaluation}, last step"), Right, last(at));
    }
    table
}

fn scores_notes(summary: &ExperimentSummary) -> Vec<String> {
    let (variants, control, headline) = (&summary.variants, summary.control(), summary.headline());
    let sum = |count: fn(&VariantSummary) -> usize| variants.iter().map(count).sum::<usize>();
    let mut notes =
        vec!["Mean ± sample standard deviation over n finished seeds; a single seed has none.".to_owned()];
    let (failed, open) = (sum(|variant| variant.runs.failed), sum(unfinished));
    let diverged = match sum(|variant| variant.runs.diverged) {
        0 => String::new(),
        diverged => format!(" ({diverged} diverged)"),
    };
    notes.push(match (failed, open) {
        (0, 0) => "All runs have finished.".to_owned(),
        (failed, open) => format!("Runs in no mean: {failed} failed{diverged}, {open} unfinished."),
    });

    let paired: Vec<_> = variants.iter().filter_map(|variant| Some(variant.difference?.of.n)).collect();
    if let Some(&fewest) = paired.iter().min() {
        let several = if paired.len() > 1 { ", not adjusted for several comparisons" } else { "" };
        notes.push(format!(
            "Δ is the paired difference to {control} in {headline} at the last step, over the seeds that both have \
             finished, with its 95 % t interval{several}."
        ));
        if fewest == 1 {
            notes.push("A single pair has no interval.".to_owned());
        }
        let p = smallest_sign_flip_p(fewest);
        if p > SIGNIFICANT {
            let enough = fewest_pairs(1);
            notes.push(format!(
                "Too few seeds for certainty: an exact sign-flip test with n pairs cannot go below p = 2/2ⁿ, here \
                 {p} (n = {fewest}); fewer than {enough} pairs cannot reach {SIGNIFICANT} two-sided."
            ));
        }
    } else if variants.len() > 1 {
        notes.push(format!(
            "No seed has finished both with {control} and with another variant: no differences."
        ));
    }
    notes.push(best_note(headline));
    let undefined = |of: &Summary| of.mean.is_nan();
    if variants.iter().any(|variant| variant.last.iter().flatten().chain(&variant.best).any(undefined)) {
        notes.push("NaN: the score is undefined in at least one finished run.".to_owned());
    }
    notes
}

/// What must be said of scores at the best step.
pub(crate) fn best_note(picked_by: &str) -> String {
    format!(
        "The best step is optimistic: each run's step is picked by its {picked_by} on the same dev split. It is never \
         mixed with the last step."
    )
}

fn costs(summary: &ExperimentSummary) -> Table {
    use Alignment::{Left, Right};
    let mut table = Table::default();
    table.column("variant", Left, summary.variants.iter().map(|variant| variant.name.to_owned()));
    if summary.variants.iter().any(|variant| variant.triplets_live.is_some()) {
        let initial = cells(summary, |variant| Some(mean_of_whole(variant.triplets_initial?.mean)));
        table.column("triplets at first", Right, initial);
        let end = cells(summary, |variant| {
            let budget =
                variant.triplets_budget.map_or(ABSENT.to_owned(), |budget| mean_of_whole(budget.mean));
            Some(format!("{} / {budget}", mean_of_whole(variant.triplets_live?.mean)))
        });
        table.column("live / budget", Right, end);
    }
    if summary.variants.iter().any(|variant| variant.planted.is_some()) {
        let recovered = cells(summary, |variant| {
            let [recovered, planted] = [variant.recovered?, variant.planted?];
            let sd = recovered.sd.map_or(String::new(), |sd| format!(" ± {sd:.1}"));
            Some(format!("{:.1}{sd} of {}", recovered.mean, mean_of_whole(planted.mean)))
        });
        table.column("recovered", Right, recovered);
    }
    let count =
        |of: fn(&VariantSummary) -> Option<Summary>| cells(summary, move |it| Some(whole(of(it)?.mean)));
    table.column("adapter, peak", Right, count(|variant| variant.adapter_peak));
    table.column("adapter, final", Right, count(|variant| variant.adapter_final));
    if summary.variants.iter().any(|variant| variant.adapter_budget.is_some()) {
        table.column("adapter, budget", Right, count(|variant| variant.adapter_budget));
    }
    table.column("head", Right, count(|variant| variant.head));
    table.column("time", Right, cells(summary, |variant| Some(duration(variant.wall_seconds?.mean))));
    table.column("memory", Right, cells(summary, |variant| Some(memory(variant.peak_rss_bytes?))));
    table
}

fn costs_notes(summary: &ExperimentSummary) -> Vec<String> {
    let mut notes = vec![
        "Adapter, head: trainable parameters; peak at the initial rank, final with live triplets only (mean over \
         seeds)."
            .to_owned(),
        "Time: mean wall time of a run; memory: largest resident memory of a run.".to_owned(),
    ];
    if summary.variants.iter().any(|variant| variant.planted.is_some()) {
        notes.push("Recovered: live triplets in the planted layers, of the rank planted there.".to_owned());
    }
    notes
}

fn tuned(choice: &Choice) -> (Table, Vec<String>) {
    let rows = choice.variants.iter();
    let rows: Vec<_> =
        rows.map(|tuned| tuning::Row { label: tuned.variant.clone(), on: None, tuned }).collect();
    tuning::table(choice, &rows)
}

fn failures(experiment: &Experiment) -> Vec<String> {
    let runs =
        experiment.variants.iter().flat_map(|variant| variant.runs.iter().map(move |run| (variant, run)));
    runs.filter_map(|(variant, run)| match &run.status {
        Status::Failed { step, reason, .. } => {
            Some(format!("{}, seed {}, after {step} steps: {reason}", variant.name, run.seed))
        }
        _ => None,
    })
    .collect()
}
