//! The history: in the transaction of its outcome, over restarts, within its bounds.

use std::num::NonZeroU32;
use std::sync::atomic::Ordering::Relaxed;

use rusqlite::Connection;
use sedge_core::config;
use sedge_core::store::{Commit, Record};
use sedge_core::stream::Stream;

use super::testing::{Rig, record, write};
use crate::{History, HistoryFilter, HistoryKind, HistoryPlace};

fn config(days: u32, max_bytes: u64) -> config::Store {
    let history = config::History { days: NonZeroU32::new(days), max_bytes: max_bytes.try_into().unwrap() };
    config::Store { history, ..config::Store::default() }
}

fn commit(entries: Vec<Record>) -> Commit {
    Commit { history: entries, ..Commit::default() }
}

/// Kinds and payloads of the whole history, oldest first, read in both directions.
fn entries(dir: &std::path::Path) -> Vec<(HistoryKind, String)> {
    let history = History::open(dir).unwrap();
    let read = |mut place: HistoryPlace| {
        let mut all = Vec::new();
        loop {
            let page = history.page(&HistoryFilter::default(), place).unwrap();
            let text = |record: Record| String::from_utf8_lossy(&record.payload).into_owned();
            all.extend(page.entries.into_iter().map(|(kind, record)| (kind, text(record))));
            let Some(next) = page.next else { return all };
            place = next;
        }
    };
    let all = read(HistoryPlace::After(0));
    let mut backwards = read(HistoryPlace::Before(u64::MAX));
    backwards.reverse();
    assert_eq!(backwards, all);
    all
}

#[test]
fn results_and_alerts_are_kept_over_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open_with(dir.path(), &config(7, 1 << 20));
    let long = "x".repeat(100_000);
    rig.commit(vec![
        commit(vec![record(Stream::ALERT, "fire"), record(Stream::LOCAL, "lamp"), record(Stream::DATA, "1")]),
        commit(vec![record(Stream::DATA, "2"), record(Stream::DATA, long.clone())]),
    ]);
    let expected = [
        (HistoryKind::Alert, "fire".to_owned()),
        (HistoryKind::Forward, "1".to_owned()),
        (HistoryKind::Forward, "2".to_owned()),
        (HistoryKind::Forward, long),
        (HistoryKind::Publication, "lamp".to_owned()),
    ];
    assert_eq!(entries(dir.path()), expected, "of one transaction, by kind");
    rig.close();
    let mut rig = Rig::open_with(dir.path(), &config(7, 1 << 20));
    rig.commit((0..150).map(|n| commit(vec![record(Stream::ALERT, n.to_string())])).collect());
    let all = entries(dir.path());
    assert_eq!((&all[..5], all.len()), (&expected[..], 155));
    rig.close();
}

#[test]
fn a_commit_that_is_not_on_disk_has_no_history() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open_with(dir.path(), &config(7, 1 << 20));
    let connection = Connection::open(dir.path().join("sedge.db")).unwrap();
    // Whatever else of the commit fails, such as an entry of state.
    connection
        .execute_batch("CREATE TRIGGER fails BEFORE INSERT ON state BEGIN SELECT RAISE(ABORT, 'no'); END")
        .unwrap();
    rig.commit(vec![commit(vec![record(Stream::DATA, "before")])]);
    let state = vec![(super::testing::scope(None), vec![write("k", Some("v"))])];
    rig.start(vec![Commit { state, ..commit(vec![record(Stream::DATA, "lost")]) }]);
    rig.event();
    assert_eq!(entries(dir.path()), [(HistoryKind::Forward, "before".to_owned())]);
}

#[test]
fn the_history_stays_within_its_bytes_and_keeps_the_newest() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open_with(dir.path(), &config(7, 1 << 20));
    for n in 0..40_u32 {
        rig.commit(vec![commit(vec![record(Stream::DATA, format!("{n:050000}"))])]);
    }
    let bytes = rig.handle.stats().history_bytes.load(Relaxed);
    assert!((900_000..=1 << 20).contains(&bytes), "{bytes} bytes");
    let all = entries(dir.path());
    assert_eq!((all.len(), &*all[0].1, &*all[19].1), (20, &*format!("{:050000}", 20), &*format!("{:050000}", 39)));
    // More than all of it in one entry: it is not kept, and neither is what was there.
    rig.commit(vec![commit(vec![record(Stream::DATA, vec![b'x'; 2 << 20])])]);
    assert_eq!((entries(dir.path()).len(), rig.handle.stats().history_bytes.load(Relaxed)), (0, 0));
    rig.close();
}

#[test]
fn old_rows_are_dropped_by_the_time_in_which_the_daemon_ran() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open_with(dir.path(), &config(2, 1 << 20));
    for payload in ["old", "new"] {
        rig.commit(vec![commit(vec![record(Stream::DATA, payload)])]);
    }
    rig.close();
    let connection = Connection::open(dir.path().join("sedge.db")).unwrap();
    let secs = (100_u64 * 3600).to_le_bytes().to_vec();
    connection.execute("REPLACE INTO meta VALUES ('running-secs', ?1)", (secs,)).unwrap();
    connection.execute("UPDATE history SET hour = 51 + id", ()).unwrap();
    drop(connection);
    let rig = Rig::open_with(dir.path(), &config(2, 1 << 20));
    rig.after_ticks(3);
    let kept = entries(dir.path());
    assert_eq!(kept.len(), 2, "52 hours are 48 before 100");
    rig.close();
    let connection = Connection::open(dir.path().join("sedge.db")).unwrap();
    connection.execute("UPDATE history SET hour = 50 + id", ()).unwrap();
    drop(connection);
    let rig = Rig::open_with(dir.path(), &config(2, 1 << 20));
    rig.after_ticks(3);
    assert_eq!(entries(dir.path()), [(HistoryKind::Forward, "new".to_owned())]);
    rig.close();
    // Switched off.
    let mut rig = Rig::open(dir.path());
    rig.commit(vec![commit(vec![record(Stream::DATA, "unwanted")])]);
    rig.after_ticks(3);
    assert_eq!(entries(dir.path()), []);
    rig.close();
}
