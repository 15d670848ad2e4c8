//! A build without the page: nothing is kept for it.

use std::sync::Arc;

use bytes::Bytes;

use sedge_core::board::{FollowedRun, Input, Mute};
use sedge_core::config::Config;
use sedge_core::store::StoredRecord;
use sedge_core::time::Now;
use sedge_core::trace::Span;

#[derive(Debug)]
pub(crate) struct Shown;

impl Shown {
    pub(crate) fn new(_: &Config) -> Self {
        Self
    }

    pub(crate) fn report(&self, _: Arc<str>, _: Bytes) {}

    pub(crate) fn committed(&self, _: &[StoredRecord]) {}

    pub(crate) fn run(&self, _: FollowedRun) {}

    pub(crate) fn traced(&self, _: Vec<Span>) {}

    pub(crate) fn mutes(&self, _: Now) -> Vec<Mute> {
        Vec::new()
    }

    pub(crate) async fn asked(&self) -> Input {
        std::future::pending().await
    }
}
