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

impl Grants {
    /// All grants, for checks of a component without its manifest.
    pub const ALL: Self = Self { clock: true, random: true };

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
