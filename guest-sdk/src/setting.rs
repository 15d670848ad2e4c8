use alloc::string::String;
use alloc::vec::Vec;

use crate::json::Value;
use crate::piece::concat;
use crate::{Failure, host, number};

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

/// Settings of one sensor, or of another part, with those of the whole function behind them: in the section `oven` the setting
/// `max` is the entry `oven.max`, and where there is none the entry `max`.
///
/// ```toml
/// [config]
/// max = 80
/// "oven.max" = 240
/// ```
#[derive(Clone, Debug)]
pub struct Section {
    name: String,
}

impl Section {
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into() }
    }

    /// As [`setting`], in this section.
    pub fn setting<S: Setting>(&self, key: &str) -> Result<S, Failure> {
        match optional(&self.key(key))? {
            Some(value) => Ok(value),
            None => setting(key),
        }
    }

    /// As [`setting_or`], in this section.
    pub fn setting_or<S: Setting>(&self, key: &str, default: S) -> Result<S, Failure> {
        match optional(&self.key(key))? {
            Some(value) => Ok(value),
            None => setting_or(key, default),
        }
    }

    fn key(&self, key: &str) -> String {
        concat(&[&self.name, ".", key])
    }
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
    Failure::reject(concat(&["setting \"", key, "\" is ", what, detail]))
}

/// A finite number.
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

/// A list: `"21, 22.5"`, or as JSON `["21", "22.5"]`, whose texts may hold commas. Nothing is an empty list.
impl<S: Setting> Setting for Vec<S> {
    const KIND: &'static str = "a list whose entries all are of the kind that is needed";

    fn parse(text: String) -> Option<Self> {
        let text = text.trim_ascii();
        if text.is_empty() {
            return Some(Self::new());
        }
        if !text.starts_with('[') {
            return text.split(',').map(|entry| S::parse(entry.trim_ascii().into())).collect();
        }
        let list = Value::parse(text.as_bytes())?;
        list.items()
            .map(|item| match item.text() {
                Ok(Some(text)) => S::parse(text),
                _ => S::parse(core::str::from_utf8(item.raw).ok()?.into()),
            })
            .collect()
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;
    use std::vec;

    fn list<S: Setting>(text: &str) -> Option<Vec<S>> {
        Vec::parse(text.to_string())
    }

    #[test]
    fn lists_are_text_with_commas_or_json() {
        assert_eq!(list("1, 2.5,3"), Some(vec![1.0, 2.5, 3.0]));
        assert_eq!(list::<f64>(r#"[1, "2.5"]"#), Some(vec![1.0, 2.5]));
        assert_eq!(list::<String>("a, b c"), Some(vec!["a".to_string(), "b c".to_string()]));
        assert_eq!(list::<String>(r#"["a,b", "c"]"#), Some(vec!["a,b".to_string(), "c".to_string()]));
        assert_eq!(list::<f64>(""), Some(vec![]));
        assert_eq!(list::<f64>("[]"), Some(vec![]));
        assert_eq!(list::<f64>("1,,2"), None);
        assert_eq!(list::<f64>("1,x"), None);
        assert_eq!(list::<u32>("[1,2"), None);
        assert_eq!(list::<f64>("1e999"), None);
    }
}
