//! The program, run as a user runs it, on a synthetic task that takes a second.

mod workspace;

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use adalora_runner::checkpoint::Checkpoints;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use workspace::{Workspace, assert_code, text};

const SMALL: &str = r#"
description = "A small planted task"
seeds = [1, 2]

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
targets = ["query", "value", "dense"]
init_r = 3
alpha = 6

[orthogonality.mean-of-norms]
gamma = 0.1

[importance.sensitivity-uncertainty]

[budget.cubic]
target_r = 1
t_init = 5
t_final = 10
delta_t = 4

[observation]
weights = "after-step"
gradient = "clipped"
regularizer = true

[optimizer]
lr = 1e-2
schedule.linear.warm_up = 3

[train]
steps = 31
batch_size = 16
clip = 1.0
evaluate_every = 10
record_every = 5

[variants.adalora]
[variants.random.importance.random]
[variants.lora]
drop = ["orthogonality", "importance", "budget", "observation"]
adapter.lora = { targets = ["query", "value", "dense"], r = 2, alpha = 4 }
"#;

fn json(workspace: &Workspace, path: &str) -> Value {
    serde_json::from_str(&fs::read_to_string(workspace.path(path)).unwrap()).unwrap()
}

/// `metrics.jsonl` without the times, the only thing that may differ between two runs.
fn metrics(workspace: &Workspace, run: &str) -> Vec<Value> {
    let text = fs::read_to_string(workspace.path(run).join("metrics.jsonl")).unwrap();
    text.lines()
        .map(|line| {
            let mut record: Value = serde_json::from_str(line).unwrap();
            record.as_object_mut().unwrap().remove("seconds").expect("every record has a time");
            record
        })
        .collect()
}

fn last_ranks(folder: &Path) -> Vec<usize> {
    let text = fs::read_to_string(folder.join("ranks.csv")).unwrap();
    text.lines().last().unwrap().split(',').skip(1).map(|rank| rank.parse().unwrap()).collect()
}

#[test]
fn a_whole_experiment() {
    let workspace = Workspace::new("small", SMALL);
    let output = workspace.adalora(&["run", "small"]);
    assert_code(&output, 0);
    let table = text(&output.stdout);
    assert!(table.contains("| adalora") && table.contains("| random") && table.contains("| lora"), "{table}");
    for name in ["table.md", "table.csv", "table.tex", "ranks.svg", "curves.svg", "report.html"] {
        assert!(workspace.path("runs/small/report").join(name).is_file(), "{name}");
    }
    for variant in ["adalora", "random"] {
        let run = format!("runs/small/{variant}/seed-2");
        let result = json(&workspace, &format!("{run}/result.json"));
        // 10 adapters, from rank 3 to 1.
        assert_eq!(result["triplets"], serde_json::json!({ "initial": 30, "budget": 10, "live": 10 }));
        assert_eq!(last_ranks(&workspace.path(&run)).iter().sum::<usize>(), 10);
        assert_eq!(json(&workspace, &format!("{run}/status.json"))["state"], "finished");
        for name in ["experiment.toml", "resolved.toml", "provenance.json", "adapter/adapter_config.json"] {
            assert!(workspace.path(&run).join(name).is_file(), "{name}");
        }
    }
    let lora = json(&workspace, "runs/small/lora/seed-1/result.json");
    assert!(lora.get("triplets").is_none());
    assert_eq!(lora["parameters"]["adapter_peak"], lora["parameters"]["adapter_final"]);

    let again = workspace.adalora(&["run", "small"]);
    assert_code(&again, 0);
    assert!(text(&again.stderr).contains("6 run(s) are finished already"), "{}", text(&again.stderr));
    assert_code(&workspace.adalora(&["report", "small"]), 0);
}

#[test]
fn same_file_and_seed_give_the_same_log() {
    let (one, two) = (Workspace::new("small", SMALL), Workspace::new("small", SMALL));
    assert_code(&one.adalora(&["run", "small", "--jobs", "1"]), 0);
    assert_code(&two.adalora(&["run", "small", "--jobs", "3"]), 0);
    for variant in ["adalora", "random", "lora"] {
        let run = |seed: u64| format!("runs/small/{variant}/seed-{seed}");
        assert_eq!(metrics(&one, &run(1)), metrics(&two, &run(1)), "{variant}");
        assert_ne!(metrics(&one, &run(1)), metrics(&one, &run(2)), "{variant}: seeds differ");
        let adapter =
            |of: &Workspace| fs::read(of.path(&run(1)).join("adapter/adapter_model.safetensors")).unwrap();
        assert_eq!(adapter(&one), adapter(&two), "{variant}");
    }
}

#[test]
fn a_finished_run_with_other_settings_is_refused() {
    let workspace = Workspace::new("small", SMALL);
    assert_code(&workspace.adalora(&["run", "small", "--seed", "1"]), 0);
    let before = metrics(&workspace, "runs/small/adalora/seed-1");
    workspace.write("small", &SMALL.replace("lr = 1e-2", "lr = 2e-2"));
    let output = workspace.adalora(&["run", "small", "--seed", "1"]);
    assert_code(&output, 2);
    insta::assert_snapshot!(text(&output.stderr), @"runs/small/adalora/seed-1 is finished, with other settings: it had `lr = 0.01`, the experiment now has `lr = 0.02`. Give the experiment another name, or move that folder away");
    assert_eq!(metrics(&workspace, "runs/small/adalora/seed-1"), before);
}

#[test]
fn what_importance_is_computed_from() {
    let workspace = Workspace::new("small", SMALL);
    // Nothing is clipped, so that raw and clipped gradients are the same.
    let text = SMALL.replace("clip = 1.0", "clip = 1e9").replace("gamma = 0.1", "gamma = 3.0");
    let variants = &text[text.find("[variants.adalora]").unwrap()..];
    let of = |name: &str, weights: &str, gradient: &str, regularizer: bool| {
        format!(
            "[variants.{name}]\nobservation = {{ weights = \"{weights}\", gradient = \"{gradient}\", \
             regularizer = {regularizer} }}\n"
        )
    };
    let own = [
        of("clipped", "after-step", "clipped", true),
        of("raw", "after-step", "raw", true),
        of("before", "before-step", "raw", true),
        of("task-alone", "after-step", "clipped", false),
    ];
    let base = text.replace(variants, "");
    let base =
        base.replace(&base[base.find("[observation]").unwrap()..base.find("[optimizer]").unwrap()], "");
    workspace.write("observed", &(base + &own.concat()));
    assert_code(&workspace.adalora(&["run", "observed", "--seed", "1"]), 0);
    let log = |variant: &str| metrics(&workspace, &format!("runs/observed/{variant}/seed-1"));
    assert_eq!(log("clipped"), log("raw"));
    let ranks = |variant: &str| {
        fs::read(workspace.path(&format!("runs/observed/{variant}/seed-1/ranks.csv"))).unwrap()
    };
    assert_ne!(ranks("clipped"), ranks("before"));
    assert_ne!(ranks("clipped"), ranks("task-alone"));
}

#[test]
fn a_run_that_diverges_is_marked_failed_with_its_step() {
    let workspace = Workspace::new("small", SMALL);
    let settings = ["--set", "optimizer.lr=1e30", "--set", "optimizer.schedule.linear.warm_up=0"];
    let output = workspace.adalora(&[&["run", "small", "--seed", "1"], &settings[..]].concat());
    assert_code(&output, 1);
    for variant in ["adalora", "random", "lora"] {
        let status = json(&workspace, &format!("runs/small/{variant}/seed-1/status.json"));
        assert_eq!(status["state"], "failed", "{status}");
        let reason = status["reason"].as_str().unwrap();
        assert!(reason.starts_with("the loss is ") && reason.contains(" at step 2"), "{variant}: {reason}");
        // The others went on; at the end all of them are named.
        let said = text(&output.stderr);
        let last: Vec<_> = said.lines().rev().take(3).collect();
        let own = last.iter().find(|line| line.starts_with(variant)).expect("it is named at the end");
        assert!(own.contains("seed 1 failed: the loss is "), "{said}");
    }
}

/// The process that a lock names, once it does.
fn holder(workspace: &Workspace, lock: &str) -> Option<Pid> {
    let claim = fs::read_to_string(workspace.path(lock)).ok().filter(|claim| claim.ends_with('\n'))?;
    let words: Vec<_> = claim.split_whitespace().collect();
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    assert_eq!((words[0], &words[2..]), ("process", &["on", host.as_str()][..]), "{claim}");
    Pid::from_raw(words[1].parse().unwrap())
}

fn kill(process: Pid) {
    kill_process(process, Signal::KILL).unwrap();
}

#[test]
fn a_run_whose_process_dies_does_not_hold_up_the_others() {
    let long = SMALL.replace("steps = 31", "steps = 400").replace("record_every = 5", "record_every = 1");
    let workspace = Workspace::new("small", &long);
    let arguments = ["run", "small", "--seed", "1", "--jobs", "1"];
    let sweep = workspace.command(&arguments).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let begun = workspace.path("runs/small/adalora/seed-1/metrics.jsonl");
    let patience = Instant::now() + Duration::from_secs(180);
    while fs::metadata(&begun).map_or(0, |metadata| metadata.len()) == 0 {
        assert!(Instant::now() < patience, "the run does not start");
        std::thread::sleep(Duration::from_millis(5));
    }
    kill(holder(&workspace, "runs/small/adalora/.seed-1.lock").unwrap());

    let output = sweep.wait_with_output().unwrap();
    assert_code(&output, 1);
    let said = text(&output.stderr);
    let last = said.lines().rfind(|line| line.contains("failed")).unwrap();
    assert!(last.contains("seed 1 failed: the run's process ended with signal: 9"), "{said}");
    let status = |variant: &str| json(&workspace, &format!("runs/small/{variant}/seed-1/status.json"));
    assert_eq!(status("adalora")["state"], "failed");
    assert!(status("adalora")["reason"].as_str().unwrap().contains("signal: 9"));
    for variant in ["random", "lora"] {
        assert_eq!(status(variant)["state"], "finished", "{variant}");
    }

    // A table of all of them, and none is lost: the same command takes it up.
    let rows = || {
        assert_code(&workspace.adalora(&["results"]), 0);
        let mut reader = csv::Reader::from_path(workspace.path("runs/results.csv")).unwrap();
        let header = reader.headers().unwrap().clone();
        let column = |name: &str| header.iter().position(|own| own == name).unwrap();
        let (run, state) = (column("run"), column("state"));
        let rows = reader.records().map(|row| row.unwrap());
        let mut rows: Vec<_> = rows.map(|row| format!("{} {}", &row[run], &row[state])).collect();
        rows.sort();
        rows
    };
    let of = |state| {
        let runs = [("adalora", state), ("lora", "finished"), ("random", "finished")];
        runs.map(|(variant, state)| format!("small/{variant}/seed-1 {state}"))
    };
    assert_eq!(rows(), of("failed"));
    assert_code(&workspace.adalora(&arguments), 0);
    assert_eq!(rows(), of("finished"));
}

#[test]
fn a_run_that_is_killed_while_it_loads_says_so() {
    // The teacher answers for seconds before the run has a step.
    let slow = SMALL.replace("train_rows = 200", "train_rows = 200000");
    let workspace = Workspace::new("small", &slow[..slow.find("[variants").unwrap()]);
    let (lock, run) = ("runs/small/run/.seed-1.lock", workspace.path("runs/small/run/seed-1"));
    for before in [None, Some(r#"{ "state": "interrupted", "step": 7 }"#)] {
        if let Some(before) = before {
            fs::write(run.join("status.json"), before).unwrap();
        }
        fs::remove_file(workspace.path(lock)).ok();
        let arguments = ["run", "small", "--seed", "1"];
        let sweep = workspace.command(&arguments).stderr(Stdio::piped()).spawn().unwrap();
        let patience = Instant::now() + Duration::from_secs(180);
        let worker = loop {
            if let Some(worker) = holder(&workspace, lock) {
                break worker;
            }
            assert!(Instant::now() < patience, "the run does not start");
            std::thread::sleep(Duration::from_millis(1));
        };
        kill(worker);
        assert_code(&sweep.wait_with_output().unwrap(), 1);
        assert!(!run.join("resolved.toml").exists(), "it was killed too late");
        let status = json(&workspace, "runs/small/run/seed-1/status.json");
        assert_eq!((&status["state"], &status["step"]), (&"failed".into(), &before.map_or(0, |_| 7).into()));
        assert!(status["reason"].as_str().unwrap().contains("signal: 9"), "{status}");
    }
}

#[test]
fn an_interrupted_sweep_ends_cleanly_and_goes_on() {
    let long = SMALL.replace("steps = 31", "steps = 120").replace("record_every = 5", "record_every = 1");
    let (workspace, undisturbed) = (Workspace::new("small", &long), Workspace::new("small", &long));
    let arguments = ["run", "small", "--seed", "1", "--jobs", "1"];
    let mut child =
        workspace.command(&arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    // The second of three is on its way.
    let begun = workspace.path("runs/small/random/seed-1/metrics.jsonl");
    let patience = Instant::now() + Duration::from_secs(180);
    while fs::metadata(&begun).map_or(0, |metadata| metadata.len()) == 0 {
        assert!(Instant::now() < patience, "the run does not start");
        std::thread::sleep(Duration::from_millis(5));
    }
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(75), "start me again");
    let state = |variant: &str| {
        json(&workspace, &format!("runs/small/{variant}/seed-1/status.json"))["state"].clone()
    };
    assert_eq!((state("adalora"), state("random")), ("finished".into(), "interrupted".into()));
    assert!(!workspace.path("runs/small/lora").exists());

    let again = workspace.adalora(&arguments);
    assert_code(&again, 0);
    let said = text(&again.stderr);
    assert!(said.contains("1 run(s) are finished already") && said.contains("goes on from step"), "{said}");
    assert_code(&undisturbed.adalora(&arguments), 0);
    for variant in ["adalora", "random", "lora"] {
        let run = format!("runs/small/{variant}/seed-1");
        assert_eq!(metrics(&workspace, &run), metrics(&undisturbed, &run));
        assert_eq!(event_file_lengths(&workspace, &run), event_file_lengths(&undisturbed, &run));
    }
}

/// Of each event file of a run. Numbers in them have one length, but for steps.
fn event_file_lengths(workspace: &Workspace, run: &str) -> Vec<u64> {
    let files = fs::read_dir(workspace.path(run)).unwrap().map(Result::unwrap);
    let files = files.filter(|file| file.file_name().to_string_lossy().contains("tfevents"));
    let lengths: Vec<_> = files.map(|file| file.metadata().unwrap().len()).collect();
    assert_eq!(lengths.len(), 1, "one for each run");
    lengths
}

#[test]
fn a_worker_that_nobody_listens_to_ends_as_if_asked_to() {
    let workspace = Workspace::new("small", SMALL);
    let arguments = ["worker", "small", "--variant", "lora", "--seed", "1", "--device", "cpu"];
    let settings = ["--set", "train.steps=100000", "--set", "train.record_every=1"];
    let mut child =
        workspace.command(&[&arguments[..], &settings].concat()).stdout(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(75));
    let status = json(&workspace, "runs/small/lora/seed-1/status.json");
    assert_eq!(status["state"], "interrupted");
    let checkpoints = Checkpoints::of(&workspace.path("runs/small/lora/seed-1"));
    assert_eq!(checkpoints.highest(), Some(status["step"].as_u64().unwrap() as usize));
}

#[test]
fn check_prints_the_plan() {
    let workspace = Workspace::new("small", SMALL);
    let output = workspace.adalora(&["check", "small"]);
    assert_code(&output, 0);
    insta::assert_snapshot!("check", text(&output.stdout));
}

#[test]
fn rules_that_need_the_model_are_reported_together() {
    let workspace = Workspace::new("small", SMALL);
    let bad = SMALL
        .replace(
            "targets = [\"query\", \"value\", \"dense\"]\ninit_r",
            "targets = [\"querry\", \"value\"]\ninit_r",
        )
        .replace("layers = [\"layer.0.intermediate.dense\"]", "layers = [\"layer.7.intermediate\"]")
        // An epoch has 13 steps.
        .replace("steps = 31", "epochs = 1")
        .replace("warm_up = 3", "warm_up = 13");
    workspace.write("bad", &bad);
    let output = workspace.adalora(&["check", "bad"]);
    assert_code(&output, 2);
    insta::assert_snapshot!("model_rules", text(&output.stderr));
    assert!(!workspace.path("runs").exists(), "nothing is made before the check");
}

#[test]
fn typing_mistakes_on_the_command_line() {
    let workspace = Workspace::new("small", SMALL);
    let error = |arguments: &[&str]| {
        let output = workspace.adalora(arguments);
        assert_code(&output, 2);
        text(&output.stderr)
    };
    insta::assert_snapshot!("no_such_experiment", error(&["run", "smal"]));
    insta::assert_snapshot!("no_such_device", error(&["run", "small", "--device", "gpu"]));
    insta::assert_snapshot!("no_gpu", error(&["run", "small", "--device", "cuda:7"]));
    insta::assert_snapshot!("no_runs", error(&["report", "small"]));
    insta::assert_snapshot!("no_such_manifest", error(&["fetch", "bert-tyni"]));
}
