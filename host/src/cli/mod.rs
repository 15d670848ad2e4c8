//! One file a command.

pub mod build;
