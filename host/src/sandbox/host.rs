//! The host's side of a run: all that a guest can reach. State, settings and a log; clock and random only when granted.

use std::sync::Arc;
use std::time::{Duration, Instant};

use wasmtime::component::{HasSelf, Linker, Resource};
use wasmtime::{ResourceLimiter, Result};

use super::bindings::wasi::config::store as config;
use super::bindings::wasi::keyvalue::{atomics, store as keyvalue};
use super::bindings::wasi::logging::logging;
use super::engine::{MAX_CORE_INSTANCES, MAX_TABLE_ELEMENTS, MAX_TABLES};
use super::state::{State, View};
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
    seen: Option<bytes::Bytes>,
}

pub struct Host {
    pub view: View,
    pub limits: Limits,
    pub settings: Arc<[(String, String)]>,
    pub log: Vec<LogLine>,
    pub log_lines_dropped: u32,
    cas: Vec<Option<Cas>>,
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

#[derive(Debug, thiserror::Error)]
#[error("limit exceeded")]
struct LimitExceeded;

impl Host {
    pub fn new(limits: Limits, settings: Arc<[(String, String)]>, state: State, started: Instant) -> Self {
        Self {
            view: View::new(state),
            limits,
            settings,
            log: Vec::new(),
            log_lines_dropped: 0,
            cas: Vec::new(),
            exceeded: None,
            deadline: started + Duration::from_millis(limits.timeout_ms.into()),
            memory_bytes: 0,
        }
    }

    fn set(&mut self, key: &str, value: Option<&[u8]>) -> Result<()> {
        self.view.set(key, value);
        if self.view.bytes() > self.limits.state_bytes {
            self.exceeded = Some(Exceeded::State { wanted: self.view.bytes() });
            return Err(LimitExceeded.into());
        }
        Ok(())
    }
}

pub fn add_to_linker(linker: &mut Linker<Host>) -> Result<()> {
    keyvalue::add_to_linker::<_, HasSelf<_>>(linker, |host| host)?;
    atomics::add_to_linker::<_, HasSelf<_>>(linker, |host| host)?;
    logging::add_to_linker::<_, HasSelf<_>>(linker, |host| host)?;
    config::add_to_linker::<_, HasSelf<_>>(linker, |host| host)
}

impl ResourceLimiter for Host {
    fn memory_growing(&mut self, _current: usize, desired: usize, _maximum: Option<usize>) -> Result<bool> {
        if desired > self.limits.memory_bytes {
            self.exceeded = Some(Exceeded::Memory { wanted: desired });
            return Err(LimitExceeded.into());
        }
        self.memory_bytes = desired;
        Ok(true)
    }

    fn table_growing(&mut self, _current: usize, desired: usize, _maximum: Option<usize>) -> Result<bool> {
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

impl keyvalue::Host for Host {
    fn open(&mut self, identifier: String) -> Result<Result<Resource<Bucket>, keyvalue::Error>> {
        Ok(match identifier.as_str() {
            // The manifest says `state = "none"`.
            _ if self.limits.state_bytes == 0 => Err(keyvalue::Error::AccessDenied),
            "" | "default" => Ok(Resource::new_own(0)),
            _ => Err(keyvalue::Error::NoSuchStore),
        })
    }
}

impl keyvalue::HostBucket for Host {
    fn get(&mut self, _: Resource<Bucket>, key: String) -> Result<Result<Option<Vec<u8>>, keyvalue::Error>> {
        Ok(Ok(self.view.get(&key).map(|value| value.to_vec())))
    }

    fn set(&mut self, _: Resource<Bucket>, key: String, value: Vec<u8>) -> Result<Result<(), keyvalue::Error>> {
        self.set(&key, Some(&value)).map(Ok)
    }

    fn delete(&mut self, _: Resource<Bucket>, key: String) -> Result<Result<(), keyvalue::Error>> {
        self.set(&key, None).map(Ok)
    }

    fn exists(&mut self, _: Resource<Bucket>, key: String) -> Result<Result<bool, keyvalue::Error>> {
        Ok(Ok(self.view.get(&key).is_some()))
    }

    fn list_keys(
        &mut self,
        _: Resource<Bucket>,
        cursor: Option<String>,
    ) -> Result<Result<keyvalue::KeyResponse, keyvalue::Error>> {
        // The state of a scope is small by limit, so one answer holds all keys.
        let mut keys = self.view.keys();
        if let Some(cursor) = cursor {
            keys.retain(|key| *key > cursor);
        }
        Ok(Ok(keyvalue::KeyResponse { keys, cursor: None }))
    }

    fn drop(&mut self, _: Resource<Bucket>) -> Result<()> {
        Ok(())
    }
}

impl atomics::Host for Host {
    fn increment(&mut self, _: Resource<Bucket>, key: String, delta: i64) -> Result<Result<i64, keyvalue::Error>> {
        let current = match self.view.get(&key) {
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
        self.set(&key, Some(next.to_string().as_bytes()))?;
        Ok(Ok(next))
    }

    fn swap(&mut self, cas: Resource<Cas>, value: Vec<u8>) -> Result<Result<(), atomics::CasError>> {
        let index = cas.rep() as usize;
        let Some(Cas { key, seen }) = self.cas.get_mut(index).and_then(Option::take) else {
            let reason = "this compare-and-swap handle is used up".to_owned();
            return Ok(Err(atomics::CasError::StoreError(keyvalue::Error::Other(reason))));
        };
        if self.view.get(&key) != seen.as_ref() {
            // Only this run can have changed it, between the two calls.
            let seen = self.view.get(&key).cloned();
            self.cas[index] = Some(Cas { key, seen });
            return Ok(Err(atomics::CasError::CasFailed(Resource::new_own(cas.rep()))));
        }
        self.set(&key, Some(&value))?;
        Ok(Ok(()))
    }
}

impl atomics::HostCas for Host {
    fn new(&mut self, _: Resource<Bucket>, key: String) -> Result<Result<Resource<Cas>, keyvalue::Error>> {
        if key.len() > self.limits.state_bytes {
            let reason = format!("a key of {} bytes, the limit of all state is {}", key.len(), self.limits.state_bytes);
            return Ok(Err(keyvalue::Error::Other(reason)));
        }
        let seen = self.view.get(&key).cloned();
        let cas = Some(Cas { key, seen });
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
                return Ok(Err(keyvalue::Error::Other(reason)));
            }
        };
        Ok(Ok(Resource::new_own(index as u32)))
    }

    fn current(&mut self, cas: Resource<Cas>) -> Result<Result<Option<Vec<u8>>, keyvalue::Error>> {
        let seen = self.cas.get(cas.rep() as usize).and_then(Option::as_ref).and_then(|cas| cas.seen.as_ref());
        Ok(Ok(seen.map(|value| value.to_vec())))
    }

    fn drop(&mut self, cas: Resource<Cas>) -> Result<()> {
        if let Some(slot) = self.cas.get_mut(cas.rep() as usize) {
            *slot = None;
        }
        Ok(())
    }
}

impl logging::Host for Host {
    fn log(&mut self, level: logging::Level, context: String, message: String) -> Result<()> {
        if self.log.len() >= MAX_LOG_LINES {
            self.log_lines_dropped += 1;
            return Ok(());
        }
        let level = match level {
            logging::Level::Trace | logging::Level::Debug => tracing::Level::DEBUG,
            logging::Level::Info => tracing::Level::INFO,
            logging::Level::Warn => tracing::Level::WARN,
            logging::Level::Error | logging::Level::Critical => tracing::Level::ERROR,
        };
        let mut text = if context.is_empty() { message } else { format!("{context}: {message}") };
        if text.len() > MAX_LOG_LINE_BYTES {
            let end = (0..=MAX_LOG_LINE_BYTES).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
            text.truncate(end);
            text.shrink_to_fit();
            text.push('…');
        }
        // A guest must not be able to paint a terminal or forge lines of the journal.
        if text.contains(char::is_control) {
            text = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        }
        self.log.push(LogLine { level, text });
        Ok(())
    }
}

impl config::Host for Host {
    fn get(&mut self, key: String) -> Result<Result<Option<String>, config::Error>> {
        Ok(Ok(self.settings.iter().find(|(name, _)| *name == key).map(|(_, value)| value.clone())))
    }

    fn get_all(&mut self) -> Result<Result<Vec<(String, String)>, config::Error>> {
        Ok(Ok(self.settings.to_vec()))
    }
}
