//! The tables over all cells of an experiment with `[sweep]`: scores side by side, averages over GLUE, differences with
//! their tests, and what tuning tried.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::ReportError;
use crate::glue::{self, Convention};
use crate::grid::{Choice, Grid, GridCell, Tuned};
use crate::record::{Experiment, Status, Variant};
use crate::results::{CsvRow, best_note, mean_and_deviation, with_interval};
use crate::significance::{SIGNIFICANT, fewest_pairs, holm, smallest_sign_flip_p};
use crate::statistics::{Difference, RunCounts, Summary, scores_at_best, scores_at_last};
use crate::table::{ABSENT, Alignment, Table, escape_latex, escape_markdown};
use crate::tuning;

/// An experiment folder with all its cells.
#[derive(Debug)]
pub(crate) struct Study {
    pub(crate) name: String,
    pub(crate) description: Option<String>,
    /// Cells that are compared row by row: their points agree but on the axis of the columns.
    pub(crate) groups: Vec<Group>,
    /// Titles of the columns: points of the axis that changes the task, or the one task of all cells.
    pub(crate) columns: Vec<String>,
}

#[derive(Debug)]
pub(crate) struct Group {
    /// Points of the other axes, empty where there are none.
    pub(crate) name: String,
    /// One for each column.
    pub(crate) cells: Vec<Cell>,
}

#[derive(Debug)]
pub(crate) struct Cell {
    /// Of the folder.
    pub(crate) name: String,
    /// Data set, or the kind of task.
    task: String,
    pub(crate) experiment: Experiment,
    choice: Option<Choice>,
}

impl Study {
    /// Reads all cells. One that was not started has variants without runs.
    pub(crate) fn read(dir: &Path, grid: &Grid) -> Result<Self, ReportError> {
        let across = column_axis(grid);
        let mut columns: Vec<String> = Vec::new();
        let mut groups: Vec<Group> = Vec::new();
        for cell in &grid.cells {
            let column = across.map_or_else(|| task_of(cell), |axis| cell.points[axis].1.clone());
            if !columns.contains(&column) {
                columns.push(column);
            }
            let others = cell.points.iter().enumerate().filter(|(axis, _)| Some(*axis) != across);
            let name = others.map(|(_, (_, point))| point.as_str()).collect::<Vec<_>>().join(", ");
            let own = Cell::read(dir, cell)?;
            match groups.iter_mut().find(|group| group.name == name) {
                Some(group) => group.cells.push(own),
                None => groups.push(Group { name, cells: vec![own] }),
            }
        }
        let mut cells = groups.iter().flat_map(|group| &group.cells);
        let description = cells.find_map(|cell| cell.experiment.description.clone());
        let name =
            dir.file_name().map_or_else(|| dir.display().to_string(), |name| name.to_string_lossy().into());
        Ok(Self { name, description, groups, columns })
    }

    fn cells(&self) -> impl Iterator<Item = &Cell> {
        self.groups.iter().flat_map(|group| &group.cells)
    }

    fn rows(&self) -> Vec<Row<'_>> {
        let rows = self.groups.iter().flat_map(|group| {
            let variants = group.cells[0].experiment.variants.iter();
            variants.enumerate().map(move |(at, variant)| Row { group, at, name: &variant.name })
        });
        rows.collect()
    }
}

impl Cell {
    fn read(dir: &Path, cell: &GridCell) -> Result<Self, ReportError> {
        let folder = dir.join(&cell.name);
        let experiment = match Experiment::read(&folder) {
            Err(ReportError::NoVariants(_)) => {
                let variant = |(name, _): &(String, _)| Variant { name: name.clone(), runs: Vec::new() };
                let variants = cell.variants.iter().map(variant).collect();
                Experiment { name: cell.name.clone(), description: None, variants }
            }
            read => read?,
        };
        let choice = Choice::read(&folder)?;
        Ok(Self { name: cell.name.clone(), task: task_of(cell), experiment, choice })
    }

    /// Names of the scores, the headline first, from a finished run; none without one.
    fn evaluations(&self) -> &[String] {
        let mut results = self.experiment.variants.iter().flat_map(Variant::results);
        results.next().map_or(&[], |result| &result.evaluation)
    }

    /// Name of the headline score, from a finished run.
    pub(crate) fn headline(&self) -> Option<&str> {
        self.evaluations().first().map(String::as_str)
    }

    /// Headline scores of a variant at the last step, by seed.
    pub(crate) fn scores(&self, variant: usize) -> Result<BTreeMap<u64, f64>, ReportError> {
        match self.headline() {
            Some(headline) => scores_at_last(&self.experiment.variants[variant], headline),
            None => Ok(BTreeMap::new()),
        }
    }

    fn difference(&self, variant: usize) -> Result<Option<Difference>, ReportError> {
        Ok(Difference::new(&self.scores(0)?, &self.scores(variant)?))
    }

    fn tuned(&self, variant: &str) -> Option<&Tuned> {
        self.choice.as_ref()?.variants.iter().find(|tuned| tuned.variant == variant)
    }
}

/// The axis whose points differ in the task.
fn column_axis(grid: &Grid) -> Option<usize> {
    let axes = grid.cells[0].points.len();
    let differs = |axis: &usize| {
        let task_at = |cell: &GridCell| (cell.points[*axis].1.clone(), task_of(cell));
        let pairs: BTreeSet<_> = grid.cells.iter().map(task_at).collect();
        let tasks: BTreeSet<_> = pairs.iter().map(|(_, task)| task).collect();
        let points: BTreeSet<_> = pairs.iter().map(|(point, _)| point).collect();
        tasks.len() > 1 && points.len() == pairs.len()
    };
    (0..axes).find(differs)
}

fn task_of(cell: &GridCell) -> String {
    let task =
        cell.variants.first().and_then(|(_, settings)| settings.get("task")?.as_object()?.iter().next());
    let Some((kind, task)) = task else { return String::new() };
    task.get("data").and_then(|data| data.as_str()).unwrap_or(kind).to_owned()
}

/// A variant in the cells of a group.
struct Row<'a> {
    group: &'a Group,
    at: usize,
    name: &'a str,
}

impl Row<'_> {
    fn label(&self) -> String {
        if self.group.name.is_empty() {
            self.name.to_owned()
        } else {
            format!("{}, {}", self.group.name, self.name)
        }
    }

    /// The average over the tasks by seed, over the seeds that have finished all; `None` if these are not tasks of GLUE,
    /// each once.
    fn average(&self, convention: Convention) -> Option<BTreeMap<u64, f64>> {
        let tasks: Vec<_> = self.group.cells.iter().map(|cell| cell.task.as_str()).collect();
        let once: BTreeSet<_> = tasks.iter().collect();
        if tasks.len() < 2 || once.len() < tasks.len() {
            return None;
        }
        let mut by_seed: BTreeMap<u64, Vec<f64>> = BTreeMap::new();
        for (cell, task) in self.group.cells.iter().zip(&tasks) {
            glue::is_task(task).then_some(())?;
            for run in &cell.experiment.variants[self.at].runs {
                let Some(result) = &run.result else { continue };
                by_seed.entry(run.seed).or_default().push(glue::score(
                    task,
                    &result.last.scores,
                    convention,
                )?);
            }
        }
        by_seed.retain(|_, scores| scores.len() == tasks.len());
        Some(
            by_seed
                .into_iter()
                .map(|(seed, all)| (seed, all.iter().sum::<f64>() / all.len() as f64))
                .collect(),
        )
    }

    fn variant(&self, column: usize) -> &Variant {
        &self.group.cells[column].experiment.variants[self.at]
    }

    fn is_control(&self) -> bool {
        self.at == 0
    }

    fn control(&self) -> Row<'_> {
        Row { group: self.group, at: 0, name: &self.group.cells[0].experiment.variants[0].name }
    }

    fn runs(&self) -> RunCounts {
        let runs = self.group.cells.iter().flat_map(|cell| &cell.experiment.variants[self.at].runs);
        RunCounts::of(runs.map(|run| &run.status))
    }
}

/// The tables of a study.
pub(crate) struct Tables {
    pub(crate) scores: Table,
    pub(crate) scores_notes: Vec<String>,
    /// Headline scores at the best step.
    pub(crate) best: (Table, Vec<String>),
    /// Absent where there is one variant alone.
    pub(crate) differences: Option<(Table, Vec<String>)>,
    /// Absent without `[tuning]`.
    pub(crate) tuning: Option<(Table, Vec<String>)>,
    /// One line for each run that failed.
    pub(crate) failures: Vec<String>,
    csv: String,
}

impl Tables {
    pub(crate) fn of(study: &Study) -> Result<Self, ReportError> {
        let counts = study.rows().iter().fold(RunCounts::default(), |sum, row| sum.plus(row.runs()));
        if counts.finished == 0 {
            return Err(ReportError::NoFinishedRun { experiment: study.name.clone(), runs: counts });
        }
        let (scores, scores_notes) = scores(study, &counts)?;
        let tests = Tests::of(study)?;
        Ok(Self {
            scores,
            scores_notes,
            best: best(study)?,
            csv: csv(study, &tests)?,
            differences: tests.table(study),
            tuning: tuned(study),
            failures: failures(study),
        })
    }

    pub(crate) fn markdown(&self, study: &Study) -> String {
        let bullets = |notes: &[String]| -> String {
            notes.iter().map(|note| format!("- {}\n", escape_markdown(note))).collect()
        };
        let mut text = format!(
            "# {}: dev scores\n\n{}\n{}",
            escape_markdown(&study.name),
            self.scores.markdown(),
            bullets(&self.scores_notes)
        );
        for (table, notes) in self.differences.iter().chain([&self.best]).chain(&self.tuning) {
            text += &format!("\n{}\n{}", table.markdown(), bullets(notes));
        }
        if !self.failures.is_empty() {
            text += &format!("\nFailed runs:\n\n{}", bullets(&self.failures));
        }
        text
    }

    /// `table.tex`: a float for each table.
    pub(crate) fn latex(&self, study: &Study) -> String {
        let float = |subject: &str, table: &Table, notes: &[String]| {
            let caption = escape_latex(&format!("{}: {subject}. {}", study.name, notes.join(" ")));
            let label = format!("tab:{}-{subject}", study.name)
                .replace(|c: char| !c.is_alphanumeric() && c != ':', "-");
            format!(
                "\n\\begin{{table}}\n  \\centering\n  \\footnotesize\\setlength{{\\tabcolsep}}{{4pt}}\n  \
                 \\caption{{{caption}}}\n  \\label{{{label}}}\n{}\\end{{table}}\n",
                table.latex()
            )
        };
        let mut text = String::from("% Needs \\usepackage{booktabs}.\n");
        text += &float("dev scores", &self.scores, &self.scores_notes);
        if let Some((table, notes)) = &self.differences {
            text += &float("differences", table, notes);
        }
        text += &float("best steps", &self.best.0, &self.best.1);
        if let Some((table, notes)) = &self.tuning {
            text += &float("tuning", table, notes);
        }
        text
    }

    pub(crate) fn csv(&self) -> &str {
        &self.csv
    }
}

fn scores(study: &Study, counts: &RunCounts) -> Result<(Table, Vec<String>), ReportError> {
    use Alignment::{Left, Right};
    let rows = study.rows();
    let mut table = Table::default();
    table.column("variant", Left, rows.iter().map(Row::label));
    let count = |of: fn(RunCounts) -> usize| rows.iter().map(move |row| of(row.runs()).to_string());
    table.column("runs", Right, count(|runs| runs.finished));
    if counts.failed > 0 {
        table.column("failed", Right, count(|runs| runs.failed));
    }
    if counts.diverged > 0 {
        table.column("diverged", Right, count(|runs| runs.diverged));
    }
    let (mut fewest, mut most) = (usize::MAX, 0);
    for (column, title) in study.columns.iter().enumerate() {
        let own = |group: &'_ Group| group.cells[column].evaluations().to_vec();
        let evaluations = study.groups.iter().map(own).find(|names| !names.is_empty()).unwrap_or_default();
        if evaluations.is_empty() {
            table.column(title.clone(), Right, rows.iter().map(|_| ABSENT.to_owned()));
            fewest = 0;
        }
        for evaluation in evaluations {
            let mut cells = Vec::new();
            for row in &rows {
                let scores = scores_at_last(row.variant(column), &evaluation)?;
                (fewest, most) = (fewest.min(scores.len()), most.max(scores.len()));
                cells.push(summarized(scores));
            }
            table.column(format!("{title}, {evaluation}"), Right, cells);
        }
    }
    let n = if fewest == most { format!("n = {most}") } else { format!("n from {fewest} to {most}") };
    let mut notes =
        vec![format!("Mean ± sample standard deviation over the finished seeds ({n}), at the last step.")];
    notes.push(match (counts.failed, counts.running + counts.interrupted) {
        (0, 0) => "All runs that were started have finished.".to_owned(),
        (failed, open) => {
            format!(
                "Runs in no mean: {failed} failed, of which {} diverged, {open} unfinished.",
                counts.diverged
            )
        }
    });
    let average = |convention| -> Option<Vec<_>> {
        let of = |row: &Row| Some(Summary::of(row.average(convention)?.into_values()));
        rows.iter().map(of).collect()
    };
    let cells = |averages: Vec<Option<Summary>>| {
        averages.into_iter().map(|of| of.map_or(ABSENT.to_owned(), |of| mean_and_deviation(&of)))
    };
    if let (Some(mixed), Some(accuracy)) = (average(Convention::Mixed), average(Convention::AccuracyOnly)) {
        let tasks = study.columns.len();
        if study.cells().any(|cell| glue::differs(&cell.task)) {
            table.column("average, mixed", Right, cells(mixed));
            table.column("average, accuracy only", Right, cells(accuracy));
        } else {
            table.column("average", Right, cells(mixed));
        }
        notes.push(format!(
            "Average over these {tasks} tasks, seed by seed over the seeds that have finished all of them. {}",
            glue::EXPLANATION
        ));
    }
    Ok((table, notes))
}

fn best(study: &Study) -> Result<(Table, Vec<String>), ReportError> {
    let rows = study.rows();
    let mut table = Table::default();
    table.column("variant", Alignment::Left, rows.iter().map(Row::label));
    for (column, title) in study.columns.iter().enumerate() {
        let headline = study.groups.iter().find_map(|group| group.cells[column].headline());
        let mut cells = Vec::new();
        for row in &rows {
            let of = |headline| scores_at_best(row.variant(column), headline);
            cells.push(summarized(headline.map(of).transpose()?.unwrap_or_default()));
        }
        table.column(format!("{title}, best step"), Alignment::Right, cells);
    }
    Ok((table, vec![best_note("headline score")]))
}

fn summarized(scores: BTreeMap<u64, f64>) -> String {
    Summary::of(scores.into_values()).map_or(ABSENT.to_owned(), |of| mean_and_deviation(&of))
}

/// A difference to the control with its p, adjusted over the tasks.
struct Test<'a> {
    row: Row<'a>,
    /// `None`: the average.
    column: Option<usize>,
    difference: Difference,
    adjusted: Option<f64>,
}

struct Tests<'a>(Vec<Test<'a>>);

impl<'a> Tests<'a> {
    fn of(study: &'a Study) -> Result<Self, ReportError> {
        let mut all = Vec::new();
        for row in study.rows().into_iter().filter(|row| !row.is_control()) {
            let Row { group, at, name } = row;
            let mut own = Vec::new();
            for (column, cell) in group.cells.iter().enumerate() {
                if let Some(difference) = cell.difference(at)? {
                    let row = Row { group, at, name };
                    own.push(Test { row, column: Some(column), difference, adjusted: None });
                }
            }
            if let Some(p) = own.iter().map(|test| test.difference.p).collect::<Option<Vec<_>>>() {
                for (test, adjusted) in own.iter_mut().zip(holm(&p)) {
                    test.adjusted = Some(adjusted);
                }
            }
            all.append(&mut own);
            let mixed = |row: &Row| row.average(Convention::Mixed);
            if let (Some(control), Some(other)) = (mixed(&row.control()), mixed(&row))
                && let Some(difference) = Difference::new(&control, &other)
            {
                all.push(Test { row, column: None, difference, adjusted: None });
            }
        }
        Ok(Self(all))
    }

    fn table(&self, study: &Study) -> Option<(Table, Vec<String>)> {
        use Alignment::{Left, Right};
        let Self(all) = self;
        let control = &study.groups[0].cells[0].experiment.variants[0].name;
        let pairs = all.iter().map(|test| test.difference.of.n);
        let fewest = pairs.clone().min()?;
        let mut table = Table::default();
        table.column("variant", Left, all.iter().map(|test| test.row.label()));
        let column =
            |test: &Test| test.column.map_or("average", |column| study.columns[column].as_str()).to_owned();
        table.column("on", Left, all.iter().map(column));
        table.column("pairs", Right, pairs.map(|n| n.to_string()));
        table.column(
            format!("Δ to {control} [95 %]"),
            Right,
            all.iter().map(|test| with_interval(&test.difference)),
        );
        let p = |p: Option<f64>| p.map_or(ABSENT.to_owned(), |p| format!("{p:.4}"));
        table.column("p", Right, all.iter().map(|test| p(test.difference.p)));
        let columns = study.columns.len();
        if columns > 1 {
            table.column("p, Holm", Right, all.iter().map(|test| p(test.adjusted)));
        }
        let mut notes = vec![format!(
            "Δ: paired difference to {control} in the headline score, a task's first, at the last step, over the seeds \
             that both have finished, with its 95 % t interval, not adjusted. p: exact two-sided sign-flip test."
        )];
        if columns > 1 {
            notes.push(format!(
                "Holm: p adjusted over the {columns} headline scores of each variant, not over the variants. The \
                 average is not among them."
            ));
        }
        let needed = fewest_pairs(columns);
        if fewest < needed {
            let smallest = smallest_sign_flip_p(fewest);
            let after = match columns {
                1 => String::new(),
                _ => format!(", and {needed} after Holm over {columns} scores"),
            };
            notes.push(format!(
                "Too few seeds to show anything by this test: with n = {fewest} no p is below 2/2ⁿ = {smallest}. Below \
                 {SIGNIFICANT} needs {} pairs{after}.",
                fewest_pairs(1)
            ));
        }
        Some((table, notes))
    }
}

fn tuned(study: &Study) -> Option<(Table, Vec<String>)> {
    let choice = study.cells().find_map(|cell| cell.choice.as_ref())?;
    let mut rows = Vec::new();
    for row in study.rows() {
        for (cell, column) in row.group.cells.iter().zip(&study.columns) {
            if let Some(tuned) = cell.tuned(row.name) {
                rows.push(tuning::Row { label: row.label(), on: Some(column), tuned });
            }
        }
    }
    Some(tuning::table(choice, &rows))
}

fn failures(study: &Study) -> Vec<String> {
    let runs = study.cells().flat_map(|cell| {
        let variants = cell.experiment.variants.iter();
        variants.flat_map(move |variant| variant.runs.iter().map(move |run| (cell, variant, run)))
    });
    let failed = runs.filter_map(|(cell, variant, run)| match &run.status {
        Status::Failed { step, reason, .. } => {
            Some(format!("{}, {}, seed {}, after {step} steps: {reason}", cell.name, variant.name, run.seed))
        }
        _ => None,
    });
    failed.collect()
}

/// One row for each variant of each cell, and for each average.
fn csv(study: &Study, Tests(tests): &Tests) -> Result<String, ReportError> {
    let mut lines = Vec::new();
    for row in study.rows() {
        let columns = (0..study.columns.len()).map(Some).chain([None]);
        for column in columns {
            let (title, scores, accuracy_only) = match column {
                Some(column) => {
                    (study.columns[column].as_str(), row.group.cells[column].scores(row.at)?, None)
                }
                None => match (row.average(Convention::Mixed), row.average(Convention::AccuracyOnly)) {
                    (Some(mixed), Some(accuracy)) => ("average", mixed, Summary::of(accuracy.into_values())),
                    _ => continue,
                },
            };
            let cell = column.map(|column| &row.group.cells[column]);
            let of_row = |test: &&Test| {
                std::ptr::eq(test.row.group, row.group) && test.row.at == row.at && test.column == column
            };
            let test = tests.iter().find(of_row);
            let of = test.map(|test| test.difference.of);
            let bounds = of.and_then(|of| Some((of.mean, of.half_width()?)));
            let tuned = cell.and_then(|cell| cell.tuned(row.name));
            let best = match (column, cell.and_then(Cell::headline)) {
                (Some(column), Some(headline)) => {
                    Summary::of(scores_at_best(row.variant(column), headline)?.into_values())
                }
                _ => None,
            };
            let mut line = CsvRow::default();
            line.put("group", Some(&row.group.name));
            line.put("on", Some(title));
            line.put("variant", Some(row.name));
            line.put("score", Some(cell.and_then(Cell::headline).unwrap_or("average")));
            line.put("n", Some(scores.len()));
            line.put_summary("last", Summary::of(scores.into_values()));
            line.put_summary("best", best);
            line.put_summary("accuracy_only", accuracy_only);
            line.put_summary("difference", of);
            line.put("difference_low", bounds.map(|(mean, half)| mean - half));
            line.put("difference_high", bounds.map(|(mean, half)| mean + half));
            line.put("pairs", of.map(|of| of.n));
            line.put("p", test.and_then(|test| test.difference.p));
            line.put("p_holm", test.and_then(|test| test.adjusted));
            line.put("tuned", tuned.map(|own| &own.tries[own.chosen].value));
            lines.push(line);
        }
    }
    Ok(CsvRow::file(&lines))
}
