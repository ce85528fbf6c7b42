//! What ablations of adaptive rank switch, as a user writes it: budgets of parameters, patterns in files, warm starts.

mod workspace;

use std::fs;

use serde_json::Value;
use workspace::{Workspace, assert_code, text};

/// Ten adapters of rank 3; a triplet has 33 parameters in the attention and 41 in the feed-forward part, 1086 in all.
const SMALL: &str = r#"
description = "A small planted task"
seeds = [1]

[model.random]
layers = 2
hidden = 16
heads = 2
intermediate = 24
vocabulary = 50
seed = 7

[task.planted]
layers = ["layer.0.intermediate.dense"]
rank = 2
strength = 1.0
outputs = 3
length = 6
train_rows = 200
dev_rows = 40
seed = 11

[adapter.svd]
targets = ["{query,value}", "dense"]
init_r = 3
alpha = 6

[importance.sensitivity-uncertainty]

[budget.cubic]
target_r = 1
t_init = 5
t_final = 10
delta_t = 4

[observation]
weights = "after-step"
gradient = "raw"

[optimizer]
lr = 1e-2

[train]
steps = 31
batch_size = 16
evaluate_every = 10
record_every = 5
"#;

const DROPPED: &str = "drop = [\"importance\", \"budget\", \"observation\"]\n";

fn result(workspace: &Workspace, run: &str) -> Value {
    let text = fs::read_to_string(workspace.path(&format!("runs/{run}/result.json"))).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// The rows of `ranks.csv` without the step.
fn ranks(workspace: &Workspace, run: &str) -> Vec<Vec<usize>> {
    let text = fs::read_to_string(workspace.path(&format!("runs/{run}/ranks.csv"))).unwrap();
    let row = |line: &str| line.split(',').skip(1).map(|rank| rank.parse().unwrap()).collect();
    text.lines().skip(1).map(row).collect()
}

fn first_loss(workspace: &Workspace, run: &str) -> f64 {
    let text = fs::read_to_string(workspace.path(&format!("runs/{run}/metrics.jsonl"))).unwrap();
    let record: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    record["loss"].as_f64().unwrap()
}

fn refused(workspace: &Workspace, name: &str, experiment: &str) -> String {
    workspace.write(name, experiment);
    let output = workspace.adalora(&["check", name]);
    assert_code(&output, 2);
    text(&output.stderr)
}

#[test]
fn a_budget_of_parameters_is_kept_and_filled() {
    let workspace = Workspace::new("small", &SMALL.replace("target_r = 1", "target_parameters = 400"));
    let output = workspace.adalora(&["check", "small"]);
    assert_code(&output, 0);
    let plan = text(&output.stdout);
    assert!(plan.contains("1086 parameters to 400 over 10 adapters"), "{plan}");
    assert!(plan.contains("adapters 1086 at the peak, 400 at the end or a little less"), "{plan}");
    let masked = ["--set", "train.compact=false"];
    assert_code(&workspace.adalora(&["run", "small"]), 0);
    workspace.write("masked", &SMALL.replace("target_r = 1", "target_parameters = 400"));
    assert_code(&workspace.adalora(&[&["run", "masked"], &masked[..]].concat()), 0);
    let small = result(&workspace, "small/run/seed-1");
    assert_eq!(ranks(&workspace, "small/run/seed-1"), ranks(&workspace, "masked/run/seed-1"));
    let parameters = &small["parameters"];
    assert_eq!(parameters["adapter_budget"], 400);
    let left = 400 - parameters["adapter_final"].as_u64().unwrap();
    assert!(left < 41, "{parameters}");
    let last = ranks(&workspace, "small/run/seed-1").pop().unwrap();
    let costs = [33, 33, 33, 41, 41, 33, 33, 33, 41, 41];
    let spent: usize = last.iter().zip(costs).map(|(rank, cost)| rank * cost).sum();
    assert_eq!(parameters["adapter_final"].as_u64().unwrap() as usize, spent);
    assert_eq!(small["triplets"]["initial"], 30);
    assert!(small["triplets"].get("budget").is_none(), "{small}");
    let report = fs::read_to_string(workspace.path("runs/small/report/table.md")).unwrap();
    assert!(report.contains("adapter, budget"), "{report}");
}

#[test]
fn a_found_pattern_is_trained_from_scratch() {
    let workspace = Workspace::new("small", SMALL);
    assert_code(&workspace.adalora(&["run", "small"]), 0);
    let export = ["export-pattern", "runs/small/run/seed-1", "found.toml"];
    assert_code(&workspace.adalora(&export), 0);
    let found = ranks(&workspace, "small/run/seed-1").pop().unwrap();
    assert!(found.contains(&0) && found.iter().any(|&rank| rank > 1), "{found:?}");
    let again = workspace.adalora(&export);
    assert_code(&again, 2);
    assert!(text(&again.stderr).contains("found.toml is there already"), "{}", text(&again.stderr));

    let fixed = SMALL.to_owned()
        + &format!("[variants.svd]\n{DROPPED}")
        + "adapter.svd = { targets = [\"{query,value}\", \"dense\"], ranks = \"found.toml\", alpha = 2, \
           scale = \"constant\" }\n"
        + &format!("[variants.lora]\n{DROPPED}")
        + "adapter.lora = { targets = [\"{query,value}\", \"dense\"], ranks = \"found.toml\", alpha = 2 }\n"
        + "[variants.adalora]\n";
    workspace.write("fixed", &fixed);
    let output = workspace.adalora(&["check", "fixed"]);
    assert_code(&output, 0);
    let most = found.iter().max().unwrap();
    assert!(
        text(&output.stdout).contains(&format!("ranks 0 to {most} of found.toml")),
        "{}",
        text(&output.stdout)
    );
    assert_code(&workspace.adalora(&["run", "fixed"]), 0);
    let source = result(&workspace, "small/run/seed-1");
    for variant in ["svd", "lora"] {
        let run = format!("fixed/{variant}/seed-1");
        assert!(ranks(&workspace, &run).iter().all(|row| *row == found), "{variant}");
        let parameters = result(&workspace, &run)["parameters"].clone();
        assert_eq!(parameters["adapter_peak"], parameters["adapter_final"], "{variant}");
        if variant == "svd" {
            assert_eq!(parameters["adapter_final"], source["parameters"]["adapter_final"]);
        }
    }
    let provenance = fs::read_to_string(workspace.path("runs/fixed/svd/seed-1/provenance.json")).unwrap();
    assert!(provenance.contains("found.toml"), "{provenance}");

    let other = fixed.replace("\"dense\"], ranks", "\"key\"], ranks");
    let problems = refused(&workspace, "other", &other);
    assert!(
        problems.contains(
            "has ranks for layers that are not adapted here: `encoder.layer.0.attention.output.dense`"
        ) && problems
            .contains("has no rank for adapted layers: `encoder.layer.0.attention.self.key` and 1 more"),
        "{problems}"
    );
    let missing = refused(&workspace, "missing", &fixed.replace("found.toml", "fuond.toml"));
    assert!(missing.contains("fuond.toml: No such file"), "{missing}");
}

#[test]
fn a_warm_start_takes_the_increments_and_says_from_where() {
    let workspace = Workspace::new("small", SMALL);
    assert_code(&workspace.adalora(&["run", "small"]), 0);
    // Another rank and scale than the source's, under which the increments are the same.
    // Another head too.
    let warm =
        SMALL.replace("init_r = 3\nalpha = 6", "init_r = 4\nalpha = 2").replace("outputs = 3", "outputs = 5")
            + "[variants.cold]\n[variants.warm]\nwarm_start.run = \"runs/small/run/seed-1\"\n";
    workspace.write("warm", &warm);
    let output = workspace.adalora(&["check", "warm"]);
    assert_code(&output, 0);
    assert!(text(&output.stdout).contains("start      the adapter of runs/small/run/seed-1"));
    assert_code(&workspace.adalora(&["run", "warm", "--set", "train.record_every=1"]), 0);
    assert_ne!(first_loss(&workspace, "warm/cold/seed-1"), first_loss(&workspace, "warm/warm/seed-1"));
    let record = result(&workspace, "warm/warm/seed-1")["warm_start"].clone();
    assert_eq!(record["run"], "runs/small/run/seed-1");
    assert_eq!(record["identity"].as_str().unwrap().len(), 64);
    assert!(result(&workspace, "warm/cold/seed-1").get("warm_start").is_none());

    let base = "[warm_start]\nrun = \"runs/small/run/seed-1\"\n";
    let wrong = SMALL
        .replace("init_r = 3", "init_r = 1")
        .replace("\"dense\"]\n", "\"key\"]\n")
        .replace("hidden = 16", "hidden = 18")
        + base;
    let problems = refused(&workspace, "wrong", &wrong);
    for part in [
        "was trained on the model",
        "from 16 to 16 values, where this model has it from 18 to 18",
        "adapts `encoder.layer.0.intermediate.dense`, which is not adapted here",
    ] {
        assert!(problems.contains(part), "{part}\n{problems}");
    }
    let lora = SMALL.replace("[adapter.svd]", "[adapter.lora]").replace("init_r", "r");
    let lora =
        lora[..lora.find("[importance").unwrap()].to_owned() + &lora[lora.find("[optimizer]").unwrap()..];
    let problems = refused(&workspace, "lora", &(lora + base));
    assert!(problems.contains("is of [adapter.svd], and this is [adapter.lora]"), "{problems}");

    let status = workspace.path("runs/small/run/seed-1/status.json");
    fs::write(&status, "{\"state\": \"interrupted\", \"step\": 3}").unwrap();
    let problems = refused(&workspace, "unfinished", &(SMALL.to_owned() + base));
    assert!(
        problems.contains("is interrupted at step 3: ranks hold from the last allocation on"),
        "{problems}"
    );
    let output = workspace.adalora(&["export-pattern", "runs/small/run/seed-1", "pattern.toml"]);
    assert_code(&output, 2);
    assert!(text(&output.stderr).contains("is interrupted: its ranks are not final"));
}

#[test]
fn settings_without_meaning_are_refused_all_at_once() {
    let workspace = Workspace::new("small", SMALL);
    let plain =
        SMALL.replace(&SMALL[SMALL.find("[importance").unwrap()..SMALL.find("[optimizer]").unwrap()], "");
    let no_budget = plain
        .replace("alpha = 6", "alpha = 6\nscale = \"current-rank\"\nranks = \"found.toml\"")
        .replace("lr = 1e-2", "lr = 1e-2\nmasked_moments = \"zero\"")
        .replace("\"dense\"]", "\"layer.{1-0}\"]");
    let both = SMALL
        .replace("init_r = 3", "ranks = \"found.toml\"")
        .replace("target_r = 1", "target_r = 1\ntarget_parameters = 400")
        + "[warm_start]\nrun = \"\"\n";
    let neither = SMALL.replace("init_r = 3\n", "").replace("target_r = 1\n", "");
    let beyond = SMALL.replace("target_r = 1", "target_parameters = 2000");
    let named = [("a", no_budget), ("b", both), ("c", neither), ("d", beyond)];
    let shown = named.map(|(name, experiment)| refused(&workspace, name, &experiment));
    insta::assert_snapshot!(shown.join("\n"));
}
