//! Function state cached in a worker: bounded, least recently used evicted first.
//!
//! Eviction loses nothing: every write was returned with its outcome, and the daemon reads state back from the store.

use std::collections::HashMap;
use std::sync::Arc;

use sedge_sandbox::ScopeState;

/// Function number and, for state per topic, the topic.
pub(crate) type ScopeKey = (u32, Option<Arc<str>>);

/// Memory of a scope besides its topic and its entries.
const SCOPE_BYTES: usize = 200;

fn memory(scope: &ScopeKey, state: &ScopeState) -> usize {
    state.memory() + scope.1.as_ref().map_or(0, |topic| topic.len()) + SCOPE_BYTES
}

/// Approximates least-recently-used with two generations. New and used entries are in `young`. When `young` reaches half
/// the limit, it replaces `old`.
pub(crate) struct StateCache {
    young: HashMap<ScopeKey, ScopeState>,
    old: HashMap<ScopeKey, ScopeState>,
    young_bytes: usize,
    half: usize,
}

impl StateCache {
    pub(crate) fn new(limit_bytes: usize) -> Self {
        Self { young: HashMap::new(), old: HashMap::new(), young_bytes: 0, half: limit_bytes / 2 }
    }

    /// Removes a scope's state for a run. The caller puts it back.
    pub(crate) fn take(&mut self, scope: &ScopeKey) -> Option<ScopeState> {
        if let Some(state) = self.young.get_mut(scope) {
            self.young_bytes -= memory(scope, state);
            return Some(std::mem::take(state));
        }
        self.old.remove(scope)
    }

    /// Drops the state of these topics of a function, or all of it if there are none.
    pub(crate) fn forget(&mut self, function: u32, topics: Vec<Option<Box<str>>>) {
        if topics.is_empty() {
            let gone = self.young.extract_if(|scope, _| scope.0 == function);
            self.young_bytes -= gone.map(|(scope, state)| memory(&scope, &state)).sum::<usize>();
            self.old.retain(|scope, _| scope.0 != function);
        }
        for topic in topics {
            let scope = (function, topic.map(Into::into));
            if let Some(state) = self.young.remove(&scope) {
                self.young_bytes -= memory(&scope, &state);
            }
            self.old.remove(&scope);
        }
    }

    pub(crate) fn put(&mut self, scope: ScopeKey, state: ScopeState) {
        self.young_bytes += memory(&scope, &state);
        self.young.insert(scope, state);
        if self.young_bytes > self.half {
            self.old = std::mem::take(&mut self.young);
            self.young_bytes = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn state(size: usize) -> ScopeState {
        ScopeState::from_entries([("k".into(), Bytes::from(vec![0; size]))])
    }

    #[test]
    fn used_entries_stay_and_memory_is_bounded() {
        let mut cache = StateCache::new(100_000);
        let hot: ScopeKey = (0, Some("hot".into()));
        cache.put(hot.clone(), state(1000));
        for n in 0..1000 {
            cache.put((0, Some(format!("t{n}").into())), state(1000));
            let kept = cache.take(&hot).expect("used at every step");
            cache.put(hot.clone(), kept);
        }
        let held: usize = cache.young.values().chain(cache.old.values()).map(ScopeState::bytes).sum();
        assert!(held <= 110_000, "{held}");
        assert!(cache.take(&(0, Some("t0".into()))).is_none());
        assert!(cache.take(&(0, Some("t999".into()))).is_some());
    }

    #[test]
    fn forgotten_state_is_asked_for_again_and_frees_its_memory() {
        let scope = |function, topic: &str| (function, Some(topic.into()));
        let mut cache = StateCache::new(1_000_000);
        for topic in ["a", "b"] {
            cache.put(scope(0, topic), state(1000));
            cache.put(scope(1, topic), state(1000));
        }
        cache.put((1, None), state(1000));
        cache.forget(0, vec![Some("a".into()), None]);
        assert!(cache.take(&scope(0, "a")).is_none());
        let kept = cache.take(&scope(0, "b")).expect("another topic");
        cache.put(scope(0, "b"), kept);
        cache.forget(1, Vec::new());
        for gone in [scope(1, "a"), scope(1, "b"), (1, None)] {
            assert!(cache.take(&gone).is_none());
        }
        cache.forget(0, Vec::new());
        assert_eq!(cache.young_bytes, 0);
    }

    /// Topics of 60,000 bytes with one byte of state each filled a worker until it died.
    #[test]
    fn topics_and_small_entries_count() {
        let mut cache = StateCache::new(1_000_000);
        let mut scopes = 0;
        for n in 0..1000 {
            cache.put((0, Some(format!("{n:01000}").into())), state(1));
            scopes = scopes.max(cache.young.len() + cache.old.len());
        }
        assert!((600..=1000).contains(&scopes), "{scopes}");
        let mut cache = StateCache::new(1_000_000);
        for n in 0..100 {
            let entries = (0..1000).map(|key| (key.to_string().into(), Bytes::new()));
            cache.put((n, None), ScopeState::from_entries(entries));
            assert!(cache.young.len() + cache.old.len() <= 9);
        }
    }
}
