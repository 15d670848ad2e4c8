//! WASI 0.2 as standard libraries import it: Rust's for the target `wasm32-wasip2`, for example.
//!
//! A program has the streams, arguments and environment of one for preview 1. For a function of the contract, standard output and error
//! are the log, and standard input is at its end. There are no files and no network, and nothing waits. The layouts of results in the
//! canonical ABI:
//!
//! ```text
//! result<list<u8>, stream-error>   +0 is error | +4 the list, or case: 0 failed, 1 closed
//! result<u64, stream-error>        +0 is error | +8 the number, or the case
//! result<_, stream-error>          +0 is error | +4 the case
//! option, list                     zeros: none, empty
//! ```

#[cfg(all(test, feature = "compiler"))]
mod tests;

use bytes::Bytes;
use wasmtime::{ExternType, Linker, Result, bail};

use super::environment::{self, Texts};
use super::streams::{LogLines, Stdin, Stdout};
use super::{Exit, verdict};
use crate::abi::{CallContext, u32_at};
use crate::handles::{ResourceHandle, Stream};
use crate::host::HostState;
use crate::imports::{definer, four, one, three, two};
use sedge_core::grants::Grants;
use sedge_core::message::{Message, Verdict};

/// Bytes per read and write, so that deadlines are checked between.
const MAX_BYTES: u32 = 64 << 10;

/// Case of an error of a stream: there is no more.
const CLOSED: u8 = 1;

pub(crate) const WAITS: &str = "the function asked to wait, and a function does not: return `wake` or `retry` instead";

/// What a standard library reaches in a function or a program that runs.
pub(crate) struct Library {
    pub(crate) grants: Grants,
    pub(crate) received_at_ms: u64,
    arguments: Texts,
    environment: Texts,
    stdin: Stdin,
    stdout: Output,
    stderr: LogLines,
}

/// Where standard output goes.
enum Output {
    Log(LogLines),
    /// Outputs of a program.
    Lines(Stdout),
}

impl Library {
    pub(crate) fn new(message: &Message, grants: Grants) -> Self {
        Self {
            grants,
            received_at_ms: message.received_at_ms,
            arguments: Texts::default(),
            environment: Texts::default(),
            stdin: Stdin::new(Bytes::new()),
            stdout: Output::Log(LogLines::default()),
            stderr: LogLines::default(),
        }
    }

    pub(crate) fn of_program(message: &Message, grants: Grants, name: &str, host: &HostState) -> Self {
        Self {
            arguments: environment::arguments(name, message),
            environment: environment::of(message, host),
            stdin: Stdin::new(message.payload.clone()),
            stdout: Output::Lines(Stdout::new(host.limits.transfer_bytes())),
            ..Self::new(message, grants)
        }
    }

    /// Ends the lines of a function that have no end yet. After a failure, the last one of standard error is the reason.
    pub(crate) fn end(host: &mut HostState, has_failed: bool) {
        let Some(mut library) = host.library.take() else { return };
        if let Output::Log(lines) = &mut library.stdout {
            lines.finish(host);
        }
        let last_line = library.stderr.finish(host);
        if has_failed && host.last_words.is_none() {
            host.last_words = last_line;
        }
    }

    /// What a program has said, with the exit code that it returned.
    pub(crate) fn end_program(host: &mut HostState, code: Result<u32>) -> Result<Verdict> {
        let Some(mut library) = host.library.take() else { bail!("the program is gone") };
        let last_line = library.stderr.finish(host);
        let Output::Lines(stdout) = &library.stdout else { bail!("standard output is not the program's") };
        verdict(host, code, last_line, stdout)
    }
}

/// Defines one import. `interface` is its module, with a version.
pub(crate) fn define(linker: &mut Linker<HostState>, interface: &str, name: &str, kind: &ExternType) -> Result<()> {
    let package = interface.split_once('@').map_or(interface, |(package, _)| package);
    match (package, name) {
        ("wasi:cli/environment", "get-arguments") => one(linker, interface, name, arguments),
        ("wasi:cli/environment", "get-environment") => one(linker, interface, name, variables),
        ("wasi:filesystem/preopens", "get-directories") => {
            one(linker, interface, name, |call, at| call.write_result(at, 4, &[0; 8]))
        }
        ("wasi:cli/environment", "initial-cwd")
        | ("wasi:cli/terminal-stdin", "get-terminal-stdin")
        | ("wasi:cli/terminal-stdout", "get-terminal-stdout")
        | ("wasi:cli/terminal-stderr", "get-terminal-stderr") => {
            one(linker, interface, name, |call, at| call.write_result(at, 4, &[0; 4]))
        }
        ("wasi:cli/exit", "exit" | "exit-with-code") => one(linker, interface, name, exit),
        ("wasi:cli/stdin", "get-stdin") => handle(linker, interface, name, |call| open(call, Stream::Input)),
        ("wasi:cli/stdout", "get-stdout") => handle(linker, interface, name, |call| open(call, Stream::Output)),
        ("wasi:cli/stderr", "get-stderr") => handle(linker, interface, name, |call| open(call, Stream::Error)),
        ("wasi:io/streams", "[method]input-stream.read" | "[method]input-stream.blocking-read") => {
            reading(linker, interface, name, read)
        }
        ("wasi:io/streams", "[method]input-stream.skip" | "[method]input-stream.blocking-skip") => {
            reading(linker, interface, name, skip)
        }
        ("wasi:io/streams", "[method]output-stream.check-write") => two(linker, interface, name, check_write),
        ("wasi:io/streams", "[method]output-stream.write" | "[method]output-stream.blocking-write-and-flush") => {
            four(linker, interface, name, write)
        }
        ("wasi:io/streams", "[method]output-stream.flush" | "[method]output-stream.blocking-flush") => {
            two(linker, interface, name, flush)
        }
        ("wasi:io/streams", "[method]input-stream.subscribe" | "[method]output-stream.subscribe") => {
            asking(linker, interface, name, subscribe)
        }
        ("wasi:io/poll", "[method]pollable.ready") => {
            asking(linker, interface, name, |call, number| call.host().handles.pollable(number).map(|()| 1))
        }
        ("wasi:io/poll", "[method]pollable.block") => {
            one(linker, interface, name, |call, number| call.host().handles.pollable(number))
        }
        ("wasi:io/poll", "poll") => three(linker, interface, name, poll),
        ("wasi:io/streams", "[resource-drop]input-stream" | "[resource-drop]output-stream") => {
            one(linker, interface, name, |call, number| {
                call.host().handles.stream(number)?;
                call.host().handles.remove(number);
                Ok(())
            })
        }
        ("wasi:io/poll", "[resource-drop]pollable") => one(linker, interface, name, |call, number| {
            call.host().handles.pollable(number)?;
            call.host().handles.remove(number);
            Ok(())
        }),
        _ => inert(linker, interface, name, kind),
    }
}

/// Defines what ends the run when it is called: what needs a file, a directory, a socket, a terminal or an error, of which no
/// function has one.
fn inert(linker: &mut Linker<HostState>, interface: &str, name: &str, kind: &ExternType) -> Result<()> {
    let ExternType::Func(kind) = kind else { return Ok(()) };
    let what = format!("the function called `{interface}` `{name}`, and a function has no files and no network");
    linker.func_new(interface, name, kind.clone(), move |_, _, _| bail!("{what}")).map(drop)
}

fn open(call: &mut CallContext<'_>, stream: Stream) -> Result<u32> {
    call.host().handles.add(ResourceHandle::Stream(stream))
}

/// The texts are the library's, which is put back.
fn library<R>(
    call: &mut CallContext<'_>,
    work: impl FnOnce(&mut Library, &mut CallContext<'_>) -> Result<R>,
) -> Result<R> {
    let Some(mut library) = call.host().library.take() else { bail!("the guest has no standard library") };
    let result = work(&mut library, call);
    call.host().library = Some(library);
    result
}

fn arguments(call: &mut CallContext<'_>, at: u32) -> Result<()> {
    let list = library(call, |library, call| {
        let texts: Vec<&str> = library.arguments.iter().collect();
        call.lower_strings(texts.into_iter())
    })?;
    call.write_result(at, 4, &list)
}

fn variables(call: &mut CallContext<'_>, at: u32) -> Result<()> {
    let list = library(call, |library, call| {
        let pairs: Vec<(&str, &str)> = library.environment.iter().filter_map(|text| text.split_once('=')).collect();
        call.lower_string_pairs(pairs.into_iter())
    })?;
    call.write_result(at, 4, &list)
}

fn exit(call: &mut CallContext<'_>, code: u32) -> Result<()> {
    match &call.host().library {
        Some(library) if matches!(library.stdout, Output::Lines(_)) => Err(Exit(code).into()),
        _ => bail!("the function ended its process, with exit code {code}, and returned nothing"),
    }
}

/// The next bytes of standard input.
fn input(call: &mut CallContext<'_>, stream: u32, most: u64) -> Result<Bytes> {
    let Stream::Input = call.host().handles.stream(stream)? else { bail!("handle {stream} is of another kind") };
    let most = most.min(MAX_BYTES.into()) as usize;
    library(call, |library, _| Ok(library.stdin.take(most)))
}

fn read(call: &mut CallContext<'_>, stream: u32, most: u64, at: u32) -> Result<()> {
    let bytes = input(call, stream, most)?;
    let mut result = [0; 12];
    match bytes.is_empty() && most > 0 {
        true => (result[0], result[4]) = (1, CLOSED),
        false => result[4..].copy_from_slice(&call.lower_bytes(&bytes)?),
    }
    call.write_result(at, 4, &result)
}

fn skip(call: &mut CallContext<'_>, stream: u32, most: u64, at: u32) -> Result<()> {
    let skipped = input(call, stream, most)?.len() as u64;
    let mut result = [0; 16];
    match skipped == 0 && most > 0 {
        true => (result[0], result[8]) = (1, CLOSED),
        false => result[8..].copy_from_slice(&skipped.to_le_bytes()),
    }
    call.write_result(at, 8, &result)
}

fn check_write(call: &mut CallContext<'_>, stream: u32, at: u32) -> Result<()> {
    output(call, stream)?;
    let mut result = [0; 16];
    result[8..12].copy_from_slice(&MAX_BYTES.to_le_bytes());
    call.write_result(at, 8, &result)
}

fn write(call: &mut CallContext<'_>, stream: u32, bytes: u32, len: u32, at: u32) -> Result<()> {
    let is_error = output(call, stream)?;
    if len > MAX_BYTES {
        bail!("{len} bytes in one write, and `check-write` permits {MAX_BYTES}");
    }
    let (mut reader, host) = call.reader();
    let bytes = reader.bytes(bytes, len)?;
    let Some(mut library) = host.library.take() else { bail!("the guest has no standard library") };
    match &mut library.stdout {
        Output::Lines(stdout) if !is_error => stdout.write(bytes)?,
        Output::Log(stdout) if !is_error => stdout.write(bytes, host),
        _ => library.stderr.write(bytes, host),
    }
    host.library = Some(library);
    call.write_result(at, 4, &[0; 12])
}

/// Nothing is buffered.
fn flush(call: &mut CallContext<'_>, stream: u32, at: u32) -> Result<()> {
    output(call, stream)?;
    call.write_result(at, 4, &[0; 12])
}

/// Whether it is standard error.
fn output(call: &mut CallContext<'_>, stream: u32) -> Result<bool> {
    match call.host().handles.stream(stream)? {
        Stream::Output => Ok(false),
        Stream::Error => Ok(true),
        Stream::Input => bail!("handle {stream} is of another kind"),
    }
}

fn subscribe(call: &mut CallContext<'_>, stream: u32) -> Result<u32> {
    call.host().handles.stream(stream)?;
    call.host().handles.add(ResourceHandle::Pollable)
}

/// All are ready.
fn poll(call: &mut CallContext<'_>, list: u32, len: u32, at: u32) -> Result<()> {
    if len == 0 {
        bail!("a poll without anything to wait for");
    }
    let (mut reader, host) = call.reader();
    let mut ready = Vec::new();
    for (index, number) in reader.list::<4>(list, len, 4, 8)?.iter().enumerate() {
        host.handles.pollable(u32_at(number, 0))?;
        ready.extend_from_slice(&(index as u32).to_le_bytes());
    }
    let place = call.allocate(4, ready.len())?;
    call.write(place, &ready)?;
    call.write_result(at, 4, [place.to_le_bytes(), len.to_le_bytes()].as_flattened())
}

definer!(reading(stream: u32, len: u64, at: u32) -> ());
definer!(handle() -> u32);
definer!(asking(a: u32) -> u32);
