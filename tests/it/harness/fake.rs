//! A broker that answers from a script, packet by packet. Shared with the tests of the MQTT connection.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};

/// CONNACK without properties: accepted, no session.
pub(crate) const WELCOME: &[u8] = &[0x20, 3, 0, 0, 0];

/// One packet of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Packet {
    /// Number of the connection, from 1.
    pub(crate) connection: usize,
    pub(crate) header: u8,
    pub(crate) body: Vec<u8>,
}

impl Packet {
    /// Type of packet: 1 CONNECT, 3 PUBLISH, 8 SUBSCRIBE, 10 UNSUBSCRIBE, 12 PINGREQ.
    pub(crate) fn kind(&self) -> u8 {
        self.header >> 4
    }

    pub(crate) fn is_about(&self, text: &str) -> bool {
        self.body.windows(text.len()).any(|window| window == text.as_bytes())
    }

    /// Answer of a friendly broker.
    pub(crate) fn welcome(&self) -> Vec<u8> {
        match self.kind() {
            1 => WELCOME.to_vec(),
            3 if self.header & 6 != 0 => {
                let topic = usize::from(u16::from_be_bytes([self.body[0], self.body[1]]));
                vec![0x40, 2, self.body[topic + 2], self.body[topic + 3]]
            }
            8 => self.suback(1),
            10 => vec![0xb0, 4, self.body[0], self.body[1], 0, 0],
            12 => vec![0xd0, 0],
            _ => Vec::new(),
        }
    }

    /// SUBACK with this reason code, or granted QoS.
    pub(crate) fn suback(&self, code: u8) -> Vec<u8> {
        vec![0x90, 4, self.body[0], self.body[1], 0, code]
    }
}

pub(crate) struct Fake {
    pub(crate) port: u16,
    seen: Arc<Mutex<Vec<Packet>>>,
}

impl Fake {
    /// `script`: the answer to a packet; `None` closes the connection.
    pub(crate) fn start(script: impl Fn(&Packet) -> Option<Vec<u8>> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind a loopback port");
        let port = listener.local_addr().expect("the port that was bound").port();
        let (seen, script) = (Arc::new(Mutex::new(Vec::new())), Arc::new(script));
        let kept = Arc::clone(&seen);
        // The threads end with the process of the test.
        std::thread::spawn(move || {
            for (number, stream) in listener.incoming().flatten().enumerate() {
                let (kept, script) = (Arc::clone(&kept), Arc::clone(&script));
                std::thread::spawn(move || serve(stream, number + 1, &kept, &*script));
            }
        });
        Self { port, seen }
    }

    pub(crate) fn url(&self) -> String {
        format!("mqtt://127.0.0.1:{}", self.port)
    }

    /// Packets of one kind so far.
    pub(crate) fn seen(&self, kind: u8) -> Vec<Packet> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.iter().filter(|packet| packet.kind() == kind).cloned().collect()
    }
}

fn serve(
    mut stream: TcpStream,
    connection: usize,
    seen: &Mutex<Vec<Packet>>,
    script: &(impl Fn(&Packet) -> Option<Vec<u8>> + ?Sized),
) -> Option<()> {
    loop {
        let [header] = read(&mut stream)?;
        let (mut length, mut shift) = (0, 0);
        loop {
            let [byte] = read(&mut stream)?;
            length |= usize::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                break;
            }
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body).ok()?;
        let packet = Packet { connection, header, body };
        seen.lock().unwrap_or_else(PoisonError::into_inner).push(packet.clone());
        stream.write_all(&script(&packet)?).ok()?;
    }
}

fn read<const N: usize>(stream: &mut TcpStream) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes).ok()?;
    Some(bytes)
}
