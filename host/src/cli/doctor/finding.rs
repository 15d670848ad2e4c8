//! What one check found.

use serde::Serialize;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Good,
    #[serde(rename = "hurts")]
    Warning,
    /// It cannot be seen from here, or not by this user.
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

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub check: &'static str,
    pub verdict: Verdict,
    pub what: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[serde(rename = "mend")]
    pub fix: Option<String>,
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
