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
use rustix::io::Errno;
use tokio::io::AsyncReadExt as _;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::Notify;

use super::bounds;
use super::codes::{self, Code};
use super::permits::Permits;
use super::protocol::{Encoder, FromWorker, Job, JobScope, ToWorker, frame_length, split_frame};
use super::serve::{Clock, Worker};
use crate::config::Isolate;
use crate::message::{LogLine, Outcome, Scope};
use crate::program;
use crate::sandbox::Limits;
use crate::sandbox::sealed::SealedCode;

/// Bytes read from a worker at once.
const READ_BYTES: usize = 64 * 1024;
/// Jobs that wait for a worker's answer to those before are sent all the same when they are this much.
const GATHER_BYTES: usize = 32 * 1024;
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
    pub edition: u32,
    pub name: Arc<str>,
    pub limits: Limits,
    pub settings: Vec<(String, String)>,
    pub permits: Permits,
    pub code: Code,
}

#[derive(Debug)]
pub enum Event {
    Done {
        token: u64,
        edition: u32,
        outcome: Outcome,
        log: Vec<LogLine>,
        log_lines_dropped: u32,
    },
    /// Answer with [`Pool::provide_state`], from the store, after all that was committed for this scope.
    NeedState {
        request: StateRequest,
        scope: Scope,
    },
    /// The job did not run: one before it in its key is to be run again.
    Held {
        token: u64,
        edition: u32,
    },
    /// The job was running, alone, when its worker died for the second time.
    Crashed {
        token: u64,
        edition: u32,
    },
    /// Every worker has it, or `error` says why one of them has not.
    Loaded {
        function: u32,
        edition: u32,
        error: Option<String>,
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
    loading: Vec<Loading>,
    queue: Rc<Queue>,
    /// What the last frame meant, as far as it was not taken yet.
    events: VecDeque<Event>,
}

/// A version that not every worker has answered for yet.
struct Loading {
    function: u32,
    edition: u32,
    waiting_for: HashSet<usize>,
    error: Option<String>,
    /// How often a worker died before it answered. `None`: it is loaded however often that is.
    deaths: Option<u32>,
}

/// The jobs of a key that were handed out and have not been answered.
#[derive(Debug, PartialEq, Eq)]
pub struct Recalled {
    /// Each of these will still be answered, in order: as held, or as done if it was too late.
    pub outstanding: usize,
    /// They were never sent and never will be, and come after those. With their versions.
    pub tokens: Vec<(u64, u32)>,
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
    unfinished: VecDeque<Option<Sent>>,
    first: u64,
    /// The number of the first job that no flush has sent.
    first_unsent: u64,
    /// It said something since the last flush.
    heard_since: bool,
    /// What is to be sent is more than jobs: the worker waits for it.
    urgent: bool,
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

struct Sent {
    job: Job,
    /// Not to be run any more if its worker dies: it would overtake the one that is to be run again.
    recalled: bool,
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

impl Pool {
    /// Must be called inside a `LocalSet`.
    pub fn start(settings: Settings, functions: Vec<Loadable>) -> io::Result<Self> {
        let slots = (0..settings.count).map(|_| Slot::empty()).collect();
        let loading = functions.iter().map(|function| Loading::new(function, settings.count, None)).collect();
        let mut pool = Self { settings, slots, functions, loading, queue: Rc::default(), events: VecDeque::new() };
        pool.bound_frames();
        for worker in 0..pool.slots.len() {
            pool.spawn(worker)?;
        }
        Ok(pool)
    }

    /// Gives a version to every worker. [`Event::Loaded`] follows; jobs for it may be submitted before. One that is
    /// `expendable` is given up if workers die over it.
    pub fn load(&mut self, function: Loadable, expendable: bool) {
        self.loading.push(Loading::new(&function, self.slots.len(), expendable.then_some(0)));
        for slot in &mut self.slots {
            slot.load(&function);
        }
        self.functions.push(function);
        self.bound_frames();
    }

    fn bound_frames(&self) {
        self.queue.max_frame_bytes.set(bounds::frame_bytes(self.functions.iter().map(|it| &it.limits)));
    }

    /// No job for it is under way or will come.
    pub fn unload(&mut self, function: u32, edition: u32) {
        let is_it = |it: &Loadable| it.number == function && it.edition == edition;
        self.functions.retain(|it| !is_it(it));
        self.loading.retain(|it| (it.function, it.edition) != (function, edition));
        self.bound_frames();
        for slot in &mut self.slots {
            slot.write(&ToWorker::Unload { function, edition });
        }
    }

    /// Takes back what was submitted to a worker for the key of this job, because one before it is to be run again.
    pub fn recall(&mut self, worker: usize, function: u32, topic: Option<&str>) -> Recalled {
        let slot = &mut self.slots[worker];
        let is_of_key = |job: &Job| job.function == function && topic.is_none_or(|topic| *job.message.topic == *topic);
        let mut recalled = Recalled { outstanding: 0, tokens: Vec::new() };
        for sent in slot.unfinished.iter_mut().flatten().filter(|sent| is_of_key(&sent.job)) {
            sent.recalled = true;
            recalled.outstanding += 1;
        }
        // The first suspect is one of the unfinished when it was sent.
        let first = usize::from(!slot.unfinished.is_empty());
        let mut place = 0;
        slot.suspects.retain(|(job, _)| {
            place += 1;
            let back = place > first && is_of_key(job);
            recalled.tokens.extend(back.then_some((job.id, job.edition)));
            !back
        });
        slot.backlog.retain(|job| {
            let back = is_of_key(job);
            recalled.tokens.extend(back.then_some((job.id, job.edition)));
            !back
        });
        recalled
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
        self.events.clear();
        self.tend();
    }

    /// Sends what was submitted, but for jobs to a worker that has not answered since the last ones: they go with the
    /// flush after its answer. So jobs gather while it works, and it is woken for many of them at once when there are
    /// many. What the sockets do not take now follows by itself.
    pub fn flush(&mut self) {
        for slot in &mut self.slots {
            slot.pass_codes();
            if let Some(running) = &slot.running {
                let mut out = running.out.borrow_mut();
                if out.is_empty() || slot.owes_answer() && out.len() < GATHER_BYTES {
                    continue;
                }
                slot.first_unsent = slot.first + slot.unfinished.len() as u64;
                slot.heard_since = false;
                slot.urgent = false;
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

    /// Waits until a worker said something, which [`Pool::next_event`] then tells.
    pub async fn ready(&self) {
        while self.events.is_empty() && self.queue.frames.borrow().is_empty() {
            self.queue.ready.notified().await;
        }
    }

    /// One at a time: what is done about one decides what a recall finds of the others.
    pub fn next_event(&mut self) -> Option<Event> {
        while self.events.is_empty() {
            let (worker, life, said) = self.queue.frames.borrow_mut().pop_front()?;
            self.take(worker, life, said);
        }
        self.events.pop_front()
    }

    fn take(&mut self, worker: usize, life: u32, said: Said) {
        let slot = &mut self.slots[worker];
        if slot.life != life {
            return;
        }
        slot.last_heard = Instant::now();
        slot.heard_since = true;
        match said {
            Said::Frame(FromWorker::Done { job, outcome, log, log_lines_dropped }) => {
                let Some(asked) = slot.job(job) else { return };
                let limits = function(&self.functions, asked.function, asked.edition).map(|it| &it.limits);
                if let Some(Err(excess)) = limits.map(|limits| bounds::check(&outcome, &log, limits)) {
                    return self.condemn(worker, excess.to_string());
                }
                let Some(done) = slot.finish(job) else { return };
                slot.respawn_wait = RESPAWN_FIRST;
                let (token, edition) = (done.id, done.edition);
                self.events.push_back(Event::Done { token, edition, outcome, log, log_lines_dropped });
                slot.send_next();
            }
            Said::Frame(FromWorker::Held { job }) => {
                let Some(held) = slot.finish(job) else { return };
                self.events.push_back(Event::Held { token: held.id, edition: held.edition });
                slot.send_next();
            }
            Said::Frame(FromWorker::NeedState { job }) => {
                let Some(asking) = slot.job(job) else { return };
                let Some(function) = function(&self.functions, asking.function, asking.edition) else { return };
                let topic = (asking.scope == JobScope::Topic).then(|| Arc::clone(&asking.message.topic));
                let scope = Scope { function: Arc::clone(&function.name), topic };
                // Once is enough: a worker that was taken over must not keep the store busy.
                if !slot.states_asked.insert(job) {
                    return;
                }
                self.events.push_back(Event::NeedState { request: StateRequest { worker, life, job }, scope });
            }
            Said::Frame(FromWorker::Loaded { function, edition, error }) => {
                self.loaded(worker, function, edition, error);
            }
            Said::Gone(reason) => {
                let status = self.stop(worker).unwrap_or(reason);
                self.bury(worker, status);
            }
        }
    }

    fn loaded(&mut self, worker: usize, function: u32, edition: u32, error: Option<String>) {
        let is_it = |it: &Loading| (it.function, it.edition) == (function, edition);
        // A worker that was replaced loads again what all of them had.
        let Some(place) = self.loading.iter().position(is_it) else { return };
        let loading = &mut self.loading[place];
        loading.waiting_for.remove(&worker);
        loading.error = loading.error.take().or(error);
        if loading.waiting_for.is_empty() {
            let Loading { error, .. } = self.loading.swap_remove(place);
            self.events.push_back(Event::Loaded { function, edition, error });
        }
    }

    /// A worker died before it answered for a version: once may be bad luck, but one that kills every worker that loads it
    /// must not be given to the next.
    fn blame_loading(&mut self, worker: usize) {
        let mut deadly = Vec::new();
        for loading in self.loading.iter_mut().filter(|it| it.waiting_for.contains(&worker)) {
            let Some(deaths) = &mut loading.deaths else { continue };
            *deaths += 1;
            if *deaths >= DEATHS_ALONE {
                deadly.push((loading.function, loading.edition));
            }
        }
        for (function, edition) in deadly {
            self.unload(function, edition);
            let error = Some("the worker died twice while it loaded this".to_owned());
            self.events.push_back(Event::Loaded { function, edition, error });
        }
    }

    /// Ends a worker whose answer is out of bounds: it is no longer ours.
    fn condemn(&mut self, worker: usize, reason: String) {
        tracing::error!(worker, reason, "a worker is out of bounds and is ended");
        self.stop(worker);
        self.bury(worker, reason);
    }

    fn bury(&mut self, worker: usize, status: String) {
        self.blame(worker);
        self.events.push_back(Event::Died { worker, status });
        self.tend();
    }

    /// Sorts a dead worker's jobs: one that ran alone is at fault, several are suspects.
    fn blame(&mut self, worker: usize) {
        self.blame_loading(worker);
        let slot = &mut self.slots[worker];
        let mut unfinished = Vec::new();
        for sent in std::mem::take(&mut slot.unfinished).into_iter().flatten() {
            if sent.recalled {
                self.events.push_back(Event::Held { token: sent.job.id, edition: sent.job.edition });
                slot.suspects.retain(|(job, _)| job.id != sent.job.id);
            } else {
                unfinished.push(sent.job);
            }
        }
        let alone = !slot.suspects.is_empty();
        if alone && unfinished.is_empty() {
            // It died before the suspect was sent: nobody is to blame yet.
        } else if alone {
            if let Some((job, deaths)) = slot.suspects.pop_front() {
                // Once may be somebody else's doing: the kernel's when memory is short, or a person's.
                if deaths + 1 >= DEATHS_ALONE {
                    self.events.push_back(Event::Crashed { token: job.id, edition: job.edition });
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
        let (codes, far_codes) = match Code::is_passed() {
            true => StdStream::pair().map(|(near, far)| (Some(near), Some(far)))?,
            false => (None, None),
        };
        let process = match self.settings.isolate {
            Isolate::Process => Some(self.spawn_process(far, far_codes)?),
            Isolate::Thread => {
                let state_cache_bytes = self.settings.state_cache_bytes;
                let clock = Clock::start()?;
                std::thread::Builder::new().name(format!("sedge-worker-{worker}")).spawn(move || {
                    if let Err(error) = Worker::new(far, far_codes, clock, state_cache_bytes).serve() {
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
        slot.first_unsent = slot.first;
        slot.heard_since = false;
        slot.last_heard = Instant::now();
        let (from_worker, to_worker) = UnixStream::from_std(near)?.into_split();
        let stream = Rc::new(to_worker);
        let out = Rc::new(RefCell::new(Vec::new()));
        let wake_writer = Rc::new(Notify::new());
        slot.running = Some(Running {
            reader: tokio::task::spawn_local(read(from_worker, Rc::clone(&self.queue), worker, slot.life)),
            writer: tokio::task::spawn_local(write(Rc::clone(&stream), Rc::clone(&out), Rc::clone(&wake_writer))),
            stream,
            out,
            wake_writer,
            codes,
            codes_waiting: VecDeque::new(),
            process,
        });
        for function in &self.functions {
            slot.load(function);
        }
        slot.send_next();
        self.flush();
        Ok(())
    }

    /// The worker inherits one socket, as its standard input, and the one that code comes by, as its standard output.
    /// Nothing else: no environment, no other file.
    fn spawn_process(&self, socket: StdStream, codes: Option<StdStream>) -> io::Result<Child> {
        let mut worker = Command::new(program::own());
        worker
            .arg0("sedge")
            .arg("worker")
            .arg("--state-cache-bytes")
            .arg(self.settings.state_cache_bytes.to_string())
            .arg("--memory-bytes")
            .arg(self.settings.memory_bytes.to_string());
        if codes.is_some() {
            worker.arg("--codes");
        }
        worker
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(OwnedFd::from(socket)))
            .stdout(codes.map_or_else(Stdio::null, |codes| OwnedFd::from(codes).into()))
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

impl Loading {
    fn new(function: &Loadable, workers: usize, deaths: Option<u32>) -> Self {
        let Loadable { number, edition, .. } = *function;
        Self { function: number, edition, waiting_for: (0..workers).collect(), error: None, deaths }
    }
}

impl Loadable {
    /// Code that was passed is not in it.
    fn to_frame(&self) -> ToWorker {
        ToWorker::Load {
            function: self.number,
            edition: self.edition,
            limits: self.limits,
            settings: self.settings.clone(),
            permits: self.permits.clone(),
            code: match &self.code {
                Code::Sealed(_) => Bytes::new(),
                Code::Plain(code) => code.clone(),
            },
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
            first_unsent: 0,
            heard_since: false,
            urgent: false,
            suspects: VecDeque::new(),
            backlog: VecDeque::new(),
            states_asked: HashSet::new(),
            last_heard: Instant::now(),
            respawn_at: None,
            respawn_wait: RESPAWN_FIRST,
        }
    }

    fn write(&mut self, frame: &ToWorker) {
        self.urgent = true;
        if let Some(running) = &self.running {
            Encoder::new(&mut running.out.borrow_mut()).to_worker(frame);
        }
    }

    fn load(&mut self, function: &Loadable) {
        if let (Code::Sealed(code), Some(running)) = (&function.code, &mut self.running) {
            running.codes_waiting.push_back(Arc::clone(code));
            self.pass_codes();
        }
        self.write(&function.to_frame());
    }

    /// As much as the socket takes; the worker empties it as it comes to the frames.
    fn pass_codes(&mut self) {
        let Some(Running { codes: Some(codes), codes_waiting, .. }) = &mut self.running else { return };
        while let Some(code) = codes_waiting.front() {
            match codes::send(codes, code) {
                Ok(()) => {}
                Err(Errno::AGAIN | Errno::TOOMANYREFS) => return,
                // The worker waits for it in vain, and is replaced for being stuck.
                Err(error) => tracing::error!(%error, "compiled code could not be passed to a worker"),
            }
            codes_waiting.pop_front();
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
        self.unfinished.push_back(Some(Sent { job, recalled: false }));
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

    /// Whether something will come from the worker, without anything more being sent to it.
    fn owes_answer(&self) -> bool {
        !self.heard_since && !self.urgent && self.first < self.first_unsent
    }

    fn job(&self, number: u64) -> Option<&Job> {
        self.unfinished.get(usize::try_from(number.checked_sub(self.first)?).ok()?)?.as_ref().map(|sent| &sent.job)
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
        Some(done.job)
    }
}

/// Where no function was ever replaced, its number is its place.
fn function(functions: &[Loadable], number: u32, edition: u32) -> Option<&Loadable> {
    let is_it = |it: &&Loadable| it.number == number && it.edition == edition;
    functions.get(number as usize).filter(is_it).or_else(|| functions.iter().find(is_it))
}

async fn read(mut stream: OwnedReadHalf, queue: Rc<Queue>, worker: usize, life: u32) {
    let mut input = BytesMut::with_capacity(READ_BYTES);
    let reason = loop {
        // What was read before is still in use in part, so room is a new block: not one for every few hundred bytes.
        if input.capacity() - input.len() < READ_BYTES / 4 {
            input.reserve(READ_BYTES);
        }
        // Knows from a read that did not fill the buffer that the socket is empty; `try_read_buf` would ask once more.
        match stream.read_buf(&mut input).await {
            Ok(0) => break "closed its socket".to_owned(),
            Ok(_) => {}
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
#[path = "pool_tests.rs"]
mod tests;
