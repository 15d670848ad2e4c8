//! Settings of functions: what they declare, and what boards and operators lay over it.

pub mod declaration;

#[cfg(test)]
mod tests;

pub use declaration::{Declaration, Kind};
