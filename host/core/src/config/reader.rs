//! Typed reading of a [`Table`] that continues after a mistake. The set of known keys is the set of keys that were asked
//! for; no list of them is kept.

use std::num::{NonZeroU16, NonZeroU32, NonZeroU64, NonZeroUsize};
use std::path::{Path, PathBuf};

use super::check::{Content, NamedFile};
use super::document::{Item, Table, Value};
use super::problem::{Invalid, Location, Problem, Problems, Severity};

/// A value that a key can have.
pub(crate) trait Read: Sized {
    /// `None` when a problem was pushed.
    fn read(item: &Item, key: &str, problems: &mut Problems) -> Option<Self>;
}

/// What reading a whole document collects beside the values.
#[derive(Default)]
pub(crate) struct Reader {
    pub(crate) problems: Problems,
    /// Every key that was asked for, in full, in the order of asking.
    pub(crate) keys: Vec<String>,
    /// Files and folders that values name, not inspected yet.
    pub(crate) files: Vec<NamedFile>,
    unknown: Vec<(String, String, Location)>,
}

/// One section of the file. Sections that the file lacks are read too, so that defaults apply and their keys are known.
pub(crate) struct Section<'r, 'd> {
    reader: &'r mut Reader,
    path: String,
    table: Option<&'d Table>,
    at: Location,
}

impl Reader {
    /// Reads a whole document. Unknown keys are reported last, when all sections are known: a key in the wrong section is
    /// a frequent mistake.
    pub(crate) fn run<'d>(table: &'d Table, read: impl FnOnce(&mut Section<'_, 'd>)) -> Self {
        let mut reader = Self::default();
        reader.section(String::new(), Some(table), table.at.clone(), read);
        for (path, key, at) in std::mem::take(&mut reader.unknown) {
            let invalid = unknown_key(&reader.keys, &path, &key);
            reader.problems.push(Problem::error(at, join(&path, &key), invalid));
        }
        reader.problems.sort();
        reader
    }

    fn section<'d>(
        &mut self,
        path: String,
        table: Option<&'d Table>,
        at: Location,
        read: impl FnOnce(&mut Section<'_, 'd>),
    ) {
        read(&mut Section { reader: self, path: path.clone(), table, at });
        for entry in table.map(|table| &table.entries[..]).unwrap_or_default() {
            let full = join(&path, &entry.key);
            if !self.keys.contains(&full) {
                self.unknown.push((path.clone(), entry.key.clone(), entry.at.clone()));
            }
        }
    }
}

impl<'d> Section<'_, 'd> {
    pub(crate) fn section(&mut self, key: &str, read: impl FnOnce(&mut Section<'_, 'd>)) {
        let item = self.item(key);
        let path = join(&self.path, key);
        let (table, at) = match item {
            None => (None, self.at.clone()),
            Some(Item { at, value: Value::Table(table) }) => (Some(table), at.clone()),
            Some(item) => {
                let hint = format!("write it as [{path}]");
                self.error(key, Invalid::new(format!("expected a section, found {}", item.value.kind())).hint(hint));
                (None, self.at.clone())
            }
        };
        self.reader.section(path, table, at, read);
    }

    pub(crate) fn has(&self, key: &str) -> bool {
        self.entry(key).is_some()
    }

    /// The value as parsed. Makes the key a known one.
    pub(crate) fn item(&mut self, key: &str) -> Option<&'d Item> {
        let full = join(&self.path, key);
        if !self.reader.keys.contains(&full) {
            self.reader.keys.push(full);
        }
        self.entry(key)
    }

    /// The entries of a section whose keys are free.
    pub(crate) fn entries(&mut self) -> Vec<(&'d str, &'d Item)> {
        let entries = self.table.map(|table| &table.entries[..]).unwrap_or_default();
        entries.iter().filter_map(|entry| Some((&*entry.key, self.item(&entry.key)?))).collect()
    }

    /// Leaves `into` alone when the key is absent. Returns whether a good value was read.
    pub(crate) fn value<T: Read>(&mut self, key: &str, into: &mut T) -> bool {
        self.read(key, T::read).map(|value| *into = value).is_some()
    }

    pub(crate) fn optional<T: Read>(&mut self, key: &str, into: &mut Option<T>) -> bool {
        self.read(key, T::read).map(|value| *into = Some(value)).is_some()
    }

    /// Like [`Self::value`], for a string with a syntax of its own.
    pub(crate) fn parse<T>(&mut self, key: &str, into: &mut T, parse: impl FnOnce(&str) -> Result<T, Invalid>) -> bool {
        let read = |item: &Item, key: &str, problems: &mut Problems| parsed(item, key, problems, parse);
        self.read(key, read).map(|value| *into = value).is_some()
    }

    /// A value that `"off"` switches off.
    pub(crate) fn or_off<T: Read>(&mut self, key: &str, into: &mut Option<T>) -> bool {
        match self.item(key).map(|item| &item.value) {
            Some(Value::String(text)) if text == "off" => {
                *into = None;
                false
            }
            _ => self.optional(key, into),
        }
    }

    /// Reports the key when it is missing.
    pub(crate) fn require(&mut self, key: &str, example: &str) {
        if self.item(key).is_none() {
            self.error(key, Invalid::new("missing").hint(format!("for example {key} = {example}")));
        }
    }

    fn read<T>(&mut self, key: &str, read: impl FnOnce(&Item, &str, &mut Problems) -> Option<T>) -> Option<T> {
        read(self.item(key)?, &join(&self.path, key), &mut self.reader.problems)
    }

    /// The path of a file, whose content is inspected later.
    pub(crate) fn file(&mut self, key: &str, into: &mut Option<PathBuf>, content: Content) {
        if self.optional(key, into)
            && let Some(path) = into
        {
            self.names_file(key, None, path, content);
        }
    }

    /// Lists a path for inspection; `n` is its number where the key's value is a list.
    pub(crate) fn names_file(&mut self, key: &str, n: Option<usize>, path: &Path, content: Content) {
        let (at, key) = self.place(key, n);
        self.reader.files.push(NamedFile { path: path.to_owned(), content, at, key });
    }

    pub(crate) fn error(&mut self, key: &str, invalid: Invalid) {
        self.push(key, None, invalid, Severity::Error);
    }

    /// A problem of the nth item of a list.
    pub(crate) fn error_in(&mut self, key: &str, n: usize, invalid: Invalid) {
        self.push(key, Some(n), invalid, Severity::Error);
    }

    pub(crate) fn warn(&mut self, key: &str, invalid: Invalid) {
        self.push(key, None, invalid, Severity::Warning);
    }

    /// Pushes the problem when there is one.
    pub(crate) fn check(&mut self, key: &str, result: Result<(), Invalid>) -> bool {
        let good = result.is_ok();
        if let Err(invalid) = result {
            self.error(key, invalid);
        }
        good
    }

    fn push(&mut self, key: &str, n: Option<usize>, invalid: Invalid, severity: Severity) {
        let (at, key) = self.place(key, n);
        self.reader.problems.push(Problem { severity, ..Problem::error(at, key, invalid) });
    }

    fn entry(&self, key: &str) -> Option<&'d Item> {
        Some(&self.table?.get(key)?.item)
    }

    /// Where the value of a key stands, or else its section, and its full name.
    fn place(&self, key: &str, n: Option<usize>) -> (Location, String) {
        let full = join(&self.path, key);
        match (self.entry(key), n) {
            (Some(Item { value: Value::Array(items), .. }), Some(n)) if n < items.len() => {
                (items[n].at.clone(), format!("{full}[{n}]"))
            }
            (item, _) => (item.map_or(&self.at, |item| &item.at).clone(), full),
        }
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

fn unknown_key(keys: &[String], path: &str, key: &str) -> Invalid {
    let invalid = Invalid::new("unknown key");
    let prefix = join(path, "");
    let siblings: Vec<&str> =
        keys.iter().filter_map(|full| full.strip_prefix(&prefix)).filter(|rest| !rest.contains('.')).collect();
    let elsewhere = || keys.iter().find(|full| full.rsplit('.').next() == Some(key));
    match nearest(key, &siblings) {
        Some(near) => invalid.hint(format!("did you mean {near}?")),
        None => match elsewhere().and_then(|full| full.rsplit_once('.')) {
            Some((section, _)) => invalid.hint(format!("it belongs in [{section}]")),
            None => invalid.hint(format!("known here: {}", siblings.join(", "))),
        },
    }
}

/// The known word nearest to what was written; `None` when none is near enough to be a typing error.
pub fn nearest<'w>(written: &str, known: &[&'w str]) -> Option<&'w str> {
    let same = |a: &str, b: &str| a.to_lowercase().replace('-', "_") == b.replace('-', "_");
    let allowed = written.chars().count().max(3) / 3;
    // A name without its unit is the most frequent mistake: `timeout` for `timeout_ms`.
    let lacks_unit =
        |word: &str| written.len() >= 4 && word.strip_prefix(written).is_some_and(|rest| rest.starts_with('_'));
    let distance = |word: &str| match same(written, word) || lacks_unit(word) {
        true => 0,
        false => strsim::osa_distance(written, word),
    };
    let near = known.iter().map(|word| (distance(word), *word)).filter(|(distance, _)| *distance <= allowed);
    near.min_by_key(|(distance, _)| *distance).map(|(_, word)| word)
}

/// Pushes "expected this, found that".
pub(crate) fn wrong_kind<T>(item: &Item, key: &str, expected: &str, problems: &mut Problems) -> Option<T> {
    let mut invalid = Invalid::new(format!("expected {expected}, found {}", item.value.kind()));
    match &item.value {
        Value::String(text) if text.parse::<i128>().is_ok() || text == "true" || text == "false" => {
            invalid = invalid.hint("write it without quotes");
        }
        _ => {}
    }
    refuse(item, key, invalid, problems)
}

pub(crate) fn refuse<T>(item: &Item, key: &str, invalid: Invalid, problems: &mut Problems) -> Option<T> {
    problems.push(Problem::error(item.at.clone(), key, invalid));
    None
}

/// Reads a string and parses it.
pub(crate) fn parsed<T>(
    item: &Item,
    key: &str,
    problems: &mut Problems,
    parse: impl FnOnce(&str) -> Result<T, Invalid>,
) -> Option<T> {
    let text = String::read(item, key, problems)?;
    parse(&text).map_or_else(|invalid| refuse(item, key, invalid, problems), Some)
}

/// One of a closed list of words.
pub(crate) fn choice<T: Copy>(item: &Item, key: &str, words: &[(&str, T)], problems: &mut Problems) -> Option<T> {
    parsed(item, key, problems, |text| {
        if let Some((_, value)) = words.iter().find(|(word, _)| *word == text) {
            return Ok(*value);
        }
        let words: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        let hint = match nearest(text, &words) {
            Some(near) => format!("did you mean {near:?}?"),
            None => format!("use one of {words:?}"),
        };
        Err(Invalid::new(format!("unknown value {text:?}")).hint(hint))
    })
}

impl Read for String {
    fn read(item: &Item, key: &str, problems: &mut Problems) -> Option<Self> {
        let invalid = match &item.value {
            Value::String(text) if !text.is_empty() => return Some(text.clone()),
            Value::String(_) => Invalid::new("empty").hint("leave the key out instead"),
            other => Invalid::new(format!("expected a string, found {}", other.kind())).hint("put it in quotes"),
        };
        refuse(item, key, invalid, problems)
    }
}

impl Read for bool {
    fn read(item: &Item, key: &str, problems: &mut Problems) -> Option<Self> {
        match item.value {
            Value::Boolean(value) => Some(value),
            _ => wrong_kind(item, key, "true or false", problems),
        }
    }
}

impl Read for f64 {
    fn read(item: &Item, key: &str, problems: &mut Problems) -> Option<Self> {
        let number = match &item.value {
            Value::Integer(number) => Some(*number as Self),
            Value::Float(text) => text.replace('_', "").parse().ok(),
            _ => None,
        };
        number.or_else(|| wrong_kind(item, key, "a number", problems))
    }
}

impl<T: Read> Read for Vec<T> {
    fn read(item: &Item, key: &str, problems: &mut Problems) -> Option<Self> {
        let Value::Array(items) = &item.value else {
            let hint = "put it in brackets: [\"...\"]";
            let invalid = Invalid::new(format!("expected a list, found {}", item.value.kind())).hint(hint);
            return refuse(item, key, invalid, problems);
        };
        // Every item is read, also after a bad one.
        let values: Vec<Option<T>> =
            items.iter().enumerate().map(|(n, item)| T::read(item, &format!("{key}[{n}]"), problems)).collect();
        values.into_iter().collect()
    }
}

/// Replaced by the folder of systemd's `LoadCredential=` files, at the start of a path.
pub(crate) const CREDENTIALS: &str = "${CREDENTIALS_DIRECTORY}";

impl Read for PathBuf {
    /// Relative to the folder of the file that names it.
    fn read(item: &Item, key: &str, problems: &mut Problems) -> Option<Self> {
        parsed(item, key, problems, |text| {
            if text.starts_with(CREDENTIALS) {
                // It would have been replaced.
                let hint = "add LoadCredential= to the unit, or write a path";
                return Err(Invalid::new("CREDENTIALS_DIRECTORY is not set: not started by systemd").hint(hint));
            }
            if text.contains("${") {
                let hint = format!("only {CREDENTIALS} is expanded, at the start");
                return Err(Invalid::new("unknown variable").hint(hint));
            }
            if text.starts_with("~/") {
                return Err(Invalid::new("~ is not expanded").hint("write the whole path"));
            }
            Ok(item.at.file.parent().unwrap_or(Path::new("")).join(text))
        })
    }
}

macro_rules! numbers {
    ($($number:ty, $plain:ty, $least:literal);+ $(;)?) => {$(
        impl Read for $number {
            fn read(item: &Item, key: &str, problems: &mut Problems) -> Option<Self> {
                let Value::Integer(value) = item.value else {
                    return wrong_kind(item, key, "a whole number", problems);
                };
                let invalid = if value < $least {
                    Invalid::new(format!("{value} is too small")).hint(concat!("use at least ", $least))
                } else {
                    match <$plain>::try_from(value).ok().and_then(|value| <$number>::try_from(value).ok()) {
                        Some(number) => return Some(number),
                        None => Invalid::new("the number is too large").hint(format!("use at most {}", <$plain>::MAX)),
                    }
                };
                refuse(item, key, invalid, problems)
            }
        }
    )+};
}

numbers! {
    u32, u32, 0;
    u64, u64, 0;
    usize, usize, 0;
    NonZeroU16, u16, 1;
    NonZeroU32, u32, 1;
    NonZeroU64, u64, 1;
    NonZeroUsize, usize, 1;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_word_is_suggested() {
        let known = ["receive_maximum", "url", "timeout_ms", "keep_alive_secs"];
        assert_eq!(nearest("recieve_maximum", &known), Some("receive_maximum"));
        assert_eq!(nearest("Receive-Maximum", &known), Some("receive_maximum"));
        assert_eq!(nearest("ur", &known), Some("url"));
        assert_eq!(nearest("timeout", &known), Some("timeout_ms"));
        assert_eq!(nearest("keep_alive", &known), Some("keep_alive_secs"));
        assert_eq!(nearest("port", &known), None);
        assert_eq!(nearest("x", &known), None);
    }
}
