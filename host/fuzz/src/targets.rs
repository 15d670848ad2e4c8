//! What each target runs and asserts.
#![allow(clippy::unwrap_used, clippy::missing_panics_doc, reason = "a target says by panicking what is wrong")]

use std::cell::RefCell;
use std::fmt::Write as _;
use std::path::Path;

use bytes::Bytes;

use sedge_core::config::Config;
use sedge_core::deploy::digest;
use sedge_core::deploy::envelope::SignedEnvelope;
use sedge_core::deploy::payload::Order;
use sedge_core::deploy::record::{self, Record};
use sedge_core::deploy::report::Report;
use sedge_core::deploy::topics::Topics;
use sedge_core::manifest::Manifest;
use sedge_core::message::{Digest, Verdict};
use sedge_core::request::path::MAX_TARGET_BYTES;
use sedge_core::request::{HttpRoute, PathScope, RequestPath, parse_query};
use sedge_core::text;
use sedge_core::topic::{self, TopicFilter};
use sedge_function::prelude::{Message, NumberFormat};
use sedge_sandbox::ScopeState;
use sedge_sandbox::testing::{self, Bench, LIMITS};

/// Frames between daemon and worker: whatever a captured worker sends.
pub fn frames(data: &[u8]) {
    sedge_daemon::worker::read_frames(data);
}

/// Rows of the database: whatever a damaged disk gives back.
pub fn rows(data: &[u8]) {
    sedge_store::read_rows(&Bytes::copy_from_slice(data));
}

/// Files of the deploy folder, behind the digest that finds accidental damage.
pub fn records(data: &[u8]) {
    assert!(record::decode::<Record>(data).is_none(), "without its digest");
    let mut file = digest(data).to_string().into_bytes();
    file.push(b'\n');
    file.extend_from_slice(data);
    if let Some(read) = record::decode::<Record>(&file) {
        read.digests().for_each(|digest| drop(digest.to_string()));
    }
}

/// Orders, key updates and reports, of anyone who may publish to their topics.
pub fn orders(data: &[u8]) {
    if let Ok(envelope) = SignedEnvelope::parse(data) {
        let json = envelope.to_json();
        assert_eq!(SignedEnvelope::parse(&json).unwrap(), envelope);
        let _ = Order::parse(envelope.unverified());
    }
    if let Ok(order) = Order::parse(data) {
        let again = Order::parse(&order.to_json()).map(|again| again.to_json());
        assert_eq!(again.ok(), Some(order.to_json()));
    }
    if let Ok(report) = Report::parse(data) {
        assert!(Report::parse(&report.to_json()).is_ok());
    }
}

/// `function.toml`, and the JSON of it in an order.
pub fn manifest(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    match Manifest::from_toml(text, Path::new("function.toml"), None) {
        Ok(manifest) => {
            let json = manifest.to_json();
            assert_eq!(Manifest::from_toml(text, Path::new("function.toml"), None).unwrap().to_json(), json);
        }
        Err(problems) => problems.iter().for_each(|problem| drop(problem.to_string())),
    }
}

/// `sedge.toml`.
pub fn configuration(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    let (_, problems) = Config::parse(text, Path::new("sedge.toml"));
    problems.iter().for_each(|problem| drop(problem.to_string()));
}

/// Topics and filters, on two lines.
pub fn topics(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let (filter, topic) = text.split_once('\n').unwrap_or((&text, "a/b"));
    let _ = Topics::new("sedge").parse(topic);
    let _ = topic.parse::<Digest>();
    assert!(!text::printable(topic).chars().any(text::is_unprintable));
    if let Ok(parsed) = TopicFilter::parse(filter) {
        assert_eq!(parsed.as_str(), filter);
        assert_eq!(parsed.matches(topic), matches(filter, topic), "{filter:?} {topic:?}");
    }
}

/// Paths and queries of anyone who reaches the port, against routes and scopes: one line each.
pub fn requests(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let mut lines = text.lines();
    let mut line = || lines.next().unwrap_or_default();
    let (path, query, one, other, scope) = (line(), line(), line(), line(), line());
    for (name, value) in parse_query(query).into_iter().flatten() {
        assert!(!name.chars().chain(value.chars()).any(char::is_control));
    }
    let Ok(path) = RequestPath::parse(path) else { return };
    let topic = path.topic();
    topic::validate_name(&topic).unwrap();
    let written = topic.strip_prefix("$http").unwrap();
    if written.len() <= MAX_TARGET_BYTES {
        assert_eq!(RequestPath::parse(written).unwrap(), path, "no two paths have one topic");
    }
    let (one, other) = (one.parse::<HttpRoute>(), other.parse::<HttpRoute>());
    for route in [&one, &other].into_iter().flatten() {
        assert_eq!(route.to_string().parse::<HttpRoute>().as_ref(), Ok(route));
        assert!(route.parameters(&path).is_none() || route.filter().matches(&topic));
    }
    if let (Ok(one), Ok(other)) = (one, other) {
        let both = one.parameters(&path).is_some() && other.parameters(&path).is_some();
        assert!(!both || one.method() != other.method() || one.overlaps(&other), "{one} {other} {topic}");
    }
    if let Some(scope) = PathScope::parse(scope) {
        let _ = scope.covers(&path);
    }
}

/// Section 4.7 of MQTT 5, level by level.
fn matches(filter: &str, topic: &str) -> bool {
    if topic.starts_with('$') && !filter.starts_with('$') {
        return false;
    }
    let (filter, topic): (Vec<&str>, Vec<&str>) = (filter.split('/').collect(), topic.split('/').collect());
    for (at, level) in filter.iter().enumerate() {
        match (*level, topic.get(at)) {
            // It matches its parent as well.
            ("#", _) => return true,
            ("+", Some(_)) => {}
            (level, Some(own)) if level == *own => {}
            _ => return false,
        }
    }
    filter.len() == topic.len()
}

/// Payloads of devices, read with the SDK.
pub fn payloads(data: &[u8]) {
    let message = Message::new("sensors/a/temperature", data);
    let fields = ["temperature", "a.b[0].c"];
    if let Ok(readings) = message.find_numbers(&fields) {
        let finite = |value: &Result<f64, _>| value.as_ref().is_ok_and(|value| value.is_finite()) || value.is_err();
        assert!(readings.iter().all(|reading| finite(&reading.value)), "{data:?}");
    }
    let _ = message.find_numbers_as(NumberFormat { decimal_comma: true, unit: "°C" }, &fields);
    for field in fields {
        assert!(message.number(field).ok().flatten().is_none_or(f64::is_finite), "{data:?}");
        let _ = (message.integer::<i64>(field), message.boolean(field), message.text(field), message.value(field));
        let _ = message.find_number(field);
    }
    let _ = message.plain_number();
    if let Ok(json) = sedge_function::cbor::to_json(data) {
        let _ = Message::new("a", json).find_numbers(&fields);
    }
    let _ = sedge_function::lpp::decode(data);
    if let Ok(text) = str::from_utf8(data) {
        if let Some(bytes) = sedge_function::base64::decode(text) {
            assert_eq!(sedge_function::base64::decode(&sedge_function::base64::encode(&bytes)), Some(bytes));
        }
        if let Some(bytes) = sedge_function::hex::decode(text) {
            assert_eq!(sedge_function::hex::decode(&sedge_function::hex::encode(&bytes)), Some(bytes));
        }
        if let Some(ms) = sedge_function::time::unix_ms(text) {
            let _ = sedge_function::time::rfc3339(ms);
        }
    }
}

/// A function as one module and as a whole component: [`Both`](testing::Both) asserts that outcome, state, log and memory agree.
pub fn modules(data: &[u8]) {
    thread_local! {
        static BENCH: RefCell<Bench> = RefCell::default();
    }
    let items = format!("{}{}{}", testing::LOG, testing::OPEN, testing::SET);
    let component = testing::component(&items, &body(data));
    let both = BENCH.with_borrow_mut(|bench| bench.load(&component, LIMITS));
    let run = both.invoke(&testing::message("sensors/a", data), ScopeState::default());
    if !matches!(run.outcome.verdict, Verdict::Done(_)) {
        assert!(run.outcome.writes.is_empty());
    }
}

/// Code of a handler: each pair of bytes is a statement with an operand, and the rest is data at 4096.
fn body(data: &[u8]) -> String {
    let mut code = String::new();
    for pair in data.chunks(2).take(40) {
        let (kind, operand) = (pair[0], i32::from(pair.get(1).copied().unwrap_or_default()));
        let _ = match kind % 12 {
            0 => write!(code, "(i32.store (i32.const {}) (local.get $payload-len))", 16 + operand % 64 * 4),
            1 => write!(code, "(i32.store8 (i32.const {}) (i32.const {operand}))", 16 + operand % 32),
            2 => write!(code, "(local.set $n (i32.add (local.get $n) (i32.const {operand})))"),
            3 => write!(code, "(i32.store (i32.const {}) (local.get $topic))", 512 + operand * 4),
            4 => write!(
                code,
                "(call $log (i32.const {}) (i32.const 0) (i32.const 0) (local.get $payload) (i32.const {operand}))",
                operand % 8
            ),
            5 => write!(code, "(drop (memory.grow (i32.const {})))", operand % 70),
            6 => write!(
                code,
                "(i32.store (i32.const 24) (i32.const {})) (i32.store (i32.const 28) (i32.const {}))",
                512,
                operand % 5
            ),
            7 => write!(code, "(if (i32.gt_u (local.get $n) (i32.const {operand})) (then (unreachable)))"),
            8 => write!(code, "(local.set $n (i32.div_u (i32.const 1000) (i32.const {})))", operand % 3),
            9 => write!(code, "(i32.store (i32.const {}) (local.get $attempt))", 512 + operand * 4),
            10 => write!(
                code,
                "(call $open (i32.const 0) (i32.const 0) (i32.const 1000)) (call $set (i32.load (i32.const 1004)) \
                 (local.get $topic) (i32.const {}) (local.get $payload) (local.get $payload-len) (i32.const 1016))",
                operand % 9
            ),
            _ => write!(
                code,
                "(i64.store (i32.const {}) (i64.const {}))",
                512 + operand * 8,
                u64::from(kind) * 0x0101_0101
            ),
        };
    }
    format!("{code} (i32.const 16)")
}
