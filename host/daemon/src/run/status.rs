//! Retained status of the board on the broker: `<base>/<node>/status` and `<base>/<node>/functions/<name>`.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use serde_json::json;

use super::sink_figures::SinkFigures;
use sedge_core::config::{Config, Node};
use sedge_core::deploy::keys::SigningKey;
use sedge_core::deploy::limits::BoardLimits;
use sedge_core::deploy::signature;
use sedge_core::message::PublishToken;
use sedge_core::metrics::Metrics;
use sedge_core::time::Now;
use sedge_mqtt::{Full, Link, Publication, Will};
use sedge_sandbox::compiler::Compiler;

/// Token of all status messages. They bypass the outbox, since every connection publishes them anew.
pub(crate) const TOKEN: PublishToken = PublishToken(0);

pub(crate) struct Status {
    base: String,
    /// Published also while the board is offline, so that operators know which pushes are for it.
    groups: Vec<String>,
    limits: BoardLimits,
    /// Signs status and reports. `None`: it could not be stored.
    key: Option<SigningKey>,
    /// The broker has answered the subscriptions of this connection. Nothing is published before.
    is_online: bool,
    failed: Option<String>,
    blocked: bool,
    /// Schedules that wait for the clock.
    without_clock: usize,
    /// Subscriptions that the broker refuses, with its reasons.
    refused: Vec<String>,
    /// What the broker does not offer.
    broker_limits: Vec<String>,
    sinks: SinkFigures,
    /// Last report of each function.
    reports: BTreeMap<Arc<str>, Bytes>,
    unsent: VecDeque<Arc<str>>,
}

impl Status {
    pub(crate) fn new(config: &Config, key: Option<SigningKey>, metrics: Arc<Metrics>) -> Self {
        let Node { base_topic, name, groups, .. } = &config.node;
        Self {
            base: format!("{base_topic}/{name}"),
            groups: groups.clone(),
            limits: BoardLimits::new(config, Compiler::capabilities()),
            key,
            is_online: false,
            failed: None,
            blocked: false,
            without_clock: 0,
            refused: Vec::new(),
            broker_limits: Vec::new(),
            sinks: SinkFigures::new(metrics),
            reports: BTreeMap::new(),
            unsent: VecDeque::new(),
        }
    }

    /// Last will, for a board that loses its connection.
    pub(crate) fn will(&self) -> Will {
        let topic = format!("{}/status", self.base);
        let payload = String::from_utf8(self.signed(&topic, self.offline_status().to_string().as_bytes()));
        Will { topic, payload: payload.expect("JSON and a signature in base64 are UTF-8") }
    }

    pub(crate) fn disconnected(&mut self) {
        self.is_online = false;
    }

    pub(crate) fn connected(&mut self, link: &Link, now: Now) {
        self.is_online = true;
        self.sinks.take(now);
        self.publish_node(link);
        self.unsent = self.reports.keys().cloned().collect();
        self.flush(link);
    }

    pub(crate) fn set_failed(&mut self, link: &Link, error: Option<String>) {
        self.failed = error;
        self.publish_node(link);
    }

    pub(crate) fn set_blocked(&mut self, link: &Link, blocked: bool) {
        self.blocked = blocked;
        self.publish_node(link);
    }

    pub(crate) fn set_without_clock(&mut self, link: &Link, schedules: usize) {
        if self.without_clock != schedules {
            self.without_clock = schedules;
            self.publish_node(link);
        }
    }

    /// Publishes the sinks if there is something new to say of them.
    pub(crate) fn update_sinks(&mut self, link: &Link, now: Now) {
        if self.sinks.take_new(now) {
            self.publish_node(link);
        }
    }

    pub(crate) fn set_refused(&mut self, link: &Link, refused: Vec<String>) {
        if self.refused != refused {
            self.refused = refused;
            self.publish_node(link);
        }
    }

    pub(crate) fn has_limit(&self, limit: &str) -> bool {
        self.broker_limits.iter().any(|known| known == limit)
    }

    /// Published with the next status.
    pub(crate) fn set_limits(&mut self, limits: Vec<String>) {
        self.broker_limits = limits;
    }

    pub(crate) fn offline(&self, link: &Link) {
        self.publish(link, "status", &self.offline_status());
    }

    fn offline_status(&self) -> serde_json::Value {
        self.node_status("offline")
    }

    fn node_status(&self, state: &str) -> serde_json::Value {
        let Self { groups, limits, .. } = self;
        let version = env!("CARGO_PKG_VERSION");
        let mut status = json!({ "state": state, "version": version, "groups": groups, "limits": limits });
        if let Some(key) = &self.key {
            status["public_key"] = json!(key.public());
        }
        status
    }

    fn publish_node(&self, link: &Link) {
        if !self.is_online {
            return;
        }
        let mut status = self.node_status("online");
        if !self.broker_limits.is_empty() {
            status["broker_limits"] = json!(self.broker_limits);
        }
        if !self.sinks.shown().is_empty() {
            status["sinks"] = json!(self.sinks.shown());
        }
        let failed = self.failed.as_ref().map(|error| format!("the disk failed: {error}"));
        let blocked = self.blocked.then(|| "the outbox is full".to_owned());
        let refused = &self.refused;
        let refused =
            (!refused.is_empty()).then(|| format!("the broker refuses subscriptions: {}", refused.join(", ")));
        let schedules = self.without_clock;
        let clock =
            (schedules > 0).then(|| format!("the clock is not synchronised, and schedules wait for it: {schedules}"));
        if let Some(problem) = failed.or(blocked).or(refused).or(clock) {
            status["problem"] = json!(problem);
        }
        self.publish(link, "status", &status);
    }

    /// Stores and publishes the report of a function. An empty report removes an earlier one.
    pub(crate) fn report(&mut self, link: &Link, function: Arc<str>, report: Bytes) {
        if !self.unsent.contains(&function) {
            self.unsent.push_back(Arc::clone(&function));
        }
        self.reports.insert(function, report);
        self.flush(link);
    }

    /// Publishes the reports that are not sent yet, as far as the link has room.
    pub(crate) fn flush(&mut self, link: &Link) {
        while let Some(function) = self.unsent.front() {
            let report = self.reports.get(function).cloned().unwrap_or_default();
            if self.publish_bytes(link, &format!("functions/{function}"), report.clone()).is_err() {
                return;
            }
            if report.is_empty() {
                self.reports.remove(function);
            }
            self.unsent.pop_front();
        }
    }

    fn publish(&self, link: &Link, topic: &str, status: &serde_json::Value) {
        // If the link has no room now, the next connection publishes the status.
        let _ = self.publish_bytes(link, topic, Bytes::from(status.to_string()));
    }

    fn signed(&self, topic: &str, json: &[u8]) -> Vec<u8> {
        self.key.as_ref().map_or_else(|| json.to_vec(), |key| signature::sign(key, topic, json))
    }

    /// Signs and publishes. An empty payload removes a message from the broker.
    fn publish_bytes(&self, link: &Link, topic: &str, json: Bytes) -> Result<(), Full> {
        let topic = format!("{}/{topic}", self.base);
        let payload = if json.is_empty() { json } else { self.signed(&topic, &json).into() };
        link.publish(
            Publication {
                topic: &topic,
                payload,
                content_type: Some("application/json"),
                properties: &[],
                retain: true,
            },
            TOKEN,
        )
    }
}
