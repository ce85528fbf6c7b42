//! GLUE tasks on small made-up files: in GLUE's own formats, with byte-order mark, stray quotes, CRLF and no final line
//! end, and as Parquet, which `reference/parquet_tables.py` made as the hub has it.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use adalora_tasks::{Catalogue, Dataset, Example, Label, TaskSpec};
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
    assert_eq!(data.dev[0].examples.iter().map(|example| example.label.clone()).collect::<Vec<_>>(), dev);
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

/// Read from the hub's files, which lie in the materials folder as if someone had put them there.
fn load_parquet(task: &str) -> Dataset {
    let root = TempDir::new().expect("a temporary folder");
    let manifest = format!(
        "description = \"\"\nlicence = \"\"\nsource.hub = {{ repository = \"nyu-mll/glue\", revision = \"main\" }}\n\
         format.glue = {{ task = \"{task}\" }}\n"
    );
    fs::write(root.path().join("some.toml"), manifest).expect("a manifest");
    let tables = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../reference/values/parquet/glue");
    fs::create_dir(root.path().join("materials")).expect("a new folder");
    symlink(tables, root.path().join("materials/some")).expect("a link");
    let catalogue = Catalogue::open(root.path(), &root.path().join("materials")).expect("a catalogue");
    let task = TaskSpec { data: "some".into(), max_length: 64, train_rows: None };
    let data = Dataset::load(&catalogue, &task, &fixtures()).expect("a valid data set");
    let catalogued = catalogue.data("some").expect("a data set");
    assert_eq!((&data.target, data.evaluation.as_slice()), (&catalogued.target(), catalogued.evaluation()));
    data
}

fn labels(examples: &[Example]) -> Vec<Label> {
    examples.iter().map(|example| example.label.clone()).collect()
}

const CAT: [u32; 4] = [4, 6, 8, 15];

#[test]
fn parquet_of_cola() {
    let data = load_parquet("cola");
    assert_eq!(labels(&data.train), [Class(1), Class(0), Class(1)]);
    assert_eq!(labels(&data.dev[0].examples), [Class(1)]);
    assert_eq!(data.train[0].ids, [&[2], &CAT[..], &[3]].concat());
    assert_eq!(data.score_names(), ["matthews"]);
    let files: Vec<_> = data.files.iter().skip(1).map(|file| file.file.as_str()).collect();
    assert_eq!(
        files,
        ["some/cola/train-00000-of-00001.parquet", "some/cola/validation-00000-of-00001.parquet"]
    );
}

#[test]
fn parquet_of_sts_b() {
    let data = load_parquet("sts-b");
    let score = |score| Label::Scores(vec![score]);
    assert_eq!(labels(&data.train), [score(0.0), score(5.0), score(2.2)]);
    assert_eq!(labels(&data.dev[0].examples), [score(4.75)]);
    assert_eq!(data.train[1].ids, [&[2], &CAT[..], &[3], &CAT[..], &[3]].concat());
    assert_eq!(data.score_names(), ["pearson", "spearman"]);
}

#[test]
fn parquet_of_qqp_with_a_pair_that_lacks_its_second_question() {
    let data = load_parquet("qqp");
    assert_eq!(labels(&data.train), [Class(0), Class(0), Class(1)]);
    assert_eq!(data.train[1].ids.len(), data.train[1].type_ids.len());
    assert_eq!(data.train[1].ids[data.train[1].ids.len() - 2..], [3, 3]);
    assert_eq!(data.score_names(), ["accuracy", "f1"]);
}

#[test]
fn parquet_of_mnli_with_two_dev_sets() {
    let data = load_parquet("mnli");
    assert_eq!(labels(&data.train), [Class(2), Class(0), Class(1)]);
    let sets: Vec<_> = data.dev.iter().map(|set| (set.name.as_deref(), labels(&set.examples))).collect();
    let expected = [(Some("matched"), vec![Class(1), Class(0)]), (Some("mismatched"), vec![Class(2)])];
    assert_eq!(sets, expected);
    assert_eq!(data.score_names(), ["accuracy-matched", "accuracy-mismatched"]);
    assert_eq!(data.files.len(), 4);
}

#[test]
fn parquet_of_sst_2() {
    let data = load_parquet("sst-2");
    assert_eq!(labels(&data.train), [Class(1), Class(0)]);
    assert_eq!(labels(&data.dev[0].examples), [Class(0)]);
    assert_eq!(data.train[0].ids, [&[2], &CAT[..], &[3]].concat());
}

#[test]
fn parquet_of_pairs() {
    for (task, scores) in [
        ("mrpc", &["accuracy", "f1"][..]),
        ("rte", &["accuracy"]),
        ("qnli", &["accuracy"]),
        ("wnli", &["accuracy"]),
    ] {
        let data = load_parquet(task);
        assert_eq!(labels(&data.train), [Class(1), Class(0)], "{task}");
        assert_eq!(labels(&data.dev[0].examples), [Class(1)], "{task}");
        // The first text comes first: the second pair is one sentence twice, the first is not.
        assert_eq!(data.train[1].ids, [&[2], &CAT[..], &[3], &CAT[..], &[3]].concat(), "{task}");
        assert!(data.train[0].ids.ends_with(&[&[3], &CAT[..], &[3]].concat()), "{task}");
        assert_eq!(data.score_names(), scores, "{task}");
    }
}
