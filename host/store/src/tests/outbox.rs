//! Outbox: order, ids, bounds, gaps.

use std::num::NonZeroU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use super::testing::*;
use sedge_core::config::{self, WhenFull};
use sedge_core::store::{BatchNo, Gap, LoadId, RecordId, StoreEvent, StoreRequest};
use sedge_core::stream::{SinkId, Stream};

fn bounded(max_bytes: u64, when_full: WhenFull) -> config::Store {
    config::Store { max_bytes: NonZeroU64::new(max_bytes).unwrap(), when_full, ..config::Store::default() }
}

fn ids(stored: &[sedge_core::store::StoredRecord]) -> Vec<u64> {
    stored.iter().map(|stored| stored.id.0).collect()
}

#[test]
fn ids_are_not_reused_after_the_stream_was_emptied() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open(dir.path());
    for _ in 0..3 {
        rig.commit(vec![records(vec![record(Stream::ALERT, "x")])]);
    }
    rig.send(StoreRequest::Delivered { stream: Stream::ALERT, through: RecordId(3) });
    rig.close();
    let mut rig = Rig::open(dir.path());
    assert_eq!((rig.recovered.delivered[Stream::ALERT], rig.recovered.last[Stream::ALERT]), (RecordId(3), RecordId(3)));
    assert_eq!(rig.read_all(Stream::ALERT), []);
    assert_eq!(ids(&rig.commit(vec![records(vec![record(Stream::ALERT, "x")])])), [4]);
}

#[test]
fn a_watermark_within_a_segment_hides_its_first_records() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open(dir.path());
    rig.commit(vec![records((0..10).map(|n| record(Stream::DATA, n.to_string())).collect())]);
    rig.send(StoreRequest::Delivered { stream: Stream::DATA, through: RecordId(4) });
    assert_eq!(ids(&rig.read_all(Stream::DATA)), [5, 6, 7, 8, 9, 10]);
    rig.close();
    let mut rig = Rig::open(dir.path());
    assert_eq!(rig.recovered.delivered[Stream::DATA], RecordId(4));
    assert_eq!(ids(&rig.read_all(Stream::DATA)), [5, 6, 7, 8, 9, 10]);
}

#[test]
fn delivered_rows_are_deleted_and_their_space_is_reused() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open(dir.path());
    for _ in 0..200 {
        let stored = rig.commit(vec![records(vec![record(Stream::DATA, vec![7; 50_000])])]);
        rig.send(StoreRequest::Delivered { stream: Stream::DATA, through: stored[0].id });
    }
    rig.close();
    let size = std::fs::metadata(dir.path().join("sedge.db")).unwrap().len();
    assert!(size < 1 << 20, "10 MB went through a file of {size} bytes");
}

#[test]
fn a_long_backlog_is_read_in_chunks() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open(dir.path());
    for n in 0..50 {
        rig.commit(vec![records((0..7).map(|m| record(Stream::DATA, format!("{n} {m}"))).collect())]);
    }
    let (chunk, end) = rig.read(Stream::DATA, RecordId(100), 1000);
    assert!(!end && chunk[0].id == RecordId(101) && chunk.len() < 200);
    assert_eq!(ids(&rig.read_all(Stream::DATA)), (1..=350).collect::<Vec<_>>());
}

/// Waits for the next report of gaps.
fn gaps(rig: &mut Rig) -> Vec<Gap> {
    loop {
        if let StoreEvent::Gaps { gaps, .. } = rig.event() {
            return gaps.into_iter().map(|(_, gap)| gap).collect();
        }
    }
}

#[test]
fn a_full_outbox_drops_the_oldest_data_and_keeps_alerts() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open_with(dir.path(), &bounded(20_000, WhenFull::DropOldestData));
    rig.commit(vec![records(vec![record(Stream::ALERT, "fire")])]);
    for n in 0..40 {
        let mut record = record(Stream::DATA, vec![n; 1000]);
        record.at_ms += u64::from(n);
        rig.commit(vec![records(vec![record])]);
    }
    assert_eq!(rig.read_all(Stream::ALERT).len(), 1);
    let left = rig.read_all(Stream::DATA);
    assert!((17..20).contains(&left.len()), "{} records are left", left.len());
    assert_eq!(left.last().unwrap().id, RecordId(40));
    let dropped = 40 - left.len() as u64;
    assert_eq!(rig.lost("full"), dropped);
    assert_eq!(rig.dropped, (0..dropped).map(|id| (id, id + 1)).collect::<Vec<_>>());
    rig.close();

    // Both the reported gap and the one after it are on disk.
    let mut rig = Rig::open(dir.path());
    let gaps = gaps(&mut rig);
    assert_eq!(gaps.iter().map(|gap| gap.records).sum::<u64>(), dropped);
    assert_eq!(gaps.iter().map(|gap| gap.bytes).sum::<u64>(), dropped * 1000);
    assert!(gaps.iter().all(|gap| gap.stream == Stream::DATA && &*gap.reason == "full"));
    assert_eq!(gaps[0].first_id, RecordId(1));
    assert_eq!(gaps.last().unwrap().last_id, RecordId(dropped));
    assert_eq!(gaps[0].first_at_ms, 1_800_000_000_000);
    assert_eq!(gaps.last().unwrap().last_at_ms, 1_800_000_000_000 + dropped - 1);
}

#[test]
fn alerts_are_dropped_when_there_is_no_data_left() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open_with(dir.path(), &bounded(20_000, WhenFull::DropOldestData));
    rig.commit(vec![records(vec![record(Stream::DATA, "x"), record(Stream::LOCAL, "x")])]);
    for _ in 0..30 {
        rig.commit(vec![records(vec![record(Stream::ALERT, vec![1; 1000])])]);
    }
    assert_eq!(rig.read_all(Stream::DATA), []);
    assert_eq!(rig.read_all(Stream::LOCAL), []);
    let alerts = rig.read_all(Stream::ALERT);
    assert_eq!(alerts.last().unwrap().id, RecordId(30));
    assert!(alerts.len() < 20);
    // New data finds no room and is lost at once.
    let stored = rig.commit(vec![records(vec![record(Stream::DATA, vec![1; 5000])])]);
    assert_eq!(stored, []);
}

#[test]
fn a_gap_is_reported_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open_with(dir.path(), &bounded(5_000, WhenFull::DropOldestData));
    for _ in 0..10 {
        rig.start(vec![records(vec![record(Stream::DATA, vec![1; 1000])])]);
    }
    let mut reported = 0;
    while rig.lost("full") < 6 || reported < 6 {
        if let StoreEvent::Gaps { gaps, .. } = rig.event() {
            reported += gaps.iter().map(|(_, gap)| gap.records).sum::<u64>();
            let through = gaps.last().unwrap().0;
            rig.send(StoreRequest::GapsReported { sink: SinkId::UPSTREAM, through });
        }
    }
    assert_eq!(reported, rig.lost("full"));
    rig.close();
    let mut rig = Rig::open(dir.path());
    rig.send(StoreRequest::Close);
    assert!(matches!(rig.event(), StoreEvent::Closed), "nothing is left to report");
}

#[test]
fn a_full_outbox_blocks_until_there_is_room() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open_with(dir.path(), &bounded(10_000, WhenFull::Block));
    let mut sent = 0;
    for _ in 0..20 {
        sent = rig.start(vec![records(vec![record(Stream::DATA, vec![1; 1000])])]);
    }
    rig.send(StoreRequest::LoadState { id: LoadId(1), scope: scope(None) });
    let mut committed = 0;
    loop {
        match rig.event() {
            StoreEvent::Committed { stored, .. } => committed += stored.len() as u64,
            StoreEvent::Blocked(blocked) => {
                assert!(blocked);
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    assert!((8..10).contains(&committed), "{committed} records fit");
    assert_eq!(rig.read(Stream::DATA, RecordId(0), 1 << 20).0.len() as u64, committed);
    // There is room for some of them: the store may unblock and block in between.
    rig.send(StoreRequest::Delivered { stream: Stream::DATA, through: RecordId(committed) });
    let mut last_seq = 0;
    let mut state_loaded = false;
    while last_seq < sent || !state_loaded {
        match rig.event() {
            StoreEvent::Committed { batch: BatchNo(seq), stored, .. } => {
                last_seq = seq;
                committed += stored.len() as u64;
                rig.send(StoreRequest::Delivered { stream: Stream::DATA, through: RecordId(committed) });
            }
            StoreEvent::Blocked(_) => {}
            StoreEvent::State { id: LoadId(1), .. } => {
                state_loaded = true;
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(committed, 20);
    assert_eq!(rig.lost("full"), 0);
}

#[test]
fn a_record_larger_than_the_outbox_is_accepted_when_it_is_empty() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open_with(dir.path(), &bounded(10_000, WhenFull::Block));
    assert_eq!(rig.commit(vec![records(vec![record(Stream::DATA, vec![1; 50_000])])]).len(), 1);
}

#[test]
fn a_closing_store_does_not_commit_held_requests() {
    let dir = tempfile::tempdir().unwrap();
    let config = bounded(5_000, WhenFull::Block);
    let mut rig = Rig::open_with(dir.path(), &config);
    for _ in 0..20 {
        rig.start(vec![records(vec![record(Stream::DATA, vec![1; 1000])])]);
    }
    while !matches!(rig.event(), StoreEvent::Blocked(true)) {}
    rig.close();
    assert_eq!(Rig::open_with(dir.path(), &config).read_all(Stream::DATA).len(), 4);
}

#[test]
fn a_refused_record_becomes_a_gap_and_is_not_read_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open(dir.path());
    rig.commit(vec![records((0..5).map(|n| record(Stream::DATA, n.to_string())).collect())]);
    for _ in 0..2 {
        rig.send(StoreRequest::Refused { stream: Stream::DATA, id: RecordId(3), reason: "too-large".into() });
    }
    let gaps = gaps(&mut rig);
    assert_eq!(gaps.len(), 1);
    assert_eq!(
        (gaps[0].first_id, gaps[0].last_id, gaps[0].records, &*gaps[0].reason),
        (RecordId(3), RecordId(3), 1, "too-large")
    );
    assert_eq!(ids(&rig.read_all(Stream::DATA)), [1, 2, 4, 5]);
    rig.close();
    assert_eq!(ids(&Rig::open(dir.path()).read_all(Stream::DATA)), [1, 2, 4, 5]);
}

#[test]
fn records_that_are_too_old_become_a_gap() {
    let dir = tempfile::tempdir().unwrap();
    let config = config::Store { max_age_secs: NonZeroU64::new(1), ..config::Store::default() };
    let mut rig = Rig::open_with(dir.path(), &config);
    rig.commit(vec![records(vec![record(Stream::ALERT, "old")])]);
    let gaps = gaps(&mut rig);
    assert_eq!((gaps[0].stream, gaps[0].last_id, &*gaps[0].reason), (Stream::ALERT, RecordId(1), "expired"));
    rig.commit(vec![records(vec![record(Stream::ALERT, "new")])]);
    assert_eq!(ids(&rig.read_all(Stream::ALERT)), [2]);
}

/// The board booted in 1970 and its clock is right now, or was ten years behind.
#[test]
fn a_wrong_clock_drops_no_record() {
    let dir = tempfile::tempdir().unwrap();
    let config = config::Store { max_age_secs: NonZeroU64::new(86_400), ..config::Store::default() };
    let mut rig = Rig::open_with(dir.path(), &config);
    for at_ms in [0, 60_000, now().unix_ms - 10 * 365 * 24 * 3_600_000] {
        let of = |stream| sedge_core::store::Record { at_ms, ..record(stream, "x") };
        rig.commit(vec![records(vec![of(Stream::ALERT), of(Stream::DATA)])]);
    }
    rig.close();
    let mut rig = Rig::open_with(dir.path(), &config);
    rig.after_ticks(2);
    assert_eq!((rig.read_all(Stream::ALERT).len(), rig.read_all(Stream::DATA).len()), (3, 3));
    assert_eq!(rig.lost("expired"), 0);
}

#[test]
fn the_write_ahead_log_stays_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open(dir.path());
    let (mut sent, mut committed) = (0, 0);
    for _ in 0..1200 {
        // 64 KiB each, 8 in flight: about 80 MB in all.
        while sent - committed > 8 {
            if let StoreEvent::Committed { batch: BatchNo(seq), stored, .. } = rig.event() {
                committed = seq;
                rig.send(StoreRequest::Delivered { stream: Stream::DATA, through: stored.last().unwrap().id });
            }
        }
        sent = rig.start(vec![records(vec![record(Stream::DATA, vec![3; 64 << 10])])]);
    }
    let wal = std::fs::metadata(dir.path().join("sedge.db-wal")).unwrap().len();
    assert!(wal < 24 << 20, "the log grew to {wal} bytes");
    rig.close();
}

#[test]
fn flash_saver_spaces_commits() {
    let dir = tempfile::tempdir().unwrap();
    let config = config::Store { flash_saver_ms: 300, ..config::Store::default() };
    let mut rig = Rig::open_with(dir.path(), &config);
    rig.commit(vec![records(vec![record(Stream::DATA, "x")])]);
    let started = Instant::now();
    for n in 0..50 {
        rig.start(vec![records(vec![record(Stream::DATA, n.to_string())])]);
    }
    // Requests without a write do not wait.
    assert_eq!(rig.state(&scope(None)), []);
    rig.commit(vec![records(vec![record(Stream::DATA, "x")])]);
    assert!(started.elapsed() >= Duration::from_millis(250));
    assert!(rig.handle.stats().commits.load(Relaxed) <= 4);
}

/// One commit of 2,000 large records left a file of 1,267 MiB for ever.
#[test]
fn a_log_that_has_grown_is_truncated() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open(dir.path());
    let length = || std::fs::metadata(dir.path().join("sedge.db-wal")).unwrap().len();
    rig.commit(vec![records((0..10).map(|_| record(Stream::DATA, vec![7; 4 << 20])).collect())]);
    assert!(length() > 40 << 20, "{}", length());
    let begun = Instant::now();
    while length() > 17 << 20 {
        assert!(begun.elapsed() < Duration::from_secs(60), "{}", length());
        rig.commit(vec![records(vec![record(Stream::DATA, vec![7; 1 << 20])])]);
    }
    rig.close();
}

#[test]
fn a_transaction_is_bounded_however_much_waits() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open(dir.path());
    let before = rig.handle.stats().commits.load(Relaxed);
    // The first is being committed while the others gather.
    let sent: Vec<u64> =
        (0..20).map(|_| rig.start(vec![records(vec![record(Stream::DATA, vec![7; 2 << 20])])])).collect();
    let mut confirmed = 0;
    while confirmed < *sent.last().unwrap() {
        if let StoreEvent::Committed { batch, .. } = rig.event() {
            assert!(batch.0 - confirmed <= 2, "{} at once", batch.0 - confirmed);
            confirmed = batch.0;
        }
    }
    assert!(rig.handle.stats().commits.load(Relaxed) - before >= 10);
    rig.close();
}
