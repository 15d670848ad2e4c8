//! The host's side of a run: all that a guest can reach. State, settings and a log; the grants add clocks and random numbers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use wasmtime::ResourceLimiter;
use wasmtime::component::{HasSelf, Linker, Resource};

use super::abi::GuestExports;
use super::component::bindings::wasi::config::store as config;
use super::component::bindings::wasi::keyvalue::{atomics, store as keyvalue};
use super::component::bindings::wasi::logging::logging::{self, Level};
use super::draws::Draws;
use super::engine::{MAX_CORE_INSTANCES, MAX_TABLE_ELEMENTS, MAX_TABLES};
use super::handles::HandleTable;
use super::state::{ScopeState, StateView};
use super::wasi::{Library, Program};
use sedge_core::limits::{Limits, MAX_LOG_LINE_BYTES, MAX_LOG_LINES, MAX_STATE_KEYS, MAX_STATE_WRITES};
use sedge_core::message::LogLine;
use sedge_core::text::is_unprintable;

/// Number of compare-and-swap handles that one run may hold.
const MAX_CAS_HANDLES: usize = 64;

/// The only bucket of a function's state. Its handle carries no data.
pub struct Bucket;

/// A key and its value when the guest asked. A swap succeeds only while the key holds that value.
pub struct Cas {
    key: String,
    observed: Option<Bytes>,
}

pub struct HostState {
    pub(crate) view: StateView,
    pub limits: Limits,
    pub settings: Arc<[(String, String)]>,
    pub log: Vec<LogLine>,
    pub log_lines_dropped: u32,
    /// Last line that the guest logged at `critical`.
    pub(crate) last_words: Option<String>,
    cas: Vec<Option<Cas>>,
    /// How to reach a function that is one core module. Empty while it may not call the host.
    pub guest: Option<GuestExports>,
    /// Handles of a function that is one core module. The engine keeps those of whole components.
    pub(crate) handles: HandleTable,
    /// Streams of a program for WASI. `None` for other functions, and while the program may not call the host.
    pub(crate) program: Option<Box<Program>>,
    /// What a standard library of WASI 0.2 reaches. `None` for functions without one.
    pub(crate) library: Option<Box<Library>>,
    /// Where the values of clocks and random numbers come from.
    pub(crate) draws: Draws,
    /// End of the time that the run may take.
    pub deadline: Instant,
    /// Size of the linear memory, which never shrinks.
    pub memory_bytes: usize,
}

/// The result of a call to `wasi:keyvalue`: a trap, or an error that the guest sees.
type StoreResult<T> = wasmtime::Result<Result<T, keyvalue::Error>>;

/// A limit of the host. Exceeding it ends the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Exceeded {
    #[error("asked for {wanted} bytes of memory, the limit is {limit}")]
    Memory { wanted: usize, limit: usize },
    #[error("wrote more than {limit} bytes to standard output")]
    Stdout { limit: usize },
    #[error("{wanted} bytes of state, the limit is {limit}")]
    State { wanted: usize, limit: usize },
    #[error("{keys} keys of state, the limit is {MAX_STATE_KEYS}")]
    StateKeys { keys: usize },
    #[error("changed more than {MAX_STATE_WRITES} keys of state in one run")]
    StateChanges,
}

/// Why a compare-and-swap did nothing.
pub enum SwapError {
    /// The key has another value. The handle has observed that one now.
    Changed,
    Store(keyvalue::Error),
}

impl HostState {
    pub fn new(limits: Limits, settings: Arc<[(String, String)]>, state: ScopeState, started: Instant) -> Self {
        Self {
            view: StateView::new(state),
            limits,
            settings,
            log: Vec::new(),
            log_lines_dropped: 0,
            last_words: None,
            cas: Vec::new(),
            guest: None,
            handles: HandleTable::default(),
            program: None,
            library: None,
            draws: Draws::Real,
            deadline: started + Duration::from_millis(limits.timeout_ms.into()),
            memory_bytes: 0,
        }
    }

    pub fn open(&self, bucket: &str) -> Result<(), keyvalue::Error> {
        match bucket {
            "" | "default" => Ok(()),
            _ => Err(keyvalue::Error::NoSuchStore),
        }
    }

    /// Whether the manifest has `state = "none"`: a read finds nothing, and a write is denied.
    fn is_stateless(&self) -> bool {
        self.limits.state_bytes == 0
    }

    pub fn set(&mut self, key: &str, value: Option<&[u8]>) -> StoreResult<()> {
        if self.is_stateless() {
            return Ok(Err(keyvalue::Error::AccessDenied));
        }
        self.view.set(key, value);
        let (wanted, limit) = (self.view.bytes(), self.limits.state_bytes);
        if wanted > limit {
            return Err(Exceeded::State { wanted, limit }.into());
        }
        if self.view.key_count() > MAX_STATE_KEYS && value.is_some() {
            return Err(Exceeded::StateKeys { keys: self.view.key_count() }.into());
        }
        if self.view.changes() > MAX_STATE_WRITES {
            return Err(Exceeded::StateChanges.into());
        }
        Ok(Ok(()))
    }

    /// Returns the keys after the cursor, all at once: the state of a scope is small by its limit.
    pub fn keys(&self, cursor: Option<&str>) -> Vec<String> {
        let mut keys = self.view.keys();
        if let Some(cursor) = cursor {
            keys.retain(|key| &**key > cursor);
        }
        keys
    }

    pub(crate) fn increment(&mut self, key: &str, delta: i64) -> StoreResult<i64> {
        // An increment by 0 is a read.
        if self.is_stateless() && delta == 0 {
            return Ok(Ok(0));
        }
        let current = match self.view.get(key) {
            None => 0,
            // Decimal text, as in other hosts of this interface, and readable by people.
            Some(bytes) => match str::from_utf8(bytes).ok().and_then(|text| text.parse().ok()) {
                Some(current) => current,
                None => {
                    let reason = format!("the value of {key:?} is not a decimal integer");
                    return Ok(Err(keyvalue::Error::Other(reason)));
                }
            },
        };
        let Some(next) = i64::checked_add(current, delta) else {
            return Ok(Err(keyvalue::Error::Other(format!("the counter {key:?} would overflow"))));
        };
        Ok(self.set(key, Some(next.to_string().as_bytes()))?.map(|()| next))
    }

    /// Makes a compare-and-swap for the key's present value, and returns its index.
    pub(crate) fn new_cas(&mut self, key: &str) -> Result<u32, keyvalue::Error> {
        if self.is_stateless() {
            return Err(keyvalue::Error::AccessDenied);
        }
        if key.len() > self.limits.state_bytes {
            let reason = format!("a key of {} bytes, the limit of all state is {}", key.len(), self.limits.state_bytes);
            return Err(keyvalue::Error::Other(reason));
        }
        let cas = Some(Cas { key: key.to_owned(), observed: self.view.get(key).cloned() });
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
        self.cas.get(cas as usize)?.as_ref()?.observed.as_ref()
    }

    pub fn swap(&mut self, cas: u32, value: &[u8]) -> wasmtime::Result<Result<(), SwapError>> {
        let Some(Cas { key, observed }) = self.cas.get_mut(cas as usize).and_then(Option::take) else {
            let reason = "this compare-and-swap handle is used up".to_owned();
            return Ok(Err(SwapError::Store(keyvalue::Error::Other(reason))));
        };
        if self.view.get(&key) != observed.as_ref() {
            // Changed by this same run, between the two calls.
            let observed = self.view.get(&key).cloned();
            self.cas[cas as usize] = Some(Cas { key, observed });
            return Ok(Err(SwapError::Changed));
        }
        Ok(self.set(&key, Some(value))?.map_err(SwapError::Store))
    }

    pub(crate) fn drop_cas(&mut self, cas: u32) {
        if let Some(slot) = self.cas.get_mut(cas as usize) {
            *slot = None;
        }
    }

    pub fn log(&mut self, level: Level, context: &str, message: &str) {
        // Last words: those of a panic reach the dead letter, also behind a full log.
        let is_last_word = matches!(level, Level::Critical);
        if self.log.len() >= MAX_LOG_LINES && !is_last_word {
            self.log_lines_dropped += 1;
            return;
        }
        let level = match level {
            Level::Trace | Level::Debug => tracing::Level::DEBUG,
            Level::Info => tracing::Level::INFO,
            Level::Warn => tracing::Level::WARN,
            Level::Error | Level::Critical => tracing::Level::ERROR,
        };
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
        // A guest must not control a terminal or forge lines of the journal.
        if text.contains(is_unprintable) {
            text = text.chars().map(|c| if is_unprintable(c) { ' ' } else { c }).collect();
        }
        if is_last_word {
            self.last_words = Some(text.clone());
            if self.log.len() >= MAX_LOG_LINES {
                self.log_lines_dropped += 1;
                return;
            }
        }
        self.log.push(LogLine { level, text });
    }

    pub(crate) fn setting(&self, key: &str) -> Option<&str> {
        self.settings.iter().find(|(name, _)| name == key).map(|(_, value)| &**value)
    }
}

/// Returns the part of a text that fits a log line.
fn start_of(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_LOG_LINE_BYTES)]
}

pub(crate) fn add_to_linker(linker: &mut Linker<HostState>) -> wasmtime::Result<()> {
    keyvalue::add_to_linker::<_, HasSelf<_>>(linker, |host| host)?;
    atomics::add_to_linker::<_, HasSelf<_>>(linker, |host| host)?;
    logging::add_to_linker::<_, HasSelf<_>>(linker, |host| host)?;
    config::add_to_linker::<_, HasSelf<_>>(linker, |host| host)
}

impl ResourceLimiter for HostState {
    fn memory_growing(&mut self, _current: usize, desired: usize, _maximum: Option<usize>) -> wasmtime::Result<bool> {
        let limit = self.limits.memory_bytes;
        if desired > limit {
            return Err(Exceeded::Memory { wanted: desired, limit }.into());
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
    fn open(&mut self, identifier: String) -> StoreResult<Resource<Bucket>> {
        Ok(HostState::open(self, &identifier).map(|()| Resource::new_own(0)))
    }
}

impl keyvalue::HostBucket for HostState {
    fn get(&mut self, _: Resource<Bucket>, key: String) -> StoreResult<Option<Vec<u8>>> {
        Ok(Ok(self.view.get(&key).map(|value| value.to_vec())))
    }

    fn set(&mut self, _: Resource<Bucket>, key: String, value: Vec<u8>) -> StoreResult<()> {
        HostState::set(self, &key, Some(&value))
    }

    fn delete(&mut self, _: Resource<Bucket>, key: String) -> StoreResult<()> {
        HostState::set(self, &key, None)
    }

    fn exists(&mut self, _: Resource<Bucket>, key: String) -> StoreResult<bool> {
        Ok(Ok(self.view.get(&key).is_some()))
    }

    fn list_keys(&mut self, _: Resource<Bucket>, cursor: Option<String>) -> StoreResult<keyvalue::KeyResponse> {
        Ok(Ok(keyvalue::KeyResponse { keys: self.keys(cursor.as_deref()), cursor: None }))
    }

    fn drop(&mut self, _: Resource<Bucket>) -> wasmtime::Result<()> {
        Ok(())
    }
}

impl atomics::Host for HostState {
    fn increment(&mut self, _: Resource<Bucket>, key: String, delta: i64) -> StoreResult<i64> {
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
    fn new(&mut self, _: Resource<Bucket>, key: String) -> StoreResult<Resource<Cas>> {
        Ok(self.new_cas(&key).map(Resource::new_own))
    }

    fn current(&mut self, cas: Resource<Cas>) -> StoreResult<Option<Vec<u8>>> {
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
