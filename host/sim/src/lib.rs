//! A whole board in one thread, without sockets, files, processes or a clock: the core of the daemon between models of
//! everything around it.
//!
//! The models know nothing of the core but its inputs and effects. Each can be told to misbehave.

pub mod disk;
pub mod rig;
pub mod worker;
