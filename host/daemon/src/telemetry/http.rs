//! Metrics and health over HTTP, on a thread of its own that answers while the message loop is busy.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::JoinHandle;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use serde_json::json;
use tokio::sync::oneshot;

use super::Health;
use sedge_core::metrics::Metrics;
use sedge_core::time::Now;

#[derive(Debug, thiserror::Error)]
pub(crate) enum HttpError {
    #[error(
        "cannot listen on {addr} for metrics and health (change http.listen, or set it to \"off\"; port 0 takes a free port)"
    )]
    Listen { addr: SocketAddr, source: io::Error },
    #[error("failed to start the HTTP thread: {0}")]
    Spawn(#[from] io::Error),
}

/// HTTP server for metrics and health. Dropping it closes the port and waits for the thread.
#[derive(Debug)]
pub(crate) struct Http {
    addr: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

type Shared = (Arc<Metrics>, Arc<Health>);

impl Http {
    pub(crate) fn spawn(addr: SocketAddr, metrics: Arc<Metrics>, health: Arc<Health>) -> Result<Self, HttpError> {
        let listener = TcpListener::bind(addr).map_err(|source| HttpError::Listen { addr, source })?;
        listener.set_nonblocking(true)?;
        let addr = listener.local_addr()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new().name("http".into()).spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    // A scrape under way is abandoned.
                    _ = stopped => {}
                    result = serve(listener, (metrics, health)) => {
                        if let Err(error) = result {
                            tracing::error!(%error, "the HTTP server for metrics and health failed");
                        }
                    }
                }
            });
        })?;
        Ok(Self { addr, stop: Some(stop), thread: Some(thread) })
    }

    /// Address of the open port; names the port that the system chose for port 0.
    #[cfg_attr(not(test), expect(dead_code, reason = "tests ask which free port was taken"))]
    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }
}

impl Drop for Http {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn serve(listener: TcpListener, shared: Shared) -> io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let router = Router::new()
        .route("/", get(index))
        .route("/metrics", get(metrics))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/status", get(status))
        .with_state(shared);
    axum::serve(listener, router).await
}

/// Time of a request: the top of this thread's loop.
fn now() -> Now {
    Now::at(std::time::Instant::now(), std::time::SystemTime::now(), sedge_sandbox::clock::clock_synced())
}

async fn index() -> &'static str {
    concat!("sedge ", env!("CARGO_PKG_VERSION"), ": /metrics /status /healthz /readyz\n")
}

async fn metrics(State((metrics, _)): State<Shared>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], metrics.render(now()))
}

async fn healthz(State((_, health)): State<Shared>) -> impl IntoResponse {
    match health.alive(now().monotonic) {
        Ok(()) => (StatusCode::OK, "ok\n".to_owned()),
        Err(silent) => (
            StatusCode::SERVICE_UNAVAILABLE,
            format!("the message loop has not moved for {:.1} s\n", silent.as_secs_f64()),
        ),
    }
}

async fn status(State((metrics, _)): State<Shared>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], format!("{}\n", metrics.status(now())))
}

async fn readyz(State((metrics, health)): State<Shared>) -> impl IntoResponse {
    let missing = health.all_missing();
    let status = if missing.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let link = |connected: Option<bool>| connected.map(|up| if up { "connected" } else { "away" });
    let body = json!({
        "ready": missing.is_empty(),
        "missing": missing,
        "broker": link(metrics.broker.connected()),
        "upstream": link(metrics.upstream.connected()),
    });
    (status, [(header::CONTENT_TYPE, "application/json")], format!("{body}\n"))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream;
    use std::time::{Duration, Instant};

    use super::*;

    fn fetch(addr: SocketAddr, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(addr).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
        (status, answer)
    }

    fn start(limit: Duration) -> (Http, Arc<Metrics>, Arc<Health>) {
        let metrics = Arc::new(Metrics::default());
        let health = Arc::new(Health::new(Instant::now(), limit));
        let http = Http::spawn(([127, 0, 0, 1], 0).into(), metrics.clone(), health.clone()).unwrap();
        (http, metrics, health)
    }

    #[test]
    fn answers_while_the_message_loop_is_busy() {
        let (http, metrics, health) = start(Duration::from_secs(3600));
        metrics.received.add(7);
        // This test is the message loop, and it runs nothing while it waits for the answer.
        let (status, answer) = fetch(http.addr(), "/metrics");
        assert_eq!(status, 200);
        assert!(answer.contains("\r\ncontent-type: text/plain; version=0.0.4; charset=utf-8\r\n"), "{answer}");
        assert!(answer.contains("\nsedge_messages_received_total 7\n"), "{answer}");
        assert_eq!(fetch(http.addr(), "/healthz").0, 200);
        assert!(fetch(http.addr(), "/").1.contains("/metrics /status /healthz /readyz"));
        assert_eq!(fetch(http.addr(), "/nothing").0, 404);
        health.beat(Instant::now());
    }

    #[test]
    fn a_silent_loop_is_unhealthy_until_it_moves() {
        let limit = Duration::from_millis(1);
        let (http, _, health) = start(limit);
        let pass = || {
            let from = Instant::now();
            while from.elapsed() < 4 * limit {
                std::hint::spin_loop();
            }
        };
        pass();
        assert_eq!(fetch(http.addr(), "/healthz").0, 200, "it starts");
        health.beat(Instant::now());
        pass();
        let (status, answer) = fetch(http.addr(), "/healthz");
        assert_eq!(status, 503);
        assert!(answer.contains("the message loop has not moved for 0.0 s"), "{answer}");
        health.beat(Instant::now() + Duration::from_secs(60));
        assert_eq!(fetch(http.addr(), "/healthz").0, 200);
    }

    #[test]
    fn readiness_names_what_is_missing_and_shows_the_broker() {
        let (http, metrics, health) = start(Duration::from_secs(60));
        health.missing("store", "the disk is full");
        metrics.broker.set(false);
        let (status, answer) = fetch(http.addr(), "/readyz");
        assert_eq!(status, 503);
        assert!(answer.contains(r#""missing":{"store":"the disk is full"}"#), "{answer}");
        health.ready("store");
        let (status, answer) = fetch(http.addr(), "/readyz");
        assert_eq!(status, 200, "an absent broker is no reason");
        assert!(answer.contains(r#""broker":"away""#), "{answer}");
        assert!(answer.contains(r#""upstream":null"#), "{answer}");
    }

    #[test]
    fn a_port_in_use_is_named_with_its_key() {
        let (http, metrics, health) = start(Duration::from_secs(60));
        let error = Http::spawn(http.addr(), metrics, health).unwrap_err().to_string();
        assert!(error.contains(&http.addr().to_string()) && error.contains("http.listen"), "{error}");
    }

    #[test]
    fn the_port_is_free_after_the_drop() {
        let (http, metrics, health) = start(Duration::from_secs(60));
        let addr = http.addr();
        drop(http);
        drop(Http::spawn(addr, metrics, health).unwrap());
    }
}
