//! One budget of bytes for everything that messages hold, from the socket to the disk.
//!
//! ```text
//! 0 ──── units ────▶ ½: reading stops          ◀──── answers that jobs at the workers may give ──── limit
//!        parked: at most ¼, outbox in memory: 3 × 1/32
//! ```
//!
//! Units count with what came of them until they are on disk. A job is handed to a worker only if the largest answer that
//! it may give fits as well, so that answers never exceed the budget. One job at a time is always handed out: progress needs
//! no room.

use crate::config::Ceilings;
use crate::limits::{Limits, MAX_STATE_WRITES};
use crate::message::{Message, STATE_WRITE_BYTES, json_bytes};
use crate::mistakes::{Mistake, is_made};
use crate::store::COMMIT_BYTES;

/// Memory of an output beside its texts: for an alert two records, with their topics, and the fields of its JSON.
const OUTPUT_BYTES: usize = 1000;
/// Window of one stream's records in memory, at most. Half a megabyte is about two seconds of work for the fastest receiver.
const MAX_WINDOW_BYTES: usize = 512 << 10;
/// Smallest budget. Below it, hardly more than one message is in processing.
pub const MIN_BUDGET_BYTES: usize = 6 << 20;
/// A default above this is of no use: the window of acknowledgements is full before.
const MAX_DEFAULT_BYTES: usize = 512 << 20;

#[derive(Clone, Copy, Debug)]
pub struct Budget {
    limit: usize,
}

/// What a job at a worker holds, or may.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Weight {
    /// The message, in the frame for the worker.
    pub(crate) message: usize,
    /// The largest answer.
    pub(crate) answer: usize,
}

impl Weight {
    pub(crate) fn total(self) -> usize {
        self.message + self.answer
    }

    pub(crate) fn new(message: &Message, limits: &Limits) -> Self {
        let topic = json_bytes(&message.topic);
        let answer = answer_bytes(limits.outputs, limits.output_bytes, limits.state_bytes, topic);
        Self { message: message.bytes(), answer }
    }

    /// Bytes of the largest message and answer that a configuration allows.
    pub(crate) fn largest(max_payload_bytes: usize, ceilings: &Ceilings) -> usize {
        let Ceilings { outputs, output_bytes, state_bytes, .. } = *ceilings;
        max_payload_bytes.saturating_add(answer_bytes(outputs as usize, output_bytes, state_bytes, 0))
    }
}

/// An alert is two records, both of which are written.
fn answer_bytes(outputs: usize, output_bytes: usize, state_bytes: usize, topic: usize) -> usize {
    let outputs = outputs.saturating_mul(OUTPUT_BYTES + topic).saturating_add(output_bytes.saturating_mul(2));
    let writes = MAX_STATE_WRITES.min(state_bytes) * STATE_WRITE_BYTES;
    outputs.saturating_add(state_bytes).saturating_add(writes)
}

impl Budget {
    pub const fn new(limit: usize) -> Self {
        Self { limit }
    }

    /// A quarter of what the service may use.
    pub fn of_memory(memory_bytes: u64) -> Self {
        let quarter = usize::try_from(memory_bytes / 4).unwrap_or(usize::MAX);
        Self { limit: quarter.clamp(MIN_BUDGET_BYTES, MAX_DEFAULT_BYTES) }
    }

    pub fn bytes(self) -> usize {
        self.limit
    }

    /// Bytes of units at which reading from the broker stops. The rest is for answers.
    pub(crate) fn intake(self) -> usize {
        self.limit / 2
    }

    /// Most bytes of messages that wait for a retry. They are in memory, too.
    pub const fn parked(self) -> usize {
        self.limit / 4
    }

    /// Bytes of one stream's records in memory.
    pub fn window(self) -> usize {
        (self.limit / 32).min(MAX_WINDOW_BYTES)
    }

    /// Size above which commits are divided. What one message caused is never divided.
    pub(crate) fn commit(self) -> usize {
        (self.limit / 4).min(COMMIT_BYTES)
    }

    /// What is left for jobs at the workers.
    pub(crate) fn room(self, held: usize) -> usize {
        match is_made(Mistake::HandOutBeyondBudget) {
            true => usize::MAX,
            false => self.limit.saturating_sub(held),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_a_quarter_of_the_memory_within_bounds() {
        assert_eq!(Budget::of_memory(256 << 20).bytes(), 64 << 20);
        assert_eq!(Budget::of_memory(1 << 20).bytes(), MIN_BUDGET_BYTES);
        assert_eq!(Budget::of_memory(u64::MAX).bytes(), MAX_DEFAULT_BYTES);
    }

    /// Whatever waits, some of the budget is left for answers.
    #[test]
    fn the_parts_leave_room_for_answers() {
        for bytes in [MIN_BUDGET_BYTES, 12 << 20, MAX_DEFAULT_BYTES] {
            let budget = Budget::new(bytes);
            assert!(budget.room(budget.intake() + budget.parked() + 3 * budget.window()) >= bytes / 8);
        }
    }
}
