//! A lane that is asked only when it can have something to do: a board has many lanes, and most events concern one.

use std::time::Instant;

use super::Action;
use super::lane::{Lane, SentRecord};

#[derive(Debug)]
pub(crate) struct Watched {
    lane: Lane,
    /// The last poll had nothing to do, and nothing has changed since.
    idle: Option<Idle>,
}

#[derive(Clone, Copy, Debug)]
struct Idle {
    /// `None`: until something changes.
    until: Option<Instant>,
}

impl Watched {
    pub(crate) fn new(lane: Lane) -> Self {
        Self { lane, idle: None }
    }

    pub(crate) fn lane(&self) -> &Lane {
        &self.lane
    }

    /// The lane, to be told something. It is asked again.
    pub(crate) fn changed(&mut self) -> &mut Lane {
        self.idle = None;
        &mut self.lane
    }

    /// What the lane noted of records. That changes nothing of what it has to do.
    pub(crate) fn take_sent(&mut self) -> Vec<SentRecord> {
        self.lane.take_sent()
    }

    /// Next step, until `None`.
    pub(crate) fn poll(&mut self, now: Instant) -> Option<Action> {
        if self.idle.is_some_and(|idle| idle.until.is_none_or(|until| until > now)) {
            return None;
        }
        let action = self.lane.poll(now);
        self.idle = action.is_none().then(|| Idle { until: self.lane.wake_at() });
        action
    }

    /// Time of the next poll if nothing happens before.
    pub(crate) fn wake_at(&self) -> Option<Instant> {
        self.idle.map_or_else(|| self.lane.wake_at(), |idle| idle.until)
    }
}
