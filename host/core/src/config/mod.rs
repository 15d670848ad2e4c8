//! The configuration: one struct per section, given to the part that it configures, with every default in one place.
//!
//! [`Table::from_toml`](document::Table::from_toml) parses files into a tree whose values know their places, and
//! `conf.d/*.toml` is merged over it. [`sections`] reads that tree key by key, so that all [`problem`]s are reported at
//! once. Only [`load`] touches the machine: files, environment, host name. `sedge.toml` beside the source holds every key
//! with its default; tests keep it, the reference in `docs/` and this file in step.

mod http_trigger;
mod load;
pub mod machine;
pub mod problem;

pub mod check;
pub(crate) mod document;
pub mod endpoint;
pub(crate) mod reader;
mod sections;
pub mod settings;
mod sinks;
mod zones;

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a test may read clocks and files")]
mod tests;

pub use endpoint::{Endpoint, Scheme};
pub use http_trigger::{HttpSignature, HttpToken, HttpTrigger};
pub use problem::{Problem, Problems};
pub use reader::nearest;
pub use sections::on_one_broker;
pub use settings::BoardSettings;
pub use sinks::{FileSink, Influx, InfluxApi, LOCAL, Sink, Sinks, Target, UPSTREAM};

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::{NonZeroU16, NonZeroU32, NonZeroU64, NonZeroUsize};
use std::path::PathBuf;

use crate::board::Budget;
use crate::key::PublicKey;
use crate::message::Digest;
use crate::topic::TopicFilter;

#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    pub node: Node,
    pub mqtt: Mqtt,
    pub functions: Functions,
    pub deploy: Deploy,
    pub worker: Worker,
    pub store: Store,
    pub sinks: Sinks,
    pub recording: Recording,
    pub http: Http,
    pub http_trigger: HttpTrigger,
    pub home_assistant: HomeAssistant,
    pub trace: Trace,
    pub log: Log,
}

/// Identity of this board.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Part of every topic; default: the host name.
    pub name: String,
    pub groups: Vec<String>,
    /// First level of Sedge's own topics.
    pub base_topic: String,
    pub data_dir: PathBuf,
    pub clock: Clock,
}

/// When the wall clock of the board counts as right.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Clock {
    /// Once a time service has set it.
    #[default]
    Auto,
    /// Always: a real-time clock keeps it.
    Trusted,
}

/// How to reach a broker or a webhook and log in: the keys that `[mqtt]` and `[upstream]` share.
#[derive(Clone, Debug, PartialEq)]
pub struct Connection {
    pub url: Endpoint,
    /// Name of the session at the broker. Default: `sedge-<node>`, upstream `sedge-<node>-upstream`.
    pub client_id: String,
    pub username: Option<String>,
    pub password_file: Option<PathBuf>,
    /// Trusted roots in PEM; default: the system's.
    pub ca_file: Option<PathBuf>,
    pub cert_file: Option<PathBuf>,
    pub key_file: Option<PathBuf>,
    /// Digest of the one certificate (DER) that the broker may have. Nothing else of it is checked then.
    pub tls_pin_sha256: Option<Digest>,
    /// Protocols to offer in the TLS handshake (ALPN).
    pub tls_alpn: Vec<String>,
}

/// The body of webhook calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WebhookFormat {
    /// The payload itself, with CloudEvents attributes as headers (binary mode).
    #[default]
    Binary,
    /// CloudEvents in JSON (structured mode).
    CloudEvents,
    /// Alerts for the API of Alertmanager.
    Alertmanager,
}

/// A header of webhook calls.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Header {
    pub value: Option<String>,
    /// A file that holds the value, read for each call.
    pub file: Option<PathBuf>,
}

/// The local broker.
#[derive(Clone, Debug, PartialEq)]
pub struct Mqtt {
    pub connection: Connection,
    pub keep_alive_secs: NonZeroU16,
    /// Unacknowledged messages that the broker may have in flight to this board.
    pub receive_maximum: NonZeroU16,
    /// Announced to the broker, which then never sends more; the largest payload is a little less.
    pub max_packet_bytes: NonZeroU32,
    /// A larger payload becomes a dead letter. Below `max_packet_bytes`, or it would never arrive.
    pub max_payload_bytes: NonZeroU32,
    /// How long the broker keeps messages for an absent board.
    pub session_expiry_secs: NonZeroU32,
    /// Shares the load of one broker with other hosts: subscribes as `$share/<group>/...`.
    pub share_group: Option<String>,
    pub connect_timeout_secs: NonZeroU16,
    pub reconnect_max_secs: NonZeroU16,
}

/// Functions from folders, and the limits of all functions.
#[derive(Clone, Debug, PartialEq)]
pub struct Functions {
    /// Folders that each hold a `function.toml` and the component that it names.
    pub paths: Vec<PathBuf>,
    /// Whether these folders may hold code that was compiled elsewhere.
    pub native_code: bool,
    pub retry: Retry,
    pub quarantine: Quarantine,
    /// Number of functions that one message may pass through.
    pub max_hops: NonZeroU32,
    /// Number of publications that one message may cause, directly and through other functions.
    pub max_fan_out: NonZeroU32,
    /// Number of wakes of one function that may wait.
    pub max_wakes: NonZeroU32,
    /// Bytes of everything that messages hold in the daemon. Default: a quarter of the service's memory.
    pub memory_budget_bytes: Option<NonZeroUsize>,
    pub ceilings: Ceilings,
    pub settings: BoardLayer,
}

/// `functions.settings.*`: what this board lays over the settings of its functions, by their names.
pub type BoardLayer = BTreeMap<String, BoardSettings>;

/// `functions.retry_*`: messages that a function asks to see again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retry {
    pub attempts: NonZeroU32,
    pub max_delay_secs: NonZeroU32,
}

/// `functions.quarantine_*`: pauses of a function that keeps failing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quarantine {
    /// Failures in a row after which a function is paused.
    pub after: NonZeroU32,
    /// First pause.
    pub secs: NonZeroU32,
    pub max_secs: NonZeroU32,
}

/// `functions.max_*`: the most that a manifest may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ceilings {
    pub fuel: NonZeroU64,
    pub timeout_ms: NonZeroU32,
    pub memory_bytes: NonZeroUsize,
    pub outputs: u32,
    pub output_bytes: usize,
    pub state_bytes: usize,
}

/// Functions that are pushed to the board.
#[derive(Clone, Debug, PartialEq)]
pub struct Deploy {
    /// How long a push may make no progress before it is dropped.
    pub receive_timeout_secs: NonZeroU32,
    pub max_module_bytes: NonZeroU64,
    /// Most functions installed at once, including those from folders.
    pub max_functions: NonZeroU32,
    /// Keys that may push. Without any, nobody may.
    pub keys: BTreeMap<String, DeployKey>,
}

/// A trusted key and its permissions.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DeployKey {
    /// An Ed25519 public key in PEM.
    pub file: PathBuf,
    /// Content of the file; `None` only where reading failed.
    pub public_key: Option<PublicKey>,
    /// Names, or prefixes of names and `*`. Empty: all.
    pub functions: Vec<String>,
    /// Topics that its functions may subscribe and publish to. Empty: all.
    pub topics: Vec<TopicFilter>,
    /// Whether it may change the trusted keys with a signed order.
    pub keys: bool,
    /// Whether it may send code that was compiled elsewhere, which runs unchecked.
    pub native_code: bool,
    /// Whether it may change settings and nothing else.
    pub settings_only: bool,
    /// Whether it may record the messages of its functions.
    pub record: bool,
    /// Whether it may read the log of the board.
    pub logs: bool,
}

/// The sandbox processes.
#[derive(Clone, Debug, PartialEq)]
pub struct Worker {
    pub isolate: Isolate,
    /// Those that functions have in common. 0: one per core, at most four.
    pub count: usize,
    /// Function state that a worker caches in memory.
    pub state_cache_bytes: NonZeroUsize,
    /// Memory limit of a worker process.
    pub memory_bytes: NonZeroUsize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Isolate {
    #[default]
    Process,
    Thread,
    /// A process for each function.
    Function,
}

/// The database.
#[derive(Clone, Debug, PartialEq)]
pub struct Store {
    /// Outbox limit: records for upstream and for the local broker.
    pub max_bytes: NonZeroU64,
    pub max_age_secs: Option<NonZeroU64>,
    pub when_full: WhenFull,
    pub dead_letter_max_bytes: NonZeroU64,
    pub dead_letter_max_age_secs: Option<NonZeroU64>,
    /// Limit of the messages that wait for a retry.
    pub parked_max_bytes: NonZeroU64,
    /// Shortest time between two commits, to spare SD cards. 0: commit as soon as the last sync is done.
    pub flash_saver_ms: u32,
    /// What the card or disk may be written in its life, in terabytes. 0: not known.
    pub disk_endurance_tb: u32,
    pub message_id_retention_secs: NonZeroU32,
    /// Limit of the state of all functions.
    pub state_max_bytes: NonZeroU64,
    /// How long the state of a removed function is kept.
    pub state_retention_secs: Option<NonZeroU64>,
    /// Section `[history]`.
    pub history: History,
    /// The sinks of the configuration. The first is told of lost records that no sink of its own has.
    pub sinks: Vec<SinkShare>,
}

/// Results and alerts that the database keeps for `sedge history`.
#[derive(Clone, Debug, PartialEq)]
pub struct History {
    /// `None`: no history.
    pub days: Option<NonZeroU32>,
    pub max_bytes: NonZeroU64,
}

/// What one sink may have in the outbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SinkShare {
    pub name: String,
    pub max_bytes: u64,
    pub when_full: WhenFull,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WhenFull {
    /// Drops the oldest data, and alerts only when no data is left. Counted, and reported upstream as a gap.
    #[default]
    DropOldestData,
    /// Folds the oldest data into one record per topic and interval before anything is dropped.
    Thin,
    /// Stops acknowledging; the broker queues.
    Block,
}

/// A broker or a webhook that alerts and data go to: the keys that `[upstream]` and `[sink.<name>]` share.
#[derive(Clone, Debug, PartialEq)]
pub struct Upstream {
    pub connection: Connection,
    /// Prefix of every topic; default: [`Upstream::default_prefix`].
    pub topic_prefix: Option<String>,
    /// A file that holds the value of the `Authorization` header of webhook calls.
    pub authorization_file: Option<PathBuf>,
    /// What webhook calls send.
    pub format: WebhookFormat,
    /// Further headers of webhook calls.
    pub headers: BTreeMap<String, Header>,
    pub keep_alive_secs: NonZeroU16,
    /// Records in flight at once. A webhook has one: a record must not overtake one whose call failed.
    pub in_flight: NonZeroU16,
    /// Repeats of one alert within this time are folded into one record.
    pub fold_secs: u32,
    pub timeout_secs: NonZeroU16,
    pub backoff_max_secs: NonZeroU16,
    /// How long a record that upstream declines blocks those behind it before it becomes a gap.
    pub give_up_secs: Option<NonZeroU64>,
}

/// Recordings of what functions get and return.
#[derive(Clone, Debug, PartialEq)]
pub struct Recording {
    /// Whether keys with `record = true` may record functions.
    pub enabled: bool,
    /// All recordings on the disk together.
    pub max_bytes: NonZeroU64,
}

/// Metrics and health.
#[derive(Clone, Debug, PartialEq)]
pub struct Http {
    /// `None` (`listen = "off"`): no port.
    pub listen: Option<SocketAddr>,
    /// Certificate chain and key in PEM. `None`: without TLS.
    pub cert_file: Option<PathBuf>,
    pub key_file: Option<PathBuf>,
    /// Names beside those of loopback by which browsers may call the page.
    pub hosts: Vec<String>,
}

/// What Home Assistant is told by way of the local broker.
#[derive(Clone, Debug, PartialEq)]
pub struct HomeAssistant {
    /// Whether the board describes itself.
    pub discovery: bool,
    /// First levels of the topics where Home Assistant looks for devices.
    pub prefix: String,
}

/// Traces of messages.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Trace {
    /// Part of the messages without a trace of which one is begun, from 0 to 1.
    pub sample: f64,
    /// Where spans are exported to, with OTLP over HTTP. `None`: nowhere.
    pub otlp: Option<Endpoint>,
    /// A file that holds the value of the `Authorization` header.
    pub authorization_file: Option<PathBuf>,
    /// Trusted roots in PEM; default: the system's.
    pub ca_file: Option<PathBuf>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Log {
    /// `error`, `warn`, `info`, `debug`, `trace`, or a filter such as `sedge::mqtt=debug`.
    pub level: String,
}

const fn nz16(value: u16) -> NonZeroU16 {
    NonZeroU16::new(value).expect("a default is not zero")
}

const fn nz32(value: u32) -> NonZeroU32 {
    NonZeroU32::new(value).expect("a default is not zero")
}

const fn nz64(value: u64) -> NonZeroU64 {
    NonZeroU64::new(value).expect("a default is not zero")
}

const fn nzsize(value: usize) -> NonZeroUsize {
    NonZeroUsize::new(value).expect("a default is not zero")
}

impl Config {
    /// All defaults.
    pub fn new(node: Node) -> Self {
        Self {
            mqtt: Mqtt::new(&node.name),
            node,
            functions: Functions::default(),
            deploy: Deploy::default(),
            worker: Worker::default(),
            store: Store::default(),
            sinks: Sinks::default(),
            recording: Recording::default(),
            http: Http::default(),
            http_trigger: HttpTrigger::default(),
            home_assistant: HomeAssistant::default(),
            trace: Trace::default(),
            log: Log::default(),
        }
    }

    /// Bytes that messages in processing may hold, on a machine with so much memory for the service.
    pub fn budget(&self, memory_bytes: u64) -> Budget {
        self.functions.memory_budget_bytes.map_or(Budget::of_memory(memory_bytes), |bytes| Budget::new(bytes.get()))
    }
}

impl Node {
    pub const BASE_TOPIC: &str = "sedge";

    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            groups: Vec::new(),
            base_topic: Self::BASE_TOPIC.into(),
            data_dir: "/var/lib/sedge".into(),
            clock: Clock::Auto,
        }
    }
}

impl Connection {
    /// A connection without password and certificates.
    pub fn new(url: Endpoint, client_id: impl Into<String>) -> Self {
        Self {
            url,
            client_id: client_id.into(),
            username: None,
            password_file: None,
            ca_file: None,
            cert_file: None,
            key_file: None,
            tls_pin_sha256: None,
            tls_alpn: Vec::new(),
        }
    }
}

impl Mqtt {
    pub fn new(node: &str) -> Self {
        Self {
            connection: Connection::new(Endpoint::default(), format!("sedge-{node}")),
            keep_alive_secs: nz16(30),
            receive_maximum: nz16(1024),
            max_packet_bytes: nz32(1 << 20),
            max_payload_bytes: nz32(256 << 10),
            session_expiry_secs: nz32(7 * 24 * 3600),
            share_group: None,
            connect_timeout_secs: nz16(10),
            reconnect_max_secs: nz16(30),
        }
    }
}

impl Default for Functions {
    fn default() -> Self {
        Self {
            paths: Vec::new(),
            native_code: false,
            retry: Retry::default(),
            quarantine: Quarantine::default(),
            max_hops: nz32(8),
            max_fan_out: nz32(1000),
            max_wakes: nz32(10_000),
            memory_budget_bytes: None,
            ceilings: Ceilings::default(),
            settings: BoardLayer::new(),
        }
    }
}

impl Default for Retry {
    fn default() -> Self {
        Self { attempts: nz32(5), max_delay_secs: nz32(3600) }
    }
}

impl Default for Quarantine {
    fn default() -> Self {
        Self { after: nz32(20), secs: nz32(10), max_secs: nz32(3600) }
    }
}

impl Default for Ceilings {
    fn default() -> Self {
        Self {
            fuel: nz64(10_000_000_000),
            timeout_ms: nz32(1_000),
            memory_bytes: nzsize(64 << 20),
            outputs: 1_000,
            output_bytes: 1 << 20,
            state_bytes: 1 << 20,
        }
    }
}

impl Default for Deploy {
    fn default() -> Self {
        Self {
            receive_timeout_secs: nz32(600),
            max_module_bytes: nz64(16 << 20),
            max_functions: nz32(100),
            keys: BTreeMap::new(),
        }
    }
}

impl Default for Worker {
    fn default() -> Self {
        Self {
            isolate: Isolate::Process,
            count: 0,
            state_cache_bytes: nzsize(4 << 20),
            memory_bytes: nzsize(256 << 20),
        }
    }
}

impl Default for Store {
    fn default() -> Self {
        Self {
            max_bytes: nz64(256 << 20),
            max_age_secs: None,
            when_full: WhenFull::DropOldestData,
            dead_letter_max_bytes: nz64(32 << 20),
            dead_letter_max_age_secs: Some(nz64(30 * 24 * 3600)),
            parked_max_bytes: nz64(16 << 20),
            flash_saver_ms: 0,
            disk_endurance_tb: 0,
            message_id_retention_secs: nz32(24 * 3600),
            state_max_bytes: nz64(64 << 20),
            state_retention_secs: Some(nz64(30 * 24 * 3600)),
            history: History::default(),
            sinks: Vec::new(),
        }
    }
}

impl Upstream {
    /// Apart from the topics of every board, so that nothing that is forwarded can be taken for a board's own words.
    pub fn default_prefix(node: &str) -> String {
        format!("up/{node}/")
    }

    pub(crate) const FOLD_SECS: u32 = 60;

    pub fn new(url: Endpoint, node: &str) -> Self {
        Self { connection: Connection::new(url, format!("sedge-{node}-upstream")), ..Self::of_sink(UPSTREAM, node) }
    }

    /// The defaults of `[sink.<name>]`.
    pub(crate) fn of_sink(name: &str, node: &str) -> Self {
        Self {
            connection: Connection::new(Endpoint::default(), format!("sedge-{node}-{name}")),
            topic_prefix: None,
            authorization_file: None,
            format: WebhookFormat::default(),
            headers: BTreeMap::new(),
            keep_alive_secs: nz16(60),
            in_flight: nz16(64),
            fold_secs: Self::FOLD_SECS,
            timeout_secs: nz16(30),
            backoff_max_secs: nz16(300),
            give_up_secs: Some(nz64(900)),
        }
    }

    /// Prefix of every topic.
    pub fn prefix(&self, node: &str) -> String {
        self.topic_prefix.clone().unwrap_or_else(|| Self::default_prefix(node))
    }
}

impl Default for History {
    fn default() -> Self {
        Self { days: None, max_bytes: nz64(64 << 20) }
    }
}

impl Default for Recording {
    fn default() -> Self {
        Self { enabled: false, max_bytes: nz64(16 << 20) }
    }
}

impl Default for Http {
    fn default() -> Self {
        Self { listen: Some(([127, 0, 0, 1], 9464).into()), cert_file: None, key_file: None, hosts: Vec::new() }
    }
}

impl Default for HomeAssistant {
    fn default() -> Self {
        Self { discovery: false, prefix: "homeassistant".into() }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self { level: "info".into() }
    }
}
