//! The lines as they are read and written.

use std::borrow::Cow;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{Data, Drawn, End, Header, OutcomeLine, RecordedVersion, RefusedOutcome};
use crate::message::Message;

/// Any line.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Line<'a> {
    Recording(Header),
    Version(RecordedVersion),
    #[serde(borrow)]
    State(StateLine<'a>),
    #[serde(borrow)]
    Message(Box<MessageLine<'a>>),
    #[serde(borrow)]
    Drawn(DrawnLine<'a>),
    Unsure(Unsure),
    Refused(RefusedOutcome),
    Outcome(Box<OutcomeLine>),
    End(End),
}

/// The state of one scope.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateLine<'a> {
    /// `None` for state that the whole function shares.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub topic: Option<Cow<'a, str>>,
    #[serde(borrow)]
    pub entries: Vec<(Cow<'a, str>, Data<'a>)>,
}

impl<'a> StateLine<'a> {
    pub fn of(topic: Option<&'a str>, entries: &'a [(Box<str>, Bytes)]) -> Self {
        let entries = entries.iter().map(|(key, value)| (Cow::Borrowed(&**key), Data::of(value))).collect();
        Self { topic: topic.map(Cow::Borrowed), entries }
    }
}

/// A message as a function was given it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MessageLine<'a> {
    #[serde(borrow)]
    pub topic: Cow<'a, str>,
    #[serde(borrow)]
    pub payload: Data<'a>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub content_type: Option<Cow<'a, str>>,
    #[serde(borrow, default, skip_serializing_if = "Vec::is_empty")]
    pub properties: Vec<(Cow<'a, str>, Cow<'a, str>)>,
    pub received_at_ms: u64,
    pub clock_synced: bool,
    #[serde(default = "first", skip_serializing_if = "is_first")]
    pub attempt: u32,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub retained: bool,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub response_topic: Option<Cow<'a, str>>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub correlation_data: Option<Data<'a>>,
}

const fn first() -> u32 {
    1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
const fn is_first(attempt: &u32) -> bool {
    *attempt == 1
}

impl<'a> MessageLine<'a> {
    pub fn of(message: &'a Message) -> Self {
        Self {
            topic: Cow::Borrowed(&message.topic),
            payload: Data::of(&message.payload),
            content_type: message.content_type.as_deref().map(Cow::Borrowed),
            properties: message
                .properties
                .iter()
                .map(|(name, value)| (Cow::Borrowed(&**name), Cow::Borrowed(&**value)))
                .collect(),
            received_at_ms: message.received_at_ms,
            clock_synced: message.clock_synced,
            attempt: message.attempt,
            retained: message.retained,
            response_topic: message.response_topic.as_deref().map(Cow::Borrowed),
            correlation_data: message.correlation_data.as_deref().map(Data::of),
        }
    }

    pub fn into_message(self) -> Message {
        Message {
            topic: self.topic.into(),
            payload: Bytes::from(self.payload.0.into_owned()),
            content_type: self.content_type.map(Into::into),
            properties: self.properties.into_iter().map(|(name, value)| (name.into(), value.into())).collect(),
            received_at_ms: self.received_at_ms,
            clock_synced: self.clock_synced,
            attempt: self.attempt,
            retained: self.retained,
            response_topic: self.response_topic.map(Into::into),
            correlation_data: self.correlation_data.map(|data| data.0.into()),
            trace: None,
        }
    }
}

/// A line without content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unsure {}

/// What a run read of clocks and random numbers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrawnLine<'a> {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub clocks: Vec<u64>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub random: Option<Data<'a>>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_cut: bool,
}

impl<'a> DrawnLine<'a> {
    pub fn of(drawn: &'a Drawn) -> Self {
        Self {
            clocks: drawn.clocks.clone(),
            random: (!drawn.random.is_empty()).then(|| Data::of(&drawn.random)),
            is_cut: drawn.is_cut,
        }
    }

    pub fn into_drawn(self) -> Drawn {
        let random = self.random.map(|data| data.0.into_owned()).unwrap_or_default();
        Drawn { clocks: self.clocks, random, is_cut: self.is_cut }
    }
}
