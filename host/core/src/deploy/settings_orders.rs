//! Orders that change settings: signed and retained, one for each target, which holds all values of its layer.
//!
//! ```text
//! order ─▶ authentic ─▶ later than what it builds on? ─▶ the function takes it ─▶ on disk ─▶ laid over ─▶ in force
//!             └ refused     └ conflict                       └ bad-setting
//! ```
//!
//! Each function and target has serials of its own, so that an order of the group and one of the board never replace each
//! other. An order for a function that is not installed is kept for when it is.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::acceptance::{Accepted, Authentic};
use super::deployer::{Deployer, disk_refusal, replace, report};
use super::function::TrackedFunction;
use super::interface::{Action, DiskAnswer, StoredFile};
use super::payload::{Order, OrderChange, SettingsUpdate};
use super::reason::{Reason, Refusal};
use super::record::{self, OrderHistory, OrderOutcome};
use super::report::{DeployState, SettingsReport, SettingsState};
use super::steps::Wait;
use super::topics::Target;
use crate::manifest::Manifest;
use crate::settings::{Given, Layer, Origin, Overlay, Values};
use crate::time::Now;

/// The accepted orders for one function.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SettingsRecord {
    pub function: Box<str>,
    pub layers: Vec<StoredLayer>,
}

/// The latest accepted order for one target.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StoredLayer {
    pub target: Target,
    pub serial: u64,
    pub history: OrderHistory,
    pub settings: SettingsUpdate,
}

/// An accepted order that is being stored.
#[derive(Debug)]
pub struct PendingSettings {
    message: (Box<str>, Bytes),
    target: Target,
    serial: u64,
    record: SettingsRecord,
}

impl SettingsUpdate {
    fn layer(&self) -> Layer {
        let plain = |values: &BTreeMap<String, String>| -> Values {
            let given = |text: &String| Given { text: text.as_str().into(), is_secret: false };
            values.iter().map(|(name, text)| (name.clone(), given(text))).collect()
        };
        let topics = self.topics.iter().map(|(topic, values)| (topic.clone(), plain(values))).collect();
        Layer { all: plain(&self.all), topics }
    }
}

impl SettingsRecord {
    fn new(function: &str) -> Self {
        Self { function: function.into(), layers: Vec::new() }
    }

    fn layer(&self, target: &Target) -> Option<&StoredLayer> {
        self.layers.iter().find(|layer| layer.target == *target)
    }
}

impl Deployer {
    /// Takes up the records of the disk. Returns those that are damaged.
    pub(super) fn load_settings(&mut self, records: Vec<(Arc<str>, Option<Bytes>)>) -> Vec<Arc<str>> {
        let mut damaged = Vec::new();
        for (name, bytes) in records {
            let record = bytes.and_then(|bytes| record::decode::<SettingsRecord>(&bytes));
            match record.filter(|record| *record.function == *name) {
                Some(record) => drop(self.settings_orders.insert(name, record)),
                None => {
                    tracing::error!(
                        function = &*name,
                        "the ordered settings of a function are damaged: those of function.toml and of the board's file \
                         apply until the broker delivers the orders again"
                    );
                    damaged.push(name);
                }
            }
        }
        damaged
    }

    /// The layers of the orders for this board, in the order of their precedence: groups as the board lists them, then the
    /// board.
    pub(super) fn ordered_layers(&self, function: &str) -> Vec<(Origin, Layer)> {
        let Some(record) = self.settings_orders.get(function) else { return Vec::new() };
        let groups = self
            .config
            .groups
            .iter()
            .map(|group| (Origin::Group(group.as_str().into()), Target::Group(group.as_str().into())));
        let node = (Origin::Node, Target::Node(self.config.node.as_str().into()));
        let layer = |(origin, target): (Origin, Target)| Some((origin, record.layer(&target)?.settings.layer()));
        groups.chain([node]).filter_map(layer).collect()
    }

    pub(super) fn settings_order(&mut self, target: &Target, name: &Arc<str>, message: (Box<str>, Bytes), now: Now) {
        let known = self.settings_orders.get(name).and_then(|record| record.layer(target));
        let empty = OrderHistory::default();
        let history = known.map_or(&empty, |layer| &layer.history);
        let board = self.board(now);
        let authentic = match Authentic::read(&message.1, target, name, self.trust.keys(), &board) {
            Ok(authentic) => authentic,
            // What was accepted changes nothing when it comes again, even if its key is no longer trusted.
            Err(refusal) if refusal.reason == Reason::UnknownKey && was_accepted(history, target, &message.1) => return,
            Err(refusal) => return self.refuse_settings(name, target, None, refusal, now),
        };
        if history.is_redelivery(target, authentic.payload) {
            return;
        }
        let serial = authentic.order.serial;
        let accepted = authentic.accept(history, &board);
        let record = accepted.and_then(|accepted| self.decide_settings(name, accepted));
        let record = match record {
            Ok(record) => record,
            Err(refusal) => return self.refuse_settings(name, target, Some(serial), refusal, now),
        };
        let request = replace(StoredFile::Settings(Arc::clone(name)), &record);
        let pending = PendingSettings { message, target: target.clone(), serial, record };
        self.ask(request, Wait::WriteSettings(Box::new(pending)));
    }

    /// The record with an accepted order.
    fn decide_settings(&self, name: &Arc<str>, accepted: Accepted) -> Result<SettingsRecord, Refusal> {
        let Accepted { order, payload, acceptance, .. } = accepted;
        let Order { serial, target, change, .. } = order;
        let OrderChange::Settings(settings) = change else {
            return Err(Refusal::new(Reason::BadEnvelope, "only changes of settings are for this topic"));
        };
        let fresh = SettingsRecord::new(name);
        let before = self.settings_orders.get(name).unwrap_or(&fresh);
        let most = self.config.deploy.max_functions.get() as usize;
        if before.layers.is_empty() && self.settings_orders.len() >= 2 * most {
            let detail = format!("settings of {} functions are ordered already (deploy.max_functions)", 2 * most);
            return Err(Refusal::new(Reason::OverLimit, detail));
        }
        let mut layer = match before.layer(&target) {
            Some(layer) if layer.serial > settings.base => {
                let detail = format!(
                    "built on serial {}, but the order with serial {} came first: look at it with `sedge settings show \
                     {name}`, and send yours again",
                    settings.base, layer.serial
                );
                return Err(Refusal::new(Reason::Conflict, detail));
            }
            Some(layer) => layer.clone(),
            None => StoredLayer {
                target: target.clone(),
                serial,
                history: OrderHistory::default(),
                settings: SettingsUpdate::default(),
            },
        };
        (layer.serial, layer.settings) = (serial, settings);
        layer.history.accept(serial, &target, payload, &acceptance);
        let mut record = before.clone();
        record.layers.retain(|other| other.target != target);
        record.layers.push(layer);
        self.check_ordered(name, &record, &target)?;
        Ok(record)
    }

    /// Refuses values that the installed function does not take.
    fn check_ordered(&self, name: &Arc<str>, record: &SettingsRecord, target: &Target) -> Result<(), Refusal> {
        let Some(manifest) = self.serving_manifest(name) else { return Ok(()) };
        let origin = match target {
            Target::Node(_) => Origin::Node,
            Target::Group(group) => Origin::Group(group.clone()),
        };
        let layer = record.layer(target).map(|layer| layer.settings.layer()).unwrap_or_default();
        let wrong: Vec<String> = layer.refused(&origin, &manifest).iter().map(ToString::to_string).collect();
        if !wrong.is_empty() {
            return Err(Refusal::new(Reason::BadSetting, wrong.join("; ")));
        }
        // What is unset may be required.
        let others = self.overlay(name).without(&origin);
        let overlay = Overlay::new(others.into_iter().chain([(origin, layer)]));
        self.check_overlay(&manifest, &overlay).map_err(|why| Refusal::new(Reason::BadSetting, why))
    }

    /// The manifest of the version that serves, or that is to serve first.
    fn serving_manifest(&self, name: &str) -> Option<Manifest> {
        let record = &self.functions.get(name)?.record;
        let candidate = record.candidate.as_ref().map(|candidate| &candidate.stored);
        self.manifest(record.active.as_ref().or(candidate)?).ok()
    }

    pub(super) fn settings_written(&mut self, pending: PendingSettings, answer: DiskAnswer, now: Now) {
        let PendingSettings { message, target, serial, record } = pending;
        let name: Arc<str> = (&*record.function).into();
        let key: Arc<str> = (&*message.0).into();
        if let Err(error) = answer {
            let refusal = disk_refusal("failed to store the order of settings, which is tried again", &error);
            tracing::error!(function = &*name, %refusal, "trying again to store an order every second");
            return self.retry_message(key, message);
        }
        self.retry_orders.remove(&key);
        self.stats.accepted();
        self.settings_orders.insert(Arc::clone(&name), record);
        let is_installed = self.functions.get(&name).is_some_and(|function| !function.record.is_tombstone());
        let is_change = self.change_settings(&name);
        let state = match (is_installed, is_change) {
            (false, _) => SettingsState::Kept,
            (true, true) => SettingsState::Applying,
            (true, false) => SettingsState::InForce,
        };
        tracing::info!(function = &*name, serial, state = state.as_str(), "settings were ordered");
        if !is_installed {
            // A push may wait for what it requires.
            self.actions.push_back(Action::FetchOrders);
        }
        let settings = self.settings_orders[&name].layer(&target).map(|layer| layer.settings.clone());
        let reported = SettingsReport { target, serial: Some(serial), state, reason: None, error: None, settings };
        self.report_settings_order(&name, reported, now);
    }

    /// Whether the settings of an order are in force is told with the change that brings them.
    pub(super) fn settings_applied(tracked: &mut TrackedFunction) {
        for order in tracked.settings_orders.iter_mut().filter(|order| order.state == SettingsState::Applying) {
            order.state = SettingsState::InForce;
        }
    }

    fn refuse_settings(&mut self, name: &Arc<str>, target: &Target, serial: Option<u64>, refusal: Refusal, now: Now) {
        self.stats.refused(refusal.reason);
        let Refusal { reason, detail } = refusal;
        let state = SettingsState::Refused;
        let (target, error) = (target.clone(), Some(detail.clone()));
        let reported = SettingsReport { target, serial, state, reason: Some(reason), error, settings: None };
        let is_new = self.functions.get(name).is_some_and(|function| !function.settings_orders.contains(&reported));
        if is_new {
            tracing::warn!(function = &**name, reason = reason.as_str(), detail, "settings refused");
        }
        self.report_settings_order(name, reported, now);
    }

    /// Adds the latest order to the report: of accepted ones the latest of each target, and one that was refused.
    fn report_settings_order(&mut self, name: &Arc<str>, order: SettingsReport, now: Now) {
        let is_installed = self.functions.contains_key(name);
        let Some(function) = self.report_slot(name, now) else { return };
        if !is_installed && function.refused.is_none() {
            let why = Refusal::new(Reason::NotInstalled, "the function is not installed on this board; push it");
            function.refused = Some(OrderOutcome::new(DeployState::Rejected, Some(&why)));
        }
        let replaces = |other: &SettingsReport| match order.state {
            SettingsState::Refused => other.state == SettingsState::Refused,
            _ => other.target == order.target || other.state == SettingsState::Refused,
        };
        function.settings_orders.retain(|other| !replaces(other));
        function.settings_orders.push(order);
        let action = report(function, now);
        self.actions.extend(action);
    }

    /// What the report says of orders that were accepted before the start.
    pub(super) fn reported_orders(&self, name: &str) -> Vec<SettingsReport> {
        let Some(record) = self.settings_orders.get(name) else { return Vec::new() };
        let reported = |layer: &StoredLayer| SettingsReport {
            target: layer.target.clone(),
            serial: Some(layer.serial),
            state: SettingsState::InForce,
            reason: None,
            error: None,
            settings: Some(layer.settings.clone()),
        };
        record.layers.iter().map(reported).collect()
    }
}

fn was_accepted(history: &OrderHistory, target: &Target, envelope: &[u8]) -> bool {
    let Ok(envelope) = super::envelope::SignedEnvelope::parse(envelope) else { return false };
    history.is_redelivery(target, super::digest(envelope.unverified()))
}
