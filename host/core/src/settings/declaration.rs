//! Declarations of settings: `[settings.<name>]` of `function.toml`.

use std::collections::BTreeMap;
use std::fmt;
use std::hash::{Hash, Hasher};

use serde::{Serialize, Serializer};

use crate::config::document::{Item, Table, Value};
use crate::config::problem::{Invalid, Problems};
use crate::config::reader::{Read, Section, choice, refuse, wrong_kind};
use crate::manifest::Manifest;

/// Longest value of a setting.
pub const MAX_VALUE_BYTES: usize = 8192;

/// Integers beyond it have no exact floating-point number.
const MAX_BOUND: f64 = 9_007_199_254_740_992.0;

/// What a function says about one of its settings.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Declaration {
    #[serde(rename = "type")]
    pub kind: Kind,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min: Option<Bound>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max: Option<Bound>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    /// What it is for, in the author's words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// The texts that it may be. Empty: any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<String>,
    /// Comes from a file of the board, and is never shown.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub secret: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Number,
    Integer,
    Boolean,
    #[default]
    Text,
    List,
}

/// A finite number that ends a range.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bound(f64);

/// A value and the declaration that it breaks.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Shown<'v> {
    Value(&'v str),
    Secret,
}

impl Declaration {
    fn of(kind: Kind) -> Self {
        Self { kind, min: None, max: None, unit: None, text: None, values: Vec::new(), secret: false }
    }

    /// Checks a value as the function is given it. The error says what the function asks for.
    pub(crate) fn check(&self, value: &str) -> Result<(), Invalid> {
        let shown = if self.secret { Shown::Secret } else { Shown::Value(value) };
        let wrong = |what: String| Err(Invalid::new(what).hint(format!("use {self}")));
        let number = match self.kind {
            Kind::Number => match value.parse::<f64>().ok().filter(|number| number.is_finite()) {
                Some(number) => number,
                None => return wrong(format!("{shown} is not a number")),
            },
            Kind::Integer => match value.parse::<i64>() {
                Ok(number) => number as f64,
                Err(_) => return wrong(format!("{shown} is not a whole number")),
            },
            Kind::Boolean if !matches!(value, "true" | "false") => {
                return wrong(format!("{shown} is neither true nor false"));
            }
            Kind::List if serde_json::from_str::<Vec<serde::de::IgnoredAny>>(value).is_err() => {
                return wrong(format!("{shown} is not a list"));
            }
            Kind::Text if !self.values.is_empty() && self.values.iter().all(|known| known != value) => {
                return wrong(format!("{shown} is none of its values"));
            }
            Kind::Boolean | Kind::List | Kind::Text => return Ok(()),
        };
        match (self.min, self.max) {
            (Some(min), _) if number < min.0 => wrong(format!("{shown} is below {min}")),
            (_, Some(max)) if number > max.0 => wrong(format!("{shown} is above {max}")),
            _ => Ok(()),
        }
    }
}

/// What the function asks for: `a number from -40 to 200 °C (alert above it)`.
impl fmt::Display for Declaration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.kind {
            Kind::Number => "a number",
            Kind::Integer => "a whole number",
            Kind::Boolean => "true or false",
            Kind::Text if !self.values.is_empty() => "one of ",
            Kind::Text => "a text",
            Kind::List => "a list",
        })?;
        for (n, value) in self.values.iter().enumerate() {
            write!(f, "{}{value:?}", if n == 0 { "" } else { ", " })?;
        }
        match (self.min, self.max) {
            (Some(min), Some(max)) => write!(f, " from {min} to {max}")?,
            (Some(min), None) => write!(f, " of at least {min}")?,
            (None, Some(max)) => write!(f, " of at most {max}")?,
            (None, None) => {}
        }
        self.unit.iter().try_for_each(|unit| write!(f, " {unit}"))?;
        self.text.iter().try_for_each(|text| write!(f, " ({text})"))
    }
}

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Value(value) if value.len() > 64 => write!(f, "{:?}...", &value[..value.floor_char_boundary(64)]),
            Self::Value(value) => write!(f, "{value:?}"),
            Self::Secret => f.write_str("its secret value"),
        }
    }
}

impl Manifest {
    /// The declaration of a setting. A setting of a section, `oven.max`, has that of `max` if it has none of its own.
    pub fn declaration(&self, name: &str) -> Option<&Declaration> {
        self.settings.get(name).or_else(|| self.settings.get(last(name)?))
    }

    /// Whether the function says that it has such a setting. The SDK reads `oven.max` in section `oven`, and `max` behind it.
    pub fn has_setting(&self, name: &str) -> bool {
        let mut names = [Some(name), last(name)].into_iter().flatten();
        names.any(|name| self.settings.contains_key(name) || self.config.contains_key(name))
    }

    /// Checks a value that is to be laid over `[config]`.
    pub fn check_setting(&self, name: &str, value: &str) -> Result<(), Invalid> {
        if value.len() > MAX_VALUE_BYTES {
            let invalid = Invalid::new(format!("{} bytes are too long for a setting", value.len()));
            return Err(invalid.hint(format!("use at most {MAX_VALUE_BYTES}")));
        }
        if let Some(declaration) = self.declaration(name) {
            return declaration.check(value);
        }
        if self.has_setting(name) {
            return Ok(());
        }
        let mut known: Vec<&str> = self.settings.keys().chain(self.config.keys()).map(|name| &**name).collect();
        known.sort_unstable();
        known.dedup();
        let invalid = Invalid::new(format!("{} has no such setting", self.name));
        Err(match crate::config::nearest(name, &known) {
            Some(near) => invalid.hint(format!("did you mean {near}?")),
            None if known.is_empty() => invalid.hint("function.toml has neither [settings] nor [config]"),
            None => invalid.hint(format!("it has {}", known.join(", "))),
        })
    }
}

/// The name behind the section's.
fn last(name: &str) -> Option<&str> {
    name.rsplit_once('.').map(|(_, last)| last)
}

/// Reads declarations, and those of nested sections under names with dots, as in `[config]`.
pub(crate) fn read(section: &mut Section<'_, '_>, prefix: &str, into: &mut BTreeMap<String, Declaration>) {
    for (key, item) in section.entries() {
        let name = format!("{prefix}{key}");
        match &item.value {
            Value::Table(table) if is_group(table) => {
                section.section(key, |section| read(section, &format!("{name}."), into));
            }
            Value::Table(_) => {
                let mut declaration = Declaration::of(Kind::Text);
                section.section(key, |section| read_one(section, &mut declaration));
                if into.insert(name, declaration).is_some() {
                    let invalid = Invalid::new("declared twice: as a name with dots and in a section");
                    section.error(key, invalid.hint("remove one"));
                }
            }
            // Reports that a section is expected.
            _ => section.section(key, |_| {}),
        }
    }
}

/// Whether a section holds declarations, and is none itself.
fn is_group(table: &Table) -> bool {
    !table.entries.is_empty() && table.entries.iter().all(|entry| matches!(entry.item.value, Value::Table(_)))
}

fn read_one(section: &mut Section<'_, '_>, declaration: &mut Declaration) {
    section.require("type", "\"number\"");
    let is_good = section.value("type", &mut declaration.kind);
    section.optional("min", &mut declaration.min);
    section.optional("max", &mut declaration.max);
    section.optional("unit", &mut declaration.unit);
    section.optional("text", &mut declaration.text);
    section.value("values", &mut declaration.values);
    section.value("secret", &mut declaration.secret);
    if !is_good {
        return;
    }
    let is_number = matches!(declaration.kind, Kind::Number | Kind::Integer);
    for key in ["min", "max", "unit"] {
        if section.has(key) && !is_number {
            section.error(
                key,
                Invalid::new("only for numbers").hint("set type = \"number\" or \"integer\", or remove it"),
            );
        }
    }
    if section.has("values") && declaration.kind != Kind::Text {
        section.error("values", Invalid::new("only for texts").hint("set type = \"text\", or remove it"));
    }
    if let (Some(min), Some(max)) = (declaration.min, declaration.max)
        && min.0 > max.0
    {
        section.error("min", Invalid::new(format!("{min} is above max ({max})")).hint("lower it, or raise max"));
    }
}

impl Read for Kind {
    fn read(item: &Item, key: &str, problems: &mut Problems) -> Option<Self> {
        let words = [
            ("number", Self::Number),
            ("integer", Self::Integer),
            ("boolean", Self::Boolean),
            ("text", Self::Text),
            ("list", Self::List),
        ];
        choice(item, key, &words, problems)
    }
}

impl Read for Bound {
    fn read(item: &Item, key: &str, problems: &mut Problems) -> Option<Self> {
        let number = match &item.value {
            Value::Integer(number) => *number as f64,
            Value::Float(text) => text.parse().unwrap_or(f64::NAN),
            _ => return wrong_kind(item, key, "a number", problems),
        };
        if (-MAX_BOUND..=MAX_BOUND).contains(&number) {
            return Some(Self(number + 0.0));
        }
        let invalid = Invalid::new("out of range").hint(format!("use a number from -{MAX_BOUND} to {MAX_BOUND}"));
        refuse(item, key, invalid, problems)
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Without a fraction it is written as the integer that it is: equal manifests give equal bytes.
impl Serialize for Bound {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.fract() == 0.0 {
            true => serializer.serialize_i64(self.0 as i64),
            false => serializer.serialize_f64(self.0),
        }
    }
}

// A bound is finite.
impl Eq for Bound {}

impl Hash for Bound {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.to_bits().hash(state);
    }
}
