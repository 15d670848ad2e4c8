//! Requests to a board: signed, published, and answered below `reply/`.

use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use tokio::time::Instant;

use super::broker::BrokerArgs;
use crate::client::{Client, ClientEvent};
use crate::printable;
use sedge_core::deploy::envelope::SignedEnvelope;
use sedge_core::deploy::keys::SigningKey;
use sedge_core::deploy::requests::{BoardRequest, Reply, RequestAnswer, RequestKind};
use sedge_core::deploy::topics::{Topic, Topics};

/// A request is carried out within this time or not at all. It allows for a clock that is a little wrong.
const EXPIRES_IN_MS: u64 = 15 * 60_000;
/// How long an answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Asks one board about one function.
pub(crate) struct Asker {
    client: Client,
    topics: Topics,
    node: String,
    function: String,
    key: SigningKey,
}

/// An answer, with the pieces that it announced.
pub(crate) struct Answered {
    pub(crate) id: String,
    pub(crate) answer: RequestAnswer,
    pub(crate) pieces: Vec<Bytes>,
}

impl Asker {
    pub(crate) async fn connect(
        broker: &BrokerArgs,
        node: &str,
        function: &str,
        key: SigningKey,
    ) -> anyhow::Result<Self> {
        let (client, topics) = (broker.connect().await?, Topics::new(&broker.base()));
        Ok(Self { client, topics, node: node.to_owned(), function: function.to_owned(), key })
    }

    pub(crate) async fn close(self) {
        self.client.close().await;
    }

    /// Asks once more while nothing answers: for requests that may be carried out twice.
    pub(crate) async fn ask_again(&mut self, kind: &RequestKind, attempts: u32) -> anyhow::Result<Answered> {
        for _ in 1..attempts {
            if let Some(answered) = self.try_ask(kind).await? {
                return Ok(answered);
            }
        }
        self.ask(kind).await
    }

    /// Publishes a request and waits for the whole answer. A refusal is an error.
    pub(crate) async fn ask(&mut self, kind: &RequestKind) -> anyhow::Result<Answered> {
        self.try_ask(kind).await?.with_context(|| {
            format!(
                "{} does not answer: it is not connected, {} in its configuration, and a restart), or the broker does not let \
                 it read request/ and publish reply/ below its own topic",
                self.node,
                match kind {
                    RequestKind::Logs { .. } => "no key may read its log (logs = true",
                    _ => "nothing is recorded there (recording.enabled = true",
                }
            )
        })
    }

    /// `None`: nothing, or not all of it, came in time.
    pub(crate) async fn try_ask(&mut self, kind: &RequestKind) -> anyhow::Result<Option<Answered>> {
        let id = random_id()?;
        let filter = self.topics.replies(&self.node, &id);
        self.client.subscribe(&filter);
        let deadline = Instant::now() + ANSWER_TIMEOUT;
        let answered = self.exchange(&id, &filter, kind, deadline).await;
        self.client.unsubscribe(&filter);
        answered
    }

    async fn exchange(
        &mut self,
        id: &str,
        filter: &str,
        kind: &RequestKind,
        deadline: Instant,
    ) -> anyhow::Result<Option<Answered>> {
        let mut answer = None;
        let mut pieces: Vec<Option<Bytes>> = Vec::new();
        loop {
            let Some(event) = self.client.next_event_until(deadline).await? else { return Ok(None) };
            match event {
                // Not before: the broker would have nobody to send the answer to.
                ClientEvent::Subscribed(subscribed) if subscribed == filter && answer.is_none() => {
                    let (topic, envelope) = (self.topics.request(&self.node, id), self.sign(id, kind));
                    if self.client.publish(&topic, envelope.into(), false).is_err() {
                        bail!("too much waits to be sent to the broker");
                    }
                }
                ClientEvent::Message { topic, payload } => {
                    let number = match self.topics.parse(&topic) {
                        Some(Topic::Reply { node, id: of, number }) if *node == *self.node && *of == *id => number,
                        _ => continue,
                    };
                    if number > 0 {
                        let at = number as usize - 1;
                        pieces.resize(pieces.len().max(at + 1), None);
                        pieces[at] = Some(payload);
                    } else {
                        match serde_json::from_slice(&payload).context("the board answered something else")? {
                            Reply::Ok(it) => answer = Some(it),
                            Reply::Refused { reason, detail } => {
                                bail!("{} refused it ({}): {}", self.node, printable(&reason), printable(&detail))
                            }
                        }
                    }
                }
                _ => {}
            }
            if let Some(answer) = &answer
                && pieces.iter().flatten().count() >= answer.pieces as usize
            {
                let (answer, pieces) = (answer.clone(), pieces.into_iter().flatten().collect());
                return Ok(Some(Answered { id: id.to_owned(), answer, pieces }));
            }
        }
    }

    fn sign(&self, id: &str, kind: &RequestKind) -> Vec<u8> {
        let now_ms = sedge_sandbox::clock::now_ms();
        let request = BoardRequest {
            id: id.into(),
            node: self.node.as_str().into(),
            function: self.function.as_str().into(),
            issued_at_ms: now_ms,
            expires_at_ms: now_ms + EXPIRES_IN_MS,
            request: kind.clone(),
        };
        SignedEnvelope::sign(&request.to_json(), &[&self.key]).to_json()
    }
}

fn random_id() -> anyhow::Result<String> {
    let mut id = [0; 8];
    rustix::rand::getrandom(&mut id, rustix::rand::GetRandomFlags::empty()).context("failed to draw an id")?;
    Ok(sedge_core::text::hex(&id))
}
