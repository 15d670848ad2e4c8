//! What is kept about a function: one file, whole or not there.
//!
//! ```text
//! <sha256 of the rest, hex>\n
//! {"function": ..., "serial": ..., "active": ..., "previous": ..., "candidate": ..., ...}
//! ```
//!
//! The digest tells a file that a worn card has changed; cut short or damaged, it is as if it were not there.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::payload::{Document, Module};
use super::reason::Reason;
use super::report::{self, DeployState};
use super::topics::Target;
use crate::key::KeyId;
use crate::manifest::{Manifest, Trial};
use crate::message::Digest;

pub const SUFFIX: &str = ".record";

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    pub function: Box<str>,
    pub line: Line,
    /// What serves messages.
    pub active: Option<StoredVersion>,
    /// What a rollback returns to.
    pub previous: Option<StoredVersion>,
    /// What an order wants to be active, and is not yet.
    pub candidate: Option<Candidate>,
    /// How the latest order ended, unless it is under way.
    pub outcome: Option<OrderOutcome>,
}

/// What was accepted before, so that it is not accepted again. Kept for ever, also of a function that was removed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// The highest of any accepted order.
    pub serial: Option<u64>,
    /// The last accepted order of each target: the broker hands it over again at every connection.
    pub accepted: Vec<(Target, Digest)>,
    /// The latest time at which an accepted order was issued. An order that expired before is refused even by a board that
    /// does not know the time.
    pub floor_ms: u64,
}

/// A version whose module is, or will be, in `modules`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StoredVersion {
    pub manifest: Document,
    pub digest: Digest,
    /// Whether the module is code that was compiled elsewhere.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_code: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Candidate {
    pub stored: StoredVersion,
    pub kind: CandidateKind,
    /// Of the order.
    pub serial: u64,
    /// The keys that vouched for it. With none of them left, it ends.
    pub signers: Vec<KeyId>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CandidateKind {
    /// A new version, with the chunks that make its module.
    Install(Module),
    /// The previous version: it has proved itself before.
    Rollback,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OrderOutcome {
    pub state: DeployState,
    pub reason: Option<Reason>,
    pub error: Option<String>,
    pub version: Option<String>,
    pub serial: Option<u64>,
    pub digest: Option<Digest>,
}

impl Record {
    pub fn new(function: &str) -> Self {
        Self {
            function: function.into(),
            line: Line::default(),
            active: None,
            previous: None,
            candidate: None,
            outcome: None,
        }
    }

    /// The modules that must be kept.
    pub fn digests(&self) -> impl Iterator<Item = Digest> {
        let candidate = self.candidate.as_ref().map(|candidate| &candidate.stored);
        [self.active.as_ref(), self.previous.as_ref(), candidate].into_iter().flatten().map(|stored| stored.digest)
    }

    /// Whether it is there only so that old orders are known.
    pub fn is_tombstone(&self) -> bool {
        self.active.is_none() && self.candidate.is_none()
    }
}

impl Line {
    pub fn is_redelivery(&self, target: &Target, payload: Digest) -> bool {
        self.accepted.iter().any(|(known, digest)| known == target && *digest == payload)
    }

    pub fn accept(&mut self, serial: u64, target: &Target, payload: Digest, floor_ms: u64) {
        self.serial = self.serial.max(Some(serial));
        self.accepted.retain(|(known, _)| known != target);
        self.accepted.push((target.clone(), payload));
        self.floor_ms = self.floor_ms.max(floor_ms);
    }
}

impl StoredVersion {
    pub fn version(&self) -> String {
        self.manifest.as_value()["version"].as_str().unwrap_or_default().to_owned()
    }

    pub fn serial(&self) -> u64 {
        self.manifest.as_value()["serial"].as_u64().unwrap_or_default()
    }

    /// `None` for a manifest that this program does not understand.
    pub fn trial(&self) -> Option<Trial> {
        Manifest::from_json(&self.manifest.to_json(), None).ok().map(|manifest| manifest.trial)
    }

    pub fn reported(&self) -> report::Version {
        report::Version {
            version: self.version(),
            serial: self.serial(),
            digest: self.digest,
            native_code: self.is_code,
        }
    }
}

pub fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    let json = serde_json::to_vec(value).expect("a record has only string keys");
    let mut bytes = super::digest(&json).to_string().into_bytes();
    bytes.push(b'\n');
    bytes.extend_from_slice(&json);
    bytes
}

/// `None` for anything but what [`encode`] made, whole.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    let (digest, json) = bytes.split_at_checked(64)?;
    let json = json.strip_prefix(b"\n")?;
    let digest: Digest = str::from_utf8(digest).ok()?.parse().ok()?;
    if super::digest(json) != digest {
        return None;
    }
    serde_json::from_slice(json).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_that_is_cut_short_or_changed_is_no_record() {
        let mut record = Record::new("warm");
        record.line.accept(7, &Target::Node("n".into()), Digest([1; 32]), 5);
        let whole = encode(&record);
        assert_eq!(decode::<Record>(&whole), Some(record));
        for len in 0..whole.len() {
            assert_eq!(decode::<Record>(&whole[..len]), None, "{len} bytes of {}", whole.len());
        }
        for place in 0..whole.len() {
            let mut changed = whole.clone();
            changed[place] ^= 1;
            assert_eq!(decode::<Record>(&changed), None, "byte {place}");
        }
        assert_eq!(decode::<Record>(&[whole, b" ".to_vec()].concat()), None);
    }

    #[test]
    fn a_record_from_before_there_was_code_is_still_read() {
        let stored = |is_code| {
            let text = "name = \"warm\"\nversion = \"1\"\nserial = 7\nsubscribe = [\"s/#\"]";
            let manifest = Manifest::from_toml(text, std::path::Path::new("function.toml"), None).unwrap();
            StoredVersion { manifest: Document::of(&manifest), digest: Digest([1; 32]), is_code }
        };
        let json = |stored: &StoredVersion| serde_json::to_string(stored).unwrap();
        assert!(!json(&stored(false)).contains("code"));
        for is_code in [false, true] {
            let stored = stored(is_code);
            assert_eq!(serde_json::from_str::<StoredVersion>(&json(&stored)).unwrap(), stored);
        }
    }

    #[test]
    fn a_line_knows_what_it_accepted_for_each_target() {
        let mut line = Line::default();
        let (node, group) = (Target::Node("n".into()), Target::Group("g".into()));
        line.accept(5, &group, Digest([5; 32]), 50);
        line.accept(7, &node, Digest([7; 32]), 40);
        assert_eq!((line.serial, line.floor_ms), (Some(7), 50));
        assert!(line.is_redelivery(&group, Digest([5; 32])) && line.is_redelivery(&node, Digest([7; 32])));
        assert!(!line.is_redelivery(&node, Digest([5; 32])));
        line.accept(9, &node, Digest([9; 32]), 0);
        assert!(!line.is_redelivery(&node, Digest([7; 32])), "an old order is a replay");
    }
}
