use super::Moment;
use super::switch::{Edge, Switch};
use crate::Failure;

/// A condition that counts once it has held for some time: on after holding so long, and off after not holding so long. At most 11
/// bytes of state, none while it is off and nothing speaks for a change.
///
/// It changes only when it is called. If a door opens and then says nothing more, let a tick (`every`) or a wake call it with the
/// condition as it was; [`remaining_ms`](Self::remaining_ms) says when. Time that cannot be measured ([`Moment`]) is waited for again:
/// a change is late then, and never early.
///
/// ```
/// use sedge_function::prelude::*;
/// use sedge_function::state::{Debounce, Edge};
///
/// # fn handle(message: Message) -> Outcome {
/// let open = message.boolean("contact")? == Some(false);
/// // Open for five minutes; closed counts at once.
/// if Debounce::new(300_000, 0).update("open", &message, open)? == Some(Edge::Rising) {
///     return Ok(vec![Alert::firing(message.topic, "open for five minutes").into()]);
/// }
/// # Ok(vec![])
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Debounce {
    on_ms: u64,
    off_ms: u64,
}

impl Debounce {
    /// Milliseconds after which it is on and off. 0: at once.
    pub fn new(on_ms: u64, off_ms: u64) -> Self {
        Self { on_ms, off_ms }
    }

    /// The change that the condition causes at this time.
    pub fn update(&self, key: &str, at: impl Into<Moment>, condition: bool) -> Result<Option<Edge>, Failure> {
        self.update_at(key, at.into(), condition)
    }

    fn update_at(self, key: &str, at: Moment, condition: bool) -> Result<Option<Edge>, Failure> {
        let before = Switch::load(key)?;
        let mut now = before;
        let mut edge = None;
        now.pending = None;
        if condition != before.on {
            let (since, waited) = waited(before, at);
            now.pending = Some(since.encode());
            if waited >= self.delay(condition) {
                edge = Some(now.turn());
            }
        }
        now.store(before, key)?;
        Ok(edge)
    }

    /// The time until the condition counts, if it goes on as it is: how long a wake should wait. `None` if no change is pending.
    pub fn remaining_ms(&self, key: &str, at: impl Into<Moment>) -> Result<Option<u64>, Failure> {
        let switch = Switch::load(key)?;
        Ok(switch.pending.map(|_| self.delay(!switch.on).saturating_sub(waited(switch, at.into()).1)))
    }

    fn delay(self, condition: bool) -> u64 {
        if condition { self.on_ms } else { self.off_ms }
    }
}

/// Since when the change is pending, and for how long.
fn waited(switch: Switch<9>, at: Moment) -> (Moment, u64) {
    let since = switch.pending.and_then(Moment::decode);
    match since.and_then(|since| Some((since, at.since(since)?))) {
        Some(waited) => waited,
        None => (at, 0),
    }
}

#[cfg(test)]
mod tests {
    use super::Edge::{Falling, Rising};
    use super::*;
    use crate::state;
    use crate::testing::Board;
    use proptest::prelude::*;

    fn unsynced(unix_ms: u64) -> Moment {
        Moment { unix_ms, synced: false }
    }

    #[test]
    fn counts_after_it_held_for_so_long() {
        let debounce = Debounce::new(5_000, 1_000);
        Board::new().with_state(|| {
            for (ms, condition, edge) in [
                (0, true, None),
                (4_000, false, None),
                (5_000, true, None),
                (9_999, true, None),
                (10_000, true, Some(Rising)),
                (20_000, true, None),
                (20_500, false, None),
                (21_499, false, None),
                (21_500, false, Some(Falling)),
            ] {
                assert_eq!(debounce.update("k", Moment::at(ms), condition), Ok(edge), "{ms}");
            }
            assert_eq!(state::keys(), Ok(alloc::vec::Vec::new()));
        });
    }

    #[test]
    fn without_a_time_it_counts_at_once() {
        Board::new().with_state(|| {
            assert_eq!(Debounce::new(0, 0).update("k", Moment::at(1), true), Ok(Some(Rising)));
            assert_eq!(Debounce::new(0, 0).update("k", Moment::at(1), false), Ok(Some(Falling)));
        });
    }

    #[test]
    fn a_clock_that_is_set_begins_anew() {
        let debounce = Debounce::new(5_000, 0);
        Board::new().with_state(|| {
            assert_eq!(debounce.update("k", unsynced(100_000), true), Ok(None));
            assert_eq!(debounce.update("k", Moment::at(1_767_610_933_000), true), Ok(None));
            assert_eq!(debounce.update("k", Moment::at(1_767_610_937_999), true), Ok(None));
            assert_eq!(debounce.update("k", Moment::at(1_767_610_938_000), true), Ok(Some(Rising)));
        });
        Board::new().with_state(|| {
            assert_eq!(debounce.update("k", Moment::at(1_767_610_933_000), true), Ok(None));
            assert_eq!(debounce.update("k", Moment::at(50_000), true), Ok(None));
            assert_eq!(debounce.update("k", Moment::at(55_000), true), Ok(Some(Rising)));
        });
    }

    #[test]
    fn says_how_long_a_wake_should_wait() {
        let debounce = Debounce::new(5_000, 1_000);
        Board::new().with_state(|| {
            assert_eq!(debounce.remaining_ms("k", Moment::at(0)), Ok(None));
            debounce.update("k", Moment::at(0), true).unwrap();
            assert_eq!(debounce.remaining_ms("k", Moment::at(1_500)), Ok(Some(3_500)));
            assert_eq!(debounce.remaining_ms("k", Moment::at(9_000)), Ok(Some(0)));
            debounce.update("k", Moment::at(9_000), true).unwrap();
            assert_eq!(debounce.remaining_ms("k", Moment::at(9_000)), Ok(None));
            debounce.update("k", Moment::at(9_000), false).unwrap();
            assert_eq!(debounce.remaining_ms("k", Moment::at(9_400)), Ok(Some(600)));
        });
    }

    proptest! {
        /// The board boots without the time, which comes at one of the steps.
        #[test]
        fn is_never_early_and_on_time_while_the_clock_is_not_set(
            steps in prop::collection::vec((0..4_000u64, prop::bool::weighted(0.8)), 1..60),
            synced_from in 0..80usize,
        ) {
            let debounce = Debounce::new(5_000, 3_000);
            let mut board = Board::new();
            let (mut on, mut since, mut now) = (false, None, 0);
            for (index, (step, condition)) in steps.into_iter().enumerate() {
                now += step;
                let synced = index >= synced_from;
                let at = if synced { Moment::at(1_767_610_933_000 + now) } else { unsynced(now) };
                let edge = board.with_state(|| debounce.update("k", at, condition)).unwrap();
                if condition == on {
                    since = None;
                    prop_assert_eq!(edge, None);
                    continue;
                }
                if since.is_none() || index == synced_from {
                    since = Some(now);
                }
                let held = now - since.unwrap_or(now);
                let changes = held >= if condition { 5_000 } else { 3_000 };
                prop_assert_eq!(edge.is_some(), changes);
                if changes {
                    (on, since) = (condition, None);
                }
            }
        }
    }
}
