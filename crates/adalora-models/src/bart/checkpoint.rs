//! The tensors of a BART checkpoint.

use std::collections::BTreeMap;
use std::path::Path;

use adalora_adapter::random::Random;
use tch::{Device, Kind, Tensor};

use crate::checkpoint::read;
use crate::merge::write;
use crate::{BartConfig, ModelError};

/// Configuration and tensors, by the names of [`BartConfig::tensors`] and `final_logits_bias`.
#[derive(Debug)]
pub struct BartCheckpoint {
    config: BartConfig,
    tensors: BTreeMap<String, Tensor>,
}

impl BartCheckpoint {
    /// Reads a folder in Hugging Face's layout. Tensors become f32. Without a bias of the logits, as in checkpoints that
    /// were only pretrained, it is 0.
    ///
    /// # Errors
    ///
    /// A file that is missing, malformed or truncated; tensors that are missing, or whose shape is not what the
    /// configuration says. What the file holds beyond them is left alone, copies of the embedding table among it.
    pub fn open(folder: &Path) -> Result<Self, ModelError> {
        let config = BartConfig::open(folder)?;
        let tensors = read(folder, config.prefix(), |stored| {
            let bias = Some(config.logits_bias()).filter(|(name, _)| stored.contains_key(name));
            config.tensors().into_iter().chain(bias).collect()
        })?;
        Ok(Self::complete(config, tensors))
    }

    /// A model to be trained from scratch, as `transformers` starts it: weights normal with `init_std`, LayerNorm does
    /// nothing, biases are 0.
    pub fn random(config: BartConfig, seed: u64) -> Self {
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
        Self::complete(config, tensors)
    }

    fn complete(config: BartConfig, mut tensors: BTreeMap<String, Tensor>) -> Self {
        let (name, shape) = config.logits_bias();
        tensors.entry(name).or_insert_with(|| Tensor::zeros(shape.as_slice(), (Kind::Float, Device::Cpu)));
        Self { config, tensors }
    }

    /// The same checkpoint with tensors of another dtype.
    pub fn to_kind(&self, kind: Kind) -> Self {
        let tensors = self.tensors.iter().map(|(name, tensor)| (name.clone(), tensor.to_kind(kind)));
        Self { config: self.config.clone(), tensors: tensors.collect() }
    }

    /// Writes the tensors to a new `model.safetensors`, under the names that `transformers` gives them.
    ///
    /// # Errors
    ///
    /// A file that cannot be written.
    pub fn save(&self, file: &Path) -> Result<(), ModelError> {
        let (bias, prefix) = (self.config.logits_bias().0, self.config.prefix());
        let named = self.tensors.iter().map(|(name, tensor)| {
            let name = if *name == bias { name.clone() } else { format!("{prefix}{name}") };
            (name, tensor.shallow_clone())
        });
        write(&named.collect(), file)
    }

    /// The configuration.
    pub fn config(&self) -> &BartConfig {
        &self.config
    }

    /// A tensor, on the CPU.
    ///
    /// # Panics
    ///
    /// If the configuration names no such tensor.
    pub fn tensor(&self, name: &str) -> Tensor {
        self.tensors.get(name).expect("a tensor of the configuration").shallow_clone()
    }
}
