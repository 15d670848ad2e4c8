//! What state counts: the board adds it up as runs change it, and the store measures it when it is opened.

use crate::message::Scope;

/// Bytes that an entry counts beside its key and value: the rest of its row.
pub const ENTRY_BYTES: u64 = 32;
/// Bytes that a scope counts beside its topic and its entries: its row with an index on disk, and its place in the memory of
/// the board, which knows each of them.
pub const SCOPE_BYTES: u64 = 512;

/// A scope with entries, as the store found it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredState {
    pub scope: Scope,
    /// As [`scope_bytes`] counts.
    pub bytes: u64,
}

/// What a scope counts. `bytes`: its keys and values together.
pub fn scope_bytes(topic: Option<&str>, keys: u64, bytes: u64) -> u64 {
    match keys {
        0 => 0,
        _ => bytes + keys * ENTRY_BYTES + SCOPE_BYTES + topic.map_or(0, |topic| topic.len() as u64),
    }
}
