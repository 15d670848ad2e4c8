use alloc::string::String;

use crate::{Failure, host, number, text};

/// What an entry of the manifest's `[config]` table can be read as.
pub trait Setting: Sized {
    /// For the error: `which is not a number`.
    const KIND: &'static str;

    fn parse(text: String) -> Option<Self>;
}

/// An entry of the manifest's `[config]` table. It is an error if it is missing or not of this kind.
pub fn setting<S: Setting>(key: &str) -> Result<S, Failure> {
    optional(key)?.ok_or_else(|| wrong(key, "missing: add it to [config]", ""))
}

/// The same with a default for when it is missing.
pub fn setting_or<S: Setting>(key: &str, default: S) -> Result<S, Failure> {
    Ok(optional(key)?.unwrap_or(default))
}

fn optional<S: Setting>(key: &str) -> Result<Option<S>, Failure> {
    match host::setting(key) {
        Ok(None) => Ok(None),
        Ok(Some(text)) => S::parse(text).map(Some).ok_or_else(|| wrong(key, "not ", S::KIND)),
        Err(error) => Err(wrong(key, "unreadable: ", &error)),
    }
}

#[cold]
#[inline(never)]
fn wrong(key: &str, what: &str, detail: &str) -> Failure {
    Failure::reject(text!("setting \"", key, "\" is ", what, detail))
}

impl Setting for f64 {
    const KIND: &'static str = "a number";

    fn parse(text: String) -> Option<Self> {
        number::parse(text.as_bytes())
    }
}

impl Setting for String {
    const KIND: &'static str = "text";

    fn parse(text: String) -> Option<Self> {
        Some(text)
    }
}

impl Setting for bool {
    const KIND: &'static str = "true or false";

    fn parse(text: String) -> Option<Self> {
        match text.as_str() {
            "true" => Some(true),
            "false" => Some(false),
            _ => None,
        }
    }
}

macro_rules! integers {
    ($($integer:ty)*) => {$(
        impl Setting for $integer {
            const KIND: &'static str = "a whole number in its range";

            fn parse(text: String) -> Option<Self> {
                text.trim_ascii().parse().ok()
            }
        }
    )*};
}

integers!(u32 u64 i32 i64);
