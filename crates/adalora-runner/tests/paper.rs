//! The experiments of the paper, each held against its rules with a DeBERTaV3-base-shaped checkpoint and the published
//! sizes of the data, with no network, no weights and no text.

use std::fs;
use std::path::{Path, PathBuf};

use adalora_models::Purpose;
use adalora_runner::experiment::{Grid, RunSpec};
use adalora_runner::plan::{DataSize, Plan};
use adalora_tasks::Catalogue;

/// The configuration of microsoft/deberta-v3-base, as the hub has it.
const CONFIG: &str = r#"{
  "model_type": "deberta-v2", "attention_probs_dropout_prob": 0.1, "hidden_act": "gelu", "hidden_dropout_prob": 0.1,
  "hidden_size": 768, "initializer_range": 0.02, "intermediate_size": 3072, "max_position_embeddings": 512,
  "relative_attention": true, "position_buckets": 256, "norm_rel_ebd": "layer_norm", "share_att_key": true,
  "pos_att_type": "p2c|c2p", "layer_norm_eps": 1e-7, "max_relative_positions": -1, "position_biased_input": false,
  "num_attention_heads": 12, "num_hidden_layers": 12, "type_vocab_size": 0, "vocab_size": 128100
}"#;

/// The same of facebook/bart-large, as far as it has to do with sizes.
const BART: &str = r#"{
  "model_type": "bart", "vocab_size": 50265, "d_model": 1024, "encoder_layers": 12, "decoder_layers": 12,
  "encoder_attention_heads": 16, "decoder_attention_heads": 16, "encoder_ffn_dim": 4096, "decoder_ffn_dim": 4096,
  "max_position_embeddings": 1024, "activation_function": "gelu", "dropout": 0.1, "attention_dropout": 0.1,
  "activation_dropout": 0.1, "encoder_layerdrop": 0.0, "decoder_layerdrop": 0.0, "init_std": 0.02
}"#;

const fn classes(outputs: usize) -> Purpose {
    Purpose::Classify { outputs }
}

/// Training examples of each task and what a model is to say. Questions are counted as windows, which depend on the
/// tokenizer: those of BERT's, in published runs at 384 and 128.
const DATA: [(&str, usize, Purpose); 12] = [
    ("mnli", 392_702, classes(3)),
    ("sst-2", 67_349, classes(2)),
    ("cola", 8_551, classes(2)),
    ("qqp", 363_846, classes(2)),
    ("qnli", 104_743, classes(2)),
    ("rte", 2_490, classes(2)),
    ("mrpc", 3_668, classes(2)),
    ("sts-b", 5_749, classes(1)),
    ("squad-v1", 88_524, Purpose::Answer),
    ("squad-v2", 131_754, Purpose::Answer),
    ("xsum", 204_045, Purpose::Write),
    ("cnndm", 287_113, Purpose::Write),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The plan of each variant of each cell of a file, by cell and variant.
fn plans(name: &str) -> Vec<(String, RunSpec, Plan)> {
    let checkpoint = tempfile::tempdir().unwrap();
    let config = if name.contains("xsum") || name == "cnndm" { BART } else { CONFIG };
    fs::write(checkpoint.path().join("config.json"), config).unwrap();
    let path = root().join(format!("experiments/paper/{name}.toml"));
    let checkpoint = format!("model.pretrained.checkpoint={}", checkpoint.path().display());
    let (document, grid) =
        Grid::load(&path, std::slice::from_ref(&checkpoint)).unwrap_or_else(|problems| panic!("{problems}"));
    let catalogue = Catalogue::of_workspace(&root()).unwrap();
    let mut plans = Vec::new();
    for cell in &grid.cells {
        for (variant, spec) in &cell.tries[0].variants {
            let data = spec.task.data().expect("the paper's tasks have data");
            let (_, train_rows, purpose) = DATA.into_iter().find(|(own, ..)| *own == data).unwrap();
            let plan = Plan::new(spec, &catalogue, &DataSize { train_rows, purpose });
            let plan = plan.unwrap_or_else(|problems| panic!("{}", document.problems(problems)));
            plans.push((cell.variant(variant), spec.clone(), plan));
        }
    }
    plans
}

/// Every file of `experiments/paper`.
fn names() -> Vec<String> {
    let entries = fs::read_dir(root().join("experiments/paper")).unwrap().map(|entry| entry.unwrap().path());
    let mut names: Vec<_> =
        entries.map(|path| path.file_stem().unwrap().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn every_experiment_of_the_paper_can_be_planned() {
    let names = names();
    assert!(names.len() >= 10, "{names:?}");
    for name in names {
        for (label, _, plan) in plans(&name) {
            assert!(plan.total_steps > 0, "{name}: {label}");
        }
    }
}

#[test]
fn table_1_has_the_published_steps_budgets_and_parameters() {
    let plans = plans("table-1");
    let of =
        |label: &str| &plans.iter().find(|(own, ..)| own == label).unwrap_or_else(|| panic!("{label}")).2;
    // Steps of a run, the paper's epochs at batch size 32; Table 8's phases: last steps of warm-up and reduction.
    let steps = [
        ("mnli", 85_904, 8_000, 35_904),
        ("sst-2", 50_520, 6_000, 28_520),
        ("cola", 6_700, 800, 3_200),
        ("qqp", 56_855, 8_000, 31_855),
        ("qnli", 16_370, 2_000, 8_370),
        ("rte", 3_900, 600, 2_100),
        ("mrpc", 3_450, 600, 1_650),
        ("sts-b", 4_500, 800, 2_500),
    ];
    for (task, steps, t_init, last) in steps {
        let plan = of(&format!("0.3m,{task}/adalora"));
        let schedule = plan.schedule.as_ref().unwrap();
        let [warm_up, ..] = schedule.phases();
        assert_eq!(
            (plan.total_steps, *warm_up.end(), schedule.last_allocation()),
            (steps, t_init, last),
            "{task}"
        );
    }
    // Table 7: b(T), and LoRA's parameters at ranks 2, 4 and 8.
    for (level, budget, lora) in [("0.3m", 144, 331_776), ("0.6m", 288, 663_552), ("1.2m", 576, 1_327_104)] {
        let schedule = of(&format!("{level},rte/adalora")).schedule.as_ref().unwrap();
        assert_eq!(schedule.target(), budget);
        assert_eq!(of(&format!("{level},rte/lora")).parameters().adapter_peak, lora);
    }
}

#[test]
fn figure_1_spends_about_as_much_everywhere() {
    let plans = plans("figure-1");
    assert_eq!(plans.len(), 10);
    for (label, _, plan) in plans {
        let parameters = plan.parameters().adapter_peak;
        assert!((276_480..=290_304).contains(&parameters), "{label}: {parameters}");
    }
}

#[test]
fn figure_2_has_the_ladder_of_the_authors_log() {
    let plans = plans("figure-2-squad-v2");
    let ladder = plans.iter().filter_map(|(_, spec, plan)| {
        let target = plan.schedule.as_ref()?.target() / plan.layout.adapters();
        Some((target, spec.adapter.rank()?))
    });
    let published = [(1, 2), (2, 4), (8, 12), (16, 25), (32, 48), (58, 68), (102, 156), (156, 198)];
    assert_eq!(ladder.collect::<Vec<_>>(), published);
}

#[test]
fn table_4_prunes_by_each_importance_on_one_schedule() {
    let plans = plans("table-4");
    let kind = |spec: &RunSpec| Some((spec.adapter.name(), spec.importance.as_ref()?.name()));
    let mut kinds: Vec<_> = plans.iter().filter_map(|(_, spec, _)| kind(spec)).collect();
    kinds.sort();
    kinds.dedup();
    let expected = [
        ("lora", "sensitivity-uncertainty"),
        ("svd", "magnitude"),
        ("svd", "random"),
        ("svd", "sensitivity"),
        ("svd", "sensitivity-uncertainty"),
        ("svd", "uniform"),
    ];
    assert_eq!(kinds, expected);
    for (label, _, plan) in &plans {
        let first =
            &plans.iter().find(|(own, ..)| own.split('/').next() == label.split('/').next()).unwrap().2;
        let budget = |plan: &Plan| plan.schedule.as_ref().map(|own| (own.target(), own.last_allocation()));
        assert_eq!(budget(plan), budget(first), "{label}");
    }
}

#[test]
fn tables_2_and_3_have_the_published_steps_and_budgets() {
    for (name, level, steps, layers, lora) in [
        ("squad-v1", "0.08", 55_330, 72, 165_888),
        ("squad-v2", "0.08", 98_820, 72, 165_888),
        // 0.13 and 2.20 % of 406 million parameters.
        ("xsum", "0.13", 79_725, 192, 540_672),
        ("cnndm", "2.20", 134_595, 192, 8_650_752),
    ] {
        let plans = plans(name);
        let of = |variant: &str| {
            let label = format!("{level}/{variant}");
            &plans.iter().find(|(own, ..)| *own == label).unwrap_or_else(|| panic!("{name}: {label}")).2
        };
        assert_eq!(of("adalora").total_steps, steps, "{name}");
        assert_eq!(of("adalora").layout.adapters(), layers, "{name}");
        assert_eq!(of("lora").parameters().adapter_peak, lora, "{name}");
    }
}

#[test]
fn variants_of_one_level_end_with_as_many_ranks() {
    for (label, spec, plan) in plans("table-5") {
        let level = ["0.16", "0.32", "0.65"].iter().position(|level| label.starts_with(level)).unwrap();
        let target = plan.schedule.as_ref().map_or(plan.layout.triplet_count(), |schedule| schedule.target());
        assert_eq!(target, [144, 288, 576][level], "{label}: {:?}", spec.adapter);
    }
}
