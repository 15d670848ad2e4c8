//! Plain data that crosses the boundaries between the parts. No I/O, no clock.

pub mod wire;

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::made;
use crate::recording::Drawn;
use crate::trace::TraceContext;

/// Input of a function: one MQTT message as the board received it, or a timer tick.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    #[serde(with = "wire::text")]
    pub topic: Arc<str>,
    #[serde(with = "wire::shared")]
    pub payload: Bytes,
    /// MQTT 5 content type, when the publisher set one.
    pub content_type: Option<Box<str>>,
    /// MQTT 5 user properties, in the order of the packet. Usually empty.
    pub properties: Vec<(Box<str>, Box<str>)>,
    /// Unix time at the board, in milliseconds, when the message came in.
    pub received_at_ms: u64,
    /// Whether the board's clock was synchronised at that time. A board without an RTC boots in the past.
    pub clock_synced: bool,
    /// Number of the run, from 1. Grows when a function asks for a retry or an operator replays a dead letter.
    pub attempt: u32,
    /// Whether the broker sent it from its retained messages.
    pub retained: bool,
    /// MQTT 5 response topic.
    pub response_topic: Option<Box<str>>,
    /// MQTT 5 correlation data.
    pub correlation_data: Option<Box<[u8]>>,
    /// The trace of a message whose spans the board records. Functions are not given it.
    #[serde(skip)]
    pub trace: Option<Arc<TraceContext>>,
}

/// User property with the publisher's own message id, honoured across reconnections and restarts.
pub(crate) const ID_PROPERTY: &str = "id";
/// Longest such id that is shown and published, in bytes.
const MAX_SHOWN_ID: usize = 256;

/// Memory of a message beside its texts and payload, and of a user property beside its texts.
const MESSAGE_BYTES: usize = 250;
const PROPERTY_BYTES: usize = 64;

impl Message {
    /// Message without properties, before its first run.
    pub fn new(topic: impl Into<Arc<str>>, payload: Bytes, received_at_ms: u64, clock_synced: bool) -> Self {
        Self {
            topic: topic.into(),
            payload,
            content_type: None,
            properties: Vec::new(),
            received_at_ms,
            clock_synced,
            attempt: 1,
            retained: false,
            response_topic: None,
            correlation_data: None,
            trace: None,
        }
    }

    /// Memory of the message, and about its size on disk.
    pub fn bytes(&self) -> usize {
        let property = |(name, value): &(Box<str>, Box<str>)| name.len() + value.len() + PROPERTY_BYTES;
        self.topic.len()
            + self.payload.len()
            + self.content_type.as_ref().map_or(0, |kind| kind.len())
            + self.properties.iter().map(property).sum::<usize>()
            + self.response_topic.as_ref().map_or(0, |topic| topic.len())
            + self.correlation_data.as_ref().map_or(0, |data| data.len())
            + self.trace.as_ref().map_or(0, |trace| trace.bytes())
            + MESSAGE_BYTES
    }

    /// The topic that state, order, settings and pauses go by: the message's own, or of what the board makes itself the one
    /// that it is about: for a wake that of the message which set it.
    pub fn state_topic(&self) -> &str {
        match made::is_topic(&self.topic) {
            true => self.property(made::ORIGIN).unwrap_or(&self.topic),
            false => &self.topic,
        }
    }

    /// [`Message::state_topic`], to be kept.
    pub fn shared_state_topic(&self) -> Arc<str> {
        let topic = self.state_topic();
        if std::ptr::eq(topic, &raw const *self.topic) { Arc::clone(&self.topic) } else { topic.into() }
    }

    /// The id that the publisher gave it, for people to find it by. Longer ones are for programs.
    pub fn publisher_id(&self) -> Option<&str> {
        self.property(ID_PROPERTY).filter(|id| id.len() <= MAX_SHOWN_ID)
    }

    /// The value of the first user property with this name.
    pub fn property(&self, name: &str) -> Option<&str> {
        self.properties.iter().find(|(key, _)| &**key == name).map(|(_, value)| &**value)
    }
}

/// SHA-256 of a function's wasm. Shown as lower-case hex.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(pub [u8; 32]);

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a digest is 64 digits of lower-case hex")]
pub struct NotADigest;

impl FromStr for Digest {
    type Err = NotADigest;

    /// Accepts lower case only: a digest is a level of topics and a file name, so it has one spelling.
    fn from_str(text: &str) -> Result<Self, NotADigest> {
        let nibble = |digit: u8| match digit {
            b'0'..=b'9' => Ok(digit - b'0'),
            b'a'..=b'f' => Ok(digit - b'a' + 10),
            _ => Err(NotADigest),
        };
        let (pairs, []) = text.as_bytes().as_chunks::<2>() else { return Err(NotADigest) };
        let mut bytes = [0; 32];
        if pairs.len() != bytes.len() {
            return Err(NotADigest);
        }
        for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
            *byte = nibble(*high)? << 4 | nibble(*low)?;
        }
        Ok(Self(bytes))
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

/// Output of a function.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Output {
    Alert(#[serde(with = "wire::AlertFields")] Alert),
    /// Sent upstream.
    Forward(Publication),
    /// Published on the local broker.
    Publish(Publication),
    /// Runs the function again later.
    Wake(Wake),
    /// Answers the HTTP request that caused the run.
    Reply(Reply),
}

impl Output {
    /// Number of bytes that count towards `limits.output_bytes`: topic, payload and all texts, as they are recorded. Alerts are
    /// recorded as JSON, in which a control character has six bytes.
    pub fn bytes(&self) -> usize {
        let length = |text: &Option<Box<str>>| text.as_ref().map_or(0, |text| text.len());
        match self {
            Self::Alert(Alert { key, summary, labels, sink, .. }) => {
                let labels = labels.iter().map(|(name, value)| json_bytes(name) + json_bytes(value) + LABEL_BYTES);
                json_bytes(key) + json_bytes(summary) + labels.sum::<usize>() + length(sink)
            }
            Self::Forward(Publication { topic, payload, content_type, sink, .. })
            | Self::Publish(Publication { topic, payload, content_type, sink, .. }) => {
                topic.len() + payload.len() + length(content_type) + length(sink)
            }
            Self::Wake(Wake { name, .. }) => name.len(),
            Self::Reply(Reply { content_type, body, .. }) => body.len() + length(content_type),
        }
    }
}

/// JSON around the two texts of a label.
const LABEL_BYTES: usize = 8;

/// Length of a text in JSON, without its quotes, as `serde_json` escapes it.
pub(crate) fn json_bytes(text: &str) -> usize {
    // Nearly no text has anything to escape; this is many bytes at a time.
    if !text.bytes().fold(false, |any, byte| any | (byte < 0x20) | (byte == b'"') | (byte == b'\\')) {
        return text.len();
    }
    let escape = |byte: u8| match byte {
        b'"' | b'\\' | b'\n' | b'\r' | b'\t' | 0x08 | 0x0c => 1,
        0..=0x1f => 5,
        _ => 0,
    };
    text.len() + text.bytes().map(escape).sum::<usize>()
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Alert {
    /// Identity of the alert within the function: `cold-room-2/too-warm`. Repeats with one key are folded.
    pub key: String,
    pub severity: Severity,
    pub status: AlertStatus,
    pub summary: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub value: Option<f64>,
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub labels: Vec<(String, String)>,
    /// Name of the sink; the board's choice if `None`. Not part of what is published.
    #[serde(skip)]
    pub sink: Option<Box<str>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    Info,
    Warning,
    Critical,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AlertStatus {
    Firing,
    Resolved,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Publication {
    pub topic: Box<str>,
    #[serde(with = "wire::shared")]
    pub payload: Bytes,
    pub content_type: Option<Box<str>>,
    pub retain: bool,
    /// Name of the sink; the board's choice if `None`.
    pub sink: Option<Box<str>>,
}

/// Request to run the function again with the name's topic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wake {
    pub name: Box<str>,
    /// `None` cancels.
    pub after_ms: Option<u64>,
}

/// Answer to an HTTP request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    pub status: u16,
    pub content_type: Option<Box<str>>,
    #[serde(with = "wire::shared")]
    pub body: Bytes,
}

/// Result of one run of one function on one message.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Outcome {
    pub verdict: Verdict,
    /// State to store together with the outputs. Empty unless the verdict is `Done`.
    pub writes: Vec<StateWrite>,
    /// By how much the writes change the size of the scope.
    pub growth: StateGrowth,
    pub usage: Usage,
    /// What it read of clocks and random numbers, if that was asked for.
    pub drawn: Option<Box<Drawn>>,
}

impl Outcome {
    /// An outcome without a run.
    pub fn failed(failure: Failure) -> Self {
        let (writes, growth, usage) = (Vec::new(), StateGrowth::default(), Usage::default());
        Self { verdict: Verdict::Failed(failure), writes, growth, usage, drawn: None }
    }
}

/// End of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Verdict {
    Done(Vec<Output>),
    /// The function asks for the message again after `after_ms`.
    Retry {
        after_ms: u64,
        reason: String,
    },
    /// The message becomes a dead letter of this function.
    Failed(Failure),
}

/// Reason of a dead letter: a code for programs, and a sentence with the figures.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    pub code: FailureCode,
    pub detail: String,
}

/// The closed list of dead-letter reasons. The names are stored and published: never rename one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum FailureCode {
    /// The function rejected the message.
    Rejected,
    /// The function asked for a retry more often than it may, or the store of waiting messages is full.
    RetriesExhausted,
    Trap,
    /// A script threw an exception that nobody caught.
    Exception,
    Fuel,
    Deadline,
    Memory,
    Output,
    State,
    /// The worker process died twice while it ran this message.
    WorkerCrashed,
    /// An output names an invalid topic.
    InvalidTopic,
    /// An output names a topic outside the manifest's allow list.
    NotAllowed,
    /// The payload, or all parts of the message together, are larger than `mqtt.max_payload_bytes`.
    PayloadTooLarge,
    /// The message went through more functions than `max_hops`: a loop.
    TooManyHops,
    /// The function is paused because it kept failing.
    Quarantined,
    /// The message waited for a function that is no longer installed.
    Removed,
    /// An output needs a part that this version of Sedge does not have.
    NotAvailable,
    /// The topic is longer than functions may be given.
    TopicTooLong,
    /// The message has more user properties than functions may be given.
    TooManyProperties,
    /// An alert's key is too long. Keys often contain the topic, which the sender chooses.
    AlertKeyTooLong,
    /// The message may not cause as many publications as the function returned: an avalanche.
    FanOut,
    /// More messages wait for the function than its share of `store.parked_max_bytes`.
    OverShare,
    /// The daemon ended three times while the message was alone under way.
    DaemonCrashed,
    /// An output has a content type that not every receiver can be sent.
    InvalidContentType,
    /// The state of the function, or of all functions, would exceed its bound.
    StateFull,
    /// An output asks for a wake with an invalid name or time.
    InvalidWake,
    /// More wakes wait for the function than may.
    TooManyWakes,
    /// An answer to a request has a status that HTTP does not have for it, or there is more than one.
    InvalidReply,
}

impl FailureCode {
    pub const ALL: [Self; 28] = [
        Self::Rejected,
        Self::RetriesExhausted,
        Self::Trap,
        Self::Exception,
        Self::Fuel,
        Self::Deadline,
        Self::Memory,
        Self::Output,
        Self::State,
        Self::WorkerCrashed,
        Self::InvalidTopic,
        Self::NotAllowed,
        Self::PayloadTooLarge,
        Self::TooManyHops,
        Self::Quarantined,
        Self::Removed,
        Self::NotAvailable,
        Self::TopicTooLong,
        Self::TooManyProperties,
        Self::AlertKeyTooLong,
        Self::FanOut,
        Self::OverShare,
        Self::DaemonCrashed,
        Self::InvalidContentType,
        Self::StateFull,
        Self::InvalidWake,
        Self::TooManyWakes,
        Self::InvalidReply,
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Rejected => "rejected",
            Self::RetriesExhausted => "retries-exhausted",
            Self::Trap => "trap",
            Self::Exception => "exception",
            Self::Fuel => "fuel",
            Self::Deadline => "deadline",
            Self::Memory => "memory",
            Self::Output => "output",
            Self::State => "state",
            Self::WorkerCrashed => "worker-crashed",
            Self::InvalidTopic => "invalid-topic",
            Self::NotAllowed => "not-allowed",
            Self::PayloadTooLarge => "payload-too-large",
            Self::TooManyHops => "too-many-hops",
            Self::Quarantined => "quarantined",
            Self::Removed => "removed",
            Self::NotAvailable => "not-available",
            Self::TopicTooLong => "topic-too-long",
            Self::TooManyProperties => "too-many-properties",
            Self::AlertKeyTooLong => "alert-key-too-long",
            Self::FanOut => "fan-out",
            Self::OverShare => "over-share",
            Self::DaemonCrashed => "daemon-crashed",
            Self::InvalidContentType => "invalid-content-type",
            Self::StateFull => "state-full",
            Self::InvalidWake => "invalid-wake",
            Self::TooManyWakes => "too-many-wakes",
            Self::InvalidReply => "invalid-reply",
        }
    }

    /// Whether the failure counts towards the quarantine. Rejecting and asking for retries is a function's right, and
    /// neither is what a sender alone controls.
    pub const fn is_misbehaviour(self) -> bool {
        !matches!(
            self,
            Self::Rejected
                | Self::RetriesExhausted
                | Self::PayloadTooLarge
                | Self::TooManyHops
                | Self::TopicTooLong
                | Self::TooManyProperties
                | Self::AlertKeyTooLong
                | Self::FanOut
                | Self::InvalidContentType
                | Self::StateFull
                | Self::TooManyWakes
        )
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|code| code.as_str() == name)
    }
}

/// Resources that a run used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    pub fuel: u64,
    pub elapsed_us: u64,
    /// Size of the linear memory at the end of the run.
    pub memory_bytes: u64,
    pub output_bytes: u64,
}

/// The owner of a set of state keys: a function, or a function on one topic.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Scope {
    pub function: Arc<str>,
    /// `None` for state that the whole function shares.
    pub topic: Option<Arc<str>>,
}

impl StateWrite {
    /// Memory of the change.
    pub fn bytes(&self) -> usize {
        self.key.len() + self.value.as_ref().map_or(0, Bytes::len) + STATE_WRITE_BYTES
    }
}

/// Change of a scope's size by one run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateGrowth {
    /// Keys and values together.
    pub bytes: i64,
    pub keys: i64,
    /// 1: the scope was empty and is not any more; -1: the reverse.
    pub scopes: i8,
}

impl StateGrowth {
    /// From the number of keys and their bytes, values included, before and after a run.
    pub fn between((keys, bytes): (usize, usize), (keys_after, bytes_after): (usize, usize)) -> Self {
        Self {
            bytes: bytes_after as i64 - bytes as i64,
            keys: keys_after as i64 - keys as i64,
            scopes: i8::from(keys_after > 0) - i8::from(keys > 0),
        }
    }
}

/// Memory of a change of state beside key and value.
pub(crate) const STATE_WRITE_BYTES: usize = 80;

/// One change of a function's state; `None` removes the key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateWrite {
    pub key: Box<str>,
    #[serde(with = "wire::value")]
    pub value: Option<Bytes>,
}

/// A log line of a guest, truncated and without control characters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    #[serde(with = "wire::level")]
    pub level: tracing::Level,
    pub text: String,
}

/// Number of one publication or call to a receiver. Its sender chooses it and finds it again in the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PublishToken(pub u64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_failure_code_has_a_name_of_its_own() {
        for code in FailureCode::ALL {
            assert_eq!(FailureCode::from_name(code.as_str()), Some(code));
        }
    }

    #[test]
    fn the_length_of_a_text_in_json_is_known_before_it_is_written() {
        let all: String = (0..=u8::MAX).map(char::from).chain("aé漢🦀\u{2028}\u{7f}\"\\".chars()).collect();
        for text in ["", "plain", &all, &"\u{1}".repeat(1000)] {
            assert_eq!(json_bytes(text) + 2, serde_json::to_string(text).unwrap().len(), "{text:?}");
        }
    }

    #[test]
    fn a_digest_has_one_spelling() {
        let digest = Digest(std::array::from_fn(|n| n as u8 * 7));
        let text = digest.to_string();
        assert_eq!(text.parse(), Ok(digest));
        assert_eq!(serde_json::from_str::<Digest>(&serde_json::to_string(&digest).unwrap()).unwrap(), digest);
        for wrong in
            [text.to_uppercase(), text[1..].into(), format!("{text}0"), format!("+{}", &text[1..]), "é".repeat(32)]
        {
            assert_eq!(wrong.parse::<Digest>(), Err(NotADigest), "{wrong}");
        }
    }
}
