//! Runs that are killed, stopped or hindered, and go on: what comes out must be what an undisturbed run gives.

mod workspace;

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use adalora_runner::checkpoint::{Checkpoints, Progress, Saved};
use adalora_tasks::FileHash;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use workspace::{Workspace, assert_code, text};

/// Three phases with the end of the choice at step 100, then 60 with a compact arena.
const LONG: &str = r#"
description = "A run that is long enough to be killed"
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
targets = ["query", "value", "dense"]
init_r = 3
alpha = 6

[orthogonality.mean-of-norms]
gamma = 0.1

[importance.sensitivity-uncertainty]

[budget.cubic]
target_r = 1
t_init = 40
t_final = 60
delta_t = 4

[observation]
weights = "after-step"
gradient = "clipped"
regularizer = true

[optimizer]
lr = 1e-2
schedule.linear.warm_up = 3

[train]
steps = 160
batch_size = 16
clip = 1.0
evaluate_every = 20
record_every = 3
checkpoint_every = 7
"#;

/// The only run of an experiment without variants.
const RUN: &str = "runs/long/run/seed-1";

fn worker(workspace: &Workspace, more: &[&str]) -> Command {
    let arguments = ["worker", "long", "--variant", "run", "--seed", "1", "--device", "cpu"];
    workspace.command(&[&arguments[..], more].concat())
}

fn run(workspace: &Workspace) -> Output {
    worker(workspace, &[]).output().unwrap()
}

fn json(workspace: &Workspace, name: &str) -> Value {
    let path = workspace.path(RUN).join(name);
    serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap()
}

fn has_finished(workspace: &Workspace) -> bool {
    let status = workspace.path(RUN).join("status.json");
    status.exists() && json(workspace, "status.json")["state"] == "finished"
}

/// Everything that a run leaves, but for wall times and memory.
#[derive(Debug, PartialEq)]
struct Left {
    metrics: Vec<Value>,
    ranks: String,
    result: Value,
    adapter: Vec<u8>,
}

impl Left {
    fn by(workspace: &Workspace) -> Self {
        let run = workspace.path(RUN);
        let read = |name: &str| fs::read_to_string(run.join(name)).unwrap();
        let without = |mut value: Value, names: &[&str]| {
            for name in names {
                value.as_object_mut().unwrap().remove(*name).unwrap();
            }
            value
        };
        let lines = read("metrics.jsonl");
        Self {
            metrics: lines
                .lines()
                .map(|line| without(serde_json::from_str(line).unwrap(), &["seconds"]))
                .collect(),
            ranks: read("ranks.csv"),
            result: without(json(workspace, "result.json"), &["wall_seconds", "peak_rss_bytes"]),
            adapter: fs::read(run.join("adapter/adapter_model.safetensors")).unwrap(),
        }
    }

    /// By a run that nobody disturbs.
    fn undisturbed(experiment: &str) -> Self {
        let workspace = Workspace::new("long", experiment);
        assert_code(&run(&workspace), 0);
        Self::by(&workspace)
    }
}

/// By an undisturbed run of [`LONG`].
fn undisturbed() -> &'static Left {
    static LEFT: OnceLock<Left> = OnceLock::new();
    LEFT.get_or_init(|| Left::undisturbed(LONG))
}

/// Waits until a run has written more than `length` bytes of metrics; false if it ends before.
fn wait_for_metrics(workspace: &Workspace, child: &mut Child, length: u64) -> bool {
    let metrics = workspace.path(RUN).join("metrics.jsonl");
    let patience = Instant::now() + Duration::from_secs(120);
    while fs::metadata(&metrics).map_or(0, |metadata| metadata.len()) <= length {
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        assert!(Instant::now() < patience, "the run does not get on");
        std::thread::sleep(Duration::from_millis(2));
    }
    true
}

/// A run that has been asked to stop in its middle; the code with which it ended.
fn stop_midway(workspace: &Workspace, signal: Signal) -> i32 {
    let mut child = worker(workspace, &[]).stdout(Stdio::null()).spawn().unwrap();
    assert!(wait_for_metrics(workspace, &mut child, 3000), "it ended before it was stopped");
    kill_process(Pid::from_child(&child), signal).unwrap();
    child.wait().unwrap().code().unwrap()
}

fn newest(workspace: &Workspace) -> Saved {
    let (saved, complaints) = Checkpoints::of(&workspace.path(RUN)).newest([u64::MAX; 2]);
    assert_eq!(complaints, Vec::<String>::new());
    saved.unwrap()
}

fn checkpoint_files(workspace: &Workspace) -> Vec<PathBuf> {
    let entries = fs::read_dir(workspace.path(RUN).join("checkpoints")).unwrap();
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

/// Kills a run again and again, each time a random number of records after it was started, until one gets to its end.
fn killed_at_random(experiment: &str, seed: u64) {
    let undisturbed = Left::undisturbed(experiment);
    let workspace = Workspace::new("long", experiment);
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut kills = 0;
    loop {
        let before = Checkpoints::of(&workspace.path(RUN)).newest([u64::MAX; 2]).0;
        let from = before.map_or(0, |saved| saved.progress.log_bytes[0]);
        let length = from + random.random_range(0..4000);
        let mut child = worker(&workspace, &[]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        if !wait_for_metrics(&workspace, &mut child, length) {
            assert_eq!(child.wait().unwrap().code(), Some(0), "attempt {kills} failed");
            break;
        }
        std::thread::sleep(Duration::from_millis(random.random_range(0..30)));
        child.kill().unwrap();
        child.wait().unwrap();
        if has_finished(&workspace) {
            break; // It was quicker than the kill.
        }
        kills += 1;
        assert!(kills < 60, "it does not come to an end");
    }
    assert!(kills > 1, "it was too quick to be killed");
    assert_eq!(Left::by(&workspace), undisturbed, "after {kills} kills");
    let attempts = json(&workspace, "provenance.json")["attempts"].as_array().unwrap().len();
    assert!(attempts > 1, "it never went on");
}

#[test]
fn killed_anywhere_a_run_comes_to_the_same_end() {
    killed_at_random(LONG, 1);
}

#[test]
fn with_accumulation_and_a_bf16_encoder_too() {
    let train = "[train]\naccumulate = 3\nprecision = \"bf16\"\n";
    killed_at_random(&LONG.replace("[train]\n", train), 2);
}

#[test]
fn masked_to_the_end_too() {
    killed_at_random(&LONG.replace("[train]\n", "[train]\ncompact = false\n"), 3);
}

#[test]
fn lora_too() {
    let cut = |text: &str, from: &str, to: &str| {
        let (start, end) = (text.find(from).unwrap(), text.find(to).unwrap());
        format!("{}{}", &text[..start], &text[end..])
    };
    let lora = cut(&cut(LONG, "[orthogonality", "[optimizer]"), "[adapter.svd]", "[optimizer]");
    let adapter = "[adapter.lora]\ntargets = [\"query\", \"dense\"]\nr = 2\nalpha = 4\n\n[optimizer]";
    killed_at_random(&lora.replace("[optimizer]", adapter), 4);
}

#[test]
fn asked_to_stop_it_keeps_what_it_has() {
    for (signal, code) in [(Signal::TERM, 75), (Signal::USR1, 75), (Signal::INT, 130)] {
        let workspace = Workspace::new("long", LONG);
        assert_eq!(stop_midway(&workspace, signal), code);
        let status = json(&workspace, "status.json");
        assert_eq!(status["state"], "interrupted");
        assert_eq!(status["step"], newest(&workspace).progress.step, "at the very step that it had come to");
        let output = run(&workspace);
        assert_code(&output, 0);
        let said = format!("goes on from step {}", status["step"]);
        assert!(text(&output.stdout).contains(&said), "{}", text(&output.stdout));
        assert_eq!(&Left::by(&workspace), undisturbed());
        assert!(!workspace.path(&format!("{RUN}.unfinished-1")).exists());

        let output = run(&workspace);
        assert_code(&output, 2);
        assert_eq!(text(&output.stderr).trim(), format!("{RUN} is finished already"));
        assert_eq!(&Left::by(&workspace), undisturbed());
    }
}

#[test]
fn without_its_moments_it_would_come_to_another_end() {
    let workspace = Workspace::new("long", LONG);
    stop_midway(&workspace, Signal::TERM);
    let Saved { progress, state } = newest(&workspace);
    for name in ["exp_avg", "exp_avg_sq"] {
        let _ = state.tensors[name].shallow_clone().zero_();
    }
    Checkpoints::of(&workspace.path(RUN)).write(&progress, &state).unwrap();
    assert_code(&run(&workspace), 0);
    let (other, undisturbed) = (Left::by(&workspace), undisturbed());
    assert_ne!(other.metrics, undisturbed.metrics);
    assert_ne!(other.adapter, undisturbed.adapter);
}

/// A stopped run whose checkpoint says that it was begun under other circumstances.
fn begun_otherwise(change: impl Fn(&mut Progress)) -> Workspace {
    let workspace = Workspace::new("long", LONG);
    stop_midway(&workspace, Signal::TERM);
    let Saved { mut progress, state } = newest(&workspace);
    change(&mut progress);
    Checkpoints::of(&workspace.path(RUN)).write(&progress, &state).unwrap();
    workspace
}

#[test]
fn another_program_or_other_data_are_named_and_refused() {
    let workspace = begun_otherwise(|progress| {
        progress.origin.program.source = "0123456789abcdef".into();
        progress
            .origin
            .files
            .push(FileHash { file: "set/train.tsv".into(), sha256: "fedcba9876543210".into() });
    });
    let status = json(&workspace, "status.json");
    let output = run(&workspace);
    assert_code(&output, 2);
    let error = text(&output.stderr);
    assert!(error.starts_with(&format!("{RUN} cannot go on from step ")), "{error}");
    assert!(error.contains("it was begun by adalora 0.1.0 of commit"), "{error}");
    assert!(error.contains("train.tsv had the hash fedcba9876 and now has none"), "{error}");
    assert!(error.contains("--force"), "{error}");
    assert_code(&workspace.adalora(&["run", "long"]), 1);
    assert_eq!(json(&workspace, "status.json"), status, "it stays as it was");

    assert_code(&worker(&workspace, &["--force"]).output().unwrap(), 0);
    assert_eq!(&Left::by(&workspace), undisturbed());
    let forced = json(&workspace, "provenance.json")["attempts"][1]["forced"].clone();
    assert_eq!(forced.as_array().unwrap().len(), 2, "{forced}");
}

#[test]
fn other_settings_are_named_and_refused() {
    let workspace = Workspace::new("long", LONG);
    stop_midway(&workspace, Signal::TERM);
    workspace.write("long", &LONG.replace("lr = 1e-2", "lr = 2e-2"));
    let output = workspace.adalora(&["run", "long"]);
    assert_code(&output, 2);
    let expected = "runs/long/run/seed-1 has checkpoints, with other settings: it had `lr = 0.01`, the experiment now \
                    has `lr = 0.02`. Give the experiment another name, or move that folder away, or go on from them \
                    all the same with --force\n";
    assert_eq!(text(&output.stderr), expected);
    // More than settings may have: other shapes cannot be forced.
    workspace.write("long", &LONG.replace("init_r = 3", "init_r = 2"));
    let output = worker(&workspace, &["--force"]).output().unwrap();
    assert_code(&output, 2);
    let error = text(&output.stderr);
    assert!(error.starts_with("the checkpoint does not fit this run: it has "), "{error}");
    workspace.write("long", &LONG.replace("lr = 1e-2", "lr = 2e-2"));
    assert_code(&workspace.adalora(&["run", "long", "--force"]), 0);
    let resolved = fs::read_to_string(workspace.path(RUN).join("resolved.toml")).unwrap();
    assert!(resolved.contains("lr = 0.02"), "{resolved}");
}

#[test]
fn a_damaged_checkpoint_is_passed_over() {
    let workspace = Workspace::new("long", LONG);
    stop_midway(&workspace, Signal::TERM);
    let files = checkpoint_files(&workspace);
    let last = files.last().unwrap();
    let bytes = fs::read(last).unwrap();
    fs::write(last, &bytes[..bytes.len() / 2]).unwrap();
    let output = workspace.adalora(&["run", "long"]);
    assert_code(&output, 0);
    let said = text(&output.stderr);
    assert!(said.contains("is passed over: its content is not what was written"), "{said}");
    assert!(said.contains("goes on from step "), "{said}");
    assert_eq!(&Left::by(&workspace), undisturbed());
}

#[test]
fn without_a_whole_checkpoint_it_starts_anew_and_keeps_what_was_there() {
    let workspace = Workspace::new("long", LONG);
    stop_midway(&workspace, Signal::TERM);
    for file in checkpoint_files(&workspace) {
        fs::write(file, "").unwrap();
    }
    assert_code(&workspace.adalora(&["run", "long"]), 0);
    assert_eq!(&Left::by(&workspace), undisturbed());
    let aside = workspace.path(&format!("{RUN}.unfinished-1"));
    assert!(fs::metadata(aside.join("metrics.jsonl")).unwrap().len() > 3000);
}

#[test]
fn a_full_disk_costs_nothing_but_time() {
    let workspace = Workspace::new("long", LONG);
    stop_midway(&workspace, Signal::TERM);
    let files = checkpoint_files(&workspace);
    let step = newest(&workspace).progress.step;
    // Files of at most 20 KiB: there is room for the logs, and none for a checkpoint.
    assert!(files.iter().all(|file| fs::metadata(file).unwrap().len() > 20 << 10));
    let mut limited = Command::new("sh");
    let program = env!("CARGO_BIN_EXE_adalora");
    let command = "ulimit -f 40; exec \"$0\" worker long --variant run --seed 1 --device cpu";
    limited.current_dir(workspace.path(".")).args(["-c", command, program]);
    let output = limited.output().unwrap();
    assert_code(&output, 2);
    let status = json(&workspace, "status.json");
    assert_eq!(status["state"], "failed");
    let reason = status["reason"].as_str().unwrap();
    let end = format!(
        "File too large (os error 27); the one at step {step} is untouched, and the run goes on from it once this is \
         mended"
    );
    assert!(reason.contains("could not be written: ") && reason.ends_with(&end), "{reason}");
    assert_eq!(checkpoint_files(&workspace), files);
    assert_code(&run(&workspace), 0);
    assert_eq!(&Left::by(&workspace), undisturbed());
}

/// Runs in a small file system of its own, where the machine lets us have one. `room` is what is left of it, in KiB; it
/// may change `runs`, which are copied back when it ends.
fn in_a_full_file_system(workspace: &Workspace, room: usize) -> Option<Output> {
    let unshare = |script: &str| {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--mount", "sh", "-c", script]);
        command.arg(env!("CARGO_BIN_EXE_adalora")).current_dir(workspace.path("."));
        command
    };
    let mount = "mount -t tmpfs -o size=4m none runs";
    if !unshare(mount).output().is_ok_and(|output| output.status.success()) {
        eprintln!("no file system of its own can be mounted here: this is left out");
        return None;
    }
    let script = format!(
        "cp -a runs before && {mount} && cp -a before/. runs && rm -r before || exit 90
         head -c 8M /dev/zero >runs/fill 2>/dev/null
         truncate -s -{room}K runs/fill
         \"$0\" worker long --variant run --seed 1 --device cpu
         code=$?
         rm runs/fill; cp -a runs after; exit $code"
    );
    let output = unshare(&script).output().unwrap();
    fs::remove_dir_all(workspace.path("runs")).unwrap();
    fs::rename(workspace.path("after"), workspace.path("runs")).unwrap();
    Some(output)
}

#[test]
fn a_full_file_system_costs_nothing_but_time() {
    // There is room for logs and no checkpoint, and for nothing at all.
    for room in [24, 0] {
        let workspace = Workspace::new("long", LONG);
        stop_midway(&workspace, Signal::TERM);
        let files = checkpoint_files(&workspace);
        let step = newest(&workspace).progress.step;
        assert!(files.iter().all(|file| fs::metadata(file).unwrap().len() > 24 << 10));
        let Some(output) = in_a_full_file_system(&workspace, room) else { return };
        assert_code(&output, 2);
        let error = text(&output.stderr);
        assert!(error.contains("No space left on device (os error 28)"), "{error}");
        if room > 0 {
            let reason = json(&workspace, "status.json")["reason"].as_str().unwrap().to_owned();
            let untouched = format!("the one at step {step} is untouched");
            assert!(reason.contains("could not be written: ") && reason.contains(&untouched), "{reason}");
        }
        assert_eq!(checkpoint_files(&workspace), files);
        assert_code(&run(&workspace), 0);
        assert_eq!(&Left::by(&workspace), undisturbed());
    }
}

#[test]
fn a_folder_that_may_not_be_written_is_named() {
    let workspace = Workspace::new("long", LONG);
    stop_midway(&workspace, Signal::TERM);
    let (files, run) = (checkpoint_files(&workspace), workspace.path(RUN));
    let mut command = worker(&workspace, &[]);
    let set_mode = |mode: u32| {
        use std::os::unix::fs::PermissionsExt;
        for path in [&run, &run.join("checkpoints"), &run.join("../.seed-1.lock"), &workspace.path(".")] {
            let readable = if path.is_dir() { 0o111 } else { 0 };
            fs::set_permissions(path, fs::Permissions::from_mode(mode | readable)).unwrap();
        }
    };
    set_mode(0o444);
    if rustix::process::geteuid().is_root() {
        // Who may do everything is refused nothing.
        command.uid(65534).gid(65534);
    }
    let output = command.output().unwrap();
    set_mode(0o644);
    assert_code(&output, 2);
    let error = text(&output.stderr);
    assert!(error.contains(".seed-1.lock: Permission denied"), "{error}");
    assert_eq!(checkpoint_files(&workspace), files);
}

#[test]
fn checkpoints_that_may_not_be_written_leave_what_is_there() {
    use std::os::unix::fs::PermissionsExt;
    let workspace = Workspace::new("long", LONG);
    stop_midway(&workspace, Signal::TERM);
    let (files, step) = (checkpoint_files(&workspace), newest(&workspace).progress.step);
    let mut unseen = vec![workspace.path(".")];
    while let Some(path) = unseen.pop() {
        let mode = if path.ends_with("checkpoints") { 0o555 } else { 0o777 };
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let entries = fs::read_dir(&path).into_iter().flatten();
        unseen.extend(entries.map(|entry| entry.unwrap().path()));
    }
    let mut command = worker(&workspace, &[]);
    if rustix::process::geteuid().is_root() {
        command.uid(65534).gid(65534);
    }
    let output = command.output().unwrap();
    fs::set_permissions(workspace.path(RUN).join("checkpoints"), fs::Permissions::from_mode(0o777)).unwrap();
    assert_code(&output, 2);
    let reason = json(&workspace, "status.json")["reason"].as_str().unwrap().to_owned();
    let end =
        format!("Permission denied (os error 13); the one at step {step} is untouched, and the run goes on");
    assert!(reason.contains(&end), "{reason}");
    assert_eq!(checkpoint_files(&workspace), files);
    assert_code(&run(&workspace), 0);
    assert_eq!(&Left::by(&workspace), undisturbed());
}

/// Files from the future, as after a clock that was set back, and from long before.
#[test]
fn the_times_of_files_have_no_say() {
    for seconds in [0, 7_000_000_000] {
        let workspace = Workspace::new("long", LONG);
        stop_midway(&workspace, Signal::TERM);
        let time = std::time::UNIX_EPOCH + Duration::from_secs(seconds);
        let mut unseen = vec![workspace.path(".")];
        while let Some(path) = unseen.pop() {
            fs::File::open(&path).unwrap().set_modified(time).unwrap();
            let entries = fs::read_dir(&path).into_iter().flatten();
            unseen.extend(entries.map(|entry| entry.unwrap().path()));
        }
        let output = workspace.adalora(&["run", "long"]);
        assert_code(&output, 0);
        assert!(text(&output.stderr).contains("goes on from step "), "{}", text(&output.stderr));
        assert_eq!(&Left::by(&workspace), undisturbed());
    }
}

/// A clock that is wrong by more than the run is old: the checkpoint says of a longer training than there can have been.
#[test]
fn a_training_longer_than_time_itself_does_no_harm() {
    for seconds in [-1e300, f64::MAX] {
        let workspace = begun_otherwise(|progress| progress.seconds = seconds);
        assert_code(&run(&workspace), 0);
        assert_eq!(&Left::by(&workspace), undisturbed());
    }
}

#[test]
fn of_two_processes_that_start_together_one_runs() {
    let workspace = Workspace::new("long", LONG);
    let start = || worker(&workspace, &[]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let outputs = [start(), start(), start()].map(|child| child.wait_with_output().unwrap());
    let (ran, refused): (Vec<_>, Vec<_>) = outputs.iter().partition(|output| output.status.success());
    assert_eq!((ran.len(), refused.len()), (1, 2));
    for output in refused {
        assert_code(output, 2);
        let error = text(&output.stderr);
        let known = error.starts_with(&format!("another process is running {RUN}"))
            || error.trim() == format!("{RUN} is finished already");
        assert!(known, "{error}");
    }
    assert_eq!(&Left::by(&workspace), undisturbed());
}

#[test]
fn a_link_in_the_place_of_a_run_or_of_its_files_is_refused() {
    for name in ["metrics.jsonl", "checkpoints", ".", "../.seed-1.lock"] {
        let workspace = Workspace::new("long", LONG);
        stop_midway(&workspace, Signal::TERM);
        let (link, elsewhere) = (workspace.path(RUN).join(name), workspace.path("elsewhere"));
        // A path that ends with a dot is of the folder that the link is in the place of.
        let link = if name == "." { workspace.path(RUN) } else { link };
        fs::rename(&link, &elsewhere).unwrap();
        std::os::unix::fs::symlink(&elsewhere, &link).unwrap();
        let before = fs::metadata(&elsewhere).unwrap().modified().unwrap();
        let output = run(&workspace);
        assert_code(&output, 2);
        let error = text(&output.stderr);
        assert!(error.contains(" is a link, and a run writes into its own folder alone"), "{error}");
        assert_eq!(fs::metadata(&elsewhere).unwrap().modified().unwrap(), before);
        // Put where the link was it is the run's again.
        fs::remove_file(&link).unwrap();
        fs::rename(&elsewhere, &link).unwrap();
        assert_code(&run(&workspace), 0);
        assert_eq!(&Left::by(&workspace), undisturbed());
    }
}

#[test]
fn two_processes_do_not_share_a_run() {
    let workspace = Workspace::new("long", &LONG.replace("steps = 160", "steps = 100000"));
    let mut first = worker(&workspace, &[]).stdout(Stdio::null()).spawn().unwrap();
    assert!(wait_for_metrics(&workspace, &mut first, 0));
    let second = run(&workspace);
    assert_code(&second, 2);
    let holder = format!("another process is running {RUN}: process {} on ", first.id());
    assert!(text(&second.stderr).starts_with(&holder), "{}", text(&second.stderr));
    assert_eq!(json(&workspace, "status.json")["state"], "running");
    // The claim dies with its process, however that dies.
    first.kill().unwrap();
    first.wait().unwrap();
    let mut third = worker(&workspace, &[]).stdout(Stdio::null()).spawn().unwrap();
    let step = json(&workspace, "status.json")["step"].as_u64().unwrap();
    let patience = Instant::now() + Duration::from_secs(60);
    while json(&workspace, "status.json")["step"].as_u64().unwrap() <= step + 100 {
        assert!(Instant::now() < patience && third.try_wait().unwrap().is_none(), "it does not go on");
        std::thread::sleep(Duration::from_millis(5));
    }
    third.kill().unwrap();
    third.wait().unwrap();
}

#[test]
fn without_memory_a_run_fails_and_says_why_and_the_sweep_goes_on() {
    // 256 sequences of 512 tokens and as many values for each token take 2 GB.
    let large = LONG.replace("length = 6", "length = 512").replace("train_rows = 200", "train_rows = 300");
    let large = large.replace("intermediate = 24", "intermediate = 4096");
    let task = &LONG[LONG.find("[task.planted]").unwrap()..LONG.find("[adapter.svd]").unwrap()];
    let small = task.replace("[task.planted]", "[variants.small.task.planted]");
    let workspace = Workspace::new("long", &format!("{large}\n[variants.large]\n\n{small}"));
    let mut limited = Command::new("sh");
    let (program, command) = (env!("CARGO_BIN_EXE_adalora"), "ulimit -v 1500000; exec \"$0\" run long");
    limited.current_dir(workspace.path(".")).args(["-c", command, program]);
    let output = limited.output().unwrap();
    assert_code(&output, 1);
    let status = |variant: &str| {
        let path = workspace.path("runs/long").join(variant).join("seed-1/status.json");
        serde_json::from_str::<Value>(&fs::read_to_string(path).unwrap()).unwrap()
    };
    let large = status("large");
    let reason = large["reason"].as_str().unwrap();
    assert!(reason.starts_with("out of memory: DefaultCPUAllocator: "), "{reason}");
    assert_eq!(status("small")["state"], "finished");
    let said = text(&output.stderr);
    let last = said.lines().last().unwrap();
    assert!(last.starts_with("large seed 1 failed: out of memory: DefaultCPUAllocator: "), "{said}");
}
