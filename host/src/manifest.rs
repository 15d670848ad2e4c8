//! The manifest of a function, its permissions and limits: `function.toml` beside its source, and the same data as signed
//! JSON.

use std::collections::BTreeMap;
use std::num::{NonZeroU32, NonZeroU64, NonZeroUsize};
use std::path::{Component, Path};
use std::sync::Arc;
use std::time::Duration;

use serde::{Serialize, Serializer};

use crate::config::Ceilings;
use crate::config::document::{Item, Table, Value};
use crate::config::problem::{Invalid, Problems};
use crate::config::reader::{Read, Reader, Section, choice, parsed, refuse, wrong_kind};
use crate::topic::TopicFilter;

pub const FILE_NAME: &str = "function.toml";

/// Serialises to JSON in the order of these fields: the bytes that are signed.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Manifest {
    /// `[a-z0-9-]`, at most 64: it is a level of topics and a label of metrics.
    #[serde(serialize_with = "as_str")]
    pub name: Arc<str>,
    #[serde(serialize_with = "as_str")]
    pub version: Arc<str>,
    /// Only grows; a push with a lower serial is refused.
    pub serial: u64,
    pub subscribe: Vec<TopicFilter>,
    pub state: StateScope,
    /// Calls the function with a tick on `$timer/<name>`.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "as_duration")]
    pub every: Option<Duration>,
    /// The component's file, in the folder of the manifest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub component: Option<String>,
    pub allow: Allow,
    pub limits: Limits,
    pub trial: Trial,
    /// The function's own settings.
    pub config: BTreeMap<String, String>,
}

/// Owner of the function's state. Messages of one owner run one at a time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum StateScope {
    /// No state; any worker may run any message.
    #[default]
    None,
    /// Separate keys for each topic.
    Topic,
    /// Keys shared by all topics of the function.
    Function,
}

/// Permissions beyond returning outputs. Nothing is allowed unless listed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct Allow {
    /// Topics on the local broker that the function may publish to.
    pub publish: Vec<TopicFilter>,
    pub clock: bool,
    pub random: bool,
}

/// Limits of one run.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Limits {
    pub fuel: NonZeroU64,
    pub timeout_ms: NonZeroU32,
    pub memory_bytes: NonZeroUsize,
    pub outputs: u32,
    /// Total size of all outputs.
    pub output_bytes: usize,
    /// Total size of all keys and values of one scope.
    pub state_bytes: usize,
}

/// The trial of a new version before it replaces the active one.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Trial {
    pub mode: TrialMode,
    /// Ends after this number of messages.
    pub messages: NonZeroU32,
    /// Ends after this time, however few messages came.
    pub secs: NonZeroU32,
    /// Live: number of tolerated traps and broken limits.
    pub failures: u32,
    /// Shadow: most differing answers with which it is promoted automatically. Absent: only by `sedge promote`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub differences: Option<u32>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum TrialMode {
    /// Canary: serves the messages, with the previous version ready to roll back to.
    #[default]
    Live,
    /// Runs beside the active version; its outputs are compared and not sent.
    Shadow,
}

impl Default for Trial {
    fn default() -> Self {
        Self {
            mode: TrialMode::Live,
            messages: NonZeroU32::new(10).expect("a default is not zero"),
            secs: NonZeroU32::new(60).expect("a default is not zero"),
            failures: 0,
            differences: None,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            fuel: NonZeroU64::new(10_000_000).expect("a default is not zero"),
            timeout_ms: NonZeroU32::new(100).expect("a default is not zero"),
            memory_bytes: NonZeroUsize::new(4 << 20).expect("a default is not zero"),
            outputs: 64,
            output_bytes: 65_536,
            state_bytes: 65_536,
        }
    }
}

impl Manifest {
    /// Parses TOML and checks its limits against those of a board. `file` is the name in problems.
    pub fn from_toml(text: &str, file: &Path, ceilings: Option<&Ceilings>) -> Result<Self, Problems> {
        let (table, problems) = Table::from_toml(text, file);
        if problems.is_empty() { Self::read(&table, ceilings) } else { Err(problems) }
    }

    /// Parses the output of [`Manifest::to_json`], or of another tool.
    pub fn from_json(bytes: &[u8], ceilings: Option<&Ceilings>) -> Result<Self, Problems> {
        Self::read(&Table::from_json(bytes, "manifest")?, ceilings)
    }

    /// Compact JSON; equal manifests give equal bytes.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a manifest has only string keys")
    }

    fn read(table: &Table, ceilings: Option<&Ceilings>) -> Result<Self, Problems> {
        let mut manifest = Self {
            name: "".into(),
            version: "".into(),
            serial: 0,
            subscribe: Vec::new(),
            state: StateScope::None,
            every: None,
            component: None,
            allow: Allow::default(),
            limits: Limits::default(),
            trial: Trial::default(),
            config: BTreeMap::new(),
        };
        let problems = Reader::run(table, |section| read(section, &mut manifest, ceilings)).problems;
        if problems.has_errors() { Err(problems) } else { Ok(manifest) }
    }
}

fn read(section: &mut Section<'_, '_>, manifest: &mut Manifest, ceilings: Option<&Ceilings>) {
    section.require("name", "\"threshold-alert\"");
    section.parse("name", &mut manifest.name, parse_name);
    section.require("version", "\"1.0.0\"");
    section.parse("version", &mut manifest.version, parse_version);
    section.value("serial", &mut manifest.serial);
    section.value("subscribe", &mut manifest.subscribe);
    section.value("state", &mut manifest.state);
    section.optional("every", &mut manifest.every);
    if section.optional("component", &mut manifest.component) {
        let component = manifest.component.as_deref().unwrap_or_default();
        section.check("component", check_component(component));
    }
    match section.item("subscribe").map(|item| &item.value) {
        _ if section.has("every") => {}
        None => {
            let invalid = Invalid::new("missing, and no every: the function would never run");
            section.error("subscribe", invalid.hint("for example subscribe = [\"sensors/+/temperature\"]"));
        }
        Some(Value::Array(items)) if items.is_empty() => {
            let invalid = Invalid::new("empty, and no every: the function would never run");
            section.error("subscribe", invalid.hint("name a topic filter"));
        }
        Some(_) => {}
    }
    check_subscribe(section, &manifest.subscribe);

    section.section("allow", |allow| {
        allow.value("publish", &mut manifest.allow.publish);
        allow.value("clock", &mut manifest.allow.clock);
        allow.value("random", &mut manifest.allow.random);
        check_loops(allow, &manifest.subscribe, &manifest.allow.publish);
    });
    section.section("limits", |limits| read_limits(limits, &mut manifest.limits, ceilings));
    section.section("trial", |trial| read_trial(trial, &mut manifest.trial));
    section.section("config", |config| {
        for (key, _) in config.entries() {
            let mut value = Setting(String::new());
            if config.value(key, &mut value) {
                manifest.config.insert(key.to_owned(), value.0);
            }
        }
    });
}

fn read_limits(section: &mut Section<'_, '_>, limits: &mut Limits, ceilings: Option<&Ceilings>) {
    section.value("fuel", &mut limits.fuel);
    section.value("timeout_ms", &mut limits.timeout_ms);
    section.value("memory_bytes", &mut limits.memory_bytes);
    section.value("outputs", &mut limits.outputs);
    section.value("output_bytes", &mut limits.output_bytes);
    section.value("state_bytes", &mut limits.state_bytes);
    if limits.memory_bytes.get() < WASM_PAGE_BYTES {
        let invalid = Invalid::new(format!("{} is less than one page of WebAssembly memory", limits.memory_bytes));
        section.error("memory_bytes", invalid.hint(format!("use at least {WASM_PAGE_BYTES}")));
    }
    let Some(most) = ceilings else { return };
    let asked = [
        ("fuel", limits.fuel.get(), most.fuel.get()),
        ("timeout_ms", limits.timeout_ms.get().into(), most.timeout_ms.get().into()),
        ("memory_bytes", limits.memory_bytes.get() as u64, most.memory_bytes.get() as u64),
        ("outputs", limits.outputs.into(), most.outputs.into()),
        ("output_bytes", limits.output_bytes as u64, most.output_bytes as u64),
        ("state_bytes", limits.state_bytes as u64, most.state_bytes as u64),
    ];
    for (key, asked, most) in asked {
        if asked > most {
            let invalid = Invalid::new(format!("{asked} is above functions.max_{key} of this board ({most})"));
            section.error(key, invalid.hint("lower it here, or raise that in the configuration"));
        }
    }
}

fn read_trial(section: &mut Section<'_, '_>, trial: &mut Trial) {
    section.value("mode", &mut trial.mode);
    section.value("messages", &mut trial.messages);
    section.value("secs", &mut trial.secs);
    section.value("failures", &mut trial.failures);
    section.optional("differences", &mut trial.differences);
    if section.has("differences") && trial.mode == TrialMode::Live {
        let invalid = Invalid::new("only a shadow is compared with the previous version");
        section.error("differences", invalid.hint("set mode = \"shadow\", or remove it"));
    }
    if section.has("failures") && trial.failures >= trial.messages.get() {
        let (failures, messages) = (trial.failures, trial.messages);
        let invalid = Invalid::new(format!("{failures} of {messages} messages may fail, so that every trial passes"));
        section.error("failures", invalid.hint("lower it, or raise messages"));
    }
}

const WASM_PAGE_BYTES: usize = 65_536;

fn check_subscribe(section: &mut Section<'_, '_>, subscribe: &[TopicFilter]) {
    for (n, filter) in subscribe.iter().enumerate() {
        if subscribe[..n].contains(filter) {
            let invalid = Invalid::new(format!("{filter} is listed twice"));
            section.error_in("subscribe", n, invalid.hint("remove one"));
        } else if filter.as_str().split('/').next() == Some("$timer") {
            let invalid = Invalid::new("$timer topics never come from the broker");
            section.error_in("subscribe", n, invalid.hint("use every = \"10s\" for a timer"));
        }
    }
}

/// Beginning of the problem's text, by which callers recognise it.
pub const FEEDBACK_LOOP: &str = "feedback loop";

/// Refuses a function that subscribes to its own publications: it would run for ever.
fn check_loops(allow: &mut Section<'_, '_>, subscribe: &[TopicFilter], publish: &[TopicFilter]) {
    for (n, out) in publish.iter().enumerate() {
        for filter in subscribe.iter().filter(|filter| filter.intersects(out)) {
            let invalid = Invalid::new(format!("{FEEDBACK_LOOP}: publish {out} can match subscribe {filter}"));
            allow.error_in("publish", n, invalid.hint("publish to topics that this function does not subscribe to"));
        }
    }
}

fn check_component(file: &str) -> Result<(), Invalid> {
    let mut parts = Path::new(file).components();
    match (parts.next(), parts.next()) {
        (Some(Component::Normal(_)), None) => Ok(()),
        _ => Err(Invalid::new(format!("{file:?} is not the name of a file in this folder"))
            .hint("for example component = \"function.wasm\"")),
    }
}

/// Whether the text is a valid function name.
pub fn is_name(text: &str) -> bool {
    (1..=64).contains(&text.len()) && text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
}

/// Checks a pattern of function names: a name, or a prefix and `*` (`threshold-*`, `*`).
pub(crate) fn check_pattern(text: &str) -> Result<(), Invalid> {
    if is_name(text) || text.strip_suffix('*').is_some_and(|prefix| prefix.is_empty() || is_name(prefix)) {
        return Ok(());
    }
    let invalid = Invalid::new(format!("{text:?} is not a pattern of function names"));
    Err(invalid.hint("write a name, or its beginning and *, as in \"threshold-*\""))
}

fn parse_name(text: &str) -> Result<Arc<str>, Invalid> {
    if is_name(text) {
        return Ok(text.into());
    }
    Err(Invalid::new(format!("{text:?} is not a function name")).hint("use 1 to 64 of a-z, 0-9 and -"))
}

fn parse_version(text: &str) -> Result<Arc<str>, Invalid> {
    if text.len() <= 64 && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'+')) {
        return Ok(text.into());
    }
    let invalid = Invalid::new(format!("{text:?} is not a version"));
    Err(invalid.hint("use 1 to 64 letters, digits, dots, - and +, as in 1.2.0"))
}

impl Read for TopicFilter {
    fn read(item: &Item, key: &str, problems: &mut Problems) -> Option<Self> {
        parsed(item, key, problems, |text| Self::parse(text).map_err(|error| Invalid::new(error.to_string())))
    }
}

impl Read for TrialMode {
    fn read(item: &Item, key: &str, problems: &mut Problems) -> Option<Self> {
        choice(item, key, &[("live", Self::Live), ("shadow", Self::Shadow)], problems)
    }
}

impl Read for StateScope {
    fn read(item: &Item, key: &str, problems: &mut Problems) -> Option<Self> {
        let words = [("none", Self::None), ("topic", Self::Topic), ("function", Self::Function)];
        choice(item, key, &words, problems)
    }
}

/// Shorter ticks cost more than they are worth; longer ones outlive every board.
const PERIODS: std::ops::RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(366 * 24 * 3600);

impl Read for Duration {
    fn read(item: &Item, key: &str, problems: &mut Problems) -> Option<Self> {
        let Value::String(text) = &item.value else {
            return wrong_kind(item, key, "a time with its unit, such as \"10s\"", problems);
        };
        match parse_period(text) {
            Some(period) if PERIODS.contains(&period) => Some(period),
            Some(_) => {
                let invalid = Invalid::new(format!("{text:?} is out of range"));
                refuse(item, key, invalid.hint("use 100ms or more, and 366 days or less"), problems)
            }
            None => {
                let invalid = Invalid::new(format!("{text:?} is not a time"));
                let hint = "write a whole number and ms, s, m or h: \"500ms\", \"10s\", \"5m\", \"1h\"";
                refuse(item, key, invalid.hint(hint), problems)
            }
        }
    }
}

fn parse_period(text: &str) -> Option<Duration> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let unit_ms = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(unit_ms).map(Duration::from_millis)
}

/// Writes the period in the largest unit that divides it, mostly as a person wrote it.
fn format_period(period: Duration) -> String {
    let ms = period.as_millis();
    [(3_600_000, "h"), (60_000, "m"), (1_000, "s")]
        .into_iter()
        .find(|(unit_ms, _)| ms.is_multiple_of(*unit_ms))
        .map_or_else(|| format!("{ms}ms"), |(unit_ms, unit)| format!("{}{unit}", ms / unit_ms))
}

/// A value of `[config]`.
struct Setting(String);

impl Read for Setting {
    /// Functions see strings only, so `max = 80` and `max = "80"` are the same.
    fn read(item: &Item, key: &str, problems: &mut Problems) -> Option<Self> {
        match &item.value {
            Value::String(text) | Value::Float(text) => Some(Self(text.clone())),
            Value::Integer(number) => Some(Self(number.to_string())),
            Value::Boolean(value) => Some(Self(value.to_string())),
            _ => wrong_kind(item, key, "a string, a number, true or false", problems),
        }
    }
}

fn as_str<S: Serializer>(text: &Arc<str>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(text)
}

fn as_duration<S: Serializer>(period: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    match period {
        Some(period) => serializer.serialize_str(&format_period(*period)),
        None => serializer.serialize_none(),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const WHOLE: &str = r#"
        name = "threshold-alert"
        version = "1.2.0"
        serial = 7
        subscribe = ["sensors/+/temperature", "zigbee2mqtt/#"]
        state = "topic"
        every = "90s"
        component = "threshold.wasm"
        [allow]
        publish = ["derived/#"]
        clock = true
        [limits]
        fuel = 20_000_000
        timeout_ms = 50
        memory_bytes = 1_048_576
        outputs = 8
        output_bytes = 1_024
        state_bytes = 2_048
        [trial]
        mode = "shadow"
        messages = 100
        secs = 3_600
        differences = 2
        [config]
        max = 80
        factor = 1.50
        strict = true
        unit = "°C"
    "#;

    const SMALL: &str = "name = \"a\"\nversion = \"1\"\nsubscribe = [\"a\"]\n";

    fn parse(text: &str) -> Result<Manifest, Problems> {
        Manifest::from_toml(text, Path::new("function.toml"), Some(&Ceilings::default()))
    }

    /// Expects these problems and no others.
    #[track_caller]
    fn check(text: &str, expected: &[&str]) {
        let found = parse(text).map_or_else(|problems| problems.iter().map(ToString::to_string).collect(), |_| vec![]);
        assert_eq!(found, expected, "in:\n{text}");
    }

    /// The same, in a manifest that is good otherwise. Its own lines begin with 4.
    #[track_caller]
    fn check_added(lines: &str, expected: &[&str]) {
        check(&format!("{SMALL}{lines}"), expected);
    }

    #[test]
    fn everything_is_read() {
        let manifest = parse(WHOLE).unwrap();
        assert_eq!((&*manifest.name, &*manifest.version, manifest.serial), ("threshold-alert", "1.2.0", 7));
        assert_eq!(
            manifest.subscribe.iter().map(TopicFilter::as_str).collect::<Vec<_>>(),
            ["sensors/+/temperature", "zigbee2mqtt/#"]
        );
        assert_eq!((manifest.state, manifest.every), (StateScope::Topic, Some(Duration::from_secs(90))));
        assert_eq!(manifest.component.as_deref(), Some("threshold.wasm"));
        assert_eq!((manifest.allow.clock, manifest.allow.random), (true, false));
        assert_eq!(manifest.allow.publish, ["derived/#".parse().unwrap()]);
        assert_eq!((manifest.limits.fuel.get(), manifest.limits.outputs), (20_000_000, 8));
        assert_eq!((manifest.limits.output_bytes, manifest.limits.state_bytes), (1_024, 2_048));
        assert_eq!((manifest.trial.mode, manifest.trial.messages.get()), (TrialMode::Shadow, 100));
        assert_eq!((manifest.trial.secs.get(), manifest.trial.differences), (3_600, Some(2)));
        let config: Vec<(&str, &str)> = manifest.config.iter().map(|(key, value)| (&**key, &**value)).collect();
        assert_eq!(config, [("factor", "1.50"), ("max", "80"), ("strict", "true"), ("unit", "°C")]);
    }

    #[test]
    fn defaults_are_the_documented_ones() {
        let manifest = parse(SMALL).unwrap();
        assert_eq!((manifest.serial, manifest.state, manifest.every), (0, StateScope::None, None));
        assert_eq!((manifest.allow, manifest.limits.timeout_ms.get()), (Allow::default(), 100));
        assert_eq!((manifest.trial.mode, manifest.trial.messages.get()), (TrialMode::Live, 10));
        let timer = parse("name = \"t\"\nversion = \"1\"\nevery = \"100ms\"").unwrap();
        assert_eq!((timer.subscribe, timer.every), (vec![], Some(Duration::from_millis(100))));
    }

    #[test]
    fn json_is_the_same_manifest_and_canonical() {
        for text in [WHOLE, SMALL] {
            let manifest = parse(text).unwrap();
            let json = manifest.to_json();
            let again = Manifest::from_json(&json, Some(&Ceilings::default())).unwrap();
            assert_eq!(manifest, again);
            assert_eq!(json, again.to_json());
        }
        assert_eq!(
            String::from_utf8(parse(SMALL).unwrap().to_json()).unwrap(),
            r#"{"name":"a","version":"1","serial":0,"subscribe":["a"],"state":"none","allow":{"publish":[],"clock":false,"random":false},"limits":{"fuel":10000000,"timeout_ms":100,"memory_bytes":4194304,"outputs":64,"output_bytes":65536,"state_bytes":65536},"trial":{"mode":"live","messages":10,"secs":60,"failures":0},"config":{}}"#
        );
    }

    #[test]
    fn wrong_json() {
        let check = |json: &str, expected: &str| {
            let problems = Manifest::from_json(json.as_bytes(), None).unwrap_err().to_string();
            assert!(problems.contains(expected), "{json}: {problems}");
        };
        check("", "not JSON");
        check("[]", "expected an object, found a list");
        check(r#"{"name":"a","name":"b"}"#, "key \"name\" is listed twice");
        check(
            r#"{"name":"a","version":"1","every":"1s","config":{"x":null}}"#,
            "config.x: expected a string, a number",
        );
        check(r#"{"name":"a","version":"1","every":"1s","extra":1}"#, "extra: unknown key");
        check(&"[".repeat(10_000), "not JSON");
    }

    #[test]
    fn all_problems_at_once() {
        check(
            "name = \"Threshold\"\nserial = -1\nsubscribe = [\"a/#/b\", \"$share/g/a\"]\nstate = \"topics\"\n[limit]\nfuel = 1\n",
            &[
                "function.toml: version: missing; for example version = \"1.0.0\"",
                "function.toml:1:8: name: \"Threshold\" is not a function name; use 1 to 64 of a-z, 0-9 and -",
                "function.toml:2:10: serial: -1 is too small; use at least 0",
                "function.toml:3:14: subscribe[0]: # must be the last level",
                "function.toml:3:23: subscribe[1]: $share/ subscriptions are set with mqtt.share_group",
                "function.toml:4:9: state: unknown value \"topics\"; did you mean \"topic\"?",
                "function.toml:5:2: limit: unknown key; did you mean limits?",
            ],
        );
    }

    #[test]
    fn a_function_that_would_never_run() {
        let start = "name = \"a\"\nversion = \"1\"\n";
        check(
            start,
            &[
                "function.toml: subscribe: missing, and no every: the function would never run; for example subscribe = [\"sensors/+/temperature\"]",
            ],
        );
        check(
            &format!("{start}subscribe = []"),
            &["function.toml:3:13: subscribe: empty, and no every: the function would never run; name a topic filter"],
        );
    }

    #[test]
    fn feedback_loops_name_both_filters() {
        check_added(
            "[allow]\npublish = [\"b\", \"+\"]",
            &[
                "function.toml:5:17: allow.publish[1]: feedback loop: publish + can match subscribe a; publish to topics that this function does not subscribe to",
            ],
        );
        check(
            "name = \"a\"\nversion = \"1\"\nsubscribe = [\"x/+/t\", \"y\"]\nallow.publish = [\"x/#\"]",
            &[
                "function.toml:4:18: allow.publish[0]: feedback loop: publish x/# can match subscribe x/+/t; publish to topics that this function does not subscribe to",
            ],
        );
    }

    #[test]
    fn single_mistakes() {
        check_added(
            "every = 10",
            &["function.toml:4:9: every: expected a time with its unit, such as \"10s\", found a number"],
        );
        check_added(
            "every = \"10\"",
            &[
                "function.toml:4:9: every: \"10\" is not a time; write a whole number and ms, s, m or h: \"500ms\", \"10s\", \"5m\", \"1h\"",
            ],
        );
        check_added(
            "every = \"99ms\"",
            &["function.toml:4:9: every: \"99ms\" is out of range; use 100ms or more, and 366 days or less"],
        );
        check_added(
            "every = \"18446744073709551615h\"",
            &[
                "function.toml:4:9: every: \"18446744073709551615h\" is not a time; write a whole number and ms, s, m or h: \"500ms\", \"10s\", \"5m\", \"1h\"",
            ],
        );
        check_added(
            "component = \"../x.wasm\"",
            &[
                "function.toml:4:13: component: \"../x.wasm\" is not the name of a file in this folder; for example component = \"function.wasm\"",
            ],
        );
        check_added(
            "component = \"/x.wasm\"",
            &[
                "function.toml:4:13: component: \"/x.wasm\" is not the name of a file in this folder; for example component = \"function.wasm\"",
            ],
        );
        check_added(
            "[limits]\ntimeout = 5",
            &["function.toml:5:1: limits.timeout: unknown key; did you mean timeout_ms?"],
        );
        check_added(
            "[limits]\nmemory_bytes = 1000",
            &[
                "function.toml:5:16: limits.memory_bytes: 1000 is less than one page of WebAssembly memory; use at least 65536",
            ],
        );
        check_added(
            "[limits]\ntimeout_ms = 60_000\nfuel = 0",
            &[
                "function.toml:5:14: limits.timeout_ms: 60000 is above functions.max_timeout_ms of this board (10000); lower it here, or raise that in the configuration",
                "function.toml:6:8: limits.fuel: 0 is too small; use at least 1",
            ],
        );
        check_added(
            "[trial]\nmode = \"Shadow\"\nmessages = 0",
            &[
                "function.toml:5:8: trial.mode: unknown value \"Shadow\"; did you mean \"shadow\"?",
                "function.toml:6:12: trial.messages: 0 is too small; use at least 1",
            ],
        );
        check_added(
            "[trial]\nmessages = 3\nfailures = 3\ndifferences = 1",
            &[
                "function.toml:6:12: trial.failures: 3 of 3 messages may fail, so that every trial passes; lower it, or raise messages",
                "function.toml:7:15: trial.differences: only a shadow is compared with the previous version; set mode = \"shadow\", or remove it",
            ],
        );
        check_added(
            "[allow]\nclock = \"true\"",
            &["function.toml:5:9: allow.clock: expected true or false, found a string; write it without quotes"],
        );
        check_added(
            "[config]\na = [1]",
            &["function.toml:5:5: config.a: expected a string, a number, true or false, found a list"],
        );
        check(
            "name = \"a\"\nversion = \"1 beta\"\nsubscribe = [\"a\", \"a\", \"$timer/x\"]",
            &[
                "function.toml:2:11: version: \"1 beta\" is not a version; use 1 to 64 letters, digits, dots, - and +, as in 1.2.0",
                "function.toml:3:19: subscribe[1]: a is listed twice; remove one",
                "function.toml:3:24: subscribe[2]: $timer topics never come from the broker; use every = \"10s\" for a timer",
            ],
        );
    }

    #[test]
    fn limits_are_held_against_the_board_only_where_there_is_one() {
        let text = format!("{SMALL}[limits]\ntimeout_ms = 60_000");
        assert!(parse(&text).is_err());
        assert!(Manifest::from_toml(&text, Path::new("function.toml"), None).is_ok());
    }

    #[test]
    fn periods_come_back_as_they_were_written() {
        for text in ["100ms", "1500ms", "10s", "90s", "5m", "1h", "8784h"] {
            assert_eq!(format_period(parse_period(text).unwrap()), text);
        }
        for text in ["", "s", "-1s", "1.5s", "10 s", "+1s", "1d", "１s"] {
            assert_eq!(parse_period(text), None, "{text:?}");
        }
    }

    #[test]
    fn loads_from_a_folder() {
        let dir = tempfile::tempdir().unwrap();
        let missing = Manifest::load(dir.path()).unwrap_err().to_string();
        assert!(missing.contains("function.toml: cannot be read"), "{missing}");
        fs::write(dir.path().join(FILE_NAME), WHOLE).unwrap();
        assert_eq!(Manifest::load(dir.path()).unwrap(), parse(WHOLE).unwrap());
    }
}
