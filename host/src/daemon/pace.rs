//! Short pauses between turns while messages come fast, so that many share a turn.
//!
//! A turn wakes a worker, the store and this thread again, each for however few messages there are, and waking costs more
//! than handling them. As network cards do with their interrupts, the loop then leaves everything alone for a moment, and
//! the sockets hold what comes meanwhile. A message meets about three of these moments on its way.

use std::time::{Duration, Instant};

const PAUSE: Duration = Duration::from_millis(2);

/// Messages come fast when there are this many in a window: 4,000 a second.
const FAST_MESSAGES: usize = 80;
const WINDOW: Duration = Duration::from_millis(20);

/// A turn that takes this many is worth its price without a pause. Where there is too much to do every turn is such a one.
const LARGE_TURN: usize = 64;

pub struct Pace {
    since: Instant,
    messages: usize,
    fast: bool,
}

impl Pace {
    pub fn new(now: Instant) -> Self {
        Self { since: now, messages: 0, fast: false }
    }

    /// How long to leave everything alone after a turn that took so many messages. Where a turn takes none although they
    /// come fast, the broker may be waiting for acknowledgements, and a pause would be one for it too.
    pub fn pause(&mut self, messages: usize, now: Instant) -> Option<Duration> {
        self.messages += messages;
        if now.duration_since(self.since) >= WINDOW {
            // A longer window is one in which the loop slept.
            self.fast = self.messages >= FAST_MESSAGES && now.duration_since(self.since) < 2 * WINDOW;
            self.since = now;
            self.messages = 0;
        }
        (self.fast && messages > 0 && messages < LARGE_TURN).then_some(PAUSE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Turns of `messages`, one each millisecond. Returns how many were followed by a pause.
    fn pauses(pace: &mut Pace, from: Instant, turns: u64, messages: usize) -> usize {
        (0..turns).filter(|turn| pace.pause(messages, from + Duration::from_millis(*turn)).is_some()).count()
    }

    #[test]
    fn pauses_only_while_messages_come_fast_and_few_at_a_time() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        assert_eq!(pauses(&mut pace, start, 100, 3), 0, "3,000 a second");
        let fast = start + Duration::from_millis(100);
        assert!(pauses(&mut pace, fast, 100, 5) >= 60, "5,000 a second");
        let large = start + Duration::from_millis(200);
        assert_eq!(pauses(&mut pace, large, 100, LARGE_TURN), 0);
        let slow = start + Duration::from_millis(300);
        assert!(pauses(&mut pace, slow, 100, 1) <= 20, "1,000 a second");
    }

    #[test]
    fn a_message_after_silence_is_not_held_up() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        assert!(pauses(&mut pace, start, 100, 10) > 0);
        assert_eq!(pace.pause(0, start + Duration::from_millis(100)), None, "the broker may wait for this board");
        let later = start + Duration::from_secs(1);
        assert_eq!(pace.pause(1, later), None);
    }
}
