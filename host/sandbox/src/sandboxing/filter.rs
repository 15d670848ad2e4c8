//! Seccomp filter of a sandboxed process.

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use rustix::io::Errno;
use rustix::process::getpid;
use rustix::thread::{SecureComputingMode, set_secure_computing_mode};
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

use super::Descriptors;
use super::syscalls::{HERE, MAP_ANONYMOUS, PROT_EXEC, PROT_WRITE, Syscalls};

const LAST_STREAM: u64 = 2;

/// Returns whether this kernel filters system calls. Such a kernel answers a null filter with EFAULT.
pub(crate) fn is_available() -> bool {
    !matches!(set_secure_computing_mode(SecureComputingMode::Filter), Err(Errno::INVAL | Errno::NOSYS))
}

pub(crate) fn install(open: Descriptors<'_>) -> Result<(), seccompiler::Error> {
    let program = program(&HERE, open).map_err(seccompiler::Error::Backend)?;
    seccompiler::apply_filter_all_threads(&program)
}

pub(super) fn program(calls: &Syscalls, open: Descriptors<'_>) -> Result<BpfProgram, BackendError> {
    use SeccompCmpOp::{Eq, Gt, Le, MaskedEq};
    let mut rules: BTreeMap<i64, _> = calls.allowed.iter().map(|number| (i64::from(*number), Vec::new())).collect();
    for number in calls.on_streams {
        let mut permitted = vec![only(0, Le, LAST_STREAM)?];
        for file in open.socket.into_iter().chain(open.timer.filter(|_| *number == calls.read)) {
            permitted.push(only(0, Eq, number_of(file))?);
        }
        rules.insert((*number).into(), permitted);
    }
    if let Some(timer) = open.timer {
        for number in calls.set_timer {
            rules.insert((*number).into(), vec![only(0, Eq, number_of(timer))?]);
        }
    }
    // Anonymous memory is never executable, and mapped files are never writable. The only files are the sealed ones that
    // come over `codes`.
    let (anonymous, write, exec) = (MAP_ANONYMOUS.into(), PROT_WRITE.into(), PROT_EXEC.into());
    let mut maps = vec![all([(3, MaskedEq(anonymous), anonymous), (2, MaskedEq(exec), 0)])?];
    if let Some(codes) = open.codes {
        rules.insert(calls.recvmsg.into(), vec![only(0, Eq, number_of(codes))?]);
        maps.push(all([(3, MaskedEq(anonymous), 0), (2, MaskedEq(write), 0), (4, Gt, LAST_STREAM)])?);
    }
    rules.insert(calls.mmap.into(), maps);
    rules.insert(calls.mprotect.into(), vec![only(2, MaskedEq(exec), 0)?]);
    // A process aborts by sending itself a signal.
    let own = getpid().as_raw_nonzero().get().cast_unsigned().into();
    rules.insert(calls.tgkill.into(), vec![only(0, Eq, own)?]);
    let refuse = SeccompAction::Errno(Errno::PERM.raw_os_error().cast_unsigned());
    let mut program: BpfProgram =
        SeccompFilter::new(rules, refuse, SeccompAction::Allow, TargetArch::aarch64)?.try_into()?;
    // seccompiler does not know 32-bit ARM, so every filter is made for aarch64 and its check of the architecture replaced.
    // All of them are little-endian, which decides where an argument's lower half is.
    for step in program.iter_mut().filter(|step| step.k == AUDIT_ARCH_AARCH64 && step.code == JUMP_IF_EQUAL) {
        step.k = calls.arch;
    }
    Ok(program)
}

const AUDIT_ARCH_AARCH64: u32 = 0xc000_00b7;
/// `BPF_JMP | BPF_JEQ | BPF_K`
const JUMP_IF_EQUAL: u16 = 0x15;

fn number_of(file: BorrowedFd<'_>) -> u64 {
    file.as_raw_fd().cast_unsigned().into()
}

/// Matches calls with one argument that compares so.
fn only(argument: u8, operator: SeccompCmpOp, value: u64) -> Result<SeccompRule, BackendError> {
    all([(argument, operator, value)])
}

/// Matches calls with arguments that all compare so.
fn all<const N: usize>(conditions: [(u8, SeccompCmpOp, u64); N]) -> Result<SeccompRule, BackendError> {
    let conditions = conditions
        .into_iter()
        .map(|(argument, operator, value)| SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value));
    SeccompRule::new(conditions.collect::<Result<_, _>>()?)
}

#[cfg(test)]
mod tests;
