//! Adds the figures of the store to the metrics. Neither part knows the other.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use sedge_core::metrics::{Metrics, Sample, Value};
use sedge_core::store::StoredSink;
use sedge_core::stream::Stream;
use sedge_store::{COMMIT_BUCKETS_US, Stats};

/// `sinks`: those that the store knows.
pub(crate) fn join(metrics: &Metrics, stats: &Arc<Stats>, sinks: Vec<StoredSink>) {
    let stats = Arc::clone(stats);
    metrics.source(move |now, add| {
        let get = |counter: &AtomicU64| counter.load(Relaxed);
        let mut integer = |family, labels: &[(&str, &str)], value| {
            add(&Sample { family, labels, value: Value::Integer(value) });
        };
        for (stream, sink) in streams(&sinks) {
            let labels = [("stream", stream.as_str()), ("sink", sink)];
            let oldest = get(&stats.outbox_oldest_at_ms[stream]);
            let age = if oldest == 0 { 0 } else { now.unix_ms.saturating_sub(oldest) / 1000 };
            integer("sedge_outbox_records", &labels, get(&stats.outbox_records[stream]));
            integer("sedge_outbox_bytes", &labels, get(&stats.outbox_bytes[stream]));
            integer("sedge_outbox_oldest_age_seconds", &labels, age);
        }
        let local = [Stream::LOCAL].map(|stream| ("local", vec![stream]));
        let of_sinks = sinks.iter().map(|sink| (&*sink.name, vec![Stream::alerts(sink.id), Stream::data(sink.id)]));
        for (sink, streams) in local.into_iter().chain(of_sinks) {
            let thinned = streams.iter().map(|stream| get(&stats.thinned[*stream])).sum();
            integer("sedge_thinned_total", &[("sink", sink)], thinned);
            for n in 0..stats.dropped[Stream::LOCAL].counts().len() {
                let counts = streams.iter().map(|stream| stats.dropped[*stream].counts()[n]);
                let (reason, count) = counts.fold(("", 0), |(_, sum), (reason, count)| (reason, sum + count));
                integer("sedge_dropped_total", &[("reason", reason), ("sink", sink)], count);
            }
        }
        for (part, counter) in
            [("database", &stats.damaged_databases), ("log", &stats.damaged_logs), ("row", &stats.damaged_rows)]
        {
            integer("sedge_store_damaged_total", &[("part", part)], get(counter));
        }
        for (family, value) in [
            ("sedge_dead_letters_kept", get(&stats.dead_letters)),
            ("sedge_dead_letters_kept_bytes", get(&stats.dead_letter_bytes)),
            ("sedge_dead_letters_expired_total", get(&stats.dead_letters_dropped)),
            ("sedge_parked_messages", get(&stats.parked)),
            ("sedge_parked_bytes", get(&stats.parked_bytes)),
            ("sedge_history_bytes", get(&stats.history_bytes)),
            ("sedge_store_commits_total", get(&stats.commits)),
            ("sedge_store_failures_total", get(&stats.failures)),
            ("sedge_store_wal_bytes", get(&stats.wal_bytes)),
            ("sedge_store_written_bytes_total", stats.bytes_written()),
        ] {
            integer(family, &[], value);
        }
        let mut count = 0;
        let cumulative: Vec<(f64, u64)> = COMMIT_BUCKETS_US
            .iter()
            .zip(&stats.commit_buckets)
            .map(|(bound_us, bucket)| {
                count += get(bucket);
                (*bound_us as f64 / 1e6, count)
            })
            .collect();
        let count = count + stats.commit_buckets.last().map_or(0, get);
        let sum = get(&stats.commit_us) as f64 / 1e6;
        add(&Sample {
            family: "sedge_store_sync_seconds",
            labels: &[],
            value: Value::Buckets { cumulative: &cumulative, count, sum },
        });
    });
}

/// The streams of these sinks and of the local broker, each with the name of its sink.
fn streams(sinks: &[StoredSink]) -> impl Iterator<Item = (Stream, &str)> {
    let of_sinks =
        sinks.iter().flat_map(|sink| [Stream::alerts(sink.id), Stream::data(sink.id)].map(|it| (it, &*sink.name)));
    of_sinks.chain([(Stream::LOCAL, "local")])
}
