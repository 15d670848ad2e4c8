//! Interprets the filter on calls that no test should really make.
#![allow(clippy::unwrap_used, reason = "a test says by panicking what is wrong")]

use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::net::UnixStream;

use linux_raw_sys::general as sys;
use seccompiler::BpfProgram;

use super::super::has_filter;
use super::super::syscalls::{ARM, HERE, MAP_ANONYMOUS, PROT_EXEC, PROT_WRITE, Syscalls, arm};
use super::{Descriptors, program};

const ALLOW: u32 = 0x7fff_0000;
const REFUSE_EPERM: u32 = 0x0005_0001;
const KILL_PROCESS: u32 = 0x8000_0000;

const BOTH: [&Syscalls; 2] = [&HERE, &ARM];

/// Runs the program on one call as `seccomp(2)` specifies.
fn evaluate(program: &BpfProgram, arch: u32, number: u32, arguments: [u64; 6]) -> u32 {
    let mut data = Vec::new();
    data.extend_from_slice(&number.to_le_bytes());
    data.extend_from_slice(&arch.to_le_bytes());
    data.extend_from_slice(&[0; 8]);
    arguments.iter().for_each(|argument| data.extend_from_slice(&argument.to_le_bytes()));
    let (mut at, mut value) = (0, 0);
    loop {
        let step = &program[at];
        at += 1;
        let jump = |taken: bool| usize::from(if taken { step.jt } else { step.jf });
        match step.code {
            0x20 => value = u32::from_le_bytes(data[step.k as usize..][..4].try_into().unwrap()),
            0x54 => value &= step.k,
            0x05 => at += step.k as usize,
            0x15 => at += jump(value == step.k),
            0x25 => at += jump(value > step.k),
            0x35 => at += jump(value >= step.k),
            0x06 => return step.k,
            code => panic!("unknown instruction {code:#x}"),
        }
    }
}

#[test]
fn calls_are_refused_unless_they_are_needed() {
    let socket = UnixStream::pair().unwrap().0;
    let refused_here = [
        sys::__NR_openat,
        sys::__NR_openat2,
        sys::__NR_socket,
        sys::__NR_socketpair,
        sys::__NR_connect,
        sys::__NR_sendmsg,
        sys::__NR_recvmsg,
        sys::__NR_clone,
        sys::__NR_clone3,
        sys::__NR_execve,
        sys::__NR_execveat,
        sys::__NR_kill,
        sys::__NR_tkill,
        sys::__NR_rt_sigqueueinfo,
        sys::__NR_pidfd_open,
        sys::__NR_pidfd_send_signal,
        sys::__NR_ptrace,
        sys::__NR_process_vm_readv,
        sys::__NR_process_vm_writev,
        sys::__NR_fcntl,
        sys::__NR_ioctl,
        sys::__NR_prctl,
        sys::__NR_prlimit64,
        sys::__NR_seccomp,
        sys::__NR_bpf,
        sys::__NR_io_uring_setup,
        sys::__NR_memfd_create,
        sys::__NR_userfaultfd,
        sys::__NR_unshare,
        sys::__NR_setns,
        sys::__NR_mount,
        sys::__NR_perf_event_open,
        sys::__NR_keyctl,
    ];
    let refused_on_arm = [
        arm::__NR_open,
        arm::__NR_openat,
        arm::__NR_openat2,
        arm::__NR_creat,
        arm::__NR_socket,
        arm::__NR_socketpair,
        arm::__NR_connect,
        arm::__NR_sendmsg,
        arm::__NR_sendmmsg,
        arm::__NR_recvmsg,
        arm::__NR_clone,
        arm::__NR_clone3,
        arm::__NR_fork,
        arm::__NR_vfork,
        arm::__NR_execve,
        arm::__NR_execveat,
        arm::__NR_kill,
        arm::__NR_tkill,
        arm::__NR_ptrace,
        arm::__NR_process_vm_readv,
        arm::__NR_process_vm_writev,
        arm::__NR_fcntl,
        arm::__NR_fcntl64,
        arm::__NR_ioctl,
        arm::__NR_prctl,
        arm::__NR_prlimit64,
        arm::__NR_setrlimit,
        arm::__NR_seccomp,
        arm::__NR_bpf,
        arm::__NR_memfd_create,
        arm::__NR_dup,
        arm::__NR_pipe2,
        arm::__NR_unshare,
        arm::__NR_mount,
        arm::__NR_keyctl,
    ];
    for (calls, refused) in [(&HERE, &refused_here[..]), (&ARM, &refused_on_arm[..])] {
        let program = program(calls, Descriptors { socket: Some(socket.as_fd()), ..Descriptors::default() }).unwrap();
        let ask = |number: u32, arguments: [u64; 6]| evaluate(&program, calls.arch, number, arguments);
        let allowed: Vec<u32> = (0..2000).filter(|number| ask(*number, [u64::MAX; 6]) == ALLOW).collect();
        let mut expected = calls.allowed.to_vec();
        expected.sort_unstable();
        assert_eq!(allowed, expected);
        for number in refused {
            for arguments in [[0; 6], [u64::MAX; 6], [1; 6]] {
                assert_eq!(ask(*number, arguments), REFUSE_EPERM, "{number}");
            }
        }
        for number in 500..2000 {
            assert_eq!(ask(number, [0; 6]), REFUSE_EPERM, "{number}, which no kernel has yet");
        }
        // Other calling conventions: of the same processor, and of none.
        for arch in [0x4000_0003, 0x4000_0028, 0xc000_003e, 0xc000_00b7, 0].into_iter().filter(|it| *it != calls.arch) {
            assert_eq!(evaluate(&program, arch, calls.on_streams[0], [0; 6]), KILL_PROCESS);
        }
        assert_eq!(ask(calls.on_streams[0] | 0x4000_0000, [0; 6]), REFUSE_EPERM);
    }
}

#[test]
fn only_the_streams_and_the_socket_can_be_used() {
    let socket = UnixStream::pair().unwrap().0;
    let number = socket.as_raw_fd().cast_unsigned();
    for calls in BOTH {
        let (with, without) = (
            program(calls, Descriptors { socket: Some(socket.as_fd()), ..Descriptors::default() }).unwrap(),
            program(calls, Descriptors::default()).unwrap(),
        );
        for call in calls.on_streams {
            let ask =
                |program, descriptor: u32| evaluate(program, calls.arch, *call, [descriptor.into(), 0, 0, 0, 0, 0]);
            for stream in 0..=2 {
                assert_eq!((ask(&with, stream), ask(&without, stream)), (ALLOW, ALLOW));
            }
            assert_eq!((ask(&with, number), ask(&without, number)), (ALLOW, REFUSE_EPERM));
            for other in [number - 1, number + 1, u32::MAX].into_iter().filter(|other| *other > 2) {
                assert_eq!((ask(&with, other), ask(&without, other)), (REFUSE_EPERM, REFUSE_EPERM));
            }
        }
    }
}

#[test]
fn the_timer_can_be_read_and_set_and_nothing_else() {
    let (socket, timer) = UnixStream::pair().unwrap();
    let open = Descriptors { socket: Some(socket.as_fd()), timer: Some(timer.as_fd()), codes: None };
    let (socket, timer) = (socket.as_raw_fd().cast_unsigned(), timer.as_raw_fd().cast_unsigned());
    for calls in BOTH {
        let (with, without) = (program(calls, open).unwrap(), program(calls, Descriptors::default()).unwrap());
        let ask = |program, call: u32, file: u32| evaluate(program, calls.arch, call, [file.into(), 0, 0, 0, 0, 0]);
        for call in calls.on_streams {
            assert_eq!(ask(&with, *call, timer) == ALLOW, *call == calls.read, "{call}");
        }
        for call in calls.set_timer {
            assert_eq!((ask(&with, *call, timer), ask(&with, *call, socket)), (ALLOW, REFUSE_EPERM));
            assert_eq!(ask(&without, *call, timer), REFUSE_EPERM);
        }
    }
}

#[test]
fn memory_is_either_written_or_executed_and_only_what_is_passed_is_a_file() {
    const READ_WRITE: u32 = 1 | PROT_WRITE;
    const READ_EXEC: u32 = 1 | PROT_EXEC;
    let codes = UnixStream::pair().unwrap().0;
    let number = codes.as_raw_fd().cast_unsigned();
    for calls in BOTH {
        let (with, without) = (
            program(calls, Descriptors { codes: Some(codes.as_fd()), ..Descriptors::default() }).unwrap(),
            program(calls, Descriptors::default()).unwrap(),
        );
        for program in [&with, &without] {
            let map = |rights: u32, flags: u32| {
                evaluate(program, calls.arch, calls.mmap, [0, 4096, rights.into(), flags.into(), u64::MAX, 0])
            };
            assert_eq!(map(READ_WRITE, sys::MAP_PRIVATE | MAP_ANONYMOUS), ALLOW);
            assert_eq!(map(READ_WRITE, sys::MAP_PRIVATE | MAP_ANONYMOUS | sys::MAP_NORESERVE), ALLOW);
            assert_eq!(map(READ_EXEC, sys::MAP_PRIVATE | MAP_ANONYMOUS), REFUSE_EPERM);
            assert_eq!(map(READ_WRITE | PROT_EXEC, sys::MAP_PRIVATE | MAP_ANONYMOUS), REFUSE_EPERM);
            let protect =
                |rights: u32| evaluate(program, calls.arch, calls.mprotect, [0, 4096, rights.into(), 0, 0, 0]);
            assert_eq!((protect(READ_WRITE), protect(READ_EXEC)), (ALLOW, REFUSE_EPERM));
            for stream in 0..=2 {
                let view = [0, 4096, 1, sys::MAP_PRIVATE.into(), stream, 0];
                assert_eq!(evaluate(program, calls.arch, calls.mmap, view), REFUSE_EPERM);
            }
        }
        let view = |program, rights: u32| {
            evaluate(program, calls.arch, calls.mmap, [0, 4096, rights.into(), sys::MAP_PRIVATE.into(), 7, 0])
        };
        assert_eq!((view(&with, READ_EXEC), view(&without, READ_EXEC)), (ALLOW, REFUSE_EPERM));
        assert_eq!((view(&with, READ_WRITE), view(&without, READ_WRITE)), (REFUSE_EPERM, REFUSE_EPERM));
        let receive = |program, file: u32| evaluate(program, calls.arch, calls.recvmsg, [file.into(), 0, 0, 0, 0, 0]);
        assert_eq!((receive(&with, number), receive(&without, number)), (ALLOW, REFUSE_EPERM));
        assert_eq!((receive(&with, number + 1), receive(&with, 0)), (REFUSE_EPERM, REFUSE_EPERM));
    }
}

#[test]
fn a_process_signals_nobody_but_itself() {
    for calls in BOTH {
        let program = program(calls, Descriptors::default()).unwrap();
        let signal = |pid: u32| evaluate(&program, calls.arch, calls.tgkill, [pid.into(), pid.into(), 6, 0, 0, 0]);
        assert_eq!(signal(std::process::id()), ALLOW);
        for other in [std::os::unix::process::parent_id(), 1, 0, u32::MAX] {
            assert_eq!(signal(other), REFUSE_EPERM);
        }
    }
}

#[test]
fn a_kernel_is_asked_for_filters_without_being_given_one() {
    assert_eq!(has_filter(), std::fs::exists("/proc/sys/kernel/seccomp/actions_avail").unwrap());
    assert!(std::fs::exists("/proc/self/exe").unwrap(), "calls are still allowed");
}
