//! The deployer from outside: messages in, actions out, and restarts.

mod bad_input;
mod code;
mod keys;
mod life;
mod losses;
mod requests;
mod settings;
