//! What is laid over the settings of functions: by the board's configuration, and by orders.
//!
//! The pipeline is told what is laid over, and answers once no message runs with older settings. Reports show what is in
//! force.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::deployer::{Deployer, report};
use super::function::TrackedFunction;
use super::interface::Action;
use super::payload::Install;
use super::reason::{Reason, Refusal};
use super::report::ReportedSetting;
use crate::config::settings::BoardLayer;
use crate::manifest::Manifest;
use crate::settings::{Origin, Overlay, Setting};
use crate::time::Now;

/// What is laid over each function, and which of it is in force.
#[derive(Debug, Default)]
pub(super) struct LaidOver {
    /// Number of the last change.
    changes: u64,
    functions: BTreeMap<Arc<str>, Laid>,
}

#[derive(Debug)]
struct Laid {
    overlay: Overlay,
    /// The change that brought it.
    change: u64,
    in_force: bool,
}

impl Deployer {
    /// What the pipeline must know before it loads the first version.
    pub fn overlays(&self) -> impl Iterator<Item = (&Arc<str>, u64, &Overlay)> {
        self.laid_over.functions.iter().map(|(function, laid)| (function, laid.change, &laid.overlay))
    }

    /// Takes up the settings of the configuration at the start.
    pub(super) fn boot_settings(&mut self) {
        let configured = self.config.functions.settings.keys().map(|name| name.as_str().into());
        let functions: BTreeSet<Arc<str>> = configured.chain(self.settings_orders.keys().cloned()).collect();
        let names: Vec<Arc<str>> = self.functions.keys().cloned().collect();
        for name in names {
            let orders = self.reported_orders(&name);
            if let Some(function) = self.functions.get_mut(&name) {
                function.settings_orders = orders;
            }
        }
        for function in functions {
            self.lay_over(&function);
        }
    }

    /// Logs what of the settings a version does not take, and what it lacks.
    pub(super) fn log_settings(&self, manifest: &Manifest) {
        let resolved = self.overlay(&manifest.name).resolve(manifest);
        let function = &*manifest.name;
        for refused in resolved.refused {
            match refused.is_unknown {
                true => tracing::warn!(function, %refused, "the function has no such setting: it is left out"),
                false => tracing::error!(function, %refused, "the function does not take a setting: it is left out"),
            }
        }
        for setting in resolved.missing {
            tracing::error!(
                function,
                setting,
                hint = format!("set it in [functions.settings.{function}]"),
                "the function needs a setting that this board does not have"
            );
        }
    }

    pub(super) fn overlay(&self, function: &str) -> Overlay {
        let board = self.config.functions.settings.get(function).map(|settings| (Origin::Board, settings.layer()));
        Overlay::new(board.into_iter().chain(self.ordered_layers(function)))
    }

    /// What is laid over a function already, installed or not.
    pub(super) fn overlay_in_force(&self, function: &str) -> Overlay {
        let laid = self.laid_over.functions.get(function).filter(|laid| laid.in_force);
        laid.map(|laid| laid.overlay.clone()).unwrap_or_default()
    }

    /// Notes what is laid over a function now. Returns the number of the change, if it is one.
    fn lay_over(&mut self, function: &Arc<str>) -> Option<u64> {
        let overlay = self.overlay(function);
        let LaidOver { changes, functions } = &mut self.laid_over;
        match functions.get(function) {
            Some(laid) if laid.overlay == overlay => return None,
            None if overlay.is_empty() => return None,
            _ => {}
        }
        *changes += 1;
        functions.insert(Arc::clone(function), Laid { overlay, change: *changes, in_force: false });
        Some(*changes)
    }

    /// Refuses an install that this board's settings do not fit: it would never serve as its author and the operator mean.
    pub(super) fn check_settings(&self, install: &Install) -> Result<(), Refusal> {
        let Ok(manifest) = Manifest::from_json(&install.manifest.to_json(), None) else { return Ok(()) };
        self.check_overlay(&manifest, &self.overlay(&manifest.name))
            .map_err(|why| Refusal::new(Reason::BadSetting, why))
    }

    pub(super) fn check_overlay(&self, manifest: &Manifest, overlay: &Overlay) -> Result<(), String> {
        let resolved = overlay.resolve(manifest);
        // A setting of another version is no reason against this one.
        let mut wrong: Vec<String> =
            resolved.refused.iter().filter(|refused| !refused.is_unknown).map(ToString::to_string).collect();
        wrong.extend(resolved.missing.iter().filter_map(|name| {
            let declaration = manifest.settings.get(name)?;
            let section = format!("[functions.settings.{}]", manifest.name);
            Some(format!("setting {name} has no value: set it in {section} of this board, {declaration}"))
        }));
        if wrong.is_empty() { Ok(()) } else { Err(wrong.join("; ")) }
    }

    /// Takes up settings that were read again. Those of a function that does not take them stay as they were.
    pub(super) fn configure_settings(&mut self, mut settings: BoardLayer) {
        let before = std::mem::take(&mut self.config.functions.settings);
        let names: BTreeSet<String> = before.keys().chain(settings.keys()).cloned().collect();
        for name in names {
            let layer = settings.get(&name).map(|settings| (Origin::Board, settings.layer()));
            let function = self.functions.get(&*name);
            if function.is_none_or(|function| function.record.active.is_none()) {
                if settings.contains_key(&name) {
                    tracing::warn!(function = name, "settings of a function that is not installed");
                }
                continue;
            }
            if settings.get(&name) == before.get(&name) {
                continue;
            }
            let manifest = function.and_then(|function| self.manifest(function.record.active.as_ref()?).ok());
            let Some(manifest) = manifest else { continue };
            let overlay = Overlay::new(layer.into_iter().chain(self.ordered_layers(&name)));
            let unknown =
                overlay.resolve(&manifest).refused.into_iter().filter(|it| it.is_unknown && it.origin == Origin::Board);
            let unknown = unknown.map(|refused| refused.to_string()).next();
            let checked = unknown.map_or(Ok(()), Err).and_then(|()| self.check_overlay(&manifest, &overlay));
            if let Err(why) = checked {
                tracing::error!(function = name, why, "the settings of a function are refused; the previous ones stay");
                match before.get(&name) {
                    Some(previous) => drop(settings.insert(name, previous.clone())),
                    None => drop(settings.remove(&name)),
                }
            }
        }
        let names: Vec<Arc<str>> = before.keys().chain(settings.keys()).map(|name| name.as_str().into()).collect();
        self.config.functions.settings = settings;
        for function in &names {
            self.change_settings(function);
        }
    }

    /// Has the pipeline take what is laid over a function now. `false`: it has it already.
    pub(super) fn change_settings(&mut self, function: &Arc<str>) -> bool {
        let Some(change) = self.lay_over(function) else { return false };
        let overlay = self.laid_over.functions[function].overlay.clone();
        self.actions.push_back(Action::Settings { function: Arc::clone(function), change, overlay });
        true
    }

    /// No message runs with older settings.
    pub(super) fn settings_in_force(&mut self, function: &Arc<str>, change: u64, now: Now) {
        let Some(laid) = self.laid_over.functions.get_mut(function).filter(|laid| laid.change == change) else {
            return;
        };
        laid.in_force = true;
        if let Some(tracked) = self.functions.get_mut(function) {
            tracked.overlay = laid.overlay.clone();
            Self::settings_applied(tracked);
            tracing::info!(function = &**function, "new settings are in force");
            self.actions.extend(report(tracked, now));
        }
    }
}

impl TrackedFunction {
    /// What differs from `function.toml` in the version that serves. `manifest`: of that version.
    pub(super) fn reported_settings(&self, manifest: &[u8]) -> Vec<ReportedSetting> {
        if self.overlay.is_empty() {
            return Vec::new();
        }
        let Ok(manifest) = Manifest::from_json(manifest, None) else { return Vec::new() };
        let resolved = self.overlay.resolve(&manifest);
        let reported = |topic: Option<&str>, name: &String, setting: &Setting| ReportedSetting {
            name: name.clone(),
            topic: topic.map(str::to_owned),
            value: (!setting.is_secret).then(|| setting.text.to_string()),
            from: setting.origin.word(),
        };
        let laid = |(_, setting): &(&String, &Setting)| setting.origin != Origin::Function;
        let all = resolved.all.iter().filter(laid).map(|(name, setting)| reported(None, name, setting));
        let of_topics = resolved.topics.iter().flat_map(|(filter, settings)| {
            settings.iter().map(|(name, setting)| reported(Some(filter.as_str()), name, setting))
        });
        all.chain(of_topics).collect()
    }
}
