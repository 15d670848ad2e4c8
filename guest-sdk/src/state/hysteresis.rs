use super::switch::{Edge, Switch};
use crate::Failure;

/// A limit with a distance back, so that a value that wavers around the limit changes nothing: on when a value is beyond the limit,
/// and off when it is back by the distance. One byte of state while it is on, none while it is off.
///
/// ```
/// use sedge_function::prelude::*;
/// use sedge_function::state::{Edge, Hysteresis};
///
/// struct TooWarm;
///
/// impl Function for TooWarm {
///     fn handle(message: Message) -> Outcome {
///         let Some(value) = message.number("temperature")? else { return Ok(vec![]) };
///         let alert = match Hysteresis::above(80.0, 2.0).update("too-warm", value)? {
///             Some(Edge::Rising) => Alert::firing(message.topic, "too warm"),
///             Some(Edge::Falling) => Alert::resolved(message.topic, "cooled down"),
///             None => return Ok(vec![]),
///         };
///         Ok(vec![alert.value(value).into()])
///     }
/// }
///
/// let mut board = sedge_function::testing::Board::new();
/// let mut alerts = |payload: &str| board.run::<TooWarm>(Message::new("oven", payload)).unwrap().len();
/// let payloads = [r#"{"temperature":81}"#, r#"{"temperature":79}"#, r#"{"temperature":78}"#];
/// assert_eq!(payloads.map(&mut alerts), [1, 0, 1]);
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hysteresis {
    limit: f64,
    back: f64,
    /// Whether it is on above the limit, and not below.
    above: bool,
}

impl Hysteresis {
    /// On above the limit, and off at `limit - distance` or below. A negative distance counts as 0.
    pub fn above(limit: f64, distance: f64) -> Self {
        Self { limit, back: limit - distance.max(0.0), above: true }
    }

    /// On below the limit, and off at `limit + distance` or above.
    pub fn below(limit: f64, distance: f64) -> Self {
        Self { limit, back: limit + distance.max(0.0), above: false }
    }

    /// The change that a value causes. NaN causes none.
    pub fn update(&self, key: &str, value: f64) -> Result<Option<Edge>, Failure> {
        let before = Switch::<0>::load(key)?;
        let mut now = before;
        let turns = match (before.on, self.above) {
            (false, true) => value > self.limit,
            (false, false) => value < self.limit,
            (true, true) => value <= self.back,
            (true, false) => value >= self.back,
        };
        if !turns {
            return Ok(None);
        }
        let edge = now.turn();
        now.store(before, key)?;
        Ok(Some(edge))
    }
}

#[cfg(test)]
mod tests {
    use super::Edge::{Falling, Rising};
    use super::*;
    use crate::state;
    use crate::testing::Board;
    use proptest::prelude::*;

    fn edges<const N: usize>(hysteresis: Hysteresis, values: [f64; N]) -> [Option<Edge>; N] {
        Board::new().with_state(|| values.map(|value| hysteresis.update("k", value).unwrap()))
    }

    #[test]
    fn on_beyond_the_limit_and_off_when_it_is_back_by_the_distance() {
        let above = edges(Hysteresis::above(80.0, 2.0), [80.0, 80.5, 95.0, f64::NAN, 79.0, 78.0, 78.0, 81.0]);
        assert_eq!(above, [None, Some(Rising), None, None, None, Some(Falling), None, Some(Rising)]);
        let below = edges(Hysteresis::below(5.0, 1.0), [5.0, 4.9, 5.9, 6.0, 3.0]);
        assert_eq!(below, [None, Some(Rising), None, Some(Falling), Some(Rising)]);
    }

    #[test]
    fn a_negative_distance_does_not_make_it_flap() {
        assert_eq!(edges(Hysteresis::above(80.0, -5.0), [81.0, 82.0, 81.0]), [Some(Rising), None, None]);
    }

    #[test]
    fn a_bool_of_an_earlier_version_counts_and_what_is_off_leaves_nothing() {
        Board::new().with_state(|| {
            state::set("k", true).unwrap();
            assert_eq!(Hysteresis::above(80.0, 2.0).update("k", 90.0), Ok(None));
            assert_eq!(Hysteresis::above(80.0, 2.0).update("k", 20.0), Ok(Some(Falling)));
            assert_eq!(state::keys(), Ok(alloc::vec::Vec::new()));
        });
    }

    #[test]
    fn without_state_only_a_change_is_an_error() {
        Board::new().without_state().with_state(|| {
            assert_eq!(Hysteresis::above(80.0, 2.0).update("k", 20.0), Ok(None));
            assert!(Hysteresis::above(80.0, 2.0).update("k", 90.0).is_err());
        });
    }

    proptest! {
        #[test]
        fn edges_alternate_and_have_a_reason(values in prop::collection::vec(70.0..90.0f64, 0..100)) {
            let mut board = Board::new();
            let mut on = false;
            for value in values {
                let edge = board.with_state(|| Hysteresis::above(80.0, 3.0).update("k", value)).unwrap();
                let expected = if on { value > 77.0 } else { value > 80.0 };
                prop_assert_eq!(edge.is_some(), expected != on);
                prop_assert_eq!(edge.is_none_or(|edge| (edge == Rising) == expected), true);
                on = expected;
            }
        }
    }
}
