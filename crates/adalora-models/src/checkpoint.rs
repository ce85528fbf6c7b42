//! The tensors of a checkpoint, by name, checked against its configuration.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use adalora_adapter::Arena;
use adalora_adapter::random::Random;
use adalora_adapter::store::plain_shape;
use safetensors::{Dtype, SafeTensors};
use tch::{Device, Kind, Tensor};

use crate::merge::write;
use crate::torch_file::TorchFile;
use crate::{BartConfig, ModelConfig, ModelError};

/// A checkpoint: configuration, and the encoder's tensors under one spelling of their names.
///
/// The family's prefix is taken off, and the old `LayerNorm.gamma` and `beta` become `weight` and `bias`.
#[derive(Debug)]
pub struct Checkpoint {
    config: ModelConfig,
    tensors: BTreeMap<String, Tensor>,
}

/// A tensor of a file, before it is read.
#[derive(Debug)]
pub(crate) struct Stored {
    pub(crate) name: String,
    pub(crate) shape: Vec<i64>,
    pub(crate) dtype: Dtype,
    /// Another tensor of the file that is the same values in the same place.
    pub(crate) tied: Option<String>,
}

impl Stored {
    /// The dtype, if it is one that we read.
    pub(crate) fn kind(&self) -> Option<Kind> {
        match self.dtype {
            Dtype::F32 => Some(Kind::Float),
            Dtype::F16 => Some(Kind::Half),
            Dtype::BF16 => Some(Kind::BFloat16),
            _ => None,
        }
    }
}

/// The file of a checkpoint's folder that holds its tensors: `model.safetensors`, or else `pytorch_model.bin`.
///
/// # Errors
///
/// If the folder has neither.
pub fn tensors_file(folder: &Path) -> Result<PathBuf, ModelError> {
    let files = ["model.safetensors", "pytorch_model.bin"].map(|name| folder.join(name));
    let found = files.into_iter().find(|path| path.is_file());
    found.ok_or_else(|| ModelError::NoTensors { folder: folder.into() })
}

/// What tensors a file has, by their plain names.
pub(crate) type Contents = BTreeMap<String, Stored>;

/// Reads the tensors of a checkpoint's folder that `wanted` asks for, by plain name and shape, as f32: `prefix` is taken
/// off the file's names. What the file holds beyond them is left alone.
pub(crate) fn read(
    folder: &Path,
    prefix: &str,
    wanted: impl FnOnce(&Contents) -> Vec<(String, Vec<i64>)>,
) -> Result<BTreeMap<String, Tensor>, ModelError> {
    let path = tensors_file(folder)?;
    if path.extension().is_some_and(|extension| extension == "safetensors") {
        let bytes = std::fs::read(&path).map_err(|source| ModelError::File { path: path.clone(), source })?;
        let file = SafeTensors::deserialize(&bytes)
            .map_err(|source| ModelError::Format { path: path.clone(), source })?;
        let stored = file.iter().map(|(name, view)| {
            let too_large = || ModelError::Uncountable {
                path: path.clone(),
                name: name.into(),
                found: view.shape().to_vec(),
            };
            Ok(Stored {
                name: name.to_owned(),
                shape: plain_shape(view.shape()).ok_or_else(too_large)?,
                dtype: view.dtype(),
                // In this format tensors never overlap: of tied ones one is written.
                tied: None,
            })
        });
        let stored = stored.collect::<Result<Vec<_>, ModelError>>()?;
        read_file(&path, prefix, stored.into_iter(), wanted, |own, kind| {
            let view = file.tensor(&own.name).expect("the name is one of the file's");
            Ok(Tensor::from_data_size(view.data(), &own.shape, kind).to_kind(Kind::Float))
        })
    } else {
        let mut file = TorchFile::open(&path)?;
        let stored: Vec<_> = file.stored().collect();
        read_file(&path, prefix, stored.into_iter(), wanted, |own, kind| {
            file.tensor(&own.name, kind)
                .map_err(|problem| ModelError::TorchFile { path: path.clone(), problem })
        })
    }
}

/// Reads what is wanted of what a file has. `values` gives a tensor, whose dtype is the second argument, as f32.
fn read_file(
    path: &Path,
    prefix: &str,
    stored: impl Iterator<Item = Stored>,
    wanted: impl FnOnce(&Contents) -> Vec<(String, Vec<i64>)>,
    mut values: impl FnMut(&Stored, Kind) -> Result<Tensor, ModelError>,
) -> Result<BTreeMap<String, Tensor>, ModelError> {
    let stored: Contents = stored.map(|own| (plain_name(&own.name, prefix), own)).collect();
    let (mut tensors, mut missing) = (BTreeMap::new(), Vec::new());
    for (name, expected) in wanted(&stored) {
        let Some(own) = stored.get(&name) else {
            missing.push(name);
            continue;
        };
        let path = path.to_owned();
        if own.shape != expected {
            return Err(ModelError::Shape { path, name, expected, found: own.shape.clone() });
        }
        let Some(kind) = own.kind() else {
            return Err(ModelError::Dtype { path, name, found: format!("{:?}", own.dtype) });
        };
        tensors.insert(name, values(own, kind)?);
    }
    if missing.is_empty() {
        Ok(tensors)
    } else {
        Err(ModelError::Missing { path: path.into(), names: missing })
    }
}

/// Tensors that `transformers` puts beside the model, without its prefix.
const HEADS: [&str; 4] = ["classifier.weight", "classifier.bias", "qa_outputs.weight", "qa_outputs.bias"];

impl Checkpoint {
    /// Reads a folder in Hugging Face's layout. Tensors become f32.
    ///
    /// # Errors
    ///
    /// A file that is missing, malformed or truncated; tensors that are missing, or whose shape is not what the
    /// configuration says. What the file holds beyond them is left alone, copies of BART's embedding table among it.
    pub fn open(folder: &Path) -> Result<Self, ModelError> {
        let config = ModelConfig::open(folder)?;
        let tensors = read(folder, config.prefix(), |stored| {
            let optional = config.optional_tensors().into_iter();
            let optional = optional.filter(|(name, _)| stored.contains_key(name));
            // A head of the checkpoint is of another task, unless its shape says otherwise: see `HeadStart`.
            let heads = HEADS
                .into_iter()
                .filter_map(|name| stored.get(name).map(|own| (name.to_owned(), own.shape.clone())));
            config.tensors().into_iter().chain(optional).chain(heads).collect()
        })?;
        Ok(Self::complete(config, tensors))
    }

    fn complete(config: ModelConfig, mut tensors: BTreeMap<String, Tensor>) -> Self {
        if let ModelConfig::Bart(bart) = &config {
            // Checkpoints that were only pretrained have none.
            let (name, shape) = bart.logits_bias();
            tensors
                .entry(name)
                .or_insert_with(|| Tensor::zeros(shape.as_slice(), (Kind::Float, Device::Cpu)));
        }
        Self { config, tensors }
    }

    /// A BART that has learned nothing: weights and embeddings are normal with the configuration's `init_std`, LayerNorm
    /// does nothing, biases are 0, as `transformers` has it.
    pub fn untrained(config: BartConfig, seed: u64) -> Self {
        let mut random = Random::new(seed, "random bart");
        let tensors = config.tensors().into_iter().map(|(name, shape)| {
            let is_norm = name.contains("layer_norm") || name.contains("layernorm");
            let tensor = if name.ends_with("bias") {
                Tensor::zeros(shape.as_slice(), (Kind::Float, Device::Cpu))
            } else if is_norm {
                Tensor::ones(shape.as_slice(), (Kind::Float, Device::Cpu))
            } else {
                random.normal(&shape, config.init_std as f32)
            };
            (name, tensor)
        });
        let tensors = tensors.collect();
        Self::complete(ModelConfig::Bart(config), tensors)
    }

    /// An encoder with random weights, head of `outputs` logits included: linear layers keep the size of what passes
    /// through them, embeddings are standard normal, LayerNorm does nothing, biases are 0.
    pub fn random(config: ModelConfig, outputs: usize, seed: u64) -> Self {
        let mut random = Random::new(seed, "random encoder");
        let classifier = [
            ("classifier.weight".to_owned(), vec![outputs as i64, config.hidden_size() as i64]),
            ("classifier.bias".to_owned(), vec![outputs as i64]),
        ];
        let shapes = config.tensors().into_iter().chain(config.optional_tensors()).chain(classifier);
        let tensors = shapes
            .map(|(name, shape)| {
                let tensor = if name.ends_with("LayerNorm.weight") {
                    Tensor::ones(shape.as_slice(), (Kind::Float, Device::Cpu))
                } else if name.ends_with("bias") {
                    Tensor::zeros(shape.as_slice(), (Kind::Float, Device::Cpu))
                } else if name.contains("embeddings") {
                    random.normal(&shape, 1.0)
                } else {
                    let inputs: i64 = shape[1..].iter().product();
                    random.normal(&shape, 1.0 / (inputs as f32).sqrt())
                };
                (name, tensor)
            })
            .collect();
        Self { config, tensors }
    }

    /// The same checkpoint with a classifier that gives `(logits - mean) / deviation`; both are `(outputs,)`.
    pub fn with_standard_outputs(&self, mean: &Tensor, deviation: &Tensor) -> Self {
        let mut tensors = self.copies();
        let weight = tensors.get_mut("classifier.weight").expect("the checkpoint has a classifier");
        *weight = &*weight / deviation.unsqueeze(1);
        let bias = tensors.get_mut("classifier.bias").expect("the checkpoint has a classifier");
        *bias = (&*bias - mean) / deviation;
        Self { config: self.config.clone(), tensors }
    }

    /// The same checkpoint with an increment of rank `rank` on each of the given linear layers: a product of normal
    /// factors, of `strength` times the norm of the weight.
    pub fn with_increments(&self, paths: &[String], rank: usize, strength: f64, seed: u64) -> Self {
        let mut random = Random::new(seed, "increments");
        let mut tensors = self.copies();
        for path in paths {
            let weight = tensors.get_mut(&format!("{path}.weight")).expect("a linear layer of the encoder");
            let (d_out, d_in) = weight.size2().expect("a linear layer's weight is a matrix");
            let increment =
                random.normal(&[d_out, rank as i64], 1.0).matmul(&random.normal(&[rank as i64, d_in], 1.0));
            let factor = weight.norm() * strength / increment.norm();
            *weight = &*weight + increment * factor;
        }
        Self { config: self.config.clone(), tensors }
    }

    fn copies(&self) -> BTreeMap<String, Tensor> {
        self.tensors.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).collect()
    }

    /// The same checkpoint with the encoder's tensors in another dtype. The head is trained, and stays as it is.
    pub fn to_kind(&self, kind: Kind) -> Self {
        let mut tensors = self.copies();
        for (name, _) in self.config.tensors() {
            let tensor = tensors.get_mut(&name).expect("a checkpoint has every tensor of the encoder");
            *tensor = tensor.to_kind(kind);
        }
        Self { config: self.config.clone(), tensors }
    }

    /// The same checkpoint with leaves of the arena in the place of those tensors of the encoder that it trains.
    pub(crate) fn over(&self, arena: &Arena) -> Self {
        let mut tensors = self.copies();
        let prefix = self.config.prefix();
        let own: BTreeSet<_> = self.config.tensors().into_iter().map(|(name, _)| name).collect();
        for (name, leaf) in arena.extras() {
            if let Some(plain) = name.strip_prefix(prefix).filter(|plain| own.contains(*plain)) {
                tensors.insert(plain.to_owned(), leaf.shallow_clone());
            }
        }
        Self { config: self.config.clone(), tensors }
    }

    /// Writes the tensors to `file`, a new `model.safetensors`, under the names that `transformers` gives them.
    ///
    /// # Errors
    ///
    /// A file that cannot be written.
    pub fn save(&self, file: &Path) -> Result<(), ModelError> {
        let prefix = self.config.prefix();
        let named = self.tensors.iter().map(|(name, tensor)| {
            let is_beside = HEADS.contains(&name.as_str()) || name == "final_logits_bias";
            (if is_beside { name.clone() } else { format!("{prefix}{name}") }, tensor.shallow_clone())
        });
        write(&named.collect(), file)
    }

    /// The configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// A tensor of [`ModelConfig::tensors`], or BART's `final_logits_bias`, on `device`.
    ///
    /// # Panics
    ///
    /// For another name.
    pub fn tensor(&self, name: &str, device: Device) -> Tensor {
        self.tensors
            .get(name)
            .expect("every tensor of the model was checked when the checkpoint was opened")
            .to(device)
    }

    /// A tensor that a checkpoint may lack.
    pub(crate) fn find(&self, name: &str) -> Option<Tensor> {
        self.tensors.get(name).map(Tensor::shallow_clone)
    }
}

impl ModelConfig {
    /// Name and shape of the pooler, which a checkpoint may lack.
    /// Name and shape of what a checkpoint may lack: an encoder's pooler, and the bias of BART's logits.
    fn optional_tensors(&self) -> Vec<(String, Vec<i64>)> {
        match self {
            Self::Bert(_) | Self::Deberta(_) => {
                let hidden = self.hidden_size() as i64;
                let (weight, bias) = ("pooler.dense.weight".into(), "pooler.dense.bias".into());
                vec![(weight, vec![hidden, hidden]), (bias, vec![hidden])]
            }
            Self::Bart(config) => vec![config.logits_bias()],
        }
    }
}

fn plain_name(name: &str, prefix: &str) -> String {
    let name = name.strip_prefix(prefix).unwrap_or(name);
    name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
}
