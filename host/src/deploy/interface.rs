//! Inputs and outputs of the deployer: what it is told, what it wants done, and the compiler that it asks.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

use bytes::Bytes;

use super::report::{Difference, TrialTally};
use crate::config;
use crate::manifest::{Manifest, StateScope, Trial};
use crate::message::{Digest, Failure};
use crate::sandbox::{Class, Grants, Limits};

/// What one compilation may use. A small function takes 50 ms and 7 MB, and the program itself 50 MB of addresses.
pub(crate) const COMPILE_MEMORY_BYTES: u64 = 512 << 20;
pub(crate) const COMPILE_CPU_SECS: u64 = 30;

/// An event that the deployer handles.
#[derive(Debug)]
pub(crate) enum Request {
    /// A message under the topics of orders and chunks.
    Message {
        topic: Box<str>,
        payload: Bytes,
    },
    Compiled {
        function: Arc<str>,
        edition: u32,
        result: Result<Bytes, CompilerError>,
    },
    Trial {
        function: Arc<str>,
        edition: u32,
        event: TrialEvent,
    },
    Quarantined {
        function: Arc<str>,
        is_quarantined: bool,
    },
    /// The configuration was read again.
    Keys(Box<config::Deploy>),
    Connected,
    Disconnected,
    /// Once per second.
    Tick,
}

/// Progress of a version after it was handed to the pipeline.
#[derive(Clone, Debug, PartialEq)]
pub enum TrialEvent {
    /// Every worker has loaded it, and it serves or runs as a shadow.
    Ready,
    NotLoaded {
        error: String,
    },
    Progress {
        tally: TrialTally,
        samples: Vec<Difference>,
    },
    Passed,
    Failed {
        failure: Failure,
    },
}

/// An effect that the deployer asks for. Effects are carried out in order.
#[derive(Debug)]
pub(crate) enum Action {
    /// Subscribe, also again, to the chunks of a module: the broker then sends the retained ones.
    Fetch {
        digest: Digest,
    },
    /// Unsubscribe from the chunks of a module.
    EndFetch {
        digest: Digest,
    },
    /// Subscribe again to the orders: some were dropped, or may be accepted now.
    FetchOrders,
    Compile {
        function: Arc<str>,
        edition: u32,
        digest: Digest,
        wasm: Bytes,
        class: Class,
    },
    Start(Start),
    /// Remove all versions of a function, the candidate included.
    Stop {
        function: Arc<str>,
    },
    /// End a candidate; the active version keeps serving.
    DropCandidate {
        function: Arc<str>,
        edition: u32,
    },
    /// Make a candidate on trial the active version.
    Promote {
        function: Arc<str>,
        edition: u32,
    },
    /// Publish a report, retained. An empty payload deletes an earlier one.
    Report {
        function: Arc<str>,
        payload: Bytes,
    },
    /// Delete compiled code of all other modules.
    RetainCode {
        digests: BTreeSet<Digest>,
    },
}

/// A version to be put into service.
#[derive(Clone, Debug)]
pub(crate) struct Start {
    /// Identifies one version of one function until the daemon ends.
    pub edition: u32,
    pub installed: Installed,
    /// `None`: it replaces the active version at once.
    pub trial: Option<Trial>,
}

/// A function that workers can load.
#[derive(Clone, Debug)]
pub(crate) struct Installed {
    pub manifest: Arc<Manifest>,
    pub digest: Digest,
    /// Native code from this host's compiler, or from a source that is trusted to send such code. Empty code cannot be
    /// loaded.
    pub code: Bytes,
    pub from_cache: bool,
}

impl Installed {
    /// A version that was compiled, or read from a trusted file, just now.
    pub(crate) fn new(manifest: Manifest, digest: Digest, code: Bytes) -> Self {
        Self { manifest: manifest.into(), digest, code, from_cache: false }
    }

    pub(crate) fn limits(&self) -> Limits {
        let limits = &self.manifest.limits;
        Limits {
            fuel: limits.fuel.get(),
            timeout_ms: limits.timeout_ms.get(),
            memory_bytes: limits.memory_bytes.get(),
            outputs: limits.outputs as usize,
            output_bytes: limits.output_bytes,
            state_bytes: match self.manifest.state {
                StateScope::None => 0,
                _ => limits.state_bytes,
            },
        }
    }

    pub(crate) fn grants(&self) -> Grants {
        Grants::from(&self.manifest.allow)
    }

    pub(crate) fn settings(&self) -> Vec<(String, String)> {
        self.manifest.config.iter().map(|(key, value)| (key.clone(), value.clone())).collect()
    }
}

/// A source of native code for modules.
pub(crate) trait CompileBackend: Send + Sync {
    fn cached(&self, digest: &Digest, class: Class) -> Option<Bytes>;

    /// Blocks for as long as the compiler runs.
    fn compile(&self, digest: &Digest, wasm: &[u8], class: Class) -> Result<Bytes, CompilerError>;

    /// Deletes cached code of all other modules.
    fn retain(&self, digests: &BTreeSet<Digest>);
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum CompilerError {
    /// The compiler's own words about the module.
    #[error("{0}")]
    Refused(String),
    #[error("compiling took more than {COMPILE_CPU_SECS} s: the module is too complex for this host")]
    Time,
    #[error(
        "compiling took more than {} MiB of memory: the module is too complex for this host",
        COMPILE_MEMORY_BYTES >> 20
    )]
    Memory,
    /// SIGKILL, which on a board comes from the kernel's OOM killer.
    #[error(
        "the kernel killed the compiler, as it does when memory runs out: give the board or the service more memory, or \
         push the function with code that was compiled elsewhere"
    )]
    Killed,
    #[error("the compiler ended with {0}")]
    Ended(String),
    #[error("failed to run the compiler")]
    Run(#[from] io::Error),
    #[error(
        "this build of sedge has no compiler and no cached code of this module: push code that was compiled for this \
         board (`sedge push --code`), or install a full build of sedge {}",
        env!("CARGO_PKG_VERSION")
    )]
    NoCompiler,
}
