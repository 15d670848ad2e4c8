//! Connection to a broker: MQTT 5, a persistent session, manual acknowledgements. The only folder that names the MQTT
//! crate.
//!
//! [`connect`] returns two halves and a driver. A [`Link`] sends and never waits, [`Events`] receives, and the driver is a
//! future that owns the socket and reconnects. All of them live on one thread.
//!
//! What is in flight when a connection breaks is forgotten here on purpose. The broker redelivers, and the outbox, which
//! alone knows what is done, publishes again.

mod coalesce;
pub mod connection;
mod gate;
mod greeting;
pub mod options;
mod quick_ack;
mod reason;
mod refused;
mod tls;
#[cfg(feature = "websocket")]
mod websocket;

use bytes::Bytes;

pub use connection::{Events, Link, STEADY, connect};
pub use options::{Options, OptionsError, Will};
pub use reason::NEEDS_MQTT_5;
pub use tls::explain as explain_tls;

use sedge_core::board::Delivery;

use sedge_core::message::PublishToken;

/// Event of a connection.
#[derive(Debug)]
pub enum Event {
    /// `session_present`: the broker kept the session, with its subscriptions and queued messages.
    Connected {
        session_present: bool,
        /// What this broker does not offer, and what is lost by that.
        limits: Vec<String>,
    },
    Disconnected {
        reason: String,
    },
    Delivery(Delivery),
    /// Answer to [`Link::publish`] with this token.
    Published {
        token: PublishToken,
        result: PublishResult,
    },
    Subscribed {
        filter: String,
        /// Granted with QoS 0 only, although QoS 1 was asked for.
        is_lossy: bool,
    },
    /// Later deliveries were matched without this filter.
    Unsubscribed {
        filter: String,
    },
    /// It is asked for again, with growing pauses.
    NotSubscribed {
        filter: String,
        reason: String,
    },
}

/// Answer of the broker to a publication.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PublishResult {
    Accepted,
    /// Never accepted: topic or payload are invalid or too large for this broker. A fixed text.
    Refused(&'static str),
    /// Not accepted for a cause that other publications may not share, such as a forbidden topic. A fixed text.
    Declined(&'static str),
    /// Nothing is accepted now.
    Retry(String),
}

impl PublishResult {
    /// Why it was not accepted.
    pub fn not_accepted(&self) -> Option<&str> {
        match self {
            Self::Accepted => None,
            Self::Refused(reason) | Self::Declined(reason) => Some(reason),
            Self::Retry(reason) => Some(reason),
        }
    }
}

/// Message to send.
#[derive(Clone, Debug)]
pub struct Publication<'a> {
    pub topic: &'a str,
    pub payload: Bytes,
    pub content_type: Option<&'a str>,
    pub properties: &'a [(&'a str, &'a str)],
    pub retain: bool,
}

/// The link is down or its window is full: try again after the next event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// Returns a random seed, or 0 if the kernel has no randomness yet.
pub fn random_seed() -> u64 {
    let mut seed = [0; 8];
    let _ = rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::empty());
    u64::from_le_bytes(seed)
}
