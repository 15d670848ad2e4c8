//! The connection to a broker: MQTT 5, a session that the broker keeps, acknowledgements by hand. The only folder that
//! names the MQTT crate.
//!
//! [`connect`] gives two halves: a [`Link`] to say things with, never waiting, and a future, the driver, that owns the
//! socket, reconnects, and queues [`Event`]s. Both live on one thread.
//!
//! What is under way when a connection breaks is forgotten here on purpose: deliveries come again from the broker, and
//! publishes come again from the outbox, which alone knows what is done.

mod coalesce;
mod connection;
mod gate;
mod options;

use bytes::Bytes;

pub use connection::{Events, Link, connect};
pub use options::{Options, OptionsError, Will};

pub use crate::board::{AckToken, Delivery};

#[derive(Debug)]
pub enum Event {
    /// `session_present`: the broker still had our session, with its subscriptions and what it queued meanwhile.
    Connected {
        session_present: bool,
    },
    Disconnected {
        reason: String,
    },
    Delivery(Delivery),
    /// The broker took, or refused, what [`Link::publish`] was given with this token.
    Published {
        token: u64,
        result: PublishResult,
    },
    /// The broker has taken a subscription.
    Subscribed {
        filter: String,
    },
    /// The broker has dropped a subscription; what it sends from here on was matched without it.
    Unsubscribed {
        filter: String,
    },
    /// The broker refused a subscription.
    NotSubscribed {
        filter: String,
        reason: String,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PublishResult {
    Taken,
    /// Never to be taken: the topic or the payload is wrong, or too large, for this broker.
    Refused(String),
    /// Not this one, for a reason that others may not have: the topic is not allowed. Always the same words.
    Declined(&'static str),
    /// Not now.
    Retry(String),
}

/// One message to send.
#[derive(Clone, Debug)]
pub struct Publication<'a> {
    pub topic: &'a str,
    pub payload: Bytes,
    pub content_type: Option<&'a str>,
    pub properties: &'a [(&'a str, &'a str)],
    pub retain: bool,
}

/// The link is down or its window full: try again after the next event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;
