//! The second wall: what a worker or compile process may still do once it is up. No files, no network, no new processes
//! or privileges, bounded memory. A function that breaks out of the sandbox finds itself in an empty room.

use std::io;

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

/// Closes the process in, for good, with all its threads. Comes last: afterwards nothing can be opened.
pub fn enclose(room: Room) -> Result<(), WallError> {
    limit("memory", Resource::As, room.memory_bytes)?;
    // Reading and writing go on through what is open; nothing else can be opened, and no file can grow.
    limit("file size", Resource::Fsize, 0)?;
    limit("core dumps", Resource::Core, 0)?;
    if let Some(seconds) = room.cpu_secs {
        limit("processor time", Resource::Cpu, seconds)?;
    }
    rustix::thread::set_no_new_privs(true).map_err(|error| WallError::Privileges(error.into()))?;
    forbid_files();
    limit("open files", Resource::Nofile, 0)?;
    filter::install()
}

fn limit(what: &'static str, resource: Resource, value: u64) -> Result<(), WallError> {
    setrlimit(resource, Rlimit { current: Some(value), maximum: Some(value) })
        .map_err(|error| WallError::Limit { what, source: error.into() })
}

/// Landlock takes the file system away even where there is no system call filter. Not every board's kernel has it, and
/// the filter below refuses opening as well, so its absence is no error.
fn forbid_files() {
    use landlock::{ABI, Access, AccessFs, Ruleset, RulesetAttr};
    let enclosed = Ruleset::default()
        .handle_access(AccessFs::from_all(ABI::V4))
        .and_then(Ruleset::create)
        .and_then(|ruleset| ruleset.restrict_self());
    if let Err(error) = enclosed {
        tracing::debug!(%error, "landlock is not available");
    }
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod filter {
    use std::collections::BTreeMap;

    use linux_raw_sys::general as sys;
    use seccompiler::{
        BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
        TargetArch,
    };

    use super::WallError;

    use rustix::process::getpid;

    /// Memory, threads waiting for each other, clocks, signals of our own, and the sockets that are open. What is not
    /// here is refused with EPERM.
    const ALLOWED: &[u32] = &[
        sys::__NR_read,
        sys::__NR_write,
        sys::__NR_readv,
        sys::__NR_writev,
        sys::__NR_recvfrom,
        sys::__NR_sendto,
        sys::__NR_close,
        sys::__NR_fcntl,
        sys::__NR_mmap,
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

    pub fn install() -> Result<(), WallError> {
        let failed = |error: &dyn std::fmt::Display| WallError::Filter(error.to_string());
        let mut rules: BTreeMap<i64, _> = ALLOWED.iter().map(|number| (i64::from(*number), Vec::new())).collect();
        // A process may end itself with a signal, which is how it aborts, and nobody else.
        let own = getpid().as_raw_nonzero().get().unsigned_abs().into();
        let own = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, own)
            .and_then(|condition| SeccompRule::new(vec![condition]))
            .map_err(|error| failed(&error))?;
        rules.insert(i64::from(sys::__NR_tgkill), vec![own]);
        let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(|error| failed(&error))?;
        let filter = SeccompFilter::new(
            rules,
            SeccompAction::Errno(rustix::io::Errno::PERM.raw_os_error().cast_unsigned()),
            SeccompAction::Allow,
            arch,
        )
        .map_err(|error| failed(&error))?;
        let program = BpfProgram::try_from(filter).map_err(|error| failed(&error))?;
        seccompiler::apply_filter_all_threads(&program).map_err(|error| failed(&error))
    }
}

/// Elsewhere (armv7, armv6) the other walls stand alone: the limits, no new privileges, and landlock.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
mod filter {
    pub fn install() -> Result<(), super::WallError> {
        Ok(())
    }
}
