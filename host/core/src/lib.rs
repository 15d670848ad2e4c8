//! The core of Sedge: its vocabulary, and all that it decides. No I/O, no clock, no randomness of its own.

pub mod board;
pub mod bounds;
pub mod code;
pub mod config;
pub mod deploy;
pub mod forward;
pub mod grants;
pub mod isa;
pub mod key;
pub mod limits;
pub mod manifest;
pub mod message;
pub mod metrics;
pub mod mistakes;
pub mod permits;
pub mod recording;
pub mod request;
mod router;
pub mod settings;
pub mod store;
pub mod stream;
pub mod text;
pub mod time;
pub mod tokens;
pub mod topic;
pub mod wake;
