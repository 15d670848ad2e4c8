//! Recently seen message ids of publishers, as 64-bit hashes in memory. The pipeline asks before it runs a message.
//!
//! The hash is keyed with the store's random id, so that nobody can craft two ids with the same hash.

use std::collections::{HashSet, VecDeque};

use siphasher::sip::SipHasher13;

/// Ids that are remembered at most, whatever the retention: about 3 MB of memory when all are in use.
pub(super) const IDS: usize = 65_536;

/// Message ids seen within the retention time.
#[derive(Debug, Default)]
pub struct MessageIds {
    key: [u8; 16],
    retention_secs: u64,
    known: HashSet<u64>,
    /// Oldest first, with the Unix time in seconds.
    order: VecDeque<(u64, u64)>,
}

impl MessageIds {
    pub(super) fn new(store_id: &str, retention_secs: u64) -> Self {
        Self { key: key(store_id), retention_secs, ..Self::default() }
    }

    /// Remembers an id. Returns whether it was seen before. The store learns of it by `Commit::message_id`.
    pub fn insert(&mut self, id: &str, now_secs: u64) -> bool {
        !self.insert_hash(hash(&self.key, id), now_secs)
    }

    pub fn contains(&self, id: &str) -> bool {
        self.known.contains(&hash(&self.key, id))
    }

    pub(super) fn insert_hash(&mut self, hash: u64, now_secs: u64) -> bool {
        let new = self.known.insert(hash);
        if new {
            self.order.push_back((now_secs, hash));
        }
        let oldest = now_secs.saturating_sub(self.retention_secs);
        while let Some((at_secs, hash)) = self.order.front()
            && (*at_secs < oldest || self.order.len() > IDS)
        {
            self.known.remove(hash);
            self.order.pop_front();
        }
        new
    }
}

pub(super) fn key(store_id: &str) -> [u8; 16] {
    let mut key = [0; 16];
    key.iter_mut().zip(store_id.bytes()).for_each(|(key, byte)| *key = byte);
    key
}

pub(super) fn hash(key: &[u8; 16], id: &str) -> u64 {
    SipHasher13::new_with_key(key).hash(id.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_known_until_it_is_too_old() {
        let mut ids = MessageIds::new("0123456789abcdef", 10);
        assert!(!ids.insert("a", 100));
        assert!(ids.insert("a", 105));
        assert!(!ids.insert("b", 105));
        assert!(!ids.insert("c", 111));
        assert!(!ids.insert("a", 111), "retained for 10 s");
        assert!(ids.insert("b", 111));
    }

    #[test]
    fn the_number_of_ids_is_bounded() {
        let mut ids = MessageIds::new("0123456789abcdef", 10);
        for n in 0..=IDS {
            ids.insert(&n.to_string(), 100);
        }
        assert_eq!(ids.known.len(), IDS);
        assert!(ids.insert("1", 100));
        assert!(!ids.insert("0", 100));
    }
}
