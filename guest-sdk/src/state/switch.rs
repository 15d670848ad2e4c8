//! The form in which [`Hysteresis`](super::Hysteresis), [`Streak`](super::Streak) and [`Debounce`](super::Debounce) are kept.
//!
//! ```text
//! no key, or anything else    off
//! 1                           on; also what `true` is stored as
//! 1, on, pending...           on is 0 or 1; what is pending is the helper's own
//! ```
//!
//! So a function may replace one helper, or a `bool` of its own, by another without forgetting what is on.

use alloc::vec::Vec;

use crate::Failure;

/// A change of what is on or off, in the words of electronics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Edge {
    /// From off to on.
    Rising,
    /// From on to off.
    Falling,
}

const VERSION: u8 = 1;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Switch<const N: usize> {
    pub on: bool,
    /// What speaks for a change, without being enough for it.
    pub pending: Option<[u8; N]>,
}

impl<const N: usize> Switch<N> {
    pub(super) fn load(key: &str) -> Result<Self, Failure> {
        Ok(super::read(key)?.map_or_else(Self::default, |bytes| Self::decode(&bytes)))
    }

    fn decode(bytes: &[u8]) -> Self {
        match bytes {
            [VERSION] => Self { on: true, pending: None },
            [VERSION, on @ (0 | 1), pending @ ..] => Self { on: *on == 1, pending: pending.try_into().ok() },
            _ => Self::default(),
        }
    }

    /// Stores what is no longer as it was. Of what is off and stays so, nothing is left behind.
    pub(super) fn store(self, before: Self, key: &str) -> Result<(), Failure> {
        match self {
            _ if self == before => Ok(()),
            Self { on: false, pending: None } => super::remove(key),
            Self { on: true, pending: None } => super::write(key, &[VERSION]),
            Self { on, pending: Some(pending) } => {
                let mut bytes = Vec::with_capacity(2 + N);
                bytes.extend_from_slice(&[VERSION, u8::from(on)]);
                bytes.extend_from_slice(&pending);
                super::write(key, &bytes)
            }
        }
    }

    /// Turns the switch.
    pub(super) fn turn(&mut self) -> Edge {
        self.on = !self.on;
        self.pending = None;
        if self.on { Edge::Rising } else { Edge::Falling }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_switch_is_off() {
        for bytes in [&b""[..], &[0], &[2], &[1, 2], &[1, 2, 0, 0], b"true"] {
            assert_eq!(Switch::<2>::decode(bytes), Switch::default(), "{bytes:?}");
        }
        assert_eq!(Switch::<2>::decode(&[1]), Switch { on: true, pending: None });
        assert_eq!(Switch::<2>::decode(&[1, 0, 5, 6]), Switch { on: false, pending: Some([5, 6]) });
    }

    #[test]
    fn what_another_helper_left_pending_is_dropped_and_on_stays_on() {
        assert_eq!(Switch::<4>::decode(&[1, 1, 5, 6]), Switch { on: true, pending: None });
        assert_eq!(Switch::<0>::decode(&[1, 1, 5, 6]), Switch { on: true, pending: None });
    }
}
