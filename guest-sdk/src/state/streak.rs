use super::switch::{Edge, Switch};
use crate::Failure;

/// A condition that counts after a number of messages in a row: on after so many with it, and off after so many without. At most 6
/// bytes of state, none while it is off and nothing speaks for a change.
///
/// ```
/// use sedge_function::prelude::*;
/// use sedge_function::state::{Edge, Streak};
///
/// # fn handle(message: Message) -> Outcome {
/// let value = message.require_number("temperature")?;
/// // Three readings in a row above the limit, and one back.
/// if Streak::new(3, 1).update("hot", value > 80.0)? == Some(Edge::Rising) {
///     return Ok(vec![Alert::firing(message.topic, "three readings above 80 °C").into()]);
/// }
/// # Ok(vec![])
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Streak {
    on: u32,
    off: u32,
}

impl Streak {
    /// Numbers of messages in a row after which it is on and off; 0 counts as 1.
    pub fn new(on: u32, off: u32) -> Self {
        Self { on: on.max(1), off: off.max(1) }
    }

    /// The change that the condition of this message causes.
    pub fn update(&self, key: &str, condition: bool) -> Result<Option<Edge>, Failure> {
        let before = Switch::<4>::load(key)?;
        let mut now = before;
        let mut edge = None;
        now.pending = None;
        if condition != before.on {
            let count = before.pending.map_or(0, u32::from_le_bytes).saturating_add(1);
            now.pending = Some(count.to_le_bytes());
            if count >= if condition { self.on } else { self.off } {
                edge = Some(now.turn());
            }
        }
        now.store(before, key)?;
        Ok(edge)
    }
}

#[cfg(test)]
mod tests {
    use super::Edge::{Falling, Rising};
    use super::*;
    use crate::state;
    use crate::testing::Board;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    #[test]
    fn counts_in_a_row_only() {
        let conditions = [true, true, false, true, true, true, true, false, true, false, false];
        let edges = Board::new().with_state(|| conditions.map(|it| Streak::new(3, 2).update("k", it).unwrap()));
        let mut expected = [None; 11];
        (expected[5], expected[10]) = (Some(Rising), Some(Falling));
        assert_eq!(edges, expected);
    }

    #[test]
    fn zero_is_one_and_what_is_off_leaves_nothing() {
        Board::new().with_state(|| {
            assert_eq!(Streak::new(0, 0).update("k", true), Ok(Some(Rising)));
            assert_eq!(Streak::new(0, 0).update("k", false), Ok(Some(Falling)));
            assert_eq!(Streak::new(3, 1).update("k", true), Ok(None));
            assert_eq!(Streak::new(3, 1).update("k", false), Ok(None));
            assert_eq!(state::keys(), Ok(Vec::new()));
        });
    }

    proptest! {
        #[test]
        fn changes_when_the_last_conditions_all_differ(
            conditions in prop::collection::vec(any::<bool>(), 0..100),
            numbers in [1..5usize, 1..5usize],
        ) {
            let streak = Streak::new(numbers[0] as u32, numbers[1] as u32);
            let mut board = Board::new();
            let (mut on, mut changed_at) = (false, 0);
            for end in 1..=conditions.len() {
                let edge = board.with_state(|| streak.update("k", conditions[end - 1])).unwrap();
                let need = if on { numbers[1] } else { numbers[0] };
                let changes = end - changed_at >= need && conditions[end - need..end].iter().all(|it| *it != on);
                prop_assert_eq!(edge.is_some(), changes);
                if changes {
                    (on, changed_at) = (!on, end);
                    prop_assert_eq!(edge == Some(Rising), on);
                }
            }
        }
    }
}
