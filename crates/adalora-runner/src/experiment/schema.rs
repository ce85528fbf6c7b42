//! A JSON schema of experiment files, so that editors complete and check them.
//!
//! It knows keys, types and what each is for. What is missing it cannot say, since `[sweep]` or `[tuning]` may give it,
//! nor the rules among settings: for both there is `adalora check`.

use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use super::spec::RunSpec;

/// The schema, of draft 7, which is what editors of TOML know. Descriptions are the comments of the settings' types.
pub fn schema() -> Value {
    let mut run = SchemaSettings::draft07().into_generator().into_root_schema_for::<RunSpec>().to_value();
    without_null(&mut run);
    let take = |of: &mut Value, key: &str| of.get_mut(key).map(Value::take).unwrap_or_default();
    let (tables, mut definitions) = (take(&mut run, "properties"), take(&mut run, "definitions"));
    for settings in definitions.as_object_mut().into_iter().flat_map(Map::values_mut) {
        // Of a choice, whose kinds lie deeper, one stays required.
        settings.as_object_mut().map(|settings| settings.remove("required"));
    }
    let Value::Object(tables) = tables else { unreachable!("settings of a run are tables") };
    let names: Vec<_> = tables.keys().cloned().collect();
    let seeds = json!({ "type": "array", "items": { "type": "integer", "minimum": 0 }, "minItems": 1 });
    let described = |mut schema: Value, text: &str| {
        schema["description"] = json!(text);
        schema
    };

    let mut of_variant = tables.clone();
    let drop = json!({ "type": "array", "items": { "enum": names } });
    of_variant.insert("drop".into(), described(drop, "Tables of the base that this variant does without."));
    let variant = json!({ "type": "object", "properties": of_variant, "additionalProperties": false });
    let variant = described(variant, "Tables that replace the base's, each as a whole.");

    let tuning = json!({ "type": "object", "properties": { "seeds": seeds }, "required": ["seeds"] });
    let own = [
        (
            "description",
            described(json!({ "type": "string" }), "What the experiment is for, in a sentence or two."),
        ),
        ("seeds", described(seeds.clone(), "Seeds of every variant.")),
        (
            "variants",
            described(
                json!({ "type": "object", "additionalProperties": variant }),
                "What is compared, by name; the first is the control of the table.",
            ),
        ),
        (
            "sweep",
            described(
                json!({ "type": "object" }),
                "Settings with a list of values each, which multiply, or tables of named points, whose settings go together.",
            ),
        ),
        (
            "tuning",
            described(
                tuning,
                "One setting with a list of values, of which each variant goes on with its best, and seeds of its own.",
            ),
        ),
    ];
    let mut properties: Map<_, _> = own.map(|(name, schema)| (name.to_owned(), schema)).into_iter().collect();
    properties.extend(tables);
    json!({
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "An experiment of adalora",
        "type": "object",
        "properties": properties,
        "required": ["description", "seeds"],
        "additionalProperties": false,
        "definitions": definitions,
    })
}

/// Takes null out, by which the generator says that a key may be absent: TOML has none.
fn without_null(schema: &mut Value) {
    let null = json!({ "type": "null" });
    match schema {
        Value::Object(object) => {
            if let Some(Value::Array(choices)) = object.get_mut("anyOf") {
                choices.retain(|choice| *choice != null);
                if let [only] = choices.as_mut_slice() {
                    let only = only.take();
                    object.remove("anyOf");
                    let described = object.contains_key("description");
                    match only {
                        // Beside a reference draft 7 sees nothing else.
                        Value::Object(inner) if described && inner.contains_key("$ref") => {
                            object.insert("allOf".into(), json!([inner]));
                        }
                        Value::Object(inner) => object.extend(inner),
                        _ => {}
                    }
                }
            }
            if let Some(Value::Array(kinds)) = object.get_mut("type") {
                kinds.retain(|kind| kind != "null");
                if let [only] = kinds.as_mut_slice() {
                    let only = only.take();
                    object.insert("type".into(), only);
                }
            }
            if object.get("default") == Some(&Value::Null) {
                object.remove("default");
            }
            object.values_mut().for_each(without_null);
        }
        Value::Array(items) => items.iter_mut().for_each(without_null),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::*;
    use crate::experiment::document::TABLES;

    fn experiments() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../experiments")
    }

    fn toml_files(folder: &Path, files: &mut Vec<PathBuf>) {
        for entry in folder.read_dir().unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                toml_files(&path, files);
            } else if path.extension().is_some_and(|ending| ending == "toml") {
                files.push(path);
            }
        }
    }

    fn errors(text: &str) -> Vec<String> {
        let document: toml::Table = text.parse().unwrap();
        let document = serde_json::to_value(document).unwrap();
        let validator = jsonschema::validator_for(&schema()).unwrap();
        validator.iter_errors(&document).map(|error| error.to_string()).collect()
    }

    #[test]
    fn every_experiment_is_valid() {
        let mut files = Vec::new();
        toml_files(&experiments(), &mut files);
        assert!(files.len() > 20);
        for file in files {
            let found = errors(&std::fs::read_to_string(&file).unwrap());
            assert!(found.is_empty(), "{}: {found:#?}", file.display());
        }
    }

    #[test]
    fn what_is_misspelt_or_of_another_type_is_not() {
        let quickstart = std::fs::read_to_string(experiments().join("quickstart.toml")).unwrap();
        for (from, to) in [
            ("beta1 =", "beta_1 ="),
            ("[importance.sensitivity-uncertainty]", "[importance.sensitivity-uncertainly]"),
            ("batch_size = 32", "batch_size = \"32\""),
            ("weights = \"after-step\"", "weights = \"after\""),
            ("[train]", "[training]"),
            ("init_r = 4", "init_rank = 4"),
            ("seeds =", "seed ="),
            ("[variants.lora]\ndrop", "[variants.lora]\ndrops"),
            ("drop = [\"orthogonality\",", "drop = [\"orthogonal\","),
        ] {
            assert!(quickstart.contains(from), "{from}");
            assert!(!errors(&quickstart.replacen(from, to, 1)).is_empty(), "{to}");
        }
    }

    #[test]
    fn the_committed_schema_is_this_one() {
        let committed = std::fs::read_to_string(experiments().join("schema.json")).unwrap();
        let same = serde_json::from_str::<Value>(&committed).unwrap() == schema();
        assert!(same, "settings have changed: adalora schema > experiments/schema.json");
    }

    #[test]
    fn tables_and_descriptions_are_those_of_the_settings() {
        let schema = schema();
        let mut tables: Vec<_> =
            schema["properties"].as_object().unwrap().keys().map(String::as_str).collect();
        tables.retain(|key| !["description", "seeds", "variants", "sweep", "tuning"].contains(key));
        let mut expected = TABLES.to_vec();
        expected.sort_unstable();
        assert_eq!(tables, expected);
        let beta = &schema["definitions"]["SensitivityUncertainty"]["properties"]["beta1"];
        assert!(
            beta["description"].as_str().unwrap().starts_with("Weight of the past in the average"),
            "{beta}"
        );
        assert_eq!(beta["default"], 0.85);
        assert!(!schema.to_string().contains("null"));
    }
}
