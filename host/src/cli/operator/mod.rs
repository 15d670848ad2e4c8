//! What an operator does from a laptop: functions and keys to boards, and what boards say.

pub mod keygen;
pub mod new;
pub mod promote;
pub mod push;
pub mod remove;
pub mod rollback;
pub mod status;
pub mod trust;

// What they share.
mod boards;
mod changes;
mod follow;
mod order;
mod progress;
mod remote;
mod session;
mod signing;

use super::{block_on, printable};
