//! Adapter folders of PEFT, AdaLoRA or LoRA, whole and by themselves: read, turned into plain LoRA, written.
//!
//! Modules have the names that they have in the base model, the family's prefix included. What an increment is
//! multiplied by is `lora_alpha / init_r` for an AdaLoRA that [`store`](crate::store) has written, and
//! `lora_alpha / (init_r + 1e-5)` for one that PEFT has, as it was trained. PEFT divides ours by `init_r + 1e-5` too, which
//! makes increments smaller by a factor of `1 - 1e-5 / init_r`. Plain LoRA has no such difference.

mod config;

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value, json};
use tch::Tensor;

use self::config::Settings;
use crate::layout::Form;
use crate::store::{CONFIG, StoreError, TENSORS, read_tensors, write};

/// What PEFT puts before the names of the base model.
const ROOT: &str = "base_model.model.";

/// The name under which PEFT loads an adapter if none is given.
const DEFAULT_NAME: &str = "default";

/// An adapter folder.
#[derive(Debug)]
pub struct PeftAdapter {
    form: Form,
    config: Map<String, Value>,
    increments: BTreeMap<String, Increment>,
    extras: BTreeMap<String, Tensor>,
}

/// The increment `scale * B diag(lambda) A` of one module.
#[derive(Debug)]
pub struct Increment {
    /// `lora_A`, `(r, d_in)`.
    pub a: Tensor,
    /// `lora_B`, `(d_out, r)`.
    pub b: Tensor,
    /// `lora_E` as `(r,)`; `None` for LoRA.
    pub lambda: Option<Tensor>,
    /// What the product is multiplied by.
    pub scale: f64,
}

impl Increment {
    /// Live triplets.
    pub fn rank(&self) -> usize {
        self.a.size()[0] as usize
    }

    /// As a matrix `(d_out, d_in)`, f32.
    pub fn delta(&self) -> Tensor {
        self.folded().matmul(&self.a) * self.scale
    }

    /// `B diag(lambda)`.
    fn folded(&self) -> Tensor {
        match &self.lambda {
            Some(lambda) => &self.b * lambda,
            None => self.b.shallow_clone(),
        }
    }
}

/// Why an adapter cannot be written in a format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// There is nothing that PEFT could put anywhere.
    #[error("no module has a triplet left, and PEFT refuses a LoRA without modules")]
    Empty,
    /// A LoRA has no lambda to be written.
    #[error("this is a LoRA already, without lambda: export it as plain LoRA")]
    NoLambda,
}

impl PeftAdapter {
    /// Reads a folder that adalora or PEFT has written.
    ///
    /// # Errors
    ///
    /// A file that cannot be read; a variant of LoRA that multiplies otherwise, such as DoRA; a factor without its
    /// counterpart.
    pub fn open(folder: &Path) -> Result<Self, StoreError> {
        let path = folder.join(CONFIG);
        let io = |source| StoreError::Io { path: path.clone(), source };
        let text = std::fs::read_to_string(&path).map_err(io)?;
        let config: Map<String, Value> = serde_json::from_str(&text).map_err(|error| io(error.into()))?;
        let rule = |rule: String| StoreError::Config { path: path.clone(), rule };
        let (form, end, parts) = match config.get("peft_type").and_then(Value::as_str) {
            Some("ADALORA") => (Form::Svd, "", &["lora_A", "lora_B", "lora_E"][..]),
            Some("LORA") => (Form::Lora, ".weight", &["lora_A", "lora_B"][..]),
            _ => return Err(rule("peft_type must be ADALORA or LORA".into())),
        };
        let settings = Settings::read(&config, form).map_err(rule)?;
        let path = folder.join(TENSORS);
        let problem =
            |name: &str, rule: String| StoreError::Tensor { path: path.clone(), name: name.into(), rule };
        let (mut factors, mut extras) = (BTreeMap::<String, BTreeMap<&str, Tensor>>::new(), BTreeMap::new());
        for (full, tensor) in read_tensors(&path)? {
            let Some(name) = full.strip_prefix(ROOT) else {
                return Err(problem(&full, format!("does not start with `{ROOT}`")));
            };
            let part = parts.iter().find_map(|part| {
                Some((*part, name.strip_suffix(end)?.strip_suffix(part)?.strip_suffix('.')?.to_owned()))
            });
            match part {
                Some((part, module)) => {
                    factors.entry(module).or_default().insert(part, tensor);
                }
                None => {
                    extras.insert(name.to_owned(), tensor);
                }
            }
        }
        let mut increments = BTreeMap::new();
        for (module, mut factors) in factors {
            let mut take = |part: &str| {
                let name = format!("{ROOT}{module}.{part}{end}");
                factors.remove(part).ok_or_else(|| problem(&name, "is missing beside the others".into()))
            };
            let (a, b) = (take("lora_A")?, take("lora_B")?);
            let lambda = if form == Form::Svd { Some(take("lora_E")?) } else { None };
            let fits = match (a.size().as_slice(), b.size().as_slice(), lambda.as_ref().map(Tensor::size)) {
                // Without rows or columns a file could claim any rank, which costs it nothing.
                (&[rank, d_in], &[d_out, columns], lambda) if d_in > 0 && d_out > 0 => {
                    rank == columns && lambda.is_none_or(|lambda| lambda == [rank, 1])
                }
                _ => false,
            };
            if !fits {
                let name = format!("{ROOT}{module}.lora_A{end}");
                return Err(problem(&name, "has not the rank of its counterparts".into()));
            }
            let lambda = lambda.map(|lambda| lambda.squeeze_dim(1));
            let scale = settings.scale(&module, a.size()[0] as usize).map_err(rule)?;
            if !scale.is_finite() {
                return Err(rule(format!(
                    "`{module}` is to be multiplied by {scale}: correct its rank and alpha"
                )));
            }
            increments.insert(module, Increment { a, b, lambda, scale });
        }
        if let Some(module) = settings.without_tensors(|name| increments.contains_key(name)) {
            return Err(rule(format!("rank_pattern has `{module}`, of which there are no tensors")));
        }
        Ok(Self { form, config, increments, extras })
    }

    /// SVD or LoRA.
    pub fn form(&self) -> Form {
        self.form
    }

    /// Increments by module.
    pub fn increments(&self) -> &BTreeMap<String, Increment> {
        &self.increments
    }

    /// What is trained beside increments, by name in the base model.
    pub fn extras(&self) -> &BTreeMap<String, Tensor> {
        &self.extras
    }

    /// The configuration as PEFT reads it.
    pub fn config(&self) -> &Map<String, Value> {
        &self.config
    }

    /// Adds a tensor that is trained beside increments, as part of what PEFT calls `module`.
    pub fn add_extra(&mut self, module: &str, name: String, tensor: Tensor) {
        let modules = self.config.entry("modules_to_save").or_insert(Value::Null);
        let named = modules.as_array().is_some_and(|modules| modules.iter().any(|own| own == module));
        if !named {
            let known = modules.as_array().cloned().unwrap_or_default();
            *modules = known.into_iter().chain([module.into()]).collect();
        }
        self.extras.insert(name, tensor);
    }

    /// The same for PEFT's AdaLoRA, with modules named in full. Tensors and scales stay as they are.
    ///
    /// # Errors
    ///
    /// If this is a LoRA.
    pub fn into_adalora(mut self) -> Result<Self, FormatError> {
        if self.form == Form::Lora {
            return Err(FormatError::NoLambda);
        }
        let flags = match self.config.remove("rank_pattern") {
            Some(Value::Object(flags)) => flags,
            _ => Map::new(),
        };
        let renamed = flags.into_iter().map(|(key, flags)| {
            // PEFT takes any `default` in a key for its own name of the adapter, and cuts one component more.
            let key = key.strip_suffix(&format!(".{DEFAULT_NAME}")).map_or(key.clone(), str::to_owned);
            (if key.contains(DEFAULT_NAME) { format!("{key}.{DEFAULT_NAME}") } else { key }, flags)
        });
        self.config.insert("rank_pattern".into(), Value::Object(renamed.collect()));
        let modules: Vec<_> = self.increments.keys().collect();
        self.config.insert("target_modules".into(), json!(modules));
        Ok(self)
    }

    /// The same as plain LoRA: lambda is multiplied into `B`, ranks and scales are said by module, and modules of rank 0
    /// are left out. `padded`, all have the largest rank, the rest of it being 0, and one scale, the others being
    /// multiplied into `B`, for loaders that know one rank only.
    ///
    /// # Errors
    ///
    /// If no module has a rank above 0.
    pub fn into_lora(self, padded: bool) -> Result<Self, FormatError> {
        let live: BTreeMap<_, _> =
            self.increments.into_iter().filter(|(_, increment)| increment.rank() > 0).collect();
        let largest = live.values().max_by_key(|increment| increment.rank()).ok_or(FormatError::Empty)?;
        let (r, scale) = (largest.rank(), largest.scale);
        let alpha = scale * r as f64;
        let (mut ranks, mut alphas, mut increments) = (Map::new(), Map::new(), BTreeMap::new());
        let modules: Vec<_> = live.keys().cloned().collect();
        for (module, own) in live {
            let (a, b, rank) = (own.a.shallow_clone(), own.folded(), own.rank());
            let increment = if padded {
                let missing = (r - rank) as i64;
                let b = if own.scale == scale { b } else { b * (own.scale / scale) };
                let (a, b) =
                    (a.constant_pad_nd([0, 0, 0, missing]), b.constant_pad_nd([0, missing]).contiguous());
                Increment { a, b, lambda: None, scale }
            } else {
                let own_alpha = own.scale * rank as f64;
                let key = pattern(&module, &modules);
                if rank != r {
                    ranks.insert(key.clone(), json!(rank));
                }
                if own_alpha != alpha {
                    alphas.insert(key, json!(own_alpha));
                }
                Increment { a, b, lambda: None, scale: own.scale }
            };
            increments.insert(module, increment);
        }
        let kept = ["task_type", "base_model_name_or_path", "modules_to_save"];
        let kept = kept.into_iter().filter_map(|key| Some((key.to_owned(), self.config.get(key)?.clone())));
        let mut config: Map<String, Value> = kept.collect();
        let own = json!({
            "peft_type": "LORA",
            "r": r,
            "lora_alpha": alpha,
            "rank_pattern": ranks,
            "alpha_pattern": alphas,
            "target_modules": modules,
            "lora_dropout": 0.0,
            "bias": "none",
            "inference_mode": true,
            "fan_in_fan_out": false,
            "init_lora_weights": true,
        });
        config.extend(own.as_object().cloned().expect("it is written as one"));
        Ok(Self { form: Form::Lora, config, increments, extras: self.extras })
    }

    /// Writes the folder, which is created.
    ///
    /// # Errors
    ///
    /// If a file cannot be written.
    pub fn save(&self, folder: &Path) -> Result<(), StoreError> {
        let end = if self.form == Form::Lora { ".weight" } else { "" };
        let mut tensors: BTreeMap<_, _> = self
            .extras
            .iter()
            .map(|(name, tensor)| (format!("{ROOT}{name}"), tensor.shallow_clone()))
            .collect();
        for (module, Increment { a, b, lambda, .. }) in &self.increments {
            let mut put =
                |part: &str, tensor: Tensor| tensors.insert(format!("{ROOT}{module}.{part}{end}"), tensor);
            put("lora_A", a.shallow_clone());
            put("lora_B", b.shallow_clone());
            if let Some(lambda) = lambda {
                put("lora_E", lambda.unsqueeze(1));
            }
        }
        write(folder, Value::Object(self.config.clone()), &tensors)
    }
}

/// A pattern that PEFT matches with this module and no other one of `modules`: it takes a name for the end of one.
fn pattern(module: &str, modules: &[String]) -> String {
    let end = format!(".{module}");
    if modules.iter().any(|other| other.ends_with(&end)) { format!("^{module}") } else { module.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arena::{Arena, Extra, ParameterKind};
    use crate::layout::{Layout, Site};
    use crate::random::Random;
    use crate::store::{Description, save};
    use tch::Device;

    const PATHS: [&str; 4] = ["fc", "block.default_fc", "lora.weight", "block.weight"];

    /// Four adapters of ranks 2, 3, 1 and 0, as a run leaves them, and their increments.
    fn saved(form: Form, folder: &Path) -> BTreeMap<String, Tensor> {
        let ranks = [2, 3, 1, 0];
        let sites = PATHS.iter().zip(ranks).map(|(path, rank)| Site {
            path: (*path).into(),
            d_in: 6,
            d_out: 5,
            rank,
        });
        let extra = Extra {
            name: "classifier.weight".into(),
            start: Tensor::from_slice(&[1f32, 2.0]),
            kind: ParameterKind::Weight,
        };
        let arena = Arena::new(Layout::new(form, sites.collect()), vec![extra], Device::Cpu, 1);
        let values = Random::new(5, "trained").normal(&[arena.len() as i64], 1.0);
        tch::no_grad(|| arena.param().shallow_clone().copy_(&values));
        let description = Description {
            base_model: "any".into(),
            prefix: "net.".into(),
            task_type: "SEQ_CLS",
            target_modules: PATHS.map(String::from).to_vec(),
            modules_to_save: vec!["classifier".into()],
            init_r: 3,
            target_r: 2,
            alpha: 5.1,
            scales: vec![1.7, 1.7, 0.4, 1.7],
            total_steps: 10,
        };
        let live: [&[bool]; 4] = [&[true, false, true], &[true; 3], &[false, true, false], &[false; 3]];
        save(folder, &arena, &live, &description).unwrap();
        let deltas = arena.scaled_adapters(&description.scales).map(|adapter| adapter.delta());
        PATHS.iter().map(|path| format!("net.{path}")).zip(deltas).collect()
    }

    #[track_caller]
    fn assert_increments(adapter: &PeftAdapter, expected: &BTreeMap<String, Tensor>) {
        for (module, expected) in expected {
            let found = adapter.increments().get(module).map_or(expected.zeros_like(), Increment::delta);
            let difference = (found - expected).abs().max().double_value(&[]);
            assert!(
                difference < 2e-6 * (1.0 + expected.abs().max().double_value(&[])),
                "{module}: {difference}"
            );
        }
        assert_eq!(adapter.extras().len(), 1);
    }

    #[test]
    fn every_format_holds_the_same_increments() {
        for form in [Form::Svd, Form::Lora] {
            let (run, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            let expected = saved(form, run.path());
            for padded in [None, Some(false), Some(true)] {
                let adapter = PeftAdapter::open(run.path()).unwrap();
                assert_increments(&adapter, &expected);
                let adapter = match padded {
                    Some(padded) => adapter.into_lora(padded).unwrap(),
                    None if form == Form::Svd => adapter.into_adalora().unwrap(),
                    None => {
                        assert_eq!(adapter.into_adalora().unwrap_err(), FormatError::NoLambda);
                        continue;
                    }
                };
                adapter.save(out.path()).unwrap();
                let again = PeftAdapter::open(out.path()).unwrap();
                assert_increments(&again, &expected);
                let ranks: Vec<_> = again.increments().values().map(Increment::rank).collect();
                // In the order of names: block.default_fc, block.weight, fc, lora.weight.
                let expected: &[usize] = match padded {
                    None => &[3, 0, 2, 1],
                    Some(false) => &[3, 2, 1],
                    Some(true) => &[3, 3, 3],
                };
                assert_eq!(ranks, expected);
            }
        }
    }

    #[test]
    fn a_configuration_names_each_module_alone() {
        let run = tempfile::tempdir().unwrap();
        saved(Form::Svd, run.path());
        let open = || PeftAdapter::open(run.path()).unwrap();
        let config = Value::Object(open().into_lora(false).unwrap().config);
        assert_eq!(config["target_modules"], json!(["net.block.default_fc", "net.fc", "net.lora.weight"]));
        assert_eq!(config["rank_pattern"], json!({ "net.fc": 2, "net.lora.weight": 1 }));
        assert_eq!((&config["r"], &config["peft_type"]), (&json!(3), &json!("LORA")));
        assert_eq!(pattern("fc", &["fc".into(), "block.fc".into()]), "^fc");
        let config = Value::Object(open().into_lora(true).unwrap().config);
        assert_eq!([&config["rank_pattern"], &config["alpha_pattern"]], [&json!({}); 2]);
        let config = Value::Object(open().into_adalora().unwrap().config);
        let keys: Vec<_> = config["rank_pattern"].as_object().unwrap().keys().collect();
        let odd = "net.block.default_fc.lora_E.default";
        assert_eq!(keys, [odd, "net.block.weight.lora_E", "net.fc.lora_E", "net.lora.weight.lora_E"]);
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let run = tempfile::tempdir().unwrap();
        saved(Form::Lora, run.path());
        let path = run.path().join(CONFIG);
        let before = std::fs::read_to_string(&path).unwrap();
        let with = |from: &str, to: &str| {
            assert!(before.contains(from), "{from}");
            std::fs::write(&path, before.replacen(from, to, 1)).unwrap();
            PeftAdapter::open(run.path()).unwrap_err().to_string()
        };
        let error = with("\"bias\"", "\"use_dora\": true, \"bias\"");
        assert!(error.contains("`use_dora` is set; only the plain product"), "{error}");
        let error = with("\"LORA\"", "\"LOHA\"");
        assert!(error.contains("peft_type must be ADALORA or LORA"), "{error}");
        std::fs::remove_file(&path).unwrap();
        let error = PeftAdapter::open(run.path()).unwrap_err().to_string();
        assert!(error.contains("adapter_config.json"), "{error}");
    }

    #[test]
    fn without_a_triplet_there_is_no_lora() {
        let run = tempfile::tempdir().unwrap();
        saved(Form::Svd, run.path());
        let mut adapter = PeftAdapter::open(run.path()).unwrap();
        adapter.increments.retain(|_, increment| increment.rank() == 0);
        assert_eq!(adapter.into_lora(false).unwrap_err(), FormatError::Empty);
    }
}
