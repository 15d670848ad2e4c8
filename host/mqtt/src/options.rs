//! Connection options: address, credentials, TLS, and the settings of the MQTT client.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v5::{ConnectReturnCode, LastWill};
use rumqttc::tokio_rustls::TlsConnector;
use rumqttc::tokio_rustls::rustls::ClientConfig;
use rumqttc::tokio_rustls::rustls::pki_types::ServerName;
use rumqttc::{
    AckMode, MqttOptions, NetworkOptions, PersistedAckMode, PersistedSession, SessionStore, SessionStoreError,
    SessionStoreKey,
};
use tokio::io::{AsyncRead, AsyncWrite};

use super::coalesce::Coalesce;
use super::gate::Gate;
use super::greeting::{Greeted, Greeting};
use super::quick_ack::QuickAck;
use super::tls;
use sedge_core::config::{self, Endpoint};

/// A connection with its session and limits.
#[derive(Clone, Debug)]
pub struct Options {
    pub connection: config::Connection,
    pub keep_alive: Duration,
    pub connect_timeout: Duration,
    pub reconnect_max: Duration,
    /// Unacknowledged messages that the broker may send.
    pub receive_maximum: u16,
    pub max_packet_bytes: u32,
    /// How long the broker keeps the session after a disconnect. Zero: until the connection ends.
    pub session_expiry: Duration,
    /// Unacknowledged publishes of this client. Small: the client scans this window at every flush.
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

/// Last will: retained, published by the broker when the connection is lost.
#[derive(Clone, Debug)]
pub struct Will {
    pub topic: String,
    pub payload: String,
}

#[derive(Debug, thiserror::Error)]
pub enum OptionsError {
    #[error("failed to read {path}")]
    File { path: PathBuf, source: std::io::Error },
    #[error("failed to load the system's trusted certificates for {url}: {reason}; name a file with ca_file")]
    Roots { url: Endpoint, reason: String },
    #[error("the certificate in {path} cannot be used with its key: {reason}")]
    Identity { path: PathBuf, reason: String },
}

/// What the broker does not take in CONNECT.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Concessions {
    no_retained_will: bool,
    qos_0_will: bool,
}

impl Concessions {
    /// Returns whether another attempt, with less, may be accepted.
    pub(super) fn concede(&mut self, refusal: ConnectReturnCode) -> bool {
        let conceded = match refusal {
            ConnectReturnCode::RetainNotSupported => &mut self.no_retained_will,
            ConnectReturnCode::QoSNotSupported => &mut self.qos_0_will,
            _ => return false,
        };
        !std::mem::replace(conceded, true)
    }
}

/// Bytes to and from a broker.
pub(super) trait ByteStream: AsyncRead + AsyncWrite + Send + Sync + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Sync + Unpin> ByteStream for S {}

/// Connects to the broker at `address`, through TLS if there is a configuration for it, and through a WebSocket if `url` says so.
pub(super) async fn open(
    address: String,
    url: Endpoint,
    network: NetworkOptions,
    tls: Option<Arc<ClientConfig>>,
) -> std::io::Result<Box<dyn ByteStream>> {
    let tcp = QuickAck(rumqttc::default_socket_connect(address, network).await?);
    let stream: Box<dyn ByteStream> = match tls {
        Some(config) => {
            let name = ServerName::try_from(url.host().to_owned()).map_err(std::io::Error::other)?;
            Box::new(TlsConnector::from(config).connect(name, tcp).await?)
        }
        None => Box::new(tcp),
    };
    if url.is_websocket() { upgrade(stream, &url).await } else { Ok(stream) }
}

#[cfg(feature = "websocket")]
async fn upgrade(stream: Box<dyn ByteStream>, url: &Endpoint) -> std::io::Result<Box<dyn ByteStream>> {
    Ok(Box::new(super::websocket::upgrade(stream, url).await?))
}

#[cfg(not(feature = "websocket"))]
async fn upgrade(_: Box<dyn ByteStream>, url: &Endpoint) -> std::io::Result<Box<dyn ByteStream>> {
    let what = format!("this build has no WebSocket, which {url} needs: use mqtt:// or mqtts://, or the full build");
    Err(std::io::Error::new(std::io::ErrorKind::Unsupported, what))
}

pub(super) fn network(options: &Options) -> NetworkOptions {
    let mut network = NetworkOptions::new();
    network.set_tcp_nodelay(true);
    network.set_connection_timeout(options.connect_timeout.as_secs().max(1));
    network
}

pub(super) fn tls(options: &Options) -> Result<Option<Arc<ClientConfig>>, OptionsError> {
    let connection = &options.connection;
    connection.url.is_tls().then(|| tls::configuration(connection)).transpose()
}

pub(super) fn mqtt_options(
    options: &Options,
    gate: &Arc<Gate>,
    greeting: &Arc<Greeting>,
    concessions: Concessions,
) -> Result<MqttOptions, OptionsError> {
    let connection = &options.connection;
    let url = &connection.url;
    debug_assert!(url.is_mqtt(), "callers tell webhooks from brokers");
    let mut mqtt = MqttOptions::new(&connection.client_id, (url.host().to_owned(), url.port()));
    mqtt.set_keep_alive(options.keep_alive.as_secs().try_into().unwrap_or(u16::MAX))
        .set_connect_timeout(options.connect_timeout)
        // A session of a lost connection may still exist, with subscriptions that would not count as new.
        .set_clean_start(options.session_expiry.is_zero())
        .set_session_expiry_interval(Some(options.session_expiry.as_secs().try_into().unwrap_or(u32::MAX)))
        .set_receive_maximum(Some(options.receive_maximum))
        .set_max_packet_size(Some(options.max_packet_bytes))
        .set_ack_mode(AckMode::Manual)
        .set_max_request_batch(256)
        .set_read_batch_size(128)
        .set_pending_throttle(Duration::ZERO)
        .set_outgoing_inflight_upper_limit(options.in_flight);
    mqtt.set_session_store(EmptySession {
        client_id: connection.client_id.clone(),
        in_flight: options.in_flight,
        session_expiry: mqtt.session_expiry_interval(),
    });
    mqtt.set_network_options(network(options));
    let (gate, greeting, url) = (Arc::clone(gate), Arc::clone(greeting), url.clone());
    // TLS is made here and not by the client, so that the first packet can be read before the client reads it.
    let tls = tls(options)?;
    mqtt.set_socket_connector(move |address, network| {
        let (gate, greeting, tls) = (Arc::clone(&gate), Arc::clone(&greeting), tls.clone());
        let url = url.clone();
        async move {
            let stream = open(address, url, network, tls).await?;
            Ok(Greeted::new(Coalesce::new(stream, gate), greeting))
        }
    });
    if let Some(will) = &options.will {
        let qos = if concessions.qos_0_will { QoS::AtMostOnce } else { QoS::AtLeastOnce };
        let retain = !concessions.no_retained_will;
        mqtt.set_last_will(LastWill::new(&will.topic, will.payload.clone(), qos, retain, None));
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
    Ok(mqtt)
}

pub(super) fn read(path: &Path) -> Result<Vec<u8>, OptionsError> {
    std::fs::read(path).map_err(|source| OptionsError::File { path: path.to_owned(), source })
}

/// Reads a secret. Line ends at its end are not part of it.
fn read_secret(path: &Path) -> Result<Vec<u8>, OptionsError> {
    let mut secret = read(path)?;
    while secret.last().is_some_and(|byte| matches!(byte, b'\n' | b'\r')) {
        secret.pop();
    }
    Ok(secret)
}

/// Session store that reports a session without unfinished publishes.
///
/// Without it the client refuses a session that the broker kept across a restart, since its own unfinished publishes are
/// unknown. Here they are in the outbox and are sent anew.
#[derive(Debug)]
struct EmptySession {
    client_id: String,
    in_flight: u16,
    session_expiry: Option<u32>,
}

type SessionFuture<'a, T> = std::pin::Pin<Box<dyn Future<Output = Result<T, SessionStoreError>> + Send + 'a>>;

impl SessionStore for EmptySession {
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
