//! Serde forms of [messages](super) in frames between the daemon and its workers, for postcard.

use std::cell::RefCell;
use std::sync::Arc;

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Alert, AlertStatus, Severity};

thread_local! {
    /// Frame that [`decode`] reads on this thread.
    static FRAME: RefCell<Bytes> = const { RefCell::new(Bytes::new()) };
}

/// Reads the value that a frame holds. `None` unless the frame holds exactly one.
pub fn decode<T: DeserializeOwned>(frame: &Bytes) -> Option<T> {
    FRAME.set(frame.clone());
    let decoded = postcard::take_from_bytes(frame);
    FRAME.take();
    decoded.ok().and_then(|(value, rest)| rest.is_empty().then_some(value))
}

struct Raw<'a>(&'a [u8]);

impl Serialize for Raw<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0)
    }
}

/// Payloads and code: share the memory of the frame that [`decode`] reads.
pub mod shared {
    use super::{Bytes, Deserialize, Deserializer, FRAME, Serializer};

    pub fn serialize<S: Serializer>(bytes: &Bytes, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(bytes)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
        let bytes = <&[u8]>::deserialize(deserializer)?;
        Ok(FRAME.with_borrow(|frame| frame.slice_ref(bytes)))
    }
}

/// A value in state: copied, so that a cache of it does not keep frames in memory.
pub(crate) mod value {
    use super::{Bytes, Deserialize, Deserializer, Raw, Serialize, Serializer};

    pub(crate) fn serialize<S: Serializer>(value: &Option<Bytes>, serializer: S) -> Result<S::Ok, S::Error> {
        value.as_deref().map(Raw).serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Bytes>, D::Error> {
        Ok(Option::<&[u8]>::deserialize(deserializer)?.map(Bytes::copy_from_slice))
    }
}

/// Keys and values of state, copied as in [`value`].
pub mod entries {
    use super::{Bytes, Deserialize, Deserializer, Raw, Serializer};

    pub type Entries = Vec<(Box<str>, Bytes)>;

    pub fn serialize<S: Serializer>(entries: &Entries, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(entries.iter().map(|(key, value)| (key, Raw(value))))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Entries, D::Error> {
        let entries = Vec::<(Box<str>, &[u8])>::deserialize(deserializer)?;
        Ok(entries.into_iter().map(|(key, value)| (key, Bytes::copy_from_slice(value))).collect())
    }
}

/// Text behind an `Arc`.
pub(crate) mod text {
    use super::{Arc, Deserialize, Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(text: &str, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(text)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Arc<str>, D::Error> {
        <&str>::deserialize(deserializer).map(Arc::from)
    }
}

/// A log level as its place in the list.
pub(crate) mod level {
    use tracing::Level;

    use super::{Deserialize, Deserializer, Serialize, Serializer};

    const LEVELS: [Level; 5] = [Level::ERROR, Level::WARN, Level::INFO, Level::DEBUG, Level::TRACE];

    pub(crate) fn serialize<S: Serializer>(level: &Level, serializer: S) -> Result<S::Ok, S::Error> {
        let number = LEVELS.iter().position(|it| it == level).expect("the list has all levels");
        (number as u8).serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Level, D::Error> {
        let number = u8::deserialize(deserializer)?;
        LEVELS.get(usize::from(number)).copied().ok_or_else(|| serde::de::Error::custom("unknown log level"))
    }
}

/// All fields of an [`Alert`]. Its JSON leaves empty ones out, which postcard cannot read back.
#[derive(Serialize, Deserialize)]
#[serde(remote = "Alert")]
pub struct AlertFields {
    key: String,
    severity: Severity,
    status: AlertStatus,
    summary: String,
    value: Option<f64>,
    labels: Vec<(String, String)>,
    sink: Option<Box<str>>,
}

/// Shared values, written as what they share.
pub mod arc {
    use std::sync::Arc;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<T: Serialize, S: Serializer>(shared: &Arc<T>, serializer: S) -> Result<S::Ok, S::Error> {
        T::serialize(shared, serializer)
    }

    pub fn deserialize<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<Arc<T>, D::Error> {
        T::deserialize(deserializer).map(Arc::new)
    }
}
