//! Deployment of functions: signed orders over MQTT, and functions in folders.
//!
//! Board and command line share the wire formats: [`keys`], [`envelope`], [`payload`], [`code`], [`topics`], [`reason`],
//! [`report`]. The board's side is the state machine [`deployer`], which [`thread`] runs. See `docs/deploying.md`.

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
mod trial;

mod function;
mod record;
mod staging;
mod stats;
mod trust;

mod cache;
mod compiler;
mod disk;
mod folder;
pub(crate) mod thread;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub use payload::digest;

pub(crate) use cache::Cache;
pub(crate) use compiler::{CachingCompiler, Compiler};
pub(crate) use deployer::{Deployer, DeployerConfig};
pub(crate) use folder::{InstallError, Source, install, install_code};
#[cfg(feature = "compiler")]
pub(crate) use folder::{code_path, component_path};
pub use interface::TrialEvent;
pub(crate) use interface::{Action, Installed, Request, Start};
#[cfg(feature = "compiler")]
pub(crate) use interface::{COMPILE_CPU_SECS, COMPILE_MEMORY_BYTES};
