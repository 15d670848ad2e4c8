//! A socket that acknowledges small segments at once.
//!
//! A broker that delays small packets (Nagle's algorithm: Mosquitto without `set_tcp_nodelay`) holds the next one until the last
//! is acknowledged, and Linux delays that acknowledgement by up to 40 ms. Both together cost 20 ms per message.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use rustix::net::sockopt::set_tcp_quickack;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Reads of at least this size are of a flow, in which nobody waits for an acknowledgement.
const FLOW_BYTES: usize = 4096;

pub(crate) struct QuickAck(pub(crate) TcpStream);

impl AsyncRead for QuickAck {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.0).poll_read(cx, buf);
        if (1..FLOW_BYTES).contains(&(buf.filled().len() - before)) {
            // The kernel forgets the option again. A socket without it is only slower.
            let _ = set_tcp_quickack(&self.0, true);
        }
        read
    }
}

impl AsyncWrite for QuickAck {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
