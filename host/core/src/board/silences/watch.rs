//! The topics of one function whose silence is watched.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::super::ids::UnitId;
use super::super::map::Map;
use crate::manifest::Silence;
use crate::store::{HeardId, HeardStage, StoredHeard};

/// A row is written for a topic when the last is older than this part of `after`, and so is the time that counts. Both together
/// make a call late by a tenth.
const PARTS: u32 = 20;
/// A short silence must not write to the disk all the time. Both together make a call late by a second.
const MIN_SAVE_EVERY: Duration = Duration::from_millis(500);
/// Calls of one function that are under way at once: the others wait here, not at a worker.
const MAX_STARTED: usize = 16;

pub(super) type Topics = Map<Arc<str>, Topic>;

/// The last numbers that were given.
#[derive(Debug, Default)]
pub(super) struct Numbers {
    id: HeardId,
    turn: u64,
}

pub(super) struct Watch {
    silence: Silence,
    /// The name under which its topics are stored.
    name: Arc<str>,
    topics: Topics,
    /// One entry for each topic that is not silent and has no call under way. It may be older than the topic: then it is put off
    /// when it is due. For one that speaks again: when that was heard.
    due: BTreeSet<(Duration, Arc<str>)>,
    /// Calls that are not sent to the store.
    started: usize,
    silent: usize,
    has_too_many: bool,
    /// The function is not installed. What it watches waits for it.
    pub(super) is_suspended: bool,
    /// Rows in the store of topics that have another.
    orphans: Vec<HeardId>,
}

#[derive(Debug)]
pub(super) struct Topic {
    id: HeardId,
    heard: Duration,
    /// When it was heard by the row in the store. `None`: there is none, or none that is certain.
    saved: Option<Duration>,
    /// Without what comes of a call that is under way.
    stage: HeardStage,
    call: Option<Call>,
}

/// A call from its start until its commit is sent.
#[derive(Debug, Default)]
struct Call {
    unit: Option<UnitId>,
    /// The topic was heard meanwhile, after so long.
    silent: Option<Duration>,
}

/// Rows that a message leaves to be written.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Heard {
    /// To be committed with the message.
    pub(crate) row: Option<StoredHeard>,
    /// To be committed with a call that is under way, in the place of the row that it has.
    pub(crate) of_call: Option<(UnitId, StoredHeard)>,
    /// The first topic beyond `max_topics`.
    pub(crate) is_too_many: bool,
}

/// A call to be made, and the row that is committed with it.
#[derive(Debug)]
pub(super) struct Started {
    pub(super) topic: Arc<str>,
    pub(super) silent: Duration,
    pub(super) is_back: bool,
    pub(super) row: StoredHeard,
}

impl Numbers {
    fn next_id(&mut self) -> HeardId {
        self.id.0 += 1;
        self.id
    }

    fn next_turn(&mut self) -> u64 {
        self.turn += 1;
        self.turn
    }

    /// The store has this row.
    pub(super) fn pass(&mut self, row: &StoredHeard) {
        (self.id, self.turn) = (self.id.max(row.id), self.turn.max(row.turn));
    }
}

impl Topic {
    fn new(id: HeardId, heard: Duration) -> Self {
        Self { id, heard, saved: None, stage: HeardStage::Speaking, call: None }
    }

    /// Whether its silence is told, or about to be, and it has not spoken since.
    fn is_silent(&self) -> bool {
        match &self.call {
            Some(call) => self.stage == HeardStage::Speaking && call.silent.is_none(),
            None => self.stage == HeardStage::Silent,
        }
    }

    /// When a call is due, if none is under way. One that speaks again is due at once.
    fn due(&self, after: Duration) -> Option<Duration> {
        match self.stage {
            HeardStage::Speaking => Some(self.heard + after),
            HeardStage::Back { .. } => Some(self.heard),
            HeardStage::Silent => None,
        }
    }

    /// What a call leaves.
    fn stage_after(&self, call: &Call, wants_back: bool) -> HeardStage {
        match (self.stage, call.silent) {
            (HeardStage::Speaking, None) => HeardStage::Silent,
            (HeardStage::Speaking, Some(silent)) => spoken(silent, wants_back),
            (HeardStage::Silent | HeardStage::Back { .. }, _) => HeardStage::Speaking,
        }
    }
}

/// What a topic is in that spoke after a silence.
fn spoken(silent: Duration, wants_back: bool) -> HeardStage {
    match wants_back {
        true => HeardStage::Back { silent_ms: silent.as_millis() as u64 },
        false => HeardStage::Speaking,
    }
}

impl Watch {
    /// `topics`: an empty map.
    pub(super) fn new(silence: Silence, name: Arc<str>, topics: Topics) -> Self {
        let due = BTreeSet::new();
        Self {
            silence,
            name,
            topics,
            due,
            started: 0,
            silent: 0,
            has_too_many: false,
            is_suspended: false,
            orphans: Vec::new(),
        }
    }

    pub(super) fn save_every(&self) -> Duration {
        (self.silence.after / PARTS).max(MIN_SAVE_EVERY)
    }

    /// Topics that are watched, and those that are silent.
    pub(super) fn counts(&self) -> (usize, usize) {
        (self.topics.len(), self.silent)
    }

    /// Whether any topic could fall silent.
    pub(super) fn is_waiting(&self) -> bool {
        !self.is_suspended && !self.due.is_empty()
    }

    pub(super) fn is_of(&self, name: &str) -> bool {
        *self.name == *name
    }

    pub(super) fn into_ids(self) -> impl Iterator<Item = HeardId> {
        self.topics.into_values().map(|it| it.id).chain(self.orphans)
    }

    // ---- what is watched ----

    /// Watches as this says. Returns rows to delete: topics that the function does not hear are not watched.
    pub(super) fn configure(&mut self, silence: &Silence, hears: impl Fn(&str) -> bool) -> Vec<HeardId> {
        self.silence = silence.clone();
        let mut deleted = std::mem::take(&mut self.orphans);
        deleted.extend(self.topics.extract_if(|topic, _| !hears(topic)).map(|(_, it)| it.id));
        if !silence.back {
            let speaking = self.topics.values_mut().filter(|it| matches!(it.stage, HeardStage::Back { .. }));
            speaking.for_each(|it| it.stage = HeardStage::Speaking);
        }
        deleted
    }

    /// Watches topics that need not have spoken. Returns their rows.
    pub(super) fn expect(&mut self, counted: Duration, numbers: &mut Numbers) -> Vec<StoredHeard> {
        let expected: Vec<Arc<str>> = self.silence.expected().map(Arc::from).collect();
        let mut rows = Vec::new();
        for topic in expected {
            let is_full = self.topics.len() >= self.silence.max_topics.get() as usize;
            if !is_full && !self.topics.contains_key(&topic) {
                self.topics.insert(Arc::clone(&topic), Topic::new(numbers.next_id(), counted));
                rows.push(self.save(&topic, numbers));
            }
        }
        rows
    }

    /// Nobody listened for a while: what speaks counts as heard now. Returns the rows that say so.
    pub(super) fn begin_anew(&mut self, counted: Duration, numbers: &mut Numbers) -> Vec<StoredHeard> {
        let mut topics = Vec::new();
        for (topic, it) in &mut self.topics {
            if it.stage == HeardStage::Speaking && it.call.is_none() {
                it.heard = counted;
                topics.push(Arc::clone(topic));
            }
        }
        topics.iter().map(|topic| self.save(topic, numbers)).collect()
    }

    /// Sorts all topics anew by the time at which something is to be done.
    pub(super) fn sort(&mut self) {
        let after = self.silence.after;
        let due = self.topics.iter().filter(|(_, it)| it.call.is_none());
        let due = due.filter_map(|(topic, it)| Some((it.due(after)?, Arc::clone(topic))));
        self.due = due.collect();
        self.silent = self.topics.values().filter(|it| it.is_silent()).count();
    }

    // ---- what the store has ----

    /// Nothing of what was written is certain.
    pub(super) fn forget_saved(&mut self) {
        self.started = 0;
        for it in self.topics.values_mut() {
            (it.saved, it.stage, it.call) = (None, HeardStage::Speaking, None);
        }
    }

    /// Takes up a row of the store. Times that are known are newer than those of the store.
    pub(super) fn restore(&mut self, row: StoredHeard, counted: Duration) {
        let saved = Duration::from_millis(row.at_ms);
        // As late as it may have been heard. How long a silence is counts from when it was heard for certain.
        let latest = match row.stage {
            HeardStage::Silent => saved,
            HeardStage::Speaking | HeardStage::Back { .. } => saved + Duration::from_millis(row.slack_ms),
        };
        let known = self.topics.entry(row.topic).or_insert_with(|| Topic::new(row.id, latest.min(counted)));
        // Of two rows for one topic the later counts.
        if known.id != row.id {
            self.orphans.push(known.id);
        }
        (known.id, known.saved, known.stage) = (row.id, Some(saved), row.stage);
        if known.stage == HeardStage::Silent {
            known.heard = saved;
        }
    }

    // ---- messages ----

    /// A message of a topic that is no retained one.
    pub(super) fn hear(&mut self, topic: &Arc<str>, counted: Duration, numbers: &mut Numbers) -> Heard {
        let (after, save_every) = (self.silence.after, self.save_every());
        let Some(known) = self.topics.get_mut(topic) else {
            if self.topics.len() >= self.silence.max_topics.get() as usize {
                let is_too_many = !std::mem::replace(&mut self.has_too_many, true);
                return Heard { is_too_many, ..Heard::default() };
            }
            self.topics.insert(Arc::clone(topic), Topic::new(numbers.next_id(), counted));
            self.due.insert((counted + after, Arc::clone(topic)));
            return Heard { row: Some(self.save(topic, numbers)), ..Heard::default() };
        };
        let was_silent = known.is_silent();
        let silent = counted.saturating_sub(known.heard);
        known.heard = counted;
        match &mut known.call {
            Some(call) => _ = call.silent.get_or_insert(silent),
            None if was_silent => known.stage = spoken(silent, self.silence.back),
            None => {}
        }
        if was_silent {
            self.silent -= 1;
            if known.call.is_none() {
                self.due.extend(known.due(after).map(|due| (due, Arc::clone(topic))));
            }
        } else if known.saved.is_some_and(|saved| counted < saved + save_every) {
            return Heard::default();
        }
        let call = known.call.as_ref().and_then(|call| Some((call.unit?, known.stage_after(call, self.silence.back))));
        let row = Some(self.save(topic, numbers));
        // After the row of the message, so that it counts whichever is committed first.
        let of_call = call.map(|(unit, stage)| (unit, self.row(topic, stage, numbers)));
        Heard { row, of_call, is_too_many: false }
    }

    /// The row of a topic that was heard just now.
    fn save(&mut self, topic: &Arc<str>, numbers: &mut Numbers) -> StoredHeard {
        let known = self.topics.get_mut(topic).expect("the topic is watched");
        known.saved = Some(known.heard);
        let stage = known.stage;
        self.row(topic, stage, numbers)
    }

    fn row(&self, topic: &Arc<str>, stage: HeardStage, numbers: &mut Numbers) -> StoredHeard {
        let known = &self.topics[topic];
        StoredHeard {
            id: known.id,
            turn: numbers.next_turn(),
            function: Arc::clone(&self.name),
            topic: Arc::clone(topic),
            // Not earlier than it was.
            at_ms: known.heard.as_nanos().div_ceil(1_000_000) as u64,
            slack_ms: self.save_every().as_millis() as u64,
            stage,
        }
    }

    // ---- calls ----

    /// When the next call is due, unless enough are under way.
    pub(super) fn next_due(&self) -> Option<Duration> {
        let (due, _) = self.due.first().filter(|_| self.started < MAX_STARTED && !self.is_suspended)?;
        Some(*due)
    }

    /// Starts the next call that is due.
    pub(super) fn start(&mut self, counted: Duration, numbers: &mut Numbers) -> Option<Started> {
        while self.next_due().is_some_and(|due| due <= counted) {
            let (_, topic) = self.due.pop_first().expect("it was looked at");
            let Some(known) = self.topics.get_mut(&topic) else { continue };
            let (silent, is_back) = match known.stage {
                HeardStage::Back { silent_ms } => (Duration::from_millis(silent_ms), true),
                _ => (counted.saturating_sub(known.heard), false),
            };
            let due = known.due(self.silence.after);
            if let Some(due) = due.filter(|due| *due > counted) {
                self.due.insert((due, topic));
                continue;
            }
            let call = Call::default();
            let stage = known.stage_after(&call, self.silence.back);
            known.call = Some(call);
            self.silent += usize::from(known.is_silent());
            self.started += 1;
            let row = self.row(&topic, stage, numbers);
            return Some(Started { topic, silent, is_back, row });
        }
        None
    }

    /// The unit of a call that was started.
    pub(super) fn begun(&mut self, topic: &str, unit: UnitId) {
        if let Some(call) = self.topics.get_mut(topic).and_then(|it| it.call.as_mut()) {
            call.unit = Some(unit);
        }
    }

    /// The commit of a call is sent to the store.
    pub(super) fn sent(&mut self, topic: &Arc<str>) {
        self.started = self.started.saturating_sub(1);
        let Some(known) = self.topics.get_mut(topic) else { return };
        let Some(call) = known.call.take() else { return };
        known.stage = known.stage_after(&call, self.silence.back);
        self.due.extend(known.due(self.silence.after).map(|due| (due, Arc::clone(topic))));
    }

    /// A call was not made.
    pub(super) fn postpone(&mut self, topic: &Arc<str>, until: Duration) {
        self.started = self.started.saturating_sub(1);
        let Some(known) = self.topics.get_mut(topic) else { return };
        let was_silent = known.is_silent();
        if known.call.take().is_some() {
            self.silent -= usize::from(was_silent);
            self.due.insert((until, Arc::clone(topic)));
        }
    }
}
