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

use super::boot::Place;
use super::keys::MOST_KEYS;
use super::payload::{Document, Module};
use super::reason::{Reason, Refusal};
use super::report::{self, DeployState};
use super::topics::Target;
use crate::key::KeyId;
use crate::manifest::{Manifest, Trial};
use crate::message::Digest;
use crate::topic::TopicFilter;

const DAY_MS: u64 = 24 * 3_600_000;

/// Keys whose latest order is remembered for a function, twice as many as a board trusts.
const MOST_FLOORS: usize = 2 * MOST_KEYS;

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
    /// Latest issue time of an accepted order, of programs that kept one for all keys.
    #[serde(default)]
    pub(crate) floor_ms: u64,
    /// Latest issue time of an accepted order, for each key that signed one. A later order of the key that expired before it
    /// is refused even without a synced clock. One key says nothing about the orders of another.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) floors: Vec<Floor>,
    /// Latest day of a synced clock on which an order was accepted.
    #[serde(default)]
    pub(crate) believed_ms: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Floor {
    pub(crate) key: KeyId,
    pub(crate) issued_at_ms: u64,
}

/// What an order that is accepted adds to the history, besides its serial.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Acceptance {
    /// The keys that signed it, which prove themselves by it.
    pub signers: Vec<KeyId>,
    pub issued_at_ms: u64,
    /// Time of a synced clock.
    pub now_ms: Option<u64>,
}

/// A version whose module is in `modules`, or will be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StoredVersion {
    pub manifest: Document,
    pub digest: Digest,
    /// Whether the module is native code that was compiled elsewhere.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_code: bool,
    /// Topics of the key that signed its order. A manifest without `allow.forward` forwards to these only. Empty: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub confined_to: Vec<TopicFilter>,
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

    /// The version at a place.
    pub(crate) fn at(&self, place: Place) -> Option<&StoredVersion> {
        match place {
            Place::Active => self.active.as_ref(),
            Place::Fallback => self.fallback(),
        }
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

    pub fn accept(&mut self, serial: u64, target: &Target, payload: Digest, acceptance: &Acceptance) {
        self.serial = self.serial.max(Some(serial));
        self.accepted.retain(|(known, _)| known != target);
        self.accepted.push((target.clone(), payload));
        let Acceptance { signers, issued_at_ms, now_ms } = acceptance;
        for key in signers {
            let before = self.floor(*key).unwrap_or(0);
            self.floors.retain(|floor| floor.key != *key);
            self.floors.push(Floor { key: *key, issued_at_ms: before.max(*issued_at_ms) });
        }
        let most = self.floors.len().saturating_sub(MOST_FLOORS);
        self.floors.drain(..most);
        let now_ms = now_ms.unwrap_or(0);
        self.believed_ms = self.believed_ms.max(now_ms - now_ms % DAY_MS);
    }

    /// Latest issue time of an order that the key signed, if one was accepted.
    pub(crate) fn floor(&self, key: KeyId) -> Option<u64> {
        self.floors.iter().find(|floor| floor.key == key).map(|floor| floor.issued_at_ms)
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

pub fn encode<T: Serialize>(value: &T) -> Vec<u8> {
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
        record.history.accept(7, &Target::Node("n".into()), Digest([1; 32]), &Acceptance::default());
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
            let digest = Digest([1; 32]);
            StoredVersion { manifest: Document::of(&manifest), digest, is_code, confined_to: Vec::new() }
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
        history.accept(5, &group, Digest([5; 32]), &Acceptance::default());
        history.accept(7, &node, Digest([7; 32]), &Acceptance::default());
        assert_eq!(history.serial, Some(7));
        assert!(history.is_redelivery(&group, Digest([5; 32])) && history.is_redelivery(&node, Digest([7; 32])));
        assert!(!history.is_redelivery(&node, Digest([5; 32])));
        history.accept(9, &node, Digest([9; 32]), &Acceptance::default());
        assert!(!history.is_redelivery(&node, Digest([7; 32])), "an old order is a replay");
    }

    #[test]
    fn each_key_has_a_floor_of_its_own_and_few_are_kept() {
        let key = |n: u64| -> KeyId { format!("{n:064x}").parse().unwrap() };
        let mut history = OrderHistory::default();
        let mut accept = |n, issued_at_ms, now_ms| {
            let acceptance = Acceptance { signers: vec![key(n)], issued_at_ms, now_ms };
            history.accept(1, &Target::Node("n".into()), Digest([1; 32]), &acceptance);
            history.clone()
        };
        accept(1, 50, Some(3 * DAY_MS + 9));
        accept(2, 70, None);
        let after = accept(1, 40, Some(DAY_MS));
        let floors = [1, 2, 3].map(|n| after.floor(key(n)));
        assert_eq!((floors, after.believed_ms), ([Some(50), Some(70), None], 3 * DAY_MS));
        (3..1000).for_each(|n| drop(accept(n, n, None)));
        let after = accept(1000, 1, None);
        assert_eq!((after.floors.len(), after.floor(key(2)), after.floor(key(999))), (MOST_FLOORS, None, Some(999)));
    }

    #[test]
    fn the_floor_of_older_programs_is_read() {
        let json = r#"{"serial":7,"accepted":[],"floor_ms":50}"#;
        let history: OrderHistory = serde_json::from_str(json).unwrap();
        assert_eq!((history.serial, history.floor_ms, history.floors.len()), (Some(7), 50, 0));
    }
}
