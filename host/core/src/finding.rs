//! The result of one check of a board, its broker or its configuration.

use serde::{Serialize, Serializer};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Good,
    #[serde(rename = "hurts")]
    Warning,
    /// Cannot be checked from this machine or by this user.
    Unknown,
}

impl Verdict {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Warning => "warning",
            Self::Unknown => "unknown",
        }
    }
}

/// Field names and values in JSON are those that scripts rely on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    #[serde(serialize_with = "check_in_json")]
    pub check: &'static str,
    pub verdict: Verdict,
    pub what: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[serde(rename = "mend")]
    pub fix: Option<String>,
}

fn check_in_json<S: Serializer>(check: &&'static str, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(if *check == "sandbox" { "walls" } else { check })
}

impl Finding {
    pub fn good(check: &'static str, what: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Good, what: what.into(), fix: None }
    }

    pub fn warning(check: &'static str, what: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Warning, what: what.into(), fix: Some(fix.into()) }
    }

    pub fn unknown(check: &'static str, what: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Unknown, what: what.into(), fix: Some(fix.into()) }
    }
}
