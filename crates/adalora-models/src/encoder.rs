//! An encoder of either family.

use adalora_adapter::{Adapter, Arena, Linear};
use adalora_kernels::dropout::Dropout;
use tch::{Device, Tensor};

use crate::{Bert, Checkpoint, Deberta, Input, ModelConfig, Tuning};

/// An encoder whose linear layers may carry adapters. It is frozen unless it is [`tuned`](Self::tuned).
#[derive(Debug)]
pub enum Encoder {
    /// BERT.
    Bert(Bert),
    /// DeBERTaV3.
    Deberta(Deberta),
}

impl Encoder {
    /// The encoder of a checkpoint, on `device`, in the dtype of the checkpoint's tensors. `dropout` replaces the
    /// configuration's, both inside attention and outside.
    ///
    /// # Panics
    ///
    /// For a checkpoint of BART.
    pub fn new(checkpoint: &Checkpoint, dropout: Option<f64>, device: Device) -> Self {
        match checkpoint.config() {
            ModelConfig::Bert(config) => Self::Bert(Bert::new(checkpoint, config, dropout, device)),
            ModelConfig::Deberta(config) => Self::Deberta(Deberta::new(checkpoint, config, dropout, device)),
            ModelConfig::Bart(_) => panic!("BART is no encoder alone: it is run as a whole"),
        }
    }

    /// The encoder as `tuning` trains it, over an arena that was built with [`Tuning::start`]'s values. Its own tensors
    /// that are trained are f32, so that the checkpoint's must be too.
    pub fn tuned(
        checkpoint: &Checkpoint,
        tuning: Tuning,
        arena: &Arena,
        dropout: Option<f64>,
        device: Device,
    ) -> Self {
        let mut encoder = Self::new(&checkpoint.over(arena), dropout, device);
        if let Tuning::Bottlenecks(placement, _) = tuning {
            let residuals: Vec<_> = match &mut encoder {
                Self::Bert(bert) => bert.residuals_mut().collect(),
                Self::Deberta(deberta) => deberta.residuals_mut().collect(),
            };
            for residual in residuals {
                residual.insert(placement, checkpoint.config().prefix(), arena);
            }
        }
        encoder
    }

    /// The linear layers, in the order of [`ModelConfig::linears`].
    pub fn linears(&self) -> Vec<&Linear> {
        match self {
            Self::Bert(bert) => bert.linears().collect(),
            Self::Deberta(deberta) => deberta.linears().collect(),
        }
    }

    /// The linear layers, to be changed.
    pub fn linears_mut(&mut self) -> Vec<&mut Linear> {
        match self {
            Self::Bert(bert) => bert.linears_mut().collect(),
            Self::Deberta(deberta) => deberta.linears_mut().collect(),
        }
    }

    /// Puts adapters on the layers at the given places of [`linears`](Self::linears).
    pub fn attach(&mut self, places: &[usize], adapters: impl Iterator<Item = Adapter>) {
        let mut layers = self.linears_mut();
        for (&place, adapter) in places.iter().zip(adapters) {
            layers[place].attach(adapter);
        }
    }

    /// Hidden states of the last block, `(rows, width, hidden)`, in the dtype of the weights. Without
    /// `dropout` nothing is dropped.
    pub fn forward(&self, input: &Input, dropout: Option<&Dropout>) -> Tensor {
        match self {
            Self::Bert(bert) => bert.forward(input, dropout),
            Self::Deberta(deberta) => deberta.forward(input, dropout),
        }
    }
}
