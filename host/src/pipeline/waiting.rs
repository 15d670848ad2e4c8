//! Messages that wait for another run, and timers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::Pipeline;
use super::function::Edition;
use super::parking::{Key, Ticket};
use super::unit::{From, Unit, key_of};
use super::window::UnitId;
use crate::forward::HOPS;
use crate::message::{Failure, FailureCode, Message, Usage};
use crate::router;
use crate::store::{Commit, DeadLetter, Parked, ParkedId};

impl Pipeline {
    /// Jobs that the store holds: from before a restart, or put back by a person.
    pub fn unpark(&mut self, parked: Vec<Parked>, now: Instant, now_ms: u64) {
        for Parked { id, function, message, due_ms } in parked {
            let found = self.functions.iter().enumerate().find(|(_, it)| it.name == function);
            let Some((number, serving)) = found.and_then(|(number, it)| Some((number, it.serving()?))) else {
                let failure =
                    Failure { code: FailureCode::Removed, detail: format!("{function} is not installed any more") };
                let dead_letter = DeadLetter {
                    function,
                    version: "".into(),
                    message,
                    failure,
                    usage: Usage::default(),
                    at_ms: now_ms,
                };
                self.metrics.dead_letter(None, FailureCode::Removed);
                self.batch.push(Commit { dead_letters: vec![dead_letter], unpark: vec![id], ..Commit::default() });
                continue;
            };
            // The wall clock may have jumped while the board was off: never wait longer than a retry may.
            let wait = Duration::from_millis(due_ms.saturating_sub(now_ms)).min(self.settings.retry_max_delay);
            let key = key_of(number, serving.manifest.state, &message);
            self.parking.restore(key, id, message, now + wait);
        }
    }

    pub(super) fn park_for_retry(
        &mut self,
        id: UnitId,
        number: usize,
        edition: &Edition,
        wait: Duration,
        now: Instant,
        now_ms: u64,
    ) {
        let Some(unit) = self.units[id].as_ref() else { return };
        let mut message = unit.message.clone();
        message.attempt += 1;
        let due = now + wait;
        let place = unit.commit.unpark.first().copied().unwrap_or(ParkedId::NEW);
        let ticket = match &unit.from {
            From::Parked { key, .. } => {
                let key = key.clone();
                self.parking.finished(&key);
                self.parking.park_again(key, place, message.clone(), due)
            }
            _ => {
                let key = key_of(number, edition.manifest.state, &unit.message);
                let ticket = self.parking.park(key.clone(), message.clone(), Some(due));
                self.recall_key(&key, edition, router::hash(&message.topic));
                ticket
            }
        };
        let due_ms = now_ms + u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        self.add_parked(id, number, place, message, due_ms, ticket);
    }

    /// The message waits behind one of its key that is to be run again.
    pub(super) fn park_behind(&mut self, id: UnitId, function: usize, key: Key, now_ms: u64) {
        let Some(unit) = self.units[id].as_ref() else { return };
        let message = unit.message.clone();
        if self.parking.bytes() > self.settings.parked_max_bytes {
            let detail = "too much waits for a retry already (store.parked_max_bytes)".to_owned();
            let failure = Failure { code: FailureCode::RetriesExhausted, detail };
            self.fail(id, function, "", failure, Usage::default(), now_ms);
            return;
        }
        let ticket = self.parking.park(key, message.clone(), None);
        self.add_parked(id, function, ParkedId::NEW, message, 0, ticket);
    }

    pub(super) fn add_parked(
        &mut self,
        id: UnitId,
        function: usize,
        place: ParkedId,
        message: Message,
        due_ms: u64,
        ticket: Ticket,
    ) {
        let function = Arc::clone(&self.functions[function].name);
        if let Some(Some(unit)) = self.units.get_mut(id) {
            unit.commit.park.push(Parked { id: place, function, message, due_ms });
            unit.tickets.push(ticket);
        }
    }

    /// Starts what is due: parked jobs and timers.
    pub fn start_due(&mut self, now: Instant, now_ms: u64) {
        let mut due = Vec::new();
        self.parking.start_due(now, |key, id, message| due.push((key.clone(), id, message.clone())));
        for (key, parked, message) in due {
            let function = key.0;
            let hops = message.property(HOPS).and_then(|hops| hops.parse().ok()).unwrap_or(0);
            let commit = Commit { unpark: vec![parked], ..Commit::default() };
            let from = From::Parked { key };
            let unit = self.insert(Unit::new(message, hops, from, 1, commit));
            self.start(unit, function, now, now_ms);
        }
        let functions = &self.functions;
        self.timed.retain(|number| functions[*number].next_tick.is_some() || functions[*number].candidate.is_some());
        for number in self.timed.iter().copied().collect::<Vec<_>>() {
            let function = &mut self.functions[number];
            let every = function.serving().and_then(|edition| edition.manifest.every);
            let (Some(every), Some(at)) = (every, function.next_tick) else { continue };
            if at > now {
                continue;
            }
            // A tick that was missed because the board slept, or the last one is still running, is not made up for.
            function.next_tick = Some(if at + every > now { at + every } else { now + every });
            // A paused function is not woken; when the pause is over, a tick probes it as well as a message.
            if function.quarantine.is_closed(now) || std::mem::replace(&mut function.tick_under_way, true) {
                continue;
            }
            let message = Message {
                topic: format!("$timer/{}", function.name).into(),
                payload: Bytes::new(),
                content_type: None,
                properties: Vec::new(),
                received_at_ms: now_ms,
                clock_synced: self.clock_synced,
                attempt: 1,
            };
            let from = From::Tick { function: number };
            let mut functions = vec![number];
            let compared = self.add_shadows(&mut functions, &message.topic);
            let unit = Unit::new(message, 0, from, functions.len(), Commit::default());
            let unit = self.insert(Unit { compared, ..unit });
            for function in functions {
                self.start(unit, function, now, now_ms);
            }
        }
        self.judge_due(now, now_ms);
    }

    pub fn next_due(&self) -> Option<Instant> {
        let timed = || self.timed.iter().map(|number| &self.functions[*number]);
        let ticks = timed().filter_map(|function| function.next_tick);
        let trials = timed().filter_map(|function| function.candidate.as_ref()?.until());
        ticks.chain(trials).chain(self.parking.next_due()).min()
    }
}
