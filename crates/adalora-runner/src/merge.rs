//! A finished run as a full checkpoint that `transformers` loads.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use adalora_models::{Merged, ModelConfig, Tuning};
use adalora_tasks::{Catalogue, Target};
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value, json};

use crate::finished::{FinishedRun, Trained};
use crate::plan::purpose;

/// Files of a tokenizer, of which a checkpoint has some.
const TOKENIZER: [&str; 8] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spm.model",
];

/// A folder that is to be made, or an empty one.
///
/// # Errors
///
/// If something is there.
pub(crate) fn new_folder(out: &Path) -> Result<()> {
    // What a link stands for is not ours to write to.
    let free =
        !out.is_symlink() && fs::read_dir(out).map_or(!out.exists(), |mut entries| entries.next().is_none());
    ensure!(free, "{} is there already: give the name of a new folder", out.display());
    fs::create_dir_all(out).with_context(|| out.display().to_string())
}

/// Writes the model with the run's increments in it and its head, `config.json` with the names of classes, and the
/// tokenizer, into `out`, which is created.
///
/// # Errors
///
/// A method that puts layers of its own into the encoder; what [`adalora_models::merge()`] refuses; a file that cannot be
/// read or written.
pub fn merge(run: &FinishedRun, catalogue: &Catalogue, out: &Path) -> Result<Merged> {
    let spec = run.spec();
    if let Tuning::Bottlenecks(..) = spec.adapter.tuning() {
        bail!(
            "[adapter.{}] puts layers into the encoder that a plain checkpoint has no place for: use its adapter/ folder",
            spec.adapter.name()
        );
    }
    let target = run.data(catalogue)?.target();
    let base = run.checkpoint(catalogue)?;
    let config = ModelConfig::open(&base)?;
    let trained = Trained::open(&run.adapter(), spec)?;
    let known: Vec<_> =
        config.linears().into_iter().map(|linear| format!("{}{}", config.prefix(), linear.path)).collect();
    let mut deltas = BTreeMap::new();
    for (module, increment) in trained.increments().filter(|(_, increment)| increment.rank() > 0) {
        ensure!(known.contains(module), "{} has no layer `{module}`", base.display());
        deltas.insert(module.clone(), increment.delta());
    }
    new_folder(out)?;
    let merged = adalora_models::merge(&base, &deltas, &trained.extras, &out.join("model.safetensors"))?;
    write_config(&base, out, &config, &target)?;
    for name in TOKENIZER.into_iter().filter(|name| base.join(name).is_file()) {
        fs::copy(base.join(name), out.join(name)).with_context(|| out.join(name).display().to_string())?;
    }
    Ok(merged)
}

/// The base's `config.json` for a model of this target.
fn write_config(base: &Path, out: &Path, config: &ModelConfig, target: &Target) -> Result<()> {
    let path = base.join("config.json");
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let mut settings: Map<String, Value> =
        serde_json::from_str(&text).with_context(|| path.display().to_string())?;
    settings.insert("architectures".into(), json!([purpose(target).architecture(config)]));
    let classes = match target {
        Target::Classes(names) => Some((names.clone(), "single_label_classification")),
        Target::Scores { width } => {
            Some(((0..*width).map(|number| format!("LABEL_{number}")).collect(), "regression"))
        }
        Target::Answers | Target::Summaries => None,
    };
    if let Some((labels, problem)) = classes {
        let numbered = labels.iter().enumerate();
        let names: Map<_, _> =
            numbered.clone().map(|(number, name)| (number.to_string(), json!(name))).collect();
        let numbers: Map<_, _> = numbered.map(|(number, name)| (name.clone(), json!(number))).collect();
        settings.insert("id2label".into(), Value::Object(names));
        settings.insert("label2id".into(), Value::Object(numbers));
        settings.insert("problem_type".into(), json!(problem));
    }
    let path = out.join("config.json");
    fs::write(&path, serde_json::to_string_pretty(&settings)? + "\n")
        .with_context(|| path.display().to_string())
}
