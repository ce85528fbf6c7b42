//! Adapters that PEFT itself has trained and saved, taken back: its logits, and what is refused.
//!
//! `reference/peft_adapters.py` made the folders and the logits. That what we export is taken back is in `formats.rs`.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use adalora_adapter::{Increment, PeftAdapter};
use adalora_models::{Input, Model};
use adalora_runner::export::{Format, export};
use adalora_runner::finished::FinishedRun;
use adalora_runner::import::{Imported, Request, import};
use adalora_runner::merge::merge;
use adalora_tasks::Catalogue;
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

const NEAR: f64 = 1e-5;

const MANIFEST: &str = r#"
description = "Three classes, of which there is no data"
licence = ""
source.folder = { path = "none", how = "there is none" }

[format.delimited]
delimiter = "\t"
quoting = false
header = false
text = [1]
label = 2
labels.classes = { names = ["a", "b", "c"], values = ["0", "1", "2"] }
split.files = { train = "train.tsv", dev = "dev.tsv" }
evaluation = ["accuracy"]
"#;

fn reference(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../reference/values").join(path)
}

fn tensors(path: &Path) -> HashMap<String, Tensor> {
    Tensor::read_safetensors(path).unwrap().into_iter().collect()
}

fn json_of(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

/// A folder of its own, with a catalogue.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("datasets")).unwrap();
        fs::write(folder.path().join("datasets/three.toml"), MANIFEST).unwrap();
        Self(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn catalogue(&self) -> Catalogue {
        Catalogue::open(&self.path("datasets"), &self.path("materials")).unwrap()
    }

    fn import(&self, adapter: &Path, out: &str, on: &str, data: Option<&str>) -> anyhow::Result<Imported> {
        let checkpoint = reference(on).display().to_string();
        let request = Request { checkpoint: &checkpoint, data, max_length: Some(40) };
        import(adapter, &self.path(out), &request, &self.catalogue())
    }

    /// A copy of one of PEFT's folders.
    fn copy(&self, name: &str) -> PathBuf {
        let copy = self.path("copy");
        let _ = fs::remove_dir_all(&copy);
        fs::create_dir(&copy).unwrap();
        for file in ["adapter_config.json", "adapter_model.safetensors"] {
            fs::copy(reference("peft").join(name).join(file), copy.join(file)).unwrap();
        }
        copy
    }

    fn logits(&self, run: &str, adapter: Option<&str>, input: &Input) -> Tensor {
        let adapter = adapter.map(|adapter| self.path(adapter));
        let run = FinishedRun::open(&self.path(run)).unwrap();
        let model = run.model(adapter.as_deref(), &self.catalogue(), Device::Cpu).unwrap();
        let Model::Classifier(encoder, head) = model else { panic!("a classifier") };
        tch::no_grad(|| head.forward(&encoder.forward(input, None), None))
    }
}

/// The batch that the script takes.
fn input(on: &str) -> Input {
    let recorded = tensors(&reference(&format!("{on}.safetensors")));
    let part = if on == "deberta-odd" { "short." } else { "" };
    let ids = recorded[&format!("{part}input_ids")].shallow_clone();
    let type_ids = recorded.get(&format!("{part}token_type_ids"));
    Input {
        type_ids: type_ids.map_or_else(|| ids.zeros_like(), Tensor::shallow_clone),
        mask: Some(recorded[&format!("{part}attention_mask")].to_kind(Kind::Bool)),
        ids,
    }
}

#[track_caller]
fn assert_near(found: &Tensor, expected: &Tensor, what: &str) {
    let difference = (found - expected).abs().max().double_value(&[]);
    assert!(difference < NEAR, "{what}: {difference}");
}

#[test]
fn what_peft_has_saved_gives_its_logits() {
    let logits = tensors(&reference("peft/logits.safetensors"));
    let cases = json_of(&reference("peft/cases.json"))["cases"].as_array().unwrap().clone();
    assert_eq!(cases.len(), 6);
    for case in cases {
        let place = Place::new();
        let (name, on) = (case["name"].as_str().unwrap(), case["checkpoint"].as_str().unwrap());
        let (input, expected) = (input(on), &logits[name]);
        let folder = reference("peft").join(name);
        let imported = place.import(&folder, "in", on, Some("three")).unwrap();
        assert_eq!(json!(imported.ranks), case["ranks"], "{name}");
        let pooler = ["bert.pooler.dense.weight", "bert.pooler.dense.bias"];
        assert_eq!(imported.taken, if on == "deberta-odd" { &[][..] } else { &pooler }, "{name}");
        assert_near(&place.logits("in", None, &input), expected, name);

        // From there on it is like a run of ours.
        let run = FinishedRun::open(&place.path("in")).unwrap();
        let adalora = name.starts_with("adalora").then_some(("adalora", Format::AdaLora));
        let lora = [("lora", Format::Lora { padded: false }), ("padded", Format::Lora { padded: true })];
        for (out, format) in adalora.into_iter().chain(lora) {
            export(&run, &place.path(out), format).unwrap();
            assert_near(&place.logits("in", Some(out), &input), expected, &format!("{name}, {out}"));
            let again = format!("{out}-in");
            place.import(&place.path(out), &again, on, Some("three")).unwrap();
            assert_near(&place.logits(&again, None, &input), expected, &format!("{name}, {again}"));
        }
        let merged = merge(&run, &place.catalogue(), &place.path("merged")).unwrap();
        assert_eq!(merged.increments, imported.ranks.iter().filter(|rank| **rank > 0).count());
        let record = json_of(&place.path("in/imported.json"));
        assert_eq!((&record["peft_version"], &record["precision"]), (&json!("0.21.2"), &json!("f32")));
        assert_eq!(record["files"][1]["sha256"].as_str().unwrap().len(), 64);
    }
}

/// The same increments without a head: for a start, or for another format.
#[test]
fn an_adapter_without_a_head_has_no_task() {
    let place = Place::new();
    let folder = place.copy("lora");
    let mut adapter = tensors(&folder.join("adapter_model.safetensors"));
    adapter.retain(|name, _| !name.contains("classifier"));
    let adapter: Vec<_> = adapter.into_iter().collect();
    Tensor::write_safetensors(&adapter, folder.join("adapter_model.safetensors")).unwrap();
    let imported = place.import(&folder, "in", "bert-random", None).unwrap();
    assert_eq!((imported.ranks.len(), imported.taken.len()), (9, 0));
    let run = FinishedRun::open(&place.path("in")).unwrap();
    export(&run, &place.path("out"), Format::Lora { padded: true }).unwrap();
    let (then, now) =
        (PeftAdapter::open(&folder).unwrap(), PeftAdapter::open(&place.path("in/adapter")).unwrap());
    for (module, increment) in then.increments() {
        assert_eq!(increment.delta(), now.increments()[module].delta(), "{module}");
    }
    let error = merge(&run, &place.catalogue(), &place.path("merged")).unwrap_err().to_string();
    assert!(error.contains("was imported without a task: import it again with --data"), "{error}");

    // The checkpoint has a classifier of three outputs itself, which PEFT would take too.
    let imported = place.import(&folder, "with-task", "bert-random", Some("three")).unwrap();
    assert_eq!(imported.taken.len(), 4);
}

#[test]
fn what_does_not_fit_is_refused_and_nothing_is_written() {
    let place = Place::new();
    let refused = |adapter: &Path, on: &str, data: Option<&str>, part: &str| {
        let error = place.import(adapter, "out", on, data).unwrap_err();
        let error = adalora_runner::worker::in_one_line(&error);
        assert!(error.contains(part), "{part}\n{error}");
        assert!(!place.path("out").exists(), "{part}");
    };
    let three = Some("three");
    let peft = |name: &str| reference("peft").join(name);
    refused(
        &peft("adalora"),
        "deberta-odd",
        three,
        "it has no layer `bert.encoder.layer.0.attention.output.dense`",
    );
    refused(&peft("adalora"), "deberta-odd", three, "; and 11 more");
    refused(&peft("adalora"), "nowhere/at-all", three, "there is no folder");
    refused(&peft("adalora"), "bert-random", Some("trhee"), "three");
    refused(&peft("nothing"), "bert-random", three, "nothing/adapter_config.json: No such file");

    let edited = |name: &str, edit: &dyn Fn(&mut HashMap<String, Tensor>, &mut Value)| {
        let folder = place.copy(name);
        let (path, config) = (folder.join("adapter_model.safetensors"), folder.join("adapter_config.json"));
        let (mut all, mut settings) = (tensors(&path), json_of(&config));
        edit(&mut all, &mut settings);
        let all: Vec<_> = all.into_iter().map(|(name, tensor)| (name, tensor.contiguous())).collect();
        Tensor::write_safetensors(&all, path).unwrap();
        fs::write(config, settings.to_string()).unwrap();
        folder
    };
    let layer = "base_model.model.bert.encoder.layer.1.attention.self.query";
    let factor = format!("{layer}.lora_A.weight");
    let cut = edited("lora", &|all, _| {
        let cut = all[&factor].narrow(1, 0, 29);
        all.insert(factor.clone(), cut);
    });
    let widths = "`bert.encoder.layer.1.attention.self.query` goes from 29 to 30 values, expected 30 to 30";
    refused(&cut, "bert-random", three, widths);
    let shorter = edited("lora", &|all, _| {
        for (part, dimension) in [("lora_A", 0), ("lora_B", 1)] {
            let name = format!("{layer}.{part}.weight");
            let cut = all[&name].narrow(dimension, 0, 2);
            all.insert(name, cut);
        }
    });
    refused(&shorter, "bert-random", three, "the rank 3, but its tensors have 2");
    for name in ["../../escape", "/etc/passwd", "bert.encoder.layer.1.attention.self"] {
        let renamed = edited("lora", &|all, _| {
            for part in ["lora_A.weight", "lora_B.weight"] {
                let tensor = all.remove(&format!("{layer}.{part}")).unwrap();
                all.insert(format!("base_model.model.{name}.{part}"), tensor);
            }
        });
        refused(&renamed, "bert-random", three, &format!("it has no layer `{name}`"));
    }
    let outside = edited("lora", &|all, _| {
        let tensor = all.remove(&factor).unwrap();
        all.insert("../query.lora_A.weight".into(), tensor);
    });
    refused(&outside, "bert-random", three, "does not start with `base_model.model.`");
    let lonely = edited("lora", &|all, _| {
        let _ = all.remove(&factor).unwrap();
    });
    refused(&lonely, "bert-random", three, "lora_A.weight` is missing beside the others");
    let embeddings = edited("lora", &|all, _| {
        all.insert("base_model.model.bert.embeddings.word_embeddings.weight".into(), Tensor::from(1f32));
    });
    refused(&embeddings, "bert-random", three, "is neither a factor nor of a head");
    let classes = edited("lora", &|all, _| {
        all.insert("base_model.model.classifier.bias".into(), Tensor::from_slice(&[1f32, 2.0]));
    });
    refused(&classes, "bert-random", three, "`classifier.bias` is [2], expected [3]");
    // Without columns a file of no bytes has as many outputs as it likes.
    for shape in [[1 << 40, 0], [1 << 62, 0], [0, 30], [3, 29]] {
        let hollow = edited("lora", &|all, _| {
            let name = "base_model.model.classifier.weight";
            all.insert(name.into(), Tensor::zeros(shape, (Kind::Float, Device::Cpu)));
        });
        let rule = format!("`classifier.weight` is {shape:?}, expected ");
        refused(&hollow, "bert-random", None, &format!("{rule}a row of 30 values for each output"));
        refused(&hollow, "bert-random", three, &format!("{rule}[3, 30]"));
    }
    refused(&peft("lora"), "bart-plain", three, "has no classifier or answers");
    let double = edited("lora", &|all, _| {
        let double = all[&factor].to_kind(Kind::Double);
        all.insert(factor.clone(), double);
    });
    refused(&double, "bert-random", three, "is F64, expected F32, F16 or BF16");
    // DeBERTa's own checkpoints have no pooler; this one has, so it is taken out.
    let bare = place.path("bare");
    fs::create_dir(&bare).unwrap();
    fs::copy(reference("deberta-odd/config.json"), bare.join("config.json")).unwrap();
    let all = tensors(&reference("deberta-odd/model.safetensors"));
    let all: Vec<_> = all.into_iter().filter(|(name, _)| !name.contains("pooler")).collect();
    Tensor::write_safetensors(&all, bare.join("model.safetensors")).unwrap();
    let pooler = edited("adalora-deberta", &|all, _| all.retain(|name, _| !name.contains("pooler")));
    refused(
        &pooler,
        bare.to_str().unwrap(),
        three,
        "it was random when the adapter was trained, and PEFT saves it only if",
    );
    for (key, value) in
        [("use_dora", json!(true)), ("bias", json!("lora_only")), ("fan_in_fan_out", json!(true))]
    {
        let set = edited("lora", &|_, settings| settings[key] = value.clone());
        refused(&set, "bert-random", three, &format!("`{key}` is set; only the plain product"));
    }

    let folder = place.copy("lora");
    let path = folder.join("adapter_model.safetensors");
    fs::remove_file(&path).unwrap();
    fs::write(folder.join("adapter_model.bin"), "").unwrap();
    refused(&folder, "bert-random", three, "adapter_model.bin is a pickle, which may run code");
    symlink(reference("peft/lora/adapter_model.safetensors"), &path).unwrap();
    refused(&folder, "bert-random", three, "adapter_model.safetensors is a link or no file");
}

#[test]
fn what_is_there_is_left_alone() {
    let place = Place::new();
    let import = |out: &str| place.import(&reference("peft/lora"), out, "bert-random", Some("three"));
    import("in").unwrap();
    let before = fs::read(place.path("in/imported.json")).unwrap();
    fs::create_dir(place.path("empty")).unwrap();
    symlink(place.path("empty"), place.path("link")).unwrap();
    symlink(place.path("absent"), place.path("dangling")).unwrap();
    fs::write(place.path("file"), "mine").unwrap();
    for out in ["in", "link", "dangling", "file"] {
        let error = import(out).unwrap_err().to_string();
        assert!(error.contains("is there already"), "{out}: {error}");
    }
    assert_eq!(fs::read(place.path("in/imported.json")).unwrap(), before);
    assert_eq!(fs::read(place.path("file")).unwrap(), b"mine");
    assert_eq!(fs::read_dir(place.path("empty")).unwrap().count(), 0);
    assert!(!place.path("absent").exists());
    import("empty").unwrap();
    let adapter = PeftAdapter::open(&place.path("empty/adapter")).unwrap();
    assert_eq!(adapter.increments().values().map(Increment::rank).sum::<usize>(), 22);
}
