//! What a function asks for and is allowed: `function.toml` beside its source, and the same data as signed JSON.

use std::collections::BTreeMap;
use std::num::{NonZeroU32, NonZeroU64, NonZeroUsize};
use std::path::{Component, Path};
use std::sync::Arc;
use std::time::Duration;

use serde::{Serialize, Serializer};

use crate::config::document::{Item, Table, Value};
use crate::config::problem::{Location, Misfit, Problem, Problems};
use crate::config::reader::{Read, Reader, Section, wrong_kind};
use crate::config::{Functions, suggest::nearest};
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
    /// Only grows; a push with a lower one is refused.
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
    /// The function's own settings.
    pub config: BTreeMap<String, String>,
}

/// What state belongs to, which is also what runs one at a time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum StateScope {
    /// No state; any worker runs it.
    #[default]
    None,
    /// Own keys for each topic.
    Topic,
    /// Keys shared by all topics of the function.
    Function,
}

/// What the function may do beyond returning outputs. Nothing, unless it is listed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct Allow {
    /// Topics on the local broker that it may publish to.
    pub publish: Vec<TopicFilter>,
    pub clock: bool,
    pub random: bool,
}

/// For one run.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Limits {
    pub fuel: NonZeroU64,
    pub timeout_ms: NonZeroU32,
    pub memory_bytes: NonZeroUsize,
    pub outputs: u32,
    /// All outputs of a run together.
    pub output_bytes: usize,
    /// All keys and values of one scope together.
    pub state_bytes: usize,
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
    /// Reads `function.toml` of a folder. Every problem in it is reported.
    pub fn load(dir: &Path) -> Result<Self, Problems> {
        Self::load_within(dir, None)
    }

    /// The same, and its limits are held against what the configuration allows.
    pub fn load_within(dir: &Path, ceilings: Option<&Functions>) -> Result<Self, Problems> {
        let file = dir.join(FILE_NAME);
        match std::fs::read_to_string(&file) {
            Ok(text) => Self::from_toml(&text, &file, ceilings),
            Err(error) => {
                let misfit = Misfit::new(format!("cannot be read: {error}"));
                let mut problems = Problems::default();
                problems.push(Problem::error(Location::whole(file), "", misfit));
                Err(problems)
            }
        }
    }

    /// `file` is only what problems are reported under.
    pub fn from_toml(text: &str, file: &Path, ceilings: Option<&Functions>) -> Result<Self, Problems> {
        let (table, problems) = Table::from_toml(text, file);
        if problems.is_empty() { Self::read(&table, ceilings) } else { Err(problems) }
    }

    /// Reads what [`Manifest::to_json`] wrote, or another tool.
    pub fn from_json(bytes: &[u8], ceilings: Option<&Functions>) -> Result<Self, Problems> {
        Table::from_json(bytes, "manifest")
            .map_err(|problem| {
                let mut problems = Problems::default();
                problems.push(problem);
                problems
            })
            .and_then(|table| Self::read(&table, ceilings))
    }

    /// Compact JSON; equal manifests give equal bytes.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a manifest has only string keys")
    }

    /// Whether the function may publish to this topic.
    pub fn may_publish(&self, topic: &str) -> bool {
        self.allow.publish.iter().any(|filter| filter.matches(topic))
    }

    fn read(table: &Table, ceilings: Option<&Functions>) -> Result<Self, Problems> {
        let mut manifest = None;
        let (problems, _) = Reader::run(table, |section| manifest = Some(read(section, ceilings)));
        match manifest.flatten() {
            Some(manifest) if !problems.has_errors() => Ok(manifest),
            _ => Err(problems),
        }
    }
}

/// `None` only if a required key is missing or bad; the caller looks at the problems in any case.
fn read(section: &mut Section<'_, '_>, ceilings: Option<&Functions>) -> Option<Manifest> {
    let name = section.required::<Name>("name", "\"threshold-alert\"");
    let version = section.required::<Version>("version", "\"1.0.0\"");
    let mut manifest = Manifest {
        name: "".into(),
        version: "".into(),
        serial: 0,
        subscribe: Vec::new(),
        state: StateScope::None,
        every: None,
        component: None,
        allow: Allow::default(),
        limits: Limits::default(),
        config: BTreeMap::new(),
    };
    section.value("serial", &mut manifest.serial);
    section.value("subscribe", &mut manifest.subscribe);
    section.value("state", &mut manifest.state);
    let mut every = None;
    section.optional::<Period>("every", &mut every);
    manifest.every = every.map(|Period(every)| every);
    if section.optional("component", &mut manifest.component) {
        let component = manifest.component.as_deref().unwrap_or_default();
        section.check("component", check_component(component));
    }
    if !section.has("subscribe") && !section.has("every") {
        let misfit = Misfit::new("missing, and no every: the function would never run");
        section.error("subscribe", misfit.mend("for example subscribe = [\"sensors/+/temperature\"]"));
    } else if section.has("subscribe") && !section.has("every") && is_empty_list(section.item("subscribe")) {
        section.error(
            "subscribe",
            Misfit::new("empty, and no every: the function would never run").mend("name a topic filter"),
        );
    }
    check_subscribe(section, &manifest.subscribe);

    section.section("allow", |allow| {
        allow.value("publish", &mut manifest.allow.publish);
        allow.value("clock", &mut manifest.allow.clock);
        allow.value("random", &mut manifest.allow.random);
        check_loops(allow, &manifest.subscribe, &manifest.allow.publish);
    });
    section.section("limits", |limits| read_limits(limits, &mut manifest.limits, ceilings));
    section.section("config", |config| {
        for (key, _) in config.entries() {
            let mut value = Setting(String::new());
            if config.value(key, &mut value) {
                manifest.config.insert(key.to_owned(), value.0);
            }
        }
    });
    let (Name(name), Version(version)) = (name?, version?);
    Some(Manifest { name, version, ..manifest })
}

fn read_limits(section: &mut Section<'_, '_>, limits: &mut Limits, ceilings: Option<&Functions>) {
    section.value("fuel", &mut limits.fuel);
    section.value("timeout_ms", &mut limits.timeout_ms);
    section.value("memory_bytes", &mut limits.memory_bytes);
    section.value("outputs", &mut limits.outputs);
    section.value("output_bytes", &mut limits.output_bytes);
    section.value("state_bytes", &mut limits.state_bytes);
    if limits.memory_bytes.get() < WASM_PAGE_BYTES {
        let misfit = Misfit::new(format!("{} is less than one page of WebAssembly memory", limits.memory_bytes));
        section.error("memory_bytes", misfit.mend(format!("use at least {WASM_PAGE_BYTES}")));
    }
    let Some(most) = ceilings else { return };
    let asked = [
        ("fuel", "max_fuel", limits.fuel.get(), most.max_fuel.get()),
        ("timeout_ms", "max_timeout_ms", limits.timeout_ms.get().into(), most.max_timeout_ms.get().into()),
        ("memory_bytes", "max_memory_bytes", limits.memory_bytes.get() as u64, most.max_memory_bytes.get() as u64),
    ];
    for (key, ceiling, asked, most) in asked {
        if asked > most {
            let misfit = Misfit::new(format!("{asked} is above functions.{ceiling} of this board ({most})"));
            section.error(key, misfit.mend("lower it here, or raise that in the configuration"));
        }
    }
}

const WASM_PAGE_BYTES: usize = 65_536;

fn is_empty_list(item: Option<&Item>) -> bool {
    matches!(item, Some(Item { value: Value::Array(items), .. }) if items.is_empty())
}

/// Where the nth item of a list stands.
fn nth(section: &mut Section<'_, '_>, key: &str, n: usize) -> Location {
    match section.item(key) {
        Some(Item { value: Value::Array(items), .. }) if n < items.len() => items[n].at.clone(),
        _ => section.at(key),
    }
}

fn check_subscribe(section: &mut Section<'_, '_>, subscribe: &[TopicFilter]) {
    for (n, filter) in subscribe.iter().enumerate() {
        let at = nth(section, "subscribe", n);
        if subscribe[..n].contains(filter) {
            section.error_at(
                at,
                &format!("subscribe[{n}]"),
                Misfit::new(format!("{filter} is there twice")).mend("remove one"),
            );
        } else if filter.as_str().split('/').next() == Some("$timer") {
            let misfit =
                Misfit::new("$timer topics never come from the broker").mend("use every = \"10s\" for a timer");
            section.error_at(at, &format!("subscribe[{n}]"), misfit);
        }
    }
}

/// A function that hears what it says would run for ever.
fn check_loops(allow: &mut Section<'_, '_>, subscribe: &[TopicFilter], publish: &[TopicFilter]) {
    for (n, out) in publish.iter().enumerate() {
        for heard in subscribe.iter().filter(|heard| heard.intersects(out)) {
            let at = nth(allow, "publish", n);
            let misfit = Misfit::new(format!("feedback loop: publish {out} can match subscribe {heard}"));
            allow.error_at(
                at,
                &format!("publish[{n}]"),
                misfit.mend("publish under topics that this function does not hear"),
            );
        }
    }
}

fn check_component(file: &str) -> Result<(), Misfit> {
    let mut parts = Path::new(file).components();
    match (parts.next(), parts.next()) {
        (Some(Component::Normal(_)), None) => Ok(()),
        _ => Err(Misfit::new(format!("{file:?} is not the name of a file in this folder"))
            .mend("for example component = \"function.wasm\"")),
    }
}

struct Name(Arc<str>);
struct Version(Arc<str>);
struct Period(Duration);
struct Setting(String);

fn refuse<T>(item: &Item, key: &str, misfit: Misfit, problems: &mut Problems) -> Option<T> {
    problems.push(Problem::error(item.at.clone(), key, misfit));
    None
}

impl Read for Name {
    fn read(item: &Item, key: &str, problems: &mut Problems) -> Option<Self> {
        let text = String::read(item, key, problems)?;
        if text.len() <= 64 && text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-')) {
            return Some(Self(text.into()));
        }
        let misfit = Misfit::new(format!("{text:?} is no function name"));
        refuse(item, key, misfit.mend("use 1 to 64 of a-z, 0-9 and -"), problems)
    }
}

impl Read for Version {
    fn read(item: &Item, key: &str, problems: &mut Problems) -> Option<Self> {
        let text = String::read(item, key, problems)?;
        if text.len() <= 64 && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'+')) {
            return Some(Self(text.into()));
        }
        let misfit = Misfit::new(format!("{text:?} is no version"));
        refuse(item, key, misfit.mend("use 1 to 64 letters, digits, dots, - and +, as in 1.2.0"), problems)
    }
}

impl Read for TopicFilter {
    fn read(item: &Item, key: &str, problems: &mut Problems) -> Option<Self> {
        let text = String::read(item, key, problems)?;
        match Self::parse(&text) {
            Ok(filter) => Some(filter),
            Err(error) => refuse(item, key, Misfit::new(error.to_string()), problems),
        }
    }
}

impl Read for StateScope {
    fn read(item: &Item, key: &str, problems: &mut Problems) -> Option<Self> {
        let text = String::read(item, key, problems)?;
        match &*text {
            "none" => Some(Self::None),
            "topic" => Some(Self::Topic),
            "function" => Some(Self::Function),
            other => {
                let mend = match nearest(other, &["none", "topic", "function"]) {
                    Some(near) => format!("did you mean {near:?}?"),
                    None => "use \"none\", \"topic\" or \"function\"".into(),
                };
                refuse(item, key, Misfit::new(format!("unknown scope {other:?}")).mend(mend), problems)
            }
        }
    }
}

/// Shorter ticks cost more than they tell; longer ones outlive every board.
const PERIODS: std::ops::RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(366 * 24 * 3600);

impl Read for Period {
    fn read(item: &Item, key: &str, problems: &mut Problems) -> Option<Self> {
        let Value::String(text) = &item.value else {
            return wrong_kind(item, key, "a time with its unit, such as \"10s\"", problems);
        };
        match parse_period(text) {
            Some(period) if PERIODS.contains(&period) => Some(Self(period)),
            Some(_) => {
                let misfit = Misfit::new(format!("{text:?} is out of range"));
                refuse(item, key, misfit.mend("use 100ms or more, and 366 days or less"), problems)
            }
            None => {
                let misfit = Misfit::new(format!("{text:?} is no time"));
                refuse(
                    item,
                    key,
                    misfit.mend("write a whole number and ms, s, m or h: \"500ms\", \"10s\", \"5m\", \"1h\""),
                    problems,
                )
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

/// The largest unit that divides it, so that what a person wrote mostly comes back.
fn format_period(period: Duration) -> String {
    let ms = period.as_millis();
    [(3_600_000, "h"), (60_000, "m"), (1_000, "s")]
        .into_iter()
        .find(|(unit_ms, _)| ms % unit_ms == 0)
        .map_or_else(|| format!("{ms}ms"), |(unit_ms, unit)| format!("{}{unit}", ms / unit_ms))
}

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
