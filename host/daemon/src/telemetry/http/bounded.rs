//! Bounds on the connections of the HTTP server: any local user may connect, and must not take the daemon's descriptors.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep_until};

/// Connections at a time. Others wait in the kernel until one ends.
const MAX_CONNECTIONS: usize = 16;
/// Time from the connection to the end of its request.
const REQUEST: Duration = Duration::from_secs(5);
/// Time from the connection to its end.
const WHOLE: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub(super) connections: usize,
    pub(super) request: Duration,
    pub(super) whole: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { connections: MAX_CONNECTIONS, request: REQUEST, whole: WHOLE }
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
            timer: Box::pin(sleep_until(now + self.bounds.request)),
            has_answered: false,
            _permit: permit,
        };
        (connection, addr)
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}

/// Connection that fails once its time is over: first that of the request, and that of the whole once an answer begins.
pub(super) struct Connection<I> {
    io: I,
    end: Instant,
    timer: Pin<Box<Sleep>>,
    has_answered: bool,
    _permit: OwnedSemaphorePermit,
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
