//! Fingerprints of the last messages, found by packet id.
//!
//! Each message is looked up several times, and ids come nearly in order. A ring in order of arrival and a table from id to
//! place are therefore read front to back; a hash map of thousands of messages would miss the cache on each access.

use std::collections::VecDeque;

use crate::board::ids::UnitId;
use crate::store::Fingerprint;

#[derive(Debug)]
pub(crate) struct Remembered {
    ring: VecDeque<Known>,
    /// Number of the first entry of the ring. Numbers wrap around.
    first: u32,
    /// Number last given to each id. Valid only where the ring has that id at its place.
    places: Box<[u32]>,
    /// Capacity of the ring.
    most: usize,
}

#[derive(Debug)]
pub(crate) struct Known {
    pub(crate) digest: u64,
    pub(crate) stage: Stage,
    packet_id: u16,
    pub(crate) ack_written: bool,
    /// The store may hold an earlier message with the same id and digest.
    pub(crate) repeats: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    InFlight(UnitId),
    Committed,
    /// It was under way when the disk failed.
    Doubtful,
    /// It was under way when the disk failed, and the disk holds it.
    Recovered,
    /// Whatever comes with this id is new.
    Void,
}

impl Remembered {
    pub(crate) fn new(most: usize) -> Self {
        Self { ring: VecDeque::new(), first: 0, places: vec![0; 1 << 16].into(), most }
    }

    pub(crate) fn get(&self, packet_id: u16) -> Option<&Known> {
        self.ring.get(self.index(packet_id)).filter(|known| known.packet_id == packet_id)
    }

    pub(crate) fn get_mut(&mut self, packet_id: u16) -> Option<&mut Known> {
        let index = self.index(packet_id);
        self.ring.get_mut(index).filter(|known| known.packet_id == packet_id)
    }

    pub(crate) fn insert(&mut self, fingerprint: Fingerprint, stage: Stage, ack_written: bool) {
        let Fingerprint { packet_id, digest } = fingerprint;
        let repeats = self.get(packet_id).is_some_and(|known| match known.stage {
            Stage::Committed | Stage::Recovered => known.digest == digest,
            // Not stored itself, but it hides what was before it.
            Stage::InFlight(_) | Stage::Doubtful | Stage::Void => known.repeats || known.digest != digest,
        });
        self.push(Known { digest, stage, packet_id, ack_written, repeats });
        if self.ring.len() > self.most {
            self.ring.pop_front();
            self.first = self.first.wrapping_add(1);
        }
    }

    pub(crate) fn change(&mut self, change: impl FnMut(&mut Known)) {
        self.ring.iter_mut().for_each(change);
    }

    pub(crate) fn clear(&mut self) {
        // No id leads to one that was forgotten.
        self.first = self.first.wrapping_add(self.ring.len() as u32);
        self.ring.clear();
    }

    fn push(&mut self, known: Known) {
        self.places[usize::from(known.packet_id)] = self.first.wrapping_add(self.ring.len() as u32);
        self.ring.push_back(known);
    }

    /// Where it is if it is there.
    fn index(&self, packet_id: u16) -> usize {
        self.places[usize::from(packet_id)].wrapping_sub(self.first) as usize
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, VecDeque};

    use proptest::prelude::*;

    use super::*;

    const MOST: usize = 8;

    /// The same by the simplest means.
    #[derive(Default)]
    struct Model {
        known: HashMap<u16, (u64, Stage, u64)>,
        order: VecDeque<(u16, u64)>,
        came: u64,
    }

    impl Model {
        fn insert(&mut self, packet_id: u16, digest: u64, stage: Stage) {
            self.came += 1;
            self.known.insert(packet_id, (digest, stage, self.came));
            self.order.push_back((packet_id, self.came));
            while self.order.len() > MOST {
                let (packet_id, came) = self.order.pop_front().unwrap();
                if self.known.get(&packet_id).is_some_and(|known| known.2 == came) {
                    self.known.remove(&packet_id);
                }
            }
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Insert(u16, u64, UnitId),
        Finish(u16),
        LoseSession,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            20 => (0..12_u16, any::<u64>(), (0..9_u32).prop_map(UnitId)).prop_map(|(id, digest, unit)| Step::Insert(id, digest, unit)),
            5 => (0..12_u16).prop_map(Step::Finish),
            1 => Just(Step::LoseSession),
        ]
    }

    proptest! {
        #[test]
        fn it_is_a_map_of_the_last_ones(first in any::<u32>(), steps in proptest::collection::vec(step(), 0..200)) {
            let mut remembered = Remembered { first: first | 0xffff_ff00, ..Remembered::new(MOST) };
            let mut model = Model::default();
            for step in steps {
                match step {
                    Step::Insert(packet_id, digest, unit) => {
                        remembered.insert(Fingerprint { packet_id, digest }, Stage::InFlight(unit), false);
                        model.insert(packet_id, digest, Stage::InFlight(unit));
                    }
                    Step::Finish(id) => {
                        if let Some(known) = remembered.get_mut(id) {
                            known.stage = Stage::Committed;
                        }
                        if let Some(known) = model.known.get_mut(&id) {
                            known.1 = Stage::Committed;
                        }
                    }
                    Step::LoseSession => {
                        remembered.clear();
                        model = Model::default();
                    }
                }
                for id in 0..12 {
                    let expected = model.known.get(&id).map(|known| (known.0, known.1));
                    prop_assert_eq!(remembered.get(id).map(|known| (known.digest, known.stage)), expected);
                }
                prop_assert!(remembered.ring.len() <= MOST);
            }
        }
    }
}
