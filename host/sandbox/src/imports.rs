//! The imports of functions that are one core module. They reach the same [`HostState`] as whole components, whose imports
//! are the engine's bindings, and lay out results by hand. The layouts of `wasi:keyvalue` in the canonical ABI:
//!
//! ```text
//! error                        +0 case: 0 no such store, 1 access denied, 2 other | +4 text
//! result<_, error>             +0 is error | +4 the value or the error
//! result<s64, error>           +0 is error | +8 the value or the error
//! result<_, cas-error>         +0 is error | +4 case: 0 store error, 1 failed | +8 the error or the new handle
//! option                       +0 is some | +4 the value
//! text, list                   +0 address | +4 length
//! ```

use std::collections::BTreeSet;
use std::sync::Arc;

use wasmtime::{Engine, InstancePre, Linker, Module, Result, bail};

use super::abi::{CallContext, Reader};
use super::component::bindings::wasi::clocks::{monotonic_clock, wall_clock};
use super::component::bindings::wasi::keyvalue::store::Error;
use super::component::bindings::wasi::logging::logging::Level;
use super::component::bindings::wasi::random::{insecure_seed, random};
use super::handles::ResourceHandle;
use super::host::{HostState, SwapError};
use super::wasi;
use sedge_core::grants::is_of_library;

const STORE: &str = "wasi:keyvalue/store@0.2.0-draft2";
const ATOMICS: &str = "wasi:keyvalue/atomics@0.2.0-draft2";

/// The imports of all functions of one engine. Shared, so that one function's calls warm the caches for the next.
pub struct Imports {
    linker: Linker<HostState>,
    defined: BTreeSet<(Box<str>, Box<str>)>,
    denies_random: bool,
}

impl Imports {
    pub fn new(engine: &Engine) -> Self {
        Self { linker: Linker::new(engine), defined: BTreeSet::new(), denies_random: false }
    }

    /// Imports of functions that have no random numbers, although their module imports them. A call ends the run.
    pub(crate) fn without_random(engine: &Engine) -> Self {
        Self { denies_random: true, ..Self::new(engine) }
    }

    /// Makes a module ready to be instantiated. An unknown import is an error.
    pub fn connect(&mut self, module: &Module) -> Result<InstancePre<HostState>> {
        for import in module.imports() {
            if !self.defined.insert((import.module().into(), import.name().into())) {
                continue;
            }
            if self.denies_random && import.module().starts_with("wasi:random/") {
                number(&mut self.linker, import.module(), import.name(), |_| bail!("no random numbers are granted"))?;
            } else if is_of_library(import.module()) {
                wasi::define_preview_2(&mut self.linker, import.module(), import.name(), &import.ty())?;
            } else {
                define(&mut self.linker, import.module(), import.name())?;
            }
        }
        self.linker.instantiate_pre(module)
    }
}

/// Defines one import by its names. An unknown import stays undefined, which [`Imports::connect`] reports.
fn define(linker: &mut Linker<HostState>, interface: &str, name: &str) -> Result<()> {
    // Any 0.2.x of the clocks and of random numbers is served.
    let settled = ["wasi:clocks/", "wasi:random/"].iter().any(|package| interface.starts_with(package));
    let minor = if settled { interface.find("@0.2.").map(|at| &interface[..at + 5]) } else { None };
    match (minor.unwrap_or(interface), name) {
        (STORE, "open") => three(linker, interface, name, open),
        (STORE, "[method]bucket.get") => four(linker, interface, name, get),
        (STORE, "[method]bucket.set") => six(linker, interface, name, set),
        (STORE, "[method]bucket.delete") => four(linker, interface, name, delete),
        (STORE, "[method]bucket.exists") => four(linker, interface, name, exists),
        (STORE, "[method]bucket.list-keys") => five(linker, interface, name, list_keys),
        (STORE, "[resource-drop]bucket") => one(linker, interface, name, drop_bucket),
        (ATOMICS, "increment") => with_delta(linker, interface, name, increment),
        (ATOMICS, "swap") => four(linker, interface, name, swap),
        (ATOMICS, "[static]cas.new") => four(linker, interface, name, new_cas),
        (ATOMICS, "[method]cas.current") => two(linker, interface, name, current),
        (ATOMICS, "[resource-drop]cas") => one(linker, interface, name, drop_cas),
        ("wasi:logging/logging@0.1.0-draft", "log") => five(linker, interface, name, log),
        ("wasi:config/store@0.2.0-rc.1", "get") => three(linker, interface, name, setting),
        ("wasi:config/store@0.2.0-rc.1", "get-all") => one(linker, interface, name, settings),
        ("wasi:clocks/wall-clock@0.2.", "now") => one(linker, interface, name, wall_now),
        ("wasi:clocks/wall-clock@0.2.", "resolution") => one(linker, interface, name, wall_resolution),
        ("wasi:clocks/monotonic-clock@0.2.", "now") => number(linker, interface, name, monotonic_now),
        ("wasi:clocks/monotonic-clock@0.2.", "resolution") => number(linker, interface, name, monotonic_resolution),
        ("wasi:clocks/monotonic-clock@0.2.", "subscribe-instant" | "subscribe-duration") => {
            timer(linker, interface, name, |_, _| bail!(wasi::WAITS))
        }
        ("wasi:random/random@0.2." | "wasi:random/insecure@0.2.", "get-random-bytes" | "get-insecure-random-bytes") => {
            with_len(linker, interface, name, random_bytes)
        }
        ("wasi:random/random@0.2." | "wasi:random/insecure@0.2.", "get-random-u64" | "get-insecure-random-u64") => {
            number(linker, interface, name, random_u64)
        }
        ("wasi:random/insecure-seed@0.2.", "insecure-seed") => one(linker, interface, name, insecure_seed),
        (wasi::PREVIEW_1, _) => wasi::define(linker, name),
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
    let done = host.set(reader.text(key, key_len)?, Some(reader.bytes(value, len)?))?;
    return_result(call, at, done.map(|()| []))
}

fn delete(call: &mut CallContext<'_>, bucket: u32, key: u32, len: u32, at: u32) -> Result<()> {
    let (mut reader, host) = call.reader();
    host.handles.bucket(bucket)?;
    let done = host.set(reader.text(key, len)?, None)?;
    return_result(call, at, done.map(|()| []))
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
    // The list, and no cursor.
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
    // The call consumes the handle.
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

fn wall_now(call: &mut CallContext<'_>, at: u32) -> Result<()> {
    let time = wall_clock::Host::now(call.host())?;
    write_datetime(call, at, time)
}

fn wall_resolution(call: &mut CallContext<'_>, at: u32) -> Result<()> {
    let time = wall_clock::Host::resolution(call.host())?;
    write_datetime(call, at, time)
}

fn write_datetime(call: &mut CallContext<'_>, at: u32, time: wall_clock::Datetime) -> Result<()> {
    let mut record = [0; 16];
    record[..8].copy_from_slice(&time.seconds.to_le_bytes());
    record[8..12].copy_from_slice(&time.nanoseconds.to_le_bytes());
    call.write_result(at, 8, &record)
}

fn monotonic_now(call: &mut CallContext<'_>) -> Result<u64> {
    monotonic_clock::Host::now(call.host())
}

fn monotonic_resolution(call: &mut CallContext<'_>) -> Result<u64> {
    monotonic_clock::Host::resolution(call.host())
}

fn random_bytes(call: &mut CallContext<'_>, len: u64, at: u32) -> Result<()> {
    let bytes = random::Host::get_random_bytes(call.host(), len)?;
    let bytes = call.lower_bytes(&bytes)?;
    call.write_result(at, 4, &bytes)
}

fn random_u64(call: &mut CallContext<'_>) -> Result<u64> {
    random::Host::get_random_u64(call.host())
}

fn insecure_seed(call: &mut CallContext<'_>, at: u32) -> Result<()> {
    let (low, high) = insecure_seed::Host::insecure_seed(call.host())?;
    call.write_result(at, 8, [low.to_le_bytes(), high.to_le_bytes()].as_flattened())
}

/// Makes a function that defines imports with these parameters. They take function pointers, so that Wasmtime's part is
/// compiled once per signature and not once per import.
macro_rules! definer {
    ($define:ident($($param:ident: $type:ty),*) -> $result:ty) => {
        pub(crate) fn $define(
            linker: &mut ::wasmtime::Linker<$crate::host::HostState>,
            interface: &str,
            name: &str,
            run: fn(&mut $crate::abi::CallContext<'_>, $($param: $type),*) -> ::wasmtime::Result<$result>,
        ) -> ::wasmtime::Result<()> {
            let import = move |caller: ::wasmtime::Caller<'_, $crate::host::HostState>, $($param: $type),*| {
                $crate::abi::host_call(caller, |call| run(call, $($param),*))
            };
            linker.func_wrap(interface, name, import).map(drop)
        }
    };
}
pub(crate) use definer;

definer!(one(a: u32) -> ());
definer!(two(a: u32, b: u32) -> ());
definer!(three(a: u32, b: u32, c: u32) -> ());
definer!(four(a: u32, b: u32, c: u32, d: u32) -> ());
definer!(five(a: u32, b: u32, c: u32, d: u32, e: u32) -> ());
definer!(six(a: u32, b: u32, c: u32, d: u32, e: u32, f: u32) -> ());
definer!(with_delta(a: u32, b: u32, c: u32, delta: i64, d: u32) -> ());
definer!(with_len(len: u64, a: u32) -> ());
definer!(number() -> u64);
definer!(timer(time: u64) -> u32);

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
    // The longer of the two cases decides the length.
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
