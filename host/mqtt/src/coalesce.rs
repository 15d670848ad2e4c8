//! Write coalescing: a stream that holds small writes until its owner is about to wait for input.
//!
//! The MQTT client flushes after every acknowledgement: one system call and one packet per message. It reads from the
//! socket only when it has nothing left to send, so that is the moment to write. All acknowledgements of one commit leave
//! together, without a timer.
//!
//! The stream has a [`Gate`] as well. While that is closed nothing is read, so that TCP backpressure reaches the broker.
//! Receive Maximum does not suffice: Mosquitto 2.0.11 exceeds it when it has messages queued.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Instant;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::gate::Gate;

/// Held bytes above which a write waits for the socket, so that a peer that does not read slows the sender.
const HIGH_WATER_BYTES: usize = 64 * 1024;

pub(crate) struct Coalesce<S: AsyncRead + AsyncWrite + Unpin> {
    stream: S,
    gate: Arc<Gate>,
    held: Vec<u8>,
    /// Bytes of `held` that are written.
    written: usize,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Coalesce<S> {
    pub(crate) fn new(stream: S, gate: Arc<Gate>) -> Self {
        Self { stream, gate, held: Vec::with_capacity(4096), written: 0 }
    }

    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.held.len() {
            match ready!(Pin::new(&mut self.stream).poll_write(cx, &self.held[self.written..]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => self.written += written,
            }
        }
        self.held.clear();
        self.written = 0;
        Pin::new(&mut self.stream).poll_flush(cx)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Coalesce<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.held.is_empty() {
            // Reading continues while the write is pending; the socket wakes the task.
            if let Poll::Ready(Err(error)) = self.poll_drain(cx) {
                return Poll::Ready(Err(error));
            }
        }
        if self.gate.is_closed(cx) {
            return Poll::Pending;
        }
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        self.gate.has_read(buf.filled().len() - before);
        if read.is_ready() {
            self.gate.heard(Instant::now());
        }
        read
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Coalesce<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.held.len() >= HIGH_WATER_BYTES {
            ready!(self.poll_drain(cx))?;
        }
        self.held.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(cx))?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// After the last packet, which says goodbye, nothing is read any more that would write it.
impl<S: AsyncRead + AsyncWrite + Unpin> Drop for Coalesce<S> {
    fn drop(&mut self) {
        if !self.held.is_empty() {
            // What the socket does not take at once is lost, as with a connection that breaks.
            let _ = self.poll_drain(&mut Context::from_waker(Waker::noop()));
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn small_writes_leave_together_when_the_owner_reads() {
        let (near, mut far) = duplex(256 * 1024);
        let mut stream = Coalesce::new(near, Arc::default());
        for byte in 0..100_u8 {
            stream.write_all(&[byte]).await.unwrap();
            stream.flush().await.unwrap();
        }
        let mut received = [0; 100];
        assert!(
            tokio::time::timeout(std::time::Duration::from_millis(20), far.read(&mut received)).await.is_err(),
            "nothing may leave before the owner reads"
        );
        far.write_all(b"x").await.unwrap();
        let mut answer = [0; 1];
        stream.read_exact(&mut answer).await.unwrap();
        far.read_exact(&mut received).await.unwrap();
        assert_eq!(received.to_vec(), (0..100).collect::<Vec<u8>>());
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_closed_gate_stops_reading_and_not_writing() {
        let (near, mut far) = duplex(1024);
        let gate = Arc::new(Gate::default());
        let mut stream = Coalesce::new(near, Arc::clone(&gate));
        gate.set_closed(true);
        stream.write_all(b"ack").await.unwrap();
        far.write_all(b"more").await.unwrap();
        let reading = tokio::spawn(async move {
            let mut more = [0; 4];
            stream.read_exact(&mut more).await.unwrap();
            more
        });
        let mut ack = [0; 3];
        far.read_exact(&mut ack).await.unwrap();
        assert_eq!(&ack, b"ack");
        assert!(!reading.is_finished());
        gate.set_closed(false);
        assert_eq!(&reading.await.unwrap(), b"more");
    }

    #[tokio::test(flavor = "current_thread")]
    async fn no_more_is_read_than_allowed_before_it_is_received() {
        let (near, mut far) = duplex(1024);
        let gate = Arc::new(Gate::new(4));
        let mut stream = Coalesce::new(near, Arc::clone(&gate));
        far.write_all(b"12345678").await.unwrap();
        let mut some = [0; 4];
        stream.read_exact(&mut some).await.unwrap();
        let reading = tokio::spawn(async move {
            stream.read_exact(&mut some).await.unwrap();
            some
        });
        tokio::task::yield_now().await;
        assert!(!reading.is_finished());
        gate.received();
        assert_eq!(&reading.await.unwrap(), b"5678");
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_peer_that_does_not_read_slows_the_sender() {
        let (near, _far) = duplex(1024);
        let mut stream = Coalesce::new(near, Arc::default());
        let flood = async {
            loop {
                stream.write_all(&[0; 1024]).await.unwrap();
            }
        };
        assert!(tokio::time::timeout(std::time::Duration::from_millis(20), flood).await.is_err());
        assert!(stream.held.len() <= HIGH_WATER_BYTES + 1024);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn the_last_packet_leaves_although_nothing_is_read_after_it() {
        let (near, mut far) = duplex(1024);
        let mut stream = Coalesce::new(near, Arc::default());
        stream.write_all(b"goodbye").await.unwrap();
        stream.flush().await.unwrap();
        drop(stream);
        let mut received = Vec::new();
        far.read_to_end(&mut received).await.unwrap();
        assert_eq!(received, b"goodbye");
    }
}
