//! The pieces of modules that the broker keeps. What is there already is not sent again, which is how a push that was
//! interrupted goes on.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;

use super::Bundle;
use crate::cli::operator::order::RETAINED_GRACE;
use crate::cli::operator::session::Session;
use crate::deploy;
use crate::deploy::envelope::Envelope;
use crate::deploy::payload::{Change, Order};
use crate::deploy::report::Report;
use crate::deploy::topics::Topic;
use crate::message::Digest;

/// The chunks of our modules that the broker keeps, with the digest of what they hold.
#[derive(Debug, Default)]
pub struct RetainedChunks(BTreeMap<(Digest, u32), Digest>);

/// Asks the broker what it keeps of the modules.
pub async fn retained(session: &mut Session, bundle: &Bundle) -> anyhow::Result<RetainedChunks> {
    let filters: Vec<String> = bundle.digests().map(|digest| session.topics.blobs(&digest)).collect();
    let (boards, topics, mut kept) = (&mut session.boards, &session.topics, RetainedChunks::default());
    let on_message = |topic: &str, payload: &Bytes| match topics.parse(topic) {
        Some(Topic::Blob { digest, index }) if payload.is_empty() => kept.0.remove(&(digest, index)).is_some(),
        Some(Topic::Blob { digest, index }) => {
            let held = deploy::digest(payload);
            kept.0.insert((digest, index), held) != Some(held)
        }
        _ => boards.record(topic, payload),
    };
    session.remote.read_retained(&filters, Duration::ZERO, session.deadline, on_message).await?;
    // Or it would send us every chunk that we publish.
    filters.iter().for_each(|filter| session.remote.unsubscribe(filter));
    Ok(kept)
}

impl RetainedChunks {
    /// The chunks that are not there, or not what they should be.
    pub fn missing(&self, session: &Session, bundle: &Bundle) -> Vec<(String, Bytes)> {
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

    /// The topics of all chunks, of those too that an earlier push has cut otherwise.
    pub fn all(self, session: &Session, bundle: &Bundle) -> Vec<String> {
        let ours = bundle.parts.iter().flat_map(|part| {
            let indices = 0..part.module.chunks.len() as u32;
            indices.map(|index| (part.module.digest, index))
        });
        let chunks: BTreeSet<(Digest, u32)> = self.0.into_keys().chain(ours).collect();
        chunks.into_iter().map(|(digest, index)| session.topics.blob(&digest, index)).collect()
    }
}

/// The topics of all chunks of modules that no board's report and no order on the broker names.
pub async fn unused(session: &mut Session, base: &str, bundle: &Bundle) -> anyhow::Result<Vec<String>> {
    let filters = [
        session.topics.reports(None),
        format!("{base}/+/deploy/+"),
        format!("{base}/group/+/deploy/+"),
        format!("{base}/blob/+/+"),
    ];
    let mut named = bundle.digests().collect::<BTreeSet<_>>();
    let mut chunks: BTreeSet<(Digest, u32)> = BTreeSet::new();
    let topics = session.topics.clone();
    let on_message = |topic: &str, payload: &Bytes| match topics.parse(topic) {
        Some(Topic::Blob { digest, index }) if !payload.is_empty() => chunks.insert((digest, index)),
        Some(Topic::Deploy { .. }) => {
            let before = named.len();
            named.extend(ordered(payload));
            named.len() > before
        }
        Some(Topic::Report { .. }) => {
            let before = named.len();
            named.extend(Report::parse(payload).iter().flat_map(reported));
            named.len() > before
        }
        _ => false,
    };
    session.remote.read_retained(&filters, RETAINED_GRACE, session.deadline, on_message).await?;
    filters.iter().for_each(|filter| session.remote.unsubscribe(filter));
    chunks.retain(|(digest, _)| !named.contains(digest));
    Ok(chunks.into_iter().map(|(digest, index)| topics.blob(&digest, index)).collect())
}

/// The modules that an order may bring. Whoever has signed it: what is doubtful is kept.
fn ordered(envelope: &[u8]) -> Vec<Digest> {
    let order = Envelope::parse(envelope).and_then(|envelope| Order::parse(envelope.unverified()));
    match order.map(|order| order.change) {
        Ok(Change::Install(install)) => install.modules().map(|module| module.digest).collect(),
        _ => Vec::new(),
    }
}

fn reported(report: &Report) -> impl Iterator<Item = Digest> {
    let active = report.active.as_ref().map(|active| active.version.digest);
    let previous = report.previous.as_ref().map(|previous| previous.digest);
    [report.digest, active, previous].into_iter().flatten()
}
