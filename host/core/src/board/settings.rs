//! Settings of functions while they run.
//!
//! A change reaches a worker as a command of its own, between two jobs: versions stay loaded, with their editions, state and
//! trials. Workers carry out commands in order, so that each job has one or the other settings as a whole, and a worker that
//! has answered runs none with the older. A worker that starts is given the newest with each version.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Board;
use super::input::Effect;
use crate::manifest::Manifest;
use crate::settings::{Overlay, Resolved, Settings};

/// What is laid over the settings of functions, installed or not.
#[derive(Debug, Default)]
pub(crate) struct Overlays(BTreeMap<Arc<str>, Overlay>);

impl Overlays {
    /// The settings that a version runs with.
    pub(crate) fn settings(&self, manifest: &Manifest) -> Settings {
        self.resolve(manifest).settings()
    }

    /// The same, with the origin of each value.
    pub(crate) fn resolve(&self, manifest: &Manifest) -> Resolved {
        match self.0.get(&manifest.name) {
            Some(overlay) => overlay.resolve(manifest),
            None => Overlay::default().resolve(manifest),
        }
    }
}

impl Board {
    pub(super) fn set_settings(&mut self, function: Arc<str>, change: u64, overlay: Overlay) {
        self.overlays.0.insert(Arc::clone(&function), overlay);
        let Self { dispatch, overlays, .. } = self;
        dispatch.workers.set(&function, change, |manifest| overlays.settings(manifest));
        // A version and its shadow may run a message with different settings: that is no difference of theirs.
        self.ledger.settings_change();
        self.taps.settings_changed();
    }

    /// No worker runs a job with older settings any more.
    pub(super) fn settings_in_force(&mut self, function: Arc<str>, change: u64) {
        self.effects.push_back(Effect::SettingsInForce { function, change });
    }
}
