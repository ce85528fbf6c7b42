//! What an experiment file says, table by table.

use adalora::{AdamWSpec, BudgetSpec, FactorStart, Form, ImportanceSpec, OrthogonalityForm, ScalePolicy};
use adalora_models::{Generation, Placement, Precision, Tuning};
use adalora_tasks::{QuestionsSpec, SummariesSpec};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A whole experiment: one or more variants, each run with every seed.
#[derive(Debug, Clone)]
pub struct Experiment {
    /// The file's name without its ending.
    pub name: String,
    /// What the experiment is for, in a sentence or two.
    pub description: String,
    /// Seeds of every variant.
    pub seeds: Vec<u64>,
    /// Names and settings, in the order of the file; the first is the control of the table.
    pub variants: Vec<(String, RunSpec)>,
}

/// All settings of one run but its seed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RunSpec {
    /// `[model]`
    pub model: ModelSpec,
    /// `[task]`
    pub task: TaskSpec,
    /// `[adapter]`
    pub adapter: AdapterSpec,
    /// `[warm_start]`; without it adapters start from nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warm_start: Option<WarmStartSpec>,
    /// `[orthogonality]`; without it there is no regularizer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub orthogonality: Option<OrthogonalityForm>,
    /// `[importance]`; present exactly if there is a budget.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub importance: Option<ImportanceSpec>,
    /// `[budget]`; without it every rank stays what it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub budget: Option<BudgetSpec>,
    /// `[observation]`: what the importance metric sees.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observation: Option<ObservationSpec>,
    /// `[optimizer]`
    pub optimizer: AdamWSpec,
    /// `[train]`
    pub train: TrainSpec,
}

/// `[model.pretrained]` or `[model.random]`: a BERT-family encoder whose weights are frozen, with pooler and
/// classifier on top, which are trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ModelSpec {
    /// A checkpoint in Hugging Face's layout.
    Pretrained(Pretrained),
    /// A frozen encoder with random weights, for synthetic tasks.
    Random(RandomEncoder),
}

impl ModelSpec {
    /// Every kind of model with what it is.
    pub const KINDS: [(&str, &str); 2] = [
        ("pretrained", "a BERT-family encoder from a checkpoint, frozen, with pooler and classifier on top"),
        ("random", "the same with random weights, for synthetic tasks"),
    ];
}

/// `[model.pretrained]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Pretrained {
    /// Name of a manifest in `datasets/`, or a folder (anything with a `/`).
    pub checkpoint: String,
    /// Dropout inside the encoder, on attention weights and hidden states; the checkpoint's own where absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dropout: Option<f64>,
    /// Dropout before the classifier; the same as in the encoder where absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub classifier_dropout: Option<f64>,
}

/// `[model.random]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RandomEncoder {
    /// Blocks.
    pub layers: usize,
    /// Width of the hidden states.
    pub hidden: usize,
    /// Attention heads; they divide `hidden`.
    pub heads: usize,
    /// Width of the feed-forward part.
    pub intermediate: usize,
    /// Tokens in the vocabulary.
    pub vocabulary: usize,
    /// Seed of the weights: the same encoder for every seed of the run.
    pub seed: u64,
}

/// `[task.text]`, `[task.questions]`, `[task.summaries]` or `[task.planted]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum TaskSpec {
    /// Sentences or pairs of them with a label, from a manifest in `datasets/`.
    Text(adalora_tasks::TaskSpec),
    /// Questions whose answers stand in a text, from a manifest.
    Questions(QuestionsSpec),
    /// Documents with a summary each, from a manifest.
    Summaries(Summaries),
    /// A synthetic teacher: the frozen encoder plus increments of known rank in known layers.
    Planted(Planted),
}

impl TaskSpec {
    /// Every kind of task with what it is.
    pub const KINDS: [(&str, &str); 4] = [
        ("text", "sentences or pairs of them with a class or a score"),
        ("questions", "questions whose answers stand in a text, as SQuAD has them"),
        ("summaries", "documents with a summary each, which a model with a decoder writes"),
        ("planted", "what a teacher says that differs from the encoder in known layers"),
    ];
}

impl TaskSpec {
    /// The name in an experiment file.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Text(_) => "text",
            Self::Questions(_) => "questions",
            Self::Summaries(_) => "summaries",
            Self::Planted(_) => "planted",
        }
    }

    /// The manifest that it is read by.
    pub fn data(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(&text.data),
            Self::Questions(questions) => Some(&questions.data),
            Self::Summaries(summaries) => Some(&summaries.data),
            Self::Planted(_) => None,
        }
    }

    /// Longest sequences that a model has to have positions for, by key.
    pub fn lengths(&self) -> Vec<(String, usize)> {
        let own = |key: &str, length: usize| (format!("task.{}.{key}", self.name()), length);
        match self {
            Self::Text(text) => vec![own("max_length", text.max_length)],
            Self::Questions(questions) => vec![own("max_length", questions.max_length)],
            Self::Summaries(Summaries { max_document, max_summary, .. }) => {
                vec![own("max_document", *max_document), own("max_summary", *max_summary)]
            }
            Self::Planted(_) => Vec::new(),
        }
    }

    /// How a text is written, where one is.
    pub fn generation(&self) -> Option<&Generation> {
        match self {
            Self::Summaries(summaries) => Some(&summaries.generation),
            _ => None,
        }
    }

    /// Probability that the loss gives to all tokens alike instead of the right one.
    pub fn label_smoothing(&self) -> f64 {
        match self {
            Self::Summaries(summaries) => summaries.label_smoothing,
            _ => 0.0,
        }
    }
}

/// `[task.summaries]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Summaries {
    /// Name of a manifest.
    pub data: String,
    /// Tokens of a document at most, special ones included; what is longer loses its end.
    pub max_document: usize,
    /// Tokens of a summary at most, in training.
    pub max_summary: usize,
    /// Probability that the loss gives to all tokens alike instead of the right one.
    #[serde(default)]
    pub label_smoothing: f64,
    /// Trains on a sample of this many pairs instead of all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub train_rows: Option<usize>,
    /// Evaluates on a sample of this many pairs instead of all, since generation takes its time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dev_rows: Option<usize>,
    /// How summaries are written in an evaluation.
    pub generation: Generation,
}

impl Summaries {
    /// What is read of them.
    pub fn reading(&self) -> SummariesSpec {
        let Self { data, max_document, max_summary, train_rows, dev_rows, .. } = self.clone();
        SummariesSpec { data, max_document, max_summary, train_rows, dev_rows }
    }
}

/// `[task.planted]`: token sequences are random, labels are what the teacher's classifier says of them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Planted {
    /// Layers that differ in the teacher, as patterns like `adapter.targets`.
    pub layers: Vec<String>,
    /// Rank of each increment.
    pub rank: usize,
    /// Norm of each increment relative to its weight's.
    pub strength: f64,
    /// Values that the teacher says of each sequence.
    pub outputs: usize,
    /// Tokens of each sequence.
    pub length: usize,
    /// Training sequences.
    pub train_rows: usize,
    /// Held-out sequences.
    pub dev_rows: usize,
    /// Seed of teacher and sequences: the same for every seed of the run.
    pub seed: u64,
}

/// `[adapter.NAME]`: what is trained beside the head.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum AdapterSpec {
    /// `P diag(lambda) Q`.
    Svd(Svd),
    /// `B A`.
    Lora(Lora),
    /// The whole encoder.
    Full(NoSettings),
    /// Bias vectors of the encoder.
    Bitfit(NoSettings),
    /// Two bottlenecks in each block.
    Houlsby(Bottleneck),
    /// One bottleneck in each block.
    Pfeiffer(Bottleneck),
}

/// `[adapter.svd]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Svd {
    /// Patterns over whole path components; every one must match.
    pub targets: Vec<String>,
    /// Rank of every adapter at the start. Either this or `ranks`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init_r: Option<usize>,
    /// A file with a rank for each adapter, as `adalora export-pattern` writes it, which stays. Either this or `init_r`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ranks: Option<String>,
    /// The increment is scaled by `alpha / init_r`, unless `scale` says otherwise.
    pub alpha: f64,
    /// How the scale depends on the rank.
    #[serde(default, skip_serializing_if = "ScalePolicy::is_default")]
    pub scale: ScalePolicy,
    /// What the vectors of a triplet start from.
    #[serde(default, skip_serializing_if = "FactorStart::is_default")]
    pub start: FactorStart,
}

/// `[adapter.lora]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Lora {
    /// Patterns over whole path components; every one must match.
    pub targets: Vec<String>,
    /// Rank of every adapter at the start; without `[budget]` it stays. Either this or `ranks`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub r: Option<usize>,
    /// A file with a rank for each adapter, as `adalora export-pattern` writes it. Either this or `r`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ranks: Option<String>,
    /// The increment is scaled by `alpha / r`, unless `scale` says otherwise.
    pub alpha: f64,
    /// How the scale depends on the rank.
    #[serde(default, skip_serializing_if = "ScalePolicy::is_default")]
    pub scale: ScalePolicy,
}

/// `[adapter.full]` and `[adapter.bitfit]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NoSettings {}

/// `[adapter.houlsby]` and `[adapter.pfeiffer]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Bottleneck {
    /// Width between its two layers.
    pub width: usize,
}

impl AdapterSpec {
    /// Every method with what it is.
    pub const KINDS: [(&str, &str); 6] = [
        ("svd", "increments P diag(lambda) Q, whose ranks a budget may shrink: AdaLoRA"),
        ("lora", "increments B A, whose ranks a budget may shrink: LoRA, pruned LoRA"),
        ("full", "all weights of the encoder: full fine-tuning"),
        ("bitfit", "the bias vectors of the encoder alone"),
        ("houlsby", "a bottleneck after attention and one after the feed-forward part of each block"),
        ("pfeiffer", "a bottleneck after the feed-forward part of each block"),
    ];

    /// The name in an experiment file.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Svd(_) => "svd",
            Self::Lora(_) => "lora",
            Self::Full(_) => "full",
            Self::Bitfit(_) => "bitfit",
            Self::Houlsby(_) => "houlsby",
            Self::Pfeiffer(_) => "pfeiffer",
        }
    }

    /// What is trained in the encoder itself.
    pub fn tuning(&self) -> Tuning {
        match self {
            Self::Svd(_) | Self::Lora(_) => Tuning::Frozen,
            Self::Full(_) => Tuning::Full,
            Self::Bitfit(_) => Tuning::BitFit,
            Self::Houlsby(bottleneck) => Tuning::Bottlenecks(Placement::Houlsby, bottleneck.width),
            Self::Pfeiffer(bottleneck) => Tuning::Bottlenecks(Placement::Pfeiffer, bottleneck.width),
        }
    }

    /// SVD or LoRA; `None` without increments of low rank.
    pub fn form(&self) -> Option<Form> {
        match self {
            Self::Svd(_) => Some(Form::Svd),
            Self::Lora(_) => Some(Form::Lora),
            _ => None,
        }
    }

    /// The patterns; none without increments.
    pub fn targets(&self) -> &[String] {
        match self {
            Self::Svd(svd) => &svd.targets,
            Self::Lora(lora) => &lora.targets,
            _ => &[],
        }
    }

    /// Rank of every adapter at the start, where it is one for all; `None` without increments.
    pub fn rank(&self) -> Option<usize> {
        match self {
            Self::Svd(svd) => svd.init_r,
            Self::Lora(lora) => lora.r,
            _ => None,
        }
    }

    /// The file with a rank for each adapter.
    pub fn ranks(&self) -> Option<&str> {
        match self {
            Self::Svd(svd) => svd.ranks.as_deref(),
            Self::Lora(lora) => lora.ranks.as_deref(),
            _ => None,
        }
    }

    /// How the scale depends on the rank.
    pub fn scale(&self) -> ScalePolicy {
        match self {
            Self::Svd(svd) => svd.scale,
            Self::Lora(lora) => lora.scale,
            _ => ScalePolicy::default(),
        }
    }

    /// What the vectors of a triplet start from; of no meaning without triplets.
    pub fn start(&self) -> FactorStart {
        match self {
            Self::Svd(svd) => svd.start,
            _ => FactorStart::default(),
        }
    }

    /// What the increment of each adapter is multiplied by, from its rank at the start and its live triplets.
    pub fn scales(&self, initial: &[usize], live: &[usize]) -> Vec<f64> {
        let ranks = initial.iter().zip(live);
        ranks.map(|(&initial, &live)| self.scale().of(self.alpha(), initial, live)).collect()
    }

    /// The field's `alpha`; 0 without increments.
    pub fn alpha(&self) -> f64 {
        match self {
            Self::Svd(svd) => svd.alpha,
            Self::Lora(lora) => lora.alpha,
            _ => 0.0,
        }
    }
}

/// `[warm_start]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WarmStartSpec {
    /// Folder of a finished run, such as `runs/mnli/adalora/seed-1`, whose increments are the adapters' start. The head
    /// is not taken from there.
    pub run: String,
}

/// `[observation]`: where the paper and the authors' code differ in what importance is computed from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ObservationSpec {
    /// Parameters from before the optimizer's step (paper) or after it (code).
    pub weights: Weights,
    /// Gradient before or after clipping (code).
    pub gradient: Gradient,
    /// Whether the regularizer's gradient is part of it. It is in both; needs `[orthogonality]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub regularizer: Option<bool>,
}

/// Which parameters a metric sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Weights {
    /// Those that the gradient was taken at.
    BeforeStep,
    /// Those that the optimizer has just made.
    AfterStep,
}

/// Which gradient a metric sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Gradient {
    /// As backward made it.
    Raw,
    /// As the optimizer uses it.
    Clipped,
}

/// `[train]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TrainSpec {
    /// Passes over the training data; either this or `steps`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epochs: Option<usize>,
    /// Optimizer steps; either this or `epochs`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<usize>,
    /// Examples in one forward pass.
    pub batch_size: usize,
    /// Forward passes in one optimizer step.
    #[serde(default = "one")]
    pub accumulate: usize,
    /// Whether dead triplets are dropped once the pattern is final. Otherwise they are masked after each step until the
    /// end, as in the authors' code, where they still count in the regularizer and in the gradient's norm.
    #[serde(default = "yes")]
    pub compact: bool,
    /// Highest norm of the gradient; without it gradients are not clipped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip: Option<f64>,
    /// Optimizer steps between two evaluations on the dev set; there is always one at the end.
    pub evaluate_every: usize,
    /// Optimizer steps between two records of loss, budget and ranks.
    pub record_every: usize,
    /// Optimizer steps between two checkpoints; as many as between two evaluations where absent. There is always one
    /// at the best evaluation so far, and where a run is stopped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoint_every: Option<usize>,
    /// In which dtype the frozen encoder computes. One whose own tensors are trained computes in f32.
    #[serde(default)]
    pub precision: Precision,
    /// CPU threads of one run. Part of the settings because sums in another order round differently.
    #[serde(default = "one")]
    pub threads: usize,
}

fn one() -> usize {
    1
}

fn yes() -> bool {
    true
}
