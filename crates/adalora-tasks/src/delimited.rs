//! Reads delimited files row by row. What a row cannot give is an error that names its line; nothing is dropped.

use std::path::Path;

use csv::{ByteRecord, ReaderBuilder};

use crate::dataset::Label;
use crate::error::{RowProblem, TaskError};
use crate::manifest::{Column, Delimited, LabelRule};

/// An example before tokenizing.
#[derive(Debug, PartialEq)]
pub(crate) struct Row {
    pub(crate) text: String,
    /// The second text of a pair.
    pub(crate) pair: Option<String>,
    pub(crate) label: Label,
}

/// All examples of a file's content; `file` is named in errors.
///
/// A byte-order mark and either kind of line end are accepted, a final line end is optional. Empty lines hold no row.
pub(crate) fn read(content: &[u8], file: &Path, layout: &Delimited) -> Result<Vec<Row>, TaskError> {
    let content = content.strip_prefix(b"\xef\xbb\xbf").unwrap_or(content);
    let mut reader = ReaderBuilder::new()
        .delimiter(u8::try_from(layout.delimiter).expect("a manifest's delimiter is ASCII"))
        .quoting(layout.quoting)
        .has_headers(false)
        .flexible(true)
        .from_reader(content);
    let mut table = None;
    let mut rows = Vec::new();
    let mut record = ByteRecord::new();
    loop {
        let more = reader.read_byte_record(&mut record).expect("reading from memory does not fail");
        if !more {
            break;
        }
        let start = record.position().expect("the reader sets positions").byte() as usize;
        let end = reader.position().byte() as usize;
        let at_line = |problem| TaskError::Row { file: file.into(), line: line_of(content, start), problem };
        if layout.quoting && end == content.len() && opens_without_closing(&content[start..]) {
            return Err(at_line(RowProblem::Unclosed));
        }
        let columns = match &table {
            None => layout.columns.unwrap_or(record.len()),
            Some(Table { columns, .. }) => *columns,
        };
        if record.len() != columns {
            return Err(at_line(RowProblem::Columns { found: record.len(), expected: columns }));
        }
        let fields = decode(&record).map_err(at_line)?;
        let is_header = table.is_none() && layout.header;
        let table = match &mut table {
            Some(table) => table,
            none => none.insert(Table::find(layout, &fields, file)?),
        };
        if !is_header && let Some(row) = table.row(layout, &fields).map_err(at_line)? {
            rows.push(row);
        }
    }
    if rows.is_empty() {
        let filter = layout.only.as_ref().map(|only| format!("{} = `{}`", only.column, only.equals));
        return Err(TaskError::EmptySplit { file: file.into(), filter });
    }
    Ok(rows)
}

/// Where in a row of this file the layout's columns are.
struct Table {
    columns: usize,
    text: Vec<usize>,
    label: usize,
    only: Option<usize>,
}

impl Table {
    /// Finds the columns by the first line's `fields`.
    fn find(layout: &Delimited, fields: &[&str], file: &Path) -> Result<Self, TaskError> {
        let index = |column: &Column| {
            let index = match column {
                Column::Name(name) => fields.iter().position(|field| field == name),
                Column::Number(number) => (*number <= fields.len()).then(|| number - 1),
            };
            index.ok_or_else(|| TaskError::NoColumn {
                file: file.into(),
                column: column.to_string(),
                columns: match column {
                    Column::Name(_) => format!("the header names `{}`", fields.join("`, `")),
                    Column::Number(_) => format!("the first line has {}", fields.len()),
                },
            })
        };
        Ok(Self {
            columns: fields.len(),
            text: layout.text.iter().map(index).collect::<Result<_, _>>()?,
            label: index(&layout.label)?,
            only: layout.only.as_ref().map(|only| index(&only.column)).transpose()?,
        })
    }

    /// The example in a row; `None` if the row belongs to another data set in the same file.
    fn row(&self, layout: &Delimited, fields: &[&str]) -> Result<Option<Row>, RowProblem> {
        if let (Some(index), Some(only)) = (self.only, &layout.only)
            && fields[index] != only.equals
        {
            return Ok(None);
        }
        let mut texts = self.text.iter().zip(&layout.text).map(|(index, column)| match fields[*index] {
            text if text.trim().is_empty() => Err(RowProblem::EmptyText { column: column.to_string() }),
            text => Ok(text.to_owned()),
        });
        Ok(Some(Row {
            text: texts.next().expect("a manifest names a text column")?,
            pair: texts.next().transpose()?,
            label: label(&layout.labels, fields[self.label])?,
        }))
    }
}

fn decode(record: &ByteRecord) -> Result<Vec<&str>, RowProblem> {
    let text = |(index, field)| str::from_utf8(field).map_err(|_| RowProblem::NotUtf8 { column: index + 1 });
    record.iter().enumerate().map(text).collect()
}

fn label(rule: &LabelRule, value: &str) -> Result<Label, RowProblem> {
    match rule {
        LabelRule::Classes { names, values } => {
            let known = values.as_ref().unwrap_or(names);
            let class = known.iter().position(|known| known == value);
            class
                .map(Label::Class)
                .ok_or_else(|| RowProblem::UnknownLabel { value: value.into(), known: known.clone() })
        }
        LabelRule::Scalar { range: [low, high] } => match value.parse::<f64>() {
            Ok(score) if score.is_finite() => {
                if (*low..=*high).contains(&score) {
                    Ok(Label::Scores(vec![score as f32]))
                } else {
                    Err(RowProblem::OutOfRange { value: score, low: *low, high: *high })
                }
            }
            _ => Err(RowProblem::NotFinite { value: value.into() }),
        },
    }
}

/// The line, from 1, of the record that the reader began to look for at byte `start`: what is left of the line end
/// before it, and empty lines, come first.
fn line_of(content: &[u8], start: usize) -> usize {
    let skipped = content[start..].iter().take_while(|byte| matches!(**byte, b'\r' | b'\n')).count();
    1 + content[..start + skipped].iter().filter(|byte| **byte == b'\n').count()
}

/// Whether the last record of a file has an odd number of double quotes; doubled ones inside a field are two.
fn opens_without_closing(record: &[u8]) -> bool {
    record.iter().filter(|byte| **byte == b'"').count() % 2 == 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::{RowFilter, Split};

    fn layout() -> Delimited {
        Delimited {
            delimiter: ',',
            quoting: true,
            header: true,
            columns: None,
            text: vec!["text".into()],
            label: "label".into(),
            only: None,
            labels: LabelRule::Classes {
                names: vec!["bad".into(), "good".into()],
                values: Some(vec!["0".into(), "1".into()]),
            },
            split: Split::Files { train: "train.csv".into(), dev: "dev.csv".into() },
            evaluation: vec![],
        }
    }

    fn scalar() -> Delimited {
        Delimited { labels: LabelRule::Scalar { range: [-4.0, 4.0] }, ..layout() }
    }

    fn read_all(content: &str, layout: &Delimited) -> Vec<(String, Label)> {
        let rows = read(content.as_bytes(), Path::new("some.csv"), layout).expect("a valid file");
        rows.into_iter().map(|row| (row.text, row.label)).collect()
    }

    fn error(content: impl AsRef<[u8]>, layout: &Delimited) -> String {
        read(content.as_ref(), Path::new("some.csv"), layout).expect_err("an invalid file").to_string()
    }

    #[test]
    fn quoted_fields_hold_delimiters_quotes_and_line_ends() {
        let rows = read_all("label,text\n1,\"a, \"\"b\"\"\nc\"\n0,d\n", &layout());
        assert_eq!(rows, [("a, \"b\"\nc".into(), Label::Class(1)), ("d".into(), Label::Class(0))]);
    }

    #[test]
    fn byte_order_mark_line_ends_and_empty_lines_make_no_difference() {
        let plain = read_all("label,text\n1,a\n0,b\n", &layout());
        assert_eq!(plain, read_all("\u{feff}label,text\r\n1,a\r\n\r\n0,b", &layout()));
    }

    #[test]
    fn without_quoting_a_quote_is_a_character() {
        let layout = Delimited { quoting: false, delimiter: '\t', ..layout() };
        let rows = read_all("label\ttext\n1\t\"a\n0\tb \"c\"\n", &layout);
        assert_eq!(rows, [("\"a".into(), Label::Class(1)), ("b \"c\"".into(), Label::Class(0))]);
    }

    #[test]
    fn columns_by_number_and_rows_by_filter() {
        let layout = Delimited {
            header: false,
            text: vec![2.into(), 4.into()],
            label: 1.into(),
            only: Some(RowFilter { column: 3.into(), equals: "ours".into() }),
            ..scalar()
        };
        // The label of a row that is not ours need not follow our rule.
        let rows =
            read(b"-4,a,ours,b\nx,c,theirs,d\n4,e,ours,f", Path::new("some.csv"), &layout).expect("valid");
        let row = |text: &str, pair: &str, score| Row {
            text: text.into(),
            pair: Some(pair.into()),
            label: Label::Scores(vec![score]),
        };
        assert_eq!(rows, [row("a", "b", -4.0), row("e", "f", 4.0)]);
    }

    #[test]
    fn each_fault_names_line_value_rule_and_way_out() {
        let two = ["\u{feff}label,text\r\n1,\"two\r\nlines\"\r\n\r\n", "2,c\r\n"].concat();
        let filter =
            Delimited { only: Some(RowFilter { column: "label".into(), equals: "3".into() }), ..layout() };
        let numbers = Delimited { header: false, text: vec![3.into()], label: 1.into(), ..layout() };
        let glue = Delimited { columns: Some(10), ..layout() };
        let errors = [
            error(two, &layout()),
            error("label,text\n1,a\n1,b,c\n", &layout()),
            error("label,text\n", &glue),
            error("label,text\n1,a\n0,\"b\n1,c\n0,d\n", &layout()),
            error(b"label,text\n1,caf\xe9\n", &layout()),
            error("label,text\n1, \n", &layout()),
            error("label,text\n1.5,a\nhigh,b\n", &scalar()),
            error("label,text\n1.5,a\nNaN,b\n", &scalar()),
            error("label,text\n1.5,a\n4.25,b\n", &scalar()),
            error("label,sentence\n1,a\n", &layout()),
            error("1,a\n", &numbers),
            error("", &layout()),
            error("label,text\n", &layout()),
            error("label,text\n1,a\n", &filter),
        ];
        insta::assert_snapshot!(errors.join("\n"));
    }
}
