//! Requests that the deployer has accepted: recordings begin and end, the log is read, and answers go to the broker.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::Daemon;
use crate::recordings::{Command, Recordings, ReplyPart};
use crate::telemetry::log::{KeptLines, lines_after};
use sedge_core::board::{Input, RecordEvent, RecordOrder};
use sedge_core::config::Config;
use sedge_core::deploy::reason::{Reason, Refusal};
use sedge_core::deploy::requests::{AcceptedRequest, PIECE_BYTES, Reply, RequestAnswer, RequestKind};
use sedge_core::deploy::topics::Topics;
use sedge_core::message::PublishToken;
use sedge_core::recording::Why;
use sedge_mqtt::Link;

/// Token of replies. Whoever asked asks again if one is lost.
pub(super) const TOKEN: PublishToken = PublishToken(u64::MAX);
/// Replies that wait for room in the connection. Further ones wait at the thread that reads files.
const MAX_UNSENT: usize = 16;
const LONGEST: Duration = Duration::from_secs(24 * 3600);

pub(super) struct Requests {
    node: String,
    topics: Topics,
    max_bytes: u64,
    /// `None`: `[recording]` is not enabled.
    recordings: Option<Recordings>,
    parts: Option<mpsc::Receiver<ReplyPart>>,
    unsent: VecDeque<ReplyPart>,
    /// Recordings that lost a run: nothing more is written into them, and the board is told.
    broken: BTreeSet<Arc<str>>,
    to_end: Vec<Arc<str>>,
    /// Ends that the thread had no room for.
    unended: Vec<(Arc<str>, Why)>,
}

impl Requests {
    pub(super) fn new(config: &Config) -> anyhow::Result<Self> {
        let (recordings, parts) = match config.recording.enabled {
            true => {
                let (recordings, parts) = Recordings::spawn(&config.node.data_dir, config.recording.max_bytes.get())?;
                (Some(recordings), Some(parts))
            }
            false => (None, None),
        };
        Ok(Self {
            node: config.node.name.clone(),
            topics: Topics::new(&config.node.base_topic),
            max_bytes: config.recording.max_bytes.get(),
            recordings,
            parts,
            unsent: VecDeque::new(),
            broken: BTreeSet::new(),
            to_end: Vec::new(),
            unended: Vec::new(),
        })
    }

    /// The next part of an answer, while there is room for it.
    pub(super) async fn receive(&mut self) -> ReplyPart {
        match &mut self.parts {
            Some(parts) if self.unsent.len() < MAX_UNSENT => match parts.recv().await {
                Some(part) => part,
                None => std::future::pending().await,
            },
            _ => std::future::pending().await,
        }
    }

    pub(super) fn add(&mut self, part: ReplyPart) {
        self.unsent.push_back(part);
    }

    /// Publishes what the connection has room for.
    pub(super) fn flush(&mut self, link: &Link) {
        while let Some(ReplyPart { id, number, payload }) = self.unsent.front() {
            let topic = self.topics.reply(&self.node, id, *number);
            let publication = sedge_mqtt::Publication {
                topic: &topic,
                payload: payload.clone(),
                content_type: None,
                properties: &[],
                retain: false,
            };
            if link.publish(publication, TOKEN).is_err() {
                return;
            }
            self.unsent.pop_front();
        }
    }

    /// Whoever reads the log asks again for what comes later.
    fn send_log(&mut self, id: &Arc<str>, after: u64) {
        let KeptLines { lines, last, left_out } = lines_after(after);
        let text = Bytes::from(lines.join("\n"));
        let pieces: Vec<Bytes> = text.chunks(PIECE_BYTES).map(|piece| text.slice_ref(piece)).collect();
        let state = "log".to_owned();
        let answer = RequestAnswer { state, last, left_out, pieces: pieces.len() as u32, ..RequestAnswer::default() };
        self.reply(id, &Reply::Ok(answer));
        for (number, payload) in (1..).zip(pieces) {
            self.add(ReplyPart { id: Arc::clone(id), number, payload });
        }
    }

    fn reply(&mut self, id: &Arc<str>, reply: &Reply) {
        self.unsent.push_back(ReplyPart { id: Arc::clone(id), number: 0, payload: reply.to_json() });
    }

    fn refuse(&mut self, id: &Arc<str>, reason: Reason, detail: impl Into<String>) {
        self.reply(id, &Reply::refused(&Refusal::new(reason, detail)));
    }
}

impl Daemon {
    pub(super) fn carry_out_request(&mut self, request: AcceptedRequest) {
        let AcceptedRequest { id, function, kind, .. } = request;
        let command = match kind {
            RequestKind::Logs { after } => return self.requests.send_log(&id, after),
            _ if self.requests.recordings.is_none() => {
                let detail = "nothing is recorded on this board: set recording.enabled = true in its configuration";
                return self.requests.refuse(&id, Reason::KeyNotAllowed, detail);
            }
            RequestKind::Record { secs, messages, bytes } => {
                // Half of the room: the recording before is still there.
                let most = self.requests.max_bytes / 2;
                let time = Duration::from_secs(secs).min(LONGEST);
                let order = RecordOrder { id, function, time, messages, bytes: bytes.min(most) };
                return self.board.handle(Input::Record(order), self.now());
            }
            RequestKind::EndRecording { of } => {
                let answer = RequestAnswer { state: "ending".to_owned(), ..RequestAnswer::default() };
                self.requests.reply(&id, &Reply::Ok(answer));
                let input = Input::EndRecording { id: (*of).into(), function: Some(function), why: Why::Asked };
                return self.board.handle(input, self.now());
            }
            RequestKind::Recording { of, from, pieces } => {
                Command::Fetch { request: Arc::clone(&id), function, of, from, pieces }
            }
            RequestKind::DropRecording { of } => Command::Drop { request: Arc::clone(&id), function, of },
        };
        let is_sent = self.requests.recordings.as_ref().is_some_and(|it| it.send(command).is_ok());
        if !is_sent {
            self.requests.refuse(&id, Reason::OverLimit, "the board is busy: ask again");
        }
    }

    /// Hands on what the board records. What cannot be taken ends the recording.
    pub(super) fn record(&mut self, id: Arc<str>, event: RecordEvent) {
        let requests = &mut self.requests;
        let Some(recordings) = &mut requests.recordings else { return };
        let is_lost = match event {
            RecordEvent::Begun { header } => recordings.begin(Arc::clone(&id), header).is_err(),
            // After a gap nothing fits any more.
            RecordEvent::Run(_) if requests.broken.contains(&id) => false,
            RecordEvent::Run(run) => recordings.run(&id, &run).is_err(),
            RecordEvent::Ended { why } => {
                let why = if requests.broken.remove(&id) { Why::Overrun } else { why };
                requests.unended.push((id, why));
                return requests.send_ends();
            }
            RecordEvent::Refused { reason } => return requests.refuse(&id, Reason::NotInstalled, reason),
        };
        if is_lost && requests.broken.insert(Arc::clone(&id)) {
            tracing::warn!(id = &*id, "messages come faster than the disk takes the recording: it ends here");
            requests.to_end.push(id);
        }
    }

    /// Ends recordings that lost a run. `true`: there were some.
    pub(super) fn end_broken_recordings(&mut self) -> bool {
        self.requests.send_ends();
        let to_end = std::mem::take(&mut self.requests.to_end);
        for id in &to_end {
            let input = Input::EndRecording { id: Arc::clone(id), function: None, why: Why::Overrun };
            self.board.handle(input, self.now());
        }
        !to_end.is_empty()
    }
}

impl Requests {
    fn send_ends(&mut self) {
        let Some(recordings) = &mut self.recordings else { return };
        self.unended.retain(|(id, why)| recordings.end(id, *why).is_err());
    }
}
