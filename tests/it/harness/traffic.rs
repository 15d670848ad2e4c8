//! Sensors that publish until they are stopped.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::client::Client;
use super::ledger::Ledger;
use super::wire::Hello;

pub(crate) struct Traffic {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Ledger>>,
}

impl Traffic {
    /// About 2,000 messages per second on this number of topics, limited by the broker.
    pub(crate) fn start(port: u16, sources: usize) -> Self {
        Self::start_at(port, sources, 2000)
    }

    /// A fixed rate per second; after a delay the missing messages follow at once.
    pub(crate) fn start_at(port: u16, sources: usize, per_second: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut client = Client::connect(port, &Hello::new("traffic")).expect("connect the sensors");
            let mut ledger = Ledger::default();
            let begun = Instant::now();
            while !ended.load(Ordering::Relaxed) {
                let due = (begun.elapsed().as_secs_f64() * per_second as f64) as usize;
                // Each message of a batch is of the next source.
                client
                    .publish_all(ledger.batch(sources, due.saturating_sub(ledger.total() as usize)))
                    .expect("publish");
                std::thread::sleep(Duration::from_millis(20));
            }
            ledger
        });
        Self { stop, thread: Some(thread) }
    }

    pub(crate) fn stop(mut self) -> Ledger {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().expect("it was started").join().expect("the sensors do not fail")
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
