//! The configuration: one struct a section, every default in its `Default`.
//!
//! A file is parsed into a [`document`] whose values know their places, `conf.d/*.toml` is laid over it, and the
//! [`sections`] are read from that one key at a time, so that every [`problem`] is told in one go. `sedge.toml` beside
//! the source holds every key with its default; tests keep it, the reference in `docs/` and this file in step.

mod load;
pub mod problem;

pub(crate) mod check;
pub(crate) mod document;
pub(crate) mod reader;
mod sections;
pub(crate) mod suggest;

#[cfg(test)]
mod tests;

pub use problem::{Problem, Problems};

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::{NonZeroU16, NonZeroU32, NonZeroU64, NonZeroUsize};
use std::path::PathBuf;

use crate::key::PublicKey;
use crate::topic::TopicFilter;

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Config {
    pub node: Node,
    pub mqtt: Mqtt,
    pub functions: Functions,
    pub deploy: Deploy,
    pub worker: Worker,
    pub store: Store,
    pub upstream: Option<Upstream>,
    pub http: Http,
    pub log: Log,
}

/// Who this board is.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Part of every topic; default: the host name.
    pub name: String,
    pub groups: Vec<String>,
    /// First level of Sedge's own topics.
    pub base_topic: String,
    pub data_dir: PathBuf,
}

/// The local broker.
#[derive(Clone, Debug, PartialEq)]
pub struct Mqtt {
    /// `mqtt://host:1883` or `mqtts://host:8883`.
    pub url: String,
    /// Default: `sedge-<node>`. It names the session that the broker keeps: keep it stable.
    pub client_id: Option<String>,
    pub username: Option<String>,
    pub password_file: Option<PathBuf>,
    /// Trusted roots in PEM; default: the system's.
    pub ca_file: Option<PathBuf>,
    pub cert_file: Option<PathBuf>,
    pub key_file: Option<PathBuf>,
    pub keep_alive_secs: NonZeroU16,
    /// Unacknowledged messages that the broker may have under way to this board.
    pub receive_maximum: NonZeroU16,
    /// Announced to the broker, which then never sends more; the largest payload is a little less.
    pub max_packet_bytes: NonZeroU32,
    /// A larger payload is a dead letter. Below `max_packet_bytes`, so that it is seen at all.
    pub max_payload_bytes: NonZeroU32,
    /// How long the broker keeps messages for an absent board.
    pub session_expiry_secs: NonZeroU32,
    /// Split the load of one broker with other hosts: subscribe as `$share/<group>/...`.
    pub share_group: Option<String>,
    pub connect_timeout_secs: NonZeroU16,
    pub reconnect_max_secs: NonZeroU16,
}

/// What runs.
#[derive(Clone, Debug, PartialEq)]
pub struct Functions {
    /// Folders that each hold a `function.toml` and the component that it names.
    pub paths: Vec<PathBuf>,
    /// Whether code that was compiled elsewhere is taken from these folders.
    pub native_code: bool,
    pub retry_attempts: NonZeroU32,
    pub retry_max_delay_secs: NonZeroU32,
    /// Failures in a row after which a function is paused.
    pub quarantine_after: NonZeroU32,
    pub quarantine_secs: NonZeroU32,
    pub quarantine_max_secs: NonZeroU32,
    /// Functions that one message may go through.
    pub max_hops: NonZeroU32,
    /// The most that a manifest may ask for.
    pub max_fuel: NonZeroU64,
    pub max_timeout_ms: NonZeroU32,
    pub max_memory_bytes: NonZeroUsize,
    pub max_outputs: u32,
    pub max_output_bytes: usize,
    pub max_state_bytes: usize,
}

/// Functions that are pushed to the board.
#[derive(Clone, Debug, PartialEq)]
pub struct Deploy {
    /// How long a push may stand still before it is given up.
    pub receive_timeout_secs: NonZeroU32,
    pub max_module_bytes: NonZeroU64,
    /// Installed at once, those from folders counted.
    pub max_functions: NonZeroU32,
    /// Who may push. Without any, nobody.
    pub keys: BTreeMap<String, DeployKey>,
}

/// A key whose orders are carried out.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DeployKey {
    /// An Ed25519 public key in PEM.
    pub file: PathBuf,
    /// Read from the file; absent only where that failed.
    pub public_key: Option<PublicKey>,
    /// Names, or beginnings of names and `*`. Empty: all.
    pub functions: Vec<String>,
    /// What its functions may hear and say. Empty: all topics.
    pub topics: Vec<TopicFilter>,
    /// Whether it may change the trusted keys with a signed order.
    pub keys: bool,
    /// Whether it may send code that was compiled elsewhere, which runs unchecked.
    pub native_code: bool,
}

/// The sandbox processes.
#[derive(Clone, Debug, PartialEq)]
pub struct Worker {
    pub isolate: Isolate,
    /// 0: one for each core, at most four.
    pub count: usize,
    /// State that a worker keeps in memory.
    pub state_cache_bytes: NonZeroUsize,
    /// Memory limit of a worker process.
    pub memory_bytes: NonZeroUsize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Isolate {
    #[default]
    Process,
    Thread,
}

/// The database.
#[derive(Clone, Debug, PartialEq)]
pub struct Store {
    /// Outbox limit: what waits for upstream and for the local broker.
    pub max_bytes: NonZeroU64,
    pub max_age_secs: Option<NonZeroU64>,
    pub when_full: WhenFull,
    pub dead_letter_max_bytes: NonZeroU64,
    pub dead_letter_max_age_secs: Option<NonZeroU64>,
    /// Messages that wait for a retry.
    pub parked_max_bytes: NonZeroU64,
    /// Least time between two commits, for boards whose SD card must last. 0: commit as soon as the last sync is done.
    pub flash_saver_ms: u32,
    pub message_id_retention_secs: NonZeroU32,
    /// How long the state of a function that is not installed any more is kept.
    pub state_retention_secs: Option<NonZeroU64>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WhenFull {
    /// Drop the oldest data, and alerts only when no data is left. Counted, and reported upstream as a gap.
    #[default]
    DropOldestData,
    /// Stop acknowledging; the broker queues.
    Block,
}

/// Where alerts and data go.
#[derive(Clone, Debug, PartialEq)]
pub struct Upstream {
    /// `mqtt://`, `mqtts://`, `http://` or `https://`.
    pub url: String,
    pub client_id: Option<String>,
    pub username: Option<String>,
    pub password_file: Option<PathBuf>,
    pub ca_file: Option<PathBuf>,
    pub cert_file: Option<PathBuf>,
    pub key_file: Option<PathBuf>,
    /// Put before every topic; default: `sedge/<node>/`.
    pub topic_prefix: Option<String>,
    /// A file that holds the value of the `Authorization` header of webhook calls.
    pub authorization_file: Option<PathBuf>,
    pub keep_alive_secs: NonZeroU16,
    /// Records under way at once (MQTT), or in one call (webhook).
    pub in_flight: NonZeroU16,
    /// Repeats of one alert within this time are folded into one record.
    pub fold_secs: u32,
    pub timeout_secs: NonZeroU16,
    pub backoff_max_secs: NonZeroU16,
    /// How long a record that upstream declines holds up those behind it before it becomes a gap.
    pub give_up_secs: Option<NonZeroU64>,
}

/// Metrics and health.
#[derive(Clone, Debug, PartialEq)]
pub struct Http {
    /// `None` (`listen = "off"`): no port.
    pub listen: Option<SocketAddr>,
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

impl Default for Node {
    fn default() -> Self {
        let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
        Self { name, groups: Vec::new(), base_topic: "sedge".into(), data_dir: "/var/lib/sedge".into() }
    }
}

impl Default for Mqtt {
    fn default() -> Self {
        Self {
            url: "mqtt://localhost:1883".into(),
            client_id: None,
            username: None,
            password_file: None,
            ca_file: None,
            cert_file: None,
            key_file: None,
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
            retry_attempts: nz32(5),
            retry_max_delay_secs: nz32(3600),
            quarantine_after: nz32(20),
            quarantine_secs: nz32(10),
            quarantine_max_secs: nz32(3600),
            max_hops: nz32(8),
            max_fuel: nz64(10_000_000_000),
            max_timeout_ms: nz32(10_000),
            max_memory_bytes: nzsize(64 << 20),
            max_outputs: 1_000,
            max_output_bytes: 1 << 20,
            max_state_bytes: 1 << 20,
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
            message_id_retention_secs: nz32(24 * 3600),
            state_retention_secs: Some(nz64(30 * 24 * 3600)),
        }
    }
}

impl Default for Upstream {
    fn default() -> Self {
        Self {
            url: String::new(),
            client_id: None,
            username: None,
            password_file: None,
            ca_file: None,
            cert_file: None,
            key_file: None,
            topic_prefix: None,
            authorization_file: None,
            keep_alive_secs: nz16(60),
            in_flight: nz16(64),
            fold_secs: 60,
            timeout_secs: nz16(30),
            backoff_max_secs: nz16(300),
            give_up_secs: Some(nz64(900)),
        }
    }
}

impl Default for Http {
    fn default() -> Self {
        Self { listen: Some(([127, 0, 0, 1], 9464).into()) }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self { level: "info".into() }
    }
}
