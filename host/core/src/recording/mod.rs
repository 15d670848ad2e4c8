//! Recordings: the inputs of a function with their outcomes, as lines of JSON. See `docs/testing-functions.md`.
//!
//! ```text
//! {"recording":{..}}      what was recorded, first
//! {"version":{..}}        version and settings of the runs that follow, before the first run and after each change
//! {"state":{..}}          a scope's state before the run that follows, the first of this scope
//! {"message":{..}}        input of a run
//! {"drawn":{..}}          what this run read of clocks and random numbers, if anything
//! {"unsure":{}}           this run cannot be repeated: its settings were being changed, or its draws were not kept
//! {"refused":{..}}        why the board did not take the outcome of this run, if it did not
//! {"outcome":{..}}        outcome of this run
//! {"end":{..}}            number of runs, and SHA-256 of all lines before this one
//! ```
//!
//! The runs are in their own order, which is that of the commits of each scope.

mod bytes;
mod line;
mod outcome;

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::manifest::StateScope;
use crate::message::{Digest, FailureCode, Message, Outcome};
use crate::settings::{Origin, Resolved};

pub use bytes::Data;
pub use line::{Line, MessageLine};
pub use outcome::{OutcomeLine, has_failed, outcome_of, without_fuel};

/// Number of the format that this module writes and reads.
pub const FORMAT: u32 = 1;
/// The contract of functions whose messages and outputs the format can hold.
pub const CONTRACT: &str = "sedge:function@0.2.0";
/// Longest line that is read. A payload of 64 MiB fits.
pub const MAX_LINE_BYTES: usize = 128 << 20;
/// Values of clocks, and bytes of random numbers, that are recorded of one run.
pub const MAX_CLOCKS: usize = 1024;
pub const MAX_RANDOM_BYTES: usize = 64 << 10;

/// The first line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    pub format: u32,
    pub contract: String,
    pub node: String,
    pub base_topic: String,
    pub function: String,
    /// Owner of the state: "none", "topic" or "function".
    pub state: String,
    /// Unix time of the board.
    pub begun_at_ms: u64,
    /// What was left out or hashed before it left the operator's computer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub redacted: Vec<String>,
}

impl Header {
    pub fn new(node: &str, base_topic: &str, function: &str, scope: StateScope, begun_at_ms: u64) -> Self {
        Self {
            format: FORMAT,
            contract: CONTRACT.to_owned(),
            node: node.to_owned(),
            base_topic: base_topic.to_owned(),
            function: function.to_owned(),
            state: scope_name(scope).to_owned(),
            begun_at_ms,
            redacted: Vec::new(),
        }
    }
}

/// The name of a scope in `function.toml`.
pub const fn scope_name(scope: StateScope) -> &'static str {
    match scope {
        StateScope::None => "none",
        StateScope::Topic => "topic",
        StateScope::Function => "function",
    }
}

/// The version and the settings of the runs that follow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordedVersion {
    pub version: String,
    /// Digest of the component, the script or the native code.
    pub digest: Digest,
    /// Section `[config]` of the function itself.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub config: BTreeMap<String, String>,
    /// What the board lays over it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub settings: BTreeMap<String, String>,
    /// The same for topics that a filter matches. Later ones replace earlier ones.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub topics: Vec<(String, BTreeMap<String, String>)>,
    /// Names of settings whose values are secret, which are not recorded.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secret: Vec<String>,
}

impl RecordedVersion {
    pub fn new(version: &str, digest: Digest, config: &BTreeMap<String, String>, settings: &Resolved) -> Self {
        let mut secret: Vec<String> = Vec::new();
        let mut plain = |settings: &BTreeMap<String, crate::settings::Setting>| {
            let mut kept = BTreeMap::new();
            for (name, setting) in settings.iter().filter(|(_, setting)| setting.origin != Origin::Function) {
                match setting.is_secret {
                    true if secret.contains(name) => {}
                    true => secret.push(name.clone()),
                    false => drop(kept.insert(name.clone(), setting.text.to_string())),
                }
            }
            kept
        };
        Self {
            version: version.to_owned(),
            digest,
            config: config.clone(),
            settings: plain(&settings.all),
            topics: settings
                .topics
                .iter()
                .map(|(filter, settings)| (filter.as_str().to_owned(), plain(settings)))
                .collect(),
            secret,
        }
    }
}

/// What a run read of clocks and random numbers, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drawn {
    /// Nanoseconds.
    pub clocks: Vec<u64>,
    pub random: Vec<u8>,
    /// There was more than a recording keeps.
    pub is_cut: bool,
}

impl Drawn {
    pub fn is_empty(&self) -> bool {
        self.clocks.is_empty() && self.random.is_empty() && !self.is_cut
    }

    /// Memory, and about the size on disk.
    pub fn bytes(&self) -> usize {
        self.clocks.len() * 20 + self.random.len() * 4 / 3
    }
}

/// Why the board did not take an outcome, although the function returned it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedOutcome {
    pub reason: String,
    pub detail: String,
}

/// The last line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    pub runs: u64,
    pub why: Why,
    pub sha256: Digest,
}

/// Why a recording ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Why {
    /// The time that was asked for is over.
    Time,
    /// As many messages as were asked for.
    Messages,
    /// As many bytes as the board or the request allows.
    Bytes,
    /// A person ended it.
    Asked,
    /// Messages came faster than the disk took them: what followed is missing.
    Overrun,
    /// The disk failed, or was full.
    Disk,
    /// The daemon ended.
    DaemonEnded,
    /// The function was removed.
    Removed,
    /// A version came whose state belongs to something else.
    OtherState,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Time => "the time is over",
            Self::Messages => "as many messages as were asked for",
            Self::Bytes => "the limit of its size",
            Self::Asked => "it was ended",
            Self::Overrun => "messages came faster than the disk took them",
            Self::Disk => "the disk failed, or was full",
            Self::DaemonEnded => "the daemon ended",
            Self::Removed => "the function was removed",
            Self::OtherState => "a version with another `state` came",
        })
    }
}

/// Everything that is recorded of one run.
#[derive(Debug)]
pub struct RecordedRun<'a> {
    /// Version and settings, if they are others than those of the run before.
    pub version: Option<&'a RecordedVersion>,
    pub state: Option<Scope<'a>>,
    pub message: &'a Message,
    pub drawn: Option<&'a Drawn>,
    pub is_unsure: bool,
    pub refused: Option<(FailureCode, &'a str)>,
    pub outcome: &'a Outcome,
}

/// A scope's state before its first run.
pub type Scope<'a> = (Option<&'a str>, &'a [(Box<str>, ::bytes::Bytes)]);

/// Writes the lines of a recording into a buffer that the caller empties.
#[derive(Debug, Default)]
pub struct Encoder {
    seal: Seal,
    pub lines: Vec<u8>,
}

/// Counts runs, and hashes the lines.
#[derive(Clone, Debug, Default)]
pub struct Seal {
    hash: Sha256,
    pub runs: u64,
}

impl Seal {
    /// Takes a line, with its line feed.
    pub fn add(&mut self, line: &[u8]) {
        self.hash.update(line);
    }

    pub fn end(&self, why: Why) -> End {
        End { runs: self.runs, why, sha256: Digest(self.hash.clone().finalize().into()) }
    }
}

impl Encoder {
    pub fn runs(&self) -> u64 {
        self.seal.runs
    }

    pub fn header(&mut self, header: &Header) {
        self.line("recording", header);
    }

    /// Seals lines of so many runs, which the caller writes itself.
    pub fn seal_runs(&mut self, lines: &[u8], runs: u64) {
        self.seal.add(lines);
        self.seal.runs += runs;
    }

    /// A line of another recording, with its line feed. `is_outcome`: the last of a run.
    pub fn copy(&mut self, line: &[u8], is_outcome: bool) {
        self.lines.extend_from_slice(line);
        self.seal_runs(line, is_outcome.into());
    }

    pub fn message(&mut self, message: &MessageLine<'_>) {
        self.line("message", message);
    }

    pub fn state(&mut self, state: &line::StateLine<'_>) {
        self.line("state", state);
    }

    pub fn end(&mut self, why: Why) -> End {
        let end = self.seal.end(why);
        self.line("end", &end);
        end
    }

    fn line(&mut self, kind: &str, content: &impl Serialize) {
        let begun = self.lines.len();
        append_line(kind, content, &mut self.lines);
        self.seal.add(&self.lines[begun..]);
    }
}

/// Appends the lines of a run.
pub fn append_run(run: &RecordedRun<'_>, lines: &mut Vec<u8>) {
    if let Some(version) = run.version {
        append_line("version", version, lines);
    }
    if let Some((topic, entries)) = run.state {
        append_line("state", &line::StateLine::of(topic, entries), lines);
    }
    append_line("message", &MessageLine::of(run.message), lines);
    if let Some(drawn) = run.drawn.filter(|drawn| !drawn.is_empty()) {
        append_line("drawn", &line::DrawnLine::of(drawn), lines);
    }
    if run.is_unsure {
        append_line("unsure", &line::Unsure {}, lines);
    }
    if let Some((code, detail)) = run.refused {
        let refused = RefusedOutcome { reason: code.as_str().to_owned(), detail: detail.to_owned() };
        append_line("refused", &refused, lines);
    }
    outcome_of(run.outcome, lines);
}

fn append_line(kind: &str, content: &impl Serialize, lines: &mut Vec<u8>) {
    lines.extend_from_slice(b"{\"");
    lines.extend_from_slice(kind.as_bytes());
    lines.extend_from_slice(b"\":");
    serde_json::to_writer(&mut *lines, content).expect("the lines have only string keys");
    lines.extend_from_slice(b"}\n");
}

#[cfg(test)]
mod tests;
