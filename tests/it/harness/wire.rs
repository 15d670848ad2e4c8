//! The MQTT 5 packets that the tests need, encoded by hand, so that the daemon's client is not checked by itself.
//!
//! Fixed header (type and flags, remaining length as a varint), then the packet's own fields. OASIS MQTT 5.0, section 3.

use std::io;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Publish {
    pub(crate) topic: String,
    pub(crate) payload: Vec<u8>,
    pub(crate) qos: u8,
    pub(crate) retain: bool,
    pub(crate) dup: bool,
    /// 0 for QoS 0.
    pub(crate) packet_id: u16,
    pub(crate) content_type: Option<String>,
    /// Sent, and not read from packets of the broker.
    pub(crate) response_topic: Option<String>,
    /// Sent, and not read from packets of the broker.
    pub(crate) correlation_data: Option<String>,
    pub(crate) properties: Vec<(String, String)>,
}

impl Publish {
    pub(crate) fn new(topic: &str, payload: impl Into<Vec<u8>>) -> Self {
        Self { topic: topic.to_owned(), payload: payload.into(), qos: 1, ..Self::default() }
    }

    pub(crate) fn with_property(mut self, name: &str, value: &str) -> Self {
        self.properties.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The value of the first user property with this name.
    pub(crate) fn property(&self, name: &str) -> Option<&str> {
        self.properties.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.payload).into_owned()
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        let mut body = Vec::with_capacity(self.topic.len() + self.payload.len() + 16);
        text(&self.topic, &mut body);
        if self.qos > 0 {
            body.extend(self.packet_id.to_be_bytes());
        }
        let mut properties = Vec::new();
        let texts = [(0x03, &self.content_type), (0x08, &self.response_topic), (0x09, &self.correlation_data)];
        for (id, value) in texts {
            if let Some(value) = value {
                properties.push(id);
                text(value, &mut properties);
            }
        }
        for (name, value) in &self.properties {
            properties.push(0x26);
            text(name, &mut properties);
            text(value, &mut properties);
        }
        varint(properties.len(), &mut body);
        body.extend(properties);
        body.extend(&self.payload);
        let flags = (u8::from(self.dup) << 3) | (self.qos << 1) | u8::from(self.retain);
        packet(0x30 | flags, &body, out);
    }
}

#[derive(Debug)]
pub(crate) enum Packet {
    ConnAck { session_present: bool, reason: u8, receive_maximum: u16 },
    Publish(Publish),
    PubAck { reason: u8 },
    SubAck { reasons: Vec<u8> },
    UnsubAck,
    PingResp,
    Disconnect { reason: u8 },
}

/// Contents of a CONNECT packet.
#[derive(Clone, Debug)]
pub(crate) struct Hello {
    pub(crate) client_id: String,
    pub(crate) clean_start: bool,
    pub(crate) session_expiry_secs: u32,
    pub(crate) receive_maximum: u16,
    pub(crate) keep_alive_secs: u16,
}

impl Hello {
    /// A client whose session ends with its connection.
    pub(crate) fn new(client_id: &str) -> Self {
        Self {
            client_id: client_id.to_owned(),
            clean_start: true,
            session_expiry_secs: 0,
            receive_maximum: 1024,
            keep_alive_secs: 0,
        }
    }

    /// A client whose session the broker keeps for an hour.
    pub(crate) fn lasting(client_id: &str) -> Self {
        Self { clean_start: false, session_expiry_secs: 3600, ..Self::new(client_id) }
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut body = Vec::new();
        text("MQTT", &mut body);
        body.push(5);
        body.push(u8::from(self.clean_start) << 1);
        body.extend(self.keep_alive_secs.to_be_bytes());
        let mut properties = vec![0x11];
        properties.extend(self.session_expiry_secs.to_be_bytes());
        properties.push(0x21);
        properties.extend(self.receive_maximum.to_be_bytes());
        varint(properties.len(), &mut body);
        body.extend(properties);
        text(&self.client_id, &mut body);
        let mut out = Vec::new();
        packet(0x10, &body, &mut out);
        out
    }
}

pub(crate) fn subscribe(packet_id: u16, filters: &[&str]) -> Vec<u8> {
    let mut body = packet_id.to_be_bytes().to_vec();
    body.push(0);
    for filter in filters {
        text(filter, &mut body);
        body.push(1);
    }
    let mut out = Vec::new();
    packet(0x82, &body, &mut out);
    out
}

pub(crate) fn unsubscribe(packet_id: u16, filter: &str) -> Vec<u8> {
    let mut body = packet_id.to_be_bytes().to_vec();
    body.push(0);
    text(filter, &mut body);
    let mut out = Vec::new();
    packet(0xa2, &body, &mut out);
    out
}

pub(crate) fn puback(packet_id: u16, out: &mut Vec<u8>) {
    out.extend([0x40, 2]);
    out.extend(packet_id.to_be_bytes());
}

/// The first whole packet in `bytes` and its length, or `None` when more must be read.
pub(crate) fn decode(bytes: &[u8]) -> io::Result<Option<(Packet, usize)>> {
    if bytes.len() < 2 {
        return Ok(None);
    }
    let mut fields = Fields(&bytes[1..]);
    let Some(length) = fields.varint() else { return Ok(None) };
    let header = bytes.len() - fields.0.len();
    if fields.0.len() < length {
        return Ok(None);
    }
    let fields = Fields(&bytes[header..header + length]);
    let packet = decode_body(bytes[0], fields)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("bad packet of type {:#04x}", bytes[0])))?;
    Ok(Some((packet, header + length)))
}

fn decode_body(first: u8, mut fields: Fields<'_>) -> Option<Packet> {
    Some(match first >> 4 {
        2 => {
            let session_present = fields.byte()? & 1 == 1;
            let reason = fields.byte()?;
            let receive_maximum = fields.properties()?.receive_maximum.unwrap_or(u16::MAX);
            Packet::ConnAck { session_present, reason, receive_maximum }
        }
        3 => {
            let qos = (first >> 1) & 3;
            let topic = fields.text()?;
            let packet_id = if qos > 0 { fields.two()? } else { 0 };
            let properties = fields.properties()?;
            Packet::Publish(Publish {
                topic,
                packet_id,
                payload: fields.0.to_vec(),
                qos,
                retain: first & 1 == 1,
                dup: first & 8 == 8,
                content_type: properties.content_type,
                response_topic: None,
                correlation_data: None,
                properties: properties.user,
            })
        }
        4 => {
            fields.two()?;
            Packet::PubAck { reason: fields.byte().unwrap_or(0) }
        }
        9 => {
            fields.two()?;
            fields.properties()?;
            Packet::SubAck { reasons: fields.0.to_vec() }
        }
        11 => Packet::UnsubAck,
        13 => Packet::PingResp,
        14 => Packet::Disconnect { reason: fields.byte().unwrap_or(0) },
        _ => return None,
    })
}

#[derive(Default)]
struct Properties {
    receive_maximum: Option<u16>,
    content_type: Option<String>,
    user: Vec<(String, String)>,
}

struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(head)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1).map(|bytes| bytes[0])
    }

    fn two(&mut self) -> Option<u16> {
        self.take(2).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    fn varint(&mut self) -> Option<usize> {
        let mut value = 0;
        for shift in [0, 7, 14, 21] {
            let byte = self.byte()?;
            value |= usize::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    fn text(&mut self) -> Option<String> {
        let length = self.two()?;
        self.take(length.into()).map(|bytes| String::from_utf8_lossy(bytes).into_owned())
    }

    /// Types of properties, table 2-4 of the standard.
    fn properties(&mut self) -> Option<Properties> {
        let length = self.varint()?;
        let mut fields = Fields(self.take(length)?);
        let mut properties = Properties::default();
        while let Some(id) = fields.byte() {
            match id {
                0x03 => properties.content_type = Some(fields.text()?),
                0x21 => properties.receive_maximum = Some(fields.two()?),
                0x26 => properties.user.push((fields.text()?, fields.text()?)),
                0x01 | 0x17 | 0x19 | 0x24 | 0x25 | 0x28 | 0x29 | 0x2a => drop(fields.byte()?),
                0x13 | 0x22 | 0x23 => drop(fields.two()?),
                0x02 | 0x11 | 0x18 | 0x27 => drop(fields.take(4)?),
                0x0b => drop(fields.varint()?),
                0x08 | 0x09 | 0x12 | 0x15 | 0x16 | 0x1a | 0x1c | 0x1f => {
                    let length = fields.two()?;
                    fields.take(length.into())?;
                }
                _ => return None,
            }
        }
        Some(properties)
    }
}

fn packet(first: u8, body: &[u8], out: &mut Vec<u8>) {
    out.push(first);
    varint(body.len(), out);
    out.extend(body);
}

/// Seven bits per byte, lowest first (LEB128).
pub(crate) fn varint(mut value: usize, out: &mut Vec<u8>) {
    loop {
        let low = (value & 0x7f) as u8;
        value >>= 7;
        if value == 0 {
            return out.push(low);
        }
        out.push(low | 0x80);
    }
}

fn text(value: &str, out: &mut Vec<u8>) {
    let length = u16::try_from(value.len()).expect("no test uses a string over 64 KiB");
    out.extend(length.to_be_bytes());
    out.extend(value.as_bytes());
}
