//! An adapter of PEFT as a folder that is used where a finished run's is asked for.

use std::fs;
use std::path::Path;

use adalora::{FactorStart, Form, ScalePolicy};
use adalora_adapter::{Increment, PeftAdapter};
use adalora_models::{Checkpoint, HeadStart, Purpose, Settled};
use adalora_report::{SETTINGS_FILE, write_file};
use adalora_tasks::{Catalogue, DataFormat, Decoding, FileHash, QuestionsSpec, TaskSpec as Text};
use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use serde_json::Value;
use tch::Tensor;

use crate::experiment::{AdapterSpec, Lora, ModelSpec, Pretrained, Svd, TaskSpec};
use crate::finished::{IMPORTED_FILE, UsedSpec, UsedTrainSpec};
use crate::merge::new_folder;
use crate::plan::{checkpoint_folder, purpose};
use crate::provenance::{Program, hash};
use crate::run_folder::{ADAPTER, resolved};

/// The files of an adapter folder.
const FILES: [&str; 2] = ["adapter_config.json", "adapter_model.safetensors"];

/// Examples in one forward pass of what is predicted with it.
const BATCH_SIZE: usize = 32;

/// Misfits that are named, of however many there are.
const SHOWN: usize = 4;

/// What an adapter folder does not say of itself.
#[derive(Debug)]
pub struct Request<'a> {
    /// The checkpoint that it was trained on, as an experiment names it.
    pub checkpoint: &'a str,
    /// The data set that its head was trained for; `None` to use its increments alone.
    pub data: Option<&'a str>,
    /// Tokens of a text, or of a window; the usual number where absent.
    pub max_length: Option<usize>,
}

/// What was imported.
#[derive(Debug)]
pub struct Imported {
    /// Ranks of the modules.
    pub ranks: Vec<usize>,
    /// Tensors of the head that the adapter lacks, which are the checkpoint's.
    pub taken: Vec<String>,
}

/// `imported.json`
#[derive(Serialize)]
struct Record<'a> {
    from: String,
    peft_version: &'a Value,
    #[serde(flatten)]
    program: Program,
    precision: Settled,
    files: Vec<FileHash>,
}

/// Reads the folder `adapter`, which PEFT or `adalora export` wrote, and makes `out` of it: `adapter/`, `resolved.toml`
/// and `imported.json`. Nothing is written unless everything fits.
///
/// # Errors
///
/// What [`PeftAdapter::open`] refuses, and a pickle or a link in the place of a file; a module or tensor that the checkpoint
/// has no place for, or one of another shape; a head that is neither in the adapter nor in the checkpoint; if `out` is
/// there already.
pub fn import(adapter: &Path, out: &Path, request: &Request, catalogue: &Catalogue) -> Result<Imported> {
    let files = files(adapter)?;
    let mut peft = PeftAdapter::open(adapter)?;
    let base = checkpoint_folder(request.checkpoint, catalogue).map_err(anyhow::Error::msg)?;
    let checkpoint = Checkpoint::open(&base)?;
    let task = request.data.map(|data| task(data, request.max_length, catalogue)).transpose()?;
    let purpose = match request.data {
        Some(data) => Some(purpose(&catalogue.data(data)?.target())),
        None => purpose_of(&peft, checkpoint.config().hidden_size() as i64)?,
    };
    ensure!(
        purpose.is_none_or(|purpose| purpose.fits(checkpoint.config())),
        "{} has no classifier or answers, which are of bert and deberta-v2: name the checkpoint that {} was trained on",
        base.display(),
        adapter.display()
    );
    let mut misfits = misfits(&peft, &checkpoint);
    let head = purpose.map_or_else(HeadStart::default, |purpose| purpose.start(&checkpoint, 0));
    for (name, tensor) in peft.extras() {
        match head.extras.iter().find(|own| own.name == *name).map(|own| own.start.size()) {
            Some(shape) if shape == tensor.size() => {}
            Some(shape) => misfits.push(format!("`{name}` is {:?}, expected {shape:?}", tensor.size())),
            None => misfits.push(format!("`{name}` is neither a factor nor of a head")),
        }
    }
    let (shown, more) = misfits.split_at(misfits.len().min(SHOWN));
    let more = if more.is_empty() { String::new() } else { format!("; and {} more", more.len()) };
    ensure!(
        misfits.is_empty(),
        "{} does not fit {}: {}{more}",
        adapter.display(),
        base.display(),
        shown.join("; ")
    );
    let mut taken = Vec::new();
    for own in head.extras {
        if peft.extras().contains_key(&own.name) {
            continue;
        }
        ensure!(
            !head.drawn.contains(&own.name),
            "`{}` is neither in {} nor in {}: it was random when the adapter was trained, and PEFT saves it only if \
             modules_to_save names it",
            own.name,
            adapter.display(),
            base.display()
        );
        let modules = purpose.map_or(&[][..], Purpose::modules);
        let module = modules.iter().find(|module| own.name.contains(**module));
        let module = module.expect("what a head starts from is of its modules");
        taken.push(own.name.clone());
        peft.add_extra(module, own.name, own.start);
    }

    let spec = UsedSpec {
        model: ModelSpec::Pretrained(Pretrained {
            checkpoint: request.checkpoint.into(),
            dropout: None,
            classifier_dropout: None,
        }),
        task,
        adapter: adapter_spec(&peft, checkpoint.config().prefix())?,
        train: UsedTrainSpec { batch_size: BATCH_SIZE, threads: 1 },
    };
    let record = Record {
        from: adapter.display().to_string(),
        peft_version: peft.config().get("peft_version").unwrap_or(&Value::Null),
        program: Program::own(),
        precision: Settled::F32,
        files,
    };
    new_folder(out)?;
    peft.save(&out.join(ADAPTER))?;
    write_file(&out.join(SETTINGS_FILE), &resolved(&spec, 0))?;
    // By this the folder is known, so it comes last.
    write_file(&out.join(IMPORTED_FILE), &(serde_json::to_string_pretty(&record)? + "\n"))?;
    Ok(Imported { ranks: peft.increments().values().map(Increment::rank).collect(), taken })
}

/// `[task]`, of which an adapter says nothing.
fn task(data: &str, max_length: Option<usize>, catalogue: &Catalogue) -> Result<TaskSpec> {
    Ok(match catalogue.data(data)? {
        DataFormat::Table(_) => TaskSpec::Text(Text {
            data: data.into(),
            max_length: max_length.unwrap_or(128),
            train_rows: None,
        }),
        // As `transformers`' `run_qa.py` has them.
        DataFormat::Squad(_) => {
            let Decoding { n_best, max_answer_length } = Decoding::default();
            TaskSpec::Questions(QuestionsSpec {
                data: data.into(),
                max_length: max_length.unwrap_or(384),
                stride: 128,
                n_best,
                max_answer_length,
                train_rows: None,
                dev_rows: None,
            })
        }
        DataFormat::Summaries(_) => bail!(
            "{data} is of summaries, whose generation an adapter says nothing of: import it without --data, and start \
             a run of [task.summaries] from it"
        ),
    })
}

/// What the head is for that an adapter holds, if any.
///
/// # Errors
///
/// A classifier of another width than the hidden states: one of no width could claim any number of outputs.
fn purpose_of(peft: &PeftAdapter, hidden: i64) -> Result<Option<Purpose>> {
    const WEIGHT: &str = "classifier.weight";
    match peft.extras().get(WEIGHT).map(Tensor::size).as_deref() {
        None => Ok(peft.extras().contains_key("qa_outputs.weight").then_some(Purpose::Answer)),
        Some(&[outputs, width]) if outputs > 0 && width == hidden => {
            Ok(Some(Purpose::Classify { outputs: outputs as usize }))
        }
        Some(shape) => bail!("`{WEIGHT}` is {shape:?}, expected a row of {hidden} values for each output"),
    }
}

/// Hashes of an adapter's files.
fn files(adapter: &Path) -> Result<Vec<FileHash>> {
    let hashed = FILES.map(|name| {
        let path = adapter.join(name);
        let shown = || path.display().to_string();
        let pickle = path.with_extension("bin");
        if name == FILES[1] && !path.exists() && pickle.exists() {
            bail!(
                "{} is a pickle, which may run code: save the adapter again with safe_serialization=True",
                pickle.display()
            );
        }
        let metadata = fs::symlink_metadata(&path).with_context(shown)?;
        ensure!(metadata.is_file(), "{} is a link or no file: copy what it stands for, as by cp -L", shown());
        hash(&path)
    });
    hashed.into_iter().collect()
}

/// Modules that the checkpoint has no layer for, or one of other widths.
fn misfits(peft: &PeftAdapter, checkpoint: &Checkpoint) -> Vec<String> {
    let config = checkpoint.config();
    let (prefix, linears) = (config.prefix(), config.linears());
    let misfit = |(module, own): (&String, &Increment)| {
        let path = module.strip_prefix(prefix);
        let Some(linear) = linears.iter().find(|linear| path == Some(linear.path.as_str())) else {
            return Some(format!("it has no layer `{module}`"));
        };
        let found = (own.a.size()[1], own.b.size()[0]);
        let expected = (linear.d_in as i64, linear.d_out as i64);
        (found != expected).then(|| {
            format!(
                "`{module}` goes from {} to {} values, expected {} to {}",
                found.0, found.1, expected.0, expected.1
            )
        })
    };
    peft.increments().iter().filter_map(misfit).collect()
}

/// `[adapter]` as an experiment would have it.
fn adapter_spec(peft: &PeftAdapter, prefix: &str) -> Result<AdapterSpec> {
    let number = |key: &str| peft.config().get(key).with_context(|| format!("{} has no `{key}`", FILES[0]));
    let rank = |key: &str| Ok::<_, anyhow::Error>(number(key)?.as_u64().map(|rank| rank as usize));
    let alpha = number("lora_alpha")?.as_f64().context("lora_alpha is a number")?;
    let paths = peft.increments().keys().filter_map(|module| module.strip_prefix(prefix));
    let targets = paths.map(str::to_owned).collect();
    let (ranks, scale) = (None, ScalePolicy::default());
    Ok(match peft.form() {
        // What was trained is in the tensors: where it started is not known, and no longer matters.
        Form::Svd => AdapterSpec::Svd(Svd {
            targets,
            init_r: rank("init_r")?,
            ranks,
            alpha,
            scale,
            start: FactorStart::default(),
        }),
        Form::Lora => AdapterSpec::Lora(Lora { targets, r: rank("r")?, ranks, alpha, scale }),
    })
}
