//! Receiving the module of an accepted order: missing chunks are fetched again until they arrive or time out.

use std::sync::Arc;
use std::time::Duration;

use super::deployer::{Deployer, KNOWN, disk_refusal, report, report_now};
use super::disk::MODULES;
use super::function::{Cause, Receiving, Stage, TrackedFunction, Work};
use super::interface::Action;
use super::reason::{Reason, Refusal};
use super::record::{CandidateKind, OrderOutcome};
use super::report::DeployState;
use super::staging::{Assembly, ChunkResult, Transfer, module_name};
use crate::message::Digest;
use crate::time::Now;

/// Retained chunks arrive at once. A chunk that is missing after this time was lost, to a flood or a full disk.
const FETCH_AFTER: Duration = Duration::from_secs(5);
const FETCH_AFTER_MOST: Duration = Duration::from_secs(60);

impl Deployer {
    /// Starts work on the candidate of the record, if there is one.
    pub(super) fn start_candidate(&mut self, name: &Arc<str>, now: Now) {
        let function = self.functions.get_mut(name).expect(KNOWN);
        let Some(candidate) = function.candidate() else { return };
        let digest = candidate.stored.digest;
        if self.disk.exists(MODULES, &module_name(&digest)) {
            function.start_work();
            self.queue.push_back(Arc::clone(name));
            return;
        }
        match candidate.kind.clone() {
            CandidateKind::Install(module) => {
                let transfer = Transfer::resume(&self.disk, name, module);
                let receiving = Receiving {
                    transfer,
                    moved_at: now.monotonic,
                    fetch_at: now.monotonic + FETCH_AFTER,
                    fetch_after: FETCH_AFTER,
                };
                let is_complete = receiving.transfer.is_complete();
                function.start_work().stage = Stage::Receiving(receiving);
                if is_complete {
                    self.complete(name, now);
                } else {
                    self.actions.push_back(Action::Fetch { digest });
                }
            }
            CandidateKind::Rollback => {
                function.start_work();
                let detail = format!("module {digest} of the previous version is not on this board; push it again");
                self.reject(name, Refusal::new(Reason::ModuleMissing, detail), now);
            }
        }
    }

    /// Ends the work on a candidate that the record no longer names.
    pub(super) fn cancel(&mut self, name: &Arc<str>) {
        self.queue.retain(|queued| queued != name);
        self.retries.retain(|queued| queued != name);
        let Some(work) = self.functions.get_mut(name).expect(KNOWN).work.take() else { return };
        if work.is_started() {
            self.actions.push_back(Action::DropCandidate { function: Arc::clone(name), edition: work.edition });
        }
        if let Stage::Receiving(receiving) = &work.stage {
            self.end_fetch(receiving.transfer.digest());
        }
    }

    /// Ends the order with a reason; the active version keeps serving.
    pub(super) fn reject(&mut self, name: &Arc<str>, why: Refusal, now: Now) {
        self.stats.refused(why.reason);
        self.end(name, DeployState::Rejected, &why, now);
    }

    pub(super) fn end(&mut self, name: &Arc<str>, state: DeployState, why: &Refusal, now: Now) {
        self.cancel(name);
        let decide = |function: &mut TrackedFunction| {
            if let Some(candidate) = function.record.candidate.take() {
                function.record.outcome = Some(OrderOutcome::of_candidate(state, Some(why), &candidate));
            }
        };
        self.save_and_report(name, decide, now);
    }

    pub(super) fn chunk(&mut self, digest: &Digest, index: u32, bytes: &[u8], now: Now) {
        let receives =
            |function: &&mut TrackedFunction| function.work.as_ref().is_some_and(|work| work.receives(digest));
        let mut complete = Vec::new();
        let mut impossible = Vec::new();
        for function in self.functions.values_mut().filter(receives) {
            let Some(Work { stage: Stage::Receiving(receiving), cause, .. }) = &mut function.work else { continue };
            match receiving.transfer.add_chunk(&self.disk, index, bytes) {
                Ok(ChunkResult::Stored) => {
                    self.stats.chunk(true);
                    receiving.moved_at = now.monotonic;
                    receiving.fetch_at = now.monotonic + FETCH_AFTER;
                    receiving.fetch_after = FETCH_AFTER;
                    if cause.as_ref().is_some_and(|cause| cause.index.is_none_or(|about| about == index)) {
                        *cause = None;
                    }
                    if receiving.transfer.is_complete() {
                        complete.push(Arc::clone(&function.name));
                    } else {
                        self.actions.extend(report(function, now));
                    }
                }
                Ok(ChunkResult::Duplicate) => {}
                Ok(ChunkResult::Bad(refusal)) => {
                    self.stats.chunk(false);
                    *cause = Some(Cause { refusal, index: Some(index) });
                    self.actions.extend(report(function, now));
                }
                Ok(ChunkResult::Impossible(refusal)) => impossible.push((Arc::clone(&function.name), refusal)),
                Err(error) => {
                    // A full disk does not end the push: the chunk is fetched again.
                    receiving.moved_at = now.monotonic;
                    let refusal =
                        disk_refusal(&format!("failed to store chunk {index}, which is fetched again"), &error);
                    *cause = Some(Cause { refusal, index: Some(index) });
                    self.actions.extend(report(function, now));
                }
            }
        }
        for name in complete {
            self.complete(&name, now);
        }
        for (name, refusal) in impossible {
            self.reject(&name, refusal, now);
        }
    }

    fn complete(&mut self, name: &Arc<str>, now: Now) {
        let function = self.functions.get_mut(name).expect(KNOWN);
        // Receiving with all chunks present is reported as verifying.
        self.actions.push_back(report_now(function, now));
        let work = function.work.as_mut().expect("a complete transfer belongs to work");
        let receiving = work.receiving().expect("a complete transfer is received");
        let digest = receiving.transfer.digest();
        match receiving.transfer.complete(&self.disk) {
            Ok(Assembly::Complete) => {
                function.start_work();
                self.queue.push_back(Arc::clone(name));
                self.end_fetch(digest);
            }
            Ok(Assembly::Damaged) => {
                receiving.fetch_at = now.monotonic + receiving.fetch_after;
                function.mark_due();
                self.actions.push_back(Action::Fetch { digest });
            }
            Ok(Assembly::Impossible(refusal)) => {
                receiving.transfer.forget(&self.disk);
                self.reject(name, refusal, now);
            }
            Err(error) => {
                receiving.moved_at = now.monotonic;
                receiving.transfer.forget(&self.disk);
                let refusal = disk_refusal("failed to store the module, which is fetched again", &error);
                work.cause = Some(Cause { refusal, index: None });
                self.actions.extend(report(function, now));
            }
        }
    }

    /// Fetches all missing chunks after a reconnect, since some may have been lost with the old connection.
    pub(super) fn fetch_all(&mut self, now: Now) {
        for function in self.functions.values_mut() {
            if let Some(receiving) = function.work.as_mut().and_then(Work::receiving) {
                receiving.moved_at = now.monotonic;
                receiving.fetch_at = now.monotonic + FETCH_AFTER;
                receiving.fetch_after = FETCH_AFTER;
                self.actions.push_back(Action::Fetch { digest: receiving.transfer.digest() });
            }
        }
    }

    /// Fetches missing chunks again and ends transfers that make no progress. No time passes without a connection.
    pub(super) fn check_receiving(&mut self, now: Now) {
        let timeout = Duration::from_secs(self.config.deploy.receive_timeout_secs.get().into());
        let mut late = Vec::new();
        for function in self.functions.values_mut() {
            let Some(Work { stage: Stage::Receiving(receiving), cause, .. }) = &mut function.work else { continue };
            if !self.is_connected {
                receiving.moved_at = now.monotonic;
                continue;
            }
            let quiet = now.monotonic.saturating_duration_since(receiving.moved_at);
            if quiet >= timeout {
                let (received, chunks) = (receiving.transfer.received(), receiving.transfer.chunks());
                let detail =
                    format!("{received} of {chunks} chunks arrived, and none for {} s; push it again", quiet.as_secs());
                let refusal = Refusal::new(Reason::Truncated, detail);
                late.push((Arc::clone(&function.name), cause.take().map_or(refusal, |cause| cause.refusal)));
            } else if now.monotonic >= receiving.fetch_at {
                receiving.fetch_at = now.monotonic + receiving.fetch_after;
                receiving.fetch_after = (receiving.fetch_after * 2).min(FETCH_AFTER_MOST);
                self.actions.push_back(Action::Fetch { digest: receiving.transfer.digest() });
            }
        }
        for (name, refusal) in late {
            self.reject(&name, refusal, now);
        }
    }

    /// Ends the fetch of a module unless another function waits for it.
    fn end_fetch(&mut self, digest: Digest) {
        let receives = |function: &TrackedFunction| function.work.as_ref().is_some_and(|work| work.receives(&digest));
        if !self.functions.values().any(receives) {
            self.actions.push_back(Action::EndFetch { digest });
        }
    }
}
