//! What the board says of itself on the broker, retained: `<base>/<node>/status` and `<base>/<node>/functions/<name>`.

use bytes::Bytes;
use serde_json::json;

use crate::mqtt::{Link, Publication, Will};
use crate::pipeline::Function;

/// Status goes out beside the outbox: it is the state of now, and is published anew at every connection.
pub const TOKEN: u64 = 0;

#[derive(Debug)]
pub struct Status {
    base: String,
    /// So that an operator knows, also of a board that is away, which pushes are for it.
    groups: Vec<String>,
    failed: Option<String>,
    blocked: bool,
    /// The last reason was logged; the same again is not.
    last_reason: Option<String>,
}

impl Status {
    pub fn new(base_topic: &str, node: &str, groups: &[String]) -> Self {
        Self {
            base: format!("{base_topic}/{node}"),
            groups: groups.to_vec(),
            failed: None,
            blocked: false,
            last_reason: None,
        }
    }

    /// What the broker publishes when the board vanishes.
    pub fn will(&self) -> Will {
        Will { topic: format!("{}/status", self.base), payload: self.away().to_string() }
    }

    pub fn connected(&mut self, link: &Link, functions: &[Function]) {
        self.last_reason = None;
        self.publish_node(link);
        for function in functions {
            self.publish_function(link, function);
        }
    }

    pub fn disconnected(&mut self, reason: &str) {
        if self.last_reason.as_deref() != Some(reason) {
            tracing::warn!(reason, "not connected to the broker; trying again");
            self.last_reason = Some(reason.to_owned());
        }
    }

    pub fn set_failed(&mut self, link: &Link, error: Option<String>) {
        self.failed = error;
        self.publish_node(link);
    }

    pub fn set_blocked(&mut self, link: &Link, blocked: bool) {
        self.blocked = blocked;
        self.publish_node(link);
    }

    pub fn offline(&self, link: &Link) {
        self.publish(link, "status", &self.away());
    }

    fn away(&self) -> serde_json::Value {
        json!({ "state": "offline", "version": env!("CARGO_PKG_VERSION"), "groups": self.groups })
    }

    fn publish_node(&self, link: &Link) {
        let mut status = json!({ "state": "online", "version": env!("CARGO_PKG_VERSION"), "groups": self.groups });
        if let Some(error) = &self.failed {
            status["problem"] = json!(format!("the disk failed: {error}"));
        } else if self.blocked {
            status["problem"] = json!("the outbox is full");
        }
        self.publish(link, "status", &status);
    }

    pub fn publish_function(&self, link: &Link, function: &Function) {
        let Some(edition) = function.serving() else { return };
        let manifest = &edition.manifest;
        let quarantined = function.is_quarantined();
        let mut status = json!({
            "name": &*manifest.name,
            "version": &*manifest.version,
            "digest": edition.digest.to_string(),
            "state": if quarantined { "quarantined" } else { "active" },
        });
        if quarantined {
            status["reason"] = json!("it kept failing; its messages become dead letters until it works again");
        }
        self.publish(link, &format!("functions/{}", manifest.name), &status);
    }

    fn publish(&self, link: &Link, topic: &str, status: &serde_json::Value) {
        // When it cannot go out now, it goes out at the next connection.
        let _ = link.publish(
            Publication {
                topic: &format!("{}/{topic}", self.base),
                payload: Bytes::from(status.to_string()),
                content_type: Some("application/json"),
                properties: &[],
                retain: true,
            },
            TOKEN,
        );
    }
}
