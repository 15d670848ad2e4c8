//! The store as lists: what is committed, in order.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use sedge_core::message::Scope;
use sedge_core::request::{RequestId, Response};
use sedge_core::store::{
    Commit, DeadLetter, DeadLetterId, Fingerprint, HeardId, MessageIds, Parked, ParkedId, Record, Recovered,
    StoredHeard, StoredSchedule, StoredState, StoredWake, WakeId, scope_bytes,
};

#[derive(Debug)]
pub struct Disk {
    pub records: Vec<Record>,
    pub dead_letters: Vec<DeadLetter>,
    pub state: BTreeMap<Scope, BTreeMap<Box<str>, Bytes>>,
    pub parked: BTreeMap<ParkedId, Parked>,
    last_parked: u64,
    pub wakes: BTreeMap<WakeId, StoredWake>,
    pub heard: BTreeMap<HeardId, StoredHeard>,
    /// By function and name.
    pub schedules: BTreeMap<(Arc<str>, Arc<str>), StoredSchedule>,
    pub window: Vec<Fingerprint>,
    /// Deliveries of a session that the broker has lost are in the window.
    pub window_is_stale: bool,
    pub meta: BTreeMap<String, Bytes>,
    message_ids: Vec<Box<str>>,
    responses: BTreeMap<Box<str>, Response>,
    /// Dead letters of requests, not told yet.
    letters: Vec<(RequestId, DeadLetterId)>,
}

impl Default for Disk {
    /// An empty store of a board that knows its broker to count packet ids upwards.
    fn default() -> Self {
        Self {
            records: Vec::new(),
            dead_letters: Vec::new(),
            state: BTreeMap::new(),
            parked: BTreeMap::new(),
            last_parked: 0,
            wakes: BTreeMap::new(),
            heard: BTreeMap::new(),
            schedules: BTreeMap::new(),
            window: Vec::new(),
            window_is_stale: false,
            message_ids: Vec::new(),
            responses: BTreeMap::new(),
            letters: Vec::new(),
            meta: BTreeMap::from([("packet-ids-count-upwards".to_owned(), Bytes::from_static(b"1"))]),
        }
    }
}

impl Disk {
    /// Applies a commit. Returns the jobs that it parks, with their numbers.
    pub fn commit(&mut self, commit: Commit) -> Vec<Parked> {
        self.window.extend(commit.delivery);
        let last = (self.dead_letters.len() + commit.dead_letters.len()) as u64;
        let letter = (!commit.dead_letters.is_empty()).then_some(DeadLetterId(last));
        self.letters.extend(commit.request.zip(letter));
        if let Some((id, response)) = commit.message_id.clone().zip(commit.response) {
            self.responses.insert(id, Response { dead_letter: letter, ..response });
        }
        self.message_ids.extend(commit.message_id);
        self.records.extend(commit.records);
        self.dead_letters.extend(commit.dead_letters);
        for (scope, writes) in commit.state {
            let entries = self.state.entry(scope).or_default();
            for write in writes {
                match write.value {
                    Some(value) => drop(entries.insert(write.key, value)),
                    None => drop(entries.remove(&write.key)),
                }
            }
        }
        for id in commit.unpark {
            assert!(self.parked.remove(&id).is_some(), "{id:?} is not parked");
        }
        for wake in commit.wakes {
            assert!(self.wakes.insert(wake.id, wake).is_none(), "a number is given to two wakes");
        }
        for schedule in commit.schedules {
            self.schedules.insert((Arc::clone(&schedule.function), Arc::clone(&schedule.name)), schedule);
        }
        for id in commit.unwake {
            self.wakes.remove(&id);
        }
        for heard in commit.heard {
            let newer = self.heard.get(&heard.id).is_none_or(|known| known.turn < heard.turn);
            if newer {
                self.heard.insert(heard.id, heard);
            }
        }
        for id in commit.unheard {
            self.heard.remove(&id);
        }
        let numbered = commit.park.into_iter().map(|parked| {
            self.last_parked += u64::from(parked.id == ParkedId::NEW);
            let id = if parked.id == ParkedId::NEW { ParkedId(self.last_parked) } else { parked.id };
            let parked = Parked { id, ..parked };
            self.parked.insert(parked.id, parked.clone());
            parked
        });
        numbered.collect()
    }

    /// Dead letters of requests since this was last called.
    pub fn take_letters(&mut self) -> Vec<(RequestId, DeadLetterId)> {
        std::mem::take(&mut self.letters)
    }

    /// The answer that is kept under a message id.
    pub fn response(&self, message_id: &str) -> Option<Response> {
        self.responses.get(message_id).cloned()
    }

    pub fn forget_state(&mut self, function: &str, topics: &[Option<Arc<str>>]) {
        if topics.is_empty() {
            self.wakes.retain(|_, wake| *wake.function != *function);
            self.heard.retain(|_, heard| *heard.function != *function);
            self.schedules.retain(|(name, _), _| **name != *function);
        }
        self.state
            .retain(|scope, _| *scope.function != *function || !(topics.is_empty() || topics.contains(&scope.topic)));
    }

    /// What the state of each function counts.
    pub fn state_bytes(&self) -> BTreeMap<Arc<str>, u64> {
        let mut bytes = BTreeMap::new();
        for state in self.stored_state() {
            *bytes.entry(state.scope.function).or_default() += state.bytes;
        }
        bytes
    }

    fn stored_state(&self) -> impl Iterator<Item = StoredState> {
        self.state.iter().filter(|(_, entries)| !entries.is_empty()).map(|(scope, entries)| {
            let bytes: usize = entries.iter().map(|(key, value)| key.len() + value.len()).sum();
            let bytes = scope_bytes(scope.topic.as_deref(), entries.len() as u64, bytes as u64);
            StoredState { scope: scope.clone(), bytes }
        })
    }

    pub fn forget_deliveries(&mut self) {
        self.window.clear();
        self.window_is_stale = false;
    }

    pub fn entries(&self, scope: &Scope) -> Vec<(Box<str>, Bytes)> {
        let entries = self.state.get(scope).into_iter().flatten();
        entries.map(|(key, value)| (key.clone(), value.clone())).collect()
    }

    /// What an opened store tells the board.
    pub fn recovered(&self) -> Recovered {
        let mut message_ids = MessageIds::new("0000000000000001", Duration::from_secs(86_400));
        let now = Instant::now();
        for id in &self.message_ids {
            message_ids.insert(id, now);
        }
        Recovered {
            message_ids,
            window: self.window.clone(),
            parked: self.parked.values().cloned().collect(),
            state: self.stored_state().collect(),
            wakes: self.wakes.values().cloned().collect(),
            heard: self.heard.values().cloned().collect(),
            schedules: self.schedules.values().cloned().collect(),
            meta: self.meta.clone().into_iter().collect(),
            ..Recovered::default()
        }
    }

    pub fn payloads(&self) -> Vec<&str> {
        self.records.iter().map(|record| str::from_utf8(&record.payload).expect("payloads are text")).collect()
    }

    pub fn reasons(&self) -> Vec<&str> {
        self.dead_letters.iter().map(|letter| letter.failure.code.as_str()).collect()
    }

    /// The counter that functions keep under `n`.
    pub fn count(&self, function: &str, topic: Option<&str>) -> u64 {
        let scope = Scope { function: function.into(), topic: topic.map(Into::into) };
        let value = self.state.get(&scope).and_then(|entries| entries.get("n"));
        value.map_or(0, |value| number(value))
    }
}

pub fn number(value: &[u8]) -> u64 {
    str::from_utf8(value).ok().and_then(|text| text.parse().ok()).expect("counters are decimal numbers")
}
