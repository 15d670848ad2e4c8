//! Admission: which deliveries are new, which are not acknowledged yet, and whether more may come.

mod remembered;
pub mod window;

use std::fmt::Write as _;
use std::hash::{Hash as _, Hasher as _};
use std::time::Instant;

use siphasher::sip::SipHasher13;

use super::ids::UnitId;
use super::input::{AckToken, Delivery};
use super::map::{Map, Seeded};
use super::receipt::Receipt;
use crate::message::ID_PROPERTY;
use crate::store::{self, Fingerprint};
use crate::trace::{TRACEPARENT, TRACESTATE};
pub use window::memory as window_memory;
use window::{Seen, Window};

/// Bytes of such an id that are looked at. The digest distinguishes longer ones.
pub(crate) const MAX_ID_BYTES: usize = 256;

pub(crate) struct Intake {
    window: Window,
    receive_maximum: u16,
    max_bytes: usize,
    message_ids: store::MessageIds,
    /// Publishers' ids of messages that are not committed yet.
    ids_in_flight: Map<Box<str>, UnitId>,
    is_full: bool,
}

/// What a delivery is.
pub(crate) enum Admission {
    New {
        receipt: Receipt,
        message_id: Option<Box<str>>,
    },
    /// Committed before, by the publisher's id. Has no effect but its acknowledgement.
    Known {
        receipt: Receipt,
        message_id: Box<str>,
    },
    /// The same message is still being processed: it is acknowledged together with that one.
    InFlight {
        unit: UnitId,
        receipt: Receipt,
    },
    /// Committed before, by its fingerprint. The acknowledgement follows in its turn.
    Committed,
}

impl Intake {
    pub(crate) fn new(receive_maximum: u16, max_bytes: usize, seed: Seeded) -> Self {
        Self {
            window: Window::new(receive_maximum, false, &[]),
            receive_maximum,
            max_bytes,
            message_ids: store::MessageIds::default(),
            ids_in_flight: seed.map(),
            is_full: false,
        }
    }

    /// `recovered`: what the store found when it was opened.
    pub(crate) fn restore(&mut self, window: &[Fingerprint], message_ids: store::MessageIds, counts_upwards: bool) {
        self.window = Window::new(self.receive_maximum, counts_upwards, window);
        self.message_ids = message_ids;
    }

    /// What the store found when it was opened again after a failure.
    pub(crate) fn reopened(&mut self, window: &[Fingerprint], message_ids: store::MessageIds) {
        self.window.store_reopened(window);
        self.message_ids = message_ids;
    }

    pub(crate) fn receive(&mut self, delivery: &Delivery) -> Admission {
        let id = delivery.properties.iter().find(|(name, _)| name == ID_PROPERTY).map(|(_, id)| id);
        if delivery.ack.is_none() && id.is_none() {
            return Admission::New { receipt: Receipt::None, message_id: None };
        }
        let digest = digest(delivery);
        let mut receipt = Receipt::None;
        if let Some(ack) = delivery.ack {
            let fingerprint = Fingerprint { packet_id: ack.packet_id, digest };
            match self.window.receive(ack, fingerprint, delivery.dup) {
                Seen::New { place } => receipt = Receipt::Mqtt { place, fingerprint },
                Seen::Committed => return Admission::Committed,
                Seen::InFlight { unit, place } => {
                    return Admission::InFlight { unit, receipt: Receipt::Mqtt { place, fingerprint } };
                }
            }
        }
        let Some(id) = id else { return Admission::New { receipt, message_id: None } };
        // With a digest of what the id names: a device that sends its own name as `id` with each reading must not lose all
        // but the first.
        let id = id_with_digest(&id[..id.floor_char_boundary(MAX_ID_BYTES)], digest);
        if let Some(&unit) = self.ids_in_flight.get(&id) {
            self.assign(&receipt, unit);
            return Admission::InFlight { unit, receipt };
        }
        match self.message_ids.contains(&id) {
            true => Admission::Known { receipt, message_id: id },
            false => Admission::New { receipt, message_id: Some(id) },
        }
    }

    /// Names the unit that a new delivery became.
    pub(crate) fn admit(&mut self, receipt: &Receipt, message_id: Option<&str>, unit: UnitId) {
        self.assign(receipt, unit);
        if let Some(id) = message_id {
            self.ids_in_flight.insert(id.into(), unit);
        }
    }

    fn assign(&mut self, receipt: &Receipt, unit: UnitId) {
        if let Receipt::Mqtt { fingerprint, .. } = receipt {
            self.window.assign(fingerprint.packet_id, unit);
        }
    }

    /// The message of this receipt is on disk, or had no effect.
    pub(crate) fn committed(&mut self, receipt: &Receipt) {
        if let Receipt::Mqtt { place, fingerprint } = *receipt {
            self.window.committed(place, fingerprint);
        }
    }

    pub(crate) fn id_committed(&mut self, id: &str, now: Instant) {
        self.ids_in_flight.remove(id);
        self.message_ids.insert(id, now);
    }

    /// The message was turned away: it may come again under its id.
    pub(crate) fn id_released(&mut self, id: &str) {
        self.ids_in_flight.remove(id);
    }

    /// The next acknowledgement that may be written. THE place where acknowledgements are released.
    pub(crate) fn release(&mut self) -> Option<AckToken> {
        self.window.release()
    }

    /// Whether nothing more should be taken from the broker. Closes at twice Receive Maximum and opens again at half of
    /// that, so that a broker that keeps to it never notices.
    pub(crate) fn update_full(&mut self, units: usize, bytes: usize) -> bool {
        // One slow message holds up the acknowledgements of those behind it, which have no unit any more.
        let count = units.max(self.window.unacknowledged());
        let most = 2 * usize::from(self.receive_maximum);
        self.is_full = match self.is_full {
            true => count > most / 2 || bytes > self.max_bytes / 2,
            false => count >= most || bytes >= self.max_bytes,
        };
        self.is_full
    }

    /// Whether so little is unacknowledged that the broker holds nothing back.
    pub(crate) fn is_nearly_idle(&self) -> bool {
        self.window.unacknowledged() < usize::from(self.receive_maximum).div_ceil(4)
    }

    /// Deliveries that are not acknowledged.
    pub(crate) fn unacknowledged(&self) -> usize {
        self.window.unacknowledged()
    }

    /// Whether the broker was seen to count its packet ids upwards: see [`window`].
    pub(crate) fn counts_upwards(&self) -> bool {
        self.window.counts_upwards()
    }

    pub(crate) fn set_counts_upwards(&mut self) {
        self.window.set_counts_upwards();
    }

    pub(crate) fn disconnected(&mut self) {
        self.window.disconnected();
    }

    pub(crate) fn session_lost(&mut self) {
        self.window.session_lost();
    }

    pub(crate) fn store_failed(&mut self) {
        self.window.store_failed();
        self.ids_in_flight.clear();
    }
}

/// In exactly the memory that it needs: this runs for every message that has an id.
fn id_with_digest(id: &str, digest: u64) -> Box<str> {
    const DIGITS: usize = 16;
    let mut text = String::with_capacity(id.len() + 1 + DIGITS);
    let _ = write!(text, "{id} {digest:0DIGITS$x}");
    text.into()
}

fn digest(delivery: &Delivery) -> u64 {
    let mut hasher = SipHasher13::new();
    delivery.topic.hash(&mut hasher);
    delivery.payload.hash(&mut hasher);
    hash_properties(&delivery.properties, &mut hasher);
    delivery.content_type.hash(&mut hasher);
    // What is absent is not hashed: fingerprints from before these fields stay valid.
    if let Some(topic) = &delivery.response_topic {
        ("response topic", topic).hash(&mut hasher);
    }
    if let Some(data) = &delivery.correlation_data {
        ("correlation data", data).hash(&mut hasher);
    }
    hasher.finish()
}

/// A sender that repeats a message may do so under another span: the trace is no part of what the message says.
fn hash_properties(properties: &[(String, String)], hasher: &mut SipHasher13) {
    let is_of_trace = |(name, _): &&(String, String)| [TRACEPARENT, TRACESTATE].contains(&&**name);
    if properties.iter().any(|property| is_of_trace(&property)) {
        // Hashed as a message without them.
        return properties.iter().filter(|property| !is_of_trace(property)).collect::<Vec<_>>().hash(hasher);
    }
    properties.hash(hasher);
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn digest_with(properties: &[(&str, &str)]) -> u64 {
        digest(&Delivery {
            topic: Bytes::from_static(b"t"),
            payload: Bytes::from_static(b"p"),
            content_type: None,
            properties: properties.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
            response_topic: None,
            correlation_data: None,
            subscriptions: Vec::new(),
            dup: false,
            retained: false,
            ack: None,
        })
    }

    #[test]
    fn a_repeat_under_another_span_is_the_same_message() {
        let plain = digest_with(&[("id", "7"), ("unit", "C")]);
        assert_eq!(digest_with(&[("id", "7"), (TRACEPARENT, "one"), ("unit", "C"), (TRACESTATE, "a=1")]), plain);
        assert_eq!(digest_with(&[(TRACEPARENT, "another"), ("id", "7"), ("unit", "C")]), plain);
        assert_ne!(digest_with(&[(TRACEPARENT, "one"), ("id", "7")]), plain);
        assert_eq!(digest_with(&[(TRACEPARENT, "one")]), digest_with(&[]));
    }
}
