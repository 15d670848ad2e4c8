//! The Prometheus text format 0.0.4, and the list of everything that is exported.

use std::fmt::Write;

use crate::metrics::histogram::Histogram;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// A metric, in the order of the page. A test holds `docs/metrics.md` to this list.
#[derive(Debug)]
struct Family {
    name: &'static str,
    kind: Kind,
    help: &'static str,
}

const fn counter(name: &'static str, help: &'static str) -> Family {
    Family { name, kind: Kind::Counter, help }
}

const fn gauge(name: &'static str, help: &'static str) -> Family {
    Family { name, kind: Kind::Gauge, help }
}

const fn histogram(name: &'static str, help: &'static str) -> Family {
    Family { name, kind: Kind::Histogram, help }
}

const FAMILIES: &[Family] = &[
    gauge("sedge_build_info", "Always 1; the version is a label."),
    gauge("sedge_start_time_seconds", "Unix time at which the daemon started."),
    gauge("sedge_connected", "1 while the connection to the peer is up, else 0."),
    counter(
        "sedge_sessions_lost_total",
        "Connections at which the broker had no session; messages queued meanwhile may be lost.",
    ),
    counter(
        "sedge_messages_received_total",
        "Messages delivered by the broker and requests over HTTP that were taken, repeats included.",
    ),
    counter(
        "sedge_messages_acknowledged_total",
        "Messages acknowledged to the broker after their outcome was on disk.",
    ),
    counter("sedge_messages_redelivered_total", "Redelivered messages that were recognised and not processed again."),
    counter("sedge_messages_unrouted_total", "Messages that no function subscribes to."),
    counter(
        "sedge_messages_recorded_total",
        "Messages committed without a dead letter, some of them to wait in the store for a run.",
    ),
    counter("sedge_messages_dead_lettered_total", "Messages committed with a dead letter of at least one function."),
    counter("sedge_http_requests_total", "Requests over HTTP that were answered, by the class of the status."),
    gauge("sedge_http_requests_in_flight", "Requests over HTTP that are not answered."),
    gauge("sedge_in_flight", "Messages received and not yet acknowledged."),
    counter("sedge_function_invocations_total", "Invocations, failures and retries included."),
    counter("sedge_function_failures_total", "Invocations that ended in a dead letter."),
    counter("sedge_function_retries_total", "Invocations that asked for a retry."),
    counter("sedge_function_outputs_total", "Outputs returned by the function."),
    counter("sedge_function_folded_alerts_total", "Alerts folded into an earlier alert with the same key."),
    counter("sedge_function_muted_alerts_total", "Alerts recorded and not sent, because a person muted them."),
    histogram("sedge_function_duration_seconds", "Duration of an invocation in the worker."),
    counter("sedge_function_waiting_seconds_total", "Time that messages waited for room at a worker."),
    gauge(
        "sedge_function_share_used",
        "Part of its share of the workers' time that the function used of late; 1 is all.",
    ),
    counter("sedge_function_fuel_total", "Fuel used by invocations."),
    gauge("sedge_function_memory_bytes", "Largest linear memory at the end of an invocation."),
    gauge("sedge_function_quarantined", "1 while the function is paused because it fails over several topics, else 0."),
    gauge(
        "sedge_function_paused_topics",
        "Topics that are paused for the function because it keeps failing over them.",
    ),
    gauge(
        "sedge_function_held_bytes",
        "Messages that wait for the function or are at its workers, with the room for their answers.",
    ),
    gauge("sedge_state_bytes", "State of the function, as it counts for the limits."),
    counter("sedge_state_forgotten_total", "Scopes whose state was deleted to make room (state_full)."),
    counter("sedge_wakes_total", "Wakes of the function that were run."),
    counter("sedge_silences_total", "Calls of the function because a topic was silent."),
    gauge("sedge_watched_topics", "Topics whose silence the function watches."),
    gauge("sedge_silent_topics", "Watched topics that are silent now."),
    gauge("sedge_wakes_waiting", "Wakes of the function that wait for their time or run."),
    counter("sedge_schedules_total", "Runs of the function by its schedules."),
    counter("sedge_schedules_late_total", "Of these, runs that began at least a second after their time."),
    counter(
        "sedge_schedules_skipped_total",
        "Times of schedules that were left out because they were older than catch_up.",
    ),
    gauge("sedge_schedules_awaiting_clock", "Schedules that wait for the clock to be synchronised."),
    gauge("sedge_state_removed_bytes", "State of functions that are not installed."),
    counter("sedge_dead_letters_total", "Messages that a function could not process."),
    gauge("sedge_dead_letters_kept", "Dead letters in the store."),
    gauge("sedge_dead_letters_kept_bytes", "Size of the dead letters in the store."),
    counter("sedge_dead_letters_expired_total", "Dead letters removed by the limits on their number and age."),
    gauge("sedge_parked_messages", "Messages in the store that wait for a retry."),
    gauge("sedge_parked_bytes", "Size of the messages in the store that wait for a retry."),
    gauge("sedge_history_bytes", "Size of the history."),
    counter("sedge_worker_restarts_total", "Worker processes that died and were replaced."),
    counter("sedge_invariants_broken_total", "Conditions that must hold and did not; see the log for their names."),
    counter("sedge_traces_total", "Messages whose spans are recorded."),
    counter("sedge_traces_left_out_total", "Messages whose spans are not recorded, because too many were to be."),
    counter("sedge_spans_exported_total", "Spans that the collector took."),
    counter("sedge_spans_dropped_total", "Spans that were not exported, by reason."),
    gauge("sedge_outbox_records", "Committed records that wait to be sent."),
    gauge("sedge_outbox_bytes", "Size of the records that wait to be sent."),
    gauge("sedge_outbox_oldest_age_seconds", "Age of the oldest record that waits to be sent."),
    counter("sedge_thinned_total", "Committed records that were folded into others because the outbox was full."),
    counter("sedge_dropped_total", "Committed records that were dropped, each reported upstream as part of a gap."),
    counter("sedge_forwarded_total", "Records accepted by the receiver."),
    counter("sedge_forward_errors_total", "Failed attempts to send a record; each is repeated."),
    counter("sedge_store_commits_total", "Transactions synced to disk."),
    histogram("sedge_store_sync_seconds", "Duration of a commit, the sync included."),
    counter("sedge_store_failures_total", "Disk failures; nothing is acknowledged until the disk works again."),
    counter(
        "sedge_store_damaged_total",
        "Damaged parts of the store: databases replaced, logs that lost commits, rows.",
    ),
    gauge("sedge_store_wal_bytes", "Size of the write-ahead log in use."),
    counter("sedge_store_written_bytes_total", "Bytes written to the database files."),
    counter("sedge_deploy_orders_accepted_total", "Signed orders accepted and started."),
    counter("sedge_deploy_orders_refused_total", "Orders refused, or accepted and failed later."),
    counter("sedge_deploy_chunks_total", "Module chunks accepted."),
    counter("sedge_deploy_chunks_refused_total", "Module chunks whose content did not match the signed digest."),
    counter(
        "sedge_deploy_messages_dropped_total",
        "Deploy messages dropped because the queue was full; they are fetched again.",
    ),
];

/// One value of a family. The labels are in the order of the page.
#[derive(Debug)]
pub struct Sample<'a> {
    /// Name of one of [`FAMILIES`].
    pub family: &'static str,
    pub labels: &'a [(&'a str, &'a str)],
    pub value: Value<'a>,
}

#[derive(Debug)]
pub enum Value<'a> {
    /// Exact above 2^53, which fuel exceeds.
    Integer(u64),
    Float(f64),
    Histogram(&'a Histogram),
    /// Histogram of another part: cumulative counts by upper bound in seconds, the total, and the sum in seconds.
    Buckets {
        cumulative: &'a [(f64, u64)],
        count: u64,
        sum: f64,
    },
}

/// Page under construction. Takes samples in any order and writes them family by family, as the format demands.
pub(super) struct Text {
    families: Vec<String>,
}

impl Text {
    pub(crate) fn new() -> Self {
        Self { families: vec![String::new(); FAMILIES.len()] }
    }

    pub(crate) fn add(&mut self, sample: &Sample<'_>) {
        let Some(index) = FAMILIES.iter().position(|family| family.name == sample.family) else {
            debug_assert!(false, "no such metric: {}", sample.family);
            return;
        };
        let out = &mut self.families[index];
        match sample.value {
            Value::Integer(value) => line(out, sample, "", None, &value.to_string()),
            Value::Float(value) => line(out, sample, "", None, &float(value)),
            Value::Histogram(histogram) => {
                let (cumulative, count) = histogram.exported();
                buckets(out, sample, &cumulative, count, histogram.sum().as_secs_f64());
            }
            Value::Buckets { cumulative, count, sum } => buckets(out, sample, cumulative, count, sum),
        }
    }

    pub(crate) fn finish(self) -> String {
        let mut page = String::new();
        for (family, lines) in FAMILIES.iter().zip(self.families) {
            if lines.is_empty() {
                continue;
            }
            let kind = match family.kind {
                Kind::Counter => "counter",
                Kind::Gauge => "gauge",
                Kind::Histogram => "histogram",
            };
            let _ = writeln!(page, "# HELP {} {}\n# TYPE {} {kind}", family.name, family.help, family.name);
            page.push_str(&lines);
        }
        page
    }
}

fn buckets(out: &mut String, sample: &Sample<'_>, cumulative: &[(f64, u64)], count: u64, sum: f64) {
    for (bound, below) in cumulative {
        line(out, sample, "_bucket", Some(&float(*bound)), &below.to_string());
    }
    line(out, sample, "_bucket", Some("+Inf"), &count.to_string());
    line(out, sample, "_sum", None, &float(sum));
    line(out, sample, "_count", None, &count.to_string());
}

fn line(out: &mut String, sample: &Sample<'_>, suffix: &str, le: Option<&str>, value: &str) {
    out.push_str(sample.family);
    out.push_str(suffix);
    let mut open = '{';
    for (name, label) in sample.labels.iter().copied().chain(le.map(|le| ("le", le))) {
        let _ = write!(out, "{open}{name}=\"");
        for c in label.chars() {
            match c {
                '\\' => out.push_str("\\\\"),
                '"' => out.push_str("\\\""),
                '\n' => out.push_str("\\n"),
                c => out.push(c),
            }
        }
        out.push('"');
        open = ',';
    }
    if open == ',' {
        out.push('}');
    }
    let _ = writeln!(out, " {value}");
}

fn float(value: f64) -> String {
    if value.is_nan() {
        "NaN".into()
    } else if value.is_infinite() {
        if value > 0.0 { "+Inf".into() } else { "-Inf".into() }
    } else {
        value.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(sample: &Sample<'_>) -> String {
        let mut text = Text::new();
        text.add(sample);
        text.finish()
    }

    #[test]
    fn labels_are_escaped() {
        let sample = Sample {
            family: "sedge_function_quarantined",
            labels: &[("function", "a\\b\"c\nd")],
            value: Value::Integer(1),
        };
        assert!(page(&sample).ends_with("\nsedge_function_quarantined{function=\"a\\\\b\\\"c\\nd\"} 1\n"));
    }

    #[test]
    fn numbers_are_what_prometheus_reads() {
        assert_eq!(float(0.000_005), "0.000005");
        assert_eq!(float(f64::INFINITY), "+Inf");
        assert_eq!(float(f64::NEG_INFINITY), "-Inf");
        assert_eq!(float(f64::NAN), "NaN");
        let sample = Sample { family: "sedge_in_flight", labels: &[], value: Value::Integer(u64::MAX) };
        assert!(page(&sample).ends_with("\nsedge_in_flight 18446744073709551615\n"));
    }

    #[test]
    fn names_are_conventional_and_unique() {
        for (index, family) in FAMILIES.iter().enumerate() {
            assert!(family.name.starts_with("sedge_"));
            assert_eq!(family.name.ends_with("_total"), family.kind == Kind::Counter, "{}", family.name);
            assert!(!FAMILIES[..index].iter().any(|other| other.name == family.name), "{} twice", family.name);
        }
    }

    #[test]
    fn every_metric_is_documented_and_every_documented_metric_exists() {
        let docs = include_str!("../../../../docs/metrics.md");
        for family in FAMILIES {
            assert!(docs.contains(&format!("`{}", family.name)), "docs/metrics.md lacks {}", family.name);
        }
        let named = docs.split('`').skip(1).step_by(2).filter(|code| code.starts_with("sedge_"));
        for name in named.map(|code| code.split('{').next().unwrap()) {
            assert!(FAMILIES.iter().any(|family| family.name == name), "docs/metrics.md names {name}");
        }
    }
}
