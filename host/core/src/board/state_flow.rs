//! The state of functions within its bounds: what a run may add, what makes room for it, and what becomes of writes that are
//! refused although the worker has made them.

use std::sync::Arc;

use super::Board;
use super::dispatch::Key;
use super::ids::{FunctionNo, UnitId};
use super::rollout::Edition;
use super::states::{Admitted, StateBounds};
use crate::manifest::{StateFull, StateScope};
use crate::message::{Failure, Scope, StateGrowth, StateWrite};
use crate::metrics::FunctionMetrics;
use crate::mistakes::{Mistake, is_made};

impl Board {
    /// Counts what a run changes of its state, and makes room for it. Returns what is free once the run is sent.
    pub(super) fn admit_state(
        &mut self,
        id: UnitId,
        number: FunctionNo,
        edition: &Edition,
        growth: StateGrowth,
    ) -> Result<u64, Failure> {
        if edition.scope() == StateScope::None {
            return Ok(0);
        }
        let manifest = edition.manifest();
        let forgets = manifest.state_full == StateFull::ForgetOldest;
        if growth == StateGrowth::default() && !forgets {
            return Ok(0);
        }
        let (rollout, ledger, dispatch) = (&self.rollout, &self.ledger, &self.dispatch);
        let scope = rollout.function(number).state_scope(edition.scope(), &ledger.unit(id).message);
        let bounds =
            StateBounds { total_bytes: manifest.limits.state_total_bytes.map(std::num::NonZeroU64::get), forgets };
        let is_installed = |name: &str| {
            let mut functions = rollout.functions().filter(|(_, it)| **it.state_name() == *name);
            functions.any(|(_, it)| it.serving().is_some() || it.jobs_under_way() > 0)
                || ledger.has_unsent_writes_of(name)
        };
        let is_free = |topic: &Option<Arc<str>>| {
            let scope = Scope { function: Arc::clone(&scope.function), topic: topic.clone() };
            dispatch.is_free(number, topic) && !ledger.has_unsent_writes_to(&scope)
        };
        let admitted = self.states.admit(&scope, growth, bounds, is_installed, is_free)?;
        if forgets {
            self.states.touch(&scope);
        }
        let Admitted { freed, removed, forgotten } = admitted;
        for function in removed {
            self.forget_removed(function);
        }
        if !forgotten.is_empty() {
            self.rollout.function(number).metrics.state_forgotten.add(forgotten.len() as u64);
            self.dispatch.forget_state(number, &forgotten);
            self.taps.forget_state(number, &forgotten);
            self.ledger.forget_state(Arc::clone(&scope.function), forgotten);
        }
        self.show_state(&scope.function);
        Ok(freed)
    }

    /// Once there was no room for what a shadow wrote, nothing of it is stored any more: its jobs wait for no recall, so that
    /// its worker cannot be set back. Its answers are compared all the same.
    pub(super) fn write_shadow_state(
        &mut self,
        id: UnitId,
        number: FunctionNo,
        edition: &Edition,
        writes: Vec<StateWrite>,
        growth: StateGrowth,
    ) {
        if self.rollout.function(number).is_state_refused {
            return;
        }
        match self.admit_state(id, number, edition, growth) {
            // It may have begun with more than there is room for.
            Ok(freed) if writes.is_empty() || !self.states.is_over() => {
                self.write_state(id, number, edition, writes, freed);
            }
            _ => {
                let function = self.rollout.function_mut(number);
                function.is_state_refused = true;
                tracing::warn!(
                    function = &*function.name,
                    "there is no room for the state of a shadow: it is compared on what its worker remembers"
                );
            }
        }
    }

    /// State of a function that is not installed makes room.
    fn forget_removed(&mut self, function: Arc<str>) {
        tracing::warn!(
            function = &*function,
            "state of a function that is not installed is deleted: store.state_max_bytes is reached"
        );
        self.forget_in_workers(&function);
        self.wakes.forget(self.rollout.find(&function), &function);
        self.silences.forget(self.rollout.find(&function), &function);
        self.schedules.forget(&function);
        self.ledger.forget_state(function, Vec::new());
        self.show_removed_state();
    }

    /// The store has deleted the state of a function that was away for too long.
    pub(super) fn state_expired(&mut self, function: &str) {
        self.states.forget_all(function);
        self.wakes.forget(self.rollout.find(function), function);
        self.silences.forget(self.rollout.find(function), function);
        self.schedules.forget(function);
        self.forget_in_workers(function);
        self.show_removed_state();
    }

    fn forget_in_workers(&mut self, state_name: &str) {
        let number =
            self.rollout.functions().find(|(_, it)| **it.state_name() == *state_name).map(|(number, _)| number);
        if let Some(number) = number {
            self.dispatch.forget_state(number, &[]);
            self.taps.forget_state(number, &[]);
        }
    }

    /// A run that the worker counts as done is refused: the worker forgets what it has of the scope, and what it ran on top of
    /// that runs again. `None`: there is no state.
    pub(super) fn discard_writes(&mut self, id: UnitId, number: FunctionNo, edition: &Edition) -> Option<Key> {
        if edition.scope() == StateScope::None || is_made(Mistake::KeepRefusedWrites) {
            return None;
        }
        let key = Key::new(number, edition.scope(), &self.ledger.unit(id).message);
        self.dispatch.discard(&key);
        Some(key)
    }

    /// [`Board::discard_writes`], and calls back the jobs of the key. [`Board::end_recall`] must follow once the job is
    /// finished.
    pub(super) fn undo_writes(&mut self, id: UnitId, number: FunctionNo, edition: &Edition) -> Option<Key> {
        let key = self.discard_writes(id, number, edition)?;
        if self.dispatch.is_draining(number) {
            return None;
        }
        if !self.dispatch.is_recalled(&key) {
            let message = Arc::clone(&self.ledger.unit(id).message);
            self.recall(key.clone(), edition, &message, None);
        }
        Some(key)
    }

    /// Shows how much state the function with this name of its state has.
    pub(super) fn show_state(&self, state_name: &str) {
        if let Some((_, function)) = self.rollout.functions().find(|(_, it)| **it.state_name() == *state_name) {
            self.show_state_of(state_name, &function.metrics);
        }
    }

    fn show_state_of(&self, state_name: &str, metrics: &FunctionMetrics) {
        metrics.state_bytes.set(self.states.bytes_of(state_name));
    }

    /// Shows how much state each function has, and those that are not installed.
    pub(super) fn show_all_state(&self) {
        for (_, function) in self.rollout.functions() {
            self.show_state_of(function.state_name(), &function.metrics);
        }
        self.show_removed_state();
    }

    fn show_removed_state(&self) {
        let installed = self.rollout.functions().filter(|(_, it)| it.serving().is_some());
        let of_installed: u64 = installed.map(|(_, it)| self.states.bytes_of(it.state_name())).sum();
        self.metrics.removed_state_bytes.set(self.states.bytes() - of_installed);
    }
}
