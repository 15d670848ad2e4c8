//! Worker processes, which run functions. A worker has no keys, no network and no files. It inherits one socket for jobs
//! and outcomes, and one that passes compiled code.
//!
//! ```text
//! daemon                                                    worker (sandboxing)
//!   processes ──jobs, state──▶ socket pair ──▶ serve ──▶ functions (sandbox)
//!             ◀──outcomes, requests for state──
//! ```

pub mod clock;
pub(crate) mod processes;
pub(crate) mod protocol;
pub mod serve;

mod cache;
pub(crate) mod cgroups;
mod settings;

/// Reads bytes as the frames that both ends read.
#[cfg(feature = "fuzzing")]
pub fn read_frames(data: &[u8]) {
    use bytes::{Bytes, BytesMut};
    use protocol::{FromWorker, ToWorker, frame_length, split_frame};

    let _ = FromWorker::decode(Bytes::copy_from_slice(data));
    let _ = <ToWorker>::decode(Bytes::copy_from_slice(data));
    let mut buffer = BytesMut::from(data);
    // As the daemon does, which makes no room for what is too long.
    while frame_length(&buffer).is_some_and(|length| length <= data.len()) {
        let Ok(Some(frame)) = split_frame(&mut buffer) else { return };
        let _ = FromWorker::decode(frame);
    }
}
