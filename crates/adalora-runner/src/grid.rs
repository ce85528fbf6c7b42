//! The runs of a grid: where they lie, that they were laid down before the first, and what tuning chooses.

use std::fs;
use std::path::{Path, PathBuf};

use adalora_report::{
    Choice, GRID_FILE, GridCell, Run, Status, TUNING_FILE, Tried, Tuned, Tuning, VARIANTS_FILE, write_file,
};
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::experiment::{Cell, Grid, RunSpec};
use crate::run_folder::{Found, find};
use crate::worker::in_one_line;

/// A run by its name in a grid.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Named {
    /// Its cell; empty without `[sweep]`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub cell: String,
    /// Its variant.
    pub variant: String,
    /// Number of the value of `[tuning]`; 0 without.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub value: usize,
    /// Its seed. That of a run that is made to choose is among those of `[tuning]`, and no other is.
    pub seed: u64,
}

fn is_zero(value: &usize) -> bool {
    *value == 0
}

impl Named {
    /// The name of the value, if the run is made to choose.
    fn tried<'a>(&self, tuning: Option<&'a Tuning>) -> Option<&'a str> {
        let tuning = tuning.filter(|tuning| tuning.seeds.contains(&self.seed))?;
        tuning.values.get(self.value).map(String::as_str)
    }

    /// The run's folder in the experiment's.
    pub fn folder(&self, experiment: &Path, tuning: Option<&Tuning>) -> PathBuf {
        let cell = experiment.join(&self.cell);
        let variant = match self.tried(tuning) {
            Some(value) => cell.join("tuning").join(&self.variant).join(value),
            None => cell.join(&self.variant),
        };
        variant.join(format!("seed-{}", self.seed))
    }

    /// As a user reads it.
    pub fn label(&self, tuning: Option<&Tuning>) -> String {
        let seed = format!("seed {}", self.seed);
        let parts = [&*self.cell, &*self.variant, self.tried(tuning).unwrap_or_default(), &*seed];
        parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ")
    }

    /// The run's settings.
    ///
    /// # Errors
    ///
    /// If the grid has no such run.
    pub fn spec<'a>(&self, grid: &'a Grid) -> Result<&'a RunSpec> {
        let cell = grid.cells.iter().find(|cell| cell.name == self.cell);
        let cell = cell.with_context(|| format!("there is no cell `{}`", self.cell))?;
        let tried =
            cell.tries.get(self.value).with_context(|| format!("there is no value {}", self.value))?;
        let found = tried.variants.iter().find(|(name, _)| *name == self.variant);
        Ok(&found.with_context(|| format!("there is no variant `{}`", self.variant))?.1)
    }
}

/// `[tuning]` as it is written down.
pub fn tuning(grid: &Grid) -> Option<Tuning> {
    grid.tuning.as_ref().map(|tuning| Tuning {
        setting: tuning.setting.clone(),
        values: tuning.values.clone(),
        seeds: tuning.seeds.clone(),
    })
}

/// Writes down what is to run, before anything does: the variants of each cell and, if there is more than one experiment,
/// the grid.
///
/// # Errors
///
/// A grid that has changed since it was written down.
pub fn lay_down(folder: &Path, grid: &Grid) -> Result<()> {
    if grid.is_several() {
        freeze(folder, grid)?;
    }
    for cell in &grid.cells {
        let folder = folder.join(&cell.name);
        fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        let variants: Vec<_> = cell.tries[0].variants.iter().map(|(name, _)| name).collect();
        write_file(&folder.join(VARIANTS_FILE), &(serde_json::to_string(&variants)? + "\n"))?;
    }
    Ok(())
}

/// Writes down all runs of a grid before the first, or checks that it is the grid that was written down.
///
/// # Errors
///
/// A grid that has changed since.
fn freeze(folder: &Path, grid: &Grid) -> Result<()> {
    let record = record(grid)?;
    let own = serde_json::to_string_pretty(&record)? + "\n";
    let path = folder.join(GRID_FILE);
    let before = match fs::read_to_string(&path) {
        Ok(before) => before,
        Err(_) => {
            fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
            return Ok(write_file(&path, &own)?);
        }
    };
    if before == own {
        return Ok(());
    }
    let old = adalora_report::Grid::read(folder)?.context("it was just read")?;
    let differing = before.lines().zip(own.lines()).find(|(before, own)| before != own);
    let (before, now) = match differing {
        _ if old.seeds != record.seeds => {
            (format!("seeds = {:?}", old.seeds), format!("seeds = {:?}", record.seeds))
        }
        Some((before, own)) => (before.trim().to_owned(), own.trim().to_owned()),
        None => (format!("{} lines", before.lines().count()), format!("{} lines", own.lines().count())),
    };
    bail!(
        "{} was written before the first run and does not change: it has `{before}`, the experiment now has `{now}`. \
         Give the experiment another name, or move {} away",
        path.display(),
        folder.display(),
    );
}

fn record(grid: &Grid) -> Result<adalora_report::Grid> {
    let settings = |spec: &RunSpec| -> Result<serde_json::Value> {
        let mut settings = serde_json::to_value(spec)?;
        if let Some(tuning) = &grid.tuning {
            remove(&mut settings, &tuning.setting);
        }
        Ok(settings)
    };
    let variants = |cell: &Cell| -> Result<Vec<_>> {
        let all = cell.tries[0].variants.iter();
        all.map(|(name, spec)| Ok((name.clone(), settings(spec)?))).collect()
    };
    let cells = grid.cells.iter().map(|cell| {
        Ok(GridCell { name: cell.name.clone(), points: cell.points.clone(), variants: variants(cell)? })
    });
    Ok(adalora_report::Grid {
        seeds: grid.seeds.clone(),
        tuning: tuning(grid),
        cells: cells.collect::<Result<_>>()?,
    })
}

fn remove(settings: &mut serde_json::Value, path: &str) {
    match path.split_once('.') {
        Some((table, rest)) => settings.get_mut(table).into_iter().for_each(|inner| remove(inner, rest)),
        None => drop(settings.as_object_mut().map(|table| table.remove(path))),
    }
}

/// The runs that tuning still needs: neither finished nor ended by divergence, which is a result. None where the choice
/// is made, and none without `[tuning]`.
///
/// # Errors
///
/// A finished run with other settings, or a choice among other values.
pub fn tuning_runs(folder: &Path, grid: &Grid, force: bool) -> Result<Vec<Named>> {
    let mut open = Vec::new();
    for cell in &grid.cells {
        if choice_of(folder, grid, cell)?.is_none() {
            open.extend(open_tries(folder, grid, cell, force)?);
        }
    }
    Ok(open)
}

fn open_tries(folder: &Path, grid: &Grid, cell: &Cell, force: bool) -> Result<Vec<Named>> {
    let Some(tuning) = tuning(grid) else { return Ok(Vec::new()) };
    let mut open = Vec::new();
    for &seed in &tuning.seeds {
        for (value, experiment) in cell.tries.iter().enumerate() {
            for (variant, spec) in &experiment.variants {
                let named = Named { cell: cell.name.clone(), variant: variant.clone(), value, seed };
                let run = named.folder(folder, Some(&tuning));
                if find(&run, spec, seed, force)? == Found::Open
                    && !has_diverged(&Run::read(&run, seed)?.status)
                {
                    open.push(named);
                }
            }
        }
    }
    Ok(open)
}

/// The runs of a grid that are reported on.
#[derive(Debug, Default)]
pub struct Runs {
    /// Not finished yet.
    pub runs: Vec<Named>,
    /// How many are finished.
    pub finished: usize,
    /// Cells in which tuning cannot choose, with the reason.
    pub problems: Vec<(String, String)>,
}

/// The runs that are reported on, with the values that tuning chose, seed by seed, so that what there is can be compared.
/// Cells whose tries have not all ended have none yet.
///
/// # Errors
///
/// A finished run with other settings.
pub fn final_runs(folder: &Path, grid: &Grid, force: bool) -> Result<Runs> {
    let mut all = Runs::default();
    let mut cells = Vec::new();
    for cell in &grid.cells {
        match values(folder, grid, cell, force) {
            Ok(Some(values)) => cells.push((cell, values)),
            Ok(None) => {}
            Err(error) => {
                all.problems.push((format!("tuning of {}", grid.cell_name(&cell.name)), in_one_line(&error)))
            }
        }
    }
    for &seed in &grid.seeds {
        for (cell, values) in &cells {
            for ((variant, _), &value) in cell.tries[0].variants.iter().zip(values) {
                let named = Named { cell: cell.name.clone(), variant: variant.clone(), value, seed };
                let run = named.folder(folder, tuning(grid).as_ref());
                match find(&run, named.spec(grid)?, seed, force)? {
                    Found::Finished => all.finished += 1,
                    Found::Open => all.runs.push(named),
                }
            }
        }
    }
    Ok(all)
}

/// Number of the value of each variant of a cell; `None` where tries are still open.
fn values(folder: &Path, grid: &Grid, cell: &Cell, force: bool) -> Result<Option<Vec<usize>>> {
    let variants = &cell.tries[0].variants;
    let Some(tuning) = tuning(grid) else { return Ok(Some(vec![0; variants.len()])) };
    let choice = match choice_of(folder, grid, cell)? {
        Some(choice) => choice,
        None if open_tries(folder, grid, cell, force)?.is_empty() => choose(folder, cell, &tuning)?,
        None => return Ok(None),
    };
    let of = |name: &String| {
        let tuned = choice.variants.iter().find(|tuned| tuned.variant == *name);
        tuned.map(|tuned| tuned.chosen).with_context(|| format!("{TUNING_FILE} has no variant `{name}`"))
    };
    Ok(Some(variants.iter().map(|(name, _)| of(name)).collect::<Result<_>>()?))
}

/// What was chosen for a cell, if anything was.
///
/// # Errors
///
/// A choice among other values or by other seeds: somebody has removed the file that says what the grid was.
fn choice_of(folder: &Path, grid: &Grid, cell: &Cell) -> Result<Option<Choice>> {
    let own = folder.join(&cell.name);
    let (Some(choice), Some(tuning)) = (Choice::read(&own)?, tuning(grid)) else { return Ok(None) };
    let tried = Tuning {
        setting: choice.setting.clone(),
        values: choice
            .variants
            .first()
            .into_iter()
            .flat_map(|tuned| &tuned.tries)
            .map(|tried| tried.value.clone())
            .collect(),
        seeds: choice.seeds.clone(),
    };
    if tried != tuning {
        let said = |tuning: &Tuning| format!("{:?} with seeds {:?}", tuning.values, tuning.seeds);
        bail!(
            "{} chose among {}, the experiment now has {}. Give the experiment another name, or move {} away",
            own.join(TUNING_FILE).display(),
            said(&tried),
            said(&tuning),
            folder.display(),
        );
    }
    Ok(Some(choice))
}

fn has_diverged(status: &Status) -> bool {
    matches!(status, Status::Failed { diverged: true, .. })
}

/// What tuning chooses for the variants of a cell whose tries have all ended, written down once: for each the value of
/// the best mean score on dev at the last step, the first of equals. A value with which a run diverged is not chosen.
fn choose(experiment: &Path, cell: &Cell, tuning: &Tuning) -> Result<Choice> {
    let mut evaluation = None;
    let mut variants = Vec::new();
    for (variant, _) in &cell.tries[0].variants {
        let mut tries = Vec::new();
        for (number, value) in tuning.values.iter().enumerate() {
            let mut tried = Tried { value: value.clone(), scores: Vec::new(), diverged: 0 };
            for &seed in &tuning.seeds {
                let named = Named { cell: cell.name.clone(), variant: variant.clone(), value: number, seed };
                let run = Run::read(&named.folder(experiment, Some(tuning)), seed)?;
                tried.diverged += usize::from(has_diverged(&run.status));
                let score = run.result.and_then(|result| {
                    let headline = result.evaluation.first()?.clone();
                    let score = result.last.scores.get(&headline).copied();
                    evaluation.get_or_insert(headline);
                    score.filter(|score| score.is_finite())
                });
                tried.scores.push(score);
            }
            tries.push(tried);
        }
        let mut chosen: Option<(usize, f64)> = None;
        for (number, mean) in
            tries.iter().enumerate().filter_map(|(number, tried)| Some((number, tried.mean()?)))
        {
            if chosen.is_none_or(|(_, best)| mean > best) {
                chosen = Some((number, mean));
            }
        }
        let Some((chosen, _)) = chosen else {
            bail!(
                "no value of {} can be chosen for {variant} in {}: with each of them a run diverged or its score is \
                 undefined; try other values in an experiment of another name",
                tuning.setting,
                experiment.join(&cell.name).display()
            );
        };
        variants.push(Tuned { variant: variant.clone(), tries, chosen });
    }
    let choice = Choice {
        setting: tuning.setting.clone(),
        evaluation: evaluation.context("a tuning run that finished has an evaluation")?,
        seeds: tuning.seeds.clone(),
        variants,
    };
    write_file(
        &experiment.join(&cell.name).join(TUNING_FILE),
        &(serde_json::to_string_pretty(&choice)? + "\n"),
    )?;
    Ok(choice)
}
