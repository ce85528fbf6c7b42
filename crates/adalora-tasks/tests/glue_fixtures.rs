//! Every GLUE task on small made-up files in GLUE's formats: byte-order mark, stray quotes, CRLF, no final line end.

use std::fs;
use std::path::{Path, PathBuf};

use adalora_tasks::{Catalogue, Dataset, Label, TaskSpec};
use tempfile::TempDir;

use Label::Class;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

fn load(task: &str, folder: &str) -> Dataset {
    let manifests = TempDir::new().expect("a temporary folder");
    let manifest = format!(
        "description = \"\"\nlicence = \"\"\nsource.folder = {{ path = \"glue/{folder}\", how = \"made up\" }}\n\
         format.glue = {{ task = \"{task}\" }}\n"
    );
    fs::write(manifests.path().join("some.toml"), manifest).expect("a manifest");
    let catalogue = Catalogue::open(manifests.path(), &fixtures()).expect("a catalogue");
    let task = TaskSpec { data: "some".into(), max_length: 64, train_rows: None };
    Dataset::load(&catalogue, &task, &fixtures()).expect("a valid data set")
}

/// Ids are line numbers in the fixture's vocabulary: 2 and 3 stand around texts, 17 is `"`.
#[track_caller]
fn check(task: &str, folder: &str, first: &[u32], train: &[Label], dev: &[Label]) {
    let data = load(task, folder);
    assert_eq!(data.train[0].ids, first);
    assert_eq!(data.train.iter().map(|example| example.label.clone()).collect::<Vec<_>>(), train);
    assert_eq!(data.dev.iter().map(|example| example.label.clone()).collect::<Vec<_>>(), dev);
}

#[test]
fn cola_has_no_header_and_no_final_line_end() {
    let data = load("cola", "CoLA");
    assert_eq!(data.train[2].ids[1..4], [17, 4, 7]);
    check(
        "cola",
        "CoLA",
        &[2, 4, 6, 8, 10, 4, 11, 15, 3],
        &[Class(1), Class(0), Class(1)],
        &[Class(0), Class(1)],
    );
}

#[test]
fn sst_2_with_crlf() {
    check("sst-2", "SST-2", &[2, 4, 6, 12, 13, 3], &[Class(1), Class(0)], &[Class(1)]);
}

#[test]
fn mrpc_with_byte_order_mark_and_stray_quotes() {
    check(
        "mrpc",
        "MRPC",
        &[2, 4, 6, 16, 17, 20, 12, 13, 15, 3, 20, 12, 13, 16, 4, 6, 15, 3],
        &[Class(1), Class(0)],
        &[Class(1)],
    );
}

#[test]
fn sts_b_scores() {
    let score = |score| Label::Scores(vec![score]);
    check("sts-b", "STS-B", &[2, 5, 6, 8, 15, 3, 4, 6, 8, 15, 3], &[score(4.75), score(0.0)], &[score(5.0)]);
}

#[test]
fn rte_names_its_labels() {
    check("rte", "RTE", &[2, 4, 6, 8, 10, 4, 11, 15, 3, 4, 6, 8, 15, 3], &[Class(0), Class(1)], &[Class(1)]);
}

#[test]
fn qnli_pairs_question_and_sentence() {
    check(
        "qnli",
        "QNLI",
        &[2, 19, 8, 10, 4, 11, 18, 3, 4, 6, 8, 10, 4, 11, 15, 3],
        &[Class(0), Class(1)],
        &[Class(0)],
    );
}

#[test]
fn wnli_counts_entailment_as_one() {
    check(
        "wnli",
        "WNLI",
        &[2, 4, 6, 8, 10, 4, 11, 15, 20, 12, 13, 15, 3, 4, 11, 12, 13, 15, 3],
        &[Class(1), Class(0)],
        &[Class(1)],
    );
}
