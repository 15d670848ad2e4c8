//! Inputs and outputs of the deployer.

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;

use super::report::{Difference, TrialTally};
use super::requests::AcceptedRequest;
use super::source::Source;
use crate::config;
use crate::isa::Class;
use crate::manifest::Manifest;
use crate::message::{Digest, Failure};
use crate::settings::Overlay;
use crate::version::Version;

/// What one compilation may use. A small function takes 50 ms and 7 MB, and the program itself 50 MB of addresses.
pub const COMPILE_MEMORY_BYTES: u64 = 512 << 20;
pub const COMPILE_CPU_SECS: u64 = 30;

/// Contents of the deploy folder and of the functions' folders at the start.
#[derive(Debug)]
pub struct Boot {
    /// The changes of the trusted keys, if there were any.
    pub keys: Option<Bytes>,
    /// The record of each function, or `None` if it cannot be read.
    pub records: Vec<(Arc<str>, Option<Bytes>)>,
    /// The accepted orders of settings of each function, in the same way.
    pub settings: Vec<(Arc<str>, Option<Bytes>)>,
    /// The functions of the configuration.
    pub folders: Vec<FolderFunction>,
}

/// A function of the configuration, in its folder. Its file is read only if its code is not in the cache.
#[derive(Debug)]
pub struct FolderFunction {
    pub manifest: Manifest,
    pub source: Source,
    /// Digest of the file, or `None` if it cannot be read.
    pub digest: Option<Digest>,
    /// Digest of the component, if the file is native code and the component exists too.
    pub component: Option<Digest>,
}

/// A file of the deploy folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoredFile {
    /// The changes of the trusted keys.
    Keys,
    /// The record of a function.
    Record(Arc<str>),
    /// The accepted orders of settings of a function.
    Settings(Arc<str>),
    /// The chunks of a module that a function waits for.
    Staging(Arc<str>, Digest),
    /// A whole module.
    Module(Digest),
}

/// An operation on files. Each is answered once, in order, before the next is requested.
#[derive(Debug)]
pub enum DiskRequest {
    /// Fails with [`io::ErrorKind::NotFound`] if the file does not exist.
    Exists(StoredFile),
    Read(StoredFile),
    /// Read a component or native code in a function's folder.
    ReadSource(PathBuf),
    /// Read a module's native code from the cache. Fails if it is not there.
    ReadCache {
        digest: Digest,
        class: Class,
    },
    /// Replace the contents of a file, or create it. After a loss of power the file is the old or the new one as a whole.
    Replace(StoredFile, Bytes),
    /// Write a part of a file, which a loss of power may undo.
    WriteAt {
        file: StoredFile,
        offset: u64,
        bytes: Bytes,
    },
    /// Make the complete chunks of a function a module.
    Finish {
        function: Arc<str>,
        digest: Digest,
    },
    /// Remove a file, which may reappear after a loss of power. Succeeds if it does not exist.
    Remove(StoredFile),
    /// Rename a damaged file, for a person to inspect.
    SetAside(StoredFile),
    /// Delete all other modules and chunks.
    Retain {
        modules: BTreeSet<Digest>,
        staging: BTreeSet<(Arc<str>, Digest)>,
    },
}

/// The content that was read. Empty for an operation that reads nothing.
pub type DiskAnswer = io::Result<Bytes>;

/// An event that the deployer handles.
#[derive(Debug)]
pub enum Request {
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
    /// The same, with what the board lays over the settings of functions.
    Settings(Box<config::settings::BoardLayer>),
    /// The pipeline runs no message with settings older than those of [`Action::Settings`].
    SettingsInForce {
        function: Arc<str>,
        change: u64,
    },
    Connected,
    Disconnected,
    /// At the start: the last [`Action::Compile`] takes long. [`Request::Compiled`] follows, and the others start meanwhile.
    Postponed,
    /// Answer to the last [`Action::Disk`].
    Disk(DiskAnswer),
    /// Messages were dropped because too many arrived.
    Dropped,
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
    /// The time of the trial passed before its messages came. A live version counts as active; it stays guarded.
    Late,
    Passed,
    Failed {
        failure: Failure,
    },
}

/// A module to be compiled. Answered by [`Request::Compiled`].
#[derive(Clone, Debug)]
pub struct Compilation {
    pub function: Arc<str>,
    pub edition: u32,
    pub digest: Digest,
    pub wasm: Bytes,
    pub class: Class,
}

/// An effect that the deployer asks for. Effects are carried out in order.
#[derive(Debug)]
pub enum Action {
    /// Operate on files. No further action follows before the answer, [`Request::Disk`].
    Disk(DiskRequest),
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
    Compile(Compilation),
    /// Put a version into service.
    Start(Box<Version>),
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
    /// Lay this over the settings of a function, instead of what was.
    Settings {
        function: Arc<str>,
        change: u64,
        overlay: Overlay,
    },
    /// Publish a report, retained. An empty payload deletes an earlier one.
    Report {
        function: Arc<str>,
        payload: Bytes,
    },
    /// Carry out a request.
    Request(Box<AcceptedRequest>),
    /// Publish a reply to a request, not retained.
    Reply {
        id: Arc<str>,
        number: u32,
        payload: Bytes,
    },
    /// Delete compiled code of all other modules.
    RetainCode {
        digests: BTreeSet<Digest>,
    },
}

#[derive(Debug, thiserror::Error)]
pub enum CompilerError {
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
