//! From outputs to records: checks topics against the manifest, writes alerts as JSON, folds repeated alerts.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::Serialize;

use crate::board::ids::FunctionNo;
use crate::board::map::{Map, Seeded};
use crate::board::mutes::{Mute, Mutes};
use crate::board::size::detached;
use crate::config::LOCAL;
use crate::manifest::{Allow, Manifest};
use crate::message::{Alert, AlertStatus, Failure, Message, Output, Publication, Reply, Wake};
use crate::mistakes::{Mistake, is_made};
use crate::permits;
use crate::store::Record;
use crate::stream::{SinkId, Stream};
use crate::time::Now;
use crate::trace::TraceContext;

/// Alert keys that are remembered for folding.
const MAX_FOLDED_KEYS: usize = 10_000;

/// What the records of this board have in common.
#[derive(Clone, Debug)]
pub struct RecorderConfig {
    pub node: Arc<str>,
    pub base_topic: Arc<str>,
    /// The sinks of the configuration.
    pub sinks: Vec<SinkRoute>,
    /// Sinks of outputs that name none.
    pub alerts: Vec<SinkId>,
    pub forwards: Vec<SinkId>,
    /// Repeats of an alert within this time are counted instead of recorded.
    pub fold: Duration,
    /// Whether results and alerts are kept in the history as well.
    pub keeps_history: bool,
}

/// A sink, as outputs name it.
#[derive(Clone, Debug)]
pub struct SinkRoute {
    pub id: SinkId,
    pub name: Arc<str>,
    /// Of every topic.
    pub topic_prefix: Arc<str>,
}

/// What each output of a run carries on.
#[derive(Clone, Debug)]
pub(crate) struct Carried {
    /// Functions that the message went through, this one included.
    pub(crate) hops: u32,
    /// Publications that it may cause.
    pub(crate) fan_out: u32,
    pub(crate) trace: Option<Arc<TraceContext>>,
}

/// Where one output goes.
enum Targets<'a> {
    Default(&'a [SinkId]),
    One(SinkId),
    /// Only the local broker.
    Local,
}

impl Targets<'_> {
    fn sinks(&self) -> &[SinkId] {
        match self {
            Self::Default(sinks) => sinks,
            Self::One(sink) => std::slice::from_ref(sink),
            Self::Local => &[],
        }
    }
}

/// An alert as it is published: upstream under `alerts/<function>`, locally under `<base>/<node>/alerts/<function>`.
#[derive(Serialize)]
struct PublishedAlert<'a> {
    node: &'a str,
    function: &'a str,
    version: &'a str,
    /// The topic of the message that caused it, or that set the wake.
    topic: &'a str,
    /// When that message came in, in Unix milliseconds, and the id that its publisher gave it.
    received_at_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    message_id: Option<&'a str>,
    #[serde(flatten)]
    alert: &'a Alert,
    at_ms: u64,
    clock_synced: bool,
    /// Repeats that were left out since the last one.
    #[serde(skip_serializing_if = "is_zero")]
    folded: u32,
    /// Not sent upstream, because a person muted it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    muted: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(count: &u32) -> bool {
    *count == 0
}

/// Records of one outcome, with counts.
#[derive(Debug, Default)]
pub(crate) struct Recorded {
    pub(crate) records: Vec<Record>,
    /// See [`crate::store::Commit::history`].
    pub(crate) history: Vec<Record>,
    pub(crate) alerts: u32,
    pub(crate) folded: u32,
    /// Alerts that are not sent.
    pub(crate) muted: u32,
    pub(crate) forwards: u32,
    pub(crate) publishes: u32,
    /// Forwards and alerts that had nowhere to go.
    pub(crate) without_upstream: u32,
    pub(crate) wakes: Vec<Wake>,
    /// What the wakes carry on.
    pub(crate) trace: Option<Arc<TraceContext>>,
    /// Answer to the request, if the message is one.
    pub(crate) reply: Option<Reply>,
}

impl Recorded {
    /// `kind`: one of [`Stream::FIRST`].
    fn keep(&mut self, kind: Stream, record: Record) {
        self.history.push(Record { stream: kind, ..record });
    }

    /// Gives each sink a copy of its own, the last one the record itself. Returns whether there is a sink.
    fn send(&mut self, sinks: &[SinkId], stream: impl Fn(SinkId) -> Stream, record: Record) -> bool {
        let Some((last, others)) = sinks.split_last() else { return false };
        let others = if is_made(Mistake::SkipCopy) { &[][..] } else { others };
        self.records.extend(others.iter().map(|sink| Record { stream: stream(*sink), ..record.clone() }));
        self.records.push(Record { stream: stream(*last), ..record });
        true
    }
}

/// Turns outputs into records. Remembers recent alerts in memory only: after a restart one more repeat is recorded.
pub(crate) struct Recorder {
    config: RecorderConfig,
    /// By a keyed hash of function and alert key: an entry is as large for any key.
    last: Map<u128, Last>,
    mutes: Mutes,
    seed: Seeded,
}

#[derive(Debug)]
struct Last {
    status: AlertStatus,
    at: Instant,
    folded: u32,
    is_muted: bool,
}

impl Recorder {
    pub(crate) fn new(config: RecorderConfig, seed: Seeded) -> Self {
        Self { config, last: seed.map(), mutes: Mutes::default(), seed }
    }

    pub(crate) fn set_mutes(&mut self, mutes: Vec<Mute>) {
        self.mutes.set(mutes);
    }

    /// Returns all records of a run. The outputs were permitted.
    pub(crate) fn record(
        &mut self,
        outputs: Vec<Output>,
        function: FunctionNo,
        manifest: &Manifest,
        message: &Message,
        carried: &Carried,
        now: Now,
    ) -> Recorded {
        let mut recorded = Recorded { trace: carried.trace.clone(), ..Recorded::default() };
        let keeps_history = self.config.keeps_history && !is_made(Mistake::SkipHistory);
        for output in outputs {
            let new = |topic, payload, content_type, retain| Record {
                stream: Stream::LOCAL,
                function: Arc::clone(&manifest.name),
                topic,
                payload,
                content_type,
                retain,
                hops: carried.hops,
                fan_out: carried.fan_out,
                clock_synced: now.synced,
                at_ms: now.unix_ms,
                trace: carried.trace.clone(),
                is_folded: false,
            };
            match output {
                Output::Alert(alert) => {
                    let is_muted = self.mutes.covers(&manifest.name, &alert.key, alert.status, now.monotonic);
                    let Some(folded) = self.admit(function, &alert, is_muted, now.monotonic) else {
                        recorded.folded += 1;
                        continue;
                    };
                    recorded.alerts += 1;
                    recorded.muted += u32::from(is_muted);
                    let RecorderConfig { node, base_topic, alerts, .. } = &self.config;
                    let published = PublishedAlert {
                        node,
                        function: &manifest.name,
                        version: &manifest.version,
                        topic: message.state_topic(),
                        received_at_ms: message.received_at_ms,
                        message_id: message.publisher_id(),
                        alert: &alert,
                        at_ms: now.unix_ms,
                        clock_synced: message.clock_synced,
                        folded,
                        muted: is_muted,
                    };
                    let payload = Bytes::from(serde_json::to_vec(&published).expect("an alert has only string keys"));
                    let json: Option<Box<str>> = Some("application/json".into());
                    if keeps_history {
                        let topic = message.state_topic().into();
                        recorded.keep(Stream::ALERT, new(topic, payload.clone(), json.clone(), false));
                    }
                    let echo = format!("{base_topic}/{node}/alerts/{}", manifest.name);
                    recorded.records.push(new(echo.into(), payload.clone(), json.clone(), false));
                    // The echo on the local broker is the record of a muted one.
                    let targets = match is_muted {
                        true => Targets::Local,
                        false => self.targets(alert.sink.as_deref(), manifest, alerts).unwrap_or(Targets::Local),
                    };
                    let topic = format!("alerts/{}", manifest.name);
                    let is_sent =
                        recorded.send(targets.sinks(), Stream::alerts, new(topic.into(), payload, json, false));
                    recorded.without_upstream += u32::from(!is_sent && !matches!(targets, Targets::Local));
                }
                Output::Forward(Publication { topic, payload, content_type, retain, sink }) => {
                    recorded.forwards += 1;
                    let forwards = &self.config.forwards;
                    let targets = self.targets(sink.as_deref(), manifest, forwards).unwrap_or(Targets::Local);
                    let record = new(topic, detached(payload), content_type, retain);
                    if keeps_history {
                        recorded.keep(Stream::DATA, record.clone());
                    }
                    let is_sent = recorded.send(targets.sinks(), Stream::data, record);
                    recorded.without_upstream += u32::from(!is_sent);
                }
                Output::Publish(Publication { topic, payload, content_type, retain, .. }) => {
                    recorded.publishes += 1;
                    let record = new(topic, detached(payload), content_type, retain);
                    if keeps_history {
                        recorded.keep(Stream::LOCAL, record.clone());
                    }
                    recorded.records.push(record);
                }
                Output::Wake(wake) => recorded.wakes.push(wake),
                Output::Reply(reply) => recorded.reply = Some(reply),
            }
        }
        recorded
    }

    /// Fails with the first output that is not allowed.
    pub(crate) fn check(&self, outputs: &[Output], manifest: &Manifest) -> Result<(), Failure> {
        let (base_topic, Allow { publish, forward, retain, .. }) = (&self.config.base_topic, &manifest.allow);
        permits::check_one_reply(outputs)?;
        outputs.iter().try_for_each(|output| {
            permits::check(output, base_topic, publish, forward.as_deref(), retain.as_deref())?;
            match output {
                Output::Alert(alert) => self.targets(alert.sink.as_deref(), manifest, &self.config.alerts).map(drop),
                Output::Forward(publication) => {
                    let targets = self.targets(publication.sink.as_deref(), manifest, &self.config.forwards)?;
                    if matches!(targets, Targets::Local) {
                        return Err(permits::forward_to_local(&publication.topic));
                    }
                    let routes = self.config.sinks.iter().filter(|route| targets.sinks().contains(&route.id));
                    let mut prefixes = routes.map(|route| &route.topic_prefix);
                    prefixes.try_for_each(|prefix| permits::check_prefixed(prefix, &publication.topic))
                }
                Output::Publish(_) | Output::Wake(_) | Output::Reply(_) => Ok(()),
            }
        })
    }

    /// Where an output goes: to the sink that it names, else to that of its function, else to these.
    fn targets<'a>(
        &self,
        named: Option<&str>,
        manifest: &Manifest,
        default: &'a [SinkId],
    ) -> Result<Targets<'a>, Failure> {
        match named.or(manifest.sink.as_deref()) {
            None => Ok(Targets::Default(default)),
            Some(LOCAL) => Ok(Targets::Local),
            Some(name) => match self.config.sinks.iter().find(|route| *route.name == *name) {
                Some(route) => Ok(Targets::One(route.id)),
                None => Err(permits::no_sink(name, self.config.sinks.iter().map(|route| &*route.name))),
            },
        }
    }

    /// `Some` with the number of repeats left out before when the alert is to be recorded, `None` when it is a repeat.
    fn admit(&mut self, function: FunctionNo, alert: &Alert, is_muted: bool, now: Instant) -> Option<u32> {
        let interval = self.config.fold;
        if interval.is_zero() {
            return Some(0);
        }
        if self.last.len() >= MAX_FOLDED_KEYS {
            self.last.retain(|_, last| now.duration_since(last.at) < interval);
            if self.last.len() >= MAX_FOLDED_KEYS {
                self.last.clear();
            }
        }
        let fresh = Last { status: alert.status, at: now, folded: 0, is_muted };
        let key = self.seed.hash128(&(function, alert.key.as_str()));
        let Some(last) = self.last.get_mut(&key) else {
            self.last.insert(key, fresh);
            return Some(0);
        };
        // The first that is not muted any more is sent.
        let was_sent = is_muted || !last.is_muted;
        if was_sent && last.status == alert.status && now.duration_since(last.at) < interval {
            last.folded += 1;
            return None;
        }
        Some(std::mem::replace(last, fresh).folded)
    }

    /// What was recorded since the last commit is not certain.
    pub(crate) fn forget(&mut self) {
        self.last.clear();
    }
}
