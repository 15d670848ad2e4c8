//! A conversation with the boards of one target about one function: what is known at its start, and what is published.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use bytes::Bytes;
use tokio::time::Instant;

use super::boards::Boards;
use super::progress::Progress;
use super::remote::{BrokerArgs, News, Remote};
use crate::deploy::topics::{Target, Topics};

pub struct Talk {
    pub remote: Remote,
    pub topics: Topics,
    pub target: Target,
    /// A function's name, or `_keys`.
    pub function: Arc<str>,
    pub boards: Boards,
    /// The latest order as the broker keeps it. Nobody has checked it.
    pub standing: Option<Bytes>,
    pub progress: Progress,
    pub deadline: Instant,
}

impl Talk {
    /// Connects and reads what is known of the function and of the boards that it is for.
    pub async fn open(
        broker: &BrokerArgs,
        target: Target,
        function: Arc<str>,
        deadline: Instant,
        quiet: Duration,
    ) -> anyhow::Result<Self> {
        let topics = Topics::new(&broker.base());
        let mut talk = Self {
            remote: Remote::connect(broker).await?,
            boards: Boards::new(topics.clone()),
            standing: None,
            progress: Progress::new(),
            topics,
            target,
            function,
            deadline,
        };
        let node = match &talk.target {
            Target::Node(node) => Some(&**node),
            Target::Group(_) => None,
        };
        let order = talk.topics.deploy(&talk.target, &talk.function);
        let filters =
            [talk.topics.statuses(node), talk.topics.report(node.unwrap_or("+"), &talk.function), order.clone()];
        let (boards, standing) = (&mut talk.boards, &mut talk.standing);
        let take = |topic: &str, payload: &Bytes| {
            if topic != order {
                return boards.take(topic, payload);
            }
            let payload = (!payload.is_empty()).then(|| payload.clone());
            let is_new = *standing != payload;
            *standing = payload;
            is_new
        };
        talk.remote.look(&filters, quiet, deadline, take).await?;
        // What comes from here on is our own.
        talk.remote.unsubscribe(&order);
        Ok(talk)
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
            self.progress.part(what, done, messages.len());
            if done == messages.len() {
                return Ok(());
            }
            match self.news().await? {
                Some(News::Taken(token)) => drop(under_way.remove(&token)),
                Some(News::Down(_)) => waiting.extend(std::mem::take(&mut under_way).into_values()),
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
    pub async fn news(&mut self) -> anyhow::Result<Option<News>> {
        self.news_until(self.deadline).await
    }

    pub async fn news_until(&mut self, until: Instant) -> anyhow::Result<Option<News>> {
        let news = self.remote.news_until(until.min(self.deadline)).await?;
        match &news {
            Some(News::Message { topic, payload }) => drop(self.boards.take(topic, payload)),
            Some(News::Down(reason)) => self.progress.say("broker", &format!("{reason}; connecting again")),
            _ => {}
        }
        Ok(news)
    }
}
