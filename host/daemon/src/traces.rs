//! Export of spans to a collector: OTLP over HTTP, in JSON.
//!
//! ```text
//! loop ─▶ a bounded queue ─▶ batch, by number or time ─▶ POST ─▶ taken, or again a few times, or dropped and counted
//!            │ full: dropped and counted
//! ```
//!
//! Calls block, so they have a thread of their own. The loop never waits for it.

mod otlp;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use flume::RecvTimeoutError;
use ureq::Agent;
use ureq::http::{Uri, header};

use crate::sinks::webhook::{self, WebhookError};
use sedge_core::config;
use sedge_core::metrics::{Metrics, Sample, Value};
use sedge_core::time::Backoff;
use sedge_core::trace::Span;

/// Section of the configuration, for messages.
const SECTION: &str = "trace";
/// What ended together, waiting for the thread: about a megabyte.
const QUEUE: usize = 512;
/// Spans of one request, and how long it waits for more.
const BATCH: usize = 512;
const BATCH_TIME: Duration = Duration::from_secs(2);
const TIMEOUT: Duration = Duration::from_secs(10);
/// Calls with one batch.
const TRIES: u32 = 4;
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// How long the thread may take for what is left when the daemon ends.
const GOODBYE: Duration = Duration::from_millis(500);
/// Bytes read of an answer.
const MAX_ANSWER_BYTES: u64 = 64 << 10;

#[derive(Debug, Default)]
struct Stats {
    exported: AtomicU64,
    /// For want of room in the queue.
    queue_full: AtomicU64,
    /// The collector was away for all tries, or declined them.
    not_taken: AtomicU64,
    /// The collector took the request without them.
    rejected: AtomicU64,
}

impl Stats {
    fn register(self: &Arc<Self>, metrics: &Metrics) {
        let stats = Arc::clone(self);
        metrics.source(move |_, add| {
            let mut add = |family, labels: &[(&str, &str)], counter: &AtomicU64| {
                add(&Sample { family, labels, value: Value::Integer(counter.load(Relaxed)) });
            };
            add("sedge_spans_exported_total", &[], &stats.exported);
            for (reason, counter) in
                [("queue-full", &stats.queue_full), ("not-taken", &stats.not_taken), ("rejected", &stats.rejected)]
            {
                add("sedge_spans_dropped_total", &[("reason", reason)], counter);
            }
        });
    }
}

/// Handle of the thread.
#[derive(Debug)]
pub(crate) struct Exporter {
    spans: flume::Sender<Vec<Span>>,
    /// Dropped, it cuts pauses short.
    stop: flume::Sender<()>,
    /// Closed when the thread has ended.
    ended: flume::Receiver<()>,
    stats: Arc<Stats>,
}

impl Exporter {
    /// `None`: the configuration names no collector.
    pub(crate) fn spawn(
        node: &str,
        config: &config::Trace,
        metrics: &Metrics,
        seed: u64,
    ) -> Result<Option<Self>, WebhookError> {
        let Some(url) = &config.otlp else { return Ok(None) };
        let connection =
            config::Connection { ca_file: config.ca_file.clone(), ..config::Connection::new(url.clone(), "") };
        let stats = Arc::new(Stats::default());
        stats.register(metrics);
        let (spans, receiver) = flume::bounded(QUEUE);
        let (stop, stopped) = flume::bounded(0);
        let (end, ended) = flume::bounded(0);
        let sender = Sender {
            agent: webhook::agent(SECTION, &connection, TIMEOUT)?,
            url: url.uri().clone(),
            authorization_file: config.authorization_file.clone(),
            node: node.to_owned(),
            stopped,
            backoff: Backoff::new(FIRST_PAUSE, LONGEST_PAUSE, seed),
            is_failing: false,
            stats: Arc::clone(&stats),
        };
        // A missing file is an error at start; later the call is repeated until the file is back.
        sender.authorization()?;
        std::thread::Builder::new().name("otlp".into()).spawn(move || {
            sender.run(&receiver);
            drop(end);
        })?;
        tracing::info!(collector = %url, "traces are exported");
        Ok(Some(Self { spans, stop, ended, stats }))
    }

    /// Queues what ended, or counts it as dropped.
    pub(crate) fn send(&self, spans: &[Span]) {
        if self.spans.try_send(spans.to_vec()).is_err() {
            self.stats.queue_full.fetch_add(spans.len() as u64, Relaxed);
        }
    }

    /// Gives the thread a moment for what is left.
    pub(crate) fn close(self) {
        let Self { spans, stop, ended, .. } = self;
        drop((spans, stop));
        let _ = ended.recv_timeout(GOODBYE);
    }
}

struct Sender {
    agent: Agent,
    url: Uri,
    authorization_file: Option<PathBuf>,
    node: String,
    stopped: flume::Receiver<()>,
    backoff: Backoff,
    is_failing: bool,
    stats: Arc<Stats>,
}

/// Why a batch was not taken.
struct Failed {
    why: String,
    /// It may be taken later, not before this.
    again: Option<Duration>,
}

impl Sender {
    fn run(mut self, queue: &flume::Receiver<Vec<Span>>) {
        while let Ok(first) = queue.recv() {
            let batch = gather(first, queue);
            self.export(&batch);
        }
    }

    fn export(&mut self, batch: &[Span]) {
        for attempt in 1..=TRIES {
            match self.call(batch) {
                Ok(rejected) => {
                    let rejected = rejected.min(batch.len() as u64);
                    self.stats.exported.fetch_add(batch.len() as u64 - rejected, Relaxed);
                    self.stats.rejected.fetch_add(rejected, Relaxed);
                    self.backoff.succeeded();
                    if std::mem::take(&mut self.is_failing) {
                        tracing::info!("the collector takes traces again");
                    }
                    return;
                }
                Err(Failed { why, again }) => {
                    if !std::mem::replace(&mut self.is_failing, true) {
                        tracing::warn!(why, "the collector takes no traces; what it misses is counted");
                    }
                    let Some(least) = again else { break };
                    let pause = self.backoff.failed().max(least.min(LONGEST_PAUSE));
                    if attempt == TRIES || self.stopped.recv_timeout(pause) == Err(RecvTimeoutError::Disconnected) {
                        break;
                    }
                }
            }
        }
        self.stats.not_taken.fetch_add(batch.len() as u64, Relaxed);
    }

    /// Returns the number of spans that the collector rejects.
    fn call(&self, batch: &[Span]) -> Result<u64, Failed> {
        let later = |why: String| Failed { why, again: Some(Duration::ZERO) };
        let authorization = self.authorization().map_err(|error| later(error.to_string()))?;
        let body = otlp::request(&self.node, batch.iter()).to_string();
        let mut request = self.agent.post(&self.url).header(header::CONTENT_TYPE, "application/json");
        if let Some(authorization) = authorization {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        let mut response = request.send(body).map_err(|error| later(webhook::explain(error)))?;
        let (status, after) = (response.status(), webhook::retry_after(response.headers()));
        let answer = response.body_mut().with_config().limit(MAX_ANSWER_BYTES).read_to_vec().unwrap_or_default();
        if status.is_success() {
            return Ok(otlp::rejected(&answer));
        }
        // Those that the specification of OTLP names may succeed later.
        let may_succeed = matches!(status.as_u16(), 429 | 502 | 503 | 504);
        let again = may_succeed.then(|| after.unwrap_or_default());
        Err(Failed { why: format!("the collector answered {status}"), again })
    }

    /// Reads the header value, per call: tokens are renewed by replacing the file.
    fn authorization(&self) -> Result<Option<String>, WebhookError> {
        let key = || format!("{SECTION}.authorization_file");
        self.authorization_file.as_ref().map(|path| webhook::secret(key(), path)).transpose()
    }
}

/// What comes within a while, up to a size.
fn gather(first: Vec<Span>, queue: &flume::Receiver<Vec<Span>>) -> Vec<Span> {
    let (mut batch, until) = (first, Instant::now() + BATCH_TIME);
    while batch.len() < BATCH
        && let Ok(more) = queue.recv_deadline(until)
    {
        batch.extend(more);
    }
    batch
}
