//! The board's clocks. The manifest asks for them with `clock = true` under `[allow]`; without it the board refuses the
//! function. For the time at which the message came in, `received_at_ms` is enough and needs no permission.

use crate::host;

/// Unix time in milliseconds, as the board has it. A board without a real-time clock boots in the past: whether the clock is
/// synchronised is in the message (`clock_synced`).
pub fn now_ms() -> u64 {
    host::wall_ms()
}

/// Nanoseconds on a clock that never goes back. It begins anew when the board boots.
pub fn monotonic_ns() -> u64 {
    host::monotonic_ns()
}
