//! Both halves of a connection, and the driver that owns the socket.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::fmt::Write as _;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v5::{
    ConnAck, Packet, PubAck, PubAckReason, Publish, PublishProperties, RetainForwardRule, SubscribeFilter,
    SubscribeProperties, SubscribeReasonCode,
};
use rumqttc::{AsyncClient, ConnectionError, EventLoop, ManualAck, MqttOptions, Outgoing, PublishOptions};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::Notify;

use super::gate::Gate;
use super::greeting::{Greeting, Said};
use super::options::{self, Concessions, mqtt_options};
use super::reason::{describe, reason, words};
use super::refused::{Refused, Subscription};
use super::{Event, Full, Options, OptionsError, Publication, PublishResult};
use sedge_core::board::{AckToken, Delivery};
use sedge_core::message::PublishToken;
use sedge_core::time::Backoff;
use sedge_core::topic::validate_name;

/// Queued events above which reading stops. Receive Maximum bounds QoS 1; this bounds QoS 0 too.
const EVENT_HIGH_WATER: usize = 8192;

/// Bytes read before what came is received, unless one packet is longer. A packet in memory may be ten times as large.
const READ_BYTES: usize = 256 << 10;

/// How long the broker may take to answer a subscription.
const SUBSCRIBE_TIMEOUT: Duration = Duration::from_secs(30);

/// Age of a connection that counts as a success: after it the pauses between attempts begin anew.
pub const STEADY: Duration = Duration::from_secs(5);

/// Number of connections in a row that the broker accepts and then ends soon, after which a cause is supposed.
const SHORT_CONNECTIONS: u32 = 3;

/// How long a broker may take to answer a CONNECT of MQTT 3.1.1.
const OLD_VERSION_TIMEOUT: Duration = Duration::from_secs(3);

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
    connected_at: Option<Instant>,
    closing: bool,
    publishes: Unanswered<PublishToken>,
    subscribes: Unanswered<Subscription>,
    unsubscribes: Unanswered<String>,
    refused: Refused,
    /// Since when the oldest of them has waited, or a later one was answered.
    subscribing_since: Option<Instant>,
    max_packet_bytes: usize,
    retain_available: bool,
    /// The broker takes no more than QoS 0, so that nothing is acknowledged.
    is_lossy: bool,
    has_subscription_ids: bool,
    watch: Option<Watch>,
    /// Of the broker, until the connection is reported.
    limits: Vec<String>,
}

/// Finds a connection whose other end is gone without a word (half-open).
#[derive(Debug)]
struct Watch {
    keep_alive: Duration,
    /// Since when something is to be answered.
    asked_at: Option<Instant>,
    next: Instant,
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
    mqtt_options(&options, &Arc::default(), &Arc::default(), Concessions::default())?;
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
        let reason = unsendable(&publication).or((size > state.max_packet_bytes).then_some("packet-too-large"));
        if let Some(reason) = reason {
            state.events.push_back(Event::Published { token, result: PublishResult::Refused(reason) });
            self.shared.ready.notify_one();
            return Ok(());
        }
        let options = if state.is_lossy { PublishOptions::at_most_once() } else { PublishOptions::at_least_once() };
        let mut options = options.retain(publication.retain && state.retain_available);
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
                let result = PublishResult::Refused("invalid-topic");
                state.events.push_back(Event::Published { token, result });
                self.shared.ready.notify_one();
                Ok(())
            }
            Err(_) => Err(Full),
        }
    }

    /// Subscribes with QoS 1. Retained messages arrive once, when the subscription is new to the broker.
    ///
    /// [`Event::Subscribed`] or [`Event::NotSubscribed`] follows. What is refused is asked for again on this connection.
    pub fn subscribe(&self, filter: &str, id: Option<usize>) {
        self.ask(Subscription {
            filter: filter.to_owned(),
            id,
            retained: RetainForwardRule::OnNewSubscribe,
            qos: QoS::AtLeastOnce,
            is_needed: true,
        });
    }

    /// Subscribes with QoS 1. Retained messages arrive each time.
    pub fn fetch(&self, filter: &str) {
        self.ask(Subscription {
            filter: filter.to_owned(),
            id: None,
            retained: RetainForwardRule::OnEverySubscribe,
            qos: QoS::AtLeastOnce,
            is_needed: true,
        });
    }

    /// Subscribes to one topic with QoS 0, for topics of the broker itself. A refusal is not reported.
    pub fn watch(&self, topic: &str) {
        self.ask(Subscription {
            filter: topic.to_owned(),
            id: None,
            retained: RetainForwardRule::OnEverySubscribe,
            qos: QoS::AtMostOnce,
            is_needed: false,
        });
    }

    fn ask(&self, subscription: Subscription) {
        let mut state = self.shared.state.borrow_mut();
        if state.ask(subscription) {
            self.shared.ready.notify_one();
        }
    }

    /// [`Event::Unsubscribed`] follows, unless the connection breaks first.
    pub fn unsubscribe(&self, filter: &str) {
        let mut state = self.shared.state.borrow_mut();
        let Some(client) = state.client.clone() else { return };
        state.refused.forget(filter);
        if client.try_unsubscribe(filter).is_ok() {
            state.unsubscribes.queued.push_back(filter.to_owned());
            state.subscribing_since.get_or_insert_with(Instant::now);
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

/// Why this message cannot be written as a packet, or would make a broker close the connection. The client notices only
/// while it writes, and then ends the connection with all that is in flight.
fn unsendable(publication: &Publication<'_>) -> Option<&'static str> {
    if validate_name(publication.topic).is_err() {
        return Some("invalid-topic");
    }
    let is_string = |text: &str| text.len() <= usize::from(u16::MAX) && !text.chars().any(char::is_control);
    if !publication.content_type.is_none_or(is_string) {
        return Some("invalid-content-type");
    }
    let are_strings = publication.properties.iter().all(|(name, value)| is_string(name) && is_string(value));
    (!are_strings).then_some("invalid-property")
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
    // Connections in a row that were accepted and ended soon.
    let mut short = 0;
    let mut concessions = Concessions::default();
    // Whether the broker answers MQTT 3.1.1, once that was tried.
    let mut speaks_old = None;
    loop {
        options.receive_maximum = receive_maximum.min(shared.receive_maximum.get());
        let greeting = Arc::new(Greeting::default());
        let end = match mqtt_options(&options, &shared.gate, &greeting, concessions) {
            Ok(mqtt) => serve_connection(mqtt, &options, &shared, &greeting).await,
            Err(error) => End::Broken(describe(&error)),
        };
        let (mut reason, is_requested) = match end {
            End::Requested => ("reconnecting".into(), true),
            End::Broken(reason) => (reason, false),
            End::Failed(ConnectionError::ConnectionRefused(code)) if concessions.concede(code) => continue,
            End::Failed(error) => {
                let said = greeting.said();
                let is_silent = matches!(said, Said::Closed | Said::Nothing);
                let is_open = matches!(error, ConnectionError::Timeout(_) | ConnectionError::MqttState(_));
                if is_silent && is_open && speaks_old.is_none() {
                    speaks_old = Some(answers_old_version(&options).await);
                }
                (reason(&error, &said, options.connection.url.is_tls(), speaks_old == Some(true)), false)
            }
        };
        if shared.state.borrow().connected_at.is_some() {
            speaks_old = None;
        }
        {
            let mut state = shared.state.borrow_mut();
            match state.connected_at.take() {
                _ if is_requested => backoff.succeeded(),
                Some(at) if at.elapsed() >= STEADY => {
                    backoff.succeeded();
                    short = 0;
                }
                Some(_) => short += 1,
                None => {}
            }
            if short >= SHORT_CONNECTIONS && !is_requested {
                let id = &options.connection.client_id;
                let _ = write!(
                    reason,
                    "; connections keep ending soon: is another client with the client_id {id:?} connected?"
                );
            }
            state.client = None;
            state.connected = false;
            state.publishes = Unanswered::default();
            state.subscribes = Unanswered::default();
            state.unsubscribes = Unanswered::default();
            state.refused.clear();
            state.subscribing_since = None;
            state.watch = None;
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

/// End of a connection, or of an attempt to connect.
enum End {
    /// The owner asked for it.
    Requested,
    Broken(String),
    Failed(ConnectionError),
}

/// Whether the broker answers a CONNECT of MQTT 3.1.1. Asked only of one that does not answer MQTT 5.
async fn answers_old_version(options: &Options) -> bool {
    /// Clean session, keep-alive of 10 s, client id `sedge`.
    const CONNECT: &[u8] = b"\x10\x11\x00\x04MQTT\x04\x02\x00\x0a\x00\x05sedge";
    let url = &options.connection.url;
    let Ok(tls) = options::tls(options) else { return false };
    let asked = async {
        let address = format!("{}:{}", url.host(), url.port());
        let mut stream = options::open(address, url.clone(), options::network(options), tls).await?;
        stream.write_all(CONNECT).await?;
        stream.flush().await?;
        let mut answer = [0; 2];
        stream.read_exact(&mut answer).await?;
        std::io::Result::Ok(answer == [0x20, 2])
    };
    tokio::time::timeout(OLD_VERSION_TIMEOUT, asked).await.is_ok_and(|answer| answer.unwrap_or(false))
}

/// Serves one connection from CONNECT to its end.
async fn serve_connection(mqtt: MqttOptions, options: &Options, shared: &Shared, greeting: &Greeting) -> End {
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
        let polled = {
            // Kept over timeouts: a poll that is dropped half-way may lose what it has read.
            let mut poll = std::pin::pin!(eventloop.poll());
            loop {
                let due = shared.state.borrow().due();
                tokio::select! {
                    biased;
                    polled = &mut poll => break polled,
                    () = shared.reconnect.notified() => return End::Requested,
                    () = sleep_until(due) => {
                        if let Err(reason) = shared.state.borrow_mut().handle_timeout(Instant::now(), &shared.gate) {
                            return End::Broken(reason);
                        }
                    }
                }
            }
        };
        match polled {
            Ok(first) => {
                let mut state = shared.state.borrow_mut();
                if matches!(first, rumqttc::Event::Incoming(Packet::ConnAck(_))) {
                    state.greeted(&greeting.said(), options);
                }
                state.handle_event(first, &mut eventloop, options);
                while let Some(event) = eventloop.state.events.pop_front() {
                    state.handle_event(event, &mut eventloop, options);
                }
                match state.events.is_empty() {
                    // Answers to pings, for example.
                    true => shared.gate.received(),
                    false => shared.ready.notify_one(),
                }
            }
            Err(ConnectionError::RequestsDone) => return End::Requested,
            Err(error) => return End::Failed(error),
        }
        while shared.state.borrow().events.len() > EVENT_HIGH_WATER {
            shared.drained.notified().await;
        }
    }
}

/// Never completes without a time.
async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

impl LinkState {
    /// Asks the broker for a subscription. Returns whether there is an event: the client takes no such request.
    fn ask(&mut self, subscription: Subscription) -> bool {
        let Some(client) = &self.client else { return false };
        let mut filter = SubscribeFilter::new(subscription.filter.as_str(), subscription.qos);
        filter.retain_forward_rule = subscription.retained.clone();
        let sent = match subscription.id.filter(|_| self.has_subscription_ids || !self.connected) {
            Some(id) => client.try_subscribe_many_with_properties(
                [filter],
                SubscribeProperties { id: Some(id), user_properties: Vec::new() },
            ),
            None => client.try_subscribe_many([filter]),
        };
        match sent {
            Ok(()) => {
                self.subscribes.queued.push_back(subscription);
                self.subscribing_since.get_or_insert_with(Instant::now);
                false
            }
            Err(error) => self.not_subscribed(subscription, error.to_string()),
        }
    }

    /// Returns whether there is an event.
    fn not_subscribed(&mut self, subscription: Subscription, reason: String) -> bool {
        if subscription.is_needed {
            self.events.push_back(Event::NotSubscribed { filter: subscription.filter.clone(), reason });
            self.refused.refused(subscription, Instant::now());
            return true;
        }
        false
    }

    fn subscribed(&mut self, subscription: Subscription, code: SubscribeReasonCode) {
        match code {
            SubscribeReasonCode::Success(granted) => {
                self.refused.forget(&subscription.filter);
                let is_lossy = granted == QoS::AtMostOnce && subscription.qos != granted;
                self.events.push_back(Event::Subscribed { filter: subscription.filter, is_lossy });
            }
            SubscribeReasonCode::SubscriptionIdNotSupported if subscription.id.is_some() => {
                self.ask(Subscription { id: None, ..subscription });
            }
            code => drop(self.not_subscribed(subscription, words(code))),
        }
    }

    fn answered_subscription(&mut self) {
        let is_answered = self.subscribes.len() + self.unsubscribes.len() == 0;
        self.subscribing_since = (!is_answered).then(Instant::now);
    }

    /// When something is to be done although nothing happens.
    fn due(&self) -> Option<Instant> {
        let answer = self.subscribing_since.map(|since| since + SUBSCRIBE_TIMEOUT);
        answer.into_iter().chain(self.refused.due()).chain(self.watch.as_ref().map(|watch| watch.next)).min()
    }

    /// `Err`: the connection is to be broken, for this reason.
    fn handle_timeout(&mut self, now: Instant, gate: &Gate) -> Result<(), String> {
        if self.subscribing_since.is_some_and(|since| now >= since + SUBSCRIBE_TIMEOUT) {
            if !gate.is_shut() {
                return Err(format!(
                    "the broker did not answer a subscription within {} s",
                    SUBSCRIBE_TIMEOUT.as_secs()
                ));
            }
            // Nothing is read at the moment.
            self.subscribing_since = Some(now);
        }
        if let Some(watch) = &mut self.watch
            && now >= watch.next
            && watch.is_silent(now, gate)
        {
            return Err("the broker is silent, and does not answer a ping".into());
        }
        for subscription in self.refused.take_due(now) {
            self.ask(subscription);
        }
        Ok(())
    }

    fn handle_event(&mut self, event: rumqttc::Event, eventloop: &mut EventLoop, options: &Options) {
        self.asked(&event);
        match event {
            rumqttc::Event::Incoming(Packet::Publish(publish)) => {
                let delivery = self.delivery(publish);
                self.events.push_back(Event::Delivery(delivery));
            }
            rumqttc::Event::Outgoing(Outgoing::Publish(packet_id)) if packet_id != 0 => {
                self.publishes.sent(packet_id);
            }
            // Without acknowledgements that is all that can be known.
            rumqttc::Event::Outgoing(Outgoing::Publish(_)) if self.is_lossy => {
                if let Some(token) = self.publishes.queued.pop_front() {
                    self.events.push_back(Event::Published { token, result: PublishResult::Accepted });
                }
            }
            rumqttc::Event::Incoming(Packet::PubAck(ack)) => {
                if let Some(token) = self.publishes.sent.remove(&ack.pkid) {
                    self.events.push_back(Event::Published { token, result: publish_result(&ack) });
                }
            }
            rumqttc::Event::Outgoing(Outgoing::Subscribe(packet_id)) => self.subscribes.sent(packet_id),
            rumqttc::Event::Incoming(Packet::SubAck(ack)) => {
                // One filter per packet.
                if let (Some(subscription), [code]) = (self.subscribes.sent.remove(&ack.pkid), &ack.return_codes[..]) {
                    self.subscribed(subscription, *code);
                }
                self.answered_subscription();
            }
            rumqttc::Event::Outgoing(Outgoing::Unsubscribe(packet_id)) => self.unsubscribes.sent(packet_id),
            rumqttc::Event::Incoming(Packet::UnsubAck(ack)) => {
                if let Some(filter) = self.unsubscribes.sent.remove(&ack.pkid) {
                    self.events.push_back(Event::Unsubscribed { filter });
                }
                self.answered_subscription();
            }
            rumqttc::Event::Incoming(Packet::ConnAck(ack)) => {
                self.connected(&ack, options);
                // The client need not save what is in flight: it is in the store.
                eventloop.options.clear_session_store();
            }
            _ => {}
        }
    }

    fn connected(&mut self, ack: &ConnAck, options: &Options) {
        let properties = ack.properties.as_ref();
        let has = |flag: Option<u8>| flag.is_none_or(|flag| flag != 0);
        self.connected = true;
        let now = Instant::now();
        self.connected_at = Some(now);
        self.max_packet_bytes =
            properties.and_then(|it| it.max_packet_size).map_or(268_435_455, |bytes| bytes as usize);
        self.retain_available = has(properties.and_then(|it| it.retain_available));
        self.is_lossy = properties.and_then(|it| it.max_qos) == Some(0);
        self.has_subscription_ids = has(properties.and_then(|it| it.subscription_identifiers_available));
        let keep_alive = properties.and_then(|it| it.server_keep_alive);
        let keep_alive = keep_alive.map_or(options.keep_alive, |secs| Duration::from_secs(secs.into()));
        self.watch = (!keep_alive.is_zero()).then(|| Watch { keep_alive, asked_at: None, next: now + keep_alive });
        let mut limits = std::mem::take(&mut self.limits);
        let mut limit = |applies: bool, text: &str| {
            if applies {
                limits.push(text.to_owned());
            }
        };
        limit(
            !self.retain_available,
            "no retained messages: the board's status is not kept, and nothing can be pushed to it",
        );
        limit(
            self.is_lossy,
            "no more than QoS 0: messages to and from it can be lost, and nothing tells whether they were",
        );
        limit(
            !self.has_subscription_ids,
            "no subscription identifiers: a function with overlapping filters can receive a message twice",
        );
        limit(!has(properties.and_then(|it| it.wildcard_subscription_available)), "no wildcards in subscriptions");
        limit(
            !has(properties.and_then(|it| it.shared_subscription_available)),
            "no shared subscriptions (share_group)",
        );
        let kept = properties.and_then(|it| it.session_expiry_interval).map(|secs| Duration::from_secs(secs.into()));
        if let Some(kept) = kept.filter(|kept| *kept < options.session_expiry) {
            limits.push(format!("the session ends after {} s away, and what was queued is lost", kept.as_secs()));
        }
        self.events.push_back(Event::Connected { session_present: ack.session_present, limits });
    }

    /// Keeps what the client does not pass on of a CONNACK.
    fn greeted(&mut self, said: &Said, options: &Options) {
        if let Said::ConnAck { assigned_id: Some(id), .. } = said
            && *id != options.connection.client_id
        {
            let own = &options.connection.client_id;
            self.limits.push(format!("it calls this client {id:?}, not {own:?}: it may not find the session again"));
        }
    }

    /// Notes when something was asked that the broker has to answer. Whatever comes shows that it is there.
    fn asked(&mut self, event: &rumqttc::Event) {
        let Some(watch) = &mut self.watch else { return };
        match event {
            rumqttc::Event::Incoming(_) => watch.asked_at = None,
            rumqttc::Event::Outgoing(
                Outgoing::PingReq | Outgoing::Publish(1..) | Outgoing::Subscribe(_) | Outgoing::Unsubscribe(_),
            ) => {
                watch.asked_at.get_or_insert_with(Instant::now);
            }
            _ => {}
        }
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

impl Watch {
    /// Whether nothing came for a whole keep-alive, and no answer for half of one: gone within one and a half.
    fn is_silent(&mut self, now: Instant, gate: &Gate) -> bool {
        let heard = gate.heard_at().unwrap_or(now);
        // While nothing is read nothing can be heard.
        let heard = if gate.is_shut() { now } else { heard };
        self.asked_at.take_if(|asked| *asked <= heard);
        let half = self.keep_alive / 2;
        let due = (heard + self.keep_alive).max(self.asked_at.map_or(now + half, |asked| asked + half));
        self.next = due;
        self.asked_at.is_some() && now >= due
    }
}

fn publish_result(ack: &PubAck) -> PublishResult {
    match ack.reason {
        PubAckReason::Success | PubAckReason::NoMatchingSubscribers => PublishResult::Accepted,
        PubAckReason::TopicNameInvalid => PublishResult::Refused("topic-name-invalid"),
        PubAckReason::PayloadFormatInvalid => PublishResult::Refused("payload-format-invalid"),
        PubAckReason::NotAuthorized => PublishResult::Declined("not-authorized"),
        PubAckReason::UnspecifiedError => PublishResult::Declined("unspecified-error"),
        PubAckReason::ImplementationSpecificError => PublishResult::Declined("implementation-specific-error"),
        reason => PublishResult::Retry(format!("the broker did not accept the message: {reason:?}")),
    }
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
