//! Sedge: small WebAssembly functions beside the sensors.
//!
//! The way of a message through these modules, and what each may know of the others, is in ARCHITECTURE.md. To see it in
//! code, read [`board`].

pub(crate) mod footprint;
pub mod message;
pub(crate) mod program;
pub mod stream;
pub mod topic;

pub mod config;
pub mod key;
pub mod manifest;

pub mod mqtt;
pub mod router;
pub mod sandbox;
pub mod store;
pub mod worker;

pub mod board;
pub mod deploy;
pub mod forward;

pub mod telemetry;
pub mod time;

pub mod cli;
#[cfg(feature = "compiler")]
pub mod component;
pub mod daemon;
