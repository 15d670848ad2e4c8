//! Cost of a committed record: CPU, bytes written, and time, by the number of records per commit.
//!
//! `cargo bench -p sedge --bench store [DIR]`; DIR is on the disk to measure (default: the target folder). Each record
//! has 200 bytes of payload and comes from a delivery of its own. CPU is that of the store's threads, reading back and
//! deleting included. Bytes are those given to `write` for the WAL and by checkpoints. Disk is the same in blocks of the
//! file system.
//!
//! - drained: upstream accepts each batch as soon as it is committed
//! - backlog: upstream accepts everything at the end, read back from the disk
//! - state: like drained, with one write per record to the state of its topic (100 topics)

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rustix::time::{ClockId, clock_gettime};
use sedge_core::config;
use sedge_core::message::{Scope, StateWrite};
use sedge_core::store::{BatchNo, Commit, Fingerprint, Record, RecordId, StoreEvent, StoreRequest};
use sedge_core::stream::Stream;
use sedge_core::time::Now;
use sedge_store::{Store, StoreEvents, StoreHandle};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Upstream {
    Drained,
    Backlog,
    State,
}

fn main() {
    // `cargo bench` passes --bench.
    let dir = std::env::args().skip(1).find(|arg| !arg.starts_with("--")).map_or_else(default_dir, PathBuf::from);
    println!(
        "{:>8} {:>6} {:>10} {:>10} {:>9} {:>9} {:>9} {:>9}",
        "", "batch", "records/s", "cpu us/rec", "bytes/rec", "disk/rec", "commit ms", "max ms"
    );
    for upstream in [Upstream::Drained, Upstream::Backlog, Upstream::State] {
        for (batch, commits) in [(1, 1000), (64, 1000), (256, 800)] {
            measure(&dir, upstream, batch, commits);
        }
    }
}

fn default_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_TMPDIR").map_or_else(std::env::temp_dir, PathBuf::from)
}

fn measure(dir: &Path, upstream: Upstream, batch: u64, commits: u64) {
    let folder = tempfile::tempdir_in(dir).expect("the folder can be written");
    let (handle, mut events, _) = Store::open(
        &config::Store::default(),
        folder.path(),
        1024,
        Now::at(Instant::now(), std::time::SystemTime::now(), true),
    )
    .expect("a new store can be opened");
    let payload = Bytes::from(vec![b'x'; 200]);
    let (cpu, before, started) = (cpu_time(), written(), Instant::now());
    for number in 1..=commits {
        let first = (number - 1) * batch;
        let deliveries = (first..first + batch).map(|n| delivery(n, upstream, &payload)).collect();
        send(&handle, StoreRequest::Commit { batch: BatchNo(number), commits: deliveries });
        let committed = event(&mut events);
        assert!(
            matches!(committed, StoreEvent::Committed { batch: BatchNo(done), .. } if done == number),
            "{committed:?}"
        );
        if upstream != Upstream::Backlog {
            send(&handle, StoreRequest::Delivered { stream: Stream::DATA, through: RecordId(first + batch) });
        }
    }
    let elapsed = started.elapsed();
    if upstream == Upstream::Backlog {
        drain(&handle, &mut events, batch * commits);
    }
    let stats = handle.stats().clone();
    send(&handle, StoreRequest::Close);
    while !matches!(event(&mut events), StoreEvent::Closed) {}
    let (cpu, after) = (cpu_time() - cpu, written());
    let records = (batch * commits) as f64;
    let load = |counter: &std::sync::atomic::AtomicU64| counter.load(std::sync::atomic::Ordering::Relaxed) as f64;
    println!(
        "{:>8} {batch:>6} {:>10.0} {:>10.2} {:>9.0} {:>9.0} {:>9.2} {:>9.2}",
        format!("{upstream:?}").to_lowercase(),
        records / elapsed.as_secs_f64(),
        cpu.as_secs_f64() * 1e6 / records,
        (after.0 - before.0) as f64 / records,
        (after.1 - before.1) as f64 / records,
        load(&stats.commit_us) / load(&stats.commits) / 1000.0,
        load(&stats.commit_max_us) / 1000.0,
    );
}

fn delivery(n: u64, upstream: Upstream, payload: &Bytes) -> Commit {
    let topic = format!("sensors/room-{}/temperature", n % 100);
    let state = (upstream == Upstream::State).then(|| {
        let write = StateWrite { key: "mean".into(), value: Some(Bytes::copy_from_slice(&n.to_le_bytes())) };
        (Scope { function: "anomaly".into(), topic: Some(topic.as_str().into()) }, vec![write])
    });
    let record = Record {
        stream: Stream::DATA,
        function: "anomaly".into(),
        topic: topic.into(),
        payload: payload.clone(),
        content_type: Some("application/json".into()),
        retain: false,
        hops: 1,
        fan_out: 9,
        clock_synced: true,
        at_ms: 1_800_000_000_000 + n,
        trace: None,
        is_folded: false,
    };
    Commit {
        delivery: Some(Fingerprint { packet_id: n as u16, digest: n.wrapping_mul(0x9e37_79b9_7f4a_7c15) }),
        records: vec![record],
        state: state.into_iter().collect(),
        ..Commit::default()
    }
}

fn drain(handle: &StoreHandle, events: &mut StoreEvents, last: u64) {
    let mut after = RecordId(0);
    while after.0 < last {
        send(handle, StoreRequest::ReadOutbox { stream: Stream::DATA, after, max_bytes: 256 << 10 });
        match event(events) {
            StoreEvent::Outbox { stored, .. } => after = stored.last().expect("there is more").id,
            other => panic!("{other:?}"),
        }
        send(handle, StoreRequest::Delivered { stream: Stream::DATA, through: after });
    }
}

fn send(handle: &StoreHandle, request: StoreRequest) {
    handle.send(request).expect("the store is open, and little is in flight");
}

fn event(events: &mut StoreEvents) -> StoreEvent {
    events.blocking_recv().expect("the store is open")
}

/// CPU time of all other threads.
fn cpu_time() -> Duration {
    let time = |clock| {
        let time = clock_gettime(clock);
        Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
    };
    time(ClockId::ProcessCPUTime).saturating_sub(time(ClockId::ThreadCPUTime))
}

/// Bytes that this process gave to `write`, and bytes of dirtied blocks.
fn written() -> (u64, u64) {
    let io = std::fs::read_to_string("/proc/self/io").expect("the kernel counts I/O");
    let count = |name| {
        let bytes = io.lines().find_map(|line| line.strip_prefix(name)).and_then(|bytes| bytes.trim().parse().ok());
        bytes.expect("the kernel counts bytes")
    };
    (count("wchar:"), count("write_bytes:"))
}
