//! `sedge worker`: the worker process, started by the daemon with its socket as standard input.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use anyhow::Context as _;
use clap::Parser;

use sedge_daemon::worker::clock::Clock;
use sedge_daemon::worker::serve::Worker;
use sedge_sandbox::sandboxing::{self, Descriptors, ProcessLimits};

/// Name of the command, which no help shows.
pub(crate) const NAME: &str = "worker";

#[derive(Debug, Parser)]
pub(crate) struct WorkerArgs {
    #[arg(long)]
    state_cache_bytes: usize,
    #[arg(long)]
    memory_bytes: u64,
    /// Receive compiled code through a socket on standard output
    #[arg(long)]
    codes: bool,
    /// Give way to other processes
    #[arg(long)]
    nice: bool,
}

/// A third of the weight of an ordinary process.
const NICE: i32 = 5;

pub(crate) fn run(args: &WorkerArgs) -> anyhow::Result<()> {
    let socket = std::io::stdin().as_fd().try_clone_to_owned().context("failed to duplicate the daemon's socket")?;
    let codes = args.codes.then(|| std::io::stdout().as_fd().try_clone_to_owned()).transpose();
    let codes = codes.context("failed to duplicate the socket for code")?;
    // For `ps` and `top`.
    let _ = rustix::thread::set_name(c"sedge-worker");
    // Read once from the auxiliary vector, which a sandboxed process cannot do any more.
    let _ = rustix::param::page_size();
    if args.nice {
        let _ = rustix::process::nice(NICE);
    }
    // Threads cannot be started once the process is sandboxed.
    let clock = Clock::start().context("failed to start the worker's clock")?;
    // The limit counts addresses, of which the pools for functions reserve far more than is used.
    let memory_bytes = args.memory_bytes.saturating_add(sedge_sandbox::reserved_bytes());
    let limits = ProcessLimits { memory_bytes, cpu_secs: None };
    let timer = Some(clock.timer());
    sandboxing::enter(
        limits,
        Descriptors { socket: Some(socket.as_fd()), codes: codes.as_ref().map(AsFd::as_fd), timer },
    )?;
    Worker::new(UnixStream::from(socket), codes.map(UnixStream::from), clock, args.state_cache_bytes)
        .serve()
        .context("lost the daemon's socket")
}
