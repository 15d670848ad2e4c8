//! Wakes as the store keeps them.

use std::sync::Arc;

use crate::trace::TraceContext;

/// Number of a wake, given by the board in the order of setting. One that is moved gets another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WakeId(pub u64);

/// A wake that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredWake {
    pub id: WakeId,
    pub function: Arc<str>,
    pub name: Arc<str>,
    /// Of the message that set it.
    pub topic: Arc<str>,
    /// It belongs to the state that the whole function shares, not to that of the topic.
    pub is_shared: bool,
    /// Unix time in milliseconds. Compared with the wall clock only after a restart; timers run on the monotonic clock.
    pub due_ms: u64,
    /// Time from setting until due: the longest wait after a restart, whatever the wall clock says then.
    pub wait_ms: u64,
    /// Whether the wall clock was synchronised when it was set, so that `due_ms` counts after a restart.
    pub clock_synced: bool,
    /// Functions that the message went through which set it.
    pub hops: u32,
    /// Publications that its run may cause.
    pub fan_out: u32,
    /// That of the message which set it.
    pub trace: Option<Arc<TraceContext>>,
}

/// Memory of a wake beside its texts, and about its size on disk.
const WAKE_BYTES: usize = 200;

impl StoredWake {
    pub(crate) fn bytes(&self) -> usize {
        let trace = self.trace.as_ref().map_or(0, |trace| trace.bytes());
        self.name.len() + self.topic.len() + trace + WAKE_BYTES
    }
}
