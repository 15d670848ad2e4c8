//! Spans: what a board did with a message, and when.
//!
//! ```text
//! received                 from receipt to acknowledgement; below the span that the message names as its cause
//! ├─ routed                to the functions that subscribe to its topic
//! ├─ invoked               one for each run
//! │  └─ sent               one for each output and receiver, until that has it
//! ├─ committed             on the disk, with everything that came of it
//! ├─ acknowledged          to the broker, or answered to the client
//! └─ resumed               a message that waited in the store: with spans as above, but without an acknowledgement
//! ```

use super::{SpanId, TraceId};

/// A step on the way of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Step {
    Received,
    /// Taken from the store, where it waited for another run or behind one.
    Resumed,
    Routed,
    Invoked,
    Committed,
    Acknowledged,
    Sent,
}

impl Step {
    pub const ALL: [Self; 7] =
        [Self::Received, Self::Resumed, Self::Routed, Self::Invoked, Self::Committed, Self::Acknowledged, Self::Sent];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Received => "received",
            Self::Resumed => "resumed",
            Self::Routed => "routed",
            Self::Invoked => "invoked",
            Self::Committed => "committed",
            Self::Acknowledged => "acknowledged",
            Self::Sent => "sent",
        }
    }
}

/// The side of a span, with the numbers of OpenTelemetry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpanKind {
    Internal = 1,
    /// A request over HTTP.
    Server = 2,
    /// An output on its way to a receiver.
    Producer = 4,
    /// A message from the broker.
    Consumer = 5,
}

impl SpanKind {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Internal => "internal",
            Self::Server => "server",
            Self::Producer => "producer",
            Self::Consumer => "consumer",
        }
    }
}

/// The value of an attribute. Never a payload, nor what a function says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attribute {
    Text(Box<str>),
    Number(u64),
}

/// A step that has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    pub trace_id: TraceId,
    pub span_id: SpanId,
    /// `None`: the trace begins with it.
    pub parent: Option<SpanId>,
    /// `tracestate` of the trace.
    pub state: Option<Box<str>>,
    pub step: Step,
    pub kind: SpanKind,
    /// Unix time in nanoseconds. Within one message, differences are those of the monotonic clock.
    pub start_ns: u64,
    pub end_ns: u64,
    pub attributes: Vec<(&'static str, Attribute)>,
    /// Why it failed: the reason of a dead letter, or of a receiver.
    pub error: Option<Box<str>>,
}

impl Span {
    pub(crate) fn text(&mut self, name: &'static str, value: impl Into<Box<str>>) {
        self.attributes.push((name, Attribute::Text(value.into())));
    }

    pub(crate) fn number(&mut self, name: &'static str, value: u64) {
        self.attributes.push((name, Attribute::Number(value)));
    }

    /// The value of an attribute that is a text.
    pub fn text_of(&self, name: &str) -> Option<&str> {
        self.attributes.iter().find_map(|(key, value)| match value {
            Attribute::Text(text) if *key == name => Some(&**text),
            _ => None,
        })
    }
}

/// Names of attributes. Those with `messaging.` are OpenTelemetry's.
pub mod attribute {
    /// `mqtt`: the message came from the broker.
    pub const SYSTEM: &str = "messaging.system";
    pub const TOPIC: &str = "messaging.destination.name";
    /// `id` of the publisher, or of a record.
    pub const MESSAGE_ID: &str = "messaging.message.id";
    pub const BODY_BYTES: &str = "messaging.message.body.size";
    pub const FUNCTION: &str = "sedge.function";
    pub const VERSION: &str = "sedge.version";
    pub const FUEL: &str = "sedge.fuel";
    pub const MEMORY_BYTES: &str = "sedge.memory_bytes";
    pub const ATTEMPT: &str = "sedge.attempt";
    pub const HOPS: &str = "sedge.hops";
    /// Functions that the message is for.
    pub const FUNCTIONS: &str = "sedge.functions";
    /// Of a run: `done`, `retry` or `failed`. Of a message: `done`, `waiting` or `dead-letter`.
    pub const RESULT: &str = "sedge.result";
    /// Runs without a span of their own, beyond the first 16.
    pub const RUNS_LEFT_OUT: &str = "sedge.runs_left_out";
    /// The receiver of a record: `local`, or the name of a sink.
    pub const SINK: &str = "sedge.sink";
    /// `alert`, `data` or `local`.
    pub const STREAM: &str = "sedge.stream";
}
