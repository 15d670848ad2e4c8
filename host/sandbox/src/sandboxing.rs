//! Process sandbox of workers and of `sedge compile`: no files, no network, no new processes or privileges, bounded memory.
//! It contains a function that has escaped from its WebAssembly sandbox.

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "arm"))]
mod filter;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "arm"))]
mod syscalls;

use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Resources of a sandboxed process.
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

/// Returns whether the kernel can filter system calls. Without a filter the limits, no new privileges and Landlock remain.
pub fn has_filter() -> bool {
    filter::is_available()
}

/// What a sandboxed process uses beside its standard streams.
#[derive(Clone, Copy, Debug, Default)]
pub struct Descriptors<'a> {
    pub socket: Option<BorrowedFd<'a>>,
    /// Socket over which compiled code comes, as sealed files.
    pub codes: Option<BorrowedFd<'a>>,
    /// A timerfd, read and set.
    pub timer: Option<BorrowedFd<'a>>,
}

/// Sandboxes the process with all its threads, irrevocably. Afterwards nothing can be opened.
///
/// Only the standard streams and the named descriptors can be used, whatever else was inherited. Files received over `codes`
/// can be mapped and nothing else. Writable memory can never become executable.
pub fn enter(limits: ProcessLimits, open: Descriptors<'_>) -> Result<(), SandboxingError> {
    raise_oom_score();
    limit("memory", Resource::As, limits.memory_bytes)?;
    // Sockets are not affected; no file can grow.
    limit("file size", Resource::Fsize, 0)?;
    limit("core dumps", Resource::Core, 0)?;
    if let Some(seconds) = limits.cpu_secs {
        // The soft limit ends the process with SIGXCPU, which tells it from a kill for lack of memory.
        limit_between("processor time", Resource::Cpu, seconds, seconds + 1)?;
    }
    rustix::thread::set_no_new_privs(true).map_err(|error| SandboxingError::Privileges(error.into()))?;
    restrict_with_landlock();
    limit("open files", Resource::Nofile, open.codes.map_or(Ok(0), one_more_than_open)?)?;
    limit("processes", Resource::Nproc, 0)?;
    if filter::is_available() {
        filter::install(open).map_err(SandboxingError::Filter)?;
    }
    Ok(())
}

fn limit(what: &'static str, resource: Resource, value: u64) -> Result<(), SandboxingError> {
    limit_between(what, resource, value, value)
}

/// Never raises a limit that the service already has.
fn limit_between(what: &'static str, resource: Resource, current: u64, maximum: u64) -> Result<(), SandboxingError> {
    let most = getrlimit(resource).maximum.unwrap_or(u64::MAX);
    setrlimit(resource, Rlimit { current: Some(current.min(most)), maximum: Some(maximum.min(most)) })
        .map_err(|error| SandboxingError::Limit { what, source: error.into() })
}

/// Raises the OOM score, so that the kernel kills this process before the daemon, which can replace it.
fn raise_oom_score() {
    if let Err(error) = fs::write("/proc/self/oom_score_adj", "800") {
        tracing::debug!(%error, "failed to set oom_score_adj");
    }
}

/// Returns the limit of open files that leaves room for one more: a received file gets the lowest free number.
fn one_more_than_open(any: BorrowedFd<'_>) -> Result<u64, SandboxingError> {
    let free = any.try_clone_to_owned().map_err(|source| SandboxingError::Limit { what: "open files", source })?;
    Ok(u64::from(free.as_raw_fd().cast_unsigned()) + 1)
}

/// Removes access to files, network and other processes with Landlock, also where the kernel has no system call filter.
/// Its absence is not an error: many boards' kernels lack it, and the filter refuses the same calls.
fn restrict_with_landlock() {
    use landlock::{ABI, Access, AccessFs, AccessNet, Ruleset, RulesetAttr, Scope};
    let restricted = Ruleset::default()
        .handle_access(AccessFs::from_all(ABI::V4))
        .and_then(|ruleset| ruleset.handle_access(AccessNet::from_all(ABI::V4)))
        .and_then(|ruleset| ruleset.scope(Scope::from_all(ABI::V6)))
        .and_then(Ruleset::create)
        .and_then(|ruleset| ruleset.restrict_self());
    if let Err(error) = restricted {
        tracing::debug!(%error, "landlock is not available");
    }
}

/// Stand-in for processors whose system calls are not listed.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "arm")))]
mod filter {
    pub fn is_available() -> bool {
        false
    }

    pub fn install(_: super::Descriptors<'_>) -> Result<(), seccompiler::Error> {
        Ok(())
    }
}

#[cfg(test)]
#[cfg(feature = "compiler")]
mod tests;
