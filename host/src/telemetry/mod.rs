//! What the outside can see of the daemon: logs, metrics, health, and its word to systemd.
//!
//! Written by all loops, read by none of them, and it calls nobody: what a figure means is decided where it is counted.

pub mod log;

mod health;
mod histogram;
mod http;
mod metrics;
mod notify;
mod text;

pub use health::Health;
pub use histogram::Histogram;
pub use http::{Http, HttpError};
pub use metrics::{Counter, FunctionMetrics, Gauge, Link, Metrics, OutputKind};
pub use notify::Notifier;
pub use text::{FAMILIES, Family, Kind, Sample, Value};
