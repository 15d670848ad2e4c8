//! Sensors that publish until they are told to stop.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use super::client::Client;
use super::ledger::Ledger;
use super::wire::Hello;

pub struct Traffic {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Ledger>>,
}

impl Traffic {
    /// Some two thousand messages a second on this many topics, as long as the broker takes them.
    pub fn start(port: u16, sources: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut client = Client::connect(port, &Hello::new("traffic")).expect("connect the sensors");
            let mut ledger = Ledger::default();
            while !ended.load(Ordering::Relaxed) {
                client.publish_all(ledger.batch(sources, 40)).expect("publish");
                std::thread::sleep(Duration::from_millis(20));
            }
            ledger
        });
        Self { stop, thread: Some(thread) }
    }

    pub fn stop(mut self) -> Ledger {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().expect("it was started").join().expect("the sensors do not fail")
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
