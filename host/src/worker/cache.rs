//! The state that a worker keeps in memory: bounded, the longest unused goes first.
//!
//! Nothing in it is lost when it goes: every write was returned with its outcome, and the daemon reads it back from the
//! store when it is needed again.

use std::collections::HashMap;
use std::sync::Arc;

use crate::sandbox::State;

/// A function's number and, for state per topic, the topic.
pub type ScopeKey = (u32, Option<Arc<str>>);

/// What an entry costs besides its keys and values.
const ENTRY_OVERHEAD: usize = 160;

/// Two generations: new and used entries are in `young`; when it is half the limit, it becomes `old` and what was old is
/// dropped. Approximates least-recently-used without a list to keep.
pub struct StateCache {
    young: HashMap<ScopeKey, State>,
    old: HashMap<ScopeKey, State>,
    young_bytes: usize,
    half: usize,
}

impl StateCache {
    pub fn new(limit_bytes: usize) -> Self {
        Self { young: HashMap::new(), old: HashMap::new(), young_bytes: 0, half: limit_bytes / 2 }
    }

    /// Takes a scope's state out for a run. It is put back afterwards.
    pub fn take(&mut self, scope: &ScopeKey) -> Option<State> {
        if let Some(state) = self.young.get_mut(scope) {
            self.young_bytes -= state.bytes() + ENTRY_OVERHEAD;
            return Some(std::mem::take(state));
        }
        self.old.remove(scope)
    }

    pub fn put(&mut self, scope: ScopeKey, state: State) {
        self.young_bytes += state.bytes() + ENTRY_OVERHEAD;
        self.young.insert(scope, state);
        if self.young_bytes > self.half {
            self.old = std::mem::take(&mut self.young);
            self.young_bytes = 0;
        }
    }

    pub fn clear(&mut self) {
        self.young.clear();
        self.old.clear();
        self.young_bytes = 0;
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn state(size: usize) -> State {
        State::from_entries([("k".into(), Bytes::from(vec![0; size]))])
    }

    #[test]
    fn what_is_used_stays_and_memory_is_bounded() {
        let mut cache = StateCache::new(100_000);
        let hot: ScopeKey = (0, Some("hot".into()));
        cache.put(hot.clone(), state(1000));
        for n in 0..1000 {
            cache.put((0, Some(format!("t{n}").into())), state(1000));
            let kept = cache.take(&hot).expect("used at every step");
            cache.put(hot.clone(), kept);
        }
        let held: usize = cache.young.values().chain(cache.old.values()).map(State::bytes).sum();
        assert!(held <= 110_000, "{held}");
        assert!(cache.take(&(0, Some("t0".into()))).is_none());
        assert!(cache.take(&(0, Some("t999".into()))).is_some());
    }
}
