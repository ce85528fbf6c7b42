//! Tasks whose answer is no class and no score: questions about paragraphs and summaries of documents, with the program as a
//! user runs it.

mod workspace;

use std::fs;
use std::path::{Path, PathBuf};

use adalora_adapter::store::write_tensors;
use adalora_models::{Checkpoint, ModelConfig};
use serde_json::Value;
use tch::Device;
use workspace::{Workspace, assert_code, text};

fn reference(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../reference/values").join(name)
}

fn lines(path: &Path) -> Vec<Value> {
    fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Dev losses in their order.
fn losses(run: &Path) -> Vec<f64> {
    let records = lines(&run.join("metrics.jsonl"));
    records.iter().filter(|own| own["kind"] == "dev").map(|own| own["loss"].as_f64().unwrap()).collect()
}

/// What `adalora predict` says of a file, a text a line.
fn predicted(workspace: &Workspace, run: &str, more: &[&str]) -> Vec<Value> {
    let output = workspace.adalora(&[&["predict", run, "asked.txt", "--format", "jsonl"], more].concat());
    assert_code(&output, 0);
    text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

const REST: &str = r#"
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
accumulate = 2
clip = 1.0
evaluate_every = 20
record_every = 10
"#;

#[test]
fn questions_are_answered_and_answers_come_back() {
    let materials = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.materials");
    let materials = std::env::var_os("ADALORA_MATERIALS").map_or(materials, PathBuf::from);
    let checkpoint = materials.join("bert-tiny").canonicalize().expect("run `just setup`");
    let workspace = Workspace::new(
        "asked",
        &format!(
            r#"
description = "Questions with and without an answer"
seeds = [3]

[model.pretrained]
checkpoint = "{}"

[task.questions]
data = "squad"
max_length = 96
stride = 16
dev_rows = 15

[adapter.svd]
targets = ["query", "value", "dense"]
init_r = 3
alpha = 24
{REST}"#,
            checkpoint.display()
        ),
    );
    let manifest = r#"
        description = "Questions"
        licence = ""
        source.folder = { path = "squad", how = "they are part of the reference values" }

        [format.squad]
        version = "v2.0"
        split.files = { train = "v2.0.json", dev = "v2.0.json" }
    "#;
    fs::write(workspace.path("datasets/squad.toml"), manifest).unwrap();
    fs::create_dir_all(workspace.path(".materials/squad")).unwrap();
    fs::copy(reference("squad/v2.0.json"), workspace.path(".materials/squad/v2.0.json")).unwrap();
    let output = workspace.adalora(&["run", "asked"]);
    assert_code(&output, 0);
    assert!(text(&output.stderr).contains("questions to train on have no answer"), "{output:?}");

    let run = workspace.path("runs/asked/run/seed-3");
    let losses = losses(&run);
    assert!(losses.len() == 2 && losses[1] < losses[0], "{losses:?}");
    let result: Value = serde_json::from_str(&fs::read_to_string(run.join("result.json")).unwrap()).unwrap();
    assert_eq!(result["evaluation"], serde_json::json!(["f1", "exact-match"]));
    let config: Value =
        serde_json::from_str(&fs::read_to_string(run.join("adapter/adapter_config.json")).unwrap()).unwrap();
    assert_eq!(
        (&config["task_type"], &config["modules_to_save"][0]),
        (&"QUESTION_ANS".into(), &"qa_outputs".into())
    );

    // What it said at the last evaluation it says again, of the same questions from a file.
    let said = lines(&run.join("outputs.jsonl"));
    assert_eq!(said.len(), 15);
    let squad: Value =
        serde_json::from_str(&fs::read_to_string(reference("squad/v2.0.json")).unwrap()).unwrap();
    let paragraphs =
        squad["data"].as_array().unwrap().iter().flat_map(|own| own["paragraphs"].as_array().unwrap());
    let contexts: Vec<_> = paragraphs
        .flat_map(|own| own["qas"].as_array().unwrap().iter().map(move |asked| (asked, &own["context"])))
        .collect();
    let one_line = |text: &Value| text.as_str().unwrap().replace(['\t', '\n', '\r'], " ");
    let asked: String = said
        .iter()
        .map(|own| {
            let (_, context) = contexts.iter().find(|(asked, _)| asked["id"] == own["id"]).unwrap();
            format!("{}\t{}\n", one_line(&own["question"]), one_line(context))
        })
        .collect();
    fs::write(workspace.path("asked.txt"), asked).unwrap();
    let again = predicted(&workspace, "runs/asked/run/seed-3", &[]);
    let answers = |of: &[Value]| of.iter().map(|own| one_line(&own["answer"])).collect::<Vec<_>>();
    assert_eq!(answers(&said), answers(&again));
}

const PAIRS: [(&str, &str); 4] = [
    ("The film is long, and the end is not near.", "A long film"),
    ("Nobody laughed at all, and one man left before the end.", "Nobody laughed"),
    ("", "Nothing"),
    ("The actors are good and the story is better than the book.", ""),
];

/// A small BART that has learned nothing, with a tokenizer.
fn bart(folder: &Path) {
    fs::create_dir_all(folder).unwrap();
    let config = r#"{
        "model_type": "bart", "vocab_size": 2000, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1,
        "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32,
        "max_position_embeddings": 40, "activation_function": "gelu", "dropout": 0.1, "init_std": 0.1
    }"#;
    fs::write(folder.join("config.json"), config).unwrap();
    let ModelConfig::Bart(config) = ModelConfig::open(folder).unwrap() else { panic!("a BART") };
    let names: Vec<_> = config.tensors().into_iter().map(|(name, _)| name).collect();
    let checkpoint = Checkpoint::untrained(config, 5);
    let tensors =
        names.iter().map(|name| (format!("model.{name}"), checkpoint.tensor(name, Device::Cpu))).collect();
    write_tensors(&folder.join("model.safetensors"), &tensors).unwrap();
    for name in ["vocab.json", "merges.txt"] {
        fs::copy(reference("byte-level").join(name), folder.join(name)).unwrap();
    }
}

fn summaries(adapter: &str) -> Workspace {
    let experiment = format!(
        r#"
description = "Summaries by a model that knows nothing"
seeds = [3]

[model.pretrained]
checkpoint = "./bart"

[task.summaries]
data = "pairs"
max_document = 12
max_summary = 8
label_smoothing = 0.1
generation = {{ beams = 2, max_length = 8 }}
{adapter}"#
    );
    let workspace = Workspace::new("written", &experiment);
    let manifest = r#"
        description = "Pairs"
        licence = ""
        source.folder = { path = "pairs", how = "they are made up" }

        [format.summaries]
        document = "document"
        summary = "summary"
        split.files = { train = "pairs.jsonl", dev = "pairs.jsonl" }
    "#;
    fs::write(workspace.path("datasets/pairs.toml"), manifest).unwrap();
    fs::create_dir_all(workspace.path(".materials/pairs")).unwrap();
    let pairs: String = PAIRS
        .iter()
        .cycle()
        .take(40)
        .map(|(document, summary)| {
            format!("{}\n", serde_json::json!({ "document": document, "summary": summary }))
        })
        .collect();
    fs::write(workspace.path(".materials/pairs/pairs.jsonl"), pairs).unwrap();
    let asked: String = PAIRS.iter().map(|(document, _)| format!("{document}\n")).collect();
    fs::write(workspace.path("asked.txt"), asked).unwrap();
    bart(&workspace.path("bart"));
    workspace
}

#[test]
fn summaries_are_written_and_come_back() {
    let svd = format!(
        "[adapter.svd]\ntargets = [\"q_proj\", \"v_proj\", \"encoder_attn.out_proj\", \"fc1\"]\ninit_r = 3\nalpha = 24\n{REST}"
    );
    let full = "[adapter.full]\n[optimizer]\nlr = 4e-3\nschedule.linear.warm_up = 3\n[train]\nsteps = 200\n\
                batch_size = 16\nevaluate_every = 50\nrecord_every = 10\n";
    for (adapter, learned) in [(svd.as_str(), 0.0), (full, 1.0)] {
        let workspace = summaries(adapter);
        let output = workspace.adalora(&["run", "written"]);
        assert_code(&output, 0);
        for note in [
            "documents are longer than task.summaries.max_document",
            "10 documents are empty",
            "10 summaries are empty",
        ] {
            assert!(text(&output.stderr).contains(note), "{note}: {}", text(&output.stderr));
        }
        let run = workspace.path("runs/written/run/seed-3");
        let losses = losses(&run);
        assert!(losses[losses.len() - 1] < losses[0] - learned, "{losses:?}");
        let dev = lines(&run.join("metrics.jsonl"));
        let dev = dev.iter().rfind(|own| own["kind"] == "dev").unwrap();
        let [low, high] = [0, 1].map(|side| dev["intervals"]["rouge1"][side].as_f64().unwrap());
        let mean = dev["scores"]["rouge1"].as_f64().unwrap();
        assert!(low <= mean && mean <= high, "{dev}");
        // A model that was trained as a whole has seen these pairs often enough; a quarter of the summaries is empty.
        assert!(mean >= learned * 0.6, "{dev}");

        let said = lines(&run.join("outputs.jsonl"));
        assert_eq!((said.len(), &said[1]["summary"]), (40, &Value::from("Nobody laughed")));
        let generated = |of: &[Value], key: &str| -> Vec<String> {
            of[..4].iter().map(|own| own[key].as_str().unwrap().trim().to_owned()).collect()
        };
        let expected = generated(&said, "generated");
        assert_eq!(expected, generated(&predicted(&workspace, "runs/written/run/seed-3", &[]), "summary"));

        // The same model, merged, is a checkpoint to begin anew from: before the first step it writes the same.
        assert_code(&workspace.adalora(&["merge", "runs/written/run/seed-3", "merged"]), 0);
        let experiment = fs::read_to_string(workspace.path("experiments/written.toml")).unwrap();
        let again = experiment
            .replace("./bart", "./merged")
            .replace("lr = 1e-2", "lr = 1e-30")
            .replace("lr = 4e-3", "lr = 1e-30");
        workspace.write("again", &again);
        assert_code(&workspace.adalora(&["run", "again"]), 0);
        let again = lines(&workspace.path("runs/again/run/seed-3/outputs.jsonl"));
        assert_eq!(expected, generated(&again, "generated"));
    }
}

/// Each before anything is trained, and all at once.
#[test]
fn what_does_not_fit_is_named() {
    let svd = format!("[adapter.svd]\ntargets = [\"q_proj\"]\ninit_r = 3\nalpha = 24\n{REST}");
    let workspace = summaries(&svd);
    let said = |changes: &[&str]| {
        let changes: Vec<_> = changes.iter().flat_map(|change| ["--set", change]).collect();
        let output = workspace.adalora(&[&["check", "written"], &changes[..]].concat());
        assert_code(&output, 2);
        text(&output.stderr).replace(&workspace.path("").display().to_string(), "")
    };
    let encoder = reference("bert-random").canonicalize().unwrap();
    let encoder = format!("model.pretrained.checkpoint={}", encoder.display());
    let errors = [
        said(&["task.summaries.max_document=41", "task.summaries.generation.max_length=50"]),
        said(&["task.summaries.generation.beams=0", "task.summaries.label_smoothing=1.5"]),
        said(&["task.summaries.data=rte"]),
        said(&["task.summaries.dev_rows=41"]),
        said(&[&encoder]),
    ];
    insta::assert_snapshot!(errors.join("\n").replace(&encoder[28..], "ENCODER"));
}
