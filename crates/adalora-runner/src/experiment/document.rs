//! An experiment file as a document: base, variants and overrides, with the place of every key.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::de::{DeTable, DeValue};

use super::grid::Axes;
use super::problem::{Located, Problem, Problems};
use super::read::{instead, near, quoted, read};
use super::rules;
use super::spec::{Experiment, RunSpec};
use super::tree::{Entry, Node, Place, Table, Value};

/// What every variant shares and none replaces.
#[derive(Debug, Deserialize)]
struct Head {
    description: String,
    seeds: Vec<u64>,
}

const HEAD: [&str; 2] = ["description", "seeds"];

/// The tables of a [`RunSpec`].
pub(super) const TABLES: [&str; 10] = [
    "model",
    "task",
    "adapter",
    "warm_start",
    "orthogonality",
    "importance",
    "budget",
    "observation",
    "optimizer",
    "train",
];

/// Tables that hold exactly one of several.
const CHOICES: [&str; 7] =
    ["model", "task", "adapter", "orthogonality", "importance", "budget", "optimizer.schedule"];

/// Bytes of a file that are read: ten times the longest one that is known. What a file says is kept once for each of its
/// cells.
const LONGEST: usize = 1 << 16;

/// The name of the only variant of a file without `[variants.NAME]`.
const ONLY: &str = "run";

/// An experiment file, with the overrides of the command line, as its author sees it.
#[derive(Debug, Clone)]
pub struct Document {
    path: PathBuf,
    text: String,
    overrides: Vec<String>,
    /// `description` and `seeds`.
    head: Table,
    base: Table,
    /// In the order of the file.
    variants: Vec<Variant>,
    /// `[sweep]` and `[tuning]`.
    pub(super) axes: Axes,
    /// What is wrong with the order of things, before any table is read.
    misplaced: Vec<Located>,
}

#[derive(Debug, Clone)]
pub(super) struct Variant {
    name: String,
    /// Its header.
    place: Place,
    own: Table,
    dropped: Vec<String>,
}

impl Variant {
    /// Whether the base's table of this name has no say here.
    fn overrules(&self, name: &str) -> bool {
        self.own.get(name).is_some() || self.dropped.iter().any(|dropped| dropped == name)
    }
}

impl Experiment {
    /// Reads a file of one experiment, with overrides as [`Document::parse`] takes them.
    ///
    /// # Errors
    ///
    /// All that is wrong with it, as far as it shows without model and data.
    pub fn load(path: &Path, overrides: &[String]) -> Result<(Document, Self), Problems> {
        let document = Document::load(path, overrides)?;
        let experiment = document.experiment()?;
        Ok((document, experiment))
    }
}

impl Document {
    /// Reads a file. Each override is `key.path=value`; see [`Document::parse`].
    ///
    /// # Errors
    ///
    /// No such file, with names of files like it, or what `parse` finds.
    pub fn load(path: &Path, overrides: &[String]) -> Result<Self, Problems> {
        match fs::read_to_string(path) {
            Ok(text) => Self::parse(path, text, overrides),
            Err(_) if !path.exists() => Err(Problems::of_file(path, no_such_file(path))),
            Err(error) => Err(Problems::of_file(path, format!("it cannot be read: {error}"))),
        }
    }

    /// Takes a text apart. `path` names the experiment and is shown in problems.
    ///
    /// An override acts on the base and on every variant that has the table itself, except where the table holds
    /// another choice: `adapter.svd.init_r=8` leaves a variant with `[adapter.lora]` alone. `train.steps` replaces
    /// `train.epochs`, and the other way round. The value is TOML; what is not is taken as a string, so that a name
    /// needs no quotes.
    ///
    /// # Errors
    ///
    /// Text that is not TOML. Everything else is found by [`Document::experiment`].
    pub fn parse(path: &Path, text: String, overrides: &[String]) -> Result<Self, Problems> {
        if text.len() > LONGEST {
            let message =
                format!("it has {} bytes, and an experiment has {LONGEST} at most: split it", text.len());
            return Err(Problems::of_file(path, message));
        }
        let root = DeTable::parse(&text).map_err(|error| {
            let place = error.span().map_or(Place::WHOLE, Place::from);
            let located = Located { place, message: error.message().into(), variant: None };
            Problems::new(path, &text, &[], 1, vec![located])
        })?;
        let root = Table::new(root.get_ref(), &Place::from);
        let mut document = Self {
            path: path.to_owned(),
            text,
            overrides: overrides.to_vec(),
            head: Table::default(),
            base: Table::default(),
            variants: Vec::new(),
            axes: Axes::default(),
            misplaced: Vec::new(),
        };
        for part in document.name().split('/') {
            document.name_folder(Place::WHOLE, "the file's name without its ending", part);
        }
        let (mut variants, mut sweep, mut tuning, mut unknown) = (None, None, None, Vec::new());
        for entry in root.0 {
            match entry.key.as_str() {
                key if HEAD.contains(&key) => document.head.0.push(entry),
                key if TABLES.contains(&key) => document.base.0.push(entry),
                "variants" => variants = Some(entry),
                "sweep" => sweep = Some(entry),
                "tuning" => tuning = Some(entry),
                key => {
                    let known = [&HEAD[..], &TABLES, &["variants", "sweep", "tuning"]].concat();
                    let message = format!("unknown key {key}; {}", instead(key, &known));
                    document.misplaced(entry.key_place.clone(), message);
                    unknown.push(entry);
                }
            }
        }
        adopt(&mut document.head, &HEAD, &unknown);
        adopt(&mut document.base, &TABLES, &unknown);
        if let Some(variants) = variants {
            document.take_variants(variants);
            document.check_base_is_used();
        }
        if let Some(sweep) = sweep {
            document.take_sweep(sweep);
        }
        if let Some(tuning) = tuning {
            document.take_tuning(tuning);
        }
        document.check_runs();
        for (index, text) in overrides.iter().enumerate() {
            if let Err(message) = document.override_with(text, Place::Override(index)) {
                document.misplaced(Place::Override(index), message);
            }
        }
        document.check_tuning();
        Ok(document)
    }

    /// The text of the file, without overrides.
    pub fn source(&self) -> &str {
        &self.text
    }

    /// What a document without `[sweep]` and `[tuning]` says; [`Document::grid`] takes any.
    ///
    /// # Errors
    ///
    /// Every unknown or missing key, every wrong type, and in variants free of these every broken rule that needs
    /// neither model nor data.
    pub fn experiment(&self) -> Result<Experiment, Problems> {
        self.read().map_err(|found| self.show(found))
    }

    pub(super) fn read(&self) -> Result<Experiment, Vec<Located>> {
        let mut found = self.misplaced.clone();
        let head = read::<Head>(node(Place::WHOLE, self.head.clone()));
        let head = keep_or_report(head, None, &mut found);
        if let Some(head) = &head {
            let broken = rules::broken_by_seeds(&head.seeds);
            found.extend(broken.into_iter().map(|broken| self.locate(broken)));
        }
        let mut variants = Vec::new();
        for variant in self.variants() {
            let spec = read::<RunSpec>(node(Place::WHOLE, self.in_force(variant)));
            let name = variant.map_or(ONLY, |variant| &variant.name);
            if let Some(spec) = keep_or_report(spec, Some(name), &mut found) {
                let broken = rules::broken(&spec).into_iter();
                found.extend(
                    broken.map(|broken| self.locate(Problem { variant: Some(name.into()), ..broken })),
                );
                variants.push((name.to_owned(), spec));
            }
        }
        match head {
            Some(Head { description, seeds }) if found.is_empty() => {
                Ok(Experiment { name: self.name(), description, seeds, variants })
            }
            _ => Err(found),
        }
    }

    /// Problems that were found elsewhere, such as rules that need the model, at their places in this file. With
    /// `[sweep]` a variant's name is that of its cell, a `/`, and its own.
    pub fn problems(&self, found: impl IntoIterator<Item = Problem>) -> Problems {
        let cells = self.cells();
        let locate = |problem: Problem| {
            let named = problem.variant.as_deref().and_then(|name| name.rsplit_once('/'));
            let Some((cell, own)) = named.map(|(cell, own)| (cell.to_owned(), own.to_owned())) else {
                return self.locate(problem);
            };
            let of = cells.iter().find(|of| of.name == cell).map_or(self, |of| &of.document);
            let Located { place, message, .. } = of.locate(Problem { variant: Some(own), ..problem.clone() });
            Located { place, message, variant: problem.variant }
        };
        self.show(found.into_iter().map(locate).collect())
    }

    /// The path below `experiments`, or else the file's name.
    pub(super) fn name(&self) -> String {
        let path = self.path.with_extension("");
        let parts: Vec<_> = path.iter().map(|part| part.to_string_lossy()).collect();
        let below = parts.iter().rposition(|part| part == "experiments").map_or(parts.len(), |at| at + 1);
        let last = parts.len().saturating_sub(1);
        parts[below.min(last)..].join("/")
    }

    pub(super) fn variants(&self) -> impl Iterator<Item = Option<&Variant>> {
        let only = self.variants.is_empty().then_some(None);
        only.into_iter().chain(self.variants.iter().map(Some))
    }

    /// The tables that a variant runs with.
    fn in_force(&self, variant: Option<&Variant>) -> Table {
        let Some(variant) = variant else { return self.base.clone() };
        let kept = self.base.0.iter().filter(|entry| !variant.overrules(&entry.key));
        Table(kept.chain(&variant.own.0).cloned().collect())
    }

    pub(super) fn show(&self, found: Vec<Located>) -> Problems {
        let variants = self.cells().len() * self.variants().count();
        Problems::new(&self.path, &self.text, &self.overrides, variants, found)
    }

    pub(super) fn misplaced(&mut self, place: Place, message: String) {
        self.misplaced.push(Located { place, message, variant: None });
    }

    /// The setting's place in the table in force, or that of the innermost table around it that there is.
    fn locate(&self, Problem { variant, key, message }: Problem) -> Located {
        let of = self.variants.iter().find(|of| Some(&of.name) == variant.as_ref());
        let mut place = of.map_or(Place::WHOLE, |of| of.place.clone());
        let tables = self.in_force(of);
        let mut table = if HEAD.contains(&key.as_str()) { &self.head } else { &tables };
        for step in key.split('.') {
            let Some(entry) = table.get(step) else { break };
            place = entry.place();
            let Value::Table(inner) = &entry.node.value else { break };
            table = inner;
        }
        Located { place, message, variant }
    }

    pub(super) fn name_folder(&mut self, place: Place, what: &str, name: &str) {
        if !is_plain(name) {
            let message = format!(
                "{what} ({name}) becomes a folder's; write it with a-z, 0-9, `.`, `_` and `-`, and start \
                 with one of the first two"
            );
            self.misplaced(place, message);
        }
    }

    fn take_variants(&mut self, variants: Entry) {
        let Value::Table(table) = variants.node.value else {
            let message =
                format!("variants must be tables [variants.NAME], not {}", variants.node.describe());
            return self.misplaced(variants.node.place, message);
        };
        for Entry { key: name, key_place, node } in table.0 {
            if RESERVED.contains(&name.as_str()) {
                let message = format!(
                    "a variant cannot be called {name}, which is a folder beside those of the variants"
                );
                self.misplaced(key_place.clone(), message);
            }
            self.name_folder(key_place, "the variant's name", &name);
            let Value::Table(table) = node.value else {
                let message = format!("variants.{name} must be a table, not {}", node.describe());
                self.misplaced(node.place, message);
                continue;
            };
            let mut variant = Variant { name, place: node.place, own: Table::default(), dropped: Vec::new() };
            let mut unknown = Vec::new();
            for entry in table.0 {
                match entry.key.as_str() {
                    key if TABLES.contains(&key) => variant.own.0.push(entry),
                    "drop" => variant.dropped = self.take_dropped(&variant.name, entry),
                    key => {
                        let known = [&TABLES[..], &["drop"]].concat();
                        let message =
                            format!("unknown key variants.{}.{key}; {}", variant.name, instead(key, &known));
                        self.misplaced(entry.key_place.clone(), message);
                        unknown.push(entry);
                    }
                }
            }
            adopt(&mut variant.own, &TABLES, &unknown);
            for twice in variant.dropped.iter().filter_map(|name| variant.own.get(name)) {
                let message = format!(
                    "variants.{0} drops {1} and has one of its own; the latter is enough",
                    variant.name, twice.key
                );
                self.misplaced(twice.place(), message);
            }
            self.variants.push(variant);
        }
    }

    fn take_dropped(&mut self, variant: &str, Entry { node, .. }: Entry) -> Vec<String> {
        let Value::List(items) = node.value else {
            let message = format!("variants.{variant}.drop must be a list, not {}", node.describe());
            self.misplaced(node.place, message);
            return Vec::new();
        };
        let mut dropped = Vec::new();
        for item in items {
            match &item.value {
                Value::Text(name) if self.base.get(name).is_some() => dropped.push(name.clone()),
                Value::Text(name) => {
                    let base: Vec<_> = self.base.keys().collect();
                    let instead = instead(name, &base);
                    let message =
                        format!("variants.{variant}.drop: the base has no table `{name}`; {instead}");
                    self.misplaced(item.place, message);
                }
                _ => {
                    let message =
                        format!("variants.{variant}.drop must name tables, not {}", item.describe());
                    self.misplaced(item.place, message);
                }
            }
        }
        dropped
    }

    fn check_base_is_used(&mut self) {
        if self.variants.is_empty() {
            return;
        }
        let unused =
            self.base.0.iter().filter(|entry| self.variants.iter().all(|of| of.overrules(&entry.key)));
        for (key, place) in unused.map(|entry| (entry.key.clone(), entry.place())).collect::<Vec<_>>() {
            let message = format!("{key} of the base has no effect: every variant replaces or drops it");
            self.misplaced(place, message);
        }
    }

    /// Applies `key.path=value`, or says why it cannot be.
    fn override_with(&mut self, text: &str, place: Place) -> Result<(), String> {
        let (key, value) = text.split_once('=').ok_or("an override is written key.path=value")?;
        let path: Vec<&str> = key.trim().split('.').collect();
        let node = parse_value(value.trim(), &place)?;
        let table = &path[0];
        if HEAD.contains(table) {
            return set(&mut self.head, "", &path, &node);
        }
        if !TABLES.contains(table) {
            return Err(format!("unknown key {table}; {}", instead(table, &[&HEAD[..], &TABLES].concat())));
        }
        self.set(&path, &node)
    }

    /// Applies the overrides once more. What is wrong with them has been said.
    pub(super) fn override_again(&mut self) {
        for (index, text) in self.overrides.clone().iter().enumerate() {
            let _ = self.override_with(text, Place::Override(index));
        }
    }

    /// The base and what each variant has of its own.
    pub(super) fn variants_own(&self) -> Vec<&Table> {
        std::iter::once(&self.base).chain(self.variants.iter().map(|variant| &variant.own)).collect()
    }

    /// The seeds as far as they are numbers.
    pub(super) fn seeds_as_written(&self) -> Vec<u64> {
        let Some(Entry { node: Node { value: Value::List(items), .. }, .. }) = self.head.get("seeds") else {
            return Vec::new();
        };
        let number = |item: &Node| match item.value {
            Value::Integer(seed) => u64::try_from(seed).ok(),
            _ => None,
        };
        items.iter().filter_map(number).collect()
    }

    /// Puts a value into a table that a variant has itself, or says why it cannot be put there.
    pub(super) fn set_in_variant(&mut self, name: &str, path: &[&str], node: &Node) -> Result<(), String> {
        let names: Vec<_> = self.variants.iter().map(|variant| variant.name.clone()).collect();
        let Some(variant) = self.variants.iter_mut().find(|variant| variant.name == name) else {
            let names: Vec<_> = names.iter().map(String::as_str).collect();
            return Err(format!("there is no variant {name}; {}", instead(name, &names)));
        };
        match path {
            [table, _, ..] if variant.own.get(table).is_some() => set(&mut variant.own, "", path, node),
            [table, _, ..] => Err(format!(
                "the variant {name} has no table [{table}] of its own: give it one, or set {} for all",
                path.join(".")
            )),
            _ => Err(format!("variants.{name} must be followed by a setting, such as adapter.svd.init_r")),
        }
    }

    /// Puts a value into the base and every variant that has the table itself, where it holds the same choice, or
    /// says why it can be put nowhere.
    pub(super) fn set(&mut self, path: &[&str], node: &Node) -> Result<(), String> {
        let table = &path[0];
        let of_variants = self.variants.iter_mut().map(|variant| &mut variant.own);
        let all = std::iter::once(&mut self.base).chain(of_variants);
        let mut present: Vec<_> = all.filter(|own| own.get(table).is_some()).collect();
        // A run has one length: setting either replaces the other.
        if let ["train", length @ ("epochs" | "steps")] = path {
            let other = if *length == "epochs" { "steps" } else { "epochs" };
            for own in &mut present {
                if let Some(Entry { node: Node { value: Value::Table(train), .. }, .. }) =
                    own.get_mut("train")
                {
                    train.0.retain(|entry| entry.key != other);
                }
            }
        }
        let results: Vec<_> = present.into_iter().map(|own| set(own, "", path, node)).collect();
        // One that took it is enough: the others made another choice.
        results
            .into_iter()
            .reduce(|one, other| one.or(other))
            .unwrap_or_else(|| set(&mut self.base, "", path, node))
    }
}

/// Folders beside those of the variants.
const RESERVED: [&str; 2] = ["report", "tuning"];

/// Whether it can name a folder.
pub(super) fn is_plain(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    name.starts_with(plain) && name.chars().all(|c| plain(c) || "._-".contains(c))
}

/// Puts entries in under the name that they were meant to have, where that is not taken: it is not missing then.
fn adopt(table: &mut Table, known: &[&str], misspelt: &[Entry]) {
    for entry in misspelt {
        if let Some(meant) =
            near(&entry.key, known.iter().copied()).filter(|meant| table.get(meant).is_none())
        {
            table.0.push(Entry { key: meant.into(), ..entry.clone() });
        }
    }
}

/// Puts a value at a path below `table`, whose own path is `prefix`, and makes the tables on the way. A choice that
/// was made is left alone: a table that holds another one is an error.
fn set(table: &mut Table, prefix: &str, path: &[&str], value: &Node) -> Result<(), String> {
    let (key, inner) = path.split_first().expect("a path has at least one key");
    let prefix = if prefix.is_empty() { (*key).into() } else { format!("{prefix}.{key}") };
    match table.get_mut(key) {
        Some(entry) if inner.is_empty() => {
            (entry.key_place, entry.node) = (value.place.clone(), value.clone());
            Ok(())
        }
        Some(Entry { node: Node { value: Value::Table(own), .. }, .. }) => {
            let wanted = inner[0];
            if CHOICES.contains(&prefix.as_str()) && own.get(wanted).is_none() {
                return Err(format!(
                    "no {prefix} here holds `{wanted}`; to put it there replace the table, \
                     --set \"{prefix}={{ {wanted} = {{ ... }} }}\""
                ));
            }
            set(own, &prefix, inner, value)
        }
        _ => {
            let entry = |key: &str, node| Entry { key: key.into(), key_place: value.place.clone(), node };
            let nested = inner
                .iter()
                .rfold(value.clone(), |inner, key| node(value.place.clone(), Table(vec![entry(key, inner)])));
            table.0.retain(|entry| entry.key != *key);
            table.0.push(entry(key, nested));
            Ok(())
        }
    }
}

/// A TOML value, or a string without quotes.
fn parse_value(text: &str, place: &Place) -> Result<Node, String> {
    match DeValue::parse(text) {
        Ok(value) => Ok(Node::new(&value, &|_| place.clone())),
        Err(_) if text.is_empty() => Err("there is no value after the `=`".into()),
        Err(error) if text.starts_with(['"', '\'', '[', '{']) => {
            Err(format!("the value is not TOML: {}", error.message()))
        }
        Err(_) => Ok(Node { place: place.clone(), value: Value::Text(text.into()) }),
    }
}

/// Names of files that may have been meant.
fn no_such_file(path: &Path) -> String {
    let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| name(&entry.path()));
    let mut files: Vec<_> = entries.filter(|name| name.ends_with(".toml")).collect();
    files.sort();
    let stem = |file: &str| file.trim_end_matches(".toml").to_owned();
    let stems: Vec<_> = files.iter().map(|file| stem(file)).collect();
    let near = near(&stem(&name(path)), stems.iter().map(String::as_str));
    match (near, files.is_empty()) {
        (_, true) => format!("there is no such file, and no other experiment in {}", folder.display()),
        (Some(near), _) => {
            format!("there is no such file; did you mean {}?", folder.join(format!("{near}.toml")).display())
        }
        (None, _) => format!("there is no such file; {} has {}", folder.display(), quoted(files)),
    }
}

fn node(place: Place, table: Table) -> Node {
    Node { place, value: Value::Table(table) }
}

fn keep_or_report<T>(
    read: Result<T, Vec<(Place, String)>>,
    variant: Option<&str>,
    found: &mut Vec<Located>,
) -> Option<T> {
    match read {
        Ok(value) => Some(value),
        Err(faults) => {
            found.extend(faults.into_iter().map(|(place, message)| Located {
                place,
                message,
                variant: variant.map(Into::into),
            }));
            None
        }
    }
}
