//! The second wall: what a worker or compile process may still do once it is up. No files, no network, no new processes
//! or privileges, bounded memory. A function that breaks out of the sandbox finds itself in an empty room.

use std::io;
use std::os::fd::BorrowedFd;

use rustix::process::{Resource, Rlimit, setrlimit};

/// What a walled process may use.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    pub memory_bytes: u64,
    pub cpu_secs: Option<u64>,
}

#[derive(Debug, thiserror::Error)]
pub enum WallError {
    #[error("failed to limit {what}")]
    Limit { what: &'static str, source: io::Error },
    #[error("failed to forbid new privileges")]
    Privileges(#[source] io::Error),
    #[error("failed to install the system call filter: {0}")]
    Filter(String),
}

/// Closes the process in, for good, with all its threads. Comes last: afterwards nothing can be opened. Besides the three
/// standard streams only `socket` can be used, whatever else the process has inherited.
pub fn enclose(room: Room, socket: Option<BorrowedFd<'_>>) -> Result<(), WallError> {
    limit("memory", Resource::As, room.memory_bytes)?;
    // Reading and writing go on through what is open; nothing else can be opened, and no file can grow.
    limit("file size", Resource::Fsize, 0)?;
    limit("core dumps", Resource::Core, 0)?;
    if let Some(seconds) = room.cpu_secs {
        limit("processor time", Resource::Cpu, seconds)?;
    }
    rustix::thread::set_no_new_privs(true).map_err(|error| WallError::Privileges(error.into()))?;
    restrict();
    limit("open files", Resource::Nofile, 0)?;
    limit("processes", Resource::Nproc, 0)?;
    filter::install(socket)
}

fn limit(what: &'static str, resource: Resource, value: u64) -> Result<(), WallError> {
    setrlimit(resource, Rlimit { current: Some(value), maximum: Some(value) })
        .map_err(|error| WallError::Limit { what, source: error.into() })
}

/// Landlock takes files, network and signals to others away even where there is no system call filter. Not every board's
/// kernel has it, or all of it, and the filter below refuses the same, so its absence is no error.
fn restrict() {
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

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod filter {
    use std::collections::BTreeMap;
    use std::os::fd::{AsRawFd as _, BorrowedFd};

    use linux_raw_sys::general as sys;
    use rustix::process::getpid;
    use seccompiler::{
        BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
        SeccompRule, TargetArch,
    };

    use super::WallError;

    /// Memory, threads waiting for each other, clocks, and signals of our own. What is neither here nor below is refused
    /// with EPERM.
    const ALLOWED: &[u32] = &[
        sys::__NR_munmap,
        sys::__NR_mremap,
        sys::__NR_mprotect,
        sys::__NR_madvise,
        sys::__NR_brk,
        sys::__NR_futex,
        sys::__NR_clock_gettime,
        sys::__NR_clock_nanosleep,
        sys::__NR_nanosleep,
        sys::__NR_sched_yield,
        sys::__NR_getrandom,
        sys::__NR_rt_sigaction,
        sys::__NR_rt_sigprocmask,
        sys::__NR_rt_sigreturn,
        sys::__NR_sigaltstack,
        sys::__NR_gettid,
        sys::__NR_getpid,
        sys::__NR_membarrier,
        sys::__NR_restart_syscall,
        sys::__NR_set_robust_list,
        sys::__NR_rseq,
        sys::__NR_exit,
        sys::__NR_exit_group,
    ];

    /// The same, on the streams and the socket alone: none that sends descriptors, and no `fcntl`, which can make the
    /// kernel send signals to others.
    const ON_STREAMS: &[u32] = &[
        sys::__NR_read,
        sys::__NR_write,
        sys::__NR_readv,
        sys::__NR_writev,
        sys::__NR_recvfrom,
        sys::__NR_sendto,
        sys::__NR_close,
    ];

    const LAST_STREAM: u64 = 2;

    pub fn install(socket: Option<BorrowedFd<'_>>) -> Result<(), WallError> {
        let program = program(socket).map_err(|error| WallError::Filter(error.to_string()))?;
        seccompiler::apply_filter_all_threads(&program).map_err(|error| WallError::Filter(error.to_string()))
    }

    pub(super) fn program(socket: Option<BorrowedFd<'_>>) -> Result<BpfProgram, BackendError> {
        use SeccompCmpOp::{Eq, Le, MaskedEq};
        let mut rules: BTreeMap<i64, _> = ALLOWED.iter().map(|number| (i64::from(*number), Vec::new())).collect();
        for number in ON_STREAMS {
            let mut open = vec![only(0, Le, LAST_STREAM)?];
            if let Some(socket) = socket {
                open.push(only(0, Eq, socket.as_raw_fd().cast_unsigned().into())?);
            }
            rules.insert((*number).into(), open);
        }
        // Memory, and no view of a file.
        let anonymous = sys::MAP_ANONYMOUS.into();
        rules.insert(sys::__NR_mmap.into(), vec![only(3, MaskedEq(anonymous), anonymous)?]);
        // A process may end itself with a signal, which is how it aborts, and nobody else.
        let own = getpid().as_raw_nonzero().get().cast_unsigned().into();
        rules.insert(sys::__NR_tgkill.into(), vec![only(0, Eq, own)?]);
        let refuse = SeccompAction::Errno(rustix::io::Errno::PERM.raw_os_error().cast_unsigned());
        let arch = TargetArch::try_from(std::env::consts::ARCH)?;
        SeccompFilter::new(rules, refuse, SeccompAction::Allow, arch)?.try_into()
    }

    /// Calls whose argument compares so.
    fn only(argument: u8, operator: SeccompCmpOp, value: u64) -> Result<SeccompRule, BackendError> {
        SeccompRule::new(vec![SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value)?])
    }
}

/// Elsewhere (armv7, armv6) the other walls stand alone: the limits, no new privileges, and landlock.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
mod filter {
    pub fn install(_: Option<std::os::fd::BorrowedFd<'_>>) -> Result<(), super::WallError> {
        Ok(())
    }
}

#[cfg(test)]
#[cfg(feature = "compiler")]
#[path = "wall_tests.rs"]
mod tests;
