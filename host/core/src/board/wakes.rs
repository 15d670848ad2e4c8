//! Wakes that wait for their time. A due wake becomes a message like any other of its key ([`super::wake_flow`]).
//!
//! ```text
//! set (unsent) ─▶ commit sent: waiting ─▶ due: started ─▶ finished: forgotten, unless it was set again meanwhile
//!                        ▲                     │ its topic is paused
//!                        └─────────────────────┘
//! ```
//!
//! A wake that is moved is another one with another number. The commit of a run deletes the number that ran, so that one which
//! was set meanwhile stays, in whichever order both are committed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::ids::FunctionNo;
use super::map::{Map, Seeded};
use crate::message::Wake;
use crate::store::{StoredWake, WakeId};
use crate::time::Now;
use crate::trace::TraceContext;

/// Wakes of one function that are started at once: the others wait here, not at a worker.
const MAX_STARTED: usize = 16;

pub(crate) struct Wakes {
    functions: BTreeMap<FunctionNo, PerFunction>,
    all: BTreeMap<WakeId, Waiting>,
    /// The wake of each name, by a keyed hash of function, scope and name: an entry is as large for any name.
    names: Map<u128, WakeId>,
    /// Wakes of functions that are not installed, with the time when they are due.
    absent: BTreeMap<Arc<str>, Vec<(Waiting, WakeId)>>,
    last: WakeId,
    /// Some were taken up while the clock was not synchronised, which may be due sooner than it seemed.
    await_clock: bool,
    seed: Seeded,
}

#[derive(Debug, Default)]
struct PerFunction {
    /// All that are not finished.
    count: usize,
    started: usize,
    due: BTreeSet<(Instant, WakeId)>,
}

#[derive(Debug)]
struct Waiting {
    function: FunctionNo,
    name: Arc<str>,
    topic: Arc<str>,
    is_shared: bool,
    hops: u32,
    fan_out: u32,
    due: Instant,
    /// When it is due by the wall clock, if that is not synchronised yet.
    due_ms: Option<u64>,
    stage: Stage,
    /// `false`: of a shadow, and gone with it.
    is_stored: bool,
    /// That of the message which set it.
    trace: Option<Arc<TraceContext>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// The commit that sets it is not sent.
    Unsent,
    Waiting,
    /// It runs, or waits at a worker.
    Started,
}

/// Who sets wakes, and for what.
pub(crate) struct Setter<'a> {
    pub(crate) function: FunctionNo,
    /// The name under which its state is stored.
    pub(crate) state_name: &'a Arc<str>,
    pub(crate) topic: &'a Arc<str>,
    /// The state is the whole function's.
    pub(crate) is_shared: bool,
    pub(crate) hops: u32,
    pub(crate) fan_out: u32,
    /// A shadow's are not stored.
    pub(crate) is_shadow: bool,
}

/// What becomes of a wake in the store.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) set: Option<StoredWake>,
    pub(crate) delete: Option<WakeId>,
}

/// A wake whose time has come.
#[derive(Debug)]
pub(crate) struct Due {
    pub(crate) id: WakeId,
    pub(crate) function: FunctionNo,
    pub(crate) name: Arc<str>,
    pub(crate) topic: Arc<str>,
    pub(crate) is_shared: bool,
    pub(crate) hops: u32,
    pub(crate) fan_out: u32,
    pub(crate) is_stored: bool,
    pub(crate) trace: Option<Arc<TraceContext>>,
}

impl Wakes {
    pub(crate) fn new(seed: Seeded) -> Self {
        Self {
            functions: BTreeMap::new(),
            all: BTreeMap::new(),
            names: seed.map(),
            absent: BTreeMap::new(),
            last: WakeId::default(),
            await_clock: false,
            seed,
        }
    }

    fn key(&self, function: FunctionNo, topic: &str, is_shared: bool, name: &str) -> u128 {
        self.seed.hash128(&(function, (!is_shared).then_some(topic), name))
    }

    /// Wakes of a function that are not finished.
    pub(crate) fn count(&self, function: FunctionNo) -> usize {
        self.functions.get(&function).map_or(0, |it| it.count)
    }

    /// How many there would be after these changes.
    pub(crate) fn count_with<'a>(&self, setter: &Setter<'_>, wakes: impl Iterator<Item = &'a Wake>) -> usize {
        let mut change: BTreeMap<u128, (bool, bool)> = BTreeMap::new();
        for wake in wakes {
            let key = self.key(setter.function, setter.topic, setter.is_shared, &wake.name);
            let before = self.names.contains_key(&key);
            change.entry(key).or_insert((before, before)).1 = wake.after_ms.is_some();
        }
        let added = change.values().filter(|change| **change == (false, true)).count();
        let removed = change.values().filter(|change| **change == (true, false)).count();
        (self.count(setter.function) + added).saturating_sub(removed)
    }

    /// Sets, moves or cancels a wake. [`Wakes::sent`] follows once the commit with the change is sent.
    pub(crate) fn set(&mut self, setter: &Setter<'_>, wake: &Wake, now: Now) -> Change {
        let Setter { function, topic, is_shared, hops, fan_out, is_shadow, .. } = *setter;
        let key = self.key(function, topic, is_shared, &wake.name);
        let before = self.names.remove(&key);
        if let Some(id) = before {
            self.remove(id);
        }
        let delete = before.filter(|_| !is_shadow);
        let Some(wait_ms) = wake.after_ms else { return Change { set: None, delete } };
        self.last.0 += 1;
        let id = self.last;
        let waiting = Waiting {
            function,
            name: (&*wake.name).into(),
            topic: Arc::clone(topic),
            is_shared,
            hops,
            fan_out,
            due: now.monotonic + Duration::from_millis(wait_ms),
            due_ms: None,
            stage: Stage::Unsent,
            is_stored: !is_shadow,
            trace: None,
        };
        let stored = StoredWake {
            id,
            function: Arc::clone(setter.state_name),
            name: Arc::clone(&waiting.name),
            topic: Arc::clone(topic),
            is_shared,
            due_ms: now.unix_ms.saturating_add(wait_ms),
            wait_ms,
            clock_synced: now.synced,
            hops,
            fan_out,
            trace: None,
        };
        self.names.insert(key, id);
        self.functions.entry(function).or_default().count += 1;
        self.all.insert(id, waiting);
        if is_shadow {
            self.sent(id);
            return Change::default();
        }
        Change { set: Some(stored), delete }
    }

    /// Has a wake that was just set carry on a trace.
    pub(crate) fn carry(&mut self, wake: &mut StoredWake, trace: &Arc<TraceContext>) {
        wake.trace = Some(Arc::clone(trace));
        if let Some(waiting) = self.all.get_mut(&wake.id) {
            waiting.trace = Some(Arc::clone(trace));
        }
    }

    /// The commit that sets a wake is sent: it may run.
    pub(crate) fn sent(&mut self, id: WakeId) {
        let Some(waiting) = self.all.get_mut(&id).filter(|it| it.stage == Stage::Unsent) else { return };
        waiting.stage = Stage::Waiting;
        self.functions.entry(waiting.function).or_default().due.insert((waiting.due, id));
    }

    /// Forgets a wake that is in no other list.
    fn remove(&mut self, id: WakeId) {
        let Some(waiting) = self.all.remove(&id) else { return };
        let Some(function) = self.functions.get_mut(&waiting.function) else { return };
        function.count -= 1;
        function.due.remove(&(waiting.due, id));
        self.tidy(waiting.function);
    }

    fn tidy(&mut self, function: FunctionNo) {
        if self.functions.get(&function).is_some_and(|it| it.count == 0 && it.started == 0) {
            self.functions.remove(&function);
        }
    }

    // ---- due ----

    /// When the next wake is due. `can_run`: whether the function can.
    pub(crate) fn next_due(&self, can_run: impl Fn(FunctionNo) -> bool) -> Option<Instant> {
        let ready = self.functions.iter().filter(|(_, it)| it.started < MAX_STARTED && !it.due.is_empty());
        ready.filter(|(number, _)| can_run(**number)).filter_map(|(_, it)| Some(it.due.first()?.0)).min()
    }

    /// Starts wakes that are due, as many of each function as may run at once. `most`: how many in all.
    pub(crate) fn start_due(&mut self, now: Instant, most: usize, can_run: impl Fn(FunctionNo) -> bool) -> Vec<Due> {
        let mut started = Vec::new();
        for (number, function) in &mut self.functions {
            while function.started < MAX_STARTED
                && started.len() < most
                && let Some((_, id)) = function.due.first().copied().filter(|(due, _)| *due <= now)
                && can_run(*number)
            {
                function.due.pop_first();
                function.started += 1;
                let waiting = self.all.get_mut(&id).expect("a wake that is due is not finished");
                waiting.stage = Stage::Started;
                let Waiting { is_shared, hops, fan_out, is_stored, .. } = *waiting;
                let (name, topic) = (Arc::clone(&waiting.name), Arc::clone(&waiting.topic));
                let trace = waiting.trace.clone();
                started.push(Due { id, function: *number, name, topic, is_shared, hops, fan_out, is_stored, trace });
            }
        }
        started
    }

    /// The run of a wake is over, or its message is parked: the store has it no more.
    pub(crate) fn finished(&mut self, function: FunctionNo, id: WakeId) {
        self.stopped(function);
        if let Some(waiting) = self.all.get(&id) {
            let key = self.key(function, &waiting.topic, waiting.is_shared, &waiting.name);
            if self.names.get(&key) == Some(&id) {
                self.names.remove(&key);
            }
            self.remove(id);
        }
        self.tidy(function);
    }

    /// A started wake was not run, and waits again.
    pub(crate) fn postpone(&mut self, function: FunctionNo, id: WakeId, until: Instant) {
        self.stopped(function);
        if let Some(waiting) = self.all.get_mut(&id) {
            (waiting.stage, waiting.due) = (Stage::Waiting, until);
            self.functions.entry(function).or_default().due.insert((until, id));
        }
        self.tidy(function);
    }

    fn stopped(&mut self, function: FunctionNo) {
        if let Some(function) = self.functions.get_mut(&function) {
            function.started = function.started.saturating_sub(1);
        }
    }

    // ---- what the store has ----

    /// Takes up what the store has, in the place of everything that is not certain. Times that are known go on; others are
    /// those of the wall clock, if that was synchronised when the wake was set, and begin anew otherwise.
    pub(crate) fn restore(&mut self, stored: Vec<StoredWake>, find: impl Fn(&str) -> Option<FunctionNo>, now: Now) {
        let known = std::mem::take(&mut self.all);
        let known_absent: BTreeMap<WakeId, Instant> =
            std::mem::take(&mut self.absent).into_values().flatten().map(|(it, id)| (id, it.due)).collect();
        self.functions.clear();
        self.names.clear();
        for wake in stored {
            let StoredWake {
                id,
                function,
                name,
                topic,
                is_shared,
                due_ms,
                wait_ms,
                clock_synced,
                hops,
                fan_out,
                trace,
            } = wake;
            self.last = self.last.max(id);
            let went_on = known.get(&id).map(|it| it.due).or_else(|| known_absent.get(&id).copied());
            let late = if clock_synced && now.synced { due_ms.saturating_sub(now.unix_ms) } else { wait_ms };
            let due = went_on.unwrap_or(now.monotonic + Duration::from_millis(late.min(wait_ms)));
            let due_ms = (clock_synced && !now.synced && went_on.is_none()).then_some(due_ms);
            self.await_clock |= due_ms.is_some();
            let number = find(&function);
            let waiting = Waiting {
                function: number.unwrap_or(FunctionNo(u32::MAX)),
                name,
                topic,
                is_shared,
                hops,
                fan_out,
                due,
                due_ms,
                stage: Stage::Waiting,
                is_stored: true,
                trace,
            };
            match number {
                Some(_) => self.take_up(id, waiting),
                None => self.absent.entry(function).or_default().push((waiting, id)),
            }
        }
        for (id, waiting) in known.into_iter().filter(|(_, it)| !it.is_stored) {
            self.take_up(id, Waiting { stage: Stage::Waiting, ..waiting });
        }
    }

    fn take_up(&mut self, id: WakeId, waiting: Waiting) {
        let key = self.key(waiting.function, &waiting.topic, waiting.is_shared, &waiting.name);
        self.names.insert(key, id);
        let function = self.functions.entry(waiting.function).or_default();
        function.count += 1;
        function.due.insert((waiting.due, id));
        self.all.insert(id, waiting);
    }

    /// A function is installed whose wakes may have waited without it.
    pub(crate) fn adopt(&mut self, name: &str, function: FunctionNo) {
        for (waiting, id) in self.absent.remove(name).into_iter().flatten() {
            self.take_up(id, Waiting { function, ..waiting });
        }
    }

    /// The clock is synchronised: wakes that were taken up without it are due at their time.
    pub(crate) fn clock_synced(&mut self, now: Now) {
        if !std::mem::take(&mut self.await_clock) {
            return;
        }
        let sooner = |waiting: &mut Waiting| {
            let left = waiting.due_ms.take()?.saturating_sub(now.unix_ms);
            let before = waiting.due;
            waiting.due = before.min(now.monotonic + Duration::from_millis(left));
            Some(before)
        };
        for (id, waiting) in &mut self.all {
            if let Some(before) = sooner(waiting)
                && let Some(function) = self.functions.get_mut(&waiting.function)
                && function.due.remove(&(before, *id))
            {
                function.due.insert((waiting.due, *id));
            }
        }
        self.absent.values_mut().flatten().for_each(|(waiting, _)| {
            sooner(waiting);
        });
    }

    /// Forgets the wakes of a function, which the store has deleted or never had.
    pub(crate) fn forget(&mut self, function: Option<FunctionNo>, name: &str) {
        self.absent.remove(name);
        let Some(function) = function else { return };
        let ids: Vec<WakeId> = self.all.iter().filter(|(_, it)| it.function == function).map(|(id, _)| *id).collect();
        for id in ids {
            let waiting = &self.all[&id];
            let key = self.key(function, &waiting.topic, waiting.is_shared, &waiting.name);
            self.names.remove(&key);
            self.remove(id);
        }
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a test may read clocks and files")]
mod tests;
