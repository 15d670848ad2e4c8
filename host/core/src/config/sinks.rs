//! `[sink.<name>]` and `[sinks]`: the receivers of alerts and data, and which of them get what. `[upstream]` is the short form
//! of a sink of that name.

use std::num::{NonZeroU16, NonZeroU64};
use std::path::PathBuf;
use std::time::Duration;

use super::check::Content;
use super::document::{Item, Value};
use super::problem::{Invalid, Problems};
use super::reader::{Read, Section, choice, nearest};
use super::sections::{Form, receiver};
use super::{Config, Connection, Endpoint, Mqtt, Node, SinkShare, Store, Upstream, WhenFull, nz16, nz64};
use crate::manifest::Manifest;

/// Sinks of one board. The store has numbers for more, since it keeps the records of those that were removed.
const MOST_SINKS: usize = 8;

/// The sink of the short form `[upstream]`.
pub const UPSTREAM: &str = "upstream";

/// In the outputs of functions: the local broker alone.
pub const LOCAL: &str = "local";

/// Names that mean something else where sinks are named.
const RESERVED: [&str; 2] = [LOCAL, "broker"];

/// Receivers of alerts and data.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sinks {
    pub list: Vec<Sink>,
    /// Names of the sinks that get alerts, unless the output names another.
    pub alerts: Vec<String>,
    /// The same for what functions forward.
    pub forwards: Vec<String>,
    /// Repeats of one alert within this time are folded into one record. `None`: as `[upstream]` says.
    pub fold_secs: Option<u32>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Sink {
    pub name: String,
    pub target: Target,
    /// Limit of the records that wait for this sink. `None`: an equal part of what is left of `store.max_bytes`.
    pub max_bytes: Option<NonZeroU64>,
    /// `None`: as in `[store]`.
    pub when_full: Option<WhenFull>,
}

/// What a sink is and how it is reached.
#[derive(Clone, Debug, PartialEq)]
pub enum Target {
    Mqtt(Upstream),
    Webhook(Upstream),
    Influx(Influx),
    File(FileSink),
}

/// A server that speaks the line protocol of InfluxDB.
#[derive(Clone, Debug, PartialEq)]
pub struct Influx {
    pub connection: Connection,
    pub api: InfluxApi,
    /// A file that holds the token of `Authorization: Token`.
    pub token_file: Option<PathBuf>,
    /// Of forwards; alerts and gaps have `_alerts` and `_gaps` behind it.
    pub measurement: String,
    /// Records of one request.
    pub batch_records: NonZeroU16,
    pub gzip: bool,
    pub timeout_secs: NonZeroU16,
    pub backoff_max_secs: NonZeroU16,
    pub give_up_secs: Option<NonZeroU64>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InfluxApi {
    /// `/write`
    V1 { database: String },
    /// `/api/v2/write`
    V2 { org: String, bucket: String },
}

/// JSON lines in a folder.
#[derive(Clone, Debug, PartialEq)]
pub struct FileSink {
    /// It must be there, and is never created.
    pub path: PathBuf,
    /// A file that has as much is followed by another.
    pub max_file_bytes: NonZeroU64,
    /// All files of the board: the oldest are deleted for new ones.
    pub max_total_bytes: NonZeroU64,
    pub backoff_max_secs: NonZeroU16,
}

impl FileSink {
    /// Records that wait to be written.
    pub const IN_FLIGHT: usize = 256;
}

impl Default for FileSink {
    fn default() -> Self {
        Self {
            path: PathBuf::new(),
            max_file_bytes: nz64(16 << 20),
            max_total_bytes: nz64(1 << 30),
            backoff_max_secs: nz16(60),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Mqtt,
    Webhook,
    Influx,
    File,
}

impl Kind {
    const ALL: [(&str, Self); 4] =
        [("mqtt", Self::Mqtt), ("webhook", Self::Webhook), ("influx", Self::Influx), ("file", Self::File)];
}

/// Keys that not all types have.
const KEYS: [(&[Kind], &[&str]); 5] = [
    (&[Kind::File], &["path", "max_file_bytes", "max_total_bytes"]),
    (&[Kind::Influx], &["database", "org", "bucket", "token_file", "measurement", "batch_records", "gzip"]),
    (
        &[Kind::Mqtt, Kind::Webhook, Kind::Influx],
        &["url", "ca_file", "cert_file", "key_file", "timeout_secs", "give_up_secs"],
    ),
    (&[Kind::Mqtt, Kind::Webhook], &["topic_prefix", "authorization_file", "format", "headers", "in_flight"]),
    (&[Kind::Mqtt, Kind::Influx], &["username", "password_file"]),
];

impl Sink {
    /// The sink of `[upstream]`.
    pub fn upstream(upstream: Upstream) -> Self {
        let target = match upstream.connection.url.is_mqtt() {
            true => Target::Mqtt(upstream),
            false => Target::Webhook(upstream),
        };
        Self { name: UPSTREAM.to_owned(), target, max_bytes: None, when_full: None }
    }

    /// Prefix of every topic.
    pub fn prefix(&self, node: &str) -> String {
        match &self.target {
            Target::Mqtt(receiver) | Target::Webhook(receiver) => receiver.prefix(node),
            Target::Influx(_) | Target::File(_) => String::new(),
        }
    }

    /// The address as written, for people.
    pub fn address(&self) -> String {
        match &self.target {
            Target::Mqtt(receiver) | Target::Webhook(receiver) => receiver.connection.url.to_string(),
            Target::Influx(influx) => influx.connection.url.to_string(),
            Target::File(file) => file.path.display().to_string(),
        }
    }

    /// The broker or webhook, if it is one.
    pub fn receiver(&self) -> Option<&Upstream> {
        match &self.target {
            Target::Mqtt(receiver) | Target::Webhook(receiver) => Some(receiver),
            Target::Influx(_) | Target::File(_) => None,
        }
    }

    /// The broker, if it is one.
    pub fn broker(&self) -> Option<&Upstream> {
        match &self.target {
            Target::Mqtt(receiver) => Some(receiver),
            Target::Webhook(_) | Target::Influx(_) | Target::File(_) => None,
        }
    }

    /// Longest pause between attempts.
    pub(crate) fn backoff_max_secs(&self) -> NonZeroU16 {
        match &self.target {
            Target::Mqtt(receiver) | Target::Webhook(receiver) => receiver.backoff_max_secs,
            Target::Influx(influx) => influx.backoff_max_secs,
            Target::File(file) => file.backoff_max_secs,
        }
    }

    /// How long a record that is declined blocks those behind it. A file declines none by itself.
    pub(crate) fn give_up_secs(&self) -> Option<NonZeroU64> {
        match &self.target {
            Target::Mqtt(receiver) | Target::Webhook(receiver) => receiver.give_up_secs,
            Target::Influx(influx) => influx.give_up_secs,
            Target::File(_) => None,
        }
    }

    /// The network address, if it has one.
    pub fn url(&self) -> Option<&Endpoint> {
        match &self.target {
            Target::Mqtt(receiver) | Target::Webhook(receiver) => Some(&receiver.connection.url),
            Target::Influx(influx) => Some(&influx.connection.url),
            Target::File(_) => None,
        }
    }

    /// Name of its section of the configuration.
    pub fn section(&self) -> String {
        if self.name == UPSTREAM { UPSTREAM.to_owned() } else { format!("sink.{}", self.name) }
    }

    pub const fn type_name(&self) -> &'static str {
        match &self.target {
            Target::Mqtt(_) => "mqtt",
            Target::Webhook(_) => "webhook",
            Target::Influx(_) => "influx",
            Target::File(_) => "file",
        }
    }
}

impl Sinks {
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.list.iter().map(|sink| &*sink.name)
    }

    pub fn find(&self, name: &str) -> Option<&Sink> {
        self.list.iter().find(|sink| sink.name == name)
    }

    /// The sink that gaps of the local broker, and of sinks that were removed, are reported to.
    pub fn home(&self) -> Option<&str> {
        self.alerts.first().map(String::as_str).or_else(|| self.names().next())
    }

    /// Why a function cannot be installed on this board.
    pub(crate) fn refusal(&self, manifest: &Manifest) -> Option<Invalid> {
        let name = manifest.sink.as_deref().filter(|name| *name != LOCAL)?;
        unknown(name, &self.names().collect::<Vec<_>>())
    }

    /// The limits that the store holds each sink to.
    pub fn shares(&self, store: &Store) -> Vec<SinkShare> {
        let given: u64 = self.list.iter().filter_map(|sink| sink.max_bytes).map(NonZeroU64::get).sum();
        let others = self.list.iter().filter(|sink| sink.max_bytes.is_none()).count() as u64;
        let rest = store.max_bytes.get().saturating_sub(given) / others.max(1);
        let share = |sink: &Sink| SinkShare {
            name: sink.name.clone(),
            max_bytes: sink.max_bytes.map_or(rest, NonZeroU64::get),
            when_full: sink.when_full.unwrap_or(store.when_full),
        };
        self.list.iter().map(share).collect()
    }
}

impl Config {
    /// The sink of `[upstream]`.
    pub fn upstream(&self) -> Option<&Upstream> {
        self.sinks.find(UPSTREAM)?.receiver()
    }

    /// Time in which repeats of an alert are folded. Without a sink the default applies to the local broker.
    pub fn fold(&self) -> Duration {
        let upstream = self.upstream().map(|upstream| upstream.fold_secs);
        Duration::from_secs(self.sinks.fold_secs.or(upstream).unwrap_or(Upstream::FOLD_SECS).into())
    }
}

/// Reads `[sink.<name>]`.
pub(super) fn read_sinks(section: &mut Section<'_, '_>, sinks: &mut Sinks, local: &Mqtt, node: &Node) {
    let entries = section.entries();
    if entries.is_empty() {
        // So that the keys of such a section are known, and documented.
        section.section("lake", |section| drop(sink(section, "lake", false, local, node)));
    }
    for (name, item) in entries {
        if let Err(invalid) = check_name(name) {
            section.error(name, invalid);
        } else if sinks.find(name).is_some() {
            let invalid = Invalid::new("[upstream] is the short form of a sink of this name");
            section.error(name, invalid.hint("keep one of both, or give this one another name"));
        }
        let is_table = matches!(item.value, Value::Table(_));
        let mut read = None;
        section.section(name, |section| read = sink(section, name, is_table, local, node));
        sinks.list.extend(read.filter(|_| sinks.list.iter().all(|sink| sink.name != *name)));
    }
    if sinks.list.len() > MOST_SINKS {
        let invalid = Invalid::new(format!("{} sinks are too many", sinks.list.len()));
        section.error("", invalid.hint(format!("use at most {MOST_SINKS}")));
    }
}

fn check_name(name: &str) -> Result<(), Invalid> {
    if RESERVED.contains(&name) {
        let what = format!("{name:?} is the local broker, which every board has");
        return Err(Invalid::new(what).hint("give the sink another name"));
    }
    let is_good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_');
    match (1..=32).contains(&name.len()) && name.chars().all(is_good) {
        true => Ok(()),
        false => Err(Invalid::new(format!("{name:?} cannot be the name of a sink"))
            .hint("use at most 32 of a-z, 0-9, - and _, for example \"lake\"")),
    }
}

/// `wanted`: the file has such a section.
fn sink(section: &mut Section<'_, '_>, name: &str, wanted: bool, local: &Mqtt, node: &Node) -> Option<Sink> {
    let mut kind = None;
    section.optional("type", &mut kind);
    if wanted {
        section.require("type", "\"mqtt\"");
    }
    let (mut max_bytes, mut when_full) = (None, None);
    section.optional("max_bytes", &mut max_bytes);
    section.optional("when_full", &mut when_full);
    let keys = InfluxKeys::read(section);
    let mut file = read_file(section);
    let mut upstream = Upstream::of_sink(name, &node.name);
    let form = match kind {
        Some(Kind::Mqtt) => Form::Broker,
        Some(Kind::Webhook) => Form::Webhook,
        Some(Kind::Influx) => Form::Influx,
        Some(Kind::File) | None => Form::Unknown,
    };
    let has_address = kind.is_some_and(|kind| kind != Kind::File);
    receiver(section, wanted && has_address, form, &mut upstream, local, node);
    let target = match kind? {
        Kind::Mqtt => Target::Mqtt(upstream),
        Kind::Webhook => Target::Webhook(upstream),
        Kind::Influx => Target::Influx(keys.into_sink(section, upstream)),
        Kind::File => {
            check_file(section, &file);
            if section.has("backoff_max_secs") {
                file.backoff_max_secs = upstream.backoff_max_secs;
            }
            Target::File(file)
        }
    };
    refuse_others(section, kind?);
    Some(Sink { name: name.to_owned(), target, max_bytes, when_full })
}

/// Reports keys that sinks of this type do not have.
fn refuse_others(section: &mut Section<'_, '_>, kind: Kind) {
    let name = |kind: &Kind| Kind::ALL.iter().find(|(_, known)| known == kind).map_or("", |(name, _)| *name);
    for (kinds, keys) in KEYS.iter().filter(|(kinds, _)| !kinds.contains(&kind)) {
        let present: Vec<&str> = keys.iter().copied().filter(|key| section.has(key)).collect();
        for key in present {
            let with: Vec<String> = kinds.iter().map(|kind| format!("{:?}", name(kind))).collect();
            let what = format!("not used by a sink of type {:?}, only with type {}", name(&kind), with.join(" or "));
            section.error(key, Invalid::new(what).hint("remove it"));
        }
    }
}

/// What `[sink.<name>]` says of an InfluxDB.
struct InfluxKeys {
    database: Option<String>,
    org: String,
    bucket: Option<String>,
    token_file: Option<PathBuf>,
    measurement: String,
    batch_records: NonZeroU16,
    gzip: bool,
}

impl InfluxKeys {
    fn read(section: &mut Section<'_, '_>) -> Self {
        let mut keys = Self {
            database: None,
            org: String::new(),
            bucket: None,
            token_file: None,
            measurement: "sedge".to_owned(),
            batch_records: nz16(500),
            gzip: true,
        };
        section.optional("database", &mut keys.database);
        section.value("org", &mut keys.org);
        section.optional("bucket", &mut keys.bucket);
        section.file("token_file", &mut keys.token_file, Content::Secret);
        section.value("measurement", &mut keys.measurement);
        section.value("batch_records", &mut keys.batch_records);
        section.value("gzip", &mut keys.gzip);
        keys
    }

    /// Checks them against each other.
    fn into_sink(self, section: &mut Section<'_, '_>, upstream: Upstream) -> Influx {
        let Self { database, org, bucket, token_file, measurement, batch_records, gzip } = self;
        let Upstream { connection, timeout_secs, backoff_max_secs, give_up_secs, .. } = upstream;
        let path = connection.url.uri().path_and_query().map_or("/", |path| path.as_str());
        if section.has("url") && path != "/" {
            let invalid = Invalid::new(format!("the address of an InfluxDB has no {path}"));
            section.error("url", invalid.hint("remove it: database, or org and bucket, decide the path"));
        }
        if token_file.is_some() && connection.username.is_some() {
            let invalid = Invalid::new("username and password_file are another way to log in");
            section.error("token_file", invalid.hint("keep one of both"));
        }
        match (&database, &bucket) {
            (Some(_), Some(_)) => {
                let invalid = Invalid::new("bucket is there too: version 1 has databases, version 2 buckets");
                section.error("database", invalid.hint("keep one of both"));
            }
            (None, None) => {
                let invalid = Invalid::new("missing, and no bucket: nobody knows where the points go");
                let hint = "database = \"plant\" for version 1, org and bucket for version 2";
                section.error("database", invalid.hint(hint));
            }
            _ => {}
        }
        let api = match bucket {
            Some(bucket) => InfluxApi::V2 { org, bucket },
            None => InfluxApi::V1 { database: database.unwrap_or_default() },
        };
        Influx {
            connection,
            api,
            token_file,
            measurement,
            batch_records,
            gzip,
            timeout_secs,
            backoff_max_secs,
            give_up_secs,
        }
    }
}

fn read_file(section: &mut Section<'_, '_>) -> FileSink {
    let mut file = FileSink::default();
    section.value("path", &mut file.path);
    section.value("max_file_bytes", &mut file.max_file_bytes);
    section.value("max_total_bytes", &mut file.max_total_bytes);
    file
}

fn check_file(section: &mut Section<'_, '_>, file: &FileSink) {
    section.require("path", "\"/media/stick/sedge\"");
    let (one, all) = (file.max_file_bytes, file.max_total_bytes);
    if all.get() < one.get().saturating_mul(2) {
        let invalid = Invalid::new(format!("{all} is less than two files of max_file_bytes ({one})"));
        section.error("max_total_bytes", invalid.hint("raise it, or lower max_file_bytes"));
    }
}

/// Reads `[sinks]`, once all sinks are known.
pub(super) fn read_routes(section: &mut Section<'_, '_>, sinks: &mut Sinks, has_upstream_fold: bool) {
    let names: Vec<String> = sinks.names().map(str::to_owned).collect();
    let default: Vec<String> = match (&names[..], names.iter().any(|name| name == UPSTREAM)) {
        (_, true) => vec![UPSTREAM.to_owned()],
        ([only], false) => vec![only.clone()],
        _ => Vec::new(),
    };
    for (key, into) in [("alerts", &mut sinks.alerts), ("forwards", &mut sinks.forwards)] {
        into.clone_from(&default);
        section.value(key, into);
        if default.is_empty() && names.len() > 1 && !section.has(key) {
            let what = format!("missing: there are {} sinks, and none is called {UPSTREAM}", names.len());
            section.error(key, Invalid::new(what).hint(format!("for example {key} = [{:?}]", names[0])));
        }
        for (n, name) in into.iter().enumerate() {
            if let Some(invalid) = unknown(name, &names) {
                section.error_in(key, n, invalid);
            } else if into[..n].contains(name) {
                section.error_in(key, n, Invalid::new(format!("{name:?} is listed twice")).hint("remove one"));
            }
        }
        into.retain(|name| names.contains(name));
    }
    section.optional("fold_secs", &mut sinks.fold_secs);
    if sinks.fold_secs.is_some() && has_upstream_fold {
        let invalid = Invalid::new("upstream.fold_secs says it too");
        section.error("fold_secs", invalid.hint("keep one of both: alerts are folded before they are sent anywhere"));
    }
}

/// What is wrong with the name of a sink that something is to go to.
pub(crate) fn unknown(name: &str, names: &[impl AsRef<str>]) -> Option<Invalid> {
    if names.iter().any(|known| known.as_ref() == name) {
        return None;
    }
    if RESERVED.contains(&name) {
        let invalid = Invalid::new(format!("{name:?} is not a sink: alerts are published on the local broker anyway"));
        return Some(invalid.hint("remove it"));
    }
    let known: Vec<&str> = names.iter().map(AsRef::as_ref).collect();
    let hint = match (nearest(name, &known), known.is_empty()) {
        (Some(near), _) => format!("did you mean {near:?}?"),
        (None, true) => format!("add a section [sink.{name}]"),
        (None, false) => format!("use one of {known:?}, or add a section [sink.{name}]"),
    };
    Some(Invalid::new(format!("there is no sink {name:?}")).hint(hint))
}

/// Checks the limits of all sinks against that of the store.
pub(super) fn check_shares(section: &mut Section<'_, '_>, sinks: &Sinks, store: &Store) {
    let given: u64 = sinks.list.iter().filter_map(|sink| sink.max_bytes).map(NonZeroU64::get).sum();
    let has_rest = sinks.list.iter().any(|sink| sink.max_bytes.is_none());
    let most = store.max_bytes.get();
    if given > most || has_rest && given == most {
        let what = format!("max_bytes of the sinks are {given} together, and {most} is the limit of the outbox");
        let invalid = Invalid::new(if has_rest { what + ", so that nothing is left for the others" } else { what });
        section.error("", invalid.hint("lower them, or raise store.max_bytes"));
    }
}

impl Read for Kind {
    fn read(item: &Item, key: &str, problems: &mut Problems) -> Option<Self> {
        choice(item, key, &Self::ALL, problems)
    }
}
