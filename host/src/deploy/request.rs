//! What the deployer is told.

use std::sync::Arc;

use bytes::Bytes;

use super::compiler::CompilerError;
use super::host::Capabilities;
use super::report::Difference;
use crate::config::{self, Config};
use crate::message::Failure;

/// Who the board is and what it allows.
#[derive(Clone, Debug)]
pub struct DeployerConfig {
    pub node: String,
    pub groups: Vec<String>,
    pub base_topic: String,
    pub host: Capabilities,
    pub deploy: config::Deploy,
    pub ceilings: config::Functions,
}

impl DeployerConfig {
    pub fn of(config: &Config) -> Self {
        Self {
            node: config.node.name.clone(),
            groups: config.node.groups.clone(),
            base_topic: config.node.base_topic.clone(),
            host: Capabilities::here(),
            deploy: config.deploy.clone(),
            ceilings: config.functions.clone(),
        }
    }
}

/// What happened.
#[derive(Debug)]
pub enum Request {
    /// Any message under the topics of orders and chunks.
    Message {
        topic: Box<str>,
        payload: Bytes,
    },
    Compiled {
        function: Arc<str>,
        edition: u32,
        result: Result<Bytes, CompilerError>,
    },
    Trial {
        function: Arc<str>,
        edition: u32,
        event: TrialEvent,
    },
    Quarantined {
        function: Arc<str>,
        is_quarantined: bool,
    },
    /// The configuration was read again.
    Keys(Box<config::Deploy>),
    Connected,
    Disconnected,
    /// Once a second.
    Tick,
}

#[derive(Debug)]
pub enum TrialEvent {
    /// Every worker has loaded it and it serves, or runs as a shadow.
    Ready,
    NotLoaded {
        error: String,
    },
    Progress {
        run: u32,
        failed: u32,
        different: u32,
        samples: Vec<Difference>,
    },
    Passed,
    Failed {
        failure: Failure,
    },
}
