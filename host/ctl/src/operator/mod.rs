//! Commands for an operator's machine: send functions and keys to boards, and show what boards report.

pub mod keygen;
pub mod logs;
pub mod new;
pub mod order;
pub mod push;
pub mod record;
pub mod settings;
pub mod status;
pub mod trust;
pub mod withdraw;

mod boards;
pub(crate) mod broker;
mod changes;
mod follow;
mod known;
mod request;
mod session;
pub(crate) mod signing;
