//! `report.html`: everything on one page, without scripts and without a reference to anything outside.

use crate::record::Experiment;
use crate::results::Results;
use crate::samples::Samples;
use crate::settings;
use crate::study::{Study, Tables};
use crate::svg::escape;
use crate::table::{ABSENT, Alignment, Table, duration, score, whole};

const STYLE: &str = "
body { font: 15px/1.5 Helvetica, Arial, 'DejaVu Sans', sans-serif; color: #222; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: 0.2rem; }
h2 { font-size: 1.15rem; margin-top: 2.4rem; }
p.task { color: #666; margin-top: 0; }
div.table { overflow-x: auto; }
table { border-collapse: collapse; border-top: 2px solid #222; border-bottom: 2px solid #222; font-size: 0.87rem; font-variant-numeric: tabular-nums; }
thead { border-bottom: 1px solid #222; }
th, td { padding: 0.25rem 1.2rem 0.25rem 0; text-align: left; vertical-align: top; white-space: nowrap; }
th:last-child, td:last-child { padding-right: 0; }
th { font-weight: 600; }
.number { text-align: right; }
tbody tr:hover { background: #f3f6f9; }
ul { font-size: 0.87rem; color: #444; padding-left: 1.1rem; }
ul.failed { color: #a33; }
blockquote { font-size: 0.87rem; color: #666; border-left: 3px solid #ddd; margin: 1.2rem 0 0.4rem; padding-left: 0.8rem; }
svg { max-width: 100%; height: auto; display: block; }
";

/// The page, from the pictures and tables made for the other files.
pub(crate) fn page(
    experiment: &Experiment,
    results: &Results,
    pictures: &[(&str, Option<&str>)],
    samples: Option<&Samples>,
) -> String {
    let name = escape(&experiment.name);
    let task = escape(results.task());
    let mut body = format!("<h1>{name}</h1>\n<p class=\"task\">Dev scores on {task}</p>\n");
    if let Some(description) = experiment.description.as_deref() {
        body.push_str(&format!("<p>{}</p>\n", escape(description)));
    }
    if !results.failures.is_empty() {
        body.push_str(&section("Failed runs", &list(" class=\"failed\"", &results.failures)));
    }
    body.push_str(&section("Scores", &(results.scores.html() + &list("", &results.scores_notes))));
    body.push_str(&section("Size and cost", &(results.costs.html() + &list("", &results.costs_notes))));
    if let Some((table, notes)) = &results.tuning {
        body.push_str(&section("Tuning", &(table.html() + &list("", notes))));
    }
    for (title, picture) in pictures.iter().filter_map(|(title, picture)| Some((title, (*picture)?))) {
        body.push_str(&section(title, picture));
    }
    if let Some(samples) = samples {
        body.push_str(&section("Samples", &samples.html()));
    }
    if let Some(differences) = settings::differences(experiment) {
        body.push_str(&section("Settings that differ", &differences.html()));
    }
    body.push_str(&section("Runs", &runs(experiment, results.headline()).html()));
    document(&name, &body)
}

/// The page over all cells.
pub(crate) fn study_page(study: &Study, tables: &Tables, ladder: Option<&str>) -> String {
    let name = escape(&study.name);
    let mut body = format!("<h1>{name}</h1>\n");
    if let Some(description) = study.description.as_deref() {
        body.push_str(&format!("<p>{}</p>\n", escape(description)));
    }
    if !tables.failures.is_empty() {
        body.push_str(&section("Failed runs", &list(" class=\"failed\"", &tables.failures)));
    }
    body.push_str(&section("Scores", &(tables.scores.html() + &list("", &tables.scores_notes))));
    let more = [
        ("Differences", tables.differences.as_ref()),
        ("Best steps", Some(&tables.best)),
        ("Tuning", tables.tuning.as_ref()),
    ];
    for (title, table) in more {
        if let Some((table, notes)) = table {
            body.push_str(&section(title, &(table.html() + &list("", notes))));
        }
    }
    if let Some(ladder) = ladder {
        body.push_str(&section("Score against size", ladder));
    }
    let cells = study.groups.iter().flat_map(|group| &group.cells);
    let pages: Vec<_> = cells.map(|cell| format!("{}/report/report.html", cell.name)).collect();
    body.push_str(&section("Cell by cell", &list("", &pages)));
    document(&name, &body)
}

fn document(name: &str, body: &str) -> String {
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{name}</title>\n\
         <style>{STYLE}</style>\n</head>\n<body>\n{body}</body>\n</html>\n"
    )
}

fn section(title: &str, content: &str) -> String {
    format!("<h2>{title}</h2>\n{content}")
}

fn list(class: &str, items: &[String]) -> String {
    let items: String = items.iter().map(|item| format!("<li>{}</li>\n", escape(item))).collect();
    format!("<ul{class}>\n{items}</ul>\n")
}

/// One row for each run, whatever its state.
fn runs(experiment: &Experiment, headline: &str) -> Table {
    use Alignment::{Left, Right};
    let runs: Vec<_> = experiment
        .variants
        .iter()
        .flat_map(|variant| variant.runs.iter().map(move |run| (variant, run)))
        .collect();
    let of_result = |cell: &dyn Fn(&crate::RunResult) -> String| -> Vec<String> {
        runs.iter().map(|(_, run)| run.result.as_ref().map_or(ABSENT.to_owned(), cell)).collect()
    };
    let scored =
        |scores: &crate::StepScores| scores.scores.get(headline).map_or(ABSENT.to_owned(), |&it| score(it));
    let mut table = Table::default();
    table.column("variant", Left, runs.iter().map(|(variant, _)| variant.name.clone()));
    table.column("seed", Right, runs.iter().map(|(_, run)| run.seed.to_string()));
    table.column("state", Left, runs.iter().map(|(_, run)| run.status.state().to_owned()));
    table.column("steps", Right, runs.iter().map(|(_, run)| whole(run.status.step() as f64)));
    table.column(format!("{headline}, last step"), Right, of_result(&|result| scored(&result.last)));
    table.column(format!("{headline}, best step"), Right, of_result(&|result| scored(&result.best)));
    table.column("best step", Right, of_result(&|result| whole(result.best.step as f64)));
    table.column("time", Right, of_result(&|result| duration(result.wall_seconds)));
    table
}
