//! All runs under a folder as one table, a row for each, for whoever draws their own conclusions.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::ReportError;
use crate::record::{RESULT_FILE, RunResult, STATUS_FILE, Status, StepScores, read_json, seed_of};

struct Row {
    /// Path of the run below the folder.
    run: PathBuf,
    seed: u64,
    status: Status,
    result: Option<RunResult>,
}

/// Every run below `folder` in whatever state, as CSV: one experiment's runs or those of many, sorted by path. Numbers are in
/// full precision; a cell without a value is empty.
///
/// # Errors
///
/// A folder or record cannot be read.
pub fn runs_csv(folder: &Path) -> Result<String, ReportError> {
    let mut rows = Vec::new();
    find(folder, folder, &mut rows)?;
    rows.sort_by(|one, other| one.run.cmp(&other.run));

    let results = || rows.iter().filter_map(|row| row.result.as_ref());
    let evaluations: BTreeSet<&str> =
        results().flat_map(|result| &result.evaluation).map(String::as_str).collect();
    let mut header = ["run", "experiment", "variant", "seed", "task", "state", "step", "reason"]
        .map(str::to_owned)
        .to_vec();
    for when in ["last", "best"] {
        header.push(format!("{when}_step"));
        header.extend(evaluations.iter().map(|evaluation| format!("{when}_{evaluation}")));
    }
    header.extend(SIZES.iter().map(|(name, _)| (*name).to_owned()));

    let mut table = csv::Writer::from_writer(Vec::new());
    let in_memory = "a row can be written to memory";
    table.write_record(&header).expect(in_memory);
    for row in &rows {
        let result = row.result.as_ref();
        let text =
            |of: fn(&RunResult) -> &str| result.map_or_else(String::new, |result| of(result).to_owned());
        let reason = match &row.status {
            Status::Failed { reason, .. } => reason.clone(),
            _ => String::new(),
        };
        let mut cells = vec![
            row.run.display().to_string(),
            text(|result| &result.experiment),
            text(|result| &result.variant),
            row.seed.to_string(),
            text(|result| &result.task),
            row.status.state().to_owned(),
            row.status.step().to_string(),
            reason,
        ];
        for scores in [result.map(|result| &result.last), result.map(|result| &result.best)] {
            cells.push(cell(scores.map(|scores: &StepScores| scores.step)));
            let score = |evaluation: &&str| cell(scores.and_then(|scores| scores.scores.get(*evaluation)));
            cells.extend(evaluations.iter().map(score));
        }
        cells.extend(SIZES.iter().map(|(_, of)| cell(result.and_then(of))));
        table.write_record(&cells).expect(in_memory);
    }
    let bytes = table.into_inner().expect(in_memory);
    Ok(String::from_utf8(bytes).expect("cells are text"))
}

/// Columns of what a run was and cost.
type Size = (&'static str, fn(&RunResult) -> Option<f64>);
const SIZES: [Size; 8] = [
    ("adapter_parameters_peak", |result| Some(result.parameters.adapter_peak as f64)),
    ("adapter_parameters_final", |result| Some(result.parameters.adapter_final as f64)),
    ("head_parameters", |result| Some(result.parameters.head as f64)),
    ("triplets_initial", |result| Some(result.triplets.as_ref()?.initial as f64)),
    ("triplets_budget", |result| Some(result.triplets.as_ref()?.budget? as f64)),
    ("triplets_live", |result| Some(result.triplets.as_ref()?.live as f64)),
    ("wall_seconds", |result| Some(result.wall_seconds)),
    ("peak_rss_bytes", |result| Some(result.peak_rss_bytes as f64)),
];

fn cell(value: Option<impl ToString>) -> String {
    value.map_or_else(String::new, |value| value.to_string())
}

/// Looks for folders named `seed-N` that hold a status, following no links.
fn find(root: &Path, folder: &Path, rows: &mut Vec<Row>) -> Result<(), ReportError> {
    let refused = |source| ReportError::Io { path: folder.to_owned(), source };
    for entry in std::fs::read_dir(folder).map_err(refused)? {
        let entry = entry.map_err(refused)?;
        if !entry.file_type().map_err(refused)?.is_dir() {
            continue;
        }
        let path = entry.path();
        match (seed_of(&path), read_json(&path.join(STATUS_FILE))?) {
            (Some(seed), Some(status)) => {
                let finished = matches!(status, Status::Finished { .. });
                let result = if finished { read_json(&path.join(RESULT_FILE))? } else { None };
                let run = path.strip_prefix(root).unwrap_or(&path).to_owned();
                rows.push(Row { run, seed, status, result });
            }
            _ => find(root, &path, rows)?,
        }
    }
    Ok(())
}
