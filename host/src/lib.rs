//! Sedge: small WebAssembly functions beside the sensors.

pub mod config;
pub mod message;
pub mod mqtt;
pub mod sandbox;
pub mod store;
pub mod worker;
