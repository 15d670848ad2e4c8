//! Bounds on the connections of the HTTP server: any local user may connect, and must not take the daemon's descriptors.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep_until};

/// Connections at a time. Others wait in the kernel until one ends.
const MAX_CONNECTIONS: usize = 16;
/// Time from the connection to the end of its request.
const REQUEST: Duration = Duration::from_secs(5);
/// Time from the connection to its end.
const WHOLE: Duration = Duration::from_secs(10);
/// Time without a byte written after which a stream ends.
const STALL: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub(super) connections: usize,
    pub(super) request: Duration,
    pub(super) whole: Duration,
    pub(super) stall: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { connections: MAX_CONNECTIONS, request: REQUEST, whole: WHOLE, stall: STALL }
    }
}

/// Listener that accepts a bounded number of connections, each for a bounded time.
pub(super) struct Bounded<L> {
    listener: L,
    bounds: Bounds,
    free: Arc<Semaphore>,
}

impl<L> Bounded<L> {
    pub(super) fn new(listener: L, bounds: Bounds) -> Self {
        Self { listener, bounds, free: Arc::new(Semaphore::new(bounds.connections)) }
    }
}

impl<L: Listener> Listener for Bounded<L> {
    type Io = Connection<L::Io>;
    type Addr = L::Addr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        let permit = Arc::clone(&self.free).acquire_owned().await.expect("the semaphore is never closed");
        let (io, addr) = self.listener.accept().await;
        let now = Instant::now();
        let connection = Connection {
            io,
            end: now + self.bounds.whole,
            stall: self.bounds.stall,
            timer: Box::pin(sleep_until(now + self.bounds.request)),
            has_answered: false,
            lease: Lease::new(permit),
        };
        (connection, addr)
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}

/// A connection's place among those that are bounded.
#[derive(Clone, Debug)]
pub(crate) struct Lease(Arc<Leased>);

#[derive(Debug)]
struct Leased {
    permit: Mutex<Option<OwnedSemaphorePermit>>,
    is_stream: AtomicBool,
}

impl Lease {
    fn new(permit: OwnedSemaphorePermit) -> Self {
        Self(Arc::new(Leased { permit: Mutex::new(Some(permit)), is_stream: AtomicBool::new(false) }))
    }

    /// The answer is a stream: it lasts for as long as it is read, and its place is free for others. The caller has a bound on
    /// streams.
    #[cfg_attr(not(feature = "page"), expect(dead_code, reason = "only the page has streams"))]
    pub(crate) fn stream(&self) {
        self.0.is_stream.store(true, Relaxed);
        drop(self.0.permit.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    fn is_stream(&self) -> bool {
        self.0.is_stream.load(Relaxed)
    }
}

impl<L: Listener> Connected<IncomingStream<'_, Bounded<L>>> for Lease {
    fn connect_info(stream: IncomingStream<'_, Bounded<L>>) -> Self {
        stream.io().lease.clone()
    }
}

/// Connection that fails once its time is over: first that of the request, and that of the whole once an answer begins.
pub(super) struct Connection<I> {
    io: I,
    end: Instant,
    stall: Duration,
    timer: Pin<Box<Sleep>>,
    has_answered: bool,
    lease: Lease,
}

impl<I> Connection<I> {
    fn check_time(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.timer.as_mut().poll(cx) {
            Poll::Ready(()) => Err(io::ErrorKind::TimedOut.into()),
            Poll::Pending => Ok(()),
        }
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Connection<I> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.check_time(cx)?;
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Connection<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if !std::mem::replace(&mut self.has_answered, true) {
            let end = self.end;
            self.timer.as_mut().reset(end);
        }
        self.check_time(cx)?;
        let written = ready!(Pin::new(&mut self.io).poll_write(cx, buf))?;
        if self.lease.is_stream() {
            let stalled = Instant::now() + self.stall;
            self.timer.as_mut().reset(stalled);
        }
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check_time(cx)?;
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check_time(cx)?;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
