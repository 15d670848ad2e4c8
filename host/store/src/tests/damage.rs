//! Full disks, read-only disks, damaged files, second daemons.

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::Ordering::Relaxed;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::testing::*;
use crate::{DeadLetterFilter, DeadLetters, OpenError, Store};
use sedge_core::config;
use sedge_core::store::{BatchNo, Commit, StoreEvent, StoreRequest};
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
            records: vec![record(Stream::Data, format!("{n} ").repeat(200)), record(Stream::Alert, n.to_string())],
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
    assert_eq!(rig.commit(vec![records(vec![record(Stream::Data, "x")])]).len(), 1);
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
    assert_eq!(rig.read_all(Stream::Alert).len() + rig.read_all(Stream::Data).len(), {
        let lost = 400 - rig.read_all(Stream::Alert).len() - rig.read_all(Stream::Data).len();
        assert!(lost < 60, "{lost} records were lost with two pages");
        400 - lost
    });
    // Ids of lost rows are not reused.
    let stored = rig.commit(vec![records(vec![record(Stream::Data, "x")])]);
    assert!(stored[0].id.0 > 1_000_000);
    rig.close();
    assert_eq!(corrupt_files(dir.path()), 1);
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
        for stream in Stream::ALL {
            rig.read_all(stream);
        }
        rig.commit(vec![records(vec![record(Stream::Data, "x")])]);
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
    assert_eq!(Rig::open(dir.path()).read_all(Stream::Alert).len(), 200);
    assert!(!salvage.exists());
    // After it was moved: only the copy exists.
    Rig::open(dir.path()).close();
    fs::rename(&database, &salvage).unwrap();
    assert_eq!(Rig::open(dir.path()).read_all(Stream::Alert).len(), 200);
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
        rig.commit(vec![records(vec![record(Stream::Data, vec![1; 1000])])]);
    }
    let wal = fs::metadata(dir.join("sedge.db-wal")).unwrap().len();
    let unlimited = getrlimit(Resource::Fsize);
    setrlimit(Resource::Fsize, Rlimit { current: Some(wal + 100_000), maximum: unlimited.maximum }).unwrap();
    let mut stored = 10;
    let mut sent = 0;
    for n in 0..200u64 {
        let commit = Commit { records: vec![record(Stream::Data, vec![1; 10_000])], ..delivery(n) };
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
    assert_eq!(recovered.last[Stream::Data].0, stored as u64);
    assert_eq!(rig.read_all(Stream::Data).len(), stored);
    let next = rig.commit(vec![records(vec![record(Stream::Data, "after")])]);
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
    rig.commit(vec![records(vec![record(Stream::Data, "x")])]);
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
    rig.start(vec![records(vec![record(Stream::Data, "y")])]);
    assert!(matches!(rig.event(), StoreEvent::Failed { .. }));
    setrlimit(Resource::Fsize, unlimited).unwrap();
    let started = std::time::Instant::now();
    while started.elapsed().as_millis() < 2500 {
        assert!(rig.events.try_recv().is_none(), "the folder is still read-only");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    set_mode(0o600, 0o700);
    let StoreEvent::Reopened(recovered) = rig.event() else { panic!("expected Reopened") };
    assert_eq!(recovered.last[Stream::Data].0, 1);
    assert_eq!(rig.read_all(Stream::Data).len(), 1);
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
    rig.commit(vec![records(vec![record(Stream::Data, "first")])]);
    let unlimited = getrlimit(Resource::Fsize);
    setrlimit(Resource::Fsize, Rlimit { current: Some(0), maximum: unlimited.maximum }).unwrap();
    rig.start(vec![records(vec![record(Stream::Data, "fails")])]);
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
            commits: vec![records(vec![record(Stream::Data, "too late")])],
        };
        rig.send(late);
        patience();
    }
    assert_eq!(stats.commits.load(Relaxed), before);
    assert!(matches!(rig.event(), StoreEvent::Failed { .. }));
    rig.send(StoreRequest::Commit {
        batch: BatchNo(1001),
        commits: vec![records(vec![record(Stream::Data, "between")])],
    });
    assert!(matches!(rig.event(), StoreEvent::Reopened(_)));
    let stored = rig.commit(vec![records(vec![record(Stream::Data, "second")])]);
    assert_eq!(stored[0].id.0, 2);
    let payloads: Vec<_> = rig.read_all(Stream::Data).into_iter().map(|stored| stored.record.payload).collect();
    assert_eq!(payloads, ["first", "second"]);
    rig.close();
}
