//! Pauses between turns while messages come fast, so that many share a turn.
//!
//! A turn wakes a worker, the store and this thread again, writes pages to disk and syncs them, each for however few
//! messages there are, and all of that costs more than handling them. As network cards do with their interrupts, the loop
//! then leaves everything alone for a moment, and the sockets hold what comes meanwhile. A message meets about three of
//! these moments on its way. The faster messages come, the longer they are: who sends that many looks at how many
//! are through in a second, and not at how long one takes.

use std::time::{Duration, Instant};

/// How long for each message a millisecond: 2 ms at 4,000 messages a second, and no more than 8 at four times that.
const PAUSE: Duration = Duration::from_micros(500);
const LONGEST_PAUSE: Duration = Duration::from_millis(8);

/// Messages come fast when there are so many a millisecond, over a window.
const FAST: f64 = 4.0;
const WINDOW: Duration = Duration::from_millis(40);

pub struct Pace {
    /// A turn that takes this many is worth its price without a pause, and no pause is longer than they take to come. Where
    /// there is too much to do every turn is such a one.
    large_turn: usize,
    since: Instant,
    messages: usize,
    /// After a turn, while messages come fast.
    pause: Option<Duration>,
}

impl Pace {
    /// The broker sends `receive_maximum` messages and then waits for acknowledgements. Three pauses must not take so many.
    pub fn new(receive_maximum: u16, now: Instant) -> Self {
        Self { large_turn: usize::from(receive_maximum).div_ceil(4), since: now, messages: 0, pause: None }
    }

    /// How long to leave everything alone after a turn that took so many messages. Where a turn takes none although they
    /// come fast, the broker may be waiting for acknowledgements, and a pause would be one for it too.
    pub fn pause(&mut self, messages: usize, now: Instant) -> Option<Duration> {
        self.messages += messages;
        let window = now.duration_since(self.since);
        if window >= WINDOW {
            let per_ms = self.messages as f64 / (window.as_secs_f64() * 1e3);
            // A much longer window is one in which the loop slept.
            let fast = per_ms >= FAST && window < 2 * WINDOW;
            self.pause = fast.then(|| {
                let full = Duration::from_secs_f64(self.large_turn as f64 / per_ms / 1e3);
                PAUSE.mul_f64(per_ms).min(LONGEST_PAUSE).min(full)
            });
            self.since = now;
            self.messages = 0;
        }
        self.pause.filter(|_| messages > 0 && messages < self.large_turn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Turns of `messages`, one each millisecond. Returns the pauses that followed them.
    fn pauses(pace: &mut Pace, from: Instant, turns: u64, messages: usize) -> Vec<Duration> {
        (0..turns).filter_map(|turn| pace.pause(messages, from + Duration::from_millis(turn))).collect()
    }

    #[test]
    fn pauses_only_while_messages_come_fast_and_few_at_a_time() {
        let start = Instant::now();
        let mut pace = Pace::new(1024, start);
        assert_eq!(pauses(&mut pace, start, 100, 3), [], "3,000 a second");
        let fast = start + Duration::from_millis(100);
        assert!(pauses(&mut pace, fast, 100, 5).len() >= 50, "5,000 a second");
        let large = start + Duration::from_millis(200);
        assert_eq!(pauses(&mut pace, large, 100, 256), []);
        let slow = start + Duration::from_millis(300);
        assert!(pauses(&mut pace, slow, 200, 1).len() <= 100, "1,000 a second");
    }

    #[test]
    fn pauses_longer_the_faster_they_come_and_not_longer_than_the_broker_waits() {
        let last = |receive_maximum, per_ms| {
            let start = Instant::now();
            pauses(&mut Pace::new(receive_maximum, start), start, 200, per_ms).pop().map(|it| it.as_micros())
        };
        assert_eq!(last(1024, 4), Some(2000));
        assert_eq!(last(1024, 8), Some(4000));
        assert_eq!(last(1024, 16), Some(8000));
        assert_eq!(last(1024, 30), Some(8000));
        assert_eq!(last(1024, 64), Some(4000), "256 messages");
        assert_eq!(last(20, 4), Some(1250), "5 messages");
        assert_eq!(last(20, 5), None, "turns of 5 are large for such a broker");
        assert_eq!(last(1, 10), None);
    }

    #[test]
    fn a_message_after_silence_is_not_held_up() {
        let start = Instant::now();
        let mut pace = Pace::new(1024, start);
        assert!(!pauses(&mut pace, start, 100, 10).is_empty());
        assert_eq!(pace.pause(0, start + Duration::from_millis(100)), None, "the broker may wait for this board");
        let later = start + Duration::from_secs(1);
        assert_eq!(pace.pause(1, later), None);
    }
}
