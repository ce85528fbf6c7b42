//! The records of an experiment with `[sweep]` or `[tuning]`: what was to run, and what was chosen.
//!
//! ```text
//! runs/EXPERIMENT/grid.json        one Grid, written before the first run and never changed
//! runs/EXPERIMENT/CELL/            an experiment folder of its own; the experiment's own where there is no [sweep]
//!   tuning/VARIANT/lr-0.001/seed-101/   a run that was made to choose
//!   tuning/choice.json             one Choice, written once all of those have ended
//!   VARIANT/seed-1/                a run that is reported on
//! ```

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::ReportError;
use crate::record::{check_inside, read_json};

/// File with the [`Grid`] of an experiment.
pub const GRID_FILE: &str = "grid.json";
/// File with the [`Choice`] of a cell.
pub const TUNING_FILE: &str = "tuning/choice.json";

/// All runs of an experiment, as they were laid down before the first of them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Grid {
    /// Seeds that are reported on.
    pub seeds: Vec<u64>,
    /// What is chosen first.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub tuning: Option<Tuning>,
    /// In the order of the file.
    pub cells: Vec<GridCell>,
}

/// What is chosen for each variant of each cell.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tuning {
    /// Such as `optimizer.lr`.
    pub setting: String,
    /// Names of the values, such as `lr-0.001`.
    pub values: Vec<String>,
    /// Seeds of the tries.
    pub seeds: Vec<u64>,
}

/// A combination of points of `[sweep]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GridCell {
    /// Folder below the experiment's; empty without `[sweep]`.
    pub name: String,
    /// Axis and point.
    pub points: Vec<(String, String)>,
    /// Name and settings of each variant in the order of the file, without what is tuned.
    pub variants: Vec<(String, serde_json::Value)>,
}

impl Grid {
    /// Reads the grid of an experiment; `None` where the experiment has neither `[sweep]` nor `[tuning]`.
    ///
    /// # Errors
    ///
    /// A file that is malformed, or with a cell that would lie outside of the experiment's folder.
    pub fn read(experiment: &Path) -> Result<Option<Self>, ReportError> {
        let path = experiment.join(GRID_FILE);
        let grid: Option<Self> = read_json(&path)?;
        let cells = grid.iter().flat_map(|grid| &grid.cells).filter(|cell| !cell.name.is_empty());
        for cell in cells {
            check_inside(&path, &cell.name)?;
        }
        Ok(grid)
    }
}

/// What was tried in a cell and what was chosen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Choice {
    /// Such as `optimizer.lr`.
    pub setting: String,
    /// The score that decided: dev, last step, mean over the seeds.
    pub evaluation: String,
    /// Seeds of the tries.
    pub seeds: Vec<u64>,
    /// One for each variant.
    pub variants: Vec<Tuned>,
}

/// What was tried for a variant and what was chosen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Tuned {
    /// Name of the variant.
    pub variant: String,
    /// In the order of the file.
    pub tries: Vec<Tried>,
    /// Number of the chosen try.
    pub chosen: usize,
}

/// One value and how it did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Tried {
    /// Such as `lr-0.001`.
    pub value: String,
    /// The score with each seed; `None` where the run diverged or the score is undefined.
    pub scores: Vec<Option<f64>>,
    /// Runs that diverged.
    pub diverged: usize,
}

impl Tried {
    /// Mean score; `None` if a run has none.
    pub fn mean(&self) -> Option<f64> {
        let sum = self.scores.iter().copied().sum::<Option<f64>>()?;
        Some(sum / self.scores.len() as f64)
    }
}

impl Choice {
    /// Reads the choice of a cell; `None` where none was made yet.
    ///
    /// # Errors
    ///
    /// A file that is malformed.
    pub fn read(cell: &Path) -> Result<Option<Self>, ReportError> {
        read_json(&cell.join(TUNING_FILE))
    }
}
