//! A start from another run's adapter.

use std::path::Path;

use adalora::Layout;
use adalora_adapter::Saved;
use adalora_report::{SETTINGS_FILE, WarmStart};
use sha2::{Digest, Sha256};

use crate::experiment::{ModelSpec, RunSpec};
use crate::finished::ensure_finished;
use crate::run_folder::{ADAPTER, identity};
use crate::worker::in_one_line;

/// The adapter to start from, and which one it is.
#[derive(Debug)]
pub struct Source {
    /// Its increments.
    pub saved: Saved,
    /// What the result says of it.
    pub record: WarmStart,
}

impl Source {
    /// Reads the adapter of a finished run or an imported one, which must fit `layout`. `prefix` is what PEFT's model puts before a layer's
    /// path.
    ///
    /// # Errors
    ///
    /// Every reason why it cannot be started from.
    pub fn open(folder: &Path, own: &RunSpec, prefix: &str, layout: &Layout) -> Result<Self, Vec<String>> {
        let one = |problem: String| vec![problem];
        let text = |name: &str| {
            let path = folder.join(name);
            std::fs::read_to_string(&path).map_err(|error| one(format!("{}: {error}", path.display())))
        };
        ensure_finished(folder).map_err(|error| one(in_one_line(&error)))?;
        let settings = text(SETTINGS_FILE)?;
        let theirs: toml::Table =
            settings.parse().map_err(|error: toml::de::Error| one(error.to_string()))?;
        let mut problems = other_model(&theirs, &own.model).into_iter().collect::<Vec<_>>();
        let adapter = folder.join(ADAPTER);
        let saved = Saved::open(&adapter, prefix).map_err(|error| one(error.to_string()))?;
        problems.extend(saved.misfits(layout));
        if !problems.is_empty() {
            return Err(problems);
        }
        let tensors = adapter.join("adapter_model.safetensors");
        let bytes =
            std::fs::read(&tensors).map_err(|error| one(format!("{}: {error}", tensors.display())))?;
        let record = WarmStart {
            run: folder.display().to_string(),
            identity: identity(&settings),
            sha256: Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect(),
        };
        Ok(Self { saved, record })
    }
}

/// That an increment was trained over other frozen weights.
fn other_model(theirs: &toml::Table, own: &ModelSpec) -> Option<String> {
    let theirs = theirs.get("model")?;
    let own = toml::Value::try_from(own).expect("settings are TOML");
    // Dropout may differ from task to task.
    let weights = |model: &toml::Value| {
        let pretrained = model.get("pretrained").and_then(|pretrained| pretrained.get("checkpoint"));
        pretrained.or(model.get("random")).cloned()
    };
    let (theirs, own) = (weights(theirs), weights(&own));
    let show = |of: Option<toml::Value>| of.map_or("another kind".to_owned(), |of| of.to_string());
    (theirs != own).then(|| format!("was trained on the model {}, and this is {}", show(theirs), show(own)))
}
