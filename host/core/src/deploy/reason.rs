//! Reasons for a refused order or an unexpected state of a function: a code for programs and a sentence for people.

/// Declares an enum whose variants have published names, among them `Unknown` for names of newer boards.
macro_rules! named_enum {
    ($(#[$meta:meta])* pub enum $Enum:ident { $($(#[$doc:meta])* $Variant:ident = $name:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
        pub enum $Enum {
            $($(#[$doc])* #[serde(rename = $name)] $Variant,)+
        }

        impl $Enum {
            pub const ALL: &[Self] = &[$(Self::$Variant),+];

            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$Variant => $name,)+
                }
            }
        }

        impl std::fmt::Display for $Enum {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.as_str())
            }
        }
    };
}
pub(crate) use named_enum;

named_enum! {
    /// The closed list of reasons. The names are published: never rename one.
    pub enum Reason {
        /// Not an envelope, or the payload is not an order.
        BadEnvelope = "bad-envelope",
        Unsigned = "unsigned",
        /// Signed only by keys that this board does not trust.
        UnknownKey = "unknown-key",
        /// The signature does not match the trusted key that it names: something was changed on the way.
        BadSignature = "bad-signature",
        /// The key is not trusted for this function, these topics, or changing keys.
        KeyNotAllowed = "key-not-allowed",
        /// Signed by a key that may not send native code.
        CodeNotAllowed = "code-not-allowed",
        /// No key would be left that may change keys and has shown that it can sign.
        LastKey = "last-key",
        /// The target differs from the topic, or is not this board.
        WrongTarget = "wrong-target",
        Expired = "expired",
        /// The serial is not above that of an accepted order.
        ReplayedSerial = "replayed-serial",
        /// Too far above the last serial: it would lock later orders out.
        SerialTooHigh = "serial-too-high",
        InvalidManifest = "invalid-manifest",
        /// A setting that the function does not take, or lacks.
        BadSetting = "bad-setting",
        /// Built on an older order of settings than the latest one.
        Conflict = "conflict",
        /// Above a limit of this board: manifest, module size, number of functions, compiler.
        OverLimit = "over-limit",
        /// The function subscribes to what it publishes.
        FeedbackLoop = "feedback-loop",
        /// Another function of the board takes the same requests over HTTP.
        RouteTaken = "route-taken",
        /// A chunk, or the module, does not have the signed length.
        SizeMismatch = "size-mismatch",
        /// A chunk, or the module, does not have the signed digest.
        DigestMismatch = "digest-mismatch",
        /// The chunk's index is wrong.
        ChunkIndex = "chunk-index",
        /// Not all chunks arrived in time.
        Truncated = "truncated",
        DiskFull = "disk-full",
        DiskFailed = "disk-failed",
        /// Nothing in the order can run on this board.
        NoCode = "no-code",
        /// Not WebAssembly, made for another world, or not runnable.
        InvalidModule = "invalid-module",
        /// The compiler could not be run: a problem of the board, not of the module.
        CompilerFailed = "compiler-failed",
        /// The workers could not load it.
        NotLoaded = "not-loaded",
        /// The module is missing on this board's disk.
        ModuleMissing = "module-missing",
        /// A newer order took its place.
        Superseded = "superseded",
        FailedTrial = "failed-trial",
        /// There is no version to roll back to.
        NoPrevious = "no-previous",
        /// The function is not installed.
        NotInstalled = "not-installed",
        /// No version is on trial.
        NoTrial = "no-trial",
        /// An order asked for it.
        Requested = "requested",
        /// The function failed too often in a row and is paused.
        Quarantined = "quarantined",
        /// The function's record could not be read.
        DamagedRecord = "damaged-record",
        /// A reason of a newer board.
        #[serde(other)]
        Unknown = "unknown",
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
        for (number, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, number);
            let json = format!("\"{reason}\"");
            assert_eq!(serde_json::to_string(reason).unwrap(), json);
            assert_eq!(serde_json::from_str::<Reason>(&json).unwrap(), *reason);
        }
        assert_eq!(serde_json::from_str::<Reason>("\"of-tomorrow\"").unwrap(), Reason::Unknown);
    }
}
