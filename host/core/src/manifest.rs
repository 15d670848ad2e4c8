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
use crate::permits;
use crate::request::HttpRoute;
use crate::settings::declaration::{self, Declaration};
use crate::store::scope_bytes;
use crate::topic::{TopicFilter, is_heard};

mod http;
mod schedules;
mod silence;

pub use schedules::CatchUp;
pub use silence::Silence;

pub const FILE_NAME: &str = "function.toml";

const MIN_STACK_BYTES: u32 = 4 << 10;
const MAX_STACK_BYTES: u32 = 1 << 20;
/// As the linker requires.
const STACK_ALIGNMENT: u32 = 16;

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
    /// Topics that `subscribe` would hear, and the function does not.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub except: Vec<TopicFilter>,
    /// Requests over HTTP that wake the function.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub http: Vec<HttpRoute>,
    /// Headers of these requests that it gets, in lower case.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub http_headers: Vec<String>,
    /// The sink of its alerts and forwards that name none. `None`: as the board is configured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sink: Option<String>,
    pub state: StateScope,
    /// What happens to a write for which there is no room.
    #[serde(skip_serializing_if = "StateFull::is_default")]
    pub state_full: StateFull,
    /// Calls the function with a tick on `$timer/<name>`.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "as_duration")]
    pub every: Option<Duration>,
    /// Calls the function about topics that say nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub silence: Option<Silence>,
    /// Schedules by their names: expressions of cron at whose times the function is called on `$schedule/<name>`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub at: BTreeMap<String, Vec<String>>,
    /// The time zone of the schedules. `None`: the board's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    #[serde(skip_serializing_if = "CatchUp::is_default")]
    pub catch_up: CatchUp,
    /// The component's file, relative to the folder of the manifest. Functions with the same component share its compiled code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub component: Option<String>,
    pub allow: Allow,
    pub limits: Limits,
    pub trial: Trial,
    /// The function's own settings. The keys of sections are joined with dots, lists are JSON.
    pub config: BTreeMap<String, String>,
    /// What the function says about them.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub settings: BTreeMap<String, Declaration>,
    /// For `sedge build` only, and not sent to boards.
    #[serde(skip)]
    pub build: Build,
}

/// How `sedge build` compiles and links the function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Build {
    pub target: BuildTarget,
    /// Size of the guest's stack. All of it is set up anew for each message.
    pub stack_bytes: u32,
}

impl Default for Build {
    fn default() -> Self {
        Self { target: BuildTarget::default(), stack_bytes: 16 << 10 }
    }
}

/// Rust's target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum BuildTarget {
    #[default]
    Unknown,
    /// The standard library reaches the log, clocks and random numbers by WASI 0.2.
    WasiP2,
}

impl BuildTarget {
    pub const ALL: [(&str, Self); 2] = [("wasm32-unknown-unknown", Self::Unknown), ("wasm32-wasip2", Self::WasiP2)];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Unknown => Self::ALL[0].0,
            Self::WasiP2 => Self::ALL[1].0,
        }
    }
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

/// What happens to a write that would exceed a bound of all state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum StateFull {
    /// The run fails (`state-full`).
    #[default]
    Fail,
    /// The least recently used scopes of the function are deleted.
    ForgetOldest,
}

impl StateFull {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// Permissions beyond returning outputs. Nothing is allowed unless listed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct Allow {
    /// Topics on the local broker that the function may publish to.
    pub publish: Vec<TopicFilter>,
    /// Topics upstream, below the prefix, that it may forward to. `None`: all but the board's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub forward: Option<Vec<TopicFilter>>,
    /// Topics whose publications and forwards may be retained. `None`: all that it may send to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retain: Option<Vec<TopicFilter>>,
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
    /// All state of the function, as [`crate::store::scope_bytes`] counts. `None`: only bounded together with that of others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state_total_bytes: Option<NonZeroU64>,
}

/// The trial of a new version before it replaces the active one.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Trial {
    pub mode: TrialMode,
    /// Ends after this number of messages.
    pub messages: NonZeroU32,
    /// After this time without them, the version counts as active and stays guarded.
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
            state_total_bytes: None,
        }
    }
}

/// Whether a file of a function's folder is a script.
pub fn is_script_file(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "js" || extension == "mjs") || is_typescript_file(path)
}

/// Whether a file of a function's folder is a script whose types are erased when it is pushed.
pub fn is_typescript_file(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "ts" || extension == "mts")
}

impl Manifest {
    /// Whether it names a script as its component. That of a push does: its folder is not at hand.
    pub fn names_script(&self) -> bool {
        self.component.as_ref().is_some_and(|file| is_script_file(Path::new(file)))
    }

    /// Whether the function gets messages of this topic, from the broker or as requests over HTTP.
    pub fn hears(&self, topic: &str) -> bool {
        is_heard(topic, &self.subscribe, &self.except) || self.takes_requests(topic)
    }

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
            except: Vec::new(),
            http: Vec::new(),
            http_headers: Vec::new(),
            sink: None,
            state: StateScope::None,
            state_full: StateFull::Fail,
            every: None,
            silence: None,
            at: BTreeMap::new(),
            zone: None,
            catch_up: CatchUp::default(),
            component: None,
            allow: Allow::default(),
            limits: Limits::default(),
            trial: Trial::default(),
            config: BTreeMap::new(),
            settings: BTreeMap::new(),
            build: Build::default(),
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
    section.value("except", &mut manifest.except);
    http::read(section, manifest);
    section.optional("sink", &mut manifest.sink);
    section.value("state", &mut manifest.state);
    section.value("state_full", &mut manifest.state_full);
    section.optional("every", &mut manifest.every);
    schedules::read(section, manifest);
    if section.optional("component", &mut manifest.component) {
        let component = manifest.component.as_deref().unwrap_or_default();
        section.check("component", check_component(component));
    }
    let is_empty = |item: &Item| matches!(&item.value, Value::Array(items) if items.is_empty());
    let has_http = section.item("http").is_some_and(|item| !is_empty(item));
    match section.item("subscribe").map(|item| &item.value) {
        _ if section.has("every") || !manifest.at.is_empty() || has_http => {}
        None => {
            let invalid = Invalid::new("missing, and no every, at or http: the function would never run");
            section.error("subscribe", invalid.hint("for example subscribe = [\"sensors/+/temperature\"]"));
        }
        Some(Value::Array(items)) if items.is_empty() => {
            let invalid = Invalid::new("empty, and no every, at or http: the function would never run");
            section.error("subscribe", invalid.hint("name a topic filter"));
        }
        Some(_) => {}
    }
    check_subscribe(section, &manifest.subscribe);
    check_except(section, &manifest.subscribe, &manifest.except);
    silence::read(section, manifest);

    section.section("allow", |allow| {
        allow.value("publish", &mut manifest.allow.publish);
        allow.optional("forward", &mut manifest.allow.forward);
        for (n, filter) in manifest.allow.forward.iter().flatten().enumerate() {
            if let Some(level) = permits::own_level(filter.as_str()) {
                let invalid = Invalid::new(format!("{filter} is never allowed: upstream, {level}/ is the board's own"));
                allow.error_in("forward", n, invalid.hint("forward to a topic with another first level"));
            }
        }
        read_retain(allow, &mut manifest.allow.retain);
        allow.value("clock", &mut manifest.allow.clock);
        allow.value("random", &mut manifest.allow.random);
        check_loops(allow, &manifest.subscribe, &manifest.except, &manifest.allow.publish);
    });
    section.section("limits", |limits| {
        read_limits(limits, &mut manifest.limits, ceilings);
        check_total(limits, &manifest.limits, manifest.state);
    });
    check_state_full(section, manifest);
    section.section("trial", |trial| read_trial(trial, &mut manifest.trial));
    section.section("build", |build| {
        build.value("target", &mut manifest.build.target);
        build.value("stack_bytes", &mut manifest.build.stack_bytes);
        let bytes = manifest.build.stack_bytes;
        if !(MIN_STACK_BYTES..=MAX_STACK_BYTES).contains(&bytes) || !bytes.is_multiple_of(STACK_ALIGNMENT) {
            let invalid = Invalid::new(format!("{bytes} is not a size of a stack"));
            let hint = format!("use {MIN_STACK_BYTES} to {MAX_STACK_BYTES}, a multiple of {STACK_ALIGNMENT}");
            build.error("stack_bytes", invalid.hint(hint));
        }
    });
    section.section("settings", |settings| declaration::read(settings, "", &mut manifest.settings));
    section.section("config", |config| read_config(config, "", manifest));
}

/// Reads settings, and those of nested sections under names with dots: `[config.oven] max = 80` is `oven.max`.
fn read_config(section: &mut Section<'_, '_>, prefix: &str, manifest: &mut Manifest) {
    for (key, item) in section.entries() {
        let name = format!("{prefix}{key}");
        if let Value::Table(_) = item.value {
            section.section(key, |section| read_config(section, &format!("{name}."), manifest));
            continue;
        }
        let mut value = Setting(String::new());
        if !section.value(key, &mut value) {
            continue;
        }
        if let Some(declaration) = manifest.declaration(&name) {
            let result = if declaration.secret { Err(secret_in_manifest()) } else { declaration.check(&value.0) };
            section.check(key, result);
        }
        if manifest.config.insert(name, value.0).is_some() {
            section.error(key, Invalid::new("set twice: as a name with dots and in a section").hint("remove one"));
        }
    }
}

fn secret_in_manifest() -> Invalid {
    let invalid = Invalid::new("declared as secret, but everyone can read function.toml and the reports of boards");
    invalid.hint("remove it here; the board's configuration names its file")
}

/// `true` is the default, `false` an empty list.
fn read_retain(allow: &mut Section<'_, '_>, retain: &mut Option<Vec<TopicFilter>>) {
    match allow.item("retain").map(|item| &item.value) {
        Some(Value::Boolean(true)) => {}
        Some(Value::Boolean(false)) => *retain = Some(Vec::new()),
        _ => drop(allow.optional("retain", retain)),
    }
}

fn read_limits(section: &mut Section<'_, '_>, limits: &mut Limits, ceilings: Option<&Ceilings>) {
    section.value("fuel", &mut limits.fuel);
    section.value("timeout_ms", &mut limits.timeout_ms);
    section.value("memory_bytes", &mut limits.memory_bytes);
    section.value("outputs", &mut limits.outputs);
    section.value("output_bytes", &mut limits.output_bytes);
    section.value("state_bytes", &mut limits.state_bytes);
    section.optional("state_total_bytes", &mut limits.state_total_bytes);
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

/// The state of one scope must fit into that of all.
fn check_total(section: &mut Section<'_, '_>, limits: &Limits, scope: StateScope) {
    let Some(total) = limits.state_total_bytes else { return };
    let one = scope_bytes(None, 1, limits.state_bytes as u64);
    if scope == StateScope::None {
        let invalid = Invalid::new("the function has no state");
        section.error("state_total_bytes", invalid.hint("set state = \"topic\" or \"function\", or remove it"));
    } else if total.get() < one {
        let invalid = Invalid::new(format!(
            "{total} is less than one scope may count: {one}, for limits.state_bytes ({}) and what a scope takes beside",
            limits.state_bytes
        ));
        section.error("state_total_bytes", invalid.hint(format!("use at least {one}, or lower state_bytes")));
    }
}

fn check_state_full(section: &mut Section<'_, '_>, manifest: &Manifest) {
    if manifest.state_full != StateFull::ForgetOldest {
        return;
    }
    let what = match manifest.state {
        StateScope::Topic => return,
        StateScope::None => "the function has no state that could be forgotten",
        StateScope::Function => "all topics share one state, which is never forgotten",
    };
    section.error("state_full", Invalid::new(what).hint("set state = \"topic\", or remove it"));
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

/// Filters of one function. Each is compared with each, and each costs the broker.
const MAX_SUBSCRIPTIONS: usize = 64;

fn check_subscribe(section: &mut Section<'_, '_>, subscribe: &[TopicFilter]) {
    if subscribe.len() > MAX_SUBSCRIPTIONS {
        let invalid = Invalid::new(format!("{} filters, the limit is {MAX_SUBSCRIPTIONS}", subscribe.len()));
        return section.error("subscribe", invalid.hint("use wildcards, or split the function"));
    }
    for (n, filter) in subscribe.iter().enumerate() {
        if subscribe[..n].contains(filter) {
            let invalid = Invalid::new(format!("{filter} is listed twice"));
            section.error_in("subscribe", n, invalid.hint("remove one"));
        } else if let Some((level, hint)) = own_topics(filter) {
            let invalid = Invalid::new(format!("{level} topics never come from the broker"));
            section.error_in("subscribe", n, invalid.hint(hint));
        }
    }
}

/// First levels of topics that the board gives to what it makes itself, and how a function gets it.
const OWN_TOPICS: [(&str, &str); 5] = [
    ("$timer", "use every = \"10s\" for a timer"),
    ("$wake", "return a wake: its run needs no filter"),
    ("$schedule", "use at = \"0 6 * * *\" for times of the calendar"),
    ("$silence", "use [silence] to be called about silent topics"),
    ("$http", "use http = [\"POST /path\"] for requests over HTTP"),
];

fn own_topics(filter: &TopicFilter) -> Option<(&'static str, &'static str)> {
    let level = filter.as_str().split('/').next()?;
    OWN_TOPICS.into_iter().find(|(own, _)| *own == level)
}

fn check_except(section: &mut Section<'_, '_>, subscribe: &[TopicFilter], except: &[TopicFilter]) {
    for (n, filter) in except.iter().enumerate() {
        if except[..n].contains(filter) {
            let invalid = Invalid::new(format!("{filter} is listed twice"));
            section.error_in("except", n, invalid.hint("remove one"));
        } else if !subscribe.iter().any(|heard| heard.intersects(filter)) {
            let invalid = Invalid::new(format!("{filter} excludes nothing that subscribe has"));
            section.error_in("except", n, invalid.hint("correct or remove it"));
        } else if let Some(heard) = subscribe.iter().find(|heard| filter.covers(heard)) {
            let invalid = Invalid::new(format!("{filter} excludes everything that {heard} has"));
            section.error_in("except", n, invalid.hint("remove that from subscribe, or exclude less"));
        }
    }
}

/// Beginning of the problem's text, by which callers recognise it.
pub(crate) const FEEDBACK_LOOP: &str = "feedback loop";

/// Refuses a function that subscribes to its own publications: it would run for ever.
fn check_loops(
    allow: &mut Section<'_, '_>,
    subscribe: &[TopicFilter],
    except: &[TopicFilter],
    publish: &[TopicFilter],
) {
    for (n, out) in publish.iter().enumerate() {
        if except.iter().any(|filter| filter.covers(out)) {
            continue;
        }
        for filter in subscribe.iter().filter(|filter| filter.intersects(out)) {
            let invalid = Invalid::new(format!("{FEEDBACK_LOOP}: publish {out} can match subscribe {filter}"));
            allow.error_in("publish", n, invalid.hint("publish to topics that this function does not subscribe to"));
        }
    }
}

fn check_component(file: &str) -> Result<(), Invalid> {
    let mut parts = Path::new(file).components().skip_while(|part| *part == Component::ParentDir).peekable();
    let is_file = parts.peek().is_some() && parts.all(|part| matches!(part, Component::Normal(_)));
    match is_file {
        true => Ok(()),
        false => Err(Invalid::new(format!("{file:?} is not a file in this folder or relative to it"))
            .hint("for example component = \"function.wasm\" or \"../threshold/threshold.wasm\"")),
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

impl Read for BuildTarget {
    fn read(item: &Item, key: &str, problems: &mut Problems) -> Option<Self> {
        choice(item, key, &Self::ALL, problems)
    }
}

impl Read for StateFull {
    fn read(item: &Item, key: &str, problems: &mut Problems) -> Option<Self> {
        choice(item, key, &[("fail", Self::Fail), ("forget-oldest", Self::ForgetOldest)], problems)
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

/// A whole number and its unit: "500ms", "10s", "5m", "1h".
pub fn parse_period(text: &str) -> Option<Duration> {
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
pub(crate) struct Setting(pub(crate) String);

impl Read for Setting {
    /// Functions see strings only, so `max = 80` and `max = "80"` are the same.
    fn read(item: &Item, key: &str, problems: &mut Problems) -> Option<Self> {
        match &item.value {
            Value::String(text) | Value::Float(text) => Some(Self(text.clone())),
            Value::Integer(number) => Some(Self(number.to_string())),
            Value::Boolean(value) => Some(Self(value.to_string())),
            Value::Array(_) => {
                let mut json = String::new();
                write_json(item, key, problems, &mut json).then_some(Self(json))
            }
            _ => wrong_kind(item, key, "a string, a number, true, false, a list or a section", problems),
        }
    }
}

/// Writes a value as JSON. Returns false if a problem was pushed.
fn write_json(item: &Item, key: &str, problems: &mut Problems, json: &mut String) -> bool {
    match &item.value {
        Value::String(text) => json.push_str(&json_string(text)),
        Value::Integer(number) => json.push_str(&number.to_string()),
        Value::Float(text) if text.ends_with("inf") || text.ends_with("nan") => {
            let invalid = Invalid::new(format!("{text} cannot be in a list, which functions read as JSON"));
            return refuse::<()>(item, key, invalid.hint("write a finite number"), problems).is_some();
        }
        // JSON has no sign before positive numbers. The rest is written alike.
        Value::Float(text) => json.push_str(text.strip_prefix('+').unwrap_or(text)),
        Value::Boolean(value) => json.push_str(if *value { "true" } else { "false" }),
        Value::Array(items) => {
            json.push('[');
            for (n, item) in items.iter().enumerate() {
                if n > 0 {
                    json.push(',');
                }
                if !write_json(item, &format!("{key}[{n}]"), problems, json) {
                    return false;
                }
            }
            json.push(']');
        }
        Value::Table(table) => {
            json.push('{');
            for (n, entry) in table.entries.iter().enumerate() {
                if n > 0 {
                    json.push(',');
                }
                json.push_str(&json_string(&entry.key));
                json.push(':');
                if !write_json(&entry.item, &format!("{key}.{}", entry.key), problems, json) {
                    return false;
                }
            }
            json.push('}');
        }
        Value::Datetime | Value::Null => {
            return wrong_kind::<()>(item, key, "a string, a number, true, false, a list or a section", problems)
                .is_some();
        }
    }
    true
}

fn json_string(text: &str) -> String {
    serde_json::to_string(text).expect("a string is JSON")
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
#[allow(clippy::disallowed_methods, reason = "a test may read clocks and files")]
mod tests;
