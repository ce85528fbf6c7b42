//! What the variants of an experiment do differently, from the settings that their runs wrote.

use std::collections::{BTreeMap, BTreeSet};

use toml::{Table, Value};

use crate::record::Experiment;
use crate::table::{self, Alignment};

/// Keys that name a run rather than set anything.
const IDENTITY: [&str; 3] = ["description", "seed", "variant"];

/// A row for each dotted key whose value differs between variants, a column for each variant that has settings.
/// `None` if nothing differs.
pub(crate) fn differences(experiment: &Experiment) -> Option<table::Table> {
    let mut variants = Vec::new();
    for variant in &experiment.variants {
        if let Some(settings) = variant.runs.iter().find_map(|run| run.settings.as_ref()) {
            let mut flat = BTreeMap::new();
            flatten("", settings, &mut flat);
            flat.retain(|key, _| !IDENTITY.contains(&key.as_str()));
            variants.push((&variant.name, flat));
        }
    }
    let (_, first) = variants.first()?;
    let keys: BTreeSet<_> = variants.iter().flat_map(|(_, flat)| flat.keys()).collect();
    let differs = |key: &&&String| variants.iter().any(|(_, flat)| flat.get(**key) != first.get(**key));
    let keys: Vec<_> = keys.iter().filter(differs).collect();
    if keys.is_empty() {
        return None;
    }
    let mut differences = table::Table::default();
    differences.column("setting", Alignment::Left, keys.iter().map(|key| key.to_string()));
    for (name, flat) in &variants {
        let value = |key: &&&String| flat.get(**key).map_or(table::ABSENT.to_owned(), String::clone);
        differences.column(name.as_str(), Alignment::Left, keys.iter().map(value));
    }
    Some(differences)
}

fn flatten(prefix: &str, settings: &Table, flat: &mut BTreeMap<String, String>) {
    for (key, value) in settings {
        let key = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
        match value {
            Value::Table(table) if !table.is_empty() => flatten(&key, table, flat),
            Value::String(text) => drop(flat.insert(key, text.clone())),
            value => drop(flat.insert(key, value.to_string())),
        }
    }
}
