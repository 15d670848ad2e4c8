//! Full disks, read-only disks, damaged files, second daemons.

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::Ordering::Relaxed;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::testing::*;
use crate::{DeadLetterFilter, DeadLetters, OpenError, Store, schema};
use sedge_core::config;
use sedge_core::message::FailureCode;
use sedge_core::store::{BatchNo, Commit, Parked, ParkedId, RecordId, StoreEvent, StoreRequest};
use sedge_core::stream::Stream;

#[test]
fn a_second_daemon_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("new/data");
    let rig = Rig::open(&data);
    assert_eq!(fs::metadata(&data).unwrap().permissions().mode() & 0o777, 0o700);
    for name in ["sedge.db", "sedge.db-wal", "lock"] {
        assert_eq!(fs::metadata(data.join(name)).unwrap().permissions().mode() & 0o777, 0o600, "{name}");
    }
    let Err(OpenError::Held { pid, .. }) = Store::open(&config::Store::default(), &data, 1, now()) else {
        panic!("a second daemon was accepted");
    };
    assert_eq!(pid, Some(std::process::id()));
    rig.close();
    Store::open(&config::Store::default(), &data, 1, now()).unwrap();
}

#[test]
fn a_newer_database_is_refused_and_unchanged() {
    let dir = tempfile::tempdir().unwrap();
    Rig::open(dir.path()).close();
    let connection = rusqlite::Connection::open(dir.path().join("sedge.db")).unwrap();
    connection.pragma_update(None, "user_version", 99).unwrap();
    drop(connection);
    let before = fs::read(dir.path().join("sedge.db")).unwrap();
    let result = Store::open(&config::Store::default(), dir.path(), 1, now());
    assert!(matches!(result, Err(OpenError::Newer { found: 99, .. })));
    assert_eq!(fs::read(dir.path().join("sedge.db")).unwrap(), before);
}

#[test]
fn rows_of_layout_1_are_read_and_written_again_with_sums() {
    let dir = tempfile::tempdir().unwrap();
    let connection = rusqlite::Connection::open(dir.path().join("sedge.db")).unwrap();
    let create = schema::CREATE.replace(" sum INTEGER,", "").replace(" used INTEGER NOT NULL DEFAULT 0,", "");
    let create = create.replace(", sinks BLOB", "");
    connection.execute_batch(&create).unwrap();
    // As in the tests of `row.rs`.
    let rows = "INSERT INTO alert VALUES (4, x'010107000100026602740170');
        INSERT INTO parked VALUES (3, x'010902660002610162000501');
        INSERT INTO scope VALUES (1, 'anomaly', '');
        INSERT INTO state VALUES (1, 'n', x'31');
        INSERT INTO meta VALUES ('ageless', x'00');
        DROP TABLE response; DROP TABLE sink;
        PRAGMA user_version = 1;";
    connection.execute_batch(rows).unwrap();
    drop(connection);
    let mut rig = Rig::open(dir.path());
    assert_eq!(rig.recovered.meta, []);
    assert_eq!((rig.recovered.parked.len(), rig.recovered.parked[0].wait_ms), (1, u64::MAX));
    let stored = rig.read_all(Stream::ALERT);
    assert_eq!((stored.len(), stored[0].id.0, &*stored[0].record.topic), (1, 4, "t"));
    assert_eq!(rig.state(&scope(None)), [("n".to_owned(), "1".into())]);
    rig.commit(vec![Commit { state: vec![(scope(None), vec![write("n", Some("2"))])], ..Commit::default() }]);
    assert_eq!(rig.state(&scope(None)), [("n".to_owned(), "2".into())]);
    rig.close();
    flip(dir.path(), "state", "value", 0);
    assert_eq!(Rig::open(dir.path()).state(&scope(None)), []);
}

#[test]
fn the_error_names_a_folder_that_cannot_be_created() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    let Err(OpenError::Unusable { path, .. }) = Store::open(&config::Store::default(), &file.join("data"), 1, now())
    else {
        panic!("the folder was created");
    };
    assert_eq!(path, file.join("data"));
}

/// A closed store with a good many rows of all kinds.
fn filled(dir: &Path) {
    let mut rig = Rig::open(dir);
    for n in 0..200 {
        let commit = Commit {
            records: vec![record(Stream::DATA, format!("{n} ").repeat(200)), record(Stream::ALERT, n.to_string())],
            state: vec![(scope(Some(&format!("topic/{n}"))), vec![write("k", Some("v"))])],
            ..delivery(n)
        };
        rig.commit(vec![commit]);
    }
    rig.close();
}

fn corrupt_files(dir: &Path) -> usize {
    let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names
        .filter(|name| name.starts_with("sedge.db.corrupt-") && !name.ends_with("-wal") && !name.ends_with("-shm"))
        .count()
}

#[test]
fn a_file_that_is_not_a_database_is_moved_aside() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("sedge.db"), "a shopping list, or what was left of it".repeat(1000)).unwrap();
    let mut rig = Rig::open(dir.path());
    let moved_aside = rig.recovered.moved_aside.clone().unwrap();
    assert_eq!(moved_aside.rows_saved, 0);
    assert!(fs::read(&moved_aside.moved_to).unwrap().starts_with(b"a shopping list"));
    assert_eq!(rig.commit(vec![records(vec![record(Stream::DATA, "x")])]).len(), 1);
    rig.close();
    assert!(Rig::open(dir.path()).recovered.moved_aside.is_none());
}

#[test]
fn readable_rows_of_a_damaged_database_are_saved() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path());
    let path = dir.path().join("sedge.db");
    let store_id = Rig::open(dir.path()).recovered.store_id;
    // Two pages in the middle. With 160 KB of records, they belong to the outbox.
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    let pages = file.metadata().unwrap().len() / 4096;
    file.write_all_at(&[0xff; 4096], pages / 3 * 4096).unwrap();
    file.write_all_at(&[0xff; 4096], pages / 2 * 4096).unwrap();
    drop(file);

    let mut rig = Rig::open(dir.path());
    let moved_aside = rig.recovered.moved_aside.clone().unwrap();
    assert!(moved_aside.moved_to.exists());
    assert!(moved_aside.rows_saved > 500, "{} rows were saved", moved_aside.rows_saved);
    assert_eq!(rig.recovered.store_id, store_id);
    assert_eq!(rig.read_all(Stream::ALERT).len() + rig.read_all(Stream::DATA).len(), {
        let lost = 400 - rig.read_all(Stream::ALERT).len() - rig.read_all(Stream::DATA).len();
        assert!(lost < 60, "{lost} records were lost with two pages");
        400 - lost
    });
    // Ids of lost rows are not reused.
    let stored = rig.commit(vec![records(vec![record(Stream::DATA, "x")])]);
    assert!(stored[0].id.0 > 1_000_000);
    rig.close();
    assert_eq!(corrupt_files(dir.path()), 1);
}

#[test]
fn ids_of_rows_that_were_lost_are_skipped_also_after_a_crash() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("sedge.db"), "not a database".repeat(1000)).unwrap();
    drop(Rig::open(dir.path()));
    let mut rig = Rig::open(dir.path());
    let stored = rig.commit(vec![records(vec![record(Stream::DATA, "x")])]);
    assert!(stored[0].id.0 > 1_000_000);
}

/// Flips a bit of a column of the newest row of a table.
fn flip(dir: &Path, table: &str, column: &str, bit: usize) {
    let connection = rusqlite::Connection::open(dir.join("sedge.db")).unwrap();
    let newest = format!("SELECT CAST({column} AS BLOB) FROM {table} ORDER BY 1 DESC LIMIT 1");
    let mut value: Vec<u8> = connection.query_row(&newest, (), |row| row.get(0)).unwrap();
    let old = value.clone();
    let at = value.len() * 8 - 1 - bit;
    value[at / 8] ^= 1 << (at % 8);
    let typed = format!("iif(typeof({column}) = 'text', CAST(?1 AS TEXT), ?1)");
    let update = format!("UPDATE {table} SET {column} = {typed} WHERE CAST({column} AS BLOB) = ?2");
    assert_eq!(connection.execute(&update, (value, old)).unwrap(), 1);
}

#[test]
fn a_damaged_record_is_a_gap_and_never_delivered() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open(dir.path());
    let of = |n: u64| record(Stream::DATA, format!("payload {n}"));
    rig.commit(vec![records((1..=5).map(of).collect())]);
    rig.close();
    // In the payload of the last record.
    flip(dir.path(), "data", "body", 40);
    let mut rig = Rig::open(dir.path());
    for _ in 0..2 {
        let found: Vec<u64> = rig.read_all(Stream::DATA).iter().map(|stored| stored.id.0).collect();
        assert_eq!(found, [1, 2, 3, 4]);
    }
    let stored = rig.commit(vec![records(vec![of(6)])]);
    assert_eq!(stored[0].id.0, 6);
    assert_eq!(rig.lost("damaged"), 1);
    rig.close();
    // Counted once, also across a restart.
    let mut rig = Rig::open(dir.path());
    let StoreEvent::Gaps { gaps, .. } = rig.event() else { panic!("no gap") };
    let [(_, gap)] = &gaps[..] else { panic!("{gaps:?}") };
    assert_eq!((&*gap.reason, gap.first_id.0, gap.last_id.0, gap.records), ("damaged", 5, 5, 1));
    assert_eq!(rig.read_all(Stream::DATA).len(), 5);
    assert_eq!(rig.lost("damaged"), 0);
}

#[test]
fn a_row_of_which_nothing_can_be_read_is_a_gap_of_its_records() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open(dir.path());
    let of = |n: u64| record(Stream::DATA, format!("payload {n}"));
    for first in [1, 4, 8] {
        rig.commit(vec![records((first..first + 3).map(of).collect())]);
    }
    rig.close();
    let connection = rusqlite::Connection::open(dir.path().join("sedge.db")).unwrap();
    connection.execute("UPDATE data SET body = zeroblob(200) WHERE id = 6", ()).unwrap();
    drop(connection);
    let mut rig = Rig::open(dir.path());
    let found: Vec<u64> = rig.read_all(Stream::DATA).iter().map(|stored| stored.id.0).collect();
    assert_eq!(found, [1, 2, 3, 7, 8, 9]);
    let StoreEvent::Gaps { gaps, .. } = rig.event() else { panic!("no gap") };
    assert_eq!((gaps[0].1.first_id.0, gaps[0].1.last_id.0, gaps[0].1.records), (4, 6, 3));
}

#[test]
fn damaged_state_is_deleted_and_reported_and_never_read() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open(dir.path());
    let writes = vec![write("a", Some("1")), write("b", Some("2"))];
    rig.commit(vec![Commit { state: vec![(scope(None), writes)], ..Commit::default() }]);
    rig.close();
    flip(dir.path(), "state", "value", 0);
    let mut rig = Rig::open(dir.path());
    assert_eq!(rig.state(&scope(None)), [("a".to_owned(), "1".into())]);
    assert_eq!(rig.handle.stats().damaged_rows.load(Relaxed), 1);
    rig.close();
    let mut rig = Rig::open(dir.path());
    assert_eq!(rig.state(&scope(None)), [("a".to_owned(), "1".into())]);
    assert_eq!(rig.handle.stats().damaged_rows.load(Relaxed), 0, "told once");
}

#[test]
fn damaged_watermarks_give_no_id_twice() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open(dir.path());
    for _ in 0..3 {
        rig.commit(vec![records(vec![record(Stream::DATA, "x")])]);
    }
    rig.send(StoreRequest::Delivered { stream: Stream::DATA, through: RecordId(3) });
    rig.close();
    flip(dir.path(), "progress", "body", 50);
    let mut rig = Rig::open(dir.path());
    assert_eq!(rig.handle.stats().damaged_rows.load(Relaxed), 1);
    let stored = rig.commit(vec![records(vec![record(Stream::DATA, "x")])]);
    assert!(stored[0].id.0 > 3, "id {} is given twice", stored[0].id);
    rig.close();
    assert_eq!(Rig::open(dir.path()).handle.stats().damaged_rows.load(Relaxed), 0, "told once");
}

#[test]
fn damaged_parked_jobs_and_dead_letters_are_reported_and_never_run() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open(dir.path());
    let park = |payload: &str| {
        let message = message("a", payload.to_owned()).into();
        vec![Parked { id: ParkedId::NEW, function: "f".into(), message, due_ms: 9, wait_ms: 9 }]
    };
    let dead_letters = vec![dead_letter("f", FailureCode::Trap, "x")];
    rig.commit(vec![Commit { park: park("one"), dead_letters, ..Commit::default() }]);
    rig.commit(vec![Commit { park: park("two"), ..Commit::default() }]);
    rig.close();
    flip(dir.path(), "parked", "body", 50);
    flip(dir.path(), "dead_letter", "function", 0);
    let rig = Rig::open(dir.path());
    let left: Vec<_> = rig.recovered.parked.iter().map(|job| job.message.payload.clone()).collect();
    assert_eq!(left, ["one"]);
    assert_eq!(rig.handle.stats().damaged_rows.load(Relaxed), 1);
    let mut letters = DeadLetters::open(dir.path()).unwrap();
    assert_eq!(letters.list(&DeadLetterFilter::default(), 9).unwrap(), []);
    assert_eq!(letters.replay(&DeadLetterFilter::default(), 5).unwrap(), 0);
    assert_eq!(letters.drop(&DeadLetterFilter::default()).unwrap(), 1);
}

#[test]
fn the_store_opens_after_any_damage() {
    let original = tempfile::tempdir().unwrap();
    filled(original.path());
    let good = fs::read(original.path().join("sedge.db")).unwrap();
    // A fixed seed, so that failures repeat: flipped bits, random pages, truncated files.
    let mut random = 1u64;
    for round in 0..24 {
        let mut bytes = good.clone();
        let mut next = || {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) as usize
        };
        match round % 3 {
            0 => bytes.truncate(next() % good.len()),
            1 => (0..200).for_each(|_| bytes[next() % good.len()] ^= 1 << (next() % 8)),
            _ => {
                let start = next() % (good.len() - 8192);
                bytes[start..start + 8192].fill_with(|| next() as u8);
            }
        }
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("sedge.db"), &bytes).unwrap();
        let mut rig = Rig::open(dir.path());
        for stream in Stream::FIRST {
            rig.read_all(stream);
        }
        rig.commit(vec![records(vec![record(Stream::DATA, "x")])]);
        let moved_aside = rig.recovered.moved_aside.is_some();
        rig.close();
        assert_eq!(corrupt_files(dir.path()), usize::from(moved_aside));
        if moved_aside {
            DeadLetters::open(dir.path()).unwrap().list(&DeadLetterFilter::default(), 1).unwrap();
        }
        assert!(Rig::open(dir.path()).recovered.moved_aside.is_none());
    }
}

#[test]
fn a_salvage_interrupted_by_a_power_cut_is_finished() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path());
    let (database, salvage) = (dir.path().join("sedge.db"), dir.path().join("sedge.db.salvage"));
    // Before the damaged file was moved: the copy is incomplete.
    fs::write(&salvage, "half a cop").unwrap();
    assert_eq!(Rig::open(dir.path()).read_all(Stream::ALERT).len(), 200);
    assert!(!salvage.exists());
    // After it was moved: only the copy exists.
    Rig::open(dir.path()).close();
    fs::rename(&database, &salvage).unwrap();
    assert_eq!(Rig::open(dir.path()).read_all(Stream::ALERT).len(), 200);
}

/// Writes what a daemon leaves that was killed after these many commits of a record each. Returns the log.
fn killed_after(commits: u64, to: &Path) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open(dir.path());
    for n in 0..commits {
        rig.commit(vec![Commit { records: vec![record(Stream::DATA, n.to_string())], ..delivery(n) }]);
    }
    for name in ["sedge.db", "sedge.db-wal"] {
        fs::copy(dir.path().join(name), to.join(name)).unwrap();
    }
    fs::read(to.join("sedge.db-wal")).unwrap()
}

/// Copies of logs that were kept.
fn kept_logs(dir: &Path) -> Vec<Vec<u8>> {
    let paths = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let kept = paths.filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with("sedge.db-wal.corrupt-"));
    kept.map(|path| fs::read(path).unwrap()).collect()
}

#[test]
fn a_flipped_bit_of_the_log_is_reported_and_no_id_is_given_twice() {
    let good = tempfile::tempdir().unwrap();
    let log = killed_after(40, good.path());
    // Every part of the header and of a frame header, and places in pages.
    let header = (0..32).chain(32..56).map(|byte| byte * 8 + byte % 8);
    for bit in header.chain((1..12).map(|n| n * log.len() * 8 / 14)) {
        let dir = tempfile::tempdir().unwrap();
        fs::copy(good.path().join("sedge.db"), dir.path().join("sedge.db")).unwrap();
        let mut damaged = log.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        fs::write(dir.path().join("sedge.db-wal"), &damaged).unwrap();
        let mut rig = Rig::open(dir.path());
        let left = rig.read_all(Stream::DATA).len();
        assert!(left < 40 && rig.recovered.moved_aside.is_none(), "bit {bit}: {left} records are left");
        assert_eq!(rig.handle.stats().damaged_logs.load(Relaxed), 1, "bit {bit}");
        assert_eq!(kept_logs(dir.path()), [damaged], "bit {bit}");
        // Also after a crash before anything was committed.
        drop(rig);
        let mut rig = Rig::open(dir.path());
        assert_eq!(rig.handle.stats().damaged_logs.load(Relaxed), 0, "told once");
        let stored = rig.commit(vec![records(vec![record(Stream::DATA, "x")])]);
        assert!(stored[0].id.0 > 40, "id {} is given twice", stored[0].id);
    }
}

#[test]
fn a_commit_that_lost_the_power_is_not_taken_for_damage() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = killed_after(40, dir.path());
    // The first sector of the first frame of the last commit.
    let frames = log.len() / 2072;
    let is_last = |n: usize| log[32 + n * 2072 + 4..][..4] != [0; 4];
    let before = (0..frames - 1).rev().find(|n| is_last(*n)).unwrap();
    log[32 + (before + 1) * 2072..][..512].fill(0);
    fs::write(dir.path().join("sedge.db-wal"), &log).unwrap();
    let mut rig = Rig::open(dir.path());
    assert_eq!(rig.read_all(Stream::DATA).len(), 39);
    assert_eq!((rig.handle.stats().damaged_logs.load(Relaxed), kept_logs(dir.path()).len()), (0, 0));
}

#[test]
fn an_empty_database_beside_a_log_is_damage_and_the_log_is_kept() {
    for is_there in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let log = killed_after(40, dir.path());
        let database = dir.path().join("sedge.db");
        fs::remove_file(&database).unwrap();
        if is_there {
            fs::write(&database, "").unwrap();
        }
        let mut rig = Rig::open(dir.path());
        assert_eq!(rig.handle.stats().damaged_logs.load(Relaxed), 1);
        assert_eq!(kept_logs(dir.path()), [log]);
        // The pages of the records are in the log.
        let found: Vec<_> = rig.read_all(Stream::DATA).into_iter().map(|stored| stored.record.payload).collect();
        assert_eq!(found, (0..40).map(|n: u64| n.to_string()).collect::<Vec<_>>());
        let stored = rig.commit(vec![records(vec![record(Stream::DATA, "x")])]);
        assert!(stored[0].id.0 > 40, "id {} is given twice", stored[0].id);
    }
}

/// Runs an ignored test of this file in another process, with limits and a user of its own.
fn in_child(test: &str, dir: &Path, as_nobody: bool) {
    let mut exe = std::env::current_exe().unwrap();
    let copy = tempfile::tempdir().unwrap();
    if as_nobody {
        // The other user must be able to read it.
        fs::set_permissions(copy.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::copy(&exe, copy.path().join("test")).unwrap();
        exe = copy.path().join("test");
    }
    // The shell ignores the signal, which exec preserves. Rust cannot do so without unsafe.
    let mut command = Command::new("sh");
    command.args(["-c", "trap '' XFSZ; exec \"$0\" --exact \"$1\" --ignored --nocapture"]).arg(exe);
    command.arg(format!("tests::damage::{test}")).env("SEDGE_TEST_DIR", dir);
    if as_nobody {
        std::os::unix::process::CommandExt::uid(&mut command, 65_534);
    }
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}{}", String::from_utf8_lossy(&output.stderr));
}

fn child_dir() -> std::path::PathBuf {
    std::env::var_os("SEDGE_TEST_DIR").expect("run by its parent").into()
}

#[test]
fn the_store_recovers_from_a_full_disk() {
    let dir = tempfile::tempdir().unwrap();
    in_child("child_with_a_full_disk", dir.path(), false);
}

/// The limit on the size of files stands in for the size of the disk: `write` fails in the middle of a commit.
#[test]
#[ignore = "run by the_store_recovers_from_a_full_disk"]
fn child_with_a_full_disk() {
    let dir = child_dir();
    let mut rig = Rig::open(&dir);
    for _ in 0..10 {
        rig.commit(vec![records(vec![record(Stream::DATA, vec![1; 1000])])]);
    }
    let wal = fs::metadata(dir.join("sedge.db-wal")).unwrap().len();
    let unlimited = getrlimit(Resource::Fsize);
    setrlimit(Resource::Fsize, Rlimit { current: Some(wal + 100_000), maximum: unlimited.maximum }).unwrap();
    let mut stored = 10;
    let mut sent = 0;
    for n in 0..200u64 {
        let commit = Commit { records: vec![record(Stream::DATA, vec![1; 10_000])], ..delivery(n) };
        let writes = vec![write("n", Some("1"))];
        sent = rig.start(vec![commit, Commit { state: vec![(scope(None), writes)], ..Commit::default() }]);
    }
    let error = loop {
        match rig.event() {
            StoreEvent::Committed { batch: BatchNo(seq), stored: more, .. } => {
                stored += more.len();
                assert!(seq < sent, "the disk was never full");
            }
            StoreEvent::Failed { error } => break error,
            other => panic!("{other:?}"),
        }
    };
    assert!(!error.is_empty());
    // It may reopen meanwhile, as a few bytes still fit. Requests sent before must not be stored.
    setrlimit(Resource::Fsize, unlimited).unwrap();
    let recovered = loop {
        match rig.event() {
            StoreEvent::Reopened(recovered) => break recovered,
            StoreEvent::Failed { .. } => {}
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(recovered.last[Stream::DATA].0, stored as u64);
    assert_eq!(rig.read_all(Stream::DATA).len(), stored);
    let next = rig.commit(vec![records(vec![record(Stream::DATA, "after")])]);
    assert_eq!(next[0].id.0, stored as u64 + 1);
    assert!(rig.handle.stats().failures.load(Relaxed) >= 1);
    rig.close();
}

#[test]
fn the_store_recovers_from_a_read_only_folder() {
    let dir = tempfile::tempdir().unwrap();
    let root = rustix::process::geteuid().is_root();
    let data = dir.path().join("data");
    fs::create_dir(&data).unwrap();
    if root {
        // Permissions do not stop root.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        std::os::unix::fs::chown(&data, Some(65_534), None).unwrap();
    }
    in_child("child_in_a_read_only_folder", &data, root);
}

#[test]
#[ignore = "run by the_store_recovers_from_a_read_only_folder"]
fn child_in_a_read_only_folder() {
    let dir = child_dir();
    let mut rig = Rig::open(&dir);
    rig.commit(vec![records(vec![record(Stream::DATA, "x")])]);
    let set_mode = |file: u32, folder: u32| {
        for entry in fs::read_dir(&dir).unwrap() {
            fs::set_permissions(entry.unwrap().path(), fs::Permissions::from_mode(file)).unwrap();
        }
        fs::set_permissions(&dir, fs::Permissions::from_mode(folder)).unwrap();
    };
    set_mode(0o400, 0o500);
    // Open files stay writable; a size limit makes the store reopen them.
    let unlimited = getrlimit(Resource::Fsize);
    setrlimit(Resource::Fsize, Rlimit { current: Some(0), maximum: unlimited.maximum }).unwrap();
    rig.start(vec![records(vec![record(Stream::DATA, "y")])]);
    assert!(matches!(rig.event(), StoreEvent::Failed { .. }));
    setrlimit(Resource::Fsize, unlimited).unwrap();
    let started = std::time::Instant::now();
    while started.elapsed().as_millis() < 2500 {
        assert!(rig.events.try_recv().is_none(), "the folder is still read-only");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    set_mode(0o600, 0o700);
    let StoreEvent::Reopened(recovered) = rig.event() else { panic!("expected Reopened") };
    assert_eq!(recovered.last[Stream::DATA].0, 1);
    assert_eq!(rig.read_all(Stream::DATA).len(), 1);
    rig.close();
}

#[test]
fn requests_sent_before_the_failure_was_received_are_discarded() {
    let dir = tempfile::tempdir().unwrap();
    in_child("child_that_receives_the_failure_late", dir.path(), false);
}

#[test]
#[ignore = "run by requests_sent_before_the_failure_was_received_are_discarded"]
fn child_that_receives_the_failure_late() {
    let dir = child_dir();
    let mut rig = Rig::open(&dir);
    rig.commit(vec![records(vec![record(Stream::DATA, "first")])]);
    let unlimited = getrlimit(Resource::Fsize);
    setrlimit(Resource::Fsize, Rlimit { current: Some(0), maximum: unlimited.maximum }).unwrap();
    rig.start(vec![records(vec![record(Stream::DATA, "fails")])]);
    let stats = rig.handle.stats().clone();
    let patience = || std::thread::sleep(std::time::Duration::from_millis(1));
    while stats.failures.load(Relaxed) == 0 {
        patience();
    }
    setrlimit(Resource::Fsize, unlimited).unwrap();
    // The store reopens while the daemon, which has not read its events, keeps sending.
    let before = stats.commits.load(Relaxed);
    for _ in 0..2000 {
        let late = StoreRequest::Commit {
            batch: BatchNo(1000),
            commits: vec![records(vec![record(Stream::DATA, "too late")])],
        };
        rig.send(late);
        patience();
    }
    assert_eq!(stats.commits.load(Relaxed), before);
    assert!(matches!(rig.event(), StoreEvent::Failed { .. }));
    rig.send(StoreRequest::Commit {
        batch: BatchNo(1001),
        commits: vec![records(vec![record(Stream::DATA, "between")])],
    });
    assert!(matches!(rig.event(), StoreEvent::Reopened(_)));
    let stored = rig.commit(vec![records(vec![record(Stream::DATA, "second")])]);
    assert_eq!(stored[0].id.0, 2);
    let payloads: Vec<_> = rig.read_all(Stream::DATA).into_iter().map(|stored| stored.record.payload).collect();
    assert_eq!(payloads, ["first", "second"]);
    rig.close();
}
