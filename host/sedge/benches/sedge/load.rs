//! The publisher. It serialises packets once, writes them in blocks and only counts acknowledgements, so that its own cost
//! is negligible.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::harness::wire::{Hello, Publish};

/// Packets per write. Less than half of the window, so that the broker is never idle while acknowledgements return.
const BLOCK: usize = 128;

pub(crate) struct Load {
    stream: TcpStream,
    /// Blocks of serialised packets, sent in rotation.
    blocks: Vec<Vec<u8>>,
    next: usize,
    /// Number of packets that the broker has not acknowledged.
    in_flight: usize,
    window: usize,
    acks: Vec<u8>,
}

impl Load {
    /// Connects, to send `messages` in rotation. The first ones are repeated to fill whole blocks.
    pub(crate) fn connect(port: u16, client_id: &str, messages: &[Publish]) -> io::Result<Self> {
        let mut client = crate::harness::client::Client::connect(port, &Hello::new(client_id))?;
        client.send(&[0xc0, 0])?;
        let (stream, window) = client.into_parts();
        // Packet ids repeat after the last block, so the blocks must hold more packets than the window.
        let count = messages.len().max(2 * window).next_multiple_of(BLOCK);
        assert!(count <= usize::from(u16::MAX), "{count} messages need more packet ids than there are");
        let mut messages = messages.iter().cycle();
        let blocks = (0..count / BLOCK)
            .map(|block| {
                let mut bytes = Vec::new();
                for at in 0..BLOCK {
                    let mut message = messages.next().expect("at least one message").clone();
                    message.packet_id = u16::try_from(block * BLOCK + at + 1).expect("checked above");
                    message.encode(&mut bytes);
                }
                bytes
            })
            .collect();
        Ok(Self { stream, blocks, next: 0, in_flight: 0, window, acks: Vec::new() })
    }

    /// Publishes as fast as the broker acknowledges. Returns the number of messages.
    pub(crate) fn flood(&mut self, count: usize) -> io::Result<usize> {
        let blocks = count.div_ceil(BLOCK);
        for _ in 0..blocks {
            while self.in_flight + BLOCK > self.window {
                self.read_acks()?;
            }
            self.stream.write_all(&self.blocks[self.next])?;
            self.next = (self.next + 1) % self.blocks.len();
            self.in_flight += BLOCK;
        }
        self.drain()?;
        Ok(blocks * BLOCK)
    }

    /// Waits until the broker has acknowledged everything.
    pub(crate) fn drain(&mut self) -> io::Result<()> {
        while self.in_flight > 0 {
            self.read_acks()?;
        }
        Ok(())
    }

    fn read_acks(&mut self) -> io::Result<()> {
        let mut chunk = [0; 16 << 10];
        let count = self.stream.read(&mut chunk)?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.acks.extend(&chunk[..count]);
        let mut at = 0;
        // Every packet that a publisher receives is short: one byte of type, one of length.
        while let Some(&[kind, length]) = self.acks.get(at..at + 2) {
            if at + 2 + usize::from(length) > self.acks.len() {
                break;
            }
            match kind {
                0x40 => self.in_flight -= 1,
                0xd0 => {}
                other => return Err(io::Error::other(format!("the broker sent a packet of type {other:#04x}"))),
            }
            at += 2 + usize::from(length);
        }
        self.acks.drain(..at);
        Ok(())
    }
}

/// Publishes at a fixed rate in an open loop: a slow system does not delay the schedule. Returns the instant that each message
/// was due. Latency counts from there, so a stall is charged to every message that waited for it.
pub(crate) fn paced(
    stream: &mut TcpStream,
    per_second: u32,
    count: usize,
    mut message: impl FnMut(usize) -> Publish,
) -> io::Result<Vec<Instant>> {
    let mut acks = stream.try_clone()?;
    let reader = std::thread::spawn(move || {
        let mut chunk = [0; 16 << 10];
        while matches!(acks.read(&mut chunk), Ok(count) if count > 0) {}
    });
    let step = Duration::from_secs(1) / per_second;
    let start = Instant::now() + step;
    let mut due = Vec::with_capacity(count);
    let mut bytes = Vec::new();
    for index in 0..count {
        let at = start + step * u32::try_from(index).expect("a bench sends less than 2^32 messages");
        bytes.clear();
        let mut publish = message(index);
        publish.packet_id = u16::try_from(index % 65_000 + 1).expect("less than 2^16");
        publish.encode(&mut bytes);
        if let Some(wait) = at.checked_duration_since(Instant::now()) {
            std::thread::sleep(wait);
        }
        due.push(at);
        stream.write_all(&bytes)?;
    }
    drop(reader);
    Ok(due)
}
