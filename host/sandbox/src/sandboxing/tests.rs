#![allow(clippy::unwrap_used, reason = "a test says by panicking what is wrong")]

use std::fs::File;
use std::io::{self, BufRead as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::sync::Arc;

use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect};
use rustix::net::{AddressFamily, SocketType};
use rustix::process::{Resource, Rlimit};

use super::{Descriptors, ProcessLimits, enter, has_filter};
use crate::testing::{LIMITS, NOTHING, code, message};
use crate::{Sandbox, ScopeState, codes};
use sedge_core::grants::Grants;

/// Environment variable that makes a child play an escaped function.
const CHILD: &str = "SEDGE_TEST_ESCAPED";
const MEMORY_BYTES: u64 = 2 << 30;

/// Body of the child: its own process, because the sandbox cannot be left again.
#[test]
fn escaped() {
    if std::env::var_os(CHILD).is_none() {
        return;
    }
    println!();
    let dir = std::env::temp_dir();
    let (readable, executable) = (std::env::current_exe().unwrap(), std::env::current_exe().unwrap());
    let mut written = File::create(dir.join(format!("sedge-sandboxing-{}", std::process::id()))).unwrap();
    let inherited = UnixStream::pair().unwrap();
    let socket = UnixStream::pair().unwrap();
    let parent = rustix::process::getppid().unwrap();
    let function = code("", NOTHING);
    let passed = codes::is_passed().then(|| UnixStream::pair().unwrap());
    if let Some((near, _)) = &passed {
        for _ in 0..2 {
            codes::send(near, &crate::sealed::seal(&function).unwrap()).unwrap();
        }
    }
    let limits = ProcessLimits { memory_bytes: MEMORY_BYTES, cpu_secs: None };
    let codes = passed.as_ref().map(|(_, far)| far.as_fd());
    if let Err(error) = enter(limits, Descriptors { socket: Some(socket.0.as_fd()), codes, timer: None }) {
        println!("no sandbox: {error}");
        return;
    }
    report("open", File::open(readable));
    report("create", File::create(dir.join("sedge-sandboxing-created")));
    report("remove", std::fs::remove_file(dir.join("sedge-sandboxing-any")));
    report("list", std::fs::read_dir("/"));
    report("network", rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None));
    report("network 6", rustix::net::socket(AddressFamily::INET6, SocketType::DGRAM, None));
    report("unix socket", rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None));
    report("pair", UnixStream::pair());
    report("execute", Command::new(executable).spawn());
    report("thread", std::thread::Builder::new().spawn(|| ()));
    report("signal", rustix::process::kill_process(parent, rustix::process::Signal::CONT));
    report("limits", rustix::process::setrlimit(Resource::Nofile, Rlimit { current: Some(9), maximum: Some(9) }));
    report("write to a file", written.write_all(b"x"));
    report("write to a socket", (&inherited.0).write_all(b"x"));
    report("memory", Vec::<u8>::new().try_reserve_exact(MEMORY_BYTES as usize));
    // And what it must still do.
    let mut line = String::new();
    report("read", io::stdin().lock().read_line(&mut line));
    report("socket", (&socket.0).write_all(b"x"));
    report("a megabyte", Vec::<u8>::new().try_reserve_exact(1 << 20));
    report("clock", std::time::Instant::now().elapsed().checked_mul(1).ok_or("no time"));
    let loaded = match &passed {
        None => Sandbox::new().load(&function, LIMITS, Grants::default(), Arc::from([])),
        Some((_, far)) => {
            let mut sandbox = Sandbox::of_sealed_code();
            report("make code", sandbox.load(&function, LIMITS, Grants::default(), Arc::from([])).map(drop));
            let code = codes::receive(far).unwrap();
            report("a second file", codes::receive(far));
            sandbox.load_sealed(&code, LIMITS, Grants::default(), Arc::from([]))
        }
    };
    report("executable memory", made_executable(ProtFlags::READ | ProtFlags::WRITE | ProtFlags::EXEC));
    report("memory made executable", made_executable(ProtFlags::READ | ProtFlags::WRITE));
    let run = loaded.map(|function| function.invoke(&message("t", b""), ScopeState::default()));
    report("function", run.map(|run| assert_eq!(run.outputs(), 0)));
    println!("heard {line}");
}

/// Makes a page of memory with these rights executable.
#[expect(unsafe_code, reason = "rights of memory are changed")]
fn made_executable(rights: ProtFlags) -> rustix::io::Result<()> {
    // SAFETY: the page is new, and nobody else knows of it.
    unsafe {
        let page = mmap_anonymous(std::ptr::null_mut(), 4096, rights, MapFlags::PRIVATE)?;
        mprotect(page, 4096, MprotectFlags::READ | MprotectFlags::EXEC)
    }
}

fn report<T, E: std::fmt::Debug>(what: &str, result: Result<T, E>) {
    match result {
        Ok(_) => println!("{what}: done"),
        Err(error) => println!("{what}: refused, {error:?}"),
    }
}

#[test]
fn an_escaped_function_reaches_nothing() {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "sandboxing::tests::escaped", "--nocapture", "--test-threads=1"])
        .env(CHILD, "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"you\n").unwrap();
    let pid = child.id();
    let output = child.wait_with_output().unwrap();
    let _ = std::fs::remove_file(std::env::temp_dir().join(format!("sedge-sandboxing-{pid}")));
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{}\n{said}", output.status);
    assert!(!said.contains("no sandbox:"), "{said}");
    let result = |what: &str| {
        let line = said.lines().find_map(|line| line.strip_prefix(what)?.strip_prefix(": "));
        line.unwrap_or_else(|| panic!("nothing is said of {what}:\n{said}"))
    };
    // Without a filter the limits alone stand, and refuse these.
    let mut refused = vec!["open", "create", "network", "network 6", "unix socket", "pair", "execute", "memory"];
    if has_filter() {
        refused.extend(["remove", "list", "thread", "signal", "limits", "write to a file", "write to a socket"]);
        refused.extend(["executable memory", "memory made executable"]);
        if codes::is_passed() {
            refused.extend(["make code", "a second file"]);
        }
    } else {
        println!("this kernel has no system call filter: only the limits were tested");
    }
    for what in refused {
        assert!(result(what).starts_with("refused"), "{what}: {}", result(what));
    }
    for what in ["read", "socket", "a megabyte", "clock", "function"] {
        assert_eq!(result(what), "done", "{what}");
    }
    assert!(said.contains("heard you"), "{said}");
}
