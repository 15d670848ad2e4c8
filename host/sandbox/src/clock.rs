//! The clocks of this machine. Read by the loops of threads and by commands, and passed on as a [`Now`].

mod sync;

use std::sync::atomic::{AtomicBool, Ordering};

use rustix::time::{ClockId, clock_gettime};
use std::path::Path;
use std::time::Duration;
use std::time::{Instant, SystemTime};

use sedge_core::time::{self, Now};

pub fn now(synced: bool) -> Now {
    Now::at(Instant::now(), SystemTime::now(), synced)
}

/// Unix time in milliseconds.
pub fn now_ms() -> u64 {
    time::unix_ms(SystemTime::now())
}

/// The board has a clock that is right without a time service.
static IS_TRUSTED: AtomicBool = AtomicBool::new(false);

/// Whether the wall clock counts as synchronised without a time service (`node.clock`). Set once, before threads read the clock.
pub fn trust(is_trusted: bool) {
    IS_TRUSTED.store(is_trusted, Ordering::Relaxed);
}

/// Whether a time service has set the wall clock since the board booted, as far as is known. Reads metadata of files, so
/// it is called every few seconds, not per message.
pub fn clock_synced() -> bool {
    if IS_TRUSTED.load(Ordering::Relaxed) {
        return true;
    }
    let uptime = Duration::from_secs(clock_gettime(ClockId::Boottime).tv_sec.try_into().unwrap_or(0));
    sync::synced(Path::new("/"), now_ms(), uptime)
}
