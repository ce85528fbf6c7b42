//! Reports on a made-up experiment folder: what the tables say, and that nothing is averaged in silently.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use adalora_report::{
    DevRecord, Experiment, LogRecord, METRICS_FILE, Parameters, Planted, RANKS_FILE, RESULT_FILE,
    ReportError, Residuals, RunResult, SETTINGS_FILE, STATUS_FILE, Shares, Status, StepScores, TrainRecord,
    Triplets, VARIANTS_FILE, runs_csv, write,
};
use tempfile::TempDir;

const ADAPTERS: &str = "encoder.layer.0.attention.self.query,encoder.layer.0.output.dense,\
                        encoder.layer.1.attention.self.query,encoder.layer.1.output.dense";

fn scores(step: usize, accuracy: f64) -> StepScores {
    let scores = BTreeMap::from([("accuracy".to_owned(), accuracy), ("f1".to_owned(), accuracy - 0.125)]);
    StepScores { step, scores }
}

/// A finished run with `accuracy` at its last step of 200; `live` triplets at the end if it allocates.
fn result(variant: &str, seed: u64, accuracy: f64, live: Option<usize>) -> RunResult {
    RunResult {
        experiment: "made-up".to_owned(),
        variant: variant.to_owned(),
        seed,
        task: "rotten_tomatoes".to_owned(),
        steps: 200,
        evaluation: vec!["accuracy".to_owned(), "f1".to_owned()],
        last: scores(200, accuracy),
        best: scores(100, accuracy + 0.01),
        parameters: Parameters {
            adapter_peak: 4096,
            adapter_final: 2048 + seed as usize,
            head: 258,
            adapter_budget: None,
        },
        warm_start: None,
        triplets: live.map(|live| Triplets { initial: 16, budget: Some(8), live }),
        wall_seconds: 60.0 + seed as f64,
        peak_rss_bytes: (600 + seed) << 20,
        planted: None,
    }
}

fn write_json(path: &Path, record: &impl serde::Serialize) {
    fs::write(path, serde_json::to_string(record).unwrap()).unwrap();
}

/// Writes a run that got as far as its status says.
fn add_run(experiment: &Path, variant: &str, seed: u64, status: Status, result: Option<RunResult>) {
    let dir = experiment.join(variant).join(format!("seed-{seed}"));
    fs::create_dir_all(&dir).unwrap();
    let allocates = result.as_ref().is_some_and(|result| result.triplets.is_some());
    let (mut log, mut ranks) = (String::new(), format!("step,{ADAPTERS}\n"));
    for step in (50..=status.step()).step_by(50) {
        let triplets = allocates.then_some(16 - step / 25);
        let train = LogRecord::Train(TrainRecord {
            step,
            loss: 0.7 - step as f64 / 1000.0 + seed as f64 / 100.0,
            orthogonality: allocates.then_some(0.125),
            residuals: allocates.then(|| Residuals {
                p: vec![2.0 / step as f32; 4],
                q: vec![1.0 / (step as f32 + seed as f32); 4],
            }),
            shares: allocates.then_some(Shares { lambda: 0.9, p: 0.09, q: 0.01 }),
            lr: 1e-3,
            grad_norm: 0.75,
            budget: triplets,
            live: triplets,
            seconds: step as f64 / 10.0,
        });
        let dev = LogRecord::Dev(DevRecord {
            step,
            loss: 0.5,
            scores: scores(step, 0.6).scores,
            intervals: [].into(),
            seconds: step as f64,
        });
        for record in [train, dev] {
            log.push_str(&serde_json::to_string(&record).unwrap());
            log.push('\n');
        }
        ranks.push_str(&format!("{step},0,{},2,4\n", seed.min(4)));
    }
    fs::write(dir.join(METRICS_FILE), log).unwrap();
    fs::write(dir.join(RANKS_FILE), ranks).unwrap();
    let settings =
        format!("seed = {seed}\n[adapter.{}]\ninit_r = 4\n", if allocates { "svd" } else { "lora" });
    fs::write(dir.join(SETTINGS_FILE), settings).unwrap();
    write_json(&dir.join(STATUS_FILE), &status);
    if let Some(result) = result {
        write_json(&dir.join(RESULT_FILE), &result);
    }
}

fn add_finished(experiment: &Path, result: RunResult) {
    let (variant, seed) = (result.variant.clone(), result.seed);
    add_run(experiment, &variant, seed, Status::Finished { step: result.steps }, Some(result));
}

/// An experiment called `made-up`, removed at the end of the test.
struct Folder {
    path: PathBuf,
    _parent: TempDir,
}

impl Folder {
    fn path(&self) -> &Path {
        &self.path
    }
}

/// An experiment whose variants are named and whose runs are still to be added.
fn empty(variants: &[&str]) -> Folder {
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("made-up");
    fs::create_dir(&path).unwrap();
    write_json(&path.join(VARIANTS_FILE), &variants);
    Folder { path, _parent: parent }
}

/// Plain LoRA, finished thrice; one variant with a failed run; one with planted layers and a run under way.
fn made_up() -> Folder {
    let dir = empty(&["lora", "adalora_1|2", "planted"]);
    for (seed, accuracy) in [(1, 0.70), (2, 0.71), (10, 0.75)] {
        add_finished(dir.path(), result("lora", seed, accuracy, None));
    }
    add_finished(dir.path(), result("adalora_1|2", 1, 0.72, Some(8)));
    add_finished(dir.path(), result("adalora_1|2", 10, 0.76, Some(8)));
    let reason = "loss is NaN at step 120".to_owned();
    add_run(dir.path(), "adalora_1|2", 2, Status::Failed { step: 119, reason, diverged: true }, None);
    for (seed, recovered) in [(1, 6), (2, 8)] {
        let planted = Some(Planted { recovered, planted: 8 });
        add_finished(dir.path(), RunResult { planted, ..result("planted", seed, 0.69, Some(8)) });
    }
    add_run(dir.path(), "planted", 10, Status::Running { step: 60 }, None);
    dir
}

fn report(experiment: &Path, name: &str) -> String {
    fs::read_to_string(experiment.join("report").join(name)).unwrap()
}

#[test]
fn tables() {
    let dir = made_up();
    let markdown = write(dir.path()).unwrap();
    assert_eq!(markdown, report(dir.path(), "table.md"));
    insta::assert_snapshot!("markdown", markdown);
    insta::assert_snapshot!("latex", report(dir.path(), "table.tex"));
    insta::assert_snapshot!("csv", report(dir.path(), "table.csv"));
}

#[test]
fn page_stands_alone_and_lists_every_run() {
    let dir = made_up();
    write(dir.path()).unwrap();
    let page = report(dir.path(), "report.html");
    let runs = page.split("<h2>Runs</h2>").nth(1).unwrap();
    assert_eq!(runs.matches("<tr>").count(), 1 + 9);
    assert!(page.contains("adalora_1|2, seed 2, after 119 steps: loss is NaN at step 120"));
    assert!(
        page.contains(&report(dir.path(), "ranks.svg")) && page.contains(&report(dir.path(), "curves.svg"))
    );
    assert!(page.contains("<td>adapter.svd.init_r</td>") && !page.contains("<td>seed</td>"));
    for outside in ["<script", "<link", "<img", "src=", "href=", "url("] {
        assert!(!page.contains(outside), "{outside}");
    }
}

#[test]
fn names_and_reasons_are_escaped_in_page_and_pictures() {
    let name = "a<b>&\"c'";
    let dir = empty(&[name]);
    add_finished(dir.path(), result(name, 1, 0.5, Some(8)));
    let reason = "<script>alert(1)</script>".to_owned();
    add_run(dir.path(), name, 2, Status::Failed { step: 0, reason, diverged: false }, None);
    write(dir.path()).unwrap();
    let files = ["report.html", "ranks.svg", "curves.svg"].map(|file| report(dir.path(), file));
    for text in &files {
        assert!(text.contains("a&lt;b&gt;&amp;&quot;c&#39;") && !text.contains("a<b>"));
    }
    assert!(files[0].contains("&lt;script&gt;alert(1)&lt;/script&gt;"));
}

#[test]
fn heat_map_shows_mean_and_deviation_of_the_final_ranks() {
    let dir = made_up();
    write(dir.path()).unwrap();
    let picture = report(dir.path(), "ranks.svg");
    // Seeds 1 and 10 of the second variant end with ranks 1 and 4 of the output in layer 0.
    // Python: numpy.mean([1, 4]), numpy.std([1, 4], ddof=1)
    assert!(picture.contains(">2.5</text>") && picture.contains(">±2.1</text>"));
    assert!(picture.contains(">adalora_1|2 (2 seeds)</text>") && !picture.contains("lora (3 seeds)"));
}

#[test]
fn trajectory_has_a_stretch_for_each_rank_that_was_kept() {
    let dir = empty(&["lora", "adalora"]);
    add_finished(dir.path(), result("lora", 1, 0.5, None));
    let stretches = |rows: &str| {
        for seed in [1, 2] {
            add_finished(dir.path(), result("adalora", seed, 0.5, Some(8)));
            let ranks = dir.path().join(format!("adalora/seed-{seed}")).join(RANKS_FILE);
            fs::write(ranks, format!("step,{ADAPTERS}\n{rows}")).unwrap();
        }
        write(dir.path()).unwrap();
        let picture = report(dir.path(), "trajectory.svg");
        assert!(picture.contains(">adalora (2 seeds)</text>") && !picture.contains(">lora (1 seed)</text>"));
        picture.matches("<rect").count()
    };
    let constant = stretches("50,2,4,2,4\n100,2,4,2,4\n200,2,4,2,4\n");
    // One adapter falls once, another twice.
    assert_eq!(stretches("50,2,4,2,4\n100,2,1,2,3\n200,2,1,2,0\n"), constant + 3);
}

#[test]
fn factors_show_residuals_and_shares_of_those_that_have_them() {
    let dir = made_up();
    write(dir.path()).unwrap();
    let picture = report(dir.path(), "factors.svg");
    for panel in ["squared residual of P", "squared residual of Q", "share of λ", "share of P", "share of Q"]
    {
        assert!(picture.contains(panel), "{panel}");
    }
    let dir = empty(&["lora"]);
    add_finished(dir.path(), result("lora", 1, 0.5, None));
    write(dir.path()).unwrap();
    assert!(!dir.path().join("report/factors.svg").exists());
    assert!(!dir.path().join("report/trajectory.svg").exists());
}

#[test]
fn seeds_are_in_numerical_order() {
    let dir = made_up();
    let experiment = Experiment::read(dir.path()).unwrap();
    let seeds: Vec<_> = experiment.variants[0].runs.iter().map(|run| run.seed).collect();
    assert_eq!(seeds, [1, 2, 10]);
}

#[test]
fn a_score_that_is_undefined_shows() {
    let dir = empty(&["lora"]);
    add_finished(dir.path(), result("lora", 1, 0.5, None));
    add_finished(dir.path(), result("lora", 2, f64::NAN, None));
    let markdown = write(dir.path()).unwrap();
    assert!(markdown.contains("NaN ± NaN"));
    assert!(markdown.contains("NaN: the score is undefined in at least one finished run."));
    assert!(!report(dir.path(), "curves.svg").contains("NaN"));
}

#[test]
fn one_seed_has_no_interval() {
    let dir = empty(&["lora", "adalora"]);
    add_finished(dir.path(), result("lora", 1, 0.5, None));
    add_finished(dir.path(), result("adalora", 1, 0.75, Some(8)));
    let markdown = write(dir.path()).unwrap();
    assert!(markdown.contains(" +0.2500 |"), "{markdown}");
    assert!(markdown.contains("A single pair has no interval."));
    assert!(markdown.contains("here 1 (n = 1)"));
}

#[test]
fn records_read_back_as_written() {
    for record in [
        r#"{"kind":"train","step":100,"loss":0.69,"orthogonality":0.12,"lr":0.001,"grad_norm":0.8,"budget":96,"live":96,"seconds":12.3}"#,
        r#"{"kind":"train","step":100,"loss":0.69,"lr":0.001,"grad_norm":0.8,"seconds":12.3}"#,
        r#"{"kind":"dev","step":200,"loss":0.61,"scores":{"accuracy":0.71},"seconds":25.0}"#,
    ] {
        let read: LogRecord = serde_json::from_str(record).unwrap();
        assert_eq!(serde_json::to_string(&read).unwrap(), record);
    }
    for status in [r#"{"state":"running","step":120}"#, r#"{"state":"failed","step":119,"reason":"no"}"#] {
        let read: Status = serde_json::from_str(status).unwrap();
        assert_eq!(serde_json::to_string(&read).unwrap(), status);
    }
    let null = r#"{"kind":"dev","step":200,"loss":null,"scores":{"pearson":null},"seconds":25.0}"#;
    let LogRecord::Dev(dev) = serde_json::from_str(null).unwrap() else { panic!("a dev record") };
    assert!(dev.loss.is_nan() && dev.scores["pearson"].is_nan());
}

#[test]
fn a_line_being_written_is_left_out_and_a_broken_one_is_an_error() {
    let dir = made_up();
    let run = dir.path().join("planted/seed-10");
    let whole = fs::read_to_string(run.join(METRICS_FILE)).unwrap();
    fs::write(run.join(METRICS_FILE), format!("{whole}{{\"kind\":\"tr")).unwrap();
    let ranks = fs::read_to_string(run.join(RANKS_FILE)).unwrap();
    fs::write(run.join(RANKS_FILE), format!("{ranks}100,1")).unwrap();
    let experiment = Experiment::read(dir.path()).unwrap();
    assert_eq!(experiment.variants[2].runs[2].log.len(), 2);
    assert_eq!(experiment.variants[2].runs[2].ranks.as_ref().unwrap().rows.len(), 1);

    let error = |file: &str, contents: String| {
        fs::write(run.join(file), contents).unwrap();
        let error = Experiment::read(dir.path()).unwrap_err().to_string();
        error.replace(&dir.path().display().to_string(), "EXPERIMENT")
    };
    insta::assert_snapshot!(
        error(METRICS_FILE, format!("{whole}{{\"kind\":\"train\",\"step\":1}}\n")),
        @"EXPERIMENT/planted/seed-10/metrics.jsonl, line 3: missing field `loss`"
    );
    insta::assert_snapshot!(error(METRICS_FILE, format!("{whole}{{\"kind\":\"tr\n")), @"EXPERIMENT/planted/seed-10/metrics.jsonl, line 3: EOF while parsing a string");
    fs::write(run.join(METRICS_FILE), whole).unwrap();
    insta::assert_snapshot!(error(RANKS_FILE, format!("{ranks}100,1\n")), @"EXPERIMENT/planted/seed-10/ranks.csv, line 3: 2 fields, where the header has 5");
    insta::assert_snapshot!(error(RANKS_FILE, format!("{ranks}100,1,2,3,x\n")), @"EXPERIMENT/planted/seed-10/ranks.csv, line 3: `x` is not a whole number");
    insta::assert_snapshot!(error(SETTINGS_FILE, "seed = 1\nlr =\n".to_owned()), @"EXPERIMENT/planted/seed-10/resolved.toml, line 2: string values must be quoted, expected literal string");
    insta::assert_snapshot!(error(STATUS_FILE, "{\"state\":\"lost\",\"step\":1}".to_owned()), @"EXPERIMENT/planted/seed-10/status.json, line 1: unknown variant `lost`, expected one of `running`, `finished`, `failed`, `interrupted`");
}

#[test]
fn without_a_finished_run_the_error_says_how_things_stand() {
    let dir = empty(&["lora", "adalora"]);
    add_run(dir.path(), "lora", 1, Status::Running { step: 60 }, None);
    add_run(dir.path(), "lora", 2, Status::Interrupted { step: 60 }, None);
    insta::assert_snapshot!(write(dir.path()).unwrap_err(), @"no run of made-up has finished yet: 0 failed, 1 running, 1 interrupted");
    assert!(!dir.path().join("report").exists());
}

#[test]
fn folders_that_contradict_themselves_are_errors() {
    let dir = empty(&["lora"]);
    fs::remove_file(dir.path().join(VARIANTS_FILE)).unwrap();
    assert!(matches!(write(dir.path()), Err(ReportError::NoVariants(_))));

    let dir = empty(&["lora"]);
    add_run(dir.path(), "lora", 1, Status::Finished { step: 200 }, None);
    assert!(matches!(write(dir.path()), Err(ReportError::NoResult(_))));

    let dir = empty(&["lora", "other"]);
    add_finished(dir.path(), result("lora", 1, 0.5, None));
    let mut other = result("other", 3, 0.5, None);
    other.last.scores.remove("f1");
    add_finished(dir.path(), other);
    insta::assert_snapshot!(write(dir.path()).unwrap_err(), @"the result of other, seed 3, has no score `f1`, which other runs have: run it again");

    let dir = empty(&["adalora"]);
    add_finished(dir.path(), result("adalora", 1, 0.5, Some(8)));
    add_finished(dir.path(), result("adalora", 2, 0.5, Some(8)));
    fs::write(dir.path().join("adalora/seed-2").join(RANKS_FILE), "step,other\n200,3\n").unwrap();
    insta::assert_snapshot!(write(dir.path()).unwrap_err(), @"adalora, seed 2, adapts other modules than the seeds before it: run the variant again");
}

#[test]
fn a_link_in_the_place_of_the_report_is_refused() {
    let (experiment, elsewhere) = (made_up(), tempfile::tempdir().unwrap());
    let link = experiment.path().join("report");
    symlink(elsewhere.path(), &link).unwrap();
    let error = write(experiment.path()).unwrap_err();
    assert!(matches!(error, ReportError::Link(ref path) if *path == link), "{error}");
    assert_eq!(fs::read_dir(elsewhere.path()).unwrap().count(), 0);
    fs::remove_file(link).unwrap();
    write(experiment.path()).unwrap();
}

#[test]
fn every_run_is_a_row_whatever_its_state() {
    let folder = made_up();
    let table = runs_csv(folder.path().parent().unwrap()).unwrap();
    let mut reader = csv::Reader::from_reader(table.as_bytes());
    let header = reader.headers().unwrap().clone();
    let rows: Vec<BTreeMap<String, String>> = reader
        .records()
        .map(|row| header.iter().map(str::to_owned).zip(row.unwrap().iter().map(str::to_owned)).collect())
        .collect();
    let seeds: Vec<_> = rows.iter().map(|row| format!("{} {}", row["run"], row["state"])).collect();
    assert_eq!(seeds.len(), 9);
    assert_eq!(seeds[0], "made-up/adalora_1|2/seed-1 finished");
    let failed = rows.iter().find(|row| row["state"] == "failed").unwrap();
    assert!(!failed["reason"].is_empty() && failed["last_accuracy"].is_empty(), "{failed:?}");
    let finished = rows.iter().find(|row| row["state"] == "finished").unwrap();
    let score = |name: &str| finished[name].parse::<f64>().unwrap();
    approx::assert_abs_diff_eq!(score("best_accuracy"), score("last_accuracy") + 0.01, epsilon = 1e-12);
    assert_eq!((finished["last_step"].as_str(), finished["head_parameters"].as_str()), ("200", "258"));
}

#[test]
fn what_models_wrote_stands_side_by_side() {
    let folder = empty(&["lora", "adalora"]);
    for variant in ["lora", "adalora"] {
        add_finished(folder.path(), result(variant, 1, 0.5, None));
        let output = |number: usize| {
            let (document, generated) = (format!("Document <{number}>"), format!("{variant} says\n{number}"));
            serde_json::json!({ "document": document, "summary": "A | summary", "generated": generated })
        };
        let lines: String = (0..20).map(|number| format!("{}\n", output(number))).collect();
        fs::write(folder.path().join(variant).join("seed-1/outputs.jsonl"), lines).unwrap();
    }
    write(folder.path()).unwrap();
    let samples = fs::read_to_string(folder.path().join("report/samples.md")).unwrap();
    assert_eq!(samples.matches("\n> Document").count(), 8);
    assert!(
        samples.contains("- right: A \\| summary\n- lora: lora says 2\n- adalora: adalora says 2\n"),
        "{samples}"
    );
    let page = fs::read_to_string(folder.path().join("report/report.html")).unwrap();
    assert!(page.contains("<blockquote>Document &lt;17&gt;</blockquote>"), "{page}");
}
