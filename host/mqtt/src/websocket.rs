//! MQTT over WebSocket: the bytes of the connection in binary messages, whose borders mean nothing.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use futures_util::{Sink, Stream};
use sedge_core::config::Endpoint;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::http::header::SEC_WEBSOCKET_PROTOCOL;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error, Message};

/// Subprotocol that MQTT 5 requires (section 6 of the standard).
const SUBPROTOCOL: HeaderValue = HeaderValue::from_static("mqtt");
/// Largest message, which is held whole. Brokers send what one read or write of theirs holds, at most some packets.
const MAX_MESSAGE_BYTES: usize = 4 << 20;

/// Asks the server at the other end of `stream` for a WebSocket.
pub(crate) async fn upgrade<S>(stream: S, url: &Endpoint) -> io::Result<WebSocket<S>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut request = url.as_str().into_client_request().map_err(io::Error::other)?;
    request.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, SUBPROTOCOL);
    let config =
        WebSocketConfig::default().max_message_size(Some(MAX_MESSAGE_BYTES)).max_frame_size(Some(MAX_MESSAGE_BYTES));
    let upgraded = tokio_tungstenite::client_async_with_config(request, stream, Some(config)).await;
    let (socket, _) = upgraded.map_err(|error| refusal(&error))?;
    Ok(WebSocket { socket, unread: Bytes::new() })
}

/// Why there is no WebSocket, with the fix.
fn refusal(error: &Error) -> io::Error {
    io::Error::other(match error {
        Error::Http(response) => format!(
            "the server answered the request for a WebSocket with HTTP {}: check the path of the address",
            response.status()
        ),
        // A broker's port for plain MQTT ends the connection.
        error => format!("no WebSocket can be had here ({error}): check port and path of the address"),
    })
}

pub(crate) struct WebSocket<S> {
    socket: WebSocketStream<S>,
    /// Rest of the last message.
    unread: Bytes,
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for WebSocket<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        while self.unread.is_empty() {
            match ready!(Pin::new(&mut self.socket).poll_next(cx)) {
                Some(Ok(Message::Binary(bytes))) => self.unread = bytes,
                // Pings are answered by the library.
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                Some(Ok(Message::Text(_))) => {
                    let what = "the server sent text over the WebSocket, which MQTT never does";
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, what)));
                }
                Some(Ok(Message::Close(_)) | Err(Error::ConnectionClosed | Error::AlreadyClosed)) | None => {
                    return Poll::Ready(Ok(()));
                }
                Some(Err(error)) => return Poll::Ready(Err(into_io(error))),
            }
        }
        let length = self.unread.len().min(buf.remaining());
        buf.put_slice(&self.unread[..length]);
        self.unread.advance(length);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for WebSocket<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut socket = Pin::new(&mut self.socket);
        ready!(socket.as_mut().poll_ready(cx)).map_err(into_io)?;
        socket.start_send(Message::Binary(Bytes::copy_from_slice(bytes))).map_err(into_io)?;
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx).map_err(into_io)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_close(cx).map_err(into_io)
    }
}

fn into_io(error: Error) -> io::Error {
    match error {
        Error::Io(error) => error,
        Error::ConnectionClosed | Error::AlreadyClosed => io::ErrorKind::ConnectionAborted.into(),
        error => io::Error::other(error),
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{SinkExt as _, StreamExt as _};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};
    use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};

    use super::*;

    fn endpoint() -> Endpoint {
        "ws://broker.example/mqtt".parse().unwrap()
    }

    /// A server that takes the subprotocol.
    #[expect(clippy::result_large_err, reason = "the library asks for a callback with this error")]
    async fn accept(stream: tokio::io::DuplexStream) -> WebSocketStream<tokio::io::DuplexStream> {
        tokio_tungstenite::accept_hdr_async(stream, |request: &Request, mut response: Response| {
            assert_eq!(request.uri().path(), "/mqtt");
            assert_eq!(request.headers()[SEC_WEBSOCKET_PROTOCOL], SUBPROTOCOL);
            response.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, SUBPROTOCOL);
            Ok(response)
        })
        .await
        .unwrap()
    }

    #[tokio::test(flavor = "current_thread")]
    async fn bytes_pass_both_ways_whatever_the_borders_of_messages() {
        let (near, far) = duplex(256 * 1024);
        let url = endpoint();
        let (client, mut server) = tokio::join!(upgrade(near, &url), accept(far));
        let mut client = client.unwrap();
        client.write_all(b"CONNECT").await.unwrap();
        client.flush().await.unwrap();
        assert_eq!(server.next().await.unwrap().unwrap(), Message::Binary("CONNECT".into()));

        server.send(Message::Binary("CON".into())).await.unwrap();
        server.send(Message::Ping("are you there".into())).await.unwrap();
        server.send(Message::Binary(Bytes::new())).await.unwrap();
        server.send(Message::Binary("NACK and more".into())).await.unwrap();
        let mut read = [0; 7];
        client.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"CONNACK");
        server.close(None).await.unwrap();
        let mut rest = Vec::new();
        client.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, b" and more");
    }

    #[tokio::test(flavor = "current_thread")]
    async fn text_and_oversized_messages_end_the_connection() {
        for message in [Message::Text("hello".into()), Message::Binary(vec![0; MAX_MESSAGE_BYTES + 1].into())] {
            let (near, far) = duplex(16 << 20);
            let url = endpoint();
            let (client, mut server) = tokio::join!(upgrade(near, &url), accept(far));
            server.send(message).await.unwrap();
            assert!(client.unwrap().read_u8().await.is_err());
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_refusal_names_what_to_check() {
        for (answer, expected) in [
            ("HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n", "HTTP 404"),
            ("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", "HTTP 200"),
            ("\x20\x02\x00\x00\r\n\r\n", "check port and path"),
        ] {
            let (near, mut far) = duplex(4096);
            far.write_all(answer.as_bytes()).await.unwrap();
            let error = upgrade(near, &endpoint()).await.err().expect("it is refused");
            assert!(error.to_string().contains(expected), "{answer:?}: {error}");
        }
    }
}
