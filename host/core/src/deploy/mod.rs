//! Deployment of functions: signed orders over MQTT, and functions in folders.
//!
//! Board and command line share the wire formats: [`keys`], [`envelope`], [`payload`], [`code`], [`topics`], [`reason`],
//! [`report`]. The board's side is the state machine [`deployer`], which does no I/O. `shell` carries out what it asks of
//! files and the compiler, on a `thread` of its own. See `docs/deploying.md`.

pub mod code;
pub mod envelope;
pub mod keys;
pub mod limits;
pub mod payload;
pub mod reason;
pub mod report;
pub mod signature;
pub mod topics;

pub mod interface;

mod acceptance;
pub mod boot;
mod decision;
pub mod deployer;
pub mod orders;
mod receiving;
pub mod requests;
mod routes;
mod settings;
pub mod settings_orders;
pub mod steps;
mod trial;

pub mod function;
pub mod record;
pub mod source;
pub mod staging;
pub mod stats;
pub mod trust;

pub use payload::digest;

pub use deployer::DeployerConfig;
pub use interface::TrialEvent;
pub use interface::{Action, Request};
pub use interface::{COMPILE_CPU_SECS, COMPILE_MEMORY_BYTES};
pub use source::Source;
pub use source::{code_path, component_path};
