//! Numbers of the system calls that a worker or a compilation needs, per processor.

#[cfg(target_arch = "arm")]
pub(crate) use linux_raw_sys::general as arm;
#[cfg(not(target_arch = "arm"))]
use linux_raw_sys::general as sys;

/// Flags of `mmap`, the same on every supported processor.
pub(crate) const MAP_ANONYMOUS: u32 = 0x20;
pub(crate) const PROT_WRITE: u32 = 2;
pub(crate) const PROT_EXEC: u32 = 4;

pub(crate) struct Syscalls {
    /// The kernel's name of the calling convention: `AUDIT_ARCH_*`.
    pub(crate) arch: u32,
    /// Memory, futexes, clocks and own signals. A call that is neither here nor below is refused with EPERM.
    pub(crate) allowed: &'static [u32],
    /// Allowed on the standard streams and the socket alone. None sends descriptors. `fcntl` is missing because it can
    /// make the kernel send signals to others.
    pub(crate) on_streams: &'static [u32],
    /// The one of them that a timer needs.
    pub(crate) read: u32,
    /// Allowed on the timer alone.
    pub(crate) set_timer: &'static [u32],
    pub(crate) mmap: u32,
    pub(crate) mprotect: u32,
    pub(crate) tgkill: u32,
    pub(crate) recvmsg: u32,
}

#[cfg(not(target_arch = "arm"))]
pub(crate) const HERE: Syscalls = Syscalls {
    arch: if cfg!(target_arch = "x86_64") { 0xc000_003e } else { 0xc000_00b7 },
    allowed: &[
        sys::__NR_munmap,
        sys::__NR_mremap,
        sys::__NR_madvise,
        sys::__NR_brk,
        sys::__NR_close,
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
    ],
    on_streams: &[
        sys::__NR_read,
        sys::__NR_write,
        sys::__NR_readv,
        sys::__NR_writev,
        sys::__NR_recvfrom,
        sys::__NR_sendto,
    ],
    read: sys::__NR_read,
    set_timer: &[sys::__NR_timerfd_settime],
    mmap: sys::__NR_mmap,
    mprotect: sys::__NR_mprotect,
    tgkill: sys::__NR_tgkill,
    recvmsg: sys::__NR_recvmsg,
};

#[cfg(target_arch = "arm")]
pub(crate) const HERE: Syscalls = ARM;

/// 32-bit ARM, with both widths of time. C libraries use either, and try the other only after ENOSYS.
#[cfg(any(target_arch = "arm", test))]
pub(crate) const ARM: Syscalls = Syscalls {
    arch: 0x4000_0028,
    allowed: &[
        arm::__NR_munmap,
        arm::__NR_mremap,
        arm::__NR_madvise,
        arm::__NR_brk,
        arm::__NR_close,
        arm::__NR_futex,
        arm::__NR_futex_time64,
        arm::__NR_clock_gettime,
        arm::__NR_clock_gettime64,
        arm::__NR_clock_nanosleep,
        arm::__NR_clock_nanosleep_time64,
        arm::__NR_nanosleep,
        arm::__NR_gettimeofday,
        arm::__NR_sched_yield,
        arm::__NR_getrandom,
        arm::__NR_rt_sigaction,
        arm::__NR_rt_sigprocmask,
        arm::__NR_rt_sigreturn,
        arm::__NR_sigreturn,
        arm::__NR_sigaltstack,
        arm::__NR_gettid,
        arm::__NR_getpid,
        arm::__NR_membarrier,
        arm::__NR_restart_syscall,
        arm::__NR_set_robust_list,
        arm::__NR_rseq,
        arm::__NR_exit,
        arm::__NR_exit_group,
    ],
    on_streams: &[
        arm::__NR_read,
        arm::__NR_write,
        arm::__NR_readv,
        arm::__NR_writev,
        arm::__NR_recv,
        arm::__NR_recvfrom,
        arm::__NR_send,
        arm::__NR_sendto,
    ],
    read: arm::__NR_read,
    set_timer: &[arm::__NR_timerfd_settime, arm::__NR_timerfd_settime64],
    mmap: arm::__NR_mmap2,
    mprotect: arm::__NR_mprotect,
    tgkill: arm::__NR_tgkill,
    recvmsg: arm::__NR_recvmsg,
};

/// Numbers from the kernel's `arch/arm/tools/syscall.tbl`, for tests on other machines.
#[cfg(all(test, not(target_arch = "arm")))]
#[allow(non_upper_case_globals, reason = "the kernel's names, as linux-raw-sys has them")]
pub(crate) mod arm;
