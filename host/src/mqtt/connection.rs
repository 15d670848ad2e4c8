//! The connection: both halves, and the driver that owns the socket.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::fmt::Write as _;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v5::{
    ConnAck, Packet, PubAck, PubAckReason, Publish, PublishProperties, RetainForwardRule, SubscribeFilter,
    SubscribeProperties, SubscribeReasonCode,
};
use rumqttc::{AsyncClient, ConnectionError, EventLoop, ManualAck, MqttOptions, Outgoing, PublishOptions};
use tokio::sync::Notify;

use super::gate::Gate;
use super::options::mqtt_options;
use super::{AckToken, Delivery, Event, Full, Options, OptionsError, Publication, PublishResult};
use crate::time::Backoff;

/// Events that wait for the pipeline. QoS 1 is bounded by Receive Maximum; this bounds QoS 0 as well, by not reading on.
const EVENT_HIGH_WATER: usize = 8192;

/// The pause after the first attempt that failed.
const FIRST_PAUSE: Duration = Duration::from_millis(500);

/// What both halves share. One thread, so a `RefCell`; no borrow lives across an await.
struct Shared {
    state: RefCell<State>,
    /// Events were queued.
    ready: Notify,
    /// The pipeline took events, so that reading may go on.
    drained: Notify,
    /// Break the connection and come back.
    kick: Notify,
    /// Closed: nothing more is read from the broker.
    gate: Arc<Gate>,
}

#[derive(Default)]
struct State {
    events: VecDeque<Event>,
    client: Option<AsyncClient>,
    connection: u32,
    connected: bool,
    closing: bool,
    /// Publishes given to the client, in order, whose packet ids are not known yet.
    unsent: VecDeque<u64>,
    sent: HashMap<u16, u64>,
    subscribing: VecDeque<String>,
    subscribe_ids: HashMap<u16, String>,
    unsubscribing: VecDeque<String>,
    unsubscribe_ids: HashMap<u16, String>,
    max_packet_bytes: usize,
    retain_available: bool,
}

/// The sending half: cheap to clone, never waits.
#[derive(Clone)]
pub struct Link {
    shared: Rc<Shared>,
    in_flight: usize,
}

/// The receiving half.
pub struct Events {
    shared: Rc<Shared>,
}

/// Prepares a connection. Nothing happens before the future is polled.
pub fn connect(options: Options) -> Result<(Link, Events, impl Future<Output = ()>), OptionsError> {
    // Files are read once here so that a wrong path is an error at start, and again at each reconnect, so that a
    // renewed certificate or password is picked up.
    mqtt_options(&options, &Arc::default())?;
    let shared = Rc::new(Shared {
        state: RefCell::default(),
        ready: Notify::new(),
        drained: Notify::new(),
        kick: Notify::new(),
        gate: Arc::default(),
    });
    let link = Link { shared: Rc::clone(&shared), in_flight: usize::from(options.in_flight) };
    let events = Events { shared: Rc::clone(&shared) };
    Ok((link, events, drive(options, shared)))
}

impl Link {
    pub fn is_connected(&self) -> bool {
        self.shared.state.borrow().connected
    }

    /// Whether the broker keeps retained messages.
    pub fn retains(&self) -> bool {
        self.shared.state.borrow().retain_available
    }

    /// Acknowledges a delivery. One of an earlier connection is left out: the broker sends that message again.
    pub fn acknowledge(&self, token: AckToken) {
        let state = self.shared.state.borrow();
        if token.connection != state.connection {
            return;
        }
        if let Some(client) = &state.client {
            let sent = client.try_manual_ack(ManualAck::PubAck(PubAck::new(token.packet_id, None)));
            if matches!(sent, Err(rumqttc::ClientError::RequestChannelFull(_))) {
                // Left out, it would make the broker's window smaller for as long as the connection lasts.
                self.shared.kick.notify_one();
            }
        }
    }

    /// Stops reading from the broker, or goes on. Acknowledgements and publishes are not held up.
    pub fn hold_back(&self, hold: bool) {
        self.shared.gate.set_closed(hold);
    }

    /// Sends with QoS 1. The token comes back in [`Event::Published`], unless the connection breaks first.
    pub fn publish(&self, publication: Publication<'_>, token: u64) -> Result<(), Full> {
        let mut state = self.shared.state.borrow_mut();
        if !state.connected || state.unsent.len() + state.sent.len() >= self.in_flight {
            return Err(Full);
        }
        let properties = (!publication.properties.is_empty() || publication.content_type.is_some()).then(|| {
            let mut properties = PublishProperties::default();
            properties.content_type = publication.content_type.map(str::to_owned);
            properties.user_properties =
                publication.properties.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
            properties
        });
        let size = packet_size(&publication);
        if size > state.max_packet_bytes {
            let reason = format!("{size} bytes are more than the broker takes ({})", state.max_packet_bytes);
            state.events.push_back(Event::Published { token, result: PublishResult::Refused(reason) });
            self.shared.ready.notify_one();
            return Ok(());
        }
        let mut options = PublishOptions::at_least_once().retain(publication.retain && state.retain_available);
        if let Some(properties) = properties {
            options = options.properties(properties);
        }
        let Some(client) = &state.client else { return Err(Full) };
        match client.try_publish(publication.topic, publication.payload, options) {
            Ok(()) => {
                state.unsent.push_back(token);
                Ok(())
            }
            Err(rumqttc::ClientError::InvalidRequest(_)) => {
                let reason = format!("{:?} is no topic to publish to", publication.topic);
                state.events.push_back(Event::Published { token, result: PublishResult::Refused(reason) });
                self.shared.ready.notify_one();
                Ok(())
            }
            Err(_) => Err(Full),
        }
    }

    /// Subscribes with QoS 1. Retained messages come once, when the subscription is new to the broker.
    pub fn subscribe(&self, filter: &str, id: Option<usize>) {
        self.subscribe_with(filter, id, RetainForwardRule::OnNewSubscribe);
    }

    /// Subscribes with QoS 1. Retained messages come each time.
    pub fn fetch(&self, filter: &str) {
        self.subscribe_with(filter, None, RetainForwardRule::OnEverySubscribe);
    }

    fn subscribe_with(&self, filter: &str, id: Option<usize>, retained: RetainForwardRule) {
        let mut state = self.shared.state.borrow_mut();
        let Some(client) = state.client.clone() else { return };
        let mut wanted = SubscribeFilter::new(filter, QoS::AtLeastOnce);
        wanted.retain_forward_rule = retained;
        let sent = match id {
            Some(id) => client.try_subscribe_many_with_properties(
                [wanted],
                SubscribeProperties { id: Some(id), user_properties: Vec::new() },
            ),
            None => client.try_subscribe_many([wanted]),
        };
        match sent {
            Ok(()) => state.subscribing.push_back(filter.to_owned()),
            Err(error) => {
                let reason = error.to_string();
                state.events.push_back(Event::NotSubscribed { filter: filter.to_owned(), reason });
                self.shared.ready.notify_one();
            }
        }
    }

    /// Subscribes to one topic with QoS 0, for what the broker says of itself. Sent with every connection.
    pub fn watch(&self, topic: &str) {
        let mut state = self.shared.state.borrow_mut();
        let Some(client) = state.client.clone() else { return };
        if client.try_subscribe_many([SubscribeFilter::new(topic, QoS::AtMostOnce)]).is_ok() {
            state.subscribing.push_back(topic.to_owned());
        }
    }

    /// [`Event::Unsubscribed`] follows, unless the connection breaks first.
    pub fn unsubscribe(&self, filter: &str) {
        let mut state = self.shared.state.borrow_mut();
        let Some(client) = state.client.clone() else { return };
        if client.try_unsubscribe(filter).is_ok() {
            state.unsubscribing.push_back(filter.to_owned());
        }
    }

    /// Breaks the connection and comes back, so that the broker sends everything unacknowledged again.
    pub fn reconnect(&self) {
        self.shared.kick.notify_one();
    }

    /// Says goodbye, so that the broker does not publish the will. The driver ends.
    pub fn close(&self) {
        let mut state = self.shared.state.borrow_mut();
        state.closing = true;
        let asked = state.connected && state.client.as_ref().is_some_and(|client| client.try_disconnect().is_ok());
        if !asked {
            self.shared.kick.notify_one();
        }
    }
}

impl Events {
    /// Moves the events that are there into `into`, without waiting.
    pub fn take(&self, into: &mut VecDeque<Event>) {
        let mut state = self.shared.state.borrow_mut();
        if !state.events.is_empty() {
            into.append(&mut state.events);
            self.shared.drained.notify_one();
        }
    }

    /// Waits until there are events, then moves all of them into `into`.
    pub async fn receive(&self, into: &mut VecDeque<Event>) {
        loop {
            {
                let mut state = self.shared.state.borrow_mut();
                if !state.events.is_empty() {
                    std::mem::swap(&mut state.events, into);
                    self.shared.drained.notify_one();
                    return;
                }
            }
            self.shared.ready.notified().await;
        }
    }
}

/// An upper bound of the size of the packet.
fn packet_size(publication: &Publication<'_>) -> usize {
    let properties: usize = publication.properties.iter().map(|(key, value)| 5 + key.len() + value.len()).sum();
    5 + 2
        + publication.topic.len()
        + 2
        + 4
        + publication.content_type.map_or(0, |kind| 3 + kind.len())
        + properties
        + publication.payload.len()
}

async fn drive(options: Options, shared: Rc<Shared>) {
    let mut backoff = Backoff::new(FIRST_PAUSE, options.reconnect_max, Backoff::seed());
    loop {
        let reason = match mqtt_options(&options, &shared.gate) {
            Ok(mqtt) => serve_connection(mqtt, &options, &shared, &mut backoff).await,
            Err(error) => error.to_string(),
        };
        {
            let mut state = shared.state.borrow_mut();
            state.client = None;
            state.connected = false;
            state.unsent.clear();
            state.sent.clear();
            state.subscribing.clear();
            state.subscribe_ids.clear();
            state.unsubscribing.clear();
            state.unsubscribe_ids.clear();
            state.events.push_back(Event::Disconnected { reason });
            shared.ready.notify_one();
            if state.closing {
                return;
            }
        }
        tokio::select! {
            () = tokio::time::sleep(backoff.failed()) => {}
            () = shared.kick.notified() => {}
        }
        if shared.state.borrow().closing {
            return;
        }
    }
}

/// One connection from CONNECT to its end; returns why it ended.
async fn serve_connection(mqtt: MqttOptions, options: &Options, shared: &Shared, backoff: &mut Backoff) -> String {
    // Room for an acknowledgement of every delivery that the pipeline takes before it holds the broker back, for our own
    // publishes and some control packets.
    let capacity = 4 * usize::from(options.receive_maximum) + usize::from(options.in_flight) + 1024;
    let (client, mut eventloop) = AsyncClient::builder(mqtt).capacity(capacity).build();
    {
        let mut state = shared.state.borrow_mut();
        state.connection = state.connection.wrapping_add(1);
        state.client = Some(client);
    }
    loop {
        let polled = tokio::select! {
            polled = eventloop.poll() => polled,
            () = shared.kick.notified() => return "reconnecting".into(),
        };
        match polled {
            Ok(first) => {
                let mut state = shared.state.borrow_mut();
                state.take(first, &mut eventloop, backoff);
                while let Some(event) = eventloop.state.events.pop_front() {
                    state.take(event, &mut eventloop, backoff);
                }
                if !state.events.is_empty() {
                    shared.ready.notify_one();
                }
            }
            Err(ConnectionError::RequestsDone) => return "closed".into(),
            Err(error) => return describe(&error),
        }
        while shared.state.borrow().events.len() > EVENT_HIGH_WATER {
            shared.drained.notified().await;
        }
    }
}

impl State {
    fn take(&mut self, event: rumqttc::Event, eventloop: &mut EventLoop, backoff: &mut Backoff) {
        match event {
            rumqttc::Event::Incoming(Packet::Publish(publish)) => {
                let delivery = self.delivery(publish);
                self.events.push_back(Event::Delivery(delivery));
            }
            rumqttc::Event::Outgoing(Outgoing::Publish(packet_id)) if packet_id != 0 => {
                if let Some(token) = self.unsent.pop_front() {
                    self.sent.insert(packet_id, token);
                }
            }
            rumqttc::Event::Incoming(Packet::PubAck(ack)) => {
                if let Some(token) = self.sent.remove(&ack.pkid) {
                    self.events.push_back(Event::Published { token, result: publish_result(&ack) });
                }
            }
            rumqttc::Event::Outgoing(Outgoing::Subscribe(packet_id)) => {
                if let Some(filter) = self.subscribing.pop_front() {
                    self.subscribe_ids.insert(packet_id, filter);
                }
            }
            rumqttc::Event::Incoming(Packet::SubAck(ack)) => {
                let filter = self.subscribe_ids.remove(&ack.pkid).unwrap_or_default();
                self.events.push_back(
                    match ack.return_codes.iter().find(|code| !matches!(code, SubscribeReasonCode::Success(_))) {
                        Some(code) => Event::NotSubscribed { filter, reason: format!("{code:?}") },
                        None => Event::Subscribed { filter },
                    },
                );
            }
            rumqttc::Event::Outgoing(Outgoing::Unsubscribe(packet_id)) => {
                if let Some(filter) = self.unsubscribing.pop_front() {
                    self.unsubscribe_ids.insert(packet_id, filter);
                }
            }
            rumqttc::Event::Incoming(Packet::UnsubAck(ack)) => {
                if let Some(filter) = self.unsubscribe_ids.remove(&ack.pkid) {
                    self.events.push_back(Event::Unsubscribed { filter });
                }
            }
            rumqttc::Event::Incoming(Packet::ConnAck(ack)) => {
                backoff.succeeded();
                self.connected(&ack);
                // From here on the client need not checkpoint anything: what is under way is in our own store.
                eventloop.options.clear_session_store();
            }
            _ => {}
        }
    }

    fn connected(&mut self, ack: &ConnAck) {
        let properties = ack.properties.as_ref();
        self.connected = true;
        self.max_packet_bytes =
            properties.and_then(|it| it.max_packet_size).map_or(268_435_455, |bytes| bytes as usize);
        self.retain_available = properties.and_then(|it| it.retain_available).is_none_or(|flag| flag != 0);
        self.events.push_back(Event::Connected { session_present: ack.session_present });
    }

    fn delivery(&self, publish: Publish) -> Delivery {
        let (content_type, properties, subscriptions) = publish
            .properties
            .map_or_else(Default::default, |it| (it.content_type, it.user_properties, it.subscription_identifiers));
        Delivery {
            topic: publish.topic,
            payload: publish.payload,
            content_type,
            properties,
            subscriptions,
            dup: publish.dup,
            retained: publish.retain,
            ack: (publish.pkid != 0).then_some(AckToken { packet_id: publish.pkid, connection: self.connection }),
        }
    }
}

fn publish_result(ack: &PubAck) -> PublishResult {
    match ack.reason {
        PubAckReason::Success | PubAckReason::NoMatchingSubscribers => PublishResult::Taken,
        PubAckReason::TopicNameInvalid | PubAckReason::PayloadFormatInvalid => {
            PublishResult::Refused(format!("the broker refused it: {:?}", ack.reason))
        }
        PubAckReason::NotAuthorized => PublishResult::Declined("not-authorized"),
        PubAckReason::UnspecifiedError => PublishResult::Declined("unspecified-error"),
        PubAckReason::ImplementationSpecificError => PublishResult::Declined("implementation-specific-error"),
        reason => PublishResult::Retry(format!("the broker did not take it: {reason:?}")),
    }
}

/// The error with its causes: the last one is usually the one that says what to mend.
fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            let _ = write!(text, ": {cause_text}");
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_grows_to_its_limit_and_starts_over() {
        let mut backoff = Backoff::new(FIRST_PAUSE, Duration::from_secs(4), Backoff::seed());
        let waits: Vec<Duration> = (0..6).map(|_| backoff.failed()).collect();
        for (wait, whole) in waits.iter().zip([500, 1000, 2000, 4000, 4000, 4000]) {
            let whole = Duration::from_millis(whole);
            assert!(*wait >= whole / 2 && *wait <= whole, "{wait:?} for {whole:?}");
        }
        backoff.succeeded();
        assert!(backoff.failed() <= Duration::from_millis(500));
    }
}
