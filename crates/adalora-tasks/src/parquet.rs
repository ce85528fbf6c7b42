//! Reads Parquet files row by row.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Field;
use parquet::schema::types::Type;

use crate::error::{Place, RowProblem, TaskError, near};
use crate::manifest::{Column, Table};
use crate::rows::{Row, Value};

/// Reads the columns that the table names; others may be of any kind.
pub(crate) fn read(content: Vec<u8>, file: &Path, table: &Table) -> Result<Vec<Row>, TaskError> {
    guarded(file, || rows(content, file, table))
}

/// Two columns of text in each row.
pub(crate) fn texts(content: Vec<u8>, file: &Path, names: [&str; 2]) -> Result<Vec<[String; 2]>, TaskError> {
    guarded(file, || pairs(content, file, names))
}

/// Where a damaged file contradicts itself, such as by a column of negative length, the library panics.
fn guarded<T>(file: &Path, read: impl FnOnce() -> Result<T, TaskError>) -> Result<T, TaskError> {
    catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|_| {
        let source = Box::new(ParquetError::General("the file contradicts itself".into()));
        Err(TaskError::Parquet { file: file.into(), source })
    })
}

fn rows(content: Vec<u8>, file: &Path, table: &Table) -> Result<Vec<Row>, TaskError> {
    let unreadable = |source| TaskError::Parquet { file: file.into(), source: Box::new(source) };
    let reader = SerializedFileReader::new(Bytes::from(content)).map_err(unreadable)?;
    let schema = reader.metadata().file_metadata().schema();
    let places = Places::find(table, schema, file)?;
    let mut rows = Vec::new();
    for (index, record) in reader.get_row_iter(Some(places.schema.clone())).map_err(unreadable)?.enumerate() {
        let record = record.map_err(unreadable)?;
        let fields: Vec<&Field> = record.get_column_iter().map(|(_, field)| field).collect();
        let at_row = |problem| TaskError::Row { file: file.into(), place: Place::Row(index + 1), problem };
        if let Some(row) = places.row(table, &fields).map_err(at_row)? {
            rows.push(row);
        }
    }
    Ok(rows)
}

fn pairs(content: Vec<u8>, file: &Path, names: [&str; 2]) -> Result<Vec<[String; 2]>, TaskError> {
    let unreadable = |source| TaskError::Parquet { file: file.into(), source: Box::new(source) };
    let reader = SerializedFileReader::new(Bytes::from(content)).map_err(unreadable)?;
    let schema = project(&names, reader.metadata().file_metadata().schema(), file)?;
    let column =
        |name: &str| schema.get_fields().iter().position(|field| field.name() == name).expect("projected");
    let places = names.map(|name| (column(name), Column::from(name)));
    let rows =
        reader.get_row_iter(Some(schema.clone())).map_err(unreadable)?.enumerate().map(|(index, record)| {
            let record = record.map_err(unreadable)?;
            let fields: Vec<&Field> = record.get_column_iter().map(|(_, field)| field).collect();
            let at_row =
                |problem| TaskError::Row { file: file.into(), place: Place::Row(index + 1), problem };
            let text = |(place, column): &(usize, Column)| text(fields[*place], column).map_err(at_row);
            Ok([text(&places[0])?.into(), text(&places[1])?.into()])
        });
    rows.collect()
}

/// The schema of these columns alone, in the file's order.
fn project(names: &[&str], schema: &Type, file: &Path) -> Result<Type, TaskError> {
    let fields = schema.get_fields();
    let own: Vec<&str> = fields.iter().map(|field| field.name()).collect();
    if let Some(missing) = names.iter().find(|name| !own.contains(name)) {
        return Err(TaskError::NoColumn {
            file: file.into(),
            column: format!("`{missing}`"),
            columns: format!("the file has `{}`{}", own.join("`, `"), near(missing, &own)),
        });
    }
    let wanted = fields.iter().filter(|field| names.contains(&field.name())).map(Arc::clone).collect();
    let part = Type::group_type_builder(schema.name()).with_fields(wanted).build();
    Ok(part.expect("a part of a valid schema is one"))
}

/// Where in the rows that are read the table's columns are.
struct Places {
    /// The file's, of these columns alone.
    schema: Type,
    text: Vec<usize>,
    label: usize,
    only: Option<usize>,
}

impl Places {
    fn find(table: &Table, schema: &Type, file: &Path) -> Result<Self, TaskError> {
        let columns =
            || table.text.iter().chain([&table.label]).chain(table.only.as_ref().map(|only| &only.column));
        let schema = project(&columns().map(name).collect::<Vec<_>>(), schema, file)?;
        let index = |column: &Column| {
            let place = schema.get_fields().iter().position(|field| field.name() == name(column));
            place.expect("every column is in the schema")
        };
        Ok(Self {
            text: table.text.iter().map(index).collect(),
            label: index(&table.label),
            only: table.only.as_ref().map(|only| index(&only.column)),
            schema,
        })
    }

    /// The example in a row; `None` if the row belongs to another data set in the same file.
    fn row(&self, table: &Table, fields: &[&Field]) -> Result<Option<Row>, RowProblem> {
        if let (Some(index), Some(only)) = (self.only, &table.only)
            && value(fields[index], &only.column)?.spelled() != only.equals
        {
            return Ok(None);
        }
        let texts = self.text.iter().zip(&table.text).map(|(index, column)| text(fields[*index], column));
        let (text, pair) = table.texts(texts.collect::<Result<Vec<_>, _>>()?)?;
        let label = table.labels.label(value(fields[self.label], &table.label)?)?;
        Ok(Some(Row { text, pair, label }))
    }
}

fn name(column: &Column) -> &str {
    match column {
        Column::Name(name) => name,
        Column::Number(_) => unreachable!("a rule of manifests: columns of Parquet files have names"),
    }
}

fn text<'a>(field: &'a Field, column: &Column) -> Result<&'a str, RowProblem> {
    match value(field, column)? {
        Value::Text(text) => Ok(text),
        other => Err(RowProblem::NotText { column: column.to_string(), value: other.spelled() }),
    }
}

fn value<'a>(field: &'a Field, column: &Column) -> Result<Value<'a>, RowProblem> {
    Ok(match field {
        Field::Str(text) => Value::Text(text),
        Field::Bool(truth) => Value::Integer((*truth).into()),
        Field::Byte(number) => Value::Integer((*number).into()),
        Field::Short(number) => Value::Integer((*number).into()),
        Field::Int(number) => Value::Integer((*number).into()),
        Field::Long(number) => Value::Integer(*number),
        Field::UByte(number) => Value::Integer((*number).into()),
        Field::UShort(number) => Value::Integer((*number).into()),
        Field::UInt(number) => Value::Integer((*number).into()),
        Field::Float(number) => Value::Real((*number).into()),
        Field::Double(number) => Value::Real(*number),
        Field::Null => return Err(RowProblem::Null { column: column.to_string() }),
        other => return Err(RowProblem::Kind { column: column.to_string(), value: other.to_string() }),
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
    use parquet::file::properties::WriterProperties;
    use parquet::file::writer::SerializedFileWriter;
    use parquet::schema::parser::parse_message_type;
    use proptest::prelude::*;

    use super::*;
    use crate::dataset::Label;
    use crate::manifest::table::RowFilter;
    use crate::manifest::{DevFiles, Encoding, LabelRule, Split};

    fn table() -> Table {
        Table {
            encoding: Encoding::Parquet,
            text: vec!["text".into()],
            label: "label".into(),
            only: None,
            labels: LabelRule::Classes { names: vec!["even".into(), "odd".into()], values: None },
            split: Split::Files { train: String::new(), dev: DevFiles::One(String::new()) },
            evaluation: vec![],
            empty_texts: false,
        }
    }

    fn scalar() -> Table {
        Table { labels: LabelRule::Scalar { range: [0.0, 1.0] }, ..table() }
    }

    fn columns(text: &str, label: &str, table: Table) -> Table {
        Table { text: vec![text.into()], label: label.into(), ..table }
    }

    /// A file that `reference/parquet_tables.py` made.
    fn by_pyarrow(name: &str) -> Vec<u8> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../reference/values/parquet");
        fs::read(folder.join(name).with_extension("parquet")).expect("reference values")
    }

    fn read(name: &str, table: &Table) -> Result<Vec<Row>, TaskError> {
        table.rows(by_pyarrow(name), &Path::new(name).with_extension("parquet"))
    }

    #[test]
    fn however_pyarrow_wrote_it_the_rows_are_the_same() {
        for name in ["many-pages", "version-2", "uncompressed"] {
            let rows = read(name, &table()).expect("reference values");
            assert_eq!(rows.len(), 1000);
            for (index, row) in rows.iter().enumerate() {
                assert_eq!(row.text, format!("text {} of {index}", index % 7));
                assert_eq!((&row.pair, &row.label), (&None, &Label::Class(index % 2)));
            }
        }
    }

    #[test]
    fn every_kind_of_text_and_number_is_read() {
        for text in ["large_string", "dictionary"] {
            for label in ["int8", "uint16", "int32", "int64", "bool"] {
                let rows = read("kinds", &columns(text, label, table())).expect("reference values");
                let seen: Vec<_> = rows.into_iter().map(|row| (row.text, row.label)).collect();
                assert_eq!(seen, [("a".into(), Label::Class(0)), ("b".into(), Label::Class(1))]);
            }
            let wide = Table { labels: LabelRule::Scalar { range: [0.0, 2.0] }, ..table() };
            for (label, expected) in [("float32", [0.5, 1.5]), ("float64", [0.5, 1.5]), ("int8", [0.0, 1.0])]
            {
                let rows = read("kinds", &columns(text, label, wide.clone())).expect("reference values");
                let scores: Vec<_> = rows.into_iter().map(|row| row.label).collect();
                assert_eq!(scores, expected.map(|score| Label::Scores(vec![score])));
            }
        }
    }

    #[test]
    fn a_manifest_may_spell_classes_and_leave_rows_out() {
        let spelled = LabelRule::Classes {
            names: vec!["one".into(), "zero".into()],
            values: Some(vec!["1".into(), "0".into()]),
        };
        let rows = read("many-pages", &Table { labels: spelled, ..table() }).expect("reference values");
        assert_eq!((&rows[0].label, &rows[1].label), (&Label::Class(1), &Label::Class(0)));
        let by_text = LabelRule::Classes { names: vec!["b".into(), "a".into()], values: None };
        let rows =
            read("kinds", &columns("dictionary", "large_string", Table { labels: by_text, ..table() }));
        assert_eq!(rows.expect("reference values")[0].label, Label::Class(1));
        let only = Some(RowFilter { column: "label".into(), equals: "1".into() });
        let rows = read("many-pages", &Table { only, ..table() }).expect("reference values");
        assert_eq!((rows.len(), rows[0].text.as_str()), (500, "text 1 of 1"));
        // Two texts in another order than the file's.
        let pair = Table {
            text: vec!["large_string".into(), "blank".into()],
            label: "int8".into(),
            empty_texts: true,
            ..table()
        };
        let rows = read("kinds", &pair).expect("reference values");
        assert_eq!((rows[1].text.as_str(), rows[1].pair.as_deref()), ("b", Some(" \n")));
        let swapped = Table { text: vec!["blank".into(), "large_string".into()], ..pair };
        let rows = read("kinds", &swapped).expect("reference values");
        assert_eq!((rows[0].text.as_str(), rows[0].pair.as_deref()), ("a", Some("a")));
    }

    #[test]
    fn each_fault_names_row_value_rule_and_way_out() {
        let error = |result: Result<Vec<Row>, TaskError>| {
            result.map(|rows| rows.len()).expect_err("a fault").to_string()
        };
        let kinds = |text, label, table| error(read("kinds", &columns(text, label, table)));
        let content = by_pyarrow("many-pages");
        let broken = |content: Vec<u8>| error(table().rows(content, Path::new("broken.parquet")));
        let mut damaged = content.clone();
        damaged[20_000..22_000].fill(0xff);
        let number = |label: &str| Table {
            only: Some(RowFilter { column: "label".into(), equals: label.into() }),
            ..table()
        };
        let errors = [
            kinds("null", "int8", table()),
            kinds("large_string", "null", table()),
            kinds("large_string", "all_null", table()),
            kinds("all_null", "int8", table()),
            kinds("blank", "int8", table()),
            kinds("binary", "int8", table()),
            kinds("int64", "int8", table()),
            kinds("large_string", "list", table()),
            kinds("large_string", "float32", table()),
            kinds("large_string", "not_a_number", scalar()),
            kinds("large_string", "float64", scalar()),
            kinds("large_string", "dictionary", scalar()),
            kinds("large_strin", "int8", table()),
            kinds("large_string", "labels", table()),
            error(read("empty", &table())),
            error(read("many-pages", &number("2"))),
            error(read("zstd", &table())),
            broken(content[..content.len() / 2].to_vec()),
            broken(damaged),
            broken(b"text,label".to_vec()),
            broken(Vec::new()),
        ];
        insta::assert_snapshot!(errors.join("\n"));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            rows in prop::collection::vec((".{1,40}", 0_i64..2), 1..200),
            group in 1_usize..80,
        ) {
            let schema = parse_message_type(
                "message rows { REQUIRED INT64 label; OPTIONAL DOUBLE unused; REQUIRED BINARY text (STRING); }",
            );
            let mut content = Vec::new();
            let mut writer = SerializedFileWriter::new(
                &mut content,
                Arc::new(schema.expect("a valid schema")),
                Arc::new(WriterProperties::default()),
            ).expect("memory");
            for rows in rows.chunks(group) {
                let mut group = writer.next_row_group().expect("memory");
                let labels: Vec<i64> = rows.iter().map(|row| row.1).collect();
                let mut column = group.next_column().expect("memory").expect("three columns");
                column.typed::<Int64Type>().write_batch(&labels, None, None).expect("memory");
                column.close().expect("memory");
                let mut column = group.next_column().expect("memory").expect("three columns");
                column
                    .typed::<parquet::data_type::DoubleType>()
                    .write_batch(&[], Some(&vec![0; rows.len()]), None)
                    .expect("memory");
                column.close().expect("memory");
                let texts: Vec<ByteArray> = rows.iter().map(|row| row.0.as_str().into()).collect();
                let mut column = group.next_column().expect("memory").expect("three columns");
                column.typed::<ByteArrayType>().write_batch(&texts, None, None).expect("memory");
                column.close().expect("memory");
                group.close().expect("memory");
            }
            writer.close().expect("memory");
            let table = Table { empty_texts: true, ..table() };
            let read = super::read(content, Path::new("some.parquet"), &table).expect("a valid file");
            let read: Vec<_> = read.into_iter().map(|row| (row.text, row.label)).collect();
            let written: Vec<_> =
                rows.into_iter().map(|(text, label)| (text, Label::Class(label as usize))).collect();
            prop_assert_eq!(read, written);
        }
    }
}
