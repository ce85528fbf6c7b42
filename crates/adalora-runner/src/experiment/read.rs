//! From a tree to settings, with everything that is wrong and not only the first thing.
//!
//! serde stops at the first fault. Each fault is therefore recorded and mended, with a value that passes for whatever
//! is expected there, and the tree is read again until nothing is left to report.

use std::fmt;

use serde::de::value::StrDeserializer;
use serde::de::{
    DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, Error, Expected, MapAccess, SeqAccess,
    Unexpected, VariantAccess, Visitor,
};
use serde::forward_to_deserialize_any;

use super::tree::{Entry, Node, Place, Value};

/// One thing that does not fit what is expected.
#[derive(Debug)]
pub(super) struct Fault {
    /// Keys from the innermost table outwards, while the fault travels up.
    path: Vec<String>,
    place: Option<Place>,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    UnknownKey {
        key: String,
        known: &'static [&'static str],
    },
    MissingKey(&'static str),
    /// The value here is not what this says; what it is follows where that is known.
    Expected(String),
    /// What is wrong with the value here, to be put after its path.
    Wrong(String),
}

/// What `root` says, or everything that is wrong with it.
///
/// # Errors
///
/// The place and a message for each fault.
pub(super) fn read<T: DeserializeOwned>(mut root: Node) -> Result<T, Vec<(Place, String)>> {
    let mut faults = Vec::new();
    loop {
        match T::deserialize(&root) {
            Ok(value) if faults.is_empty() => return Ok(value),
            Ok(_) => return Err(faults),
            Err(mut fault) => {
                fault.path.reverse();
                fault.mend(&mut root);
                let place = fault.place.clone().unwrap_or(Place::WHOLE);
                faults.push((place, fault.to_string()));
            }
        }
    }
}

/// A name that `name` may have been meant to be.
pub(super) fn near<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let name = name.to_lowercase();
    let distances = known.into_iter().map(|known| (strsim::damerau_levenshtein(&name, known), known));
    distances
        .filter(|(distance, known)| distance * 3 <= known.len().max(name.len()))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, known)| known)
}

/// `name` in place of one of `known`: what to write instead.
pub(super) fn instead(name: &str, known: &[&str]) -> String {
    match (near(name, known.iter().copied()), known) {
        (_, []) => "this table has no keys".into(),
        (Some(_), [only]) => format!("did you mean `{only}`?"),
        (Some(near), _) => format!("did you mean `{near}`? Known here: {}", quoted(known)),
        (None, _) => format!("known here: {}", quoted(known)),
    }
}

/// The names in backticks, with commas between.
pub(super) fn quoted(names: impl IntoIterator<Item = impl fmt::Display>) -> String {
    names.into_iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

impl Fault {
    fn new(kind: Kind) -> Self {
        Self { path: Vec::new(), place: None, kind }
    }

    /// Raised by the value of `node`, unless it is known to be deeper.
    fn at(mut self, node: &Node) -> Self {
        if self.place.is_none() {
            self.place = Some(node.place.clone());
            if let Kind::Expected(expected) = self.kind {
                self.kind = Kind::Wrong(format!("must be {expected}, not {}", node.describe()));
            }
        }
        self
    }

    fn below(mut self, step: impl ToString) -> Self {
        self.path.push(step.to_string());
        self
    }

    /// Changes the tree so that the fault does not come up again.
    fn mend(&self, root: &mut Node) {
        let mut node = root;
        for step in &self.path {
            node = node.child_mut(step).expect("a fault lies on a path of the tree");
        }
        match (&self.kind, &mut node.value) {
            (Kind::UnknownKey { key, known }, Value::Table(table)) => {
                // Under the name that it was meant to have, that one is not missing.
                match near(key, known.iter().copied()).filter(|meant| table.get(meant).is_none()) {
                    Some(meant) => table.get_mut(key).expect("the unknown key").key = meant.into(),
                    None => table.0.retain(|entry| entry.key != *key),
                }
            }
            (Kind::MissingKey(key), Value::Table(table)) => {
                let key_place = node.place.clone();
                table.0.push(Entry { key: (*key).into(), key_place, node: ANYTHING });
            }
            (_, value) => *value = Value::Anything,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut path = String::new();
        for step in &self.path {
            match step.parse::<usize>() {
                Ok(index) => path += &format!("[{index}]"),
                Err(_) if path.is_empty() => path += step,
                Err(_) => path += &format!(".{step}"),
            }
        }
        let dot = if path.is_empty() { "" } else { "." };
        match &self.kind {
            Kind::UnknownKey { key, known } => {
                write!(f, "unknown key {path}{dot}{key}; {}", instead(key, known))
            }
            Kind::MissingKey(key) => write!(f, "{path}{dot}{key} is missing"),
            Kind::Expected(expected) => write!(f, "{path} must be {expected}"),
            Kind::Wrong(what) => write!(f, "{path} {what}"),
        }
    }
}

impl std::error::Error for Fault {}

impl Error for Fault {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::new(Kind::Wrong(format!("is wrong: {message}")))
    }

    fn invalid_type(_: Unexpected<'_>, expected: &dyn Expected) -> Self {
        let expected = expected.to_string();
        Self::new(Kind::Expected(match expected.as_str() {
            "u64" | "usize" => "a whole number, 0 or greater".into(),
            "f64" => "a number".into(),
            "a boolean" => "true or false".into(),
            "a sequence" => "a list".into(),
            _ => expected,
        }))
    }

    fn invalid_value(unexpected: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::invalid_type(unexpected, expected)
    }

    fn missing_field(field: &'static str) -> Self {
        Self::new(Kind::MissingKey(field))
    }
}

const ANYTHING: Node = Node { place: Place::WHOLE, value: Value::Anything };
static STAND_IN: Node = ANYTHING;

impl<'de> Deserializer<'de> for &'de Node {
    type Error = Fault;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        let result = match &self.value {
            Value::Boolean(value) => visitor.visit_bool(*value),
            Value::Integer(value) => visitor.visit_i64(*value),
            Value::Float(value) => visitor.visit_f64(*value),
            Value::Text(value) => visitor.visit_borrowed_str(value),
            Value::List(items) => visitor.visit_seq(Items { items: items.iter().collect(), next: 0 }),
            Value::Table(table) => {
                let entries = table.0.iter().map(|entry| (entry.key.as_str(), &entry.node));
                visitor.visit_map(Entries { entries: entries.collect(), next: 0 })
            }
            Value::Other(what) => Err(Fault::invalid_type(Unexpected::Other(what), &visitor)),
            Value::Anything => visitor.visit_unit(),
        };
        result.map_err(|fault| fault.at(self))
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.value {
            Value::Anything => visitor.visit_bool(false),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_u64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.value {
            Value::Anything => visitor.visit_u64(1),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.value {
            Value::Anything => visitor.visit_f64(1.0),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.value {
            Value::Anything => visitor.visit_str(""),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.value {
            Value::Anything => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.value {
            Value::Anything => visitor.visit_seq(Items { items: Vec::new(), next: 0 }),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, Fault> {
        match &self.value {
            Value::Anything => visitor.visit_seq(Items { items: vec![&STAND_IN; len], next: 0 }),
            Value::List(items) if items.len() != len => {
                let text = format!("must be a list of {len}, not of {}", items.len());
                Err(Fault::new(Kind::Wrong(text)).at(self))
            }
            Value::List(_) => self.deserialize_any(visitor),
            _ => Err(Fault::new(Kind::Expected(format!("a list of {len}"))).at(self)),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        match &self.value {
            Value::Anything => {
                let entries = fields.iter().map(|&field| (field, &STAND_IN)).collect();
                visitor.visit_map(Entries { entries, next: 0 })
            }
            Value::Table(table) => match table.0.iter().find(|entry| !fields.contains(&entry.key.as_str())) {
                Some(entry) => {
                    let kind = Kind::UnknownKey { key: entry.key.clone(), known: fields };
                    Err(Fault { place: Some(entry.key_place.clone()), ..Fault::new(kind) })
                }
                None => self.deserialize_any(visitor),
            },
            _ => Err(Fault::new(Kind::Expected("a table".into())).at(self)),
        }
    }

    /// A choice among tables, `[importance.random]`, or among words, `weights = "before-step"`.
    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        let one_of = || format!("one of {}", quoted(variants));
        let (chosen, place, content) = match &self.value {
            Value::Anything => (variants[0], &self.place, Some(&STAND_IN)),
            Value::Text(word) => (word.as_str(), &self.place, None),
            Value::Table(table) => {
                let unknown = table.0.iter().find(|entry| !variants.contains(&entry.key.as_str()));
                match (unknown, table.0.as_slice()) {
                    (Some(entry), _) | (None, [entry]) => {
                        (entry.key.as_str(), &entry.key_place, Some(&entry.node))
                    }
                    (None, []) => {
                        let text = format!("is empty; it must hold {}", one_of());
                        return Err(Fault::new(Kind::Wrong(text)).at(self));
                    }
                    (None, [.., last]) => {
                        let text = format!("holds {}; keep exactly one of them", quoted(table.keys()));
                        return Err(Fault { place: Some(last.place()), ..Fault::new(Kind::Wrong(text)) });
                    }
                }
            }
            _ => return Err(Fault::new(Kind::Expected(one_of())).at(self)),
        };
        if !variants.contains(&chosen) {
            let verb = if content.is_some() { "hold" } else { "be" };
            let text = format!("cannot {verb} `{chosen}`; {}", instead(chosen, variants));
            return Err(Fault { place: Some(place.clone()), ..Fault::new(Kind::Wrong(text)) });
        }
        visitor.visit_enum(Choice { chosen, content }).map_err(|fault| fault.at(self))
    }

    forward_to_deserialize_any! {
        i8 i16 i32 i64 i128 u8 u16 u32 u128 f32 char str bytes byte_buf unit unit_struct newtype_struct
        tuple_struct map identifier ignored_any
    }
}

struct Items<'de> {
    items: Vec<&'de Node>,
    next: usize,
}

impl<'de> SeqAccess<'de> for Items<'de> {
    type Error = Fault;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Fault> {
        let Some(item) = self.items.get(self.next) else { return Ok(None) };
        let index = self.next;
        self.next += 1;
        seed.deserialize(*item).map(Some).map_err(|fault| fault.below(index))
    }
}

struct Entries<'de> {
    entries: Vec<(&'de str, &'de Node)>,
    next: usize,
}

impl<'de> MapAccess<'de> for Entries<'de> {
    type Error = Fault;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Fault> {
        let Some((key, _)) = self.entries.get(self.next) else { return Ok(None) };
        seed.deserialize(StrDeserializer::new(key)).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Fault> {
        let (key, node) = self.entries[self.next];
        self.next += 1;
        seed.deserialize(node).map_err(|fault| fault.below(key))
    }
}

struct Choice<'de> {
    chosen: &'de str,
    /// `None` where only a word stands.
    content: Option<&'de Node>,
}

impl<'de> EnumAccess<'de> for Choice<'de> {
    type Error = Fault;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), Fault> {
        Ok((seed.deserialize(StrDeserializer::new(self.chosen))?, self))
    }
}

impl<'de> VariantAccess<'de> for Choice<'de> {
    type Error = Fault;

    fn unit_variant(self) -> Result<(), Fault> {
        match self.content {
            None | Some(Node { value: Value::Anything, .. }) => Ok(()),
            Some(_) => Err(Fault::new(Kind::Wrong(format!("must be the string \"{}\"", self.chosen)))),
        }
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, Fault> {
        match self.content {
            Some(node) => seed.deserialize(node).map_err(|fault| fault.below(self.chosen)),
            None => {
                let text = format!("must be a table that holds `{0}`, not the string \"{0}\"", self.chosen);
                Err(Fault::new(Kind::Wrong(text)))
            }
        }
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Fault> {
        Err(Fault::invalid_type(Unexpected::TupleVariant, &visitor))
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        match self.content {
            Some(node) => {
                node.deserialize_struct("", fields, visitor).map_err(|fault| fault.below(self.chosen))
            }
            None => Err(Fault::invalid_type(Unexpected::UnitVariant, &visitor)),
        }
    }
}
