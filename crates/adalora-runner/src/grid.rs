//! The runs of a grid: where they lie, that they were laid down before the first, and what tuning chooses.

use std::fs;
use std::path::{Path, PathBuf};

use adalora_report::{Choice, GRID_FILE, GridCell, Run, Status, TUNING_FILE, Tried, Tuned, write_file};
use anyhow::{Context, Result, bail};

use crate::experiment::{Cell, Grid, RunSpec, Tuning};
use crate::run_folder::{Found, find};

/// The folder of a run; `value` is that of a run that is made to choose.
pub fn run_folder(cell: &Path, variant: &str, value: Option<&str>, seed: u64) -> PathBuf {
    let variant = match value {
        Some(value) => cell.join("tuning").join(variant).join(value),
        None => cell.join(variant),
    };
    variant.join(format!("seed-{seed}"))
}

/// Writes down all runs of a grid before the first, or checks that it is the grid that was written down.
///
/// # Errors
///
/// A grid that has changed since, or a folder that has the runs of an experiment without one.
pub fn freeze(folder: &Path, grid: &Grid) -> Result<()> {
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
        tuning: grid.tuning.as_ref().map(|Tuning { setting, values, seeds }| adalora_report::Tuning {
            setting: setting.clone(),
            values: values.clone(),
            seeds: seeds.clone(),
        }),
        cells: cells.collect::<Result<_>>()?,
    })
}

fn remove(settings: &mut serde_json::Value, path: &str) {
    match path.split_once('.') {
        Some((table, rest)) => settings.get_mut(table).into_iter().for_each(|inner| remove(inner, rest)),
        None => drop(settings.as_object_mut().map(|table| table.remove(path))),
    }
}

/// A run that is made to choose.
#[derive(Debug, Clone, Copy)]
pub struct Attempt<'a> {
    /// Name of the variant.
    pub variant: &'a str,
    /// Number of the value.
    pub number: usize,
    /// Its name.
    pub value: &'a str,
    /// Seed of the run.
    pub seed: u64,
}

/// The tries of a cell that have not ended yet: in no result, and not by divergence, which is one.
///
/// # Errors
///
/// A finished run with other settings.
pub fn open_attempts<'a>(folder: &Path, cell: &'a Cell, tuning: &'a Tuning) -> Result<Vec<Attempt<'a>>> {
    let mut open = Vec::new();
    for &seed in &tuning.seeds {
        for (number, (value, experiment)) in tuning.values.iter().zip(&cell.tries).enumerate() {
            for (variant, spec) in &experiment.variants {
                let run = run_folder(folder, variant, Some(value), seed);
                if find(&run, spec, seed)? == Found::Open && !has_diverged(&Run::read(&run, seed)?.status) {
                    open.push(Attempt { variant, number, value, seed });
                }
            }
        }
    }
    Ok(open)
}

fn has_diverged(status: &Status) -> bool {
    matches!(status, Status::Failed { diverged: true, .. })
}

/// What tuning chooses for the variants of a cell whose tries have all ended, written down once: for each the value of
/// the best mean score on dev at the last step, the first of equals. A value with which a run diverged is not chosen.
///
/// # Errors
///
/// A variant for which no value can be chosen.
pub fn choose(folder: &Path, cell: &Cell, tuning: &Tuning) -> Result<Choice> {
    if let Some(choice) = Choice::read(folder)? {
        return Ok(choice);
    }
    let mut evaluation = None;
    let mut variants = Vec::new();
    for (variant, _) in &cell.tries[0].variants {
        let mut tries = Vec::new();
        for value in &tuning.values {
            let mut tried = Tried { value: value.clone(), scores: Vec::new(), diverged: 0 };
            for &seed in &tuning.seeds {
                let run = Run::read(&run_folder(folder, variant, Some(value), seed), seed)?;
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
                folder.display()
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
    write_file(&folder.join(TUNING_FILE), &(serde_json::to_string_pretty(&choice)? + "\n"))?;
    Ok(choice)
}
