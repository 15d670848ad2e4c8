//! The daemon: sources, sinks, worker processes, and the loop between them and the core.

mod deploy;
mod durable;
mod footprint;
mod home_assistant;
#[cfg(feature = "page")]
mod page;
#[cfg(not(feature = "page"))]
#[path = "without_page.rs"]
mod page;
mod recordings;
pub mod run;
mod sinks;
mod sources;
pub mod telemetry;
#[cfg(any(feature = "http-trigger", feature = "page"))]
mod tls;
mod traces;
pub mod worker;
