//! Connections, and the exchange of one request for one answer.

use std::io;
use std::net::TcpListener;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::{Body as _, Incoming as Body};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::access::Access;
use super::watched::Watched;
use super::{Incoming, Stats, Times, TriggerError};
use crate::tls;
use sedge_core::config;
use sedge_core::request::{Method, RequestPath, Response, parse_query};
use sedge_core::trace::{TRACEPARENT, TRACESTATE};

/// Connections beside those with a request under way: idle ones, and those whose request is not there yet.
const MORE_CONNECTIONS: usize = 64;
/// Bytes of a request's head.
const MAX_HEAD_BYTES: usize = 16 << 10;
/// Headers of a request.
const MAX_HEADERS: usize = 64;
/// Pause after a failure to accept, which is mostly for want of descriptors.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);
/// Where a dead letter can be found.
const DEAD_LETTER: HeaderName = HeaderName::from_static("sedge-dead-letter");

pub(super) struct Server {
    access: Access,
    acceptor: Option<TlsAcceptor>,
    times: Times,
    max_body_bytes: usize,
    connections: Arc<Semaphore>,
    requests: Arc<Semaphore>,
    sender: mpsc::Sender<Incoming>,
    stats: Arc<Stats>,
}

impl Server {
    pub(super) fn new(
        config: &config::HttpTrigger,
        times: Times,
        sender: mpsc::Sender<Incoming>,
        stats: Arc<Stats>,
    ) -> Result<Self, TriggerError> {
        let requests = usize::from(config.max_requests.get());
        Ok(Self {
            access: Access::new(config)?,
            acceptor: tls::acceptor(config.cert_file.as_ref(), config.key_file.as_ref())?,
            times,
            max_body_bytes: config.max_body_bytes.get() as usize,
            connections: Arc::new(Semaphore::new(requests + MORE_CONNECTIONS)),
            requests: Arc::new(Semaphore::new(requests)),
            sender,
            stats,
        })
    }

    pub(super) async fn serve(self, listener: TcpListener) -> io::Result<()> {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let server = Rc::new(self);
        loop {
            let permit = Arc::clone(&server.connections).acquire_owned().await;
            let permit = permit.expect("the semaphore is never closed");
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::debug!(%error, "failed to accept a connection");
                    tokio::time::sleep(ACCEPT_AGAIN).await;
                    continue;
                }
            };
            let server = Rc::clone(&server);
            tokio::task::spawn_local(async move {
                server.connected(stream).await;
                drop(permit);
            });
        }
    }

    async fn connected(self: Rc<Self>, stream: TcpStream) {
        // An answer is one small write, which must not wait for the client's acknowledgement.
        let _ = stream.set_nodelay(true);
        let Some(acceptor) = self.acceptor.clone() else { return self.exchange_all(stream).await };
        match timeout(self.times.step, acceptor.accept(stream)).await {
            Ok(Ok(stream)) => self.exchange_all(stream).await,
            Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
            Err(_) => tracing::debug!("a TLS handshake took too long"),
        }
    }

    async fn exchange_all(self: Rc<Self>, io: impl AsyncRead + AsyncWrite + Unpin + 'static) {
        let io = TokioIo::new(Watched::new(io, self.times.step));
        let service = service_fn(|request| {
            let server = Rc::clone(&self);
            async move { Ok::<_, std::convert::Infallible>(server.exchange(request).await) }
        });
        let mut connection = http1::Builder::new();
        connection.timer(TokioTimer::new()).header_read_timeout(self.times.step);
        connection.max_headers(MAX_HEADERS).max_header_size(MAX_HEAD_BYTES).max_buf_size(MAX_HEAD_BYTES.max(8192) * 2);
        if let Err(error) = connection.serve_connection(io, service).await {
            tracing::debug!(%error, "a connection ended");
        }
    }

    async fn exchange(&self, request: hyper::Request<Body>) -> hyper::Response<Full<Bytes>> {
        let (head, mut body) = request.into_parts();
        let response = match self.answer(&head, &mut body).await {
            Ok(response) => response,
            Err(response) => {
                // What is not read would make the connection break before the client has seen why.
                let rest = Limited::new(&mut body, self.max_body_bytes);
                let _ = timeout(self.times.step / 4, rest.collect()).await;
                response
            }
        };
        self.stats.answered(response.status);
        written(response)
    }

    /// `Err`: answered before the body was read.
    async fn answer(&self, head: &http::request::Parts, body: &mut Body) -> Result<Response, Response> {
        let bad = |error: sedge_core::request::BadRequest| Response::text(400, error.to_string());
        let path = RequestPath::parse(head.uri.path()).map_err(bad)?;
        let mut query = parse_query(head.uri.query().unwrap_or_default()).map_err(bad)?;
        let admitted = self.access.admit(&path, &mut query, &head.headers, Instant::now())?;
        let Some(method) = Method::parse(head.method.as_str()) else {
            return Err(Response::text(405, format!("{} wakes no function", head.method)));
        };
        let busy = || Response::unavailable("too many requests are under way (http_trigger.max_requests)");
        let _permit = self.requests.try_acquire().map_err(|_| busy())?;
        let _counted = Counted::new(&self.stats);
        let body = self.read(body).await?;
        self.access.check_body(admitted, &body)?;
        let (answer, answered) = oneshot::channel();
        let incoming = Incoming { method, path, query, headers: texts(&head.headers), body, answer };
        self.sender.try_send(incoming).map_err(|_| busy())?;
        Ok(match timeout(self.times.answer, answered).await {
            Ok(Ok(response)) => response,
            Ok(Err(_)) => Response::unavailable("the board ended: whether the request took effect is not known"),
            Err(_) => Response::text(504, "no answer in time: whether the request takes effect is not known yet"),
        })
    }

    async fn read(&self, body: &mut Body) -> Result<Bytes, Response> {
        let most = self.max_body_bytes;
        let too_large = || Response::text(413, format!("the body may have {most} bytes (http_trigger.max_body_bytes)"));
        if body.size_hint().lower() > most as u64 {
            return Err(too_large());
        }
        match timeout(self.times.step, Limited::new(body, most).collect()).await {
            Ok(Ok(body)) => Ok(body.to_bytes()),
            Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large()),
            Ok(Err(error)) => Err(Response::text(400, format!("the body cannot be read: {error}"))),
            Err(_) => Err(Response::text(408, "the body took too long")),
        }
    }
}

/// Headers as text. One that is not ASCII, or comes again, is left out. Of those of a trace each counts, joined as one list.
fn texts(headers: &HeaderMap) -> Vec<(String, String)> {
    let text =
        |(name, value): (&HeaderName, &HeaderValue)| Some((name.as_str().to_owned(), value.to_str().ok()?.to_owned()));
    let mut texts: Vec<(String, String)> = headers.iter().filter_map(text).collect();
    texts.dedup_by(|next, first| {
        let is_repeat = next.0 == first.0;
        if is_repeat && [TRACEPARENT, TRACESTATE].contains(&&*first.0) {
            first.1 += ",";
            first.1 += &next.1;
        }
        is_repeat
    });
    texts
}

fn written(response: Response) -> hyper::Response<Full<Bytes>> {
    let Response { status, content_type, mut body, retry_after_secs, allow, dead_letter } = response;
    let is_text = content_type.as_ref().is_some_and(|kind| kind.starts_with("text/plain"));
    if let Some(id) = dead_letter.filter(|_| is_text) {
        body = [&body[..], format!("dead letter {id}\n").as_bytes()].concat().into();
    }
    let mut written = hyper::Response::new(Full::new(body));
    *written.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = written.headers_mut();
    let mut set = |name: HeaderName, value: Option<String>| {
        if let Some(value) = value.and_then(|value| HeaderValue::try_from(value).ok()) {
            headers.insert(name, value);
        }
    };
    set(header::CONTENT_TYPE, content_type.map(String::from));
    set(header::RETRY_AFTER, retry_after_secs.map(|secs| secs.to_string()));
    set(header::ALLOW, allow.map(String::from));
    set(header::WWW_AUTHENTICATE, (status == 401).then(|| "Bearer".to_owned()));
    set(DEAD_LETTER, dead_letter.map(|id| id.to_string()));
    written
}

/// A request that is counted as under way.
struct Counted<'a>(&'a Stats);

impl<'a> Counted<'a> {
    fn new(stats: &'a Stats) -> Self {
        stats.in_flight.fetch_add(1, Relaxed);
        Self(stats)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Relaxed);
    }
}
