//! The array script, run by a stand-in for Slurm. `just test-slurm` runs it on a real one.

mod workspace;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use workspace::{Workspace, assert_code, text};

const TWO: &str = r#"
description = "Two variants, one of which learns nothing"
seeds = [1, 2]

[model.random]
layers = 1
hidden = 16
heads = 2
intermediate = 24
vocabulary = 50
seed = 7

[task.planted]
layers = ["query"]
rank = 2
strength = 1.0
outputs = 3
length = 6
train_rows = 200
dev_rows = 40
seed = 11

[adapter.lora]
targets = ["query", "value"]
r = 2
alpha = 4

[optimizer]
lr = 1e-2

[train]
steps = 150
batch_size = 16
evaluate_every = 50
record_every = 10

[variants.sound]
[variants.diverging.optimizer]
lr = 1e30
"#;

/// A Slurm that starts a task when it is told to.
struct StandIn<'a> {
    workspace: &'a Workspace,
    script: PathBuf,
}

impl<'a> StandIn<'a> {
    fn new(workspace: &'a Workspace, script: PathBuf) -> Self {
        let scontrol = workspace.path("bin/scontrol");
        fs::create_dir_all(workspace.path("bin")).unwrap();
        fs::write(&scontrol, "#!/bin/sh\necho \"$*\" >> \"$REQUEUED\"\n").unwrap();
        fs::set_permissions(&scontrol, fs::Permissions::from_mode(0o755)).unwrap();
        Self { workspace, script }
    }

    fn options(&self) -> Vec<String> {
        let text = fs::read_to_string(&self.script).unwrap();
        text.lines().filter_map(|line| line.strip_prefix("#SBATCH ")).map(str::to_owned).collect()
    }

    fn start(&self, task: usize) -> Child {
        let path = format!("{}:{}", self.workspace.path("bin").display(), std::env::var("PATH").unwrap());
        Command::new("bash")
            .arg(&self.script)
            .current_dir("/")
            .env("PATH", path)
            .env("REQUEUED", self.workspace.path("requeued"))
            .env("SLURM_ARRAY_TASK_ID", task.to_string())
            .env("SLURM_JOB_ID", (100 + task).to_string())
            .env_remove("ADALORA_MATERIALS")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    }

    fn requeued(&self) -> String {
        fs::read_to_string(self.workspace.path("requeued")).unwrap_or_default()
    }
}

fn wait_for_metrics(workspace: &Workspace, run: &str) {
    let metrics = workspace.path(run).join("metrics.jsonl");
    let patience = Instant::now() + Duration::from_secs(60);
    while fs::metadata(&metrics).map_or(0, |metadata| metadata.len()) == 0 {
        assert!(Instant::now() < patience, "the run does not start");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn status(workspace: &Workspace) -> String {
    let output = workspace.adalora(&["status", "two"]);
    assert_code(&output, 0);
    text(&output.stdout)
}

/// The list and script of an experiment, whose file is changed afterwards.
fn frozen<'a>(workspace: &'a Workspace, settings: &[&str]) -> StandIn<'a> {
    let arguments = ["slurm", "two", "--time", "1:00:00", "--at-once", "3", "--sbatch=--partition=long"];
    let output = workspace.adalora(&[&arguments[..], settings].concat());
    assert_code(&output, 0);
    let said = text(&output.stdout);
    let script = said.lines().find_map(|line| line.trim().strip_prefix("sbatch ")).expect("a script");
    workspace.write("two", "no longer an experiment");
    StandIn::new(workspace, script.into())
}

#[test]
fn a_link_in_the_place_of_the_lists_is_refused() {
    let workspace = Workspace::new("two", TWO);
    let (elsewhere, link) = (workspace.path("elsewhere"), workspace.path("runs/two/slurm"));
    fs::create_dir_all(&elsewhere).unwrap();
    fs::create_dir_all(link.parent().unwrap()).unwrap();
    symlink(&elsewhere, &link).unwrap();
    let output = workspace.adalora(&["slurm", "two", "--time", "1:00:00"]);
    assert_code(&output, 2);
    assert!(text(&output.stderr).contains("runs/two/slurm is a link"), "{}", text(&output.stderr));
    assert_eq!(fs::read_dir(elsewhere).unwrap().count(), 0);
}

#[test]
fn every_run_is_a_task_and_the_table_comes_out() {
    let workspace = Workspace::new("two", TWO);
    let slurm = frozen(&workspace, &[]);
    let folder = slurm.script.parent().unwrap().display().to_string();
    assert_eq!(
        slurm.options(),
        [
            "--job-name=adalora-two",
            "--array=0-3%3",
            "--time=1:00:00",
            "--signal=B:USR1@120",
            "--requeue",
            "--open-mode=append",
            &format!("--output={folder}/%a.log"),
            "--ntasks=1",
            "--cpus-per-task=1",
            "--partition=long",
        ]
    );
    assert!(status(&workspace).ends_with("\n\n4 waiting\n"), "{}", status(&workspace));
    // sound 1, diverging 1, sound 2, diverging 2
    let codes = (0..3).map(|task| slurm.start(task).wait().unwrap().code().unwrap());
    assert_eq!(codes.collect::<Vec<_>>(), [0, 1, 0]);
    let said = status(&workspace);
    assert!(
        said.contains("diverging  seed 1    failed    step 10     the loss is NaN at step 2: "),
        "{said}"
    );
    assert!(said.ends_with("\n\n2 finished, 1 waiting, 1 failed\n"), "{said}");
    assert_code(&workspace.adalora(&["report", "two"]), 0);
    // A task whose run is finished has nothing to do.
    assert_eq!(slurm.start(2).wait().unwrap().code(), Some(0));
    assert_eq!(slurm.requeued(), "");
}

#[test]
fn at_the_time_limit_a_task_asks_for_another_turn_and_goes_on() {
    // Long enough to be looked at while it runs.
    let long = TWO.replace("steps = 150", "steps = 3000");
    let undisturbed = Workspace::new("two", &long);
    assert_eq!(frozen(&undisturbed, &[]).start(0).wait().unwrap().code(), Some(0));

    let workspace = Workspace::new("two", &long);
    let slurm = frozen(&workspace, &[]);
    let run = "runs/two/sound/seed-1";
    let mut task = slurm.start(0);
    wait_for_metrics(&workspace, run);
    let said = status(&workspace);
    assert!(said.contains("sound      seed 1    running") && said.contains(" on "), "{said}");
    kill_process(Pid::from_child(&task), Signal::USR1).unwrap();
    assert_eq!(task.wait().unwrap().code(), Some(75));
    assert_eq!(slurm.requeued(), "requeue 100\n");
    let said = status(&workspace);
    assert!(said.contains("goes on when it is started again"), "{said}");
    assert!(said.ends_with("\n\n3 waiting, 1 stopped\n"), "{said}");

    assert_eq!(slurm.start(0).wait().unwrap().code(), Some(0));
    let adapter = |of: &Workspace| fs::read(of.path(run).join("adapter/adapter_model.safetensors")).unwrap();
    assert_eq!(adapter(&workspace), adapter(&undisturbed));
    let provenance = fs::read_to_string(workspace.path(run).join("provenance.json")).unwrap();
    let provenance: Value = serde_json::from_str(&provenance).unwrap();
    assert_eq!(provenance["attempts"].as_array().unwrap().len(), 2, "{provenance}");
}

#[test]
fn a_task_that_is_cancelled_does_not_ask_for_another_turn() {
    let workspace = Workspace::new("two", TWO);
    let slurm = frozen(&workspace, &["--set", "train.steps=100000"]);
    let mut task = slurm.start(0);
    wait_for_metrics(&workspace, "runs/two/sound/seed-1");
    kill_process(Pid::from_child(&task), Signal::TERM).unwrap();
    assert_eq!(task.wait().unwrap().code(), Some(75));
    assert_eq!(slurm.requeued(), "");
}

#[test]
fn a_task_whose_program_was_replaced_or_that_the_list_lacks_is_refused() {
    let workspace = Workspace::new("two", TWO);
    let folder = frozen(&workspace, &[]).script.parent().unwrap().to_owned();
    let task = |number: &str| {
        let output = workspace.adalora(&["task", folder.to_str().unwrap(), number]);
        assert_code(&output, 2);
        text(&output.stderr)
    };
    assert!(task("4").contains("has 4 runs, not a number 4"), "{}", task("4"));
    let list = folder.join("runs.json");
    let mut frozen: Value = serde_json::from_str(&fs::read_to_string(&list).unwrap()).unwrap();
    frozen["program"]["source"] = "0123456789abcdef".into();
    fs::write(&list, frozen.to_string()).unwrap();
    assert!(task("0").contains("sources 0123456789), this is 0.1.0"), "{}", task("0"));
}
