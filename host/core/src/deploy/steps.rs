//! One request at a time. Handling a request is a sequence of steps. A step that needs the disk asks for one operation and
//! names what continues with the answer; until then all other steps and requests wait.
//!
//! ```text
//! Inbox ─request─▶ step ─▶ step ─▶ ... ─▶ next request
//!                   │ Action::Disk   ▲ Request::Disk
//!                   ▼                │
//!                  Wait ─────────────┘
//! ```

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;

use super::boot::Place;
use super::deployer::Deployer;
use super::interface::{Action, DiskAnswer, DiskRequest, Request, StoredFile};
use super::orders::{KeyOrder, PendingOrder};
use super::reason::Refusal;
use super::settings_orders::PendingSettings;
use crate::message::Digest;
use crate::time::Now;
use crate::version::Version;

/// Waiting messages, 16 MiB at most. Messages beyond it are dropped and fetched again.
pub const MAX_MESSAGES: usize = 64;
/// Waiting requests that are not messages: a few per function, at most one per second of each kind.
pub const MAX_EVENTS: usize = 1024;

/// Work that is next. A step adds others, which come before those that waited already.
#[derive(Debug)]
pub enum Step {
    /// Set a damaged file aside.
    SetAside(StoredFile),
    /// Make an installed version of a function serve, at the start or again.
    Install(Arc<str>, Place),
    Message {
        topic: Box<str>,
        payload: Bytes,
    },
    StartCandidate(Arc<str>),
    /// Report a function if an order for it is in progress.
    ReportWork(Arc<str>),
    Chunk {
        function: Arc<str>,
        digest: Digest,
        index: u32,
        bytes: Bytes,
    },
    /// Verify a module whose chunks all arrived.
    Assemble(Arc<str>),
    Reject(Arc<str>, Refusal),
    /// End orders in progress whose keys are no longer trusted.
    EndOrphans,
    CompileNext,
    /// The parts of a tick, in this order.
    CheckReceiving,
    SaveUnsaved,
    Save(Arc<str>),
    Sweep,
    ReportDue,
}

/// Continuation of a step after the answer to its request.
#[derive(Debug)]
pub enum Wait {
    /// Reading a function's folder, to copy the active version from it.
    ReadAdopted(Box<PendingOrder>),
    WriteAdopted(Box<PendingOrder>),
    WriteOrder(Box<PendingOrder>),
    WriteKeys(Box<KeyOrder>),
    WriteSettings(Box<PendingSettings>),
    /// Looking for the module of a candidate.
    FindModule(Arc<str>),
    /// Reading the chunks that an earlier transfer left.
    ReadStaged(Arc<str>),
    WriteChunk {
        function: Arc<str>,
        index: u32,
    },
    ReadChunks(Arc<str>),
    /// Moving the complete chunks to the modules.
    Finish(Arc<str>),
    ReadModule(Arc<str>),
    /// Removing the damaged module of a candidate.
    RemoveModule(Arc<str>),
    Save {
        function: Arc<str>,
        then: AfterSave,
    },
    Retain,
    /// At the start: looking for code in the cache, reading the module or its source, and compiling it.
    ReadCache(Place, Box<Version>),
    ReadActive(Place, Box<Version>),
    Compile(Place, Box<Version>),
    /// The result does not matter.
    Anything,
}

/// Effects of a decision about a function once its record was written, or could not be.
#[derive(Clone, Copy, Debug)]
pub enum AfterSave {
    Nothing,
    Report,
    /// Report, and make this edition the active one.
    ReportAndPromote(u32),
}

#[derive(Debug, Default)]
pub struct Agenda {
    /// The next step is last.
    steps: Vec<Step>,
    /// Steps that the current one added, in order.
    added: Vec<Step>,
    wait: Option<Wait>,
    inbox: Inbox,
}

/// Requests that wait for the end of the one before them.
#[derive(Debug, Default)]
struct Inbox {
    requests: VecDeque<Request>,
    messages: usize,
    has_tick: bool,
}

impl Agenda {
    /// Whether nothing is left to do and no answer is awaited.
    pub fn is_idle(&self) -> bool {
        self.wait.is_none() && self.steps.is_empty() && self.added.is_empty() && self.inbox.requests.is_empty()
    }

    /// Puts the added steps before those that waited.
    fn settle(&mut self) {
        self.steps.extend(self.added.drain(..).rev());
    }
}

impl Inbox {
    /// Returns `false` if it drops a message because too many wait.
    fn push(&mut self, request: Request) -> bool {
        match &request {
            Request::Message { .. } if self.messages >= MAX_MESSAGES => return false,
            Request::Message { .. } => self.messages += 1,
            Request::Tick if self.has_tick => return true,
            Request::Tick => self.has_tick = true,
            _ if self.requests.len() >= MAX_MESSAGES + MAX_EVENTS => {
                tracing::error!(?request, "the deployer is {MAX_EVENTS} requests behind; this one is lost");
                return true;
            }
            _ => {}
        }
        self.requests.push_back(request);
        true
    }

    fn pop(&mut self) -> Option<Request> {
        let request = self.requests.pop_front()?;
        match request {
            Request::Message { .. } => self.messages -= 1,
            Request::Tick => self.has_tick = false,
            _ => {}
        }
        Some(request)
    }
}

impl Deployer {
    pub fn handle(&mut self, request: Request, now: Now) {
        match request {
            Request::Disk(answer) => {
                let wait = self.agenda.wait.take().expect("an answer follows a request");
                self.resume(wait, answer, now);
            }
            Request::Compiled { result, .. } if matches!(self.agenda.wait, Some(Wait::Compile(..))) => {
                if let Some(Wait::Compile(place, version)) = self.agenda.wait.take() {
                    self.active_compiled(place, *version, result);
                }
            }
            Request::Postponed => {
                if let Some(Wait::Compile(place, version)) =
                    self.agenda.wait.take_if(|wait| matches!(wait, Wait::Compile(..)))
                {
                    self.postpone(place, version);
                }
            }
            Request::Dropped => self.messages_dropped(now),
            request => {
                if !self.agenda.inbox.push(request) {
                    self.stats.dropped();
                    self.messages_dropped(now);
                }
            }
        }
        self.run(now);
    }

    /// Adds a step that follows the current one.
    pub fn then(&mut self, step: Step) {
        self.agenda.added.push(step);
    }

    /// Requests an operation on files, which ends the current step.
    pub fn ask(&mut self, request: DiskRequest, wait: Wait) {
        self.actions.push_back(Action::Disk(request));
        self.wait_for(wait);
    }

    pub fn wait_for(&mut self, wait: Wait) {
        let before = self.agenda.wait.replace(wait);
        debug_assert!(before.is_none(), "a step asks once, but waits for {before:?}");
    }

    /// Goes on until an answer is awaited or nothing is left to do.
    pub fn run(&mut self, now: Now) {
        loop {
            self.agenda.settle();
            if self.agenda.wait.is_some() {
                return;
            } else if let Some(step) = self.agenda.steps.pop() {
                self.step(step, now);
            } else if let Some(request) = self.agenda.inbox.pop() {
                self.start(request, now);
                self.then(Step::CompileNext);
            } else {
                return;
            }
        }
    }

    fn step(&mut self, step: Step, now: Now) {
        match step {
            Step::SetAside(file) => self.ask(DiskRequest::SetAside(file), Wait::Anything),
            Step::Install(function, place) => self.install(&function, place),
            Step::Message { topic, payload } => self.message(topic, payload, now),
            Step::StartCandidate(function) => self.start_candidate(&function),
            Step::ReportWork(function) => self.report_work(&function, now),
            Step::Chunk { function, digest, index, bytes } => self.chunk(&function, digest, index, bytes, now),
            Step::Assemble(function) => self.assemble(&function, now),
            Step::Reject(function, why) => self.reject(&function, why),
            Step::EndOrphans => self.end_orphans(),
            Step::CompileNext => self.compile_next(),
            Step::CheckReceiving => self.check_receiving(now),
            Step::SaveUnsaved => self.save_unsaved(),
            Step::Save(function) => self.save(&function, AfterSave::Nothing),
            Step::Sweep => self.sweep(),
            Step::ReportDue => self.report_due(now),
        }
    }

    fn resume(&mut self, wait: Wait, answer: DiskAnswer, now: Now) {
        match wait {
            Wait::ReadAdopted(order) => self.adopted_read(order, answer),
            Wait::WriteAdopted(order) => self.adopted_written(order, answer, now),
            Wait::WriteOrder(order) => self.order_written(*order, answer, now),
            Wait::WriteKeys(order) => self.keys_written(*order, answer, now),
            Wait::WriteSettings(order) => self.settings_written(*order, answer, now),
            Wait::FindModule(function) => self.module_found(&function, answer),
            Wait::ReadStaged(function) => self.staged_read(&function, answer, now),
            Wait::WriteChunk { function, index } => self.chunk_written(&function, index, answer, now),
            Wait::ReadChunks(function) => self.chunks_read(&function, answer, now),
            Wait::Finish(function) => self.finished(&function, answer, now),
            Wait::ReadModule(function) => self.module_read(&function, answer, now),
            Wait::RemoveModule(function) => self.module_removed(&function, answer, now),
            Wait::Save { function, then } => self.saved(&function, then, answer, now),
            Wait::Retain => self.swept(answer),
            Wait::ReadCache(place, version) => self.cache_read(place, version, answer),
            Wait::ReadActive(place, version) => self.active_read(place, version, answer),
            Wait::Compile(..) => debug_assert!(false, "the compiler answers by Request::Compiled"),
            Wait::Anything => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message() -> Request {
        Request::Message { topic: "sedge/pump-3/deploy/warm".into(), payload: Bytes::new() }
    }

    #[test]
    fn messages_ticks_and_events_that_wait_are_bounded() {
        let mut inbox = Inbox::default();
        for n in 0..2 * MAX_MESSAGES {
            assert_eq!(inbox.push(message()), n < MAX_MESSAGES);
            assert!(inbox.push(Request::Tick));
        }
        assert_eq!(inbox.requests.len(), MAX_MESSAGES + 1);
        for _ in 0..2 * MAX_EVENTS {
            assert!(inbox.push(Request::Connected));
        }
        assert_eq!(inbox.requests.len(), MAX_MESSAGES + MAX_EVENTS);
        while inbox.pop().is_some() {}
        assert!(inbox.push(message()) && inbox.push(Request::Tick));
        assert!(matches!(inbox.pop(), Some(Request::Message { .. })) && matches!(inbox.pop(), Some(Request::Tick)));
    }

    #[test]
    fn added_steps_come_before_those_that_waited() {
        let mut agenda = Agenda::default();
        agenda.added.extend([Step::Sweep, Step::ReportDue]);
        agenda.settle();
        assert!(matches!(agenda.steps.pop(), Some(Step::Sweep)));
        agenda.added.extend([Step::EndOrphans, Step::CompileNext]);
        agenda.settle();
        assert!(matches!(agenda.steps.pop(), Some(Step::EndOrphans)));
        assert!(matches!(agenda.steps.pop(), Some(Step::CompileNext)));
        assert!(matches!(agenda.steps.pop(), Some(Step::ReportDue)));
        assert!(agenda.is_idle());
    }
}
