//! The report over all cells of a made-up experiment with `[sweep]` and `[tuning]`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use adalora_report::{
    Choice, GRID_FILE, Grid, GridCell, Parameters, RESULT_FILE, RunResult, STATUS_FILE, Status, StepScores,
    TUNING_FILE, Tried, Tuned, Tuning, VARIANTS_FILE, write,
};
use tempfile::TempDir;

const VARIANTS: [&str; 2] = ["lora", "adalora"];

fn write_json(path: &Path, record: &impl serde::Serialize) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, serde_json::to_string(record).unwrap()).unwrap();
}

/// Name of a cell, its points by axis, its data set.
type Cell<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a str);

/// Writes a grid of these cells.
fn lay_down(dir: &Path, cells: &[Cell]) {
    let cells = cells.iter().map(|(name, points, data)| GridCell {
        name: (*name).to_owned(),
        points: points.iter().map(|(axis, point)| ((*axis).to_owned(), (*point).to_owned())).collect(),
        variants: VARIANTS
            .map(|variant| (variant.to_owned(), serde_json::json!({ "task": { "text": { "data": data } } })))
            .to_vec(),
    });
    let cells: Vec<_> = cells.collect();
    let tuning = Tuning {
        setting: "optimizer.lr".to_owned(),
        values: ["lr-0.001", "lr-0.01", "lr-1.0"].map(str::to_owned).to_vec(),
        seeds: vec![101],
    };
    for cell in &cells {
        write_json(&dir.join(&cell.name).join(VARIANTS_FILE), &VARIANTS);
    }
    write_json(&dir.join(GRID_FILE), &Grid { seeds: (1..=8).collect(), tuning: Some(tuning), cells });
}

fn add_run(dir: &Path, cell: &str, variant: &str, seed: u64, scores: &[(&str, f64)], size: usize) {
    let scores: BTreeMap<_, _> = scores.iter().map(|(name, score)| ((*name).to_owned(), *score)).collect();
    let result = RunResult {
        experiment: format!("study/{cell}"),
        variant: variant.to_owned(),
        seed,
        task: cell.to_owned(),
        steps: 100,
        evaluation: scores.keys().cloned().collect(),
        last: StepScores { step: 100, scores: scores.clone() },
        best: StepScores { step: 50, scores },
        parameters: Parameters {
            adapter_peak: 2 * size,
            adapter_final: size,
            adapter_budget: None,
            head: 258,
        },
        triplets: None,
        wall_seconds: 60.0,
        peak_rss_bytes: 1 << 20,
        planted: None,
        warm_start: None,
    };
    let run = dir.join(cell).join(variant).join(format!("seed-{seed}"));
    write_json(&run.join(STATUS_FILE), &Status::Finished { step: 100 });
    write_json(&run.join(RESULT_FILE), &result);
}

/// Eight seeds on CoLA, where AdaLoRA is ahead with each, and on QQP, where it is not; one run diverged.
fn tasks() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    lay_down(dir.path(), &[("cola", &[("tasks", "cola")], "cola"), ("qqp", &[("tasks", "qqp")], "qqp")]);
    for seed in 1..=8 {
        let noise = 0.01 * (seed % 3) as f64;
        add_run(dir.path(), "cola", "lora", seed, &[("matthews", 0.40 + noise)], 100);
        add_run(dir.path(), "cola", "adalora", seed, &[("matthews", 0.45 + 0.5 * noise)], 100);
        add_run(dir.path(), "qqp", "lora", seed, &[("accuracy", 0.80 + noise), ("f1", 0.70)], 100);
        if seed < 8 {
            add_run(dir.path(), "qqp", "adalora", seed, &[("accuracy", 0.81), ("f1", 0.72)], 100);
        }
    }
    let reason = "the loss is NaN at step 3".to_owned();
    let failed = Status::Failed { step: 2, reason, diverged: true };
    write_json(&dir.path().join("qqp/adalora/seed-8").join(STATUS_FILE), &failed);
    let tried = |value: &str, score: Option<f64>| Tried {
        value: value.to_owned(),
        scores: vec![score],
        diverged: usize::from(score.is_none()),
    };
    let tuned = |variant: &str, second: f64, chosen| Tuned {
        variant: variant.to_owned(),
        tries: vec![tried("lr-0.001", Some(0.3)), tried("lr-0.01", Some(second)), tried("lr-1.0", None)],
        chosen,
    };
    let choice = Choice {
        setting: "optimizer.lr".to_owned(),
        evaluation: "matthews".to_owned(),
        seeds: vec![101],
        variants: vec![tuned("lora", 0.4, 1), tuned("adalora", 0.2, 0)],
    };
    write_json(&dir.path().join("cola").join(TUNING_FILE), &choice);
    dir
}

fn report(dir: &TempDir, name: &str) -> String {
    fs::read_to_string(dir.path().join(name)).unwrap().replace(&name_of(dir), "study")
}

/// The temporary folder's own name is the experiment's.
fn name_of(dir: &TempDir) -> String {
    dir.path().file_name().unwrap().to_string_lossy().into_owned()
}

#[test]
fn tables_over_tasks() {
    let dir = tasks();
    let markdown = write(dir.path()).unwrap();
    assert_eq!(markdown.replace(&name_of(&dir), "study"), report(&dir, "report/table.md"));
    insta::assert_snapshot!("study_markdown", report(&dir, "report/table.md"));
    insta::assert_snapshot!("study_csv", report(&dir, "report/table.csv"));
    assert!(report(&dir, "report/table.tex").matches("\\begin{table}").count() == 4);
    let cell = report(&dir, "cola/report/table.md");
    assert!(cell.contains("| lr-0.01 | lr-1.0 |") || cell.contains("lr-1.0"), "{cell}");
    assert!(!dir.path().join("report/ladder.svg").exists(), "all cells have one size");
    let page = report(&dir, "report/report.html");
    assert!(page.contains("cola/report/report.html") && page.contains("<h2>Tuning</h2>"));
}

#[test]
fn names_that_lead_elsewhere_are_refused() {
    for name in ["..", "../elsewhere", "/tmp/elsewhere"] {
        let dir = tasks();
        let text = fs::read_to_string(dir.path().join(GRID_FILE)).unwrap();
        let other = text.replace("\"name\":\"cola\"", &format!("\"name\":{name:?}"));
        assert_ne!(text, other);
        fs::write(dir.path().join(GRID_FILE), other).unwrap();
        let error = write(dir.path()).unwrap_err().to_string();
        assert!(
            error.contains(&format!("grid.json, line 1: `{name}` is no folder below this one")),
            "{error}"
        );
        write_json(&dir.path().join("cola").join(VARIANTS_FILE), &[name]);
        let error = write(&dir.path().join("cola")).unwrap_err().to_string();
        assert!(error.contains(&format!("`{name}` is no folder below this one")), "{error}");
    }
}

#[test]
fn too_few_seeds_are_said_to_be_too_few() {
    let dir = tempfile::tempdir().unwrap();
    lay_down(dir.path(), &[("cola", &[("tasks", "cola")], "cola"), ("rte", &[("tasks", "rte")], "rte")]);
    for seed in 1..=5 {
        add_run(dir.path(), "cola", "lora", seed, &[("matthews", 0.4)], 100);
        add_run(dir.path(), "cola", "adalora", seed, &[("matthews", 0.5 + 0.01 * seed as f64)], 100);
    }
    let markdown = write(dir.path()).unwrap();
    // Five differences of one sign: the clearest result that five seeds can give.
    assert!(markdown.contains(" 0.0625 |"), "{markdown}");
    assert!(
        markdown.contains(
            "with n = 5 no p is below 2/2ⁿ = 0.0625. Below 0.05 needs 6 pairs, and 7 after Holm over 2"
        ),
        "{markdown}"
    );
    // RTE has not run: no average, and no pair.
    assert!(markdown.contains("| lora    |    5 |"), "{markdown}");
}

#[test]
fn sizes_make_a_ladder() {
    let dir = tempfile::tempdir().unwrap();
    let points: [&[(&str, &str)]; 2] = [&[("rank", "r-1")], &[("rank", "r-2")]];
    lay_down(dir.path(), &[("r-1", points[0], "sst-2"), ("r-2", points[1], "sst-2")]);
    for (cell, size) in [("r-1", 100), ("r-2", 200)] {
        for (variant, seed) in VARIANTS.into_iter().zip([1, 1]) {
            add_run(dir.path(), cell, variant, seed, &[("accuracy", 0.8 + size as f64 / 1e4)], size);
        }
    }
    let markdown = write(dir.path()).unwrap();
    // One task alone: rows are ranks and variants, and there is no average.
    assert!(markdown.contains("sst-2, accuracy") && markdown.contains("| r-2, adalora |"), "{markdown}");
    assert!(!markdown.contains("average"), "{markdown}");
    assert!(markdown.contains("Below 0.05 needs 6 pairs.") && !markdown.contains("Holm"), "{markdown}");
    let ladder = report(&dir, "report/ladder.svg");
    for text in ["sst-2, accuracy", ">lora<", ">adalora<", "smallest to largest"] {
        assert!(ladder.contains(text), "{text}");
    }
}
