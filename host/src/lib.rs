//! Sedge: small WebAssembly functions beside the sensors.

pub mod cli;
pub mod component;
pub mod config;
pub mod message;
pub mod store;
