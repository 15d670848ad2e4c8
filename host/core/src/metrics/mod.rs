//! Counters, and how they are written as text.

pub mod counters;
pub mod histogram;
pub mod text;

pub(crate) use counters::OutputKind;
pub use counters::{FunctionMetrics, Metrics, TopicPause};
pub use text::{Sample, Value};
