//! Calls about topics that say nothing.
//!
//! A call is a message of its key, as a wake is ([`super::wake_flow`]): that it was made is in its commit.

use std::sync::Arc;

use bytes::Bytes;

use super::ids::{FunctionNo, UnitId};
use super::ledger::Unit;
use super::receipt::Receipt;
use super::rollout::Function;
use super::silences::{Heard, Silent};
use super::wake_flow::LOOK_AGAIN;
use super::{Board, META_LISTENED};
use crate::manifest::Silence;
use crate::mistakes::{Mistake, is_made};
use crate::silence::{self, BACK, TOPIC};
use crate::store::{Commit, StoreRequest, StoredHeard};

/// One transaction is to stay small, however many topics a function watches.
const ROWS_AT_ONCE: usize = 500;

impl Board {
    // ---- heard ----

    /// Notes which functions hear a topic that they watch. Before the message is run: what is written is part of its commit.
    pub(super) fn hear(&mut self, id: UnitId, functions: &[FunctionNo]) {
        if self.silences.is_empty() {
            return;
        }
        let unacknowledged = self.intake.unacknowledged();
        self.silences.delivered(unacknowledged, self.config.receive_maximum.into(), self.now.monotonic);
        let message = &self.ledger.unit(id).message;
        // What the broker has kept says nothing of the sender now.
        if message.retained {
            return;
        }
        let topic = Arc::clone(&message.topic);
        for number in functions {
            let Heard { row, of_call, is_too_many } = self.silences.hear(*number, &topic);
            if is_too_many {
                tracing::warn!(
                    function = &*self.rollout.function(*number).name,
                    topic = &*topic,
                    "more topics are heard than are watched for silence: raise silence.max_topics, or subscribe to fewer"
                );
            }
            let Some(row) = row else { continue };
            self.ledger.heard(id, row);
            if let Some((call, row)) = of_call {
                self.ledger.replace_heard(call, row);
            }
            self.show_silences(*number);
        }
    }

    // ---- what is watched ----

    /// Takes up which topics were heard, and how far the time is.
    pub(super) fn restore_silences(&mut self, meta: &[(String, Bytes)], rows: Vec<StoredHeard>) {
        let counted = meta.iter().find(|(key, _)| key == META_LISTENED).map(|(_, value)| value);
        let counted_ms = counted.and_then(|value| str::from_utf8(value).ok()?.parse().ok()).unwrap_or(0);
        let rollout = &self.rollout;
        let is_installed = |number: &FunctionNo| rollout.function(*number).serving().is_some();
        self.silences.restore(rows, counted_ms, |name| rollout.find(name).filter(is_installed));
        self.watch_silences();
    }

    /// Watches what the versions that serve want watched.
    pub(super) fn watch_silences(&mut self) {
        for (number, function) in self.rollout.functions().filter(|(_, it)| !it.is_shadow()) {
            if function.serving().is_none() {
                self.silences.suspend(number);
                continue;
            }
            let hears = |topic: &str| function.current().any(|edition| edition.manifest().hears(topic));
            let (heard, unheard) = self.silences.set(number, &function.name, wanted(function), hears);
            for rows in heard.chunks(ROWS_AT_ONCE) {
                self.ledger.commit(Commit { heard: rows.to_vec(), ..Commit::default() });
            }
            for ids in unheard.chunks(ROWS_AT_ONCE) {
                self.ledger.commit(Commit { unheard: ids.to_vec(), ..Commit::default() });
            }
        }
        self.rollout.numbers().for_each(|number| self.show_silences(number));
    }

    fn show_silences(&self, number: FunctionNo) {
        let metrics = &self.rollout.function(number).metrics;
        let (watched, silent) = self.silences.counts(number);
        metrics.watched_topics.set(watched as u64);
        metrics.silent_topics.set(silent as u64);
    }

    // ---- calls ----

    /// Calls functions about topics that are silent or speak again, and writes how far the time is.
    pub(super) fn start_silences(&mut self) {
        if self.silences.is_empty() || self.store_failed {
            return;
        }
        let most = self.most_at_once();
        while self.may_start() && self.silences.is_due(|number| self.can_wake(number)) {
            let numbers = self.wakeable();
            let due = self.silences.start_due(most, |number| numbers.contains(&number));
            due.into_iter().for_each(|silent| self.start_silence(silent));
        }
        if let Some(counted_ms) = self.silences.save_clock() {
            let value = counted_ms.to_string().into();
            self.ledger.request(StoreRequest::SetMeta { key: META_LISTENED, value });
        }
    }

    fn start_silence(&mut self, silent: Silent) {
        let Silent { function: number, topic, silent, is_back, row } = silent;
        let function = self.rollout.function(number);
        // A version on trial may watch nothing: the one behind it may have to serve again.
        let watches = function.serving_for(&topic).is_some_and(|edition| edition.manifest().silence.is_some());
        let is_closed = function.pauses.has_failures() && function.pauses.is_closed(&topic, self.now.monotonic);
        if !watches || is_closed || !self.can_wake(number) {
            return self.silences.postpone(number, &topic, LOOK_AGAIN);
        }
        function.metrics.silences.inc();
        self.show_silences(number);
        let message = silence::message(if is_back { BACK } else { TOPIC }, &topic, silent, self.now);
        let message = self.traces.admitted(message, self.now);
        let heard = if is_made(Mistake::ForgetTold) { Vec::new() } else { vec![row] };
        let commit = Commit { heard, ..Commit::default() };
        let limits = (0, self.config.max_fan_out);
        let receipt = Receipt::Silence { function: number, topic: Arc::clone(&topic) };
        let unit = self.ledger.add(Unit::new(Arc::new(message), limits, receipt, 1, commit));
        self.silences.begun(number, &topic, unit);
        if self.caution.is_on() && self.is_guilty(unit) {
            return self.refuse_guilty(unit, &[number]);
        }
        self.start(unit, number);
    }

    /// Calls whose commits were sent: others about their topics may follow.
    pub(super) fn silences_sent(&mut self) {
        for (number, topic) in self.ledger.take_sent_silences() {
            self.silences.sent(number, &topic);
            self.show_silences(number);
        }
    }
}

/// What the first version wants that wants anything: a candidate's wishes count before those of the version behind it.
fn wanted(function: &Function) -> Option<&Silence> {
    function.current().find_map(|edition| edition.manifest().silence.as_ref())
}
