//! The daemon's side of the worker processes: starts and ends them, writes frames to them and reads their frames.
//!
//! Decides nothing: the board says which process runs which jobs, and hears of each frame and each death.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdStream;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use rustix::io::Errno;
use tokio::io::AsyncReadExt as _;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::Notify;

use super::cgroups::Cgroups;
use super::clock::Clock;
use super::protocol::{Encoder, FromWorker, Job, JobScope, ToWorker, frame_length, split_frame};
use super::serve::Worker;
use sedge_core::board::{self, JobNo, Life, Load, WorkerCommand, WorkerEvent, WorkerNo};
use sedge_core::bounds;
use sedge_core::code::{Code, SealedCode};
use sedge_core::config::Isolate;
use sedge_core::isa::Class;
use sedge_core::limits::Limits;
use sedge_core::manifest::StateScope;
use sedge_core::settings::Settings;
use sedge_sandbox::{codes, program};

/// Bytes read from a worker at once.
const READ_BYTES: usize = 64 * 1024;
/// What a dead worker wrote to standard error is logged up to this length.
const MAX_LAST_WORDS_BYTES: u64 = 1024;
/// Jobs that wait for a worker's answer are sent all the same when they are this much.
const GATHER_BYTES: usize = 32 * 1024;

/// Stack of a worker that is a thread. Scripts use most of it.
const WORKER_STACK_BYTES: usize = 4 << 20;

#[derive(Clone, Debug)]
pub(crate) struct ProcessConfig {
    pub(crate) isolate: Isolate,
    pub(crate) state_cache_bytes: usize,
    pub(crate) memory_bytes: usize,
}

/// Must be used inside a `LocalSet`.
pub(crate) struct Processes {
    config: ProcessConfig,
    /// `None`: workers compete for the processor as all processes do.
    cgroups: Option<Cgroups>,
    /// The first slots are of workers that functions have in common, the others of workers that single functions have.
    shared: usize,
    slots: Vec<Slot>,
    inbox: Rc<Inbox>,
    /// Limits of the loaded versions, which bound what a worker may send.
    limits: BTreeMap<(u32, u32), Limits>,
    /// Killed, and not reaped yet.
    zombies: Vec<Child>,
}

/// What the workers said, with the life that said it.
#[derive(Default)]
struct Inbox {
    events: RefCell<VecDeque<(WorkerNo, Life, WorkerEvent)>>,
    max_frame_bytes: Cell<usize>,
    ready: Notify,
}

#[derive(Default)]
struct Slot {
    life: Life,
    running: Option<Running>,
    /// Jobs written to the socket and not answered.
    unanswered: u64,
    /// Jobs in the buffer.
    unsent: u64,
    /// The worker said something since the last flush.
    heard_since: bool,
    /// The buffer holds more than jobs: the worker waits for it.
    urgent: bool,
    /// Engines for scripts that the worker has.
    engines: BTreeSet<Class>,
}

struct Running {
    stream: Rc<OwnedWriteHalf>,
    out: Rc<RefCell<Vec<u8>>>,
    wake_writer: Rc<Notify>,
    reader: tokio::task::JoinHandle<()>,
    writer: tokio::task::JoinHandle<()>,
    codes: Option<StdStream>,
    /// Code that the socket did not take yet: it holds some 250 files.
    codes_waiting: VecDeque<Arc<SealedCode>>,
    process: Option<Child>,
}

impl Inbox {
    fn push(&self, worker: WorkerNo, life: Life, event: WorkerEvent) {
        self.events.borrow_mut().push_back((worker, life, event));
        self.ready.notify_one();
    }
}

impl Processes {
    pub(crate) fn new(config: ProcessConfig, count: usize, cgroups: Option<Cgroups>) -> Self {
        let slots = (0..count).map(|_| Slot::default()).collect();
        let inbox = Rc::<Inbox>::default();
        inbox.max_frame_bytes.set(bounds::frame_bytes(std::iter::empty()));
        Self { config, cgroups, shared: count, slots, inbox, limits: BTreeMap::new(), zombies: Vec::new() }
    }

    /// Workers that were started at some time.
    pub(crate) fn count(&self) -> usize {
        self.slots.len()
    }

    /// Carries out what the board wants of a worker. Frames leave with the next [`Processes::flush`].
    pub(crate) fn apply(&mut self, worker: WorkerNo, life: Life, command: WorkerCommand) {
        match command {
            WorkerCommand::Start => self.start(worker, life),
            WorkerCommand::Kill => self.kill(worker, life),
            WorkerCommand::Load(load) => {
                let limits = load.version.limits;
                if self.limits.insert((load.function, load.version.edition), limits) != Some(limits) {
                    self.bound_frames();
                }
                self.with(worker, life, |slot| slot.load(&load));
            }
            WorkerCommand::Unload { function, edition } => {
                if self.limits.remove(&(function, edition)).is_some() {
                    self.bound_frames();
                }
                self.with(worker, life, |slot| slot.write(&ToWorker::Unload { function, edition }));
            }
            WorkerCommand::Set { change, loads } => {
                let settings = loads.iter().map(|it| (it.function, it.version.edition, Settings::clone(&it.settings)));
                let settings = settings.collect();
                self.with(worker, life, |slot| slot.write(&ToWorker::Set { change, settings }));
            }
            WorkerCommand::Forget { function, topics } => {
                let topics = topics.iter().map(|topic| topic.as_deref().map(Into::into)).collect();
                self.with(worker, life, |slot| slot.write(&ToWorker::Forget { function, topics }));
            }
            WorkerCommand::Run { number, job } => self.with(worker, life, |slot| slot.run(number, job)),
            WorkerCommand::State { job, entries } => {
                self.with(worker, life, |slot| slot.write(&ToWorker::State { job: job.0, entries }));
            }
        }
    }

    fn with(&mut self, worker: WorkerNo, life: Life, write: impl FnOnce(&mut Slot)) {
        let slot = &mut self.slots[worker.index()];
        if slot.life == life {
            write(slot);
        }
    }

    fn bound_frames(&self) {
        self.inbox.max_frame_bytes.set(bounds::frame_bytes(self.limits.values()));
    }

    /// Writes the buffers to the sockets. Jobs for a worker that has not answered since the last ones wait for the flush
    /// after its answer: so they gather while it works, and it is woken for many at once. What the sockets do not take now
    /// follows by itself.
    pub(crate) fn flush(&mut self) {
        let zombies = self.zombies.len();
        self.zombies.retain_mut(|process| matches!(process.try_wait(), Ok(None)));
        if self.zombies.len() < zombies {
            self.sweep();
        }
        for slot in &mut self.slots {
            slot.flush();
        }
    }

    /// Waits until [`Processes::next_event`] has something.
    pub(crate) async fn ready(&self) {
        while self.inbox.events.borrow().is_empty() {
            self.inbox.ready.notified().await;
        }
    }

    pub(crate) fn next_event(&mut self) -> Option<(WorkerNo, Life, WorkerEvent)> {
        let (worker, life, event) = self.inbox.events.borrow_mut().pop_front()?;
        let slot = &mut self.slots[worker.index()];
        if slot.life != life {
            return self.next_event();
        }
        slot.heard_since = true;
        match event {
            WorkerEvent::Done { .. } | WorkerEvent::Held { .. } => {
                slot.unanswered = slot.unanswered.saturating_sub(1);
                Some((worker, life, event))
            }
            WorkerEvent::Ended { status: reason } => {
                // The socket is closed or its frames make no sense: in either case the process is ours no more.
                let status = self.end(worker).and_then(last_words).unwrap_or(reason);
                self.sweep();
                Some((worker, life, WorkerEvent::Ended { status }))
            }
            event => Some((worker, life, event)),
        }
    }

    fn start(&mut self, worker: WorkerNo, life: Life) {
        if self.slots.len() <= worker.index() {
            self.slots.resize_with(worker.index() + 1, Slot::default);
        }
        let event = match self.spawn(worker, life) {
            Ok(()) => WorkerEvent::Started,
            Err(error) => WorkerEvent::NotStarted { error: error.to_string() },
        };
        self.inbox.push(worker, life, event);
    }

    fn spawn(&mut self, worker: WorkerNo, life: Life) -> io::Result<()> {
        self.slots[worker.index()] = Slot { life, ..Slot::default() };
        let (near, far) = StdStream::pair()?;
        near.set_nonblocking(true)?;
        let (codes, far_codes) = match codes::is_passed() {
            true => StdStream::pair().map(|(near, far)| (Some(near), Some(far)))?,
            false => (None, None),
        };
        let process = match self.config.isolate {
            Isolate::Process | Isolate::Function => Some(self.spawn_process(worker, far, far_codes)?),
            Isolate::Thread => {
                let state_cache_bytes = self.config.state_cache_bytes;
                let clock = Clock::start()?;
                let thread = std::thread::Builder::new().name(format!("sedge-worker-{worker}"));
                thread.stack_size(WORKER_STACK_BYTES).spawn(move || {
                    if let Err(error) = Worker::new(far, far_codes, clock, state_cache_bytes).serve() {
                        tracing::debug!(%error, "worker thread ended");
                    }
                })?;
                None
            }
        };
        let (from_worker, to_worker) = UnixStream::from_std(near)?.into_split();
        let stream = Rc::new(to_worker);
        let out = Rc::new(RefCell::new(Vec::new()));
        let wake_writer = Rc::new(Notify::new());
        self.slots[worker.index()].running = Some(Running {
            reader: tokio::task::spawn_local(read(from_worker, Rc::clone(&self.inbox), worker, life)),
            writer: tokio::task::spawn_local(write(Rc::clone(&stream), Rc::clone(&out), Rc::clone(&wake_writer))),
            stream,
            out,
            wake_writer,
            codes,
            codes_waiting: VecDeque::new(),
            process,
        });
        Ok(())
    }

    /// Starts a worker that inherits one socket, as its standard input, and the one that code comes by, as its standard
    /// output. Nothing else: no environment but for the allocator, no other file. Standard error is a pipe: a worker cannot write to files, so that
    /// its last words would be lost where the daemon logs to one.
    fn spawn_process(&self, worker: WorkerNo, socket: StdStream, codes: Option<StdStream>) -> io::Result<Child> {
        let mut command = Command::new(program::own());
        command
            .arg0("sedge")
            .arg("worker")
            .arg("--state-cache-bytes")
            .arg(self.config.state_cache_bytes.to_string())
            .arg("--memory-bytes")
            .arg(self.config.memory_bytes.to_string());
        if codes.is_some() {
            command.arg("--codes");
        }
        // What may run for long gives way to what may not.
        let gives_way = self.shared > 0 && worker.index() >= self.shared;
        if gives_way {
            command.arg("--nice");
        }
        let process = command
            .env_clear()
            // glibc reserves 64 MiB of addresses for each further thread that allocates, of the few that a worker has.
            .env("MALLOC_ARENA_MAX", "1")
            .current_dir("/")
            .stdin(Stdio::from(OwnedFd::from(socket)))
            .stdout(codes.map_or_else(Stdio::null, |codes| OwnedFd::from(codes).into()))
            .stderr(Stdio::piped())
            .spawn()?;
        if let Some(cgroups) = &self.cgroups {
            cgroups.place(process.id(), gives_way);
        }
        Ok(process)
    }

    fn kill(&mut self, worker: WorkerNo, life: Life) {
        if self.slots[worker.index()].life == life {
            let ended = self.end(worker);
            self.zombies.extend(ended);
            self.inbox.push(worker, life, WorkerEvent::Ended { status: "it was ended".to_owned() });
        }
    }

    /// Kills a worker if it still runs. Returns its process, to be reaped.
    fn end(&mut self, worker: WorkerNo) -> Option<Child> {
        let mut running = self.slots[worker.index()].running.take()?;
        running.reader.abort();
        running.writer.abort();
        let mut process = running.process.take()?;
        let _ = process.kill();
        Some(process)
    }

    /// Removes the cgroups of workers that were reaped.
    fn sweep(&self) {
        if let Some(cgroups) = &self.cgroups {
            cgroups.sweep();
        }
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        for worker in 0..self.slots.len() as u32 {
            let ended = self.end(WorkerNo(worker));
            self.zombies.extend(ended);
        }
        for process in &mut self.zombies {
            let _ = process.wait();
        }
    }
}

impl Slot {
    fn write(&mut self, frame: &ToWorker) {
        self.urgent = true;
        if let Some(running) = &self.running {
            Encoder::new(&mut running.out.borrow_mut()).encode_to_worker(frame);
        }
    }

    fn run(&mut self, number: JobNo, job: board::Job) {
        let Some(running) = &self.running else { return };
        self.unsent += 1;
        let job = Job {
            id: number.0,
            function: job.id.function.0,
            edition: job.edition,
            scope: match job.scope {
                StateScope::None => JobScope::None,
                StateScope::Topic => JobScope::Topic,
                StateScope::Function => JobScope::Function,
            },
            resumes: job.resumes,
            on_trial: job.on_trial,
            keeps_draws: job.keeps_draws,
            message: job.message,
        };
        Encoder::new(&mut running.out.borrow_mut()).run(number.0, &job);
    }

    fn load(&mut self, load: &Load) {
        let Load { function, version, settings } = load;
        if let Code::Script { engine, .. } = &version.code
            && self.engines.insert(engine.class)
        {
            let code = self.pass(&engine.code);
            self.write(&ToWorker::Engine { class: engine.class, code });
        }
        let code = self.pass(&version.code);
        self.write(&ToWorker::Load {
            function: *function,
            edition: version.edition,
            name: version.manifest.name.to_string(),
            limits: version.limits,
            settings: Settings::clone(settings).into(),
            permits: version.permits.clone(),
            code,
        });
    }

    /// Returns the part of the code that goes into the frame: code that is passed as a file does not.
    fn pass(&mut self, code: &Code) -> Bytes {
        match code {
            Code::Plain(code) | Code::Script { archive: code, .. } => code.clone(),
            Code::Sealed(code) => {
                if let Some(running) = &mut self.running {
                    running.codes_waiting.push_back(Arc::clone(code));
                    running.pass_codes();
                }
                Bytes::new()
            }
        }
    }

    fn flush(&mut self) {
        let Some(running) = &mut self.running else { return };
        running.pass_codes();
        let owes_answer = !self.heard_since && !self.urgent && self.unanswered > 0;
        let mut out = running.out.borrow_mut();
        if out.is_empty() || owes_answer && out.len() < GATHER_BYTES {
            return;
        }
        self.unanswered += std::mem::take(&mut self.unsent);
        self.heard_since = false;
        self.urgent = false;
        match running.stream.try_write(&out) {
            Ok(written) if written == out.len() => out.clear(),
            Ok(written) => {
                out.drain(..written);
                running.wake_writer.notify_one();
            }
            // The reader sees the end.
            Err(_) => running.wake_writer.notify_one(),
        }
    }
}

impl Running {
    /// Passes as much code as the socket takes; the worker empties it as it comes to the frames.
    fn pass_codes(&mut self) {
        let Running { codes: Some(codes), codes_waiting, .. } = self else { return };
        while let Some(code) = codes_waiting.front() {
            match codes::send(codes, code) {
                Ok(()) => {}
                Err(Errno::AGAIN | Errno::TOOMANYREFS) => return,
                // The worker waits for the code in vain, and is replaced for being stuck.
                Err(error) => tracing::error!(%error, "compiled code could not be passed to a worker"),
            }
            codes_waiting.pop_front();
        }
    }
}

/// Waits for a process that was killed or died. Returns its exit status and what it wrote to standard error.
fn last_words(mut process: Child) -> Option<String> {
    let mut status = process.wait().ok()?.to_string();
    let mut words = Vec::new();
    // Nobody else has the other end, so that this comes to an end.
    let stderr = process.stderr.take()?;
    let _ = stderr.take(MAX_LAST_WORDS_BYTES).read_to_end(&mut words);
    let words = String::from_utf8_lossy(&words).replace(char::is_control, " ");
    if !words.trim().is_empty() {
        status.push_str(": ");
        status.push_str(words.trim());
    }
    Some(status)
}

async fn read(mut stream: OwnedReadHalf, inbox: Rc<Inbox>, worker: WorkerNo, life: Life) {
    let mut input = BytesMut::with_capacity(READ_BYTES);
    let reason = loop {
        // Parts of what was read before are still in use, so room is a new block: not one for every few hundred bytes.
        if input.capacity() - input.len() < READ_BYTES / 4 {
            input.reserve(READ_BYTES);
        }
        // Knows from a read that did not fill the buffer that the socket is empty; `try_read_buf` would ask once more.
        match stream.read_buf(&mut input).await {
            Ok(0) => break "closed its socket".to_owned(),
            Ok(_) => {}
            Err(error) => break error.to_string(),
        }
        if let Err(reason) = frames(&mut input, &inbox, worker, life) {
            break reason;
        }
    };
    inbox.push(worker, life, WorkerEvent::Ended { status: reason });
}

/// Queues the whole frames of a buffer.
fn frames(input: &mut BytesMut, inbox: &Inbox, worker: WorkerNo, life: Life) -> Result<(), String> {
    let limit = inbox.max_frame_bytes.get();
    let mut events = inbox.events.borrow_mut();
    let result = loop {
        // Before room is made for it.
        if let Some(length) = frame_length(input).filter(|length| *length > limit) {
            break Err(format!("announced a frame of {length} bytes, the limit is {limit}"));
        }
        match split_frame(input).and_then(|frame| frame.map(FromWorker::decode).transpose()) {
            Ok(Some(frame)) => events.push_back((worker, life, event(frame))),
            Ok(None) => break Ok(()),
            Err(error) => break Err(error.to_string()),
        }
    };
    inbox.ready.notify_one();
    result
}

fn event(frame: FromWorker) -> WorkerEvent {
    match frame {
        FromWorker::Loaded { function, edition, error } => WorkerEvent::Loaded { function, edition, error },
        FromWorker::NeedState { job } => WorkerEvent::NeedState { job: JobNo(job) },
        FromWorker::Done { job, outcome, log, log_lines_dropped } => {
            WorkerEvent::Done { job: JobNo(job), outcome, log, log_lines_dropped }
        }
        FromWorker::Held { job } => WorkerEvent::Held { job: JobNo(job) },
        FromWorker::Set { change } => WorkerEvent::Set { change },
    }
}

/// Writes what did not go out at once.
async fn write(stream: Rc<OwnedWriteHalf>, out: Rc<RefCell<Vec<u8>>>, wake: Rc<Notify>) {
    loop {
        wake.notified().await;
        while !out.borrow().is_empty() {
            if stream.writable().await.is_err() {
                return;
            }
            let written = stream.try_write(&out.borrow());
            match written {
                Ok(written) => drop(out.borrow_mut().drain(..written)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return,
            }
        }
    }
}

#[cfg(test)]
#[cfg(feature = "compiler")]
mod tests;
