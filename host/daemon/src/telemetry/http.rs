//! Metrics and health over HTTP, on a thread of its own that answers while the message loop is busy.
//!
//! It listens on `http.listen`, and on a UNIX socket in the data folder, which only the daemon's user reaches. Each has its own
//! bound on connections, and a connection carries one request.

mod bounded;
#[cfg(feature = "page")]
mod encrypted;

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::map_response;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::serve::Listener;
use serde_json::json;
use tokio::sync::oneshot;

use super::Health;
pub(crate) use bounded::Lease;
use bounded::{Bounded, Bounds};
use sedge_core::config;
use sedge_core::metrics::Metrics;
use sedge_core::time::Now;

#[derive(Debug, thiserror::Error)]
pub(crate) enum HttpError {
    #[error(
        "cannot listen on {addr} for metrics and health (change http.listen, or set it to \"off\"; port 0 takes a free port)"
    )]
    Listen { addr: SocketAddr, source: io::Error },
    #[cfg(feature = "page")]
    #[error("{0} (http)")]
    Certificate(#[from] crate::tls::CertificateError),
    #[cfg(not(feature = "page"))]
    #[error(
        "this program serves HTTP without TLS: remove http.cert_file and http.key_file, or install the full program"
    )]
    NoTls,
    #[error("failed to start the HTTP thread: {0}")]
    Spawn(#[from] io::Error),
}

/// HTTP server for metrics and health. Dropping it closes the port and waits for the thread.
#[derive(Debug)]
pub(crate) struct Http {
    addr: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    socket: Option<PathBuf>,
}

/// Threads that read the database for requests. Further reads wait for one.
const MAX_READERS: usize = 2;

/// Name of the UNIX socket in the data folder.
pub(crate) const SOCKET: &str = "http.sock";

/// Answer at `/` for programs that are not browsers.
pub(crate) const INDEX: &str = concat!("sedge ", env!("CARGO_PKG_VERSION"), ": /metrics /status /healthz /readyz\n");

type Shared = (Arc<Metrics>, Arc<Health>);

/// How the port encrypts, if it does.
#[cfg(feature = "page")]
type Tls = Option<tokio_rustls::TlsAcceptor>;
#[cfg(not(feature = "page"))]
type Tls = ();

/// What is served beside metrics and health, and runs with it.
pub(crate) struct Beside {
    routes: Routes,
    task: Pin<Box<dyn Future<Output = ()> + Send>>,
    at_end: Box<dyn FnOnce() + Send>,
}

struct Routes {
    /// For this machine.
    local: Router,
    /// For other machines, with these figures: all of it needs a token.
    #[cfg(feature = "page")]
    with_tokens: Box<dyn FnOnce(Router) -> Router + Send>,
}

impl Default for Beside {
    fn default() -> Self {
        Self {
            routes: Routes {
                local: index(),
                #[cfg(feature = "page")]
                with_tokens: Box::new(|_| index()),
            },
            task: Box::pin(std::future::pending()),
            at_end: Box::new(|| ()),
        }
    }
}

fn index() -> Router {
    Router::new().route("/", get(async || INDEX))
}

#[cfg(feature = "page")]
impl From<&Arc<crate::page::Page>> for Beside {
    fn from(page: &Arc<crate::page::Page>) -> Self {
        let router = crate::page::router(page);
        let (counted, guarded, at_end) = (Arc::clone(page), Arc::clone(page), Arc::clone(page));
        let with_tokens = Box::new(move |figures| crate::page::with_tokens(&guarded, figures));
        Self {
            routes: Routes { local: router, with_tokens },
            task: Box::pin(async move { counted.count().await }),
            at_end: Box::new(move || at_end.save()),
        }
    }
}

#[cfg(feature = "page")]
fn tls(config: &config::Http) -> Result<Tls, HttpError> {
    Ok(crate::tls::acceptor(config.cert_file.as_ref(), config.key_file.as_ref())?)
}

#[cfg(not(feature = "page"))]
fn tls(config: &config::Http) -> Result<Tls, HttpError> {
    if config.cert_file.is_some() { Err(HttpError::NoTls) } else { Ok(()) }
}

impl Http {
    /// `None`: it is off.
    pub(crate) fn spawn(
        config: &config::Http,
        data_dir: &Path,
        metrics: Arc<Metrics>,
        health: Arc<Health>,
        beside: Beside,
    ) -> Result<Option<Self>, HttpError> {
        let Some(addr) = config.listen else { return Ok(None) };
        Self::spawn_within(Bounds::default(), (addr, tls(config)?), data_dir, metrics, health, beside).map(Some)
    }

    fn spawn_within(
        bounds: Bounds,
        (addr, tls): (SocketAddr, Tls),
        data_dir: &Path,
        metrics: Arc<Metrics>,
        health: Arc<Health>,
        beside: Beside,
    ) -> Result<Self, HttpError> {
        let listener = TcpListener::bind(addr).map_err(|source| HttpError::Listen { addr, source })?;
        listener.set_nonblocking(true)?;
        let addr = listener.local_addr()?;
        let path = data_dir.join(SOCKET);
        let socket = match listen_locally(&path) {
            Ok(socket) => Some(socket),
            Err(error) => {
                let path = path.display();
                tracing::warn!(%path, %error, "no UNIX socket for metrics and health; http.listen serves them");
                None
            }
        };
        let has_socket = socket.is_some();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(MAX_READERS)
            .thread_keep_alive(Duration::from_secs(1))
            .build()?;
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new().name("http".into()).spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    // A scrape under way is abandoned.
                    _ = stopped => {}
                    () = beside.task => {}
                    result = serve(bounds, (listener, tls), socket, (metrics, health), beside.routes) => {
                        if let Err(error) = result {
                            tracing::error!(%error, "the HTTP server for metrics and health failed");
                        }
                    }
                }
            });
            (beside.at_end)();
        })?;
        Ok(Self { addr, stop: Some(stop), thread: Some(thread), socket: has_socket.then_some(path) })
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
        if let Some(socket) = &self.socket {
            let _ = std::fs::remove_file(socket);
        }
    }
}

/// Takes the path over from a daemon that was killed, and not from one that runs.
fn listen_locally(path: &Path) -> io::Result<UnixListener> {
    if UnixStream::connect(path).is_ok() {
        return Err(io::ErrorKind::AddrInUse.into());
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

async fn serve(
    bounds: Bounds,
    (listener, tls): (TcpListener, Tls),
    socket: Option<UnixListener>,
    shared: Shared,
    routes: Routes,
) -> io::Result<()> {
    let is_local = listener.local_addr()?.ip().is_loopback();
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let probes = Router::new().route("/healthz", get(healthz)).route("/readyz", get(readyz)).with_state(shared.clone());
    let figures = Router::new().route("/metrics", get(metrics)).route("/status", get(status)).with_state(shared);
    let for_this_machine = probes.clone().merge(figures.clone()).merge(routes.local);
    let port: Pin<Box<dyn Future<Output = io::Result<()>>>> = match tls {
        #[cfg(feature = "page")]
        Some(acceptor) => {
            let for_all = if is_local { for_this_machine.clone() } else { probes.merge((routes.with_tokens)(figures)) };
            Box::pin(serve_on(encrypted::Encrypted::new(listener, acceptor), bounds, for_all))
        }
        // What has tokens is not for other machines: they would be read on the way.
        _ if is_local => Box::pin(serve_on(listener, bounds, for_this_machine.clone())),
        _ => Box::pin(serve_on(listener, bounds, probes.merge(figures).merge(index()))),
    };
    match socket {
        None => port.await,
        Some(socket) => {
            let socket = tokio::net::UnixListener::from_std(socket)?;
            tokio::try_join!(port, serve_on(socket, bounds, for_this_machine))?;
            Ok(())
        }
    }
}

async fn serve_on<L: Listener>(listener: L, bounds: Bounds, router: Router) -> io::Result<()>
where
    L::Addr: std::fmt::Debug,
{
    let service = router.layer(map_response(close)).into_make_service_with_connect_info::<Lease>();
    axum::serve(Bounded::new(listener, bounds), service).await
}

/// One request per connection: a client that keeps its connection would hold one of few.
async fn close(mut response: Response) -> Response {
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

/// Time of a request: the top of this thread's loop.
fn now() -> Now {
    Now::at(std::time::Instant::now(), std::time::SystemTime::now(), sedge_sandbox::clock::clock_synced())
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
        "sinks": metrics.connected_sinks().map(|(name, up)| (name, link(Some(up)))).collect::<BTreeMap<_, _>>(),
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

    fn on(addr: SocketAddr) -> config::Http {
        config::Http { listen: Some(addr), ..config::Http::default() }
    }

    fn start(limit: Duration) -> (Http, Arc<Metrics>, Arc<Health>) {
        let (http, metrics, health, _) = start_within(Bounds::default(), limit);
        (http, metrics, health)
    }

    fn start_within(bounds: Bounds, limit: Duration) -> (Http, Arc<Metrics>, Arc<Health>, tempfile::TempDir) {
        let metrics = Arc::new(Metrics::default());
        let health = Arc::new(Health::new(Instant::now(), limit));
        let folder = tempfile::tempdir().unwrap();
        let addr = ([127, 0, 0, 1], 0).into();
        let http = Http::spawn_within(
            bounds,
            (addr, Tls::default()),
            folder.path(),
            metrics.clone(),
            health.clone(),
            Beside::default(),
        );
        (http.unwrap(), metrics, health, folder)
    }

    fn short() -> Bounds {
        let (request, whole) = (Duration::from_millis(200), Duration::from_millis(400));
        Bounds { request, whole, ..Bounds::default() }
    }

    /// Waits until the server closes the connection.
    fn ended(mut stream: TcpStream) -> Vec<u8> {
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let mut answer = Vec::new();
        // A reset is an end as well.
        if let Err(error) = stream.read_to_end(&mut answer) {
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{error}");
        }
        answer
    }

    #[test]
    fn half_sent_requests_keep_no_connection() {
        let bounds = Bounds { connections: 4, ..short() };
        let (http, _, _, _folder) = start_within(bounds, Duration::from_secs(3600));
        let half: Vec<_> = (0..40)
            .map(|_| {
                let mut stream = TcpStream::connect(http.addr()).unwrap();
                stream.write_all(b"GET /healthz HTTP/1.1\r\nhost:").unwrap();
                stream
            })
            .collect();
        // Behind them all.
        assert_eq!(fetch(http.addr(), "/healthz").0, 200);
        half.into_iter().for_each(|stream| drop(ended(stream)));
    }

    #[test]
    fn a_connection_carries_one_request() {
        let (http, ..) = start(Duration::from_secs(3600));
        let mut stream = TcpStream::connect(http.addr()).unwrap();
        stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
        let answer = String::from_utf8(ended(stream)).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("connection: close"), "{answer}");
    }

    #[test]
    fn a_client_that_reads_nothing_is_closed() {
        let bounds = Bounds { connections: 1, ..short() };
        let (http, metrics, _, _folder) = start_within(bounds, Duration::from_secs(3600));
        metrics.source(|_, add| {
            // More than the buffers of a connection.
            let long = "x".repeat(16 << 20);
            add(&sedge_core::metrics::Sample {
                family: "sedge_dropped_total",
                labels: &[("reason", &long)],
                value: sedge_core::metrics::Value::Integer(1),
            });
        });
        let mut lazy = TcpStream::connect(http.addr()).unwrap();
        lazy.write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
        assert_eq!(fetch(http.addr(), "/healthz").0, 200);
    }

    #[cfg(feature = "page")]
    #[test]
    fn a_stream_lasts_while_it_is_read_and_takes_no_place_from_others() {
        use axum::body::Body;
        use axum::extract::ConnectInfo;

        let endless = async |ConnectInfo(lease): ConnectInfo<Lease>| {
            lease.stream();
            let more = |()| async { Some((Ok::<_, io::Error>(bytes::Bytes::from(vec![b'x'; 64 << 10])), ())) };
            Body::from_stream(futures_util::stream::unfold((), more))
        };
        let bounds = Bounds { connections: 1, stall: Duration::from_millis(300), ..short() };
        let local = Router::new().route("/endless", get(endless));
        let beside = Beside { routes: Routes { local, ..Beside::default().routes }, ..Beside::default() };
        let folder = tempfile::tempdir().unwrap();
        let (metrics, health) = (Arc::default(), Arc::new(Health::new(Instant::now(), Duration::from_secs(3600))));
        let http = Http::spawn_within(
            bounds,
            (([127, 0, 0, 1], 0).into(), Tls::default()),
            folder.path(),
            metrics,
            health,
            beside,
        )
        .unwrap();
        let open = || {
            let mut stream = TcpStream::connect(http.addr()).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
            stream.write_all(b"GET /endless HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
            stream
        };
        let (mut read, unread) = (open(), open());
        let from = Instant::now();
        let mut buffer = vec![0; 1 << 20];
        while from.elapsed() < 3 * bounds.whole {
            assert!(read.read(&mut buffer).unwrap() > 0, "it goes on beyond the bound on an answer");
        }
        assert_eq!(fetch(http.addr(), "/healthz").0, 200);
        ended(unread);
    }

    #[test]
    fn the_socket_in_the_data_folder_answers_as_the_port_does() {
        let (http, _, _, folder) = start_within(Bounds::default(), Duration::from_secs(3600));
        let path = folder.path().join(SOCKET);
        assert_eq!(listen_locally(&path).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        let mut stream = UnixStream::connect(&path).unwrap();
        stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        drop(http);
        assert!(!path.exists());
        // As after a kill.
        drop(UnixListener::bind(&path).unwrap());
        drop(listen_locally(&path).unwrap());
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
        assert!(answer.contains(r#""sinks":{}"#), "{answer}");
    }

    #[test]
    fn a_port_in_use_is_named_with_its_key() {
        let (http, metrics, health) = start(Duration::from_secs(60));
        let folder = tempfile::tempdir().unwrap();
        let error =
            Http::spawn(&on(http.addr()), folder.path(), metrics, health, Beside::default()).unwrap_err().to_string();
        assert!(error.contains(&http.addr().to_string()) && error.contains("http.listen"), "{error}");
    }

    #[test]
    fn the_port_is_free_after_the_drop() {
        let (http, metrics, health) = start(Duration::from_secs(60));
        let addr = http.addr();
        drop(http);
        let folder = tempfile::tempdir().unwrap();
        drop(Http::spawn(&on(addr), folder.path(), metrics, health, Beside::default()).unwrap());
    }
}
