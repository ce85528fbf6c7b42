//! Whole training steps of random encoders, in each phase of the budget, at the shapes of the comparison with PEFT.

use std::path::Path;

use adalora_models::{Checkpoint, DebertaConfig, ModelConfig, Purpose};
use adalora_runner::experiment::RunSpec;
use adalora_runner::plan::{DataSize, Plan};
use adalora_runner::trainer::Trainer;
use adalora_tasks::{Catalogue, Dataset, DevSet, Evaluation, Example, Label, Target};
use tch::Device;

/// Size of an encoder and of its batches.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Name in the tables.
    pub name: &'static str,
    /// Whether it is a DeBERTaV3; otherwise it is a BERT.
    pub deberta: bool,
    /// Blocks.
    pub layers: usize,
    /// Width of the hidden states.
    pub hidden: usize,
    /// Attention heads.
    pub heads: usize,
    /// Width of the feed-forward part.
    pub intermediate: usize,
    /// Sequences in a batch.
    pub rows: usize,
    /// Tokens in a sequence.
    pub width: usize,
}

/// MiniLM-L6 (Wang et al., 2020), 16 sequences of 128 tokens.
pub const MINILM: Shape = Shape {
    name: "MiniLM 16x128",
    deberta: false,
    layers: 6,
    hidden: 384,
    heads: 12,
    intermediate: 1536,
    rows: 16,
    width: 128,
};

/// DeBERTaV3-small (He et al., 2021), 16 sequences of 64 tokens. Its vocabulary is cut down to BERT's: the embedding is
/// frozen, and only looked up.
pub const DEBERTA_SMALL: Shape = Shape {
    name: "DeBERTa-small 16x64",
    deberta: true,
    layers: 6,
    hidden: 768,
    heads: 12,
    intermediate: 3072,
    rows: 16,
    width: 64,
};

/// What is trained, and in which phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variant {
    /// LoRA of this rank.
    Lora(usize),
    /// AdaLoRA from rank 12 to 8, before the budget moves.
    WarmUp,
    /// The same, allocating at every step.
    Allocate,
    /// The same, once the pattern is final.
    Hold,
}

impl Variant {
    /// All variants of the comparison with PEFT.
    pub const ALL: [Self; 5] = [Self::Lora(8), Self::Lora(12), Self::WarmUp, Self::Allocate, Self::Hold];

    /// Name in the tables.
    pub fn name(self) -> String {
        match self {
            Self::Lora(r) => format!("lora{r}"),
            Self::WarmUp => "ada_warm".into(),
            Self::Allocate => "ada_alloc".into(),
            Self::Hold => "ada_final".into(),
        }
    }

    fn settings(self, shape: &Shape) -> String {
        let targets = r#"targets = ["query", "key", "value", "attention.output.dense", "intermediate.dense", "layer.*.output.dense"]"#;
        let adapter = match self {
            Self::Lora(r) => format!("[adapter.lora]\n{targets}\nr = {r}\nalpha = 16\n"),
            _ => format!("[adapter.svd]\n{targets}\ninit_r = 12\nalpha = 16\n"),
        };
        // Three phases of one million steps: none ends while it is timed.
        let phases = match self {
            Self::Lora(_) => None,
            Self::WarmUp => Some((1_000_000, 1_000_000)),
            Self::Allocate => Some((0, 1_000_000)),
            Self::Hold => Some((0, 2_999_998)),
        };
        let budget = phases.map_or_else(String::new, |(t_init, t_final)| {
            format!(
                "[orthogonality.mean-of-norms]\ngamma = 0.1\n[importance.sensitivity-uncertainty]\n\
                 [budget.cubic]\ntarget_r = 8\nt_init = {t_init}\nt_final = {t_final}\ndelta_t = 1\n\
                 [observation]\nweights = \"after-step\"\ngradient = \"clipped\"\nregularizer = true\n"
            )
        });
        let Shape { layers, hidden, heads, intermediate, rows, .. } = shape;
        format!(
            "[model.random]\nlayers = {layers}\nhidden = {hidden}\nheads = {heads}\nintermediate = {intermediate}\n\
             vocabulary = 30522\nseed = 1\n\
             [task.planted]\nlayers = [\"query\"]\nrank = 1\nstrength = 0.1\noutputs = 2\nlength = 512\n\
             train_rows = 1\ndev_rows = 1\nseed = 1\n\
             {adapter}{budget}[optimizer]\nlr = 1e-4\nweight_decay = {{ factors = 0.01, lambda = 0.01, head = 0.01 }}\n\
             [train]\nsteps = 3000000\nbatch_size = {rows}\nclip = 1.0\nevaluate_every = 3000000\nrecord_every = 3000000\n"
        )
    }
}

/// A model ready to train on random tokens. What it borrows lives as long as the program.
pub fn trainer(shape: &Shape, variant: Variant, dropout: f64) -> Trainer<'static> {
    let spec: RunSpec =
        toml::from_str(&variant.settings(shape)).expect("the settings are those of an experiment");
    let spec = Box::leak(Box::new(spec));
    let examples = |rows: usize| -> Vec<Example> {
        let token = |row: usize, column: usize| 5 + ((row * 7919 + column * 104_729) % 30_000) as u32;
        let ids = |row| (0..shape.width).map(|column| token(row, column)).collect();
        let example =
            |row| Example { ids: ids(row), type_ids: vec![0; shape.width], label: Label::Class(row % 2) };
        (0..rows).map(example).collect()
    };
    let dataset = Box::leak(Box::new(Dataset {
        name: "random tokens".into(),
        train: examples(64 * shape.rows).into(),
        train_available: 64 * shape.rows,
        dev: vec![DevSet::only(examples(shape.rows))],
        target: Target::Classes(vec!["0".into(), "1".into()]),
        evaluation: vec![Evaluation::Accuracy],
        notes: Vec::new(),
        pad_id: 0,
        files: Vec::new(),
    }));
    let data = DataSize { train_rows: dataset.train.len(), purpose: Purpose::Classify { outputs: 2 } };
    let mut plan = Plan::new(
        spec,
        &Catalogue::open(Path::new("datasets"), Path::new(".materials"))
            .expect("the manifests are well-formed"),
        &data,
    )
    .expect("the settings keep every rule");
    // Both families have the same six layers in a block, in the same order: the plan's layout is right for either.
    let ModelConfig::Bert(bert) = &mut plan.config else { unreachable!("a random encoder is a BERT") };
    bert.hidden_dropout_prob = dropout;
    bert.attention_probs_dropout_prob = dropout;
    if shape.deberta {
        plan.config = ModelConfig::Deberta(deberta(shape, dropout));
    }
    let plan = Box::leak(Box::new(plan));
    let checkpoint = Checkpoint::random(plan.config.clone(), 2, 1);
    Trainer::new(spec, plan, dataset, &checkpoint, 1, Device::Cpu).expect("a random checkpoint is complete")
}

fn deberta(shape: &Shape, dropout: f64) -> DebertaConfig {
    serde_json::from_value(serde_json::json!({
        "vocab_size": 30522,
        "num_hidden_layers": shape.layers,
        "hidden_size": shape.hidden,
        "num_attention_heads": shape.heads,
        "intermediate_size": shape.intermediate,
        "max_position_embeddings": 512,
        "position_buckets": 256,
        "layer_norm_eps": 1e-7,
        "hidden_act": "gelu",
        "hidden_dropout_prob": dropout,
        "attention_probs_dropout_prob": dropout,
    }))
    .expect("a whole configuration")
}
