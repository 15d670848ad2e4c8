//! Requests to one board: signed like orders, but not retained, and answered below `reply/`.
//!
//! ```text
//! <base>/<node>/request/<id>      the signed request. It expires within an hour, and is carried out once
//! <base>/<node>/reply/<id>/0      {"ok":{..}} or {"refused":{"reason":"..","detail":".."}}
//! <base>/<node>/reply/<id>/<n>    the pieces that the first reply announces, from 1
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::acceptance::{Board, check_times, filter};
use super::deployer::Deployer;
use super::envelope::SignedEnvelope;
use super::interface::Action;
use super::reason::{Reason, Refusal};
use crate::message::Digest;
use crate::time::Now;

/// Longest time between the issue of a request and its expiry.
pub const MAX_LIFETIME_MS: u64 = 3_600_000;
/// Requests that are remembered, so that none is carried out twice.
const MAX_SEEN: usize = 1024;
/// Bytes of a piece of an answer: every broker takes them, and an operator's client.
pub const PIECE_BYTES: usize = 64 << 10;
/// Pieces in the answer to one request.
pub const MAX_PIECES: u32 = 16;

/// A request: the JSON that is signed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BoardRequest {
    /// Names the topics of the answer.
    pub id: Box<str>,
    pub node: Box<str>,
    /// The function that it is about, which the key must be for. Empty for the log.
    pub function: Box<str>,
    pub issued_at_ms: u64,
    pub expires_at_ms: u64,
    pub request: RequestKind,
}

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum RequestKind {
    /// Record the runs of the function. The id of this request names the recording.
    Record { secs: u64, messages: u64, bytes: u64 },
    /// Tell how far a recording is, and send pieces of its file.
    Recording { of: Box<str>, from: u32, pieces: u32 },
    /// End a recording before its time.
    EndRecording { of: Box<str> },
    /// Delete a recording.
    DropRecording { of: Box<str> },
    /// Send the lines of the log after this number.
    Logs { after: u64 },
}

/// A request that is to be carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcceptedRequest {
    pub id: Arc<str>,
    pub function: Arc<str>,
    /// Name of the key that signed it.
    pub key: String,
    pub kind: RequestKind,
}

/// The first reply to a request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reply {
    Ok(RequestAnswer),
    Refused { reason: String, detail: String },
}

/// What a recording is at.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestAnswer {
    /// "recording" or "ended".
    pub state: String,
    /// Why it ended, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// Runs that were recorded so far.
    #[serde(default)]
    pub runs: u64,
    /// Bytes of the file so far.
    #[serde(default)]
    pub bytes: u64,
    /// Pieces that follow this answer.
    #[serde(default)]
    pub pieces: u32,
    /// Number of the last line of the log that follows.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub last: u64,
    /// Lines after the one that was asked for which the board does not have any more.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub left_out: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

impl BoardRequest {
    /// The bytes to sign.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a request has only string keys")
    }
}

impl Reply {
    pub fn refused(refusal: &Refusal) -> Self {
        Self::Refused { reason: refusal.reason.as_str().to_owned(), detail: refusal.detail.clone() }
    }

    pub fn to_json(&self) -> Bytes {
        serde_json::to_vec(self).expect("a reply has only string keys").into()
    }
}

/// Requests that were carried out, with their expiry.
#[derive(Debug, Default)]
pub(super) struct SeenRequests(BTreeMap<Digest, u64>);

impl SeenRequests {
    /// Whether it is new. Those that cannot be accepted any more are forgotten.
    fn add(&mut self, digest: Digest, expires_at_ms: u64, now_ms: Option<u64>) -> Result<bool, Refusal> {
        if self.0.contains_key(&digest) {
            return Ok(false);
        }
        if let Some(now_ms) = now_ms {
            self.0.retain(|_, expires_at_ms| *expires_at_ms >= now_ms);
        }
        if self.0.len() >= MAX_SEEN {
            let detail = format!("{MAX_SEEN} requests came within an hour, which is the most: wait");
            return Err(Refusal::new(Reason::OverLimit, detail));
        }
        self.0.insert(digest, expires_at_ms);
        Ok(true)
    }
}

impl Deployer {
    pub(super) fn request(&mut self, id: &str, envelope: &[u8], now: Now) {
        match self.accept_request(id, envelope, now) {
            Ok(Some(request)) => {
                tracing::info!(id, function = &*request.function, key = request.key, "request accepted");
                self.actions.push_back(Action::Request(Box::new(request)));
            }
            // It came twice.
            Ok(None) => {}
            Err(refusal) => {
                self.stats.refused(refusal.reason);
                tracing::warn!(id, reason = refusal.reason.as_str(), detail = refusal.detail, "request refused");
                let payload = Reply::refused(&refusal).to_json();
                self.actions.push_back(Action::Reply { id: id.into(), number: 0, payload });
            }
        }
    }

    fn accept_request(&mut self, id: &str, envelope: &[u8], now: Now) -> Result<Option<AcceptedRequest>, Refusal> {
        let envelope = SignedEnvelope::parse(envelope)?;
        let (payload, signers) = envelope.verify(self.trust.keys())?;
        let digest = super::digest(payload);
        let request: BoardRequest = serde_json::from_slice(payload).map_err(|error| {
            let detail = format!("the signed payload is not a request that this board knows: {error}");
            Refusal::new(Reason::BadEnvelope, detail)
        })?;
        if *request.id != *id || *request.node != *self.config.node {
            let detail =
                format!("signed as {} for node {}, but sent as {id} to {}", request.id, request.node, self.config.node);
            return Err(Refusal::new(Reason::WrongTarget, detail));
        }
        let BoardRequest { function, issued_at_ms, expires_at_ms, request: kind, .. } = request;
        if expires_at_ms.saturating_sub(issued_at_ms) > MAX_LIFETIME_MS {
            return Err(Refusal::new(Reason::Expired, "a request expires within an hour of its issue"));
        }
        let board: Board<'_> = self.board(now);
        check_times(issued_at_ms, expires_at_ms, &board)?;
        let signers = filter(signers, |key| board.check_floor(expires_at_ms, key))?;
        let signers = filter(signers, |key| match kind {
            RequestKind::Logs { .. } => key.may_read_log(),
            _ => key.may_record(&function),
        })?;
        let key = signers.first().map(|key| key.name.clone()).unwrap_or_default();
        let now_ms = board.now_ms;
        Ok(self.seen_requests.add(digest, expires_at_ms, now_ms)?.then(|| AcceptedRequest {
            id: id.into(),
            function: (*function).into(),
            key,
            kind,
        }))
    }
}
