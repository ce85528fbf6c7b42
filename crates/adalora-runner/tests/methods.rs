//! Every method of the paper on one small planted task: it learns, it does so again bit for bit, and what it saves is what
//! it has learnt.

mod workspace;

use std::fs;

use adalora::{Arena, Layout};
use adalora_adapter::store;
use adalora_models::{Checkpoint, Encoder, Head, Input, Loss};
use adalora_runner::experiment::{Experiment, RunSpec};
use adalora_runner::plan::Plan;
use adalora_runner::trainer::Trainer;
use adalora_runner::worker;
use adalora_tasks::{Catalogue, Dataset, Labels};
use serde_json::Value;
use tch::{Device, Tensor};
use workspace::{Workspace, assert_code, text};

/// It passes `check` as it is; here one seed of it is run, for half the steps.
const EXPERIMENT: &str = include_str!("../../../experiments/methods.toml");
const SEED: u64 = 1;
const SHORT: [&str; 4] =
    ["seeds=[1]", "train.steps=150", "budget.cubic.t_init=20", "budget.cubic.t_final=60"];

/// A run that was asked for.
struct Run {
    spec: RunSpec,
    checkpoint: Checkpoint,
    dataset: Dataset,
    plan: Plan,
}

impl Run {
    /// By two trainers, the second of which goes on half-way, between two allocations if there are any.
    fn trained(&self) -> Trainer<'_> {
        let Self { spec, plan, dataset, checkpoint } = self;
        let start = || Trainer::new(spec, plan, dataset, checkpoint, SEED, Device::Cpu).unwrap();
        let (mut first, mut trainer) = (start(), start());
        let half = plan.total_steps / 2 + 2;
        (0..half).for_each(|_| first.step().unwrap());
        trainer.restore(first.state().unwrap()).unwrap();
        (half..plan.total_steps).for_each(|_| trainer.step().unwrap());
        trainer.check_budget().unwrap();
        trainer
    }

    /// A start with other ranks.
    fn arena(&self, ranks: &[usize]) -> Arena {
        let sites = self.plan.layout.sites().iter().cloned().zip(ranks);
        let sites = sites.map(|(site, &rank)| adalora::Site { rank, ..site }).collect();
        let method = self.spec.adapter.tuning().start(&self.checkpoint, SEED);
        let extras = method.into_iter().chain(self.head()).collect();
        Arena::new(Layout::new(self.plan.layout.form(), sites), extras, Device::Cpu, SEED)
    }

    fn head(&self) -> Vec<adalora::Extra> {
        self.plan.purpose.start(&self.checkpoint, SEED).extras
    }

    /// Loss on the dev set of a model that is put together without a trainer.
    fn dev_loss(&self, arena: &Arena) -> f64 {
        let _guard = tch::no_grad_guard();
        let (adapter, ranks) = (&self.spec.adapter, self.plan.layout.ranks());
        let mut encoder = Encoder::tuned(&self.checkpoint, adapter.tuning(), arena, None, Device::Cpu);
        encoder.attach(&self.plan.places, arena.scaled_adapters(&adapter.scales(&ranks, &ranks)));
        let examples = &self.dataset.dev[0].examples;
        let ids: Vec<i64> = examples.iter().flat_map(|one| &one.ids).map(|&id| i64::from(id)).collect();
        let ids = Tensor::from_slice(&ids).view([examples.len() as i64, -1]);
        let input = Input { type_ids: ids.zeros_like(), ids, mask: None };
        let logits =
            Head::new(self.checkpoint.config(), arena, 0.0).forward(&encoder.forward(&input, None), None);
        let Labels::Scores { width, values } = Labels::of(examples.iter()) else { panic!("scores") };
        let loss = Loss::Scores(Tensor::from_slice(&values).view([-1, width as i64])).sum(&logits);
        loss.double_value(&[]) / examples.len() as f64
    }
}

#[test]
fn every_method_learns_repeats_itself_and_is_loaded_again() {
    let workspace = Workspace::new("methods", EXPERIMENT);
    let set = SHORT.iter().flat_map(|own| ["--set", own]);
    let output = workspace.adalora(&["run", "methods"].into_iter().chain(set).collect::<Vec<_>>());
    assert_code(&output, 0);

    tch::set_num_threads(1);
    let path = workspace.path("experiments/methods.toml");
    let (_, experiment) =
        Experiment::load(&path, &SHORT.map(String::from)).unwrap_or_else(|problems| panic!("{problems}"));
    let catalogue = Catalogue::open(&workspace.path("datasets"), &workspace.path("datasets")).unwrap();
    assert_eq!(experiment.variants.len(), 17);
    for (name, spec) in experiment.variants {
        let (checkpoint, dataset, plan) = worker::load(&spec, &catalogue).unwrap();
        let run = Run { spec, checkpoint, dataset, plan };
        let folder = workspace.path(&format!("runs/methods/{name}/seed-{SEED}"));
        let result: Value =
            serde_json::from_str(&fs::read_to_string(folder.join("result.json")).unwrap()).unwrap();

        let mut trainer = run.trained();
        let (own, pattern) = trainer.adapter().unwrap();
        let loaded = run.arena(&pattern.ranks());
        let start = run.dev_loss(&loaded);
        store::load(&folder.join("adapter"), &loaded, run.plan.config.prefix()).unwrap();
        assert_eq!(loaded.param(), own.param(), "{name}: another process, without a break, the same bits");

        let loss = run.dev_loss(&loaded);
        let evaluated = trainer.evaluate(0.0).unwrap().0.loss;
        assert!((loss - evaluated).abs() < 1e-5 * evaluated, "{name}: {loss} and {evaluated}");
        assert!(loss < 0.8 * start, "{name}: {loss} from {start}");
        // The head as it was trained, all else as at the start.
        let head_alone = run.arena(&pattern.ranks());
        for extra in run.head() {
            tch::no_grad(|| head_alone.extra(&extra.name).copy_(&loaded.extra(&extra.name)));
        }
        let without = run.dev_loss(&head_alone);
        assert!(loss < 0.9 * without, "{name}: {loss}, and {without} by the head alone");

        let parameters = &result["parameters"];
        let head: usize = run.head().iter().map(|extra| extra.start.numel()).sum();
        assert_eq!(parameters["head"], head, "{name}");
        assert_eq!(parameters["adapter_final"], own.len() - head, "{name}");
        let peak = run.arena(&run.plan.layout.ranks()).len() - head;
        assert_eq!(parameters["adapter_peak"], peak, "{name}");
        assert_eq!(result["triplets"].is_null(), run.spec.budget.is_none(), "{name}");
    }
}

/// What a method cannot do is said of all methods at once, with what to do instead.
#[test]
fn what_a_method_cannot_do() {
    let wrong = r#"
[variants.wrong-full]
adapter.full = {}
train = { steps = 300, batch_size = 32, clip = 1.0, evaluate_every = 100, record_every = 20, precision = "bf16" }
optimizer = { lr = 1e-3, weight_decay = { factors = 0.1, lambda = 0.1, encoder = 0.1 } }

[variants.wrong-bitfit]
drop = ["orthogonality"]
adapter.bitfit = {}
observation = { weights = "after-step", gradient = "clipped" }
optimizer = { lr = 1e-3, weight_decay = { encoder = 0.1 } }

[variants.wrong-houlsby]
drop = ["importance", "budget", "observation"]
adapter.houlsby.width = 0

[variants.wrong-lora]
adapter.lora = { targets = ["query"], r = 1, alpha = 1 }
budget.cubic = { target_r = 1, t_init = 40, t_final = 120 }
importance.magnitude = {}
orthogonality.mean-of-cosines.gamma = 0.1
"#;
    let workspace = Workspace::new("methods", &format!("{EXPERIMENT}{wrong}"));
    let output = workspace.adalora(&["check", "methods"]);
    assert_code(&output, 2);
    insta::assert_snapshot!("what_a_method_cannot_do", text(&output.stderr));

    let too_wide = EXPERIMENT.replace("adapter.houlsby.width = 4", "adapter.houlsby.width = 32");
    let workspace = Workspace::new("methods", &too_wide);
    let output = workspace.adalora(&["check", "methods"]);
    assert_code(&output, 2);
    let message = "adapter.houlsby.width (32) must be below the 32 of the hidden states";
    assert!(text(&output.stderr).contains(message), "{}", text(&output.stderr));
}

/// `check` counts by one rule for all methods.
#[test]
fn parameters_of_all_methods() {
    let workspace = Workspace::new("methods", EXPERIMENT);
    let output = workspace.adalora(&["check", "methods"]);
    assert_code(&output, 0);
    let shown = text(&output.stdout);
    let lines = shown.lines().filter(|line| {
        !line.starts_with("  ") || line.starts_with("  parameters") || line.starts_with("  trained")
    });
    insta::assert_snapshot!("parameters_of_all_methods", lines.collect::<Vec<_>>().join("\n"));
}
