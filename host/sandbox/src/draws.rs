//! What a run reads of clocks and random numbers: kept for a recording, or given again from one.

use sedge_core::recording::{Drawn, MAX_CLOCKS, MAX_RANDOM_BYTES};
use wasmtime::Result;

use super::grants;

/// Time that passes between two readings that a recording does not have.
const STEP_NS: u64 = 1_000_000;

/// Where the values of a run come from.
#[derive(Debug, Default)]
pub enum Draws {
    /// The board, without a trace.
    #[default]
    Real,
    /// The board, and they are kept.
    Kept(Box<Drawn>),
    Given(Box<Given>),
}

/// Values of a recording, for a run that may ask for more.
#[derive(Debug)]
pub struct Given {
    drawn: Drawn,
    clocks: usize,
    random: usize,
    last_ns: u64,
    seed: u64,
    /// It asked for more than was recorded.
    ran_out: bool,
}

impl Draws {
    pub fn kept() -> Self {
        Self::Kept(Box::default())
    }

    /// `received_at_ms`: of the message, for a clock of which nothing was recorded.
    pub fn given(drawn: Drawn, received_at_ms: u64) -> Self {
        let last_ns = received_at_ms.saturating_mul(1_000_000);
        Self::Given(Box::new(Given { drawn, clocks: 0, random: 0, last_ns, seed: last_ns, ran_out: false }))
    }

    /// Whether a run asked for more than was recorded.
    pub fn ran_out(&self) -> bool {
        matches!(self, Self::Given(given) if given.ran_out)
    }

    /// What was kept.
    pub(crate) fn take_kept(&mut self) -> Option<Box<Drawn>> {
        match std::mem::take(self) {
            Self::Kept(drawn) => Some(drawn).filter(|drawn| !drawn.is_empty()),
            other => {
                *self = other;
                None
            }
        }
    }

    /// The next value of a clock, in nanoseconds.
    pub(crate) fn clock(&mut self, real: fn() -> u64) -> u64 {
        match self {
            Self::Real => real(),
            Self::Kept(drawn) => {
                let now = real();
                match drawn.clocks.len() < MAX_CLOCKS {
                    true => drawn.clocks.push(now),
                    false => drawn.is_cut = true,
                }
                now
            }
            Self::Given(given) => given.clock(),
        }
    }

    /// Fills with random bytes.
    pub(crate) fn fill(&mut self, bytes: &mut [u8]) -> Result<()> {
        match self {
            Self::Real => grants::fill(bytes),
            Self::Kept(drawn) => {
                grants::fill(bytes)?;
                match drawn.random.len() + bytes.len() <= MAX_RANDOM_BYTES {
                    true => drawn.random.extend_from_slice(bytes),
                    false => drawn.is_cut = true,
                }
                Ok(())
            }
            Self::Given(given) => {
                given.fill(bytes);
                Ok(())
            }
        }
    }
}

impl Given {
    fn clock(&mut self) -> u64 {
        match self.drawn.clocks.get(self.clocks) {
            Some(value) => {
                self.clocks += 1;
                self.last_ns = *value;
            }
            None => {
                self.ran_out = true;
                self.last_ns = self.last_ns.saturating_add(STEP_NS);
            }
        }
        self.last_ns
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        let left = &self.drawn.random[self.random..];
        let recorded = left.len().min(bytes.len());
        bytes[..recorded].copy_from_slice(&left[..recorded]);
        self.random += recorded;
        for byte in &mut bytes[recorded..] {
            self.ran_out = true;
            // SplitMix64 (Steele et al., 2014): any values will do, as long as they are the same each time.
            self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mixed = (self.seed ^ self.seed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            *byte = ((mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb) >> 32) as u8;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(draws: &mut Draws) -> (Vec<u64>, [u8; 8]) {
        let clocks = (0..3).map(|_| draws.clock(grants::monotonic_ns)).collect();
        let mut random = [0; 8];
        draws.fill(&mut random[..3]).unwrap();
        draws.fill(&mut random[3..]).unwrap();
        (clocks, random)
    }

    #[test]
    fn what_was_kept_is_given_again() {
        let mut draws = Draws::kept();
        let first = numbers(&mut draws);
        let drawn = *draws.take_kept().unwrap();
        let mut again = Draws::given(drawn, 5);
        assert_eq!(numbers(&mut again), first);
        assert!(!again.ran_out());
        assert_eq!(Draws::kept().take_kept(), None, "a run that asks for nothing leaves nothing");
    }

    #[test]
    fn a_run_that_asks_for_more_gets_the_same_each_time() {
        let draws = || {
            let mut draws = Draws::given(Drawn { clocks: vec![7], random: vec![1, 2], is_cut: false }, 5);
            let numbers = numbers(&mut draws);
            assert!(draws.ran_out());
            numbers
        };
        let (clocks, random) = draws();
        assert_eq!((&clocks[..], &random[..2]), (&[7, 7 + STEP_NS, 7 + 2 * STEP_NS][..], &[1, 2][..]));
        assert_ne!(random[2..5], random[5..8]);
        assert_eq!(draws(), (clocks, random));
    }

    #[test]
    fn no_more_is_kept_than_a_recording_holds() {
        let mut draws = Draws::kept();
        for _ in 0..=MAX_CLOCKS {
            draws.clock(grants::unix_ns);
        }
        let mut random = vec![0; MAX_RANDOM_BYTES + 1];
        draws.fill(&mut random).unwrap();
        let drawn = draws.take_kept().unwrap();
        assert!(drawn.is_cut && drawn.clocks.len() == MAX_CLOCKS && drawn.random.is_empty());
    }
}
