//! Deliveries that are not acknowledged, in order of receipt, and the evidence that tells a redelivery from a new message.
//!
//! MQTT requires acknowledgements in the order of receipt. One slow message therefore holds up the acknowledgements behind
//! it, but not their processing.
//!
//! After a broken connection the broker sends everything unacknowledged again. Messages that are committed, or still being
//! processed, must not run twice. The evidence is the packet id, the DUP flag and a digest of the message. Packet ids are
//! reused, and sensors repeat themselves, so:
//!
//! - a message whose acknowledgement was never written cannot have freed its packet id: same id and digest, same message;
//! - after the acknowledgement was written, the id may belong to another message, unless this broker is known to count its
//!   ids upwards: then the same id comes again only 65,535 messages later.
//!
//! A broker that reuses free ids never needs one above Receive Maximum: an id above it proves that the broker counts. Some
//! brokers are known to count by their name. Without evidence the message is processed: twice rather than never.
//!
//! What was under way when the disk failed may have been committed. The store says so when it works again, unless the same id
//! had the same digest before: then what the store holds may be the earlier message.

use std::collections::VecDeque;

use super::remembered::{Remembered, Stage};
use crate::board::ids::UnitId;
use crate::board::input::AckToken;
use crate::mistakes::{Mistake, is_made};
use crate::store::Fingerprint;

pub(crate) struct Window {
    places: VecDeque<Place>,
    /// The number of the first place.
    first: u64,
    known: Remembered,
    receive_maximum: usize,
    counts_upwards: bool,
}

/// Messages that the process remembers: half of all packet ids. A broker that dies takes along the acknowledgements that it
/// has not read, and a socket buffers tens of thousands of them.
const REMEMBERED: usize = 32_768;

/// Messages that the store remembers for the next process: more than can be unacknowledged, and cheap to write.
pub const fn memory(receive_maximum: u16) -> u16 {
    let memory = receive_maximum.saturating_mul(8);
    if memory > 32_768 { 32_768 } else { memory }
}

struct Place {
    token: AckToken,
    done: bool,
}

/// What a delivery is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    New {
        place: u64,
    },
    /// Committed before. The acknowledgement follows in its turn.
    Committed,
    /// Still being processed since an earlier connection.
    InFlight {
        unit: UnitId,
        place: u64,
    },
}

impl Window {
    /// `committed`: what the store knows of the connection that broke with the last process.
    pub(crate) fn new(receive_maximum: u16, counts_upwards: bool, committed: &[Fingerprint]) -> Self {
        let mut window = Self {
            places: VecDeque::new(),
            first: 0,
            known: Remembered::new(REMEMBERED),
            receive_maximum: receive_maximum.into(),
            counts_upwards,
        };
        for fingerprint in committed {
            // Whether the last process wrote the acknowledgement is not known: it may have.
            window.known.insert(*fingerprint, Stage::Committed, true);
        }
        window
    }

    /// Deliveries of this connection that are not acknowledged, done or not.
    pub(crate) fn unacknowledged(&self) -> usize {
        self.places.len()
    }

    pub(crate) fn counts_upwards(&self) -> bool {
        self.counts_upwards
    }

    /// The broker is known to count its packet ids upwards.
    pub(crate) fn set_counts_upwards(&mut self) {
        self.counts_upwards = true;
    }

    /// Takes a delivery into the window. A new one is then given its unit with [`Window::assign`].
    pub(crate) fn receive(&mut self, token: AckToken, fingerprint: Fingerprint, dup: bool) -> Seen {
        if usize::from(fingerprint.packet_id) > self.receive_maximum {
            self.counts_upwards = true;
        }
        let place = self.first + self.places.len() as u64;
        let known = self
            .known
            .get(fingerprint.packet_id)
            .filter(|known| dup && known.digest == fingerprint.digest && (self.counts_upwards || !known.ack_written));
        let (seen, stage) = match known.map(|known| known.stage) {
            Some(stage @ Stage::Committed) => (Seen::Committed, stage),
            _ if dup && is_made(Mistake::BelieveDup) => (Seen::Committed, Stage::Committed),
            Some(Stage::InFlight(_)) if is_made(Mistake::ForgetInFlight) => (Seen::New { place }, Stage::Void),
            Some(stage @ Stage::InFlight(unit)) => (Seen::InFlight { unit, place }, stage),
            Some(Stage::Doubtful | Stage::Recovered | Stage::Void) | None => (Seen::New { place }, Stage::Void),
        };
        self.places.push_back(Place { token, done: seen == Seen::Committed });
        self.known.insert(fingerprint, stage, false);
        seen
    }

    /// Says which unit a new delivery became.
    pub(crate) fn assign(&mut self, packet_id: u16, unit: UnitId) {
        if let Some(known) = self.known.get_mut(packet_id) {
            known.stage = Stage::InFlight(unit);
        }
    }

    /// The delivery at this place is committed. Its acknowledgement follows when all before it are.
    pub(crate) fn committed(&mut self, place: u64, fingerprint: Fingerprint) {
        if let Some(known) = self.known.get_mut(fingerprint.packet_id)
            && known.digest == fingerprint.digest
        {
            known.stage = Stage::Committed;
        }
        if let Some(place) = place.checked_sub(self.first).and_then(|index| self.places.get_mut(index as usize)) {
            place.done = true;
        }
    }

    /// The next acknowledgement that may be written.
    pub(crate) fn release(&mut self) -> Option<AckToken> {
        if is_made(Mistake::AcknowledgeOutOfOrder) {
            self.places.make_contiguous().sort_by_key(|place| !place.done);
        }
        if !self.places.front()?.done {
            return None;
        }
        self.first += 1;
        let token = self.places.pop_front()?.token;
        if let Some(known) = self.known.get_mut(token.packet_id) {
            known.ack_written = true;
        }
        Some(token)
    }

    /// The connection broke: nothing of it can be acknowledged any more, but it is remembered what it was.
    pub(crate) fn disconnected(&mut self) {
        self.first += self.places.len() as u64;
        self.places.clear();
    }

    /// The disk failed: what was under way will come again. What was committed stays known, together with whether its
    /// acknowledgement was written.
    pub(crate) fn store_failed(&mut self) {
        self.disconnected();
        self.known.change(|known| {
            if let Stage::InFlight(_) = known.stage {
                known.stage = if known.repeats { Stage::Void } else { Stage::Doubtful };
            }
        });
    }

    /// The disk works again and holds these. What was under way and is among them was committed although the commit was
    /// reported as failed; its acknowledgement was never written.
    pub(crate) fn store_reopened(&mut self, committed: &[Fingerprint]) {
        for fingerprint in committed {
            if let Some(known) = self.known.get_mut(fingerprint.packet_id)
                && let Stage::Doubtful | Stage::Recovered = known.stage
            {
                // The newest of each packet id counts.
                known.stage = if known.digest == fingerprint.digest { Stage::Recovered } else { Stage::Doubtful };
            }
        }
        self.known.change(|known| match known.stage {
            Stage::Recovered => known.stage = Stage::Committed,
            Stage::Doubtful => known.stage = Stage::Void,
            Stage::Committed | Stage::InFlight(_) | Stage::Void => {}
        });
    }

    /// The broker has no session of ours: whatever comes is new.
    pub(crate) fn session_lost(&mut self) {
        if !is_made(Mistake::KeepLostSession) {
            self.known.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(packet_id: u16, connection: u32) -> AckToken {
        AckToken { packet_id, connection }
    }

    fn fingerprint(packet_id: u16, digest: u64) -> Fingerprint {
        Fingerprint { packet_id, digest }
    }

    fn receive(window: &mut Window, packet_id: u16, digest: u64, connection: u32, dup: bool) -> Seen {
        window.receive(token(packet_id, connection), fingerprint(packet_id, digest), dup)
    }

    fn released(window: &mut Window) -> Vec<u16> {
        std::iter::from_fn(|| window.release()).map(|token| token.packet_id).collect()
    }

    #[test]
    fn acknowledgements_leave_in_the_order_of_receipt() {
        let mut window = Window::new(10, false, &[]);
        for id in 1..=3 {
            assert_eq!(receive(&mut window, id, id.into(), 1, false), Seen::New { place: u64::from(id) - 1 });
        }
        window.committed(1, fingerprint(2, 2));
        assert!(released(&mut window).is_empty());
        window.committed(0, fingerprint(1, 1));
        assert_eq!(released(&mut window), [1, 2]);
        window.committed(2, fingerprint(3, 3));
        assert_eq!(released(&mut window), [3]);
    }

    #[test]
    fn a_committed_message_that_comes_again_is_only_acknowledged() {
        let mut window = Window::new(10, false, &[]);
        receive(&mut window, 1, 11, 1, false);
        window.assign(1, UnitId(7));
        receive(&mut window, 2, 22, 1, false);
        // The second is committed, but its acknowledgement waits for the first.
        window.committed(1, fingerprint(2, 22));
        window.disconnected();
        assert_eq!(receive(&mut window, 1, 11, 2, true), Seen::InFlight { unit: UnitId(7), place: 2 });
        assert_eq!(receive(&mut window, 2, 22, 2, true), Seen::Committed);
    }

    #[test]
    fn a_message_under_way_is_not_started_again() {
        let mut window = Window::new(10, false, &[]);
        receive(&mut window, 1, 11, 1, false);
        window.assign(1, UnitId(7));
        window.disconnected();
        assert_eq!(receive(&mut window, 1, 11, 2, true), Seen::InFlight { unit: UnitId(7), place: 1 });
        window.committed(1, fingerprint(1, 11));
        assert_eq!(window.release(), Some(token(1, 2)));
    }

    #[test]
    fn after_its_acknowledgement_an_id_may_mean_another_message() {
        let mut window = Window::new(10, false, &[]);
        receive(&mut window, 1, 11, 1, false);
        window.committed(0, fingerprint(1, 11));
        assert_eq!(released(&mut window), [1]);
        window.disconnected();
        // The same reading once more, with the same id, lost on its way: it must not be dropped.
        assert_eq!(receive(&mut window, 1, 11, 2, true), Seen::New { place: 1 });
    }

    #[test]
    fn a_broker_that_counts_its_ids_upwards_is_believed() {
        let mut window = Window::new(10, false, &[]);
        receive(&mut window, 11, 11, 1, false);
        assert!(window.counts_upwards());
        window.committed(0, fingerprint(11, 11));
        assert_eq!(released(&mut window), [11]);
        window.disconnected();
        assert_eq!(receive(&mut window, 11, 11, 2, true), Seen::Committed);
        assert_eq!(released(&mut window), [11]);
    }

    #[test]
    fn other_content_or_no_dup_flag_is_another_message() {
        let mut window = Window::new(10, true, &[fingerprint(5, 55), fingerprint(6, 66)]);
        assert_eq!(receive(&mut window, 5, 50, 1, true), Seen::New { place: 0 });
        assert_eq!(receive(&mut window, 6, 66, 1, false), Seen::New { place: 1 });
    }

    #[test]
    fn what_a_crashed_process_committed_is_recognised() {
        let mut window = Window::new(10, true, &[fingerprint(5, 55)]);
        assert_eq!(receive(&mut window, 5, 55, 1, true), Seen::Committed);
        let mut window = Window::new(10, true, &[fingerprint(5, 55)]);
        window.session_lost();
        assert_eq!(receive(&mut window, 5, 55, 1, true), Seen::New { place: 0 });
    }

    #[test]
    fn a_failing_disk_forgets_what_was_under_way_and_nothing_else() {
        let mut window = Window::new(10, false, &[]);
        for id in 1..=3 {
            receive(&mut window, id, id.into(), 1, false);
            window.assign(id, UnitId(id.into()));
        }
        window.committed(0, fingerprint(1, 1));
        assert_eq!(released(&mut window), [1]);
        window.committed(2, fingerprint(3, 3));
        window.store_failed();
        // 2 was committed after all, though the commit was reported as failed.
        window.store_reopened(&[fingerprint(1, 1), fingerprint(2, 2), fingerprint(3, 3)]);
        assert_eq!(receive(&mut window, 2, 2, 2, true), Seen::Committed);
        assert_eq!(receive(&mut window, 3, 3, 2, true), Seen::Committed);
        window.store_failed();
        window.store_reopened(&[]);
        assert_eq!(receive(&mut window, 4, 4, 3, true), Seen::New { place: 5 });
        window.assign(4, UnitId(4));
        window.store_failed();
        assert_eq!(receive(&mut window, 4, 4, 4, true), Seen::New { place: 6 });
    }

    #[test]
    fn after_a_failure_of_the_disk_an_equal_earlier_message_is_no_evidence() {
        let mut window = Window::new(10, false, &[]);
        let earlier = fingerprint(1, 11);
        receive(&mut window, 1, 11, 1, false);
        window.assign(1, UnitId(1));
        window.committed(0, earlier);
        assert_eq!(released(&mut window), [1]);
        // The sensor sends the same reading again, under the id that became free.
        assert_eq!(receive(&mut window, 1, 11, 1, false), Seen::New { place: 1 });
        window.assign(1, UnitId(2));
        window.store_failed();
        window.store_reopened(&[earlier]);
        assert_eq!(receive(&mut window, 1, 11, 2, true), Seen::New { place: 2 });
    }

    /// Mosquitto hands out more than Receive Maximum allows, and was seen to go down with 8,480 acknowledgements unread.
    #[test]
    fn a_broker_that_read_no_acknowledgement_for_long_makes_nothing_be_done_twice() {
        const MANY: u16 = 30_000;
        let mut window = Window::new(1024, true, &[]);
        for id in 1..=MANY {
            let Seen::New { place } = receive(&mut window, id, id.into(), 1, false) else { panic!("{id} is new") };
            window.committed(place, fingerprint(id, id.into()));
            window.release();
        }
        window.disconnected();
        for id in 1..=MANY {
            assert_eq!(receive(&mut window, id, id.into(), 2, true), Seen::Committed);
        }
    }

    #[test]
    fn memory_is_bounded() {
        let mut window = Window::new(10, true, &[]);
        for id in 0..u16::MAX {
            receive(&mut window, id, id.into(), 1, false);
            window.committed(u64::from(id), fingerprint(id, id.into()));
            window.release();
        }
        let remembered = (0..u16::MAX).filter(|id| window.known.get(*id).is_some());
        assert_eq!(remembered.count(), REMEMBERED);
    }
}
