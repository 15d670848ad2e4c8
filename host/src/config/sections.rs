//! Reads each section, then holds its values against each other. The order is that of the structs.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::check::{self, Content, Scheme};
use super::document::{Item, Table, Value};
use super::problem::{Invalid, Problem, Problems};
use super::reader::{Read, Reader, Section, choice, wrong_kind};
use super::suggest::nearest;
use super::{Config, Deploy, DeployKey, Functions, Http, Isolate, Log, Mqtt, Node, Store, Upstream, WhenFull, Worker};
use crate::manifest;

/// The configuration as far as it could be read, what is wrong with it, and every key that there is.
pub(super) fn read(table: &Table) -> (Config, Problems, Vec<String>) {
    let mut config = Config::default();
    let (problems, keys) = Reader::run(table, |root| {
        root.section("node", |section| node(section, &mut config.node));
        root.section("mqtt", |section| mqtt(section, &mut config.mqtt));
        root.section("functions", |section| functions(section, &mut config.functions));
        root.section("deploy", |section| deploy(section, &mut config.deploy));
        root.section("worker", |section| worker(section, &mut config.worker, &config.functions));
        root.section("store", |section| store(section, &mut config.store, &config.mqtt));
        let wanted = root.has("upstream");
        let mut sink = Upstream::default();
        root.section("upstream", |section| upstream(section, wanted, &mut sink, &config.mqtt, &config.node));
        config.upstream = wanted.then_some(sink);
        root.section("http", |section| http(section, &mut config.http));
        root.section("log", |section| log(section, &mut config.log));
    });
    (config, problems, keys)
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
        let key = format!("groups[{n}]");
        let at = section.nth("groups", n);
        if let Err(invalid) = check::level(group) {
            section.error_at(at, &key, invalid);
        } else if node.groups[..n].contains(group) {
            section.error_at(at, &key, Invalid::new(format!("{group:?} is there twice")).hint("remove one"));
        }
    }
    section.value("base_topic", &mut node.base_topic);
    section.check("base_topic", check::level(&node.base_topic));
    section.value("data_dir", &mut node.data_dir);
    section.check("data_dir", check::data_dir(&node.data_dir));
}

fn mqtt(section: &mut Section<'_, '_>, mqtt: &mut Mqtt) {
    section.value("url", &mut mqtt.url);
    let scheme = scheme(section, &mqtt.url, Scheme::LOCAL);
    section.optional("client_id", &mut mqtt.client_id);
    section.optional("username", &mut mqtt.username);
    section.optional("password_file", &mut mqtt.password_file);
    section.optional("ca_file", &mut mqtt.ca_file);
    section.optional("cert_file", &mut mqtt.cert_file);
    section.optional("key_file", &mut mqtt.key_file);
    identity(section, scheme, mqtt.client_id.as_deref(), mqtt.username.as_deref());
    section.value("keep_alive_secs", &mut mqtt.keep_alive_secs);
    section.value("receive_maximum", &mut mqtt.receive_maximum);
    section.value("max_packet_bytes", &mut mqtt.max_packet_bytes);
    within(section, "max_packet_bytes", mqtt.max_packet_bytes.get().into(), 1024..=MQTT_PACKET_BYTES);
    section.value("max_payload_bytes", &mut mqtt.max_payload_bytes);
    if mqtt.max_payload_bytes > mqtt.max_packet_bytes {
        let (payload, packet) = (mqtt.max_payload_bytes, mqtt.max_packet_bytes);
        let invalid =
            Invalid::new(format!("{payload} is above max_packet_bytes ({packet}), which holds topic and payload"));
        section.error("max_payload_bytes", invalid.hint("lower it, or raise max_packet_bytes"));
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

fn functions(section: &mut Section<'_, '_>, functions: &mut Functions) {
    section.value("paths", &mut functions.paths);
    for (n, path) in functions.paths.iter().enumerate() {
        let found = if functions.paths[..n].contains(path) {
            Err(Invalid::new(format!("{} is there twice", path.display())).hint("remove one"))
        } else {
            function_folder(path)
        };
        if let Err(invalid) = found {
            section.error_at(section.nth("paths", n), &format!("paths[{n}]"), invalid);
        }
    }
    section.value("native_code", &mut functions.native_code);
    section.value("retry_attempts", &mut functions.retry_attempts);
    section.value("retry_max_delay_secs", &mut functions.retry_max_delay_secs);
    section.value("quarantine_after", &mut functions.quarantine_after);
    section.value("quarantine_secs", &mut functions.quarantine_secs);
    section.value("quarantine_max_secs", &mut functions.quarantine_max_secs);
    if functions.quarantine_secs > functions.quarantine_max_secs {
        let (first, most) = (functions.quarantine_secs, functions.quarantine_max_secs);
        let invalid = Invalid::new(format!("the first pause ({first}) is above quarantine_max_secs ({most})"));
        section.error("quarantine_secs", invalid.hint("lower it, or raise quarantine_max_secs"));
    }
    section.value("max_hops", &mut functions.max_hops);
    section.value("max_fuel", &mut functions.max_fuel);
    section.value("max_timeout_ms", &mut functions.max_timeout_ms);
    section.value("max_memory_bytes", &mut functions.max_memory_bytes);
    within(section, "max_memory_bytes", functions.max_memory_bytes.get() as u64, 65_536..=4 << 30);
    section.value("max_outputs", &mut functions.max_outputs);
    within(section, "max_outputs", functions.max_outputs.into(), 1..=100_000);
    section.value("max_output_bytes", &mut functions.max_output_bytes);
    section.value("max_state_bytes", &mut functions.max_state_bytes);
    for (key, bytes) in
        [("max_output_bytes", functions.max_output_bytes), ("max_state_bytes", functions.max_state_bytes)]
    {
        within(section, key, bytes as u64, 0..=64 << 20);
    }
}

fn function_folder(path: &Path) -> Result<(), Invalid> {
    let shown = path.display();
    if !path.is_dir() {
        return Err(Invalid::new(format!("there is no folder {shown}")).hint("create it, or correct the path"));
    }
    if path.join(manifest::FILE_NAME).is_file() {
        return Ok(());
    }
    let invalid = Invalid::new(format!("{shown} holds no {}", manifest::FILE_NAME));
    // A folder of functions in place of each function: the likeliest mistake, and easily told.
    let inner = std::fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut inner: Vec<PathBuf> = inner.filter(|path| path.join(manifest::FILE_NAME).is_file()).collect();
    inner.sort();
    Err(match inner.first() {
        Some(first) => invalid.hint(format!("list each function, for example {:?}", first.display().to_string())),
        None => invalid.hint("name the folder of a function"),
    })
}

fn deploy(section: &mut Section<'_, '_>, deploy: &mut Deploy) {
    section.value("receive_timeout_secs", &mut deploy.receive_timeout_secs);
    section.value("max_module_bytes", &mut deploy.max_module_bytes);
    section.value("max_functions", &mut deploy.max_functions);
    section.section("keys", |keys| {
        let entries = keys.entries();
        if entries.is_empty() {
            // So that the keys of such a section are known, and documented.
            keys.section("ops", |section| deploy_key(section, false, &mut DeployKey::default()));
        }
        for (name, item) in entries {
            let mut key = DeployKey::default();
            let is_section = matches!(item.value, Value::Table(_));
            keys.section(name, |section| deploy_key(section, is_section, &mut key));
            let twin =
                deploy.keys.iter().find(|(_, other)| key.public_key.is_some() && other.public_key == key.public_key);
            if let Some((other, _)) = twin {
                let invalid = Invalid::new(format!("the same key as deploy.keys.{other}"));
                keys.error(name, invalid.hint("remove one: a key has one set of permissions"));
            }
            deploy.keys.insert(name.to_owned(), key);
        }
        if deploy.keys.len() > MOST_KEYS {
            let invalid = Invalid::new(format!("{} keys are too many", deploy.keys.len()));
            keys.error("", invalid.hint(format!("use at most {MOST_KEYS}: a signature may be tried with each")));
        }
    });
}

const MOST_KEYS: usize = 32;

fn deploy_key(section: &mut Section<'_, '_>, wanted: bool, key: &mut DeployKey) {
    if !wanted {
        section.item("file");
    } else if let Some(file) = section.required::<PathBuf>("file", "\"/etc/sedge/keys/ops.pub.pem\"") {
        match check::public_key(&file) {
            Ok(public_key) => key.public_key = Some(public_key),
            Err(invalid) => section.error("file", invalid),
        }
        key.file = file;
    }
    section.value("functions", &mut key.functions);
    for (n, pattern) in key.functions.iter().enumerate() {
        if let Err(invalid) = manifest::check_pattern(pattern) {
            section.error_at(section.nth("functions", n), &format!("functions[{n}]"), invalid);
        }
    }
    section.value("topics", &mut key.topics);
    section.value("keys", &mut key.keys);
    section.value("native_code", &mut key.native_code);
}

fn worker(section: &mut Section<'_, '_>, worker: &mut Worker, functions: &Functions) {
    section.value("isolate", &mut worker.isolate);
    section.value("count", &mut worker.count);
    within(section, "count", worker.count as u64, 0..=64);
    section.value("state_cache_bytes", &mut worker.state_cache_bytes);
    section.value("memory_bytes", &mut worker.memory_bytes);
    let (cache, function) = (worker.state_cache_bytes.get(), functions.max_memory_bytes.get());
    let needed = cache.saturating_add(function).saturating_add(WORKER_OWN_BYTES);
    if worker.memory_bytes.get() < needed {
        let invalid = Invalid::new(format!(
            "{} is less than state_cache_bytes ({cache}), functions.max_memory_bytes ({function}) and the worker itself \
             ({WORKER_OWN_BYTES})",
            worker.memory_bytes
        ));
        section.error("memory_bytes", invalid.hint(format!("use at least {needed}")));
    }
}

/// The engine, the code of a few functions and the pool's bookkeeping.
const WORKER_OWN_BYTES: usize = 16 << 20;

fn store(section: &mut Section<'_, '_>, store: &mut Store, mqtt: &Mqtt) {
    section.value("max_bytes", &mut store.max_bytes);
    section.or_off("max_age_secs", &mut store.max_age_secs);
    section.value("when_full", &mut store.when_full);
    section.value("dead_letter_max_bytes", &mut store.dead_letter_max_bytes);
    section.or_off("dead_letter_max_age_secs", &mut store.dead_letter_max_age_secs);
    section.value("parked_max_bytes", &mut store.parked_max_bytes);
    // The largest message that the broker may send could then not be kept.
    let packet = mqtt.max_packet_bytes.get();
    let stores = [
        ("max_bytes", store.max_bytes),
        ("dead_letter_max_bytes", store.dead_letter_max_bytes),
        ("parked_max_bytes", store.parked_max_bytes),
    ];
    for (key, bytes) in stores {
        if bytes.get() < packet.into() {
            let invalid = Invalid::new(format!("{bytes} may not hold one message of mqtt.max_packet_bytes ({packet})"));
            section.warn(key, invalid.hint("raise it, or lower mqtt.max_packet_bytes"));
        }
    }
    section.value("flash_saver_ms", &mut store.flash_saver_ms);
    within(section, "flash_saver_ms", store.flash_saver_ms.into(), 0..=60_000);
    section.value("message_id_retention_secs", &mut store.message_id_retention_secs);
    section.or_off("state_retention_secs", &mut store.state_retention_secs);
}

fn upstream(section: &mut Section<'_, '_>, wanted: bool, upstream: &mut Upstream, local: &Mqtt, node: &Node) {
    let mut scheme = None;
    if wanted {
        if let Some(url) = section.required("url", "\"mqtts://broker.example.com:8883\"") {
            upstream.url = url;
            scheme = self::scheme(section, &upstream.url, Scheme::ALL);
        }
    } else {
        section.item("url");
    }
    section.optional("client_id", &mut upstream.client_id);
    section.optional("username", &mut upstream.username);
    section.optional("password_file", &mut upstream.password_file);
    section.optional("ca_file", &mut upstream.ca_file);
    section.optional("cert_file", &mut upstream.cert_file);
    section.optional("key_file", &mut upstream.key_file);
    identity(section, scheme, upstream.client_id.as_deref(), upstream.username.as_deref());
    section.optional("topic_prefix", &mut upstream.topic_prefix);
    if let Some(prefix) = &upstream.topic_prefix {
        section.check("topic_prefix", check::topic_prefix(prefix));
    }
    if section.optional("authorization_file", &mut upstream.authorization_file) {
        readable(section, "authorization_file", Content::Secret);
    }
    section.value("keep_alive_secs", &mut upstream.keep_alive_secs);
    section.value("in_flight", &mut upstream.in_flight);
    section.value("fold_secs", &mut upstream.fold_secs);
    section.value("timeout_secs", &mut upstream.timeout_secs);
    section.value("backoff_max_secs", &mut upstream.backoff_max_secs);
    section.or_off("give_up_secs", &mut upstream.give_up_secs);

    match scheme {
        Some(scheme) if scheme.is_mqtt() => {
            if section.has("authorization_file") {
                let invalid = Invalid::new("only webhooks (http://, https://) take it");
                section.error("authorization_file", invalid.hint("use username and password_file"));
            }
            if !check::same_broker(&upstream.url, &local.url) {
                return;
            }
            if upstream.client_id.is_some() && upstream.client_id == local.client_id {
                let invalid = Invalid::new(
                    "the same as mqtt.client_id on the same broker, which would end one session for the other",
                );
                section.error("client_id", invalid.hint("choose another, or leave it out"));
            }
            let (base, given) = (&*node.base_topic, upstream.topic_prefix.as_deref());
            let default = format!("sedge/{}/", node.name);
            let prefix = given.unwrap_or(&default);
            if check::may_begin(prefix, base) {
                let what = if given.is_some() { "it begins" } else { "missing, and the default begins" };
                let invalid = Invalid::new(format!(
                    "{what} with {base}/, which on the same broker (mqtt.url) holds this board's own topics: alerts would \
                     come twice on one topic, and functions could write its status"
                ));
                section.error("topic_prefix", invalid.hint("for example topic_prefix = \"upstream/\""));
            }
        }
        Some(_) => {
            for key in ["client_id", "username", "password_file", "keep_alive_secs"] {
                if section.has(key) {
                    let invalid = Invalid::new("a webhook (http://, https://) has no use for it");
                    section.error(key, invalid.hint("remove it; authorization_file holds what a webhook is sent"));
                }
            }
        }
        None => {}
    }
}

fn http(section: &mut Section<'_, '_>, http: &mut Http) {
    section.or_off("listen", &mut http.listen);
    if let Some(listen) = http.listen.filter(|listen| !listen.ip().is_loopback()) {
        let invalid = Invalid::new(format!("{listen} can be reached from other machines, without a password"));
        section.warn("listen", invalid.hint(format!("use 127.0.0.1:{} unless that is meant", listen.port())));
    }
}

fn log(section: &mut Section<'_, '_>, log: &mut Log) {
    section.value("level", &mut log.level);
    section.check("level", log_filter(&log.level));
}

/// A level, or levels of parts: `info,sedge::mqtt=debug`.
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

/// `None` when the address is bad, which is told here.
fn scheme(section: &mut Section<'_, '_>, url: &str, allowed: &[Scheme]) -> Option<Scheme> {
    check::url(url, allowed).map_err(|invalid| section.error("url", invalid)).ok()
}

/// Who we are to a broker or a webhook: the same six keys in two sections.
fn identity(section: &mut Section<'_, '_>, scheme: Option<Scheme>, client_id: Option<&str>, username: Option<&str>) {
    for (key, text) in [("client_id", client_id), ("username", username)] {
        section.check(key, text.map_or(Ok(()), check::mqtt_string));
    }
    readable(section, "password_file", Content::Secret);
    readable(section, "ca_file", Content::Certificate);
    readable(section, "cert_file", Content::Certificate);
    readable(section, "key_file", Content::PrivateKey);
    for (one, other) in [("cert_file", "key_file"), ("key_file", "cert_file")] {
        if section.has(one) && !section.has(other) {
            section.error(one, Invalid::new(format!("{other} is missing")).hint("a client certificate is both files"));
        }
    }
    let Some(scheme) = scheme else { return };
    let tls = if scheme.is_mqtt() { "mqtts://" } else { "https://" };
    for key in ["ca_file", "cert_file", "key_file"] {
        if section.has(key) && !scheme.is_tls() {
            let invalid = Invalid::new("url is not encrypted, so it would not be used");
            section.error(key, invalid.hint(format!("write url as {tls}..., or remove it")));
        }
    }
}

fn readable(section: &mut Section<'_, '_>, key: &str, content: Content) {
    let mut path: Option<PathBuf> = None;
    // Read silently: what is wrong with the value itself has been told.
    if let Some(item) = section.item(key) {
        path = PathBuf::read(item, key, &mut Problems::default());
    }
    match path.map(|path| check::file(&path, content)) {
        Some(Err(invalid)) => section.error(key, invalid),
        Some(Ok(Some(warning))) => section.warn(key, warning),
        _ => {}
    }
}

fn within(section: &mut Section<'_, '_>, key: &str, value: u64, range: std::ops::RangeInclusive<u64>) {
    let (least, most) = (range.start(), range.end());
    if value < *least {
        section.error(key, Invalid::new(format!("{value} is too small")).hint(format!("use at least {least}")));
    } else if value > *most {
        section.error(key, Invalid::new(format!("{value} is too large")).hint(format!("use at most {most}")));
    }
}

impl Read for SocketAddr {
    fn read(item: &Item, key: &str, problems: &mut Problems) -> Option<Self> {
        let Value::String(text) = &item.value else {
            return wrong_kind(item, key, "an address with its port, such as \"127.0.0.1:9464\", or \"off\"", problems);
        };
        let address = text.parse().ok();
        if address.is_none() {
            let invalid = Invalid::new(format!("{text:?} is no address with a port"));
            let invalid = invalid.hint("write for example \"127.0.0.1:9464\", or \"off\"");
            problems.push(Problem::error(item.at.clone(), key, invalid));
        }
        address
    }
}

impl Read for Isolate {
    fn read(item: &Item, key: &str, problems: &mut Problems) -> Option<Self> {
        choice(item, key, &[("process", Self::Process), ("thread", Self::Thread)], problems)
    }
}

impl Read for WhenFull {
    fn read(item: &Item, key: &str, problems: &mut Problems) -> Option<Self> {
        choice(item, key, &[("drop-oldest-data", Self::DropOldestData), ("block", Self::Block)], problems)
    }
}
