//! Settings of functions: what they declare, and what boards and operators lay over it.

pub mod declaration;
pub mod overlay;

#[cfg(test)]
mod tests;

pub use declaration::{Declaration, Kind};
pub use overlay::{Given, Layer, Origin, Overlay, Resolved, Setting, Settings, TopicText, Values};
