//! The worker's loop: reads jobs, runs them one after the other, writes outcomes. It runs in a process of its own, or with
//! `isolate = "thread"` on a thread of the daemon.

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::{BuildHasher as _, RandomState};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;

use super::cache::{ScopeKey, StateCache};
use super::clock::Clock;
use super::protocol::{Encoder, FromWorker, Job, JobScope, Malformed, ToWorker, split_frame};
use super::settings::TopicSettings;
use crate::footprint;
use sedge_core::message::{Failure, FailureCode, Outcome, Verdict};
use sedge_core::permits::Permits;
use sedge_sandbox::{Draws, Function, Sandbox, SandboxError, ScopeState, codes};

const READ_BYTES: usize = 64 * 1024;

/// Outcomes are sent when this much is buffered, when `SEND_AFTER` has passed, or when no job is left.
const SEND_BYTES: usize = 32 * 1024;
const SEND_AFTER: Duration = Duration::from_micros(500);

/// Pause before a function is loaded again for which there was no memory.
const LOAD_AGAIN_AFTER: Duration = Duration::from_millis(100);

/// Keys that may be held, far more than jobs can be in flight. Beyond it, order within a key is not kept.
const MAX_HELD_KEYS: usize = 65_536;

/// Runs jobs until the daemon closes the socket.
pub struct Worker {
    socket: UnixStream,
    /// Passes compiled code as sealed files. `None` where code comes in the frame.
    codes: Option<UnixStream>,
    clock: Clock,
    sandbox: Sandbox,
    /// Why the last engine for scripts cannot be used.
    engine_error: Option<String>,
    /// By number and edition.
    functions: HashMap<(u32, u32), Loaded>,
    /// Jobs of the last read that have not run yet.
    gathered: Vec<Job>,
    states: StateCache,
    /// Jobs that wait for the state of their scope, in order.
    waiting: HashMap<ScopeKey, VecDeque<Job>>,
    /// Scope that each job in `NeedState` asked about.
    asked: HashMap<u64, ScopeKey>,
    /// Keys whose last job runs again. Jobs sent after it must not overtake it.
    held: HashSet<(u64, u64)>,
    /// Make a key of any length one of fixed size.
    hashers: [RandomState; 2],
    has_run: bool,
    out: Vec<u8>,
    last_sent: Instant,
}

/// A version that can run.
struct Loaded {
    function: Function,
    permits: Permits,
    settings: TopicSettings,
}

impl Worker {
    pub fn new(socket: UnixStream, codes: Option<UnixStream>, clock: Clock, state_cache_bytes: usize) -> Self {
        let sandbox = if codes.is_some() { Sandbox::of_sealed_code() } else { Sandbox::new() };
        Self {
            socket,
            codes,
            clock,
            sandbox,
            engine_error: None,
            functions: HashMap::new(),
            gathered: Vec::new(),
            states: StateCache::new(state_cache_bytes),
            waiting: HashMap::new(),
            asked: HashMap::new(),
            held: HashSet::new(),
            hashers: Default::default(),
            has_run: false,
            out: Vec::with_capacity(2 * SEND_BYTES),
            last_sent: Instant::now(),
        }
    }

    pub fn serve(mut self) -> io::Result<()> {
        let mut input = BytesMut::with_capacity(READ_BYTES);
        let mut chunk = vec![0; READ_BYTES];
        loop {
            self.clock.disarm();
            if read_some(&mut self.socket, &mut chunk, &mut input)? == 0 {
                return Ok(());
            }
            self.clock.arm();
            self.last_sent = Instant::now();
            while let Some(frame) = split_frame(&mut input).map_err(invalid)? {
                self.handle_frame(ToWorker::decode(frame).map_err(invalid)?)?;
                self.send_if_due()?;
            }
            self.run_gathered()?;
            self.send()?;
            // Loading functions is the last part of starting up.
            if !self.has_run {
                footprint::release();
            }
        }
    }

    /// Runs jobs grouped by function, which keeps the function's code in cache: with a hundred functions a message costs
    /// 8 % less. The sort is stable, so each key keeps its order.
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

    fn handle_frame(&mut self, frame: ToWorker) -> io::Result<()> {
        // Every other frame concerns only the jobs sent after it.
        if !matches!(frame, ToWorker::Run(..)) {
            self.run_gathered()?;
        }
        match frame {
            ToWorker::Run(number, job) => {
                self.has_run = true;
                self.gathered.push(Job { id: number, ..job });
            }
            ToWorker::State { job, entries } => self.resume(job, ScopeState::from_entries(entries)),
            ToWorker::Engine { class, code } => {
                let added = match &self.codes {
                    Some(codes) if code.is_empty() => {
                        self.sandbox.add_sealed_script_engine(class, &codes::receive(codes)?)
                    }
                    _ => self.sandbox.add_script_engine(class, &code),
                };
                // The top level of the first script has a deadline, too.
                self.clock.watch(self.sandbox.ticker());
                // The scripts, which come next, are answered with this.
                self.engine_error = added.err().map(|error| format!("{:#}", anyhow::Error::from(error)));
            }
            ToWorker::Load { function, edition, name, limits, settings, permits, code } => {
                let sealed = match &self.codes {
                    Some(codes) if code.is_empty() => Some(codes::receive(codes)?),
                    _ => None,
                };
                let settings = TopicSettings::new(*settings);
                let mut load = || match &sealed {
                    Some(sealed) => {
                        self.sandbox.load_sealed(sealed, limits, permits.grants, Arc::clone(settings.all()))
                    }
                    None => self.sandbox.load(&code, limits, permits.grants, Arc::clone(settings.all())),
                };
                // Memory that is short now may be there later.
                let loaded = load().or_else(|error| match error.is_of_this_host() {
                    true => {
                        std::thread::sleep(LOAD_AGAIN_AFTER);
                        load()
                    }
                    false => Err(error),
                });
                let error = match loaded {
                    Ok(loaded) => {
                        let loaded = Loaded { function: loaded.named(name.into()), permits, settings };
                        self.functions.insert((function, edition), loaded);
                        self.clock.watch(self.sandbox.ticker());
                        None
                    }
                    Err(SandboxError::NoScriptEngine) if self.engine_error.is_some() => self.engine_error.clone(),
                    Err(error) => Some(format!("{:#}", anyhow::Error::from(error))),
                };
                Encoder::new(&mut self.out).encode_from_worker(&FromWorker::Loaded { function, edition, error });
            }
            ToWorker::Set { change, settings } => {
                for (function, edition, settings) in settings {
                    if let Some(loaded) = self.functions.get_mut(&(function, edition)) {
                        loaded.settings = TopicSettings::new(settings);
                    }
                }
                Encoder::new(&mut self.out).encode_from_worker(&FromWorker::Set { change });
            }
            // State stays cached: it equals the store's, and the next edition may need it.
            ToWorker::Unload { function, edition } => {
                self.functions.remove(&(function, edition));
            }
            ToWorker::Forget { function, topics } => self.states.forget(function, topics),
        }
        Ok(())
    }

    fn accept(&mut self, job: Job) {
        let Some(scope) = scope_key(&job) else {
            self.run(&job, ScopeState::default());
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

    fn resume(&mut self, job: u64, mut state: ScopeState) {
        let Some(scope) = self.asked.remove(&job) else { return };
        for job in self.waiting.remove(&scope).into_iter().flatten() {
            state = self.run(&job, state);
        }
        self.states.put(scope, state);
    }

    fn run(&mut self, job: &Job, state: ScopeState) -> ScopeState {
        if !self.held.is_empty() {
            let key = self.held_key(job);
            if job.resumes {
                self.held.remove(&key);
            } else if self.held.contains(&key) {
                Encoder::new(&mut self.out).held(job.id);
                return state;
            }
        }
        let Some(Loaded { function, permits, settings }) = self.functions.get_mut(&(job.function, job.edition)) else {
            if job.on_trial {
                self.hold(job);
            }
            let failure = Failure { code: FailureCode::Trap, detail: "the function could not be loaded".to_owned() };
            let outcome = Outcome::failed(failure);
            Encoder::new(&mut self.out).done(job.id, &outcome, &[], 0);
            return state;
        };
        let settings = settings.of(&job.message.shared_state_topic());
        let draws = if job.keeps_draws { Draws::kept() } else { Draws::Real };
        let permitted = |outputs: &[_]| permits.check(outputs);
        let run = function.invoke_drawing(settings, &job.message, state, draws, permitted);
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
        let key = self.held_key(job);
        self.held.insert(key);
    }

    /// Stands for the key within which jobs run in order, with or without state.
    fn held_key(&self, job: &Job) -> (u64, u64) {
        let topic = (job.scope != JobScope::Function).then_some(job.message.state_topic());
        let [one, other] = &self.hashers;
        (one.hash_one((job.function, topic)), other.hash_one((job.function, topic)))
    }
}

/// Returns the owner of the job's state.
fn scope_key(job: &Job) -> Option<ScopeKey> {
    match job.scope {
        JobScope::None => None,
        JobScope::Topic => Some((job.function, Some(job.message.shared_state_topic()))),
        JobScope::Function => Some((job.function, None)),
    }
}

/// Reads once, through `chunk`: most reads bring a few hundred bytes, and copying them is cheaper than reserving
/// `READ_BYTES` in `input` each time.
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

impl Drop for Worker {
    fn drop(&mut self) {
        self.clock.end();
    }
}

#[cfg(test)]
#[cfg(feature = "compiler")]
mod tests;
