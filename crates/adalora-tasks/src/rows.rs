//! What every format of data files has in common: an example before tokenizing, and what a label may be.

use std::path::Path;

use crate::dataset::Label;
use crate::error::{RowProblem, TaskError};
use crate::manifest::{Encoding, LabelRule, Table};
use crate::{delimited, parquet};

/// An example before tokenizing.
#[derive(Debug, PartialEq)]
pub struct Row {
    /// The text.
    pub text: String,
    /// The second text of a pair.
    pub pair: Option<String>,
    /// What is true of it.
    pub label: Label,
}

/// What stands in a column of a row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Value<'a> {
    Text(&'a str),
    Integer(i64),
    Real(f64),
}

impl Value<'_> {
    /// As a manifest spells it.
    pub(crate) fn spelled(self) -> String {
        match self {
            Self::Text(text) => text.into(),
            Self::Integer(number) => number.to_string(),
            Self::Real(number) => number.to_string(),
        }
    }
}

impl LabelRule {
    /// The label that `value` stands for.
    pub(crate) fn label(&self, value: Value) -> Result<Label, RowProblem> {
        match self {
            Self::Classes { names, values } => {
                let known = match (values, value) {
                    (Some(values), _) => values.clone(),
                    (None, Value::Integer(_)) => (0..names.len()).map(|class| class.to_string()).collect(),
                    (None, _) => names.clone(),
                };
                let value = value.spelled();
                match known.iter().position(|known| *known == value) {
                    Some(class) => Ok(Label::Class(class)),
                    None => Err(RowProblem::UnknownLabel { value, known }),
                }
            }
            Self::Scalar { range: [low, high] } => {
                let score = match value {
                    Value::Text(text) => text.parse().ok(),
                    Value::Integer(number) => Some(number as f64),
                    Value::Real(number) => Some(number),
                };
                match score.filter(|score: &f64| score.is_finite()) {
                    None => Err(RowProblem::NotFinite { value: value.spelled() }),
                    Some(score) if (*low..=*high).contains(&score) => Ok(Label::Scores(vec![score as f32])),
                    Some(score) => Err(RowProblem::OutOfRange { value: score, low: *low, high: *high }),
                }
            }
        }
    }
}

impl Table {
    /// All examples of a file's content; `file` is named in errors. What a row cannot give is an error that names the row;
    /// nothing is dropped.
    ///
    /// # Errors
    ///
    /// A file of another format, or without one of the columns; a row that gives no example.
    pub fn rows(&self, content: Vec<u8>, file: &Path) -> Result<Vec<Row>, TaskError> {
        let rows = match &self.encoding {
            Encoding::Delimited(encoding) => delimited::read(&content, file, encoding, self)?,
            Encoding::Parquet => parquet::read(content, file, self)?,
        };
        if rows.is_empty() {
            let filter = self.only.as_ref().map(|only| format!("{} = `{}`", only.column, only.equals));
            return Err(TaskError::EmptySplit { file: file.into(), filter });
        }
        Ok(rows)
    }

    /// The text or texts of a row, in the order of the table's text columns.
    pub(crate) fn texts<'a>(
        &self,
        fields: impl IntoIterator<Item = &'a str>,
    ) -> Result<(String, Option<String>), RowProblem> {
        let mut texts = fields.into_iter().zip(&self.text).map(|(text, column)| {
            if text.trim().is_empty() && !self.empty_texts {
                return Err(RowProblem::EmptyText { column: column.to_string() });
            }
            Ok(text.to_owned())
        });
        Ok((texts.next().expect("a manifest names a text column")?, texts.next().transpose()?))
    }
}
