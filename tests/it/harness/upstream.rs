//! A subscriber that records everything upstream, in order, and acknowledges it. Its session is persistent, so that it misses
//! nothing during an outage of the broker.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use super::client::Client;
use super::daemon::NODE;
use super::wire::{Hello, Publish};

pub(crate) struct Upstream {
    received: Arc<Mutex<Vec<Publish>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Upstream {
    /// Collects everything that a daemon sends to this broker with the default prefix.
    pub(crate) fn collect(port: u16) -> Self {
        Self::collect_filter(port, "upstream", &format!("up/{NODE}/#"))
    }

    pub(crate) fn collect_filter(port: u16, client_id: &str, filter: &str) -> Self {
        let received = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let hello = Hello::lasting(client_id);
        let mut client = Client::connect(port, &hello).expect("connect the collector");
        client.subscribe(&[filter]).expect("subscribe the collector");
        let (kept, ended) = (Arc::clone(&received), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                match client.receive(Duration::from_millis(100)) {
                    Ok(Some(message)) => lock(&kept).push(message),
                    Ok(None) => {}
                    Err(_) => {
                        std::thread::sleep(Duration::from_millis(50));
                        if let Ok(again) = Client::connect(port, &hello) {
                            client = again;
                        }
                    }
                }
            }
        });
        Self { received, stop, thread: Some(thread) }
    }

    pub(crate) fn received(&self) -> Vec<Publish> {
        lock(&self.received).clone()
    }

    pub(crate) fn count(&self) -> usize {
        lock(&self.received).len()
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

fn lock(received: &Mutex<Vec<Publish>>) -> MutexGuard<'_, Vec<Publish>> {
    received.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
