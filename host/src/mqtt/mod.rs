//! The connection to a broker: MQTT 5, a session that the broker keeps, acknowledgements by hand. The only folder that
//! names the MQTT crate.
//!
//! [`connect`] gives two halves: a [`Link`] to say things with, never waiting, and a future, the driver, that owns the
//! socket, reconnects, and queues [`Event`]s. Both live on one thread.
//!
//! What is under way when a connection breaks is forgotten here on purpose: deliveries come again from the broker, and
//! publishes come again from the outbox, which alone knows what is done.

mod coalesce;

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v5::{
    ConnAck, LastWill, Packet, PubAck, PubAckReason, Publish, PublishProperties, RetainForwardRule, SubscribeFilter,
    SubscribeProperties, SubscribeReasonCode,
};
use rumqttc::{
    AckMode, AsyncClient, ConnectionError, EventLoop, ManualAck, MqttOptions, NetworkOptions, Outgoing,
    PersistedAckMode, PersistedSession, PublishOptions, SessionStore, SessionStoreError, SessionStoreKey,
    TlsConfiguration, Transport,
};
use tokio::sync::Notify;

use coalesce::{Coalesce, Gate};

pub use crate::board::{AckToken, Delivery};
use crate::config::{self, Endpoint};
use crate::time::Backoff;

/// Events that wait for the pipeline. QoS 1 is bounded by Receive Maximum; this bounds QoS 0 as well, by not reading on.
const EVENT_HIGH_WATER: usize = 8192;

/// The pause after the first attempt that failed.
const FIRST_PAUSE: Duration = Duration::from_millis(500);

/// A connection with its session and limits.
#[derive(Clone, Debug)]
pub struct Options {
    pub connection: config::Connection,
    pub keep_alive: Duration,
    pub connect_timeout: Duration,
    pub reconnect_max: Duration,
    /// Unacknowledged messages that the broker may have under way to us.
    pub receive_maximum: u16,
    pub max_packet_bytes: u32,
    /// How long the broker keeps the session when we are gone. Zero: it ends with each connection.
    pub session_expiry: Duration,
    /// Our own unacknowledged publishes. Small: the client scans this window at every flush.
    pub in_flight: u16,
    pub will: Option<Will>,
}

impl Options {
    /// The daemon's session at the local broker, which the broker keeps.
    pub fn local(config: &config::Mqtt, in_flight: u16, will: Option<Will>) -> Self {
        Self {
            connection: config.connection.clone(),
            keep_alive: Duration::from_secs(config.keep_alive_secs.get().into()),
            connect_timeout: Duration::from_secs(config.connect_timeout_secs.get().into()),
            reconnect_max: Duration::from_secs(config.reconnect_max_secs.get().into()),
            receive_maximum: config.receive_maximum.get(),
            max_packet_bytes: config.max_packet_bytes.get(),
            session_expiry: Duration::from_secs(config.session_expiry_secs.get().into()),
            in_flight,
            will,
        }
    }

    /// The daemon's connection upstream. Records in flight are in the store: the broker need not keep a session.
    pub fn upstream(config: &config::Upstream) -> Self {
        Self {
            keep_alive: Duration::from_secs(config.keep_alive_secs.get().into()),
            connect_timeout: Duration::from_secs(config.timeout_secs.get().into()),
            reconnect_max: Duration::from_secs(config.backoff_max_secs.get().into()),
            in_flight: config.in_flight.get(),
            ..Self::brief(config.connection.clone())
        }
    }

    /// A connection without a session that outlives it.
    pub fn brief(connection: config::Connection) -> Self {
        Self {
            connection,
            keep_alive: Duration::from_secs(15),
            connect_timeout: Duration::from_secs(10),
            reconnect_max: Duration::from_secs(5),
            receive_maximum: 16,
            max_packet_bytes: 64 * 1024,
            session_expiry: Duration::ZERO,
            in_flight: 1,
            will: None,
        }
    }
}

/// What the broker publishes, retained, when we vanish.
#[derive(Clone, Debug)]
pub struct Will {
    pub topic: String,
    pub payload: String,
}

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

#[derive(Debug, thiserror::Error)]
pub enum OptionsError {
    #[error("failed to read {path}")]
    File { path: PathBuf, source: std::io::Error },
    #[error("failed to load the system's trusted certificates for {url}: {reason}; name a file with ca_file")]
    Roots { url: Endpoint, reason: String },
}

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

fn mqtt_options(options: &Options, gate: &Arc<Gate>) -> Result<MqttOptions, OptionsError> {
    let connection = &options.connection;
    let url = &connection.url;
    debug_assert!(url.is_mqtt(), "callers tell webhooks from brokers");
    let mut mqtt = MqttOptions::new(&connection.client_id, (url.host().to_owned(), url.port()));
    mqtt.set_keep_alive(options.keep_alive.as_secs().try_into().unwrap_or(u16::MAX))
        .set_connect_timeout(options.connect_timeout)
        // One that was cut off may still be there for the broker, with subscriptions that would not be new any more.
        .set_clean_start(options.session_expiry.is_zero())
        .set_session_expiry_interval(Some(options.session_expiry.as_secs().try_into().unwrap_or(u32::MAX)))
        .set_receive_maximum(Some(options.receive_maximum))
        .set_max_packet_size(Some(options.max_packet_bytes))
        .set_ack_mode(AckMode::Manual)
        .set_max_request_batch(256)
        .set_read_batch_size(128)
        .set_pending_throttle(Duration::ZERO)
        .set_outgoing_inflight_upper_limit(options.in_flight);
    mqtt.set_session_store(NothingUnderWay {
        client_id: connection.client_id.clone(),
        in_flight: options.in_flight,
        session_expiry: mqtt.session_expiry_interval(),
    });
    let mut network = NetworkOptions::new();
    network.set_tcp_nodelay(true);
    network.set_connection_timeout(options.connect_timeout.as_secs().max(1));
    mqtt.set_network_options(network);
    let gate = Arc::clone(gate);
    mqtt.set_socket_connector(move |host, network| {
        let gate = Arc::clone(&gate);
        async move { Ok(Coalesce::new(rumqttc::default_socket_connect(host, network).await?, gate)) }
    });
    if let Some(will) = &options.will {
        mqtt.set_last_will(LastWill::new(&will.topic, will.payload.clone(), QoS::AtLeastOnce, true, None));
    }
    let password = connection.password_file.as_deref().map(read_secret).transpose()?;
    match (&connection.username, password) {
        (Some(username), Some(password)) => {
            mqtt.set_credentials(username, password);
        }
        (Some(username), None) => {
            mqtt.set_username(username);
        }
        (None, Some(password)) => {
            mqtt.set_password(password);
        }
        (None, None) => {}
    }
    if url.is_tls() {
        mqtt.set_transport(Transport::Tls(tls_configuration(connection)?));
    }
    Ok(mqtt)
}

fn tls_configuration(connection: &config::Connection) -> Result<TlsConfiguration, OptionsError> {
    let client_auth = match (&connection.cert_file, &connection.key_file) {
        (Some(cert), Some(key)) => Some((read(cert)?, read(key)?)),
        _ => None,
    };
    let ca = match &connection.ca_file {
        Some(path) => read(path)?,
        None if client_auth.is_none() => {
            return TlsConfiguration::try_default_rustls()
                .map_err(|error| OptionsError::Roots { url: connection.url.clone(), reason: error.to_string() });
        }
        None => system_roots().ok_or_else(|| OptionsError::Roots {
            url: connection.url.clone(),
            reason: "no certificate bundle was found".into(),
        })?,
    };
    Ok(TlsConfiguration::Simple { ca, alpn: None, client_auth })
}

/// The system's bundle as PEM, for the one combination that the client cannot load by itself: system roots together
/// with a client certificate.
fn system_roots() -> Option<Vec<u8>> {
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"]
        .iter()
        .find_map(|path| std::fs::read(path).ok())
}

fn read(path: &Path) -> Result<Vec<u8>, OptionsError> {
    std::fs::read(path).map_err(|source| OptionsError::File { path: path.to_owned(), source })
}

/// A secret as people write it into a file: with a line end, which is not part of it.
fn read_secret(path: &Path) -> Result<Vec<u8>, OptionsError> {
    let mut secret = read(path)?;
    while secret.last().is_some_and(|byte| matches!(byte, b'\n' | b'\r')) {
        secret.pop();
    }
    Ok(secret)
}

/// Tells the client that it resumes a session with nothing of its own under way.
///
/// Without this the client refuses a session that the broker kept while this process was restarted, because it cannot
/// know its own unfinished publishes. Ours are in the outbox and are sent anew, so there are none.
#[derive(Debug)]
struct NothingUnderWay {
    client_id: String,
    in_flight: u16,
    session_expiry: Option<u32>,
}

type SessionFuture<'a, T> = std::pin::Pin<Box<dyn Future<Output = Result<T, SessionStoreError>> + Send + 'a>>;

impl SessionStore for NothingUnderWay {
    fn load<'a>(&'a self, _: &'a SessionStoreKey) -> SessionFuture<'a, Option<PersistedSession>> {
        let session = PersistedSession {
            format_version: 1,
            client_id: self.client_id.clone(),
            clean_start: false,
            session_expiry_interval: self.session_expiry,
            outgoing_inflight_upper_limit: Some(self.in_flight),
            ack_mode: PersistedAckMode::Manual,
            last_pkid: 0,
            last_puback: 0,
            replay: Vec::new(),
            incoming_qos2: Vec::new(),
        };
        Box::pin(std::future::ready(Ok(Some(session))))
    }

    fn save<'a>(&'a self, _: &'a SessionStoreKey, _: &'a PersistedSession) -> SessionFuture<'a, ()> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn clear<'a>(&'a self, _: &'a SessionStoreKey) -> SessionFuture<'a, ()> {
        Box::pin(std::future::ready(Ok(())))
    }
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
