//! Problems of a file that a person wrote: place, key, what is wrong and a hint. They are collected and reported at once.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use serde::{Serialize, Serializer};

/// A place in a file. Line and column start at 1; line 0 means the file as a whole.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Location {
    pub file: Arc<Path>,
    pub line: u32,
    /// In characters.
    pub column: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    Error,
    /// Works, but probably not as meant.
    Warning,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    #[serde(flatten)]
    pub at: Location,
    pub severity: Severity,
    /// The full key, `mqtt.url` or `subscribe[1]`; empty when the file itself is the problem.
    pub key: String,
    pub what: String,
    #[serde(rename = "mend", skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// All problems of a configuration or a manifest, in the order of the files and lines.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, thiserror::Error)]
#[serde(transparent)]
pub struct Problems(Vec<Problem>);

impl Location {
    pub fn whole(file: impl AsRef<Path>) -> Self {
        Self { file: file.as_ref().into(), line: 0, column: 0 }
    }
}

impl Problem {
    pub fn warning(at: Location, key: impl Into<String>, invalid: Invalid) -> Self {
        Self { severity: Severity::Warning, ..Self::error(at, key, invalid) }
    }

    pub fn error(at: Location, key: impl Into<String>, invalid: Invalid) -> Self {
        Self { at, severity: Severity::Error, key: key.into(), what: invalid.what, hint: invalid.hint }
    }
}

/// Why a value is invalid, and the fix. Its place in the file is added by [`Problem::error`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}{}", hint.as_ref().map(|hint| format!("; {hint}")).unwrap_or_default())]
pub struct Invalid {
    pub what: String,
    pub hint: Option<String>,
}

impl Invalid {
    pub fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), hint: None }
    }

    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl From<Problem> for Problems {
    fn from(problem: Problem) -> Self {
        Self(vec![problem])
    }
}

impl Problems {
    pub fn push(&mut self, problem: Problem) {
        self.0.push(problem);
    }

    pub fn extend(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// Adds problems of the values to those of the syntax, and sorts. Values of a line, or of a file, whose syntax is
    /// wrong are not reported.
    pub(crate) fn with_later(mut self, mut later: Self) -> Self {
        let is_consequence =
            |it: &Problem| self.iter().any(|early| early.at.file == it.at.file && early.at.line == it.at.line);
        later.0.retain(|problem| !is_consequence(problem));
        self.extend(later);
        self.sort();
        self
    }

    /// Files keep the order in which they were read; within a file, lines ascend.
    pub fn sort(&mut self) {
        let mut files: Vec<Arc<Path>> = Vec::new();
        for problem in &self.0 {
            if !files.contains(&problem.at.file) {
                files.push(problem.at.file.clone());
            }
        }
        self.0.sort_by_key(|p| (files.iter().position(|file| *file == p.at.file), p.at.line, p.at.column));
    }

    pub fn iter(&self) -> impl Iterator<Item = &Problem> {
        self.0.iter()
    }

    pub fn errors(&self) -> impl Iterator<Item = &Problem> {
        self.0.iter().filter(|problem| problem.severity == Severity::Error)
    }

    pub fn warnings(&self) -> impl Iterator<Item = &Problem> {
        self.0.iter().filter(|problem| problem.severity == Severity::Warning)
    }

    pub fn has_errors(&self) -> bool {
        self.errors().next().is_some()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if self.line > 0 {
            write!(f, ":{}:{}", self.line, self.column)?;
        }
        Ok(())
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.at)?;
        if self.severity == Severity::Warning {
            f.write_str("warning: ")?;
        }
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.what)?;
        self.hint.iter().try_for_each(|hint| write!(f, "; {hint}"))
    }
}

/// One line per problem.
impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

impl Serialize for Location {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeStruct;
        let mut fields = serializer.serialize_struct("Location", 3)?;
        fields.serialize_field("file", &self.file.to_string_lossy())?;
        fields.serialize_field("line", &(self.line > 0).then_some(self.line))?;
        fields.serialize_field("column", &(self.line > 0).then_some(self.column))?;
        fields.end()
    }
}
