//! Connection options: address, credentials, TLS, and the settings of the MQTT client.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v5::LastWill;
use rumqttc::{
    AckMode, MqttOptions, NetworkOptions, PersistedAckMode, PersistedSession, SessionStore, SessionStoreError,
    SessionStoreKey, TlsConfiguration, Transport,
};

use super::coalesce::Coalesce;
use super::gate::Gate;
use super::quick_ack::QuickAck;
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
}

pub(super) fn mqtt_options(options: &Options, gate: &Arc<Gate>) -> Result<MqttOptions, OptionsError> {
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
    let mut network = NetworkOptions::new();
    network.set_tcp_nodelay(true);
    network.set_connection_timeout(options.connect_timeout.as_secs().max(1));
    mqtt.set_network_options(network);
    let gate = Arc::clone(gate);
    mqtt.set_socket_connector(move |host, network| {
        let gate = Arc::clone(&gate);
        async move {
            let socket = QuickAck(rumqttc::default_socket_connect(host, network).await?);
            Ok(Coalesce::new(socket, gate))
        }
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

/// Reads the system's certificate bundle. The client cannot combine its own with a client certificate.
fn system_roots() -> Option<Vec<u8>> {
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"]
        .iter()
        .find_map(|path| std::fs::read(path).ok())
}

fn read(path: &Path) -> Result<Vec<u8>, OptionsError> {
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
