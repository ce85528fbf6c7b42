//! Reads delimited files row by row.

use std::path::Path;

use csv::{ByteRecord, ReaderBuilder};

use crate::error::{Place, RowProblem, TaskError, near};
use crate::manifest::{Column, Delimited, Table};
use crate::rows::{Row, Value};

/// A byte-order mark and either kind of line end are accepted, a final line end is optional. Empty lines hold no row.
pub(crate) fn read(
    content: &[u8],
    file: &Path,
    encoding: &Delimited,
    table: &Table,
) -> Result<Vec<Row>, TaskError> {
    let content = content.strip_prefix(b"\xef\xbb\xbf").unwrap_or(content);
    let mut reader = ReaderBuilder::new()
        .delimiter(u8::try_from(encoding.delimiter).expect("a manifest's delimiter is ASCII"))
        .quoting(encoding.quoting)
        .has_headers(false)
        .flexible(true)
        .from_reader(content);
    let mut places = None;
    let mut rows = Vec::new();
    let mut record = ByteRecord::new();
    loop {
        let more = reader.read_byte_record(&mut record).expect("reading from memory does not fail");
        if !more {
            return Ok(rows);
        }
        let start = record.position().expect("the reader sets positions").byte() as usize;
        let end = reader.position().byte() as usize;
        let at_line = |problem| TaskError::Row {
            file: file.into(),
            place: Place::Line(line_of(content, start)),
            problem,
        };
        if encoding.quoting && end == content.len() && opens_without_closing(&content[start..]) {
            return Err(at_line(RowProblem::Unclosed));
        }
        let columns = match &places {
            None => encoding.columns.unwrap_or(record.len()),
            Some(Places { columns, .. }) => *columns,
        };
        if record.len() != columns {
            return Err(at_line(RowProblem::Columns { found: record.len(), expected: columns }));
        }
        let fields = decode(&record).map_err(at_line)?;
        let is_header = places.is_none() && encoding.header;
        let places = match &mut places {
            Some(places) => places,
            none => none.insert(Places::find(table, &fields, file)?),
        };
        if !is_header && let Some(row) = places.row(table, &fields).map_err(at_line)? {
            rows.push(row);
        }
    }
}

/// Where in a row of this file the table's columns are.
struct Places {
    columns: usize,
    text: Vec<usize>,
    label: usize,
    only: Option<usize>,
}

impl Places {
    /// Finds the columns by the first line's `fields`.
    fn find(table: &Table, fields: &[&str], file: &Path) -> Result<Self, TaskError> {
        let index = |column: &Column| {
            let (index, columns) = match column {
                Column::Name(name) => (
                    fields.iter().position(|field| field == name),
                    format!("the header names `{}`{}", fields.join("`, `"), near(name, fields)),
                ),
                Column::Number(number) => (
                    (*number <= fields.len()).then(|| number - 1),
                    format!("the first line has {}", fields.len()),
                ),
            };
            let column = column.to_string();
            index.ok_or_else(|| TaskError::NoColumn { file: file.into(), column, columns })
        };
        Ok(Self {
            columns: fields.len(),
            text: table.text.iter().map(index).collect::<Result<_, _>>()?,
            label: index(&table.label)?,
            only: table.only.as_ref().map(|only| index(&only.column)).transpose()?,
        })
    }

    /// The example in a row; `None` if the row belongs to another data set in the same file.
    fn row(&self, table: &Table, fields: &[&str]) -> Result<Option<Row>, RowProblem> {
        if let (Some(index), Some(only)) = (self.only, &table.only)
            && fields[index] != only.equals
        {
            return Ok(None);
        }
        let (text, pair) = table.texts(self.text.iter().map(|index| fields[*index]))?;
        Ok(Some(Row { text, pair, label: table.labels.label(Value::Text(fields[self.label]))? }))
    }
}

fn decode(record: &ByteRecord) -> Result<Vec<&str>, RowProblem> {
    let text = |(index, field)| str::from_utf8(field).map_err(|_| RowProblem::NotUtf8 { column: index + 1 });
    record.iter().enumerate().map(text).collect()
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
    use crate::dataset::Label;
    use crate::manifest::table::RowFilter;
    use crate::manifest::{DevFiles, Encoding, LabelRule, Split};

    const COMMAS: Delimited = Delimited { delimiter: ',', quoting: true, header: true, columns: None };

    fn table() -> Table {
        Table {
            encoding: Encoding::Delimited(COMMAS),
            text: vec!["text".into()],
            label: "label".into(),
            only: None,
            labels: LabelRule::Classes {
                names: vec!["bad".into(), "good".into()],
                values: Some(vec!["0".into(), "1".into()]),
            },
            split: Split::Files { train: "train.csv".into(), dev: DevFiles::One("dev.csv".into()) },
            evaluation: vec![],
            empty_texts: false,
        }
    }

    fn encoded(encoding: Delimited) -> Table {
        Table { encoding: Encoding::Delimited(encoding), ..table() }
    }

    fn scalar() -> Table {
        Table { labels: LabelRule::Scalar { range: [-4.0, 4.0] }, ..table() }
    }

    fn read_all(content: &str, table: &Table) -> Vec<(String, Label)> {
        let rows = table.rows(content.into(), Path::new("some.csv")).expect("a valid file");
        rows.into_iter().map(|row| (row.text, row.label)).collect()
    }

    fn error(content: impl Into<Vec<u8>>, table: &Table) -> String {
        table.rows(content.into(), Path::new("some.csv")).expect_err("an invalid file").to_string()
    }

    #[test]
    fn quoted_fields_hold_delimiters_quotes_and_line_ends() {
        let rows = read_all("label,text\n1,\"a, \"\"b\"\"\nc\"\n0,d\n", &table());
        assert_eq!(rows, [("a, \"b\"\nc".into(), Label::Class(1)), ("d".into(), Label::Class(0))]);
    }

    #[test]
    fn byte_order_mark_line_ends_and_empty_lines_make_no_difference() {
        let plain = read_all("label,text\n1,a\n0,b\n", &table());
        assert_eq!(plain, read_all("\u{feff}label,text\r\n1,a\r\n\r\n0,b", &table()));
    }

    #[test]
    fn without_quoting_a_quote_is_a_character() {
        let tabs = encoded(Delimited { quoting: false, delimiter: '\t', ..COMMAS });
        let rows = read_all("label\ttext\n1\t\"a\n0\tb \"c\"\n", &tabs);
        assert_eq!(rows, [("\"a".into(), Label::Class(1)), ("b \"c\"".into(), Label::Class(0))]);
    }

    #[test]
    fn columns_by_number_and_rows_by_filter() {
        let table = Table {
            encoding: Encoding::Delimited(Delimited { header: false, ..COMMAS }),
            text: vec![2.into(), 4.into()],
            label: 1.into(),
            only: Some(RowFilter { column: 3.into(), equals: "ours".into() }),
            ..scalar()
        };
        // The label of a row that is not ours need not follow our rule.
        let content = "-4,a,ours,b\nx,c,theirs,d\n4,e,ours,f";
        let rows = table.rows(content.into(), Path::new("some.csv")).expect("valid");
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
            Table { only: Some(RowFilter { column: "label".into(), equals: "3".into() }), ..table() };
        let numbers =
            Table { text: vec![3.into()], label: 1.into(), ..encoded(Delimited { header: false, ..COMMAS }) };
        let glue = encoded(Delimited { columns: Some(10), ..COMMAS });
        let errors = [
            error(two, &table()),
            error("label,text\n1,a\n1,b,c\n", &table()),
            error("label,text\n", &glue),
            error("label,text\n1,a\n0,\"b\n1,c\n0,d\n", &table()),
            error(b"label,text\n1,caf\xe9\n", &table()),
            error("label,text\n1, \n", &table()),
            error("label,text\n1.5,a\nhigh,b\n", &scalar()),
            error("label,text\n1.5,a\nNaN,b\n", &scalar()),
            error("label,text\n1.5,a\n4.25,b\n", &scalar()),
            error("label,sentence\n1,a\n", &table()),
            error("label,texts\n1,a\n", &table()),
            error("1,a\n", &numbers),
            error("", &table()),
            error("label,text\n", &table()),
            error("label,text\n1,a\n", &filter),
        ];
        insta::assert_snapshot!(errors.join("\n"));
    }
}
