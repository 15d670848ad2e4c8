//! The yardstick: a subscriber with the daemon's MQTT client and settings that acknowledges and does nothing else.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v5::Packet;
use rumqttc::{AckMode, AsyncClient, Event, MqttOptions, NetworkOptions};

/// The client's settings, which decide most of what a subscriber reaches.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    pub receive_maximum: u16,
    /// Messages that the client itself may have under way. Every flush walks this window.
    pub outgoing_limit: Option<u16>,
    pub read_batch: usize,
    pub request_batch: usize,
    pub automatic_acks: bool,
    pub nodelay: bool,
    pub coalesce: bool,
}

/// What the daemon uses.
pub const DAEMON: Settings = Settings {
    receive_maximum: 1024,
    outgoing_limit: Some(64),
    read_batch: 128,
    request_batch: 128,
    automatic_acks: false,
    nodelay: true,
    coalesce: true,
};

pub struct Noop {
    received: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    /// The kernel's id of the subscriber's thread, for its CPU time.
    pub thread_id: u32,
}

impl Noop {
    /// Returns once the broker has granted the subscription.
    pub fn start(port: u16, filter: &str, settings: Settings) -> Self {
        let received = Arc::new(AtomicU64::new(0));
        let stop = Arc::new(AtomicBool::new(false));
        let (ready, granted) = std::sync::mpsc::sync_channel(1);
        let (counter, ended, filter) = (Arc::clone(&received), Arc::clone(&stop), filter.to_owned());
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("start tokio");
            runtime.block_on(subscribe(port, &filter, settings, &counter, &ended, &ready));
        });
        let thread_id = granted.recv().expect("the subscription is granted");
        Self { received, stop, thread: Some(thread), thread_id }
    }

    pub fn received(&self) -> u64 {
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

async fn subscribe(
    port: u16,
    filter: &str,
    settings: Settings,
    received: &AtomicU64,
    stop: &AtomicBool,
    ready: &std::sync::mpsc::SyncSender<u32>,
) {
    let mut options = MqttOptions::new("noop", ("127.0.0.1", port));
    options.set_keep_alive(0).set_clean_start(true);
    options.set_receive_maximum(Some(settings.receive_maximum)).set_max_packet_size(Some(1 << 20));
    options.set_read_batch_size(settings.read_batch).set_max_request_batch(settings.request_batch);
    options.set_ack_mode(if settings.automatic_acks { AckMode::Automatic } else { AckMode::Manual });
    if let Some(limit) = settings.outgoing_limit {
        options.set_outgoing_inflight_upper_limit(limit);
    }
    let mut network = NetworkOptions::new();
    network.set_tcp_nodelay(settings.nodelay);
    options.set_network_options(network);
    if settings.coalesce {
        options.set_socket_connector(move |host, _| async move {
            let stream = tokio::net::TcpStream::connect(host).await?;
            stream.set_nodelay(settings.nodelay)?;
            Ok(crate::coalesce::Coalesce::new(stream))
        });
    }
    // Room for two windows: Mosquitto 2.0 sends a little more than Receive Maximum allows while acknowledgements come in.
    let (client, mut events) = AsyncClient::builder(options).capacity(2 * usize::from(settings.receive_maximum) + 8).build();
    client.subscribe(filter, QoS::AtLeastOnce).await.expect("queue the subscription");
    while !stop.load(Ordering::Relaxed) {
        let event = match tokio::time::timeout(std::time::Duration::from_millis(100), events.poll()).await {
            Ok(event) => event.expect("the broker stays"),
            Err(_) => continue,
        };
        match event {
            Event::Incoming(Packet::Publish(publish)) => {
                if !settings.automatic_acks {
                    client.try_ack(&publish).expect("the queue holds a whole window of acknowledgements");
                }
                received.fetch_add(1, Ordering::Relaxed);
            }
            Event::Incoming(Packet::SubAck(_)) => {
                let id = rustix::thread::gettid().as_raw_nonzero().get();
                ready.send(id.unsigned_abs()).expect("the bench waits");
            }
            _ => {}
        }
    }
}
