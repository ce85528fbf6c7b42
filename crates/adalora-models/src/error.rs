//! What can be wrong with a checkpoint.

use std::path::PathBuf;

use crate::torch_file::TorchFileError;

/// Why a checkpoint could not be used.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A file of the checkpoint is not there or cannot be read.
    #[error(
        "{path}: {source}; a checkpoint is a folder with config.json, model.safetensors or pytorch_model.bin, and a tokenizer"
    )]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// `config.json` does not describe a model that we have.
    #[error("{path}: {rule}")]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        rule: String,
    },
    /// Not a safetensors file, or a truncated one.
    #[error("{path} is not a whole safetensors file ({source}); fetch it again")]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: safetensors::SafeTensorError,
    },
    /// A file of `torch.save` that cannot be read, or not without executing it.
    #[error("{path}: {problem}")]
    TorchFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: TorchFileError,
    },
    /// Neither kind of file with tensors.
    #[error("{folder} has neither model.safetensors nor pytorch_model.bin")]
    NoTensors {
        /// The checkpoint's folder.
        folder: PathBuf,
    },
    /// Tensors of the model that the checkpoint lacks.
    #[error("{path} lacks {} tensor(s) of the model: {}", names.len(), names.join(", "))]
    Missing {
        /// The file.
        path: PathBuf,
        /// Their names, without prefix.
        names: Vec<String>,
    },
    /// A tensor of another shape than the configuration says.
    #[error("{path}: `{name}` has shape {found:?}, but config.json asks for {expected:?}")]
    Shape {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// What the configuration asks for.
        expected: Vec<i64>,
        /// What the file holds.
        found: Vec<i64>,
    },
    /// A shape that no tensor has, which a tensor without elements can claim.
    #[error("{path}: `{name}` has shape {found:?}, more than can be counted; fetch it again")]
    Uncountable {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// What the file says.
        found: Vec<usize>,
    },
    /// A weight that is to be changed and is another tensor too.
    #[error(
        "{path}: `{name}` is one tensor with `{with}`, which a merge would change too: keep the adapter apart, or save \
         the checkpoint with two copies"
    )]
    Tied {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// The tensor that it is tied to.
        with: String,
    },
    /// A value that the checkpoint's dtype cannot hold.
    #[error("`{name}` has values that {kind:?} cannot hold: merge into a checkpoint of f32 or bf16")]
    Overflow {
        /// The tensor.
        name: String,
        /// The dtype.
        kind: tch::Kind,
    },
    /// A file that could not be written.
    #[error("{path}: {source}")]
    Write {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        source: safetensors::SafeTensorError,
    },
    /// A tensor whose values we cannot read.
    #[error("{path}: `{name}` has dtype {found}; F32, F16 and BF16 can be read")]
    Dtype {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// What the file holds.
        found: String,
    },
}
