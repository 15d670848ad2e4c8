//! Counters and gauges of the daemon.
//!
//! The event loop is the only writer, so an addition is a plain load and store, not a locked instruction. Any thread
//! reads. Figures that other parts keep, such as the store's, are added by [`Metrics::source`].

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use serde_json::json;

use super::text::Text;
use super::{Sample, Value};
use crate::forward::Destination;
use crate::message::{FailureCode, Usage};
use crate::metrics::histogram::Histogram;
use crate::stream::{PerStream, SINKS, SinkId, Stream};
use crate::time::Now;

/// Distinct reasons for drops. Receivers choose some of them, and must not fill the memory; the rest is `other`.
const MAX_REASONS: usize = 32;

#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn inc(&self) {
        self.add(1);
    }

    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    pub fn set(&self, value: u64) {
        self.0.store(value, Relaxed);
    }

    /// Sets the value if it is larger than the current one.
    pub(crate) fn raise(&self, value: u64) {
        if value > self.get() {
            self.set(value);
        }
    }

    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// State of a connection. Counts as not configured until it is first set.
#[derive(Debug, Default)]
pub struct Link(AtomicU8);

impl Link {
    pub fn set(&self, connected: bool) {
        self.0.store(1 + u8::from(connected), Relaxed);
    }

    /// `None` when the connection is not configured.
    pub fn connected(&self) -> Option<bool> {
        self.0.load(Relaxed).checked_sub(1).map(|connected| connected == 1)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OutputKind {
    Alert,
    Forward,
    Publish,
}

impl OutputKind {
    pub(crate) const ALL: [Self; 3] = [Self::Alert, Self::Forward, Self::Publish];

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Alert => "alert",
            Self::Forward => "forward",
            Self::Publish => "publish",
        }
    }
}

/// Figures of one function. They outlive its versions and are dropped when it is removed.
#[derive(Debug, Default)]
pub struct FunctionMetrics {
    pub invocations: Counter,
    pub(crate) retries: Counter,
    pub(crate) folded_alerts: Counter,
    pub muted_alerts: Counter,
    pub fuel: Counter,
    pub(crate) fuel_per_run: Histogram,
    pub memory_bytes: Gauge,
    pub(crate) quarantined: Gauge,
    pub paused_topics: Gauge,
    pub(crate) state_bytes: Gauge,
    /// Messages at the workers, with the room for their answers, and messages that wait for one.
    pub held_bytes: Gauge,
    /// Scopes whose state made room for others.
    pub(crate) state_forgotten: Counter,
    /// Wakes that were run.
    pub wakes: Counter,
    pub wakes_waiting: Gauge,
    /// Calls about silent topics.
    pub silences: Counter,
    pub(crate) watched_topics: Gauge,
    pub silent_topics: Gauge,
    /// Runs of schedules, those of them that began late, and times that were left out because they were older than `catch_up`.
    pub schedules: Counter,
    pub schedules_late: Counter,
    pub schedules_skipped: Counter,
    /// Thousandths of its share of the workers' time.
    pub(crate) share: Gauge,
    waited_us: Counter,
    pub(crate) duration: Histogram,
    failures: [Counter; FailureCode::ALL.len()],
    outputs: [Counter; OutputKind::ALL.len()],
    pauses: Mutex<Vec<TopicPause>>,
}

/// A topic that is paused for a function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicPause {
    pub topic: Arc<str>,
    /// The last failure.
    pub reason: Box<str>,
    pub until: Instant,
}

impl FunctionMetrics {
    /// The paused topics, some of them if there are many.
    pub fn pauses(&self) -> Vec<TopicPause> {
        lock(&self.pauses).clone()
    }

    pub(crate) fn set_pauses(&self, pauses: Vec<TopicPause>) {
        *lock(&self.pauses) = pauses;
    }

    /// Counts an invocation, whatever its outcome.
    pub fn ran(&self, usage: &Usage) {
        self.invocations.inc();
        self.fuel.add(usage.fuel);
        self.fuel_per_run.observe_amount(usage.fuel);
        self.memory_bytes.raise(usage.memory_bytes);
        self.duration.observe(Duration::from_micros(usage.elapsed_us));
    }

    /// Counts the time that a message waited for room at its worker.
    pub(crate) fn waited(&self, waited: Duration) {
        self.waited_us.add(waited.as_micros() as u64);
    }

    pub(crate) fn emitted(&self, kind: OutputKind) {
        self.outputs[kind as usize].inc();
    }

    fn outputs(&self, kind: OutputKind) -> u64 {
        self.outputs[kind as usize].get()
    }

    pub(crate) fn failures(&self, code: FailureCode) -> u64 {
        self.failures[code as usize].get()
    }

    fn all_failures(&self) -> u64 {
        self.failures.iter().map(Counter::get).sum()
    }
}

type Source = Box<dyn Fn(Now, &mut dyn FnMut(&Sample<'_>)) + Send + Sync>;

/// All figures of the daemon.
#[derive(Default)]
pub struct Metrics {
    pub received: Counter,
    pub acknowledged: Counter,
    pub(crate) redelivered: Counter,
    pub unrouted: Counter,
    /// Messages committed without a dead letter.
    pub recorded: Counter,
    /// Messages committed with one.
    pub dead_lettered: Counter,
    pub in_flight: Gauge,
    pub(crate) sessions_lost: Counter,
    pub(crate) worker_restarts: Counter,
    pub(crate) invariants_broken: Counter,
    /// Messages whose spans are recorded.
    pub traces: Counter,
    /// Messages whose spans were to be recorded, had there not been too many.
    pub traces_left_out: Counter,
    /// Schedules that wait until the clock is synchronised.
    pub schedules_awaiting_clock: Gauge,
    /// State of functions that are not installed.
    pub(crate) removed_state_bytes: Gauge,
    pub(crate) forwarded: PerStream<Counter>,
    local_errors: Counter,
    sink_errors: [Counter; SINKS],
    pub broker: Link,
    sinks: [Link; SINKS],
    /// Sinks of the configuration.
    sink_names: OnceLock<Vec<(SinkId, Arc<str>)>>,
    start_time_ms: u64,
    dead_letters: [Counter; FailureCode::ALL.len()],
    dropped: Mutex<BTreeMap<Box<str>, u64>>,
    functions: Mutex<BTreeMap<Arc<str>, Arc<FunctionMetrics>>>,
    sources: Mutex<Vec<Source>>,
}

impl Metrics {
    pub fn new(start_time_ms: u64) -> Self {
        Self { start_time_ms, ..Self::default() }
    }

    /// Names the sinks of the configuration, once.
    pub(crate) fn name_sinks(&self, names: impl Iterator<Item = (SinkId, Arc<str>)>) {
        let _ = self.sink_names.set(names.collect());
    }

    /// The connection of a sink.
    pub fn sink(&self, sink: SinkId) -> &Link {
        &self.sinks[sink.index()]
    }

    fn sink_names(&self) -> &[(SinkId, Arc<str>)] {
        self.sink_names.get().map_or(&[], Vec::as_slice)
    }

    /// Sinks of the configuration with their names, and whether each is connected.
    pub fn connected_sinks(&self) -> impl Iterator<Item = (&str, bool)> {
        self.sink_names().iter().map(|(sink, name)| (&**name, self.sink(*sink).connected() == Some(true)))
    }

    /// Name of a sink. `None`: it is not part of the configuration any more.
    pub fn sink_name(&self, sink: SinkId) -> Option<&str> {
        self.sink_names().iter().find(|(known, _)| *known == sink).map(|(_, name)| &**name)
    }

    /// The labels of a stream.
    pub fn stream_labels(&self, stream: Stream) -> Vec<(&'static str, &str)> {
        let sink = stream.sink().map(|sink| ("sink", self.sink_name(sink).unwrap_or("removed")));
        [Some(("stream", stream.as_str())), sink].into_iter().flatten().collect()
    }

    pub(crate) fn forward_errors(&self, destination: Destination) -> &Counter {
        match destination {
            Destination::Local => &self.local_errors,
            Destination::Sink(sink) => &self.sink_errors[sink.index()],
        }
    }

    /// Streams of the local broker and of the sinks of the configuration.
    pub fn streams(&self) -> impl Iterator<Item = Stream> {
        Stream::all().filter(|stream| stream.sink().is_none_or(|sink| self.sink_name(sink).is_some()))
    }

    /// Figures of a function, new ones for a new name. Callers keep the handle instead of asking per message.
    pub fn function(&self, name: &Arc<str>) -> Arc<FunctionMetrics> {
        lock(&self.functions).entry(name.clone()).or_default().clone()
    }

    /// Drops the series of a function that was removed.
    pub(crate) fn forget_function(&self, name: &str) {
        lock(&self.functions).remove(name);
    }

    /// Number of topics that a function is paused for.
    pub fn paused_topics(&self, name: &str) -> u64 {
        lock(&self.functions).get(name).map_or(0, |function| function.paused_topics.get())
    }

    /// The paused topics of a function.
    pub fn pauses(&self, name: &str) -> Vec<TopicPause> {
        lock(&self.functions).get(name).map(|function| function.pauses()).unwrap_or_default()
    }

    fn functions(&self) -> Vec<(Arc<str>, Arc<FunctionMetrics>)> {
        lock(&self.functions).iter().map(|(name, function)| (name.clone(), function.clone())).collect()
    }

    /// Counts a dead letter in total and for its function, if a function saw the message.
    pub fn dead_letter(&self, function: Option<&FunctionMetrics>, code: FailureCode) {
        self.dead_letters[code as usize].inc();
        if let Some(function) = function {
            function.failures[code as usize].inc();
        }
    }

    /// Counts committed records that are lost. The caller logs the reason.
    pub fn dropped(&self, reason: &str, records: u64) {
        let mut dropped = lock(&self.dropped);
        let known = dropped.len() < MAX_REASONS || dropped.contains_key(reason);
        *dropped.entry(if known { reason } else { "other" }.into()).or_default() += records;
    }

    fn all_dropped(&self) -> u64 {
        lock(&self.dropped).values().sum()
    }

    /// Adds the figures of a part that keeps its own. The HTTP thread calls the source for each scrape. Name and labels of
    /// a sample must be unique among all sources and this struct.
    pub fn source(&self, source: impl Fn(Now, &mut dyn FnMut(&Sample<'_>)) + Send + Sync + 'static) {
        lock(&self.sources).push(Box::new(source));
    }

    /// Unix time in milliseconds.
    pub fn start_time_ms(&self) -> u64 {
        self.start_time_ms
    }

    /// Alerts of all functions that are installed.
    pub fn alerts(&self) -> u64 {
        lock(&self.functions).values().map(|function| function.outputs(OutputKind::Alert)).sum()
    }

    /// Sum over all labels of a family that the sources export.
    pub fn sum(&self, family: &str, now: Now) -> u64 {
        let mut sum = 0;
        for source in lock(&self.sources).iter() {
            source(now, &mut |sample| {
                if let (true, Value::Integer(value)) = (sample.family == family, &sample.value) {
                    sum += value;
                }
            });
        }
        sum
    }

    /// The same over those that have this label.
    pub fn sum_of(&self, family: &str, label: (&str, &str), now: Now) -> u64 {
        let mut sum = 0;
        for source in lock(&self.sources).iter() {
            source(now, &mut |sample| {
                let is_it = sample.family == family && sample.labels.contains(&label);
                if let (true, Value::Integer(value)) = (is_it, &sample.value) {
                    sum += value;
                }
            });
        }
        sum
    }

    /// JSON document of `/status`: the most important figures, with percentiles.
    pub fn status(&self, now: Now) -> serde_json::Value {
        let functions: Vec<_> = self.functions().iter().map(|(name, function)| function.status(name)).collect();
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "messages": {
                "received": self.received.get(),
                "redelivered": self.redelivered.get(),
                "unrouted": self.unrouted.get(),
                "recorded": self.recorded.get(),
                "dead_lettered": self.dead_lettered.get(),
                "acknowledged": self.acknowledged.get(),
                "in_flight": self.in_flight.get(),
                "parked": self.sum("sedge_parked_messages", now),
            },
            "functions": functions,
            "outbox": {
                "records": self.sum("sedge_outbox_records", now),
                "bytes": self.sum("sedge_outbox_bytes", now),
            },
            "store": {
                "commits": self.sum("sedge_store_commits_total", now),
                "written_bytes": self.sum("sedge_store_written_bytes_total", now),
            },
            "dropped": self.all_dropped(),
            "connected": { "broker": self.broker.connected(), "sinks": self.connected_sinks().collect::<BTreeMap<_, _>>() },
        })
    }

    /// Page of `/metrics`, Prometheus text format 0.0.4.
    pub fn render(&self, now: Now) -> String {
        let mut text = Text::new();
        let mut add = |family, labels: &[(&str, &str)], value: Value<'_>| text.add(&Sample { family, labels, value });

        add("sedge_build_info", &[("version", env!("CARGO_PKG_VERSION"))], Value::Integer(1));
        add("sedge_start_time_seconds", &[], Value::Float(self.start_time_ms as f64 / 1e3));
        let broker = self.broker.connected().map(|connected| ("broker", connected));
        for (peer, connected) in broker.into_iter().chain(self.connected_sinks()) {
            add("sedge_connected", &[("peer", peer)], Value::Integer(connected.into()));
        }
        for (name, counter) in [
            ("sedge_sessions_lost_total", &self.sessions_lost),
            ("sedge_messages_received_total", &self.received),
            ("sedge_messages_acknowledged_total", &self.acknowledged),
            ("sedge_messages_redelivered_total", &self.redelivered),
            ("sedge_messages_unrouted_total", &self.unrouted),
            ("sedge_messages_recorded_total", &self.recorded),
            ("sedge_messages_dead_lettered_total", &self.dead_lettered),
            ("sedge_worker_restarts_total", &self.worker_restarts),
            ("sedge_invariants_broken_total", &self.invariants_broken),
            ("sedge_traces_total", &self.traces),
            ("sedge_traces_left_out_total", &self.traces_left_out),
        ] {
            add(name, &[], Value::Integer(counter.get()));
        }
        add("sedge_schedules_awaiting_clock", &[], Value::Integer(self.schedules_awaiting_clock.get()));
        add("sedge_state_removed_bytes", &[], Value::Integer(self.removed_state_bytes.get()));
        add("sedge_in_flight", &[], Value::Integer(self.in_flight.get()));
        for stream in self.streams() {
            let labels = self.stream_labels(stream);
            add("sedge_forwarded_total", &labels, Value::Integer(self.forwarded[stream].get()));
        }
        let sinks = self.sink_names().iter().map(|(sink, name)| (&**name, &self.sink_errors[sink.index()]));
        for (sink, errors) in [("local", &self.local_errors)].into_iter().chain(sinks) {
            add("sedge_forward_errors_total", &[("sink", sink)], Value::Integer(errors.get()));
        }
        for code in FailureCode::ALL {
            let count = self.dead_letters[code as usize].get();
            add("sedge_dead_letters_total", &[("reason", code.as_str())], Value::Integer(count));
        }
        for (reason, count) in lock(&self.dropped).iter() {
            add("sedge_dropped_total", &[("reason", reason)], Value::Integer(*count));
        }
        for (name, function) in self.functions() {
            function.render(&name, &mut add);
        }
        for source in lock(&self.sources).iter() {
            source(now, &mut |sample| text.add(sample));
        }
        text.finish()
    }
}

impl FunctionMetrics {
    fn status(&self, name: &str) -> serde_json::Value {
        let micros = |share| self.duration.quantile(share).map(|it| it.as_nanos() as f64 / 1e3);
        let fuel = |share| self.fuel_per_run.quantile(share).map(|it| it.as_nanos() as u64);
        json!({
            "name": name,
            "invocations": self.invocations.get(),
            "dead_letters": self.all_failures(),
            "retries": self.retries.get(),
            "folded_alerts": self.folded_alerts.get(),
            "muted_alerts": self.muted_alerts.get(),
            "outputs": {
                "alert": self.outputs(OutputKind::Alert),
                "forward": self.outputs(OutputKind::Forward),
                "publish": self.outputs(OutputKind::Publish),
            },
            "duration_us": { "p50": micros(0.5), "p99": micros(0.99) },
            "fuel": { "p50": fuel(0.5), "p99": fuel(0.99) },
            "memory_bytes": self.memory_bytes.get(),
            "quarantined": self.quarantined.get() != 0,
            "paused_topics": self.paused_topics.get(),
            "held_bytes": self.held_bytes.get(),
            "state_bytes": self.state_bytes.get(),
            "state_forgotten": self.state_forgotten.get(),
            "wakes": self.wakes.get(),
            "wakes_waiting": self.wakes_waiting.get(),
            "silences": self.silences.get(),
            "watched_topics": self.watched_topics.get(),
            "silent_topics": self.silent_topics.get(),
            "schedules": self.schedules.get(),
            "schedules_late": self.schedules_late.get(),
            "schedules_skipped": self.schedules_skipped.get(),
            "busy_seconds": self.duration.sum().as_secs_f64(),
            "waiting_seconds": self.waited_us.get() as f64 / 1e6,
            "share_used": self.share.get() as f64 / 1e3,
        })
    }

    fn render(&self, name: &str, add: &mut impl FnMut(&'static str, &[(&str, &str)], Value<'_>)) {
        let function = ("function", name);
        for (family, value) in [
            ("sedge_function_invocations_total", self.invocations.get()),
            ("sedge_function_retries_total", self.retries.get()),
            ("sedge_function_folded_alerts_total", self.folded_alerts.get()),
            ("sedge_function_muted_alerts_total", self.muted_alerts.get()),
            ("sedge_function_fuel_total", self.fuel.get()),
            ("sedge_function_memory_bytes", self.memory_bytes.get()),
            ("sedge_function_quarantined", self.quarantined.get()),
            ("sedge_function_paused_topics", self.paused_topics.get()),
            ("sedge_function_held_bytes", self.held_bytes.get()),
            ("sedge_state_bytes", self.state_bytes.get()),
            ("sedge_state_forgotten_total", self.state_forgotten.get()),
            ("sedge_wakes_total", self.wakes.get()),
            ("sedge_wakes_waiting", self.wakes_waiting.get()),
            ("sedge_silences_total", self.silences.get()),
            ("sedge_watched_topics", self.watched_topics.get()),
            ("sedge_silent_topics", self.silent_topics.get()),
            ("sedge_schedules_total", self.schedules.get()),
            ("sedge_schedules_late_total", self.schedules_late.get()),
            ("sedge_schedules_skipped_total", self.schedules_skipped.get()),
        ] {
            add(family, &[function], Value::Integer(value));
        }
        add("sedge_function_waiting_seconds_total", &[function], Value::Float(self.waited_us.get() as f64 / 1e6));
        add("sedge_function_share_used", &[function], Value::Float(self.share.get() as f64 / 1e3));
        for kind in OutputKind::ALL {
            let labels = [function, ("kind", kind.as_str())];
            add("sedge_function_outputs_total", &labels, Value::Integer(self.outputs(kind)));
        }
        // Only the reasons that occurred: most of them stay zero.
        for code in FailureCode::ALL.into_iter().filter(|code| self.failures(*code) > 0) {
            let labels = [function, ("reason", code.as_str())];
            add("sedge_function_failures_total", &labels, Value::Integer(self.failures(code)));
        }
        add("sedge_function_duration_seconds", &[function], Value::Histogram(&self.duration));
    }
}

/// Locks, also after a panic: a panic while counting leaves no figure half written.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a test may read clocks and files")]
mod tests {
    use std::collections::HashMap;

    use super::*;

    /// Reads a page back: every sample by its full name, checked against the rules of the format.
    fn parse(page: &str) -> HashMap<String, f64> {
        let mut samples = HashMap::new();
        let mut family = String::new();
        let mut finished = Vec::new();
        for line in page.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                finished.push(std::mem::replace(&mut family, rest.split(' ').next().unwrap().into()));
                assert!(!finished.contains(&family), "{family} is in two places");
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').unwrap();
                assert_eq!(name, family);
                assert!(["counter", "gauge", "histogram"].contains(&kind));
            } else {
                let (name, value) = line.rsplit_once(' ').unwrap();
                let bare = name.split('{').next().unwrap();
                let suffixes = ["", "_bucket", "_sum", "_count"];
                assert!(suffixes.iter().any(|suffix| bare == format!("{family}{suffix}")), "{name} under {family}");
                assert!(samples.insert(name.into(), value.parse().unwrap()).is_none(), "{name} twice");
            }
        }
        samples
    }

    #[test]
    fn failure_codes_index_their_counters() {
        for (index, code) in FailureCode::ALL.into_iter().enumerate() {
            assert_eq!(code as usize, index);
        }
    }

    #[test]
    fn the_page_reads_back() {
        let metrics = Metrics::new(1_700_000_000_500);
        metrics.received.add(3);
        metrics.acknowledged.inc();
        metrics.broker.set(true);
        metrics.dropped("outbox-full", 2);
        metrics.dropped("outbox-full", 3);
        let name: Arc<str> = "threshold".into();
        let function = metrics.function(&name);
        function.ran(&Usage { fuel: 1_000, elapsed_us: 7, memory_bytes: 65_536, output_bytes: 9 });
        function.ran(&Usage { fuel: 500, elapsed_us: 80, memory_bytes: 32_768, output_bytes: 9 });
        function.emitted(OutputKind::Publish);
        metrics.dead_letter(Some(&function), FailureCode::Fuel);
        metrics.dead_letter(None, FailureCode::PayloadTooLarge);
        metrics.source(|_, add| {
            for stream in ["alert", "data"] {
                let labels = [("stream", stream)];
                add(&Sample { family: "sedge_outbox_records", labels: &labels, value: Value::Integer(4) });
            }
            let cumulative = [(0.001, 1), (0.01, 2)];
            let value = Value::Buckets { cumulative: &cumulative, count: 3, sum: 0.5 };
            add(&Sample { family: "sedge_store_sync_seconds", labels: &[], value });
        });

        let page = parse(&metrics.render(Now::at(Instant::now(), std::time::SystemTime::now(), true)));
        for (name, value) in [
            ("sedge_messages_received_total", 3.0),
            ("sedge_messages_acknowledged_total", 1.0),
            ("sedge_connected{peer=\"broker\"}", 1.0),
            ("sedge_dropped_total{reason=\"outbox-full\"}", 5.0),
            ("sedge_dead_letters_total{reason=\"fuel\"}", 1.0),
            ("sedge_dead_letters_total{reason=\"payload-too-large\"}", 1.0),
            ("sedge_dead_letters_total{reason=\"trap\"}", 0.0),
            ("sedge_function_invocations_total{function=\"threshold\"}", 2.0),
            ("sedge_function_fuel_total{function=\"threshold\"}", 1_500.0),
            ("sedge_function_memory_bytes{function=\"threshold\"}", 65_536.0),
            ("sedge_function_outputs_total{function=\"threshold\",kind=\"publish\"}", 1.0),
            ("sedge_function_failures_total{function=\"threshold\",reason=\"fuel\"}", 1.0),
            ("sedge_function_duration_seconds_bucket{function=\"threshold\",le=\"0.00001\"}", 1.0),
            ("sedge_function_duration_seconds_bucket{function=\"threshold\",le=\"+Inf\"}", 2.0),
            ("sedge_function_duration_seconds_count{function=\"threshold\"}", 2.0),
            ("sedge_function_duration_seconds_sum{function=\"threshold\"}", 0.000_087),
            ("sedge_outbox_records{stream=\"data\"}", 4.0),
            ("sedge_store_sync_seconds_bucket{le=\"0.01\"}", 2.0),
            ("sedge_store_sync_seconds_bucket{le=\"+Inf\"}", 3.0),
        ] {
            assert_eq!(page.get(name), Some(&value), "{name}");
        }
        assert!(!page.contains_key("sedge_connected{peer=\"upstream\"}"), "no upstream is configured");
        assert_eq!(page["sedge_start_time_seconds"], 1_700_000_000.5);

        metrics.forget_function("threshold");
        assert!(!metrics.render(Now::at(Instant::now(), std::time::SystemTime::now(), true)).contains("threshold"));
    }

    #[test]
    fn reasons_are_bounded() {
        let metrics = Metrics::default();
        for n in 0..1_000 {
            metrics.dropped(&format!("reason {n}"), 1);
        }
        assert_eq!(metrics.all_dropped(), 1_000);
        assert!(lock(&metrics.dropped).len() <= MAX_REASONS + 1);
    }
}
