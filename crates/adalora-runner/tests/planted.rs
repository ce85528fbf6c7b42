//! The method itself: ranks must go where the truth was planted, and without importance they must not.
//!
//! Two teachers differ from the same frozen encoder in different layers. A preference for certain layers, whatever
//! the teacher, would find one of them at most.

mod workspace;

use workspace::{Workspace, assert_code};

const ONE: [&str; 2] = ["layer.0.intermediate.dense", "layer.1.attention.self.value"];
const OTHER: [&str; 2] = ["layer.0.attention.self.value", "layer.1.attention.output.dense"];

/// Rank 4 in two of twelve layers; 48 triplets shrink to 12.
fn experiment(layers: [&str; 2]) -> String {
    format!(
        r#"
description = "A teacher with known increments"
seeds = [1, 2, 3]

[model.random]
layers = 2
hidden = 32
heads = 4
intermediate = 64
vocabulary = 100
seed = 7

[task.planted]
layers = {layers:?}
rank = 4
strength = 1.5
outputs = 16
length = 4
train_rows = 8192
dev_rows = 256
seed = 11

[adapter.svd]
targets = ["query", "key", "value", "dense"]
init_r = 4
alpha = 16

[orthogonality.mean-of-norms]
gamma = 0.1

[importance.sensitivity-uncertainty]

[budget.cubic]
target_r = 1
t_init = 100
t_final = 200
delta_t = 5

[observation]
weights = "after-step"
gradient = "clipped"
regularizer = true

[optimizer]
lr = 1e-2
schedule.linear.warm_up = 50

[train]
steps = 1000
batch_size = 64
clip = 1.0
evaluate_every = 500
record_every = 100

[variants.adalora]
"#
    )
}

/// Final rank of each adapter, by path.
fn ranks(workspace: &Workspace, variant: &str, seed: u64) -> Vec<(String, usize)> {
    let path = workspace.path(&format!("runs/planted/{variant}/seed-{seed}/ranks.csv"));
    let text = std::fs::read_to_string(path).unwrap();
    let row = |line: &str| line.split(',').skip(1).map(str::to_owned).collect::<Vec<_>>();
    let (paths, last) = (row(text.lines().next().unwrap()), row(text.lines().last().unwrap()));
    paths.into_iter().zip(last.iter().map(|rank| rank.parse().unwrap())).collect()
}

/// Triplets that were found of the eight that were planted in `layers`.
fn found(ranks: &[(String, usize)], layers: [&str; 2]) -> usize {
    let own = ranks.iter().filter(|(path, _)| layers.iter().any(|layer| path.ends_with(layer)));
    own.map(|(_, rank)| rank.min(&4)).sum()
}

#[test]
fn ranks_go_where_the_truth_is() {
    let random = "[variants.random.importance.random]";
    for (planted, elsewhere, control) in [(ONE, OTHER, random), (OTHER, ONE, "")] {
        let workspace = Workspace::new("planted", &(experiment(planted) + control));
        assert_code(&workspace.adalora(&["run", "planted"]), 0);
        for seed in 1..=3 {
            let adalora = ranks(&workspace, "adalora", seed);
            assert!(found(&adalora, planted) >= 6, "seed {seed}: {planted:?} not found: {adalora:?}");
            assert!(
                found(&adalora, elsewhere) <= 3,
                "seed {seed}: {elsewhere:?} is not the truth: {adalora:?}"
            );
        }
        if control.is_empty() {
            continue;
        }
        // A quarter of all triplets lives, so that two of the eight are found by chance.
        let random: usize = (1..=3).map(|seed| found(&ranks(&workspace, "random", seed), planted)).sum();
        assert!(random <= 12, "random importance found {random} of 24 planted triplets over three seeds");
    }
}
