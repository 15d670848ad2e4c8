//! The second wall: what a worker or compile process may still do once it is up. No files, no network, no new processes
//! or privileges, bounded memory. A function that breaks out of the sandbox finds itself in an empty limits.

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "arm"))]
mod filter;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "arm"))]
mod syscalls;

use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// What a walled process may use.
#[derive(Clone, Copy, Debug)]
pub struct ProcessLimits {
    pub memory_bytes: u64,
    pub cpu_secs: Option<u64>,
}

#[derive(Debug, thiserror::Error)]
pub enum SandboxingError {
    #[error("failed to limit {what}")]
    Limit { what: &'static str, source: io::Error },
    #[error("failed to forbid new privileges")]
    Privileges(#[source] io::Error),
    #[error("failed to install the system call filter")]
    Filter(#[source] seccompiler::Error),
}

/// Whether the kernel can filter system calls. One that cannot leaves the other walls standing, and whoever starts walled
/// processes says so.
pub fn has_filter() -> bool {
    filter::is_available()
}

/// Closes the process in, for good, with all its threads. Comes last: afterwards nothing can be opened. Besides the three
/// standard streams only `socket` can be used, whatever else the process has inherited, and by `codes` files come, which can be
/// mapped and nothing else. No memory that can be written can become executable.
pub fn enter(
    limits: ProcessLimits,
    socket: Option<BorrowedFd<'_>>,
    codes: Option<BorrowedFd<'_>>,
) -> Result<(), SandboxingError> {
    raise_oom_score();
    limit("memory", Resource::As, limits.memory_bytes)?;
    // Reading and writing go on through what is open; nothing else can be opened, and no file can grow.
    limit("file size", Resource::Fsize, 0)?;
    limit("core dumps", Resource::Core, 0)?;
    if let Some(seconds) = limits.cpu_secs {
        // The first of the two says why it ends; the kernel also kills for want of memory.
        limit_between("processor time", Resource::Cpu, seconds, seconds + 1)?;
    }
    rustix::thread::set_no_new_privs(true).map_err(|error| SandboxingError::Privileges(error.into()))?;
    restrict_with_landlock();
    limit("open files", Resource::Nofile, codes.map_or(Ok(0), one_more_than_open)?)?;
    limit("processes", Resource::Nproc, 0)?;
    if filter::is_available() {
        filter::install(socket, codes).map_err(SandboxingError::Filter)?;
    }
    Ok(())
}

fn limit(what: &'static str, resource: Resource, value: u64) -> Result<(), SandboxingError> {
    limit_between(what, resource, value, value)
}

/// A limit that the whole service has already stays where it is lower.
fn limit_between(what: &'static str, resource: Resource, current: u64, maximum: u64) -> Result<(), SandboxingError> {
    let most = getrlimit(resource).maximum.unwrap_or(u64::MAX);
    setrlimit(resource, Rlimit { current: Some(current.min(most)), maximum: Some(maximum.min(most)) })
        .map_err(|error| SandboxingError::Limit { what, source: error.into() })
}

/// Where memory runs out, the kernel is to end a process that the daemon can replace, and not the daemon.
fn raise_oom_score() {
    if let Err(error) = fs::write("/proc/self/oom_score_adj", "800") {
        tracing::debug!(%error, "the kernel is not told whom to end first when memory runs out");
    }
}

/// A file that comes takes the lowest number that is free.
fn one_more_than_open(any: BorrowedFd<'_>) -> Result<u64, SandboxingError> {
    let free = any.try_clone_to_owned().map_err(|source| SandboxingError::Limit { what: "open files", source })?;
    Ok(u64::from(free.as_raw_fd().cast_unsigned()) + 1)
}

/// Landlock takes files, network and signals to others away even where there is no system call filter. Not every board's
/// kernel has it, or all of it, and the filter below refuses the same, so its absence is no error.
fn restrict_with_landlock() {
    use landlock::{ABI, Access, AccessFs, AccessNet, Ruleset, RulesetAttr, Scope};
    let enclosed = Ruleset::default()
        .handle_access(AccessFs::from_all(ABI::V4))
        .and_then(|ruleset| ruleset.handle_access(AccessNet::from_all(ABI::V4)))
        .and_then(|ruleset| ruleset.scope(Scope::from_all(ABI::V6)))
        .and_then(Ruleset::create)
        .and_then(|ruleset| ruleset.restrict_self());
    if let Err(error) = enclosed {
        tracing::debug!(%error, "landlock is not available");
    }
}

/// Elsewhere the other walls stand alone: the limits, no new privileges, and landlock.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "arm")))]
mod filter {
    use std::os::fd::BorrowedFd;

    pub fn is_available() -> bool {
        false
    }

    pub fn install(_: Option<BorrowedFd<'_>>, _: Option<BorrowedFd<'_>>) -> Result<(), seccompiler::Error> {
        Ok(())
    }
}

#[cfg(test)]
#[cfg(feature = "compiler")]
mod tests;
