//! Functions under record: their runs as they are settled, handed out once they are committed.
//!
//! ```text
//! begin ─▶ workers forget the function's state ─▶ each scope's next job asks for it ─▶ seen, with its state before
//!          run settled ─▶ held ─▶ committed ─▶ Effect::Record, in the order of the runs
//! ```
//!
//! A scope is recorded from the first run that asked the store for its state, which is then known. Nothing here delays a
//! message: what exceeds the limits of a recording ends the recording.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Board;
use super::follow::FollowedRun;
use super::ids::{FunctionNo, UnitId};
use super::input::{Effect, StateEntries};
use super::map::{Map, Seeded};
use super::rollout::Edition;
use super::traces::TracedRun;
use crate::manifest::StateScope;
use crate::message::{Failure, Message, Outcome, Output, StateWrite, Verdict};
use crate::recording::{Header, RecordedRun, RecordedVersion, Why};

/// Functions that are recorded at a time.
pub const MAX_TAPS: usize = 4;
/// Memory and disk of a run beside its message and what came of it.
const RUN_BYTES: u64 = 200;

/// What is to be recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordOrder {
    /// Names the recording.
    pub id: Arc<str>,
    pub function: Arc<str>,
    pub time: Duration,
    pub messages: u64,
    /// About the size of the file.
    pub bytes: u64,
}

/// What becomes of a recording.
#[derive(Debug)]
pub enum RecordEvent {
    Begun {
        header: Box<Header>,
    },
    /// The function is not installed, is recorded already, or too many are.
    Refused {
        reason: String,
    },
    Run(Box<TappedRun>),
    Ended {
        why: Why,
    },
}

/// A run that is on disk.
#[derive(Debug)]
pub struct TappedRun {
    /// Version and settings, if they are others than those of the run before.
    pub version: Option<Box<RecordedVersion>>,
    pub state: Option<(Option<Arc<str>>, StateEntries)>,
    pub message: Arc<Message>,
    /// Its settings were being changed, or what it drew was not kept yet: it cannot be run again.
    pub is_unsure: bool,
    /// Why the board did not take the outcome.
    pub refused: Option<Failure>,
    pub outcome: Outcome,
}

impl TappedRun {
    /// The lines of the run.
    pub fn as_recorded(&self) -> RecordedRun<'_> {
        RecordedRun {
            version: self.version.as_deref(),
            state: self.state.as_ref().map(|(topic, entries)| (topic.as_deref(), &entries[..])),
            message: &self.message,
            drawn: self.outcome.drawn.as_deref(),
            is_unsure: self.is_unsure,
            refused: self.refused.as_ref().map(|failure| (failure.code, &*failure.detail)),
            outcome: &self.outcome,
        }
    }

    /// Memory, and about the size on disk.
    pub fn bytes(&self) -> u64 {
        let outcome = match &self.outcome.verdict {
            Verdict::Done(outputs) => outputs.iter().map(Output::bytes).sum(),
            Verdict::Retry { reason, .. } => reason.len(),
            Verdict::Failed(failure) => failure.detail.len(),
        };
        let writes: usize = self.outcome.writes.iter().map(StateWrite::bytes).sum();
        let drawn = self.outcome.drawn.as_ref().map_or(0, |drawn| drawn.bytes());
        let state = self.state.as_ref().map_or(0, |(_, entries)| entries_bytes(entries));
        (self.message.bytes() + outcome + writes + drawn + state) as u64 + RUN_BYTES
    }
}

fn entries_bytes(entries: &StateEntries) -> usize {
    entries.iter().map(|(key, value)| key.len() + value.len()).sum()
}

/// An outcome for a recording, for views and for its trace. Usually for none.
pub(super) struct Tapped {
    recorded: Option<Box<Outcome>>,
    followed: Option<Box<FollowedRun>>,
    pub(super) run: TracedRun,
}

/// The functions under record. Usually none.
pub(crate) struct Taps {
    taps: BTreeMap<FunctionNo, Tap>,
    seed: Seeded,
}

struct Tap {
    id: Arc<str>,
    scope: StateScope,
    until: Instant,
    /// The last unit that arrived before.
    after: u64,
    messages_left: u64,
    bytes_left: u64,
    /// Edition of the latest run, while its settings are the same.
    edition: Option<u32>,
    /// Scopes whose state before was handed out, by a keyed hash.
    seen: Map<u128, ()>,
    /// State before the next run of scopes that are not seen yet.
    before: Map<u128, StateEntries>,
    held: VecDeque<Held>,
    /// Takes no more runs, and ends with the last that it holds.
    ending: Option<Why>,
}

struct Held {
    unit: UnitId,
    is_committed: bool,
    run: Box<TappedRun>,
}

impl Taps {
    pub(crate) fn new(seed: Seeded) -> Self {
        Self { taps: BTreeMap::new(), seed }
    }

    fn of(&mut self, function: FunctionNo) -> Option<&mut Tap> {
        if self.taps.is_empty() { None } else { self.taps.get_mut(&function).filter(|tap| tap.ending.is_none()) }
    }

    /// Whether runs of the function are recorded.
    pub(crate) fn is_recording(&self, function: FunctionNo) -> bool {
        !self.taps.is_empty() && self.taps.get(&function).is_some_and(|tap| tap.ending.is_none())
    }

    /// When the first of them ends.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.taps.values().filter(|tap| tap.ending.is_none()).map(|tap| tap.until).min()
    }

    /// A worker is given the state of a scope.
    pub(crate) fn state_loaded(&mut self, function: FunctionNo, topic: Option<&Arc<str>>, entries: &StateEntries) {
        let scope = self.seed.hash128(&topic);
        if let Some(tap) = self.of(function)
            && !tap.seen.contains_key(&scope)
        {
            let bytes = entries_bytes(entries) as u64;
            if bytes > tap.bytes_left {
                tap.ending = Some(Why::Bytes);
                return;
            }
            tap.before.insert(scope, entries.clone());
        }
    }

    /// The board deletes state: what the scopes begin with next is recorded again. All of them, if none is named.
    pub(crate) fn forget_state(&mut self, function: FunctionNo, topics: &[Option<Arc<str>>]) {
        let seed = self.seed;
        let Some(tap) = self.of(function) else { return };
        if topics.is_empty() {
            tap.seen.clear();
            tap.before.clear();
        }
        for topic in topics {
            let scope = seed.hash128(&topic.as_ref());
            tap.seen.remove(&scope);
            tap.before.remove(&scope);
        }
    }

    /// The settings of a function change.
    pub(crate) fn settings_changed(&mut self) {
        self.taps.values_mut().for_each(|tap| tap.edition = None);
    }

    /// Nothing that is not committed counts, and workers have forgotten all state.
    pub(crate) fn reset(&mut self) {
        for tap in self.taps.values_mut() {
            tap.held.retain(|held| held.is_committed);
            tap.seen.clear();
            tap.before.clear();
            tap.edition = None;
        }
    }

    /// What came of a unit is on disk.
    fn committed(&mut self, unit: UnitId) {
        for tap in self.taps.values_mut() {
            if let Some(held) = tap.held.iter_mut().find(|held| held.unit == unit && !held.is_committed) {
                held.is_committed = true;
            }
        }
    }

    /// Runs that are on disk, in order, and recordings that are over.
    fn release(&mut self, effects: &mut VecDeque<Effect>) {
        self.taps.retain(|_, tap| {
            while tap.held.front().is_some_and(|held| held.is_committed) {
                let Some(Held { run, .. }) = tap.held.pop_front() else { break };
                effects.push_back(Effect::Record { id: Arc::clone(&tap.id), event: RecordEvent::Run(run) });
            }
            match tap.ending {
                Some(why) if tap.held.is_empty() => {
                    effects.push_back(Effect::Record { id: Arc::clone(&tap.id), event: RecordEvent::Ended { why } });
                    false
                }
                _ => true,
            }
        });
    }
}

impl Tap {
    fn end(&mut self, why: Why) {
        self.ending.get_or_insert(why);
    }

    /// State before the run, if it is the first of its scope; `None` if its scope is not recorded yet.
    fn state_before(&mut self, scope: u128) -> Option<Option<StateEntries>> {
        if self.scope == StateScope::None || self.seen.contains_key(&scope) {
            return Some(None);
        }
        let before = self.before.remove(&scope)?;
        self.seen.insert(scope, ());
        Some(Some(before))
    }
}

impl Board {
    /// Begins to record a function.
    pub(super) fn begin_recording(&mut self, order: RecordOrder) {
        let RecordOrder { id, function, time, messages, bytes } = order;
        let refused = |reason: String| Effect::Record { id: Arc::clone(&id), event: RecordEvent::Refused { reason } };
        let number = self.rollout.find(&function);
        let serving = number.and_then(|number| Some((number, self.rollout.function(number).serving()?.clone())));
        let Some((number, edition)) = serving.filter(|(number, _)| !self.rollout.function(*number).is_shadow()) else {
            let reason = format!("{function} is not installed on this board; `sedge status` lists its functions");
            return self.effects.push_back(refused(reason));
        };
        if self.taps.taps.contains_key(&number) || self.taps.taps.len() >= MAX_TAPS {
            let reason = match self.taps.taps.contains_key(&number) {
                true => format!("{function} is being recorded already: wait for its end, or end it"),
                false => format!("{MAX_TAPS} functions are being recorded already, which is the most"),
            };
            return self.effects.push_back(refused(reason));
        }
        let config = &self.config.recorder;
        let (scope, now) = (edition.scope(), self.now);
        let header = Box::new(Header::new(&config.node, &config.base_topic, &function, scope, now.unix_ms));
        let tap = Tap {
            id: Arc::clone(&id),
            scope,
            until: now.monotonic + time,
            after: self.ledger.last_arrival(),
            messages_left: messages,
            bytes_left: bytes,
            edition: None,
            seen: self.taps.seed.map(),
            before: self.taps.seed.map(),
            held: VecDeque::new(),
            ending: None,
        };
        self.taps.taps.insert(number, tap);
        self.effects.push_back(Effect::Record { id, event: RecordEvent::Begun { header } });
        if scope != StateScope::None {
            // Each scope is read from the store once more, which tells its state.
            self.dispatch.forget_state(number, &[]);
        }
    }

    /// `function`: only a recording of this one.
    pub(super) fn end_recording(&mut self, id: &str, function: Option<&str>, why: Why) {
        let rollout = &self.rollout;
        let is_of = |number: FunctionNo| function.is_none_or(|name| *rollout.function(number).name == *name);
        let tap = self.taps.taps.iter_mut().find(|(number, tap)| *tap.id == *id && is_of(**number));
        if let Some((_, tap)) = tap {
            tap.end(why);
        }
        self.taps.release(&mut self.effects);
    }

    /// The function is removed.
    pub(super) fn end_recording_of(&mut self, function: FunctionNo) {
        if let Some(tap) = self.taps.of(function) {
            tap.end(Why::Removed);
            self.taps.release(&mut self.effects);
        }
    }

    /// Ends those whose time is over.
    pub(super) fn end_late_recordings(&mut self) {
        let now = self.now.monotonic;
        self.taps.taps.values_mut().filter(|tap| tap.until <= now).for_each(|tap| tap.end(Why::Time));
        self.taps.release(&mut self.effects);
    }

    /// Copies of an outcome for those who record or watch it: settling takes it apart.
    pub(super) fn tapped(&mut self, id: UnitId, number: FunctionNo, edition: &Edition, outcome: &Outcome) -> Tapped {
        Tapped {
            recorded: self.taps.is_recording(number).then(|| Box::new(outcome.clone())),
            followed: self.followed(id, number, edition, outcome),
            run: self.traced_run(id, outcome),
        }
    }

    /// Holds a settled run until it is committed. `refused`: the board did not take what the function returned.
    pub(super) fn record_run(
        &mut self,
        unit: UnitId,
        number: FunctionNo,
        edition: &Edition,
        tapped: Tapped,
        refused: Option<&Failure>,
    ) {
        self.trace_outcome(unit, number, edition, tapped.run, refused);
        self.hold_followed(unit, tapped.followed, refused);
        let Some(outcome) = tapped.recorded else { return };
        let seed = self.taps.seed;
        let (ledger, overlays) = (&self.ledger, &self.overlays);
        let Some(tap) = self.taps.of(number) else { return };
        if edition.scope() != tap.scope {
            return tap.end(Why::OtherState);
        }
        let of = ledger.unit(unit);
        let message = Arc::clone(&of.message);
        let topic = (tap.scope == StateScope::Topic).then(|| message.shared_state_topic());
        let Some(before) = tap.state_before(seed.hash128(&topic.as_ref())) else { return };
        // Its job may be from before the recording.
        let is_early = ledger.arrival(unit) <= tap.after;
        if is_early && tap.scope == StateScope::None {
            return;
        }
        let draws = edition.manifest().allow.clock || edition.manifest().allow.random;
        let is_other = tap.edition != Some(edition.number());
        let version = is_other.then(|| {
            let manifest = edition.manifest();
            let settings = overlays.resolve(manifest);
            Box::new(RecordedVersion::new(&manifest.version, edition.version.digest, &manifest.config, &settings))
        });
        let is_failure = matches!(outcome.verdict, Verdict::Failed(_));
        let run = Box::new(TappedRun {
            version,
            state: before.map(|entries| (topic, entries)),
            message,
            is_unsure: of.settings_changed || is_early && draws,
            refused: refused.filter(|_| !is_failure).cloned(),
            outcome: *outcome,
        });
        let bytes = run.bytes();
        if bytes > tap.bytes_left {
            return tap.end(Why::Bytes);
        }
        tap.edition = (!run.is_unsure).then(|| edition.number());
        tap.bytes_left -= bytes;
        tap.messages_left = tap.messages_left.saturating_sub(1);
        tap.held.push_back(Held { unit, is_committed: false, run });
        if tap.messages_left == 0 {
            tap.end(Why::Messages);
        }
    }

    /// A unit is on disk, or had no effect.
    pub(super) fn recorded_unit_settled(&mut self, unit: Option<UnitId>) {
        self.followed_unit_settled(unit);
        if self.taps.taps.is_empty() {
            return;
        }
        if let Some(unit) = unit {
            self.taps.committed(unit);
        }
        self.taps.release(&mut self.effects);
    }
}
