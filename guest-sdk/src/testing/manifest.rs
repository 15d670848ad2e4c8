//! What a test board needs of `function.toml`.

use std::borrow::ToOwned;
use std::collections::BTreeMap;
use std::string::{String, ToString};
use std::vec::Vec;
use std::{format, vec};

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
    pub scope: Scope,
    pub publish: Vec<String>,
    /// Whether it has ticks.
    pub every: bool,
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
    List(Vec<String>),
}

impl Manifest {
    pub(super) fn permissive() -> Self {
        Self {
            name: "function".to_owned(),
            subscribe: vec!["#".to_owned(), "$SYS/#".to_owned()],
            scope: Scope::Topic,
            publish: vec!["#".to_owned()],
            every: true,
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
            while text.starts_with('[') && !text.ends_with(']') {
                let (_, more) = lines.next().ok_or_else(|| at("an array without its end"))?;
                text.push_str(without_comment(more).trim());
            }
            path.splice(0..0, table.iter().cloned());
            manifest.set(&path, value(&text).ok_or_else(|| at("not a value"))?).map_err(|why| at(&why))?;
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
            (["subscribe"], Value::List(list)) => self.subscribe = list,
            (["state"], Value::Text(text)) => {
                self.scope = match text.as_str() {
                    "none" => Scope::None,
                    "topic" => Scope::Topic,
                    "function" => Scope::Function,
                    _ => return Err(format!("state = {text:?}: none, topic or function")),
                }
            }
            (["allow", "publish"], Value::List(list)) => self.publish = list,
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
            (["config", keys @ ..], value) => {
                let text = match value {
                    Value::Text(text) | Value::Word(text) => text,
                    Value::List(list) => format!("{list:?}"),
                };
                self.settings.insert(keys.join("."), text);
            }
            (["every"], Value::Text(_)) => self.every = true,
            (["version" | "component"], Value::Text(_)) | (["serial"], Value::Word(_)) | (["trial", _], _) => {}
            (names, _) => return Err(format!("{} is not a key of a manifest, or has another kind", names.join("."))),
        }
        Ok(())
    }
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

fn value(text: &str) -> Option<Value> {
    if text.starts_with(['"', '\'']) {
        let (text, rest) = string(text)?;
        return rest.is_empty().then_some(Value::Text(text));
    }
    let Some(inner) = text.strip_prefix('[') else {
        let word = text.replace('_', "");
        let valid = matches!(word.as_str(), "true" | "false") || word.parse::<f64>().is_ok();
        return valid.then_some(Value::Word(word));
    };
    let mut rest = inner.strip_suffix(']')?.trim();
    let mut list = Vec::new();
    while !rest.is_empty() {
        let after = if rest.starts_with(['"', '\'']) {
            let (entry, after) = string(rest)?;
            list.push(entry);
            after
        } else {
            let end = rest.find(',').unwrap_or(rest.len());
            list.push(rest[..end].trim().to_string());
            &rest[end..]
        };
        rest = match after.trim_start() {
            "" => "",
            after => after.strip_prefix(',')?.trim_start(),
        };
    }
    Some(Value::List(list))
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
             fuel = 5\n[trial]\nmode = \"live\"\n[config]\n\"a.b\" = \"x # y \\\" z\"\nn = -1_0.5\nlist = [1, \"b\"]\n\
             [config.oven]\nmax = 240\n",
        )
        .unwrap();
        assert_eq!(manifest.subscribe, ["a/#", "b/+"]);
        assert_eq!((manifest.scope, manifest.clock, manifest.random), (Scope::Function, true, false));
        assert_eq!((manifest.max_outputs, manifest.max_state_bytes), (10, 65_536));
        let settings: Vec<_> = manifest.settings.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        assert_eq!(settings, [("a.b", "x # y \" z"), ("list", "[\"1\", \"b\"]"), ("n", "-10.5"), ("oven.max", "240")]);
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
            ("", "name is missing"),
        ] {
            let error = Manifest::parse(toml).unwrap_err();
            assert!(error.contains(line), "{toml}: {error}");
        }
    }
}
