//! Where messages come from: a broker, or a recording with its pace.

use std::collections::VecDeque;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use sedge_core::board::Delivery;
use sedge_core::config::Endpoint;
use sedge_core::manifest::Manifest;
use sedge_core::message::Message;
use sedge_core::recording::{Line, OutcomeLine};
use sedge_core::text::printable;
use sedge_core::topic::TopicFilter;
use sedge_mqtt::{Event, Events, Link};
use sedge_sandbox::ScopeState;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use super::answer::Answer;
use crate::recording::{Event as Recorded, Reader, RecordedRun};

const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// A pause of a recording that is longer is shortened: a person waits.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

pub(super) enum Source {
    Broker(Live),
    Recording(Box<Played>),
}

/// What comes of a source.
pub(super) enum Came {
    /// A message of the broker.
    Live {
        message: Box<Message>,
        is_input: bool,
        is_of_board: bool,
    },
    /// A message of a recording, with what the board answered, or why that is not known.
    Recorded {
        message: Box<Message>,
        board: Result<Vec<Answer>, &'static str>,
    },
    /// State of a topic, or of all under the empty one.
    State(Arc<str>, ScopeState),
    Note(String),
    /// What is under way at the broker may be lost.
    Broken(String),
    End,
}

pub(super) struct Live {
    url: Endpoint,
    link: Link,
    events: Events,
    driver: JoinHandle<()>,
    queue: VecDeque<Event>,
    /// First level of the topics of boards.
    base_topic: String,
    filters: Vec<Filter>,
    /// Subscription identifiers that were given so far.
    ids: usize,
    is_connected: bool,
}

/// A subscription.
struct Filter {
    filter: TopicFilter,
    id: usize,
    is_input: bool,
    is_of_board: bool,
}

pub(super) struct Played {
    path: PathBuf,
    reader: Reader,
    speed: f64,
    last_ms: Option<u64>,
    /// Read already, and when it is due.
    next: Option<(Instant, Came)>,
}

impl Source {
    /// Connects. The first failure is an error, so that nobody waits for a mistyped address.
    pub(super) async fn broker(options: sedge_mqtt::Options, base_topic: String) -> anyhow::Result<Self> {
        let url = options.connection.url.clone();
        let (link, events, driver) = sedge_mqtt::connect(options)?;
        let driver = tokio::task::spawn_local(driver);
        let (queue, filters) = (VecDeque::new(), Vec::new());
        let mut live = Live { url, link, events, driver, queue, base_topic, filters, ids: 0, is_connected: false };
        loop {
            match live.next_event().await {
                Event::Connected { .. } => break,
                Event::Disconnected { reason } => bail!("cannot connect to the broker at {}: {reason}", live.url),
                _ => {}
            }
        }
        Ok(Self::Broker(live))
    }

    pub(super) fn recording(path: &Path, speed: f64, manifest: &Manifest) -> anyhow::Result<Self> {
        let reader = Reader::open(path)?;
        reader.check(manifest)?;
        let path = path.to_owned();
        Ok(Self::Recording(Box::new(Played { path, reader, speed, last_ms: None, next: None })))
    }

    /// Whether time passes as on a board.
    pub(super) fn is_live(&self) -> bool {
        matches!(self, Self::Broker(_))
    }

    /// Subscribes to the topics of the function and of the board, and to no others.
    pub(super) fn set_filters(&mut self, inputs: &[TopicFilter], of_board: &[TopicFilter]) {
        let Self::Broker(live) = self else { return };
        let before = std::mem::take(&mut live.filters);
        // Those of the board come first: no message is without what the board answers to it.
        for filter in of_board.iter().chain(inputs) {
            if live.filters.iter().any(|it| it.filter == *filter) {
                continue;
            }
            let known = before.iter().find(|it| it.filter == *filter).map(|it| it.id);
            let id = known.unwrap_or_else(|| {
                live.ids += 1;
                live.link.subscribe(filter.as_str(), Some(live.ids));
                live.ids
            });
            let (is_input, is_of_board) = (inputs.contains(filter), of_board.contains(filter));
            live.filters.push(Filter { filter: filter.clone(), id, is_input, is_of_board });
        }
        for left in before.iter().filter(|it| !live.filters.iter().any(|now| now.id == it.id)) {
            live.link.unsubscribe(left.filter.as_str());
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
            Self::Broker(live) => {
                let inputs = live.filters.iter().filter(|it| it.is_input).map(|it| it.filter.as_str());
                write!(f, "{} of {}", inputs.collect::<Vec<_>>().join(", "), live.url)
            }
            Self::Recording(played) => write!(f, "{}", played.path.display()),
        }
    }
}

impl Live {
    fn subscribe(&self) {
        self.filters.iter().for_each(|it| self.link.subscribe(it.filter.as_str(), Some(it.id)));
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
                    let ids = delivery.subscriptions.clone();
                    let Some(message) = message(delivery) else { continue };
                    let (is_input, is_of_board) = is_for(&self.filters, &self.base_topic, &message.topic, &ids);
                    return Ok(Came::Live { message: message.into(), is_input, is_of_board });
                }
                Event::NotSubscribed { filter, reason } => bail!(
                    "the broker at {} does not let this client subscribe to {filter} ({reason}): log in as a user that may \
                     read it, with --username and --password-file",
                    self.url
                ),
                Event::Disconnected { reason } => {
                    if std::mem::replace(&mut self.is_connected, false) {
                        return Ok(Came::Broken(format!("broker: {}; connecting again", printable(&reason))));
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

/// Whether a copy of a message is for the function, and whether it is of the board. Where several filters match, the broker may
/// send a copy for each: the first filter counts. A broker without identifiers sends no `ids`.
fn is_for(filters: &[Filter], base_topic: &str, topic: &str, ids: &[usize]) -> (bool, bool) {
    // As on a board, what hears everything does not hear the boards themselves.
    let is_own = topic.split('/').next() == Some(base_topic);
    let counts = |is: fn(&Filter) -> bool| {
        let first = filters.iter().find(|it| is(it) && it.filter.matches(topic));
        first.is_some_and(|it| ids.is_empty() || ids.contains(&it.id))
    };
    let is_named = |it: &Filter| it.is_input && it.filter.names(base_topic) && it.filter.matches(topic);
    let is_input = counts(|it| it.is_input) && (!is_own || filters.iter().any(is_named));
    (is_input, counts(|it| it.is_of_board))
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
            let came = Came::Recorded { message: message.into(), board: answers(run)? };
            self.next = Some((Instant::now() + pause.min(LONGEST_PAUSE), came));
            if let Some((topic, state)) = run.state.take() {
                return Ok(Came::State(topic.into(), state));
            }
        }
        // Cancelled and asked again, it waits for the same moment.
        if let Some((due, _)) = &self.next {
            tokio::time::sleep_until(*due).await;
        }
        Ok(self.next.take().map_or(Came::End, |(_, came)| came))
    }
}

/// What the board answered in a run.
fn answers(run: &RecordedRun) -> anyhow::Result<Result<Vec<Answer>, &'static str>> {
    if run.is_unsure || run.refused.is_some() {
        return Ok(Err("the board's outcome is not sure, or was not taken"));
    }
    let line = serde_json::from_slice(&run.outcome).context("an outcome of the recording cannot be read")?;
    let Line::Outcome(outcome) = line else { bail!("an outcome of the recording is something else") };
    let OutcomeLine { outputs, .. } = *outcome;
    Ok(Ok(outputs.iter().flatten().filter_map(Answer::recorded).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(text: &str, id: usize, is_input: bool, is_of_board: bool) -> Filter {
        Filter { filter: TopicFilter::parse(text).unwrap(), id, is_input, is_of_board }
    }

    #[test]
    fn each_message_counts_once_and_an_answer_of_the_board_is_no_input() {
        let filters = [
            filter("sedge/cellar/alerts/warm", 1, false, true),
            filter("said/#", 2, false, true),
            filter("said/+", 3, false, true),
            filter("#", 4, true, false),
            filter("sensors/#", 5, true, false),
        ];
        let check = |topic: &str, ids: &[usize]| is_for(&filters, "sedge", topic, ids);
        assert_eq!(check("sensors/a", &[4]), (true, false));
        assert_eq!(check("sensors/a", &[5]), (false, false), "the copy for another filter");
        assert_eq!(check("sensors/a", &[5, 4]), (true, false));
        // One copy, a copy for each, or a broker without identifiers.
        assert_eq!([check("said/a", &[4, 2]), check("said/a", &[])], [(true, true); 2]);
        assert_eq!([2, 3, 4].map(|id| check("said/a", &[id])), [(false, true), (false, false), (true, false)]);
        assert_eq!(
            [check("sedge/cellar/alerts/warm", &[1]), check("sedge/cellar/alerts/warm", &[])],
            [(false, true); 2]
        );
        assert_eq!(check("sedge/cellar/alerts/warm", &[4]), (false, false));
        // A function that names the boards hears them.
        let named = [filter("sedge/+/alerts/+", 1, true, false)];
        assert_eq!(is_for(&named, "sedge", "sedge/cellar/alerts/warm", &[1]), (true, false));
    }
}
