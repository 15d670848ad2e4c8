//! Both halves of a connection, and the driver that owns the socket.

use std::cell::{Cell, RefCell};
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
use super::{Event, Full, Options, OptionsError, Publication, PublishResult};
use sedge_core::board::{AckToken, Delivery};
use sedge_core::message::PublishToken;
use sedge_core::time::Backoff;

/// Queued events above which reading stops. Receive Maximum bounds QoS 1; this bounds QoS 0 too.
const EVENT_HIGH_WATER: usize = 8192;

/// Bytes read before what came is received, unless one packet is longer. A packet in memory may be ten times as large.
const READ_BYTES: usize = 256 << 10;

/// Pause after the first failed attempt to connect.
const FIRST_PAUSE: Duration = Duration::from_millis(500);

/// State that both halves share. One thread, so a `RefCell`; no borrow lives across an await.
struct Shared {
    state: RefCell<LinkState>,
    /// Events were queued.
    ready: Notify,
    /// Events were received, so reading may continue.
    drained: Notify,
    /// The connection is to be broken and made anew.
    reconnect: Notify,
    /// Upper bound of Receive Maximum, for the next connection.
    receive_maximum: Cell<u16>,
    gate: Arc<Gate>,
}

#[derive(Default)]
struct LinkState {
    events: VecDeque<Event>,
    client: Option<AsyncClient>,
    connection: u32,
    connected: bool,
    closing: bool,
    publishes: Unanswered<PublishToken>,
    subscribes: Unanswered<String>,
    unsubscribes: Unanswered<String>,
    max_packet_bytes: usize,
    retain_available: bool,
}

/// Requests of one kind that the broker has not answered.
struct Unanswered<T> {
    /// Given to the client, in order, without a packet id yet.
    queued: VecDeque<T>,
    sent: HashMap<u16, T>,
}

impl<T> Default for Unanswered<T> {
    fn default() -> Self {
        Self { queued: VecDeque::new(), sent: HashMap::new() }
    }
}

impl<T> Unanswered<T> {
    fn len(&self) -> usize {
        self.queued.len() + self.sent.len()
    }

    /// Records the packet id of the oldest queued request.
    fn sent(&mut self, packet_id: u16) {
        if let Some(request) = self.queued.pop_front() {
            self.sent.insert(packet_id, request);
        }
    }
}

/// Sending half. Cheap to clone, never waits.
#[derive(Clone)]
pub struct Link {
    shared: Rc<Shared>,
    in_flight: usize,
}

/// Receiving half.
pub struct Events {
    shared: Rc<Shared>,
}

/// Prepares a connection. The driver connects when it is first polled.
pub fn connect(options: Options) -> Result<(Link, Events, impl Future<Output = ()>), OptionsError> {
    // Files are read here, so that a wrong path is an error at start, and at each reconnect, so that renewed
    // certificates and passwords are used.
    mqtt_options(&options, &Arc::default())?;
    let shared = Rc::new(Shared {
        state: RefCell::default(),
        ready: Notify::new(),
        drained: Notify::new(),
        reconnect: Notify::new(),
        receive_maximum: Cell::new(u16::MAX),
        gate: Arc::new(Gate::new(READ_BYTES.max(options.max_packet_bytes as usize))),
    });
    let link = Link { shared: Rc::clone(&shared), in_flight: usize::from(options.in_flight) };
    let events = Events { shared: Rc::clone(&shared) };
    Ok((link, events, drive(options, shared)))
}

impl Link {
    pub fn is_connected(&self) -> bool {
        self.shared.state.borrow().connected
    }

    /// Whether the broker supports retained messages.
    pub fn retains(&self) -> bool {
        self.shared.state.borrow().retain_available
    }

    /// Acknowledges a delivery. Does nothing for an earlier connection: the broker redelivers that message.
    pub fn acknowledge(&self, token: AckToken) {
        let state = self.shared.state.borrow();
        if token.connection != state.connection {
            return;
        }
        if let Some(client) = &state.client {
            let sent = client.try_manual_ack(ManualAck::PubAck(PubAck::new(token.packet_id, None)));
            if matches!(sent, Err(rumqttc::ClientError::RequestChannelFull(_))) {
                // A lost acknowledgement would shrink the broker's window until the connection ends.
                self.shared.reconnect.notify_one();
            }
        }
    }

    /// Stops or resumes reading from the broker. Acknowledgements and publishes continue.
    pub fn hold_back(&self, hold: bool) {
        self.shared.gate.set_closed(hold);
    }

    /// Sends with QoS 1. [`Event::Published`] follows with the token, unless the connection breaks first.
    pub fn publish(&self, publication: Publication<'_>, token: PublishToken) -> Result<(), Full> {
        let mut state = self.shared.state.borrow_mut();
        if !state.connected || state.publishes.len() >= self.in_flight {
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
            let reason = format!("{size} bytes exceed the broker's limit of {}", state.max_packet_bytes);
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
                state.publishes.queued.push_back(token);
                Ok(())
            }
            Err(rumqttc::ClientError::InvalidRequest(_)) => {
                let reason = format!("{:?} is not a valid topic name", publication.topic);
                state.events.push_back(Event::Published { token, result: PublishResult::Refused(reason) });
                self.shared.ready.notify_one();
                Ok(())
            }
            Err(_) => Err(Full),
        }
    }

    /// Subscribes with QoS 1. Retained messages arrive once, when the subscription is new to the broker.
    pub fn subscribe(&self, filter: &str, id: Option<usize>) {
        self.subscribe_with(filter, id, RetainForwardRule::OnNewSubscribe);
    }

    /// Subscribes with QoS 1. Retained messages arrive each time.
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
            Ok(()) => state.subscribes.queued.push_back(filter.to_owned()),
            Err(error) => {
                let reason = error.to_string();
                state.events.push_back(Event::NotSubscribed { filter: filter.to_owned(), reason });
                self.shared.ready.notify_one();
            }
        }
    }

    /// Subscribes to one topic with QoS 0, for topics of the broker itself.
    pub fn watch(&self, topic: &str) {
        let mut state = self.shared.state.borrow_mut();
        let Some(client) = state.client.clone() else { return };
        if client.try_subscribe_many([SubscribeFilter::new(topic, QoS::AtMostOnce)]).is_ok() {
            state.subscribes.queued.push_back(topic.to_owned());
        }
    }

    /// [`Event::Unsubscribed`] follows, unless the connection breaks first.
    pub fn unsubscribe(&self, filter: &str) {
        let mut state = self.shared.state.borrow_mut();
        let Some(client) = state.client.clone() else { return };
        if client.try_unsubscribe(filter).is_ok() {
            state.unsubscribes.queued.push_back(filter.to_owned());
        }
    }

    /// Bounds what the broker may have in flight, from the next connection on.
    pub fn bound_receive_maximum(&self, most: u16) {
        self.shared.receive_maximum.set(most);
    }

    /// Breaks the connection and connects again, so that the broker redelivers everything unacknowledged.
    pub fn reconnect(&self) {
        self.shared.reconnect.notify_one();
    }

    /// Sends DISCONNECT, so that the broker does not publish the will, and ends the driver.
    pub fn close(&self) {
        let mut state = self.shared.state.borrow_mut();
        state.closing = true;
        let requested = state.connected && state.client.as_ref().is_some_and(|client| client.try_disconnect().is_ok());
        if !requested {
            self.shared.reconnect.notify_one();
        }
    }
}

impl Events {
    /// Appends the queued events to `into`, without waiting.
    pub fn try_receive(&self, into: &mut VecDeque<Event>) {
        let mut state = self.shared.state.borrow_mut();
        if !state.events.is_empty() {
            into.append(&mut state.events);
            self.shared.drained.notify_one();
            self.shared.gate.received();
        }
    }

    /// Waits for events and moves all of them into `into`, which is empty.
    pub async fn receive(&self, into: &mut VecDeque<Event>) {
        loop {
            {
                let mut state = self.shared.state.borrow_mut();
                if !state.events.is_empty() {
                    std::mem::swap(&mut state.events, into);
                    self.shared.drained.notify_one();
                    self.shared.gate.received();
                    return;
                }
            }
            self.shared.ready.notified().await;
        }
    }
}

/// Upper bound of the packet size.
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

async fn drive(mut options: Options, shared: Rc<Shared>) {
    let receive_maximum = options.receive_maximum;
    let mut backoff = Backoff::new(FIRST_PAUSE, options.reconnect_max, crate::random_seed());
    loop {
        options.receive_maximum = receive_maximum.min(shared.receive_maximum.get());
        let reason = match mqtt_options(&options, &shared.gate) {
            Ok(mqtt) => serve_connection(mqtt, &options, &shared, &mut backoff).await,
            Err(error) => error.to_string(),
        };
        {
            let mut state = shared.state.borrow_mut();
            state.client = None;
            state.connected = false;
            state.publishes = Unanswered::default();
            state.subscribes = Unanswered::default();
            state.unsubscribes = Unanswered::default();
            state.events.push_back(Event::Disconnected { reason });
            shared.ready.notify_one();
            if state.closing {
                return;
            }
        }
        tokio::select! {
            () = tokio::time::sleep(backoff.failed()) => {}
            () = shared.reconnect.notified() => {}
        }
        if shared.state.borrow().closing {
            return;
        }
    }
}

/// Serves one connection from CONNECT to its end. Returns the reason of the end.
async fn serve_connection(mqtt: MqttOptions, options: &Options, shared: &Shared, backoff: &mut Backoff) -> String {
    // Acknowledgements of every delivery that the pipeline accepts before it holds the broker back, publishes, and some
    // control packets.
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
            () = shared.reconnect.notified() => return "reconnecting".into(),
        };
        match polled {
            Ok(first) => {
                let mut state = shared.state.borrow_mut();
                state.handle_event(first, &mut eventloop, backoff);
                while let Some(event) = eventloop.state.events.pop_front() {
                    state.handle_event(event, &mut eventloop, backoff);
                }
                match state.events.is_empty() {
                    // Answers to pings, for example.
                    true => shared.gate.received(),
                    false => shared.ready.notify_one(),
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

impl LinkState {
    fn handle_event(&mut self, event: rumqttc::Event, eventloop: &mut EventLoop, backoff: &mut Backoff) {
        match event {
            rumqttc::Event::Incoming(Packet::Publish(publish)) => {
                let delivery = self.delivery(publish);
                self.events.push_back(Event::Delivery(delivery));
            }
            rumqttc::Event::Outgoing(Outgoing::Publish(packet_id)) if packet_id != 0 => {
                self.publishes.sent(packet_id);
            }
            rumqttc::Event::Incoming(Packet::PubAck(ack)) => {
                if let Some(token) = self.publishes.sent.remove(&ack.pkid) {
                    self.events.push_back(Event::Published { token, result: publish_result(&ack) });
                }
            }
            rumqttc::Event::Outgoing(Outgoing::Subscribe(packet_id)) => self.subscribes.sent(packet_id),
            rumqttc::Event::Incoming(Packet::SubAck(ack)) => {
                let filter = self.subscribes.sent.remove(&ack.pkid).unwrap_or_default();
                self.events.push_back(
                    match ack.return_codes.iter().find(|code| !matches!(code, SubscribeReasonCode::Success(_))) {
                        Some(code) => Event::NotSubscribed { filter, reason: format!("{code:?}") },
                        None => Event::Subscribed { filter },
                    },
                );
            }
            rumqttc::Event::Outgoing(Outgoing::Unsubscribe(packet_id)) => self.unsubscribes.sent(packet_id),
            rumqttc::Event::Incoming(Packet::UnsubAck(ack)) => {
                if let Some(filter) = self.unsubscribes.sent.remove(&ack.pkid) {
                    self.events.push_back(Event::Unsubscribed { filter });
                }
            }
            rumqttc::Event::Incoming(Packet::ConnAck(ack)) => {
                backoff.succeeded();
                self.connected(&ack);
                // The client need not save what is in flight: it is in the store.
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
        let PublishProperties {
            content_type,
            user_properties: properties,
            subscription_identifiers: subscriptions,
            response_topic,
            correlation_data,
            ..
        } = publish.properties.unwrap_or_default();
        Delivery {
            topic: publish.topic,
            payload: publish.payload,
            content_type,
            properties,
            response_topic,
            correlation_data,
            subscriptions,
            dup: publish.dup,
            retained: publish.retain,
            ack: (publish.pkid != 0).then_some(AckToken { packet_id: publish.pkid, connection: self.connection }),
        }
    }
}

fn publish_result(ack: &PubAck) -> PublishResult {
    match ack.reason {
        PubAckReason::Success | PubAckReason::NoMatchingSubscribers => PublishResult::Accepted,
        PubAckReason::TopicNameInvalid | PubAckReason::PayloadFormatInvalid => {
            PublishResult::Refused(format!("the broker refused the message: {:?}", ack.reason))
        }
        PubAckReason::NotAuthorized => PublishResult::Declined("not-authorized"),
        PubAckReason::UnspecifiedError => PublishResult::Declined("unspecified-error"),
        PubAckReason::ImplementationSpecificError => PublishResult::Declined("implementation-specific-error"),
        reason => PublishResult::Retry(format!("the broker did not accept the message: {reason:?}")),
    }
}

/// Text of an error with its causes. The last cause usually names what to fix.
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
        let mut backoff = Backoff::new(FIRST_PAUSE, Duration::from_secs(4), crate::random_seed());
        let waits: Vec<Duration> = (0..6).map(|_| backoff.failed()).collect();
        for (wait, whole) in waits.iter().zip([500, 1000, 2000, 4000, 4000, 4000]) {
            let whole = Duration::from_millis(whole);
            assert!(*wait >= whole / 2 && *wait <= whole, "{wait:?} for {whole:?}");
        }
        backoff.succeeded();
        assert!(backoff.failed() <= Duration::from_millis(500));
    }
}
