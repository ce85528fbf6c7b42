//! Everything that is wrong with an experiment file, shown where it stands.

use std::fmt;
use std::path::{Path, PathBuf};

use super::read::quoted;
use super::tree::Place;

/// A rule that settings break.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The variant it concerns; `None` for all.
    pub variant: Option<String>,
    /// The setting, or a table, such as `adapter.svd.targets`.
    pub key: String,
    /// Value, rule and way out.
    pub message: String,
}

/// All that is wrong with an experiment file, in its order. `Display` shows it as a user wants to read it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems {
    path: PathBuf,
    shown: Vec<Shown>,
}

/// A problem of one variant, or of none in particular, at its place.
#[derive(Debug, Clone)]
pub(super) struct Located {
    pub(super) place: Place,
    pub(super) message: String,
    pub(super) variant: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Shown {
    at: At,
    message: String,
    /// Named only if others do not have the problem.
    variants: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum At {
    File,
    Line {
        /// From 1.
        line: usize,
        /// In characters, from 1.
        column: usize,
        text: String,
        /// Characters to mark, at least one.
        width: usize,
    },
    Override(String),
}

impl Problems {
    /// One problem of a file as a whole.
    pub(super) fn of_file(path: &Path, message: String) -> Self {
        let shown = Shown { at: At::File, message, variants: Vec::new() };
        Self { path: path.to_owned(), shown: vec![shown] }
    }

    /// What several variants share is shown once. `variants` is how many the file has in all its cells.
    pub(super) fn new(
        path: &Path,
        text: &str,
        overrides: &[String],
        variants: usize,
        mut located: Vec<Located>,
    ) -> Self {
        located.sort_by(|a, b| a.place.cmp(&b.place));
        let mut shown: Vec<Shown> = Vec::new();
        for Located { place, message, variant } in located {
            let at = match place {
                Place::WHOLE => At::File,
                Place::File { start, end } => At::new(text, start, end),
                Place::Override(index) => At::Override(overrides[index].clone()),
            };
            match shown.iter_mut().find(|shown| shown.at == at && shown.message == message) {
                Some(same) => {
                    same.variants.extend(variant.filter(|variant| !same.variants.contains(variant)))
                }
                None => shown.push(Shown { at, message, variants: variant.into_iter().collect() }),
            }
        }
        for shown in &mut shown {
            if shown.variants.len() == variants {
                shown.variants.clear();
            }
        }
        Self { path: path.to_owned(), shown }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.shown.len()
    }
}

impl At {
    fn new(text: &str, start: usize, end: usize) -> Self {
        let before = &text[..start];
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let line_end = text[start..].find('\n').map_or(text.len(), |newline| start + newline);
        let line = text[line_start..line_end].trim_end_matches('\r');
        let marked_end = end.clamp(start, line_start + line.len().max(start - line_start));
        Self::Line {
            line: before.matches('\n').count() + 1,
            column: text[line_start..start].chars().count() + 1,
            text: line.to_owned(),
            width: text[start..marked_end].chars().count().max(1),
        }
    }
}

/// So many variants are named each.
const NAMED: usize = 6;

/// Characters of a line that are shown.
const WIDTH: usize = 100;

/// The part of a line around what is marked, and the marks below it.
fn window(text: &str, column: usize, width: usize) -> (String, String) {
    // A tab would put the marks elsewhere.
    let line: Vec<char> = text.chars().map(|c| if c == '\t' { ' ' } else { c }).collect();
    let first = column - 1;
    let start = if line.len() <= WIDTH { 0 } else { first.saturating_sub(WIDTH / 4) };
    let end = line.len().min(start + WIDTH);
    let cut_before = if start > 0 { "…" } else { "" };
    let cut_after = if end < line.len() { "…" } else { "" };
    let shown: String = line[start..end].iter().collect();
    let marks = " ".repeat(cut_before.chars().count() + first - start)
        + &"^".repeat(width.min(end.max(first + 1) - first));
    (format!("{cut_before}{shown}{cut_after}"), marks)
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let s = if self.shown.len() == 1 { "" } else { "s" };
        write!(f, "{}: {} problem{s}", self.path.display(), self.shown.len())?;
        for Shown { at, message, variants } in &self.shown {
            let of = match variants.as_slice() {
                [] => String::new(),
                [only] => format!(" (variant `{only}`)"),
                [first, .., last] if variants.len() > NAMED => {
                    format!(" ({} variants, `{first}` to `{last}`)", variants.len())
                }
                several => format!(" (variants {})", quoted(several)),
            };
            match at {
                At::File => write!(f, "\n  {message}{of}")?,
                At::Override(text) => write!(f, "\n  --set {text}\n        {message}{of}")?,
                At::Line { line, column, text, width } => {
                    let place = format!("{line}:{column}");
                    let (shown, marks) = window(text, *column, *width);
                    write!(
                        f,
                        "\n  {place:<4}  {message}{of}\n        |\n{line:>7} | {shown}\n        | {marks}"
                    )?;
                }
            }
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}
