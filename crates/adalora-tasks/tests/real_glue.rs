//! The real GLUE files, where they are: in `glue` in the materials folder, or in the folder that the environment
//! variable `ADALORA_GLUE` names. What is missing is said and skipped.

use std::env;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use adalora_tasks::{Catalogue, Dataset, Example, Hub, Label, TaskSpec};
use tempfile::TempDir;

/// Folder, manifest, and the number of examples in each class (or of all, for scores) in train and dev, as counted
/// with `cut -f` and `uniq -c`; QNLI's training side as published.
const TASKS: [(&str, &str, &[usize], &[usize]); 7] = [
    ("CoLA", "cola", &[2528, 6023], &[322, 721]),
    ("SST-2", "sst-2", &[29780, 37569], &[428, 444]),
    ("MRPC", "mrpc", &[1194, 2474], &[129, 279]),
    ("STS-B", "sts-b", &[5749], &[1500]),
    ("RTE", "rte", &[1249, 1241], &[146, 131]),
    ("QNLI", "qnli", &[52366, 52377], &[2702, 2761]),
    ("WNLI", "wnli", &[323, 312], &[40, 31]),
];

fn glue() -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let materials = env::var_os("ADALORA_MATERIALS").map_or_else(|| root.join(".materials"), PathBuf::from);
    let provided = materials.join("glue");
    if provided.is_dir() { Some(provided) } else { env::var_os("ADALORA_GLUE").map(PathBuf::from) }
}

fn count(examples: &[Example]) -> Vec<usize> {
    let mut counts = Vec::new();
    for example in examples {
        let class = match &example.label {
            Label::Class(class) => *class,
            Label::Scores(scores) => {
                assert!((0.0..=5.0).contains(&scores[0]));
                0
            }
            other => panic!("GLUE has no {other:?}"),
        };
        counts.resize(counts.len().max(class + 1), 0);
        counts[class] += 1;
    }
    counts
}

#[test]
fn rows_and_labels_are_as_published() {
    let Some(glue) = glue() else {
        eprintln!("skipped: there is no `glue` in the materials folder, and ADALORA_GLUE is not set");
        return;
    };
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (folder, name, train, dev) in TASKS {
        let materials = TempDir::new().expect("a temporary folder");
        let linked = materials.path().join("glue").join(folder);
        fs::create_dir_all(&linked).expect("a new folder");
        let source = fs::canonicalize(&glue).expect("the folder of GLUE").join(folder);
        if !source.join("dev.tsv").exists() {
            eprintln!("skipped: {name}, there is no {}", source.join("dev.tsv").display());
            continue;
        }
        symlink(source.join("dev.tsv"), linked.join("dev.tsv")).expect("a link");
        let has_train = source.join("train.tsv").exists();
        if !has_train {
            eprintln!("skipped: the training side of {name}, there is no train.tsv");
        }
        let stand_in = if has_train { "train.tsv" } else { "dev.tsv" };
        symlink(source.join(stand_in), linked.join("train.tsv")).expect("a link");

        let offline = Hub::at("http://localhost", materials.path()).offline();
        let catalogue =
            Catalogue::open(&here.join("../../datasets"), materials.path()).expect("the committed manifests");
        catalogue.fetch(name, &offline).expect("files with the hashes of the manifest");
        let task = TaskSpec { data: name.into(), max_length: 128, train_rows: None };
        let data = Dataset::load(&catalogue, &task, &here.join("tests/fixtures"))
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(count(&data.dev[0].examples), dev, "{name}, dev");
        if has_train {
            assert_eq!(count(&data.train), train, "{name}, train");
        }
    }
}
