//! A conversation with the boards of one target about one function: what is known at its start, and what is published.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use bytes::Bytes;
use tokio::time::Instant;

use super::boards::Boards;
use super::progress::Progress;
use super::remote::{BrokerArgs, Remote, RemoteEvent};
use crate::deploy::topics::{Target, Topics};

pub struct Session {
    pub remote: Remote,
    pub topics: Topics,
    pub target: Target,
    /// A function's name, or `_keys`.
    pub function: Arc<str>,
    pub boards: Boards,
    /// The latest order as the broker keeps it. Nobody has checked it.
    pub retained_order: Option<Bytes>,
    pub progress: Progress,
    pub deadline: Instant,
}

impl Session {
    /// Connects and reads what is known of the function and of the boards that it is for.
    pub async fn open(
        broker: &BrokerArgs,
        target: Target,
        function: Arc<str>,
        deadline: Instant,
        quiet: Duration,
    ) -> anyhow::Result<Self> {
        let topics = Topics::new(&broker.base());
        let mut session = Self {
            remote: Remote::connect(broker).await?,
            boards: Boards::new(topics.clone()),
            retained_order: None,
            progress: Progress::new(),
            topics,
            target,
            function,
            deadline,
        };
        let node = match &session.target {
            Target::Node(node) => Some(&**node),
            Target::Group(_) => None,
        };
        let order = session.topics.deploy(&session.target, &session.function);
        let filters = [
            session.topics.statuses(node),
            session.topics.report(node.unwrap_or("+"), &session.function),
            order.clone(),
        ];
        let (boards, retained_order) = (&mut session.boards, &mut session.retained_order);
        let on_message = |topic: &str, payload: &Bytes| {
            if topic != order {
                return boards.record(topic, payload);
            }
            let payload = (!payload.is_empty()).then(|| payload.clone());
            let is_new = *retained_order != payload;
            *retained_order = payload;
            is_new
        };
        session.remote.read_retained(&filters, quiet, deadline, on_message).await?;
        // What comes from here on is our own.
        session.remote.unsubscribe(&order);
        Ok(session)
    }

    /// Publishes retained messages, each until the broker has it, across lost connections.
    pub async fn publish(&mut self, what: &str, messages: &[(String, Bytes)]) -> anyhow::Result<()> {
        let mut waiting: VecDeque<usize> = (0..messages.len()).collect();
        let mut under_way: BTreeMap<u64, usize> = BTreeMap::new();
        loop {
            while let Some(n) = waiting.front() {
                let (topic, payload) = &messages[*n];
                let Ok(token) = self.remote.publish(topic, payload.clone(), None) else { break };
                under_way.insert(token, *n);
                waiting.pop_front();
            }
            let done = messages.len() - waiting.len() - under_way.len();
            self.progress.set_count(what, done, messages.len());
            if done == messages.len() {
                return Ok(());
            }
            match self.next_event().await? {
                Some(RemoteEvent::Published(token)) => drop(under_way.remove(&token)),
                Some(RemoteEvent::Disconnected(_)) => waiting.extend(std::mem::take(&mut under_way).into_values()),
                Some(_) => {}
                None => bail!(
                    "the broker at {} did not take everything in time ({done} of {})",
                    self.remote.url(),
                    messages.len()
                ),
            }
        }
    }

    /// The next news, with what it says of boards already noted; `None` at the deadline.
    pub async fn next_event(&mut self) -> anyhow::Result<Option<RemoteEvent>> {
        self.next_event_until(self.deadline).await
    }

    pub async fn next_event_until(&mut self, until: Instant) -> anyhow::Result<Option<RemoteEvent>> {
        let news = self.remote.next_event_until(until.min(self.deadline)).await?;
        match &news {
            Some(RemoteEvent::Message { topic, payload }) => drop(self.boards.record(topic, payload)),
            Some(RemoteEvent::Disconnected(reason)) => {
                self.progress.print("broker", &format!("{reason}; connecting again"))
            }
            _ => {}
        }
        Ok(news)
    }
}
