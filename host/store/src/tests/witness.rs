//! Witness of a store: sends numbered messages and knows what must be there after any fault.
//!
//! Message `n` sets the state to `n`, makes records, dead letters and parked jobs by rules on `n`, and has the fingerprint
//! `n`. So the state that is found says which messages were committed, and everything else must agree with it.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;

use bytes::Bytes;

use super::testing::*;
use super::vfs::Random;
use crate::{DeadLetterFilter, DeadLetters, History, HistoryFilter, HistoryPlace};
use sedge_core::message::{FailureCode, StateWrite};
use sedge_core::store::{BatchNo, Commit, LoadId, Parked, ParkedId, RecordId, Recovered, StoreEvent, StoreRequest};
use sedge_core::stream::{Stream, StreamKind};

/// The store said that it has failed.
#[derive(Debug)]
pub(super) struct HasFailed;

pub(super) struct Witness {
    payload_bytes: u64,
    sent: u64,
    /// Messages up to this one were answered as committed.
    answered: u64,
    /// Message by stream and record id, of records that were answered or read.
    ids: BTreeMap<(usize, u64), u64>,
    /// Records up to these ids are delivered.
    delivered: [u64; 3],
    /// Parked jobs by the message that parked them: their id, and the message that unparked them.
    parked: BTreeMap<u64, (Option<ParkedId>, Option<u64>)>,
    /// Numbers of requests with the message.
    under_way: VecDeque<(u64, u64)>,
}

fn has(stream: Stream, n: u64) -> bool {
    match stream.kind() {
        StreamKind::Data => true,
        StreamKind::Alert => n.is_multiple_of(3),
        StreamKind::Local => n.is_multiple_of(5),
    }
}

fn in_history(n: u64) -> bool {
    n.is_multiple_of(4)
}

impl Witness {
    pub(super) fn new(payload_bytes: u64) -> Self {
        Self {
            payload_bytes,
            sent: 0,
            answered: 0,
            ids: BTreeMap::new(),
            delivered: [0; 3],
            parked: BTreeMap::new(),
            under_way: VecDeque::new(),
        }
    }

    fn payload(&self, n: u64) -> Bytes {
        let mut payload = format!("{n} ").into_bytes();
        payload.resize(payload.len() + (n * 37 % self.payload_bytes) as usize, n as u8);
        payload.into()
    }

    fn message(&mut self, n: u64) -> Commit {
        let mut commit = delivery(n);
        for stream in Stream::FIRST.into_iter().filter(|stream| has(*stream, n)) {
            commit.records.push(record(stream, self.payload(n)));
        }
        let count = StateWrite { key: "n".into(), value: Some(n.to_string().into()) };
        commit.state.push((scope(None), vec![count]));
        if n.is_multiple_of(11) {
            commit.dead_letters.push(dead_letter("f", FailureCode::Trap, self.payload(n)));
        }
        if in_history(n) {
            commit.history.push(record(Stream::ALERT, self.payload(n)));
        }
        if n.is_multiple_of(7) {
            let message = message("a", self.payload(n)).into();
            commit.park.push(Parked { id: ParkedId::NEW, function: "f".into(), message, due_ms: n, wait_ms: n });
            self.parked.insert(n, (None, None));
        }
        if n % 7 == 3
            && let Some((Some(id), unparked @ None)) = self.parked.get_mut(&n.saturating_sub(10))
        {
            *unparked = Some(n);
            commit.unpark.push(*id);
        }
        commit
    }

    /// Takes the next event: notes what it answers, or hands it back.
    fn event(&mut self, rig: &mut Rig) -> Result<Option<StoreEvent>, HasFailed> {
        match rig.event() {
            StoreEvent::Committed { batch: BatchNo(seq), stored, parked, .. } => {
                while let Some((_, n)) = self.under_way.pop_front_if(|(of, _)| *of <= seq) {
                    self.answered = n;
                }
                for stored in stored {
                    self.found(stored.record.stream, stored.id.0, number(&stored.record.payload));
                }
                for job in parked {
                    self.parked.get_mut(&number(&job.message.payload)).unwrap().0 = Some(job.id);
                }
                Ok(None)
            }
            StoreEvent::Failed { .. } => Err(HasFailed),
            other => Ok(Some(other)),
        }
    }

    /// Notes a record's id, which no other may have.
    fn found(&mut self, stream: Stream, id: u64, n: u64) {
        let known = *self.ids.entry((stream.index(), id)).or_insert(n);
        assert_eq!(known, n, "id {id} of {stream:?} is given twice");
    }

    /// Sends messages together, and waits until all of them are answered.
    pub(super) fn send(&mut self, rig: &mut Rig, count: u64) -> Result<(), HasFailed> {
        for _ in 0..count {
            self.sent += 1;
            let commit = self.message(self.sent);
            let seq = rig.start(vec![commit]);
            self.under_way.push_back((seq, self.sent));
        }
        while self.answered < self.sent {
            let event = self.event(rig)?;
            assert!(event.is_none(), "{event:?}");
        }
        Ok(())
    }

    /// Has some of the records delivered.
    pub(super) fn deliver(&mut self, rig: &Rig, random: &mut Random) {
        for stream in Stream::FIRST {
            let n = stream.index();
            let last = self.ids.range((n, 0)..=(n, u64::MAX)).next_back().map_or(0, |((_, id), _)| *id);
            let waiting = last - self.delivered[n];
            self.delivered[n] += random.below(waiting + 1);
            rig.send(StoreRequest::Delivered { stream, through: RecordId(self.delivered[n]) });
        }
    }

    /// Waits until the store works again.
    pub(super) fn reopened(&mut self, rig: &mut Rig) {
        loop {
            match rig.event() {
                StoreEvent::Reopened(recovered) => {
                    rig.recovered = *recovered;
                    return;
                }
                StoreEvent::Failed { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    }

    fn read_state(&mut self, rig: &mut Rig) -> Result<u64, HasFailed> {
        rig.send(StoreRequest::LoadState { id: LoadId(1), scope: scope(None) });
        loop {
            match self.event(rig)? {
                None => {}
                Some(StoreEvent::State { entries, .. }) => {
                    let count = entries.iter().find(|(key, _)| &**key == "n");
                    return Ok(count.map_or(0, |(_, value)| str::from_utf8(value).unwrap().parse().unwrap()));
                }
                Some(other) => panic!("{other:?}"),
            }
        }
    }

    fn read_stream(&mut self, rig: &mut Rig, stream: Stream) -> Result<Vec<(u64, u64)>, HasFailed> {
        let mut found: Vec<(u64, u64)> = Vec::new();
        loop {
            let after = RecordId(found.last().map_or(0, |(id, _)| *id));
            rig.send(StoreRequest::ReadOutbox { stream, after, max_bytes: 100_000 });
            match self.event(rig)? {
                Some(StoreEvent::Outbox { stored, end, .. }) => {
                    for stored in stored {
                        let n = number(&stored.record.payload);
                        assert_eq!(stored.record.payload, self.payload(n), "content of {n}");
                        found.push((stored.id.0, n));
                    }
                    if end {
                        return Ok(found);
                    }
                }
                other => panic!("{other:?}"),
            }
        }
    }

    /// Compares everything with a store that was just opened. What was not answered may be there or not, as a whole.
    pub(super) fn check(&mut self, rig: &mut Rig) -> Result<(), HasFailed> {
        let Recovered { moved_aside, window, parked, last, .. } = std::mem::take(&mut rig.recovered);
        assert!(moved_aside.is_none(), "{moved_aside:?}");
        self.under_way.clear();
        let count = self.read_state(rig)?;
        assert!((self.answered..=self.sent).contains(&count), "{} answered, {count} found", self.answered);
        let committed: Vec<u64> = window.iter().map(|fingerprint| fingerprint.digest).collect();
        let first = count.saturating_sub(RECEIVE_MAXIMUM.into()) + 1;
        assert_eq!(committed, (first..=count).collect::<Vec<_>>(), "fingerprints");
        for stream in Stream::FIRST {
            let found = self.read_stream(rig, stream)?;
            let expected: Vec<u64> = (1..=count).filter(|n| has(stream, *n)).collect();
            let numbers: Vec<u64> = found.iter().map(|(_, n)| *n).collect();
            assert!(expected.ends_with(&numbers), "{stream:?}: {numbers:?} of {count}");
            for (id, n) in found {
                self.found(stream, id, n);
            }
            let n = stream.index();
            let of_stream = self.ids.range((n, 0)..=(n, u64::MAX));
            let waiting = of_stream.filter(|((_, id), n)| *id > self.delivered[stream.index()] && **n <= count);
            let waiting: Vec<u64> = waiting.map(|(_, n)| *n).collect();
            assert!(numbers.ends_with(&waiting), "{stream:?}: {numbers:?} instead of {waiting:?}");
            let given = self.ids.range((n, 0)..=(n, u64::MAX)).next_back().map_or(0, |((_, id), _)| *id);
            assert!(last[stream].0 >= given, "{stream:?}: the last id is {given}, and {} was found", last[stream]);
        }
        self.parked.retain(|n, (_, unparked)| {
            *unparked = unparked.filter(|unparked| *unparked <= count);
            *n <= count
        });
        let waiting: Vec<u64> = self.parked.iter().filter(|(_, (_, by))| by.is_none()).map(|(n, _)| *n).collect();
        assert_eq!(parked.iter().map(|job| number(&job.message.payload)).collect::<Vec<_>>(), waiting, "parked jobs");
        for job in parked {
            self.parked.get_mut(&number(&job.message.payload)).unwrap().0 = Some(job.id);
        }
        (self.sent, self.answered) = (count, count);
        Ok(())
    }

    /// Compares dead letters and history, and looks for files that were moved aside.
    pub(super) fn check_files(&self, dir: &Path) {
        let letters = DeadLetters::open(dir).unwrap().list(&DeadLetterFilter::default(), usize::MAX).unwrap();
        let found: Vec<u64> = letters.iter().rev().map(|(_, letter)| number(&letter.message.payload)).collect();
        assert_eq!(found, (1..=self.answered).filter(|n| n.is_multiple_of(11)).collect::<Vec<_>>(), "dead letters");
        let mut kept = Vec::new();
        let mut place = Some(HistoryPlace::After(0));
        while let Some(from) = place {
            let page = History::open(dir).unwrap().page(&HistoryFilter::default(), from).unwrap();
            kept.extend(page.entries.iter().map(|(_, record)| number(&record.payload)));
            place = page.next;
        }
        assert_eq!(kept, (1..=self.answered).filter(|n| in_history(*n)).collect::<Vec<_>>(), "history");
        for entry in std::fs::read_dir(dir).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            assert!(!name.contains("corrupt"), "{name} was moved aside");
        }
    }
}

fn number(payload: &[u8]) -> u64 {
    let end = payload.iter().position(|byte| *byte == b' ').unwrap();
    str::from_utf8(&payload[..end]).unwrap().parse().unwrap()
}
