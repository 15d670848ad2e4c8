//! The shell around the deployer: its files, its thread.

pub(crate) mod disk;
pub(crate) mod shell;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
pub(crate) mod tests;
pub(crate) mod thread;
