//! A checkpoint with what was trained put into it, as `transformers` loads it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::TensorView;
use tch::{Device, Kind, Tensor};

use crate::checkpoint::{self, tensors_file};
use crate::{Checkpoint, ModelConfig, ModelError};

/// What a merge has done.
#[derive(Debug, Clone, PartialEq)]
pub struct Merged {
    /// Tensors written.
    pub tensors: usize,
    /// Linear layers that an increment was added to.
    pub increments: usize,
    /// The dtype of the checkpoint's linear layers, in which what was trained is written.
    pub kind: Kind,
    /// The largest difference between a value in f32 and what was written of it, 0 for a checkpoint of f32; and the
    /// tensor that has it.
    pub largest_difference: (f64, String),
}

/// Writes the model of the checkpoint in `folder` to `file`, under `transformers`' names: with the increments
/// `deltas`, `(d_out, d_in)` by module, and with `trained`, by name, in the place of its own tensors or beside them. The
/// sum is taken in f32 and cast to the checkpoint's dtype once. What the checkpoint has beyond the encoder, such as a
/// head of another task, is left out.
///
/// # Errors
///
/// A checkpoint that cannot be read; a weight that is tied to another tensor; a sum that the dtype cannot hold; a file
/// that cannot be written.
///
/// # Panics
///
/// If a module of `deltas` is no linear layer of the encoder.
pub fn merge(
    folder: &Path,
    deltas: &BTreeMap<String, Tensor>,
    trained: &[(String, Tensor)],
    file: &Path,
) -> Result<Merged, ModelError> {
    let _guard = tch::no_grad_guard();
    let base = Checkpoint::open(folder)?;
    let config = base.config();
    let prefix = config.prefix();
    let (mut kinds, mut ties) = (BTreeMap::new(), BTreeMap::new());
    checkpoint::read(folder, prefix, |stored| {
        for (name, own) in stored {
            kinds.extend(own.kind().map(|kind| (format!("{prefix}{name}"), kind)));
            ties.extend(own.tied.clone().map(|with| (format!("{prefix}{name}"), with)));
        }
        Vec::new()
    })?;
    let first = config.linears().first().map(|linear| format!("{prefix}{}.weight", linear.path));
    let kind = kinds[&first.expect("an encoder has linear layers")];

    let mut tensors: BTreeMap<String, Tensor> = config
        .tensors()
        .into_iter()
        .map(|(name, _)| (format!("{prefix}{name}"), base.tensor(&name, Device::Cpu)))
        .collect();
    if let ModelConfig::Bart(_) = config {
        let name = "final_logits_bias";
        tensors.insert(name.into(), base.tensor(name, Device::Cpu));
    }
    let mut changed = BTreeSet::new();
    for (name, tensor) in trained {
        tensors.insert(name.clone(), tensor.to_kind(Kind::Float));
        changed.insert(name.clone());
    }
    for (module, delta) in deltas {
        let name = format!("{module}.weight");
        let weight =
            tensors.get_mut(&name).expect("a module with an increment is a linear layer of the encoder");
        *weight = &*weight + delta;
        changed.insert(name);
    }
    if let Some((name, with)) = changed.iter().find_map(|name| Some((name, ties.get(name)?))) {
        return Err(ModelError::Tied { path: tensors_file(folder)?, name: name.clone(), with: with.clone() });
    }
    let mut largest_difference = (0.0, String::new());
    for (name, tensor) in &mut tensors {
        let kind = kinds.get(name).copied().unwrap_or(kind);
        let cast = tensor.to_kind(kind);
        if changed.contains(name) {
            let difference = (cast.to_kind(Kind::Float) - &*tensor).abs().max().double_value(&[]);
            if !difference.is_finite() {
                return Err(ModelError::Overflow { name: name.clone(), kind });
            }
            if difference >= largest_difference.0 {
                largest_difference = (difference, name.clone());
            }
        }
        *tensor = cast;
    }
    write(&tensors, file)?;
    Ok(Merged { tensors: tensors.len(), increments: deltas.len(), kind, largest_difference })
}

/// Writes tensors in the dtypes that they have, sorted by name.
pub(crate) fn write(tensors: &BTreeMap<String, Tensor>, file: &Path) -> Result<(), ModelError> {
    let contents: Vec<_> = tensors
        .iter()
        .map(|(name, tensor)| {
            let (flat, kind) = (tensor.contiguous().view(-1), tensor.kind());
            let mut bytes = vec![0; flat.numel() * kind.elt_size_in_bytes()];
            flat.copy_data_u8(&mut bytes, flat.numel());
            let dtype = match kind {
                Kind::Half => Dtype::F16,
                Kind::BFloat16 => Dtype::BF16,
                _ => Dtype::F32,
            };
            (name, dtype, tensor.size().iter().map(|&d| d as usize).collect::<Vec<_>>(), bytes)
        })
        .collect();
    let views = contents.iter().map(|(name, dtype, shape, bytes)| {
        (name, TensorView::new(*dtype, shape.clone(), bytes).expect("as many bytes as the shape asks for"))
    });
    // `transformers` asks for it.
    let metadata = [("format".to_owned(), "pt".to_owned())].into();
    safetensors::serialize_to_file(views, Some(metadata), file)
        .map_err(|source| ModelError::Write { path: file.into(), source })
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use adalora_adapter::random::Random;

    use super::*;

    fn reference(name: &str) -> PathBuf {
        PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../reference/values")).join(name)
    }

    /// A copy of a small checkpoint, its tensors in another dtype.
    fn checkpoint_in(kind: Kind) -> tempfile::TempDir {
        let (from, folder) = (reference("bert-random"), tempfile::tempdir().unwrap());
        std::fs::copy(from.join("config.json"), folder.path().join("config.json")).unwrap();
        let tensors = Tensor::read_safetensors(from.join("model.safetensors")).unwrap();
        let tensors = tensors.into_iter().map(|(name, tensor)| (name, tensor.to_kind(kind))).collect();
        write(&tensors, &folder.path().join("model.safetensors")).unwrap();
        folder
    }

    const MODULE: &str = "bert.encoder.layer.1.attention.self.query";

    #[test]
    fn the_sum_is_taken_in_f32_and_cast_once() {
        for (kind, bound) in [(Kind::Float, 0.0), (Kind::Half, 1e-3), (Kind::BFloat16, 1e-2)] {
            let (base, out) = (checkpoint_in(kind), tempfile::tempdir().unwrap());
            let before: BTreeMap<_, _> = Tensor::read_safetensors(base.path().join("model.safetensors"))
                .unwrap()
                .into_iter()
                .collect();
            let name = format!("{MODULE}.weight");
            let delta = Random::new(1, "delta").normal(&before[&name].size(), 0.3);
            let classifier = Random::new(1, "classifier").normal(&[2, 30], 0.3);
            let trained = [("classifier.weight".to_owned(), classifier.shallow_clone())];
            let file = out.path().join("model.safetensors");
            let deltas = [(MODULE.to_owned(), delta.shallow_clone())].into();
            let merged = merge(base.path(), &deltas, &trained, &file).unwrap();
            assert_eq!((merged.increments, merged.kind), (1, kind));
            assert!(merged.largest_difference.0 <= bound, "{merged:?}");
            assert_eq!(merged.largest_difference.0 > 0.0, kind != Kind::Float);
            for (other, tensor) in Tensor::read_safetensors(&file).unwrap() {
                let expected = if other == name {
                    (before[&name].to_kind(Kind::Float) + &delta).to_kind(kind)
                } else if other == "classifier.weight" {
                    classifier.to_kind(kind)
                } else {
                    before[&other].shallow_clone()
                };
                assert_eq!((tensor.kind(), &tensor), (kind, &expected), "{other}");
            }
        }
    }

    #[test]
    fn what_a_dtype_cannot_hold_is_named() {
        let (base, out) = (checkpoint_in(Kind::Half), tempfile::tempdir().unwrap());
        let trained = [("classifier.bias".to_owned(), Tensor::from_slice(&[1f32, 1e6]))];
        let error = merge(base.path(), &BTreeMap::new(), &trained, &out.path().join("model.safetensors"));
        assert_eq!(
            error.unwrap_err().to_string(),
            "`classifier.bias` has values that Half cannot hold: merge into a checkpoint of f32 or bf16"
        );
        assert!(out.path().read_dir().unwrap().next().is_none(), "nothing is written");
    }

    #[test]
    fn a_weight_that_is_another_layers_too_is_named() {
        let out = tempfile::tempdir().unwrap();
        let merge = |module: &str| {
            let deltas = [(module.to_owned(), Tensor::ones([12, 12], (Kind::Float, Device::Cpu)))].into();
            merge(&reference("bert-tied"), &deltas, &[], &out.path().join("model.safetensors"))
        };
        assert_eq!(merge("bert.encoder.layer.1.attention.self.key").unwrap().increments, 1);
        let error = merge(MODULE).unwrap_err().to_string();
        assert!(
            error.contains(
                "`bert.encoder.layer.1.attention.self.query.weight` is one tensor with \
                 `encoder.layer.0.attention.self.query.weight`, which a merge would change too"
            ),
            "{error}"
        );
    }
}
