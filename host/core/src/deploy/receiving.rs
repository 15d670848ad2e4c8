//! Receiving the module of an accepted order: missing chunks are fetched again until they arrive or time out.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::boot::Place;
use super::deployer::{Deployer, KNOWN, disk_refusal, report, report_now};
use super::function::{Cause, Receiving, Stage, TrackedFunction};
use super::interface::{Action, DiskAnswer, DiskRequest, StoredFile};
use super::reason::{Reason, Refusal};
use super::record::{CandidateKind, OrderOutcome};
use super::report::DeployState;
use super::staging::{Assembly, ChunkResult, Transfer};
use super::steps::{AfterSave, Step, Wait};
use crate::message::Digest;
use crate::time::Now;

/// Retained chunks arrive at once. A chunk that is missing after this time was lost, to a flood or a full disk.
const FETCH_AFTER: Duration = Duration::from_secs(5);
const FETCH_AFTER_MOST: Duration = Duration::from_secs(60);

const HAS_CANDIDATE: &str = "nothing else happens while the disk looks for a candidate's module";
const RECEIVES: &str = "nothing else happens while the disk works for a transfer";

impl Deployer {
    /// Starts work on the candidate of the record, if there is one.
    pub(super) fn start_candidate(&mut self, name: &Arc<str>) {
        if let Some(candidate) = self.functions.get(name).expect(KNOWN).candidate() {
            let module = StoredFile::Module(candidate.stored.digest);
            self.ask(DiskRequest::Exists(module), Wait::FindModule(Arc::clone(name)));
        }
    }

    pub(super) fn module_found(&mut self, name: &Arc<str>, answer: DiskAnswer) {
        let function = self.functions.get_mut(name).expect(KNOWN);
        let candidate = function.candidate().expect(HAS_CANDIDATE);
        let digest = candidate.stored.digest;
        if answer.is_ok() {
            function.start_work();
            return self.queue.push_back(Arc::clone(name));
        }
        match candidate.kind {
            CandidateKind::Install(_) => {
                let staged = StoredFile::Staging(Arc::clone(name), digest);
                self.ask(DiskRequest::Read(staged), Wait::ReadStaged(Arc::clone(name)));
            }
            CandidateKind::Rollback => {
                let detail = format!("module {digest} of the previous version is not on this board; push it again");
                self.reject(name, Refusal::new(Reason::ModuleMissing, detail));
            }
        }
    }

    /// Continues the transfer of a module, of which some chunks may be on disk.
    pub(super) fn staged_read(&mut self, name: &Arc<str>, answer: DiskAnswer, now: Now) {
        let function = self.functions.get_mut(name).expect(KNOWN);
        let candidate = function.candidate().expect(HAS_CANDIDATE);
        let CandidateKind::Install(module) = candidate.kind.clone() else { return };
        let mut transfer = Transfer::new(module);
        let fits = answer.map_or(true, |staged| transfer.resume(&staged));
        let (digest, is_complete) = (transfer.digest(), transfer.is_complete());
        function.start_work().stage = Stage::Receiving(Receiving {
            transfer,
            moved_at: now.monotonic,
            fetch_at: now.monotonic + FETCH_AFTER,
            fetch_after: FETCH_AFTER,
        });
        if is_complete {
            self.then(Step::Assemble(Arc::clone(name)));
        } else {
            self.actions.push_back(Action::Fetch { digest });
        }
        if !fits {
            self.remove_staged(name, digest);
        }
    }

    fn remove_staged(&mut self, name: &Arc<str>, digest: Digest) {
        self.ask(DiskRequest::Remove(StoredFile::Staging(Arc::clone(name), digest)), Wait::Anything);
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
        let function = self.functions.get_mut(name).expect(KNOWN);
        if std::mem::take(&mut function.is_displaced) && function.record.unproven.is_some() {
            // It serves again, still guarded by what has proven itself.
            self.then(Step::Install(Arc::clone(name), Place::Active));
        }
    }

    /// Ends the order with a reason; the active version keeps serving.
    pub fn reject(&mut self, name: &Arc<str>, why: Refusal) {
        self.stats.refused(why.reason);
        self.end(name, DeployState::Rejected, &why);
    }

    pub fn end(&mut self, name: &Arc<str>, state: DeployState, why: &Refusal) {
        self.cancel(name);
        let record = &mut self.functions.get_mut(name).expect(KNOWN).record;
        if let Some(candidate) = record.candidate.take() {
            record.outcome = Some(OrderOutcome::of_candidate(state, Some(why), &candidate));
        }
        self.save(name, AfterSave::Report);
    }

    /// Hands a chunk to each function that receives its module.
    pub(super) fn receive_chunk(&mut self, digest: Digest, index: u32, bytes: &Bytes) {
        let receives = |function: &&TrackedFunction| function.work.as_ref().is_some_and(|work| work.receives(&digest));
        let functions = self.functions.values().filter(receives).map(|function| Arc::clone(&function.name));
        for function in functions.collect::<Vec<_>>() {
            self.then(Step::Chunk { function, digest, index, bytes: bytes.clone() });
        }
    }

    pub fn chunk(&mut self, name: &Arc<str>, digest: Digest, index: u32, bytes: Bytes, now: Now) {
        let function = self.functions.get_mut(name).expect(KNOWN);
        let (receiving, cause) = function.receiving().expect(RECEIVES);
        match receiving.transfer.check(index, &bytes) {
            ChunkResult::Missing { offset } => {
                let file = StoredFile::Staging(Arc::clone(name), digest);
                let wait = Wait::WriteChunk { function: Arc::clone(name), index };
                self.ask(DiskRequest::WriteAt { file, offset, bytes }, wait);
            }
            ChunkResult::Duplicate => {}
            ChunkResult::Bad(refusal) => {
                self.stats.chunk(false);
                *cause = Some(Cause { refusal, index: Some(index) });
                self.actions.extend(report(function, now));
            }
            ChunkResult::Impossible(refusal) => self.reject(name, refusal),
        }
    }

    pub(super) fn chunk_written(&mut self, name: &Arc<str>, index: u32, answer: DiskAnswer, now: Now) {
        let function = self.functions.get_mut(name).expect(KNOWN);
        let (receiving, cause) = function.receiving().expect(RECEIVES);
        receiving.moved_at = now.monotonic;
        match answer {
            Ok(_) => {
                self.stats.chunk(true);
                receiving.transfer.stored(index);
                receiving.fetch_at = now.monotonic + FETCH_AFTER;
                receiving.fetch_after = FETCH_AFTER;
                if cause.as_ref().is_some_and(|cause| cause.index.is_none_or(|about| about == index)) {
                    *cause = None;
                }
                if receiving.transfer.is_complete() {
                    return self.then(Step::Assemble(Arc::clone(name)));
                }
            }
            Err(error) => {
                // A full disk does not end the push: the chunk is fetched again.
                let refusal = disk_refusal(&format!("failed to store chunk {index}, which is fetched again"), &error);
                *cause = Some(Cause { refusal, index: Some(index) });
            }
        }
        self.actions.extend(report(function, now));
    }

    pub(super) fn assemble(&mut self, name: &Arc<str>, now: Now) {
        let function = self.functions.get_mut(name).expect(KNOWN);
        // Receiving with all chunks present is reported as verifying.
        self.actions.push_back(report_now(function, now));
        let digest = function.receiving().expect(RECEIVES).0.transfer.digest();
        let staged = StoredFile::Staging(Arc::clone(name), digest);
        self.ask(DiskRequest::Read(staged), Wait::ReadChunks(Arc::clone(name)));
    }

    pub(super) fn chunks_read(&mut self, name: &Arc<str>, answer: DiskAnswer, now: Now) {
        let function = self.functions.get_mut(name).expect(KNOWN);
        let (receiving, _) = function.receiving().expect(RECEIVES);
        let digest = receiving.transfer.digest();
        let staged = match answer {
            Ok(staged) => staged,
            Err(error) => return self.module_not_stored(name, &error, now),
        };
        match receiving.transfer.assemble(&staged) {
            Assembly::Complete => {
                let request = DiskRequest::Finish { function: Arc::clone(name), digest };
                self.ask(request, Wait::Finish(Arc::clone(name)));
            }
            Assembly::Damaged => {
                receiving.fetch_at = now.monotonic + receiving.fetch_after;
                function.mark_due();
                self.actions.push_back(Action::Fetch { digest });
            }
            Assembly::Impossible(refusal) => {
                receiving.transfer.forget();
                self.then(Step::Reject(Arc::clone(name), refusal));
                self.remove_staged(name, digest);
            }
        }
    }

    pub(super) fn finished(&mut self, name: &Arc<str>, answer: DiskAnswer, now: Now) {
        if let Err(error) = answer {
            return self.module_not_stored(name, &error, now);
        }
        let function = self.functions.get_mut(name).expect(KNOWN);
        let digest = function.receiving().expect(RECEIVES).0.transfer.digest();
        function.start_work();
        self.queue.push_back(Arc::clone(name));
        self.end_fetch(digest);
    }

    /// Fetches all chunks again. After a failed sync the contents of the disk are unknown, whatever is read back.
    fn module_not_stored(&mut self, name: &Arc<str>, error: &io::Error, now: Now) {
        let function = self.functions.get_mut(name).expect(KNOWN);
        let (receiving, cause) = function.receiving().expect(RECEIVES);
        receiving.moved_at = now.monotonic;
        receiving.transfer.forget();
        let digest = receiving.transfer.digest();
        let refusal = disk_refusal("failed to store the module, which is fetched again", error);
        *cause = Some(Cause { refusal, index: None });
        self.actions.extend(report(function, now));
        self.remove_staged(name, digest);
    }

    /// Fetches all missing chunks after a reconnect, since some may have been lost with the old connection.
    pub(super) fn fetch_all(&mut self, now: Now) {
        for function in self.functions.values_mut() {
            if let Some((receiving, _)) = function.receiving() {
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
            let Some((receiving, cause)) = function.receiving() else { continue };
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
                let refusal = cause.take().map_or(refusal, |cause| cause.refusal);
                late.push((Arc::clone(&function.name), refusal));
            } else if now.monotonic >= receiving.fetch_at {
                receiving.fetch_at = now.monotonic + receiving.fetch_after;
                receiving.fetch_after = (receiving.fetch_after * 2).min(FETCH_AFTER_MOST);
                self.actions.push_back(Action::Fetch { digest: receiving.transfer.digest() });
            }
        }
        late.into_iter().for_each(|(name, refusal)| self.then(Step::Reject(name, refusal)));
    }

    /// Ends the fetch of a module unless another function waits for it.
    fn end_fetch(&mut self, digest: Digest) {
        let receives = |function: &TrackedFunction| function.work.as_ref().is_some_and(|work| work.receives(&digest));
        if !self.functions.values().any(receives) {
            self.actions.push_back(Action::EndFetch { digest });
        }
    }
}
