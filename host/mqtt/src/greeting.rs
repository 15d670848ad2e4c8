//! The first packet of a broker, read before the client reads it: a CONNACK of MQTT 5, or what else answers on that port.
//!
//! The client drops the reason text of a refusal, waits in vain for the rest of a CONNACK of MQTT 3.1.1, and takes an
//! assigned client id for an error although the broker may assign one to any client. The text is kept, an old broker ends the
//! attempt at once, and such properties are taken out.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::tls;

/// Larger first packets are not looked at.
const MAX_BYTES: usize = 64 * 1024;

const CONNACK: u8 = 0x20;
const ASSIGNED_CLIENT_ID: u8 = 0x12;
const RESPONSE_INFORMATION: u8 = 0x1a;
const REASON_STRING: u8 = 0x1f;

/// What the broker said first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Said {
    /// Nothing so far.
    #[default]
    Nothing,
    /// The connection was closed before a byte came.
    Closed,
    /// CONNACK of MQTT 3.1.1.
    OldConnAck,
    ConnAck {
        reason: Option<String>,
        /// Another client id than the one that was sent.
        assigned_id: Option<String>,
    },
    /// First bytes of something else.
    Other(Vec<u8>),
    /// Reading failed before a packet was whole, with these words of TLS.
    Failed(String),
}

#[derive(Debug, Default)]
pub(crate) struct Greeting(Mutex<Said>);

impl Greeting {
    pub(crate) fn said(&self) -> Said {
        self.lock().clone()
    }

    fn set(&self, said: Said) {
        *self.lock() = said;
    }

    fn lock(&self) -> MutexGuard<'_, Said> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(crate) struct Greeted<S> {
    stream: S,
    greeting: Arc<Greeting>,
    /// First packet as far as it is read, then what the reader has not taken of it.
    held: Vec<u8>,
    taken: usize,
    is_whole: bool,
}

impl<S: AsyncRead + Unpin> Greeted<S> {
    pub(crate) fn new(stream: S, greeting: Arc<Greeting>) -> Self {
        Self { stream, greeting, held: Vec::new(), taken: 0, is_whole: false }
    }

    /// Reads until the first packet is whole or turns out to be none.
    fn poll_first(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.is_whole {
            let mut bytes = [0; 1024];
            let mut buf = ReadBuf::new(&mut bytes);
            if let Err(error) = ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buf)) {
                if let Some(words) = tls::explain(&error) {
                    self.greeting.set(Said::Failed(words));
                }
                return Poll::Ready(Err(error));
            }
            if buf.filled().is_empty() {
                if self.held.is_empty() {
                    self.greeting.set(Said::Closed);
                }
                self.is_whole = true;
                break;
            }
            self.held.extend_from_slice(buf.filled());
            self.look()?;
        }
        Poll::Ready(Ok(()))
    }

    fn look(&mut self) -> io::Result<()> {
        if self.held[0] != CONNACK || self.held.len() > MAX_BYTES {
            // Enough to tell an alert of TLS and an answer of HTTP.
            let needed = match self.held[0] {
                0x15 => 2,
                b'H' => 4,
                _ => 1,
            };
            if self.held.len() < needed {
                return Ok(());
            }
            self.greeting.set(Said::Other(self.held[..self.held.len().min(8)].to_vec()));
            self.is_whole = true;
            return Ok(());
        }
        let mut rest = &self.held[1..];
        let Some(length) = varint(&mut rest) else { return Ok(()) };
        if rest.len() < length {
            return Ok(());
        }
        self.is_whole = true;
        if length == 2 {
            self.greeting.set(Said::OldConnAck);
            return Err(io::Error::other("a CONNACK of MQTT 3.1.1"));
        }
        let (body, behind) = rest.split_at(length);
        let (said, body) = connack(body).unwrap_or((Said::Nothing, body.to_vec()));
        let mut whole = vec![CONNACK];
        put_varint(body.len(), &mut whole);
        whole.extend(body);
        whole.extend(behind);
        self.held = whole;
        self.greeting.set(said);
        Ok(())
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Greeted<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.is_whole {
            ready!(self.poll_first(cx))?;
        }
        if self.held.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buf);
        }
        let left = &self.held[self.taken..];
        let taken = left.len().min(buf.remaining());
        buf.put_slice(&left[..taken]);
        self.taken += taken;
        if self.taken == self.held.len() {
            (self.held, self.taken) = (Vec::new(), 0);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Greeted<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Reads the body of a CONNACK. Returns what it says, and the body without the properties that the client does not take.
/// `None`: it is malformed, which the client reports.
fn connack(body: &[u8]) -> Option<(Said, Vec<u8>)> {
    let (mut kept, mut rest) = (body.get(..2)?.to_vec(), body.get(2..)?);
    let length = varint(&mut rest)?;
    let mut properties = rest.get(..length).filter(|properties| properties.len() == rest.len())?;
    let (mut reason, mut assigned_id, mut others) = (None, None, Vec::new());
    while let [id, value @ ..] = properties {
        let size = match *id {
            0x24 | 0x25 | 0x28 | 0x29 | 0x2a => 1,
            0x13 | 0x21 | 0x22 => 2,
            0x11 | 0x27 => 4,
            ASSIGNED_CLIENT_ID | 0x15 | 0x16 | RESPONSE_INFORMATION | 0x1c | REASON_STRING => string(value)?,
            0x26 => {
                let name = string(value)?;
                name + string(value.get(name..)?)?
            }
            _ => return None,
        };
        let (value, behind) = value.split_at_checked(size)?;
        let text = || String::from_utf8_lossy(&value[2..]).into_owned();
        match *id {
            ASSIGNED_CLIENT_ID => assigned_id = Some(text()),
            RESPONSE_INFORMATION => {}
            id => {
                if id == REASON_STRING {
                    reason = Some(text());
                }
                others.push(id);
                others.extend_from_slice(value);
            }
        }
        properties = behind;
    }
    put_varint(others.len(), &mut kept);
    kept.extend(others);
    Some((Said::ConnAck { reason, assigned_id }, kept))
}

/// Length of a string with its own length.
fn string(bytes: &[u8]) -> Option<usize> {
    let length = bytes.first_chunk::<2>()?;
    Some(2 + usize::from(u16::from_be_bytes(*length)))
}

fn varint(bytes: &mut &[u8]) -> Option<usize> {
    let mut value = 0;
    for shift in [0, 7, 14, 21] {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn put_varint(mut value: usize, into: &mut Vec<u8>) {
    loop {
        let byte = (value & 0x7f) as u8;
        value >>= 7;
        into.push(if value > 0 { byte | 0x80 } else { byte });
        if value == 0 {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    /// Has a broker say this, in pieces. Returns what the client reads and what was understood.
    fn hear(bytes: &[u8]) -> (io::Result<Vec<u8>>, Said) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (near, mut far) = duplex(1);
            let greeting = Arc::new(Greeting::default());
            let mut stream = Greeted::new(near, Arc::clone(&greeting));
            let mut read = Vec::new();
            let (result, ()) = tokio::join!(stream.read_to_end(&mut read), async {
                let _ = far.write_all(bytes).await;
                drop(far);
            });
            (result.map(|_| read), greeting.said())
        })
    }

    #[test]
    fn a_connack_passes_without_what_the_client_does_not_take() {
        let (read, said) = hear(&[0x20, 3, 0, 0, 0, 0x40, 2, 0, 1]);
        assert_eq!(read.unwrap(), [0x20, 3, 0, 0, 0, 0x40, 2, 0, 1]);
        assert_eq!(said, Said::ConnAck { reason: None, assigned_id: None });
        // Maximum QoS 0, an assigned client id, a user property, a reason, response information.
        let properties: &[u8] =
            &[0x24, 0, 0x12, 0, 2, b'i', b'd', 0x26, 0, 1, b'a', 0, 1, b'b', 0x1f, 0, 2, b'n', b'o', 0x1a, 0, 1, b'r'];
        let body = [&[0, 0x87, properties.len() as u8][..], properties].concat();
        let (read, said) = hear(&[&[0x20, body.len() as u8][..], &body].concat());
        let kept = [0x24, 0, 0x26, 0, 1, b'a', 0, 1, b'b', 0x1f, 0, 2, b'n', b'o'];
        assert_eq!(read.unwrap(), [&[0x20, 17, 0, 0x87, 14][..], &kept].concat());
        assert_eq!(said, Said::ConnAck { reason: Some("no".into()), assigned_id: Some("id".into()) });
    }

    #[test]
    fn what_is_no_connack_of_mqtt_5_is_recognised() {
        let (read, said) = hear(&[0x20, 2, 0, 1]);
        assert!(read.is_err());
        assert_eq!(said, Said::OldConnAck);
        assert_eq!(hear(&[]).1, Said::Closed);
        let (read, said) = hear(b"HTTP/1.1 400 Bad Request\r\n");
        assert_eq!((read.unwrap().len(), said), (26, Said::Other(b"HTTP".to_vec())));
        assert_eq!(hear(&[0x15, 3, 1, 0, 2]).1, Said::Other(vec![0x15, 3]));
    }

    proptest::proptest! {
        #[test]
        fn nothing_makes_it_panic_and_other_packets_pass(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..60)) {
            let _ = connack(&bytes);
            let (read, said) = hear(&bytes);
            if let (Ok(read), Said::Other(_)) = (read, said) {
                proptest::prop_assert_eq!(read, bytes);
            }
        }
    }
}
