//! The targets. Where a reader wants several files, they stand in one input with a zero byte between; where it has
//! variants, the first byte picks one.

use std::fs;
use std::io::{Cursor, Write};
use std::path::{Component, Path};
use std::sync::LazyLock;

use adalora_adapter::{Form, Layout, PeftAdapter, Saved, Site};
use adalora_models::Checkpoint;
use adalora_report::{LogRecord, Ranks};
use adalora_runner::check;
use adalora_runner::checkpoint::{self, Checkpoints};
use adalora_runner::experiment::{Document, ModelSpec};
use adalora_runner::finished::FinishedRun;
use adalora_runner::import::{Request, import};
use adalora_runner::pattern_file::PatternFile;
use adalora_runner::run_folder::{Claim, RunFolder};
use adalora_tasks::{Catalogue, DataFormat, Manifest, Question, SquadVersion, Table};
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use zip::CompressionMethod;
use zip::write::{SimpleFileOptions, ZipWriter};

/// What is tried with an input.
pub(crate) type Target = fn(&[u8]);

/// Every target by its name, which is its corpus's too.
pub const TARGETS: [(&str, Target); 13] = [
    ("experiment", experiment),
    ("manifest", manifest),
    ("delimited", delimited),
    ("parquet", parquet),
    ("squad", squad),
    ("summaries", summaries),
    ("model_config", model_config),
    ("safetensors", safetensors),
    ("torch_file", torch_file),
    ("pickle", pickle),
    ("adapter", adapter),
    ("checkpoint", run_checkpoint),
    ("records", records),
];

/// A folder with these files.
fn folder(files: &[(&str, &[u8])]) -> TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for (name, content) in files {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().expect("it lies in the folder")).expect("a folder");
        fs::write(path, content).expect("a file");
    }
    folder
}

/// A catalogue without manifests.
static EMPTY: LazyLock<Catalogue> = LazyLock::new(|| {
    Catalogue::open(folder(&[]).path(), Path::new("materials")).expect("an empty folder is one")
});

/// The first byte, and the rest.
fn choice(data: &[u8]) -> (usize, &[u8]) {
    data.split_first().map_or((0, data), |(first, rest)| (usize::from(*first), rest))
}

/// What stands before the first zero byte, and after it.
fn halves(data: &[u8]) -> (&[u8], &[u8]) {
    let end = data.iter().position(|byte| *byte == 0).unwrap_or(data.len());
    (&data[..end], data.get(end + 1..).unwrap_or_default())
}

/// Errors are shown to users, so that writing them out is part of what must not fail.
fn shown<T, E: ToString>(result: Result<T, E>) -> Option<T> {
    result.inspect_err(|error| assert!(!error.to_string().is_empty())).ok()
}

/// An experiment file, and overrides: as `adalora check` takes it, unless it names files of its own.
fn experiment(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    let mut parts = text.split('\0').map(str::to_owned);
    let file = parts.next().expect("a text has a first part");
    let overrides: Vec<_> = parts.collect();
    let document = Document::parse(Path::new("experiments/any.toml"), file, &overrides);
    let Some(document) = shown(document) else { return };
    let Some(grid) = shown(document.grid()) else { return };
    let mut stands_alone = true;
    for cell in &grid.cells {
        for own in &cell.tries {
            for (variant, spec) in &own.variants {
                let run = Path::new(&own.name).join(variant);
                let inside = run.components().all(|part| matches!(part, Component::Normal(_)));
                assert!(inside, "{} is outside", run.display());
                stands_alone &= matches!(spec.model, ModelSpec::Random(_))
                    && spec.adapter.ranks().is_none()
                    && spec.warm_start.is_none();
            }
        }
    }
    if stands_alone && let Some(plans) = shown(check::plans(&document, &grid, &EMPTY)) {
        check::describe(&grid, &plans);
    }
}

fn manifest(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    if let Some(manifest) = shown(Manifest::parse(text, Path::new("datasets/any.toml"))) {
        manifest.data();
    }
}

/// How a data set of this format is read.
fn read_as(format: &str) -> DataFormat {
    let source =
        "description = \"any\"\nlicence = \"any\"\nsource.folder = { path = \"any\", how = \"any\" }\n";
    let manifest = Manifest::parse(&format!("{source}{format}"), Path::new("datasets/any.toml"));
    manifest.expect("a manifest").data().expect("a data set")
}

fn table(format: &str) -> Table {
    match read_as(format) {
        DataFormat::Table(table) => table,
        other => panic!("{other:?} is no table"),
    }
}

fn delimited(data: &[u8]) {
    static TABLES: LazyLock<[Table; 4]> = LazyLock::new(|| {
        let classes = "labels.classes = { names = [\"no\", \"yes\"], values = [\"0\", \"1\"] }";
        let rest = "split.shuffled = { file = \"any\", dev = 1, seed = 1 }\nevaluation = [\"accuracy\"]";
        let files = "split.files = { train = \"any\", dev = \"other\" }\nevaluation = [\"pearson\"]";
        [
            table("format.glue = { task = \"mrpc\" }"),
            table(&format!(
                "[format.delimited]\ndelimiter = \",\"\nquoting = true\nheader = true\ntext = [\"text\"]\nlabel = \"label\"\n\
                 {classes}\n{rest}"
            )),
            table(&format!(
                "[format.delimited]\ndelimiter = \"\\t\"\nquoting = false\nheader = false\ntext = [2, 3]\nlabel = 1\n\
                 only = {{ column = 4, equals = \"here\" }}\n{classes}\n{rest}"
            )),
            table(&format!(
                "[format.delimited]\ndelimiter = \";\"\nquoting = true\nheader = true\ntext = [1]\nlabel = \"score\"\n\
                 labels.scalar = {{ range = [0.0, 5.0] }}\n{files}"
            )),
        ]
    });
    let (which, content) = choice(data);
    shown(TABLES[which % TABLES.len()].rows(content.to_vec(), Path::new("any.tsv")));
}

fn parquet(data: &[u8]) {
    static TABLE: LazyLock<Table> = LazyLock::new(|| {
        table(
            "[format.parquet]\ntext = [\"text\"]\nlabel = \"label\"\nlabels.classes = { names = [\"even\", \"odd\"] }\n\
             split.files = { train = \"any\", dev = \"other\" }\nevaluation = [\"accuracy\"]",
        )
    });
    shown(TABLE.rows(data.to_vec(), Path::new("any.parquet")));
}

fn squad(data: &[u8]) {
    let (which, content) = choice(data);
    let version = if which.is_multiple_of(2) { SquadVersion::V1 } else { SquadVersion::V2 };
    for question in shown(Question::read(content, Path::new("any.json"), version)).into_iter().flatten() {
        for answer in question.answers {
            let found = answer.start.map(|start| &question.context[start..]);
            assert!(found.is_none_or(|found| found.starts_with(&answer.text)));
        }
    }
}

fn summaries(data: &[u8]) {
    static FORMAT: LazyLock<DataFormat> = LazyLock::new(|| {
        read_as(
            "[format.summaries]\ndocument = \"document\"\nsummary = \"summary\"\n\
             split.files = { train = \"any.jsonl\", dev = \"other.jsonl\" }",
        )
    });
    let DataFormat::Summaries(format) = &*FORMAT else { unreachable!("it is one of summaries") };
    shown(format.pairs(data.to_vec(), Path::new("any.jsonl")));
}

/// A BERT with two layers of almost nothing: what is fuzzed beside it has to fit it to be read to the end.
const CONFIG: &[u8] = include_bytes!("../corpus/model_config/bert");
const TENSORS: &[u8] = include_bytes!("../corpus/safetensors/bert");

fn model_config(data: &[u8]) {
    let folder = folder(&[("config.json", data), ("model.safetensors", TENSORS)]);
    shown(Checkpoint::open(folder.path()));
}

fn safetensors(data: &[u8]) {
    let folder = folder(&[("config.json", CONFIG), ("model.safetensors", data)]);
    shown(Checkpoint::open(folder.path()));
    shown(adalora_adapter::store::read_tensors(&folder.path().join("model.safetensors")));
}

fn torch_file(data: &[u8]) {
    let folder = folder(&[("config.json", CONFIG), ("pytorch_model.bin", data)]);
    shown(Checkpoint::open(folder.path()));
}

/// The pickle of an archive whose checksums hold, beside storages of 64 bytes.
fn pickle(data: &[u8]) {
    let mut archive = ZipWriter::new(Cursor::new(Vec::new()));
    let stored = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    let mut entry = |name: &str, content: &[u8]| {
        archive.start_file(name, stored).expect("an entry");
        archive.write_all(content).expect("its content");
    };
    entry("archive/data.pkl", data);
    (0..4).for_each(|key| entry(&format!("archive/data/{key}"), &[0; 64]));
    torch_file(&archive.finish().expect("an archive").into_inner());
}

/// `adapter_config.json`, and `adapter_model.safetensors`: as a start, imported, and exported.
fn adapter(data: &[u8]) {
    let (config, tensors) = halves(data);
    let folder = folder(&[
        ("in/adapter_config.json", config),
        ("in/adapter_model.safetensors", tensors),
        ("base/config.json", CONFIG),
        ("base/model.safetensors", TENSORS),
    ]);
    let from = folder.path().join("in");
    for form in [Form::Svd, Form::Lora] {
        let site = Site { path: "layer.0.fc".into(), d_in: 4, d_out: 3, rank: 2 };
        if let Some(saved) = shown(Saved::open(&from, "bert.")) {
            saved.misfits(&Layout::new(form, vec![site]));
        }
    }
    let (base, imported) = (folder.path().join("base").display().to_string(), folder.path().join("imported"));
    let request = Request { checkpoint: &base, data: None, max_length: None };
    let fits = shown(import(&from, &imported, &request, &EMPTY)).is_some();
    assert_eq!(fits, imported.exists(), "nothing is written unless everything fits");
    if fits {
        FinishedRun::open(&imported).expect("what was imported is used like a run");
    }
    let exports: [fn(PeftAdapter) -> Option<PeftAdapter>; 3] = [
        |own| shown(own.into_adalora()),
        |own| shown(own.into_lora(false)),
        |own| shown(own.into_lora(true)),
    ];
    for (number, export) in exports.into_iter().enumerate() {
        let Some(own) = shown(PeftAdapter::open(&from)) else { return };
        if let Some(exported) = export(own) {
            let out = folder.path().join(format!("out-{number}"));
            shown(exported.save(&out));
            shown(PeftAdapter::open(&out)).expect("what was written can be read");
        }
    }
}

/// A checkpoint of a run, which the run goes on from. Its name has the hash that its content has.
fn run_checkpoint(data: &[u8]) {
    let hash: String = Sha256::digest(data)[..8].iter().map(|byte| format!("{byte:02x}")).collect();
    let name = format!("run/seed-1/{}/step-00000007.{hash}.safetensors", checkpoint::FOLDER);
    let logs = ["run/seed-1/metrics.jsonl", "run/seed-1/ranks.csv"].map(|name| (name, &b"{}\n"[..]));
    let folder = folder(&[(&name, data), logs[0], logs[1]]);
    let claim = Claim::of(&folder.path().join("run/seed-1")).expect("nobody else has it");
    let (saved, complaints) = Checkpoints::of(claim.path()).newest(claim.log_bytes());
    assert_eq!(saved.is_none(), complaints.len() == 1);
    if let Some(saved) = saved {
        shown(RunFolder::resume(&claim, "seed = 1\n", "", &saved.progress));
    }
}

/// What a run folder holds for those who read it later.
fn records(data: &[u8]) {
    let (which, content) = choice(data);
    let folder = folder(&[("any", content)]);
    let path = folder.path().join("any");
    match which % 3 {
        0 => drop(shown(LogRecord::read(&path))),
        1 => drop(shown(Ranks::read(&path))),
        _ => {
            if let Some(pattern) = shown(PatternFile::read(&path)) {
                shown(pattern.ranks_of(&["layer.0.fc"]));
            }
        }
    }
}
