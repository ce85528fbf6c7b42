//! Whole training steps, with everything switched on: sentences of many lengths, dropout, a budget, a regularizer.

use adalora::ImportanceSpec;
use adalora_models::{Checkpoint, ModelConfig, Purpose};
use adalora_runner::experiment::RunSpec;
use adalora_runner::plan::{DataSize, Plan};
use adalora_runner::trainer::{State, Trainer};
use adalora_tasks::{Catalogue, Dataset, DevSet, Evaluation, Example, Label, Target};
use tch::{Device, Tensor};

const SETTINGS: &str = r#"
[model.random]
layers = 2
hidden = 24
heads = 3
intermediate = 40
vocabulary = 50
seed = 7

[task.planted]
layers = ["query"]
rank = 1
strength = 1.0
outputs = 3
length = 16
train_rows = 1
dev_rows = 1
seed = 1

[adapter.svd]
targets = ["query", "key", "value", "dense"]
init_r = 4
alpha = 12

[orthogonality.mean-of-norms]
gamma = 0.1

[importance.sensitivity-uncertainty]

[budget.cubic]
target_r = 1
t_init = 3
t_final = 12
delta_t = 2

[observation]
weights = "after-step"
gradient = "clipped"
regularizer = true

[optimizer]
lr = 1e-2

[optimizer.weight_decay]
factors = 0.01
lambda = 0.02
head = 0.03

[train]
steps = 24
batch_size = 8
clip = 1.0
evaluate_every = 6
record_every = 3
"#;

/// What a run was asked, as it was trained.
struct Setting {
    spec: RunSpec,
    plan: Plan,
    dataset: Dataset,
}

impl Setting {
    /// The settings with pieces of text replaced.
    fn new(changes: &[(&str, &str)]) -> Self {
        let text = changes.iter().fold(SETTINGS.to_owned(), |text, (old, new)| {
            assert!(text.contains(old), "{old}");
            text.replace(old, new)
        });
        let spec: RunSpec = toml::from_str(&text).unwrap();
        let examples = |rows: usize| {
            (0..rows).map(|row| {
                let ids: Vec<_> =
                    (0..2 + row * 7 % 13).map(|column| (2 + (row * 5 + column * 3) % 48) as u32).collect();
                Example { type_ids: vec![0; ids.len()], label: Label::Class((row + ids.len()) % 3), ids }
            })
        };
        let dataset = Dataset {
            name: "lengths".into(),
            // 45 is no multiple of anything here: the last batch is short, and so is the last window of batches.
            train: examples(45).collect(),
            train_available: 45,
            dev: vec![DevSet::only(examples(30).collect::<Vec<_>>())],
            target: Target::Classes(["a", "b", "c"].map(String::from).to_vec()),
            evaluation: vec![Evaluation::Accuracy],
            notes: Vec::new(),
            pad_id: 0,
            files: Vec::new(),
        };
        let empty = tempfile::tempdir().unwrap();
        let catalogue = Catalogue::open(empty.path(), empty.path()).unwrap();
        let data = DataSize { train_rows: dataset.train.len(), purpose: Purpose::Classify { outputs: 3 } };
        let mut plan = Plan::new(&spec, &catalogue, &data).unwrap();
        set_dropout(&mut plan, 0.1);
        Self { spec, plan, dataset }
    }

    fn trainer(&self) -> Trainer<'_> {
        let checkpoint = Checkpoint::random(self.plan.config.clone(), 3, 7);
        Trainer::new(&self.spec, &self.plan, &self.dataset, &checkpoint, 5, Device::Cpu).unwrap()
    }
}

fn set_dropout(plan: &mut Plan, p: f64) {
    let ModelConfig::Bert(config) = &mut plan.config else { panic!("a random encoder is a BERT") };
    config.hidden_dropout_prob = p;
    config.attention_probs_dropout_prob = p;
}

/// Loss of each step and dev loss at the end, and the adapter without dead triplets.
fn train(setting: &Setting) -> (Vec<f64>, Tensor, Vec<usize>) {
    let mut trainer = setting.trainer();
    let mut losses: Vec<_> = (0..setting.plan.total_steps)
        .map(|_| {
            trainer.step().unwrap();
            trainer.record(0.0).unwrap().loss
        })
        .collect();
    trainer.check_budget().unwrap();
    losses.push(trainer.evaluate(0.0).unwrap().0.loss);
    let (arena, pattern) = trainer.adapter().unwrap();
    (losses, arena.param().shallow_clone(), pattern.ranks())
}

fn largest_difference(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

/// Without regularizer and clipping, in which dead triplets of a masked run still take part.
#[test]
fn a_compact_arena_trains_as_a_masked_one() {
    assert_compact_trains_as_masked(&[]);
}

#[test]
fn pruned_lora_trains_alike_compact_and_masked() {
    assert_compact_trains_as_masked(&[("[adapter.svd]", "[adapter.lora]"), ("init_r = 4", "r = 4")]);
}

fn assert_compact_trains_as_masked(changes: &[(&str, &str)]) {
    let plain = [
        ("[orthogonality.mean-of-norms]\ngamma = 0.1\n", ""),
        ("regularizer = true\n", ""),
        ("clip = 1.0\n", ""),
    ];
    let plain = [&plain[..], changes].concat();
    let compact = Setting::new(&plain);
    let masked = Setting::new(&[&plain[..], &[("[train]", "[train]\ncompact = false")]].concat());
    let ((losses, param, ranks), (masked_losses, masked_param, masked_ranks)) =
        (train(&compact), train(&masked));
    assert_eq!(ranks, masked_ranks);
    assert!(ranks.contains(&0) && ranks.iter().any(|&rank| rank > 1), "{ranks:?}");
    let difference = largest_difference(&losses, &masked_losses);
    assert!(difference < 1e-5, "losses differ by {difference}");
    let difference = (param - masked_param).abs().max().double_value(&[]);
    assert!(difference < 1e-4, "parameters differ by {difference}");
}

/// With a scale that changes at every allocation, and moments that start again.
#[test]
fn a_compact_arena_trains_as_a_masked_one_under_every_policy() {
    let plain = [
        ("[orthogonality.mean-of-norms]\ngamma = 0.1\n", ""),
        ("regularizer = true\n", ""),
        ("clip = 1.0\n", ""),
    ];
    let usual = train(&Setting::new(&plain)).0;
    for policy in [
        ("alpha = 12", "alpha = 12\nscale = \"current-rank\""),
        ("alpha = 12", "alpha = 6\nscale = \"rslora\""),
        ("alpha = 12", "alpha = 3\nscale = \"constant\""),
        ("lr = 1e-2", "lr = 1e-2\nmasked_moments = \"zero\""),
    ] {
        let compact = Setting::new(&[&plain[..], &[policy]].concat());
        let masked = [&plain[..], &[policy, ("[train]", "[train]\ncompact = false")]].concat();
        let ((losses, param, ranks), (masked_losses, masked_param, masked_ranks)) =
            (train(&compact), train(&Setting::new(&masked)));
        assert_eq!(ranks, masked_ranks, "{policy:?}");
        assert!(ranks.contains(&0) && ranks.iter().any(|&rank| rank > 1), "{ranks:?}");
        let difference = largest_difference(&losses, &masked_losses);
        assert!(difference < 1e-5, "{policy:?}: losses differ by {difference}");
        let difference = (param - masked_param).abs().max().double_value(&[]);
        assert!(difference < 1e-4, "{policy:?}: parameters differ by {difference}");
        // 12 / 4, 6 / sqrt(4) and 3 are one scale, which the first policy has too until ranks change.
        let same = policy.1.contains("rslora") || policy.1.contains("constant");
        assert_eq!(largest_difference(&losses, &usual) == 0.0, same, "{policy:?}");
    }
}

#[test]
fn dead_triplets_of_a_masked_run_still_count_in_regularizer_and_norm() {
    let (compact, masked) = (Setting::new(&[]), Setting::new(&[("[train]", "[train]\ncompact = false")]));
    let ((losses, ..), (masked_losses, ..)) = (train(&compact), train(&masked));
    let last = compact.plan.schedule.as_ref().unwrap().last_allocation();
    assert_eq!(losses[..=last], masked_losses[..=last]);
    assert!(largest_difference(&losses, &masked_losses) > 1e-6);
}

#[test]
fn accumulated_batches_train_as_one_large_batch() {
    // One window holds all examples, in batches of one order: 8 times 3 and 24 times 1 see the same sentences together
    // only if the batches of an epoch are not shuffled; with one batch in an epoch there is nothing to shuffle.
    let large = Setting::new(&[("batch_size = 8", "batch_size = 45"), ("steps = 24", "steps = 20")]);
    let small =
        Setting::new(&[("batch_size = 8", "batch_size = 8\naccumulate = 6"), ("steps = 24", "steps = 20")]);
    assert_eq!((large.plan.steps_per_epoch, small.plan.steps_per_epoch), (1, 1));
    let no_dropout = |mut setting: Setting| {
        set_dropout(&mut setting.plan, 0.0);
        setting
    };
    let ((losses, param, ranks), (small_losses, small_param, small_ranks)) =
        (train(&no_dropout(large)), train(&no_dropout(small)));
    assert_eq!(ranks, small_ranks);
    let difference = largest_difference(&losses, &small_losses);
    assert!(difference < 1e-4, "losses differ by {difference}");
    let difference = (param - small_param).abs().max().double_value(&[]);
    assert!(difference < 1e-3, "parameters differ by {difference}");
}

#[test]
fn the_last_step_of_an_epoch_takes_what_is_left() {
    let setting =
        Setting::new(&[("batch_size = 8", "batch_size = 8\naccumulate = 4"), ("steps = 24", "steps = 20")]);
    // Six batches, the last of five examples: four of them, then two.
    assert_eq!(setting.plan.steps_per_epoch, 2);
    let (losses, ..) = train(&setting);
    assert!(losses.iter().all(|loss| loss.is_finite()));
}

#[test]
fn a_run_is_the_same_bit_for_bit_when_repeated() {
    let setting = Setting::new(&[]);
    assert_eq!(train(&setting), train(&setting));
}

/// What a trainer does until the end: records, one for each five steps, parameters with dead triplets, and ranks. Gives
/// the state after each step to `keep`.
fn go_on(
    mut trainer: Trainer,
    total: usize,
    mut keep: impl FnMut(State),
) -> (Vec<String>, Tensor, Vec<usize>) {
    let mut records = Vec::new();
    while trainer.finished() < total {
        trainer.step().unwrap();
        if trainer.finished().is_multiple_of(5) {
            records.push(format!(
                "{:?} {:?}",
                trainer.record(0.0).unwrap(),
                trainer.evaluate(0.0).unwrap().0
            ));
        }
        keep(trainer.state().unwrap());
    }
    let param = trainer.state().unwrap().tensors["param"].copy();
    (records, param, trainer.ranks().unwrap())
}

/// Goes on from every step of `steps` in a trainer of its own, and comes to the same end as without a stop.
fn assert_resumes(setting: &Setting, steps: impl Fn(usize) -> bool) {
    let total = setting.plan.total_steps;
    let mut states = Vec::new();
    let whole = go_on(setting.trainer(), total, |state| states.push(state));
    for state in states.into_iter().filter(|state| steps(state.step)) {
        let step = state.step;
        let mut trainer = setting.trainer();
        trainer.restore(state).unwrap();
        assert_eq!(trainer.finished(), step);
        let (records, param, ranks) = go_on(trainer, total, drop);
        assert_eq!(records, whole.0[step / 5..], "from step {step}");
        assert_eq!((param, ranks), (whole.1.shallow_clone(), whole.2.clone()), "from step {step}");
    }
}

#[test]
fn a_run_goes_on_from_any_step_bit_for_bit() {
    let setting = Setting::new(&[]);
    assert_resumes(&setting, |_| true);
}

#[test]
fn masked_accumulated_and_in_bf16_too() {
    let train = "[train]\ncompact = false\naccumulate = 4\nprecision = \"bf16\"";
    assert_resumes(&Setting::new(&[("[train]", train)]), |step| step % 3 == 1);
}

#[test]
fn with_every_metric_too() {
    for metric in ImportanceSpec::all() {
        let mut setting = Setting::new(&[]);
        setting.spec.importance = Some(metric);
        assert_resumes(&setting, |step| step == 8);
    }
}

#[test]
fn under_every_policy_too() {
    let policies = [
        ("alpha = 12", "alpha = 12\nscale = \"current-rank\""),
        ("lr = 1e-2", "lr = 1e-2\nmasked_moments = \"zero\""),
        ("target_r = 1", "target_parameters = 700"),
    ];
    assert_resumes(&Setting::new(&policies), |step| step % 4 == 3 || step == 12);
    let masked = [&policies[..], &[("[train]", "[train]\ncompact = false")]].concat();
    assert_resumes(&Setting::new(&masked), |step| [5, 8, 14].contains(&step));
}

#[test]
fn what_a_state_holds_is_needed() {
    let setting = Setting::new(&[]);
    let total = setting.plan.total_steps;
    let mut states = Vec::new();
    let whole = go_on(setting.trainer(), total, |state| states.push(state));
    let state = states.swap_remove(7);
    let names: Vec<_> = state.tensors.keys().cloned().collect();
    assert_eq!(
        names,
        [
            "exp_avg",
            "exp_avg_sq",
            "losses",
            "masked",
            "metric.importance",
            "metric.sensitivity",
            "metric.uncertainty",
            "param"
        ]
    );
    for name in names {
        // The score is made anew by the next observation, and the mask by the next allocation.
        if ["metric.importance", "masked"].contains(&name.as_str()) {
            continue;
        }
        let tensors = state.tensors.iter().map(|(name, tensor)| (name.clone(), tensor.copy()));
        let spoilt = State { step: state.step, tensors: tensors.collect() };
        let _ = spoilt.tensors[&name].shallow_clone().zero_();
        let mut trainer = setting.trainer();
        trainer.restore(spoilt).unwrap();
        let (records, param, _) = go_on(trainer, total, drop);
        assert!(records != whole.0[1..] || param != whole.1, "without {name} nothing changes");
    }
}

#[test]
fn a_state_of_another_run_is_refused() {
    let setting = Setting::new(&[]);
    let mut states = Vec::new();
    let _ = go_on(setting.trainer(), setting.plan.total_steps, |state| states.push(state));
    let other = Setting::new(&[("init_r = 4", "init_r = 3")]);
    for (step, name) in [(24, "compacted"), (5, "param")] {
        let error = other.trainer().restore(states.swap_remove(step - 1)).unwrap_err().to_string();
        assert!(error.contains(&format!("as `{name}`, where the run has ")), "{error}");
    }
}

#[test]
fn a_bf16_encoder_trains_nearly_as_an_f32_one_and_parameters_stay_f32() {
    let bf16 = Setting::new(&[("[train]", "[train]\nprecision = \"bf16\"")]);
    let ((losses, param, _), (f32_losses, ..)) = (train(&bf16), train(&Setting::new(&[])));
    assert_eq!(param.kind(), tch::Kind::Float);
    let difference = largest_difference(&losses, &f32_losses);
    assert!(difference > 0.0 && difference < 0.1, "losses differ by {difference}");
}

#[test]
fn auto_precision_is_settled_before_the_first_step() {
    let auto = Setting::new(&[("[train]", "[train]\nprecision = \"auto\"")]);
    let settled = auto.trainer().precision();
    let named = match settled {
        adalora_models::Settled::F32 => "f32",
        adalora_models::Settled::Bf16 => "bf16",
    };
    let same = Setting::new(&[("[train]", &format!("[train]\nprecision = {named:?}"))]);
    assert_eq!(same.trainer().precision(), settled);
}
