//! Hash maps whose order follows from the board's seed: the same inputs and seed give the same effects.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash};

use siphasher::sip::SipHasher13;
use siphasher::sip128::{Hasher128 as _, SipHasher13 as SipHasher128};

pub(crate) type Map<K, V> = HashMap<K, V, Seeded>;

/// SipHash-1-3 with a key made from the board's seed. Publishers who choose topics cannot predict collisions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seeded(u64);

impl Seeded {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn map<K, V>(self) -> Map<K, V> {
        HashMap::with_hasher(self)
    }

    /// A keyed hash that stands for a value of any size: 128 bits do not collide.
    pub(crate) fn hash128(self, value: &impl Hash) -> u128 {
        let mut hasher = SipHasher128::new_with_keys(self.0, !self.0);
        value.hash(&mut hasher);
        hasher.finish128().as_u128()
    }
}

impl BuildHasher for Seeded {
    type Hasher = SipHasher13;

    fn build_hasher(&self) -> SipHasher13 {
        SipHasher13::new_with_keys(self.0, !self.0)
    }
}
