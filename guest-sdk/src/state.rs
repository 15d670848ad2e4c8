//! A function's durable keys. Their scope is the manifest's `state`: the topic of the message, or the whole function.
//! Changes are stored together with the outputs, and not at all when `handle` fails.
//!
//! What functions often keep is here too, each under a key that the function names: [`Hysteresis`], [`Streak`] and [`Debounce`] for
//! what is on or off; [`Sliding`] and [`Tumbling`] windows of values; [`Meter`] for counters that begin again; [`DeviceMap`] for many
//! devices in one scope. Their first byte is the version of their form. Bytes that are not of that form, damaged or of another
//! version, count as nothing: the helper begins anew.

mod debounce;
mod devices;
mod hysteresis;
mod meter;
mod moment;
mod sliding;
mod streak;
mod summary;
mod switch;
#[cfg(test)]
mod tests;
mod tumbling;

pub use debounce::Debounce;
pub use devices::DeviceMap;
pub use hysteresis::Hysteresis;
pub use meter::{Consumption, Meter};
pub use moment::Moment;
pub use sliding::Sliding;
pub use streak::Streak;
pub use summary::Summary;
pub use switch::Edge;
pub use tumbling::Tumbling;

use alloc::string::String;
use alloc::vec::Vec;

use crate::number::decimal;
use crate::piece::concat;
use crate::{Failure, host, text};

/// What a key can hold. The encodings are stable: the values outlive the function's version.
pub trait Value: Sized {
    /// Calls `write` once with the value's bytes.
    fn encode<R>(&self, write: impl FnOnce(&[u8]) -> R) -> R;

    /// `None` when these are not the bytes of such a value.
    fn decode(bytes: Vec<u8>) -> Option<Self>;
}

/// The value of a key, if it has one. It is an error if something else was stored there.
pub fn get<V: Value>(key: &str) -> Result<Option<V>, Failure> {
    match read(key)? {
        None => Ok(None),
        Some(bytes) => match V::decode(bytes) {
            Some(value) => Ok(Some(value)),
            None => Err(failed("use", key, "it holds a value of another type".into())),
        },
    }
}

fn read(key: &str) -> Result<Option<Vec<u8>>, Failure> {
    host::state_get(key).map_err(|error| failed("read", key, error))
}

fn write(key: &str, bytes: &[u8]) -> Result<(), Failure> {
    host::state_set(key, bytes).map_err(|error| failed("write", key, error))
}

pub fn set<V: Value>(key: &str, value: V) -> Result<(), Failure> {
    value.encode(|bytes| write(key, bytes))
}

pub fn remove(key: &str) -> Result<(), Failure> {
    host::state_remove(key).map_err(|error| failed("remove", key, error))
}

/// Adds to a whole number and returns the sum; a key without a value counts as 0. [`get`] reads it as an `i64`.
pub fn increment(key: &str, delta: i64) -> Result<i64, Failure> {
    host::state_increment(key, delta).map_err(|error| failed("increment", key, error))
}

/// The keys of the scope in order. With `state = "none"` there are none.
pub fn keys() -> Result<Vec<String>, Failure> {
    host::state_keys().map_err(|error| Failure::reject(concat(&["cannot list the state keys: ", &error])))
}

/// The first bytes of what is left to decode.
fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (first, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(*first)
}

#[cold]
#[inline(never)]
fn failed(what: &str, key: &str, error: String) -> Failure {
    Failure::reject(concat(&["cannot ", what, " state key \"", key, "\": ", &error]))
}

/// Eight bytes, little-endian.
impl Value for f64 {
    fn encode<R>(&self, write: impl FnOnce(&[u8]) -> R) -> R {
        write(&self.to_le_bytes())
    }

    fn decode(bytes: Vec<u8>) -> Option<Self> {
        Some(Self::from_le_bytes(bytes.as_slice().try_into().ok()?))
    }
}

/// Eight bytes for each number, little-endian: the cheapest way to keep several.
impl<const N: usize> Value for [f64; N] {
    fn encode<R>(&self, write: impl FnOnce(&[u8]) -> R) -> R {
        write(self.map(f64::to_le_bytes).as_flattened())
    }

    fn decode(bytes: Vec<u8>) -> Option<Self> {
        let (numbers, rest) = bytes.as_chunks();
        let numbers: &[[u8; 8]; N] = numbers.try_into().ok()?;
        rest.is_empty().then(|| numbers.map(f64::from_le_bytes))
    }
}

/// One byte, 0 or 1.
impl Value for bool {
    fn encode<R>(&self, write: impl FnOnce(&[u8]) -> R) -> R {
        write(&[u8::from(*self)])
    }

    fn decode(bytes: Vec<u8>) -> Option<Self> {
        match bytes[..] {
            [0] => Some(false),
            [1] => Some(true),
            _ => None,
        }
    }
}

/// Decimal text, as [`increment`] keeps it.
impl Value for i64 {
    fn encode<R>(&self, write: impl FnOnce(&[u8]) -> R) -> R {
        write(text!(*self).as_bytes())
    }

    fn decode(bytes: Vec<u8>) -> Option<Self> {
        core::str::from_utf8(&bytes).ok()?.parse().ok()
    }
}

/// Decimal text.
impl Value for u64 {
    fn encode<R>(&self, write: impl FnOnce(&[u8]) -> R) -> R {
        write(decimal(*self, &mut [0; 20]).as_bytes())
    }

    fn decode(bytes: Vec<u8>) -> Option<Self> {
        core::str::from_utf8(&bytes).ok()?.parse().ok()
    }
}

impl Value for String {
    fn encode<R>(&self, write: impl FnOnce(&[u8]) -> R) -> R {
        write(self.as_bytes())
    }

    fn decode(bytes: Vec<u8>) -> Option<Self> {
        Self::from_utf8(bytes).ok()
    }
}

impl Value for Vec<u8> {
    fn encode<R>(&self, write: impl FnOnce(&[u8]) -> R) -> R {
        write(self)
    }

    fn decode(bytes: Vec<u8>) -> Option<Self> {
        Some(bytes)
    }
}
