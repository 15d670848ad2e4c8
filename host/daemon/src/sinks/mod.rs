//! Receivers of what the board forwards.

pub(crate) mod webhook;
