//! What an experiment will do, for a user to read before it does it.

use std::collections::BTreeMap;

use adalora::{BudgetSchedule, BudgetUnit, Form, Layout};
use adalora_models::Purpose;
use adalora_tasks::Catalogue;

use crate::experiment::{AdapterSpec, Document, Grid, ModelSpec, Problem, Problems, RunSpec, TaskSpec};
use crate::plan::{DataSize, Plan, checkpoint_folder, dataset};

/// The plans of all variants of each cell, in their order, with the first value of `[tuning]`.
///
/// # Errors
///
/// Every rule that any of them breaks with the model's layers and the data at hand.
pub fn plans(document: &Document, grid: &Grid, catalogue: &Catalogue) -> Result<Vec<Vec<Plan>>, Problems> {
    let mut known: Vec<(&TaskSpec, &ModelSpec, Result<DataSize, Problem>)> = Vec::new();
    let (mut plans, mut problems) = (Vec::new(), Vec::new());
    for cell in &grid.cells {
        let mut of_cell = Vec::new();
        for (number, experiment) in cell.tries.iter().enumerate() {
            for (name, spec) in &experiment.variants {
                let position =
                    known.iter().position(|(task, model, _)| *task == &spec.task && *model == &spec.model);
                let position = position.unwrap_or_else(|| {
                    known.push((&spec.task, &spec.model, data_size(spec, catalogue)));
                    known.len() - 1
                });
                let planned = match &known[position].2 {
                    Ok(size) => Plan::new(spec, catalogue, size),
                    Err(problem) => Err(vec![problem.clone()]),
                };
                match planned {
                    Ok(plan) if number == 0 => of_cell.push(plan),
                    Ok(_) => {}
                    Err(found) => {
                        let variant = Some(cell.variant(name));
                        problems
                            .extend(found.into_iter().map(|own| Problem { variant: variant.clone(), ..own }));
                    }
                }
            }
        }
        plans.push(of_cell);
    }
    if problems.is_empty() { Ok(plans) } else { Err(document.problems(problems)) }
}

fn data_size(spec: &RunSpec, catalogue: &Catalogue) -> Result<DataSize, Problem> {
    let problem = |key: &str, message: String| Problem { variant: None, key: key.into(), message };
    match (&spec.task, &spec.model) {
        (TaskSpec::Planted(task), _) => {
            Ok(DataSize { train_rows: task.train_rows, purpose: Purpose::Classify { outputs: task.outputs } })
        }
        (task, ModelSpec::Pretrained(model)) => {
            let folder = checkpoint_folder(&model.checkpoint, catalogue)
                .map_err(|message| problem("model.pretrained.checkpoint", message))?;
            let key = format!("task.{}.data", task.name());
            let dataset =
                dataset(task, catalogue, &folder).map_err(|error| problem(&key, error.to_string()))?;
            Ok(DataSize::of(&dataset))
        }
        (_, ModelSpec::Random(_)) => unreachable!("a rule asks for a pretrained model"),
    }
}

/// Steps, budget, parameters and layers of every variant of every cell.
pub fn describe(grid: &Grid, plans: &[Vec<Plan>]) -> String {
    let list = |seeds: &[u64]| seeds.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    let variants: usize = plans.iter().map(Vec::len).sum();
    let mut lines = vec![format!("{}: {}", grid.name, grid.description)];
    let cells = if grid.cells.len() > 1 { format!(" in {} cells", grid.cells.len()) } else { String::new() };
    lines.push(format!(
        "{variants} variant(s){cells}, seeds {}: {} runs",
        list(&grid.seeds),
        grid.seeds.len() * variants
    ));
    if let Some(tuning) = &grid.tuning {
        lines.push(format!(
            "before these, {} is chosen for each from {} with seed(s) {}: {} runs",
            tuning.setting,
            tuning.values.join(" "),
            list(&tuning.seeds),
            tuning.values.len() * tuning.seeds.len() * variants
        ));
    }
    for (cell, plans) in grid.cells.iter().zip(plans) {
        for ((name, spec), plan) in cell.tries[0].variants.iter().zip(plans) {
            let cell = if cell.name.is_empty() { String::new() } else { format!("{}, ", cell.name) };
            lines.push(format!("\n{cell}{name}"));
            lines.extend(details(spec, plan).iter().map(|(what, detail)| format!("  {what:10} {detail}")));
        }
    }
    lines.join("\n") + "\n"
}

fn details(spec: &RunSpec, plan: &Plan) -> Vec<(&'static str, String)> {
    let data = spec.task.data().unwrap_or(spec.task.name());
    let parameters = plan.parameters();
    let ranks = plan.layout.ranks();
    let rank = match (spec.adapter.ranks(), ranks.iter().min(), ranks.iter().max()) {
        (Some(file), Some(least), Some(most)) => format!("ranks {least} to {most} of {file}"),
        (_, _, rank) => format!("rank {}", rank.copied().unwrap_or(0)),
    };
    let mut lines = vec![
        (
            "data",
            format!("{data}: {} training examples, {} steps an epoch", plan.train_rows, plan.steps_per_epoch),
        ),
        ("steps", steps(plan)),
    ];
    if let Some(schedule) = &plan.schedule {
        let adapters = plan.layout.adapters();
        let what = match (schedule.unit(), plan.layout.form()) {
            (BudgetUnit::Parameters, _) => "parameters",
            (BudgetUnit::Triplets, Form::Svd) => "triplets",
            (BudgetUnit::Triplets, Form::Lora) => "doublets",
        };
        lines.push((
            "budget",
            format!("{} {what} to {} over {adapters} adapters", schedule.initial(), schedule.target()),
        ));
    }
    lines.push((
        "parameters",
        format!(
            "adapters {} at the peak, {} at the end{}; head {}",
            parameters.adapter_peak,
            parameters.adapter_final_if_uniform,
            match plan.schedule.as_ref().map(BudgetSchedule::unit) {
                Some(BudgetUnit::Triplets) => " if all ranks were equal",
                Some(BudgetUnit::Parameters) => " or a little less",
                None => "",
            },
            parameters.head
        ),
    ));
    if let Some(source) = &plan.warm_start {
        lines.push(("start", format!("the adapter of {}", source.record.run)));
    }
    lines.extend(scale(spec, plan).map(|scale| ("scale", scale)));
    for (i, layers) in layers(&plan.layout).into_iter().enumerate() {
        lines.push((if i == 0 { "layers" } else { "" }, format!("{rank} on {layers}")));
    }
    if spec.adapter.form().is_none() {
        let name = spec.adapter.name();
        let (_, what) =
            AdapterSpec::KINDS.iter().find(|(own, _)| *own == name).expect("every kind is listed");
        lines.push(("trained", (*what).to_owned()));
    }
    lines
}

/// What increments are multiplied by, where it is not the usual `alpha / r` of one initial rank.
fn scale(spec: &RunSpec, plan: &Plan) -> Option<String> {
    if spec.adapter.scale().is_default() {
        return None;
    }
    let ranks = plan.layout.ranks();
    let mut scales = spec.adapter.scales(&ranks, &ranks);
    scales.sort_by(f64::total_cmp);
    let (least, most) = (scales.first()?, scales.last()?);
    let at_first = if least == most { format!("{least:.4}") } else { format!("{least:.4} to {most:.4}") };
    let later = if spec.adapter.scale().follows_rank() {
        format!(" at first, up to {:.4} later", spec.adapter.alpha())
    } else {
        String::new()
    };
    Some(format!("{at_first}{later}"))
}

fn steps(plan: &Plan) -> String {
    let total = plan.total_steps;
    let Some(schedule) = &plan.schedule else { return format!("{total}") };
    let phases = schedule.phases();
    let names = ["warm-up", "reduction", "final phase"];
    let ranges = names.iter().zip(phases).map(|(name, range)| {
        if range.is_empty() {
            format!("no {name}")
        } else {
            format!("{name} {}-{}", range.start(), range.end())
        }
    });
    let (allocations, last) = (schedule.allocations(), schedule.last_allocation());
    format!(
        "{total}: {}; {allocations} allocation(s), the last at {last}",
        ranges.collect::<Vec<_>>().join(", ")
    )
}

/// The adapted layers, a line for each kind of layer: its path with the numbers of the blocks that have it.
fn layers(layout: &Layout) -> Vec<String> {
    let mut kinds: Vec<String> = Vec::new();
    let mut blocks: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for site in layout.sites() {
        let number = site.path.split('.').find_map(|part| part.parse::<usize>().ok());
        let parts: Vec<_> =
            site.path.split('.').map(|part| if part.parse::<usize>().is_ok() { "*" } else { part }).collect();
        let kind = parts.join(".");
        if !kinds.contains(&kind) {
            kinds.push(kind.clone());
        }
        blocks.entry(kind).or_default().extend(number);
    }
    kinds
        .into_iter()
        .map(|kind| {
            let numbers: Vec<_> = blocks[&kind].iter().map(ToString::to_string).collect();
            format!("{kind} of {}", numbers.join(", "))
        })
        .collect()
}
