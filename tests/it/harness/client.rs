//! A blocking MQTT 5 client on a plain socket.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::{Duration, Instant};

use super::patiently;
use super::wire::{self, Hello, Packet, Publish};

pub(crate) struct Client {
    stream: TcpStream,
    /// Received and not decoded bytes, from `start`.
    buffer: Vec<u8>,
    start: usize,
    /// Number of QoS 1 messages that the broker permits in flight.
    window: usize,
    unacknowledged: usize,
    next_packet_id: u16,
    pub(crate) session_present: bool,
}

impl Client {
    pub(crate) fn connect(port: u16, hello: &Hello) -> io::Result<Self> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        stream.set_nodelay(true)?;
        let mut client = Self {
            stream,
            buffer: Vec::new(),
            start: 0,
            window: 0,
            unacknowledged: 0,
            next_packet_id: 0,
            session_present: false,
        };
        client.send(&hello.encode())?;
        match client.next(Duration::from_secs(10))? {
            Some(Packet::ConnAck { reason: 0, session_present, receive_maximum }) => {
                client.window = usize::from(receive_maximum).min(1000);
                client.session_present = session_present;
                Ok(client)
            }
            other => Err(io::Error::new(io::ErrorKind::ConnectionRefused, format!("no welcome but {other:?}"))),
        }
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    pub(crate) fn subscribe(&mut self, filters: &[&str]) -> io::Result<()> {
        let packet_id = self.packet_id();
        self.send(&wire::subscribe(packet_id, filters))?;
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline {
            if let Some(Packet::SubAck { reasons, .. }) = self.next(Duration::from_secs(10))? {
                return match reasons.iter().all(|reason| *reason <= 2) {
                    true => Ok(()),
                    false => Err(io::Error::other(format!("subscription refused: {reasons:?}"))),
                };
            }
        }
        Err(io::ErrorKind::TimedOut.into())
    }

    /// Publishes messages with QoS 1 and returns when the broker has acknowledged all.
    pub(crate) fn publish_all(&mut self, messages: impl IntoIterator<Item = Publish>) -> io::Result<()> {
        let mut batch = Vec::with_capacity(64 << 10);
        for mut message in messages {
            if self.unacknowledged == self.window {
                self.send(&std::mem::take(&mut batch))?;
                self.wait_for_acks(self.window / 2)?;
            }
            message.packet_id = self.packet_id();
            message.encode(&mut batch);
            self.unacknowledged += 1;
        }
        self.send(&batch)?;
        self.wait_for_acks(0)
    }

    pub(crate) fn publish(&mut self, message: Publish) -> io::Result<()> {
        self.publish_all([message])
    }

    fn wait_for_acks(&mut self, most: usize) -> io::Result<()> {
        while self.unacknowledged > most {
            match self.next(Duration::from_secs(30))? {
                // 0x10: no matching subscribers.
                Some(Packet::PubAck { reason: 0 | 0x10, .. }) => self.unacknowledged -= 1,
                Some(Packet::PubAck { reason, .. }) => {
                    return Err(io::Error::other(format!("publish refused: {reason:#04x}")));
                }
                Some(Packet::Disconnect { reason }) => {
                    return Err(io::Error::other(format!("disconnected by the broker: {reason:#04x}")));
                }
                Some(_) => {}
                None => return Err(io::ErrorKind::TimedOut.into()),
            }
        }
        Ok(())
    }

    /// The socket and the broker's window, for a caller that encodes MQTT itself.
    pub(crate) fn into_parts(self) -> (TcpStream, usize) {
        (self.stream, self.window)
    }

    /// The next packet, or `None` after `patience`.
    pub(crate) fn next(&mut self, patience: Duration) -> io::Result<Option<Packet>> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some((packet, length)) = wire::decode(&self.buffer[self.start..])? {
                self.start += length;
                return Ok(Some(packet));
            }
            self.buffer.drain(..self.start);
            self.start = 0;
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.stream.set_read_timeout(Some(left))?;
            let mut chunk = [0; 64 << 10];
            match self.stream.read(&mut chunk) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => self.buffer.extend(&chunk[..count]),
                Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => return Ok(None),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// The next message, acknowledged, or `None` after `patience`.
    pub(crate) fn receive(&mut self, patience: Duration) -> io::Result<Option<Publish>> {
        let deadline = Instant::now() + patiently(patience);
        loop {
            match self.next(deadline.saturating_duration_since(Instant::now()))? {
                Some(Packet::Publish(message)) => {
                    if message.qos > 0 {
                        let mut ack = Vec::new();
                        wire::puback(message.packet_id, &mut ack);
                        self.send(&ack)?;
                    }
                    return Ok(Some(message));
                }
                Some(Packet::Disconnect { .. }) => return Err(io::ErrorKind::ConnectionAborted.into()),
                Some(_) => {}
                None => return Ok(None),
            }
        }
    }

    fn packet_id(&mut self) -> u16 {
        self.next_packet_id = self.next_packet_id.checked_add(1).unwrap_or(1);
        self.next_packet_id
    }
}
