//! What an experiment will do, for a user to read before it does it.

use std::collections::BTreeMap;
use std::fmt::Write;

use adalora::{BudgetSchedule, Form, Layout};
use adalora_tasks::{Catalogue, Dataset};

use crate::experiment::{AdapterSpec, Document, Experiment, ModelSpec, Problem, Problems, RunSpec, TaskSpec};
use crate::plan::{DataSize, Plan, checkpoint_folder};

/// The plans of all variants, in their order.
///
/// # Errors
///
/// Every rule that any of them breaks with the model's layers and the data at hand.
pub fn plans(
    document: &Document,
    experiment: &Experiment,
    catalogue: &Catalogue,
) -> Result<Vec<Plan>, Problems> {
    let mut known: Vec<(&TaskSpec, &ModelSpec, Result<DataSize, Problem>)> = Vec::new();
    let (mut plans, mut problems) = (Vec::new(), Vec::new());
    for (name, spec) in &experiment.variants {
        let position = known.iter().position(|(task, model, _)| *task == &spec.task && *model == &spec.model);
        let position = position.unwrap_or_else(|| {
            known.push((&spec.task, &spec.model, data_size(spec, catalogue)));
            known.len() - 1
        });
        let planned = match &known[position].2 {
            Ok(size) => Plan::new(spec, catalogue, size),
            Err(problem) => Err(vec![problem.clone()]),
        };
        match planned {
            Ok(plan) => plans.push(plan),
            Err(found) => {
                problems.extend(found.into_iter().map(|own| Problem { variant: Some(name.clone()), ..own }));
            }
        }
    }
    if problems.is_empty() { Ok(plans) } else { Err(document.problems(problems)) }
}

fn data_size(spec: &RunSpec, catalogue: &Catalogue) -> Result<DataSize, Problem> {
    let problem = |key: &str, message: String| Problem { variant: None, key: key.into(), message };
    match (&spec.task, &spec.model) {
        (TaskSpec::Text(task), ModelSpec::Pretrained(model)) => {
            let folder = checkpoint_folder(&model.checkpoint, catalogue)
                .map_err(|message| problem("model.pretrained.checkpoint", message))?;
            let dataset = Dataset::load(catalogue, task, &folder)
                .map_err(|error| problem("task.text.data", error.to_string()))?;
            Ok(DataSize::of(&dataset))
        }
        (TaskSpec::Planted(task), _) => Ok(DataSize { train_rows: task.train_rows, outputs: task.outputs }),
        (TaskSpec::Text(_), ModelSpec::Random(_)) => unreachable!("a rule asks for a pretrained model"),
    }
}

/// Steps, budget, parameters and layers of every variant.
pub fn describe(experiment: &Experiment, plans: &[Plan]) -> String {
    let mut text = format!("{}: {}\n", experiment.name, experiment.description);
    let seeds: Vec<_> = experiment.seeds.iter().map(ToString::to_string).collect();
    let runs = seeds.len() * plans.len();
    writeln!(text, "{} variant(s), seeds {}: {runs} runs", plans.len(), seeds.join(" "))
        .expect("text can be written to");
    for ((name, spec), plan) in experiment.variants.iter().zip(plans) {
        writeln!(text, "\n{name}").expect("text can be written to");
        for (what, detail) in details(spec, plan) {
            writeln!(text, "  {what:10} {detail}").expect("text can be written to");
        }
    }
    text
}

fn details(spec: &RunSpec, plan: &Plan) -> Vec<(&'static str, String)> {
    let data = match &spec.task {
        TaskSpec::Text(task) => &task.data,
        TaskSpec::Planted(_) => "planted",
    };
    let parameters = plan.parameters();
    let rank = spec.adapter.rank();
    let mut lines = vec![
        (
            "data",
            format!("{data}: {} training examples, {} steps an epoch", plan.train_rows, plan.steps_per_epoch),
        ),
        ("steps", steps(plan)),
    ];
    if let Some(schedule) = &plan.schedule {
        let adapters = plan.layout.adapters();
        let what = match plan.layout.form() {
            Form::Svd => "triplets",
            Form::Lora => "doublets",
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
            if plan.schedule.is_some() { " if all ranks were equal" } else { "" },
            parameters.head
        ),
    ));
    for (i, layers) in layers(&plan.layout).into_iter().enumerate() {
        lines.push((if i == 0 { "layers" } else { "" }, format!("rank {rank} on {layers}")));
    }
    if spec.adapter.form().is_none() {
        let name = spec.adapter.name();
        let (_, what) =
            AdapterSpec::KINDS.iter().find(|(own, _)| *own == name).expect("every kind is listed");
        lines.push(("trained", (*what).to_owned()));
    }
    lines
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
    format!("{total}: {}; {}", ranges.collect::<Vec<_>>().join(", "), allocations(schedule, total))
}

fn allocations(schedule: &BudgetSchedule, total: usize) -> String {
    let count = (0..total)
        .filter(|&step| matches!(schedule.action(step), adalora::BudgetAction::Allocate { .. }))
        .count();
    format!("{count} allocation(s), the last at {}", schedule.last_allocation())
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
