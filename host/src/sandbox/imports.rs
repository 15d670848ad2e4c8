//! What a function of one module imports: the same [`HostState`] that other components reach through the engine's bindings, with
//! the layouts of results written out. Those of `wasi:keyvalue`, as the canonical ABI has them:
//!
//! ```text
//! error                        +0 which: 0 no such store, 1 access denied, 2 other | +4 text
//! result<_, error>             +0 is error | +4 the value or the error
//! result<s64, error>           +0 is error | +8 the value or the error
//! result<_, cas-error>         +0 is error | +4 which: 0 store error, 1 failed | +8 the error or the new handle
//! option                       +0 is there | +4 what
//! text, list                   +0 address | +4 length
//! ```

use std::collections::BTreeSet;
use std::sync::Arc;

use wasmtime::{Caller, Engine, InstancePre, Linker, Module, Result, bail};

use super::abi::{CallContext, Reader, host_call};
use super::component::bindings::wasi::clocks::wall_clock::Datetime;
use super::component::bindings::wasi::keyvalue::store::Error;
use super::component::bindings::wasi::logging::logging::Level;
use super::grants;
use super::handles::ResourceHandle;
use super::host::{HostState, SwapError};

/// What the functions of one engine import. They share it: what the host does for one is warm for the next.
pub struct Imports {
    linker: Linker<HostState>,
    defined: BTreeSet<(Box<str>, Box<str>)>,
}

impl Imports {
    pub fn new(engine: &Engine) -> Self {
        Self { linker: Linker::new(engine), defined: BTreeSet::new() }
    }

    /// Makes a module ready to be instantiated. What it imports and nobody knows is an error.
    pub fn connect(&mut self, module: &Module) -> Result<InstancePre<HostState>> {
        for import in module.imports() {
            if self.defined.insert((import.module().into(), import.name().into())) {
                define(&mut self.linker, import.module(), import.name())?;
            }
        }
        self.linker.instantiate_pre(module)
    }
}

/// Defines one import, by the names that modules have for it. What is not known is left out.
fn define(linker: &mut Linker<HostState>, interface: &str, name: &str) -> Result<()> {
    match interface {
        "wasi:keyvalue/store@0.2.0-draft2" => define_store(linker, interface, name),
        "wasi:keyvalue/atomics@0.2.0-draft2" => define_atomics(linker, interface, name),
        "wasi:logging/logging@0.1.0-draft" => define_logging(linker, interface, name),
        "wasi:config/store@0.2.0-rc.1" => define_config(linker, interface, name),
        _ => match interface.split_once("@0.2.") {
            Some(("wasi:clocks/wall-clock", _)) => define_wall_clock(linker, interface, name),
            Some(("wasi:clocks/monotonic-clock", _)) => define_monotonic(linker, interface, name),
            Some(("wasi:random/random" | "wasi:random/insecure", _)) => define_random(linker, interface, name),
            Some(("wasi:random/insecure-seed", _)) => define_seed(linker, interface, name),
            _ => Ok(()),
        },
    }
}

fn define_store(linker: &mut Linker<HostState>, interface: &str, name: &str) -> Result<()> {
    match name {
        "open" => three(linker, interface, name, open),
        "[method]bucket.get" => four(linker, interface, name, get),
        "[method]bucket.set" => six(linker, interface, name, set),
        "[method]bucket.delete" => four(linker, interface, name, delete),
        "[method]bucket.exists" => four(linker, interface, name, exists),
        "[method]bucket.list-keys" => five(linker, interface, name, list_keys),
        "[resource-drop]bucket" => one(linker, interface, name, drop_bucket),
        _ => Ok(()),
    }
}

fn open(call: &mut CallContext<'_>, id: u32, len: u32, at: u32) -> Result<()> {
    let (mut reader, host) = call.reader();
    let opened = match host.open(reader.text(id, len)?) {
        Ok(()) => Ok(host.handles.add(ResourceHandle::Bucket)?),
        Err(error) => Err(error),
    };
    return_result(call, at, opened.map(u32::to_le_bytes))
}

fn get(call: &mut CallContext<'_>, bucket: u32, key: u32, len: u32, at: u32) -> Result<()> {
    let (mut reader, host) = call.reader();
    host.handles.bucket(bucket)?;
    let value = host.view.get(reader.text(key, len)?).cloned();
    let value = lower_option(call, value.as_deref())?;
    return_result(call, at, Ok(value))
}

fn set(call: &mut CallContext<'_>, bucket: u32, key: u32, key_len: u32, value: u32, len: u32, at: u32) -> Result<()> {
    let (mut reader, host) = call.reader();
    host.handles.bucket(bucket)?;
    host.set(reader.text(key, key_len)?, Some(reader.bytes(value, len)?))?;
    return_result(call, at, Ok([]))
}

fn delete(call: &mut CallContext<'_>, bucket: u32, key: u32, len: u32, at: u32) -> Result<()> {
    let (mut reader, host) = call.reader();
    host.handles.bucket(bucket)?;
    host.set(reader.text(key, len)?, None)?;
    return_result(call, at, Ok([]))
}

fn exists(call: &mut CallContext<'_>, bucket: u32, key: u32, len: u32, at: u32) -> Result<()> {
    let (mut reader, host) = call.reader();
    host.handles.bucket(bucket)?;
    let exists = host.view.get(reader.text(key, len)?).is_some();
    return_result(call, at, Ok([exists.into()]))
}

fn list_keys(call: &mut CallContext<'_>, bucket: u32, has_cursor: u32, cursor: u32, len: u32, at: u32) -> Result<()> {
    let (mut reader, host) = call.reader();
    host.handles.bucket(bucket)?;
    let keys = host.keys(lift_optional_text(&mut reader, has_cursor, cursor, len)?);
    // The list, and a cursor that is not there.
    let mut response = [0; 20];
    response[..8].copy_from_slice(&call.lower_strings(keys.iter().map(|key| &**key))?);
    return_result(call, at, Ok(response))
}

fn drop_bucket(call: &mut CallContext<'_>, bucket: u32) -> Result<()> {
    let handles = &mut call.host().handles;
    handles.bucket(bucket)?;
    handles.remove(bucket);
    Ok(())
}

fn define_atomics(linker: &mut Linker<HostState>, interface: &str, name: &str) -> Result<()> {
    match name {
        "increment" => {
            let increment = |caller: Caller<'_, HostState>, bucket: u32, key: u32, len: u32, delta: i64, at: u32| {
                host_call(caller, |call| increment(call, bucket, key, len, delta, at))
            };
            linker.func_wrap(interface, name, increment).map(drop)
        }
        "swap" => four(linker, interface, name, swap),
        "[static]cas.new" => four(linker, interface, name, new_cas),
        "[method]cas.current" => two(linker, interface, name, current),
        "[resource-drop]cas" => one(linker, interface, name, drop_cas),
        _ => Ok(()),
    }
}

fn increment(call: &mut CallContext<'_>, bucket: u32, key: u32, len: u32, delta: i64, at: u32) -> Result<()> {
    let (mut reader, host) = call.reader();
    host.handles.bucket(bucket)?;
    let mut result = [0; 24];
    match host.increment(reader.text(key, len)?, delta)? {
        Ok(sum) => result[8..16].copy_from_slice(&sum.to_le_bytes()),
        Err(error) => {
            result[0] = 1;
            result[8..20].copy_from_slice(&lower_error(call, error)?);
        }
    }
    call.write_result(at, 8, &result)
}

fn swap(call: &mut CallContext<'_>, number: u32, value: u32, len: u32, at: u32) -> Result<()> {
    let (mut reader, host) = call.reader();
    let cas = host.handles.cas(number)?;
    // It is given away with the call.
    host.handles.remove(number);
    let mut result = [0; 20];
    match host.swap(cas, reader.bytes(value, len)?)? {
        Ok(()) => {}
        Err(SwapError::Changed) => {
            (result[0], result[4]) = (1, 1);
            let again = host.handles.add(ResourceHandle::Cas(cas))?;
            result[8..12].copy_from_slice(&again.to_le_bytes());
        }
        Err(SwapError::Store(error)) => {
            result[0] = 1;
            result[8..20].copy_from_slice(&lower_error(call, error)?);
        }
    }
    call.write_result(at, 4, &result)
}

fn new_cas(call: &mut CallContext<'_>, bucket: u32, key: u32, len: u32, at: u32) -> Result<()> {
    let (mut reader, host) = call.reader();
    host.handles.bucket(bucket)?;
    let cas = match host.new_cas(reader.text(key, len)?) {
        Ok(cas) => Ok(host.handles.add(ResourceHandle::Cas(cas))?),
        Err(error) => Err(error),
    };
    return_result(call, at, cas.map(u32::to_le_bytes))
}

fn current(call: &mut CallContext<'_>, number: u32, at: u32) -> Result<()> {
    let host = call.host();
    let cas = host.handles.cas(number)?;
    let seen = host.observed(cas).cloned();
    let seen = lower_option(call, seen.as_deref())?;
    return_result(call, at, Ok(seen))
}

fn drop_cas(call: &mut CallContext<'_>, number: u32) -> Result<()> {
    let host = call.host();
    let cas = host.handles.cas(number)?;
    host.handles.remove(number);
    host.drop_cas(cas);
    Ok(())
}

fn define_logging(linker: &mut Linker<HostState>, interface: &str, name: &str) -> Result<()> {
    match name {
        "log" => five(linker, interface, name, log),
        _ => Ok(()),
    }
}

fn log(call: &mut CallContext<'_>, level: u32, context: u32, context_len: u32, message: u32, len: u32) -> Result<()> {
    let level = match level {
        0 => Level::Trace,
        1 => Level::Debug,
        2 => Level::Info,
        3 => Level::Warn,
        4 => Level::Error,
        5 => Level::Critical,
        other => bail!("unexpected discriminant: {other}"),
    };
    let (mut reader, host) = call.reader();
    host.log(level, reader.text(context, context_len)?, reader.text(message, len)?);
    Ok(())
}

/// Neither of the two fails here.
fn define_config(linker: &mut Linker<HostState>, interface: &str, name: &str) -> Result<()> {
    match name {
        "get" => three(linker, interface, name, setting),
        "get-all" => one(linker, interface, name, settings),
        _ => Ok(()),
    }
}

fn setting(call: &mut CallContext<'_>, key: u32, len: u32, at: u32) -> Result<()> {
    let (mut reader, host) = call.reader();
    let key = reader.text(key, len)?;
    let settings = Arc::clone(&host.settings);
    let value = settings.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_bytes());
    let value = lower_option(call, value)?;
    return_result(call, at, Ok(value))
}

fn settings(call: &mut CallContext<'_>, at: u32) -> Result<()> {
    let settings = Arc::clone(&call.host().settings);
    let all = call.lower_string_pairs(settings.iter().map(|(name, value)| (&**name, &**value)))?;
    return_result(call, at, Ok(all))
}

fn define_wall_clock(linker: &mut Linker<HostState>, interface: &str, name: &str) -> Result<()> {
    match name {
        "now" => one(linker, interface, name, |call, at| write_datetime(call, at, grants::wall_now())),
        "resolution" => one(linker, interface, name, |call, at| write_datetime(call, at, grants::wall_resolution())),
        _ => Ok(()),
    }
}

fn write_datetime(call: &mut CallContext<'_>, at: u32, time: Datetime) -> Result<()> {
    let mut record = [0; 16];
    record[..8].copy_from_slice(&time.seconds.to_le_bytes());
    record[8..12].copy_from_slice(&time.nanoseconds.to_le_bytes());
    call.write_result(at, 8, &record)
}

fn define_monotonic(linker: &mut Linker<HostState>, interface: &str, name: &str) -> Result<()> {
    match name {
        "now" => number(linker, interface, name, || Ok(grants::monotonic_now())),
        "resolution" => number(linker, interface, name, || Ok(grants::monotonic_resolution())),
        _ => Ok(()),
    }
}

fn define_random(linker: &mut Linker<HostState>, interface: &str, name: &str) -> Result<()> {
    match name {
        "get-random-bytes" | "get-insecure-random-bytes" => {
            let bytes = |caller: Caller<'_, HostState>, len: u64, at: u32| {
                host_call(caller, |call| random_bytes(call, len, at))
            };
            linker.func_wrap(interface, name, bytes).map(drop)
        }
        "get-random-u64" | "get-insecure-random-u64" => number(linker, interface, name, grants::random_u64),
        _ => Ok(()),
    }
}

fn random_bytes(call: &mut CallContext<'_>, len: u64, at: u32) -> Result<()> {
    let bytes = call.lower_bytes(&grants::random_bytes(len)?)?;
    call.write_result(at, 4, &bytes)
}

fn define_seed(linker: &mut Linker<HostState>, interface: &str, name: &str) -> Result<()> {
    match name {
        "insecure-seed" => one(linker, interface, name, seed),
        _ => Ok(()),
    }
}

fn seed(call: &mut CallContext<'_>, at: u32) -> Result<()> {
    let seed = [grants::random_u64()?.to_le_bytes(), grants::random_u64()?.to_le_bytes()];
    call.write_result(at, 8, seed.as_flattened())
}

// By the number of parameters: what the engine needs for a function of the host is compiled once for each type, and not for each
// function.

type Import = Result<()>;

fn one(
    linker: &mut Linker<HostState>,
    interface: &str,
    name: &str,
    run: fn(&mut CallContext<'_>, u32) -> Import,
) -> Import {
    let import = move |caller: Caller<'_, HostState>, a: u32| host_call(caller, |call| run(call, a));
    linker.func_wrap(interface, name, import).map(drop)
}

fn two(
    linker: &mut Linker<HostState>,
    interface: &str,
    name: &str,
    run: fn(&mut CallContext<'_>, u32, u32) -> Import,
) -> Import {
    let import = move |caller: Caller<'_, HostState>, a: u32, b: u32| host_call(caller, |call| run(call, a, b));
    linker.func_wrap(interface, name, import).map(drop)
}

fn three(
    linker: &mut Linker<HostState>,
    interface: &str,
    name: &str,
    run: fn(&mut CallContext<'_>, u32, u32, u32) -> Import,
) -> Import {
    let import =
        move |caller: Caller<'_, HostState>, a: u32, b: u32, c: u32| host_call(caller, |call| run(call, a, b, c));
    linker.func_wrap(interface, name, import).map(drop)
}

fn four(
    linker: &mut Linker<HostState>,
    interface: &str,
    name: &str,
    run: fn(&mut CallContext<'_>, u32, u32, u32, u32) -> Import,
) -> Import {
    let import = move |caller: Caller<'_, HostState>, a: u32, b: u32, c: u32, d: u32| {
        host_call(caller, |call| run(call, a, b, c, d))
    };
    linker.func_wrap(interface, name, import).map(drop)
}

fn five(
    linker: &mut Linker<HostState>,
    interface: &str,
    name: &str,
    run: fn(&mut CallContext<'_>, u32, u32, u32, u32, u32) -> Import,
) -> Import {
    let import = move |caller: Caller<'_, HostState>, a: u32, b: u32, c: u32, d: u32, e: u32| {
        host_call(caller, |call| run(call, a, b, c, d, e))
    };
    linker.func_wrap(interface, name, import).map(drop)
}

fn six(
    linker: &mut Linker<HostState>,
    interface: &str,
    name: &str,
    run: fn(&mut CallContext<'_>, u32, u32, u32, u32, u32, u32) -> Import,
) -> Import {
    let import = move |caller: Caller<'_, HostState>, a: u32, b: u32, c: u32, d: u32, e: u32, f: u32| {
        host_call(caller, |call| run(call, a, b, c, d, e, f))
    };
    linker.func_wrap(interface, name, import).map(drop)
}

/// No parameters, and a number for a result.
fn number(linker: &mut Linker<HostState>, interface: &str, name: &str, read: fn() -> Result<u64>) -> Import {
    let import = move |caller: Caller<'_, HostState>| host_call(caller, |_| read());
    linker.func_wrap(interface, name, import).map(drop)
}

/// Writes a `result` whose value is at most 20 bytes and is aligned to 4.
fn return_result<const N: usize>(call: &mut CallContext<'_>, at: u32, result: Result<[u8; N], Error>) -> Result<()> {
    let mut bytes = [0; 24];
    match result {
        Ok(value) => bytes[4..4 + N].copy_from_slice(&value),
        Err(error) => {
            bytes[0] = 1;
            bytes[4..16].copy_from_slice(&lower_error(call, error)?);
        }
    }
    // Whichever of the two is longer says how long it is.
    call.write_result(at, 4, &bytes[..4 + N.max(12)])
}

fn lower_option(call: &mut CallContext<'_>, value: Option<&[u8]>) -> Result<[u8; 12]> {
    let mut bytes = [0; 12];
    if let Some(value) = value {
        bytes[0] = 1;
        bytes[4..].copy_from_slice(&call.lower_bytes(value)?);
    }
    Ok(bytes)
}

fn lift_optional_text<'a>(reader: &mut Reader<'a>, is_some: u32, at: u32, len: u32) -> Result<Option<&'a str>> {
    match is_some {
        0 => Ok(None),
        1 => reader.text(at, len).map(Some),
        other => bail!("unexpected discriminant: {other}"),
    }
}

fn lower_error(call: &mut CallContext<'_>, error: Error) -> Result<[u8; 12]> {
    let mut bytes = [0; 12];
    match error {
        Error::NoSuchStore => {}
        Error::AccessDenied => bytes[0] = 1,
        Error::Other(reason) => {
            bytes[0] = 2;
            bytes[4..].copy_from_slice(&call.lower_bytes(reason.as_bytes())?);
        }
    }
    Ok(bytes)
}
