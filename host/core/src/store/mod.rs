//! The face of the store: what is committed, what is asked of it, and what it answers.

// Vocabulary of the daemon's other parts, without rusqlite.
pub mod commit;
mod dead_letter;
pub mod heard;
pub mod message_ids;
pub mod record;
pub mod request;
pub mod schedule;
pub mod state;
pub mod wake;

pub use commit::{BatchNo, COMMIT_BYTES, Commit, DeadLetter, DeadLetterId, Fingerprint, Parked, ParkedId};
pub use heard::{HeardId, HeardStage, StoredHeard};
pub use message_ids::MessageIds;
pub use record::{DAMAGED, EXPIRED, FULL, Gap, GapId, REMOVED, Record, RecordId, StoredRecord};
pub use request::{LoadId, MovedAside, Recovered, StoreEvent, StoreRequest, StoredSink};
pub use schedule::StoredSchedule;
pub use state::{ENTRY_BYTES, SCOPE_BYTES, StoredState, scope_bytes};
pub use wake::{StoredWake, WakeId};
