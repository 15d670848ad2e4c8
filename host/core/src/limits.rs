//! The limits of one invocation.

use serde::{Deserialize, Serialize};

/// Number of handles to resources that one run may hold.
pub const MAX_HANDLES: usize = 1024;
/// Size of an output in the host beside its texts: an upper bound, so that limits are equal on 32-bit and 64-bit boards.
pub const OUTPUT_BYTES: usize = 256;
/// Allowance per call for what is cut or refused afterwards: log lines, values that are too large.
const TRANSFER_SLACK_BYTES: usize = 1 << 20;

/// The limits of one invocation, all enforced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    pub fuel: u64,
    pub timeout_ms: u32,
    pub memory_bytes: usize,
    pub outputs: usize,
    /// All outputs together, as [`Output::bytes`](crate::message::Output::bytes) counts.
    pub output_bytes: usize,
    /// Keys and values of the scope together.
    pub state_bytes: usize,
}

impl Limits {
    /// Number of bytes that one call may copy out of the guest. The guest's memory does not bound them: a list may name the
    /// same bytes many times.
    pub fn transfer_bytes(&self) -> usize {
        let outputs = self.outputs.saturating_mul(OUTPUT_BYTES).saturating_add(self.output_bytes);
        outputs.max(self.state_bytes).saturating_add(TRANSFER_SLACK_BYTES)
    }
}

/// Number of keys that one run may set or remove.
pub const MAX_STATE_WRITES: usize = 1024;

/// Number of keys that one scope may have. Each costs memory, however short it is.
pub const MAX_STATE_KEYS: usize = 4096;

/// Number of log lines per run. Further ones are dropped and counted.
pub const MAX_LOG_LINES: usize = 32;

/// Length of a log line. The rest is cut off.
pub const MAX_LOG_LINE_BYTES: usize = 1024;

/// Labels of one alert.
pub const MAX_LABELS: usize = 64;
