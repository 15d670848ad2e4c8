//! Persistent state of a function: one file, replaced as a whole.
//!
//! ```text
//! <sha256 of the rest, hex>\n
//! {"function": ..., "serial": ..., "active": ..., "previous": ..., "candidate": ..., ...}
//! ```
//!
//! The digest detects damage by a worn card. A damaged file counts as absent.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::payload::{Document, Module};
use super::reason::{Reason, Refusal};
use super::report::{self, DeployState};
use super::topics::Target;
use crate::key::KeyId;
use crate::manifest::{Manifest, Trial};
use crate::message::Digest;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    pub function: Box<str>,
    #[serde(rename = "line")]
    pub history: OrderHistory,
    /// The version that serves messages.
    pub active: Option<StoredVersion>,
    /// The version that a rollback returns to.
    pub previous: Option<StoredVersion>,
    /// The active version has not run the messages of its trial.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unproven: Option<Unproven>,
    /// The version that an order asks for and that is not active yet.
    pub candidate: Option<Candidate>,
    /// End of the latest order, unless it is in progress.
    pub outcome: Option<OrderOutcome>,
}

/// Accepted orders, so that none is accepted twice. Kept for ever, also for a removed function.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct OrderHistory {
    /// Highest serial of an accepted order.
    pub serial: Option<u64>,
    /// Last accepted order per target, which the broker sends again at every connection.
    pub accepted: Vec<(Target, Digest)>,
    /// Latest issue time of an accepted order. An order that expired before it is refused even without a synced clock.
    pub(crate) floor_ms: u64,
}

/// A version whose module is in `modules`, or will be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StoredVersion {
    pub manifest: Document,
    pub digest: Digest,
    /// Whether the module is native code that was compiled elsewhere.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_code: bool,
}

/// What guards an active version until it has run the messages of its trial.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Unproven {
    /// The version that takes over if it fails. `None`: it is the first.
    pub fallback: Option<StoredVersion>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Candidate {
    pub stored: StoredVersion,
    pub kind: CandidateKind,
    /// Serial of the order.
    pub serial: u64,
    /// Keys that signed the order. If none of them is trusted any longer, the order ends.
    pub(crate) signers: Vec<KeyId>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CandidateKind {
    /// A new version and the chunks of its module.
    Install(Module),
    /// The previous version, which needs no trial.
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
            history: OrderHistory::default(),
            active: None,
            previous: None,
            unproven: None,
            candidate: None,
            outcome: None,
        }
    }

    /// Digests of the modules that must be kept.
    pub fn digests(&self) -> impl Iterator<Item = Digest> {
        let candidate = self.candidate.as_ref().map(|candidate| &candidate.stored);
        let stored = [self.active.as_ref(), self.previous.as_ref(), self.fallback(), candidate];
        stored.into_iter().flatten().map(|stored| stored.digest)
    }

    /// The version that takes over if the active one fails before it has proven itself.
    pub fn fallback(&self) -> Option<&StoredVersion> {
        self.unproven.as_ref().and_then(|unproven| unproven.fallback.as_ref())
    }

    /// The version that a rollback returns to.
    pub fn returns_to(&self) -> Option<&StoredVersion> {
        self.fallback().or(self.previous.as_ref())
    }

    /// The active version has run the messages of its trial.
    pub(crate) fn prove(&mut self) {
        if let Some(Unproven { fallback: fallback @ Some(_) }) = self.unproven.take() {
            self.previous = fallback;
        }
    }

    /// Returns to the fallback: the active version has failed before it had proven itself.
    pub(crate) fn fall_back(&mut self, why: &Refusal) {
        let failed = std::mem::replace(&mut self.active, self.unproven.take().and_then(|unproven| unproven.fallback));
        self.outcome = failed.map(|failed| OrderOutcome::of_version(DeployState::RolledBack, Some(why), &failed));
    }

    /// Whether only the history is left.
    pub(crate) fn is_tombstone(&self) -> bool {
        self.active.is_none() && self.candidate.is_none()
    }
}

impl OrderHistory {
    pub(crate) fn is_redelivery(&self, target: &Target, payload: Digest) -> bool {
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

    /// `None` for a manifest that this program cannot parse.
    pub fn trial(&self) -> Option<Trial> {
        Manifest::from_json(&self.manifest.to_json(), None).ok().map(|manifest| manifest.trial)
    }

    pub(crate) fn to_report(&self) -> report::Version {
        report::Version {
            version: self.version(),
            serial: self.serial(),
            digest: self.digest,
            native_code: self.is_code,
        }
    }
}

impl OrderOutcome {
    pub fn new(state: DeployState, why: Option<&Refusal>) -> Self {
        Self {
            state,
            reason: why.map(|refusal| refusal.reason),
            error: why.map(|refusal| refusal.detail.clone()),
            version: None,
            serial: None,
            digest: None,
        }
    }

    /// The same outcome with another state and a reason.
    pub(crate) fn because(self, state: DeployState, why: &Refusal) -> Self {
        Self { state, reason: Some(why.reason), error: Some(why.detail.clone()), ..self }
    }

    /// Outcome that concerns an installed version.
    pub(crate) fn of_version(state: DeployState, why: Option<&Refusal>, version: &StoredVersion) -> Self {
        Self {
            version: Some(version.version()),
            serial: Some(version.serial()),
            digest: Some(version.digest),
            ..Self::new(state, why)
        }
    }

    /// Outcome of the order that brought the candidate.
    pub(crate) fn of_candidate(state: DeployState, why: Option<&Refusal>, candidate: &Candidate) -> Self {
        Self { serial: Some(candidate.serial), ..Self::of_version(state, why, &candidate.stored) }
    }
}

impl Candidate {
    /// The trial that it has to pass. A version that was active before needs none.
    pub fn trial(&self, trial: &Trial) -> Option<Trial> {
        match self.kind {
            CandidateKind::Install(_) => Some(trial.clone()),
            CandidateKind::Rollback => None,
        }
    }
}

pub(crate) fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    let json = serde_json::to_vec(value).expect("a record has only string keys");
    let mut bytes = super::digest(&json).to_string().into_bytes();
    bytes.push(b'\n');
    bytes.extend_from_slice(&json);
    bytes
}

/// `None` if the bytes are damaged.
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
    fn a_truncated_or_changed_record_is_not_decoded() {
        let mut record = Record::new("warm");
        record.history.accept(7, &Target::Node("n".into()), Digest([1; 32]), 5);
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
    fn a_record_without_the_member_is_code_is_read() {
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
    fn the_history_keeps_the_last_order_of_each_target() {
        let mut history = OrderHistory::default();
        let (node, group) = (Target::Node("n".into()), Target::Group("g".into()));
        history.accept(5, &group, Digest([5; 32]), 50);
        history.accept(7, &node, Digest([7; 32]), 40);
        assert_eq!((history.serial, history.floor_ms), (Some(7), 50));
        assert!(history.is_redelivery(&group, Digest([5; 32])) && history.is_redelivery(&node, Digest([7; 32])));
        assert!(!history.is_redelivery(&node, Digest([5; 32])));
        history.accept(9, &node, Digest([9; 32]), 0);
        assert!(!history.is_redelivery(&node, Digest([7; 32])), "an old order is a replay");
    }
}
