//! The result of one check.

use serde::{Serialize, Serializer};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    Good,
    #[serde(rename = "hurts")]
    Warning,
    /// Cannot be checked from this machine or by this user.
    Unknown,
}

impl Verdict {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Warning => "warning",
            Self::Unknown => "unknown",
        }
    }
}

/// Field names and values in JSON are those that scripts rely on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    #[serde(serialize_with = "check_in_json")]
    pub(crate) check: &'static str,
    pub(crate) verdict: Verdict,
    pub(crate) what: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[serde(rename = "mend")]
    pub(crate) fix: Option<String>,
}

fn check_in_json<S: Serializer>(check: &&'static str, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(if *check == "sandbox" { "walls" } else { check })
}

impl Finding {
    pub(crate) fn good(check: &'static str, what: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Good, what: what.into(), fix: None }
    }

    pub(crate) fn warning(check: &'static str, what: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Warning, what: what.into(), fix: Some(fix.into()) }
    }

    pub(crate) fn unknown(check: &'static str, what: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Unknown, what: what.into(), fix: Some(fix.into()) }
    }
}
