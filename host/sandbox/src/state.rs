//! The state of one scope during one run: the stored entries, overlaid by the writes of this run.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use sedge_core::message::{StateGrowth, StateWrite};

/// Memory of an entry beside key and value.
const ENTRY_BYTES: usize = 120;

/// All keys of one scope, as committed. The worker keeps it between runs.
#[derive(Clone, Debug, Default)]
pub struct ScopeState {
    entries: BTreeMap<Box<str>, Bytes>,
    bytes: usize,
}

impl ScopeState {
    pub fn from_entries(entries: impl IntoIterator<Item = (Box<str>, Bytes)>) -> Self {
        let mut state = Self::default();
        for (key, value) in entries {
            state.insert(&key, value);
        }
        state
    }

    /// Keys and values together.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Number of keys, and bytes.
    fn size(&self) -> (usize, usize) {
        (self.entries.len(), self.bytes)
    }

    /// Memory of the entries.
    pub fn memory(&self) -> usize {
        self.bytes + self.entries.len() * ENTRY_BYTES
    }

    pub fn entries(&self) -> impl Iterator<Item = (&str, &Bytes)> {
        self.entries.iter().map(|(key, value)| (&**key, value))
    }

    pub fn apply(&mut self, writes: &[StateWrite]) {
        for write in writes {
            match &write.value {
                Some(value) => self.insert(&write.key, value.clone()),
                None => self.remove(&write.key),
            }
        }
    }

    fn insert(&mut self, key: &str, value: Bytes) {
        if let Some(old) = self.entries.get_mut(key) {
            self.bytes = self.bytes - old.len() + value.len();
            *old = value;
        } else {
            self.bytes += key.len() + value.len();
            self.entries.insert(key.into(), value);
        }
    }

    fn remove(&mut self, key: &str) {
        if let Some(old) = self.entries.remove(key) {
            self.bytes -= key.len() + old.len();
        }
    }
}

/// One run's view of the state. Writes are kept apart, so that a failed run leaves nothing behind.
#[derive(Debug, Default)]
pub struct StateView {
    state: ScopeState,
    /// Few, so searched linearly.
    writes: Vec<StateWrite>,
    /// Change of the state's size by the writes.
    growth: isize,
    /// Change of the number of keys by the writes.
    key_growth: isize,
}

impl StateView {
    pub fn new(state: ScopeState) -> Self {
        Self { state, writes: Vec::new(), growth: 0, key_growth: 0 }
    }

    /// Returns what is stored, without the writes.
    pub(crate) fn stored(&self) -> impl Iterator<Item = (&str, &Bytes)> {
        self.state.entries()
    }

    pub fn get(&self, key: &str) -> Option<&Bytes> {
        match self.writes.iter().find(|write| &*write.key == key) {
            Some(write) => write.value.as_ref(),
            None => self.state.entries.get(key),
        }
    }

    /// Sets or removes a key. A write without effect, or one that restores the stored value, is not recorded: it must cost
    /// no disk space and, however often it is done, no memory.
    pub fn set(&mut self, key: &str, value: Option<&[u8]>) {
        let old = self.get(key);
        if old.map(|old| &**old) == value {
            return;
        }
        let size = |value: Option<usize>| value.map_or(0, |len| (key.len() + len).cast_signed());
        let growth = size(value.map(<[u8]>::len)) - size(old.map(Bytes::len));
        let key_growth = isize::from(value.is_some()) - isize::from(old.is_some());
        self.growth += growth;
        self.key_growth += key_growth;
        let restored = self.state.entries.get(key).map(|stored| &**stored) == value;
        let place = self.writes.iter().position(|write| &*write.key == key);
        let value = value.map(Bytes::copy_from_slice);
        match place {
            Some(place) if restored => drop(self.writes.swap_remove(place)),
            Some(place) => self.writes[place].value = value,
            None => self.writes.push(StateWrite { key: key.into(), value }),
        }
    }

    /// Returns the keys in order, with the writes applied.
    pub fn keys(&self) -> Vec<String> {
        let mut keys: BTreeSet<&str> = self.state.entries.keys().map(|key| &**key).collect();
        for write in &self.writes {
            match write.value {
                Some(_) => keys.insert(&write.key),
                None => keys.remove(&*write.key),
            };
        }
        keys.into_iter().map(str::to_owned).collect()
    }

    /// Returns the size of the scope with the writes applied.
    pub fn bytes(&self) -> usize {
        self.state.bytes.saturating_add_signed(self.growth)
    }

    /// Returns the number of keys with the writes applied.
    pub fn key_count(&self) -> usize {
        self.state.entries.len().saturating_add_signed(self.key_growth)
    }

    /// Returns the number of keys that were set or removed.
    pub fn changes(&self) -> usize {
        self.writes.len()
    }

    /// Ends a run: applies the writes and returns them, or drops them.
    pub fn finish(mut self, succeeded: bool) -> (ScopeState, Vec<StateWrite>, StateGrowth) {
        if !succeeded {
            return (self.state, Vec::new(), StateGrowth::default());
        }
        let before = self.state.size();
        self.state.apply(&self.writes);
        let growth = StateGrowth::between(before, self.state.size());
        (self.state, self.writes, growth)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(entries: &[(&str, &str)]) -> ScopeState {
        ScopeState::from_entries(
            entries.iter().map(|(key, value)| ((*key).into(), Bytes::copy_from_slice(value.as_bytes()))),
        )
    }

    #[test]
    fn a_run_sees_its_own_writes_over_the_stored_entries() {
        let mut view = StateView::new(state(&[("a", "1"), ("b", "2")]));
        view.set("a", Some(b"10"));
        view.set("b", None);
        view.set("c", Some(b"3"));
        assert_eq!(view.get("a").unwrap(), "10");
        assert_eq!(view.get("b"), None);
        assert_eq!(view.keys(), ["a", "c"]);
        assert_eq!((view.key_count(), view.changes()), (2, 3));
        assert_eq!(view.bytes(), 1 + 2 + 1 + 1);
        let (state, writes, growth) = view.finish(true);
        assert_eq!(writes.len(), 3);
        assert_eq!(growth, StateGrowth { bytes: 1, keys: 0, scopes: 0 });
        assert_eq!(state.bytes(), 5);
        assert_eq!(state.entries().map(|(key, _)| key).collect::<Vec<_>>(), ["a", "c"]);
    }

    #[test]
    fn a_failed_run_leaves_nothing() {
        let mut view = StateView::new(state(&[("a", "1")]));
        view.set("a", Some(b"10"));
        let (state, writes, _) = view.finish(false);
        assert!(writes.is_empty());
        assert_eq!(StateView::new(state).get("a").unwrap(), "1");
    }

    #[test]
    fn a_write_without_effect_is_not_recorded() {
        let mut view = StateView::new(state(&[("a", "1")]));
        view.set("a", Some(b"1"));
        view.set("gone", None);
        // Nor is one that restores the stored value.
        view.set("a", Some(b"2"));
        view.set("a", Some(b"1"));
        view.set("new", Some(b"1"));
        view.set("new", None);
        assert_eq!(view.bytes(), 2);
        assert!(view.finish(true).1.is_empty());
    }

    #[test]
    fn the_first_and_the_last_key_of_a_scope_count_it() {
        let mut view = StateView::new(ScopeState::default());
        view.set("a", Some(b"1"));
        let (state, _, growth) = view.finish(true);
        assert_eq!(growth, StateGrowth { bytes: 2, keys: 1, scopes: 1 });
        let mut view = StateView::new(state);
        view.set("a", None);
        assert_eq!(view.finish(true).2, StateGrowth { bytes: -2, keys: -1, scopes: -1 });
    }
}
