//! Functions in native tests: `cargo test` runs them without a board, a broker or wasm.

mod manifest;

use std::borrow::ToOwned;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::{format, mem, thread_local};

use alloc::string::String;
use alloc::vec::Vec;

use crate::log::Level;
use crate::{Failure, Function, Message, Outcome, Output, Silence, Wake, output};
use manifest::{Manifest, Scope};

/// Most slashes in a topic.
const MAX_TOPIC_SLASHES: usize = 200;
const MAX_CONTENT_TYPE_BYTES: usize = 255;
const MAX_WAKE_NAME_BYTES: usize = 128;
/// Ten years.
const MAX_WAKE_MS: u64 = 3_652 * 86_400_000;
/// Keys of a scope, and of those how many a run may change.
const MAX_STATE_KEYS: usize = 4096;
const MAX_STATE_CHANGES: usize = 1024;
/// Number of log lines of a run, and the length of one. A board drops the rest.
const MAX_LOG_LINES: usize = 32;
const MAX_LOG_LINE_BYTES: usize = 1024;

/// A board that exists only in a test: settings, durable state, permissions, limits, clocks and a log.
///
/// ```
/// use sedge_function::{Function, Message, Outcome, testing::Board};
///
/// struct Quiet;
/// impl Function for Quiet {
///     fn handle(_: Message) -> Outcome {
///         Ok(vec![])
///     }
/// }
///
/// let mut board = Board::new().setting("max", "80");
/// assert_eq!(board.run::<Quiet>(Message::new("sensors/a", "21.5")), Ok(vec![]));
/// ```
#[derive(Debug)]
pub struct Board {
    manifest: Manifest,
    state: BTreeMap<String, BTreeMap<String, Vec<u8>>>,
    /// Unix time in milliseconds, if the test says it.
    clock_ms: Option<u64>,
    log: Vec<(Level, String)>,
}

impl Default for Board {
    fn default() -> Self {
        Self::new()
    }
}

impl Board {
    /// A board for a function that may do everything: it hears all topics, has state by topic, and reads both clocks.
    pub fn new() -> Self {
        Self { manifest: Manifest::permissive(), state: BTreeMap::new(), clock_ms: None, log: Vec::new() }
    }

    /// A board as `function.toml` makes it: `Board::from_manifest(include_str!("../function.toml"))`. It has the topics, the scope of
    /// the state, the settings, the permissions and the limits of outputs and state from there.
    ///
    /// # Panics
    ///
    /// If it is not a manifest. Not every mistake is found: `sedge check` does that.
    pub fn from_manifest(toml: &str) -> Self {
        match Manifest::parse(toml) {
            Ok(manifest) => Self { manifest, ..Self::new() },
            Err(error) => panic!("function.toml: {error}"),
        }
    }

    /// Sets a setting, or replaces that of the manifest.
    pub fn setting(mut self, key: &str, value: &str) -> Self {
        self.manifest.settings.insert(key.into(), value.into());
        self
    }

    /// State as with `state = "function"`.
    pub fn shared_state(mut self) -> Self {
        self.manifest.scope = Scope::Function;
        self
    }

    /// State as with `state = "none"`: a read finds nothing, and a write fails.
    pub fn without_state(mut self) -> Self {
        self.manifest.scope = Scope::None;
        self
    }

    /// Stops the clocks at this Unix time in milliseconds. Before, they are those of this machine.
    pub fn set_clock(&mut self, unix_ms: u64) {
        self.clock_ms = Some(unix_ms);
    }

    /// Runs a function on one message. As on a real board, state changes are kept only when it succeeds, and what a board would make
    /// a dead letter is an error here: an output that is not allowed, a limit that is broken.
    ///
    /// # Panics
    ///
    /// If the function would never get the message because of its `subscribe`, or if it uses a clock or random numbers without the
    /// permission: a board refuses such a function.
    pub fn run<F: Function>(&mut self, message: Message) -> Outcome {
        let manifest = &mut self.manifest;
        let any = |filters: &[String]| filters.iter().any(|filter| matches(filter, &message.topic));
        let heard = any(&manifest.subscribe) && !any(&manifest.except) || any(&manifest.requests);
        if message.is_tick() {
            assert!(manifest.every, "function.toml has no `every`: the function would not get a tick");
        } else if let Some(Silence { is_back, .. }) = message.silence() {
            let (has_calls, section) = match is_back {
                true => (manifest.back, " with `back = true`"),
                false => (manifest.silence, ""),
            };
            assert!(has_calls, "function.toml has no section `silence`{section}: the function would not be called");
        } else if let Some(name) = message.schedule() {
            let is_it = |known: &String| known == name || known == "*" || known.is_empty() && manifest.name == name;
            let has = manifest.schedules.iter().any(is_it);
            assert!(has, "function.toml has no schedule {name:?} in `at`: the function would not run");
        } else if message.wake().is_none() {
            assert!(
                heard,
                "{:?} matches no filter of `subscribe`, or one of `except`: the function would not get it",
                message.topic
            );
        }
        let scope = if manifest.scope == Scope::Topic { message.state_topic().into() } else { String::new() };
        let before = self.state.get(&scope).cloned().unwrap_or_default();
        let run = Run {
            manifest: mem::take(manifest),
            state: before.clone(),
            changed: BTreeMap::new(),
            broken: None,
            clock_ms: self.clock_ms,
            log: Vec::new(),
        };
        RUN.set(Some(run));
        let outcome = F::handle(message).map(output::without_infinity);
        let run = RUN.take().expect("nothing else ends a run");
        self.manifest = run.manifest;
        self.log.extend(run.log);
        let outcome = match run.broken {
            Some(broken) => Err(Failure::Reject(broken)),
            None => outcome.and_then(|outputs| self.manifest.check(outputs)),
        };
        self.state.insert(scope, if outcome.is_ok() { run.state } else { before });
        outcome
    }

    /// Runs a function on a tick of the manifest's `every`.
    pub fn tick<F: Function>(&mut self) -> Outcome {
        let topic = format!("$timer/{}", self.manifest.name);
        self.run::<F>(Message { received_at_ms: self.clock_ms.unwrap_or(0), ..Message::new(topic, "") })
    }

    /// Runs a function on a schedule. `due`: the time at which it is due, as in `2026-01-05T06:00:00.000Z`.
    pub fn schedule<F: Function>(&mut self, name: &str, due: &str) -> Outcome {
        let message = Message::new(format!("$schedule/{name}"), "");
        let properties = Vec::from([("sedge-due".into(), due.into())]);
        self.run::<F>(Message { properties, received_at_ms: self.clock_ms.unwrap_or(0), ..message })
    }

    /// Runs a function on a wake that a message of `topic` has set. Which wakes wait is up to the test.
    pub fn wake<F: Function>(&mut self, name: &str, topic: &str) -> Outcome {
        let message = Message::new(format!("$wake/{name}"), "");
        let properties = Vec::from([("sedge-topic".into(), topic.into())]);
        self.run::<F>(Message { properties, received_at_ms: self.clock_ms.unwrap_or(0), ..message })
    }

    /// Runs a function on the call that a topic is silent.
    pub fn silence<F: Function>(&mut self, topic: &str, silent_ms: u64) -> Outcome {
        let message = Silence { topic, silent_ms, is_back: false }.message();
        self.run::<F>(Message { received_at_ms: self.clock_ms.unwrap_or(0), ..message })
    }

    /// Runs a function on the call that a topic speaks again.
    pub fn back<F: Function>(&mut self, topic: &str, silent_ms: u64) -> Outcome {
        let message = Silence { topic, silent_ms, is_back: true }.message();
        self.run::<F>(Message { received_at_ms: self.clock_ms.unwrap_or(0), ..message })
    }

    /// Uses the state outside of a function, for tests of the helpers.
    #[cfg(test)]
    pub(crate) fn with_state<R>(&mut self, use_state: impl FnOnce() -> R) -> R {
        let state = self.state.remove("").unwrap_or_default();
        let manifest = mem::take(&mut self.manifest);
        let changed = BTreeMap::new();
        RUN.set(Some(Run { manifest, state, changed, broken: None, clock_ms: self.clock_ms, log: Vec::new() }));
        let result = use_state();
        let run = RUN.take().expect("nothing else ends a run");
        assert_eq!(run.broken, None);
        self.manifest = run.manifest;
        self.state.insert(String::new(), run.state);
        result
    }

    /// What was logged so far.
    pub fn log(&self) -> &[(Level, String)] {
        &self.log
    }
}

impl Manifest {
    /// What a board checks of a run that succeeded.
    fn check(&self, outputs: Vec<Output>) -> Outcome {
        let reject = |why: String| Err(Failure::Reject(why));
        if outputs.len() > self.max_outputs {
            return reject(format!("output: {} outputs, the limit is {}", outputs.len(), self.max_outputs));
        }
        let bytes: usize = outputs.iter().map(size).sum();
        if bytes > self.max_output_bytes {
            return reject(format!("output: {bytes} bytes of output, the limit is {}", self.max_output_bytes));
        }
        for output in &outputs {
            let publication = match output {
                // Which sinks there are is the board's to say.
                Output::Alert(_) => continue,
                Output::Publish(publication) if publication.sink.is_some() => {
                    return reject(format!("not-available: the publication to {:?} names a sink", publication.topic));
                }
                Output::Publish(publication) | Output::Forward(publication) => publication,
                Output::Wake(wake) => {
                    check_wake(wake).map_err(Failure::Reject)?;
                    continue;
                }
                Output::Reply(reply) if !(200..=599).contains(&reply.status) => {
                    return reject(format!("invalid-reply: status {}", reply.status));
                }
                Output::Reply(_) => continue,
            };
            let topic = &publication.topic;
            if topic.is_empty()
                || topic.contains(['+', '#', '\0'])
                || topic.bytes().filter(|byte| *byte == b'/').count() > MAX_TOPIC_SLASHES
            {
                return reject(format!("invalid-topic: {topic:?}"));
            }
            let content_type = publication.content_type.as_deref().unwrap_or_default();
            if content_type.len() > MAX_CONTENT_TYPE_BYTES
                || content_type.bytes().any(|byte| !matches!(byte, b' '..=b'~'))
            {
                return reject(format!("invalid-content-type: {content_type:?}"));
            }
            let allows = |filters: &[String]| filters.iter().any(|filter| matches(filter, topic));
            let missing = match output {
                Output::Publish(_) if !allows(&self.publish) => "publish",
                Output::Forward(_) if self.forward.as_ref().is_some_and(|filters| !allows(filters)) => "forward",
                _ if publication.retain && self.retain.as_ref().is_some_and(|filters| !allows(filters)) => "retain",
                _ => "",
            };
            if !missing.is_empty() {
                return reject(format!("not-allowed: no filter of [allow] {missing} matches {topic:?}"));
            }
            let level = topic.trim_start_matches('/').split('/').next().unwrap_or_default();
            if matches!(output, Output::Forward(_)) && OWN_LEVELS.contains(&level) {
                return reject(format!(
                    "not-allowed: {topic:?} cannot be forwarded: upstream, {level}/ is the board's own"
                ));
            }
        }
        Ok(outputs)
    }
}

/// What a board refuses of a wake.
fn check_wake(wake: &Wake) -> Result<(), String> {
    let name = &wake.name;
    if name.is_empty() || name.len() > MAX_WAKE_NAME_BYTES || name.contains(['+', '#', '\0']) {
        return Err(format!("invalid-wake: {name:?} is not a name"));
    }
    match wake.after_ms {
        Some(0) => Err(format!("invalid-wake: {name:?} after 0 ms")),
        Some(after_ms) if after_ms > MAX_WAKE_MS => Err(format!("invalid-wake: {name:?} after {after_ms} ms")),
        _ => Ok(()),
    }
}

/// First levels upstream that are the board's own.
const OWN_LEVELS: [&str; 10] =
    ["alerts", "gaps", "status", "functions", "deploy", "group", "blob", "settings", "request", "reply"];

/// Bytes of an output that count.
fn size(output: &Output) -> usize {
    let length = |text: &Option<String>| text.as_ref().map_or(0, String::len);
    match output {
        Output::Alert(alert) => {
            let labels: usize = alert.labels.iter().map(|(name, value)| name.len() + value.len()).sum();
            alert.key.len() + alert.summary.len() + labels + length(&alert.sink)
        }
        Output::Forward(publication) | Output::Publish(publication) => {
            let texts = length(&publication.content_type) + length(&publication.sink);
            publication.topic.len() + publication.payload.len() + texts
        }
        Output::Wake(wake) => wake.name.len(),
        Output::Reply(reply) => reply.body.len() + length(&reply.content_type),
    }
}

/// Whether a topic matches a filter of MQTT.
fn matches(filter: &str, topic: &str) -> bool {
    if topic.starts_with('$') && filter.starts_with(['+', '#']) {
        return false;
    }
    let (mut filter, mut topic) = (filter.split('/'), topic.split('/'));
    loop {
        match (filter.next(), topic.next()) {
            (Some("#"), _) | (None, None) => return true,
            (Some("+"), Some(_)) => {}
            (Some(expected), Some(level)) if expected == level => {}
            _ => return false,
        }
    }
}

struct Run {
    manifest: Manifest,
    state: BTreeMap<String, Vec<u8>>,
    /// What the keys that it changed held before.
    changed: BTreeMap<String, Option<Vec<u8>>>,
    /// The limit that ended the run.
    broken: Option<String>,
    clock_ms: Option<u64>,
    log: Vec<(Level, String)>,
}

impl Run {
    fn set(&mut self, key: &str, value: Option<&[u8]>) -> Result<(), String> {
        if self.manifest.scope == Scope::None || self.manifest.max_state_bytes == 0 {
            return Err(crate::host::STATELESS.to_owned());
        }
        let before = match value {
            Some(value) => self.state.insert(key.into(), value.into()),
            None => self.state.remove(key),
        };
        let original = self.changed.entry(key.into()).or_insert(before);
        if original.as_deref() == value {
            self.changed.remove(key);
        }
        let bytes: usize = self.state.iter().map(|(key, value)| key.len() + value.len()).sum();
        let limit = self.manifest.max_state_bytes;
        if bytes > limit {
            self.broken.get_or_insert(format!("state: {bytes} bytes of state, the limit is {limit}"));
        }
        let keys = self.state.len();
        if keys > MAX_STATE_KEYS && value.is_some() {
            self.broken.get_or_insert(format!("state: {keys} keys of state, the limit is {MAX_STATE_KEYS}"));
        }
        if self.changed.len() > MAX_STATE_CHANGES {
            let why = format!("state: changed more than {MAX_STATE_CHANGES} keys of state in one run");
            self.broken.get_or_insert(why);
        }
        Ok(())
    }
}

thread_local! {
    static RUN: RefCell<Option<Run>> = const { RefCell::new(None) };
}

pub(crate) mod host {
    use alloc::string::{String, ToString};
    use alloc::vec::Vec;

    use std::hash::{BuildHasher, Hasher, RandomState};
    use std::sync::OnceLock;
    use std::time::{Instant, SystemTime, UNIX_EPOCH};

    use super::{Level, MAX_LOG_LINE_BYTES, MAX_LOG_LINES, RUN, Run, Scope};

    fn with<R>(use_run: impl FnOnce(&mut Run) -> R) -> R {
        RUN.with_borrow_mut(|run| {
            use_run(run.as_mut().expect("state and settings exist while Board::run runs a function"))
        })
    }

    pub(crate) fn state_get(key: &str) -> Result<Option<Vec<u8>>, String> {
        Ok(with(|run| run.state.get(key).cloned()))
    }

    pub(crate) fn state_set(key: &str, value: &[u8]) -> Result<(), String> {
        with(|run| run.set(key, Some(value)))
    }

    pub(crate) fn state_remove(key: &str) -> Result<(), String> {
        with(|run| run.set(key, None))
    }

    pub(crate) fn state_keys() -> Result<Vec<String>, String> {
        Ok(with(|run| run.state.keys().cloned().collect()))
    }

    pub(crate) fn state_increment(key: &str, delta: i64) -> Result<i64, String> {
        if delta == 0 && with(|run| run.manifest.scope == Scope::None) {
            return Ok(0);
        }
        let before = match state_get(key)? {
            None => 0,
            Some(bytes) => core::str::from_utf8(&bytes)
                .ok()
                .and_then(|text| text.parse().ok())
                .ok_or("the value is not a whole number")?,
        };
        let sum: i64 = delta.checked_add(before).ok_or("the sum is out of range")?;
        state_set(key, sum.to_string().as_bytes())?;
        Ok(sum)
    }

    pub(crate) fn setting(key: &str) -> Result<Option<String>, String> {
        Ok(with(|run| run.manifest.settings.get(key).cloned()))
    }

    /// The time that the test set, inside a run. The clocks also work outside of one, as in a test of a part of a function.
    fn stopped_clock() -> Option<u64> {
        RUN.with_borrow(|run| {
            let run = run.as_ref()?;
            assert!(run.manifest.clock, "a clock is read without `clock = true` under [allow] in function.toml");
            run.clock_ms
        })
    }

    pub(crate) fn wall_ms() -> u64 {
        stopped_clock().unwrap_or_else(|| {
            let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            since.as_millis().try_into().unwrap_or(u64::MAX)
        })
    }

    pub(crate) fn monotonic_ns() -> u64 {
        static START: OnceLock<Instant> = OnceLock::new();
        let running = || START.get_or_init(Instant::now).elapsed().as_nanos().try_into().unwrap_or(u64::MAX);
        stopped_clock().map_or_else(running, |unix_ms| unix_ms.saturating_mul(1_000_000))
    }

    pub(crate) fn random_bytes(len: usize) -> Vec<u8> {
        assert!(len <= 65_536, "{len} random bytes at a time: a board ends the run beyond 65,536");
        (0..len).map(|_| random_u64() as u8).collect()
    }

    /// Each state has keys of its own, which is random enough for a test.
    pub(crate) fn random_u64() -> u64 {
        RUN.with_borrow(|run| {
            let allowed = run.as_ref().is_none_or(|run| run.manifest.random);
            assert!(allowed, "a random number is asked for without `random = true` under [allow] in function.toml");
        });
        RandomState::new().build_hasher().finish()
    }

    /// A line as a board writes it: cut off, and without control characters.
    fn cut(line: &str) -> String {
        let mut text: String = line.chars().map(|char| if char.is_control() { ' ' } else { char }).collect();
        if text.len() > MAX_LOG_LINE_BYTES {
            text.truncate(text.floor_char_boundary(MAX_LOG_LINE_BYTES));
            text.push('…');
        }
        text
    }

    pub(crate) fn log(level: Level, line: &str) {
        with(|run| {
            if run.log.len() < MAX_LOG_LINES {
                run.log.push((level, cut(line)));
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Alert, Publication, clock, random, setting, state};
    use std::string::ToString;
    use std::vec;

    /// Does what the payload says.
    struct Obeys;

    impl Function for Obeys {
        fn handle(message: Message) -> Outcome {
            let payload = core::str::from_utf8(&message.payload).unwrap().to_string();
            let (what, argument) = payload.split_once(' ').unwrap_or((&payload, ""));
            let mut outputs = vec![];
            match what {
                "get" => {
                    let value: Option<String> = state::get("key")?;
                    outputs.push(Output::forward("said", value.unwrap_or("nothing".into())));
                }
                "set" => state::set("key", argument.to_string())?,
                "count" => outputs.push(Output::forward("said", state::increment("count", 0)?.to_string())),
                "remove" => state::remove("key")?,
                "keys" => (0..1024).try_for_each(|key| state::set(&(argument.to_string() + &key.to_string()), true))?,
                "keys+1" => (0..1025).try_for_each(|key| state::set(&key.to_string(), true))?,
                "again" => (0..2000).try_for_each(|turn| state::set("key", turn % 2 == 0))?,
                "publish" => outputs.push(Output::publish(argument, "")),
                "wake" => outputs.push(Output::wake(argument, 1)),
                "reply" => outputs.push(Output::reply(argument.parse().unwrap(), "")),
                "sink" => outputs.push(Output::publish("a", "").sink(argument)),
                "forward" => outputs.push(Output::forward(argument, "")),
                "many" => outputs.extend((0..65).map(|_| Output::forward("a", ""))),
                "large" => outputs.push(Output::forward("a", vec![0; 70_000])),
                "clock" => outputs.push(Output::forward("said", clock::now_ms().to_string())),
                "random" => outputs.push(Output::forward("said", random::u64().to_string())),
                "setting" => outputs.push(Output::forward("said", setting::<String>(argument)?)),
                "log" => (0..40).for_each(|_| crate::log::write(Level::Info, &"a\n°".repeat(1000))),
                "infinity" => outputs.push(Alert { value: Some(f64::INFINITY), ..Alert::firing("k", "s") }.into()),
                _ => {}
            }
            Ok(outputs)
        }
    }

    fn said(outcome: Outcome) -> String {
        match &outcome.unwrap()[..] {
            [Output::Forward(Publication { payload, .. })] => String::from_utf8(payload.clone()).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    fn run(board: &mut Board, payload: &str) -> Outcome {
        board.run::<Obeys>(Message::new("a/b", payload))
    }

    #[test]
    fn without_state_a_read_finds_nothing_and_a_write_fails() {
        for mut board in [Board::new().without_state(), Board::from_manifest("name = \"x\"\nsubscribe = [\"#\"]\n")] {
            assert_eq!(said(run(&mut board, "get")), "nothing");
            assert_eq!(said(run(&mut board, "count")), "0");
            let why = "cannot write state key \"key\": the function has state = \"none\" in function.toml";
            assert_eq!(run(&mut board, "set x"), Err(Failure::reject(why)));
            assert!(run(&mut board, "remove").is_err());
        }
    }

    #[test]
    fn state_is_of_the_topic_or_of_the_function() {
        for (scope, other) in [("topic", "nothing"), ("function", "x")] {
            let mut board = Board::from_manifest(&format!("name = \"x\"\nsubscribe = [\"#\"]\nstate = \"{scope}\""));
            run(&mut board, "set x").unwrap();
            assert_eq!(said(run(&mut board, "get")), "x");
            assert_eq!(said(board.run::<Obeys>(Message::new("a/c", "get"))), other);
        }
    }

    #[test]
    fn only_allowed_topics_are_published_to_and_state_of_that_run_is_dropped() {
        let manifest = "name = \"x\"\nsubscribe = [\"a/+\"]\nstate = \"topic\"\n[allow]\npublish = [\"derived/#\"]\n";
        let mut board = Board::from_manifest(manifest);
        assert!(run(&mut board, "publish derived/a").is_ok());
        let Err(Failure::Reject(why)) = run(&mut board, "publish other") else { panic!("it is not refused") };
        assert!(why.starts_with("not-allowed"), "{why}");
        for topic in ["", "derived/+", "derived/#"] {
            let Err(Failure::Reject(why)) = run(&mut board, &format!("publish {topic}")) else { panic!("{topic}") };
            assert!(why.starts_with("invalid-topic"), "{why}");
        }
    }

    #[test]
    fn forwards_go_where_the_manifest_says_and_never_where_the_board_speaks() {
        let manifest = |allow: &str| format!("name = \"x\"\nsubscribe = [\"a/+\"]\n[allow]\n{allow}\n");
        for (allow, topic, refused) in [
            ("clock = false", "raw/a", ""),
            ("clock = false", "alerts/victim", "is the board's own"),
            ("clock = false", "/status", "is the board's own"),
            ("forward = [\"raw/#\"]", "raw/a", ""),
            ("forward = [\"raw/#\"]", "other", "[allow] forward"),
        ] {
            let mut board = Board::from_manifest(&manifest(allow));
            match run(&mut board, &format!("forward {topic}")) {
                Err(Failure::Reject(why)) => assert!(!refused.is_empty() && why.contains(refused), "{why}"),
                outcome => assert!(outcome.is_ok() && refused.is_empty(), "{allow} {topic}"),
            }
        }
    }

    #[test]
    #[should_panic(expected = "would not get it")]
    fn a_topic_that_is_not_heard_panics() {
        run(&mut Board::from_manifest("name = \"x\"\nsubscribe = [\"c/#\"]\n"), "get").unwrap();
    }

    #[test]
    #[should_panic(expected = "would not get it")]
    fn a_topic_that_is_excluded_panics() {
        let mut board = Board::from_manifest("name = \"x\"\nsubscribe = [\"#\"]\nexcept = [\"a/b/#\"]\n");
        assert!(board.run::<Obeys>(Message::new("a/c", "get")).is_ok());
        let _ = run(&mut board, "get");
    }

    #[test]
    fn a_publication_goes_to_the_local_broker_and_names_no_sink() {
        let mut board = Board::new();
        let Err(Failure::Reject(why)) = run(&mut board, "sink mail") else { panic!("a sink is not refused") };
        assert_eq!(why, "not-available: the publication to \"a\" names a sink");
    }

    #[test]
    fn a_wake_has_the_state_of_the_topic_that_set_it() {
        let mut board = Board::new();
        assert!(run(&mut board, "wake open").is_ok());
        let Err(Failure::Reject(why)) = run(&mut board, "wake a+") else { panic!("a+ is not refused") };
        assert_eq!(why, "invalid-wake: \"a+\" is not a name");
        struct Counts;
        impl Function for Counts {
            fn handle(message: Message) -> Outcome {
                let (count, wake) = (state::increment("count", 1)?, message.wake().unwrap_or("none"));
                Ok(vec![Output::forward("said", format!("{wake} {} {count}", message.state_topic()))])
            }
        }
        assert_eq!(said(board.run::<Counts>(Message::new("doors/1", ""))), "none doors/1 1");
        assert_eq!(said(board.wake::<Counts>("open", "doors/1")), "open doors/1 2");
        assert_eq!(said(board.wake::<Counts>("open", "doors/2")), "open doors/2 1");
    }

    #[test]
    fn a_schedule_names_the_time_at_which_it_is_due() {
        struct Says;
        impl Function for Says {
            fn handle(message: Message) -> Outcome {
                let said = (message.schedule().unwrap_or("none"), message.property("sedge-due").unwrap_or("never"));
                Ok(vec![Output::forward("said", format!("{} {}", said.0, said.1))])
            }
        }
        let due = "2026-01-05T06:00:00.000Z";
        let mut own = Board::from_manifest("name = \"x\"\nat = \"0 6 * * *\"\nzone = \"UTC\"\ncatch_up = \"0s\"\n");
        assert_eq!(said(own.schedule::<Says>("x", due)), format!("x {due}"));
        let mut named = Board::from_manifest("name = \"x\"\n[at]\nmorning = [\"0 6 * * *\"]\n");
        assert_eq!(said(named.schedule::<Says>("morning", due)), format!("morning {due}"));
    }

    #[test]
    #[should_panic(expected = "no schedule \"evening\"")]
    fn a_schedule_that_the_manifest_does_not_have_panics() {
        let mut board = Board::from_manifest("name = \"x\"\nat = { morning = \"0 6 * * *\" }\n");
        let _ = board.schedule::<Obeys>("evening", "2026-01-05T06:00:00.000Z");
    }

    #[test]
    fn requests_over_http_are_heard_and_answered() {
        let mut board = Board::from_manifest("name = \"x\"\nhttp = [\"POST /readings/{sensor}\"]\nstate = \"topic\"\n");
        let outputs = board.run::<Obeys>(Message::new("$http/readings/kitchen", "reply 201")).unwrap();
        assert_eq!(outputs, [Output::reply(201, "")]);
        let Err(Failure::Reject(why)) = run(&mut Board::new(), "reply 100") else { panic!("it is not refused") };
        assert_eq!(why, "invalid-reply: status 100");
    }

    #[test]
    fn limits_are_those_of_the_manifest() {
        let mut board = Board::new();
        assert!(matches!(run(&mut board, "many"), Err(Failure::Reject(why)) if why.starts_with("output")));
        assert!(matches!(run(&mut board, "large"), Err(Failure::Reject(why)) if why.starts_with("output")));
        let manifest =
            "name = \"x\"\nsubscribe = [\"#\"]\nstate = \"topic\"\nlimits.state_bytes = 10\nlimits.outputs = 100\n";
        let mut board = Board::from_manifest(manifest);
        assert!(run(&mut board, "many").is_ok());
        assert!(run(&mut board, "set 1234567").is_ok());
        assert!(matches!(run(&mut board, "set 12345678"), Err(Failure::Reject(why)) if why.starts_with("state")));
        assert_eq!(said(run(&mut board, "get")), "1234567");
    }

    #[test]
    fn keys_of_state_are_limited() {
        let mut board = Board::new();
        for prefix in ["a", "b", "c", "d"] {
            assert_eq!(run(&mut board, &format!("keys {prefix}")), Ok(vec![]));
        }
        let why = "state: 4097 keys of state, the limit is 4096";
        assert_eq!(run(&mut board, "keys e"), Err(Failure::reject(why)));
        assert_eq!(run(&mut board, "set x"), Err(Failure::reject(why)));
    }

    #[test]
    fn changes_of_one_run_are_limited_by_their_keys() {
        assert_eq!(run(&mut Board::new(), "again"), Ok(vec![]));
        let mut board = Board::new();
        let why = "state: changed more than 1024 keys of state in one run";
        assert_eq!(run(&mut board, "keys+1"), Err(Failure::reject(why)));
    }

    #[test]
    fn the_clock_is_the_tests() {
        let mut board =
            Board::from_manifest("name = \"x\"\nsubscribe = [\"#\"]\nevery = \"1h\"\n[allow]\nclock = true\n");
        board.set_clock(1_767_610_933_000);
        assert_eq!(said(run(&mut board, "clock")), "1767610933000");
        assert_eq!(board.tick::<Obeys>(), Ok(vec![]));
    }

    #[test]
    #[should_panic(expected = "without `clock = true`")]
    fn a_clock_without_permission_panics() {
        let _ = run(&mut Board::from_manifest("name = \"x\"\nsubscribe = [\"#\"]\n"), "clock");
    }

    #[test]
    #[should_panic(expected = "without `random = true`")]
    fn random_numbers_without_permission_panic() {
        let _ = run(&mut Board::from_manifest("name = \"x\"\nsubscribe = [\"#\"]\n"), "random");
    }

    #[test]
    #[should_panic(expected = "no `every`")]
    fn a_tick_without_every_panics() {
        let _ = Board::from_manifest("name = \"x\"\nsubscribe = [\"#\"]\n").tick::<Obeys>();
    }

    #[test]
    fn the_log_is_cut_off_as_on_a_board() {
        let mut board = Board::new();
        run(&mut board, "log").unwrap();
        assert_eq!(board.log().len(), 32);
        let line = &board.log()[0].1;
        assert!(line.len() <= 1024 + '…'.len_utf8() && line.starts_with("a °a °") && line.ends_with('…'), "{line}");
    }

    #[test]
    fn infinity_is_taken_out_of_an_alert() {
        let outputs = run(&mut Board::new(), "infinity").unwrap();
        assert!(matches!(&outputs[..], [Output::Alert(Alert { value: None, .. })]), "{outputs:?}");
    }

    #[test]
    fn settings_are_those_of_the_manifest() {
        let manifest =
            "name = \"x\"\nsubscribe = [\"#\"]\n[config]\nmax = 80\nmin = -2.50\n\"oven.max\" = \"240\"\non = true\n";
        let mut board = Board::from_manifest(manifest).setting("min", "3");
        for (key, value) in [("max", "80"), ("min", "3"), ("oven.max", "240"), ("on", "true")] {
            assert_eq!(said(run(&mut board, &format!("setting {key}"))), value);
        }
    }

    #[test]
    fn topics_match_as_at_a_broker() {
        for (filter, topic, expected) in [
            ("a/#", "a", true),
            ("a/#", "a/b/c", true),
            ("a/+", "a/b/c", false),
            ("+/b", "a/b", true),
            ("#", "$SYS/a", false),
            ("a", "ab", false),
        ] {
            assert_eq!(matches(filter, topic), expected, "{filter} on {topic}");
        }
    }
}
