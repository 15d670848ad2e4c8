//! Reasons for a refused order or an unexpected state of a function: a code for programs and a sentence for people.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The closed list of reasons. The names are published: never rename one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    /// Not an envelope, or the payload is not an order.
    BadEnvelope,
    Unsigned,
    /// Signed only by keys that this board does not trust.
    UnknownKey,
    /// The signature does not match the trusted key that it names: something was changed on the way.
    BadSignature,
    /// The key is not trusted for this function, these topics, or changing keys.
    KeyNotAllowed,
    /// Signed by a key that may not send native code.
    CodeNotAllowed,
    /// The target differs from the topic, or is not this board.
    WrongTarget,
    Expired,
    /// The serial is not above that of an accepted order.
    ReplayedSerial,
    /// Too far above the last serial: it would lock later orders out.
    SerialTooHigh,
    InvalidManifest,
    /// Above a limit of this board: manifest, module size, number of functions, compiler.
    OverLimit,
    /// The function subscribes to what it publishes.
    FeedbackLoop,
    /// A chunk, or the module, does not have the signed length.
    SizeMismatch,
    /// A chunk, or the module, does not have the signed digest.
    DigestMismatch,
    /// The chunk's index is wrong.
    ChunkIndex,
    /// Not all chunks arrived in time.
    Truncated,
    DiskFull,
    DiskFailed,
    /// Nothing in the order can run on this board.
    NoCode,
    /// Not WebAssembly, made for another world, or not runnable.
    InvalidModule,
    /// The compiler could not be run: a problem of the board, not of the module.
    CompilerFailed,
    /// The workers could not load it.
    NotLoaded,
    /// The module is missing on this board's disk.
    ModuleMissing,
    /// A newer order took its place.
    Superseded,
    FailedTrial,
    /// There is no version to roll back to.
    NoPrevious,
    /// The function is not installed.
    NotInstalled,
    /// No version is on trial.
    NoTrial,
    /// An order asked for it.
    Requested,
    /// The function failed too often in a row and is paused.
    Quarantined,
    /// The function's record could not be read.
    DamagedRecord,
    /// A reason of a newer board.
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

/// A reason with a sentence that names the value and the fix.
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
