//! What a board says of a function: retained JSON, written by the board and read by the command line.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::keys::KeyId;
use super::reason::Reason;
use crate::message::Digest;

/// How many differing outputs of a shadow trial are shown, and how much of each.
pub const MAX_DIFFERENCES: usize = 5;
pub const MAX_DIFFERENCE_BYTES: usize = 512;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    pub function: String,
    /// Of the latest order.
    pub state: DeployState,
    /// Absent when all is well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Of the latest order, as far as it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
    /// What serves messages now.
    pub active: Option<Active>,
    /// What a rollback returns to.
    pub previous: Option<Version>,
    /// Samples of where a shadow answered otherwise.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub differences: Vec<Difference>,
    /// The trusted keys, in the report of `_keys`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keys: Option<Vec<KeyName>>,
    pub at_ms: u64,
    /// Whether `at_ms` can be believed.
    pub clock_synced: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DeployState {
    /// Waiting for the chunks of the module.
    Receiving,
    Verifying,
    Compiling,
    /// Running beside, or before, the version that it would replace.
    Trial,
    Active,
    /// The order was not carried out; what served before serves.
    Rejected,
    /// The version before serves again.
    RolledBack,
    /// It kept failing and is paused.
    Quarantined,
    Removed,
    /// From a newer board than this program knows.
    Unknown,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    pub version: String,
    pub serial: u64,
    pub digest: Digest,
    /// It was compiled elsewhere, and the digest is that of the compiled code.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub native_code: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Active {
    #[serde(flatten)]
    pub version: Version,
    pub manifest: serde_json::Value,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Progress {
    Chunks { chunks: u32, received: u32 },
    Trial { messages: u32, run: u32, failed: u32, different: u32 },
}

/// One message that active version and shadow answered otherwise.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    pub topic: String,
    pub active: String,
    pub candidate: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyName {
    pub id: KeyId,
    pub name: String,
}

impl Report {
    pub fn parse(payload: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(payload)
    }

    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a report has only string keys")
    }
}

impl DeployState {
    pub const ALL: [Self; 10] = [
        Self::Receiving,
        Self::Verifying,
        Self::Compiling,
        Self::Trial,
        Self::Active,
        Self::Rejected,
        Self::RolledBack,
        Self::Quarantined,
        Self::Removed,
        Self::Unknown,
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Receiving => "receiving",
            Self::Verifying => "verifying",
            Self::Compiling => "compiling",
            Self::Trial => "trial",
            Self::Active => "active",
            Self::Rejected => "rejected",
            Self::RolledBack => "rolled-back",
            Self::Quarantined => "quarantined",
            Self::Removed => "removed",
            Self::Unknown => "unknown",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == name)
    }

    /// Whether nothing more comes of the order by itself.
    pub const fn is_final(self) -> bool {
        !matches!(self, Self::Receiving | Self::Verifying | Self::Compiling | Self::Trial)
    }
}

impl std::fmt::Display for DeployState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

impl Serialize for DeployState {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for DeployState {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self::from_name(&String::deserialize(deserializer)?).unwrap_or(Self::Unknown))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_read_as_it_was_written() {
        let digest = Digest([7; 32]);
        let version = Version { version: "1.2.0".into(), serial: 7, digest, native_code: true };
        let mut report = Report {
            function: "warm".into(),
            state: DeployState::Trial,
            reason: None,
            error: None,
            version: Some("1.3.0".into()),
            serial: Some(8),
            digest: Some(digest),
            progress: Some(Progress::Trial { messages: 10, run: 3, failed: 0, different: 1 }),
            active: Some(Active { version: version.clone(), manifest: serde_json::json!({"name": "warm"}) }),
            previous: Some(version),
            differences: vec![Difference { topic: "t".into(), active: "1".into(), candidate: "2".into() }],
            keys: None,
            at_ms: 5,
            clock_synced: true,
        };
        assert_eq!(Report::parse(&report.to_json()).unwrap(), report);
        let json: serde_json::Value = serde_json::from_slice(&report.to_json()).unwrap();
        assert_eq!((&json["active"]["serial"], &json["active"]["native_code"]), (&7.into(), &true.into()));
        assert_eq!(json["progress"]["run"], 3);
        assert!(json.get("reason").is_none());
        report.progress = Some(Progress::Chunks { chunks: 5, received: 3 });
        report.active = None;
        report.previous.as_mut().unwrap().native_code = false;
        assert_eq!(Report::parse(&report.to_json()).unwrap(), report);
        assert!(serde_json::from_slice::<serde_json::Value>(&report.to_json()).unwrap()["active"].is_null());
    }

    #[test]
    fn a_newer_board_is_still_understood() {
        let json = br#"{"function":"a","state":"dreaming","reason":"bored","mood":1,"active":null,"previous":null,"at_ms":1,"clock_synced":false}"#;
        let report = Report::parse(json).unwrap();
        assert_eq!((report.state, report.reason), (DeployState::Unknown, Some(Reason::Unknown)));
        for state in DeployState::ALL {
            assert_eq!(DeployState::from_name(state.as_str()), Some(state));
        }
    }
}
