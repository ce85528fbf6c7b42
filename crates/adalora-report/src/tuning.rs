//! The table of what tuning tried and chose.

use crate::grid::{Choice, Tuned};
use crate::table::{Alignment, Table, score};

/// A variant and, over several cells, which of them.
pub(crate) struct Row<'a> {
    pub(crate) label: String,
    pub(crate) on: Option<&'a str>,
    pub(crate) tuned: &'a Tuned,
}

/// One row for each choice; all were made like `choice`.
pub(crate) fn table(choice: &Choice, rows: &[Row]) -> (Table, Vec<String>) {
    use Alignment::{Left, Right};
    let values: Vec<_> = choice.variants[0].tries.iter().map(|tried| tried.value.clone()).collect();
    let mut table = Table::default();
    table.column("variant", Left, rows.iter().map(|row| row.label.clone()));
    if rows.iter().any(|row| row.on.is_some()) {
        table.column("on", Left, rows.iter().map(|row| row.on.unwrap_or_default().to_owned()));
    }
    for (at, value) in values.iter().enumerate() {
        let cell = |row: &Row| match row.tuned.tries[at].mean() {
            Some(mean) => score(mean),
            None if row.tuned.tries[at].diverged > 0 => "diverged".to_owned(),
            None => "undefined".to_owned(),
        };
        table.column(value.clone(), Right, rows.iter().map(cell));
    }
    table.column("chosen", Right, rows.iter().map(|row| values[row.tuned.chosen].clone()));
    let seeds: Vec<_> = choice.seeds.iter().map(ToString::to_string).collect();
    let mut notes = vec![format!(
        "{} was chosen for each variant from the same {} values, by the mean score at the last step with seed {}, which \
         is in no other table. The dev split is the same.",
        choice.setting,
        values.len(),
        seeds.join(", "),
    )];
    let at_an_end = |row: &&Row| row.tuned.chosen == 0 || row.tuned.chosen + 1 == values.len();
    let ends = rows.iter().filter(at_an_end).count();
    if ends > 0 {
        let all = rows.len();
        notes.push(format!(
            "{ends} of {all} choices lie at an end of the list, where a wider one might do better."
        ));
    }
    (table, notes)
}
