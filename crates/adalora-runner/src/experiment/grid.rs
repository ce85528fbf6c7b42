//! `[sweep]` and `[tuning]`: one file as many experiments, cell by cell.
//!
//! ```toml
//! [sweep]
//! orthogonality.mean-of-norms.gamma = [0.1, 0.3]     # lists multiply
//! [sweep.tasks]                                      # what stands in one point goes together
//! cola = { task.text.data = "cola", budget.cubic.t_init = 100 }
//! mrpc = { task.text.data = "mrpc", budget.cubic.t_init = 40 }
//!
//! [tuning]                                           # chosen for each variant in each cell
//! seeds = [101]
//! optimizer.lr = [5e-4, 1e-3, 2e-3]
//! ```
//!
//! A cell is one point of every axis. Its settings act as `--set` does: on the base and on every variant that has the
//! table itself, except where the table holds another choice; `variants.NAME.adapter.svd.init_r = 2` in a point acts on
//! one variant's own table alone. Each cell has all variants and is compared within itself.

use std::collections::BTreeSet;
use std::path::Path;

use super::document::{Document, TABLES, is_plain};
use super::problem::{Located, Problems};
use super::read::{instead, quoted};
use super::spec::Experiment;
use super::tree::{Entry, Node, Place, Table, Value};

/// Runs of a file for one seed. The largest study that is known to us has some hundreds.
const MOST_RUNS: usize = 4000;

/// All that an experiment file asks for.
#[derive(Debug, Clone)]
pub struct Grid {
    /// The file's path below `experiments`, without its ending.
    pub name: String,
    /// What the experiment is for, in a sentence or two.
    pub description: String,
    /// Seeds of every variant in every cell.
    pub seeds: Vec<u64>,
    /// What is chosen for each variant before these seeds run.
    pub tuning: Option<Tuning>,
    /// One for each combination of points, the last axis fastest; only one without `[sweep]`.
    pub cells: Vec<Cell>,
}

/// `[tuning]`: each variant of each cell runs with each value and each of these seeds, and goes on with the value of the
/// best mean score.
#[derive(Debug, Clone)]
pub struct Tuning {
    /// Such as `optimizer.lr`.
    pub setting: String,
    /// As a user reads them and as folders are called, such as `lr-0.001`.
    pub values: Vec<String>,
    /// Seeds of the tries, none of which is reported on.
    pub seeds: Vec<u64>,
}

/// A combination of points.
#[derive(Debug, Clone)]
pub struct Cell {
    /// The folder of its runs below the experiment's; empty without `[sweep]`.
    pub name: String,
    /// Axis and point.
    pub points: Vec<(String, String)>,
    /// Its settings with each value of [`Tuning`]; one without.
    pub tries: Vec<Experiment>,
}

/// A file that asks for several experiments, as a document.
#[derive(Debug, Clone, Default)]
pub(super) struct Axes {
    pub(super) sweep: Vec<Axis>,
    pub(super) tuning: Option<Tries>,
}

#[derive(Debug, Clone)]
pub(super) struct Axis {
    name: String,
    points: Vec<Point>,
}

/// Settings that go together.
#[derive(Debug, Clone)]
struct Point {
    name: String,
    settings: Vec<(Vec<String>, Node)>,
}

/// A combination of points.
pub(super) struct CellDocument {
    pub(super) name: String,
    /// Axis and point.
    points: Vec<(String, String)>,
    /// What the file says there.
    pub(super) document: Document,
}

#[derive(Debug, Clone)]
pub(super) struct Tries {
    axis: Axis,
    setting: Vec<String>,
    seeds: Vec<u64>,
    /// Of the list of seeds.
    place: Place,
}

impl Cell {
    /// A variant's name among those of all cells.
    pub fn variant(&self, name: &str) -> String {
        join(&self.name, name)
    }
}

impl Grid {
    /// Reads an experiment file with all its cells, with overrides as [`Document::parse`] takes them.
    ///
    /// # Errors
    ///
    /// All that is wrong with it, as far as it shows without model and data.
    pub fn load(path: &Path, overrides: &[String]) -> Result<(Document, Self), Problems> {
        let document = Document::load(path, overrides)?;
        let grid = document.grid()?;
        Ok((document, grid))
    }

    /// The name of a cell as an experiment.
    pub fn cell_name(&self, cell: &str) -> String {
        if cell.is_empty() { self.name.clone() } else { format!("{}/{cell}", self.name) }
    }

    /// Whether it is more than one experiment as it stands, so that its list of runs is frozen.
    pub fn is_several(&self) -> bool {
        self.tuning.is_some() || self.cells.len() > 1 || !self.cells[0].name.is_empty()
    }
}

impl Document {
    /// What the document says, cell by cell.
    ///
    /// # Errors
    ///
    /// What [`Document::experiment`] finds in any cell, and what is wrong with the axes.
    pub fn grid(&self) -> Result<Grid, Problems> {
        let mut found = Vec::new();
        let mut cells = Vec::new();
        for CellDocument { name, points, document } in self.cells() {
            let mut tries = Vec::new();
            for document in document.tries() {
                match document.read() {
                    Ok(own) if name.is_empty() => tries.push(own),
                    Ok(own) => tries.push(Experiment { name: format!("{}/{name}", own.name), ..own }),
                    Err(own) => found.extend(own.into_iter().map(|own| in_cell(&name, own))),
                }
            }
            cells.push(Cell { name, points, tries });
        }
        let first = cells.first().and_then(|cell| cell.tries.first());
        let (Some(first), true) = (first, found.is_empty()) else {
            return Err(self.show(found));
        };
        let (description, seeds) = (first.description.clone(), first.seeds.clone());
        let tuning = self.axes.tuning.as_ref().map(|tries| Tuning {
            setting: tries.setting.join("."),
            values: tries.axis.points.iter().map(|point| point.name.clone()).collect(),
            seeds: tries.seeds.clone(),
        });
        Ok(Grid { name: self.name(), description, seeds, tuning, cells })
    }

    /// The document cell by cell.
    pub(super) fn cells(&self) -> Vec<CellDocument> {
        let mut cells =
            vec![CellDocument { name: String::new(), points: Vec::new(), document: self.clone() }];
        for axis in &self.axes.sweep {
            let with = |cell: &CellDocument, point: &Point| CellDocument {
                name: if cell.name.is_empty() {
                    point.name.clone()
                } else {
                    format!("{},{}", cell.name, point.name)
                },
                points: [&cell.points[..], &[(axis.name.clone(), point.name.clone())]].concat(),
                document: cell.document.at(point),
            };
            cells = cells.iter().flat_map(|cell| axis.points.iter().map(|point| with(cell, point))).collect();
        }
        cells
    }

    /// The document with each value that is tried.
    fn tries(&self) -> Vec<Self> {
        match &self.axes.tuning {
            Some(tries) => tries.axis.points.iter().map(|point| self.at(point)).collect(),
            None => vec![self.clone()],
        }
    }

    /// With the settings of a point. The command line has the last word.
    fn at(&self, point: &Point) -> Self {
        let mut document = self.clone();
        let of_variant = |(path, _): &&(Vec<String>, Node)| path[0] == "variants";
        let (own, all): (Vec<_>, Vec<_>) = point.settings.iter().partition(of_variant);
        for (path, value) in all.into_iter().chain(own) {
            let path: Vec<_> = path.iter().map(String::as_str).collect();
            let set = match path.as_slice() {
                ["variants", name, path @ ..] => document.set_in_variant(name, path, value),
                path => document.set(path, value),
            };
            if let Err(message) = set {
                document.misplaced(value.place.clone(), message);
            }
        }
        document.override_again();
        document
    }

    /// Reads `[sweep]`.
    pub(super) fn take_sweep(&mut self, sweep: Entry) {
        let Value::Table(table) = sweep.node.value else {
            let message = format!("sweep must be a table, not {}", sweep.node.describe());
            return self.misplaced(sweep.node.place, message);
        };
        if table.0.is_empty() {
            self.misplaced(sweep.node.place, "sweep is empty: leave it out".into());
        }
        for entry in table.0 {
            if TABLES.contains(&entry.key.as_str()) {
                let mut lists = Vec::new();
                leaves(&mut vec![entry.key], entry.node, &mut lists);
                for (path, node) in lists {
                    if let Some(axis) = self.list("sweep", path, node) {
                        self.axes.sweep.push(axis);
                    }
                }
            } else if let Value::Table(points) = entry.node.value {
                self.take_points(entry.key, entry.node.place, points);
            } else {
                let message = format!(
                    "unknown key sweep.{0}; {1}. Points with names stand in a table [sweep.{0}]",
                    entry.key,
                    instead(&entry.key, &TABLES)
                );
                self.misplaced(entry.key_place, message);
            }
        }
        self.check_cells_differ();
    }

    /// `[sweep.AXIS]`, a table of settings for each point.
    fn take_points(&mut self, axis: String, place: Place, table: Table) {
        let mut points = Vec::new();
        for Entry { key: name, key_place, node } in table.0 {
            self.name_folder(key_place, "the point's name", &name);
            let Value::Table(settings) = node.value else {
                let message =
                    format!("sweep.{axis}.{name} must be a table of settings, not {}", node.describe());
                self.misplaced(node.place, message);
                continue;
            };
            let mut found = Vec::new();
            for entry in settings.0 {
                leaves(&mut vec![entry.key], entry.node, &mut found);
            }
            points.push(Point { name, settings: found });
        }
        if points.is_empty() {
            return self.misplaced(place, format!("sweep.{axis} has no points: leave it out"));
        }
        self.axes.sweep.push(Axis { name: axis, points });
    }

    /// A setting with its values, an axis of its own.
    fn list(&mut self, table: &str, path: Vec<String>, node: Node) -> Option<Axis> {
        let setting = path.join(".");
        let Value::List(values) = node.value else {
            let axis = if table == "sweep" {
                ". Points with names need an axis that is called otherwise"
            } else {
                ""
            };
            let message =
                format!("{table}.{setting} must be a list of values, not {}{axis}", node.describe());
            self.misplaced(node.place, message);
            return None;
        };
        if values.is_empty() {
            self.misplaced(node.place, format!("{table}.{setting} is empty: leave it out"));
            return None;
        }
        let key = path.last().expect("a setting has a name");
        let mut points = Vec::new();
        for value in values {
            let text = match &value.value {
                Value::Boolean(value) => value.to_string(),
                Value::Integer(value) => value.to_string(),
                Value::Float(value) => format!("{value:?}"),
                Value::Text(value) => value.clone(),
                _ => String::new(),
            };
            let name = format!("{key}-{text}");
            if text.is_empty() || !is_plain(&name) {
                let message = format!(
                    "{table}.{setting} must hold numbers or words that can name a folder, not {}; other values need \
                     a point with a name, [sweep.AXIS]",
                    value.describe()
                );
                self.misplaced(value.place, message);
                continue;
            }
            points.push(Point { name, settings: vec![(path.clone(), value)] });
        }
        Some(Axis { name: setting, points })
    }

    fn check_cells_differ(&mut self) {
        let axes: Vec<_> = self.axes.sweep.iter().map(|axis| axis.name.as_str()).collect();
        let mut names = BTreeSet::new();
        let twice =
            self.axes.sweep.iter().flat_map(|axis| &axis.points).find(|point| !names.insert(&point.name));
        let mut settings = BTreeSet::new();
        let of_axis = |axis: &Axis| -> BTreeSet<Vec<String>> {
            axis.points.iter().flat_map(|point| point.settings.iter().map(|(path, _)| path.clone())).collect()
        };
        let shared = self.axes.sweep.iter().flat_map(of_axis).find(|path| !settings.insert(path.clone()));
        let mut messages = Vec::new();
        if let Some(point) = twice {
            messages.push(format!(
                "sweep has two points `{}`: each names a folder, so call one otherwise",
                point.name
            ));
        }
        if let Some(path) = shared {
            messages.push(format!(
                "sweep sets {} on two axes ({}): the later would undo the earlier",
                path.join("."),
                quoted(axes)
            ));
        }
        for message in messages {
            self.misplaced(Place::WHOLE, message);
        }
    }

    /// Reads `[tuning]`.
    pub(super) fn take_tuning(&mut self, tuning: Entry) {
        let place = tuning.node.place.clone();
        let Value::Table(table) = tuning.node.value else {
            let message = format!("tuning must be a table, not {}", tuning.node.describe());
            return self.misplaced(place, message);
        };
        let (mut seeds, mut lists) = (None, Vec::new());
        for entry in table.0 {
            match entry.key.as_str() {
                "seeds" => seeds = Some(entry.node),
                key if TABLES.contains(&key) => leaves(&mut vec![entry.key], entry.node, &mut lists),
                key => {
                    let known = [&["seeds"], &TABLES[..]].concat();
                    let message = format!("unknown key tuning.{key}; {}", instead(key, &known));
                    self.misplaced(entry.key_place, message);
                }
            }
        }
        let seed = |node: &Node| match node.value {
            Value::Integer(seed) => u64::try_from(seed).ok(),
            _ => None,
        };
        let numbers = match &seeds {
            Some(Node { value: Value::List(items), .. }) => {
                items.iter().map(seed).collect::<Option<Vec<_>>>()
            }
            _ => None,
        };
        let Some(numbers) = numbers.filter(|numbers| !numbers.is_empty()) else {
            let message =
                "tuning needs seeds = [...], whole numbers that are not among the seeds reported on";
            return self.misplaced(seeds.map_or(place, |seeds| seeds.place), message.into());
        };
        let place_of_seeds = seeds.expect("they were read").place;
        let count = lists.len();
        let (Some((setting, node)), 1) = (lists.pop(), count) else {
            let message = format!(
                "tuning must hold one setting with the values to try, such as optimizer.lr = [1e-3, 2e-3]; it holds \
                 {count}"
            );
            return self.misplaced(place, message);
        };
        if let Some(axis) = self.list("tuning", setting.clone(), node) {
            self.axes.tuning = Some(Tries { axis, setting, seeds: numbers, place: place_of_seeds });
        }
    }

    /// Lists multiply: a few lines can ask for more cells than memory holds.
    pub(super) fn check_runs(&mut self) {
        let axes = self.axes.sweep.iter().chain(self.axes.tuning.as_ref().map(|tries| &tries.axis));
        let points = axes.map(|axis| axis.points.len());
        let runs = points.chain([self.variants().count()]).fold(1usize, usize::saturating_mul);
        if runs > MOST_RUNS {
            self.axes = Axes::default();
            let message = format!(
                "sweep, tuning and variants multiply to more than {MOST_RUNS} runs for each seed: make several \
                 experiments of it"
            );
            self.misplaced(Place::WHOLE, message);
        }
    }

    /// What `[tuning]` chooses can be said nowhere else, and what chooses is not reported on.
    pub(super) fn check_tuning(&mut self) {
        let Some(Tries { setting, seeds, place, .. }) = self.axes.tuning.clone() else { return };
        let of_variants = self.variants_own();
        let given: Vec<_> = of_variants.into_iter().filter_map(|own| find(own, &setting)).collect();
        let swept = self.axes.sweep.iter().flat_map(|axis| &axis.points).flat_map(|point| &point.settings);
        let swept = swept.filter(|(path, _)| *path == setting).map(|(_, node)| node.place.clone());
        let places: Vec<_> = given.into_iter().chain(swept).collect();
        let setting = setting.join(".");
        for place in places {
            self.misplaced(place, format!("{setting} has no effect: [tuning] chooses it; leave it out"));
        }
        let reported = self.seeds_as_written();
        let both: Vec<_> = seeds.iter().filter(|seed| reported.contains(seed)).collect();
        if !both.is_empty() {
            let message = format!(
                "tuning.seeds and seeds share {}: what is chosen by a run is not tested by it",
                quoted(&both)
            );
            self.misplaced(place, message);
        }
    }
}

/// Where a setting is given in a table.
fn find(table: &Table, path: &[String]) -> Option<Place> {
    let (key, inner) = path.split_first()?;
    let entry = table.get(key)?;
    match &entry.node.value {
        _ if inner.is_empty() => Some(entry.place()),
        Value::Table(table) => find(table, inner),
        _ => None,
    }
}

/// The settings in a tree of tables.
fn leaves(path: &mut Vec<String>, node: Node, found: &mut Vec<(Vec<String>, Node)>) {
    match node.value {
        Value::Table(table) if !table.0.is_empty() => {
            for entry in table.0 {
                path.push(entry.key);
                leaves(path, entry.node, found);
                path.pop();
            }
        }
        _ => found.push((path.clone(), node)),
    }
}

/// A problem of a variant, of which every cell has one.
fn in_cell(cell: &str, located: Located) -> Located {
    let variant = located.variant.map(|variant| join(cell, &variant));
    Located { variant, ..located }
}

/// A variant's name among those of all cells.
fn join(cell: &str, variant: &str) -> String {
    if cell.is_empty() { variant.to_owned() } else { format!("{cell}/{variant}") }
}
