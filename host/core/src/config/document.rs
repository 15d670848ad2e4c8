//! A parsed file as a tree whose values know their places. TOML and JSON end in the same tree, so that one reader serves
//! both.

use std::path::Path;
use std::sync::Arc;

use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use toml::de::{DeTable, DeValue};

use super::problem::{Invalid, Location, Problem, Problems};

#[derive(Clone, Debug)]
pub(crate) struct Table {
    pub(crate) at: Location,
    /// In the order of the file.
    pub(crate) entries: Vec<Entry>,
}

#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) key: String,
    /// Place of the key; the value has its own.
    pub(crate) at: Location,
    pub(crate) item: Item,
}

#[derive(Clone, Debug)]
pub(crate) struct Item {
    pub(crate) at: Location,
    pub(crate) value: Value,
}

#[derive(Clone, Debug)]
pub(crate) enum Value {
    String(String),
    Integer(i128),
    /// As written; never calculated with.
    Float(String),
    Boolean(bool),
    Datetime,
    Null,
    Array(Vec<Item>),
    Table(Table),
}

impl Value {
    /// Name of the kind, for messages.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::String(_) => "a string",
            Self::Integer(_) => "a number",
            Self::Float(_) => "a number with a fraction",
            Self::Boolean(_) => "true or false",
            Self::Datetime => "a date",
            Self::Null => "null",
            Self::Array(_) => "a list",
            Self::Table(_) => "a section",
        }
    }
}

impl Table {
    pub(crate) fn empty(file: &Path) -> Self {
        Self { at: Location::whole(file), entries: Vec::new() }
    }

    /// Returns what could be read, and every syntax error.
    pub(crate) fn from_toml(text: &str, file: &Path) -> (Self, Problems) {
        let source = Source { file: file.into(), text };
        let (root, errors) = DeTable::parse_recoverable(text);
        let mut problems = Problems::default();
        for error in errors {
            let at = error.span().map_or_else(|| Location::whole(file), |span| source.at(span.start));
            let what = format!("not TOML: {}", error.message().replace('\n', ", "));
            problems.push(Problem::error(at, "", Invalid::new(what)));
        }
        let mut table = source.table(0, root.get_ref());
        table.at = Location::whole(file);
        (table, problems)
    }

    /// Parses a signed manifest. Duplicate keys are refused: two readers of one signature must not see two manifests.
    pub(crate) fn from_json(bytes: &[u8], name: &str) -> Result<Self, Problem> {
        let whole = Location::whole(name);
        let mut json = serde_json::Deserializer::from_slice(bytes);
        let value = JsonAt(&whole).deserialize(&mut json).and_then(|value| json.end().map(|()| value));
        let value = value.map_err(|error| {
            let at = Location { line: error.line() as u32, column: error.column() as u32, ..whole.clone() };
            Problem::error(at, "", Invalid::new(format!("not JSON: {error}")))
        })?;
        match value {
            Value::Table(table) => Ok(table),
            other => {
                Err(Problem::error(whole, "", Invalid::new(format!("expected an object, found {}", other.kind()))))
            }
        }
    }

    pub(crate) fn get(&self, key: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.key == key)
    }

    /// Merges sections of `over` into this table; everything else is replaced.
    pub(crate) fn merge(&mut self, over: Self) {
        for new in over.entries {
            match self.entries.iter_mut().find(|entry| entry.key == new.key) {
                None => self.entries.push(new),
                Some(old) => match (&mut old.item.value, new.item.value) {
                    (Value::Table(old), Value::Table(new)) => old.merge(new),
                    (_, value) => *old = Entry { item: Item { at: new.item.at, value }, key: new.key, at: new.at },
                },
            }
        }
    }

    /// Replaces a prefix of all strings.
    pub(crate) fn replace_prefix(&mut self, prefix: &str, by: &str) {
        for entry in &mut self.entries {
            entry.item.replace_prefix(prefix, by);
        }
    }
}

impl Item {
    fn replace_prefix(&mut self, prefix: &str, by: &str) {
        match &mut self.value {
            Value::String(text) => {
                if let Some(rest) = text.strip_prefix(prefix) {
                    *text = format!("{by}{rest}");
                }
            }
            Value::Array(items) => items.iter_mut().for_each(|item| item.replace_prefix(prefix, by)),
            Value::Table(table) => table.replace_prefix(prefix, by),
            _ => {}
        }
    }
}

struct Source<'t> {
    file: Arc<Path>,
    text: &'t str,
}

impl Source<'_> {
    fn at(&self, offset: usize) -> Location {
        let before = self.text.get(..offset).unwrap_or(self.text);
        let line = before.bytes().filter(|byte| *byte == b'\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        Location { file: self.file.clone(), line: line as u32, column: column as u32 }
    }

    fn table(&self, offset: usize, table: &DeTable<'_>) -> Table {
        let mut entries: Vec<Entry> = table
            .iter()
            .map(|(key, value)| Entry {
                key: key.get_ref().to_string(),
                at: self.at(key.span().start),
                item: self.item(value.span().start, value.get_ref()),
            })
            .collect();
        entries.sort_by(|a, b| a.at.cmp(&b.at));
        Table { at: self.at(offset), entries }
    }

    fn item(&self, offset: usize, value: &DeValue<'_>) -> Item {
        let value = match value {
            DeValue::String(text) => Value::String(text.to_string()),
            // Wider than any accepted number, so that "too large" is reported as such.
            DeValue::Integer(number) => {
                Value::Integer(i128::from_str_radix(number.as_str(), number.radix()).unwrap_or(i128::MAX))
            }
            DeValue::Float(number) => Value::Float(number.as_str().to_owned()),
            DeValue::Boolean(value) => Value::Boolean(*value),
            DeValue::Datetime(_) => Value::Datetime,
            DeValue::Array(items) => {
                Value::Array(items.iter().map(|item| self.item(item.span().start, item.get_ref())).collect())
            }
            DeValue::Table(table) => Value::Table(self.table(offset, table)),
        };
        Item { at: self.at(offset), value }
    }
}

/// Reads JSON into values that all stand at one place.
#[derive(Clone, Copy)]
struct JsonAt<'l>(&'l Location);

impl JsonAt<'_> {
    fn item(self, value: Value) -> Item {
        Item { at: self.0.clone(), value }
    }
}

impl<'de> DeserializeSeed<'de> for JsonAt<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for JsonAt<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Boolean(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Integer(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Integer(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Float(value.to_string()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(value) = seq.next_element_seed(self)? {
            items.push(self.item(value));
        }
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut entries: Vec<Entry> = Vec::new();
        while let Some(key) = map.next_key::<String>()? {
            if entries.iter().any(|known| known.key == key) {
                return Err(de::Error::custom(format_args!("key {key:?} is listed twice")));
            }
            let item = self.item(map.next_value_seed(self)?);
            entries.push(Entry { key, at: self.0.clone(), item });
        }
        Ok(Value::Table(Table { at: self.0.clone(), entries }))
    }
}
