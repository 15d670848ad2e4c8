//! The baseline: a QoS 1 subscriber with the daemon's own client and settings that acknowledges at once and does nothing else.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use sedge_mqtt::Event;

pub(crate) struct Noop {
    received: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    /// The kernel's id of the subscriber's thread, for its CPU time.
    pub(crate) thread_id: i32,
}

impl Noop {
    /// Returns once the session exists. The subscription is sent before any other message.
    pub(crate) fn start(port: u16, filter: &'static str) -> Self {
        let received = Arc::new(AtomicU64::new(0));
        let stop = Arc::new(AtomicBool::new(false));
        let (ready, connected) = sync_channel(1);
        let (counter, ended) = (Arc::clone(&received), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("start tokio");
            runtime.block_on(subscribe(port, filter, &counter, &ended, &ready));
        });
        let thread_id = connected.recv().expect("the subscriber connects");
        Self { received, stop, thread: Some(thread), thread_id }
    }

    pub(crate) fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }
}

impl Drop for Noop {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

async fn subscribe(port: u16, filter: &str, received: &AtomicU64, stop: &AtomicBool, ready: &SyncSender<i32>) {
    let (link, events, driver) = sedge_mqtt::connect(options(port)).expect("the options are valid");
    let consume = async {
        let mut queue = VecDeque::new();
        while !stop.load(Ordering::Relaxed) {
            let more = events.receive(&mut queue);
            // Wakes regularly to see whether the bench is over.
            if tokio::time::timeout(Duration::from_millis(100), more).await.is_err() {
                continue;
            }
            for event in queue.drain(..) {
                match event {
                    Event::Connected { .. } => {
                        link.subscribe(filter, None);
                        ready.send(rustix::thread::gettid().as_raw_pid()).expect("the bench waits");
                    }
                    Event::Delivery(delivery) => {
                        if let Some(token) = delivery.ack {
                            link.acknowledge(token);
                        }
                        received.fetch_add(1, Ordering::Relaxed);
                    }
                    _ => {}
                }
            }
        }
    };
    tokio::select! {
        () = consume => {}
        () = driver => {}
    }
}

/// The defaults of `sedge.toml`.
fn options(port: u16) -> sedge_mqtt::Options {
    let mut config = sedge_core::config::Mqtt::new("noop");
    config.connection.url = format!("mqtt://127.0.0.1:{port}").parse().expect("the address is valid");
    sedge_mqtt::Options::local(&config, 64, None)
}
