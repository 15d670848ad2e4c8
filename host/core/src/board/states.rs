//! How much state functions have. A run whose writes would exceed the bound of its function, or that of all functions, is
//! refused; before that, state that may be forgotten makes room.
//!
//! Growth counts from when it is accepted, and what a run frees from when its commit is sent. The store carries out commits
//! and deletions in the order of sending, so what is on disk never exceeds what is counted here.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use super::map::{Map, Seeded};
use crate::message::{Failure, FailureCode, Scope, StateGrowth};
use crate::mistakes::{Mistake, is_made};
use crate::store::{ENTRY_BYTES, SCOPE_BYTES, StoredState, scope_bytes};

/// Scopes that are in use and therefore passed over in the search for one to forget. The search must end.
const MAX_PASSED_OVER: usize = 64;

pub(crate) struct States {
    max_bytes: u64,
    /// Of all functions.
    bytes: u64,
    /// By the name under which state is stored.
    functions: BTreeMap<Arc<str>, FunctionState>,
    uses: u64,
    seed: Seeded,
}

struct FunctionState {
    bytes: u64,
    scopes: Map<Option<Arc<str>>, ScopeState>,
    /// The same scopes by their last use.
    by_use: BTreeMap<u64, Option<Arc<str>>>,
}

struct ScopeState {
    bytes: u64,
    used: u64,
}

/// The bounds of the version that ran.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StateBounds {
    pub(crate) total_bytes: Option<u64>,
    /// Its least recently used scopes make room.
    pub(crate) forgets: bool,
}

/// What an accepted run needs.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Admitted {
    /// To be given to [`States::freed`] once the run's commit is sent.
    pub(crate) freed: u64,
    /// Functions that are not installed, whose state makes room.
    pub(crate) removed: Vec<Arc<str>>,
    /// Scopes of the function that make room.
    pub(crate) forgotten: Vec<Option<Arc<str>>>,
}

impl States {
    pub(crate) fn new(max_bytes: u64, seed: Seeded) -> Self {
        Self { max_bytes, bytes: 0, functions: BTreeMap::new(), uses: 0, seed }
    }

    /// Takes up what the store has, the least recently used first. What was counted before does not count.
    pub(crate) fn restore(&mut self, stored: Vec<StoredState>) {
        self.functions.clear();
        self.bytes = 0;
        for StoredState { scope, bytes } in stored {
            self.resize(&scope, bytes.cast_signed());
            self.add(&scope.function, bytes);
        }
    }

    /// A scope of which nothing is stored begins with entries of another. They count as if they were: what a run changes is
    /// known in comparison with them.
    pub(crate) fn begin(&mut self, scope: &Scope, entries: &[(Box<str>, Bytes)]) {
        let bytes: usize = entries.iter().map(|(key, value)| key.len() + value.len()).sum();
        let begun = scope_bytes(scope.topic.as_deref(), entries.len() as u64, bytes as u64);
        self.forget(&scope.function, &scope.topic);
        self.resize(scope, begun.cast_signed());
        self.add(&scope.function, begun);
    }

    /// Whether more is counted than there may be, because a scope began with entries of another.
    pub(crate) fn is_over(&self) -> bool {
        self.bytes > self.max_bytes
    }

    /// Bytes of all functions.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn bytes_of(&self, function: &str) -> u64 {
        self.functions.get(function).map_or(0, |it| it.bytes)
    }

    /// Notes that a run has seen a scope.
    pub(crate) fn touch(&mut self, scope: &Scope) {
        self.uses += 1;
        let Some(function) = self.functions.get_mut(&scope.function) else { return };
        if let Some(state) = function.scopes.get_mut(&scope.topic) {
            function.by_use.remove(&state.used);
            state.used = self.uses;
            function.by_use.insert(self.uses, scope.topic.clone());
        }
    }

    /// Counts what a run changes, if that is within the bounds. `is_installed`: whether a function's state is in use at all.
    /// `is_free`: whether no run that has seen the function's state on this topic can still write to it.
    pub(crate) fn admit(
        &mut self,
        scope: &Scope,
        growth: StateGrowth,
        bounds: StateBounds,
        is_installed: impl Fn(&str) -> bool,
        is_free: impl Fn(&Option<Arc<str>>) -> bool,
    ) -> Result<Admitted, Failure> {
        let change = weight(growth, scope.topic.as_deref());
        let more = u64::try_from(change).unwrap_or(0);
        let mut admitted = Admitted::default();
        if more > 0 && !is_made(Mistake::GrowBeyondBound) {
            self.make_room(scope, more, bounds, is_installed, is_free, &mut admitted)?;
        }
        for function in &admitted.removed {
            self.forget_all(function);
        }
        for topic in &admitted.forgotten {
            self.forget(&scope.function, topic);
        }
        let changed = self.resize(scope, change);
        self.add(&scope.function, u64::try_from(changed).unwrap_or(0));
        admitted.freed = u64::try_from(-changed).unwrap_or(0);
        Ok(admitted)
    }

    /// Finds what is to be forgotten so that so much more fits. Nothing is forgotten in vain.
    fn make_room(
        &self,
        scope: &Scope,
        more: u64,
        bounds: StateBounds,
        is_installed: impl Fn(&str) -> bool,
        is_free: impl Fn(&Option<Arc<str>>) -> bool,
        admitted: &mut Admitted,
    ) -> Result<(), Failure> {
        let own = self.bytes_of(&scope.function);
        let own_excess = bounds.total_bytes.map_or(0, |total| (own + more).saturating_sub(total));
        let mut excess = (self.bytes + more).saturating_sub(self.max_bytes);
        let mut removed: Vec<_> = match excess {
            0 => Vec::new(),
            // A version that was removed may still have had this run.
            _ => self.functions.iter().filter(|(name, _)| **name != scope.function && !is_installed(name)).collect(),
        };
        removed.sort_by_key(|(_, it)| it.bytes);
        while excess > 0
            && let Some((name, it)) = removed.pop()
        {
            excess = excess.saturating_sub(it.bytes);
            admitted.removed.push(Arc::clone(name));
        }
        let mut wanted = own_excess.max(excess);
        if bounds.forgets && wanted <= own {
            let function = self.functions.get(&scope.function);
            let mut oldest = function.iter().flat_map(|it| it.by_use.values().map(|topic| (topic, &it.scopes[topic])));
            let mut passed_over = 0;
            while wanted > 0
                && passed_over < MAX_PASSED_OVER
                && let Some((topic, state)) = oldest.next()
            {
                if *topic == scope.topic || !is_free(topic) {
                    passed_over += 1;
                    continue;
                }
                wanted = wanted.saturating_sub(state.bytes);
                admitted.forgotten.push(topic.clone());
            }
        }
        if wanted == 0 {
            return Ok(());
        }
        let detail = match (bounds.total_bytes, bounds.forgets) {
            (Some(total), forgets) if own_excess > 0 => {
                let fix = if forgets { "" } else { ", or set state_full = \"forget-oldest\"" };
                format!(
                    "the run adds {more} bytes to {own} bytes of state, the limit of the function is {total} \
                     (limits.state_total_bytes): remove keys, raise it{fix}"
                )
            }
            _ => format!(
                "the run adds {more} bytes to {} bytes of state of all functions, {own} of them its own; the limit is {} \
                 (store.state_max_bytes): remove keys, raise it, or remove a function",
                self.bytes, self.max_bytes
            ),
        };
        Err(Failure { code: FailureCode::StateFull, detail })
    }

    /// The commit of a run that freed state is sent.
    pub(crate) fn freed(&mut self, function: &str, bytes: u64) {
        if let Some(it) = self.functions.get_mut(function) {
            // Less is left if all of it was forgotten meanwhile.
            let bytes = bytes.min(it.bytes);
            it.bytes -= bytes;
            self.bytes -= bytes;
            if it.bytes == 0 && it.scopes.is_empty() {
                self.functions.remove(function);
            }
        }
    }

    /// The function has no state any more.
    pub(crate) fn forget_all(&mut self, function: &str) {
        self.bytes -= self.functions.remove(function).map_or(0, |it| it.bytes);
    }

    fn forget(&mut self, function: &str, topic: &Option<Arc<str>>) {
        let Some(it) = self.functions.get_mut(function) else { return };
        if let Some(state) = it.scopes.remove(topic) {
            it.by_use.remove(&state.used);
            it.bytes -= state.bytes;
            self.bytes -= state.bytes;
        }
    }

    /// Changes what a scope counts, without the sums. Returns by how much, which is less where it would be below zero.
    fn resize(&mut self, scope: &Scope, change: i64) -> i64 {
        if change == 0 {
            return 0;
        }
        self.uses += 1;
        let function = match self.functions.get_mut(&scope.function) {
            Some(function) => function,
            None => self.functions.entry(Arc::clone(&scope.function)).or_insert_with(|| FunctionState {
                bytes: 0,
                scopes: self.seed.map(),
                by_use: BTreeMap::new(),
            }),
        };
        let known = function.scopes.get_mut(&scope.topic);
        let before = known.as_ref().map_or(0, |state| state.bytes);
        let after = before.saturating_add_signed(change);
        match known {
            Some(state) if after > 0 => state.bytes = after,
            Some(state) => {
                function.by_use.remove(&state.used);
                function.scopes.remove(&scope.topic);
            }
            None if after > 0 => {
                function.scopes.insert(scope.topic.clone(), ScopeState { bytes: after, used: self.uses });
                function.by_use.insert(self.uses, scope.topic.clone());
            }
            None => {}
        }
        after.cast_signed() - before.cast_signed()
    }

    fn add(&mut self, function: &str, bytes: u64) {
        if let Some(it) = self.functions.get_mut(function) {
            it.bytes += bytes;
            self.bytes += bytes;
        }
    }
}

/// What a run adds to what its scope counts.
fn weight(growth: StateGrowth, topic: Option<&str>) -> i64 {
    let scope = SCOPE_BYTES + topic.map_or(0, |topic| topic.len() as u64);
    let entries = growth.keys.saturating_mul(ENTRY_BYTES.cast_signed());
    growth.bytes.saturating_add(entries).saturating_add(i64::from(growth.scopes) * scope.cast_signed())
}

#[cfg(test)]
mod tests;
