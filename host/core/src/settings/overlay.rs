//! Values that are laid over the `[config]` of a function.
//!
//! ```text
//! function.toml < board's file < order of a group < order of the board        for all topics
//!               < board's file < order of a group < order of the board        for topics that a filter matches
//! ```
//!
//! Names have dots where `function.toml` has sections, so that sections merge and everything else is replaced.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::config::problem::Invalid;
use crate::manifest::Manifest;
use crate::topic::TopicFilter;

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Section `[config]` of `function.toml`.
    Function,
    /// The board's configuration.
    Board,
    /// An order for a group.
    Group(Box<str>),
    /// An order for the board.
    Node,
}

/// A value that is laid over.
#[derive(Clone, PartialEq, Eq)]
pub struct Given {
    pub text: Arc<str>,
    /// From a file of the board.
    pub is_secret: bool,
}

pub type Values = BTreeMap<String, Given>;

/// The values of one origin.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layer {
    pub all: Values,
    /// For topics that a filter matches, in the order in which they apply.
    pub topics: BTreeMap<TopicText, Values>,
}

/// A filter in the order in which its values apply: those with wildcards first, exact topics last.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TopicText {
    is_exact: bool,
    text: String,
}

/// All layers over one function, in the order of their precedence.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overlay(Vec<(Origin, Layer)>);

/// A setting as it is in force.
#[derive(Clone, PartialEq, Eq)]
pub struct Setting {
    pub text: Arc<str>,
    pub origin: Origin,
    /// Not to be shown.
    pub is_secret: bool,
}

/// A value that the function does not take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    pub name: String,
    pub topic: Option<String>,
    pub origin: Origin,
    pub invalid: Invalid,
    /// The function has no such setting. It may have had it in another version.
    pub is_unknown: bool,
}

/// The settings of one version: its own with the layers over them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resolved {
    pub all: BTreeMap<String, Setting>,
    /// What differs for topics that a filter matches. Later ones replace earlier ones.
    pub topics: Vec<(TopicFilter, BTreeMap<String, Setting>)>,
    /// Left out.
    pub refused: Vec<Refused>,
    /// Declared without a value, and not laid over, not even wrongly.
    pub missing: Vec<String>,
}

/// What a worker is given.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    pub all: Vec<(String, String)>,
    pub topics: Vec<(TopicFilter, Vec<(String, String)>)>,
}

impl TopicText {
    pub fn new(filter: &TopicFilter) -> Self {
        let text = filter.as_str().to_owned();
        Self { is_exact: !text.contains(['+', '#']), text }
    }

    pub fn as_str(&self) -> &str {
        &self.text
    }

    fn filter(&self) -> Option<TopicFilter> {
        self.text.parse().ok()
    }
}

impl TryFrom<String> for TopicText {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        TopicFilter::parse(&text).map(|filter| Self::new(&filter)).map_err(|error| error.to_string())
    }
}

impl From<TopicText> for String {
    fn from(topic: TopicText) -> Self {
        topic.text
    }
}

impl Layer {
    pub fn is_empty(&self) -> bool {
        self.all.is_empty() && self.topics.values().all(BTreeMap::is_empty)
    }

    /// Its values, with the topics that they are for.
    pub fn values(&self) -> impl Iterator<Item = (Option<&TopicText>, &String, &Given)> {
        let all = self.all.iter().map(|(name, given)| (None, name, given));
        let of_topics = self
            .topics
            .iter()
            .flat_map(|(topic, values)| values.iter().map(move |(name, given)| (Some(topic), name, given)));
        all.chain(of_topics)
    }

    /// Values that the function does not take, with the reason.
    pub fn refused(&self, origin: &Origin, manifest: &Manifest) -> Vec<Refused> {
        let refused = |(topic, name, given): (Option<&TopicText>, &String, &Given)| {
            let invalid = check(manifest, name, given).err()?;
            let topic = topic.map(|topic| topic.as_str().to_owned());
            let is_unknown = !manifest.has_setting(name);
            Some(Refused { name: name.clone(), topic, origin: origin.clone(), invalid, is_unknown })
        };
        self.values().filter_map(refused).collect()
    }
}

impl Overlay {
    /// `layers` in the order of their precedence.
    pub fn new(layers: impl IntoIterator<Item = (Origin, Layer)>) -> Self {
        Self(layers.into_iter().filter(|(_, layer)| !layer.is_empty()).collect())
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The layers of other origins.
    pub fn without(self, origin: &Origin) -> Vec<(Origin, Layer)> {
        self.0.into_iter().filter(|(other, _)| other != origin).collect()
    }

    /// The settings of a version. What it does not take is left out.
    pub fn resolve(&self, manifest: &Manifest) -> Resolved {
        let own = |(name, text): (&String, &String)| {
            (name.clone(), Setting { text: text.as_str().into(), origin: Origin::Function, is_secret: false })
        };
        let mut resolved = Resolved { all: manifest.config.iter().map(own).collect(), ..Resolved::default() };
        for (origin, layer) in &self.0 {
            resolved.refused.extend(layer.refused(origin, manifest));
            resolved.all.extend(taken(origin, &layer.all, manifest));
            for (topic, values) in &layer.topics {
                let values: BTreeMap<String, Setting> = taken(origin, values, manifest).collect();
                resolved.topics.extend(topic.filter().filter(|_| !values.is_empty()).map(|filter| (filter, values)));
            }
        }
        let has_value = |name: &String| {
            resolved.all.contains_key(name) || resolved.refused.iter().any(|it| it.topic.is_none() && it.name == *name)
        };
        resolved.missing = manifest.settings.keys().filter(|name| !has_value(name)).cloned().collect();
        resolved
    }
}

fn taken(origin: &Origin, values: &Values, manifest: &Manifest) -> impl Iterator<Item = (String, Setting)> {
    values.iter().filter(|(name, given)| check(manifest, name, given).is_ok()).map(|(name, given)| {
        let is_secret = given.is_secret || manifest.declaration(name).is_some_and(|declaration| declaration.secret);
        (name.clone(), Setting { text: Arc::clone(&given.text), origin: origin.clone(), is_secret })
    })
}

fn check(manifest: &Manifest, name: &str, given: &Given) -> Result<(), Invalid> {
    if manifest.declaration(name).is_some_and(|declaration| declaration.secret) && !given.is_secret {
        let invalid = Invalid::new("declared as secret, and only a file of the board may hold it");
        return Err(invalid.hint(format!("in the board's configuration write {name} = {{ file = \"...\" }}")));
    }
    let checked = manifest.check_setting(name, &given.text);
    // Where no declaration says that it is one, the file says so.
    checked.map_err(|invalid| {
        if given.is_secret { Invalid { what: "the value in its file is not good".into(), ..invalid } } else { invalid }
    })
}

impl Resolved {
    /// What a worker is given.
    pub fn settings(&self) -> Settings {
        let plain = |settings: &BTreeMap<String, Setting>| -> Vec<(String, String)> {
            settings.iter().map(|(name, setting)| (name.clone(), setting.text.to_string())).collect()
        };
        let topics = self.topics.iter().map(|(filter, settings)| (filter.clone(), plain(settings))).collect();
        Settings { all: plain(&self.all), topics }
    }
}

impl Settings {
    /// The settings for a message, where they are not those of all topics.
    pub fn of_topic(&self, topic: &str) -> Option<Vec<(String, String)>> {
        let mut matching = self.topics.iter().filter(|(filter, _)| filter.matches(topic)).peekable();
        matching.peek()?;
        let mut settings: BTreeMap<&str, &str> = self.all.iter().map(|(name, text)| (&**name, &**text)).collect();
        for (name, text) in matching.flat_map(|(_, settings)| settings) {
            settings.insert(name, text);
        }
        Some(settings.into_iter().map(|(name, text)| (name.to_owned(), text.to_owned())).collect())
    }
}

impl fmt::Debug for Given {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_secret { f.write_str("(secret)") } else { self.text.fmt(f) }
    }
}

impl fmt::Debug for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} of {}", Given { text: Arc::clone(&self.text), is_secret: self.is_secret }, self.origin)
    }
}

/// Names only: a value may be secret.
impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.all.iter().map(|(name, _)| name)).finish()
    }
}

impl Origin {
    /// The word in reports.
    pub fn word(&self) -> String {
        match self {
            Self::Function => "function".into(),
            Self::Board => "board".into(),
            Self::Group(group) => format!("group {group}"),
            Self::Node => "node".into(),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Function => f.write_str("function.toml"),
            Self::Board => f.write_str("the board's file"),
            Self::Group(group) => write!(f, "the order for group {group}"),
            Self::Node => f.write_str("the order for this board"),
        }
    }
}

/// `setting max (the board's file): "300" is above 200; use a number of at most 200`
impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "setting {}", self.name)?;
        self.topic.iter().try_for_each(|topic| write!(f, " for {topic}"))?;
        write!(f, " ({}): {}", self.origin, self.invalid)
    }
}
