//! What becomes of an order: refused with a reason, or kept on disk and then carried out.

use std::io;
use std::sync::Arc;

use bytes::Bytes;

use super::acceptance::{Accepted, Authentic, Board, Delivered};
use super::action::Action;
use super::decision::{NextStep, decide};
use super::deployer::{Deployer, disk_refusal, log, report, report_now, write};
use super::disk::MODULES;
use super::envelope::SignedEnvelope;
use super::function::{Stage, TrackedFunction};
use super::keys::Keys;
use super::payload::{Order, OrderChange};
use super::reason::{Reason, Refusal};
use super::record::{CandidateKind, Line, OrderOutcome};
use super::report::{DeployState, KeyName};
use super::staging::module_name;
use super::topics::{KEYS, Target, Topic};
use super::trust::UpdateError;
use crate::message::Digest;
use crate::time::Now;

/// Orders that wait for room on the disk.
const MOST_WAITING: usize = 32;

impl Deployer {
    pub(super) fn message(&mut self, topic: Box<str>, payload: Bytes, now: Now, actions: &mut Vec<Action>) {
        match self.topics.parse(&topic) {
            // Without a payload the broker only forgets what it kept.
            Some(Topic::Deploy { target, function }) if !payload.is_empty() => {
                self.order(&target, function, (topic, payload), now, actions);
            }
            Some(Topic::Blob { digest, index }) if !payload.is_empty() => {
                self.chunk(&digest, index, &payload, now, actions);
            }
            _ => {}
        }
    }

    fn order(
        &mut self,
        target: &Target,
        name: Arc<str>,
        message: (Box<str>, Bytes),
        now: Now,
        actions: &mut Vec<Action>,
    ) {
        let delivered = Delivered { target, function: &name, envelope: &message.1 };
        let board = self.board(now);
        let authentic = match Authentic::read(&delivered, self.trust.keys(), &board) {
            Ok(authentic) => authentic,
            // What was taken before changes nothing, also when its key has gone since.
            Err(refusal) if refusal.reason == Reason::UnknownKey && self.was_accepted(target, &name, &message.1) => {
                return;
            }
            Err(refusal) => return self.refuse(&name, None, refusal, now, actions),
        };
        let known = if *name == *KEYS { None } else { self.functions.get(&name) };
        let empty = Line::default();
        let line = match known {
            Some(function) => &function.record.line,
            None if *name == *KEYS => self.trust.line(),
            None => &empty,
        };
        let key = (target.clone(), authentic.payload);
        if known.is_some_and(|function| function.stale.contains(&key)) {
            return;
        }
        if line.is_redelivery(target, key.1) {
            if line.serial == Some(authentic.order.serial) {
                self.clear_refusal(&name, now, actions);
            }
            return;
        }
        let named = Named::of(&authentic.order);
        let accepted = match authentic.accept(line, &board) {
            Ok(accepted) => accepted,
            Err(refusal) => {
                if refusal.reason == Reason::ReplayedSerial
                    && let Some(function) = self.functions.get_mut(&name)
                {
                    function.stale.retain(|(of, _)| of != target);
                    function.stale.push(key);
                }
                return self.refuse(&name, Some(named), refusal, now, actions);
            }
        };
        let result = match accepted.order.change {
            OrderChange::Keys(_) => self.change_keys(accepted, now, actions),
            _ => self.carry_out(&name, accepted, now, actions),
        };
        match result {
            Ok(()) => {
                self.retry_orders.remove(&name);
                self.stats.accepted();
            }
            Err(Failed::Refused(refusal)) => {
                self.retry_orders.remove(&name);
                self.refuse(&name, Some(named), refusal, now, actions);
            }
            Err(Failed::Disk(error)) => {
                let refusal = disk_refusal("the order cannot be kept, and is tried again", &error);
                self.retry_later(name, named, refusal, message, now, actions);
            }
        }
    }

    fn was_accepted(&self, target: &Target, name: &str, envelope: &[u8]) -> bool {
        let Ok(envelope) = SignedEnvelope::parse(envelope) else { return false };
        let key = (target.clone(), super::digest(envelope.unverified()));
        match self.functions.get(name) {
            _ if *name == *KEYS => self.trust.line().is_redelivery(target, key.1),
            Some(function) => function.record.line.is_redelivery(target, key.1) || function.stale.contains(&key),
            None => false,
        }
    }

    /// The latest order is there again, whatever was in its place meanwhile.
    fn clear_refusal(&mut self, name: &str, now: Now, actions: &mut Vec<Action>) {
        if let Some(function) = self.functions.get_mut(name)
            && function.refused.take().is_some()
        {
            actions.extend(report(function, now));
        }
    }

    fn board(&self, now: Now) -> Board<'_> {
        let lines = self.functions.values().map(|function| &function.record.line).chain([self.trust.line()]);
        Board {
            node: &self.settings.node,
            groups: &self.settings.groups,
            host: self.settings.host,
            deploy: &self.settings.deploy,
            ceilings: &self.settings.ceilings,
            now_ms: now.synced.then_some(now.unix_ms),
            floor_ms: lines.map(|line| line.floor_ms).max().unwrap_or(0),
        }
    }

    /// Keeps what the order asks for, then sets about it. When this fails, nothing has changed.
    fn carry_out(
        &mut self,
        name: &Arc<str>,
        accepted: Accepted,
        now: Now,
        actions: &mut Vec<Action>,
    ) -> Result<(), Failed> {
        let Accepted { order, payload, signers, chosen, floor_ms, .. } = accepted;
        let Order { serial, target, change, .. } = order;
        if matches!(change, OrderChange::Install(_)) {
            self.check_room(name)?;
        }
        let fresh = TrackedFunction::new(Arc::clone(name));
        let function = self.functions.get(name).unwrap_or(&fresh);
        let (mut record, then) = decide(function, serial, change, chosen, signers)?;
        record.line.accept(serial, &target, payload, floor_ms);
        // What is in a folder may change there; a record names only what is kept here.
        let adopts = function.folder.is_some() && record.digests().any(|it| Some(it) == active_digest(function));
        if adopts {
            self.adopt(name)?;
        }
        write(&self.disk, &record).map_err(Failed::Disk)?;

        self.unknown.remove(name);
        let function = self.functions.entry(Arc::clone(name)).or_insert(fresh);
        function.stored = Some(record.clone());
        function.record = record;
        function.unsaved = None;
        function.refused = None;
        function.load_error = None;
        if adopts || matches!(then, NextStep::Removed) {
            function.folder = None;
        }
        tracing::info!(function = &**name, serial, "order accepted");
        self.apply(name, then, now, actions);
        Ok(())
    }

    fn apply(&mut self, name: &Arc<str>, then: NextStep, now: Now, actions: &mut Vec<Action>) {
        self.mark_garbage();
        match then {
            NextStep::StartCandidate => {
                self.cancel(name, actions);
                self.start_candidate(name, now, actions);
                let Some(function) = self.functions.get_mut(name) else { return };
                if function.work.is_some() {
                    actions.push(report_now(function, now));
                }
                return;
            }
            NextStep::Ended => self.cancel(name, actions),
            NextStep::Promoted { edition } => {
                actions.push(Action::Promote { function: Arc::clone(name), edition });
                if let Some(function) = self.functions.get_mut(name) {
                    function.work = None;
                    function.serving = Some(edition);
                }
            }
            NextStep::Removed => {
                // One word for what serves and what is on trial.
                if let Some(function) = self.functions.get_mut(name)
                    && let Some(work) = function.work.as_mut()
                    && work.is_started()
                {
                    work.stage = Stage::Queued;
                }
                self.cancel(name, actions);
                actions.push(Action::Stop { function: Arc::clone(name) });
                if let Some(function) = self.functions.get_mut(name) {
                    function.serving = None;
                    function.is_quarantined = false;
                }
            }
            NextStep::Nothing => {}
        }
        if let Some(function) = self.functions.get_mut(name) {
            log(function);
            actions.push(report_now(function, now));
        }
    }

    fn check_room(&self, name: &str) -> Result<(), Failed> {
        let is_there = self.functions.get(name).is_some_and(|function| !function.record.is_tombstone());
        let count = self.functions.values().filter(|function| !function.record.is_tombstone()).count();
        let most = self.settings.deploy.max_functions.get();
        if !is_there && count >= most as usize {
            let detail =
                format!("{count} functions are installed, and this board allows {most} (deploy.max_functions)");
            return Err(Refusal::new(Reason::OverLimit, detail).into());
        }
        Ok(())
    }

    /// Copies the component of a folder, or its code, among the modules, so that it can be returned to.
    fn adopt(&self, name: &str) -> Result<(), Failed> {
        let Some(function) = self.functions.get(name) else { return Ok(()) };
        let (Some(path), Some(digest)) = (&function.folder, active_digest(function)) else { return Ok(()) };
        let file = module_name(&digest);
        match std::fs::read(path) {
            Ok(wasm) if super::digest(&wasm) == digest => {
                self.disk.replace(MODULES, &file, &wasm).map_err(Failed::Disk)
            }
            _ => {
                tracing::warn!(
                    function = name,
                    component = %path.display(),
                    "the component that runs is no longer in its folder: a rollback to it will not be possible"
                );
                Ok(())
            }
        }
    }

    fn change_keys(&mut self, accepted: Accepted, now: Now, actions: &mut Vec<Action>) -> Result<(), Failed> {
        let Accepted { order, payload, is_by_code_senders, floor_ms, .. } = accepted;
        let OrderChange::Keys(update) = &order.change else { return Ok(()) };
        let mut line = self.trust.line().clone();
        line.accept(order.serial, &order.target, payload, floor_ms);
        self.trust.update(&self.disk, update, line, is_by_code_senders).map_err(|failed| match failed {
            UpdateError::Refused(refusal) => Failed::Refused(refusal),
            UpdateError::Disk(error) => Failed::Disk(error),
        })?;
        tracing::info!(trusted = update.trust.len(), revoked = update.revoke.len(), "the trusted keys were changed");
        self.keys.refused = None;
        self.keys.record.outcome =
            Some(OrderOutcome { serial: Some(order.serial), ..OrderOutcome::new(DeployState::Active, None, None) });
        self.end_orphans(now, actions);
        self.report_keys(now, actions);
        actions.push(Action::FetchOrders);
        Ok(())
    }

    /// Ends what no trusted key vouches for any longer. What is installed goes on.
    pub(super) fn end_orphans(&mut self, now: Now, actions: &mut Vec<Action>) {
        let is_orphan = |function: &TrackedFunction| {
            let candidate = function.candidate()?;
            // Going back to code is for any key that may: who sends it was asked when it came.
            let brings_code = candidate.stored.is_code && matches!(candidate.kind, CandidateKind::Install(_));
            let vouches = |id| {
                let key = self.trust.keys().get(id);
                key.is_some_and(|key| key.may_change(&function.name).is_ok() && (key.native_code || !brings_code))
            };
            (!candidate.signers.iter().copied().any(vouches)).then(|| Arc::clone(&function.name))
        };
        let orphans: Vec<Arc<str>> = self.functions.values().filter_map(is_orphan).collect();
        for name in orphans {
            let detail = "the key that signed it is no longer trusted; push it again with one that is";
            self.reject(&name, Refusal::new(Reason::UnknownKey, detail), now, actions);
        }
    }

    fn retry_later(
        &mut self,
        name: Arc<str>,
        named: Named,
        refusal: Refusal,
        message: (Box<str>, Bytes),
        now: Now,
        actions: &mut Vec<Action>,
    ) {
        if self.retry_orders.contains_key(&name) || self.retry_orders.len() < MOST_WAITING {
            self.retry_orders.insert(Arc::clone(&name), message);
        }
        self.mark_garbage();
        let outcome = named.outcome(DeployState::Receiving, &refusal);
        let Some(function) = self.report_slot(&name, now, actions) else { return };
        if function.refused.as_ref() != Some(&outcome) {
            tracing::error!(function = &*name, %refusal, "an order waits");
            function.refuse(outcome, true, now);
            actions.extend(report(function, now));
        }
    }

    /// The working version goes on. What anybody can cause who may publish does not hide what is under way.
    fn refuse(&mut self, name: &str, named: Option<Named>, refusal: Refusal, now: Now, actions: &mut Vec<Action>) {
        self.stats.refused(refusal.reason);
        let by_anybody = named.is_none() || matches!(refusal.reason, Reason::Expired | Reason::ReplayedSerial);
        let outcome = named.unwrap_or_default().outcome(DeployState::Rejected, &refusal);
        let is_keys = *name == *KEYS;
        let Some(function) = self.report_slot(name, now, actions) else { return };
        if by_anybody && function.work.is_some() {
            return;
        }
        if function.refuse(outcome, !by_anybody, now) {
            tracing::warn!(function = name, %refusal, "order refused");
        }
        if is_keys {
            if self.keys.may_report(now) {
                self.report_keys(now, actions);
            }
        } else {
            actions.extend(report(function, now));
        }
    }

    /// Where a report about the name is kept; there may be none.
    fn report_slot(&mut self, name: &str, now: Now, actions: &mut Vec<Action>) -> Option<&mut TrackedFunction> {
        if *name == *KEYS {
            return Some(&mut self.keys);
        }
        if self.functions.contains_key(name) {
            return self.functions.get_mut(name);
        }
        let (function, gone) = self.unknown.entry(name, now);
        if let Some(function) = gone {
            actions.push(Action::Report { function, payload: Bytes::new() });
        }
        function
    }

    pub(super) fn report_keys(&mut self, now: Now, actions: &mut Vec<Action>) {
        let mut report = self.keys.report(now);
        report.keys = Some(names(self.trust.keys()));
        actions.push(Action::Report { function: KEYS.into(), payload: report.to_json().into() });
    }
}

fn names(keys: &Keys) -> Vec<KeyName> {
    keys.iter().map(|key| KeyName { id: key.id(), name: key.name.clone() }).collect()
}

fn active_digest(function: &TrackedFunction) -> Option<Digest> {
    function.record.active.as_ref().map(|active| active.digest)
}

/// What is told of an order that was read, before it is accepted.
#[derive(Debug, Default)]
struct Named {
    version: Option<String>,
    serial: Option<u64>,
    digest: Option<Digest>,
}

impl Named {
    fn of(order: &Order) -> Self {
        let install = match &order.change {
            OrderChange::Install(install) => Some(install),
            _ => None,
        };
        let version = install.and_then(|install| install.manifest.as_value()["version"].as_str());
        Self {
            // It may be too long for a version.
            version: version.map(|version| version.chars().take(64).collect()),
            serial: Some(order.serial),
            digest: install.and_then(|install| install.modules().next()).map(|module| module.digest),
        }
    }

    fn outcome(self, state: DeployState, why: &Refusal) -> OrderOutcome {
        let Self { version, serial, digest } = self;
        OrderOutcome { version, serial, digest, ..OrderOutcome::new(state, Some(why), None) }
    }
}

/// Why an order was not carried out.
enum Failed {
    Refused(Refusal),
    Disk(io::Error),
}

impl From<Refusal> for Failed {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}
