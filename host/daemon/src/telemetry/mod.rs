//! Logs, metrics, health, and notifications to systemd. Every loop writes to them and none reads them.

pub mod log;

mod connection_log;
mod health;
mod http;
mod notify;

pub(crate) use connection_log::ConnectionLog;
pub(crate) use health::Health;
pub(crate) use http::{Beside, Http};
#[cfg(feature = "page")]
pub(crate) use http::{INDEX, Lease};
pub(crate) use notify::Notifier;
