//! Experiment files: what they say, and what is said about them when they are wrong.

use std::path::{Path, PathBuf};

use adalora_runner::experiment::{AdapterSpec, Document, Experiment, Grid, Problem, RunSpec};

/// A file with nothing wrong in it.
const BASE: &str = r#"description = "A test"
seeds = [1, 2]

[model.pretrained]
checkpoint = "bert-tiny"

[task.text]
data = "cola"
max_length = 64

[adapter.svd]
targets = ["query", "value"]
init_r = 12
alpha = 16

[orthogonality.mean-of-norms]
gamma = 0.1

[importance.sensitivity-uncertainty]
beta1 = 0.85
beta2 = 0.85

[budget.cubic]
target_r = 8
t_init = 10
t_final = 20

[observation]
weights = "before-step"
gradient = "clipped"
regularizer = true

[optimizer]
lr = 1e-3
schedule = { linear = { warm_up = 10 } }

[train]
steps = 100
batch_size = 32
clip = 1.0
evaluate_every = 50
record_every = 10
"#;

const VARIANTS: &str = r#"
[variants.lora]
drop = ["orthogonality", "importance", "budget", "observation"]
adapter.lora = { targets = ["query"], r = 8, alpha = 16 }

[variants.adalora]

[variants.random.importance.random]
"#;

/// `BASE` with each text on the left replaced by that on the right.
fn changed(changes: &[(&str, &str)]) -> String {
    changes.iter().fold(BASE.to_owned(), |text, (from, to)| {
        assert!(text.contains(from), "{from}");
        text.replace(from, to)
    })
}

fn parse(text: &str, overrides: &[&str]) -> Result<Experiment, String> {
    let overrides: Vec<String> = overrides.iter().map(ToString::to_string).collect();
    Document::parse(Path::new("experiments/test.toml"), text.into(), &overrides)
        .and_then(|document| document.experiment())
        .map_err(|problems| problems.to_string())
}

fn valid(text: &str, overrides: &[&str]) -> Experiment {
    parse(text, overrides).unwrap_or_else(|problems| panic!("{problems}"))
}

/// What is said about `text`, which is wrong.
fn problems(text: &str, overrides: &[&str]) -> String {
    parse(text, overrides).expect_err("there are problems")
}

fn spec<'a>(experiment: &'a Experiment, variant: &str) -> &'a RunSpec {
    let found = experiment.variants.iter().find(|(name, _)| name == variant);
    &found.unwrap_or_else(|| panic!("no variant {variant}")).1
}

fn committed() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../experiments");
    let entries =
        folder.read_dir().expect("a folder of experiments").map(|entry| entry.expect("an entry").path());
    entries.filter(|path| path.extension().is_some_and(|ending| ending == "toml")).collect()
}

#[test]
fn committed_experiments_hold() {
    for path in committed() {
        let (document, experiment) =
            Experiment::load(&path, &[]).unwrap_or_else(|problems| panic!("{problems}"));
        assert!(
            document.source().starts_with("description = "),
            "{}: the first line says what it is for",
            experiment.name
        );
    }
}

#[test]
fn committed_grids_hold() {
    let mut grids = 0;
    for folder in ["small", "paper"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../experiments").join(folder);
        for entry in path.read_dir().expect("a folder of experiments") {
            let path = entry.expect("an entry").path();
            let (document, _) = Grid::load(&path, &[]).unwrap_or_else(|problems| panic!("{problems}"));
            assert!(document.source().starts_with("description = "), "{}", path.display());
            grids += 1;
        }
    }
    assert!(grids > 20, "{grids}");
}

#[test]
fn presets_differ_only_where_paper_and_code_do() {
    let load = |name: &str| {
        let path = committed().into_iter().find(|path| path.ends_with(name)).expect("a preset");
        Experiment::load(&path, &[]).unwrap_or_else(|problems| panic!("{problems}")).1
    };
    let (paper, official) = (load("rte-paper.toml"), load("rte-official.toml"));
    let (paper, official) = (spec(&paper, "run"), spec(&official, "run"));
    assert_ne!(paper.orthogonality, official.orthogonality);
    assert_ne!(paper.observation, official.observation);
    let mut same = paper.clone();
    same.orthogonality = official.orthogonality;
    same.observation = official.observation;
    assert_eq!(&same, official);
}

#[test]
fn resolved_settings_parse_back_to_themselves() {
    let mut all = vec![valid(&format!("{BASE}{VARIANTS}"), &["train.clip=0.1", "optimizer.eps=1e-12"])];
    all.extend(committed().iter().map(|path| Experiment::load(path, &[]).expect("committed").1));
    for (name, spec) in all.iter().flat_map(|experiment| &experiment.variants) {
        let text = toml::to_string(spec).expect("settings are TOML");
        assert_eq!(&toml::from_str::<RunSpec>(&text).expect("and back"), spec, "{name}\n{text}");
    }
}

#[test]
fn a_file_without_variants_has_one() {
    let experiment = valid(BASE, &[]);
    assert_eq!((experiment.name.as_str(), experiment.description.as_str()), ("test", "A test"));
    assert_eq!(experiment.seeds, [1, 2]);
    let names: Vec<_> = experiment.variants.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["run"]);
}

#[test]
fn variants_keep_their_order_and_replace_whole_tables() {
    let experiment = valid(&format!("{BASE}{VARIANTS}"), &[]);
    let names: Vec<_> = experiment.variants.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["lora", "adalora", "random"]);
    let (lora, adalora, random) =
        (spec(&experiment, "lora"), spec(&experiment, "adalora"), spec(&experiment, "random"));
    assert!(matches!(&lora.adapter, AdapterSpec::Lora(lora) if lora.r == Some(8)));
    assert_eq!((&lora.importance, &lora.budget), (&None, &None));
    assert_eq!((&lora.observation, &lora.orthogonality), (&None, &None));
    assert_eq!(adalora, spec(&valid(BASE, &[]), "run"));
    assert_eq!(random.importance.as_ref().expect("importance").name(), "random");
    assert_eq!(RunSpec { importance: adalora.importance.clone(), ..random.clone() }, *adalora);
}

#[test]
fn overrides_act_wherever_the_table_is() {
    let long = "[variants.long.train]\nsteps = 500\nbatch_size = 8\nclip = 2.0\nevaluate_every = 9\n\
                record_every = 9\n";
    let overrides = [
        "seeds=[7]",
        "train.steps=200",
        "train.threads = 2",
        "task.text.data=mrpc",
        "task.text.train_rows=\"no\"",
        "task.text.train_rows=50",
        "adapter.svd.init_r=10",
        "optimizer.weight_decay.head=0.5",
    ];
    let experiment = valid(&format!("{BASE}{VARIANTS}{long}"), &overrides);
    assert_eq!(experiment.seeds, [7]);
    for (name, spec) in &experiment.variants {
        assert_eq!((spec.train.steps, spec.train.threads), (Some(200), 2), "{name}");
        assert_eq!(spec.train.batch_size, if name == "long" { 8 } else { 32 });
        // No second choice beside the one that was made.
        assert_eq!(spec.adapter.rank(), Some(if name == "lora" { 8 } else { 10 }), "{name}");
        assert_eq!(spec.optimizer.weight_decay.head, 0.5);
    }
    let epochs = valid(BASE, &["train.epochs=3"]);
    assert_eq!((spec(&epochs, "run").train.epochs, spec(&epochs, "run").train.steps), (Some(3), None));
    let replaced = valid(BASE, &["importance={ uniform = {} }"]);
    assert_eq!(spec(&replaced, "run").importance.as_ref().expect("importance").name(), "uniform");
}

#[test]
fn the_source_is_the_file_without_overrides() {
    let document = Document::parse(Path::new("a.toml"), BASE.into(), &["seeds=[9]".into()]).expect("TOML");
    assert_eq!(document.source(), BASE);
}

#[test]
fn syntax_errors() {
    let cases = [
        "a = ",
        "[adapter.svd]\ninit_r = 3\ninit_r = 4\n",
        "x y",
        "seeds = [1, 2\n[train]\n",
        "description = \"A\n",
    ];
    insta::assert_snapshot!(cases.map(|text| problems(text, &[])).join("\n\n"));
}

#[test]
fn unknown_keys_are_shown_all_at_once() {
    let text = changed(&[
        ("[train]", "[trian]"),
        ("init_r = 12", "init_rank = 12"),
        ("beta2 = 0.85", "beta_2 = 0.85"),
        ("warm_up = 10", "warmup = 10"),
        ("regularizer = true", "regularizer = true\nentirely_else = 1"),
    ]);
    insta::assert_snapshot!(problems(&text, &[]));
}

#[test]
fn wrong_types() {
    let text = changed(&[
        ("\"A test\"", "3"),
        ("seeds = [1, 2]", "seeds = [1, -2, \"3\"]"),
        ("\"bert-tiny\"", "true"),
        ("[\"query\", \"value\"]", "\"query\""),
        ("alpha = 16", "alpha = \"16\""),
        ("target_r = 8", "target_r = 8.5"),
        ("t_init = 10", "t_init = -10"),
        ("t_final = 20", "t_final = 99999999999999999999"),
        ("\"before-step\"", "\"before\""),
        ("\"clipped\"", "{ clipped = true }"),
        ("regularizer = true", "regularizer = \"yes\""),
        ("lr = 1e-3", "lr = 2024-01-01\nbetas = [0.9]\nweight_decay = 0.1"),
        ("{ linear = { warm_up = 10 } }", "\"linear\""),
        ("clip = 1.0", "clip = [1.0]"),
    ]);
    insta::assert_snapshot!(problems(&text, &[]));
}

#[test]
fn missing_keys_and_tables() {
    let text = changed(&[
        ("seeds = [1, 2]\n", ""),
        ("[task.text]\ndata = \"cola\"\nmax_length = 64\n", ""),
        ("targets = [\"query\", \"value\"]\ninit_r = 12\n", ""),
        ("lr = 1e-3\n", ""),
        ("batch_size = 32\n", ""),
        ("[budget.cubic]\ntarget_r = 8\n", "[budget.cubic]\n"),
    ]);
    insta::assert_snapshot!(problems(&text, &[]));
}

#[test]
fn choices() {
    let sensitivity = "[importance.sensitivity-uncertainty]\nbeta1 = 0.85\nbeta2 = 0.85\n";
    let cases = [
        (sensitivity, "[importance.sensitivty]\n"),
        (sensitivity, "[importance.random]\n[importance.uniform]\n"),
        (sensitivity, "[importance]\n"),
        (sensitivity, "[importance.random]\n[importance.unifrom]\n"),
        (sensitivity, "[importance]\nrandom = 3\n"),
        ("[budget.cubic]\n", "[budget]\n"),
        ("linear = {", "cosine = {"),
    ];
    let mut shown = cases.map(|change| problems(&changed(&[change]), &[])).to_vec();
    shown.push(problems(&format!("importance = \"random\"\n{}", changed(&[(sensitivity, "")])), &[]));
    insta::assert_snapshot!(shown.join("\n\n"));
}

#[test]
fn rules_of_single_settings() {
    let text = changed(&[
        ("seeds = [1, 2]", "seeds = [1, 2, 1]"),
        ("\"bert-tiny\"", "\"\"\ndropout = 1.0\nclassifier_dropout = -0.1"),
        ("\"cola\"", "\" \""),
        ("max_length = 64", "max_length = 2\ntrain_rows = 0"),
        ("[\"query\", \"value\"]", "[]"),
        ("init_r = 12", "init_r = 0"),
        ("alpha = 16", "alpha = 0"),
        ("gamma = 0.1", "gamma = 0.0"),
        ("beta2 = 0.85", "beta2 = 1.0"),
        (
            "lr = 1e-3",
            "lr = -1.0\nbetas = [0.9, 1.0]\neps = 0.0\nweight_decay = { factors = -0.1, head = inf }",
        ),
        ("steps = 100", "epochs = 0"),
        ("batch_size = 32", "batch_size = 0\naccumulate = 0\nthreads = 0"),
        ("clip = 1.0", "clip = nan"),
        ("evaluate_every = 50", "evaluate_every = 0"),
        ("record_every = 10", "record_every = 0"),
    ]);
    let empty = changed(&[("[1, 2]", "[]"), ("\"query\"", "\"layer..query\"")]);
    insta::assert_snapshot!([problems(&text, &[]), problems(&empty, &[])].join("\n\n"));
}

#[test]
fn rules_of_the_budget() {
    let cases: [&[(&str, &str)]; 5] = [
        &[("target_r = 8", "target_r = 16"), ("t_final = 20", "t_final = 90\ndelta_t = 0")],
        &[("target_r = 8", "target_r = 0"), ("warm_up = 10", "warm_up = 100")],
        &[("t_final = 20", "t_final = 20\nmin_r = 9")],
        // Without steps only what needs none.
        &[
            ("steps = 100", "epochs = 1"),
            ("t_final = 20", "t_final = 9000"),
            ("target_r = 8", "target_r = 13"),
        ],
        &[("steps = 100", "steps = 0"), ("init_r = 12", "init_r = 0")],
    ];
    insta::assert_snapshot!(cases.map(|changes| problems(&changed(changes), &[])).join("\n\n"));
}

#[test]
fn rules_across_tables() {
    let importance = "[importance.sensitivity-uncertainty]\nbeta1 = 0.85\nbeta2 = 0.85\n";
    let budget = "[budget.cubic]\ntarget_r = 8\nt_init = 10\nt_final = 20\n";
    let observation =
        "[observation]\nweights = \"before-step\"\ngradient = \"clipped\"\nregularizer = true\n";
    let orthogonality = "[orthogonality.mean-of-norms]\ngamma = 0.1\n";
    let planted = "[task.planted]\nlayers = []\nrank = 0\nstrength = 0.0\noutputs = 0\nlength = 0\n\
                   train_rows = 0\ndev_rows = 0\nseed = 1\n";
    let random =
        "[model.random]\nlayers = 0\nhidden = 64\nheads = 5\nintermediate = 8\nvocabulary = 0\nseed = 1\n";
    let text = "[task.text]\ndata = \"cola\"\nmax_length = 64\n";
    let pretrained = "[model.pretrained]\ncheckpoint = \"bert-tiny\"\n";
    let svd = "[adapter.svd]\ntargets = [\"query\", \"value\"]\ninit_r = 12\n";
    let lora = "[adapter.lora]\ntargets = [\"query\"]\nr = 2\n";
    let cases: [&[(&str, &str)]; 11] = [
        &[(importance, "")],
        &[(budget, "")],
        &[(importance, ""), (budget, "")],
        &[(observation, "")],
        &[("regularizer = true\n", "")],
        &[(orthogonality, ""), ("clip = 1.0\n", "")],
        &[("steps = 100", "steps = 100\nepochs = 3")],
        &[("steps = 100\n", "")],
        &[
            (svd, lora),
            ("lr = 1e-3", "lr = 1e-3\nweight_decay.lambda = 0.01"),
            ("target_r = 8", "target_r = 1"),
        ],
        &[(text, planted)],
        &[(pretrained, random)],
    ];
    insta::assert_snapshot!(cases.map(|changes| problems(&changed(changes), &[])).join("\n\n"));
}

#[test]
fn problems_name_their_variants() {
    let broken = changed(&[("clip = 1.0", "clip = -1.0"), ("lr = 1e-3", "lr = 0.0")]);
    let replaced =
        "[variants.other.train]\nsteps = 0\nbatch_size = 1\nevaluate_every = 1\nrecord_every = 1\n";
    let unread = changed(&[("clip = 1.0", "klip = 1.0")]);
    let missing = changed(&[("[optimizer]\nlr = 1e-3\nschedule = { linear = { warm_up = 10 } }\n", "")]);
    let shown = [
        problems(&format!("{broken}{VARIANTS}{replaced}"), &[]),
        problems(&format!("{unread}{VARIANTS}{replaced}"), &[]),
        problems(&format!("{missing}{VARIANTS}[variants.other.optimizer]\nlr = 1\n"), &[]),
        problems(&format!("{BASE}[variants.a]\ndrop = [\"importance\"]\n[variants.b]\n"), &[]),
    ];
    insta::assert_snapshot!(shown.join("\n\n"));
}

#[test]
fn misplaced_variants() {
    let cases = [
        "[variants.\"A b\"]\n[variants._a]\n",
        "[variants.a]\nseeds = [3]\ntrian = {}\n",
        "[variants.a]\ndrop = [\"budgte\", \"model\"]\n[variants.b]\n",
        "[variants.a]\ndrop = \"budget\"\n[variants.b]\ndrop = [3]\n",
        "[variants.a]\ndrop = [\"train\"]\ntrain = 3\n[variants.b]\n",
        "[variants]\na = 3\n",
        "[[variants]]\n",
        "[variants.a.importance.random]\n[variants.b.importance.uniform]\n",
    ];
    let mut shown = cases.map(|variants| problems(&format!("{BASE}{variants}"), &[])).to_vec();
    let named = Document::parse(Path::new("experiments/My Test.toml"), BASE.into(), &[]).expect("TOML");
    shown.push(named.experiment().expect_err("a name that is no folder's").to_string());
    insta::assert_snapshot!(shown.join("\n\n"));
}

/// Both would take more memory than there is, without being long.
#[test]
fn what_multiplies_to_more_than_can_be_run_is_refused() {
    let axis = |key: &str| format!("{key} = [{}]\n", (1..=40).map(|n| format!("{n},")).collect::<String>());
    let sweep = format!(
        "{BASE}[sweep]\n{}",
        ["train.threads", "train.record_every", "train.batch_size"].map(axis).concat()
    );
    let error = problems(&sweep, &[]);
    assert!(
        error.contains("multiply to more than 4000 runs for each seed: make several experiments"),
        "{error}"
    );
    let long = format!("{BASE}# {}", "long ".repeat(20_000));
    let error = problems(&long, &[]);
    assert!(error.contains("an experiment has 65536 at most: split it"), "{error}");
}

/// What cannot be counted, takes memory for its names or threads before its first step.
#[test]
fn sizes_beyond_any_run() {
    let text = "[task.text]\ndata = \"cola\"\nmax_length = 64\n";
    let pretrained = "[model.pretrained]\ncheckpoint = \"bert-tiny\"\n";
    let most = "9223372036854775807";
    let random = "[model.random]\nlayers = 1000000000000\nhidden = MOST\nheads = 1\nintermediate = MOST\n\
                  vocabulary = MOST\nseed = 1\n";
    let planted = "[task.planted]\nlayers = [\"{0-9}{0-9}{0-9}{0-9}\"]\nrank = MOST\nstrength = 1\n\
                   outputs = MOST\nlength = MOST\ntrain_rows = MOST\ndev_rows = MOST\nseed = 1\n";
    let train = "epochs = MOST\naccumulate = MOST\nthreads = MOST";
    let text = changed(&[
        (text, &planted.replace("MOST", most)),
        (pretrained, &random.replace("MOST", most)),
        ("init_r = 12", &format!("init_r = {most}")),
        ("steps = 100", &train.replace("MOST", most)),
        ("batch_size = 32", &format!("batch_size = {most}")),
        // Never before the end.
        ("evaluate_every = 50", &format!("evaluate_every = {most}")),
    ]);
    let steps = changed(&[("steps = 100", &format!("steps = {most}"))]);
    insta::assert_snapshot!([problems(&text, &[]), problems(&steps, &[])].join("\n\n"));
}

#[test]
fn problems_of_overrides_say_so() {
    let of_types = [
        "train.epochz=1",
        "train.clip=strong",
        "optimizr.lr=1",
        "variants.lora.train.steps=3",
        "adapter.adapters.r=3",
        "optimizer.schedule.constant.warm_up=3",
        "train.threads.x=3",
        "importance.sensitivity-uncertainty=3",
        "model.pretrained.checkpoint=[",
        "train.accumulate=",
        "train.steps",
        "seeds=[1, -1]",
        "observation=raw",
    ];
    let of_rules = ["seeds=[1, 1]", "task.text.max_length=1", "budget.cubic.target_r=13", "train.steps=15"];
    let text = format!("{BASE}{VARIANTS}");
    let second = changed(&[("target_r = 8", "target_r = 0")]);
    let shown = [
        problems(&text, &of_types),
        problems(&text, &of_rules),
        problems(&second, &["orthogonality.sum-of-squares.gamma=1"]),
    ];
    insta::assert_snapshot!(shown.join("\n\n"));
}

#[test]
fn tabs_and_long_lines() {
    let names: Vec<_> = (0..40).map(|i| format!("\"layer.{i}\"")).collect();
    let text = changed(&[
        ("[\"query\", \"value\"]", &format!("[{}, 3, {}]", names.join(", "), names.join(", "))),
        ("alpha = 16", "\talpha\t= 0"),
        ("\"A test\"", "\"Prüfung\" # ü\r"),
        ("seeds = [1, 2]", "\"seeds\" = [1, 2, # ü\n2]"),
        ("lr = 1e-3", "betas = [\n  0.9,\n  1.0,\n]\nlr = 1e-3"),
    ]);
    let mended = text.replace(", 3, ", ", ");
    insta::assert_snapshot!([problems(&text, &[]), problems(&mended, &[])].join("\n\n"));
}

#[test]
fn missing_files_list_near_names() {
    let folder = tempfile::tempdir().expect("a folder");
    for name in ["cola-minilm.toml", "quickstart.toml", "notes.md"] {
        std::fs::write(folder.path().join(name), BASE).expect("a file");
    }
    std::fs::write(folder.path().join("bytes.toml"), [0xff, 0xfe]).expect("a file");
    let shown = ["quikstart.toml", "cola-minilm", "other.toml", "none/cola.toml", "bytes.toml"].map(|name| {
        let problems = Experiment::load(&folder.path().join(name), &[]).expect_err(name).to_string();
        problems.replace(&folder.path().display().to_string(), "experiments")
    });
    insta::assert_snapshot!(shown.join("\n\n"));
}

#[test]
fn problems_found_elsewhere_are_located() {
    let text = format!("{BASE}{VARIANTS}");
    let document =
        Document::parse(Path::new("experiments/test.toml"), text, &["train.threads=9".into()]).expect("TOML");
    let problem = |variant: &str, key: &str| Problem {
        variant: (!variant.is_empty()).then(|| variant.into()),
        key: key.into(),
        message: format!("what is said of {key}"),
    };
    let problems = document.problems([
        problem("adalora", "adapter.svd.targets"),
        problem("random", "adapter.svd.targets"),
        problem("lora", "adapter.lora.targets"),
        problem("lora", "train.steps"),
        problem("adalora", "train.steps"),
        problem("random", "train.steps"),
        problem("", "train.threads"),
        problem("", "seeds"),
        problem("adalora", "optimizer.schedule"),
        problem("lora", "budget.cubic.t_final"),
    ]);
    insta::assert_snapshot!(problems);
}
