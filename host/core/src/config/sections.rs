//! Reads each section, then checks its values against each other. The order is that of the structs.

use std::net::SocketAddr;
use std::ops::RangeInclusive;

use super::check::{self, Content};
use super::document::{Item, Table, Value};
use super::problem::{Invalid, Problems};
use super::reader::{Read, Reader, Section, choice, nearest, parsed, wrong_kind};
use super::{
    Ceilings, Clock, Config, Connection, Deploy, DeployKey, Endpoint, Functions, Header, History, HomeAssistant, Http,
    Isolate, Log, Mqtt, Node, Recording, Scheme, Sink, Store, Trace, Upstream, WebhookFormat, WhenFull, Worker,
    http_trigger, settings, sinks,
};
use crate::board::Weight;
use crate::forward::{FAN_OUT, HOPS};
use crate::manifest;
use crate::message::Digest;
use crate::store::scope_bytes;
use crate::trace::{TRACEPARENT, TRACESTATE};

/// Reads the configuration of a machine with so much memory as far as possible. The files that it names are not inspected yet.
pub(super) fn read(table: &Table, host_name: String, memory_bytes: u64) -> (Config, Reader) {
    let mut config = Config::new(Node::new(host_name));
    let reader = Reader::run(table, |root| {
        root.section("node", |section| node(section, &mut config.node));
        config.mqtt = Mqtt::new(&config.node.name);
        root.section("mqtt", |section| mqtt(section, &mut config.mqtt));
        root.section("functions", |section| functions(section, &mut config.functions, &config.mqtt));
        root.section("deploy", |section| deploy(section, &mut config.deploy));
        root.section("worker", |section| worker(section, &mut config.worker, &config.functions, memory_bytes));
        root.section("store", |section| store(section, &mut config.store, &config.mqtt, &config.functions.ceilings));
        sinks(root, &mut config);
        root.section("recording", |section| recording(section, &mut config.recording, &config.deploy));
        root.section("history", |section| history(section, &mut config.store.history));
        root.section("http", |section| http(section, &mut config.http));
        let max_payload_bytes = config.mqtt.max_payload_bytes;
        root.section("http_trigger", |section| {
            http_trigger::read(section, &mut config.http_trigger, max_payload_bytes);
        });
        root.section("home_assistant", |section| home_assistant(section, &mut config.home_assistant, &config.node));
        root.section("trace", |section| trace(section, &mut config.trace));
        root.section("log", |section| log(section, &mut config.log));
    });
    (config, reader)
}

fn sinks(root: &mut Section<'_, '_>, config: &mut Config) {
    let Config { sinks: all, mqtt, node, store, .. } = config;
    let wanted = root.has("upstream");
    let mut upstream = Upstream::new(Endpoint::default(), &node.name);
    let mut has_fold = false;
    root.section("upstream", |section| {
        receiver(section, wanted, Form::Upstream(&mut has_fold), &mut upstream, mqtt, node);
    });
    all.list.extend(wanted.then(|| Sink::upstream(upstream)));
    root.section("sink", |section| {
        sinks::read_sinks(section, all, mqtt, node);
        sinks::check_shares(section, all, store);
    });
    root.section("sinks", |section| sinks::read_routes(section, all, has_fold));
    store.sinks = all.shares(store);
}

fn node(section: &mut Section<'_, '_>, node: &mut Node) {
    let named = section.value("name", &mut node.name);
    if section.check("name", check::level(&node.name)) && matches!(&*node.name, "group" | "blob") {
        let invalid = Invalid::new(format!("{:?} is a level of Sedge's own topics", node.name));
        section.error("name", invalid.hint("choose another name"));
    } else if !named && !section.has("name") && matches!(&*node.name, "localhost" | "(none)") {
        // Two boards of one name would take turns in throwing each other out of the broker.
        let invalid = Invalid::new(format!("the host name is {:?}, which every board could have", node.name));
        section.warn("name", invalid.hint("give this board a name of its own"));
    }
    section.value("groups", &mut node.groups);
    for (n, group) in node.groups.iter().enumerate() {
        if let Err(invalid) = check::level(group) {
            section.error_in("groups", n, invalid);
        } else if node.groups[..n].contains(group) {
            section.error_in("groups", n, Invalid::new(format!("{group:?} is listed twice")).hint("remove one"));
        }
    }
    section.value("base_topic", &mut node.base_topic);
    section.check("base_topic", check::level(&node.base_topic));
    section.value("data_dir", &mut node.data_dir);
    section.names_file("data_dir", None, &node.data_dir, Content::DataDir);
    section.value("clock", &mut node.clock);
}

fn mqtt(section: &mut Section<'_, '_>, mqtt: &mut Mqtt) {
    connection(section, &mut mqtt.connection, Scheme::MQTT);
    section.value("keep_alive_secs", &mut mqtt.keep_alive_secs);
    section.value("receive_maximum", &mut mqtt.receive_maximum);
    section.value("max_packet_bytes", &mut mqtt.max_packet_bytes);
    within(section, "max_packet_bytes", mqtt.max_packet_bytes.get().into(), 1024..=MQTT_PACKET_BYTES);
    section.value("max_payload_bytes", &mut mqtt.max_payload_bytes);
    if mqtt.max_payload_bytes > mqtt.max_packet_bytes {
        let (payload, packet) = (mqtt.max_payload_bytes, mqtt.max_packet_bytes);
        let what = format!("{payload} is above max_packet_bytes ({packet}), which limits topic and payload together");
        section.error("max_payload_bytes", Invalid::new(what).hint("lower it, or raise max_packet_bytes"));
    }
    section.value("session_expiry_secs", &mut mqtt.session_expiry_secs);
    section.optional("share_group", &mut mqtt.share_group);
    if let Some(group) = &mqtt.share_group {
        section.check("share_group", check::level(group));
    }
    section.value("connect_timeout_secs", &mut mqtt.connect_timeout_secs);
    section.value("reconnect_max_secs", &mut mqtt.reconnect_max_secs);
}

/// A length of 28 bits and the fixed header (MQTT 5, section 2.1.4).
const MQTT_PACKET_BYTES: u64 = (1 << 28) - 1 + 5;

/// Reads the keys that `[mqtt]` and `[upstream]` share. Returns whether `url` is the default or good.
fn connection(section: &mut Section<'_, '_>, connection: &mut Connection, allowed: &[Scheme]) -> bool {
    let is_good = section.parse("url", &mut connection.url, |text| Endpoint::parse(text, allowed));
    let is_good = is_good || !section.has("url");
    section.value("client_id", &mut connection.client_id);
    section.optional("username", &mut connection.username);
    for (key, text) in [("client_id", Some(&connection.client_id)), ("username", connection.username.as_ref())] {
        if let Some(text) = text.filter(|_| section.has(key)) {
            section.check(key, check::mqtt_string(text));
        }
    }
    section.file("password_file", &mut connection.password_file, Content::Secret);
    section.file("ca_file", &mut connection.ca_file, Content::Certificate);
    section.file("cert_file", &mut connection.cert_file, Content::Certificate);
    section.file("key_file", &mut connection.key_file, Content::PrivateKey);
    for (one, other) in [("cert_file", "key_file"), ("key_file", "cert_file")] {
        if section.has(one) && !section.has(other) {
            let invalid = Invalid::new(format!("{other} is missing"));
            section.error(one, invalid.hint("a client certificate needs both files"));
        }
    }
    let mut pin = None;
    section.parse("tls_pin_sha256", &mut pin, |text| certificate_digest(text).map(Some));
    connection.tls_pin_sha256 = pin;
    section.value("tls_alpn", &mut connection.tls_alpn);
    for (n, name) in connection.tls_alpn.iter().enumerate() {
        if !(1..=255).contains(&name.len()) {
            let invalid = Invalid::new(format!("{name:?} has {} bytes", name.len()));
            section.error_in("tls_alpn", n, invalid.hint("a protocol has 1 to 255 bytes, for example \"mqtt\""));
        }
    }
    if section.has("tls_pin_sha256") && section.has("ca_file") {
        let invalid = Invalid::new("with tls_pin_sha256 no authority is trusted, so it would not be used");
        section.error("ca_file", invalid.hint("remove one of both"));
    }
    if !connection.url.is_mqtt() {
        for key in ["tls_pin_sha256", "tls_alpn"] {
            if section.has(key) {
                let invalid = Invalid::new("not used by a webhook (http://, https://)");
                section.error(key, invalid.hint("remove it; ca_file may hold the certificate itself"));
            }
        }
    }
    let tls = match (connection.url.is_websocket(), connection.url.is_mqtt()) {
        (true, _) => "wss://",
        (false, true) => "mqtts://",
        (false, false) => "https://",
    };
    for key in ["ca_file", "cert_file", "key_file", "tls_pin_sha256", "tls_alpn"] {
        if key == "tls_alpn" && connection.tls_alpn.is_empty() {
            continue;
        }
        if is_good && section.has(key) && !connection.url.is_tls() {
            let invalid = Invalid::new("url is not encrypted, so it would not be used");
            section.error(key, invalid.hint(format!("write url as {tls}..., or remove it")));
        }
    }
    is_good
}

/// Reads a digest as openssl prints it, with or without colons.
fn certificate_digest(text: &str) -> Result<Digest, Invalid> {
    let plain = text.replace(':', "").to_ascii_lowercase();
    plain.parse().map_err(|_| {
        let invalid = Invalid::new(format!("{text:?} is not a SHA-256 digest"));
        invalid.hint("64 digits of hex: openssl x509 -in server.pem -noout -fingerprint -sha256")
    })
}

fn functions(section: &mut Section<'_, '_>, functions: &mut Functions, mqtt: &Mqtt) {
    section.value("paths", &mut functions.paths);
    for (n, path) in functions.paths.iter().enumerate() {
        if functions.paths[..n].contains(path) {
            let invalid = Invalid::new(format!("{} is listed twice", path.display()));
            section.error_in("paths", n, invalid.hint("remove one"));
        } else {
            section.names_file("paths", Some(n), path, Content::FunctionFolder);
        }
    }
    section.value("native_code", &mut functions.native_code);
    section.value("retry_attempts", &mut functions.retry.attempts);
    section.value("retry_max_delay_secs", &mut functions.retry.max_delay_secs);
    let quarantine = &mut functions.quarantine;
    section.value("quarantine_after", &mut quarantine.after);
    section.value("quarantine_secs", &mut quarantine.secs);
    section.value("quarantine_max_secs", &mut quarantine.max_secs);
    if quarantine.secs > quarantine.max_secs {
        let (first, most) = (quarantine.secs, quarantine.max_secs);
        let invalid = Invalid::new(format!("the first pause ({first}) is above quarantine_max_secs ({most})"));
        section.error("quarantine_secs", invalid.hint("lower it, or raise quarantine_max_secs"));
    }
    section.value("max_hops", &mut functions.max_hops);
    section.value("max_fan_out", &mut functions.max_fan_out);
    section.value("max_wakes", &mut functions.max_wakes);
    within(section, "max_wakes", functions.max_wakes.get().into(), 1..=1_000_000);
    section.optional("memory_budget_bytes", &mut functions.memory_budget_bytes);
    let ceilings = &mut functions.ceilings;
    section.value("max_fuel", &mut ceilings.fuel);
    section.value("max_timeout_ms", &mut ceilings.timeout_ms);
    section.value("max_memory_bytes", &mut ceilings.memory_bytes);
    within(section, "max_memory_bytes", ceilings.memory_bytes.get() as u64, 65_536..=4 << 30);
    section.value("max_outputs", &mut ceilings.outputs);
    within(section, "max_outputs", ceilings.outputs.into(), 1..=100_000);
    section.value("max_output_bytes", &mut ceilings.output_bytes);
    section.value("max_state_bytes", &mut ceilings.state_bytes);
    for (key, bytes) in [("max_output_bytes", ceilings.output_bytes), ("max_state_bytes", ceilings.state_bytes)] {
        within(section, key, bytes as u64, 0..=64 << 20);
    }
    section.section("settings", |section| settings::read(section, &mut functions.settings));
    let Some(budget) = functions.memory_budget_bytes else { return };
    let (payload, ceilings) = (mqtt.max_payload_bytes.get() as usize, &functions.ceilings);
    let needed = Weight::largest(payload, ceilings);
    if budget.get() < needed {
        let Ceilings { outputs, output_bytes, state_bytes, .. } = ceilings;
        let invalid = Invalid::new(format!(
            "{budget} is less than one message may hold: {needed}, for mqtt.max_payload_bytes ({payload}), twice \
             max_output_bytes ({output_bytes}), max_outputs ({outputs}) and max_state_bytes ({state_bytes})"
        ));
        section.error("memory_budget_bytes", invalid.hint("raise it, or lower one of those"));
    }
}

fn deploy(section: &mut Section<'_, '_>, deploy: &mut Deploy) {
    section.value("receive_timeout_secs", &mut deploy.receive_timeout_secs);
    section.value("max_module_bytes", &mut deploy.max_module_bytes);
    section.value("max_functions", &mut deploy.max_functions);
    section.section("keys", |keys| {
        let entries = keys.entries();
        if entries.is_empty() {
            // So that the keys of such a section are known, and documented.
            keys.section("ops", |section| deploy_key(section, None, &mut DeployKey::default()));
        }
        for (name, item) in entries {
            let mut key = DeployKey::default();
            let name_of_section = matches!(item.value, Value::Table(_)).then_some(name);
            keys.section(name, |section| deploy_key(section, name_of_section, &mut key));
            deploy.keys.insert(name.to_owned(), key);
        }
        if deploy.keys.len() > MOST_KEYS {
            let invalid = Invalid::new(format!("{} keys are too many", deploy.keys.len()));
            keys.error("", invalid.hint(format!("use at most {MOST_KEYS}: a signature may be tried with each")));
        }
    });
}

const MOST_KEYS: usize = 32;

/// `name` is `None` where the file has no such section.
fn deploy_key(section: &mut Section<'_, '_>, name: Option<&str>, key: &mut DeployKey) {
    let has_file = section.value("file", &mut key.file);
    if let Some(name) = name {
        section.require("file", "\"/etc/sedge/keys/ops.pub.pem\"");
        if has_file {
            section.names_file("file", None, &key.file, Content::PublicKey(name.to_owned()));
        }
    }
    section.value("functions", &mut key.functions);
    for (n, pattern) in key.functions.iter().enumerate() {
        if let Err(invalid) = manifest::check_pattern(pattern) {
            section.error_in("functions", n, invalid);
        }
    }
    section.value("topics", &mut key.topics);
    section.value("keys", &mut key.keys);
    section.value("native_code", &mut key.native_code);
    section.value("settings_only", &mut key.settings_only);
    section.value("record", &mut key.record);
    section.value("logs", &mut key.logs);
    if key.settings_only && (key.keys || key.native_code || key.record || key.logs) {
        let invalid = Invalid::new("the key may also change keys, send native code, record or read the log");
        section.error("settings_only", invalid.hint("remove that, or settings_only"));
    }
}

fn worker(section: &mut Section<'_, '_>, worker: &mut Worker, functions: &Functions, memory_bytes: u64) {
    section.value("isolate", &mut worker.isolate);
    section.value("count", &mut worker.count);
    within(section, "count", worker.count as u64, 0..=64);
    section.value("state_cache_bytes", &mut worker.state_cache_bytes);
    section.value("memory_bytes", &mut worker.memory_bytes);
    let (cache, function) = (worker.state_cache_bytes.get(), functions.ceilings.memory_bytes.get());
    let needed = cache.saturating_add(function).saturating_add(WORKER_OWN_BYTES);
    if worker.memory_bytes.get() < needed {
        let invalid = Invalid::new(format!(
            "{} is less than state_cache_bytes ({cache}), functions.max_memory_bytes ({function}) and the worker itself \
             ({WORKER_OWN_BYTES})",
            worker.memory_bytes
        ));
        section.error("memory_bytes", invalid.hint(format!("use at least {needed}")));
    }
    let Some(budget) = functions.memory_budget_bytes else { return };
    let (own, count) = (DAEMON_OWN_BYTES, worker.count.max(1));
    let sum = (budget.get() as u64).saturating_add(cache.saturating_mul(count) as u64).saturating_add(own);
    if sum > memory_bytes {
        let invalid = Invalid::new(format!(
            "functions.memory_budget_bytes ({budget}), {count} times state_cache_bytes ({cache}) and the daemon itself \
             ({own}) are {sum} bytes; this service may use {memory_bytes}"
        ));
        section.error("state_cache_bytes", invalid.hint("lower one of them, or raise MemoryMax= of the unit"));
    }
}

/// The program, the database and the connections.
const DAEMON_OWN_BYTES: u64 = 16 << 20;

/// The engine, the code of a few functions and the pool's bookkeeping.
const WORKER_OWN_BYTES: usize = 16 << 20;

fn store(section: &mut Section<'_, '_>, store: &mut Store, mqtt: &Mqtt, ceilings: &Ceilings) {
    section.value("max_bytes", &mut store.max_bytes);
    section.or_off("max_age_secs", &mut store.max_age_secs);
    section.value("when_full", &mut store.when_full);
    section.value("dead_letter_max_bytes", &mut store.dead_letter_max_bytes);
    section.or_off("dead_letter_max_age_secs", &mut store.dead_letter_max_age_secs);
    section.value("parked_max_bytes", &mut store.parked_max_bytes);
    let packet = mqtt.max_packet_bytes.get();
    let limits = [
        ("max_bytes", store.max_bytes),
        ("dead_letter_max_bytes", store.dead_letter_max_bytes),
        ("parked_max_bytes", store.parked_max_bytes),
    ];
    for (key, bytes) in limits {
        if bytes.get() < packet.into() {
            let invalid = Invalid::new(format!("{bytes} may not hold one message of mqtt.max_packet_bytes ({packet})"));
            section.warn(key, invalid.hint("raise it, or lower mqtt.max_packet_bytes"));
        }
    }
    section.value("flash_saver_ms", &mut store.flash_saver_ms);
    within(section, "flash_saver_ms", store.flash_saver_ms.into(), 0..=60_000);
    section.value("disk_endurance_tb", &mut store.disk_endurance_tb);
    within(section, "disk_endurance_tb", store.disk_endurance_tb.into(), 0..=1_000_000);
    section.value("message_id_retention_secs", &mut store.message_id_retention_secs);
    section.value("state_max_bytes", &mut store.state_max_bytes);
    let (bytes, most) = (store.state_max_bytes.get(), ceilings.state_bytes);
    let needed = scope_bytes(None, 1, most as u64);
    if bytes < needed {
        let invalid = Invalid::new(format!(
            "{bytes} is less than one scope may count: {needed}, for functions.max_state_bytes ({most}) and what a scope \
             takes beside"
        ));
        section.error("state_max_bytes", invalid.hint(format!("use at least {needed}, or lower max_state_bytes")));
    }
    within(section, "state_max_bytes", bytes, 1..=MAX_STATE_BYTES);
    section.or_off("state_retention_secs", &mut store.state_retention_secs);
}

/// The board knows each scope, which takes a fifth of what it counts at least.
const MAX_STATE_BYTES: u64 = 4 << 30;

/// Which of the shared keys a section has.
pub(super) enum Form<'a> {
    /// `[upstream]`, with its own key for alerts, and whether that is there.
    Upstream(&'a mut bool),
    Broker,
    Webhook,
    /// A server with user names.
    Influx,
    /// Whatever it is, it is not known.
    Unknown,
}

/// Reads the keys that `[upstream]` and `[sink.<name>]` share.
pub(super) fn receiver(
    section: &mut Section<'_, '_>,
    wanted: bool,
    form: Form<'_>,
    upstream: &mut Upstream,
    local: &Mqtt,
    node: &Node,
) {
    let (allowed, example) = match form {
        Form::Upstream(_) | Form::Unknown => (Scheme::ALL, "\"mqtts://broker.example.com:8883\""),
        Form::Broker => (Scheme::MQTT, "\"mqtts://broker.example.com:8883\""),
        Form::Webhook => (Scheme::WEB, "\"https://example.com/in\""),
        Form::Influx => (Scheme::WEB, "\"http://influx.example.com:8086\""),
    };
    let has_url = connection(section, &mut upstream.connection, allowed) && section.has("url");
    if wanted {
        section.require("url", example);
    }
    if matches!(section.item("topic_prefix").map(|item| &item.value), Some(Value::String(text)) if text.is_empty()) {
        upstream.topic_prefix = Some(String::new());
    } else {
        section.optional("topic_prefix", &mut upstream.topic_prefix);
    }
    if let Some(prefix) = upstream.topic_prefix.as_ref().filter(|prefix| !prefix.is_empty()) {
        section.check("topic_prefix", check::topic_prefix(prefix));
    }
    section.file("authorization_file", &mut upstream.authorization_file, Content::Secret);
    section.value("keep_alive_secs", &mut upstream.keep_alive_secs);
    section.value("in_flight", &mut upstream.in_flight);
    let has_login = matches!(form, Form::Influx);
    if let Form::Upstream(has_fold) = form {
        *has_fold = section.value("fold_secs", &mut upstream.fold_secs);
    }
    section.value("timeout_secs", &mut upstream.timeout_secs);
    section.value("backoff_max_secs", &mut upstream.backoff_max_secs);
    section.or_off("give_up_secs", &mut upstream.give_up_secs);
    section.value("format", &mut upstream.format);
    section.section("headers", |headers| {
        let entries = headers.entries();
        if entries.is_empty() {
            // So that the keys of such a section are known, and documented.
            headers.section("X-API-Key", |section| header(section, None, &mut Header::default()));
        }
        for (name, item) in entries {
            let mut value = Header::default();
            let name_of_section = matches!(item.value, Value::Table(_)).then_some(name);
            headers.section(name, |section| header(section, name_of_section, &mut value));
            upstream.headers.insert(name.to_owned(), value);
        }
    });
    if !has_url {
        return;
    }
    if upstream.connection.url.is_mqtt() {
        upstream_broker(section, upstream, local, node);
        return;
    }
    for key in ["client_id", "username", "password_file", "keep_alive_secs"] {
        if section.has(key) && !(has_login && ["username", "password_file"].contains(&key)) {
            let invalid = Invalid::new("not used by a webhook (http://, https://)");
            section.error(key, invalid.hint("remove it; authorization_file holds what a webhook is sent"));
        }
    }
}

/// `name` is `None` where the file has no such section.
fn header(section: &mut Section<'_, '_>, name: Option<&str>, header: &mut Header) {
    section.optional("value", &mut header.value);
    section.file("file", &mut header.file, Content::Secret);
    let Some(name) = name else { return };
    let lower = name.to_ascii_lowercase();
    let is_taken = matches!(&*lower, "content-type" | "content-length" | "host" | "authorization")
        || [HOPS, FAN_OUT, TRACEPARENT, TRACESTATE].contains(&&*lower);
    if http::HeaderName::from_bytes(name.as_bytes()).is_err() || is_taken || lower.starts_with("ce-") {
        let what = if is_taken || lower.starts_with("ce-") { "set by Sedge itself" } else { "not a name of a header" };
        let invalid = Invalid::new(format!("the header {name} is {what}"));
        let key = if header.value.is_some() { "value" } else { "file" };
        section.error(key, invalid.hint("choose another; for Authorization there is authorization_file"));
    }
    match (&header.value, &header.file) {
        (None, None) => section.require("value", "\"plant-3\""),
        (Some(_), Some(_)) => {
            let invalid = Invalid::new("a header has either value or file");
            section.error("value", invalid.hint("keep file for a secret"));
        }
        _ => {}
    }
    if let Some(value) = header.value.as_ref().filter(|value| http::HeaderValue::from_str(value).is_err()) {
        let invalid = Invalid::new(format!("{value:?} cannot be the value of a header"));
        section.error("value", invalid.hint("use printable ASCII"));
    }
}

fn upstream_broker(section: &mut Section<'_, '_>, upstream: &Upstream, local: &Mqtt, node: &Node) {
    if section.has("authorization_file") {
        let invalid = Invalid::new("only used by webhooks (http://, https://)");
        section.error("authorization_file", invalid.hint("use username and password_file"));
    }
    if section.has("format") {
        section.error("format", Invalid::new("only used by webhooks (http://, https://)").hint("remove it"));
    }
    if section.has("headers") {
        section.error("headers", Invalid::new("only used by webhooks (http://, https://)").hint("remove it"));
    }
    if upstream.connection.url.is_same_listener(&local.connection.url) {
        for (key, invalid) in on_one_broker(upstream, local, node) {
            section.error(key, invalid);
        }
    }
}

/// What is wrong where `[mqtt]` and a sink lead to one broker, by key of the sink.
pub fn on_one_broker(upstream: &Upstream, local: &Mqtt, node: &Node) -> Vec<(&'static str, Invalid)> {
    let mut problems = Vec::new();
    if upstream.connection.client_id == local.connection.client_id {
        let invalid =
            Invalid::new("the same as mqtt.client_id on the same broker, which would end one session for the other");
        problems.push(("client_id", invalid.hint("choose another, or leave it out")));
    }
    let base = &*node.base_topic;
    if check::may_begin(&upstream.prefix(&node.name), base) {
        let what = if upstream.topic_prefix.is_some() { "it begins" } else { "missing, and the default begins" };
        let invalid = Invalid::new(format!(
            "{what} with {base}/, which on the same broker (mqtt.url) holds this board's own topics: alerts would \
             arrive twice on one topic, and functions could write its status"
        ));
        problems.push(("topic_prefix", invalid.hint("for example topic_prefix = \"upstream/\"")));
    }
    problems
}

fn recording(section: &mut Section<'_, '_>, recording: &mut Recording, deploy: &Deploy) {
    section.value("enabled", &mut recording.enabled);
    if recording.enabled && !deploy.keys.values().any(|key| key.record) {
        let invalid = Invalid::new("no key of this configuration may record");
        section.warn("enabled", invalid.hint("set record = true in a section [deploy.keys.NAME], or remove this"));
    }
    section.value("max_bytes", &mut recording.max_bytes);
    within(section, "max_bytes", recording.max_bytes.get(), 65_536..=1 << 40);
}

fn history(section: &mut Section<'_, '_>, history: &mut History) {
    section.or_off("days", &mut history.days);
    within(section, "days", history.days.map_or(1, |days| days.get().into()), 1..=3650);
    section.value("max_bytes", &mut history.max_bytes);
    within(section, "max_bytes", history.max_bytes.get(), 1 << 20..=1 << 40);
}

fn http(section: &mut Section<'_, '_>, http: &mut Http) {
    section.or_off("listen", &mut http.listen);
    http_trigger::certificate(section, &mut http.cert_file, &mut http.key_file);
    section.value("hosts", &mut http.hosts);
    for (n, host) in http.hosts.iter().enumerate() {
        if host.is_empty() || host.contains([':', '/', ' ']) {
            let invalid = Invalid::new(format!("{host:?} is not the name of a host"));
            section.error_in("hosts", n, invalid.hint("write it as in the browser, without http:// and port"));
        }
    }
    let is_plain = http.cert_file.is_none();
    if let Some(listen) = http.listen.filter(|listen| is_plain && !listen.ip().is_loopback()) {
        let text = format!("{listen} can be reached from other machines, without a password; the page is not there");
        let hint = format!(
            "set cert_file and key_file, for all of it with TLS and tokens, or use 127.0.0.1:{}",
            listen.port()
        );
        section.warn("listen", Invalid::new(text).hint(hint));
    }
}

fn home_assistant(section: &mut Section<'_, '_>, home: &mut HomeAssistant, node: &Node) {
    section.value("discovery", &mut home.discovery);
    section.value("prefix", &mut home.prefix);
    if section.has("prefix") {
        section.check("prefix", check::discovery_prefix(&home.prefix, &node.base_topic));
    }
}

fn trace(section: &mut Section<'_, '_>, trace: &mut Trace) {
    section.value("sample", &mut trace.sample);
    if !(0.0..=1.0).contains(&trace.sample) {
        let invalid = Invalid::new(format!("{} is not a part of the messages", trace.sample));
        section.error("sample", invalid.hint("use a number from 0 (none) to 1 (all): 0.01 for one of a hundred"));
    }
    section.parse("otlp", &mut trace.otlp, |text| collector(text).map(Some));
    section.file("authorization_file", &mut trace.authorization_file, Content::Secret);
    section.file("ca_file", &mut trace.ca_file, Content::Certificate);
    for key in ["authorization_file", "ca_file"] {
        if trace.otlp.is_none() && section.has(key) && !section.has("otlp") {
            section.error(key, Invalid::new("without otlp it would not be used").hint("set otlp, or remove it"));
        }
    }
    if trace.otlp.as_ref().is_some_and(|url| !url.is_tls()) && section.has("ca_file") {
        let invalid = Invalid::new("otlp is not encrypted, so it would not be used");
        section.error("ca_file", invalid.hint("write otlp as https://..., or remove it"));
    }
}

/// The address of a collector, with the path that its spans go to.
fn collector(text: &str) -> Result<Endpoint, Invalid> {
    let url = Endpoint::parse(text, Scheme::WEB)?;
    if url.uri().path() != "/" {
        return Ok(url);
    }
    let invalid = Invalid::new(format!("{text} has no path, to which no collector listens"));
    Err(invalid.hint(format!("write {}/v1/traces", text.trim_end_matches('/'))))
}

fn log(section: &mut Section<'_, '_>, log: &mut Log) {
    section.value("level", &mut log.level);
    section.check("level", log_filter(&log.level));
}

/// Checks a level, or levels of parts: `info,sedge::mqtt=debug`.
fn log_filter(text: &str) -> Result<(), Invalid> {
    const LEVELS: &[&str] = &["error", "warn", "info", "debug", "trace", "off"];
    for part in text.split(',').map(str::trim) {
        let (target, level) = part.split_once('=').unwrap_or(("sedge", part));
        if target.is_empty() || !LEVELS.contains(&&*level.to_lowercase()) {
            let hint = match nearest(level, LEVELS) {
                Some(near) => format!("did you mean {near:?}?"),
                None => format!("use one of {LEVELS:?}, or levels of parts such as \"info,sedge::mqtt=debug\""),
            };
            return Err(Invalid::new(format!("unknown log level {part:?}")).hint(hint));
        }
    }
    Ok(())
}

fn within(section: &mut Section<'_, '_>, key: &str, value: u64, range: RangeInclusive<u64>) {
    let (least, most) = (range.start(), range.end());
    if value < *least {
        section.error(key, Invalid::new(format!("{value} is too small")).hint(format!("use at least {least}")));
    } else if value > *most {
        section.error(key, Invalid::new(format!("{value} is too large")).hint(format!("use at most {most}")));
    }
}

impl Read for SocketAddr {
    fn read(item: &Item, key: &str, problems: &mut Problems) -> Option<Self> {
        let Value::String(_) = &item.value else {
            return wrong_kind(item, key, "an address with its port, such as \"127.0.0.1:9464\", or \"off\"", problems);
        };
        parsed(item, key, problems, |text| {
            text.parse().map_err(|_| {
                let invalid = Invalid::new(format!("{text:?} is not an address with a port"));
                invalid.hint("write for example \"127.0.0.1:9464\", or \"off\"")
            })
        })
    }
}

impl Read for WebhookFormat {
    fn read(item: &Item, key: &str, problems: &mut Problems) -> Option<Self> {
        let words =
            [("binary", Self::Binary), ("cloudevents", Self::CloudEvents), ("alertmanager", Self::Alertmanager)];
        choice(item, key, &words, problems)
    }
}

impl Read for Isolate {
    fn read(item: &Item, key: &str, problems: &mut Problems) -> Option<Self> {
        choice(
            item,
            key,
            &[("process", Self::Process), ("thread", Self::Thread), ("function", Self::Function)],
            problems,
        )
    }
}

impl Read for Clock {
    fn read(item: &Item, key: &str, problems: &mut Problems) -> Option<Self> {
        choice(item, key, &[("auto", Self::Auto), ("trusted", Self::Trusted)], problems)
    }
}

impl Read for WhenFull {
    fn read(item: &Item, key: &str, problems: &mut Problems) -> Option<Self> {
        choice(
            item,
            key,
            &[("drop-oldest-data", Self::DropOldestData), ("thin", Self::Thin), ("block", Self::Block)],
            problems,
        )
    }
}
