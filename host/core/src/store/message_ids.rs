//! Recently seen message ids of publishers, as 64-bit hashes in memory. The pipeline asks before it runs a message.
//!
//! Ages are of the monotonic clock: a wall clock that is set must not make an id forgotten. A restart begins them anew.
//!
//! The hash is keyed with the store's random id, so that nobody can craft two ids with the same hash.

use std::collections::{HashSet, VecDeque};
use std::fmt;
use std::time::{Duration, Instant};

use siphasher::sip::SipHasher13;

/// Ids that are remembered at most, whatever the retention: about 3 MB of memory when all are in use.
pub const IDS: usize = 65_536;

/// Message ids seen within the retention time.
#[derive(Default)]
pub struct MessageIds {
    key: [u8; 16],
    retention: Duration,
    known: HashSet<u64>,
    /// Oldest first.
    order: VecDeque<(Instant, u64)>,
}

impl MessageIds {
    pub fn new(store_id: &str, retention: Duration) -> Self {
        Self { key: key(store_id), retention, ..Self::default() }
    }

    /// Remembers an id. Returns whether it was seen before. The store learns of it by `Commit::message_id`.
    pub fn insert(&mut self, id: &str, now: Instant) -> bool {
        !self.insert_hash(hash(&self.key, id), now)
    }

    pub fn contains(&self, id: &str) -> bool {
        self.known.contains(&hash(&self.key, id))
    }

    pub fn insert_hash(&mut self, hash: u64, now: Instant) -> bool {
        let new = self.known.insert(hash);
        if new {
            self.order.push_back((now, hash));
        }
        while let Some((at, hash)) = self.order.front()
            && (now.saturating_duration_since(*at) > self.retention || self.order.len() > IDS)
        {
            self.known.remove(hash);
            self.order.pop_front();
        }
        new
    }
}

/// Oldest first, without times: equal runs print equal text.
impl fmt::Debug for MessageIds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hashes = self.order.iter().map(|(_, hash)| hash);
        f.debug_list().entries(hashes).finish()
    }
}

pub fn key(store_id: &str) -> [u8; 16] {
    let mut key = [0; 16];
    key.iter_mut().zip(store_id.bytes()).for_each(|(key, byte)| *key = byte);
    key
}

pub fn hash(key: &[u8; 16], id: &str) -> u64 {
    SipHasher13::new_with_key(key).hash(id.as_bytes())
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a test may read clocks and files")]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_known_until_it_is_too_old() {
        let start = Instant::now();
        let at = |secs| start + Duration::from_secs(secs);
        let mut ids = MessageIds::new("0123456789abcdef", Duration::from_secs(10));
        assert!(!ids.insert("a", at(100)));
        assert!(ids.insert("a", at(105)));
        assert!(!ids.insert("b", at(105)));
        assert!(!ids.insert("c", at(111)));
        assert!(!ids.insert("a", at(111)), "retained for 10 s");
        assert!(ids.insert("b", at(111)));
    }

    #[test]
    fn the_number_of_ids_is_bounded() {
        let mut ids = MessageIds::new("0123456789abcdef", Duration::from_secs(10));
        let now = Instant::now();
        for n in 0..=IDS {
            ids.insert(&n.to_string(), now);
        }
        assert_eq!(ids.known.len(), IDS);
        assert!(ids.insert("1", now));
        assert!(!ids.insert("0", now));
    }
}
