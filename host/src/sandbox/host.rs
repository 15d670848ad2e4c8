//! The host's side of a run: all that a guest can reach. State, settings and a log; clock and random only when granted.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use wasmtime::ResourceLimiter;
use wasmtime::component::{HasSelf, Linker, Resource};

use super::abi::GuestExports;
use super::component::bindings::wasi::config::store as config;
use super::component::bindings::wasi::keyvalue::{atomics, store as keyvalue};
use super::component::bindings::wasi::logging::logging::{self, Level};
use super::engine::{MAX_CORE_INSTANCES, MAX_TABLE_ELEMENTS, MAX_TABLES};
use super::handles::HandleTable;
use super::state::{ScopeState, StateView};
use super::{Limits, LogLine};

/// Handles for compare-and-swap that one run may hold at a time.
const MAX_CAS_HANDLES: usize = 64;
/// Log lines of one run, and their length: what is more is cut off and counted.
pub const MAX_LOG_LINES: usize = 32;
pub const MAX_LOG_LINE_BYTES: usize = 1024;

/// A function's state has one bucket. Its handle carries nothing.
pub struct Bucket;

/// What a key held when the guest asked; a swap succeeds only while it still does.
pub struct Cas {
    key: String,
    seen: Option<Bytes>,
}

pub struct HostState {
    pub view: StateView,
    pub limits: Limits,
    pub settings: Arc<[(String, String)]>,
    pub log: Vec<LogLine>,
    pub log_lines_dropped: u32,
    cas: Vec<Option<Cas>>,
    /// Of a function of one module: how to reach it, while it may call.
    pub guest: Option<GuestExports>,
    /// Of the same. Those of other components are the engine's affair.
    pub handles: HandleTable,
    /// Which limit was hit: the guest only sees an allocation fail, or a trap.
    pub exceeded: Option<Exceeded>,
    /// When the run has to be over.
    pub deadline: Instant,
    /// The largest size of the linear memory.
    pub memory_bytes: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exceeded {
    Memory { wanted: usize },
    State { wanted: usize },
}

/// Why a compare-and-swap did nothing.
pub enum SwapError {
    /// The key has another value by now, which the handle has now seen.
    Changed,
    Store(keyvalue::Error),
}

#[derive(Debug, thiserror::Error)]
#[error("limit exceeded")]
struct LimitExceeded;

impl HostState {
    pub fn new(limits: Limits, settings: Arc<[(String, String)]>, state: ScopeState, started: Instant) -> Self {
        Self {
            view: StateView::new(state),
            limits,
            settings,
            log: Vec::new(),
            log_lines_dropped: 0,
            cas: Vec::new(),
            guest: None,
            handles: HandleTable::default(),
            exceeded: None,
            deadline: started + Duration::from_millis(limits.timeout_ms.into()),
            memory_bytes: 0,
        }
    }

    pub fn open(&self, bucket: &str) -> Result<(), keyvalue::Error> {
        match bucket {
            // The manifest says `state = "none"`.
            _ if self.limits.state_bytes == 0 => Err(keyvalue::Error::AccessDenied),
            "" | "default" => Ok(()),
            _ => Err(keyvalue::Error::NoSuchStore),
        }
    }

    pub fn set(&mut self, key: &str, value: Option<&[u8]>) -> wasmtime::Result<()> {
        self.view.set(key, value);
        if self.view.bytes() > self.limits.state_bytes {
            self.exceeded = Some(Exceeded::State { wanted: self.view.bytes() });
            return Err(LimitExceeded.into());
        }
        Ok(())
    }

    /// The keys behind the cursor. The state of a scope is small by limit, so one answer holds all of them.
    pub fn keys(&self, cursor: Option<&str>) -> Vec<String> {
        let mut keys = self.view.keys();
        if let Some(cursor) = cursor {
            keys.retain(|key| &**key > cursor);
        }
        keys
    }

    pub fn increment(&mut self, key: &str, delta: i64) -> wasmtime::Result<Result<i64, keyvalue::Error>> {
        let current = match self.view.get(key) {
            None => 0,
            // Decimal text, which is how other hosts of this interface keep counters, and people read them.
            Some(bytes) => match str::from_utf8(bytes).ok().and_then(|text| text.parse().ok()) {
                Some(current) => current,
                None => {
                    let reason = format!("the value of {key:?} is no whole number in decimal");
                    return Ok(Err(keyvalue::Error::Other(reason)));
                }
            },
        };
        let Some(next) = i64::checked_add(current, delta) else {
            return Ok(Err(keyvalue::Error::Other(format!("the counter {key:?} would overflow"))));
        };
        self.set(key, Some(next.to_string().as_bytes()))?;
        Ok(Ok(next))
    }

    /// Remembers what a key holds now, and returns a number for that.
    pub fn new_cas(&mut self, key: &str) -> Result<u32, keyvalue::Error> {
        if key.len() > self.limits.state_bytes {
            let reason = format!("a key of {} bytes, the limit of all state is {}", key.len(), self.limits.state_bytes);
            return Err(keyvalue::Error::Other(reason));
        }
        let cas = Some(Cas { key: key.to_owned(), seen: self.view.get(key).cloned() });
        let index = match self.cas.iter().position(Option::is_none) {
            Some(free) => {
                self.cas[free] = cas;
                free
            }
            None if self.cas.len() < MAX_CAS_HANDLES => {
                self.cas.push(cas);
                self.cas.len() - 1
            }
            None => {
                let reason = format!("a run may hold {MAX_CAS_HANDLES} compare-and-swap handles at a time");
                return Err(keyvalue::Error::Other(reason));
            }
        };
        Ok(index as u32)
    }

    pub fn observed(&self, cas: u32) -> Option<&Bytes> {
        self.cas.get(cas as usize)?.as_ref()?.seen.as_ref()
    }

    pub fn swap(&mut self, cas: u32, value: &[u8]) -> wasmtime::Result<Result<(), SwapError>> {
        let Some(Cas { key, seen }) = self.cas.get_mut(cas as usize).and_then(Option::take) else {
            let reason = "this compare-and-swap handle is used up".to_owned();
            return Ok(Err(SwapError::Store(keyvalue::Error::Other(reason))));
        };
        if self.view.get(&key) != seen.as_ref() {
            // Only this run can have changed it, between the two calls.
            let seen = self.view.get(&key).cloned();
            self.cas[cas as usize] = Some(Cas { key, seen });
            return Ok(Err(SwapError::Changed));
        }
        self.set(&key, Some(value))?;
        Ok(Ok(()))
    }

    pub fn drop_cas(&mut self, cas: u32) {
        if let Some(slot) = self.cas.get_mut(cas as usize) {
            *slot = None;
        }
    }

    pub fn log(&mut self, level: Level, context: &str, message: &str) {
        if self.log.len() >= MAX_LOG_LINES {
            self.log_lines_dropped += 1;
            return;
        }
        let level = match level {
            Level::Trace | Level::Debug => tracing::Level::DEBUG,
            Level::Info => tracing::Level::INFO,
            Level::Warn => tracing::Level::WARN,
            Level::Error | Level::Critical => tracing::Level::ERROR,
        };
        // No more of it is copied than is kept.
        let mut text = start_of(context).to_owned();
        if !context.is_empty() {
            text.push_str(": ");
        }
        text.push_str(start_of(message));
        if message.len() > MAX_LOG_LINE_BYTES || text.len() > MAX_LOG_LINE_BYTES {
            text.truncate(start_of(&text).len());
            text.shrink_to_fit();
            text.push('…');
        }
        // A guest must not be able to paint a terminal or forge lines of the journal.
        if text.contains(char::is_control) {
            text = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        }
        self.log.push(LogLine { level, text });
    }

    pub fn setting(&self, key: &str) -> Option<&str> {
        self.settings.iter().find(|(name, _)| name == key).map(|(_, value)| &**value)
    }
}

/// As much of a text as fits a line of the log.
fn start_of(text: &str) -> &str {
    let end = (0..=MAX_LOG_LINE_BYTES.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    &text[..end.unwrap_or(0)]
}

pub fn add_to_linker(linker: &mut Linker<HostState>) -> wasmtime::Result<()> {
    keyvalue::add_to_linker::<_, HasSelf<_>>(linker, |host| host)?;
    atomics::add_to_linker::<_, HasSelf<_>>(linker, |host| host)?;
    logging::add_to_linker::<_, HasSelf<_>>(linker, |host| host)?;
    config::add_to_linker::<_, HasSelf<_>>(linker, |host| host)
}

impl ResourceLimiter for HostState {
    fn memory_growing(&mut self, _current: usize, desired: usize, _maximum: Option<usize>) -> wasmtime::Result<bool> {
        if desired > self.limits.memory_bytes {
            self.exceeded = Some(Exceeded::Memory { wanted: desired });
            return Err(LimitExceeded.into());
        }
        self.memory_bytes = desired;
        Ok(true)
    }

    fn table_growing(&mut self, _current: usize, desired: usize, _maximum: Option<usize>) -> wasmtime::Result<bool> {
        Ok(desired <= MAX_TABLE_ELEMENTS as usize)
    }

    fn instances(&self) -> usize {
        MAX_CORE_INSTANCES as usize
    }

    fn tables(&self) -> usize {
        MAX_TABLES as usize
    }

    fn memories(&self) -> usize {
        1
    }
}

impl keyvalue::Host for HostState {
    fn open(&mut self, identifier: String) -> wasmtime::Result<Result<Resource<Bucket>, keyvalue::Error>> {
        Ok(HostState::open(self, &identifier).map(|()| Resource::new_own(0)))
    }
}

impl keyvalue::HostBucket for HostState {
    fn get(&mut self, _: Resource<Bucket>, key: String) -> wasmtime::Result<Result<Option<Vec<u8>>, keyvalue::Error>> {
        Ok(Ok(self.view.get(&key).map(|value| value.to_vec())))
    }

    fn set(
        &mut self,
        _: Resource<Bucket>,
        key: String,
        value: Vec<u8>,
    ) -> wasmtime::Result<Result<(), keyvalue::Error>> {
        HostState::set(self, &key, Some(&value)).map(Ok)
    }

    fn delete(&mut self, _: Resource<Bucket>, key: String) -> wasmtime::Result<Result<(), keyvalue::Error>> {
        HostState::set(self, &key, None).map(Ok)
    }

    fn exists(&mut self, _: Resource<Bucket>, key: String) -> wasmtime::Result<Result<bool, keyvalue::Error>> {
        Ok(Ok(self.view.get(&key).is_some()))
    }

    fn list_keys(
        &mut self,
        _: Resource<Bucket>,
        cursor: Option<String>,
    ) -> wasmtime::Result<Result<keyvalue::KeyResponse, keyvalue::Error>> {
        Ok(Ok(keyvalue::KeyResponse { keys: self.keys(cursor.as_deref()), cursor: None }))
    }

    fn drop(&mut self, _: Resource<Bucket>) -> wasmtime::Result<()> {
        Ok(())
    }
}

impl atomics::Host for HostState {
    fn increment(
        &mut self,
        _: Resource<Bucket>,
        key: String,
        delta: i64,
    ) -> wasmtime::Result<Result<i64, keyvalue::Error>> {
        HostState::increment(self, &key, delta)
    }

    fn swap(&mut self, cas: Resource<Cas>, value: Vec<u8>) -> wasmtime::Result<Result<(), atomics::CasError>> {
        Ok(HostState::swap(self, cas.rep(), &value)?.map_err(|error| match error {
            SwapError::Changed => atomics::CasError::CasFailed(Resource::new_own(cas.rep())),
            SwapError::Store(error) => atomics::CasError::StoreError(error),
        }))
    }
}

impl atomics::HostCas for HostState {
    fn new(&mut self, _: Resource<Bucket>, key: String) -> wasmtime::Result<Result<Resource<Cas>, keyvalue::Error>> {
        Ok(self.new_cas(&key).map(Resource::new_own))
    }

    fn current(&mut self, cas: Resource<Cas>) -> wasmtime::Result<Result<Option<Vec<u8>>, keyvalue::Error>> {
        Ok(Ok(self.observed(cas.rep()).map(|value| value.to_vec())))
    }

    fn drop(&mut self, cas: Resource<Cas>) -> wasmtime::Result<()> {
        self.drop_cas(cas.rep());
        Ok(())
    }
}

impl logging::Host for HostState {
    fn log(&mut self, level: Level, context: String, message: String) -> wasmtime::Result<()> {
        HostState::log(self, level, &context, &message);
        Ok(())
    }
}

impl config::Host for HostState {
    fn get(&mut self, key: String) -> wasmtime::Result<Result<Option<String>, config::Error>> {
        Ok(Ok(self.setting(&key).map(str::to_owned)))
    }

    fn get_all(&mut self) -> wasmtime::Result<Result<Vec<(String, String)>, config::Error>> {
        Ok(Ok(self.settings.to_vec()))
    }
}

#[cfg(all(test, feature = "compiler"))]
mod tests;
