//! Requests over HTTP that wake functions, on a thread of their own.
//!
//! ```text
//! accept ─▶ TLS ─▶ head ─▶ access ─▶ body ─▶ the event loop ─▶ board … commit … answer ─▶ response
//!   bounded: connections, time of each step, bytes of head and body, requests that are not answered
//! ```
//!
//! A client that leaves before its answer changes nothing: the message is processed, and the answer is dropped.

mod access;
mod exchange;
mod secrets;
mod watched;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use crate::tls::CertificateError;
use exchange::Server;
use sedge_core::config;
use sedge_core::metrics::{Metrics, Sample, Value};
use sedge_core::request::{Method, Request, RequestId, RequestPath, Response};

/// Classes of statuses that are counted.
const CLASSES: [&str; 4] = ["2xx", "3xx", "4xx", "5xx"];

/// Times that bound a connection. Shorter in tests.
#[derive(Clone, Copy, Debug)]
struct Times {
    /// The handshake, the wait for a request and its head, and its body: each.
    step: Duration,
    /// From the whole request to its answer.
    answer: Duration,
}

impl Default for Times {
    fn default() -> Self {
        Self { step: Duration::from_secs(10), answer: Duration::from_secs(30) }
    }
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum TriggerError {
    #[error("cannot listen on {addr} for requests (change http_trigger.listen, or set it to \"off\")")]
    Listen { addr: SocketAddr, source: io::Error },
    #[error("{path}: {reason} (http_trigger)")]
    File { path: String, reason: String },
    #[error("{0} (http_trigger)")]
    Certificate(#[from] CertificateError),
    #[error("failed to start the thread for requests: {0}")]
    Spawn(#[from] io::Error),
}

/// A request whose sender was let in, and where its answer goes.
#[derive(Debug)]
struct Incoming {
    method: Method,
    path: RequestPath,
    query: Vec<(String, String)>,
    headers: Vec<(String, String)>,
    body: Bytes,
    answer: oneshot::Sender<Response>,
}

/// The event loop's end. Dropping it closes the port and waits for the thread.
#[derive(Debug)]
pub(crate) struct HttpTrigger {
    requests: mpsc::Receiver<Incoming>,
    waiting: BTreeMap<RequestId, oneshot::Sender<Response>>,
    last: u64,
    addr: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl HttpTrigger {
    /// `None`: the configuration has no address.
    pub(crate) fn spawn(config: &config::HttpTrigger, metrics: &Metrics) -> Result<Option<Self>, TriggerError> {
        Self::spawn_within(Times::default(), config, metrics)
    }

    fn spawn_within(
        times: Times,
        config: &config::HttpTrigger,
        metrics: &Metrics,
    ) -> Result<Option<Self>, TriggerError> {
        let Some(addr) = config.listen else { return Ok(None) };
        let listener = TcpListener::bind(addr).map_err(|source| TriggerError::Listen { addr, source })?;
        listener.set_nonblocking(true)?;
        let addr = listener.local_addr()?;
        // One place for each request that may be under way.
        let (sender, requests) = mpsc::channel(config.max_requests.get().into());
        let stats = Arc::new(Stats::default());
        stats.register(metrics);
        let server = Server::new(config, times, sender, stats)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new().name("http-trigger".into()).spawn(move || {
            let local = tokio::task::LocalSet::new();
            local.block_on(&runtime, async {
                tokio::select! {
                    _ = stopped => {}
                    result = server.serve(listener) => {
                        if let Err(error) = result {
                            tracing::error!(%error, "the HTTP server for requests failed");
                        }
                    }
                }
            });
        })?;
        tracing::info!(%addr, tls = config.cert_file.is_some(), "requests over HTTP wake functions");
        let (waiting, stop) = (BTreeMap::new(), Some(stop));
        Ok(Some(Self { requests, waiting, last: 0, addr, stop, thread: Some(thread) }))
    }

    /// The next request. Cancel safe.
    pub(crate) async fn receive(&mut self) -> Request {
        match self.requests.recv().await {
            Some(incoming) => self.take(incoming),
            // The thread is gone; it has said why.
            None => std::future::pending().await,
        }
    }

    pub(crate) fn try_receive(&mut self) -> Option<Request> {
        let incoming = self.requests.try_recv().ok()?;
        Some(self.take(incoming))
    }

    fn take(&mut self, incoming: Incoming) -> Request {
        self.last += 1;
        let id = RequestId(self.last);
        let Incoming { method, path, query, headers, body, answer } = incoming;
        self.waiting.insert(id, answer);
        Request { id, method, path, query, headers, body }
    }

    pub(crate) fn respond(&mut self, id: RequestId, response: Response) {
        if let Some(answer) = self.waiting.remove(&id) {
            // Without a receiver the client has left.
            let _ = answer.send(response);
        }
    }

    /// Address of the open port.
    #[cfg_attr(not(test), expect(dead_code, reason = "tests ask which free port was taken"))]
    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }
}

impl Drop for HttpTrigger {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Figures of the thread.
#[derive(Debug, Default)]
struct Stats {
    answered: [AtomicU64; CLASSES.len()],
    in_flight: AtomicU64,
}

impl Stats {
    fn answered(&self, status: u16) {
        let class = usize::from(status / 100).saturating_sub(2).min(CLASSES.len() - 1);
        self.answered[class].fetch_add(1, Relaxed);
    }

    fn register(self: &Arc<Self>, metrics: &Metrics) {
        let stats = Arc::clone(self);
        metrics.source(move |_, add| {
            for (class, count) in CLASSES.into_iter().zip(&stats.answered) {
                let value = Value::Integer(count.load(Relaxed));
                add(&Sample { family: "sedge_http_requests_total", labels: &[("status", class)], value });
            }
            let value = Value::Integer(stats.in_flight.load(Relaxed));
            add(&Sample { family: "sedge_http_requests_in_flight", labels: &[], value });
        });
    }
}
