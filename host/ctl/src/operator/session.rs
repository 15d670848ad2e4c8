//! A session with the boards of one target about one function.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use bytes::Bytes;
use tokio::time::Instant;

use super::boards::Boards;
use super::broker::BrokerArgs;
use super::known::KnownBoards;
use crate::client::{Client, ClientEvent};
use crate::progress::Progress;
use sedge_core::deploy::report::Report;
use sedge_core::deploy::topics::{Target, Topics};
use sedge_core::message::PublishToken;
use sedge_core::time::Now;

pub(crate) struct Session {
    pub(crate) client: Client,
    pub(crate) topics: Topics,
    pub(crate) target: Target,
    /// Name of a function, or `_keys`.
    pub(crate) function: Arc<str>,
    pub(crate) boards: Boards,
    /// Latest order as the broker retains it. Unverified.
    pub(crate) retained_order: Option<Bytes>,
    pub(crate) progress: Progress,
    /// When the session was opened.
    pub(crate) now: Now,
    pub(crate) deadline: Instant,
}

impl Session {
    /// Connects, and reads what the broker retains about the function and the boards of the target.
    pub(crate) async fn open(
        broker: &BrokerArgs,
        target: Target,
        function: Arc<str>,
        now: Now,
        timeout: Duration,
        grace: Duration,
    ) -> anyhow::Result<Self> {
        Self::open_on(broker, Topics::deploy, target, function, now, timeout, grace).await
    }

    /// The same for orders of settings.
    pub(crate) async fn open_settings(
        broker: &BrokerArgs,
        target: Target,
        function: Arc<str>,
        now: Now,
        timeout: Duration,
        grace: Duration,
    ) -> anyhow::Result<Self> {
        Self::open_on(broker, Topics::settings, target, function, now, timeout, grace).await
    }

    async fn open_on(
        broker: &BrokerArgs,
        order_topic: fn(&Topics, &Target, &str) -> String,
        target: Target,
        function: Arc<str>,
        now: Now,
        timeout: Duration,
        grace: Duration,
    ) -> anyhow::Result<Self> {
        let topics = Topics::new(&broker.base());
        let client = broker.connect().await?;
        let known = KnownBoards::open(&format!("{}/{}", client.url(), broker.base()));
        let mut session = Self {
            client,
            boards: Boards::new(topics.clone(), known),
            retained_order: None,
            progress: Progress::new(),
            topics,
            target,
            function,
            now,
            deadline: Instant::from_std(now.monotonic) + timeout,
        };
        let node = match &session.target {
            Target::Node(node) => Some(&**node),
            Target::Group(_) => None,
        };
        // The status of all boards: a name that is not among them may be mistyped.
        let topics = &session.topics;
        let order = order_topic(topics, &session.target, &session.function);
        let filters = [topics.statuses(None), topics.report(node.unwrap_or("+"), &session.function), order.clone()];
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
        session.client.read_retained(&filters, grace, session.deadline, on_message).await?;
        session.boards.remember();
        session.check_signatures()?;
        // Or the broker would send our own order back.
        session.client.unsubscribe(&order);
        Ok(session)
    }

    /// Fails if a board of the target is not the one that this computer knows. Notes boards that do not sign.
    pub(crate) fn check_signatures(&self) -> anyhow::Result<()> {
        self.check_trust()?;
        for node in self.members(None) {
            let Some(board) = self.boards.get(&node) else { continue };
            if !board.is_signed && board.presence.is_some() {
                self.progress
                    .print("note", &format!("{node} does not sign its status and reports, as older boards do not"));
            } else if board.unsigned.contains(&self.function) {
                let what =
                    format!("a report of {} on {node} does not count: the board has not signed it", self.function);
                self.progress.print("note", &what);
            }
        }
        Ok(())
    }

    /// Fails if a board of the target turns out not to be the one that this computer knows.
    pub(crate) fn check_trust(&self) -> anyhow::Result<()> {
        let members = self.members(None);
        let distrust = members.iter().find_map(|node| self.boards.get(node)?.distrust.as_ref());
        distrust.map_or(Ok(()), |distrust| bail!("{distrust}"))
    }

    /// Fails if the target is a board that the broker does not know, with a name like that of one that it knows.
    pub(crate) fn check_name(&self) -> anyhow::Result<()> {
        let Target::Node(node) = &self.target else { return Ok(()) };
        match self.boards.near(node) {
            Some(near) => bail!("the broker knows no board {node}; did you mean {near}? Nothing was sent"),
            None => Ok(()),
        }
    }

    /// Boards that an order with this serial is for.
    pub(crate) fn members(&self, serial: Option<u64>) -> Vec<Arc<str>> {
        self.boards.members(&self.target, &self.function, serial)
    }

    pub(crate) fn report(&self, node: &str) -> Option<&Report> {
        self.boards.report(node, &self.function)
    }

    pub(crate) fn highest_used_serial(&self) -> Option<u64> {
        self.boards.highest_used(&self.target, &self.function)
    }

    /// Publishes retained messages until the broker has acknowledged each, across lost connections.
    pub(crate) async fn publish(&mut self, label: &str, messages: &[(String, Bytes)]) -> anyhow::Result<()> {
        let mut waiting: VecDeque<usize> = (0..messages.len()).collect();
        let mut in_flight: BTreeMap<PublishToken, usize> = BTreeMap::new();
        loop {
            while let Some(n) = waiting.front() {
                let (topic, payload) = &messages[*n];
                let Ok(token) = self.client.publish(topic, payload.clone(), true) else { break };
                in_flight.insert(token, *n);
                waiting.pop_front();
            }
            let done = messages.len() - waiting.len() - in_flight.len();
            self.progress.set_count(label, done as u64, messages.len() as u64, "", Instant::now());
            if done == messages.len() {
                return Ok(());
            }
            match self.next_event_until(self.deadline).await? {
                Some(ClientEvent::Published(token)) => drop(in_flight.remove(&token)),
                Some(ClientEvent::Disconnected(_)) => waiting.extend(std::mem::take(&mut in_flight).into_values()),
                Some(_) => {}
                None => bail!(
                    "timed out: the broker at {} acknowledged {done} of {} messages",
                    self.client.url(),
                    messages.len()
                ),
            }
        }
    }

    /// Returns the next event, after recording what it reports of boards; `None` at `until` or the deadline.
    pub(crate) async fn next_event_until(&mut self, until: Instant) -> anyhow::Result<Option<ClientEvent>> {
        let event = self.client.next_event_until(until.min(self.deadline)).await?;
        match &event {
            Some(ClientEvent::Message { topic, payload }) => drop(self.boards.record(topic, payload)),
            Some(ClientEvent::Disconnected(reason)) => {
                self.progress.print("broker", &format!("{reason}; connecting again"));
            }
            _ => {}
        }
        Ok(event)
    }
}
