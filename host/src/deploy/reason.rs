//! Why an order was refused, or why a function is not what was asked for: a code for programs and a sentence for people.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The closed list. The names are published: never rename one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    /// No envelope, or what it holds is no order.
    BadEnvelope,
    Unsigned,
    /// Signed, but by no key that this board trusts.
    UnknownKey,
    /// A trusted key is named, and the signature is not its own: something was changed on the way.
    BadSignature,
    /// The key is trusted, but not for this function, these topics, or changing keys.
    KeyNotAllowed,
    /// Signed by a key that may not send native code.
    CodeNotAllowed,
    /// For another node, group or function than the topic says, or not for this board.
    WrongTarget,
    Expired,
    /// An older order, or another one with a serial that was used.
    ReplayedSerial,
    /// So far above the last serial that no later order could ever be higher.
    SerialTooHigh,
    InvalidManifest,
    /// More than this board allows: limits of the manifest, size of the module, number of functions, effort of compiling.
    OverLimit,
    /// The function would hear what it publishes.
    FeedbackLoop,
    /// A chunk, or the whole, has another length than was signed.
    SizeMismatch,
    /// A chunk, or the whole, is not what was signed.
    DigestMismatch,
    /// A chunk with a number that the module does not have.
    ChunkIndex,
    /// Not all chunks came in time.
    Truncated,
    DiskFull,
    DiskFailed,
    /// It brings nothing that this board can run: it has no compiler, or code for other boards only.
    NoCode,
    /// No WebAssembly, another world, or it cannot run.
    InvalidModule,
    /// The compiler itself could not be run: the board's load_error, not the module's.
    CompilerFailed,
    /// The workers could not load it.
    NotLoaded,
    /// The module is gone from this board's disk.
    ModuleMissing,
    /// A newer order took its place.
    Superseded,
    FailedTrial,
    /// There is no version to go back to.
    NoPrevious,
    /// Nothing by this name is installed.
    NotInstalled,
    /// There is no trial that could be decided.
    NoTrial,
    /// An order said so.
    Requested,
    /// It kept failing and is paused.
    Quarantined,
    /// What was kept about the function could not be read.
    DamagedRecord,
    /// From a newer board than this program knows.
    Unknown,
}

impl Reason {
    pub const ALL: [Self; 33] = [
        Self::BadEnvelope,
        Self::Unsigned,
        Self::UnknownKey,
        Self::BadSignature,
        Self::KeyNotAllowed,
        Self::CodeNotAllowed,
        Self::WrongTarget,
        Self::Expired,
        Self::ReplayedSerial,
        Self::SerialTooHigh,
        Self::InvalidManifest,
        Self::OverLimit,
        Self::FeedbackLoop,
        Self::SizeMismatch,
        Self::DigestMismatch,
        Self::ChunkIndex,
        Self::Truncated,
        Self::DiskFull,
        Self::DiskFailed,
        Self::NoCode,
        Self::InvalidModule,
        Self::CompilerFailed,
        Self::NotLoaded,
        Self::ModuleMissing,
        Self::Superseded,
        Self::FailedTrial,
        Self::NoPrevious,
        Self::NotInstalled,
        Self::NoTrial,
        Self::Requested,
        Self::Quarantined,
        Self::DamagedRecord,
        Self::Unknown,
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::BadEnvelope => "bad-envelope",
            Self::Unsigned => "unsigned",
            Self::UnknownKey => "unknown-key",
            Self::BadSignature => "bad-signature",
            Self::KeyNotAllowed => "key-not-allowed",
            Self::CodeNotAllowed => "code-not-allowed",
            Self::WrongTarget => "wrong-target",
            Self::Expired => "expired",
            Self::ReplayedSerial => "replayed-serial",
            Self::SerialTooHigh => "serial-too-high",
            Self::InvalidManifest => "invalid-manifest",
            Self::OverLimit => "over-limit",
            Self::FeedbackLoop => "feedback-loop",
            Self::SizeMismatch => "size-mismatch",
            Self::DigestMismatch => "digest-mismatch",
            Self::ChunkIndex => "chunk-index",
            Self::Truncated => "truncated",
            Self::DiskFull => "disk-full",
            Self::DiskFailed => "disk-failed",
            Self::NoCode => "no-code",
            Self::InvalidModule => "invalid-module",
            Self::CompilerFailed => "compiler-failed",
            Self::NotLoaded => "not-loaded",
            Self::ModuleMissing => "module-missing",
            Self::Superseded => "superseded",
            Self::FailedTrial => "failed-trial",
            Self::NoPrevious => "no-previous",
            Self::NotInstalled => "not-installed",
            Self::NoTrial => "no-trial",
            Self::Requested => "requested",
            Self::Quarantined => "quarantined",
            Self::DamagedRecord => "damaged-record",
            Self::Unknown => "unknown",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.as_str() == name)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl Serialize for Reason {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Reason {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self::from_name(&String::deserialize(deserializer)?).unwrap_or(Self::Unknown))
    }
}

/// Why not, with a sentence that names the thing and how to mend it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: {detail}")]
pub struct Refusal {
    pub reason: Reason,
    pub detail: String,
}

impl Refusal {
    pub fn new(reason: Reason, detail: impl Into<String>) -> Self {
        Self { reason, detail: detail.into() }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_reason_has_a_name_of_its_own() {
        let names: HashSet<&str> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
        assert_eq!(names.len(), Reason::ALL.len());
        for (number, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, number);
            assert_eq!(Reason::from_name(reason.as_str()), Some(reason));
        }
        assert_eq!(serde_json::from_str::<Reason>("\"of-tomorrow\"").unwrap(), Reason::Unknown);
    }
}
