//! Schedules: times of the calendar at which a function runs, and the message that it is run with.
//!
//! A schedule has a name: what `at` in `function.toml` calls it, or that of the function. All its expressions together say when
//! it is due, in the zone of the function.

mod times;
mod zone;

use bytes::Bytes;

pub use times::Times;
pub(crate) use times::check;
pub use zone::{MAX_FILE_BYTES, Zone, is_name as is_zone_name};

use crate::message::Message;
use crate::time::{Now, rfc3339};

/// Topics of schedules: `$schedule/<name>`.
pub const PREFIX: &str = "$schedule/";
/// User property with the time at which the run was due, in RFC 3339.
pub const DUE: &str = "sedge-due";
/// User property with the milliseconds between that time and the beginning of the run, if they are many.
pub const LATE: &str = "sedge-late";
/// A run that begins later than this says so.
pub const LATE_MS: u64 = 1_000;

/// Whether messages of this topic are made by the board at a time of the calendar.
pub fn is_topic(topic: &str) -> bool {
    topic.starts_with(PREFIX)
}

/// The message of a run that was due at this time.
pub fn message(name: &str, due_ms: u64, now: Now) -> Message {
    let mut properties: Vec<(Box<str>, Box<str>)> = vec![(DUE.into(), rfc3339(due_ms).into())];
    let late_ms = now.unix_ms.saturating_sub(due_ms);
    if late_ms >= LATE_MS {
        properties.push((LATE.into(), late_ms.to_string().into()));
    }
    Message { properties, ..Message::new(format!("{PREFIX}{name}"), Bytes::new(), now.unix_ms, now.synced) }
}
