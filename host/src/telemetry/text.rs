//! The Prometheus text format 0.0.4, and the list of everything that is exported.

use std::fmt::Write;

use super::Histogram;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// A metric: its name, its type and its meaning, in the order of the page. `docs/metrics.md` is held to this list.
#[derive(Debug)]
pub struct Family {
    pub name: &'static str,
    pub kind: Kind,
    pub help: &'static str,
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

pub const FAMILIES: &[Family] = &[
    gauge("sedge_build_info", "Always 1; the version is a label."),
    gauge("sedge_start_time_seconds", "When the daemon started, in Unix time."),
    gauge("sedge_connected", "Whether the connection to the peer is up."),
    counter("sedge_sessions_lost_total", "Connections to the broker that found no session and subscribed anew."),
    counter("sedge_messages_received_total", "Messages that the broker handed over, redelivered ones included."),
    counter(
        "sedge_messages_acknowledged_total",
        "Messages whose outcome is on disk and that the broker was told to forget.",
    ),
    counter("sedge_messages_redelivered_total", "Messages recognised as delivered before, and not processed again."),
    counter("sedge_messages_unrouted_total", "Messages that no function subscribes to."),
    counter("sedge_messages_recorded_total", "Messages whose functions all did their work."),
    counter("sedge_messages_dead_lettered_total", "Messages that at least one function could not process."),
    gauge("sedge_in_flight", "Messages received and not yet acknowledged."),
    counter("sedge_function_invocations_total", "Runs of a function, failed ones and retries included."),
    counter("sedge_function_failures_total", "Runs that ended in a dead letter."),
    counter("sedge_function_retries_total", "Runs that asked to see the message again."),
    counter("sedge_function_outputs_total", "Outputs that a function returned."),
    counter("sedge_function_folded_alerts_total", "Alerts that were folded into an earlier one with the same key."),
    histogram("sedge_function_duration_seconds", "Time of a run, in the worker."),
    counter("sedge_function_fuel_total", "Fuel that runs of a function used."),
    gauge("sedge_function_memory_bytes", "Largest linear memory that a run of a function ended with."),
    gauge("sedge_function_quarantined", "Whether the function is paused because it kept failing."),
    counter("sedge_dead_letters_total", "Messages that a function could not process."),
    gauge("sedge_dead_letters_kept", "Dead letters in the store."),
    gauge("sedge_dead_letters_kept_bytes", "Their size."),
    counter("sedge_dead_letters_expired_total", "Dead letters removed because they were too many or too old."),
    gauge("sedge_parked_messages", "Messages in the store that wait for a retry."),
    gauge("sedge_parked_bytes", "Their size."),
    counter("sedge_worker_restarts_total", "Worker processes that died and were replaced."),
    counter("sedge_invariants_broken_total", "Conditions that must hold and did not; see the log for their names."),
    gauge("sedge_outbox_records", "Committed records that wait to be sent."),
    gauge("sedge_outbox_bytes", "Size of the records that wait to be sent."),
    gauge("sedge_outbox_oldest_age_seconds", "Age of the oldest record that waits to be sent."),
    counter("sedge_dropped_total", "Committed records that were lost, each reported upstream as part of a gap."),
    counter("sedge_forwarded_total", "Records that the receiver has taken."),
    counter("sedge_forward_errors_total", "Attempts to send a record that failed and are repeated."),
    counter("sedge_store_commits_total", "Transactions that were synced to disk."),
    histogram("sedge_store_sync_seconds", "Time of a commit, the sync included."),
    counter("sedge_store_failures_total", "Times that the disk failed and nothing was acknowledged until it was back."),
    gauge("sedge_store_wal_bytes", "Size of the write-ahead log that is in use."),
    counter("sedge_store_written_bytes_total", "Bytes written to the database files."),
    counter("sedge_deploy_orders_accepted_total", "Orders of trusted keys that were set about."),
    counter("sedge_deploy_orders_refused_total", "Orders that were refused, or that did not end well."),
    counter("sedge_deploy_chunks_total", "Pieces of modules that were taken."),
    counter("sedge_deploy_chunks_refused_total", "Pieces of modules that were not what was signed."),
    counter("sedge_deploy_messages_dropped_total", "Messages of deploying that came too fast, and are fetched again."),
];

/// One figure of a family. The labels are in the order of the page.
#[derive(Debug)]
pub struct Sample<'a> {
    /// A name of [`FAMILIES`]; any other is not exported.
    pub family: &'static str,
    pub labels: &'a [(&'a str, &'a str)],
    pub value: Value<'a>,
}

#[derive(Debug)]
pub enum Value<'a> {
    /// Exact beyond 2^53, which fuel reaches.
    Integer(u64),
    Float(f64),
    Histogram(&'a Histogram),
    /// A histogram that was kept elsewhere: cumulative counts by upper bound in seconds, then all, then the sum.
    Buckets {
        cumulative: &'a [(f64, u64)],
        count: u64,
        sum: f64,
    },
}

/// Collects samples in any order and writes them family by family, as the format demands.
pub(super) struct Text {
    families: Vec<String>,
}

impl Text {
    pub fn new() -> Self {
        Self { families: vec![String::new(); FAMILIES.len()] }
    }

    pub fn add(&mut self, sample: &Sample<'_>) {
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

    pub fn finish(self) -> String {
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
        let docs = include_str!("../../../docs/metrics.md");
        for family in FAMILIES {
            assert!(docs.contains(&format!("`{}", family.name)), "docs/metrics.md lacks {}", family.name);
        }
        let named = docs.split('`').skip(1).step_by(2).filter(|code| code.starts_with("sedge_"));
        for name in named.map(|code| code.split('{').next().unwrap()) {
            assert!(FAMILIES.iter().any(|family| family.name == name), "docs/metrics.md names {name}");
        }
    }
}
