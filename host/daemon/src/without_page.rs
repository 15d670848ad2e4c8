//! A build without the page: nothing is kept for it.

use std::sync::Arc;

use bytes::Bytes;

use sedge_core::board::{Follow, FollowedRun};
use sedge_core::config::Config;
use sedge_core::store::StoredRecord;

#[derive(Debug)]
pub(crate) struct Shown;

impl Shown {
    pub(crate) fn new(_: &Config) -> Self {
        Self
    }

    pub(crate) fn report(&self, _: Arc<str>, _: Bytes) {}

    pub(crate) fn committed(&self, _: &[StoredRecord]) {}

    pub(crate) fn run(&self, _: FollowedRun) {}

    pub(crate) async fn follows_changed(&self) -> Vec<Follow> {
        std::future::pending().await
    }
}
