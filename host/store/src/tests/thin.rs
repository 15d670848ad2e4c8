//! Thinning out: what a sink that is away gets in place of its oldest data.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU64;
use std::path::Path;

use rusqlite::Connection;

use super::testing::*;
use sedge_core::config::{self, WhenFull};
use sedge_core::fold::{Fold, THINNED};
use sedge_core::store::{Gap, Record, RecordId, StoreEvent, StoreRequest, StoredRecord};
use sedge_core::stream::Stream;

const MINUTE_MS: u64 = 60_000;
const START_MS: u64 = 1_800_000_000_000;

fn config(max_bytes: u64) -> config::Store {
    let max_bytes = NonZeroU64::new(max_bytes).unwrap();
    config::Store { max_bytes, when_full: WhenFull::Thin, ..config::Store::default() }
}

fn reading(topic: &str, value: u64, at_ms: u64) -> Record {
    Record { topic: topic.into(), at_ms, ..record(Stream::DATA, format!("{{\"t\":{value}}}")) }
}

/// The daemon has no record behind this one in memory.
fn behind(rig: &Rig, held: u64) {
    rig.send(StoreRequest::Behind { stream: Stream::DATA, held: RecordId(held) });
}

/// What records of one topic say, single or folded.
#[derive(Debug, Default, PartialEq)]
struct Said {
    records: u64,
    sum: f64,
    minutes: BTreeSet<u64>,
}

fn said(stored: &[StoredRecord]) -> BTreeMap<String, Said> {
    let mut said: BTreeMap<String, Said> = BTreeMap::new();
    for stored in stored {
        let fold = Fold::of(stored).unwrap();
        let of = said.entry(stored.record.topic.to_string()).or_default();
        of.records += fold.records;
        of.sum += fold.fields().iter().map(|field| field.sum).sum::<f64>();
        of.minutes.extend(fold.from_ms / MINUTE_MS..=fold.to_ms / MINUTE_MS);
    }
    said
}

/// Gaps by reason, of a store that was closed.
fn all_gaps(dir: &Path, config: &config::Store) -> BTreeMap<String, Gap> {
    let mut rig = Rig::open_with(dir, config);
    loop {
        if let StoreEvent::Gaps { gaps, .. } = rig.event() {
            let mut all: BTreeMap<String, Gap> = BTreeMap::new();
            for (_, gap) in gaps {
                let reason = gap.reason.to_string();
                match all.get_mut(&reason) {
                    Some(known) => known.add(&gap),
                    None => drop(all.insert(reason, gap)),
                }
            }
            return all;
        }
    }
}

#[test]
fn a_cut_of_30_days_at_10_times_the_buffer_leaves_every_minute_and_every_sum() {
    let dir = tempfile::tempdir().unwrap();
    let max_bytes = 380_000;
    let mut rig = Rig::open_with(dir.path(), &config(max_bytes));
    behind(&rig, 0);
    let mut sent: BTreeMap<String, Said> = BTreeMap::new();
    let mut bytes = 0;
    for hour in 0..30 * 24_u64 {
        let mut commit = Vec::new();
        for n in 0..120 {
            let at_ms = START_MS + hour * 60 * MINUTE_MS + n * MINUTE_MS / 2;
            for (topic, value) in [("hall/1", (hour + n) % 50), ("hall/2", n % 7)] {
                let of = sent.entry(topic.to_owned()).or_default();
                of.records += 1;
                of.sum += value as f64;
                of.minutes.insert(at_ms / MINUTE_MS);
                commit.push(reading(topic, value, at_ms));
            }
        }
        if hour % 24 == 7 {
            commit.push(record(Stream::ALERT, format!("day {}", hour / 24)));
        }
        bytes += commit.iter().map(|record| record.payload.len() as u64 + 15).sum::<u64>();
        rig.commit(vec![records(commit)]);
        if hour == 400 {
            // A crash in the middle changes nothing: what is folded is on disk.
            drop(rig);
            rig = Rig::open_with(dir.path(), &config(max_bytes));
            behind(&rig, 0);
        }
        let stats = rig.handle.stats();
        let stored = stats.outbox_bytes[Stream::DATA].load(std::sync::atomic::Ordering::Relaxed);
        assert!(stored <= max_bytes, "{stored} bytes after {hour} hours");
    }
    assert!(bytes > 10 * max_bytes, "{bytes} bytes were sent");
    let alerts = rig.read_all(Stream::ALERT);
    let days: Vec<_> = alerts.iter().map(|it| String::from_utf8_lossy(&it.record.payload).into_owned()).collect();
    assert_eq!(days, (0..30).map(|day| format!("day {day}")).collect::<Vec<_>>());
    let left = rig.read_all(Stream::DATA);
    assert_eq!(said(&left), sent);
    assert!(left.windows(2).all(|pair| pair[0].id < pair[1].id), "in the order of their ids");
    assert!(left.iter().rev().take(100).any(|stored| !stored.record.is_folded), "the newest are as they were");
    rig.close();
    let gaps = all_gaps(dir.path(), &config(max_bytes));
    assert_eq!(gaps.keys().collect::<Vec<_>>(), [THINNED], "nothing is dropped");
    let folds: Vec<Fold> =
        left.iter().filter(|it| it.record.is_folded).map(|it| Fold::decode(&it.record.payload).unwrap()).collect();
    let folded: u64 = folds.iter().map(|fold| fold.records).sum();
    let bytes = folds.iter().map(|fold| fold.bytes).sum::<u64>();
    assert_eq!((gaps[THINNED].records, gaps[THINNED].bytes), (folded, bytes), "the gap says what was folded");
}

#[test]
fn what_is_lost_beyond_that_is_counted_with_all_that_it_stood_for() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open_with(dir.path(), &config(20_000));
    behind(&rig, 0);
    let mut sent = 0;
    for ten_hours in 0..200 {
        let at_ms = START_MS + ten_hours * 600 * MINUTE_MS;
        let commit = (0..200).map(|n| reading("t", n, at_ms + n * 3 * MINUTE_MS)).collect::<Vec<_>>();
        sent += commit.len() as u64;
        rig.commit(vec![records(commit)]);
    }
    let left = &said(&rig.read_all(Stream::DATA))["t"];
    let full = rig.lost("full");
    assert!(full > 0 && left.records > 3000, "{full} lost, {} left", left.records);
    assert_eq!(left.records + full, sent);
    rig.close();
    assert_eq!(all_gaps(dir.path(), &config(20_000))["full"].records, full);
}

#[test]
fn what_the_daemon_has_in_memory_is_not_folded() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open_with(dir.path(), &config(20_000));
    let commit = |rig: &mut Rig, from: u64| {
        let reading = |n| reading("t", n, START_MS + n * 1000);
        rig.commit(vec![records((from..from + 500).map(reading).collect())]);
    };
    commit(&mut rig, 0);
    // It had all until its window was full, in the middle of a row.
    behind(&rig, 230);
    (1..20).for_each(|n| commit(&mut rig, n * 500));
    let left = rig.read_all(Stream::DATA);
    assert!(left.len() < 1000, "{} records", left.len());
    let held: Vec<u64> = left.iter().take(230).map(|stored| stored.id.0).collect();
    assert_eq!(held, (1..=230).collect::<Vec<_>>());
    assert!(left[..230].iter().all(|stored| !stored.record.is_folded));
    assert_eq!(said(&left)["t"].records, 10_000);
    // What it has read is held as well.
    let (read, _) = rig.read(Stream::DATA, RecordId(230), 2000);
    let last = read.last().unwrap().id;
    rig.send(StoreRequest::Delivered { stream: Stream::DATA, through: RecordId(230) });
    (20..40).for_each(|n| commit(&mut rig, n * 500));
    let again = rig.read_all(Stream::DATA);
    let same = again.iter().take_while(|stored| stored.id <= last).cloned().collect::<Vec<_>>();
    assert_eq!(same, read);
    rig.close();
}

#[test]
fn data_without_numbers_is_dropped_as_it_always_was() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open_with(dir.path(), &config(20_000));
    behind(&rig, 0);
    let text = |n: u64| Record { at_ms: START_MS + n * 1000, ..record(Stream::DATA, format!("door {n} opened")) };
    for n in 0..60 {
        rig.commit(vec![records((n * 50..n * 50 + 50).map(text).collect())]);
    }
    let left = rig.read_all(Stream::DATA);
    assert!(left.len() > 200 && left.iter().all(|stored| !stored.record.is_folded));
    assert_eq!(left.last().unwrap().id, RecordId(3000));
    assert_eq!(left.len() as u64 + rig.lost("full"), 3000);
    let ids: Vec<u64> = left.iter().map(|stored| stored.id.0).collect();
    assert_eq!(ids, (ids[0]..=3000).collect::<Vec<_>>(), "each under its own id");
    rig.close();
}

#[test]
fn series_are_folded_apart_and_other_records_keep_their_ids() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open_with(dir.path(), &config(20_000));
    behind(&rig, 0);
    let mut all = Vec::new();
    for n in 0..2000_u64 {
        let at_ms = START_MS + n * 100;
        let payload = match n % 4 {
            0 => format!("{{\"t\":{n},\"labels\":{{\"line\":\"1\"}}}}"),
            1 => format!("{{\"t\":{n},\"labels\":{{\"line\":\"2\"}}}}"),
            2 => format!("{n}"),
            _ if n % 100 == 3 => "opened".to_owned(),
            _ => format!("{n}.5"),
        };
        all.push(Record { at_ms, ..record(Stream::DATA, payload) });
    }
    for commit in all.chunks(50) {
        rig.commit(vec![records(commit.to_vec())]);
    }
    let left = rig.read_all(Stream::DATA);
    let texts: Vec<u64> = left.iter().filter(|it| &*it.record.payload == b"opened").map(|stored| stored.id.0).collect();
    assert_eq!(texts, (0..20).map(|n| n * 100 + 4).collect::<Vec<_>>());
    let mut sums: BTreeMap<String, f64> = BTreeMap::new();
    for fold in left.iter().filter_map(Fold::of) {
        *sums.entry(fold.labels().to_owned()).or_default() += fold.fields()[0].sum;
    }
    let sum = |is_it: fn(u64) -> bool| (0..2000).filter(|n| is_it(*n)).sum::<u64>() as f64;
    assert_eq!(sums[r#"{"line":"1"}"#], sum(|n| n % 4 == 0));
    assert_eq!(sums[r#"{"line":"2"}"#], sum(|n| n % 4 == 1));
    assert_eq!(sums[""], sum(|n| n % 4 == 2 || n % 4 == 3 && n % 100 != 3) + 480.0 / 2.0);
    assert!(left.iter().any(|stored| stored.record.is_folded) && rig.lost("full") == 0);
    rig.close();
}

#[test]
fn a_damaged_row_of_folded_records_costs_only_the_damaged_ones() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open_with(dir.path(), &config(20_000));
    behind(&rig, 0);
    for n in 0..300 {
        let readings = (0..30).map(|m| reading("t", m, START_MS + n * MINUTE_MS + m * 1000)).collect();
        rig.commit(vec![records(readings)]);
    }
    let before = rig.read_all(Stream::DATA);
    rig.close();
    let connection = Connection::open(dir.path().join("sedge.db")).unwrap();
    let (id, mut row): (u64, Vec<u8>) = connection
        .query_row("SELECT id, body FROM data WHERE hex(substr(body, 1, 1)) = '03' LIMIT 1", (), |row| {
            Ok((row.get(0)?, row.get(1)?))
        })
        .unwrap();
    let middle = row.len() / 2;
    row[middle] ^= 0x10;
    connection.execute("UPDATE data SET body = ?2 WHERE id = ?1", (id, row)).unwrap();
    drop(connection);
    let mut rig = Rig::open_with(dir.path(), &config(20_000));
    let after = rig.read_all(Stream::DATA);
    assert!(after.len() < before.len() && after.iter().all(|stored| before.contains(stored)));
    rig.commit(vec![records(vec![record(Stream::ALERT, "x")])]);
    assert_eq!(rig.lost("damaged"), (before.len() - after.len()) as u64);
    assert_eq!(rig.read_all(Stream::DATA), after, "it is reported once");
    rig.send(StoreRequest::Refused { stream: Stream::DATA, id: after[0].id, reason: "no".into() });
    let fold = Fold::of(&after[0]).unwrap();
    rig.commit(vec![records(vec![record(Stream::ALERT, "x")])]);
    assert_eq!(rig.read_all(Stream::DATA), after[1..]);
    rig.close();
    assert_eq!(all_gaps(dir.path(), &config(20_000))["no"].records, fold.records);
}
