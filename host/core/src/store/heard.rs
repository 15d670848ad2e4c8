//! Topics whose silence is watched, as the store keeps them.

use std::sync::Arc;

/// Number of a watched topic of a function, given by the board.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HeardId(pub u64);

/// When a topic was heard, and what its function was told of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredHeard {
    pub id: HeardId,
    /// Grows with each row of the board: of two for one topic the later counts, in whichever order they are committed.
    pub turn: u64,
    pub function: Arc<str>,
    pub topic: Arc<str>,
    /// Of the connected time of all processes so far, in milliseconds.
    pub at_ms: u64,
    /// By so much later it may have been heard again without a row.
    pub slack_ms: u64,
    pub stage: HeardStage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeardStage {
    Speaking,
    /// The function was called about its silence.
    Silent,
    /// It spoke again after so long, and the function is still to be called about that.
    Back {
        silent_ms: u64,
    },
}

/// Memory of a row beside its texts, and about its size on disk.
const HEARD_BYTES: usize = 150;

impl StoredHeard {
    pub(crate) fn bytes(&self) -> usize {
        self.topic.len() + HEARD_BYTES
    }
}
