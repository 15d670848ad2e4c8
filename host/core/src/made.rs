//! Messages that the board makes itself, of something that concerns an earlier message or its topic.

use crate::wake;

/// User property with the topic that the message is about. State, order, settings and pauses are those of that topic.
pub const ORIGIN: &str = "sedge-topic";

/// Whether the board makes messages of this topic.
pub fn is_topic(topic: &str) -> bool {
    topic.starts_with(wake::PREFIX) || topic == crate::silence::TOPIC || topic == crate::silence::BACK
}
