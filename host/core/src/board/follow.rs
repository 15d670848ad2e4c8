//! Runs that somebody watches: sampled, cut to a bounded size, and handed out once they are committed.
//!
//! ```text
//! outcome ─▶ wanted by a view, and within its rate? ─▶ cut ─▶ held ─▶ committed ─▶ Effect::Follow
//!                                       │ no
//!                                       └─▶ counted as left out
//! ```
//!
//! With no view open this costs one comparison per run. No message waits for a view.

mod run;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use super::Board;
use super::ids::{FunctionNo, JobId, UnitId};
use super::input::Effect;
use super::rate::Rate;
use super::rollout::{Edition, Role};
use crate::message::{Failure, LogLine, Outcome};
use crate::topic::TopicFilter;
pub use run::{Cut, FollowedOutput, FollowedRun};

/// Views at a time.
pub const MAX_FOLLOWS: usize = 8;
/// A view shows one run in this time, and as many at once as would be shown within [`BURST`].
const EVERY: Duration = Duration::from_millis(100);
const BURST: Duration = Duration::from_secs(2);
/// Runs that wait for their commit. Each is a few kilobytes.
const MAX_HELD: usize = 64;

/// A view: which runs somebody wants to see.
#[derive(Clone, Debug)]
pub struct Follow {
    pub id: u32,
    /// Only runs of this function.
    pub function: Option<Arc<str>>,
    /// Only runs for messages whose topic matches.
    pub topic: Option<TopicFilter>,
    /// Counts the runs that were wanted and are not shown, because too many came.
    pub left_out: Arc<AtomicU64>,
}

impl Follow {
    fn leave_out(&self) {
        self.left_out.fetch_add(1, Relaxed);
    }
}

/// The views that are open. Usually none.
#[derive(Default)]
pub(crate) struct Follows {
    views: Vec<View>,
    held: Vec<Held>,
    /// What the job whose outcome comes next has logged.
    logged: Option<(JobId, Logged)>,
}

#[derive(Default)]
pub(crate) struct Logged {
    lines: Vec<LogLine>,
    dropped: u32,
}

struct View {
    follow: Follow,
    rate: Rate,
}

struct Held {
    unit: UnitId,
    run: Box<FollowedRun>,
}

impl Follows {
    /// What a job logged, before its outcome.
    pub(crate) fn note_log(&mut self, job: JobId, lines: Vec<LogLine>, dropped: u32) {
        if !self.views.is_empty() {
            self.logged = Some((job, Logged { lines, dropped }));
        }
    }

    fn take_log(&mut self, job: JobId) -> Logged {
        self.logged.take().filter(|(of, _)| *of == job).map(|(_, logged)| logged).unwrap_or_default()
    }

    /// Nothing that is not committed counts.
    pub(crate) fn reset(&mut self) {
        self.held.clear();
    }

    /// The views that want a run and have room for it.
    fn wanting(&mut self, function: &str, topic: &str, now: Instant) -> Vec<u32> {
        let is_full = self.held.len() >= MAX_HELD;
        let mut wanting = Vec::new();
        for view in self.views.iter_mut().filter(|view| view.follow.wants(function, topic)) {
            match !is_full && view.rate.admit(EVERY, BURST, now) {
                true => wanting.push(view.follow.id),
                false => view.follow.leave_out(),
            }
        }
        wanting
    }
}

impl Follow {
    fn wants(&self, function: &str, topic: &str) -> bool {
        self.function.as_deref().is_none_or(|wanted| wanted == function)
            && self.topic.as_ref().is_none_or(|wanted| wanted.matches(topic))
    }
}

impl Board {
    /// Replaces the open views.
    pub(super) fn set_follows(&mut self, mut follows: Vec<Follow>) {
        follows.truncate(MAX_FOLLOWS);
        let before = std::mem::take(&mut self.follows.views);
        let known = |id: u32| before.iter().find(|view| view.follow.id == id).map(|view| view.rate.clone());
        let fresh = || Rate::new(self.now.monotonic);
        self.follows.views =
            follows.into_iter().map(|follow| View { rate: known(follow.id).unwrap_or_else(fresh), follow }).collect();
        if self.follows.views.is_empty() {
            self.follows = Follows::default();
        }
    }

    /// What is shown of a run, if anybody wants to see it. Settling takes the outcome apart.
    pub(super) fn followed(
        &mut self,
        unit: UnitId,
        number: FunctionNo,
        edition: &Edition,
        outcome: &Outcome,
    ) -> Option<Box<FollowedRun>> {
        if self.follows.views.is_empty() {
            return None;
        }
        let Logged { lines, dropped } = self.follows.take_log(JobId { unit, function: number });
        let mut run = self.begin_followed(unit, number, &edition.manifest().version)?;
        run.add_outcome(outcome);
        run.add_log(&lines, dropped);
        Some(run)
    }

    /// Shows a message that became a dead letter without a run.
    pub(super) fn follow_failure(&mut self, unit: UnitId, number: FunctionNo, version: &str, failure: &Failure) {
        if self.follows.views.is_empty() {
            return;
        }
        let run = self.begin_followed(unit, number, version);
        self.hold_followed(unit, run, Some(failure));
    }

    fn begin_followed(&mut self, unit: UnitId, number: FunctionNo, version: &str) -> Option<Box<FollowedRun>> {
        let of = self.ledger.unit(unit);
        let function = &self.rollout.function(number).name;
        let follows = self.follows.wanting(function, &of.message.topic, self.now.monotonic);
        (!follows.is_empty()).then(|| {
            let function = Arc::clone(function);
            let mut run = FollowedRun::new(follows, function, version, &of.message, of.hops, self.now.unix_ms);
            run.shadow_of = self.shadow_of(number);
            Box::new(run)
        })
    }

    /// The version beside which a shadow runs.
    fn shadow_of(&self, number: FunctionNo) -> Option<Box<str>> {
        let Role::Shadow { of } = self.rollout.function(number).role else { return None };
        let version = self.rollout.function(of).serving().map(|edition| (*edition.manifest().version).into());
        Some(version.unwrap_or_default())
    }

    /// Holds a run until it is committed. `refused`: the board did not take what the function returned.
    pub(super) fn hold_followed(&mut self, unit: UnitId, run: Option<Box<FollowedRun>>, refused: Option<&Failure>) {
        let Some(mut run) = run else { return };
        if let Some(failure) = refused {
            run.refuse(failure);
        }
        self.follows.held.push(Held { unit, run });
    }

    /// The unit is on disk, or had no effect.
    pub(super) fn followed_unit_settled(&mut self, unit: Option<UnitId>) {
        let Some(unit) = unit.filter(|_| !self.follows.held.is_empty()) else { return };
        let effects = &mut self.effects;
        let settled = self.follows.held.extract_if(.., |held| held.unit == unit);
        effects.extend(settled.map(|Held { run, .. }| Effect::Follow(run)));
    }
}
