//! A finished run, to be used: its settings, and its trained model. An adapter that was imported is used in the same way.

use std::fs;
use std::path::{Path, PathBuf};

use adalora_adapter::store::read_tensors;
use adalora_adapter::{Adapter, Arena, Extra, Form, Layout, Leaves, PeftAdapter};
use adalora_models::{Checkpoint, Dropouts, Model, Purpose, Settled};
use adalora_report::{SETTINGS_FILE, STATUS_FILE, Status};
use adalora_tasks::{Catalogue, DataFormat};
use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use tch::{Device, Tensor};

use crate::experiment::{AdapterSpec, ModelSpec, TaskSpec};
use crate::plan::{checkpoint_folder, purpose};
use crate::run_folder::ADAPTER;

/// Where the folder of an imported adapter says what it is. A run has `status.json` and `provenance.json` for it.
pub(crate) const IMPORTED_FILE: &str = "imported.json";

/// A run that has ended on its budget, or an imported adapter. Between two allocations all triplets live again, so that
/// no other run has a pattern of ranks to speak of.
#[derive(Debug)]
pub struct FinishedRun {
    folder: PathBuf,
    spec: UsedSpec,
    seed: u64,
    /// The dtype that its encoder computed in.
    precision: Settled,
}

/// What use is made of a run's settings: all that an imported adapter has of them.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct UsedSpec {
    /// `[model]`
    pub model: ModelSpec,
    /// `[task]`; an adapter may be imported without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<TaskSpec>,
    /// `[adapter]`
    pub adapter: AdapterSpec,
    /// `[train]`
    pub train: UsedTrainSpec,
}

/// How predictions are made: as dev scores in training, so that they are the same numbers.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct UsedTrainSpec {
    /// Examples in one forward pass.
    pub batch_size: usize,
    /// CPU threads.
    pub threads: usize,
}

/// That a folder holds what may be used, of a run or imported.
///
/// # Errors
///
/// A folder that is neither, or a run that has not finished.
pub(crate) fn ensure_finished(folder: &Path) -> Result<()> {
    if folder.join(IMPORTED_FILE).is_file() {
        return Ok(());
    }
    let path = folder.join(STATUS_FILE);
    let status = fs::read_to_string(&path).with_context(|| path.display().to_string()).context(
        "a run folder is expected, such as runs/NAME/VARIANT/seed-1, or one that `adalora import` made",
    )?;
    let status: Status = serde_json::from_str(&status).with_context(|| path.display().to_string())?;
    ensure!(
        matches!(status, Status::Finished { .. }),
        "{} is {} at step {}: ranks hold from the last allocation on, and a run has an adapter once it is finished. \
         Start it again with `adalora run`, which goes on where it was",
        folder.display(),
        status.state(),
        status.step()
    );
    Ok(())
}

impl FinishedRun {
    /// Reads what a run folder says of its run.
    ///
    /// # Errors
    ///
    /// A folder that is none of a run, or of one that has not finished.
    pub fn open(folder: &Path) -> Result<Self> {
        let read = |name: &str| {
            let path = folder.join(name);
            fs::read_to_string(&path).with_context(|| path.display().to_string())
        };
        ensure_finished(folder)?;
        let mut settings: toml::Table =
            read(SETTINGS_FILE)?.parse().with_context(|| SETTINGS_FILE.to_owned())?;
        let seed = settings.remove("seed").and_then(|seed| seed.as_integer());
        let seed = seed.with_context(|| format!("{SETTINGS_FILE} has no seed"))? as u64;
        let spec = UsedSpec::deserialize(settings)
            .with_context(|| format!("{}/{SETTINGS_FILE} is of another version", folder.display()))?;
        #[derive(Deserialize)]
        struct Provenance {
            precision: Settled,
        }
        let provenance = if folder.join(IMPORTED_FILE).is_file() { IMPORTED_FILE } else { "provenance.json" };
        let Provenance { precision } = serde_json::from_str(&read(provenance)?)?;
        Ok(Self { folder: folder.to_owned(), spec, seed, precision })
    }

    /// Its settings.
    pub fn spec(&self) -> &UsedSpec {
        &self.spec
    }

    /// The folder of its adapter.
    pub fn adapter(&self) -> PathBuf {
        self.folder.join(ADAPTER)
    }

    /// The folder of the checkpoint that it was trained on.
    ///
    /// # Errors
    ///
    /// A random encoder, which has none; a checkpoint that is not there.
    pub fn checkpoint(&self, catalogue: &Catalogue) -> Result<PathBuf> {
        match &self.spec.model {
            ModelSpec::Pretrained(model) => {
                checkpoint_folder(&model.checkpoint, catalogue).map_err(anyhow::Error::msg)
            }
            ModelSpec::Random(_) => bail!(
                "{} was trained on a random encoder, of which there is no checkpoint: take a run of [model.pretrained]",
                self.folder.display()
            ),
        }
    }

    /// How its data is read, which says what it predicts.
    ///
    /// # Errors
    ///
    /// A synthetic task; a data set without a manifest.
    pub fn data(&self, catalogue: &Catalogue) -> Result<DataFormat> {
        let Some(task) = &self.spec.task else {
            bail!(
                "{} was imported without a task: import it again with --data, the data set that its head was trained for",
                self.folder.display()
            )
        };
        match task.data() {
            Some(data) => Ok(catalogue.data(data)?),
            None => bail!(
                "{} was trained on a synthetic task, which has no texts: take a run of a task on text",
                self.folder.display()
            ),
        }
    }

    /// The trained model with the run's adapter, or with that of another folder in its place, which may be an export.
    ///
    /// # Errors
    ///
    /// Files that are missing or do not belong to this model.
    pub fn model(&self, adapter: Option<&Path>, catalogue: &Catalogue, device: Device) -> Result<Model> {
        let own = self.adapter();
        let folder = adapter.unwrap_or(&own);
        let trained = Trained::open(folder, &self.spec)?;
        let checkpoint = Checkpoint::open(&self.checkpoint(catalogue)?)?;
        let purpose = purpose(&self.data(catalogue)?.target());
        trained.model(&checkpoint, &self.spec, self.precision, purpose, self.seed, device)
    }
}

/// What an adapter folder holds.
pub(crate) struct Trained {
    folder: PathBuf,
    /// Increments; `None` where the method has none.
    peft: Option<PeftAdapter>,
    /// What else was trained, by its name in `transformers`' model.
    pub(crate) extras: Vec<(String, Tensor)>,
}

impl Trained {
    /// Reads the folder.
    pub(crate) fn open(folder: &Path, spec: &UsedSpec) -> Result<Self> {
        let (peft, extras) = if spec.adapter.form().is_some() {
            let peft = PeftAdapter::open(folder)?;
            let extras = peft.extras().iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone()));
            let extras = extras.collect();
            (Some(peft), extras)
        } else {
            let tensors = read_tensors(&folder.join("adapter_model.safetensors"))?.into_iter();
            let plain = |name: String| name.strip_prefix("base_model.model.").unwrap_or(&name).to_owned();
            (None, tensors.map(|(name, tensor)| (plain(name), tensor)).collect())
        };
        Ok(Self { folder: folder.to_owned(), peft, extras })
    }

    /// Increments by module; none where the method has none.
    pub(crate) fn increments(&self) -> impl Iterator<Item = (&String, &adalora_adapter::Increment)> {
        self.peft.iter().flat_map(|peft| peft.increments())
    }

    fn model(
        mut self,
        checkpoint: &Checkpoint,
        spec: &UsedSpec,
        precision: Settled,
        purpose: Purpose,
        seed: u64,
        device: Device,
    ) -> Result<Model> {
        let config = checkpoint.config();
        let tuning = spec.adapter.tuning();
        let head = purpose.start(checkpoint, seed).extras;
        let mut extras: Vec<Extra> = tuning.start(checkpoint, seed).into_iter().chain(head).collect();
        for extra in &mut extras {
            let place = self.extras.iter().position(|(name, _)| *name == extra.name);
            let place = place.with_context(|| format!("{} lacks `{}`", self.folder.display(), extra.name))?;
            let (name, tensor) = self.extras.swap_remove(place);
            let (found, expected) = (tensor.size(), extra.start.size());
            ensure!(
                found == expected,
                "{}: `{name}` is {found:?}, but this model has {expected:?}",
                self.folder.display()
            );
            extra.start = tensor;
        }
        if let Some((name, _)) = self.extras.first() {
            bail!("{}: `{name}` belongs to nothing in this model", self.folder.display());
        }
        let arena = Arena::new(Layout::new(Form::Lora, Vec::new()), extras, device, seed);
        let frozen = checkpoint.to_kind(precision.kind());
        let mut model = Model::new(purpose, &frozen, tuning, &arena, Dropouts::default(), device);

        let prefix = config.prefix();
        let mut increments: Vec<_> = self.increments().collect();
        for linear in model.linears_mut() {
            let name = format!("{prefix}{}", linear.path());
            let Some(place) = increments.iter().position(|(module, _)| **module == name) else { continue };
            let (_, own) = increments.swap_remove(place);
            let (d_in, d_out) = linear.widths();
            let (a, b) = (own.a.size(), own.b.size());
            ensure!(
                (a[1], b[0]) == (d_in as i64, d_out as i64),
                "{}: `{name}` has lora_A {a:?} and lora_B {b:?}, but this model's layer is {d_out} by {d_in}",
                self.folder.display()
            );
            let leaves = Leaves {
                q: own.a.to_device(device),
                p: own.b.tr().contiguous().to_device(device),
                lambda: own.lambda.as_ref().map(|lambda| lambda.to_device(device)),
            };
            linear.attach(Adapter::new(&leaves, own.scale));
        }
        if let Some((module, _)) = increments.first() {
            bail!("{}: this model has no layer `{module}`", self.folder.display());
        }
        Ok(model)
    }
}
