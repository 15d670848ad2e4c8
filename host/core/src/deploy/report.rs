//! Report about a function: retained JSON that the board publishes and the command line reads.

use serde::{Deserialize, Serialize};

use super::keys::KeyId;
use super::payload::SettingsUpdate;
use super::reason::{Reason, named_enum};
use super::topics::Target;
use crate::message::Digest;

/// Reported differences of a shadow trial, and the length of each text in them.
pub(crate) const MAX_DIFFERENCES: usize = 5;
pub(crate) const MAX_DIFFERENCE_BYTES: usize = 512;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    pub function: String,
    /// State of the latest order.
    pub state: DeployState,
    /// Absent if there is no problem.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Version in the latest order, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
    /// The version that serves messages now.
    pub active: Option<Active>,
    /// The version that a rollback returns to.
    pub previous: Option<Version>,
    /// Whether the latest version has passed its trial. `false`: its time passed before its messages came. Absent while it
    /// is not decided, and from older boards.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proven: Option<bool>,
    /// Settings in force that differ from those in `function.toml`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub settings: Vec<ReportedSetting>,
    /// The latest orders of settings.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub settings_orders: Vec<SettingsReport>,
    /// Samples of differing outputs of a shadow.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub differences: Vec<Difference>,
    /// The trusted keys; only in the report of `_keys`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keys: Option<Vec<KeyName>>,
    pub at_ms: u64,
    /// Whether `at_ms` is reliable.
    pub clock_synced: bool,
}

named_enum! {
    /// State of the latest order, or of the function.
    pub enum DeployState {
        /// Waiting for chunks of the module.
        Receiving = "receiving",
        Verifying = "verifying",
        Compiling = "compiling",
        /// Serving, or running as a shadow, until the trial is decided.
        Trial = "trial",
        Active = "active",
        /// The order was not carried out; the previous version serves.
        Rejected = "rejected",
        /// The previous version serves again.
        RolledBack = "rolled-back",
        /// The function failed too often in a row and is paused.
        Quarantined = "quarantined",
        Removed = "removed",
        /// A state of a newer board.
        #[serde(other)]
        Unknown = "unknown",
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    pub version: String,
    pub serial: u64,
    pub digest: Digest,
    /// Compiled elsewhere; the digest is that of the native code.
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

/// A setting in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReportedSetting {
    pub name: String,
    /// The topic or filter that it is for. Absent: for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topic: Option<String>,
    /// Absent if it is secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// `board`: the board's configuration. `group NAME`, `node`: an order.
    pub from: String,
}

/// An order of settings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SettingsReport {
    pub target: Target,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<u64>,
    pub state: SettingsState,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Its values, if it was accepted: the next order of the target builds on them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settings: Option<SettingsUpdate>,
}

named_enum! {
    /// State of an order of settings.
    pub enum SettingsState {
        /// Accepted; messages may still run with older ones.
        Applying = "applying",
        /// Accepted, and no message runs with older ones.
        InForce = "in-force",
        /// Accepted, for when the function is installed.
        Kept = "kept",
        /// Nothing changed.
        Refused = "refused",
        /// A state of a newer board.
        #[serde(other)]
        Unknown = "unknown",
    }
}

/// A sink, in the status of a board.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SinkReport {
    pub name: String,
    pub connected: bool,
    /// Records that wait for it.
    pub records: u64,
}

/// Outputs of the active version and of the candidate for one message, where they differ.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    pub topic: Box<str>,
    pub active: Box<str>,
    pub candidate: Box<str>,
}

/// Counts of a trial.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TrialTally {
    /// Messages that the candidate handled.
    pub run: u32,
    /// Messages on which it failed.
    pub failed: u32,
    /// Messages on which a shadow differed from the active version.
    pub different: u32,
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

impl Difference {
    /// Cuts each text to [`MAX_DIFFERENCE_BYTES`].
    pub fn truncate(&mut self) {
        for text in [&mut self.topic, &mut self.active, &mut self.candidate] {
            let end = text.floor_char_boundary(MAX_DIFFERENCE_BYTES);
            if end < text.len() {
                *text = text[..end].into();
            }
        }
    }
}

impl DeployState {
    /// Whether the state changes only with another order.
    pub const fn is_final(self) -> bool {
        !matches!(self, Self::Receiving | Self::Verifying | Self::Compiling | Self::Trial)
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
            proven: Some(false),
            settings: vec![ReportedSetting {
                name: "max".into(),
                topic: Some("t/+".into()),
                value: Some("5".into()),
                from: "board".into(),
            }],
            settings_orders: vec![SettingsReport {
                target: Target::Group("pumps".into()),
                serial: Some(9),
                state: SettingsState::Refused,
                reason: Some(Reason::Conflict),
                error: Some("later".into()),
                settings: None,
            }],
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
            assert_eq!(serde_json::from_value::<DeployState>(state.as_str().into()).unwrap(), *state);
        }
    }
}
