//! Calls of the disk that fail, once or for a while, and power cuts, on the disk of `vfs.rs`.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::Ordering::Relaxed;

use rusqlite::ffi;

use super::testing::*;
use super::vfs::{Call, Disk, Outcome, Random};
use super::witness::Witness;
use crate::OpenError;
use sedge_core::config;

/// A folder in memory where the system has one.
fn folder() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap()
}

/// How a call of this kind fails: as a disk that is broken or full does.
fn failure(call: Call, n: u64) -> Outcome {
    Outcome::Failed(match call {
        Call::Open => ffi::SQLITE_CANTOPEN,
        Call::Delete => ffi::SQLITE_IOERR_DELETE,
        Call::Access => ffi::SQLITE_IOERR_ACCESS,
        Call::Read if n.is_multiple_of(2) => ffi::SQLITE_IOERR_CORRUPTFS,
        Call::Read => ffi::SQLITE_IOERR_READ,
        Call::Write if n.is_multiple_of(2) => ffi::SQLITE_FULL,
        Call::Write => return Outcome::Torn(ffi::SQLITE_IOERR_WRITE),
        Call::Truncate => ffi::SQLITE_IOERR_TRUNCATE,
        Call::Sync => ffi::SQLITE_IOERR_FSYNC,
        Call::Size => ffi::SQLITE_IOERR_FSTAT,
        Call::Lock => ffi::SQLITE_IOERR_LOCK,
        Call::ShmMap => ffi::SQLITE_IOERR_SHMMAP,
        Call::ShmLock => ffi::SQLITE_IOERR_SHMLOCK,
    })
}

fn with_history() -> config::Store {
    let history = config::History { days: Some(7.try_into().unwrap()), ..config::History::default() };
    config::Store { history, ..config::Store::default() }
}

/// Opens a store as systemd does: until it works.
fn open(dir: &Path) -> Rig {
    for _ in 0..1000 {
        if let Ok(rig) = Rig::try_open(dir, &with_history()) {
            return rig;
        }
    }
    panic!("the store does not open");
}

/// Sends messages in this many batches, whatever happens. Everything is checked after each failure.
fn go(witness: &mut Witness, rig: &mut Rig, batches: u64, random: &mut Random) {
    for _ in 0..batches {
        let mut result = witness.send(rig, 1 + random.below(4));
        while result.is_err() {
            witness.reopened(rig);
            result = witness.check(rig);
        }
        witness.deliver(rig, random);
    }
}

/// How much a run commits.
#[derive(Clone, Copy)]
struct Size {
    payload_bytes: u64,
    batches: u64,
}

const SMALL: Size = Size { payload_bytes: 2000, batches: 5 };
/// Enough for checkpoints beside the writer.
const LARGE: Size = Size { payload_bytes: 60_000, batches: 60 };

/// Opens a new store, uses it, closes it and opens it again. Returns the number of calls.
fn run(size: Size, plan: impl FnMut(u64, Call, &str) -> Outcome + Send + 'static) -> u64 {
    let dir = folder();
    let disk = Disk::of(dir.path());
    let mut random = Random(1);
    let mut witness = Witness::new(size.payload_bytes);
    disk.plan(plan);
    for _ in 0..2 {
        let mut rig = open(dir.path());
        let mut result = witness.check(&mut rig);
        while result.is_err() {
            witness.reopened(&mut rig);
            result = witness.check(&mut rig);
        }
        go(&mut witness, &mut rig, size.batches, &mut random);
        rig.close();
    }
    let calls = disk.calls();
    disk.works_again();
    let mut rig = open(dir.path());
    witness.check(&mut rig).unwrap();
    go(&mut witness, &mut rig, 2, &mut random);
    rig.close();
    witness.check_files(dir.path());
    calls
}

/// Runs it for each of these calls.
fn for_each_call(size: Size, step: usize, test: impl Fn(u64) + Sync) {
    let calls = run(size, |_, _, _| Outcome::Done);
    let (first, second) = (1..=calls / 2, calls / 2 + 1..=calls);
    std::thread::scope(|scope| {
        for half in [first, second] {
            scope.spawn(|| half.step_by(step).for_each(&test));
        }
    });
}

#[test]
fn nothing_is_lost_when_any_call_fails_once() {
    for_each_call(SMALL, 1, |at| {
        run(SMALL, move |n, call, _| if n == at { failure(call, n) } else { Outcome::Done });
    });
}

#[test]
fn nothing_is_lost_when_all_calls_fail_for_a_while() {
    for_each_call(SMALL, 2, |at| {
        run(SMALL, move |n, call, _| if (at..at + 20).contains(&n) { failure(call, n) } else { Outcome::Done });
    });
}

#[test]
fn nothing_is_lost_when_reads_of_the_database_fail_for_a_while() {
    for_each_call(SMALL, 3, |at| {
        let mut left = 40;
        run(SMALL, move |n, call, name| {
            if n < at || (call, name) != (Call::Read, "sedge.db") || left == 0 {
                return Outcome::Done;
            }
            left -= 1;
            failure(call, n)
        });
    });
}

#[test]
fn nothing_is_lost_when_a_call_fails_beside_checkpoints() {
    for_each_call(LARGE, 211, |at| {
        run(LARGE, move |n, call, _| if (at..at + 3).contains(&n) { failure(call, n) } else { Outcome::Done });
    });
}

/// A folder with a store of some messages, as a killed daemon leaves it, and their witness.
fn killed() -> (tempfile::TempDir, Witness) {
    let (before, after) = (folder(), folder());
    let disk = Disk::of(before.path());
    let mut witness = Witness::new(2000);
    let mut rig = open(before.path());
    witness.check(&mut rig).unwrap();
    witness.send(&mut rig, 40).unwrap();
    rig.close();
    let mut rig = open(before.path());
    witness.check(&mut rig).unwrap();
    witness.send(&mut rig, 40).unwrap();
    disk.after_power_cut(&mut Random(0), after.path());
    (after, witness)
}

#[test]
fn what_looks_damaged_once_is_left_alone() {
    let calls = {
        let (dir, _) = killed();
        let disk = Disk::of(dir.path());
        drop(open(dir.path()));
        disk.calls()
    };
    for at in 1..=calls {
        let (dir, mut witness) = killed();
        let disk = Disk::of(dir.path());
        // What is read wrongly while the log is copied into the database gets there.
        let mut may_lie = true;
        disk.plan(move |n, call, _| {
            may_lie &= call != Call::Write;
            if n == at && may_lie && call == Call::Read { Outcome::Lie } else { Outcome::Done }
        });
        let mut rig = open(dir.path());
        assert_eq!(rig.handle.stats().damaged_logs.load(Relaxed), 0, "call {at}");
        disk.works_again();
        if witness.check(&mut rig).is_err() {
            witness.reopened(&mut rig);
            witness.check(&mut rig).unwrap();
        }
        rig.close();
        let mut rig = open(dir.path());
        witness.check(&mut rig).unwrap();
        rig.close();
        witness.check_files(dir.path());
    }
}

#[test]
fn a_salvage_ends_at_a_failed_read_and_replaces_nothing() {
    let (dir, mut witness) = killed();
    open(dir.path()).close();
    let database = dir.path().join("sedge.db");
    let good = fs::read(&database).unwrap();
    // Behind the last page of a table lies a page of noise: damaged, and all rows can be read.
    let file = fs::OpenOptions::new().write(true).open(&database).unwrap();
    file.write_all_at(&[0xff; 2048], good.len() as u64).unwrap();
    let pages = u32::try_from(good.len() / 2048 + 1).unwrap();
    file.write_all_at(&pages.to_be_bytes(), 28).unwrap();
    drop(file);
    let damaged = fs::read(&database).unwrap();
    let calls = {
        let copy = folder();
        fs::copy(&database, copy.path().join("sedge.db")).unwrap();
        let counted = Disk::of(copy.path());
        assert!(open(copy.path()).recovered.moved_aside.is_some(), "the test damages nothing");
        counted.calls()
    };
    let disk = Disk::of(dir.path());
    for at in 1..=calls {
        disk.plan(
            move |n, call, name| {
                if n >= at && (call, name) == (Call::Read, "sedge.db") { failure(call, n) } else { Outcome::Done }
            },
        );
        match Rig::try_open(dir.path(), &config::Store::default()) {
            Err(OpenError::Database { .. }) => {}
            Err(other) => panic!("{other:?}"),
            Ok(_) => break,
        }
        if fs::read(&database).unwrap() != damaged {
            // The salvage was done before that call.
            break;
        }
    }
    disk.works_again();
    let mut rig = open(dir.path());
    rig.recovered.moved_aside = None;
    witness.check(&mut rig).unwrap();
    let mut paths = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path());
    assert!(paths.any(|path| path.to_str().unwrap().contains("corrupt") && fs::read(&path).unwrap() == damaged));
}

/// Cuts the power again and again, also while the store opens. `lies`: the disk only says that it has synced.
fn power_cuts(seed: u64, cuts: u64, lies: bool) {
    let mut random = Random(seed);
    let mut witness = Witness::new(3000);
    let mut dir = folder();
    for cut in 0..cuts {
        let disk = Disk::of(dir.path());
        let at = 1 + random.below(250);
        disk.plan(move |n, call, _| match call {
            _ if n == at => Outcome::PowerCut,
            Call::Sync if lies => Outcome::Lie,
            _ => Outcome::Done,
        });
        if let Ok(mut rig) = Rig::try_open(dir.path(), &with_history()) {
            let damaged = rig.handle.stats().damaged_logs.load(Relaxed);
            assert!(lies || damaged == 0, "seed {seed}, cut {cut}: a power cut is taken for damage");
            let mut result = witness.check(&mut rig);
            while result.is_ok() {
                result = witness.send(&mut rig, 1 + random.below(5));
                witness.deliver(&rig, &mut random);
            }
        }
        assert!(disk.is_off(), "seed {seed}, cut {cut}: the store failed with the power on");
        let next = folder();
        disk.after_power_cut(&mut random, next.path());
        dir = next;
    }
    let mut rig = open(dir.path());
    witness.check(&mut rig).unwrap();
    rig.close();
    witness.check_files(dir.path());
}

/// `SEDGE_POWER_CUTS` sets another number.
#[test]
fn committed_messages_survive_power_cuts() {
    let cuts: u64 = std::env::var("SEDGE_POWER_CUTS").map_or(10_000, |cuts| cuts.parse().unwrap());
    // Each run begins with a new folder.
    let seeds = cuts.div_ceil(50);
    std::thread::scope(|scope| {
        for half in [0, 1] {
            scope.spawn(move || (half..seeds).step_by(2).for_each(|seed| power_cuts(seed, 50, false)));
        }
    });
}

/// The witness is not blind: it misses messages, or a database that is damaged for good.
#[test]
#[should_panic]
fn a_disk_that_lies_about_syncs_is_found_out() {
    power_cuts(1, 50, true);
}
