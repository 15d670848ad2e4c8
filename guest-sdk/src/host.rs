//! What a function asks of the board: of the host that runs the component or, in native tests, of a
//! [`Board`](crate::testing::Board).

#[cfg(not(target_family = "wasm"))]
pub(crate) use crate::testing::host::*;
#[cfg(target_family = "wasm")]
pub(crate) use component::*;

/// Why a function without state cannot write.
pub(crate) const STATELESS: &str = "the function has state = \"none\" in function.toml";

#[cfg(target_family = "wasm")]
mod component {
    use alloc::string::String;
    use alloc::vec::Vec;
    use core::mem::ManuallyDrop;
    use core::sync::atomic::{AtomicU32, Ordering::Relaxed};

    use crate::bindings::wasi::clocks::{monotonic_clock, wall_clock};
    use crate::bindings::wasi::config::store as config;
    use crate::bindings::wasi::keyvalue::atomics;
    use crate::bindings::wasi::keyvalue::store::{Bucket, Error, open};
    use crate::bindings::wasi::logging::logging::{self, Level};
    use crate::bindings::wasi::random::random;

    /// The bucket is opened once and never dropped: the instance ends with the message.
    fn bucket() -> Result<ManuallyDrop<Bucket>, Error> {
        static HANDLE: AtomicU32 = AtomicU32::new(0);
        if HANDLE.load(Relaxed) == 0 {
            let bucket = ManuallyDrop::new(open("default")?);
            HANDLE.store(Bucket::take_handle(&bucket), Relaxed);
        }
        // SAFETY: the handle is the one that `open` gave, and whoever uses it here does not drop it.
        Ok(ManuallyDrop::new(unsafe { Bucket::from_handle(HANDLE.load(Relaxed)) }))
    }

    #[cold]
    fn describe(error: Error) -> String {
        match error {
            Error::NoSuchStore | Error::AccessDenied => super::STATELESS.into(),
            Error::Other(text) => text,
        }
    }

    pub(crate) fn state_get(key: &str) -> Result<Option<Vec<u8>>, String> {
        match bucket() {
            Ok(bucket) => bucket.get(key).map_err(describe),
            // Without state a read finds nothing.
            Err(Error::AccessDenied) => Ok(None),
            Err(error) => Err(describe(error)),
        }
    }

    pub(crate) fn state_set(key: &str, value: &[u8]) -> Result<(), String> {
        bucket().and_then(|bucket| bucket.set(key, value)).map_err(describe)
    }

    pub(crate) fn state_remove(key: &str) -> Result<(), String> {
        bucket().and_then(|bucket| bucket.delete(key)).map_err(describe)
    }

    pub(crate) fn state_keys() -> Result<Vec<String>, String> {
        let bucket = match bucket() {
            Ok(bucket) => bucket,
            Err(Error::AccessDenied) => return Ok(Vec::new()),
            Err(error) => return Err(describe(error)),
        };
        let mut page = bucket.list_keys(None).map_err(describe)?;
        let mut keys = page.keys;
        // A board gives all keys at once; another host may not.
        while let Some(cursor) = page.cursor {
            page = bucket.list_keys(Some(&cursor)).map_err(describe)?;
            keys.append(&mut page.keys);
        }
        Ok(keys)
    }

    pub(crate) fn state_increment(key: &str, delta: i64) -> Result<i64, String> {
        match bucket() {
            Ok(bucket) => atomics::increment(&bucket, key, delta).map_err(describe),
            // An increment by 0 is a read.
            Err(Error::AccessDenied) if delta == 0 => Ok(0),
            Err(error) => Err(describe(error)),
        }
    }

    pub(crate) fn setting(key: &str) -> Result<Option<String>, String> {
        config::get(key).map_err(|error| match error {
            config::Error::Upstream(text) | config::Error::Io(text) => text,
        })
    }

    pub(crate) fn wall_ms() -> u64 {
        let now = wall_clock::now();
        now.seconds * 1000 + u64::from(now.nanoseconds / 1_000_000)
    }

    pub(crate) fn monotonic_ns() -> u64 {
        monotonic_clock::now()
    }

    pub(crate) fn random_bytes(len: usize) -> Vec<u8> {
        random::get_random_bytes(len as u64)
    }

    pub(crate) fn random_u64() -> u64 {
        random::get_random_u64()
    }

    pub(crate) fn log(level: Level, line: &str) {
        logging::log(level, "", line);
    }
}
