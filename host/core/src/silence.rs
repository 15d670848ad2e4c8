//! The messages of a topic that says nothing, and of one that speaks again.

use std::time::Duration;

use bytes::Bytes;

use crate::made::ORIGIN;
use crate::message::Message;
use crate::time::Now;

/// A topic of the function has been silent for `silence.after`.
pub const TOPIC: &str = "$silence";
/// It speaks again (`silence.back`).
pub const BACK: &str = "$silence/back";
/// User property: for how many milliseconds of connected time the topic was silent.
pub const SILENT_MS: &str = "sedge-silent-ms";

pub(crate) fn message(topic: &str, about: &str, silent: Duration, now: Now) -> Message {
    let silent_ms = silent.as_millis().to_string();
    let properties = vec![(ORIGIN.into(), about.into()), (SILENT_MS.into(), silent_ms.into())];
    Message { properties, ..Message::new(topic, Bytes::new(), now.unix_ms, now.synced) }
}
