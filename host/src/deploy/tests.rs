//! The deployer as the rest of the board sees it: messages in, actions out, and what a restart finds.

mod bad_input;
pub mod board;
mod code;
mod keys;
mod life;
mod losses;
