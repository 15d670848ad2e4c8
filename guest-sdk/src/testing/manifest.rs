//! What a test board needs of `function.toml`.

use std::borrow::ToOwned;
use std::collections::BTreeMap;
use std::string::{String, ToString};
use std::vec::Vec;
use std::{format, vec};

use crate::JsonArray;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Scope {
    #[default]
    None,
    Topic,
    Function,
}

#[derive(Debug, Default)]
pub(super) struct Manifest {
    pub name: String,
    pub subscribe: Vec<String>,
    /// Topics that `subscribe` would hear, and the function does not.
    pub except: Vec<String>,
    /// Topics of requests over HTTP, as filters.
    pub requests: Vec<String>,
    pub scope: Scope,
    pub publish: Vec<String>,
    /// `None`: all topics but the board's own.
    pub forward: Option<Vec<String>>,
    /// `None`: all topics that it may send to.
    pub retain: Option<Vec<String>>,
    /// Whether it has ticks.
    pub every: bool,
    /// Whether it is called about silent topics, and when they speak again.
    pub silence: bool,
    pub back: bool,
    /// Names of schedules; an empty one is that of the function, and `*` any.
    pub schedules: Vec<String>,
    pub clock: bool,
    pub random: bool,
    pub max_outputs: usize,
    pub max_output_bytes: usize,
    pub max_state_bytes: usize,
    pub settings: BTreeMap<String, String>,
}

enum Value {
    Text(String),
    /// A number, `true` or `false`, without underscores.
    Word(String),
    List(Vec<Self>),
    Table(Vec<(Vec<String>, Self)>),
}

impl Value {
    /// As a board passes an entry of a list to the function.
    fn json(&self) -> Option<String> {
        match self {
            Self::Text(text) => {
                let list = JsonArray::new().text(text).into_string();
                Some(list[1..list.len() - 1].to_owned())
            }
            Self::Word(word) => Some(word.strip_prefix('+').unwrap_or(word).to_owned()),
            Self::List(list) => {
                let entries: Option<Vec<String>> = list.iter().map(Self::json).collect();
                Some(format!("[{}]", entries?.join(",")))
            }
            Self::Table(_) => None,
        }
    }

    fn texts(self) -> Option<Vec<String>> {
        let Self::List(list) = self else { return None };
        list.into_iter().map(|entry| if let Self::Text(text) = entry { Some(text) } else { None }).collect()
    }
}

impl Manifest {
    pub(super) fn permissive() -> Self {
        Self {
            name: "function".to_owned(),
            subscribe: vec!["#".to_owned(), "$SYS/#".to_owned()],
            requests: vec!["$http/#".to_owned()],
            scope: Scope::Topic,
            publish: vec!["#".to_owned()],
            every: true,
            silence: true,
            back: true,
            schedules: vec!["*".to_owned()],
            clock: true,
            random: true,
            ..Self::of_defaults()
        }
    }

    fn of_defaults() -> Self {
        Self { max_outputs: 64, max_output_bytes: 65_536, max_state_bytes: 65_536, ..Self::default() }
    }

    /// Reads the part of TOML that manifests are written in: tables, keys with dots and quotes, strings on one line, numbers, and
    /// arrays of strings.
    pub(super) fn parse(toml: &str) -> Result<Self, String> {
        let mut manifest = Self::of_defaults();
        let mut table = Vec::new();
        let mut lines = toml.lines().enumerate();
        while let Some((number, line)) = lines.next() {
            let at = |why: &str| format!("line {}: {why}", number + 1);
            let line = without_comment(line).trim().to_owned();
            if line.is_empty() {
                continue;
            }
            if let Some(name) = line.strip_prefix('[') {
                let name = name.strip_suffix(']').ok_or_else(|| at("a table without its end"))?;
                table = keys(name).ok_or_else(|| at("not a name of a table"))?.0;
                continue;
            }
            let (mut path, rest) = keys(&line).ok_or_else(|| at("not a key"))?;
            let mut text = rest.strip_prefix('=').ok_or_else(|| at("a key without a value"))?.trim().to_owned();
            let value = loop {
                match value(&text) {
                    Some((value, "")) => break value,
                    // An array may go on in the next line.
                    _ if text.starts_with(['[', '{']) => {
                        let (_, more) = lines.next().ok_or_else(|| at("not a value"))?;
                        text.push_str(without_comment(more).trim());
                    }
                    _ => return Err(at("not a value")),
                }
            };
            path.splice(0..0, table.iter().cloned());
            manifest.set(&path, value).map_err(|why| at(&why))?;
        }
        if manifest.name.is_empty() {
            return Err("name is missing".to_owned());
        }
        Ok(manifest)
    }

    fn set(&mut self, path: &[String], value: Value) -> Result<(), String> {
        let names: Vec<&str> = path.iter().map(String::as_str).collect();
        match (&names[..], value) {
            (["name"], Value::Text(text)) => self.name = text,
            (["subscribe"], value) => self.subscribe = texts("subscribe", value)?,
            (["except"], value) => self.except = texts("except", value)?,
            (["http"], value) => self.requests = requests(value)?,
            (["http_headers"], Value::List(_)) | (["sink"], Value::Text(_)) => {}
            (["state"], Value::Text(text)) => {
                self.scope = match text.as_str() {
                    "none" => Scope::None,
                    "topic" => Scope::Topic,
                    "function" => Scope::Function,
                    _ => return Err(format!("state = {text:?}: none, topic or function")),
                }
            }
            (["allow", "publish"], value) => self.publish = texts("allow.publish", value)?,
            (["allow", "retain"], Value::Word(word)) => self.retain = (word == "false").then(Vec::new),
            (["allow", "forward"], value) => self.forward = Some(texts("allow.forward", value)?),
            (["allow", "retain"], value) => self.retain = Some(texts("allow.retain", value)?),
            (["allow", "clock"], Value::Word(word)) => self.clock = word == "true",
            (["allow", "random"], Value::Word(word)) => self.random = word == "true",
            (["limits", limit], Value::Word(word)) => {
                let figure = word.parse().map_err(|_| format!("{word} is not a limit"))?;
                match *limit {
                    "outputs" => self.max_outputs = figure,
                    "output_bytes" => self.max_output_bytes = figure,
                    "state_bytes" => self.max_state_bytes = figure,
                    // Not counted natively.
                    _ => {}
                }
            }
            (["config", keys @ ..], value) => self.set_config(keys.join("."), value)?,
            (["every"], Value::Text(_)) => self.every = true,
            (["silence", "after"], Value::Text(_)) => self.silence = true,
            (["silence", "back"], Value::Word(word)) => self.back = word == "true",
            (["silence", "expect" | "names" | "max_topics"], _) => {}
            (["at"], Value::Text(_) | Value::List(_)) => self.schedules.push(String::new()),
            (["at"], Value::Table(entries)) => {
                self.schedules.extend(entries.into_iter().map(|(path, _)| path.join(".")))
            }
            (["at", name], Value::Text(_) | Value::List(_)) => self.schedules.push((*name).into()),
            (["zone" | "catch_up"], Value::Text(_)) => {}
            (["version" | "component"], Value::Text(_))
            | (["serial"], Value::Word(_))
            | (["trial" | "build", _] | ["settings", ..], _) => {}
            (names, _) => return Err(format!("{} is not a key of a manifest, or has another kind", names.join("."))),
        }
        Ok(())
    }

    /// Sections are names with dots, and lists are JSON, as on a board.
    fn set_config(&mut self, name: String, value: Value) -> Result<(), String> {
        let text = match value {
            Value::Text(text) => text,
            Value::Word(word) => word.parse::<i64>().map_or(word, |number| number.to_string()),
            Value::List(_) => value.json().ok_or_else(|| format!("{name}: a section in a list is not read here"))?,
            Value::Table(entries) => {
                for (path, value) in entries {
                    self.set_config(format!("{name}.{}", path.join(".")), value)?;
                }
                return Ok(());
            }
        };
        match self.settings.insert(name.clone(), text) {
            None => Ok(()),
            Some(_) => Err(format!("config.{name} is set twice")),
        }
    }
}

fn texts(key: &str, value: Value) -> Result<Vec<String>, String> {
    value.texts().ok_or_else(|| format!("{key} is a list of texts"))
}

/// The topics of `POST /readings/{sensor}`: `$http/readings/+`.
fn requests(value: Value) -> Result<Vec<String>, String> {
    let filter = |route: String| {
        let (_, path) = route.split_once(' ').ok_or_else(|| format!("http: {route:?} has no method"))?;
        let level = |level: &str| if level.starts_with('{') { "+".to_owned() } else { level.to_owned() };
        Ok(format!("$http{}", path.split('/').map(level).collect::<Vec<_>>().join("/")))
    };
    texts("http", value)?.into_iter().map(filter).collect()
}

fn without_comment(line: &str) -> &str {
    let mut quote = None;
    for (index, char) in line.char_indices() {
        match (char, quote) {
            ('#', None) => return &line[..index],
            ('"' | '\'', None) => quote = Some(char),
            (_, Some(open)) if open == char && !(open == '"' && line[..index].ends_with('\\')) => quote = None,
            _ => {}
        }
    }
    line
}

/// A key with its dots, and what follows it.
fn keys(text: &str) -> Option<(Vec<String>, &str)> {
    let mut keys = Vec::new();
    let mut rest = text.trim_start();
    loop {
        if rest.starts_with(['"', '\'']) {
            let (key, after) = string(rest)?;
            keys.push(key);
            rest = after;
        } else {
            let end = rest.find(|char: char| !char.is_ascii_alphanumeric() && !matches!(char, '-' | '_'));
            let (key, after) = rest.split_at(end.unwrap_or(rest.len()));
            if key.is_empty() {
                return None;
            }
            keys.push(key.to_owned());
            rest = after;
        }
        rest = rest.trim_start();
        match rest.strip_prefix('.') {
            Some(after) => rest = after.trim_start(),
            None => return Some((keys, rest)),
        }
    }
}

/// A value, and what follows it.
fn value(text: &str) -> Option<(Value, &str)> {
    if text.starts_with(['"', '\'']) {
        let (text, rest) = string(text)?;
        return Some((Value::Text(text), rest));
    }
    if let Some(rest) = text.strip_prefix('[') {
        let (list, rest) = entries(rest, ']', value)?;
        return Some((Value::List(list), rest));
    }
    if let Some(rest) = text.strip_prefix('{') {
        let entry = |text| {
            let (path, rest) = keys(text)?;
            let (value, rest) = value(rest.strip_prefix('=')?.trim_start())?;
            Some(((path, value), rest))
        };
        let (table, rest) = entries(rest, '}', entry)?;
        return Some((Value::Table(table), rest));
    }
    let (word, rest) = text.split_at(text.find([',', ']', '}']).unwrap_or(text.len()));
    let word = word.trim_end().replace('_', "");
    let valid = matches!(word.as_str(), "true" | "false") || word.parse::<f64>().is_ok();
    valid.then_some((Value::Word(word), rest))
}

/// Entries with commas between them, up to the end of their list.
fn entries<'t, T>(
    text: &'t str,
    end: char,
    read: impl Fn(&'t str) -> Option<(T, &'t str)>,
) -> Option<(Vec<T>, &'t str)> {
    let mut list = Vec::new();
    let mut rest = text.trim_start();
    loop {
        if let Some(rest) = rest.strip_prefix(end) {
            return Some((list, rest.trim_start()));
        }
        let (entry, after) = read(rest)?;
        list.push(entry);
        rest = match after.trim_start() {
            after if after.starts_with(end) => after,
            after => after.strip_prefix(',')?.trim_start(),
        };
    }
}

/// A string in either quotes, and what follows it.
fn string(text: &str) -> Option<(String, &str)> {
    let quote = text.chars().next()?;
    let mut out = String::new();
    let mut chars = text[1..].char_indices();
    while let Some((index, char)) = chars.next() {
        match char {
            _ if char == quote => return Some((out, text[index + 2..].trim_start())),
            '\\' if quote == '"' => out.push(match chars.next()?.1 {
                'n' => '\n',
                't' => '\t',
                escaped @ ('"' | '\\') => escaped,
                _ => return None,
            }),
            _ => out.push(char),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_manifests_as_they_are_written() {
        let manifest = Manifest::parse(
            "# A comment.\nname = \"a\" # another\nversion = '1'\nserial = 1_000\nsubscribe = [\n  \"a/#\", # all\n  'b/+',\n]\n\
             state = \"function\"\nevery = \"5m\"\nallow.publish = []\n[allow]\nclock = true\n[limits]\noutputs = 1_0\n\
             fuel = 5\n[trial]\nmode = \"live\"\n[config]\n\"a.b\" = \"x # y \\\" z\"\nn = -1_0.5\n\
             list = [1, \"b]\", +2.50, # c\n  [true], ]\nkiln = { max = +9_00, zones.top = 'z' }\nnone = []\n\
             [config.oven]\nmax = 240\n[settings.oven.max]\ntype = \"number\"\nmin = -40\n",
        )
        .unwrap();
        assert_eq!(manifest.subscribe, ["a/#", "b/+"]);
        assert_eq!((manifest.scope, manifest.clock, manifest.random), (Scope::Function, true, false));
        assert_eq!((manifest.max_outputs, manifest.max_state_bytes), (10, 65_536));
        let settings: Vec<_> = manifest.settings.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        assert_eq!(
            settings,
            [
                ("a.b", "x # y \" z"),
                ("kiln.max", "900"),
                ("kiln.zones.top", "z"),
                ("list", "[1,\"b]\",2.50,[true]]"),
                ("n", "-10.5"),
                ("none", "[]"),
                ("oven.max", "240"),
            ]
        );
    }

    #[test]
    fn names_the_line_of_a_mistake() {
        for (toml, line) in [
            ("name = \"a\"\nstate = \"topics\"", "line 2"),
            ("name = \"a\"\nsubscribe = \"a\"", "line 2"),
            ("name = a", "line 1"),
            ("name", "line 1"),
            ("[allow", "line 1"),
            ("naem = \"a\"", "line 1"),
            ("name = \"a\"\nexcept = [1]", "line 2"),
            ("name = \"a\"\nsubscribe = [\"a\"", "line 2"),
            (
                "name = \"a\"\n[config]\n\"oven.max\" = 1\n[config.oven]\nmax = 2",
                "line 5: config.oven.max is set twice",
            ),
            ("name = \"a\"\nconfig.x = [{ a = 1 }]", "line 2: x: a section in a list"),
            ("", "name is missing"),
        ] {
            let error = Manifest::parse(toml).unwrap_err();
            assert!(error.contains(line), "{toml}: {error}");
        }
    }
}
