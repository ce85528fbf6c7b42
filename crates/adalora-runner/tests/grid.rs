//! `[sweep]` and `[tuning]`: what they say, and whole experiments with them.

mod workspace;

use std::fs;
use std::path::Path;

use adalora_runner::experiment::{Document, Experiment, Grid};
use serde_json::Value;
use workspace::{Workspace, assert_code, text};

const BASE: &str = r#"description = "A small grid"
seeds = [1, 2]

[model.random]
layers = 1
hidden = 8
heads = 2
intermediate = 12
vocabulary = 30
seed = 7

[task.planted]
layers = ["layer.0.intermediate.dense"]
rank = 1
strength = 1.0
outputs = 2
length = 4
train_rows = 64
dev_rows = 40
seed = 11

[adapter.svd]
targets = ["query", "value"]
init_r = 3
alpha = 6

[importance.sensitivity-uncertainty]

[budget.cubic]
target_r = 1
t_init = 2
t_final = 4

[observation]
weights = "after-step"
gradient = "clipped"

[optimizer]
schedule.linear.warm_up = 1

[train]
steps = 12
batch_size = 16
clip = 1.0
evaluate_every = 6
record_every = 3
"#;

const AXES: &str = r#"
[sweep]
task.planted.strength = [0.5, 1.0]

[sweep.ranks]
low = { adapter.svd.init_r = 2, adapter.lora.r = 1, budget.cubic.t_init = 3 }
high = { adapter.svd.init_r = 4, adapter.lora.r = 2, train.epochs = 4 }

[tuning]
seeds = [101]
optimizer.lr = [1e-3, 1e-2]

[variants.adalora]
[variants.lora]
drop = ["importance", "budget", "observation"]
adapter.lora = { targets = ["query", "value"], r = 9, alpha = 4 }
"#;

fn grid(text: &str, overrides: &[&str]) -> Result<Grid, String> {
    let overrides: Vec<String> = overrides.iter().map(ToString::to_string).collect();
    Document::parse(Path::new("experiments/small/grid.toml"), text.into(), &overrides)
        .and_then(|document| document.grid())
        .map_err(|problems| problems.to_string())
}

#[test]
fn lists_multiply_and_points_go_together() {
    let grid = grid(&format!("{BASE}{AXES}"), &[]).unwrap();
    let cells: Vec<_> = grid.cells.iter().map(|cell| cell.name.as_str()).collect();
    assert_eq!(cells, ["strength-0.5,low", "strength-0.5,high", "strength-1.0,low", "strength-1.0,high"]);
    let (low, high) = (&grid.cells[2].tries, &grid.cells[3].tries);
    assert_eq!(low[0].name, "small/grid/strength-1.0,low");
    let spec = |tries: &[Experiment], value: usize, variant: usize| tries[value].variants[variant].1.clone();
    assert_eq!([0, 1].map(|variant| spec(low, 0, variant).adapter.rank()), [Some(2), Some(1)]);
    assert_eq!([0, 1].map(|variant| spec(high, 0, variant).adapter.rank()), [Some(4), Some(2)]);
    assert_eq!([low, high].map(|tries| spec(tries, 1, 0).train.steps), [Some(12), None]);
    assert_eq!([0, 1].map(|value| spec(high, value, 1).optimizer.lr), [1e-3, 1e-2]);
    let own = AXES.replace("train.epochs = 4", "variants.lora.adapter.lora.r = 7");
    let own = self::grid(&format!("{BASE}{own}"), &[]).unwrap();
    assert_eq!(
        [0, 1].map(|variant| spec(&own.cells[3].tries, 0, variant).adapter.rank()),
        [Some(4), Some(7)]
    );
    let tuning = grid.tuning.unwrap();
    assert_eq!(
        (tuning.setting.as_str(), &tuning.values[..]),
        ("optimizer.lr", &["lr-0.001", "lr-0.01"].map(String::from)[..])
    );
}

#[test]
fn the_command_line_has_the_last_word() {
    let text = format!("{BASE}{AXES}");
    let grid = grid(&text, &["train.steps=20", "adapter.svd.init_r=5"]).unwrap();
    for cell in &grid.cells {
        let spec = &cell.tries[0].variants[0].1;
        assert_eq!((spec.train.steps, spec.train.epochs, spec.adapter.rank()), (Some(20), None, Some(5)));
    }
}

#[test]
fn problems_name_cell_and_variant() {
    let wrong = |from: &str, to: &str| {
        assert!(AXES.contains(from), "{from}");
        grid(&format!("{BASE}{}", AXES.replace(from, to)), &[]).unwrap_err()
    };
    let shown = [
        wrong("t_init = 3", "t_init = 30"),
        wrong("adapter.lora.r = 1", "adapter.lora.rank = \"one\""),
        wrong("[0.5, 1.0]", "[0.5, [1.0]]"),
        wrong("[0.5, 1.0]", "0.5"),
        wrong("train.epochs = 4", "task.planted.strength = 4.0"),
        wrong("high = {", "low2 = 3\nHigh = {"),
        wrong("[sweep.ranks]", "[sweep.again]\nlow = { train.steps = 13 }\n[sweep.ranks]"),
        wrong("[sweep.ranks]", "[sweep.none]\n[sweep.train]"),
        wrong(
            "train.epochs = 4",
            "variants.lroa.adapter.lora.r = 3, variants.adalora.adapter.svd.init_r = 1",
        ),
        wrong("train.epochs = 4", "trian.epochs = 4"),
        wrong("seeds = [101]", "seeds = [2, 101]"),
        wrong("seeds = [101]", "sees = [101]"),
        wrong("optimizer.lr = [1e-3, 1e-2]", "optimizer.lr = [1e-3, 0.0]\noptimizer.eps = [1e-8]"),
        wrong("optimizer.lr = [1e-3, 1e-2]", "optimizer.lr = [1e-3, 0.0]"),
        wrong("[variants.adalora]", "[variants.adalora.optimizer]\nlr = 1.0\nschedule.constant.warm_up = 0"),
        wrong("[variants.adalora]", "[variants.tuning]"),
        grid(&format!("{BASE}{AXES}"), &["optimizer.lr=1e-3"]).unwrap_err(),
    ];
    insta::assert_snapshot!(shown.join("\n\n"));
}

fn json(workspace: &Workspace, path: &str) -> Value {
    serde_json::from_str(&fs::read_to_string(workspace.path(path)).unwrap()).unwrap()
}

/// Two cells, two variants, two values on one tuning seed, two seeds.
fn small() -> Workspace {
    let workspace = Workspace::new("planted", BASE);
    fs::create_dir(workspace.path("experiments/small")).unwrap();
    let axes = AXES.replace("task.planted.strength = [0.5, 1.0]", "");
    workspace.write("small/grid", &format!("{BASE}{axes}"));
    workspace
}

#[test]
fn a_whole_grid_is_tuned_run_and_skipped() {
    let workspace = small();
    let output = workspace.adalora(&["run", "small/grid", "--cell", "low"]);
    assert_code(&output, 0);
    assert!(!workspace.path("runs/small/grid/high/adalora").exists());
    let output = workspace.adalora(&["run", "small/grid"]);
    assert_code(&output, 0);
    assert!(text(&output.stderr).contains("4 run(s) are finished already"), "{}", text(&output.stderr));
    for cell in ["low", "high"] {
        let choice = json(&workspace, &format!("runs/small/grid/{cell}/tuning/choice.json"));
        assert_eq!((&choice["setting"], &choice["evaluation"]), (&"optimizer.lr".into(), &"r2".into()));
        for tuned in choice["variants"].as_array().unwrap() {
            let variant = tuned["variant"].as_str().unwrap();
            let score = |value: &str| {
                let run = format!("runs/small/grid/{cell}/tuning/{variant}/{value}/seed-101/result.json");
                json(&workspace, &run)["last"]["scores"]["r2"].as_f64().unwrap()
            };
            let scores = ["lr-0.001", "lr-0.01"].map(score);
            let best = usize::from(scores[1] > scores[0]);
            assert_eq!(tuned["chosen"], best, "{scores:?}");
            for seed in [1, 2] {
                let settings =
                    workspace.path(&format!("runs/small/grid/{cell}/{variant}/seed-{seed}/resolved.toml"));
                let lr = ["lr = 0.001\n", "lr = 0.01\n"][best];
                assert!(fs::read_to_string(settings).unwrap().contains(lr), "{cell} {variant} {seed}");
            }
        }
    }
    let again = workspace.adalora(&["run", "small/grid"]);
    assert_code(&again, 0);
    assert!(text(&again.stderr).contains("8 run(s) are finished already"), "{}", text(&again.stderr));
    assert!(text(&workspace.adalora(&["list"]).stdout).contains("small/grid"));
}

#[test]
fn a_grid_is_frozen_before_its_first_run() {
    let workspace = small();
    assert_code(&workspace.adalora(&["run", "small/grid", "--cell", "low", "--seed", "1"]), 0);
    let error = |arguments: &[&str]| {
        let output = workspace.adalora(&[&["run", "small/grid"], arguments].concat());
        assert_code(&output, 2);
        text(&output.stderr)
    };
    insta::assert_snapshot!(
        [
            // The other cell, of which nothing has run.
            error(&["--set", "train.batch_size=8"]),
            error(&["--set", "seeds=[1, 2, 3]"]),
            error(&["--seed", "7"]),
            error(&["--cell", "lo"]),
        ]
        .concat()
    );

    // Without the file, what was chosen still says among which values.
    fs::remove_file(workspace.path("runs/small/grid/grid.json")).unwrap();
    let changed = fs::read_to_string(workspace.path("experiments/small/grid.toml")).unwrap();
    workspace.write("small/grid", &changed.replace("[1e-3, 1e-2]", "[1e-3, 3e-3, 1e-2]"));
    insta::assert_snapshot!(error(&[]));
}

#[test]
fn a_value_that_diverges_is_tried_once_and_not_chosen() {
    let workspace = small();
    let text_of = fs::read_to_string(workspace.path("experiments/small/grid.toml")).unwrap();
    // Recorded at each step, what overflows is read back.
    let text_of = text_of.replace("record_every = 3", "record_every = 1");
    workspace.write("small/grid", &text_of.replace("[1e-3, 1e-2]", "[1e30, 1e-2]"));
    let arguments = ["run", "small/grid", "--cell", "low", "--seed", "1"];
    let output = workspace.adalora(&arguments);
    assert_code(&output, 1);
    assert!(text(&output.stderr).contains("diverged"), "{}", text(&output.stderr));
    let choice = json(&workspace, "runs/small/grid/low/tuning/choice.json");
    assert_eq!(choice["variants"][0]["chosen"], 1);
    assert_eq!(choice["variants"][0]["tries"][0]["diverged"], 1);
    assert_eq!(choice["variants"][0]["tries"][0]["scores"], serde_json::json!([null]));
    assert_code(&workspace.adalora(&arguments), 0);
    assert!(!workspace.path("runs/small/grid/low/tuning/lora/lr-1e30/seed-101.unfinished-1").exists());

    workspace.write("small/all", &text_of.replace("[1e-3, 1e-2]", "[1e30, 2e30]"));
    let output = workspace.adalora(&["run", "small/all", "--cell", "low"]);
    assert_code(&output, 1);
    assert!(text(&output.stderr).contains("can be chosen for adalora"), "{}", text(&output.stderr));
    assert!(!workspace.path("runs/small/all/low/adalora").exists());
}
