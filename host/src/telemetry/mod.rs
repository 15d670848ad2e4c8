//! Logs, metrics, health, and notifications to systemd. Every loop writes to them and none reads them.

pub mod log;

mod health;
mod histogram;
mod http;
mod metrics;
mod notify;
mod text;

pub use health::Health;
use histogram::Histogram;
pub use http::Http;
pub use metrics::{FunctionMetrics, Metrics, OutputKind};
pub use notify::Notifier;
pub use text::{Sample, Value};
