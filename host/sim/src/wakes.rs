//! What must hold of wakes. Knows what runs ask for by the numbers of their messages, and nothing of the board.
//!
//! A message `w<n>` sets a wake by its number, and `v<n>` cancels one. The run of a wake leaves a record `W<name>`.

use std::collections::BTreeMap;
use std::time::Duration;

const NAMES: u64 = 3;
/// Set by the run of the last of these names.
const CHAINED: &str = "chained";
const CHAINED_AFTER_MS: u64 = 200;

/// The name and time of the wake that a message sets, or the name that it cancels.
pub fn asked(payload: &str) -> Option<(String, Option<u64>)> {
    let is_set = payload.starts_with('w');
    let number: u64 = payload.strip_prefix(['w', 'v'])?.parse().ok()?;
    let after_ms = is_set.then_some([1, 60, 900, 4_000, 90_000][(number / NAMES % 5) as usize]);
    Some((format!("k{}", number % NAMES), after_ms))
}

/// What the run of a wake sets.
pub fn chained(name: &str) -> Option<(&'static str, u64)> {
    let number = name.strip_prefix('k').and_then(|number| number.parse().ok());
    (number == Some(NAMES - 1)).then_some((CHAINED, CHAINED_AFTER_MS))
}

/// Whether the first run of a wake asks for another.
pub fn retries(name: &str) -> bool {
    name == "k1"
}

/// Both clocks of the board.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clock {
    pub elapsed: Duration,
    pub unix_ms: u64,
}

/// A function, the topic of its state, and a name.
type Name = (&'static str, String, String);

#[derive(Debug)]
struct Set {
    /// Number of the first run of the message that set it. Within a key messages run in their order; a cancellation that finds
    /// nothing may be committed after what a later message sets.
    run: u64,
    wait: Duration,
    /// When the run that set it took place, or earlier.
    at: Clock,
    /// The latest that the wall clock has shown since.
    latest_ms: u64,
    /// When the commit that moved or cancelled it was written.
    superseded: Option<(Duration, u64)>,
    /// By a message that ran before it, perhaps for the last time.
    may_stand: bool,
    has_run: bool,
}

#[derive(Debug, Default)]
pub struct WakeModel {
    sets: BTreeMap<Name, Vec<Set>>,
    clock: Clock,
    /// The first run of each message, and its number.
    ran: BTreeMap<(String, String), (Clock, u64)>,
    runs: u64,
    /// A wake ran although it had been moved or cancelled: it was due before.
    pub ran_late: bool,
    pub was_superseded: bool,
}

impl Set {
    /// Whether it may have been due: by the time that passed, or by a wall clock that jumped while the board was off.
    fn may_be_due(&self, elapsed: Duration, latest_ms: u64) -> bool {
        let due_ms = self.at.unix_ms.saturating_add(self.wait.as_millis() as u64);
        elapsed >= self.at.elapsed + self.wait || latest_ms >= due_ms
    }
}

impl WakeModel {
    pub fn pass(&mut self, elapsed: Duration, unix_ms: u64) {
        self.clock = Clock { elapsed, unix_ms };
        for set in
            self.sets.values_mut().flatten().filter(|set| !set.has_run && (set.superseded.is_none() || set.may_stand))
        {
            set.latest_ms = set.latest_ms.max(unix_ms);
        }
    }

    /// A worker ran a message that sets or cancels a wake.
    pub fn ran(&mut self, function: &str, payload: &str) {
        if payload.starts_with(['w', 'v']) {
            let (run, key) = ((self.clock, self.next_run()), (function.to_owned(), payload.to_owned()));
            self.ran.entry(key).or_insert(run);
        }
    }

    fn next_run(&mut self) -> u64 {
        self.runs += 1;
        self.runs
    }

    /// The outcome of a message is committed, which may set or cancel a wake. `topic`: of the state.
    pub fn committed(&mut self, function: &'static str, topic: &str, payload: &str) {
        let Some((name, after_ms)) = asked(payload) else { return };
        let known = self.ran.get(&(function.to_owned(), payload.to_owned())).copied();
        let (at, run) = known.unwrap_or_else(|| (self.clock, self.next_run()));
        self.set((function, topic.to_owned(), name), after_ms, at, run);
    }

    fn set(&mut self, name: Name, after_ms: Option<u64>, at: Clock, run: u64) {
        let Clock { elapsed, unix_ms } = self.clock;
        let sets = self.sets.entry(name).or_default();
        for set in sets.iter_mut().filter(|set| set.superseded.is_none()) {
            self.was_superseded |= !set.has_run;
            set.superseded = Some((elapsed, set.latest_ms.max(unix_ms)));
            set.may_stand = run < set.run;
        }
        if let Some(after_ms) = after_ms {
            let (wait, latest_ms) = (Duration::from_millis(after_ms), at.unix_ms.max(unix_ms));
            sets.push(Set { run, wait, at, latest_ms, superseded: None, may_stand: false, has_run: false });
        }
    }

    /// The outcome of a wake is committed. `topic`: of the state, or empty if that is the function's. `is_done`: it is no dead
    /// letter. `Err`: why it should not have run.
    pub fn woken(&mut self, function: &'static str, topic: &str, name: &str, is_done: bool) -> Result<(), String> {
        let key = (function, topic.to_owned(), name.to_owned());
        let Clock { elapsed, unix_ms } = self.clock;
        let sets = self.sets.entry(key).or_default();
        let may_run = |set: &&mut Set| {
            let ended = set.superseded.filter(|_| !set.may_stand);
            let (until, latest_ms) = ended.unwrap_or((elapsed, set.latest_ms.max(unix_ms)));
            !set.has_run && set.may_be_due(until, latest_ms)
        };
        // The latest first: of one that was moved it is not known when it was due.
        let Some(set) = sets.iter_mut().rev().find(may_run) else {
            return Err(format!("wake {name} of {function} on {topic:?} ran at {elapsed:?}, of {sets:?}"));
        };
        set.has_run = true;
        self.ran_late |= set.superseded.is_some();
        // The run took place at some time after this.
        let at = set.at;
        if let Some((chained, after_ms)) = chained(name).filter(|_| is_done) {
            let run = self.next_run();
            self.set((function, topic.to_owned(), chained.to_owned()), Some(after_ms), at, run);
        }
        Ok(())
    }

    /// The board had the state of a function deleted, and its wakes with it.
    pub fn forgotten(&mut self, function: &str) {
        self.sets.retain(|(name, _, _), _| *name != function);
    }

    /// Wakes that were neither run nor moved nor cancelled.
    pub fn lost(&self) -> Vec<String> {
        let is_lost = |set: &Set| !set.has_run && set.superseded.is_none();
        let lost = self.sets.iter().filter(|(_, sets)| sets.iter().any(is_lost));
        lost.map(|((function, topic, name), _)| format!("wake {name} of {function} on {topic:?} never ran")).collect()
    }
}
