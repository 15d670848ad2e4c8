//! Sedge: small WebAssembly functions beside the sensors.

pub mod config;
pub mod manifest;
pub mod message;
pub mod store;
pub mod topic;
