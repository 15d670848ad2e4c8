//! What came of a replay: totals, and a bounded list of the messages that differ.

use std::collections::BTreeMap;
use std::time::Duration;

use sedge_core::message::Message;
use sedge_core::recording::{End, Header, RecordedVersion};
use sedge_core::text::printable;
use sedge_core::time::rfc3339;
use serde_json::{Value, json};

use super::compare::Compared;
use crate::runner::text_or_hex;
use crate::terminal::{self, say};
use crate::{GREEN, RED, paint_out};

/// Topics with other alerts that are counted apart.
const MAX_TOPICS: usize = 1000;
/// Topics with other alerts that are shown.
const SHOWN_TOPICS: usize = 20;
const SHOWN_PAYLOAD_CHARS: usize = 60;

/// Why a run was not compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Skipped {
    Deadline,
    WorkerCrashed,
    ManyDraws,
    Unsure,
}

impl Skipped {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Deadline => "ended by its deadline on the board",
            Self::WorkerCrashed => "its worker died on the board",
            Self::Unsure => "ran while its settings were changed, or while the recording began",
            Self::ManyDraws => "read more of clocks or random numbers than a recording keeps",
        }
    }
}

pub(crate) struct Report {
    header: Header,
    show: usize,
    versions: Vec<(String, String)>,
    is_same: bool,
    pub(crate) messages: u64,
    runs: u64,
    pub(crate) different: u64,
    skipped: BTreeMap<Skipped, u64>,
    unsynced: u64,
    ran_out: u64,
    pub(super) deadlines_here: u64,
    pub(super) fuel_recorded: u64,
    pub(super) fuel_now: u64,
    /// Number of the message, its time, topic and payload.
    shown: Vec<(u64, u64, String, String, Compared)>,
    /// Alerts recorded and now, of messages that differ, by topic.
    alerts: BTreeMap<String, (u64, u64)>,
    end: Option<End>,
    took: Duration,
}

impl Report {
    pub(super) fn new(header: Header, show: usize) -> Self {
        Self {
            header,
            show,
            versions: Vec::new(),
            is_same: false,
            messages: 0,
            runs: 0,
            different: 0,
            skipped: BTreeMap::new(),
            unsynced: 0,
            ran_out: 0,
            deadlines_here: 0,
            fuel_recorded: 0,
            fuel_now: 0,
            shown: Vec::new(),
            alerts: BTreeMap::new(),
            end: None,
            took: Duration::ZERO,
        }
    }

    pub(super) fn version(&mut self, version: &RecordedVersion, is_same: bool) {
        let it = (version.version.clone(), version.digest.to_string());
        if !self.versions.contains(&it) && self.versions.len() < MAX_TOPICS {
            self.versions.push(it);
        }
        self.is_same = is_same;
    }

    pub(super) fn message(&mut self, message: &Message) {
        self.messages += 1;
        self.unsynced += u64::from(!message.clock_synced);
    }

    pub(super) fn has_run(&mut self, ran_out: bool) {
        self.runs += 1;
        self.ran_out += u64::from(ran_out);
    }

    pub(super) fn skipped(&mut self, why: Skipped) {
        *self.skipped.entry(why).or_default() += 1;
    }

    pub(super) fn differs(&mut self, message: &Message, compared: Compared) {
        self.different += 1;
        let (recorded, now) = compared.alerts();
        if recorded != now {
            let known = self.alerts.contains_key(&*message.topic);
            let topic = if known || self.alerts.len() < MAX_TOPICS { &*message.topic } else { "(others)" };
            let counts = self.alerts.entry(topic.to_owned()).or_default();
            *counts = (counts.0 + recorded, counts.1 + now);
        }
        if self.shown.len() < self.show {
            let payload: String = text_or_hex(&message.payload).chars().take(SHOWN_PAYLOAD_CHARS).collect();
            let (topic, at) = (message.topic.to_string(), message.received_at_ms);
            self.shown.push((self.messages, at, topic, payload, compared));
        }
    }

    pub(super) fn ended(&mut self, end: End, took: Duration) {
        (self.end, self.took) = (Some(end), took);
    }

    /// SHA-256 of the recording.
    pub(crate) fn digest(&self) -> String {
        self.end.as_ref().map(|end| end.sha256.to_string()).unwrap_or_default()
    }

    fn skipped_count(&self) -> u64 {
        self.skipped.values().sum()
    }

    /// The last line, in words.
    pub(crate) fn verdict(&self) -> String {
        match (self.different, self.runs) {
            (0, 0) => "no message to compare".to_owned(),
            (0, _) => format!("{} messages, all equal", self.runs),
            (many, _) => format!("{many} of {} messages differ", self.messages - self.skipped_count()),
        }
    }

    pub(crate) fn print_differences(&self) {
        for (number, at_ms, topic, payload, compared) in &self.shown {
            say!("\nmessage {number}  {}  {topic}  {payload}", rfc3339(*at_ms));
            say!("  {} (- recorded, + now)", compared.what.join(", "));
            for line in compared.lines() {
                let line = terminal::printable_lines(&line);
                let colour = if line.starts_with('-') { RED } else { GREEN };
                terminal::raw(&format!("{}\n", paint_out(colour, &line)));
            }
        }
        let more = self.different - self.shown.len() as u64;
        if more > 0 {
            say!("\n... and {more} more messages that differ; --show N shows more");
        }
    }

    pub(super) fn print(&self) {
        self.print_differences();
        let versions: Vec<_> = self.versions.iter().map(|(version, _)| version.as_str()).collect();
        let header = &self.header;
        say!("\nrecording  {} of {}, version {}", header.function, header.node, versions.join(", "));
        if let Some(end) = &self.end {
            say!(
                "           from {}, {} messages; it ended because {}",
                rfc3339(header.begun_at_ms),
                end.runs,
                end.why
            );
        }
        if !header.redacted.is_empty() {
            say!("redacted   {}: what depends on it differs", header.redacted.join(", "));
        }
        if self.unsynced > 0 {
            say!(
                "clock      of {} messages the board's clock was not synchronised: their times are those that the function saw, not \
                 true ones; check the board's time with `sedge doctor`",
                self.unsynced
            );
        }
        for (why, count) in &self.skipped {
            say!("not run    {count}: {}", why.as_str());
        }
        if self.ran_out > 0 {
            say!("drawn      {} messages read more of clocks or random numbers than was recorded", self.ran_out);
        }
        if self.deadlines_here > 0 {
            say!("deadline   {} messages reached their deadline on this machine", self.deadlines_here);
        }
        for (topic, (recorded, now)) in self.alerts.iter().take(SHOWN_TOPICS) {
            say!("alerts     {topic}: {recorded} recorded, {now} now");
        }
        if self.alerts.len() > SHOWN_TOPICS {
            say!("alerts     ... and {} more topics", self.alerts.len() - SHOWN_TOPICS);
        }
        if self.fuel_recorded > 0 && !self.is_same {
            say!("fuel       {:.3} times what was recorded", self.fuel_now as f64 / self.fuel_recorded as f64);
        }
        let colour = if self.different == 0 { GREEN } else { RED };
        let secs = self.took.as_secs_f64();
        let rate = if secs > 0.0 { self.messages as f64 / secs } else { 0.0 };
        let verdict = paint_out(colour, &self.verdict());
        terminal::raw(&format!("\nreplay result: {verdict}; finished in {secs:.2}s, {rate:.0} messages/s\n"));
    }

    pub(super) fn print_json(&self) {
        say!("{}", terminal::json(&self.as_json()));
    }

    fn as_json(&self) -> Value {
        let shown = self.shown.iter().map(|(number, at_ms, topic, payload, compared)| {
            let mut value = compared.as_json();
            value["message"] = json!(number);
            value["received_at_ms"] = json!(at_ms);
            value["topic"] = json!(topic);
            value["payload"] = json!(payload);
            value
        });
        json!({
            "equal": self.different == 0,
            "function": self.header.function,
            "node": self.header.node,
            "versions": self.versions.iter().map(|(version, digest)| json!({ "version": version, "digest": digest })).collect::<Vec<_>>(),
            "recording": self.digest(),
            "redacted": self.header.redacted,
            "same_version": self.is_same,
            "messages": self.messages,
            "compared": self.messages - self.skipped_count(),
            "different": self.different,
            "not_replayable": self.skipped_count(),
            "clock_unsynced": self.unsynced,
            "ran_out": self.ran_out,
            "fuel_recorded": self.fuel_recorded,
            "fuel_now": self.fuel_now,
            "alerts": self.alerts.iter().map(|(topic, (recorded, now))| json!({ "topic": topic, "recorded": recorded, "now": now })).collect::<Vec<_>>(),
            "elapsed_ms": u64::try_from(self.took.as_millis()).unwrap_or(u64::MAX),
            "differences": shown.collect::<Vec<_>>(),
        })
    }
}

impl std::fmt::Debug for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Report({}: {})", printable(&self.header.function), self.verdict())
    }
}
