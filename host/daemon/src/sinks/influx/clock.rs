//! Times of records that were made before the clock was synchronised.
//!
//! Until then the wall clock of a board without an RTC is wrong by some amount, which is known once it is set. Records that
//! this process made meanwhile are moved by it. Of those that an earlier process left, nobody knows how wrong they are.

use std::time::Instant;

use sedge_core::store::Recovered;
use sedge_core::stream::{SinkId, Stream, StreamKind};

#[derive(Debug)]
pub(crate) struct Clock {
    /// Records up to these numbers were made by earlier processes.
    last_alert: u64,
    last_data: u64,
    /// Unix time at the start of the monotonic clock, in milliseconds, as the clock said when it was not synchronised.
    wrong_base_ms: Option<i128>,
    /// How much it was wrong, since it is synchronised.
    step_ms: Option<i128>,
    started: Instant,
}

/// What is known of a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum At {
    Right(u64),
    /// Not synchronised, and nobody knows by how much it is wrong.
    Unsynced(u64),
}

impl Clock {
    pub(crate) fn new(sink: SinkId, recovered: &Recovered) -> Self {
        let last = |stream| recovered.last[stream].0;
        let mut clock = Self {
            last_alert: last(Stream::alerts(sink)),
            last_data: last(Stream::data(sink)),
            wrong_base_ms: None,
            step_ms: None,
            started: Instant::now(),
        };
        clock.look();
        clock
    }

    /// Looks whether the clock is synchronised by now.
    pub(crate) fn look(&mut self) {
        let (now, is_synced) = (Instant::now(), sedge_sandbox::clock::clock_synced());
        self.see(now, sedge_sandbox::clock::now_ms(), is_synced);
    }

    fn see(&mut self, now: Instant, unix_ms: u64, is_synced: bool) {
        let base_ms = i128::from(unix_ms) - now.duration_since(self.started).as_millis() as i128;
        match (is_synced, self.wrong_base_ms) {
            (false, _) => (self.wrong_base_ms, self.step_ms) = (Some(base_ms), None),
            (true, Some(wrong)) if self.step_ms.is_none() => self.step_ms = Some(base_ms - wrong),
            (true, _) => {}
        }
    }

    /// The time of a record with this number.
    pub(crate) fn at(&self, kind: StreamKind, number: u64, at_ms: u64, was_synced: bool) -> At {
        let last = if kind == StreamKind::Alert { self.last_alert } else { self.last_data };
        match self.step_ms {
            _ if was_synced => At::Right(at_ms),
            Some(step) if number > last => At::Right((i128::from(at_ms) + step).try_into().unwrap_or(at_ms)),
            _ => At::Unsynced(at_ms),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use sedge_core::store::RecordId;

    use super::*;

    #[test]
    fn a_record_of_before_the_synchronisation_is_moved_by_what_the_clock_was_wrong() {
        let mut recovered = Recovered::default();
        recovered.last[Stream::DATA] = RecordId(7);
        let start = Instant::now();
        let after = |secs| start + Duration::from_secs(secs);
        let mut clock = Clock::new(SinkId::UPSTREAM, &recovered);
        (clock.started, clock.wrong_base_ms, clock.step_ms) = (start, None, None);
        clock.see(after(10), 10_000, false);
        // Made after 12 s by a clock that began at 1970.
        let early = |clock: &Clock| clock.at(StreamKind::Data, 8, 12_000, false);
        assert_eq!(early(&clock), At::Unsynced(12_000));
        clock.see(after(20), 1_800_000_020_000, true);
        assert_eq!(early(&clock), At::Right(1_800_000_012_000));
        assert_eq!(clock.at(StreamKind::Data, 9, 1_800_000_021_000, true), At::Right(1_800_000_021_000));
        assert_eq!(clock.at(StreamKind::Data, 7, 9_000, false), At::Unsynced(9_000), "an earlier process made it");
        // Later looks change nothing, although the clock is adjusted.
        clock.see(after(30), 1_800_000_030_500, true);
        assert_eq!(early(&clock), At::Right(1_800_000_012_000));
    }
}
