//! The thread of the deployer, which blocks on the disk. Each compilation runs on a thread of its own.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use flume::{Receiver, RecvTimeoutError, Sender, TrySendError};
use tokio::sync::mpsc;

use super::shell::{Shell, compile};
use sedge_core::deploy::interface::{Action, CompilerError, Request};
use sedge_core::deploy::stats::DeployStats;
use sedge_core::deploy::steps::{MAX_EVENTS, MAX_MESSAGES};

const ACTIONS: usize = 256;
const TICK: Duration = Duration::from_secs(1);
/// The same interval once no request has come for a while.
const IDLE_TICK: Duration = Duration::from_secs(10);
const IDLE_AFTER: Duration = Duration::from_secs(20);

/// Handle of the thread, which ends when the last clone is dropped.
#[derive(Clone, Debug)]
pub(crate) struct DeployHandle(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    requests: Sender<Request>,
    stats: Arc<DeployStats>,
    flood: Arc<Flood>,
}

#[derive(Debug, Default)]
struct Flood {
    /// Messages in the channel.
    waiting: AtomicUsize,
    has_dropped: AtomicBool,
    is_over: AtomicBool,
}

/// Runs a deployer that has booted. The caller carries the actions out in order.
pub(crate) fn spawn(shell: Shell) -> io::Result<(DeployHandle, mpsc::Receiver<Action>)> {
    let (requests, received) = shell.requests.clone();
    let (actions, decided) = mpsc::channel(ACTIONS);
    let flood = Arc::new(Flood::default());
    let stats = Arc::clone(shell.stats());
    let thread = DeployThread { shell, requests: requests.clone(), actions, flood: Arc::clone(&flood) };
    std::thread::Builder::new().name("deploy".into()).spawn(move || thread.run(&received))?;
    Ok((DeployHandle(Arc::new(Shared { requests, stats, flood })), decided))
}

impl DeployHandle {
    /// Hands a message under the topics of orders or chunks over. Never blocks: if too many wait, the message is dropped
    /// and fetched again later. It may be acknowledged in both cases.
    pub(crate) fn deliver(&self, topic: &str, payload: Bytes) {
        let Shared { flood, stats, .. } = &*self.0;
        if flood.waiting.fetch_add(1, Relaxed) >= MAX_MESSAGES {
            flood.waiting.fetch_sub(1, Relaxed);
            flood.has_dropped.store(true, Relaxed);
            stats.dropped();
            return;
        }
        self.send(Request::Message { topic: topic.into(), payload });
    }

    /// Sends a request that is not a message. Never blocks.
    pub(crate) fn send(&self, request: Request) {
        match self.0.requests.try_send(request) {
            Ok(()) => {}
            Err(TrySendError::Full(request)) => {
                tracing::error!(?request, "the deploy thread is {MAX_EVENTS} requests behind; this one is lost");
            }
            Err(TrySendError::Disconnected(_)) => tracing::error!("the deploy thread has ended"),
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.flood.is_over.store(true, Relaxed);
        // Wakes the thread.
        let _ = self.requests.try_send(Request::Tick);
    }
}

struct DeployThread {
    shell: Shell,
    /// For results of the compiler.
    requests: Sender<Request>,
    actions: mpsc::Sender<Action>,
    flood: Arc<Flood>,
}

impl DeployThread {
    fn run(mut self, received: &Receiver<Request>) {
        let mut is_synced = sedge_sandbox::clock::clock_synced();
        let mut now = sedge_sandbox::clock::now(is_synced);
        let mut next_tick = now.monotonic + TICK;
        let mut last_request = now.monotonic;
        loop {
            let request = match received.recv_timeout(next_tick.saturating_duration_since(now.monotonic)) {
                Ok(request) => Some(request),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            if self.flood.is_over.load(Relaxed) {
                return;
            }
            if matches!(request, Some(Request::Message { .. })) {
                self.flood.waiting.fetch_sub(1, Relaxed);
            }
            now = sedge_sandbox::clock::now(is_synced);
            if request.is_some() {
                last_request = now.monotonic;
                next_tick = next_tick.min(now.monotonic + TICK);
            }
            let is_tick = now.monotonic >= next_tick;
            if is_tick {
                let is_idle = now.monotonic.duration_since(last_request) >= IDLE_AFTER;
                next_tick = now.monotonic + if is_idle { IDLE_TICK } else { TICK };
                is_synced = sedge_sandbox::clock::clock_synced();
                now.synced = is_synced;
            }
            let dropped = self.flood.has_dropped.swap(false, Relaxed).then_some(Request::Dropped);
            for request in request.into_iter().chain(dropped).chain(is_tick.then_some(Request::Tick)) {
                self.shell.deployer.handle(request, now);
            }
            while let Some(action) = self.shell.poll(now) {
                if let Some(action) = self.carry_out(action)
                    && self.actions.blocking_send(action).is_err()
                {
                    return;
                }
            }
        }
    }

    /// Starts a compilation; returns any other action.
    fn carry_out(&self, action: Action) -> Option<Action> {
        match action {
            Action::Compile(compilation) => {
                let (compiler, requests) = (Arc::clone(&self.shell.compiler), self.requests.clone());
                let (function, edition) = (Arc::clone(&compilation.function), compilation.edition);
                let work = move || {
                    // Fails only when the daemon ends.
                    let _ = requests.try_send(compile(compilation, &*compiler));
                };
                if let Err(error) = std::thread::Builder::new().name("compile".into()).spawn(work) {
                    let result = Err(CompilerError::Run(error));
                    let _ = self.requests.try_send(Request::Compiled { function, edition, result });
                }
                None
            }
            action => Some(action),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::deploy::testing::board;
    use sedge_core::deploy::TrialEvent;
    use sedge_core::deploy::envelope::SignedEnvelope;
    use sedge_core::deploy::payload::Module;
    use sedge_core::deploy::report::{DeployState, Report};
    use sedge_core::deploy::topics::Topics;
    use sedge_core::isa::Class;
    use sedge_core::message::Digest;
    use sedge_sandbox::compiler::CompileBackend;

    struct Copy;

    impl CompileBackend for Copy {
        fn cached(&self, _: &Digest, _: Class) -> Option<Bytes> {
            None
        }

        fn compile(&self, _: &Digest, wasm: &[u8], _: Class) -> Result<Bytes, CompilerError> {
            Ok(Bytes::copy_from_slice(wasm))
        }

        fn retain(&self, _: &BTreeSet<Digest>) {}
    }

    fn start() -> (tempfile::TempDir, DeployHandle, mpsc::Receiver<Action>) {
        let dir = tempfile::tempdir().unwrap();
        let settings = board::settings(&[("ops", &board::key())]);
        let path = dir.path().join("deploy");
        let (shell, versions) =
            Shell::open(&path, settings, Vec::new(), Arc::new(Copy), sedge_sandbox::clock::now(true)).unwrap();
        assert!(versions.is_empty());
        let (handle, actions) = spawn(shell).unwrap();
        (dir, handle, actions)
    }

    fn until<T>(actions: &mut mpsc::Receiver<Action>, mut found: impl FnMut(Action) -> Option<T>) -> T {
        loop {
            let action = actions.blocking_recv().expect("the thread runs");
            if let Some(value) = found(action) {
                return value;
            }
        }
    }

    #[test]
    fn a_push_goes_through_the_thread() {
        let (_dir, handle, mut actions) = start();
        handle.send(Request::Connected);
        let wasm = board::module(1);
        let mut order = board::install(&board::manifest(1, ""), &wasm);
        (order.issued_at_ms, order.expires_at_ms) =
            (sedge_sandbox::clock::now_ms(), sedge_sandbox::clock::now_ms() + 3_600_000);
        let envelope = SignedEnvelope::sign(&order.to_json(), &[&board::key()]).to_json();
        handle.deliver("sedge/pump-3/deploy/warm", envelope.into());
        until(&mut actions, |action| matches!(action, Action::Fetch { .. }).then_some(()));
        let module = Module::of(&wasm, board::CHUNK);
        for index in 0..module.chunks.len() as u32 {
            let range = module.range(index);
            let chunk = Bytes::copy_from_slice(&wasm[range.start as usize..range.end as usize]);
            handle.deliver(&Topics::new("sedge").blob(&module.digest, index), chunk);
        }
        let version = until(&mut actions, |action| match action {
            Action::Start(version) => Some(version),
            _ => None,
        });
        assert_eq!(version.code.bytes(), wasm);
        let edition = version.edition;
        for event in [TrialEvent::Ready, TrialEvent::Passed] {
            handle.send(Request::Trial { function: "warm".into(), edition, event });
        }
        until(&mut actions, |action| match action {
            Action::Report { payload, .. } => {
                (Report::parse(&payload).unwrap().state == DeployState::Active).then_some(())
            }
            _ => None,
        });
        drop(handle);
        while actions.blocking_recv().is_some() {}
    }

    #[test]
    fn a_flood_is_dropped_and_fetched_again() {
        let (_dir, handle, mut actions) = start();
        // The thread blocks while its actions are not received, so it cannot keep up.
        for n in 0..20_000 {
            handle.deliver(&format!("sedge/pump-3/deploy/f{n}"), Bytes::from_static(b"junk"));
        }
        let dropped = handle.0.stats.messages_dropped();
        assert!(dropped > 0 && handle.0.flood.waiting.load(Relaxed) <= MAX_MESSAGES, "{dropped} dropped");
        until(&mut actions, |action| matches!(action, Action::FetchOrders).then_some(()));
    }
}
