//! Receivers of what the board forwards: brokers, whose connections are part of the event loop, and senders that block and
//! therefore have a thread each. One that waits or hangs keeps nobody else waiting.

mod alertmanager;
mod file;
mod influx;
mod structured;
pub(crate) mod webhook;

use std::collections::VecDeque;
use std::time::Instant;

use anyhow::Context as _;
use futures_util::future::select_all;
use serde_json::Value;
use tokio::sync::mpsc;

use crate::telemetry::ConnectionLog;
use file::FileSink;
use influx::Influx;
use sedge_core::config::{Config, Target};
use sedge_core::forward::{Answer, Envelope};
use sedge_core::message::PublishToken;
use sedge_core::store::Recovered;
use sedge_core::stream::SinkId;
use sedge_mqtt::{Full, Link};
use webhook::Webhook;

/// Answers of all threads that wait for the event loop. A thread that finds no room waits.
const ANSWERS: usize = 256;

/// Something that happened at a sink.
pub(crate) enum Happened {
    Broker(SinkId, VecDeque<sedge_mqtt::Event>),
    Answered(SinkId, PublishToken, Answer),
}

/// Where the thread of a sink sends its answers.
#[derive(Clone, Debug)]
pub(crate) struct Answers {
    sink: SinkId,
    sender: mpsc::Sender<(SinkId, PublishToken, Answer)>,
}

impl Answers {
    /// Returns whether anybody listens.
    pub(crate) fn send(&self, token: PublishToken, answer: Answer) -> bool {
        self.sender.blocking_send((self.sink, token, answer)).is_ok()
    }
}

/// All sinks of the configuration.
pub(crate) struct Receivers {
    brokers: Vec<Broker>,
    senders: Vec<(SinkId, Sender)>,
    answers: mpsc::Receiver<(SinkId, PublishToken, Answer)>,
}

/// A broker that is a sink.
pub(crate) struct Broker {
    sink: SinkId,
    pub(crate) name: String,
    link: Link,
    events: sedge_mqtt::Events,
    pub(crate) log: ConnectionLog,
    /// What it does not offer, as far as that was logged.
    pub(crate) limits: Vec<String>,
}

/// The handle of a thread.
enum Sender {
    Webhook(Webhook),
    Influx(Influx),
    File(FileSink),
}

impl Receivers {
    /// Starts all sinks. Called within the event loop's task set.
    pub(crate) fn start(config: &Config, recovered: &Recovered) -> anyhow::Result<Self> {
        let (sender, answers) = mpsc::channel(ANSWERS);
        let mut all = Self { brokers: Vec::new(), senders: Vec::new(), answers };
        for sink in &config.sinks.list {
            let id = recovered.sink(&sink.name).context("the store gave a sink no number")?;
            let answers = Answers { sink: id, sender: sender.clone() };
            match &sink.target {
                Target::Mqtt(receiver) => {
                    let (link, events, drive) = sedge_mqtt::connect(sedge_mqtt::Options::upstream(receiver))
                        .with_context(|| format!("failed to prepare the sink {}", sink.name))?;
                    tokio::task::spawn_local(drive);
                    let (name, log, limits) = (sink.name.clone(), ConnectionLog::default(), Vec::new());
                    all.brokers.push(Broker { sink: id, name, link, events, log, limits });
                }
                Target::Webhook(receiver) => {
                    all.senders.push((id, Sender::Webhook(Webhook::spawn(&sink.section(), receiver, answers)?)));
                }
                Target::Influx(server) => {
                    let node = &config.node.name;
                    let influx = Influx::spawn(&sink.section(), node, server, id, recovered, answers)?;
                    all.senders.push((id, Sender::Influx(influx)));
                }
                Target::File(folder) => {
                    let sender = FileSink::spawn(&config.node.name, folder, answers)
                        .with_context(|| format!("failed to start the sink {}", sink.name))?;
                    all.senders.push((id, Sender::File(sender)));
                }
            }
        }
        Ok(all)
    }

    /// [`Full`]: the envelope is to be sent again after the next answer.
    pub(crate) fn send(&self, sink: SinkId, token: PublishToken, envelope: Envelope) -> Result<(), Full> {
        if let Some(broker) = self.brokers.iter().find(|broker| broker.sink == sink) {
            return publish(&broker.link, &envelope, token);
        }
        match self.senders.iter().find(|(id, _)| *id == sink) {
            Some((_, Sender::Webhook(webhook))) => webhook.post(token, envelope),
            Some((_, Sender::Influx(influx))) => influx.send(token, envelope),
            Some((_, Sender::File(file))) => file.send(token, envelope),
            None => Err(Full),
        }
    }

    pub(crate) fn reconnect(&self, sink: SinkId) {
        self.brokers.iter().filter(|broker| broker.sink == sink).for_each(|broker| broker.link.reconnect());
    }

    pub(crate) fn close(&self) {
        self.brokers.iter().for_each(|broker| broker.link.close());
    }

    pub(crate) fn broker(&mut self, sink: SinkId) -> Option<&mut Broker> {
        self.brokers.iter_mut().find(|broker| broker.sink == sink)
    }

    /// Connections that stand again, by the names of their sinks.
    pub(crate) fn settled(&mut self, now: Instant) -> Vec<String> {
        let settled = self.brokers.iter_mut().filter_map(|broker| broker.log.settle(now).then(|| broker.name.clone()));
        settled.collect()
    }

    /// What happened already, without waiting.
    pub(crate) fn waiting(&mut self) -> Vec<Happened> {
        let mut happened = Vec::new();
        for broker in &mut self.brokers {
            let mut received = VecDeque::new();
            broker.events.try_receive(&mut received);
            if !received.is_empty() {
                happened.push(Happened::Broker(broker.sink, received));
            }
        }
        while let Ok((sink, token, answer)) = self.answers.try_recv() {
            happened.push(Happened::Answered(sink, token, answer));
        }
        happened
    }

    /// Waits for what happens next. Nothing is lost when the future is dropped.
    pub(crate) async fn receive(&mut self) -> Happened {
        let Self { brokers, answers, .. } = self;
        let answered = async {
            match answers.recv().await {
                Some((sink, token, answer)) => Happened::Answered(sink, token, answer),
                // There are no threads.
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            happened = heard(brokers) => happened,
            happened = answered => happened,
        }
    }
}

/// Waits for events of any broker. Most boards have one.
async fn heard(brokers: &mut [Broker]) -> Happened {
    async fn hear(broker: &mut Broker) -> Happened {
        let mut received = VecDeque::new();
        broker.events.receive(&mut received).await;
        Happened::Broker(broker.sink, received)
    }
    match brokers {
        [] => std::future::pending().await,
        [only] => hear(only).await,
        all => {
            let (happened, ..) = select_all(all.iter_mut().map(|broker| Box::pin(hear(broker)))).await;
            happened
        }
    }
}

/// Labels as `{ "line": "3" }`, or as the pairs `[["line", "3"]]` that alerts have.
fn labels(labels: Option<&Value>) -> Vec<(&str, &Value)> {
    match labels {
        Some(Value::Object(labels)) => labels.iter().map(|(name, value)| (&**name, value)).collect(),
        Some(Value::Array(pairs)) => {
            let pairs = pairs.iter().filter_map(Value::as_array);
            pairs
                .filter_map(|pair| match &pair[..] {
                    [Value::String(name), value] => Some((&**name, value)),
                    _ => None,
                })
                .collect()
        }
        _ => Vec::new(),
    }
}

/// Publishes an envelope at QoS 1.
pub(crate) fn publish(link: &Link, envelope: &Envelope, token: PublishToken) -> Result<(), Full> {
    let properties: Vec<(&str, &str)> =
        envelope.properties.iter().map(|(name, value)| (*name, value.as_ref())).collect();
    let publication = sedge_mqtt::Publication {
        topic: &envelope.topic,
        payload: envelope.payload.clone(),
        content_type: envelope.content_type.as_deref(),
        properties: &properties,
        retain: envelope.retain,
    };
    link.publish(publication, token)
}
