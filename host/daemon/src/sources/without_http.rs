//! A build without requests over HTTP: it says so where the configuration asks for them.

use sedge_core::config;
use sedge_core::metrics::Metrics;
use sedge_core::request::{Request, RequestId, Response};

#[derive(Debug, thiserror::Error)]
#[error("http_trigger.listen: this build takes no requests over HTTP; set it to \"off\", or install the whole package")]
pub(crate) struct NotBuilt;

/// There is none.
#[derive(Debug)]
pub(crate) enum HttpTrigger {}

impl HttpTrigger {
    pub(crate) fn spawn(config: &config::HttpTrigger, _: &Metrics) -> Result<Option<Self>, NotBuilt> {
        if config.listen.is_some() { Err(NotBuilt) } else { Ok(None) }
    }

    pub(crate) async fn receive(&mut self) -> Request {
        match *self {}
    }

    pub(crate) fn try_receive(&mut self) -> Option<Request> {
        match *self {}
    }

    pub(crate) fn respond(&mut self, _: RequestId, _: Response) {
        match *self {}
    }
}
