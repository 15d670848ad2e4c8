//! Functions in native tests: `cargo test` runs them without a board, a broker or wasm.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::{mem, thread_local};

use alloc::string::String;
use alloc::vec::Vec;

use crate::log::Level;
use crate::{Function, Message, Outcome};

/// A board that exists only in a test: settings, durable state and a log.
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
#[derive(Debug, Default)]
pub struct Board {
    settings: BTreeMap<String, String>,
    shared_state: bool,
    state: BTreeMap<String, BTreeMap<String, Vec<u8>>>,
    log: Vec<(Level, String)>,
}

impl Board {
    /// State is kept by topic, as with `state = "topic"`.
    pub fn new() -> Self {
        Self::default()
    }

    pub fn setting(mut self, key: &str, value: &str) -> Self {
        self.settings.insert(key.into(), value.into());
        self
    }

    /// State as with `state = "function"`.
    pub fn shared_state(mut self) -> Self {
        self.shared_state = true;
        self
    }

    /// Runs a function on one message. As on a real board, state changes are kept only when it succeeds.
    pub fn run<F: Function>(&mut self, message: Message) -> Outcome {
        let scope = if self.shared_state { String::new() } else { message.topic.clone() };
        let before = self.state.get(&scope).cloned().unwrap_or_default();
        let run = Run { settings: mem::take(&mut self.settings), state: before.clone(), log: Vec::new() };
        RUN.set(Some(run));
        let outcome = F::handle(message);
        let run = RUN.take().expect("nothing else ends a run");
        self.settings = run.settings;
        self.log.extend(run.log);
        self.state.insert(scope, if outcome.is_ok() { run.state } else { before });
        outcome
    }

    /// What was logged so far.
    pub fn log(&self) -> &[(Level, String)] {
        &self.log
    }
}

struct Run {
    settings: BTreeMap<String, String>,
    state: BTreeMap<String, Vec<u8>>,
    log: Vec<(Level, String)>,
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

    use super::{Level, RUN, Run};

    fn with<R>(use_run: impl FnOnce(&mut Run) -> R) -> R {
        RUN.with_borrow_mut(|run| {
            use_run(run.as_mut().expect("state and settings exist while Board::run runs a function"))
        })
    }

    pub(crate) fn state_get(key: &str) -> Result<Option<Vec<u8>>, String> {
        Ok(with(|run| run.state.get(key).cloned()))
    }

    pub(crate) fn state_set(key: &str, value: &[u8]) -> Result<(), String> {
        with(|run| run.state.insert(key.into(), value.into()));
        Ok(())
    }

    pub(crate) fn state_remove(key: &str) -> Result<(), String> {
        with(|run| run.state.remove(key));
        Ok(())
    }

    pub(crate) fn state_increment(key: &str, delta: i64) -> Result<i64, String> {
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
        Ok(with(|run| run.settings.get(key).cloned()))
    }

    pub(crate) fn wall_ms() -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        since.as_millis().try_into().unwrap_or(u64::MAX)
    }

    pub(crate) fn monotonic_ns() -> u64 {
        static START: OnceLock<Instant> = OnceLock::new();
        START.get_or_init(Instant::now).elapsed().as_nanos().try_into().unwrap_or(u64::MAX)
    }

    pub(crate) fn random_bytes(len: usize) -> Vec<u8> {
        (0..len).map(|_| random_u64() as u8).collect()
    }

    /// Each state has keys of its own, which is random enough for a test.
    pub(crate) fn random_u64() -> u64 {
        RandomState::new().build_hasher().finish()
    }

    pub(crate) fn log(level: Level, line: &str) {
        with(|run| run.log.push((level, line.into())));
    }
}
