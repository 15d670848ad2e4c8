//! The MQTT client of the commands, which can also read all retained messages under a filter.
#![cfg_attr(not(feature = "operator"), allow(dead_code, reason = "only the operator's commands need all of it"))]

use std::collections::VecDeque;
use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout, timeout_at};

use sedge_core::config::{Connection, Endpoint};
use sedge_core::message::PublishToken;
use sedge_mqtt::{Event, Full, Link, PublishResult};

/// Mosquitto's default of `max_queued_messages`: it may drop retained messages beyond that.
const MOSQUITTO_QUEUE: usize = 1000;

/// Maximum wait for a clean disconnect.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

pub(crate) struct Client {
    url: Endpoint,
    link: Link,
    events: sedge_mqtt::Events,
    driver: JoinHandle<()>,
    queue: VecDeque<Event>,
    /// Subscribed again at every connection, as the broker keeps no session.
    filters: Vec<String>,
    next_token: u64,
    limits: Vec<String>,
}

#[derive(Debug)]
pub(crate) enum ClientEvent {
    Message {
        topic: String,
        payload: Bytes,
    },
    /// The broker has acknowledged the publish with this token.
    Published(PublishToken),
    Subscribed(String),
    /// The connection broke. Publishes without an acknowledgement are lost, and must be repeated.
    Disconnected(String),
    Connected,
}

impl Client {
    /// Options of a client that lives as long as one command. Credentials are left to the caller.
    pub(crate) fn options(url: Endpoint, purpose: &str) -> anyhow::Result<sedge_mqtt::Options> {
        let mut id = [0; 8];
        rustix::rand::getrandom(&mut id, rustix::rand::GetRandomFlags::empty())
            .context("failed to draw a client id")?;
        // A broker closes the older of two connections with the same client id.
        let client_id = format!("sedge-{purpose}-{:016x}", u64::from_ne_bytes(id));
        Ok(sedge_mqtt::Options {
            // Half of what Mosquitto queues for a socket by default. Beyond that it drops even answers to subscriptions.
            receive_maximum: 500,
            // An order with the longest manifest, or the largest chunk.
            max_packet_bytes: 1 << 20,
            in_flight: 32,
            ..sedge_mqtt::Options::brief(Connection::new(url, client_id))
        })
    }

    /// Connects. The first failure is an error, so that nobody waits for a mistyped address.
    pub(crate) async fn connect(options: sedge_mqtt::Options) -> anyhow::Result<Self> {
        let url = options.connection.url.clone();
        let (link, events, driver) = sedge_mqtt::connect(options)?;
        let driver = tokio::task::spawn_local(driver);
        let (queue, filters) = (VecDeque::new(), Vec::new());
        let mut client = Self { url, link, events, driver, queue, filters, next_token: 1, limits: Vec::new() };
        match client.next_event().await? {
            ClientEvent::Connected => Ok(client),
            ClientEvent::Disconnected(reason) => bail!("{reason}"),
            other => bail!("unexpected first event: {other:?}"),
        }
    }

    /// Whether the broker supports retained messages.
    pub(crate) fn retains(&self) -> bool {
        self.link.retains()
    }

    /// What the broker does not offer.
    pub(crate) fn limits(&self) -> &[String] {
        &self.limits
    }

    pub(crate) fn url(&self) -> &Endpoint {
        &self.url
    }

    /// Waits for the next event. A refused subscription or publish is an error, as repeating it would not help.
    pub(crate) async fn next_event(&mut self) -> anyhow::Result<ClientEvent> {
        loop {
            if let Some(event) = self.poll_event()? {
                return Ok(event);
            }
            self.events.receive(&mut self.queue).await;
        }
    }

    /// Waits for the next event; `None` at the deadline.
    pub(crate) async fn next_event_until(&mut self, deadline: Instant) -> anyhow::Result<Option<ClientEvent>> {
        timeout_at(deadline, self.next_event()).await.map_or(Ok(None), |event| event.map(Some))
    }

    /// Returns the next event that has arrived already.
    pub(crate) fn poll_event(&mut self) -> anyhow::Result<Option<ClientEvent>> {
        loop {
            if self.queue.is_empty() {
                self.events.try_receive(&mut self.queue);
            }
            let Some(event) = self.queue.pop_front() else { return Ok(None) };
            return Ok(Some(match event {
                Event::Delivery(delivery) => {
                    if let Some(token) = delivery.ack {
                        self.link.acknowledge(token);
                    }
                    // Sedge's topics are UTF-8.
                    let Ok(topic) = String::from_utf8(delivery.topic.to_vec()) else { continue };
                    ClientEvent::Message { topic, payload: delivery.payload }
                }
                Event::Published { token, result: PublishResult::Accepted } => ClientEvent::Published(token),
                Event::Published { result: PublishResult::Declined(reason), .. } => {
                    bail!("the broker at {} declined a message: {reason}", self.url)
                }
                Event::Published { result: PublishResult::Refused(reason), .. } => {
                    bail!("failed to publish at {}: {reason}", self.url)
                }
                Event::Published { result: PublishResult::Retry(reason), .. } => {
                    bail!("failed to publish at {}: {reason}", self.url)
                }
                Event::Subscribed { filter, .. } => ClientEvent::Subscribed(filter),
                Event::Unsubscribed { .. } => continue,
                Event::NotSubscribed { filter, reason } => {
                    bail!("the broker at {} refused the subscription {filter}: {reason}", self.url)
                }
                Event::Disconnected { reason } => ClientEvent::Disconnected(reason),
                Event::Connected { limits, .. } => {
                    self.limits = limits;
                    for filter in &self.filters {
                        self.link.subscribe(filter, None);
                    }
                    ClientEvent::Connected
                }
            }));
        }
    }

    pub(crate) fn subscribe(&mut self, filter: &str) {
        self.filters.push(filter.to_owned());
        self.link.subscribe(filter, None);
    }

    pub(crate) fn unsubscribe(&mut self, filter: &str) {
        self.filters.retain(|other| other != filter);
        self.link.unsubscribe(filter);
    }

    /// Subscribes, and returns after all messages retained under these filters. `on_message` returns whether a message told
    /// anything new.
    ///
    /// MQTT does not mark the end of retained messages, but brokers queue them when they accept a subscription. So each
    /// round subscribes again, until the answer arrives with nothing new before it. `grace` is for brokers that send
    /// retained messages after the answer.
    pub(crate) async fn read_retained(
        &mut self,
        filters: &[String],
        grace: Duration,
        deadline: Instant,
        on_message: impl FnMut(&str, &Bytes) -> bool,
    ) -> anyhow::Result<()> {
        match timeout_at(deadline, self.read_rounds(filters, grace, on_message)).await {
            Ok(result) => result,
            Err(_) => bail!("the broker at {} did not answer in time", self.url),
        }
    }

    async fn read_rounds(
        &mut self,
        filters: &[String],
        grace: Duration,
        mut on_message: impl FnMut(&str, &Bytes) -> bool,
    ) -> anyhow::Result<()> {
        filters.iter().for_each(|filter| self.subscribe(filter));
        let mut unanswered = filters.len();
        let (mut is_first, mut total) = (true, 0);
        loop {
            let mut fresh = 0;
            while unanswered > 0 {
                match self.next_event().await? {
                    ClientEvent::Message { topic, payload } => fresh += usize::from(on_message(&topic, &payload)),
                    ClientEvent::Subscribed(filter) => unanswered -= usize::from(filters.contains(&filter)),
                    ClientEvent::Connected => (unanswered, fresh) = (filters.len(), 1),
                    ClientEvent::Disconnected(_) | ClientEvent::Published(_) => {}
                }
            }
            if !is_first && fresh == 0 {
                let until = Instant::now() + grace;
                while let Some(event) = self.next_event_until(until).await? {
                    if let ClientEvent::Message { topic, payload } = event {
                        fresh += usize::from(on_message(&topic, &payload));
                    }
                }
                if fresh == 0 {
                    if total > MOSQUITTO_QUEUE {
                        eprintln!(
                            "note: the broker retains at least {total} such messages; Mosquitto sends all of them only if \
                             its max_queued_messages is 0 or higher"
                        );
                    }
                    return Ok(());
                }
            }
            is_first = false;
            total += fresh;
            self.link.subscribe(&filters[0], None);
            unanswered = 1;
        }
    }

    /// Publishes a message. [`ClientEvent::Published`] with the returned token acknowledges it.
    pub(crate) fn publish(&mut self, topic: &str, payload: Bytes, retain: bool) -> Result<PublishToken, Full> {
        let token = PublishToken(self.next_token);
        let publication = sedge_mqtt::Publication { topic, payload, content_type: None, properties: &[], retain };
        self.link.publish(publication, token)?;
        self.next_token += 1;
        Ok(token)
    }

    pub(crate) async fn close(self) {
        self.link.close();
        let _ = timeout(CLOSE_TIMEOUT, self.driver).await;
    }
}
