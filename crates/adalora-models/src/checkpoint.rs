//! The tensors of a checkpoint, by name, checked against its configuration.

use std::collections::BTreeMap;
use std::path::Path;

use adalora_adapter::random::Random;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use tch::{Device, Kind, Tensor};

use crate::{BertConfig, ModelError};

/// A BERT-family checkpoint: configuration, and f32 tensors under one spelling of their names.
///
/// The prefix `bert.` is taken off, and the old `LayerNorm.gamma` and `beta` become `weight` and `bias`.
#[derive(Debug)]
pub struct Checkpoint {
    config: BertConfig,
    tensors: BTreeMap<String, Tensor>,
}

impl Checkpoint {
    /// Reads a folder in Hugging Face's layout.
    ///
    /// # Errors
    ///
    /// A file that is missing, malformed or truncated; tensors of the encoder that are missing, or whose shape is
    /// not what the configuration says. What the file holds beyond the encoder is left alone.
    pub fn open(folder: &Path) -> Result<Self, ModelError> {
        let config = BertConfig::open(folder)?;
        let path = folder.join("model.safetensors");
        let bytes = std::fs::read(&path).map_err(|source| ModelError::File { path: path.clone(), source })?;
        let file = SafeTensors::deserialize(&bytes)
            .map_err(|source| ModelError::Format { path: path.clone(), source })?;
        let views: BTreeMap<_, _> = file.iter().map(|(name, view)| (plain_name(name), view)).collect();

        let mut tensors = BTreeMap::new();
        let mut missing = Vec::new();
        let head = config.head_tensors().into_iter().filter(|(name, _)| views.contains_key(name));
        for (name, expected) in config.tensors().into_iter().chain(head) {
            let Some(view) = views.get(&name) else {
                missing.push(name);
                continue;
            };
            let found: Vec<i64> = view.shape().iter().map(|&d| d as i64).collect();
            if found != expected {
                return Err(ModelError::Shape { path, name, expected, found });
            }
            let Some(tensor) = to_f32(view) else {
                return Err(ModelError::Dtype { path, name, found: format!("{:?}", view.dtype()) });
            };
            tensors.insert(name, tensor);
        }
        // A classifier of the checkpoint is of another task, unless its shape says otherwise: see `Head::start`.
        for name in ["classifier.weight", "classifier.bias"] {
            if let Some(tensor) = views.get(name).and_then(to_f32) {
                tensors.insert(name.to_owned(), tensor);
            }
        }
        if missing.is_empty() {
            Ok(Self { config, tensors })
        } else {
            Err(ModelError::Missing { path, names: missing })
        }
    }

    /// A model with random weights, head of `outputs` logits included: linear layers keep the size of what passes
    /// through them, embeddings are standard normal, LayerNorm does nothing, biases are 0.
    pub fn random(config: BertConfig, outputs: usize, seed: u64) -> Self {
        let mut random = Random::new(seed, "random encoder");
        let classifier = [
            ("classifier.weight".to_owned(), vec![outputs as i64, config.hidden_size as i64]),
            ("classifier.bias".to_owned(), vec![outputs as i64]),
        ];
        let shapes = config.tensors().into_iter().chain(config.head_tensors()).chain(classifier);
        let tensors = shapes
            .map(|(name, shape)| {
                let tensor = if name.ends_with("LayerNorm.weight") {
                    Tensor::ones(shape.as_slice(), (Kind::Float, Device::Cpu))
                } else if name.ends_with("bias") {
                    Tensor::zeros(shape.as_slice(), (Kind::Float, Device::Cpu))
                } else if name.starts_with("embeddings") {
                    random.normal(&shape, 1.0)
                } else {
                    random.normal(&shape, 1.0 / (shape[1] as f32).sqrt())
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

    /// The configuration.
    pub fn config(&self) -> &BertConfig {
        &self.config
    }

    /// A tensor of the encoder, on `device`.
    pub(crate) fn tensor(&self, name: &str, device: Device) -> Tensor {
        self.tensors
            .get(name)
            .expect("every tensor of the encoder was checked when the checkpoint was opened")
            .to(device)
    }

    /// A tensor that a checkpoint may lack.
    pub(crate) fn find(&self, name: &str) -> Option<Tensor> {
        self.tensors.get(name).map(Tensor::shallow_clone)
    }
}

impl BertConfig {
    /// Name and shape of the pooler, which a checkpoint may lack.
    fn head_tensors(&self) -> [(String, Vec<i64>); 2] {
        let hidden = self.hidden_size as i64;
        [("pooler.dense.weight".into(), vec![hidden, hidden]), ("pooler.dense.bias".into(), vec![hidden])]
    }
}

fn plain_name(name: &str) -> String {
    let name = name.strip_prefix("bert.").unwrap_or(name);
    name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
}

fn to_f32(view: &TensorView) -> Option<Tensor> {
    let kind = match view.dtype() {
        Dtype::F32 => Kind::Float,
        Dtype::F16 => Kind::Half,
        Dtype::BF16 => Kind::BFloat16,
        _ => return None,
    };
    let shape: Vec<i64> = view.shape().iter().map(|&d| d as i64).collect();
    Some(Tensor::from_data_size(view.data(), &shape, kind).to_kind(Kind::Float))
}
