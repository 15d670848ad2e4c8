//! Handling of orders: refused with a reason, or stored on disk and then carried out.

use std::io;
use std::sync::Arc;

use bytes::Bytes;

use super::acceptance::{Accepted, Authentic, Board};
use super::decision::{NextStep, decide};
use super::deployer::{Deployer, KNOWN, disk_refusal, log, replace, report, report_now};
use super::envelope::SignedEnvelope;
use super::function::{Stage, TrackedFunction};
use super::interface::{Action, DiskAnswer, DiskRequest, StoredFile};
use super::keys::{Keys, TrustedKey};
use super::payload::{KeyUpdate, Order, OrderChange};
use super::reason::{Reason, Refusal};
use super::record::{CandidateKind, OrderHistory, OrderOutcome, Record};
use super::report::{DeployState, KeyName};
use super::steps::{Step, Wait};
use super::topics::{KEYS, Target, Topic};
use super::trust::Changes;
use crate::message::Digest;
use crate::time::Now;

/// Orders that may wait for room on the disk.
const MAX_RETRY_ORDERS: usize = 32;
/// Functions that are remembered, for each that may be installed. A removed one keeps its record, which refuses its old orders.
const REMEMBERED_PER_FUNCTION: usize = 16;

/// An order that is being stored.
#[derive(Debug)]
struct Origin {
    function: Arc<str>,
    /// The message that brought it, to try again if the disk fails.
    message: (Box<str>, Bytes),
    about: OrderOutcome,
}

/// An accepted order and the record to write for it.
#[derive(Debug)]
pub struct PendingOrder {
    origin: Origin,
    serial: u64,
    record: Record,
    next: NextStep,
    /// Module that is copied from the function's folder first.
    adopts: Option<Digest>,
}

/// An accepted change of the trusted keys.
#[derive(Debug)]
pub struct KeyOrder {
    origin: Origin,
    serial: u64,
    update: KeyUpdate,
    changes: Changes,
}

impl Deployer {
    pub fn message(&mut self, topic: Box<str>, payload: Bytes, now: Now) {
        match self.topics.parse(&topic) {
            // An empty payload only deletes a retained message.
            Some(Topic::Deploy { target, function }) if !payload.is_empty() => {
                self.order(&target, function, (topic, payload), now);
            }
            Some(Topic::Settings { target, function }) if !payload.is_empty() => {
                self.settings_order(&target, &function, (topic, payload), now);
            }
            Some(Topic::Request { node, id }) if *node == *self.config.node && !payload.is_empty() => {
                self.request(&id, &payload, now);
            }
            Some(Topic::Blob { digest, index }) if !payload.is_empty() => {
                self.receive_chunk(digest, index, &payload);
            }
            _ => {}
        }
    }

    fn order(&mut self, target: &Target, name: Arc<str>, message: (Box<str>, Bytes), now: Now) {
        let board = self.board(now);
        let authentic = match Authentic::read(&message.1, target, &name, self.trust.keys(), &board) {
            Ok(authentic) => authentic,
            // An accepted order changes nothing when it comes again, even if its key is no longer trusted.
            Err(refusal) if refusal.reason == Reason::UnknownKey && self.was_accepted(target, &name, &message.1) => {
                return;
            }
            Err(refusal) => return self.refuse(&name, None, refusal, now),
        };
        let known = if *name == *KEYS { None } else { self.functions.get(&name) };
        let empty = OrderHistory::default();
        let history = match known {
            Some(function) => &function.record.history,
            None if *name == *KEYS => self.trust.history(),
            None => &empty,
        };
        let key = (target.clone(), authentic.payload);
        if known.is_some_and(|function| function.stale.contains(&key)) {
            return;
        }
        if history.is_redelivery(target, key.1) {
            if history.serial == Some(authentic.order.serial) {
                self.clear_refusal(&name, now);
            }
            return;
        }
        let about = outcome_of_order(&authentic.order);
        let accepted = match authentic.accept(history, &board) {
            Ok(accepted) => accepted,
            Err(refusal) => {
                if refusal.reason == Reason::ReplayedSerial
                    && let Some(function) = self.functions.get_mut(&name)
                {
                    function.stale.retain(|(of, _)| of != target);
                    function.stale.push(key);
                }
                return self.refuse(&name, Some(about), refusal, now);
            }
        };
        let origin = Origin { function: Arc::clone(&name), message, about: about.clone() };
        let result = match accepted.order.change {
            OrderChange::Keys(_) => self.change_keys(origin, accepted),
            OrderChange::Settings(_) => {
                let detail = "a change of settings is sent under settings/, not deploy/";
                Err(Refusal::new(Reason::BadEnvelope, detail))
            }
            _ => self.carry_out(origin, accepted),
        };
        if let Err(refusal) = result {
            self.retry_orders.remove(&name);
            self.refuse(&name, Some(about), refusal, now);
        }
    }

    fn order_stored(&mut self, name: &str) {
        self.retry_orders.remove(name);
        self.stats.accepted();
    }

    fn was_accepted(&self, target: &Target, name: &str, envelope: &[u8]) -> bool {
        let Ok(envelope) = SignedEnvelope::parse(envelope) else { return false };
        let key = (target.clone(), super::digest(envelope.unverified()));
        match self.functions.get(name) {
            _ if *name == *KEYS => self.trust.history().is_redelivery(target, key.1),
            Some(function) => function.record.history.is_redelivery(target, key.1) || function.stale.contains(&key),
            None => false,
        }
    }

    /// Clears the refusal of another order when the latest accepted one comes again.
    fn clear_refusal(&mut self, name: &str, now: Now) {
        if let Some(function) = self.functions.get_mut(name)
            && function.refused.take().is_some()
        {
            self.actions.extend(report(function, now));
        }
    }

    /// Keeps a message, to be handled again with the next tick.
    pub(super) fn retry_message(&mut self, key: Arc<str>, message: (Box<str>, Bytes)) {
        if self.retry_orders.contains_key(&key) || self.retry_orders.len() < MAX_RETRY_ORDERS {
            self.retry_orders.insert(key, message);
        }
    }

    pub(super) fn board(&self, now: Now) -> Board<'_> {
        let histories = self.functions.values().map(|function| &function.record.history).chain([self.trust.history()]);
        let of_settings = self.settings_orders.values().flat_map(|record| &record.layers);
        let histories = histories.chain(of_settings.map(|layer| &layer.history));
        Board {
            node: &self.config.node,
            groups: &self.config.groups,
            host: self.config.host,
            deploy: &self.config.deploy,
            ceilings: &self.config.functions.ceilings,
            sinks: &self.config.sinks,
            machine: &self.config.machine,
            now_ms: now.synced.then_some(now.unix_ms),
            histories: histories.collect(),
            believed_ms: self.believed_ms,
        }
    }

    /// Stores what the order asks for. A failure leaves everything unchanged.
    fn carry_out(&mut self, origin: Origin, accepted: Accepted) -> Result<(), Refusal> {
        let Accepted { order, payload, chosen, acceptance, .. } = accepted;
        let Order { serial, target, change, .. } = order;
        let name = &origin.function;
        if let OrderChange::Install(install) = &change {
            self.check_room(name)?;
            self.check_settings(install)?;
            self.check_routes(install)?;
        }
        let fresh = TrackedFunction::new(Arc::clone(name));
        let function = self.functions.get(name).unwrap_or(&fresh);
        let (mut record, next) = decide(function, serial, change, chosen, acceptance.signers.clone())?;
        record.history.accept(serial, &target, payload, &acceptance);
        // A record names only modules in the deploy folder: files elsewhere may change.
        let folder = function.folder.as_ref().zip(function.active_digest());
        let folder = folder.filter(|(_, active)| record.digests().any(|digest| digest == *active));
        let source = folder.map(|(file, _)| file.path.clone());
        let adopts = folder.map(|(_, digest)| digest);
        let order = Box::new(PendingOrder { origin, serial, record, next, adopts });
        match source {
            Some(path) => self.ask(DiskRequest::ReadSource(path), Wait::ReadAdopted(order)),
            None => self.write_order(order),
        }
        Ok(())
    }

    /// Copies the component or code of a folder to the modules, so that a rollback can return to it.
    pub(super) fn adopted_read(&mut self, order: Box<PendingOrder>, answer: DiskAnswer) {
        match (answer, order.adopts) {
            (Ok(file), Some(digest)) if super::digest(&file) == digest => {
                self.ask(DiskRequest::Replace(StoredFile::Module(digest), file), Wait::WriteAdopted(order));
            }
            _ => {
                tracing::warn!(
                    function = &*order.origin.function,
                    "the active component is no longer in its folder: a rollback to it will not be possible"
                );
                self.write_order(order);
            }
        }
    }

    pub(super) fn adopted_written(&mut self, order: Box<PendingOrder>, answer: DiskAnswer, now: Now) {
        match answer {
            Ok(_) => self.write_order(order),
            Err(error) => self.retry_later(order.origin, &error, now),
        }
    }

    fn write_order(&mut self, order: Box<PendingOrder>) {
        let request = replace(StoredFile::Record(Arc::clone(&order.origin.function)), &order.record);
        self.ask(request, Wait::WriteOrder(order));
    }

    /// Starts on an order that is stored.
    pub(super) fn order_written(&mut self, order: PendingOrder, answer: DiskAnswer, now: Now) {
        let PendingOrder { origin, serial, record, next, adopts } = order;
        if let Err(error) = answer {
            return self.retry_later(origin, &error, now);
        }
        let name = origin.function;
        self.unknown.remove(&name);
        let fresh = || TrackedFunction::new(Arc::clone(&name));
        let (overlay, settings_orders) = (self.overlay_in_force(&name), self.reported_orders(&name));
        let function = self.functions.entry(Arc::clone(&name)).or_insert_with(fresh);
        function.stored = Some(record.clone());
        function.record = record;
        function.overlay = overlay;
        if function.settings_orders.is_empty() {
            function.settings_orders = settings_orders;
        }
        function.unsaved = None;
        function.refused = None;
        function.load_error = None;
        if adopts.is_some() || matches!(next, NextStep::Removed) {
            function.folder = None;
        }
        tracing::info!(function = &*name, serial, "order accepted");
        self.order_stored(&name);
        self.apply(&name, next, now);
    }

    fn apply(&mut self, name: &Arc<str>, next: NextStep, now: Now) {
        self.has_garbage = true;
        match next {
            NextStep::StartCandidate => {
                self.cancel(name);
                self.then(Step::StartCandidate(Arc::clone(name)));
                self.then(Step::ReportWork(Arc::clone(name)));
                return;
            }
            NextStep::CandidateEnded => self.cancel(name),
            NextStep::Promoted { edition } => {
                self.actions.push_back(Action::Promote { function: Arc::clone(name), edition });
                let function = self.functions.get_mut(name).expect(KNOWN);
                function.work = None;
                function.fallback = None;
                function.is_displaced = false;
                function.serving = Some(edition);
            }
            NextStep::Removed => {
                let function = self.functions.get_mut(name).expect(KNOWN);
                function.serving = None;
                function.fallback = None;
                function.is_quarantined = false;
                // `Stop` ends the candidate too.
                if let Some(work) = function.work.as_mut().filter(|work| work.is_started()) {
                    work.stage = Stage::Queued;
                }
                self.cancel(name);
                self.actions.push_back(Action::Stop { function: Arc::clone(name) });
            }
            NextStep::Nothing => {}
        }
        let function = self.functions.get_mut(name).expect(KNOWN);
        log(function);
        self.actions.push_back(report_now(function, now));
    }

    fn check_room(&self, name: &str) -> Result<(), Refusal> {
        let is_there = self.functions.get(name).is_some_and(|function| !function.record.is_tombstone());
        let count = self.functions.values().filter(|function| !function.record.is_tombstone()).count();
        let most = self.config.deploy.max_functions.get();
        if !is_there && count >= most as usize {
            let detail =
                format!("{count} functions are installed, and this board allows {most} (deploy.max_functions)");
            return Err(Refusal::new(Reason::OverLimit, detail));
        }
        let remembered = (most as usize).saturating_mul(REMEMBERED_PER_FUNCTION);
        if !self.functions.contains_key(name) && self.functions.len() >= remembered {
            let detail = format!(
                "this board remembers {remembered} functions, the removed ones included, so that it refuses their old orders: use \
                 the name of a removed function, or raise deploy.max_functions, of which it is {REMEMBERED_PER_FUNCTION} times"
            );
            return Err(Refusal::new(Reason::OverLimit, detail));
        }
        Ok(())
    }

    fn change_keys(&mut self, origin: Origin, accepted: Accepted) -> Result<(), Refusal> {
        let Accepted { order, payload, is_by_code_senders, acceptance, .. } = accepted;
        let OrderChange::Keys(update) = order.change else { return Ok(()) };
        let mut history = self.trust.history().clone();
        history.accept(order.serial, &order.target, payload, &acceptance);
        let histories = || self.functions.values().map(|function| &function.record.history).chain([&history]);
        let is_proven = |key: &TrustedKey| histories().any(|history| history.floor(key.id()).is_some());
        self.trust.keeps_a_key_that_changes_keys(&update, is_proven)?;
        let changes = self.trust.decide(&update, history, is_by_code_senders)?;
        let request = replace(StoredFile::Keys, &changes);
        let order = KeyOrder { origin, serial: order.serial, update, changes };
        self.ask(request, Wait::WriteKeys(Box::new(order)));
        Ok(())
    }

    pub(super) fn keys_written(&mut self, order: KeyOrder, answer: DiskAnswer, now: Now) {
        let KeyOrder { origin, serial, update, changes } = order;
        if let Err(error) = answer {
            return self.retry_later(origin, &error, now);
        }
        self.trust.apply(changes);
        tracing::info!(trusted = update.trust.len(), revoked = update.revoke.len(), "the trusted keys were changed");
        self.keys.refused = None;
        self.keys.record.outcome =
            Some(OrderOutcome { serial: Some(serial), ..OrderOutcome::new(DeployState::Active, None) });
        self.order_stored(&origin.function);
        self.report_keys(now);
        self.actions.push_back(Action::FetchOrders);
        self.end_orphans();
    }

    /// Ends orders in progress whose keys are no longer trusted. Active versions keep serving.
    pub(super) fn end_orphans(&mut self) {
        let is_orphan = |function: &TrackedFunction| {
            let candidate = function.candidate()?;
            // A rollback to code needs no permission to send code: it was checked when the code arrived.
            let brings_code = candidate.stored.is_code && matches!(candidate.kind, CandidateKind::Install(_));
            let is_trusted = |id| {
                let key = self.trust.keys().get(id);
                key.is_some_and(|key| key.may_change(&function.name).is_ok() && (key.native_code || !brings_code))
            };
            (!candidate.signers.iter().copied().any(is_trusted)).then(|| Arc::clone(&function.name))
        };
        let orphans: Vec<Arc<str>> = self.functions.values().filter_map(is_orphan).collect();
        for name in orphans {
            let detail = "the key that signed it is no longer trusted; push it again with one that is";
            self.then(Step::Reject(name, Refusal::new(Reason::UnknownKey, detail)));
        }
    }

    fn retry_later(&mut self, origin: Origin, error: &io::Error, now: Now) {
        let Origin { function: name, message, about } = origin;
        let refusal = disk_refusal("failed to store the order, which is tried again", error);
        if self.retry_orders.contains_key(&name) || self.retry_orders.len() < MAX_RETRY_ORDERS {
            self.retry_orders.insert(Arc::clone(&name), message);
        }
        self.has_garbage = true;
        let outcome = about.because(DeployState::Receiving, &refusal);
        let Some(function) = self.report_slot(&name, now) else { return };
        if function.refused.as_ref() != Some(&outcome) {
            tracing::error!(function = &*name, %refusal, "trying again to store an order every second");
            function.refuse(outcome, true, now);
            let action = report(function, now);
            self.actions.extend(action);
        }
    }

    /// Refuses an order; the active version keeps serving. A refusal that any publisher could provoke must not overwrite the
    /// report of an order in progress.
    fn refuse(&mut self, name: &str, about: Option<OrderOutcome>, refusal: Refusal, now: Now) {
        self.stats.refused(refusal.reason);
        let by_anybody = about.is_none() || matches!(refusal.reason, Reason::Expired | Reason::ReplayedSerial);
        let about = about.unwrap_or_else(|| OrderOutcome::new(DeployState::Rejected, None));
        let outcome = about.because(DeployState::Rejected, &refusal);
        let is_keys = *name == *KEYS;
        let Some(function) = self.report_slot(name, now) else { return };
        if by_anybody && function.work.is_some() {
            return;
        }
        if function.refuse(outcome, !by_anybody, now) {
            tracing::warn!(function = name, %refusal, "order refused");
        }
        if is_keys {
            if self.keys.may_report(now) {
                self.report_keys(now);
            }
        } else {
            let action = report(function, now);
            self.actions.extend(action);
        }
    }

    /// Returns the function to report a refusal for, or `None` if there are too many unknown ones.
    pub(super) fn report_slot(&mut self, name: &str, now: Now) -> Option<&mut TrackedFunction> {
        if *name == *KEYS {
            return Some(&mut self.keys);
        }
        if self.functions.contains_key(name) {
            return self.functions.get_mut(name);
        }
        let (function, replaced) = self.unknown.entry(name, now);
        if let Some(function) = replaced {
            self.actions.push_back(Action::Report { function, payload: Bytes::new() });
        }
        function
    }

    pub(super) fn report_keys(&mut self, now: Now) {
        let mut report = self.keys.report(now);
        report.keys = Some(names(self.trust.keys()));
        self.actions.push_back(Action::Report { function: KEYS.into(), payload: report.to_json().into() });
    }
}

fn names(keys: &Keys) -> Vec<KeyName> {
    keys.iter().map(|key| KeyName { id: key.id(), name: key.name.clone() }).collect()
}

/// Outcome of an order that is authentic but not accepted yet: what it is about, without a reason.
fn outcome_of_order(order: &Order) -> OrderOutcome {
    let install = match &order.change {
        OrderChange::Install(install) => Some(install),
        _ => None,
    };
    let version = install.and_then(|install| install.manifest.as_value()["version"].as_str());
    OrderOutcome {
        // The manifest is not checked yet: its version may be too long.
        version: version.map(|version| version.chars().take(64).collect()),
        serial: Some(order.serial),
        digest: install.and_then(|install| install.modules().next()).map(|module| module.digest),
        ..OrderOutcome::new(DeployState::Rejected, None)
    }
}
