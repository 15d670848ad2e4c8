//! Interrupt mitigation for the event loop, as network cards do it: while messages come fast the loop pauses after each
//! iteration, so that many messages share one wake-up of worker and store, one commit and one sync.
//!
//! Pauses grow with the message rate: at high rates throughput matters more than latency. In a flood they save a third of
//! the CPU per message. A sender that waits for acknowledgements would lose half of its rate, so one epoch
//! in sixteen tries the opposite, and pauses stay only if they bring as many messages.

use std::time::{Duration, Instant};

/// Pause for each message per millisecond: 2 ms at 4,000 messages per second, `LONGEST` at 16,000.
const PAUSE: Duration = Duration::from_micros(500);
const LONGEST: Duration = Duration::from_millis(8);
/// Longest pause while upstream's answers limit how fast the outbox empties: 64 records in 2 ms are 32,000 per second.
const LONGEST_WITH_BACKLOG: Duration = Duration::from_millis(2);

/// Messages per millisecond above which the loop pauses.
const FAST: f64 = 4.0;

/// Messages of one iteration from which a pause saves nothing. An overloaded loop never pauses.
const LARGE_BATCH: usize = 256;

/// Time over which messages are counted, with pauses or without.
const EPOCH: Duration = Duration::from_millis(80);
/// Time between two epochs that is not counted, because the change from one to the other shows in it.
const CHANGE: Duration = Duration::from_millis(20);
/// One epoch in this many is a trial.
const TRIAL_EVERY: u32 = 16;
/// Share of the rate without pauses that pauses must reach to stay. Rates vary by some per cent by themselves.
const KEPT: f64 = 0.85;

/// Decides after each iteration of the event loop whether and how long to pause.
pub(crate) struct Pace {
    since: Instant,
    messages: usize,
    is_counting: bool,
    epochs: u32,
    is_pausing: bool,
    pause: Duration,
    /// Messages per millisecond without pauses and with them, where known.
    rates: [Option<f64>; 2],
}

impl Pace {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            since: now,
            messages: 0,
            is_counting: true,
            epochs: 0,
            is_pausing: false,
            pause: Duration::ZERO,
            rates: [None; 2],
        }
    }

    /// Returns the pause after an iteration that received `messages`. `backlog` means that upstream's answers would let more
    /// records be sent.
    pub(crate) fn pause(&mut self, messages: usize, backlog: bool, now: Instant) -> Option<Duration> {
        self.messages += messages;
        let passed = now.duration_since(self.since);
        if passed >= 2 * EPOCH {
            // The loop was idle.
            *self = Self::new(now);
        } else if passed >= if self.is_counting { EPOCH } else { CHANGE } {
            if self.is_counting {
                self.decide(self.messages as f64 / (passed.as_secs_f64() * 1e3));
            }
            self.is_counting = !self.is_counting;
            self.since = now;
            self.messages = 0;
        }
        // An iteration without messages may be one in which the broker waits for acknowledgements.
        let longest = if backlog { LONGEST_WITH_BACKLOG } else { LONGEST };
        (self.is_pausing && messages > 0 && messages < LARGE_BATCH).then(|| self.pause.min(longest))
    }

    fn decide(&mut self, rate: f64) {
        let known = &mut self.rates[usize::from(self.is_pausing)];
        // The rate of the last trial may be out of date.
        let is_trial = self.epochs.is_multiple_of(TRIAL_EVERY);
        *known = Some(known.filter(|_| !is_trial).map_or(rate, |before| (before + rate) / 2.0));
        let [without, with] = self.rates;
        if without.map_or(rate, |without| without.max(rate)) < FAST {
            (self.rates, self.is_pausing) = ([None; 2], false);
            return;
        }
        let pays = without.is_some_and(|without| with.is_none_or(|with| with >= KEPT * without));
        self.epochs = self.epochs.wrapping_add(1);
        self.is_pausing = pays != self.epochs.is_multiple_of(TRIAL_EVERY);
        self.pause = PAUSE.mul_f64(rate);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// Messages of an iteration, by the milliseconds since the one before.
    type Source<'a> = &'a dyn Fn(f64) -> usize;

    /// Runs iterations of 1 ms for `time`. Returns the share that paused, the longest pause, and the messages per millisecond.
    fn run(pace: &mut Pace, now: &mut Instant, time: Duration, source: Source<'_>) -> (f64, Duration, f64) {
        let begun = *now;
        let (mut iterations, mut pauses, mut longest, mut all, mut passed) = (0, 0, Duration::ZERO, 0, MS);
        while now.duration_since(begun) < time {
            *now += MS;
            let messages = source(passed.as_secs_f64() * 1e3);
            let pause = pace.pause(messages, false, *now);
            longest = longest.max(pause.unwrap_or_default());
            passed = MS + pause.unwrap_or_default();
            *now += pause.unwrap_or_default();
            (iterations, pauses, all) = (iterations + 1, pauses + usize::from(pause.is_some()), all + messages);
        }
        let rate = all as f64 / (now.duration_since(begun).as_secs_f64() * 1e3);
        (pauses as f64 / f64::from(iterations), longest, rate)
    }

    fn fresh(seconds: u32, source: Source<'_>) -> (f64, Duration, f64) {
        let mut now = Instant::now();
        run(&mut Pace::new(now), &mut now, seconds * 1000 * MS, source)
    }

    /// A source that does not wait for the board.
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
        assert!(share > 0.5, "{share}: most iterations without a pause belong to trials");
        assert_eq!(longest, LONGEST);
        assert_eq!(fresh(5, &|_| LARGE_BATCH).0, 0.0, "batches are large enough");
    }

    /// The source sends a window of messages and waits until they are acknowledged.
    #[test]
    fn a_source_that_waits_for_acknowledgements_keeps_its_rate() {
        let (share, _, rate) = fresh(5, &|_| 12);
        assert!(share < 0.1, "{share}");
        assert!(rate > 0.75 * 12.0, "{rate} a millisecond, 12 without pauses");
    }

    #[test]
    fn a_change_of_the_source_is_noticed() {
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
    fn pauses_are_short_while_upstream_has_a_backlog() {
        let mut now = Instant::now();
        let mut pace = Pace::new(now);
        run(&mut pace, &mut now, 600 * MS, &steady(20.0));
        assert_eq!(pace.pause(20, false, now), Some(LONGEST));
        assert_eq!(pace.pause(20, true, now), Some(LONGEST_WITH_BACKLOG));
    }

    #[test]
    fn a_message_after_silence_is_not_delayed() {
        let mut now = Instant::now();
        let mut pace = Pace::new(now);
        assert!(run(&mut pace, &mut now, 500 * MS, &steady(10.0)).0 > 0.0);
        assert_eq!(pace.pause(1, false, now + 1000 * MS), None);
    }
}
