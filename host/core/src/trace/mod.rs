//! Traces: which messages caused which, over boards, brokers and services.

pub mod context;
pub mod span;

pub use context::{SpanId, TRACEPARENT, TRACESTATE, TraceContext, TraceId};
pub use span::{Attribute, Span, SpanKind, Step};
