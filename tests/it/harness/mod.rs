//! What the tests stand on: real processes on loopback ports of their own, and a ledger of what was sent.

pub mod client;
pub mod mosquitto;
pub mod wire;

use std::time::{Duration, Instant};

/// Asks until the answer is yes or patience ends. The pause between two questions is what a test waits at most too long.
pub fn eventually(patience: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + patience;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
