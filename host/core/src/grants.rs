//! Interfaces that a function gets only because its manifest asks.

use crate::manifest::Allow;
use serde::{Deserialize, Serialize};

/// The interfaces that a manifest allows. None by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grants {
    pub clock: bool,
    pub random: bool,
}

/// An import that the manifest does not allow.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "the function imports `{import}`, which its manifest does not allow: write `{key} = true` under [allow] in function.toml"
)]
pub struct NotGranted {
    pub import: String,
    pub key: &'static str,
}

impl From<&Allow> for Grants {
    fn from(allow: &Allow) -> Self {
        Self { clock: allow.clock, random: allow.random }
    }
}

/// Packages of WASI 0.2 that only standard libraries need, such as Rust's for the target wasm32-wasip2.
const OF_LIBRARIES: [&str; 4] = ["wasi:cli/", "wasi:io/", "wasi:filesystem/", "wasi:sockets/"];

/// Whether an import, with or without a version, is one that only standard libraries need.
pub fn is_of_library(import: &str) -> bool {
    OF_LIBRARIES.iter().any(|package| import.starts_with(package))
}

impl Grants {
    /// All grants, for checks of a component without its manifest.
    pub const ALL: Self = Self { clock: true, random: true };

    /// Checks all imports of a function. A standard library imports clocks and random numbers for functions that never use them:
    /// with one, it is checked when they are used.
    pub fn check<'a>(self, imports: impl IntoIterator<Item = &'a str>) -> Result<(), NotGranted> {
        let mut checked = Ok(());
        for import in imports {
            if is_of_library(import) {
                return Ok(());
            }
            checked = checked.and_then(|()| self.check_name(import));
        }
        checked
    }

    /// Checks an import by its name, with or without a version.
    pub fn check_name(self, import: &str) -> Result<(), NotGranted> {
        let refused = |key| Err(NotGranted { import: import.to_owned(), key });
        match import.split('/').next() {
            Some("wasi:clocks") if !self.clock => refused("clock"),
            Some("wasi:random") if !self.random => refused("random"),
            _ => Ok(()),
        }
    }
}
