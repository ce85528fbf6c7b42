//! What the models said in words, side by side: `samples.md`.

use std::path::Path;

use serde::Deserialize;

use crate::ReportError;
use crate::record::{Experiment, LogRecord, OUTPUTS_FILE, Run, Variant, read_lines};
use crate::svg::escape;
use crate::table::{Alignment, Table, escape_markdown, score};

/// Questions or documents that are shown, spread evenly over the dev set.
const SHOWN: usize = 8;

/// A line of `outputs.jsonl`.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Output {
    Summary { document: String, summary: String, generated: String },
    Answer { question: String, answers: Vec<String>, answer: String },
}

/// What each variant's first finished run said.
#[derive(Debug)]
pub(crate) struct Samples {
    seeds: Vec<String>,
    intervals: Option<Table>,
    shown: Vec<Sample>,
}

/// A question or document, what is right, and what was said of it.
#[derive(Debug)]
struct Sample {
    asked: String,
    right: String,
    said: Vec<(String, String)>,
}

impl Output {
    fn asked(&self) -> &str {
        match self {
            Self::Summary { document, .. } => document,
            Self::Answer { question, .. } => question,
        }
    }

    fn right(&self) -> String {
        match self {
            Self::Summary { summary, .. } => summary.clone(),
            Self::Answer { answers, .. } if answers.is_empty() => "no answer".into(),
            Self::Answer { answers, .. } => {
                let mut answers = answers.clone();
                answers.dedup();
                answers.join(" / ")
            }
        }
    }

    fn said(&self) -> &str {
        match self {
            Self::Summary { generated, .. } => generated,
            Self::Answer { answer, .. } => answer,
        }
    }
}

/// Reads what the finished runs said last; `None` where models say nothing in words.
///
/// # Errors
///
/// A file that is malformed.
pub(crate) fn read(dir: &Path, experiment: &Experiment) -> Result<Option<Samples>, ReportError> {
    let (mut seeds, mut outputs, mut logs) = (Vec::new(), Vec::new(), Vec::new());
    for Variant { name, runs } in &experiment.variants {
        let Some(run) = runs.iter().find(|run| run.result.is_some()) else { continue };
        let path = dir.join(name).join(format!("seed-{}", run.seed)).join(OUTPUTS_FILE);
        let said: Vec<Output> = read_lines(&path)?;
        if !said.is_empty() {
            seeds.push(format!("{name} (seed {})", run.seed));
            outputs.push((name.as_str(), said));
            logs.push((name.as_str(), run));
        }
    }
    let Some((_, first)) = outputs.first() else { return Ok(None) };
    let places = (0..SHOWN.min(first.len())).map(|number| number * first.len() / SHOWN.min(first.len()));
    let shown = places.map(|place| {
        let own = &first[place];
        let said = outputs.iter().filter_map(|(name, outputs)| {
            // Variants of another data set have other lines.
            let same = outputs.get(place).filter(|output| output.asked() == own.asked())?;
            Some(((*name).to_owned(), same.said().to_owned()))
        });
        Sample { asked: own.asked().to_owned(), right: own.right(), said: said.collect() }
    });
    Ok(Some(Samples { seeds, shown: shown.collect(), intervals: intervals(&logs) }))
}

/// Scores of the last evaluation with their bootstrap intervals.
fn intervals(runs: &[(&str, &Run)]) -> Option<Table> {
    let last = |run: &Run| {
        run.log.iter().rev().find_map(|record| match record {
            LogRecord::Dev(dev) => Some(dev.clone()),
            LogRecord::Train(_) => None,
        })
    };
    let records: Vec<_> = runs.iter().filter_map(|(name, run)| Some((*name, last(run)?))).collect();
    let names = records.first()?.1.intervals.keys().cloned().collect::<Vec<_>>();
    if names.is_empty() {
        return None;
    }
    let mut table = Table::default();
    table.column("variant", Alignment::Left, records.iter().map(|(name, _)| (*name).to_owned()));
    for name in names {
        let cells = records.iter().map(|(_, dev)| match (dev.scores.get(&name), dev.intervals.get(&name)) {
            (Some(&mean), Some(&[low, high])) => {
                format!("{} [{}, {}]", score(mean), score(low), score(high))
            }
            _ => crate::table::ABSENT.to_owned(),
        });
        table.column(format!("{name} [95 %]"), Alignment::Right, cells);
    }
    Some(table)
}

impl Samples {
    const OF_INTERVALS: &'static str = "Intervals: bootstrap over the dev pairs of one run, which says how sure the score of that run is, and nothing of \
         other seeds.";

    fn whose(&self) -> String {
        format!("What was said at the last evaluation by {}.", self.seeds.join(", "))
    }

    /// A file of its own, since it is too long for a terminal.
    pub(crate) fn markdown(&self, name: &str) -> String {
        let mut text =
            format!("# {}: samples\n\n{}\n", escape_markdown(name), escape_markdown(&self.whose()));
        if let Some(intervals) = &self.intervals {
            text.push_str(&format!("\n{}\n{}\n", intervals.markdown(), Self::OF_INTERVALS));
        }
        for Sample { asked, right, said } in &self.shown {
            let line = |text: &str| escape_markdown(&text.split_whitespace().collect::<Vec<_>>().join(" "));
            text.push_str(&format!("\n> {}\n\n- right: {}\n", line(asked), line(right)));
            for (variant, own) in said {
                text.push_str(&format!("- {}: {}\n", line(variant), line(own)));
            }
        }
        text
    }

    pub(crate) fn html(&self) -> String {
        let mut text = format!("<p>{}</p>\n", escape(&self.whose()));
        if let Some(intervals) = &self.intervals {
            text.push_str(&format!("{}<p>{}</p>\n", intervals.html(), Self::OF_INTERVALS));
        }
        for Sample { asked, right, said } in &self.shown {
            let said = said.iter().map(|(variant, own)| (variant.as_str(), own.as_str()));
            let items = [("right", right.as_str())].into_iter().chain(said);
            let items = items.map(|(who, own)| format!("<li>{}: {}</li>\n", escape(who), escape(own)));
            let items: String = items.collect();
            text.push_str(&format!("<blockquote>{}</blockquote>\n<ul>\n{items}</ul>\n", escape(asked)));
        }
        text
    }
}
