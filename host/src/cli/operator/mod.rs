//! Commands for an operator's machine: send functions and keys to boards, and show what boards report.

pub(crate) mod keygen;
pub(crate) mod new;
pub(crate) mod order;
pub(crate) mod push;
pub(crate) mod status;
pub(crate) mod trust;

mod boards;
mod broker;
mod changes;
mod follow;
mod session;
mod signing;

use super::{block_on, printable};
