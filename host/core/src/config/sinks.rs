//! `[sink.<name>]` and `[sinks]`: the receivers of alerts and data, and which of them get what. `[upstream]` is the short form
//! of a sink of that name.

use std::num::NonZeroU64;
use std::time::Duration;

use super::document::{Item, Value};
use super::problem::{Invalid, Problems};
use super::reader::{Read, Section, choice, nearest};
use super::sections::receiver;
use super::{Config, Endpoint, Mqtt, Node, Scheme, SinkShare, Store, Upstream, WhenFull};
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
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Mqtt,
    Webhook,
}

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
        }
    }

    /// The address as written, for people.
    pub fn address(&self) -> String {
        match &self.target {
            Target::Mqtt(receiver) | Target::Webhook(receiver) => receiver.connection.url.to_string(),
        }
    }

    /// The broker or webhook, if it is one.
    pub fn receiver(&self) -> Option<&Upstream> {
        match &self.target {
            Target::Mqtt(receiver) | Target::Webhook(receiver) => Some(receiver),
        }
    }

    /// The broker, if it is one.
    pub fn broker(&self) -> Option<&Upstream> {
        match &self.target {
            Target::Mqtt(receiver) => Some(receiver),
            Target::Webhook(_) => None,
        }
    }

    /// The network address, if it has one.
    pub fn url(&self) -> Option<&Endpoint> {
        match &self.target {
            Target::Mqtt(receiver) | Target::Webhook(receiver) => Some(&receiver.connection.url),
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
        match &self.sinks.find(UPSTREAM)?.target {
            Target::Mqtt(receiver) | Target::Webhook(receiver) => Some(receiver),
        }
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
    let mut sink = Sink {
        name: name.to_owned(),
        target: Target::Mqtt(Upstream::of_sink(name, &node.name)),
        max_bytes: None,
        when_full: None,
    };
    section.optional("max_bytes", &mut sink.max_bytes);
    section.optional("when_full", &mut sink.when_full);
    let mut upstream = Upstream::of_sink(name, &node.name);
    let schemes = match kind {
        Some(Kind::Mqtt) => Scheme::MQTT,
        Some(Kind::Webhook) => Scheme::WEB,
        None => Scheme::ALL,
    };
    receiver(section, wanted && kind.is_some(), schemes, &mut upstream, None, local, node);
    sink.target = match kind? {
        Kind::Mqtt => Target::Mqtt(upstream),
        Kind::Webhook => Target::Webhook(upstream),
    };
    Some(sink)
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
        choice(item, key, &[("mqtt", Self::Mqtt), ("webhook", Self::Webhook)], problems)
    }
}
