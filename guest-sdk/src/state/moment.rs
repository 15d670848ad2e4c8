use crate::Message;

/// A moment, as the helpers take it that measure time: `&message` for the time of its arrival, or [`Moment::at`] for a time of a
/// sensor or of [`clock`](crate::clock).
///
/// Two moments can be compared if the clock was synchronised at both or at neither, and did not go back by more than a minute
/// between them. A step back of less counts as no time: readings may be out of order, and clocks are corrected. Where moments cannot
/// be compared, helpers begin anew instead of measuring a time that nobody waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    pub(super) unix_ms: u64,
    pub(super) synced: bool,
}

/// How far the clock may go back.
const STEP_BACK_MS: u64 = 60_000;

impl Moment {
    /// A Unix time in milliseconds of a clock that is right.
    pub fn at(unix_ms: u64) -> Self {
        Self { unix_ms, synced: true }
    }

    /// Milliseconds since an earlier moment, or `None` if they cannot be compared.
    pub fn since(self, earlier: Self) -> Option<u64> {
        if self.synced != earlier.synced {
            return None;
        }
        match self.unix_ms.checked_sub(earlier.unix_ms) {
            Some(ms) => Some(ms),
            None => (earlier.unix_ms - self.unix_ms <= STEP_BACK_MS).then_some(0),
        }
    }

    /// The later of two moments that can be compared.
    pub(super) fn later(self, other: Self) -> Self {
        if other.unix_ms > self.unix_ms { other } else { self }
    }

    pub(super) fn encode(self) -> [u8; 9] {
        let mut bytes = [u8::from(self.synced); 9];
        bytes[..8].copy_from_slice(&self.unix_ms.to_le_bytes());
        bytes
    }

    pub(super) fn decode(bytes: [u8; 9]) -> Option<Self> {
        let [unix_ms @ .., synced @ (0 | 1)] = bytes else { return None };
        Some(Self { unix_ms: u64::from_le_bytes(unix_ms), synced: synced == 1 })
    }
}

impl From<&Message> for Moment {
    fn from(message: &Message) -> Self {
        Self { unix_ms: message.received_at_ms, synced: message.clock_synced }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_set_gives_no_time() {
        let unsynced = |unix_ms| Moment { unix_ms, synced: false };
        assert_eq!(Moment::at(5_000).since(Moment::at(2_000)), Some(3_000));
        assert_eq!(unsynced(5_000).since(unsynced(2_000)), Some(3_000));
        assert_eq!(Moment::at(5_000).since(unsynced(2_000)), None);
        assert_eq!(Moment::at(100_000).since(Moment::at(160_000)), Some(0));
        assert_eq!(Moment::at(100_000).since(Moment::at(160_001)), None);
        assert_eq!(Moment::at(0).since(Moment::at(u64::MAX)), None);
    }

    #[test]
    fn moments_come_back() {
        for moment in [Moment::at(0), Moment::at(u64::MAX), Moment { unix_ms: 1_767_610_933_000, synced: false }] {
            assert_eq!(Moment::decode(moment.encode()), Some(moment));
        }
        assert_eq!(Moment::decode([2; 9]), None);
    }
}
