//! `sedge worker`: started by the daemon, never by hand. Standard input is its socket, standard output the one that passes
//! compiled code.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use anyhow::Context as _;
use clap::Args;

use crate::footprint::Footprint;
use crate::worker::sandboxing::{self, ProcessLimits};
use crate::worker::serve::{Clock, Worker};

#[derive(Debug, Args)]
pub struct WorkerArgs {
    #[arg(long)]
    state_cache_bytes: usize,
    #[arg(long)]
    memory_bytes: u64,
    /// Compiled code comes by standard output
    #[arg(long)]
    codes: bool,
}

pub fn run(args: &WorkerArgs) -> anyhow::Result<()> {
    let socket = std::io::stdin().as_fd().try_clone_to_owned().context("failed to take the daemon's socket")?;
    let codes = args.codes.then(|| std::io::stdout().as_fd().try_clone_to_owned()).transpose();
    let codes = codes.context("failed to take the socket for code")?;
    // As `ps` and `top` show it.
    let _ = rustix::thread::set_name(c"sedge-worker");
    // The clock starts a thread, which the sandbox forbids.
    let clock = Clock::start().context("failed to start the worker's clock")?;
    // Inside the sandbox there are no files to read.
    let footprint = Footprint::of_this_process().ok();
    let limits = ProcessLimits { memory_bytes: args.memory_bytes, cpu_secs: None };
    sandboxing::enter(limits, Some(socket.as_fd()), codes.as_ref().map(AsFd::as_fd))?;
    Worker::new(UnixStream::from(socket), codes.map(UnixStream::from), clock, args.state_cache_bytes)
        .with_footprint(footprint)
        .serve()
        .context("the daemon's socket failed")
}
