//! A broker with the measured vices of Mosquitto: it numbers packets upwards and wraps, or reuses the lowest free number;
//! sends more than Receive Maximum; loses acknowledgements with the connection; forgets its session.

use std::collections::VecDeque;
use std::rc::Rc;

use bytes::Bytes;
use sedge_core::board::{AckToken, Delivery};

/// A message that the broker accepted from a publisher.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publication {
    pub number: u64,
    pub topic: Rc<str>,
    pub payload: Rc<str>,
    /// The publisher's own message id.
    pub id: Option<Rc<str>>,
    pub qos: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PacketIds {
    /// From 1 to 65,535 and over again, as Mosquitto does.
    CountUpwards,
    /// The lowest that is free.
    ReuseLowest,
}

#[derive(Debug)]
pub struct Broker {
    pub packet_ids: PacketIds,
    receive_maximum: usize,
    last_id: u16,
    /// Accepted and not sent.
    queue: VecDeque<Publication>,
    /// Sent and not acknowledged, in the order of sending.
    in_flight: VecDeque<InFlight>,
    /// Acknowledgements that the broker has not read.
    unread_acks: VecDeque<AckToken>,
    connection: u32,
    pub is_connected: bool,
    has_session: bool,
    /// Without a subscription a session gets nothing.
    pub is_subscribed: bool,
}

#[derive(Debug)]
struct InFlight {
    packet_id: u16,
    publication: Publication,
    /// On this connection.
    is_sent: bool,
    was_sent: bool,
}

impl Broker {
    pub fn new(packet_ids: PacketIds, receive_maximum: usize, first_id: u16) -> Self {
        Self {
            packet_ids,
            receive_maximum,
            last_id: first_id,
            queue: VecDeque::new(),
            in_flight: VecDeque::new(),
            unread_acks: VecDeque::new(),
            connection: 0,
            is_connected: false,
            has_session: false,
            is_subscribed: false,
        }
    }

    /// Queues a message for the board's session. `false`: there is no subscription yet, so nobody is promised anything.
    pub fn publish(&mut self, publication: Publication) -> bool {
        let is_kept = self.has_session && self.is_subscribed && (publication.qos == 1 || self.is_connected);
        if is_kept {
            self.queue.push_back(publication);
        }
        is_kept
    }

    /// Returns whether the broker had a session.
    pub fn connect(&mut self) -> bool {
        self.connection += 1;
        self.is_connected = true;
        std::mem::replace(&mut self.has_session, true)
    }

    pub fn disconnect(&mut self) {
        self.is_connected = false;
        self.unread_acks.clear();
        self.in_flight.iter_mut().for_each(|it| it.is_sent = false);
        self.queue.retain(|it| it.qos == 1);
    }

    /// Ends the session with everything in it. Returns what is lost: the flag says whether it was ever sent.
    pub fn forget_session(&mut self) -> Vec<(Publication, bool)> {
        self.disconnect();
        self.has_session = false;
        self.is_subscribed = false;
        self.last_id = 0;
        let sent = self.in_flight.drain(..).map(|it| (it.publication, it.was_sent)).collect::<Vec<_>>();
        sent.into_iter().chain(self.queue.drain(..).map(|it| (it, false))).collect()
    }

    /// The next message for the board, unless its window is full. `more`: how many above Receive Maximum.
    pub fn send(&mut self, more: usize) -> Option<(Delivery, Publication)> {
        if !self.is_connected {
            return None;
        }
        let connection = self.connection;
        if let Some(again) = self.in_flight.iter_mut().find(|it| !it.is_sent) {
            again.is_sent = true;
            let dup = std::mem::replace(&mut again.was_sent, true);
            return Some((
                delivery(&again.publication, Some(again.packet_id), connection, dup),
                again.publication.clone(),
            ));
        }
        if self.queue.front()?.qos == 0 {
            let publication = self.queue.pop_front()?;
            return Some((delivery(&publication, None, connection, false), publication));
        }
        if self.in_flight.len() >= self.receive_maximum + more {
            return None;
        }
        let publication = self.queue.pop_front()?;
        let packet_id = self.next_id();
        self.in_flight.push_back(InFlight {
            packet_id,
            publication: publication.clone(),
            is_sent: true,
            was_sent: true,
        });
        Some((delivery(&publication, Some(packet_id), connection, false), publication))
    }

    fn next_id(&mut self) -> u16 {
        let is_used = |id: u16| self.in_flight.iter().any(|it| it.packet_id == id);
        match self.packet_ids {
            PacketIds::CountUpwards => loop {
                self.last_id = self.last_id.checked_add(1).unwrap_or(1);
                if !is_used(self.last_id) {
                    return self.last_id;
                }
            },
            PacketIds::ReuseLowest => (1..=u16::MAX).find(|id| !is_used(*id)).expect("fewer are in flight than ids"),
        }
    }

    /// The message that an acknowledgement is for, if it is the oldest that was sent on this connection: MQTT wants
    /// acknowledgements in the order of receipt.
    pub fn acknowledged(&mut self, token: AckToken) -> Result<Option<Publication>, String> {
        if token.connection != self.connection || !self.is_connected {
            return Ok(None);
        }
        let acks = &self.unread_acks;
        let mut waiting =
            self.in_flight.iter().filter(|it| it.is_sent && !acks.iter().any(|a| a.packet_id == it.packet_id));
        match waiting.next() {
            Some(it) if it.packet_id == token.packet_id => {
                let publication = it.publication.clone();
                self.unread_acks.push_back(token);
                Ok(Some(publication))
            }
            other => {
                Err(format!("packet {} is acknowledged, {:?} is next", token.packet_id, other.map(|it| it.packet_id)))
            }
        }
    }

    /// Reads one acknowledgement. `false`: there is none.
    pub fn read_ack(&mut self) -> bool {
        let Some(token) = self.unread_acks.pop_front() else { return false };
        self.in_flight.retain(|it| it.packet_id != token.packet_id);
        true
    }

    /// Messages whose acknowledgement was written and not read.
    pub fn unread(&self) -> impl Iterator<Item = &Publication> {
        let acked = |it: &&InFlight| self.unread_acks.iter().any(|ack| ack.packet_id == it.packet_id);
        self.in_flight.iter().filter(acked).map(|it| &it.publication)
    }

    pub fn in_flight(&self) -> impl Iterator<Item = &Publication> {
        self.in_flight.iter().map(|it| &it.publication)
    }

    pub fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.in_flight.is_empty()
    }
}

fn delivery(publication: &Publication, packet_id: Option<u16>, connection: u32, dup: bool) -> Delivery {
    Delivery {
        topic: Bytes::copy_from_slice(publication.topic.as_bytes()),
        payload: Bytes::copy_from_slice(publication.payload.as_bytes()),
        content_type: None,
        properties: publication.id.iter().map(|id| ("id".to_owned(), String::from(&**id))).collect(),
        response_topic: None,
        correlation_data: None,
        subscriptions: Vec::new(),
        dup,
        retained: false,
        ack: packet_id.map(|packet_id| AckToken { packet_id, connection }),
    }
}
