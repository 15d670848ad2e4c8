//! Test rigs: a simulated board, and a disk that fails.

pub(crate) mod board;
pub(crate) mod faults;
