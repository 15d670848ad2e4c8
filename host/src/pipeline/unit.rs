//! A message on its way, and what tells it from others.

use std::hash::{Hash as _, Hasher as _};
use std::sync::Arc;

use siphasher::sip::SipHasher13;

use super::ID_PROPERTY;
use super::parking::{Key, Ticket};
use super::trial::Said;
use super::window::UnitId;
use crate::forward::HOPS;
use crate::manifest::StateScope;
use crate::message::Message;
use crate::mqtt::Delivery;
use crate::store::{Commit, Fingerprint};

/// A message on its way, until everything it caused is committed.
pub(super) struct Unit {
    /// Counts up.
    pub(super) arrival: u64,
    pub(super) message: Message,
    pub(super) hops: u32,
    pub(super) from: From,
    /// The same message once more, by the publisher's id or on another connection: acknowledged together with this one.
    pub(super) copies: Vec<(u64, Fingerprint)>,
    pub(super) jobs_left: usize,
    /// It is committed after those of its topic that came before.
    pub(super) in_line: bool,
    /// What a version and its shadow made of it.
    pub(super) compared: Option<Box<[Option<Said>; 2]>>,
    pub(super) commit: Commit,
    /// Jobs that the commit parks.
    pub(super) tickets: Vec<Ticket>,
    pub(super) message_id: Option<Box<str>>,
}

#[derive(Clone)]
pub(super) enum From {
    /// A QoS 1 delivery, with its place in the window.
    Broker {
        place: u64,
        fingerprint: Fingerprint,
    },
    /// A QoS 0 delivery: nothing to acknowledge.
    Unacknowledged,
    Tick {
        function: usize,
    },
    /// It waited in the store under this number.
    Parked {
        key: Key,
    },
}

/// Packed into a job's id: the unit and the function.
pub(super) fn token(unit: UnitId, function: usize) -> u64 {
    (unit as u64) << 16 | function as u64
}

pub(super) const fn untoken(token: u64) -> (UnitId, usize) {
    ((token >> 16) as usize, (token & 0xffff) as usize)
}

impl Unit {
    pub(super) fn new(message: Message, hops: u32, from: From, jobs_left: usize, commit: Commit) -> Self {
        Self {
            arrival: 0,
            message,
            hops,
            from,
            copies: Vec::new(),
            jobs_left,
            in_line: false,
            compared: None,
            commit,
            tickets: Vec::new(),
            message_id: None,
        }
    }
}

/// What is run one after the other.
pub(super) fn key_of(number: usize, scope: StateScope, message: &Message) -> Key {
    match scope {
        StateScope::Function => (number, None),
        StateScope::None | StateScope::Topic => (number, Some(Arc::clone(&message.topic))),
    }
}

pub(super) fn hops(delivery: &Delivery) -> u32 {
    delivery.properties.iter().find(|(name, _)| name == HOPS).and_then(|(_, hops)| hops.parse().ok()).unwrap_or(0)
}

/// The publisher's id together with what it is the id of: a device that sends its own name as `id` with every reading must
/// not lose all but the first.
pub(super) fn message_id(delivery: &Delivery) -> Option<Box<str>> {
    let (_, id) = delivery.properties.iter().find(|(name, _)| name == ID_PROPERTY)?;
    Some(format!("{id} {:016x}", digest(delivery)).into())
}

pub(super) fn fingerprint(packet_id: u16, delivery: &Delivery) -> Fingerprint {
    Fingerprint { packet_id, digest: digest(delivery) }
}

pub(super) fn digest(delivery: &Delivery) -> u64 {
    let mut hasher = SipHasher13::new();
    delivery.topic.hash(&mut hasher);
    delivery.payload.hash(&mut hasher);
    delivery.properties.hash(&mut hasher);
    delivery.content_type.hash(&mut hasher);
    hasher.finish()
}
