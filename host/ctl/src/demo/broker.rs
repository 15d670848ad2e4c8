//! The demo's broker, on a thread of this process.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context as _;
use mqtt5::broker::{BrokerConfig, MqttBroker};

/// Queue for a client that is slower than the sensors. The broker's default of 10,000 would drop messages.
const MAX_QUEUED: usize = 10_000_000;

/// Starts the broker on a free loopback port. It ends with the process.
pub(crate) fn start() -> anyhow::Result<SocketAddr> {
    let (sender, started) = flume::bounded(1);
    std::thread::Builder::new().name("demo-broker".into()).spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let served = runtime.map_err(anyhow::Error::from).and_then(|runtime| runtime.block_on(serve(&sender)));
        if let Err(error) = served {
            // Once started, nobody receives: the sensors report a lost broker.
            let _ = sender.send(Err(error));
        }
    })?;
    started.recv_timeout(Duration::from_secs(10)).context("the demo's broker did not start")?
}

async fn serve(started: &flume::Sender<anyhow::Result<SocketAddr>>) -> anyhow::Result<()> {
    let mut config = BrokerConfig::new().with_bind_addresses(vec![SocketAddr::from(([127, 0, 0, 1], 0))]);
    config.storage_config.enable_persistence = false;
    config.storage_config.max_queued_messages_per_client = MAX_QUEUED;
    config.storage_config.max_queued_bytes_per_client = usize::MAX;
    config.sys_topics_enabled = false;
    let mut broker = MqttBroker::with_config(config).await?;
    let addr = broker.local_addr().context("the demo's broker has no port")?;
    started.send(Ok(addr))?;
    broker.run().await?;
    Ok(())
}
