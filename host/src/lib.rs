//! Sedge: small WebAssembly functions beside the sensors.

pub mod config;
pub mod forward;
pub mod message;
pub mod store;
pub mod telemetry;
pub mod time;
