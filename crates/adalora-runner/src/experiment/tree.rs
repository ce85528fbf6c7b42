//! A TOML file as a tree that knows where each key and value stands.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Where something was said.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Place {
    /// Bytes `start..end` of the file; empty if it is about the file as a whole.
    File { start: usize, end: usize },
    /// The override of this number.
    Override(usize),
}

impl Place {
    /// The file as a whole.
    pub(super) const WHOLE: Self = Self::File { start: 0, end: 0 };
}

impl From<Range<usize>> for Place {
    fn from(Range { start, end }: Range<usize>) -> Self {
        Self::File { start, end }
    }
}

#[derive(Debug, Clone)]
pub(super) struct Node {
    /// The value; of a table with a header, the header.
    pub(super) place: Place,
    pub(super) value: Value,
}

#[derive(Debug, Clone)]
pub(super) enum Value {
    Boolean(bool),
    Integer(i64),
    Float(f64),
    Text(String),
    List(Vec<Node>),
    Table(Table),
    /// What no setting is, in words.
    Other(&'static str),
    /// Stands for whatever is expected, where something is wrong and was reported.
    Anything,
}

/// Entries in the order of the file.
#[derive(Debug, Clone, Default)]
pub(super) struct Table(pub(super) Vec<Entry>);

#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) key_place: Place,
    pub(super) node: Node,
}

impl Entry {
    /// From the key to the end of its value; of a table with a header, the header.
    pub(super) fn place(&self) -> Place {
        match (&self.key_place, &self.node.place) {
            (Place::File { start, .. }, Place::File { start: value, end }) if start < value => {
                Place::File { start: *start, end: *end }
            }
            (_, place) => place.clone(),
        }
    }
}

impl Table {
    pub(super) fn get(&self, key: &str) -> Option<&Entry> {
        self.0.iter().find(|entry| entry.key == key)
    }

    pub(super) fn get_mut(&mut self, key: &str) -> Option<&mut Entry> {
        self.0.iter_mut().find(|entry| entry.key == key)
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|entry| entry.key.as_str())
    }

    /// A parsed table; `place` turns spans into places.
    pub(super) fn new(table: &DeTable, place: &dyn Fn(Range<usize>) -> Place) -> Self {
        let mut entries: Vec<_> = table
            .iter()
            .map(|(key, value)| {
                let entry = Entry {
                    key: key.get_ref().clone().into_owned(),
                    key_place: place(key.span()),
                    node: Node::new(value, place),
                };
                (key.span().start, entry)
            })
            .collect();
        entries.sort_by_key(|(start, _)| *start);
        Self(entries.into_iter().map(|(_, entry)| entry).collect())
    }
}

impl Node {
    /// A parsed value; `place` turns spans into places.
    pub(super) fn new(value: &Spanned<DeValue>, place: &dyn Fn(Range<usize>) -> Place) -> Self {
        let own = place(value.span());
        let value = match value.get_ref() {
            DeValue::Boolean(value) => Value::Boolean(*value),
            DeValue::Integer(value) => i64::from_str_radix(value.as_str(), value.radix())
                .map_or(Value::Other("a number beyond 64 bits"), Value::Integer),
            DeValue::Float(value) => {
                value.as_str().parse().map_or(Value::Other("a number beyond 64 bits"), Value::Float)
            }
            DeValue::String(value) => Value::Text(value.clone().into_owned()),
            DeValue::Array(items) => Value::List(items.iter().map(|item| Self::new(item, place)).collect()),
            DeValue::Table(table) => Value::Table(Table::new(table, place)),
            DeValue::Datetime(_) => Value::Other("a date or time"),
        };
        Self { place: own, value }
    }

    /// The value below, where there is one.
    pub(super) fn child_mut(&mut self, step: &str) -> Option<&mut Self> {
        match &mut self.value {
            Value::Table(table) => table.get_mut(step).map(|entry| &mut entry.node),
            Value::List(items) => items.get_mut(step.parse::<usize>().ok()?),
            _ => None,
        }
    }

    /// What stands here, to be put after "not".
    pub(super) fn describe(&self) -> String {
        match &self.value {
            Value::Boolean(value) => value.to_string(),
            Value::Integer(value) => value.to_string(),
            Value::Float(value) => format!("{value:?}"),
            Value::Text(value) => format!("the string {value:?}"),
            Value::List(_) => "a list".into(),
            Value::Table(_) => "a table".into(),
            Value::Other(what) => (*what).into(),
            Value::Anything => "anything".into(),
        }
    }
}
