//! Tail of one stream: committed records that the receiver has not accepted yet, in a window of bounded size.
//!
//! ```text
//! gone ≤ watermark < [ done, sent, waiting … ] ≤ held < … only on disk … ≤ last
//!                    └──────── window ───────┘
//! ```
//!
//! While the window holds everything up to `last`, new records come from their commit and the disk is not read. A full
//! window falls behind; the records that it missed are loaded from the store in order.
//!
//! The watermark passes a record only when it is delivered or refused. It follows the order of ids, although receivers
//! may answer in any order.

use std::collections::{BTreeMap, VecDeque};

use crate::mistakes::{Mistake, is_made};
use crate::store::{GapId, RecordId, StoredRecord};

/// Bounds of the window. A record larger than `bytes` is held alone.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TailLimits {
    pub(crate) records: usize,
    pub(crate) bytes: usize,
}

/// Memory of a held record beside its strings and payload: the slot and the allocator's rounding.
const SLOT_BYTES: usize = 192;

#[derive(Debug)]
pub(crate) struct Tail {
    window: TailLimits,
    /// In order of ids. The front slot is not done.
    slots: VecDeque<Slot>,
    /// Slots before this one are not waiting.
    cursor: usize,
    /// Memory of the slots that still have their record.
    bytes: usize,
    watermark: RecordId,
    /// Last id that was held at some time or is gone.
    held: RecordId,
    /// Last id known to be committed.
    last: RecordId,
    loading: bool,
    /// The window became full, and the store was not told.
    fell_behind: bool,
    /// Memory of the record behind `held`, if it was loaded and there was no room for it.
    too_large: usize,
    /// Records that the store has dropped and the receiver may have, with the gap that counts them. They are sent until that is
    /// known.
    dropped: BTreeMap<RecordId, GapId>,
    /// The last accepted records that the store has not dropped, with how many records each stands for and the size of their
    /// payloads: the store may not know yet that it can delete them.
    accepted: VecDeque<(RecordId, (u64, u64))>,
    /// Loads that the store may still answer from before it was reopened. Their records do not follow the window.
    stale_loads: u32,
}

#[derive(Debug)]
struct Slot {
    id: RecordId,
    state: SlotState,
    /// It was sent on a connection that broke before its answer.
    is_doubtful: bool,
}

#[derive(Debug)]
enum SlotState {
    Waiting(StoredRecord),
    Sent(StoredRecord),
    Done,
}

/// Request to the store: records after this id, up to about this many bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Load {
    pub(crate) after: RecordId,
    pub(crate) max_bytes: usize,
}

impl Tail {
    /// State after the store was opened: everything up to `delivered` is gone, `last` is the last id given.
    pub(crate) fn new(window: TailLimits, delivered: RecordId, last: RecordId) -> Self {
        Self {
            window,
            slots: VecDeque::new(),
            cursor: 0,
            bytes: 0,
            watermark: delivered,
            held: delivered,
            last: last.max(delivered),
            loading: false,
            fell_behind: false,
            too_large: 0,
            dropped: BTreeMap::new(),
            accepted: VecDeque::new(),
            stale_loads: 0,
        }
    }

    /// Adds a record that was just committed, in order. One that does not fit is loaded later.
    pub(crate) fn committed(&mut self, stored: StoredRecord) {
        if stored.id <= self.last {
            return;
        }
        let gapless = self.held == self.last;
        self.last = stored.id;
        if gapless && self.fits(&stored) {
            self.hold(stored);
        } else {
            self.fell_behind |= gapless;
        }
    }

    /// Adds the answer to a [`Load`]. `end`: the store had no records after these.
    pub(crate) fn loaded(&mut self, stored: Vec<StoredRecord>, end: bool) {
        self.loading = false;
        self.too_large = 0;
        if self.stale_loads > 0 {
            // If this was the answer to the current load, the records are requested once more.
            self.stale_loads -= 1;
            return;
        }
        for stored in stored {
            if stored.id <= self.held {
                continue;
            }
            // The store answers in whole rows and may exceed the requested size.
            if !self.fits(&stored) {
                self.last = self.last.max(stored.id);
                self.too_large = weight(&stored);
                self.fell_behind = true;
                return;
            }
            self.hold(stored);
        }
        self.last = self.last.max(self.held);
        if end {
            // Commits announced before this answer are part of it. Missing records were dropped.
            self.held = self.last;
        }
    }

    /// The last record in memory, if the window has become full since this was last asked: later records are loaded before they
    /// are sent.
    pub(crate) fn take_behind(&mut self) -> Option<RecordId> {
        let held = if is_made(Mistake::HoldMore) { self.watermark } else { self.held };
        (std::mem::take(&mut self.fell_behind) && self.held < self.last).then_some(held)
    }

    /// Next load, once half of the window is free and there is room for a record that was too large. Returned once per load.
    pub(crate) fn load(&mut self) -> Option<Load> {
        let roomy = self.slots.len() <= self.window.records / 2 && self.bytes <= self.window.bytes / 2;
        let fits = self.slots.is_empty() || self.bytes + self.too_large <= self.window.bytes;
        if self.loading || self.held >= self.last || !roomy || !fits {
            return None;
        }
        self.loading = true;
        Some(Load { after: self.held, max_bytes: self.window.bytes - self.bytes })
    }

    /// Marks the next record as sent and returns it. `None`: no record waits in memory.
    pub(crate) fn next(&mut self) -> Option<&StoredRecord> {
        while let Some(slot) = self.slots.get(self.cursor) {
            if matches!(slot.state, SlotState::Waiting(_)) {
                break;
            }
            self.cursor += 1;
        }
        let slot = self.slots.get_mut(self.cursor)?;
        self.cursor += 1;
        if let SlotState::Waiting(stored) = std::mem::replace(&mut slot.state, SlotState::Done) {
            slot.state = SlotState::Sent(stored);
        }
        match &slot.state {
            SlotState::Sent(stored) => Some(stored),
            SlotState::Waiting(_) | SlotState::Done => None,
        }
    }

    /// Whether the record is held and not sent.
    pub(crate) fn is_waiting(&self, id: RecordId) -> bool {
        self.find(id).is_some_and(|index| matches!(self.slots[index].state, SlotState::Waiting(_)))
    }

    /// Record that was sent and has no answer.
    pub(crate) fn sent(&self, id: RecordId) -> Option<&StoredRecord> {
        match &self.slots[self.find(id)?].state {
            SlotState::Sent(stored) => Some(stored),
            SlotState::Waiting(_) | SlotState::Done => None,
        }
    }

    /// Marks a record as accepted or given up. Returns the watermark if it moved.
    pub(crate) fn done(&mut self, id: RecordId) -> Option<RecordId> {
        let index = self.find(id)?;
        self.dropped.remove(&id);
        let slot = &mut self.slots[index];
        if let SlotState::Waiting(stored) | SlotState::Sent(stored) =
            std::mem::replace(&mut slot.state, SlotState::Done)
        {
            self.bytes -= weight(&stored);
        }
        let before = self.watermark;
        self.advance();
        (self.watermark > before).then_some(self.watermark)
    }

    fn advance(&mut self) {
        while let Some(Slot { id, state: SlotState::Done, .. }) = self.slots.front() {
            self.watermark = *id;
            self.slots.pop_front();
            self.cursor = self.cursor.saturating_sub(1);
        }
        // The last ids may be those of no record: of what was folded into an earlier one.
        if self.slots.is_empty() {
            self.watermark = self.watermark.max(self.held);
        }
    }

    /// The receiver has accepted a record that was sent. Returns how many records it stands for, and the size of their payloads.
    pub(crate) fn accepted(&mut self, id: RecordId) -> (u64, u64) {
        let size = self.sent(id).map_or((0, 0), |sent| sent.record.stands_for());
        if self.dropped.contains_key(&id) {
            return size;
        }
        if self.accepted.len() >= self.window.records {
            self.accepted.pop_front();
        }
        self.accepted.push_back((id, size));
        size
    }

    /// The store has dropped the records of these ranges, see `StoreEvent::Dropped`. What was never sent is forgotten. Returns how
    /// many were accepted, and the size of their payloads.
    pub(crate) fn dropped(&mut self, gap: GapId, ranges: &[(RecordId, RecordId)]) -> (u64, u64) {
        self.too_large = 0;
        for (after, through) in ranges {
            // Otherwise there are records on disk before these.
            if *after <= self.held {
                self.held = self.held.max(*through);
            }
            self.last = self.last.max(*through);
            let first = self.slots.partition_point(|slot| slot.id <= *after);
            for slot in self.slots.range_mut(first..).take_while(|slot| slot.id <= *through) {
                match &slot.state {
                    SlotState::Waiting(stored) if !slot.is_doubtful => {
                        self.bytes -= weight(stored);
                        slot.state = SlotState::Done;
                    }
                    SlotState::Waiting(_) | SlotState::Sent(_) => drop(self.dropped.entry(slot.id).or_insert(gap)),
                    SlotState::Done => {}
                }
            }
        }
        self.advance();
        let mut delivered = (0, 0);
        self.accepted.retain(|(id, (records, bytes))| {
            let range = ranges.partition_point(|(_, through)| through < id);
            let is_dropped = ranges.get(range).is_some_and(|(after, _)| after < id);
            if is_dropped {
                delivered = (delivered.0 + records, delivered.1 + bytes);
            }
            !is_dropped
        });
        delivered
    }

    /// The gap that counts this record, if the store has dropped it.
    pub(crate) fn gap_of(&self, id: RecordId) -> Option<GapId> {
        self.dropped.get(&id).copied()
    }

    /// The oldest record that the store has dropped and the receiver may have.
    pub(crate) fn oldest_dropped(&self) -> Option<RecordId> {
        self.dropped.first_key_value().map(|(id, _)| *id)
    }

    /// Queues a sent record again, before those that were not sent yet.
    pub(crate) fn requeue(&mut self, id: RecordId) {
        let index = self.find(id).expect("a record in flight is in its tail");
        self.unsend(index);
        self.cursor = self.cursor.min(index);
    }

    /// Queues everything without an answer again, in order, after the connection broke.
    pub(crate) fn rewind(&mut self) {
        for index in 0..self.slots.len() {
            self.slots[index].is_doubtful |= matches!(self.slots[index].state, SlotState::Sent(_));
            self.unsend(index);
        }
        self.cursor = 0;
    }

    /// Starts over with a reopened store. It discarded earlier requests, refusals among them, so every record that is
    /// not gone is sent again.
    pub(crate) fn reopened(&mut self, delivered: RecordId, last: RecordId) {
        let stale_loads = self.stale_loads + u32::from(self.loading);
        *self = Self { stale_loads, ..Self::new(self.window, delivered, last) };
    }

    /// Whether records wait to be sent, in memory or on disk.
    pub(crate) fn has_waiting(&self) -> bool {
        self.held < self.last || self.slots.range(self.cursor..).any(|slot| matches!(slot.state, SlotState::Waiting(_)))
    }

    /// Memory of the records in the window.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    fn fits(&self, stored: &StoredRecord) -> bool {
        self.slots.is_empty()
            || self.slots.len() < self.window.records && self.bytes + weight(stored) <= self.window.bytes
    }

    fn hold(&mut self, stored: StoredRecord) {
        self.held = stored.id;
        self.bytes += weight(&stored);
        self.slots.push_back(Slot { id: stored.id, state: SlotState::Waiting(stored), is_doubtful: false });
    }

    fn find(&self, id: RecordId) -> Option<usize> {
        self.slots.binary_search_by_key(&id, |slot| slot.id).ok()
    }

    fn unsend(&mut self, index: usize) {
        let state = &mut self.slots[index].state;
        *state = match std::mem::replace(state, SlotState::Done) {
            SlotState::Sent(stored) => SlotState::Waiting(stored),
            state => state,
        };
    }
}

fn weight(stored: &StoredRecord) -> usize {
    let record = &stored.record;
    SLOT_BYTES + record.payload.len() + record.topic.len() + record.content_type.as_ref().map_or(0, |kind| kind.len())
}

#[cfg(test)]
mod tests;
