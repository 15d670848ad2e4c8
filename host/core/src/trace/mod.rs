//! Traces: which messages caused which, over boards, brokers and services.

pub mod context;

pub use context::{SpanId, TRACEPARENT, TRACESTATE, TraceContext, TraceId};
