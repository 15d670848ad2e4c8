//! Where messages come from: a broker, or a recording with its pace.

use std::collections::VecDeque;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use sedge_core::board::Delivery;
use sedge_core::config::Endpoint;
use sedge_core::manifest::Manifest;
use sedge_core::message::Message;
use sedge_core::recording;
use sedge_core::text::printable;
use sedge_mqtt::{Event, Events, Link};
use sedge_sandbox::ScopeState;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use crate::recording::{Event as Recorded, Reader};

const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// A pause of a recording that is longer is shortened: a person waits.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

pub(super) enum Source {
    Broker(Live),
    Recording(Box<Played>),
}

/// What comes of a source.
pub(super) enum Came {
    Message(Box<Message>),
    /// State of a topic, or of all under the empty one.
    State(Arc<str>, ScopeState),
    Note(String),
    End,
}

pub(super) struct Live {
    url: Endpoint,
    link: Link,
    events: Events,
    driver: JoinHandle<()>,
    queue: VecDeque<Event>,
    filters: Vec<String>,
    is_connected: bool,
}

pub(super) struct Played {
    path: PathBuf,
    reader: Reader,
    speed: f64,
    last_ms: Option<u64>,
    /// Read already, and when it is due.
    next: Option<(Instant, Box<Message>)>,
}

impl Source {
    /// Connects and subscribes. The first failure is an error, so that nobody waits for a mistyped address.
    pub(super) async fn broker(options: sedge_mqtt::Options, filters: &[String]) -> anyhow::Result<Self> {
        let url = options.connection.url.clone();
        let (link, events, driver) = sedge_mqtt::connect(options)?;
        let driver = tokio::task::spawn_local(driver);
        let (queue, filters) = (VecDeque::new(), filters.to_vec());
        let mut live = Live { url, link, events, driver, queue, filters, is_connected: false };
        loop {
            match live.next_event().await {
                Event::Connected { .. } => break,
                Event::Disconnected { reason } => bail!("cannot connect to the broker at {}: {reason}", live.url),
                _ => {}
            }
        }
        live.subscribe();
        Ok(Self::Broker(live))
    }

    pub(super) fn recording(path: &Path, speed: f64, manifest: &Manifest) -> anyhow::Result<Self> {
        let reader = Reader::open(path)?;
        let scope = recording::scope_name(manifest.state);
        if reader.header.state != scope {
            bail!(
                "the recording has the state of state = \"{}\", and function.toml has state = \"{scope}\"",
                printable(&reader.header.state)
            );
        }
        let path = path.to_owned();
        Ok(Self::Recording(Box::new(Played { path, reader, speed, last_ms: None, next: None })))
    }

    /// Whether time passes as on a board.
    pub(super) fn is_live(&self) -> bool {
        matches!(self, Self::Broker(_))
    }

    /// The function subscribes to other topics now.
    pub(super) fn set_filters(&mut self, filters: &[String]) {
        if let Self::Broker(live) = self
            && live.filters != filters
        {
            for left in live.filters.iter().filter(|filter| !filters.contains(filter)) {
                live.link.unsubscribe(left);
            }
            live.filters = filters.to_vec();
            live.subscribe();
        }
    }

    pub(super) async fn next(&mut self) -> anyhow::Result<Came> {
        match self {
            Self::Broker(live) => live.next().await,
            Self::Recording(played) => played.next().await,
        }
    }

    /// Ends the session.
    pub(super) async fn close(self) {
        if let Self::Broker(live) = self {
            live.link.close();
            let _ = timeout(CLOSE_TIMEOUT, live.driver).await;
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Broker(live) => write!(f, "{} of {}", live.filters.join(", "), live.url),
            Self::Recording(played) => write!(f, "{}", played.path.display()),
        }
    }
}

impl Live {
    fn subscribe(&self) {
        self.filters.iter().for_each(|filter| self.link.subscribe(filter, None));
    }

    async fn next_event(&mut self) -> Event {
        loop {
            if let Some(event) = self.queue.pop_front() {
                return event;
            }
            self.events.receive(&mut self.queue).await;
        }
    }

    async fn next(&mut self) -> anyhow::Result<Came> {
        loop {
            match self.next_event().await {
                Event::Delivery(delivery) => {
                    if let Some(token) = delivery.ack {
                        self.link.acknowledge(token);
                    }
                    if let Some(message) = message(delivery) {
                        return Ok(Came::Message(message.into()));
                    }
                }
                Event::NotSubscribed { filter, reason } => bail!(
                    "the broker at {} does not let this client subscribe to {filter} ({reason}): log in as a user that may \
                     read it, with --username and --password-file",
                    self.url
                ),
                Event::Disconnected { reason } => {
                    if std::mem::replace(&mut self.is_connected, false) {
                        return Ok(Came::Note(format!("broker: {}; connecting again", printable(&reason))));
                    }
                }
                // The first connection has subscribed already.
                Event::Connected { .. } => self.subscribe(),
                Event::Subscribed { .. } => self.is_connected = true,
                Event::Unsubscribed { .. } | Event::Published { .. } => {}
            }
        }
    }
}

/// `None`: its topic is no text.
fn message(delivery: Delivery) -> Option<Message> {
    let now = sedge_sandbox::clock::now(sedge_sandbox::clock::clock_synced());
    let topic = String::from_utf8(delivery.topic.to_vec()).ok()?;
    let properties = delivery.properties.into_iter().map(|(name, value)| (name.into(), value.into()));
    Some(Message {
        content_type: delivery.content_type.map(Into::into),
        properties: properties.collect(),
        retained: delivery.retained,
        response_topic: delivery.response_topic.map(Into::into),
        correlation_data: delivery.correlation_data.map(|data| (&*data).into()),
        ..Message::new(topic, delivery.payload, now.unix_ms, now.synced)
    })
}

impl Played {
    async fn next(&mut self) -> anyhow::Result<Came> {
        if self.next.is_none() {
            match self.reader.next()? {
                Recorded::Version(version) => {
                    return Ok(Came::Note(format!("recorded with version {}", printable(&version.version))));
                }
                Recorded::End(_) => return Ok(Came::End),
                Recorded::Run => {}
            }
            let run = &mut self.reader.run;
            let Some(message) = run.message.take() else { bail!("a run without a message") };
            let last_ms = self.last_ms.replace(message.received_at_ms).unwrap_or(message.received_at_ms);
            let pause = Duration::from_millis(message.received_at_ms.saturating_sub(last_ms)).div_f64(self.speed);
            self.next = Some((Instant::now() + pause.min(LONGEST_PAUSE), message.into()));
            if let Some((topic, state)) = run.state.take() {
                return Ok(Came::State(topic.into(), state));
            }
        }
        // Cancelled and asked again, it waits for the same moment.
        if let Some((due, _)) = &self.next {
            tokio::time::sleep_until(*due).await;
        }
        match self.next.take() {
            Some((_, message)) => Ok(Came::Message(message)),
            None => Ok(Came::End),
        }
    }
}
