//! Deployment of functions: signed orders over MQTT, and functions in folders.
//!
//! Board and command line share the wire formats: [`keys`], [`envelope`], [`payload`], [`code`], [`topics`], [`reason`],
//! [`report`]. The board's side is the state machine [`deployer`], which does no I/O. [`shell`] carries out what it asks of
//! files and the compiler, on a [`thread`] of its own. See `docs/deploying.md`.

pub mod code;
pub mod envelope;
pub mod keys;
pub mod payload;
pub mod reason;
pub mod report;
pub mod topics;

mod interface;

mod acceptance;
mod boot;
mod decision;
mod deployer;
mod orders;
mod receiving;
mod steps;
mod trial;

mod function;
mod record;
mod source;
mod staging;
mod stats;
mod trust;

mod cache;
mod compiler;
mod disk;
mod folder;
mod shell;
pub(crate) mod thread;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub use payload::digest;

pub(crate) use cache::Cache;
pub(crate) use compiler::{CachingCompiler, Compiler};
pub(crate) use deployer::DeployerConfig;
pub(crate) use folder::{InstallError, find, install, install_code};
pub use interface::TrialEvent;
pub(crate) use interface::{Action, Installed, Request, Start};
#[cfg(feature = "compiler")]
pub(crate) use interface::{COMPILE_CPU_SECS, COMPILE_MEMORY_BYTES};
pub(crate) use shell::Shell;
pub(crate) use source::Source;
#[cfg(feature = "compiler")]
pub(crate) use source::{code_path, component_path};
