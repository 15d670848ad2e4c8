//! What must hold, whatever happens. Knows messages, commits and answers; knows nothing of the core.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use sedge_core::store::{Commit, Parked, Record, StoredRecord};
use sedge_core::stream::{PerStream, SinkId, Stream, StreamKind};

use crate::broker::Publication;
use crate::clients::Sent;
use crate::schedules::ScheduleModel;
use crate::silences::SilenceModel;
use crate::wakes::WakeModel;

/// A rule that was broken, in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    pub rule: &'static str,
    pub what: String,
}

pub const SETTLED_ONCE: &str = "each message ends in exactly one place";
pub const ACKNOWLEDGED_LATE: &str = "nothing is acknowledged before it is committed";
pub const ANSWERED_LATE: &str = "no request is answered before it is committed";
pub const ANSWERED_ONCE: &str = "each request is answered once, and its repeats alike";
pub const STATE_ONCE: &str = "state sees each message once";
pub const IN_ORDER: &str = "messages of one key are processed in order";
pub const ACK_ORDER: &str = "acknowledgements leave in the order of receipt";
pub const OUTBOX_ONCE: &str = "each record is delivered, or part of one gap, and never both";
pub const OUTBOX_ORDER: &str = "records of a stream leave in order";
pub const ALERTS_FIRST: &str = "alerts leave before data";
pub const OWN_COPY: &str = "each sink has a copy of each record";
pub const HISTORY: &str = "the history has what was recorded, in the same commit";
pub const TRIAL_SAFE: &str = "a version on trial never costs a message";
pub const PAUSES: &str = "a function is paused only for topics over which it failed";
pub const SETTINGS: &str = "once new settings are in force no message runs with older ones";
pub const WAKES: &str = "each wake runs once, and not before its time";
pub const SILENCES: &str = "a silent topic is told once, and not too early";
pub const SCHEDULES: &str = "each due time of a schedule runs once, and not before";
pub const TRACES: &str = "every message of a recorded trace that is on disk has a complete set of spans";
pub const BOUNDED: &str = "no queue grows over its bound";
pub const BUDGET: &str = "what messages hold stays within the budget";
pub const STATE_BOUND: &str = "state stays within its bounds";
pub const PROGRESS: &str = "everything is processed once faults stop";
pub const NOT_BUSY: &str = "the board is not due all the time while it has nothing to do";
pub const INVARIANT: &str = "no invariant of the core breaks";

/// Where alerts are published on the local broker.
const ECHO: &str = "sedge/board/alerts/";

pub const FUNCTIONS: [&str; 3] = ["f", "sum", "g"];

#[derive(Debug, Default)]
pub struct Reference {
    /// How often a message of this topic and payload must and may be settled by each function.
    expected: PerPair<(u32, u32)>,
    /// By function, then by topic and payload.
    settled: BTreeMap<&'static str, PerPair<u32>>,
    /// By topic and payload.
    acknowledged: PerPair<u32>,
    /// Requests over HTTP, and whether one was told that it was processed.
    requests: BTreeMap<(&'static str, String, String), bool>,
    /// By function and topic.
    last_number: PerPair<u64>,
    /// Messages that each function counted, by topic.
    counted: PerPair<u64>,
    /// Functions and topics over which they failed at least once.
    guilty: PerPair<()>,
    /// Records that were sent at least once, by stream.
    sent: PerStream<BTreeSet<u64>>,
    accepted: PerStream<BTreeSet<u64>>,
    /// Accepted, but the board forgot that: they may be sent again, or dropped.
    forgotten: PerStream<BTreeSet<u64>>,
    /// Records that were reported as lost, by stream and first record.
    gaps: BTreeMap<(Stream, u64), u64>,
    /// Alerts that the board was told of and has not sent, by stream.
    unsent_alerts: BTreeMap<Stream, BTreeSet<u64>>,
    /// Sinks that may have declined an alert: data passes while it waits for its next try.
    pub alerts_may_wait: BTreeSet<SinkId>,
    /// The sinks of the board.
    sinks: Vec<SinkId>,
    /// Traps of a version that passed its trial are its own.
    pub may_trap: bool,
    pub messages: u64,
    pub wakes: WakeModel,
    pub silences: SilenceModel,
    pub schedules: ScheduleModel,
    pub violations: Vec<Violation>,
}

/// A value for each pair of texts, looked up without a copy of them.
#[derive(Debug, Default)]
struct PerPair<V>(BTreeMap<String, BTreeMap<String, V>>);

impl<V: Default> PerPair<V> {
    fn get(&self, first: &str, second: &str) -> Option<&V> {
        self.0.get(first)?.get(second)
    }

    fn get_mut(&mut self, first: &str, second: &str) -> Option<&mut V> {
        self.0.get_mut(first)?.get_mut(second)
    }

    fn entry(&mut self, first: &str, second: &str) -> &mut V {
        entry(entry(&mut self.0, first), second)
    }
}

fn entry<'a, V: Default>(map: &'a mut BTreeMap<String, V>, key: &str) -> &'a mut V {
    if !map.contains_key(key) {
        map.insert(key.to_owned(), V::default());
    }
    map.get_mut(key).expect("a value was put in")
}

fn key_of(sent: &Sent) -> (&'static str, String, String) {
    (sent.function, sent.topic.clone(), sent.payload.clone())
}

fn function(name: &str) -> Option<&'static str> {
    FUNCTIONS.into_iter().find(|it| *it == name)
}

/// The first two words of a text.
fn words(text: &[u8]) -> Option<(&str, &str)> {
    let mut words = text.split(|byte| *byte == b' ').map(|word| str::from_utf8(word).ok());
    Some((words.next()??, words.next()??))
}

/// The scope of a wake that a message of this topic sets. `None`: the state of the function changes its scope.
fn wake_scope<'a>(function: &str, topic: &'a str) -> Option<&'a str> {
    match function {
        "f" => Some(topic),
        "sum" => Some(""),
        _ => None,
    }
}

/// Whether a message leaves something behind.
fn has_effect(payload: &str) -> bool {
    !payload.starts_with('-')
}

impl Reference {
    /// Of a board with these sinks.
    pub fn of(sinks: Vec<SinkId>) -> Self {
        Self { sinks, ..Self::default() }
    }

    pub fn broken(&mut self, rule: &'static str, what: String) {
        self.violations.push(Violation { rule, what });
    }

    /// The broker promises to deliver a message.
    pub fn published(&mut self, publication: &Publication) {
        self.messages += 1;
        let (must, may) = self.expected.entry(&publication.topic, &publication.payload);
        *must += u32::from(publication.qos == 1);
        *may += 1;
    }

    /// The same publisher sends a message again under the same id: it must take effect once.
    pub fn published_again(&mut self) {
        self.messages += 1;
    }

    /// The broker forgot a message: it need not take effect.
    pub fn forgotten(&mut self, publication: &Publication) {
        if publication.qos == 1
            && let Some((must, _)) = self.expected.get_mut(&publication.topic, &publication.payload)
        {
            *must = must.saturating_sub(1);
        }
    }

    /// A message may take effect once more: nothing tells its redelivery from a new message.
    pub fn may_repeat(&mut self, publication: &Publication) {
        if let Some((_, may)) = self.expected.get_mut(&publication.topic, &publication.payload) {
            *may += 1;
        }
    }

    pub fn committed(&mut self, commit: &Commit, trial_has_fallback: bool) {
        self.has_all_copies(commit);
        self.has_history(commit);
        let first = self.sinks.first().copied();
        for record in commit.records.iter().filter(|record| record.stream.sink().is_none_or(|it| Some(it) == first)) {
            let Some(function) = function(&record.function) else { continue };
            let (topic, payload): (Cow<'_, str>, Cow<'_, str>) = match record.stream.kind() {
                // The alert's local echo counts.
                StreamKind::Alert => continue,
                StreamKind::Local if record.payload.starts_with(b"{") => {
                    let text = String::from_utf8_lossy(&record.payload);
                    (field(&text, "topic").into(), field(&text, "key").into())
                }
                // Payload, topic and spaces up to a length.
                StreamKind::Local | StreamKind::Data => match words(&record.payload) {
                    Some((payload, topic)) => (topic.into(), payload.into()),
                    None => continue,
                },
            };
            if payload == "S" || payload == "B" {
                self.silence(function, &topic, payload == "B");
                continue;
            }
            if let Some(name) = payload.strip_prefix('W') {
                self.woken(function, &topic, name, true);
                continue;
            }
            if let Some(run) = payload.strip_prefix('Y') {
                self.ran(function, run);
                continue;
            }
            let is_first = self.settle(function, &topic, &payload);
            if let Some(scope) = wake_scope(function, &topic) {
                self.wakes.committed(function, scope, &payload);
            }
            if payload.starts_with('c') && function != "g" {
                *self.counted.entry(function, &topic) += 1;
            }
            // One that comes again, where that is allowed, comes late.
            if is_first && let Ok(number) = payload[1..].parse::<u64>() {
                let last = self.last_number.entry(function, &topic);
                if number < *last {
                    let what = format!("{function} on {topic} had {payload} after number {last}");
                    self.broken(IN_ORDER, what);
                } else {
                    *last = number;
                }
            }
        }
        for letter in &commit.dead_letters {
            let Some(function) = function(&letter.function) else { continue };
            let payload = String::from_utf8_lossy(&letter.message.payload);
            let reason = letter.failure.code.as_str();
            if letter.message.topic.starts_with(sedge_core::silence::TOPIC) {
                let is_back = &*letter.message.topic == sedge_core::silence::BACK;
                self.silence(function, letter.message.state_topic(), is_back);
                continue;
            }
            if let Some(name) = letter.message.topic.strip_prefix(sedge_core::wake::PREFIX) {
                self.woken(function, letter.message.state_topic(), name, false);
                continue;
            }
            if let Some(name) = letter.message.topic.strip_prefix(sedge_core::schedule::PREFIX) {
                let due = letter.message.property(sedge_core::schedule::DUE).unwrap_or_default();
                self.ran(function, &format!("{name}@{due}"));
                if reason == "quarantined" {
                    self.broken(SCHEDULES, format!("{name} of {function} did not wait for the end of the pause"));
                }
                continue;
            }
            if reason == "trap" && trial_has_fallback && !self.may_trap && !payload.starts_with('x') {
                let what = format!("{payload} of {function}: {}", letter.failure.detail);
                self.broken(TRIAL_SAFE, what);
            }
            if reason == "quarantined" && self.guilty.get(function, &letter.message.topic).is_none() {
                self.broken(PAUSES, format!("{payload} of {function} on {}", letter.message.topic));
            }
            self.settle(function, &letter.message.topic, &payload);
        }
    }

    fn silence(&mut self, function: &'static str, topic: &str, is_back: bool) {
        if function != "f" {
            return self.broken(SILENCES, format!("{function} watches nothing"));
        }
        let told = if is_back { self.silences.back(topic) } else { self.silences.told(topic) };
        if let Err(what) = told {
            self.broken(SILENCES, what);
        }
    }

    /// Each sink has what the first one has, in the same order.
    fn has_all_copies(&mut self, commit: &Commit) {
        let of = |stream| of(&commit.records, stream).map(|it| (&it.topic, &it.payload));
        let Some((first, others)) = self.sinks.split_first() else { return };
        let is_alike = |sink: &SinkId| {
            of(Stream::alerts(*sink)).eq(of(Stream::alerts(*first)))
                && of(Stream::data(*sink)).eq(of(Stream::data(*first)))
        };
        if let Some(sink) = others.iter().find(|sink| !is_alike(sink)) {
            let what = format!("sink {} lacks a record of a commit, or has one more", sink.index());
            self.broken(OWN_COPY, what);
        }
    }

    /// The history has each result once, however many sinks get it, and each alert.
    fn has_history(&mut self, commit: &Commit) {
        let is_echo = |it: &&Record| it.topic.starts_with(ECHO);
        let local = || of(&commit.records, Stream::LOCAL);
        let has_alerts = payloads(local().filter(is_echo)).eq(payloads(of(&commit.history, Stream::ALERT)));
        let has_local = payloads(local().filter(|it| !is_echo(it))).eq(payloads(of(&commit.history, Stream::LOCAL)));
        let has_data = self.sinks.first().is_none_or(|sink| {
            payloads(of(&commit.records, Stream::data(*sink))).eq(payloads(of(&commit.history, Stream::DATA)))
        });
        if !(has_alerts && has_local && has_data) {
            self.broken(HISTORY, "a commit records something that its history lacks, or has once more".to_owned());
        }
    }

    fn ran(&mut self, function: &'static str, run: &str) {
        if let Err(what) = self.schedules.committed(function, run) {
            self.broken(SCHEDULES, what);
        }
    }

    fn woken(&mut self, function: &'static str, topic: &str, name: &str, is_done: bool) {
        if let Some(scope) = wake_scope(function, topic)
            && let Err(what) = self.wakes.woken(function, scope, name, is_done)
        {
            self.broken(WAKES, what);
        }
    }

    /// The board had state deleted, to make room for other state.
    pub fn state_forgotten(&mut self, function: &str, topic: Option<&str>) {
        if let Some(counted) = self.counted.0.get_mut(function) {
            counted.retain(|on, _| topic.is_some_and(|topic| topic != on));
        }
    }

    /// A run of a function failed over a message of this topic, or the worker died that had one.
    pub fn failed_over(&mut self, function: u32, topic: &str) {
        if let Some(function) = FUNCTIONS.get(function as usize) {
            self.guilty.entry(function, topic);
        }
    }

    /// Returns whether it is the first time.
    fn settle(&mut self, function: &'static str, topic: &str, payload: &str) -> bool {
        let count = self.settled.entry(function).or_default().entry(topic, payload);
        *count += 1;
        *count == 1
    }

    fn settled(&self, function: &str, topic: &str, payload: &str) -> u32 {
        self.settled.get(function).and_then(|it| it.get(topic, payload)).copied().unwrap_or(0)
    }

    /// `parked`: what the store holds for later.
    pub fn acknowledged<'a>(&mut self, publication: &Publication, parked: impl Iterator<Item = &'a Parked> + Clone) {
        let Publication { topic, payload, .. } = publication;
        let count = self.acknowledged.entry(topic, payload);
        *count += 1;
        let count = *count;
        // Repeats under one id and payloads that are always the same are acknowledged more often than settled.
        if publication.id.is_some() || !has_effect(payload) || payload.ends_with("same") {
            return;
        }
        for function in FUNCTIONS {
            let is_it = |it: &Parked| {
                it.message.payload == payload.as_bytes() && *it.message.topic == **topic && *it.function == *function
            };
            if self.settled(function, topic, payload) == 0 && !parked.clone().any(is_it) {
                self.broken(ACKNOWLEDGED_LATE, format!("{payload} of {function}, acknowledged {count} times"));
            }
        }
    }

    /// A client sends a request, perhaps once more under its id: it must not take effect twice.
    pub fn requested(&mut self, sent: &Sent) {
        self.messages += 1;
        self.requests.entry(key_of(sent)).or_default();
    }

    /// A client is told that its request was processed, or is in the store.
    pub fn answered<'a>(&mut self, sent: &Sent, status: u16, mut parked: impl Iterator<Item = &'a Parked>) {
        let is_it = |it: &Parked| {
            *it.function == *sent.function
                && *it.message.topic == *sent.topic
                && it.message.payload == sent.payload.as_bytes()
        };
        let is_settled = self.settled(sent.function, &sent.topic, &sent.payload) > 0;
        if has_effect(&sent.payload) && !is_settled && !parked.any(is_it) {
            self.broken(ANSWERED_LATE, format!("{sent:?} is answered {status}"));
        }
        self.requests.insert(key_of(sent), has_effect(&sent.payload));
    }

    /// The board learns what was committed.
    pub fn told_of(&mut self, stored: &[StoredRecord]) {
        for StoredRecord { id, record } in stored {
            if record.stream.kind() == StreamKind::Alert && !self.sent[record.stream].contains(&id.0) {
                self.unsent_alerts.entry(record.stream).or_default().insert(id.0);
            }
        }
    }

    /// A receiver is sent a record. `dropped`: alerts of that sink that the store no longer has. Only the first time counts: after a
    /// failure records are sent again.
    pub fn sent(&mut self, stream: Stream, id: u64, dropped: &[u64]) {
        let last = self.sent[stream].last().copied().unwrap_or(0);
        if !self.sent[stream].insert(id) {
            return;
        }
        if id < last {
            self.broken(OUTBOX_ORDER, format!("{stream:?} {id} is sent after {last}"));
        }
        if let Some(unsent) = self.unsent_alerts.get_mut(&stream) {
            unsent.remove(&id);
        }
        if stream.kind() == StreamKind::Data
            && let Some(sink) = stream.sink().filter(|sink| !self.alerts_may_wait.contains(sink))
            && let Some(unsent) = self.unsent_alerts.get(&Stream::alerts(sink))
            && let Some(alert) = unsent.iter().find(|id| !dropped.contains(id))
        {
            let what = format!("{stream:?} {id} is sent while alert {alert} waits");
            self.broken(ALERTS_FIRST, what);
        }
    }

    /// A receiver accepted a record.
    pub fn accepted(&mut self, stream: Stream, id: u64) {
        self.accepted[stream].insert(id);
    }

    /// The board forgets the answers for records after this one, and for those that were dropped.
    pub fn forget_answers(&mut self, stream: Stream, watermark: u64, dropped: &[u64]) {
        let accepted = &self.accepted[stream];
        let late = dropped.iter().filter(|id| accepted.contains(id));
        self.forgotten[stream].extend(accepted.range(watermark + 1..).chain(late));
    }

    /// The board will not know whether this record is accepted.
    pub fn answer_may_be_lost(&mut self, stream: Stream, id: u64) {
        self.forgotten[stream].insert(id);
    }

    /// A report of lost records. One that comes again says the last word.
    pub fn gap(&mut self, stream: Stream, first: u64, records: u64) {
        self.gaps.insert((stream, first), records);
    }

    pub fn was_accepted(&self, stream: Stream, id: u64) -> bool {
        self.accepted[stream].contains(&id)
    }

    /// Everything is quiet: no message may be on its way.
    pub fn finish(&mut self) {
        for what in self.wakes.lost() {
            self.broken(WAKES, what);
        }
        for (topic, payloads) in std::mem::take(&mut self.expected.0) {
            for (payload, (must, may)) in payloads.into_iter().filter(|(payload, _)| has_effect(payload)) {
                for function in FUNCTIONS {
                    let settled = self.settled(function, &topic, &payload);
                    if settled < must || settled > may {
                        let what =
                            format!("{function} settled {payload} on {topic} {settled} times, not {must} to {may}");
                        self.broken(SETTLED_ONCE, what);
                    }
                }
            }
        }
        for (request, is_promised) in std::mem::take(&mut self.requests) {
            let (function, topic, payload) = &request;
            let settled = self.settled(function, topic, payload);
            if settled > 1 || settled < u32::from(is_promised) {
                self.broken(SETTLED_ONCE, format!("the request {request:?} was settled {settled} times"));
            }
        }
    }

    pub fn count_is(&mut self, function: &'static str, topic: Option<&str>, stored: u64) {
        let of_function = self.counted.0.get(function).into_iter().flatten();
        let counted: u64 = of_function.filter(|(on, _)| topic.is_none_or(|topic| *on == topic)).map(|(_, it)| it).sum();
        if counted != stored {
            let what = format!("{function} {topic:?} counted {counted} messages and has stored {stored}");
            self.broken(STATE_ONCE, what);
        }
    }

    /// Every id of a stream was accepted, or dropped and reported, and no gap counts what was accepted.
    pub fn stream_is_accounted_for(&mut self, stream: Stream, last: u64, dropped: &[u64]) {
        let accepted = &self.accepted[stream];
        let missing: Vec<u64> = (1..=last).filter(|id| !accepted.contains(id) && !dropped.contains(id)).collect();
        let late: Vec<&u64> = dropped.iter().filter(|id| accepted.contains(id)).collect();
        let forgotten = late.iter().filter(|id| self.forgotten[stream].contains(id)).count();
        let reported: u64 = self.gaps.range((stream, 0)..=(stream, u64::MAX)).map(|(_, records)| records).sum();
        let least = (dropped.len() - late.len()) as u64;
        for id in missing {
            self.broken(OUTBOX_ONCE, format!("{stream:?} {id} was neither delivered nor dropped"));
        }
        if reported < least || reported > least + forgotten as u64 {
            let what = format!("{stream:?}: {least} records lost, {reported} in gaps");
            self.broken(OUTBOX_ONCE, what);
        }
    }
}

fn of(records: &[Record], stream: Stream) -> impl Iterator<Item = &Record> {
    records.iter().filter(move |it| it.stream == stream)
}

fn payloads<'a>(records: impl Iterator<Item = &'a Record>) -> impl Iterator<Item = &'a Bytes> {
    records.map(|it| &it.payload)
}

fn field(json: &str, name: &str) -> String {
    let start = json.find(&format!("\"{name}\":\"")).map_or(json.len(), |at| at + name.len() + 4);
    json[start..].split('"').next().unwrap_or("").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_that_is_sent_after_a_later_one_breaks_the_order() {
        let mut reference = Reference::default();
        reference.sent(Stream::DATA, 1, &[]);
        reference.sent(Stream::DATA, 3, &[]);
        reference.sent(Stream::DATA, 1, &[]);
        assert_eq!(reference.violations, []);
        reference.sent(Stream::DATA, 2, &[]);
        assert_eq!(reference.violations[0].rule, OUTBOX_ORDER);
    }
}
