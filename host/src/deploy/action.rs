//! What the deployer wants done, in this order.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;

use super::Installed;
use crate::manifest::Trial;
use crate::message::Digest;
use crate::sandbox::Class;

/// What is to be done.
#[derive(Debug)]
pub enum Action {
    /// Subscribe, also again, to the chunks of a module: the broker then hands over those that it keeps.
    Fetch {
        digest: Digest,
    },
    /// They are no longer wanted.
    EndFetch {
        digest: Digest,
    },
    /// Subscribe again to the orders: some were not looked at, or may be judged otherwise now.
    FetchOrders,
    Compile {
        function: Arc<str>,
        edition: u32,
        digest: Digest,
        wasm: Bytes,
        class: Class,
    },
    Start(Start),
    /// Nothing of it serves any longer, a candidate included.
    Stop {
        function: Arc<str>,
    },
    /// A candidate ends; what served before it serves.
    DropCandidate {
        function: Arc<str>,
        edition: u32,
    },
    /// A candidate on trial is the active version from now on.
    Promote {
        function: Arc<str>,
        edition: u32,
    },
    /// Retained. An empty payload takes an earlier report back.
    Report {
        function: Arc<str>,
        payload: Bytes,
    },
    /// Compiled code of other modules may be deleted.
    RetainCode {
        digests: BTreeSet<Digest>,
    },
}

#[derive(Clone, Debug)]
pub struct Start {
    /// Names one version of one function for as long as the daemon lives.
    pub edition: u32,
    pub installed: Installed,
    /// `None`: serves at once, in place of what served.
    pub trial: Option<Trial>,
}
