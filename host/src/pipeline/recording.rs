//! From outcomes to commits: what one message caused is gathered, sent to the store as a whole, and done when it is on disk.

use std::sync::Arc;

use bytes::Bytes;

use super::Pipeline;
use super::deployment;
use super::function::Edition;
use super::record;
use super::unit::From;
use super::window::UnitId;
use crate::manifest::StateScope;
use crate::message::{Failure, Scope, StateWrite, Usage};
use crate::store::{self, BatchNo, Commit, DeadLetter, LoadId, Parked};
use crate::telemetry::OutputKind;
use crate::worker::pool::StateRequest;

impl Pipeline {
    /// Keeps what a run that succeeded returned.
    pub(super) fn keep(
        &mut self,
        id: UnitId,
        number: usize,
        edition: &Edition,
        recorded: record::Recorded,
        writes: Vec<StateWrite>,
    ) {
        let Some(Some(unit)) = self.units.get_mut(id) else { return };
        let function = &mut self.functions[number];
        for (kind, count) in [
            (OutputKind::Alert, recorded.alerts),
            (OutputKind::Forward, recorded.forwards),
            (OutputKind::Publish, recorded.publishes),
        ] {
            (0..count).for_each(|_| function.metrics.emitted(kind));
        }
        function.metrics.folded_alerts.add(recorded.folded.into());
        if recorded.without_upstream > 0 {
            self.metrics.dropped("no-upstream", recorded.without_upstream.into());
            if !std::mem::replace(&mut function.warned_without_upstream, true) {
                tracing::warn!(
                    function = &*function.name,
                    "outputs for upstream are dropped: the configuration has no [upstream]"
                );
            }
        }
        unit.commit.records.extend(recorded.records);
        self.keep_state(id, number, edition, writes);
    }

    pub(super) fn keep_state(&mut self, id: UnitId, number: usize, edition: &Edition, writes: Vec<StateWrite>) {
        let Some(Some(unit)) = self.units.get_mut(id) else { return };
        // A function without state has none to write, whatever a worker says: its runs have no order that writes could have.
        if writes.is_empty() || edition.manifest.state == StateScope::None {
            return;
        }
        let topic = (edition.manifest.state == StateScope::Topic).then(|| Arc::clone(&unit.message.topic));
        let scope = Scope { function: Arc::clone(&self.functions[number].name), topic };
        // Where nobody waits and this is the last job, the unit is sent at once.
        if unit.jobs_left > 1 || unit.in_line || !self.unsent_writes.is_empty() {
            self.unsent_writes.entry(scope.clone()).or_default().push_back(id);
        }
        unit.commit.state.push((scope, writes));
    }

    /// Makes the message a dead letter of this function. `version`: the one that ran it, if any did.
    pub(super) fn fail(
        &mut self,
        id: UnitId,
        number: usize,
        version: &str,
        failure: Failure,
        usage: Usage,
        now_ms: u64,
    ) {
        let Some(Some(unit)) = self.units.get_mut(id) else { return };
        let function = &self.functions[number];
        self.metrics.dead_letter(Some(&function.metrics), failure.code);
        tracing::debug!(
            function = &*function.name,
            topic = &*unit.message.topic,
            reason = failure.code.as_str(),
            detail = failure.detail,
            "dead letter"
        );
        unit.commit.dead_letters.push(DeadLetter {
            function: Arc::clone(&function.name),
            version: version.into(),
            message: unit.message.clone(),
            failure,
            usage,
            at_ms: now_ms,
        });
    }

    // ---- state ----

    /// Reads a scope's state from the store, once all that is known about it has been sent there.
    pub(super) fn load_state(&mut self, request: StateRequest, scope: Scope) {
        if self.unsent_writes.contains_key(&scope) {
            self.postponed_loads.push((request, scope));
            return;
        }
        self.read_state(request, scope);
    }

    pub(super) fn read_state(&mut self, request: StateRequest, scope: Scope) {
        // What this turn has gathered may hold writes to the same scope: it goes first.
        self.send_batch();
        self.next_load.0 += 1;
        self.loads.insert(self.next_load, (request, deployment::state_to_begin_with(&scope)));
        self.turn.requests.push(store::StoreRequest::LoadState { id: self.next_load, scope });
    }

    pub fn state_loaded(&mut self, id: LoadId, entries: Vec<(Box<str>, Bytes)>) {
        match self.loads.remove(&id) {
            // Without what the active version made of the very message that the shadow is to run.
            Some((request, Some(scope))) if entries.is_empty() => self.read_state(request, scope),
            Some((request, _)) => self.pool.provide_state(request, entries),
            None => {}
        }
    }

    // ---- recorded ----

    /// One function is done with the unit; the last one sends it to be committed.
    pub(super) fn finish_job(&mut self, id: UnitId) {
        let Some(Some(unit)) = self.units.get_mut(id) else { return };
        unit.jobs_left -= 1;
        if unit.jobs_left > 0 {
            return;
        }
        if let From::Parked { key, .. } = &unit.from {
            let key = key.clone();
            // One that asked for another run has taken its own place in front already.
            if unit.commit.park.is_empty() {
                self.parking.finished(&key);
            }
            self.parking.unblock(&key);
        }
        let Some(Some(unit)) = self.units.get_mut(id) else { return };
        if let From::Tick { function } = unit.from {
            self.functions[function].tick_under_way = false;
        }
        let counted = matches!(unit.from, From::Broker { .. } | From::Unacknowledged);
        if !unit.commit.dead_letters.is_empty() {
            self.metrics.dead_lettered.inc();
        } else if counted {
            self.metrics.recorded.inc();
        }
        self.send(id);
        if !self.postponed_loads.is_empty() {
            for (request, scope) in std::mem::take(&mut self.postponed_loads) {
                self.load_state(request, scope);
            }
        }
    }

    /// Sends a finished unit to be committed, and then those that waited for it. It waits itself while an earlier run's
    /// writes to the same state are not sent: the later ones hold them already, and would be overwritten by them.
    pub(super) fn send(&mut self, id: UnitId) {
        let mut finished = vec![id];
        while let Some(id) = finished.pop() {
            let Some(Some(unit)) = self.units.get_mut(id) else { continue };
            let waits = |(scope, _): &(Scope, _)| self.unsent_writes.get(scope).is_some_and(|it| it[0] != id);
            if unit.jobs_left > 0 || unit.commit.state.iter().any(waits) {
                continue;
            }
            if unit.in_line
                && let Some(line) = self.unsent_of_topic.get_mut(&unit.message.topic)
            {
                if line.front() != Some(&id) {
                    continue;
                }
                line.pop_front();
                match line.front() {
                    Some(next) if finished.contains(next) => {}
                    Some(next) => finished.push(*next),
                    None => drop(self.unsent_of_topic.remove(&unit.message.topic)),
                }
            }
            let commit = std::mem::take(&mut unit.commit);
            self.parking.committing(std::mem::take(&mut unit.tickets));
            for (scope, _) in &commit.state {
                let Some(queue) = self.unsent_writes.get_mut(scope) else { continue };
                queue.pop_front();
                match queue.front() {
                    Some(next) if finished.contains(next) => {}
                    Some(next) => finished.push(*next),
                    None => drop(self.unsent_writes.remove(scope)),
                }
            }
            if has_effect(&commit) {
                self.batch.push(commit);
                self.batch_units.push(id);
            } else if let Some(unit) = self.remove(id) {
                self.settle_without_effect(&unit.from);
                for (place, fingerprint) in unit.copies {
                    self.settle_without_effect(&From::Broker { place, fingerprint });
                }
            }
        }
    }

    /// Nothing came of it, so there is nothing to make durable: it is done. Its fingerprint is written with the next
    /// commit, so that it is not run again after one that came later.
    pub(super) fn settle_without_effect(&mut self, from: &From) {
        if let From::Broker { place, fingerprint } = *from {
            self.window.done(place, fingerprint);
            self.batch.push(Commit { delivery: Some(fingerprint), ..Commit::default() });
        }
    }

    pub(super) fn send_batch(&mut self) {
        // Fingerprints alone wait for company; the store's window is as long as ours, so no more are worth keeping.
        if self.batch_units.is_empty() && !self.batch.iter().any(has_effect) {
            let excess = self.batch.len().saturating_sub(self.settings.receive_maximum.into());
            self.batch.drain(..excess);
            return;
        }
        self.sequence.0 += 1;
        let commits = std::mem::take(&mut self.batch);
        self.committing.push_back((self.sequence, std::mem::take(&mut self.batch_units)));
        self.turn.requests.push(store::StoreRequest::Commit { batch: self.sequence, commits });
    }

    /// Everything up to this batch is on disk. Returns what was stored, for the forwarders.
    pub fn committed(&mut self, sequence: BatchNo, parked: &[Parked], now_ms: u64) {
        for parked in parked {
            self.parking.numbered(parked.id);
        }
        while self.committing.front().is_some_and(|(number, _)| *number <= sequence) {
            let Some((_, units)) = self.committing.pop_front() else { break };
            for id in units {
                let Some(unit) = self.remove(id) else { continue };
                let first = match unit.from {
                    From::Broker { place, fingerprint } => Some((place, fingerprint)),
                    _ => None,
                };
                for (place, fingerprint) in first.into_iter().chain(unit.copies) {
                    self.window.done(place, fingerprint);
                }
                if let Some(id) = unit.message_id {
                    self.message_ids_under_way.remove(&id);
                    self.message_ids.insert(&id, now_ms / 1000);
                }
            }
        }
    }
}

fn has_effect(commit: &Commit) -> bool {
    !commit.records.is_empty()
        || !commit.state.is_empty()
        || !commit.dead_letters.is_empty()
        || !commit.park.is_empty()
        || !commit.unpark.is_empty()
        || commit.message_id.is_some()
}
