//! Device discovery for Home Assistant: one retained description of the board, and the states that no other topic has.
//!
//! ```text
//! <prefix>/device/<base>/<node>/config   what there is: functions, sinks, alerts   2 s after a change
//! <base>/<node>/status/summary             sinks, dead letters, functions in trouble at changes, looked for every 5 s
//! <base>/<node>/status/alerts/<id>         one alert                                 at once; its figures every 10 s at most
//! ```
//!
//! Whether the board is online and which versions its functions have is read from the status and the reports, which it publishes
//! anyway.
//!
//! An alert is published before its echo, which waits in the outbox if there is no room: after a power cut both are sent again.
//! The store remembers which components the broker may have, so that those of removed functions are withdrawn also after a
//! restart, and all of them once discovery is switched off.

mod alerts;
mod device;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::json;

use alerts::{Alerts, NotedAlert, Noticed, cut};
use device::{Components, Device, Parts};
use sedge_core::config::Config;
use sedge_core::deploy::report::{DeployState, Report};
use sedge_core::forward::Envelope;
use sedge_core::message::PublishToken;
use sedge_core::metrics::Metrics;
use sedge_mqtt::{Full, Link, Publication, PublishResult};
use sedge_store::Stats;

/// Token of these publications. What is lost is published again with the next connection.
pub(crate) const TOKEN: PublishToken = PublishToken(u64::MAX - 1);
/// Meta key of what the broker may have.
pub(crate) const META: &str = "home-assistant";
/// Changes within this time are one description.
const GATHER: Duration = Duration::from_secs(2);
/// Interval of the looks at sinks, dead letters and functions.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// After that long all functions that are installed have been reported.
const ALL_REPORTED: Duration = Duration::from_secs(30);
/// Pause while the link has no room.
const AGAIN: Duration = Duration::from_millis(200);
/// Components that Home Assistant is told to remove, for as long as the daemon runs: it may have been away.
const MAX_GONE: usize = 200;
/// Publications that wait for room: all alerts, and as many of those before.
const MAX_UNSENT: usize = 2 * alerts::MAX_ALERTS;

/// Where publications go: the connection to the local broker.
pub(crate) trait Publisher {
    fn publish(&self, publication: Publication<'_>) -> Result<(), Full>;
}

impl Publisher for Link {
    fn publish(&self, publication: Publication<'_>) -> Result<(), Full> {
        Self::publish(self, publication, TOKEN)
    }
}

pub(crate) struct HomeAssistant {
    is_on: bool,
    device: Device,
    /// Where Home Assistant says that it has started.
    birth_topic: String,
    /// Of the topics of alerts on the local broker.
    echo_prefix: String,
    functions: BTreeMap<Arc<str>, Function>,
    sinks: Vec<String>,
    alerts: Alerts,
    gone: Components,
    noted: Noted,
    /// To be written into the store.
    to_note: Option<Bytes>,
    summary: Option<String>,
    unsent: VecDeque<Out>,
    unanswered: usize,
    has_refusal: bool,
    /// Something was withdrawn, and the store still remembers it.
    has_withdrawn: bool,
    describe_at: Option<Instant>,
    figures_at: Option<Instant>,
    look_at: Option<Instant>,
    /// The link had no room.
    again_at: Option<Instant>,
    reported: Reported,
    metrics: Arc<Metrics>,
    stats: Arc<Stats>,
}

#[derive(Debug, Default)]
struct Function {
    /// Since the start of the daemon.
    is_reported: bool,
    /// What its report says is wrong.
    problem: Option<String>,
}

/// What the broker may have of this board.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Noted {
    topic: String,
    components: Components,
    alerts: Vec<NotedAlert>,
}

/// Whether all functions have been reported since the start.
#[derive(Clone, Copy, Debug)]
enum Reported {
    /// There was no connection.
    NotYet,
    At(Instant),
    All,
}

/// A publication that waits for room.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Out {
    Description,
    Summary,
    Alert(String),
    /// Removes a retained message.
    Clear(String),
}

impl HomeAssistant {
    /// `None`: it is off, and the broker has nothing of it.
    pub(crate) fn new(
        config: &Config,
        noted: Option<&Bytes>,
        metrics: &Arc<Metrics>,
        stats: &Arc<Stats>,
    ) -> Option<Self> {
        let is_on = config.home_assistant.discovery;
        let noted: Noted = noted.and_then(|bytes| serde_json::from_slice(bytes).ok()).unwrap_or_default();
        if !is_on && noted == Noted::default() {
            return None;
        }
        let prefix = &config.home_assistant.prefix;
        let mut home = Self {
            is_on,
            device: Device::new(&config.node, prefix),
            birth_topic: format!("{prefix}/status"),
            echo_prefix: format!("{}/{}/alerts/", config.node.base_topic, config.node.name),
            functions: BTreeMap::new(),
            sinks: config.sinks.list.iter().map(|sink| sink.name.clone()).collect(),
            alerts: Alerts::default(),
            gone: Components::new(),
            noted,
            to_note: None,
            summary: None,
            unsent: VecDeque::new(),
            unanswered: 0,
            has_refusal: false,
            has_withdrawn: false,
            describe_at: None,
            figures_at: None,
            look_at: None,
            again_at: None,
            reported: Reported::NotYet,
            metrics: Arc::clone(metrics),
            stats: Arc::clone(stats),
        };
        if is_on {
            home.alerts.restore(&home.noted.alerts);
            let functions = home.noted.components.keys().filter_map(|id| id.strip_prefix("function_"));
            home.functions = functions.map(|name| (name.into(), Function::default())).collect();
        }
        Some(home)
    }

    pub(crate) fn is_on(&self) -> bool {
        self.is_on
    }

    /// What to subscribe to with each connection: the birth of Home Assistant. Not spelled as a function would, whose
    /// subscription it would otherwise replace.
    pub(crate) fn filter(&self) -> String {
        format!("{}/#", self.birth_topic)
    }

    /// Everything is published anew: a broker may have lost what it retained.
    pub(crate) fn connected(&mut self, now: Instant) {
        (self.unanswered, self.has_refusal) = (0, false);
        self.unsent.clear();
        self.figures_at = None;
        if !self.is_on || self.noted.topic != self.device.config_topic {
            let old = std::iter::once(&self.noted.topic).filter(|topic| !topic.is_empty());
            self.unsent.extend(old.map(|topic| Out::Clear(topic.clone())));
        }
        if !self.is_on {
            self.has_withdrawn = true;
            let alerts = self.noted.alerts.iter().map(|alert| self.device.alert_topic(&alert.id));
            self.unsent.extend(alerts.map(Out::Clear));
            return self.unsent.push_back(Out::Clear(self.device.summary_topic()));
        }
        if matches!(self.reported, Reported::NotYet) {
            self.reported = Reported::At(now + ALL_REPORTED);
        }
        self.publish_all(now);
    }

    fn publish_all(&mut self, now: Instant) {
        self.describe_at = Some(now + GATHER);
        self.look_at = Some(now);
        self.summary = None;
        let alerts: Vec<_> = self.alerts.known().cloned().map(Out::Alert).collect();
        alerts.into_iter().for_each(|alert| self.queue(alert));
    }

    pub(crate) fn disconnected(&mut self) {
        self.unsent.clear();
        (self.describe_at, self.figures_at, self.look_at, self.again_at) = (None, None, None, None);
    }

    /// Notes that Home Assistant has started, if this says so. Returns whether the topic is the one where it does.
    pub(crate) fn heard(&mut self, topic: &[u8], payload: &[u8], retained: bool, now: Instant) -> bool {
        let is_birth = topic == self.birth_topic.as_bytes();
        // With a connection everything is published, so that a retained birth says nothing new.
        if is_birth && self.is_on && payload == b"online" && !retained {
            self.publish_all(now);
        }
        is_birth
    }

    pub(crate) fn report(&mut self, function: &Arc<str>, report: &Bytes, now: Instant) {
        // The keys are reported like a function, and so are orders for functions that the board does not have.
        if !self.is_on || function.starts_with('_') {
            return;
        }
        match Report::parse(report).ok().filter(|report| report.active.is_some()) {
            Some(report) => {
                let seen = Function { is_reported: true, problem: problem(report) };
                if self.functions.insert(Arc::clone(function), seen).is_none() {
                    self.describe(now);
                }
            }
            None => self.remove_function(function, now),
        }
    }

    fn remove_function(&mut self, function: &str, now: Instant) {
        if self.functions.remove(function).is_none() {
            return;
        }
        for id in self.alerts.remove_of(function) {
            self.queue(Out::Clear(self.device.alert_topic(&id)));
        }
        self.describe(now);
    }

    /// Publishes an alert whose echo is about to be sent, if it is one. An error: the echo must wait as well.
    pub(crate) fn echo(&mut self, link: &impl Publisher, envelope: &Envelope, now: Instant) -> Result<(), Full> {
        if !self.is_on || !envelope.topic.starts_with(&self.echo_prefix) {
            return Ok(());
        }
        let Ok(echo) = serde_json::from_slice(&envelope.payload) else { return Ok(()) };
        let Noticed { urgent, is_new, evicted } = self.alerts.notice(echo);
        if let Some(id) = evicted {
            self.queue(Out::Clear(self.device.alert_topic(&id)));
        }
        if is_new {
            self.describe(now);
        }
        let published = match urgent {
            Some(id) => self.publish(link, &Out::Alert(id), now),
            None => Ok(()),
        };
        self.figures_at = self.alerts.due().map(|(at, _)| at);
        published
    }

    /// Gathers further changes for a moment.
    fn describe(&mut self, now: Instant) {
        if !matches!(self.reported, Reported::NotYet) {
            self.describe_at.get_or_insert(now + GATHER);
        }
    }

    fn queue(&mut self, out: Out) {
        // A retained message that is left behind belongs to nothing any more.
        let is_dispensable = matches!(out, Out::Clear(_)) && self.unsent.len() >= MAX_UNSENT;
        if !is_dispensable && !self.unsent.contains(&out) {
            self.unsent.push_back(out);
        }
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        [self.describe_at, self.figures_at, self.look_at, self.again_at].into_iter().flatten().min()
    }

    /// Publishes what is due, as far as the link has room.
    pub(crate) fn flush(&mut self, link: &impl Publisher, now: Instant) {
        if self.look_at.take_if(|at| *at <= now).is_some() {
            self.look_at = Some(now + LOOK_EVERY);
            self.look(now);
        }
        if self.describe_at.take_if(|at| *at <= now).is_some() {
            self.queue(Out::Description);
        }
        if self.figures_at.take_if(|at| *at <= now).is_some() {
            while let Some(id) = self.alerts.due().filter(|(at, _)| *at <= now).map(|(_, id)| id.clone()) {
                if self.publish(link, &Out::Alert(id), now).is_err() {
                    break;
                }
            }
            self.figures_at = self.alerts.due().map(|(at, _)| at.max(now + GATHER));
        }
        if self.again_at.is_some_and(|at| now < at) {
            return;
        }
        self.again_at = None;
        while let Some(out) = self.unsent.front().cloned() {
            if self.publish(link, &out, now).is_err() {
                self.again_at = Some(now + AGAIN);
                return;
            }
            self.unsent.pop_front();
        }
    }

    fn look(&mut self, now: Instant) {
        let connected: BTreeMap<_, _> = self.metrics.connected_sinks().collect();
        let dead_letters = self.stats.dead_letters.load(Relaxed);
        let problem = |(name, function): (&Arc<str>, &Function)| {
            let paused = self.metrics.paused_topics(name);
            let paused = (paused > 0).then(|| format!("paused for {paused} topics, because it kept failing"));
            Some((name.to_string(), function.problem.clone().or(paused)?))
        };
        let problems: BTreeMap<_, _> = self.functions.iter().filter_map(problem).collect();
        let summary = json!({ "sinks": connected, "dead_letters": dead_letters, "problems": problems }).to_string();
        if self.summary.as_ref() != Some(&summary) {
            self.summary = Some(summary);
            self.queue(Out::Summary);
        }
        if matches!(self.reported, Reported::At(at) if at <= now) {
            self.reported = Reported::All;
            let unknown: Vec<_> =
                self.functions.iter().filter(|(_, it)| !it.is_reported).map(|(name, _)| Arc::clone(name)).collect();
            unknown.iter().for_each(|function| self.remove_function(function, now));
        }
    }

    fn publish(&mut self, link: &impl Publisher, out: &Out, now: Instant) -> Result<(), Full> {
        let (topic, payload) = match out {
            Out::Description => (self.device.config_topic.clone(), self.description()),
            Out::Summary => (self.device.summary_topic(), self.summary.clone().unwrap_or_default().into()),
            Out::Alert(id) => match self.alerts.payload(id) {
                Some(payload) => (self.device.alert_topic(id), payload),
                None => return Ok(()),
            },
            Out::Clear(topic) => (topic.clone(), Bytes::new()),
        };
        let content_type = (!payload.is_empty()).then_some("application/json");
        link.publish(Publication { topic: &topic, payload, content_type, properties: &[], retain: true })?;
        self.unanswered += 1;
        if let Out::Alert(id) = out {
            self.alerts.published(id, now);
        }
        Ok(())
    }

    /// The description, with what it no longer has. The store is told of its components before the broker.
    fn description(&mut self) -> Bytes {
        let functions: Vec<_> = self.functions.keys().map(|name| &**name).collect();
        let alerts = self.alerts.names();
        let parts = Parts { functions: &functions, sinks: &self.sinks, alerts: &alerts };
        let present = self.device.platforms(parts);
        self.gone.retain(|id, _| !present.contains_key(id));
        let gone = self.noted.components.iter().filter(|(id, _)| !present.contains_key(*id));
        for (id, platform) in gone {
            if self.gone.len() >= MAX_GONE {
                self.gone.pop_first();
            }
            self.gone.insert(id.clone(), platform.clone());
        }
        let description = self.device.config(parts, &self.gone);
        self.has_withdrawn = true;
        let mut components = self.noted.components.clone();
        components.extend(present);
        let topic = self.device.config_topic.clone();
        self.note(Noted { topic, components, alerts: self.alerts.noted() });
        description.to_string().into()
    }

    fn note(&mut self, noted: Noted) {
        let is_new = noted.topic != self.noted.topic || noted.components != self.noted.components;
        if is_new {
            let bytes = match noted == Noted::default() {
                true => Bytes::new(),
                false => serde_json::to_vec(&noted).expect("it has only string keys").into(),
            };
            self.to_note = Some(bytes);
        }
        self.noted = noted;
    }

    /// What the store is to remember, once for each change.
    pub(crate) fn take_note(&mut self) -> Option<Bytes> {
        self.to_note.take()
    }

    /// The broker's answer to a publication.
    pub(crate) fn answered(&mut self, result: &PublishResult) {
        self.unanswered = self.unanswered.saturating_sub(1);
        if let Some(reason) = result.not_accepted()
            && !std::mem::replace(&mut self.has_refusal, true)
        {
            tracing::warn!(
                reason,
                topic = self.device.config_topic,
                "the broker did not accept a message for Home Assistant: allow this client to publish there and below status/ \
                 of its own topic"
            );
        }
        let is_done = self.unanswered == 0 && self.unsent.is_empty() && !self.has_refusal;
        if is_done && std::mem::take(&mut self.has_withdrawn) {
            self.forget_gone();
        }
    }

    /// What was withdrawn is withdrawn: the store need not remember it.
    fn forget_gone(&mut self) {
        if !self.is_on {
            return self.note(Noted::default());
        }
        let mut noted = self.noted.clone();
        noted.components.retain(|id, _| !self.gone.contains_key(id));
        self.note(noted);
    }
}

/// What a report says is wrong with a function, or with the latest order for it.
fn problem(report: Report) -> Option<String> {
    let is_bad = matches!(report.state, DeployState::Quarantined | DeployState::Rejected | DeployState::RolledBack);
    report.error.map(cut).or_else(|| is_bad.then(|| report.state.as_str().to_owned()))
}
