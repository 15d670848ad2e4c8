//! `[functions.settings.<function>]`: values that the board lays over the settings of its functions.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

pub use super::BoardLayer;
use super::Functions;
use super::check::Content;
use super::document::{Item, Table, Value};
use super::problem::{Invalid, Location, Problem, Problems};
use super::reader::Section;
use crate::manifest::{self, Manifest};
use crate::settings::{Given, Layer, Origin, TopicText, Values};
use crate::topic::TopicFilter;

/// The subsection with the values for single topics.
const TOPICS: &str = "topics";
/// The only key of a table that names a file.
const FILE: &str = "file";

/// Values of one function, as the file has them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BoardSettings {
    pub all: BTreeMap<String, BoardValue>,
    pub topics: BTreeMap<TopicText, BTreeMap<String, BoardValue>>,
}

/// A value and its place. Moving it in the file changes nothing.
#[derive(Clone)]
pub struct BoardValue {
    pub text: Arc<str>,
    /// The value is the content of a file.
    pub is_file: bool,
    pub at: Location,
}

/// Reads the section with one subsection for each function.
pub(super) fn read(section: &mut Section<'_, '_>, into: &mut BoardLayer) {
    let entries = section.entries();
    if entries.is_empty() {
        // So that the keys of such a section are known, and documented.
        section.section("threshold-alert", |example| {
            example.item("max");
        });
    }
    for (name, item) in entries {
        if !manifest::is_name(name) {
            let invalid = Invalid::new(format!("{name:?} is not a function name"));
            section.error(name, invalid.hint("write [functions.settings.NAME] with the name in function.toml"));
        }
        let mut settings = BoardSettings::default();
        section.section(name, |section| read_function(section, name, &mut settings));
        if matches!(item.value, Value::Table(_)) {
            into.insert(name.into(), settings);
        }
    }
}

fn read_function(section: &mut Section<'_, '_>, function: &str, settings: &mut BoardSettings) {
    let topics = section.item(TOPICS).filter(|item| matches!(item.value, Value::Table(_)));
    read_values(section, &Place { function, topic: None, prefix: "" }, topics.is_some(), &mut settings.all);
    if topics.is_none() {
        return;
    }
    section.section(TOPICS, |section| {
        for (filter, item) in section.entries() {
            let parsed = match TopicFilter::parse(filter) {
                Ok(parsed) => TopicText::new(&parsed),
                Err(error) => {
                    section.error(filter, Invalid::new(error.to_string()));
                    continue;
                }
            };
            if !matches!(item.value, Value::Table(_)) {
                section.section(filter, |_| {});
                continue;
            }
            let values = settings.topics.entry(parsed.clone()).or_default();
            let place = Place { function, topic: Some(&parsed), prefix: "" };
            section.section(filter, |section| read_values(section, &place, false, values));
        }
    });
}

struct Place<'p> {
    function: &'p str,
    topic: Option<&'p TopicText>,
    prefix: &'p str,
}

/// Reads values, and those of nested sections under names with dots, as `[config]` of `function.toml` has them.
fn read_values(
    section: &mut Section<'_, '_>,
    place: &Place<'_>,
    has_topics: bool,
    values: &mut BTreeMap<String, BoardValue>,
) {
    for (key, item) in section.entries().into_iter().filter(|(key, _)| !(has_topics && *key == TOPICS)) {
        let name = format!("{}{key}", place.prefix);
        let value = match &item.value {
            Value::Table(table) if is_file(table) => read_file(section, key, place, &name, item),
            Value::Table(_) => {
                let place = Place { prefix: &format!("{name}."), ..*place };
                section.section(key, |section| read_values(section, &place, false, values));
                continue;
            }
            _ => {
                let mut setting = manifest::Setting(String::new());
                section.value(key, &mut setting).then(|| BoardValue::new(setting.0, false, item))
            }
        };
        if let Some(value) = value
            && values.insert(name, value).is_some()
        {
            section.error(key, Invalid::new("set twice: as a name with dots and in a section").hint("remove one"));
        }
    }
}

fn is_file(table: &Table) -> bool {
    matches!(&table.entries[..], [entry] if entry.key == FILE)
}

/// Names the file, whose content is read later.
fn read_file(
    section: &mut Section<'_, '_>,
    key: &str,
    place: &Place<'_>,
    name: &str,
    item: &Item,
) -> Option<BoardValue> {
    let mut value = None;
    section.section(key, |section| {
        let mut path = PathBuf::new();
        if section.value(FILE, &mut path) {
            let content = Content::Setting {
                function: place.function.to_owned(),
                topic: place.topic.cloned(),
                name: name.to_owned(),
            };
            section.names_file(FILE, None, &path, content);
            value = Some(BoardValue::new(String::new(), true, item));
        }
    });
    value
}

impl BoardValue {
    fn new(text: String, is_file: bool, item: &Item) -> Self {
        Self { text: text.into(), is_file, at: item.at.clone() }
    }
}

impl BoardSettings {
    /// The value of a name, for all topics or for one filter.
    pub(super) fn value_mut(&mut self, topic: Option<&TopicText>, name: &str) -> Option<&mut BoardValue> {
        match topic {
            None => self.all.get_mut(name),
            Some(topic) => self.topics.get_mut(topic)?.get_mut(name),
        }
    }

    pub fn layer(&self) -> Layer {
        let plain = |values: &BTreeMap<String, BoardValue>| -> Values {
            let given = |value: &BoardValue| Given { text: Arc::clone(&value.text), is_secret: value.is_file };
            values.iter().map(|(name, value)| (name.clone(), given(value))).collect()
        };
        let topics = self.topics.iter().map(|(topic, values)| (topic.clone(), plain(values))).collect();
        Layer { all: plain(&self.all), topics }
    }
}

impl Functions {
    /// What is wrong with the settings of a function that this board has.
    pub fn check_settings(&self, manifest: &Manifest) -> Problems {
        let mut problems = Problems::default();
        let empty = BoardSettings::default();
        let settings = self.settings.get(&*manifest.name).unwrap_or(&empty);
        for refused in settings.layer().refused(&Origin::Board, manifest) {
            let values = match &refused.topic {
                None => Some(&settings.all),
                Some(topic) => {
                    settings.topics.iter().find(|(text, _)| text.as_str() == topic).map(|(_, values)| values)
                }
            };
            let at = values.and_then(|values| values.get(&refused.name)).map(|value| value.at.clone());
            let topic = refused.topic.as_ref().map(|topic| format!(".{TOPICS}.{topic:?}")).unwrap_or_default();
            let key = format!("functions.settings.{}{topic}.{}", manifest.name, refused.name);
            problems.push(Problem::error(at.unwrap_or_else(|| Location::whole("")), key, refused.invalid));
        }
        problems
    }
}

impl PartialEq for BoardValue {
    fn eq(&self, other: &Self) -> bool {
        (&self.text, self.is_file) == (&other.text, other.is_file)
    }
}

impl fmt::Debug for BoardValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_file { f.write_str("(file)") } else { self.text.fmt(f) }
    }
}
