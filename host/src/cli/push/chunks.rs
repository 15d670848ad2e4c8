//! The pieces of modules that the broker keeps. What is there already is not sent again, which is how a push that was
//! interrupted goes on.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;

use super::Bundle;
use crate::cli::order::QUIET;
use crate::cli::talk::Talk;
use crate::deploy;
use crate::deploy::envelope::Envelope;
use crate::deploy::payload::{Change, Order};
use crate::deploy::report::Report;
use crate::deploy::topics::Topic;
use crate::message::Digest;

/// The chunks of one module that the broker keeps, with the digest of what they hold.
#[derive(Debug, Default)]
pub struct Kept(BTreeMap<u32, Digest>);

/// Asks the broker what it keeps of the module.
pub async fn look(talk: &mut Talk, bundle: &Bundle) -> anyhow::Result<Kept> {
    let filter = talk.topics.blobs(&bundle.module.digest);
    let (boards, topics, mut kept) = (&mut talk.boards, &talk.topics, Kept::default());
    let take = |topic: &str, payload: &Bytes| match topics.parse(topic) {
        Some(Topic::Blob { index, .. }) if payload.is_empty() => kept.0.remove(&index).is_some(),
        Some(Topic::Blob { index, .. }) => {
            let digest = deploy::digest(payload);
            kept.0.insert(index, digest) != Some(digest)
        }
        _ => boards.take(topic, payload),
    };
    talk.remote.look(std::slice::from_ref(&filter), Duration::ZERO, talk.deadline, take).await?;
    // Or it would send us every chunk that we publish.
    talk.remote.unsubscribe(&filter);
    Ok(kept)
}

impl Kept {
    /// The chunks that are not there, or not what they should be.
    pub fn missing(&self, bundle: &Bundle) -> Vec<u32> {
        let wanted = (0..).zip(&bundle.module.chunks);
        wanted.filter(|(index, digest)| self.0.get(index) != Some(*digest)).map(|(index, _)| index).collect()
    }

    /// The topics of all chunks, of those too that an earlier push has cut otherwise.
    pub fn all(self, talk: &Talk, bundle: &Bundle) -> Vec<String> {
        let ours = (0..).zip(&bundle.module.chunks).map(|(index, _)| index);
        let indices: BTreeSet<u32> = self.0.into_keys().chain(ours).collect();
        indices.into_iter().map(|index| talk.topics.blob(&bundle.module.digest, index)).collect()
    }
}

pub fn messages(talk: &Talk, bundle: &Bundle, indices: &[u32]) -> Vec<(String, Bytes)> {
    let message = |index: &u32| (talk.topics.blob(&bundle.module.digest, *index), bundle.chunk(*index));
    indices.iter().map(message).collect()
}

/// The topics of all chunks of modules that no board's report and no order on the broker names.
pub async fn unused(talk: &mut Talk, base: &str, bundle: &Bundle) -> anyhow::Result<Vec<String>> {
    let filters = [
        talk.topics.reports(None),
        format!("{base}/+/deploy/+"),
        format!("{base}/group/+/deploy/+"),
        format!("{base}/blob/+/+"),
    ];
    let mut named = BTreeSet::from([bundle.module.digest]);
    let mut chunks: BTreeSet<(Digest, u32)> = BTreeSet::new();
    let topics = talk.topics.clone();
    let take = |topic: &str, payload: &Bytes| match topics.parse(topic) {
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
    talk.remote.look(&filters, QUIET, talk.deadline, take).await?;
    filters.iter().for_each(|filter| talk.remote.unsubscribe(filter));
    chunks.retain(|(digest, _)| !named.contains(digest));
    Ok(chunks.into_iter().map(|(digest, index)| topics.blob(&digest, index)).collect())
}

/// The module that an order installs. Whoever has signed it: what is doubtful is kept.
fn ordered(envelope: &[u8]) -> Option<Digest> {
    match Order::parse(Envelope::parse(envelope).ok()?.unverified()).ok()?.change {
        Change::Install(install) => Some(install.module.digest),
        _ => None,
    }
}

fn reported(report: &Report) -> impl Iterator<Item = Digest> {
    let active = report.active.as_ref().map(|active| active.version.digest);
    let previous = report.previous.as_ref().map(|previous| previous.digest);
    [report.digest, active, previous].into_iter().flatten()
}
