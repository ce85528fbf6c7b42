//! What `adapter_config.json` says of the layers: whether they are the plain product, of which rank, times what.

use std::collections::BTreeMap;

use regex::{Regex, RegexBuilder};
use serde_json::{Map, Value};

use super::DEFAULT_NAME;
use crate::layout::Form;

/// Keys that say nothing of what a layer computes, or nothing beyond its tensors.
const HARMLESS: [&str; 29] = [
    "alpha_pattern",
    "auto_mapping",
    "base_model_name_or_path",
    "beta1",
    "beta2",
    "deltaT",
    "eva_config",
    "exclude_modules",
    "inference_mode",
    "init_r",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "lora_dropout",
    "megatron_core",
    "modules_to_save",
    "orth_reg_weight",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "r",
    "rank_pattern",
    "revision",
    "target_modules",
    "target_r",
    "task_type",
    "tfinal",
    "tinit",
    "total_step",
];

/// Starts of the factors that leave the frozen weights as they are in the checkpoint.
const PLAIN_STARTS: [&str; 3] = ["gaussian", "eva", "orthogonal"];

/// Of a regular expression, compiled.
const LARGEST_PATTERN: usize = 1 << 18;

/// Patterns of one table at most: more than a large model has layers.
const MOST_PATTERNS: usize = 2000;

/// Ranks and scales by module.
pub(super) enum Settings {
    AdaLora {
        scale: f64,
        init_r: usize,
        /// Live triplets by module; `None` where nothing was masked yet.
        live: Option<BTreeMap<String, usize>>,
    },
    Lora {
        r: usize,
        ranks: Vec<(Regex, f64)>,
        alpha: f64,
        alphas: Vec<(Regex, f64)>,
        /// `use_rslora`: divided by the root of the rank.
        root: bool,
    },
}

impl Settings {
    /// Errors are rules that are broken.
    pub(super) fn read(config: &Map<String, Value>, form: Form) -> Result<Self, String> {
        if let Some(key) = config.iter().find(|(key, value)| !is_plain(key, value)).map(|(key, _)| key) {
            return Err(format!(
                "`{key}` is set; only the plain product of factors beside a checkpoint's own weights can be read"
            ));
        }
        let number = |key: &str| {
            config.get(key).and_then(Value::as_f64).ok_or_else(|| format!("`{key}` must be a number"))
        };
        let rank = |key: &str| {
            let rank = config.get(key).and_then(Value::as_u64).filter(|rank| *rank > 0);
            rank.map(|rank| rank as usize).ok_or_else(|| format!("`{key}` must be a whole number from 1 on"))
        };
        let alpha = number("lora_alpha")?;
        if form == Form::Lora {
            let root = config
                .get("use_rslora")
                .is_some_and(|value| !matches!(value, Value::Null | Value::Bool(false)));
            let (ranks, alphas) = (patterns(config, "rank_pattern")?, patterns(config, "alpha_pattern")?);
            return Ok(Self::Lora { r: rank("r")?, ranks, alpha, alphas, root });
        }
        let init_r = rank("init_r")?;
        // What PEFT has trained was divided by this. What we write leaves the key out.
        let by_peft = config.contains_key("orth_reg_weight");
        if by_peft && alpha <= 0.0 {
            return Err(format!(
                "`lora_alpha` is {alpha}, which PEFT replaces by a rank; it must be above 0"
            ));
        }
        let scale = alpha / if by_peft { init_r as f64 + 1e-5 } else { init_r as f64 };
        let live = match config.get("rank_pattern") {
            None | Some(Value::Null) => None,
            Some(Value::Object(flags)) => {
                let counted = flags.iter().map(|(key, flags)| Ok((module(key)?, count(key, flags, init_r)?)));
                Some(counted.collect::<Result<_, String>>()?)
            }
            Some(_) => return Err("`rank_pattern` must be a table of flags by module".into()),
        };
        Ok(Self::AdaLora { scale, init_r, live })
    }

    /// What the product of a module is multiplied by.
    ///
    /// # Errors
    ///
    /// Another rank than that of its tensors; several values for one module.
    pub(super) fn scale(&self, module: &str, rank: usize) -> Result<f64, String> {
        let other = |expected: usize| {
            format!("`rank_pattern` gives `{module}` the rank {expected}, but its tensors have {rank}")
        };
        match self {
            Self::AdaLora { scale, init_r, live } => {
                let expected = live.as_ref().map_or(Some(init_r), |live| live.get(module).or(Some(init_r)));
                let expected = *expected.expect("one of two");
                if rank == expected { Ok(*scale) } else { Err(other(expected)) }
            }
            Self::Lora { r, ranks, alpha, alphas, root } => {
                // PEFT takes the first match of the file; the tensors tell which one that was.
                let ranks: Vec<_> = matching(ranks, module).collect();
                let fits = ranks.contains(&(rank as f64)) || ranks.is_empty() && *r == rank;
                if !fits {
                    return Err(other(ranks.first().map_or(*r, |own| *own as usize)));
                }
                let mut values = matching(alphas, module);
                let own = values.next().unwrap_or(*alpha);
                if values.any(|value| value != own) {
                    return Err(format!("alpha_pattern has several values for `{module}`"));
                }
                Ok(own / if *root { (rank as f64).sqrt() } else { rank as f64 })
            }
        }
    }

    /// A module that ranks are given for and that has no tensors.
    pub(super) fn without_tensors(&self, has: impl Fn(&str) -> bool) -> Option<&str> {
        match self {
            Self::AdaLora { live: Some(live), .. } => live.keys().map(String::as_str).find(|name| !has(name)),
            _ => None,
        }
    }
}

/// Whether a key leaves the product as it is.
fn is_plain(key: &str, value: &Value) -> bool {
    let is_empty = match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(values) => values.is_empty(),
        Value::Object(values) => values.is_empty(),
        Value::String(text) => text.is_empty(),
        Value::Bool(true) | Value::Number(_) => false,
    };
    match key {
        "bias" => is_empty || value == "none",
        "init_lora_weights" => {
            value.is_boolean() || value.as_str().is_some_and(|start| PLAIN_STARTS.contains(&start))
        }
        // AdaLoRA has it from LoRA and does not look at it.
        "use_rslora" => true,
        _ => is_empty || HARMLESS.contains(&key),
    }
}

/// The module of a key of AdaLoRA's pattern.
fn module(key: &str) -> Result<String, String> {
    let name = key.strip_suffix(DEFAULT_NAME).and_then(|key| key.strip_suffix('.')).unwrap_or(key);
    let name = name.strip_suffix(".lora_E").map(str::to_owned);
    name.ok_or_else(|| format!("`{key}` of rank_pattern is no name of a lora_E"))
}

fn count(key: &str, flags: &Value, init_r: usize) -> Result<usize, String> {
    let wrong = || format!("`{key}` of rank_pattern must be a list of init_r = {init_r} times true or false");
    let flags = flags.as_array().filter(|flags| flags.len() == init_r).ok_or_else(wrong)?;
    flags.iter().try_fold(0, |live, flag| Ok(live + usize::from(flag.as_bool().ok_or_else(wrong)?)))
}

/// What a module matches. PEFT takes a key for the end of a name, and for a regular expression.
fn patterns(config: &Map<String, Value>, name: &str) -> Result<Vec<(Regex, f64)>, String> {
    let Some(patterns) = config.get(name).and_then(Value::as_object) else { return Ok(Vec::new()) };
    if patterns.len() > MOST_PATTERNS {
        return Err(format!("{name} has {} patterns, and {MOST_PATTERNS} are read at most", patterns.len()));
    }
    patterns
        .iter()
        .map(|(key, value)| {
            let value = value.as_f64().ok_or_else(|| format!("`{key}` of {name} must have a number"))?;
            let whole =
                RegexBuilder::new(&format!(r"^(?:.*\.)?(?:{key})$")).size_limit(LARGEST_PATTERN).build();
            let whole =
                whole.map_err(|_| format!("`{key}` of {name} is no regular expression that can be read"))?;
            Ok((whole, value))
        })
        .collect()
}

fn matching<'a>(patterns: &'a [(Regex, f64)], module: &'a str) -> impl Iterator<Item = f64> + 'a {
    patterns.iter().filter(move |(pattern, _)| pattern.is_match(module)).map(|(_, value)| *value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(form: Form, config: Value) -> Result<Settings, String> {
        let Value::Object(config) = config else { panic!("a table") };
        Settings::read(&config, form)
    }

    #[test]
    fn patterns_are_those_of_peft() {
        let settings = read(
            Form::Lora,
            json!({
                "r": 4, "lora_alpha": 8, "use_rslora": null, "bias": "none", "loftq_config": {},
                "rank_pattern": { "fc": 2, "^block.fc": 3 },
                "alpha_pattern": { r"layer\.[01]\..*query": 6, "^fc": 1, "default.fc": 5.5 },
            }),
        )
        .unwrap();
        for (module, rank, scale) in [
            ("net.layer.1.self.query", 4, Ok(1.5)),
            ("net.layer.2.self.query", 4, Ok(2.0)),
            ("fc", 2, Ok(0.5)),
            ("net.fc", 2, Ok(4.0)),
            ("net.default.fc", 2, Ok(2.75)),
            // Either is the first of some file.
            ("block.fc", 3, Ok(8.0 / 3.0)),
            ("net.block.fc", 3, Err("gives `net.block.fc` the rank 2, but its tensors have 3")),
            ("net.key", 1, Err("gives `net.key` the rank 4, but its tensors have 1")),
        ] {
            match (settings.scale(module, rank), scale) {
                (Ok(found), Ok(expected)) => assert_eq!(found, expected, "{module}"),
                (Err(error), Err(expected)) => assert!(error.contains(expected), "{error}"),
                (found, _) => panic!("{module}: {found:?}"),
            }
        }
        let several = json!({ "r": 1, "lora_alpha": 8, "alpha_pattern": { "fc": 2, "block.fc": 3 } });
        let error = read(Form::Lora, several).unwrap().scale("block.fc", 1).unwrap_err();
        assert!(error.contains("several values for `block.fc`"), "{error}");
        let root = json!({ "r": 4, "lora_alpha": 8, "use_rslora": true });
        assert_eq!(read(Form::Lora, root).unwrap().scale("fc", 4), Ok(4.0));
    }

    #[test]
    fn adalora_is_divided_by_what_its_writer_divides_by() {
        let of = |more: Value| {
            let mut config = json!({ "init_r": 2, "r": 8, "lora_alpha": 3, "use_rslora": true });
            config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            read(Form::Svd, config)
        };
        let scale = |more: Value, module: &str, rank| of(more)?.scale(module, rank);
        assert_eq!(scale(json!({}), "fc", 2), Ok(1.5));
        assert_eq!(scale(json!({ "orth_reg_weight": 0.5 }), "fc", 2), Ok(3.0 / 2.00001));
        let pattern = json!({ "rank_pattern": { "a.default_fc.lora_E": [true, false], "fc.lora_E.default": [false, false] } });
        assert_eq!(scale(pattern.clone(), "a.default_fc", 1), Ok(1.5));
        assert_eq!(scale(pattern.clone(), "fc", 0), Ok(1.5));
        assert!(scale(pattern.clone(), "fc", 1).unwrap_err().contains("the rank 0, but its tensors have 1"));
        assert_eq!(of(pattern).unwrap().without_tensors(|name| name == "fc"), Some("a.default_fc"));
        for (more, rule) in [
            (
                json!({ "rank_pattern": { "fc.lora_E": [1, 0] } }),
                "must be a list of init_r = 2 times true or false",
            ),
            (json!({ "rank_pattern": { "fc.lora_E": [true] } }), "must be a list of init_r = 2"),
            (
                json!({ "rank_pattern": { "fc": [true, true] } }),
                "`fc` of rank_pattern is no name of a lora_E",
            ),
            (json!({ "rank_pattern": [] }), "`rank_pattern` must be a table"),
            (json!({ "init_r": 0 }), "`init_r` must be a whole number from 1 on"),
            (json!({ "lora_alpha": 0, "orth_reg_weight": 0.5 }), "it must be above 0"),
            (json!({ "lora_alpha": "2" }), "`lora_alpha` must be a number"),
        ] {
            let error = of(more).err().expect(rule);
            assert!(error.contains(rule), "{error}");
        }
    }

    #[test]
    fn whatever_changes_the_product_is_refused() {
        for (key, value) in [
            ("use_dora", json!(true)),
            ("fan_in_fan_out", json!(true)),
            ("bias", json!("all")),
            ("lora_bias", json!(true)),
            ("init_lora_weights", json!("pissa")),
            ("layer_replication", json!([[0, 4], [2, 5]])),
            ("trainable_token_indices", json!([3])),
            ("target_parameters", json!(["experts.up"])),
            ("of_a_later_version", json!(1)),
        ] {
            for form in [Form::Svd, Form::Lora] {
                let mut config = json!({ "r": 1, "init_r": 1, "lora_alpha": 1 });
                config[key] = value.clone();
                let error = read(form, config).err().expect(key);
                assert!(error.starts_with(&format!("`{key}` is set; only the plain product")), "{error}");
            }
        }
        let long = "x{900}".repeat(200);
        let pattern = json!({ "r": 1, "lora_alpha": 1, "alpha_pattern": { long: 1 } });
        let error = read(Form::Lora, pattern).err().unwrap();
        assert!(error.contains("is no regular expression that can be read"), "{error}");
    }
}
