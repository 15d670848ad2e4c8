//! The daemon's side of the workers: starts them, hands out jobs, and settles what happens when one dies.
//!
//! A worker that dies takes nothing along: its unfinished jobs had no effect yet. They run again in its replacement, one
//! at a time, so that the one at fault is known when it kills again; that one is given back as crashed.

use std::cell::{Cell, RefCell};
use std::collections::{HashSet, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdStream;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use tokio::net::UnixStream;
use tokio::sync::Notify;

use super::bounds;
use super::permits::Permits;
use super::protocol::{Encoder, FromWorker, Job, JobScope, ToWorker, frame_length, split_frame};
use super::serve::{Clock, Worker};
use crate::config::Isolate;
use crate::message::{LogLine, Outcome, Scope};
use crate::sandbox::Limits;

/// Bytes read from a worker at once.
const READ_BYTES: usize = 64 * 1024;
/// A worker that answers nothing for this long beyond the longest deadline, ten times that where it waits for a processor, is stuck outside the guest's code.
const STUCK_AFTER: Duration = Duration::from_secs(5);
/// A job over which its worker died this often while it was the only one is at fault.
const DEATHS_ALONE: u32 = 2;
const RESPAWN_FIRST: Duration = Duration::from_millis(50);
const RESPAWN_MAX: Duration = Duration::from_secs(10);

/// A function as the workers need it.
#[derive(Clone, Debug)]
pub struct Loadable {
    pub number: u32,
    pub name: Arc<str>,
    pub limits: Limits,
    pub settings: Vec<(String, String)>,
    pub permits: Permits,
    pub code: Bytes,
}

#[derive(Debug)]
pub enum Event {
    Done {
        token: u64,
        outcome: Outcome,
        log: Vec<LogLine>,
        log_lines_dropped: u32,
    },
    /// Answer with [`Pool::provide_state`], from the store, after all that was committed for this scope.
    NeedState {
        request: StateRequest,
        scope: Scope,
    },
    /// The job did not run: one before it in its key asked for another run.
    Held {
        token: u64,
    },
    /// The job was running, alone, when its worker died for the second time.
    Crashed {
        token: u64,
    },
    NotLoaded {
        function: u32,
        error: String,
    },
    /// A worker died and is being replaced.
    Died {
        worker: usize,
        status: String,
    },
}

/// Which worker asked, for which of its jobs, in which of its lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateRequest {
    worker: usize,
    life: u32,
    job: u64,
}

pub struct Settings {
    pub isolate: Isolate,
    pub count: usize,
    pub state_cache_bytes: usize,
    pub memory_bytes: usize,
    /// The longest deadline that a function may have.
    pub max_timeout: Duration,
}

pub struct Pool {
    settings: Settings,
    slots: Vec<Slot>,
    functions: Vec<Loadable>,
    queue: Rc<Queue>,
}

/// Frames from all workers, with the life that sent them.
#[derive(Default)]
struct Queue {
    frames: RefCell<VecDeque<(usize, u32, Said)>>,
    /// The longest that a worker may send, by the functions that it has.
    max_frame_bytes: Cell<usize>,
    ready: Notify,
}

enum Said {
    Frame(FromWorker),
    /// The socket ended, or what came made no sense.
    Gone(String),
}

/// One place for a worker, which several may fill one after the other.
struct Slot {
    life: u32,
    running: Option<Running>,
    /// Jobs sent and not answered; a job's number on the wire is `first` plus its place.
    unfinished: VecDeque<Option<Job>>,
    first: u64,
    /// After a death: these run one at a time before anything new. With how often the worker died over each.
    suspects: VecDeque<(Job, u32)>,
    /// What came in meanwhile.
    backlog: VecDeque<Job>,
    /// Jobs whose state was asked for.
    states_asked: HashSet<u64>,
    last_heard: Instant,
    respawn_at: Option<Instant>,
    respawn_wait: Duration,
}

struct Running {
    stream: Rc<UnixStream>,
    out: Rc<RefCell<Vec<u8>>>,
    wake_writer: Rc<Notify>,
    reader: tokio::task::JoinHandle<()>,
    writer: tokio::task::JoinHandle<()>,
    process: Option<Child>,
}

impl Pool {
    /// Must be called inside a `LocalSet`.
    pub fn start(settings: Settings, functions: Vec<Loadable>) -> io::Result<Self> {
        let slots = (0..settings.count).map(|_| Slot::empty()).collect();
        let mut pool = Self { settings, slots, functions, queue: Rc::default() };
        for worker in 0..pool.slots.len() {
            pool.spawn(worker)?;
        }
        Ok(pool)
    }

    pub fn len(&self) -> usize {
        self.slots.len()
    }

    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Hands a job to a worker; `job.id` comes back as the token. Sent with the next [`Pool::flush`].
    pub fn submit(&mut self, worker: usize, job: Job) {
        let slot = &mut self.slots[worker];
        if slot.running.is_none() || !slot.suspects.is_empty() || !slot.backlog.is_empty() {
            slot.backlog.push_back(job);
        } else {
            slot.send(job);
        }
    }

    pub fn provide_state(&mut self, request: StateRequest, entries: Vec<(Box<str>, Bytes)>) {
        let slot = &mut self.slots[request.worker];
        if slot.life == request.life {
            slot.states_asked.remove(&request.job);
            slot.write(&ToWorker::State { job: request.job, entries });
        }
    }

    /// Drops every job and all state in memory: what the workers know is no longer what is stored.
    pub fn reset(&mut self) {
        for worker in 0..self.slots.len() {
            // A worker may be in the middle of a job whose answer must not count any more. A new life settles that.
            self.stop(worker);
            let slot = &mut self.slots[worker];
            slot.unfinished.clear();
            slot.suspects.clear();
            slot.backlog.clear();
            slot.respawn_wait = RESPAWN_FIRST;
            slot.respawn_at = Some(Instant::now());
        }
        self.queue.frames.borrow_mut().clear();
        self.tend();
    }

    /// Sends what was submitted. What the sockets do not take now follows by itself.
    pub fn flush(&mut self) {
        for slot in &mut self.slots {
            if let Some(running) = &slot.running {
                let mut out = running.out.borrow_mut();
                if out.is_empty() {
                    continue;
                }
                match running.stream.try_write(&out) {
                    Ok(written) if written == out.len() => out.clear(),
                    Ok(written) => {
                        out.drain(..written);
                        running.wake_writer.notify_one();
                    }
                    // The reader sees the end and settles it.
                    Err(_) => running.wake_writer.notify_one(),
                }
            }
        }
    }

    /// Waits until a worker said something, then moves all of it into `into`.
    pub async fn receive(&mut self, into: &mut VecDeque<Event>) {
        loop {
            let frames = std::mem::take(&mut *self.queue.frames.borrow_mut());
            for (worker, life, said) in frames {
                self.take(worker, life, said, into);
            }
            if !into.is_empty() {
                return;
            }
            self.queue.ready.notified().await;
        }
    }

    fn take(&mut self, worker: usize, life: u32, said: Said, into: &mut VecDeque<Event>) {
        let slot = &mut self.slots[worker];
        if slot.life != life {
            return;
        }
        slot.last_heard = Instant::now();
        match said {
            Said::Frame(FromWorker::Done { job, outcome, log, log_lines_dropped }) => {
                let Some(asked) = slot.job(job) else { return };
                let number = asked.function;
                let limits = function(&self.functions, number).map(|it| &it.limits);
                if let Some(Err(excess)) = limits.map(|limits| bounds::check(&outcome, &log, limits)) {
                    return self.condemn(worker, excess.to_string(), into);
                }
                let Some(done) = slot.finish(job) else { return };
                slot.respawn_wait = RESPAWN_FIRST;
                into.push_back(Event::Done { token: done.id, outcome, log, log_lines_dropped });
                slot.send_next();
            }
            Said::Frame(FromWorker::Held { job }) => {
                let Some(held) = slot.finish(job) else { return };
                into.push_back(Event::Held { token: held.id });
                slot.send_next();
            }
            Said::Frame(FromWorker::NeedState { job }) => {
                let Some(asking) = slot.job(job) else { return };
                let Some(function) = function(&self.functions, asking.function) else { return };
                let topic = (asking.scope == JobScope::Topic).then(|| Arc::clone(&asking.message.topic));
                let scope = Scope { function: Arc::clone(&function.name), topic };
                // Once is enough: a worker that was taken over must not keep the store busy.
                if !slot.states_asked.insert(job) {
                    return;
                }
                into.push_back(Event::NeedState { request: StateRequest { worker, life, job }, scope });
            }
            Said::Frame(FromWorker::Loaded { function, error }) => {
                if let Some(error) = error {
                    into.push_back(Event::NotLoaded { function, error });
                }
            }
            Said::Gone(reason) => {
                let status = self.stop(worker).unwrap_or(reason);
                self.bury(worker, status, into);
            }
        }
    }

    /// Ends a worker whose answer is out of bounds: it is no longer ours.
    fn condemn(&mut self, worker: usize, reason: String, into: &mut VecDeque<Event>) {
        tracing::error!(worker, reason, "a worker is out of bounds and is ended");
        self.stop(worker);
        self.bury(worker, reason, into);
    }

    fn bury(&mut self, worker: usize, status: String, into: &mut VecDeque<Event>) {
        self.blame(worker, into);
        into.push_back(Event::Died { worker, status });
        self.tend();
    }

    /// Sorts a dead worker's jobs: one that ran alone is at fault, several are suspects.
    fn blame(&mut self, worker: usize, into: &mut VecDeque<Event>) {
        let slot = &mut self.slots[worker];
        let unfinished: Vec<Job> = std::mem::take(&mut slot.unfinished).into_iter().flatten().collect();
        let alone = !slot.suspects.is_empty();
        if alone && unfinished.is_empty() {
            // It died before the suspect was sent: nobody is to blame yet.
        } else if alone {
            if let Some((job, deaths)) = slot.suspects.pop_front() {
                // Once may be somebody else's doing: the kernel's when memory is short, or a person's.
                if deaths + 1 >= DEATHS_ALONE {
                    into.push_back(Event::Crashed { token: job.id });
                } else {
                    slot.suspects.push_front((job, deaths + 1));
                }
            }
        } else {
            slot.suspects = unfinished.into_iter().map(|job| (job, 0)).collect();
        }
        slot.respawn_at = Some(Instant::now() + slot.respawn_wait);
        // The first replacement comes at once: one death is a job's fault, a row of them the machine's.
        if slot.respawn_wait == RESPAWN_FIRST {
            slot.respawn_at = Some(Instant::now());
        }
        slot.respawn_wait = (slot.respawn_wait * 2).min(RESPAWN_MAX);
    }

    /// Replaces dead workers whose pause is over, and ends those that are stuck. Called about once a second.
    pub fn tend(&mut self) {
        let now = Instant::now();
        for worker in 0..self.slots.len() {
            let slot = &mut self.slots[worker];
            let busy = !slot.unfinished.is_empty() && slot.states_asked.is_empty();
            if busy && now.duration_since(slot.last_heard) > 10 * self.settings.max_timeout + STUCK_AFTER {
                tracing::error!(worker, "a worker does not answer and is ended");
                if let Some(process) = slot.running.as_mut().and_then(|running| running.process.as_mut()) {
                    // Its socket closes, and the rest follows from that.
                    let _ = process.kill();
                }
                slot.last_heard = now;
            }
            if slot.respawn_at.is_some_and(|at| at <= now)
                && let Err(error) = self.spawn(worker)
            {
                tracing::error!(worker, %error, "failed to start a worker");
                let slot = &mut self.slots[worker];
                slot.respawn_at = Some(now + slot.respawn_wait);
                slot.respawn_wait = (slot.respawn_wait * 2).min(RESPAWN_MAX);
            }
        }
        self.flush();
    }

    fn spawn(&mut self, worker: usize) -> io::Result<()> {
        let (near, far) = StdStream::pair()?;
        near.set_nonblocking(true)?;
        let process = match self.settings.isolate {
            Isolate::Process => Some(self.spawn_process(far)?),
            Isolate::Thread => {
                let state_cache_bytes = self.settings.state_cache_bytes;
                let clock = Clock::start()?;
                std::thread::Builder::new().name(format!("sedge-worker-{worker}")).spawn(move || {
                    if let Err(error) = Worker::new(far, clock, state_cache_bytes).serve() {
                        tracing::debug!(%error, "worker thread ended");
                    }
                })?;
                None
            }
        };
        let slot = &mut self.slots[worker];
        slot.life = slot.life.wrapping_add(1);
        slot.respawn_at = None;
        slot.states_asked.clear();
        slot.last_heard = Instant::now();
        let stream = Rc::new(UnixStream::from_std(near)?);
        let out = Rc::new(RefCell::new(Vec::new()));
        let wake_writer = Rc::new(Notify::new());
        slot.running = Some(Running {
            reader: tokio::task::spawn_local(read(Rc::clone(&stream), Rc::clone(&self.queue), worker, slot.life)),
            writer: tokio::task::spawn_local(write(Rc::clone(&stream), Rc::clone(&out), Rc::clone(&wake_writer))),
            stream,
            out,
            wake_writer,
            process,
        });
        self.queue.max_frame_bytes.set(bounds::frame_bytes(self.functions.iter().map(|it| &it.limits)));
        for function in &self.functions {
            slot.write(&ToWorker::Load {
                function: function.number,
                limits: function.limits,
                settings: function.settings.clone(),
                permits: function.permits.clone(),
                code: function.code.clone(),
            });
        }
        slot.send_next();
        self.flush();
        Ok(())
    }

    /// The worker inherits one socket, as its standard input, and nothing else: no environment, no other file.
    fn spawn_process(&self, socket: StdStream) -> io::Result<Child> {
        Command::new("/proc/self/exe")
            .arg0("sedge")
            .arg("worker")
            .arg("--state-cache-bytes")
            .arg(self.settings.state_cache_bytes.to_string())
            .arg("--memory-bytes")
            .arg(self.settings.memory_bytes.to_string())
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(OwnedFd::from(socket)))
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .spawn()
    }

    /// Ends a worker if it still runs. Returns how a process ended.
    fn stop(&mut self, worker: usize) -> Option<String> {
        let slot = &mut self.slots[worker];
        let mut running = slot.running.take()?;
        slot.life = slot.life.wrapping_add(1);
        running.reader.abort();
        running.writer.abort();
        let process = running.process.as_mut()?;
        let _ = process.kill();
        process.wait().ok().map(|status| status.to_string())
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        for worker in 0..self.slots.len() {
            self.stop(worker);
        }
    }
}

impl Slot {
    fn empty() -> Self {
        Self {
            life: 0,
            running: None,
            unfinished: VecDeque::new(),
            first: 0,
            suspects: VecDeque::new(),
            backlog: VecDeque::new(),
            states_asked: HashSet::new(),
            last_heard: Instant::now(),
            respawn_at: None,
            respawn_wait: RESPAWN_FIRST,
        }
    }

    fn write(&self, frame: &ToWorker) {
        if let Some(running) = &self.running {
            Encoder::new(&mut running.out.borrow_mut()).to_worker(frame);
        }
    }

    fn send(&mut self, job: Job) {
        if self.unfinished.is_empty() {
            self.last_heard = Instant::now();
        }
        let number = self.first + self.unfinished.len() as u64;
        if let Some(running) = &self.running {
            Encoder::new(&mut running.out.borrow_mut()).run(number, &job);
        }
        self.unfinished.push_back(Some(job));
    }

    /// What may go next: a suspect if none is out, the backlog once no suspect is left.
    fn send_next(&mut self) {
        if self.running.is_none() {
            return;
        }
        if let Some((suspect, _)) = self.suspects.front() {
            if self.unfinished.is_empty() {
                let job = suspect.clone();
                self.send(job);
            }
            return;
        }
        while let Some(job) = self.backlog.pop_front() {
            self.send(job);
        }
    }

    fn job(&self, number: u64) -> Option<&Job> {
        self.unfinished.get(usize::try_from(number.checked_sub(self.first)?).ok()?)?.as_ref()
    }

    fn finish(&mut self, number: u64) -> Option<Job> {
        let place = usize::try_from(number.checked_sub(self.first)?).ok()?;
        let done = self.unfinished.get_mut(place)?.take()?;
        while self.unfinished.front().is_some_and(Option::is_none) {
            self.unfinished.pop_front();
            self.first += 1;
        }
        if !self.suspects.is_empty() {
            self.suspects.pop_front();
        }
        Some(done)
    }
}

/// Usually its number is its place.
fn function(functions: &[Loadable], number: u32) -> Option<&Loadable> {
    let at_place = functions.get(number as usize).filter(|it| it.number == number);
    at_place.or_else(|| functions.iter().find(|it| it.number == number))
}

async fn read(stream: Rc<UnixStream>, queue: Rc<Queue>, worker: usize, life: u32) {
    let mut input = BytesMut::with_capacity(READ_BYTES);
    let reason = loop {
        if let Err(error) = stream.readable().await {
            break error.to_string();
        }
        input.reserve(READ_BYTES);
        match stream.try_read_buf(&mut input) {
            Ok(0) => break "closed its socket".to_owned(),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => break error.to_string(),
        }
        let mut frames = queue.frames.borrow_mut();
        let limit = queue.max_frame_bytes.get();
        let malformed = loop {
            // Before room is made for it.
            if let Some(length) = frame_length(&input).filter(|length| *length > limit) {
                break Some(format!("announced a frame of {length} bytes, the limit is {limit}"));
            }
            match split_frame(&mut input) {
                Ok(Some(frame)) => match FromWorker::decode(frame) {
                    Ok(frame) => frames.push_back((worker, life, Said::Frame(frame))),
                    Err(error) => break Some(error.to_string()),
                },
                Ok(None) => break None,
                Err(error) => break Some(error.to_string()),
            }
        };
        drop(frames);
        queue.ready.notify_one();
        if let Some(reason) = malformed {
            break reason;
        }
    };
    queue.frames.borrow_mut().push_back((worker, life, Said::Gone(reason)));
    queue.ready.notify_one();
}

/// Writes what did not go out at once.
async fn write(stream: Rc<UnixStream>, out: Rc<RefCell<Vec<u8>>>, wake: Rc<Notify>) {
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
#[path = "pool_tests.rs"]
mod tests;
