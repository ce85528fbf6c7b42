//! `adalora`: runs experiment files.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use adalora::ImportanceSpec;
use adalora_report::write_file;
use adalora_runner::experiment::{AdapterSpec, Document, Grid, ModelSpec, RunSpec, TaskSpec};
use adalora_runner::export::Format;
use adalora_runner::finished::FinishedRun;
use adalora_runner::grid::{Named, Runs};
use adalora_runner::init_bart::{self, NewBart};
use adalora_runner::provenance::Program;
use adalora_runner::run_folder::{Found, find};
use adalora_runner::slurm::{self, Frozen, Request};
use adalora_runner::stop::Stop;
use adalora_runner::workspace::Workspace;
use adalora_runner::{check, export, grid, import, libtorch, merge, pattern_file, predict, sweep, worker};
use adalora_tasks::{Catalogue, Fetched, Hub, Progress};
use anyhow::{Context, Result};
use clap::Parser;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::arguments::{
    Cli, Command, ExportArgs, FetchArgs, FetchKind, FileArgs, Formats, ImportArgs, Lines, PredictArgs,
    RunArgs, SlurmArgs, TaskArgs, WorkerArgs,
};

mod arguments;

/// The exit code of a command line that asks for what cannot be.
const BAD_INPUT: u8 = 2;

fn main() -> ExitCode {
    adalora_kernels::cuda::open();
    let result = match Cli::parse().command {
        Command::Run(args) => run(&args),
        Command::Check(args) => check(&args),
        Command::List => list(),
        Command::Report { experiment } => report(&experiment),
        Command::Results { experiment } => results(experiment.as_deref()),
        Command::Status { experiment } => status(&experiment),
        Command::Slurm(args) => slurm(&args),
        Command::Task(args) => task(&args),
        Command::Predict(args) => predict(&args),
        Command::Export(args) => export(&args),
        Command::Import(args) => import(&args),
        Command::Merge { run, out } => merge(&run, &out),
        Command::Schema => schema(),
        Command::Fetch(args) => fetch(&args),
        Command::ExportPattern { run, file } => pattern_file::export(&run, &file).map(|()| ExitCode::SUCCESS),
        Command::InitBart(new) => init_bart(&new),
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
    let (_, mut grid) = prepare(&workspace, &args.file, &args.device)?;
    select(&args.seeds, &args.cells, &mut grid)?;
    let folder = workspace.runs(&grid.name);
    let stop = Stop::on_signals()?;
    let start = |runs: &[Named]| {
        let of = |named: &Named| sweep_run(&args.file, &grid, &folder, named, &args.device, args.force);
        sweep::run(runs.iter().map(of).collect(), jobs(args, &grid), &stop)
    };

    let tuned = start(&grid::tuning_runs(&folder, &grid, args.force)?)?;
    let Runs { runs, finished, problems } = grid::final_runs(&folder, &grid, args.force)?;
    if finished > 0 {
        eprintln!("{finished} run(s) are finished already");
    }
    let mut ended = start(&runs)?;
    ended.open += tuned.open;
    ended.failed = [tuned.failed, ended.failed, problems].concat();
    for (label, reason) in &ended.failed {
        eprintln!("{label} failed: {reason}");
    }
    if ended.finished + finished > 0 {
        print_report(&folder)?;
    }
    Ok(exit_code(&ended, &stop))
}

/// Reads and checks an experiment, fetches what it names and lays its folder down.
fn prepare(workspace: &Workspace, file: &FileArgs, device: &str) -> Result<(Document, Grid)> {
    let catalogue = workspace.catalogue()?;
    let (document, grid) = load(workspace, file)?;
    libtorch::device(device).map_err(anyhow::Error::msg)?;
    fetch_what_is_missing(&grid, &catalogue)?;
    check::plans(&document, &grid, &catalogue)?;
    grid::lay_down(&workspace.runs(&grid.name), &grid)?;
    Ok((document, grid))
}

/// Keeps the seeds and cells that the command line names.
fn select(seeds: &[u64], cells: &[String], grid: &mut Grid) -> Result<()> {
    if let Some(unknown) = cells.iter().find(|name| grid.cells.iter().all(|cell| cell.name != **name)) {
        let cells: Vec<_> = grid.cells.iter().map(|cell| cell.name.as_str()).collect();
        anyhow::bail!("there is no cell `{unknown}`; {} has {}", grid.name, cells.join(" "));
    }
    // A frozen list of runs has no place for other seeds.
    if let Some(other) = seeds.iter().find(|seed| grid.is_several() && !grid.seeds.contains(seed)) {
        anyhow::bail!(
            "seed {other} is not among the seeds of {}, whose runs are laid down in advance",
            grid.name
        );
    }
    if !seeds.is_empty() {
        grid.seeds = seeds.to_vec();
    }
    if !cells.is_empty() {
        grid.cells.retain(|cell| cells.contains(&cell.name));
    }
    Ok(())
}

fn exit_code(ended: &sweep::Ended, stop: &Stop) -> ExitCode {
    if ended.open > 0 {
        eprintln!("{} run(s) are still open: the same command again goes on with them", ended.open);
        ExitCode::from(stop.exit_code())
    } else if ended.failed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn sweep_run(
    file: &FileArgs,
    grid: &Grid,
    folder: &Path,
    named: &Named,
    device: &str,
    force: bool,
) -> sweep::Run {
    let mut arguments = vec!["worker".to_owned(), file.file.clone()];
    for setting in &file.overrides {
        arguments.extend(["--set".to_owned(), setting.clone()]);
    }
    let Named { cell, variant, value, seed } = named;
    let (value, seed) = (value.to_string(), seed.to_string());
    let rest = ["--cell", cell, "--variant", variant, "--value", &value, "--seed", &seed, "--device", device];
    arguments.extend(rest.map(str::to_owned));
    if force {
        arguments.push("--force".to_owned());
    }
    let tuning = grid::tuning(grid);
    sweep::Run {
        label: named.label(tuning.as_ref()),
        arguments,
        folder: named.folder(folder, tuning.as_ref()),
    }
}

fn slurm(args: &SlurmArgs) -> Result<ExitCode> {
    let workspace = Workspace::find()?;
    let (document, mut grid) = prepare(&workspace, &args.file, "cpu")?;
    select(&args.seeds, &[], &mut grid)?;
    let folder = workspace.runs(&grid.name);
    // What is reported on waits for what is chosen: the same command again, once that has ended.
    let mut runs = grid::tuning_runs(&folder, &grid, false)?;
    let tuning = !runs.is_empty();
    if !tuning {
        let all = grid::final_runs(&folder, &grid, false)?;
        if let Some((label, reason)) = all.problems.first() {
            anyhow::bail!("{label} failed: {reason}");
        }
        runs = all.runs;
    }
    let count = runs.len();
    let frozen = Frozen {
        overrides: args.file.overrides.clone(),
        device: args.device.clone(),
        program: Program::own(),
        runs,
    };
    let request = Request {
        time: args.time.clone(),
        at_once: args.at_once,
        ahead: args.ahead,
        cores: specs(&grid).map(|spec| spec.train.threads).max().unwrap_or(1),
        options: args.options.clone(),
    };
    let script = frozen.write(&folder, document.source(), &request)?;
    println!("{count} run(s), one a task. To submit them:\n\n    sbatch {}", script.display());
    if tuning {
        println!(
            "\nThey are for [tuning]; when they have ended, `adalora slurm` again writes the runs that follow."
        );
    }
    Ok(ExitCode::SUCCESS)
}

fn task(args: &TaskArgs) -> Result<ExitCode> {
    let stop = Stop::on_signals()?;
    let frozen = Frozen::read(&args.list)?;
    let own = Program::own();
    anyhow::ensure!(
        frozen.program.is_same(&own),
        "{} was written by adalora {}, this is {}: write the script anew with `adalora slurm`",
        args.list.display(),
        frozen.program.describe(),
        own.describe()
    );
    let Some(named) = frozen.runs.get(args.number) else {
        anyhow::bail!("{} has {} runs, not a number {}", args.list.display(), frozen.runs.len(), args.number)
    };
    let path = slurm::experiment_file(&args.list)?;
    let file = FileArgs { file: path.display().to_string(), overrides: frozen.overrides.clone() };
    let workspace = Workspace::find()?;
    let (_, grid) = load(&workspace, &file)?;
    let run = sweep_run(&file, &grid, &workspace.runs(&grid.name), named, &frozen.device, false);
    if find(&run.folder, named.spec(&grid)?, named.seed, false)? == Found::Finished {
        eprintln!("{} is finished already", run.label);
        return Ok(ExitCode::SUCCESS);
    }
    let ended = sweep::run(vec![run], 1, &stop)?;
    if ended.open > 0 && stop.is_out_of_time() {
        slurm::requeue()?;
    }
    Ok(exit_code(&ended, &stop))
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
    let stop = Stop::on_signals()?;
    let workspace = Workspace::find()?;
    let catalogue = workspace.catalogue()?;
    let (document, grid) = load(&workspace, &args.file)?;
    let device = libtorch::device(&args.device).map_err(anyhow::Error::msg)?;
    let WorkerArgs { cell, variant, value, seed, .. } = args;
    let named = Named { cell: cell.clone(), variant: variant.clone(), value: *value, seed: *seed };
    let tuning = grid::tuning(&grid);
    let job = worker::Job {
        folder: named.folder(&workspace.runs(&grid.name), tuning.as_ref()),
        experiment: grid.cell_name(cell),
        variant: variant.clone(),
        spec: named.spec(&grid)?.clone(),
        seed: args.seed,
        device: args.device.clone(),
        source: document.source().to_owned(),
        force: args.force,
    };
    let outcome = worker::run(&job, &catalogue, device, &stop, |event| {
        writeln!(std::io::stdout(), "{}", serde_json::to_string(event).expect("an event can be written"))
    })?;
    Ok(match outcome {
        worker::Outcome::Finished => ExitCode::SUCCESS,
        worker::Outcome::Stopped => ExitCode::from(stop.exit_code()),
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
        ("methods: [adapter.NAME]", &AdapterSpec::KINDS),
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
        match manifest.data() {
            Some(format) => data.push(format!("{line} [task.{}]", format.task())),
            None => checkpoints.push(line),
        }
    }
    println!("\ncheckpoints: model.pretrained.checkpoint\n{}", checkpoints.join("\n"));
    println!("\ndata sets: task.NAME.data\n{}", data.join("\n"));
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

fn schema() -> Result<ExitCode> {
    let text = serde_json::to_string_pretty(&adalora_runner::experiment::schema())? + "\n";
    std::io::stdout().write_all(text.as_bytes()).context("standard output")?;
    Ok(ExitCode::SUCCESS)
}

fn report(experiment: &str) -> Result<ExitCode> {
    let workspace = Workspace::find()?;
    print_report(&runs_folder(&workspace, experiment))?;
    Ok(ExitCode::SUCCESS)
}

/// The folder that a user means by an experiment's name or a path.
fn runs_folder(workspace: &Workspace, experiment: &str) -> PathBuf {
    let folder = PathBuf::from(experiment);
    if experiment.contains('/') && folder.is_dir() { folder } else { workspace.runs(experiment) }
}

fn status(experiment: &str) -> Result<ExitCode> {
    let workspace = Workspace::find()?;
    print!("{}", adalora_runner::status::describe(&runs_folder(&workspace, experiment))?);
    Ok(ExitCode::SUCCESS)
}

fn results(experiment: Option<&str>) -> Result<ExitCode> {
    let folder = runs_folder(&Workspace::find()?, experiment.unwrap_or(""));
    let path = folder.join("results.csv");
    write_file(&path, &adalora_report::runs_csv(&folder)?)?;
    println!("{}", path.display());
    Ok(ExitCode::SUCCESS)
}

fn predict(args: &PredictArgs) -> Result<ExitCode> {
    let run = FinishedRun::open(&args.run)?;
    let device = libtorch::device(&args.device).map_err(anyhow::Error::msg)?;
    let texts = match &args.file {
        Some(file) => std::fs::read_to_string(file).with_context(|| file.display().to_string())?,
        None => std::io::read_to_string(std::io::stdin()).context("standard input")?,
    };
    let catalogue = Workspace::find()?.catalogue()?;
    let predictions = predict::predict(&run, args.adapter.as_deref(), &catalogue, &texts, device)?;
    predictions.notes.iter().for_each(|note| eprintln!("{note}"));
    let output = match args.format {
        Lines::Tsv => predict::Output::Tsv,
        Lines::Jsonl => predict::Output::JsonLines,
    };
    std::io::stdout().write_all(predictions.write(output).as_bytes()).context("standard output")?;
    Ok(ExitCode::SUCCESS)
}

fn export(args: &ExportArgs) -> Result<ExitCode> {
    anyhow::ensure!(
        args.format == Formats::Lora || !args.pad,
        "--pad is for --format lora: AdaLoRA's pattern says the rank of each module"
    );
    let format = match args.format {
        Formats::Adalora => Format::AdaLora,
        Formats::Lora => Format::Lora { padded: args.pad },
    };
    let ranks = export::export(&FinishedRun::open(&args.run)?, &args.out, format)?;
    println!("{}: {} modules of rank {}", args.out.display(), ranks.len(), span(&ranks));
    Ok(ExitCode::SUCCESS)
}

fn import(args: &ImportArgs) -> Result<ExitCode> {
    let request = import::Request {
        checkpoint: &args.checkpoint,
        data: args.data.as_deref(),
        max_length: args.max_length,
    };
    let catalogue = Workspace::find()?.catalogue()?;
    let imported = import::import(&args.adapter, &args.out, &request, &catalogue)?;
    println!("{}: {} modules of rank {}", args.out.display(), imported.ranks.len(), span(&imported.ranks));
    if !imported.taken.is_empty() {
        println!("of the checkpoint, as the adapter lacks them: {}", imported.taken.join(", "));
    }
    Ok(ExitCode::SUCCESS)
}

/// The smallest and the largest of some numbers.
fn span(numbers: &[usize]) -> String {
    match (numbers.iter().min(), numbers.iter().max()) {
        (Some(least), Some(most)) if least < most => format!("{least} to {most}"),
        (Some(all), _) => all.to_string(),
        (None, _) => "none".into(),
    }
}

fn merge(run: &Path, out: &Path) -> Result<ExitCode> {
    let run = FinishedRun::open(run)?;
    let merged = merge::merge(&run, &Workspace::find()?.catalogue()?, out)?;
    let (difference, name) = &merged.largest_difference;
    println!("{}: {} tensors, {} increments added", out.display(), merged.tensors, merged.increments);
    println!(
        "trained values are written as {:?}; largest difference to f32: {difference:e}, in {name}",
        merged.kind
    );
    Ok(ExitCode::SUCCESS)
}

fn init_bart(new: &NewBart) -> Result<ExitCode> {
    let made = init_bart::init(new, &Workspace::find()?.catalogue()?)?;
    println!(
        "{}: {} parameters, a vocabulary of {} tokens",
        new.folder.display(),
        made.parameters,
        made.tokens
    );
    if made.tokens < new.vocabulary {
        eprintln!(
            "the texts have no more pairs of tokens that occur twice: the vocabulary is smaller than asked for"
        );
    }
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
        names.extend(spec.task.data());
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
