//! A saved adapter as the start of another.

use std::path::Path;

use serde::Deserialize;
use tch::{Kind, Tensor};

use crate::arena::Arena;
use crate::layout::{Form, Layout, Triplets};
use crate::store::{StoreError, read_tensors};

/// The increments of a folder that [`store::save`](crate::store::save) wrote, without what is outside the adapters.
#[derive(Debug)]
pub struct Saved {
    form: Form,
    adapters: Vec<SavedAdapter>,
}

#[derive(Debug)]
struct SavedAdapter {
    path: String,
    /// `(r, d_in)`
    q: Tensor,
    /// `(r, d_out)`
    p: Tensor,
    /// `(r,)`
    lambda: Option<Tensor>,
    scale: f64,
}

/// What PEFT's configurations say of scales.
#[derive(Deserialize)]
struct Config {
    peft_type: String,
    lora_alpha: f64,
    r: usize,
    init_r: Option<usize>,
    #[serde(default)]
    alpha_pattern: std::collections::BTreeMap<String, f64>,
}

impl Saved {
    /// Reads a folder. `prefix` is what PEFT's model puts before a layer's path, such as `bert.`.
    ///
    /// # Errors
    ///
    /// A file that cannot be read, or a factor without its counterpart.
    pub fn open(folder: &Path, prefix: &str) -> Result<Self, StoreError> {
        let path = folder.join("adapter_config.json");
        let io = |source| StoreError::Io { path: path.clone(), source };
        let text = std::fs::read_to_string(&path).map_err(io)?;
        let config: Config = serde_json::from_str(&text).map_err(|error| io(error.into()))?;
        let (form, end) = match config.peft_type.as_str() {
            "ADALORA" => (Form::Svd, ""),
            "LORA" => (Form::Lora, ".weight"),
            other => {
                return Err(io(std::io::Error::other(format!("peft_type is {other}, not ADALORA or LORA"))));
            }
        };
        let path = folder.join("adapter_model.safetensors");
        let tensors = read_tensors(&path)?;
        let root = format!("base_model.model.{prefix}");
        let mut adapters = Vec::new();
        for (name, q) in &tensors {
            let site = name.strip_prefix(&root).and_then(|name| name.strip_suffix(&format!(".lora_A{end}")));
            let Some(site) = site else { continue };
            let counterpart = |what: &str, shape: &dyn Fn(&[i64]) -> bool| {
                let name = format!("{root}{site}.{what}{end}");
                let rule = match tensors.get(&name) {
                    Some(tensor) if shape(&tensor.size()) => return Ok(tensor.shallow_clone()),
                    Some(tensor) => {
                        format!("is {:?}, which does not fit its lora_A of {:?}", tensor.size(), q.size())
                    }
                    None => "is missing beside its lora_A".to_owned(),
                };
                Err(StoreError::Tensor { path: path.clone(), name, rule })
            };
            let rank = q.size()[0];
            let b = counterpart("lora_B", &|shape| shape.len() == 2 && shape[1] == rank)?;
            let lambda = match form {
                Form::Svd => Some(counterpart("lora_E", &|shape| shape == [rank, 1])?.squeeze_dim(1)),
                Form::Lora => None,
            };
            let scale = match form {
                Form::Svd => config.lora_alpha / config.init_r.unwrap_or(config.r) as f64,
                Form::Lora => config.alpha_pattern.get(site).unwrap_or(&config.lora_alpha) / rank as f64,
            };
            adapters.push(SavedAdapter {
                path: site.to_owned(),
                q: q.shallow_clone(),
                p: b.tr(),
                lambda,
                scale,
            });
        }
        Ok(Self { form, adapters })
    }

    /// Every reason why it cannot be the start of adapters that are laid out like this.
    pub fn misfits(&self, layout: &Layout) -> Vec<String> {
        let name = |form| match form {
            Form::Svd => "[adapter.svd]",
            Form::Lora => "[adapter.lora]",
        };
        if self.form != layout.form() {
            return vec![format!("is of {}, and this is {}", name(self.form), name(layout.form()))];
        }
        let misfit = |own: &SavedAdapter| {
            let Some(site) = layout.sites().iter().find(|site| site.path == own.path) else {
                return Some(format!(
                    "adapts `{}`, which is not adapted here and would lose its increment",
                    own.path
                ));
            };
            let (rank, d_in, d_out) =
                (own.q.size()[0] as usize, own.q.size()[1] as usize, own.p.size()[1] as usize);
            if (d_in, d_out) != (site.d_in, site.d_out) {
                return Some(format!(
                    "has `{}` from {d_in} to {d_out} values, where this model has it from {} to {}",
                    own.path, site.d_in, site.d_out
                ));
            }
            (rank > site.rank).then(|| {
                format!("has rank {rank} on `{}`, more than the initial rank {} here", own.path, site.rank)
            })
        };
        self.adapters.iter().filter_map(misfit).collect()
    }

    /// Writes the saved triplets over the first ones of each adapter, so that its increment is the saved one whatever
    /// the scale is here; `scales` has one for each adapter. Further triplets keep their start, which adds nothing, and
    /// so do adapters that were not saved.
    ///
    /// # Panics
    ///
    /// If it does not fit: see [`misfits`](Self::misfits).
    pub fn write_to(&self, arena: &Arena, scales: &[f64]) {
        let _guard = tch::no_grad_guard();
        for own in &self.adapters {
            let sites = arena.layout().sites();
            let adapter =
                sites.iter().position(|site| site.path == own.path).expect("a saved layer is adapted");
            let Triplets { q, p, lambda } = arena.layout().triplets(arena.param(), adapter);
            let rank = own.q.size()[0];
            let first = |of: &Tensor| of.narrow(0, 0, rank);
            let ratio = own.scale / scales[adapter];
            first(&q).copy_(&own.q);
            match (&lambda, &own.lambda) {
                (Some(lambda), Some(saved)) => {
                    first(&p).copy_(&own.p);
                    first(lambda).copy_(&(saved.to_kind(Kind::Float) * ratio));
                }
                _ => first(&p).copy_(&(&own.p * ratio)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::Site;
    use crate::random::Random;
    use crate::store::{Description, save};
    use tch::Device;

    const PATHS: [&str; 3] = ["layer.0.fc", "layer.1.fc", "layer.2.fc"];

    fn layout(form: Form, ranks: [usize; 3]) -> Layout {
        let sites = PATHS.iter().zip(ranks).map(|(path, rank)| {
            let d_out = 5;
            Site { path: (*path).into(), d_in: 6, d_out, rank }
        });
        Layout::new(form, sites.collect())
    }

    /// A trained adapter of ranks 2, 0 and 3 with scales of their own, and its increments.
    fn saved(form: Form, folder: &Path) -> Vec<Tensor> {
        let arena = Arena::new(layout(form, [2, 0, 3]), vec![], Device::Cpu, 1);
        let values = Random::new(5, "trained").normal(&[arena.len() as i64], 1.0);
        tch::no_grad(|| arena.param().shallow_clone().copy_(&values));
        let description = Description {
            base_model: "any".into(),
            prefix: "bert.".into(),
            task_type: "SEQ_CLS",
            target_modules: PATHS.map(String::from).to_vec(),
            modules_to_save: vec![],
            init_r: 4,
            target_r: 2,
            alpha: 8.0,
            scales: vec![2.0, 2.0, 5.0],
            total_steps: 10,
        };
        let live: [&[bool]; 3] = [&[true, true], &[], &[true, true, true]];
        save(folder, &arena, &live, &description).unwrap();
        arena.scaled_adapters(&description.scales).map(|adapter| adapter.delta()).collect()
    }

    #[test]
    fn an_increment_is_the_saved_one_whatever_rank_and_scale_are_here() {
        for form in [Form::Svd, Form::Lora] {
            let folder = tempfile::tempdir().unwrap();
            let deltas = saved(form, folder.path());
            let saved = Saved::open(folder.path(), "bert.").unwrap();
            for ranks in [[4, 4, 4], [2, 0, 3], [2, 1, 6]] {
                let arena = Arena::new(layout(form, ranks), vec![], Device::Cpu, 9);
                assert_eq!(saved.misfits(arena.layout()), Vec::<String>::new());
                let scales = [0.7, 3.0, 2.0];
                saved.write_to(&arena, &scales);
                for (adapter, expected) in arena.scaled_adapters(&scales).zip(&deltas) {
                    let difference = (adapter.delta() - expected).abs().max().double_value(&[]);
                    assert!(difference < 1e-5, "{form:?}, ranks {ranks:?}: {difference}");
                }
                assert!(deltas[2].abs().max().double_value(&[]) > 1.0);
            }
        }
    }

    #[test]
    fn every_misfit_is_named() {
        let folder = tempfile::tempdir().unwrap();
        saved(Form::Svd, folder.path());
        let saved = Saved::open(folder.path(), "bert.").unwrap();
        let site = |path: &str, d_in, rank| Site { path: path.into(), d_in, d_out: 5, rank };
        let own = Layout::new(Form::Svd, vec![site("layer.0.fc", 6, 1), site("layer.1.fc", 7, 1)]);
        assert_eq!(
            saved.misfits(&own),
            [
                "has rank 2 on `layer.0.fc`, more than the initial rank 1 here",
                "has `layer.1.fc` from 6 to 5 values, where this model has it from 7 to 5",
                "adapts `layer.2.fc`, which is not adapted here and would lose its increment",
            ]
        );
        assert_eq!(
            saved.misfits(&layout(Form::Lora, [4, 4, 4])),
            ["is of [adapter.svd], and this is [adapter.lora]"]
        );
        let none = Saved::open(&folder.path().join("nowhere"), "bert.").unwrap_err().to_string();
        assert!(none.contains("adapter_config.json"), "{none}");
    }
}
