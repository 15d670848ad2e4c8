//! The worker's side: reads jobs, runs them one after the other, writes outcomes. The same loop serves a process and,
//! for the smallest boards, a thread of the daemon.

use std::collections::{HashMap, HashSet, VecDeque};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::Thread;
use std::time::{Duration, Instant};

use bytes::BytesMut;

use super::cache::{ScopeKey, StateCache};
use super::codes;
use super::permits::Permits;
use super::protocol::{Encoder, Job, JobScope, Malformed, ToWorker, split_frame};
use crate::footprint::Footprint;
use crate::message::{Failure, FailureCode, Outcome, Usage, Verdict};
use crate::sandbox::{EPOCH, Function, Sandbox, State, Ticker};

const READ_BYTES: usize = 64 * 1024;

/// Outcomes are sent when there is this much, when a while has passed, or when no job is left.
const SEND_BYTES: usize = 32 * 1024;
const SEND_AFTER: Duration = Duration::from_micros(500);

/// Keys that wait for another run, far more than jobs can be under way. Beyond it, order within a key is not kept.
const MAX_HELD_KEYS: usize = 65_536;

/// Runs until the daemon closes the socket.
pub struct Worker {
    socket: UnixStream,
    /// Where compiled code comes, if not with its frame.
    codes: Option<UnixStream>,
    clock: Clock,
    sandbox: Sandbox,
    /// By number and edition.
    functions: HashMap<(u32, u32), (Function, Permits)>,
    /// Came with one read and has not run yet.
    gathered: Vec<Job>,
    states: StateCache,
    /// Jobs whose state was asked for, and those of the same scope behind them.
    waiting: HashMap<ScopeKey, VecDeque<Job>>,
    /// The scope that each question was about.
    asked: HashMap<u64, ScopeKey>,
    /// Keys whose last job is to be run again: the jobs that were sent behind it must not overtake it.
    held: HashSet<ScopeKey>,
    /// Until the first job: loading functions is the last thing that only starting up needs.
    footprint: Option<Footprint>,
    out: Vec<u8>,
    last_sent: Instant,
}

impl Worker {
    pub fn new(socket: UnixStream, codes: Option<UnixStream>, clock: Clock, state_cache_bytes: usize) -> Self {
        let sandbox = if codes.is_some() { Sandbox::of_sealed_code() } else { Sandbox::new() };
        Self {
            socket,
            codes,
            clock,
            sandbox,
            functions: HashMap::new(),
            gathered: Vec::new(),
            states: StateCache::new(state_cache_bytes),
            waiting: HashMap::new(),
            asked: HashMap::new(),
            held: HashSet::new(),
            footprint: None,
            out: Vec::with_capacity(2 * SEND_BYTES),
            last_sent: Instant::now(),
        }
    }

    /// For a worker that is a process of its own.
    pub fn with_footprint(mut self, footprint: Option<Footprint>) -> Self {
        self.footprint = footprint;
        self
    }

    pub fn serve(mut self) -> io::Result<()> {
        let mut input = BytesMut::with_capacity(READ_BYTES);
        let mut chunk = vec![0; READ_BYTES];
        loop {
            self.clock.pause();
            if read_some(&mut self.socket, &mut chunk, &mut input)? == 0 {
                return Ok(());
            }
            self.clock.run();
            self.last_sent = Instant::now();
            while let Some(frame) = split_frame(&mut input).map_err(invalid)? {
                self.take(ToWorker::decode(frame).map_err(invalid)?)?;
                self.send_if_due()?;
            }
            self.run_gathered()?;
            self.send()?;
            if let Some(footprint) = &self.footprint {
                footprint.give_back();
            }
        }
    }

    /// One function after the other, so that its code and data come from memory once and not for every message: with a
    /// hundred functions a message costs 8 % less. The order of a key's messages stays.
    fn run_gathered(&mut self) -> io::Result<()> {
        let mut jobs = std::mem::take(&mut self.gathered);
        if jobs.iter().any(|job| job.function != jobs[0].function) {
            jobs.sort_by_cached_key(|job| job.function);
        }
        for job in jobs.drain(..) {
            self.accept(job);
            self.send_if_due()?;
        }
        self.gathered = jobs;
        Ok(())
    }

    fn send_if_due(&mut self) -> io::Result<()> {
        if self.out.len() >= SEND_BYTES || !self.out.is_empty() && self.last_sent.elapsed() >= SEND_AFTER {
            self.send()?;
            self.last_sent = Instant::now();
        }
        Ok(())
    }

    fn send(&mut self) -> io::Result<()> {
        self.socket.write_all(&self.out)?;
        self.out.clear();
        Ok(())
    }

    fn take(&mut self, frame: ToWorker) -> io::Result<()> {
        // Whatever else comes is for those behind it.
        if !matches!(frame, ToWorker::Run(_)) {
            self.run_gathered()?;
        }
        match frame {
            ToWorker::Run(job) => {
                self.footprint = None;
                self.gathered.push(job);
            }
            ToWorker::State { job, entries } => self.resume(job, State::from_entries(entries)),
            ToWorker::Load { function, edition, limits, settings, permits, code } => {
                let grants = permits.grants;
                let loaded = match &self.codes {
                    Some(codes) if code.is_empty() => {
                        self.sandbox.load_sealed(&codes::receive(codes)?, limits, grants, settings.into())
                    }
                    _ => self.sandbox.load_granted(&code, limits, grants, settings.into()),
                };
                let error = match loaded {
                    Ok(loaded) => {
                        self.functions.insert((function, edition), (loaded, permits));
                        self.clock.watch(self.sandbox.ticker());
                        None
                    }
                    Err(error) => Some(format!("{:#}", anyhow::Error::from(error))),
                };
                Encoder::new(&mut self.out).loaded(function, edition, error.as_deref());
            }
            // Its state stays: it is what the store has, and the next version may ask for it.
            ToWorker::Unload { function, edition } => {
                self.functions.remove(&(function, edition));
            }
            ToWorker::Forget => {
                self.states.clear();
                self.waiting.clear();
                self.asked.clear();
                self.held.clear();
            }
        }
        Ok(())
    }

    fn accept(&mut self, job: Job) {
        let Some(scope) = scope_key(&job) else {
            self.run(&job, State::default());
            return;
        };
        if let Some(queue) = self.waiting.get_mut(&scope) {
            queue.push_back(job);
            return;
        }
        match self.states.take(&scope) {
            Some(state) => {
                let state = self.run(&job, state);
                self.states.put(scope, state);
            }
            None => {
                Encoder::new(&mut self.out).need_state(job.id);
                self.asked.insert(job.id, scope.clone());
                self.waiting.insert(scope, VecDeque::from([job]));
            }
        }
    }

    fn resume(&mut self, job: u64, mut state: State) {
        let Some(scope) = self.asked.remove(&job) else { return };
        for job in self.waiting.remove(&scope).into_iter().flatten() {
            state = self.run(&job, state);
        }
        self.states.put(scope, state);
    }

    fn run(&mut self, job: &Job, state: State) -> State {
        if !self.held.is_empty() {
            let key = order_key(job);
            if job.resumes {
                self.held.remove(&key);
            } else if self.held.contains(&key) {
                Encoder::new(&mut self.out).held(job.id);
                return state;
            }
        }
        let Some((function, permits)) = self.functions.get(&(job.function, job.edition)) else {
            if job.on_trial {
                self.hold(job);
            }
            let failure = Failure { code: FailureCode::Trap, detail: "the function could not be loaded".to_owned() };
            let outcome = Outcome { verdict: Verdict::Failed(failure), writes: Vec::new(), usage: Usage::default() };
            Encoder::new(&mut self.out).done(job.id, &outcome, &[], 0);
            return state;
        };
        let run = function.invoke_within(&job.message, state, |outputs| permits.check(outputs));
        let runs_again = match &run.outcome.verdict {
            Verdict::Done(_) => false,
            Verdict::Retry { .. } => true,
            Verdict::Failed(failure) => job.on_trial && failure.code.is_misbehaviour(),
        };
        if runs_again {
            self.hold(job);
        }
        Encoder::new(&mut self.out).done(job.id, &run.outcome, &run.log, run.log_lines_dropped);
        run.state
    }

    fn hold(&mut self, job: &Job) {
        if self.held.len() >= MAX_HELD_KEYS {
            self.held.clear();
        }
        self.held.insert(order_key(job));
    }
}

/// What is run in order, state or none.
fn order_key(job: &Job) -> ScopeKey {
    let topic = (job.scope != JobScope::Function).then(|| Arc::clone(&job.message.topic));
    (job.function, topic)
}

fn scope_key(job: &Job) -> Option<ScopeKey> {
    match job.scope {
        JobScope::None => None,
        JobScope::Topic => Some((job.function, Some(Arc::clone(&job.message.topic)))),
        JobScope::Function => Some((job.function, None)),
    }
}

/// By way of `chunk`: most reads bring a few hundred bytes, and copying those is cheaper than making room for all that there
/// may be.
fn read_some(socket: &mut UnixStream, chunk: &mut [u8], input: &mut BytesMut) -> io::Result<usize> {
    loop {
        match socket.read(chunk) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
            Ok(read) => {
                input.extend_from_slice(&chunk[..read]);
                return Ok(read);
            }
        }
    }
}

fn invalid(error: Malformed) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// The thread that moves deadlines forward while a job runs, and sleeps when none does: an idle board has no wake-ups.
#[derive(Clone)]
pub struct Clock {
    shared: Arc<ClockShared>,
    thread: Thread,
}

struct ClockShared {
    running: AtomicBool,
    asleep: AtomicBool,
    ended: AtomicBool,
    ticker: Mutex<Option<Ticker>>,
}

/// Idle this long, the clock stops ticking.
const IDLE_EPOCHS: u32 = 200;

impl Clock {
    /// Starts the thread. In a process this comes before the walls go up, which forbid new threads.
    pub fn start() -> io::Result<Self> {
        let shared = Arc::new(ClockShared {
            running: AtomicBool::new(false),
            asleep: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            ticker: Mutex::new(None),
        });
        let thread = std::thread::Builder::new().name("sedge-clock".into()).stack_size(64 * 1024).spawn({
            let shared = Arc::clone(&shared);
            move || shared.tick()
        })?;
        Ok(Self { shared, thread: thread.thread().clone() })
    }

    fn watch(&self, ticker: Ticker) {
        *self.shared.ticker.lock().unwrap_or_else(PoisonError::into_inner) = Some(ticker);
    }

    fn run(&self) {
        // SeqCst on both flags: either this sees `asleep`, or the thread sees `running` before it sleeps.
        self.shared.running.store(true, Ordering::SeqCst);
        if self.shared.asleep.load(Ordering::SeqCst) {
            self.thread.unpark();
        }
    }

    fn pause(&self) {
        self.shared.running.store(false, Ordering::SeqCst);
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.clock.shared.ended.store(true, Ordering::SeqCst);
        self.clock.thread.unpark();
    }
}

/// Of this process, which is all but the worker's in a process of its own.
fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
}

impl ClockShared {
    fn tick(&self) {
        let mut idle = 0;
        let mut last = (Instant::now(), processor_time());
        let mut run = Duration::ZERO;
        while !self.ended.load(Ordering::SeqCst) {
            std::thread::sleep(EPOCH);
            // A function is charged the time that it ran, not the time that it waited for a processor: on a busy board that
            // would make dead letters of innocent messages. Waiting counts a tenth, so that nothing runs for ever.
            let now = (Instant::now(), processor_time());
            let passed = now.0.duration_since(last.0);
            run += now.1.saturating_sub(last.1).clamp(passed / 10, passed);
            last = now;
            while run >= EPOCH {
                run -= EPOCH;
                if let Some(ticker) = &*self.ticker.lock().unwrap_or_else(PoisonError::into_inner) {
                    ticker.tick();
                }
            }
            if self.running.load(Ordering::SeqCst) {
                idle = 0;
                continue;
            }
            idle += 1;
            if idle >= IDLE_EPOCHS {
                self.asleep.store(true, Ordering::SeqCst);
                while !self.running.load(Ordering::SeqCst) && !self.ended.load(Ordering::SeqCst) {
                    std::thread::park();
                }
                self.asleep.store(false, Ordering::SeqCst);
                idle = 0;
                last = (Instant::now(), processor_time());
            }
        }
    }
}

#[cfg(test)]
#[cfg(feature = "compiler")]
mod tests;
