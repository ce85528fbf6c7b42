//! A saved adapter as the start of another.

use std::path::Path;

use tch::{Kind, Tensor};

use crate::arena::Arena;
use crate::layout::{Form, Layout, Triplets};
use crate::peft::PeftAdapter;
use crate::store::{CONFIG, StoreError};

/// The increments of an adapter folder, without what is outside the adapters.
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

impl Saved {
    /// Reads a folder. `prefix` is what PEFT's model puts before a layer's path, such as `bert.`.
    ///
    /// # Errors
    ///
    /// What [`PeftAdapter::open`] refuses; a module without the prefix.
    pub fn open(folder: &Path, prefix: &str) -> Result<Self, StoreError> {
        let peft = PeftAdapter::open(folder)?;
        let mut adapters = Vec::new();
        for (module, own) in peft.increments() {
            let Some(path) = module.strip_prefix(prefix) else {
                let rule =
                    format!("`{module}` does not start with `{prefix}`, as the layers of this model do");
                return Err(StoreError::Config { path: folder.join(CONFIG), rule });
            };
            adapters.push(SavedAdapter {
                path: path.to_owned(),
                q: own.a.shallow_clone(),
                p: own.b.tr(),
                lambda: own.lambda.as_ref().map(Tensor::shallow_clone),
                scale: own.scale,
            });
        }
        Ok(Self { form: peft.form(), adapters })
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
