//! An operator's connection to the broker: the options that all these commands share, and a client that knows when it has
//! seen everything that the broker keeps.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use clap::Args;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::config::Node;
use crate::mqtt::{self, Event, Full, Link, PublishResult};

const DEFAULT_BROKER: &str = "mqtt://localhost:1883";

/// Chunks under way to the broker. Enough to fill a long line; the client scans this window at every flush.
const IN_FLIGHT: u16 = 32;

/// An envelope with a board's longest manifest, or a chunk of the largest size, with room for topics.
const MAX_PACKET_BYTES: u32 = 1 << 20;

/// Less than the packets that Mosquitto lets wait for a socket (`max_queued_messages`, 1,000 by default): beyond that it
/// drops them, answers to subscriptions included.
const RECEIVE_MAXIMUM: u16 = 500;

/// With as many kept messages as this, Mosquitto's default may have left some out.
const MANY: usize = 1000;

/// How long a goodbye may take. Without it the broker notes a client that vanished.
const GOODBYE: Duration = Duration::from_secs(1);

#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Broker")]
pub struct BrokerArgs {
    /// Address, mqtt://HOST:PORT or mqtts://HOST:PORT; the port may be left out [default: SEDGE_BROKER, or mqtt://localhost:1883]
    #[arg(long, value_name = "URL")]
    pub broker: Option<String>,
    /// Name to log in with
    #[arg(long, value_name = "NAME")]
    pub username: Option<String>,
    /// File that holds the password
    #[arg(long, value_name = "FILE")]
    pub password_file: Option<PathBuf>,
    /// Certificates to trust instead of the system's, in PEM
    #[arg(long, value_name = "FILE")]
    pub ca_file: Option<PathBuf>,
    /// Client certificate in PEM
    #[arg(long, value_name = "FILE", requires = "key_file")]
    pub cert_file: Option<PathBuf>,
    /// Private key of the client certificate, in PEM. Not the key that signs
    #[arg(long, value_name = "FILE", requires = "cert_file")]
    pub key_file: Option<PathBuf>,
    /// First level of Sedge's topics, node.base_topic of the boards [default: sedge]
    #[arg(long, value_name = "TOPIC")]
    pub base_topic: Option<String>,
}

impl BrokerArgs {
    fn url(&self) -> String {
        let named = || std::env::var("SEDGE_BROKER").ok().filter(|url| !url.is_empty());
        self.broker.clone().or_else(named).unwrap_or_else(|| DEFAULT_BROKER.to_owned())
    }

    pub fn base(&self) -> String {
        self.base_topic.clone().unwrap_or_else(|| Node::default().base_topic)
    }

    fn options(&self) -> anyhow::Result<mqtt::Options> {
        let mut id = [0; 8];
        rustix::rand::getrandom(&mut id, rustix::rand::GetRandomFlags::empty())
            .context("failed to draw a client id")?;
        Ok(mqtt::Options {
            url: self.url(),
            // Two operators at once must not take turns in throwing each other out.
            client_id: format!("sedge-operator-{:016x}", u64::from_ne_bytes(id)),
            username: self.username.clone(),
            password_file: self.password_file.clone(),
            ca_file: self.ca_file.clone(),
            cert_file: self.cert_file.clone(),
            key_file: self.key_file.clone(),
            keep_alive: Duration::from_secs(15),
            connect_timeout: Duration::from_secs(10),
            reconnect_max: Duration::from_secs(5),
            receive_maximum: RECEIVE_MAXIMUM,
            max_packet_bytes: MAX_PACKET_BYTES,
            session_expiry: Duration::ZERO,
            in_flight: IN_FLIGHT,
            will: None,
        })
    }
}

pub struct Remote {
    url: String,
    link: Link,
    events: mqtt::Events,
    driver: JoinHandle<()>,
    queue: VecDeque<Event>,
    /// Asked for again at every connection: the broker keeps no session of ours.
    filters: Vec<String>,
    next_token: u64,
}

/// What came from the broker.
#[derive(Debug)]
pub enum RemoteEvent {
    Message {
        topic: String,
        payload: Bytes,
    },
    /// The broker has what was published with this token.
    Published(u64),
    Subscribed(String),
    /// The connection broke. What was not [`Published`](Self::Published) is forgotten, and is to be published again once it is up.
    Disconnected(String),
    Connected,
}

impl Remote {
    /// Connects, or says why that is not possible: nobody waits for a broker whose address is mistyped.
    pub async fn connect(args: &BrokerArgs) -> anyhow::Result<Self> {
        let options = args.options()?;
        let url = options.url.clone();
        let (link, events, driver) = mqtt::connect(options)?;
        let driver = tokio::task::spawn_local(driver);
        let mut remote = Self { url, link, events, driver, queue: VecDeque::new(), filters: Vec::new(), next_token: 1 };
        match remote.next_event().await? {
            RemoteEvent::Connected => {}
            RemoteEvent::Disconnected(reason) => bail!("cannot connect to the broker at {}: {reason}", remote.url),
            other => bail!("the broker at {} begins with {other:?}", remote.url),
        }
        if !remote.link.retains() {
            bail!(
                "the broker at {} keeps no retained messages (retain_available of Mosquitto): boards are told and tell \
                 everything through these",
                remote.url
            );
        }
        Ok(remote)
    }

    /// Waits for the next news. A refused subscription or publish is an error: it will not be better the next time.
    pub async fn next_event(&mut self) -> anyhow::Result<RemoteEvent> {
        loop {
            let Some(event) = self.queue.pop_front() else {
                self.events.receive(&mut self.queue).await;
                continue;
            };
            match event {
                Event::Delivery(delivery) => {
                    if let Some(token) = delivery.ack {
                        self.link.acknowledge(token);
                    }
                    // Not a topic of ours.
                    let Ok(topic) = String::from_utf8(delivery.topic.to_vec()) else { continue };
                    return Ok(RemoteEvent::Message { topic, payload: delivery.payload });
                }
                Event::Published { token, result: PublishResult::Taken } => return Ok(RemoteEvent::Published(token)),
                Event::Published { result: PublishResult::Declined(reason), .. } => {
                    bail!("the broker at {} declined a message: {reason}", self.url)
                }
                Event::Published { result: PublishResult::Refused(reason) | PublishResult::Retry(reason), .. } => {
                    bail!("failed to publish at {}: {reason}", self.url)
                }
                Event::Subscribed { filter } => return Ok(RemoteEvent::Subscribed(filter)),
                Event::Unsubscribed { .. } => {}
                Event::NotSubscribed { filter, reason } => {
                    bail!("the broker at {} refused the subscription {filter}: {reason}", self.url)
                }
                Event::Disconnected { reason } => return Ok(RemoteEvent::Disconnected(reason)),
                Event::Connected { .. } => {
                    for filter in &self.filters {
                        self.link.subscribe(filter, None);
                    }
                    return Ok(RemoteEvent::Connected);
                }
            }
        }
    }

    /// The same, until a point in time: `None` then.
    pub async fn next_event_until(&mut self, deadline: Instant) -> anyhow::Result<Option<RemoteEvent>> {
        tokio::time::timeout_at(deadline, self.next_event()).await.map_or(Ok(None), |news| news.map(Some))
    }

    pub fn subscribe(&mut self, filter: &str) {
        self.filters.push(filter.to_owned());
        self.link.subscribe(filter, None);
    }

    pub fn unsubscribe(&mut self, filter: &str) {
        self.filters.retain(|other| other != filter);
        self.link.unsubscribe(filter);
    }

    /// Subscribes, and returns when all that the broker keeps under these filters has come. `take` gets each message and
    /// says whether it told anything new.
    ///
    /// MQTT has no mark for the end of what is kept, but brokers queue it when they take the subscription: so each round
    /// asks the same again, which brings nothing, and the answer comes behind what was queued before. `quiet` is for
    /// brokers that send it later, at their leisure.
    pub async fn read_retained(
        &mut self,
        filters: &[String],
        quiet: Duration,
        deadline: Instant,
        take: impl FnMut(&str, &Bytes) -> bool,
    ) -> anyhow::Result<()> {
        match tokio::time::timeout_at(deadline, self.read_rounds(filters, quiet, take)).await {
            Ok(looked) => looked,
            Err(_) => bail!("the broker at {} did not answer in time", self.url()),
        }
    }

    async fn read_rounds(
        &mut self,
        filters: &[String],
        quiet: Duration,
        mut take: impl FnMut(&str, &Bytes) -> bool,
    ) -> anyhow::Result<()> {
        filters.iter().for_each(|filter| self.subscribe(filter));
        let mut asked = filters.len();
        let (mut is_first, mut all) = (true, 0);
        loop {
            let mut fresh = 0;
            while asked > 0 {
                match self.next_event().await? {
                    RemoteEvent::Message { topic, payload } => fresh += usize::from(take(&topic, &payload)),
                    RemoteEvent::Subscribed(filter) => asked -= usize::from(filters.contains(&filter)),
                    RemoteEvent::Connected => (asked, fresh) = (filters.len(), 1),
                    RemoteEvent::Disconnected(_) | RemoteEvent::Published(_) => {}
                }
            }
            if !is_first && fresh == 0 {
                let until = Instant::now() + quiet;
                while let Some(news) = self.next_event_until(until).await? {
                    if let RemoteEvent::Message { topic, payload } = news {
                        fresh += usize::from(take(&topic, &payload));
                    }
                }
                if fresh == 0 {
                    if all > MANY {
                        eprintln!(
                            "note: the broker keeps {all} messages or more of this; Mosquitto leaves some out unless its \
                             max_queued_messages is 0 or higher than that"
                        );
                    }
                    return Ok(());
                }
            }
            is_first = false;
            all += fresh;
            self.link.subscribe(&filters[0], None);
            asked = 1;
        }
    }

    /// Hands a retained message to the client; [`RemoteEvent::Published`] with the token says that the broker has it.
    pub fn publish(&mut self, topic: &str, payload: Bytes, content_type: Option<&str>) -> Result<u64, Full> {
        let publication = mqtt::Publication { topic, payload, content_type, properties: &[], retain: true };
        self.link.publish(publication, self.next_token)?;
        self.next_token += 1;
        Ok(self.next_token - 1)
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    pub async fn close(self) {
        self.link.close();
        let _ = tokio::time::timeout(GOODBYE, self.driver).await;
    }
}
