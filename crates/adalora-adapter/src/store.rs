//! An adapter on disk, with PEFT's names and shapes.
//!
//! A folder with `adapter_model.safetensors` and `adapter_config.json`. Only live triplets are written, so a tensor
//! may have a dimension of 0; `rank_pattern` in the configuration says which triplets of the initial ones they were.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::Serialize;
use tch::{Device, Kind, Tensor};

use crate::arena::Arena;
use crate::layout::{Form, Triplets};

/// The file of tensors in an adapter's folder.
pub(crate) const TENSORS: &str = "adapter_model.safetensors";

/// The file of settings in an adapter's folder.
pub(crate) const CONFIG: &str = "adapter_config.json";

/// What PEFT wants to know beside the tensors.
#[derive(Debug, Clone)]
pub struct Description {
    /// Name or folder of the base checkpoint.
    pub base_model: String,
    /// What PEFT's model puts before a layer's path, such as `bert.`.
    pub prefix: String,
    /// What PEFT calls the model's purpose, such as `SEQ_CLS`.
    pub task_type: &'static str,
    /// Paths of the adapted layers, or ends of them, as PEFT matches them.
    pub target_modules: Vec<String>,
    /// Names of trained modules outside the adapters.
    pub modules_to_save: Vec<String>,
    /// Initial rank of the adapters, the highest where they differ.
    pub init_r: usize,
    /// Average rank at the end.
    pub target_r: usize,
    /// The field's `alpha`. Whoever loads the folder scales increments by `alpha / init_r`.
    pub alpha: f64,
    /// What the increment of each adapter is multiplied by in truth. Where that is not `alpha / init_r`, lambda is
    /// written multiplied by the quotient of both; for LoRA PEFT has a key, `alpha_pattern`.
    pub scales: Vec<f64>,
    /// Optimizer steps of the run.
    pub total_steps: usize,
}

/// Why an adapter could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file could not be written or read.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Not a safetensors file, or a truncated one.
    #[error("{path} is not a whole safetensors file: {source}")]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: safetensors::SafeTensorError,
    },
    /// The configuration does not say what is expected of one.
    #[error("{path}: {rule}")]
    Config {
        /// The file.
        path: PathBuf,
        /// The rule it breaks.
        rule: String,
    },
    /// A tensor of an adapter lacks its counterpart, or has another dtype or shape.
    #[error("{path}: tensor `{name}` {rule}")]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// The rule it breaks.
        rule: String,
    },
}

#[derive(Serialize)]
struct Config<'a> {
    peft_type: &'static str,
    task_type: &'static str,
    base_model_name_or_path: &'a str,
    target_modules: &'a [String],
    modules_to_save: &'a [String],
    lora_alpha: f64,
    lora_dropout: f64,
    bias: &'static str,
    inference_mode: bool,
    fan_in_fan_out: bool,
    init_lora_weights: bool,
    r: usize,
    #[serde(flatten)]
    ragged: Ragged,
}

/// What each of PEFT's two configurations says of ranks and scales.
#[derive(Serialize)]
#[serde(untagged)]
enum Ragged {
    AdaLora {
        init_r: usize,
        target_r: usize,
        total_step: usize,
        rank_pattern: BTreeMap<String, Vec<bool>>,
    },
    Lora {
        /// Ranks other than `r`.
        rank_pattern: BTreeMap<String, usize>,
        /// Values in the place of `lora_alpha`, which PEFT divides by the layer's own rank.
        alpha_pattern: BTreeMap<String, f64>,
    },
}

/// The configuration of what is trained beside increments of low rank, which PEFT has no type for.
#[derive(Debug, Clone, Serialize)]
pub struct Tuned {
    /// The method's name in an experiment file.
    pub method: String,
    /// Name or folder of the base checkpoint.
    pub base_model_name_or_path: String,
    /// Width of the bottlenecks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub width: Option<usize>,
}

/// Writes an arena without increments into `folder`, which is created: names and place as [`save`] has them.
///
/// # Errors
///
/// If a file cannot be written.
pub fn save_tuned(folder: &Path, arena: &Arena, tuned: &Tuned) -> Result<(), StoreError> {
    let config = serde_json::to_value(tuned).expect("a configuration has no keys but strings");
    write(folder, config, &extras(arena))
}

/// Writes an arena that holds only live triplets into `folder`, which is created.
///
/// `live` says which of the initial triplets those are: a flag for each, by adapter. A LoRA of rank 0 is left out, as
/// PEFT knows none.
///
/// # Errors
///
/// If a file cannot be written.
///
/// # Panics
///
/// If the arena has another number of triplets than `live` has flags, or there is not one scale for each adapter.
pub fn save(
    folder: &Path,
    arena: &Arena,
    live: &[&[bool]],
    description: &Description,
) -> Result<(), StoreError> {
    let layout = arena.layout();
    let ranks = live.iter().map(|flags| flags.iter().filter(|live| **live).count());
    assert!(layout.ranks().into_iter().eq(ranks), "the arena holds the live triplets and no others");
    assert_eq!(description.scales.len(), layout.adapters(), "one scale for each adapter");
    let mut tensors = extras(arena);
    let (mut flags_pattern, mut rank_pattern, mut alpha_pattern) =
        (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    let mut target_modules = description.target_modules.clone();
    let loaded_scale = description.alpha / description.init_r as f64;
    for ((adapter, site), flags) in layout.sites().iter().enumerate().zip(live) {
        let scale = description.scales[adapter];
        if layout.form() == Form::Lora {
            if site.rank == 0 {
                target_modules.retain(|target| *target != site.path);
                continue;
            }
            if site.rank != description.init_r {
                rank_pattern.insert(site.path.clone(), site.rank);
            }
            if scale != description.alpha / site.rank as f64 {
                alpha_pattern.insert(site.path.clone(), scale * site.rank as f64);
            }
        }
        let Triplets { q, p, lambda } = layout.triplets(arena.param(), adapter);
        let name = |part| tensor_name(layout.form(), &description.prefix, &site.path, part);
        tensors.insert(name("lora_A"), q);
        tensors.insert(name("lora_B"), p.tr());
        if let Some(lambda) = lambda {
            let lambda = if scale == loaded_scale { lambda } else { lambda * (scale / loaded_scale) };
            tensors.insert(name("lora_E"), lambda.unsqueeze(1));
            let mut flags = flags.to_vec();
            flags.resize(description.init_r, false);
            flags_pattern.insert(format!("{}{}.lora_E", description.prefix, site.path), flags);
        }
    }
    let (peft_type, ragged) = match layout.form() {
        Form::Svd => {
            let &Description { init_r, target_r, total_steps: total_step, .. } = description;
            ("ADALORA", Ragged::AdaLora { init_r, target_r, total_step, rank_pattern: flags_pattern })
        }
        Form::Lora => ("LORA", Ragged::Lora { rank_pattern, alpha_pattern }),
    };
    let config = Config {
        peft_type,
        task_type: description.task_type,
        base_model_name_or_path: &description.base_model,
        target_modules: &target_modules,
        modules_to_save: &description.modules_to_save,
        lora_alpha: description.alpha,
        lora_dropout: 0.0,
        bias: "none",
        inference_mode: true,
        fan_in_fan_out: false,
        init_lora_weights: true,
        r: description.init_r,
        ragged,
    };
    write(folder, serde_json::to_value(&config).expect("a configuration has no keys but strings"), &tensors)
}

/// What is trained beside increments, by its name in the file.
fn extras(arena: &Arena) -> BTreeMap<String, Tensor> {
    arena.extras().iter().map(|(name, leaf)| (format!("base_model.model.{name}"), leaf.detach())).collect()
}

/// Writes configuration and tensors into `folder`, which is created.
pub(crate) fn write(
    folder: &Path,
    config: serde_json::Value,
    tensors: &BTreeMap<String, Tensor>,
) -> Result<(), StoreError> {
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| StoreError::Io { path, source }
    };
    std::fs::create_dir_all(folder).map_err(io(folder))?;
    let path = folder.join(CONFIG);
    let config = serde_json::to_string_pretty(&config).expect("a value can be written") + "\n";
    std::fs::write(&path, config).map_err(io(&path))?;
    write_tensors(&folder.join(TENSORS), tensors)
}

/// Reads what [`save`] or [`save_tuned`] wrote into an arena that was built for it: of the same method and layers, with
/// the ranks that are in the file. `prefix` is that of the [`Description`]. Lambda is as it was written, for a scale of
/// `alpha / init_r`.
///
/// # Errors
///
/// A file that cannot be read; a tensor that the arena has and the file lacks, or the other way round, or whose shape is
/// another. The arena is then as it was.
pub fn load(folder: &Path, arena: &Arena, prefix: &str) -> Result<(), StoreError> {
    let path = folder.join(TENSORS);
    let mut tensors = read_tensors(&path)?;
    let problem =
        |name: &str, rule: String| StoreError::Tensor { path: path.clone(), name: name.into(), rule };
    let layout = arena.layout();
    let mut wanted = extras(arena);
    for (adapter, site) in layout.sites().iter().enumerate() {
        if layout.form() == Form::Lora && site.rank == 0 {
            continue;
        }
        let Triplets { q, p, lambda } = layout.triplets(arena.param(), adapter);
        let parts =
            [("lora_A", Some(q)), ("lora_B", Some(p.tr())), ("lora_E", lambda.map(|e| e.unsqueeze(1)))];
        for (part, own) in parts {
            wanted.extend(own.map(|own| (tensor_name(layout.form(), prefix, &site.path, part), own)));
        }
    }
    let mut found = Vec::new();
    for (name, own) in wanted {
        let tensor = tensors.remove(&name).ok_or_else(|| problem(&name, "is not there".into()))?;
        if tensor.size() != own.size() {
            return Err(problem(&name, format!("is {:?}, expected {:?}", tensor.size(), own.size())));
        }
        found.push((own, tensor));
    }
    if let Some(name) = tensors.keys().next() {
        return Err(problem(name, "belongs to nothing that is trained here".into()));
    }
    let _guard = tch::no_grad_guard();
    found.into_iter().for_each(|(mut own, tensor)| own.copy_(&tensor));
    Ok(())
}

/// As PEFT names it.
fn tensor_name(form: Form, prefix: &str, path: &str, part: &str) -> String {
    let ending = if form == Form::Lora { ".weight" } else { "" };
    format!("base_model.model.{prefix}{path}.{part}{ending}")
}

/// Writes f32 tensors as a safetensors file, sorted by name.
///
/// # Errors
///
/// If the file cannot be written.
pub fn write_tensors(path: &Path, tensors: &BTreeMap<String, Tensor>) -> Result<(), StoreError> {
    let contents: Vec<(&str, Vec<usize>, Vec<u8>)> = tensors
        .iter()
        .map(|(name, tensor)| {
            let shape = tensor.size().iter().map(|&d| d as usize).collect();
            let flat = tensor.to_device(Device::Cpu).to_kind(Kind::Float).contiguous().view(-1);
            let values = Vec::<f32>::try_from(flat).expect("a flat f32 tensor");
            (name.as_str(), shape, values.iter().flat_map(|value| value.to_le_bytes()).collect())
        })
        .collect();
    let views = contents.iter().map(|(name, shape, bytes)| {
        (*name, TensorView::new(Dtype::F32, shape.clone(), bytes).expect("four bytes for each value"))
    });
    let metadata = [("format".to_owned(), "pt".to_owned())].into();
    let bytes = safetensors::serialize(views, Some(metadata)).expect("names are distinct");
    std::fs::write(path, bytes).map_err(|source| StoreError::Io { path: path.to_owned(), source })
}

/// A shape as libtorch counts it; `None` for one that it cannot count. A tensor without elements takes no bytes in a
/// file, whatever its other dimensions claim.
pub fn plain_shape(shape: &[usize]) -> Option<Vec<i64>> {
    let shape: Vec<i64> = shape.iter().map(|&size| size.try_into().ok()).collect::<Option<_>>()?;
    shape.iter().try_fold(1i64, |count, &size| count.checked_mul(size.max(1)))?;
    Some(shape)
}

/// Reads all tensors of a safetensors file to the CPU, as f32: of 32 bits, or of 16, of which every value is one of f32.
///
/// # Errors
///
/// If the file cannot be read, is no whole safetensors file, or holds another dtype.
pub fn read_tensors(path: &Path) -> Result<BTreeMap<String, Tensor>, StoreError> {
    let bytes = std::fs::read(path).map_err(|source| StoreError::Io { path: path.to_owned(), source })?;
    let file = SafeTensors::deserialize(&bytes)
        .map_err(|source| StoreError::Format { path: path.to_owned(), source })?;
    file.iter()
        .map(|(name, view)| {
            let problem =
                |rule: String| StoreError::Tensor { path: path.to_owned(), name: name.to_owned(), rule };
            let kind = match view.dtype() {
                Dtype::F32 => Kind::Float,
                Dtype::F16 => Kind::Half,
                Dtype::BF16 => Kind::BFloat16,
                other => return Err(problem(format!("is {other:?}, expected F32, F16 or BF16"))),
            };
            let shape = plain_shape(view.shape())
                .ok_or_else(|| problem(format!("is {:?}, which no tensor can be", view.shape())))?;
            Ok((name.to_owned(), Tensor::from_data_size(view.data(), &shape, kind).to_kind(Kind::Float)))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arena::{Extra, ParameterKind};
    use crate::layout::{Layout, Site};

    fn description() -> Description {
        Description {
            base_model: "bert-tiny".into(),
            prefix: "bert.".into(),
            task_type: "SEQ_CLS",
            target_modules: vec!["fc".into()],
            modules_to_save: vec!["classifier".into()],
            init_r: 3,
            target_r: 1,
            alpha: 6.0,
            scales: vec![2.0; 2],
            total_steps: 10,
        }
    }

    fn arena(form: Form) -> Arena {
        let site = |path: &str, d_in, d_out| Site { path: path.into(), d_in, d_out, rank: 3 };
        let layout = Layout::new(form, vec![site("layer.0.fc", 4, 2), site("layer.1.fc", 2, 5)]);
        let extra = Extra {
            name: "classifier.bias".into(),
            start: Tensor::from_slice(&[1f32, 2.0]),
            kind: ParameterKind::Bias,
        };
        let arena = Arena::new(layout, vec![extra], Device::Cpu, 1);
        let _guard = tch::no_grad_guard();
        let _ = arena.param().shallow_clone().normal_(0.0, 1.0);
        arena
    }

    #[test]
    fn only_live_triplets_are_written_under_pefts_names() {
        let folder = tempfile::tempdir().unwrap();
        let (arena, _) = arena(Form::Svd).compact(&[true, false, true, false, false, false]);
        save(folder.path(), &arena, &[&[true, false, true], &[false; 3]], &description()).unwrap();

        let read = read_tensors(&folder.path().join("adapter_model.safetensors")).unwrap();
        let shapes: Vec<_> =
            read.iter().map(|(name, tensor)| format!("{name} {:?}", tensor.size())).collect();
        assert_eq!(
            shapes,
            [
                "base_model.model.bert.layer.0.fc.lora_A [2, 4]",
                "base_model.model.bert.layer.0.fc.lora_B [2, 2]",
                "base_model.model.bert.layer.0.fc.lora_E [2, 1]",
                "base_model.model.bert.layer.1.fc.lora_A [0, 2]",
                "base_model.model.bert.layer.1.fc.lora_B [5, 0]",
                "base_model.model.bert.layer.1.fc.lora_E [0, 1]",
                "base_model.model.classifier.bias [2]",
            ]
        );
        let own = arena.layout().triplets(arena.param(), 0);
        assert_eq!(read["base_model.model.bert.layer.0.fc.lora_A"].get(1), own.q.get(1));
        assert_eq!(read["base_model.model.bert.layer.0.fc.lora_B"].select(1, 1), own.p.get(1));

        let config = std::fs::read_to_string(folder.path().join("adapter_config.json")).unwrap();
        let config: serde_json::Value = serde_json::from_str(&config).unwrap();
        assert_eq!(config["peft_type"], "ADALORA");
        assert_eq!(config["rank_pattern"]["bert.layer.0.fc.lora_E"], serde_json::json!([true, false, true]));
    }

    #[test]
    fn lora_has_its_own_names_and_no_pattern() {
        let folder = tempfile::tempdir().unwrap();
        save(folder.path(), &arena(Form::Lora), &[&[true; 3], &[true; 3]], &description()).unwrap();
        let read = read_tensors(&folder.path().join("adapter_model.safetensors")).unwrap();
        assert_eq!(read.len(), 5);
        assert!(read.contains_key("base_model.model.bert.layer.1.fc.lora_B.weight"));
        let config = std::fs::read_to_string(folder.path().join("adapter_config.json")).unwrap();
        let config: serde_json::Value = serde_json::from_str(&config).unwrap();
        assert_eq!(config["peft_type"], "LORA");
        assert_eq!([&config["rank_pattern"], &config["alpha_pattern"]], [&serde_json::json!({}); 2]);
    }

    #[test]
    fn scales_of_their_own_are_folded_into_lambda() {
        let folder = tempfile::tempdir().unwrap();
        let (arena, _) = arena(Form::Svd).compact(&[true, false, true, true, true, true]);
        let scales = vec![3.0, 2.0];
        let description = Description { scales, ..description() };
        save(folder.path(), &arena, &[&[true, false, true], &[true; 3]], &description).unwrap();
        let read = read_tensors(&folder.path().join("adapter_model.safetensors")).unwrap();
        // Loaded with alpha / init_r = 2: the first is scaled by 3.
        for (adapter, (path, factor)) in [("layer.0.fc", 1.5), ("layer.1.fc", 1.0)].into_iter().enumerate() {
            let own = arena.layout().triplets(arena.param(), adapter).lambda.unwrap() * factor;
            assert_eq!(read[&format!("base_model.model.bert.{path}.lora_E")].squeeze_dim(1), own);
        }
    }

    #[test]
    fn a_ragged_lora_names_ranks_and_scales_as_peft_does() {
        let folder = tempfile::tempdir().unwrap();
        let site = |path: &str, rank| Site { path: path.into(), d_in: 4, d_out: 5, rank };
        let sites = vec![site("layer.0.fc", 1), site("layer.1.fc", 0), site("layer.2.fc", 3)];
        let arena = Arena::new(Layout::new(Form::Lora, sites), vec![], Device::Cpu, 1);
        let description = Description {
            target_modules: (0..3).map(|layer| format!("layer.{layer}.fc")).collect(),
            scales: vec![6.0, 6.0, 6.0],
            ..description()
        };
        save(folder.path(), &arena, &[&[true], &[], &[true; 3]], &description).unwrap();
        let read = read_tensors(&folder.path().join("adapter_model.safetensors")).unwrap();
        assert_eq!(read.len(), 4);
        let config = std::fs::read_to_string(folder.path().join("adapter_config.json")).unwrap();
        let config: serde_json::Value = serde_json::from_str(&config).unwrap();
        assert_eq!(config["target_modules"], serde_json::json!(["layer.0.fc", "layer.2.fc"]));
        assert_eq!(config["rank_pattern"], serde_json::json!({ "layer.0.fc": 1 }));
        // Its own alpha over its own rank: 6 / 1 as it is, 18 / 3.
        assert_eq!(config["alpha_pattern"], serde_json::json!({ "layer.2.fc": 18.0 }));
    }

    #[test]
    fn pruned_lora_keeps_its_scale_and_leaves_empty_adapters_out() {
        let folder = tempfile::tempdir().unwrap();
        let mut description = description();
        description.target_modules = vec!["layer.0.fc".into(), "layer.1.fc".into()];
        let (pruned, _) = arena(Form::Lora).compact(&[true, false, true, false, false, false]);
        save(folder.path(), &pruned, &[&[true, false, true], &[false; 3]], &description).unwrap();
        let config = std::fs::read_to_string(folder.path().join("adapter_config.json")).unwrap();
        let config: serde_json::Value = serde_json::from_str(&config).unwrap();
        assert_eq!(config["target_modules"], serde_json::json!(["layer.0.fc"]));
        assert_eq!(config["rank_pattern"], serde_json::json!({ "layer.0.fc": 2 }));
        // PEFT scales by 4 over 2, as it was scaled by 6 over 3.
        assert_eq!(config["alpha_pattern"], serde_json::json!({ "layer.0.fc": 4.0 }));
        assert_eq!(read_tensors(&folder.path().join(TENSORS)).unwrap().len(), 3);
    }

    #[test]
    fn what_was_saved_is_loaded_and_what_does_not_fit_is_named() {
        let live = [true, false, true, false, false, false];
        for form in [Form::Svd, Form::Lora] {
            let folder = tempfile::tempdir().unwrap();
            let (saved, _) = arena(form).compact(&live);
            save(folder.path(), &saved, &[&live[..3], &live[3..]], &description()).unwrap();
            let (other, _) = arena(form).compact(&live);
            let _ = tch::no_grad(|| other.param().shallow_clone().zero_());
            load(folder.path(), &other, "bert.").unwrap();
            assert_eq!(other.param(), saved.param());

            let whole = arena(form);
            let before = whole.param().copy();
            let error = load(folder.path(), &whole, "bert.").unwrap_err().to_string();
            assert!(
                error.contains("layer.0.fc.lora_A") && error.contains("is [2, 4], expected [3, 4]"),
                "{error}"
            );
            assert_eq!(whole.param(), &before);
        }
    }

    #[test]
    fn a_shape_that_nothing_can_have_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("odd.safetensors");
        // Safetensors itself sees 0 elements, as many as there are bytes.
        for shape in ["[0,9223372036854775808]", "[2147483648,4294967296,0]"] {
            let header = format!(r#"{{"x":{{"dtype":"F32","shape":{shape},"data_offsets":[0,0]}}}}"#);
            let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat();
            std::fs::write(&path, bytes).unwrap();
            let error = read_tensors(&path).unwrap_err().to_string();
            assert!(
                error.contains("tensor `x` is [") && error.ends_with("which no tensor can be"),
                "{error}"
            );
        }
    }

    #[test]
    fn a_truncated_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cut.safetensors");
        write_tensors(&path, &[("x".to_owned(), Tensor::from_slice(&[1f32, 2.0]))].into()).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() - 3]).unwrap();
        let error = read_tensors(&path).unwrap_err().to_string();
        assert!(error.contains("cut.safetensors is not a whole safetensors file"), "{error}");
    }
}
