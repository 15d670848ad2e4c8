//! A function's durable keys. Their scope is the manifest's `state`: the topic of the message, or the whole function.
//! Changes are stored together with the outputs, and not at all when `handle` fails.

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
    match host::state_get(key) {
        Ok(None) => Ok(None),
        Ok(Some(bytes)) => match V::decode(bytes) {
            Some(value) => Ok(Some(value)),
            None => Err(failed("use", key, "it holds a value of another type".into())),
        },
        Err(error) => Err(failed("read", key, error)),
    }
}

pub fn set<V: Value>(key: &str, value: V) -> Result<(), Failure> {
    value.encode(|bytes| host::state_set(key, bytes)).map_err(|error| failed("write", key, error))
}

pub fn remove(key: &str) -> Result<(), Failure> {
    host::state_remove(key).map_err(|error| failed("remove", key, error))
}

/// Adds to a whole number and returns the sum; a key without a value counts as 0. [`get`] reads it as an `i64`.
pub fn increment(key: &str, delta: i64) -> Result<i64, Failure> {
    host::state_increment(key, delta).map_err(|error| failed("increment", key, error))
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

#[cfg(test)]
mod tests {
    use super::*;
    use core::fmt::Debug;

    #[track_caller]
    fn check<V: Value + PartialEq + Debug>(value: V, bytes: &[u8]) {
        assert_eq!(value.encode(<[u8]>::to_vec), bytes);
        assert_eq!(V::decode(bytes.to_vec()), Some(value));
    }

    #[test]
    fn values_come_back() {
        check(21.5, &21.5f64.to_le_bytes());
        check([1.0, -2.0], &[1.0f64.to_le_bytes(), (-2.0f64).to_le_bytes()].concat());
        check(true, &[1]);
        check(0i64, b"0");
        check(-42i64, b"-42");
        check(i64::MIN, b"-9223372036854775808");
        check(u64::MAX, b"18446744073709551615");
        check(String::from("é"), "é".as_bytes());
        check(b"\0\xff".to_vec(), b"\0\xff");
        assert_eq!(f64::decode(b"1234567".to_vec()), None);
        assert_eq!(<[f64; 2]>::decode([0; 17].to_vec()), None);
        assert_eq!(<[f64; 2]>::decode([0; 24].to_vec()), None);
        assert_eq!(bool::decode(b"\x02".to_vec()), None);
        assert_eq!(i64::decode(b"x".to_vec()), None);
    }
}
