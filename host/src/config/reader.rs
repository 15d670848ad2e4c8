//! Typed reading of a [`Table`] that goes on after a mistake. Which keys exist is not written down anywhere: they are
//! the ones that were asked for.

use std::ffi::OsString;
use std::num::{NonZeroU16, NonZeroU32, NonZeroU64, NonZeroUsize};
use std::path::{Path, PathBuf};

use super::document::{Item, Table, Value};
use super::problem::{Invalid, Location, Problem, Problems, Severity};
use super::suggest::nearest;

/// A value that can stand behind a key.
pub(crate) trait Read: Sized {
    /// `None` when a problem was pushed.
    fn read(item: &Item, key: &str, problems: &mut Problems) -> Option<Self>;
}

pub(crate) struct Reader {
    pub problems: Problems,
    /// Every key that was asked for, in full, in the order of asking.
    keys: Vec<String>,
    unknown: Vec<(String, String, Location)>,
}

/// One section of the file, or of the manifest; there is one even where the file has none, so that defaults apply and
/// its keys are known.
pub(crate) struct Section<'r, 'd> {
    reader: &'r mut Reader,
    path: String,
    table: Option<&'d Table>,
    at: Location,
}

impl Reader {
    /// Reads a whole document and returns the keys that it could have had. Unknown keys are judged at the end, when
    /// all sections are known: a key in the wrong section is a frequent mistake.
    pub fn run<'d>(table: &'d Table, read: impl FnOnce(&mut Section<'_, 'd>)) -> (Problems, Vec<String>) {
        let mut reader = Self { problems: Problems::default(), keys: Vec::new(), unknown: Vec::new() };
        reader.section(String::new(), Some(table), table.at.clone(), read);
        let Self { mut problems, keys, unknown } = reader;
        for (path, key, at) in unknown {
            problems.push(Problem::error(at, join(&path, &key), unknown_key(&keys, &path, &key)));
        }
        problems.sort();
        (problems, keys)
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
    pub fn section(&mut self, key: &str, read: impl FnOnce(&mut Section<'_, 'd>)) {
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

    pub fn has(&self, key: &str) -> bool {
        self.table.is_some_and(|table| table.get(key).is_some())
    }

    /// The value as it stands; the key counts as known from now on.
    pub fn item(&mut self, key: &str) -> Option<&'d Item> {
        let full = join(&self.path, key);
        if !self.reader.keys.contains(&full) {
            self.reader.keys.push(full);
        }
        Some(&self.table?.get(key)?.item)
    }

    /// The entries of a section whose keys are free.
    pub fn entries(&mut self) -> Vec<(&'d str, &'d Item)> {
        let entries = self.table.map(|table| &table.entries[..]).unwrap_or_default();
        entries.iter().filter_map(|entry| Some((&*entry.key, self.item(&entry.key)?))).collect()
    }

    /// Keeps what is in `into` when the key is absent. Returns whether a good value was read.
    pub fn value<T: Read>(&mut self, key: &str, into: &mut T) -> bool {
        let Some(item) = self.item(key) else { return false };
        match T::read(item, &join(&self.path, key), &mut self.reader.problems) {
            Some(value) => {
                *into = value;
                true
            }
            None => false,
        }
    }

    pub fn optional<T: Read>(&mut self, key: &str, into: &mut Option<T>) -> bool {
        let Some(item) = self.item(key) else { return false };
        let value = T::read(item, &join(&self.path, key), &mut self.reader.problems);
        let good = value.is_some();
        *into = value.or(into.take());
        good
    }

    /// A value that `"off"` switches off.
    pub fn or_off<T: Read>(&mut self, key: &str, into: &mut Option<T>) -> bool {
        match self.item(key).map(|item| &item.value) {
            Some(Value::String(text)) if text == "off" => {
                *into = None;
                false
            }
            _ => self.optional(key, into),
        }
    }

    pub fn required<T: Read>(&mut self, key: &str, example: &str) -> Option<T> {
        let mut value = None;
        if self.item(key).is_none() {
            self.error(key, Invalid::new("missing").hint(format!("for example {key} = {example}")));
        }
        self.optional(key, &mut value);
        value
    }

    /// Where the key's value stands, or where its section begins.
    pub fn at(&self, key: &str) -> Location {
        self.table.and_then(|table| table.get(key)).map_or_else(|| self.at.clone(), |entry| entry.item.at.clone())
    }

    /// Where the nth item of a list stands.
    pub fn nth(&self, key: &str, n: usize) -> Location {
        let item = self.table.and_then(|table| table.get(key)).map(|entry| &entry.item);
        match item {
            Some(Item { value: Value::Array(items), .. }) if n < items.len() => items[n].at.clone(),
            _ => self.at(key),
        }
    }

    pub fn error(&mut self, key: &str, invalid: Invalid) {
        self.error_at(self.at(key), key, invalid);
    }

    pub fn error_at(&mut self, at: Location, key: &str, invalid: Invalid) {
        self.reader.problems.push(Problem::error(at, join(&self.path, key), invalid));
    }

    pub fn warn(&mut self, key: &str, invalid: Invalid) {
        let problem = Problem::error(self.at(key), join(&self.path, key), invalid);
        self.reader.problems.push(Problem { severity: Severity::Warning, ..problem });
    }

    /// Pushes the problem when there is one.
    pub fn check(&mut self, key: &str, result: Result<(), Invalid>) -> bool {
        let good = result.is_ok();
        if let Err(invalid) = result {
            self.error(key, invalid);
        }
        good
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

fn unknown_key(keys: &[String], path: &str, key: &str) -> Invalid {
    let invalid = Invalid::new("unknown key");
    let in_section = |section: &str| -> Vec<&str> {
        let prefix = join(section, "");
        keys.iter().filter_map(|full| full.strip_prefix(&prefix)).filter(|rest| !rest.contains('.')).collect()
    };
    let siblings = in_section(path);
    let elsewhere = || keys.iter().find(|full| full.rsplit('.').next() == Some(key));
    match nearest(key, &siblings) {
        Some(near) => invalid.hint(format!("did you mean {near}?")),
        None => match elsewhere().and_then(|full| full.rsplit_once('.')) {
            Some((section, _)) => invalid.hint(format!("it belongs in [{section}]")),
            None => invalid.hint(format!("known here: {}", siblings.join(", "))),
        },
    }
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
    problems.push(Problem::error(item.at.clone(), key, invalid));
    None
}

/// One of a closed list of words.
pub(crate) fn choice<T: Copy>(item: &Item, key: &str, words: &[(&str, T)], problems: &mut Problems) -> Option<T> {
    let text = String::read(item, key, problems)?;
    if let Some((_, value)) = words.iter().find(|(word, _)| *word == text) {
        return Some(*value);
    }
    let words: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
    let hint = match nearest(&text, &words) {
        Some(near) => format!("did you mean {near:?}?"),
        None => format!("use one of {words:?}"),
    };
    problems.push(Problem::error(item.at.clone(), key, Invalid::new(format!("unknown value {text:?}")).hint(hint)));
    None
}

impl Read for String {
    fn read(item: &Item, key: &str, problems: &mut Problems) -> Option<Self> {
        let invalid = match &item.value {
            Value::String(text) if !text.is_empty() => return Some(text.clone()),
            Value::String(_) => Invalid::new("empty").hint("leave the key out instead"),
            other => Invalid::new(format!("expected a string, found {}", other.kind())).hint("put it in quotes"),
        };
        problems.push(Problem::error(item.at.clone(), key, invalid));
        None
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

impl<T: Read> Read for Vec<T> {
    fn read(item: &Item, key: &str, problems: &mut Problems) -> Option<Self> {
        let Value::Array(items) = &item.value else {
            let hint = "put it in brackets: [\"...\"]";
            let invalid = Invalid::new(format!("expected a list, found {}", item.value.kind())).hint(hint);
            problems.push(Problem::error(item.at.clone(), key, invalid));
            return None;
        };
        // Every item is read, also after a bad one.
        let values: Vec<Option<T>> =
            items.iter().enumerate().map(|(n, item)| T::read(item, &format!("{key}[{n}]"), problems)).collect();
        values.into_iter().collect()
    }
}

/// Where the unit takes credentials from.
pub(crate) const CREDENTIAL_STORE: &str = "/etc/credstore";

/// Where systemd has put the credentials; for a command that a person runs, where it takes them from.
fn credentials(given: Option<OsString>, store: &Path) -> Option<PathBuf> {
    given.map(PathBuf::from).or_else(|| store.is_dir().then(|| store.to_owned()))
}

impl Read for PathBuf {
    /// Relative to the folder of the file that names it. `${CREDENTIALS_DIRECTORY}` is where systemd puts
    /// `LoadCredential=` files.
    fn read(item: &Item, key: &str, problems: &mut Problems) -> Option<Self> {
        const CREDENTIALS: &str = "${CREDENTIALS_DIRECTORY}";
        let text = String::read(item, key, problems)?;
        let mut refuse = |invalid| {
            problems.push(Problem::error(item.at.clone(), key, invalid));
            None
        };
        let path = match text.strip_prefix(CREDENTIALS) {
            Some(rest) => match credentials(std::env::var_os("CREDENTIALS_DIRECTORY"), Path::new(CREDENTIAL_STORE)) {
                Some(folder) => folder.join(rest.trim_start_matches('/')),
                None => {
                    let hint = "add LoadCredential= to the unit, or write a path";
                    return refuse(Invalid::new("CREDENTIALS_DIRECTORY is not set: not started by systemd").hint(hint));
                }
            },
            None if text.contains("${") => {
                return refuse(
                    Invalid::new("unknown variable").hint(format!("only {CREDENTIALS} is expanded, at the start")),
                );
            }
            None if text.starts_with("~/") => {
                return refuse(Invalid::new("~ is not expanded").hint("write the whole path"));
            }
            None => PathBuf::from(text),
        };
        let folder = item.at.file.parent().unwrap_or(Path::new(""));
        Some(folder.join(path))
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
                problems.push(Problem::error(item.at.clone(), key, invalid));
                None
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
    fn credentials_are_where_systemd_says_or_where_it_takes_them_from() {
        let store = tempfile::tempdir().unwrap();
        assert_eq!(credentials(Some("/run/given".into()), store.path()), Some("/run/given".into()));
        assert_eq!(credentials(None, store.path()), Some(store.path().to_owned()));
        assert_eq!(credentials(None, &store.path().join("absent")), None);
    }
}
