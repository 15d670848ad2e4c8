//! Fairness: a function that fills a share loses its own records.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU64;
use std::path::Path;

use proptest::collection::vec;
use proptest::prelude::*;

use super::testing::*;
use sedge_core::config::{self, SinkShare, WhenFull};
use sedge_core::fold::THINNED;
use sedge_core::store::{Gap, Record, RecordId, StoreEvent, StoreRequest, StoredRecord};
use sedge_core::stream::Stream;

fn config(max_bytes: u64, when_full: WhenFull) -> config::Store {
    config::Store { max_bytes: NonZeroU64::new(max_bytes).unwrap(), when_full, ..config::Store::default() }
}

fn of(function: &str, stream: Stream, bytes: usize) -> Record {
    Record { function: function.into(), ..record(stream, vec![b'x'; bytes]) }
}

/// Ids of a function among records.
fn ids(stored: &[StoredRecord], function: &str) -> Vec<u64> {
    stored.iter().filter(|stored| *stored.record.function == *function).map(|stored| stored.id.0).collect()
}

/// All gaps of a store that was closed.
fn all_gaps(dir: &Path, config: &config::Store) -> Vec<Gap> {
    let mut rig = Rig::open_with(dir, config);
    rig.send(StoreRequest::Close);
    let mut all = Vec::new();
    loop {
        match rig.event() {
            StoreEvent::Gaps { gaps, .. } => all.extend(gaps.into_iter().map(|(_, gap)| gap)),
            StoreEvent::Closed => return all,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_function_that_fills_a_share_loses_its_own_records_and_no_other_does() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(200_000, WhenFull::DropOldestData);
    let mut rig = Rig::open_with(dir.path(), &config);
    let (mut small, mut big) = (Vec::new(), Vec::new());
    for n in 0..300 {
        // Some of them share a row.
        let mut commit = vec![of("big", Stream::DATA, 5000), of("small", Stream::DATA, 100)];
        if n % 3 == 0 {
            commit.insert(1, of("big", Stream::DATA, 3000));
        }
        let last = rig.recovered.last[Stream::DATA].0 + small.len() as u64 + big.len() as u64;
        let ids = (last + 1..).zip(&commit);
        ids.for_each(|(id, record)| if &*record.function == "big" { big.push(id) } else { small.push(id) });
        match n % 4 {
            0 => drop(rig.commit(vec![records(commit)])),
            _ => commit.into_iter().for_each(|record| drop(rig.commit(vec![records(vec![record])]))),
        }
        if n == 150 {
            // Nothing of it is on disk but the records.
            rig.close();
            rig = Rig::open_with(dir.path(), &config);
            (small, big) = (Vec::new(), Vec::new());
            let left = rig.read_all(Stream::DATA);
            assert_eq!(self::ids(&left, "small").len(), 151);
            rig.recovered.last[Stream::DATA] = left.last().unwrap().id;
        }
        let bytes = rig.handle.stats().outbox_bytes[Stream::DATA].load(std::sync::atomic::Ordering::Relaxed);
        assert!(bytes <= 200_000, "{bytes} bytes");
    }
    let left = rig.read_all(Stream::DATA);
    assert!(left.windows(2).all(|pair| pair[0].id < pair[1].id), "in the order of their ids");
    assert_eq!(ids(&left, "small").len(), 300);
    let waiting = rig.handle.stats().outbox_records[Stream::DATA].load(std::sync::atomic::Ordering::Relaxed);
    assert_eq!(waiting, left.len() as u64);
    let kept = ids(&left, "big");
    assert!((20..50).contains(&kept.len()), "{} are left", kept.len());
    assert_eq!(kept, big[big.len() - kept.len()..], "the newest are left");
    let told: BTreeSet<u64> = rig.dropped.iter().flat_map(|(after, through)| after + 1..=*through).collect();
    assert!(small.iter().all(|id| !told.contains(id)));
    assert!(big[..big.len() - kept.len()].iter().all(|id| told.contains(id)), "the daemon is told of each");
    let lost = 400 - kept.len() as u64;
    rig.close();
    let gaps = all_gaps(dir.path(), &config);
    assert!(gaps.iter().all(|gap| gap.stream == Stream::DATA && &*gap.reason == "full"));
    assert_eq!(gaps.iter().map(|gap| gap.records).sum::<u64>(), lost);
    let bytes: usize = left.iter().filter(|it| &*it.record.function == "big").map(|it| it.record.payload.len()).sum();
    assert_eq!(gaps.iter().map(|gap| gap.bytes).sum::<u64>(), 300 * 5000 + 100 * 3000 - bytes as u64);
    let dropped = (1..kept[0]).filter(|id| !ids(&left, "small").contains(id));
    assert_eq!(dropped.clone().min(), gaps.iter().map(|gap| gap.first_id.0).min());
    assert_eq!(dropped.max(), gaps.iter().map(|gap| gap.last_id.0).max());
}

#[test]
fn functions_with_as_much_lose_their_oldest_records_alike() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open_with(dir.path(), &config(100_000, WhenFull::DropOldestData));
    for _ in 0..200 {
        rig.commit(vec![records(["a", "b"].map(|function| of(function, Stream::DATA, 1000)).into())]);
    }
    let left = rig.read_all(Stream::DATA);
    let (a, b) = (ids(&left, "a").len(), ids(&left, "b").len());
    assert!(a.abs_diff(b) <= 1 && a > 40, "{a} and {b} are left");
    let all: Vec<u64> = left.iter().map(|stored| stored.id.0).collect();
    assert_eq!(all[2..], (all[2]..=400).collect::<Vec<_>>(), "the newest of both");
    rig.close();
}

#[test]
fn alerts_are_dropped_last_and_fairly_too() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open_with(dir.path(), &config(50_000, WhenFull::DropOldestData));
    rig.commit(vec![records(vec![of("small", Stream::ALERT, 100), of("small", Stream::DATA, 100)])]);
    rig.commit(vec![records(vec![of("small", Stream::LOCAL, 100), of("big", Stream::LOCAL, 100)])]);
    for _ in 0..100 {
        rig.commit(vec![records(vec![of("big", Stream::DATA, 1000)])]);
    }
    assert_eq!(ids(&rig.read_all(Stream::DATA), "small"), [1]);
    for _ in 0..20 {
        rig.commit(vec![records(vec![of("big", Stream::ALERT, 1000)])]);
    }
    assert_eq!(rig.read_all(Stream::ALERT).len(), 21, "data makes room");
    assert_eq!(ids(&rig.read_all(Stream::DATA), "small"), [1]);
    assert_eq!(ids(&rig.read_all(Stream::LOCAL), "small"), [1], "what waits for the local broker is part of the share");
    for _ in 0..100 {
        rig.commit(vec![records(vec![of("big", Stream::ALERT, 1000)])]);
    }
    assert_eq!((rig.read_all(Stream::DATA), rig.read_all(Stream::LOCAL)), (vec![], vec![]));
    let alerts = rig.read_all(Stream::ALERT);
    assert_eq!(ids(&alerts, "small"), [1]);
    assert_eq!(alerts.last().unwrap().id, RecordId(121));
    rig.close();
}

#[test]
fn each_sink_has_parts_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let share = |name: &str, max_bytes| SinkShare { name: name.into(), max_bytes, when_full: WhenFull::DropOldestData };
    let sinks = vec![share("upstream", 40_000), share("lake", 40_000)];
    let mut rig = Rig::open_with(dir.path(), &config::Store { sinks, ..config::Store::default() });
    let [up, lake] = ["upstream", "lake"].map(|name| Stream::data(rig.recovered.sink(name).unwrap()));
    for _ in 0..100 {
        // The one that has most of the first has least of the second.
        let commit = vec![of("a", up, 1000), of("b", up, 50), of("b", lake, 1000), of("a", lake, 50)];
        rig.commit(vec![records(commit)]);
    }
    let (up, lake) = (rig.read_all(up), rig.read_all(lake));
    assert_eq!((ids(&up, "b").len(), ids(&lake, "a").len()), (100, 100));
    assert!(ids(&up, "a").len() < 40 && ids(&lake, "b").len() < 40);
    rig.close();
}

/// What was sent and not confirmed, or refused, is counted once.
#[test]
fn records_in_flight_are_told_of_and_a_refused_one_is_in_one_gap() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(20_000, WhenFull::DropOldestData);
    let mut rig = Rig::open_with(dir.path(), &config);
    let commit = |rig: &mut Rig| {
        rig.commit(vec![records(vec![of("small", Stream::DATA, 10), of("big", Stream::DATA, 2000)])]);
    };
    (0..5).for_each(|_| commit(&mut rig));
    let (read, _) = rig.read(Stream::DATA, RecordId(0), 100_000);
    assert_eq!(read.len(), 10);
    rig.send(StoreRequest::Delivered { stream: Stream::DATA, through: RecordId(2) });
    rig.send(StoreRequest::Refused { stream: Stream::DATA, id: RecordId(4), reason: "no".into() });
    (0..25).for_each(|_| commit(&mut rig));
    // Gone by then.
    rig.send(StoreRequest::Refused { stream: Stream::DATA, id: RecordId(6), reason: "no".into() });
    let left = rig.read_all(Stream::DATA);
    assert_eq!(ids(&left, "small"), (1..30).map(|n| 2 * n + 1).collect::<Vec<_>>());
    let big = ids(&left, "big");
    let told: Vec<u64> = rig.dropped.iter().flat_map(|(after, through)| after + 1..=*through).collect();
    assert_eq!(told, (3..big[0] / 2).map(|n| 2 * n).collect::<Vec<_>>());
    rig.close();
    let gaps = all_gaps(dir.path(), &config);
    let of = |reason: &str| gaps.iter().filter(|gap| &*gap.reason == reason).map(|gap| gap.records).sum::<u64>();
    assert_eq!((of("no"), of("full")), (1, told.len() as u64));
}

#[test]
fn a_damaged_row_behind_rows_that_were_dropped_is_a_gap_of_its_own_records() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(20_000, WhenFull::DropOldestData);
    let mut rig = Rig::open_with(dir.path(), &config);
    rig.commit(vec![records(vec![of("small", Stream::DATA, 10)])]);
    for n in 0..30 {
        rig.commit(vec![records(vec![of("big", Stream::DATA, 1000)])]);
        if n == 5 {
            rig.commit(vec![records(vec![of("small", Stream::DATA, 200)])]);
        }
    }
    assert_eq!(ids(&rig.read_all(Stream::DATA), "small"), [1, 8]);
    let full = rig.lost("full");
    assert!(full > 8);
    rig.close();
    let connection = rusqlite::Connection::open(dir.path().join("sedge.db")).unwrap();
    connection.execute("UPDATE data SET body = zeroblob(length(body)) WHERE id = 8", ()).unwrap();
    let rows: u64 = connection.query_row("SELECT count(*) FROM data", (), |row| row.get(0)).unwrap();
    assert_eq!(rows, 2 + 30 - full + 2, "an empty row on either side");
    drop(connection);
    let mut rig = Rig::open_with(dir.path(), &config);
    assert_eq!(ids(&rig.read_all(Stream::DATA), "small"), [1]);
    rig.commit(vec![records(vec![of("small", Stream::ALERT, 10)])]);
    assert_eq!(rig.lost("damaged"), 1);
    rig.close();
}

#[test]
fn data_of_a_function_within_its_part_is_not_folded_for_one_beyond_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(100_000, WhenFull::Thin);
    let mut rig = Rig::open_with(dir.path(), &config);
    rig.send(StoreRequest::Behind { stream: Stream::DATA, held: RecordId(0) });
    let reading = |function: &str, n: u64| Record {
        topic: "t".into(),
        at_ms: 1_800_000_000_000 + n * 1000,
        ..Record { function: function.into(), ..record(Stream::DATA, format!("{n}")) }
    };
    for n in 0..200 {
        rig.commit(vec![records(vec![reading("small", n), of("images", Stream::DATA, 5000)])]);
    }
    let left = rig.read_all(Stream::DATA);
    assert_eq!(ids(&left, "small").len(), 200);
    assert!(left.iter().all(|stored| !stored.record.is_folded) && rig.lost("full") > 100);
    // Readings of another are folded, and the images that were left stay.
    let images = ids(&left, "images").len();
    rig.send(StoreRequest::Behind { stream: Stream::DATA, held: RecordId(0) });
    for n in 0..100 {
        rig.commit(vec![records((n * 100..n * 100 + 100).map(|n| reading("many", n)).collect())]);
    }
    let left = rig.read_all(Stream::DATA);
    assert_eq!(ids(&left, "small").len(), 200);
    let images_left = ids(&left, "images").len();
    assert!(images_left >= images / 2 - 1, "{images_left} of {images} images");
    assert!(left.iter().filter(|stored| &*stored.record.function == "many").any(|stored| stored.record.is_folded));
    rig.close();
    let gaps = all_gaps(dir.path(), &config);
    assert!(gaps.iter().any(|gap| &*gap.reason == THINNED));
}

#[derive(Clone, Debug)]
enum Step {
    Commit(Vec<(usize, usize)>),
    Deliver(usize),
    Refuse(usize),
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => vec((0..4_usize, prop_oneof![0..200_usize, 500..3000_usize]), 1..8).prop_map(Step::Commit),
        2 => (0..100_usize).prop_map(Step::Deliver),
        2 => (0..100_usize).prop_map(Step::Refuse),
        1 => Just(Step::Restart),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, max_shrink_iters: 400, ..ProptestConfig::default() })]

    /// Whatever is added, delivered and refused: each record is somewhere, and whoever loses some is beyond its part.
    #[test]
    fn every_record_is_accounted_for_and_only_those_beyond_their_part_lose_some(steps in vec(step(), 1..80)) {
        const MAX_BYTES: u64 = 20_000;
        const NAMES: [&str; 4] = ["a", "b", "c", "d"];
        let dir = tempfile::tempdir().unwrap();
        let config = config(MAX_BYTES, WhenFull::DropOldestData);
        let mut rig = Rig::open_with(dir.path(), &config);
        let mut last = 0;
        // Those that are on disk: function, size, and whether it was refused.
        let mut on_disk: BTreeMap<u64, (usize, u64, bool)> = BTreeMap::new();
        let mut lost = (0, 0);
        let mut lose = |bytes| lost = (lost.0 + 1, lost.1 + bytes);
        let pick = |on_disk: &BTreeMap<u64, _>, share| {
            on_disk.keys().nth(on_disk.len() * share / 100).copied().unwrap_or(0)
        };
        for step in steps {
            match step {
                Step::Commit(commit) => {
                    for (function, bytes) in &commit {
                        last += 1;
                        on_disk.insert(last, (*function, *bytes as u64, false));
                    }
                    let commit = commit.iter().map(|(function, bytes)| of(NAMES[*function], Stream::DATA, *bytes));
                    rig.commit(vec![records(commit.collect())]);
                }
                Step::Deliver(share) => {
                    let through = pick(&on_disk, share);
                    rig.send(StoreRequest::Delivered { stream: Stream::DATA, through: RecordId(through) });
                    on_disk.retain(|id, _| *id > through);
                }
                Step::Refuse(share) => {
                    let id = pick(&on_disk, share);
                    rig.send(StoreRequest::Refused { stream: Stream::DATA, id: RecordId(id), reason: "no".into() });
                    if let Some((_, bytes, is_refused)) = on_disk.get_mut(&id).filter(|(.., is_refused)| !is_refused) {
                        *is_refused = true;
                        lose(*bytes);
                    }
                }
                Step::Restart => {
                    rig.close();
                    rig = Rig::open_with(dir.path(), &config);
                }
            }
            let left: Vec<u64> = rig.read_all(Stream::DATA).iter().map(|stored| stored.id.0).collect();
            let is_there = |id: &u64| on_disk.get(id).is_some_and(|(.., is_refused)| !is_refused);
            prop_assert!(left.iter().all(is_there) && left.is_sorted(), "{left:?} of {on_disk:?}");
            // No less than they have: with a part of a row that is delivered.
            let mut held = [1300; 4];
            on_disk.values().for_each(|(function, bytes, _)| held[*function] += bytes + 100);
            let dropped = on_disk.iter().filter(|(id, (.., is_refused))| !is_refused && !left.contains(id));
            for (id, (function, bytes, _)) in dropped {
                lose(*bytes);
                let part = (MAX_BYTES - MAX_BYTES / 32) / 4;
                prop_assert!(held[*function] > part, "{} lost {id}: {held:?}", NAMES[*function]);
            }
            on_disk.retain(|id, (.., is_refused)| *is_refused || left.contains(id));
        }
        rig.close();
        let gaps = all_gaps(dir.path(), &config);
        prop_assert_eq!(gaps.iter().fold((0, 0), |sum, gap| (sum.0 + gap.records, sum.1 + gap.bytes)), lost);
    }
}
