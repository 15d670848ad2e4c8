//! Pauses between turns while messages come fast, so that many share a turn.
//!
//! A turn wakes a worker, the store and this thread again, writes pages to disk and syncs them, each for however few
//! messages there are, and all of that costs more than handling them. As network cards do with their interrupts, the loop
//! then leaves everything alone for a moment, and the sockets hold what comes meanwhile. A message meets about three of
//! these moments on its way. The faster messages come, the longer they are: who sends that many looks at how many
//! are through in a second, and not at how long one takes.
//!
//! Where somebody waits for this board before more is sent, pauses cost messages: a broker with a small window, a publisher
//! that wants an answer. That cannot be seen from here, so it is tried: one epoch in sixteen is the other way around, and
//! whichever brings more is kept.

use std::time::{Duration, Instant};

/// How long for each message a millisecond: 2 ms at 4,000 messages a second, and no more than 8 at four times that.
const PAUSE: Duration = Duration::from_micros(500);
const LONGEST: Duration = Duration::from_millis(8);
/// While a receiver's answers decide how fast the outbox is emptied: 64 records in 2 ms are 32,000 a second.
const LONGEST_WITH_BACKLOG: Duration = Duration::from_millis(2);

/// Messages come fast when there are so many a millisecond.
const FAST: f64 = 4.0;

/// A turn that takes this many is worth its price without a pause. Where there is too much to do every turn is such a one.
const LARGE_TURN: usize = 256;

/// Messages are counted for so long, with pauses or without, once the change from one to the other is over.
const EPOCH: Duration = Duration::from_millis(80);
const CHANGE: Duration = Duration::from_millis(20);
const TRY_EVERY: u32 = 16;
/// Pauses stay if they bring this share of what comes without them; rates vary by more than a few per cent by themselves.
const KEPT: f64 = 0.85;

pub struct Pace {
    since: Instant,
    came: usize,
    counts: bool,
    epochs: u32,
    pauses: bool,
    pause: Duration,
    /// Messages a millisecond, without pauses and with them, as far as that is known.
    rates: [Option<f64>; 2],
}

impl Pace {
    pub fn new(now: Instant) -> Self {
        Self { since: now, came: 0, counts: true, epochs: 0, pauses: false, pause: Duration::ZERO, rates: [None; 2] }
    }

    /// How long to leave everything alone after a turn to which so many messages came. `backlog` says that more could be
    /// sent if answers were read.
    pub fn pause(&mut self, came: usize, backlog: bool, now: Instant) -> Option<Duration> {
        self.came += came;
        let passed = now.duration_since(self.since);
        if passed >= 2 * EPOCH {
            // The loop slept.
            *self = Self::new(now);
        } else if passed >= if self.counts { EPOCH } else { CHANGE } {
            if self.counts {
                self.decide(self.came as f64 / (passed.as_secs_f64() * 1e3));
            }
            self.counts = !self.counts;
            self.since = now;
            self.came = 0;
        }
        // A turn to which none came although they come fast may be one in which the broker waits for acknowledgements.
        let longest = if backlog { LONGEST_WITH_BACKLOG } else { LONGEST };
        (self.pauses && came > 0 && came < LARGE_TURN).then(|| self.pause.min(longest))
    }

    fn decide(&mut self, rate: f64) {
        let known = &mut self.rates[usize::from(self.pauses)];
        // What the last try found may have been long ago.
        let tried = self.epochs.is_multiple_of(TRY_EVERY);
        *known = Some(known.filter(|_| !tried).map_or(rate, |before| (before + rate) / 2.0));
        let [without, with] = self.rates;
        if without.map_or(rate, |without| without.max(rate)) < FAST {
            (self.rates, self.pauses) = ([None; 2], false);
            return;
        }
        let pays = without.is_some_and(|without| with.is_none_or(|with| with >= KEPT * without));
        self.epochs = self.epochs.wrapping_add(1);
        self.pauses = pays != self.epochs.is_multiple_of(TRY_EVERY);
        self.pause = PAUSE.mul_f64(rate);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// What comes to a turn, by the time since the turn before.
    type Source<'a> = &'a dyn Fn(f64) -> usize;

    /// Turns of a millisecond for so long. Returns the share of them that were followed by a pause, the longest of these, and the
    /// messages a millisecond.
    fn run(pace: &mut Pace, now: &mut Instant, time: Duration, source: Source<'_>) -> (f64, Duration, f64) {
        let begun = *now;
        let (mut turns, mut pauses, mut longest, mut all, mut passed) = (0, 0, Duration::ZERO, 0, MS);
        while now.duration_since(begun) < time {
            *now += MS;
            let came = source(passed.as_secs_f64() * 1e3);
            let pause = pace.pause(came, false, *now);
            longest = longest.max(pause.unwrap_or_default());
            passed = MS + pause.unwrap_or_default();
            *now += pause.unwrap_or_default();
            (turns, pauses, all) = (turns + 1, pauses + usize::from(pause.is_some()), all + came);
        }
        let rate = all as f64 / (now.duration_since(begun).as_secs_f64() * 1e3);
        (pauses as f64 / f64::from(turns), longest, rate)
    }

    fn fresh(seconds: u32, source: Source<'_>) -> (f64, Duration, f64) {
        let mut now = Instant::now();
        run(&mut Pace::new(now), &mut now, seconds * 1000 * MS, source)
    }

    /// So many a millisecond, whatever the board does.
    fn steady(per_ms: f64) -> impl Fn(f64) -> usize {
        move |ms| (per_ms * ms).round() as usize
    }

    #[test]
    fn pauses_while_messages_come_fast_and_few_at_a_time() {
        assert_eq!(fresh(5, &steady(3.0)).0, 0.0, "3,000 a second");
        let (share, longest, _) = fresh(5, &steady(5.0));
        assert!(share > 0.7, "{share}");
        assert!((2400..=2700).contains(&longest.as_micros()), "{longest:?}");
        let (share, longest, _) = fresh(5, &steady(20.0));
        assert!(share > 0.5, "{share}: most of the turns without are those of the one epoch in sixteen");
        assert_eq!(longest, LONGEST);
        assert_eq!(fresh(5, &|_| LARGE_TURN).0, 0.0, "there is enough to do");
    }

    /// So many come, and no more before they are acknowledged, which takes a pause longer if there is one.
    #[test]
    fn nobody_who_waits_for_this_board_is_held_up() {
        let (share, _, rate) = fresh(5, &|_| 12);
        assert!(share < 0.1, "{share}");
        assert!(rate > 0.75 * 12.0, "{rate} a millisecond, 12 without pauses");
    }

    #[test]
    fn finds_out_when_the_source_changes() {
        let mut now = Instant::now();
        let mut pace = Pace::new(now);
        run(&mut pace, &mut now, 3000 * MS, &steady(20.0));
        run(&mut pace, &mut now, 2000 * MS, &|_| 12);
        assert!(run(&mut pace, &mut now, 3000 * MS, &|_| 12).0 < 0.1);
        run(&mut pace, &mut now, 3000 * MS, &steady(8.0));
        assert!(run(&mut pace, &mut now, 3000 * MS, &steady(8.0)).0 > 0.6);
        run(&mut pace, &mut now, 1000 * MS, &steady(1.0));
        assert_eq!(run(&mut pace, &mut now, 3000 * MS, &steady(1.0)).0, 0.0);
    }

    #[test]
    fn a_receiver_with_a_backlog_is_not_held_up_for_long() {
        let mut now = Instant::now();
        let mut pace = Pace::new(now);
        run(&mut pace, &mut now, 600 * MS, &steady(20.0));
        assert_eq!(pace.pause(20, false, now), Some(LONGEST));
        assert_eq!(pace.pause(20, true, now), Some(LONGEST_WITH_BACKLOG));
    }

    #[test]
    fn a_message_after_silence_is_not_held_up() {
        let mut now = Instant::now();
        let mut pace = Pace::new(now);
        assert!(run(&mut pace, &mut now, 500 * MS, &steady(10.0)).0 > 0.0);
        assert_eq!(pace.pause(1, false, now + 1000 * MS), None);
    }
}
