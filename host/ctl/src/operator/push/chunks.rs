//! Chunks of modules on the broker. An interrupted push goes on where it stopped: retained chunks are not sent again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;

use crate::operator::order::RETAINED_GRACE;
use crate::operator::push::bundle::Bundle;
use crate::operator::session::Session;
use sedge_core::deploy;
use sedge_core::deploy::envelope::SignedEnvelope;
use sedge_core::deploy::payload::{Order, OrderChange};
use sedge_core::deploy::report::Report;
use sedge_core::deploy::topics::Topic;
use sedge_core::message::Digest;

/// Retained chunks of our modules: digest of the content by module and index.
#[derive(Debug, Default)]
pub(crate) struct RetainedChunks(BTreeMap<(Digest, u32), Digest>);

impl RetainedChunks {
    pub(crate) async fn read(session: &mut Session, bundle: &Bundle) -> anyhow::Result<Self> {
        let filters: Vec<String> = bundle.digests().map(|digest| session.topics.blobs(&digest)).collect();
        let (boards, topics, mut chunks) = (&mut session.boards, &session.topics, BTreeMap::new());
        let on_message = |topic: &str, payload: &Bytes| match topics.parse(topic) {
            Some(Topic::Blob { digest, index }) if payload.is_empty() => chunks.remove(&(digest, index)).is_some(),
            Some(Topic::Blob { digest, index }) => {
                let content = deploy::digest(payload);
                chunks.insert((digest, index), content) != Some(content)
            }
            _ => boards.record(topic, payload),
        };
        session.client.read_retained(&filters, Duration::ZERO, session.deadline, on_message).await?;
        // Or the broker would send back every chunk that we publish.
        filters.iter().for_each(|filter| session.client.unsubscribe(filter));
        Ok(Self(chunks))
    }

    /// Topics and content of the chunks that are missing or damaged on the broker.
    pub(crate) fn missing(&self, session: &Session, bundle: &Bundle) -> Vec<(String, Bytes)> {
        let mut missing = Vec::new();
        for part in &bundle.parts {
            let digest = &part.module.digest;
            for (index, chunk) in (0..).zip(&part.module.chunks) {
                if self.0.get(&(*digest, index)) != Some(chunk) {
                    missing.push((session.topics.blob(digest, index), part.chunk(index)));
                }
            }
        }
        missing
    }

    /// Topics of all chunks, also of those that an earlier push cut to another size.
    pub(crate) fn into_topics(self, session: &Session, bundle: &Bundle) -> Vec<String> {
        let ours = bundle.parts.iter().flat_map(|part| {
            let indices = 0..part.module.chunks.len() as u32;
            indices.map(|index| (part.module.digest, index))
        });
        let chunks: BTreeSet<(Digest, u32)> = self.0.into_keys().chain(ours).collect();
        chunks.into_iter().map(|(digest, index)| session.topics.blob(&digest, index)).collect()
    }
}

/// Returns the topics of all chunks whose module neither a board's report nor an order on the broker names.
pub(crate) async fn unused(session: &mut Session, base: &str, bundle: &Bundle) -> anyhow::Result<Vec<String>> {
    let filters = [
        session.topics.reports(None),
        format!("{base}/+/deploy/+"),
        format!("{base}/group/+/deploy/+"),
        format!("{base}/blob/+/+"),
    ];
    let mut named = bundle.digests().collect::<BTreeSet<_>>();
    let mut chunks: BTreeSet<(Digest, u32)> = BTreeSet::new();
    let topics = session.topics.clone();
    let on_message = |topic: &str, payload: &Bytes| {
        let before = named.len();
        match topics.parse(topic) {
            Some(Topic::Blob { digest, index }) if !payload.is_empty() => return chunks.insert((digest, index)),
            Some(Topic::Deploy { .. }) => named.extend(digests_of_order(payload)),
            Some(Topic::Report { .. }) => named.extend(Report::parse(payload).iter().flat_map(digests_of_report)),
            _ => {}
        }
        named.len() > before
    };
    session.client.read_retained(&filters, RETAINED_GRACE, session.deadline, on_message).await?;
    filters.iter().for_each(|filter| session.client.unsubscribe(filter));
    chunks.retain(|(digest, _)| !named.contains(digest));
    Ok(chunks.into_iter().map(|(digest, index)| topics.blob(&digest, index)).collect())
}

/// Modules of an order, also of an unverified one: removing too little is the safe side.
fn digests_of_order(envelope: &[u8]) -> Vec<Digest> {
    let order = SignedEnvelope::parse(envelope).and_then(|envelope| Order::parse(envelope.unverified()));
    match order.map(|order| order.change) {
        Ok(OrderChange::Install(install)) => install.modules().map(|module| module.digest).collect(),
        _ => Vec::new(),
    }
}

fn digests_of_report(report: &Report) -> impl Iterator<Item = Digest> {
    let active = report.active.as_ref().map(|active| active.version.digest);
    let previous = report.previous.as_ref().map(|previous| previous.digest);
    [report.digest, active, previous].into_iter().flatten()
}
