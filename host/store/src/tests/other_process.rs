//! `sedge dead-letters` beside a daemon. The tests use another connection, which SQLite treats like another process.

use std::num::NonZeroU64;
use std::sync::atomic::Ordering::Relaxed;

use super::testing::*;
use crate::dead_letters::DeadLettersError;
use crate::{DeadLetterFilter, DeadLetters};
use sedge_core::config;
use sedge_core::message::{FailureCode, Message};
use sedge_core::store::{BatchNo, Commit, DeadLetterId, Parked, ParkedId, StoreEvent, StoreRequest};
use sedge_core::stream::Stream;

fn letters(rig: &mut Rig, count: usize) {
    for n in 0..count {
        let code = if n % 2 == 0 { FailureCode::Trap } else { FailureCode::Fuel };
        let letter = dead_letter(if n % 3 == 0 { "decode" } else { "anomaly" }, code, format!("payload {n}"));
        rig.commit(vec![Commit { dead_letters: vec![letter], ..Commit::default() }]);
    }
}

fn only(id: u64) -> DeadLetterFilter {
    DeadLetterFilter { ids: Some(vec![DeadLetterId(id)]), ..DeadLetterFilter::default() }
}

#[test]
fn dead_letters_are_listed_newest_first() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open(dir.path());
    letters(&mut rig, 12);
    let letters = DeadLetters::open(dir.path()).unwrap();
    let ids = |filter: &DeadLetterFilter, limit| -> Vec<u64> {
        letters.list(filter, limit).unwrap().into_iter().map(|(id, _)| id.0).collect()
    };
    assert_eq!(ids(&DeadLetterFilter::default(), 3), [12, 11, 10]);
    assert_eq!(
        ids(&DeadLetterFilter { function: Some("decode".into()), ..DeadLetterFilter::default() }, 99),
        [10, 7, 4, 1]
    );
    let trapped = DeadLetterFilter {
        function: Some("decode".into()),
        reason: Some(FailureCode::Trap),
        ..DeadLetterFilter::default()
    };
    assert_eq!(ids(&trapped, 99), [7, 1]);
    assert_eq!(letters.show(DeadLetterId(1)).unwrap().unwrap(), dead_letter("decode", FailureCode::Trap, "payload 0"));
    assert_eq!(letters.show(DeadLetterId(99)).unwrap(), None);
}

#[test]
fn a_running_daemon_receives_replayed_letters() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open(dir.path());
    letters(&mut rig, 3);
    let mut letters = DeadLetters::open(dir.path()).unwrap();
    assert_eq!(letters.replay(&only(2), 5).unwrap(), 1);
    let StoreEvent::Parked(jobs) = rig.event() else { panic!("nothing was replayed") };
    let letter = dead_letter("anomaly", FailureCode::Fuel, "payload 1");
    let message = Message { attempt: 2, ..Message::clone(&letter.message) }.into();
    assert_eq!(jobs, [Parked { id: jobs[0].id, function: "anomaly".into(), message, due_ms: 5, wait_ms: 0 }]);
    assert_eq!(letters.list(&DeadLetterFilter::default(), 99).unwrap().len(), 2);
    assert_eq!(letters.replay(&only(2), 5).unwrap(), 0);

    // The daemon finishes the job.
    rig.commit(vec![Commit { unpark: vec![jobs[0].id], ..Commit::default() }]);
    assert_eq!(rig.handle.stats().dead_letters.load(Relaxed), 2);
    assert_eq!(rig.handle.stats().parked.load(Relaxed), 0);
    drop(rig);
    assert_eq!(Rig::open(dir.path()).recovered.parked, []);
}

#[test]
fn letters_replayed_without_a_daemon_are_parked_at_its_start() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open(dir.path());
    letters(&mut rig, 3);
    rig.close();
    assert_eq!(DeadLetters::open(dir.path()).unwrap().replay(&DeadLetterFilter::default(), 5).unwrap(), 3);
    let rig = Rig::open(dir.path());
    assert_eq!(rig.recovered.parked.len(), 3);
    assert_eq!(rig.handle.stats().dead_letters.load(Relaxed), 0);
}

#[test]
fn letters_with_a_cut_topic_are_not_replayed() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open(dir.path());
    let letter = dead_letter("f", FailureCode::TopicTooLong, "payload");
    rig.commit(vec![Commit { dead_letters: vec![letter], ..Commit::default() }]);
    let mut letters = DeadLetters::open(dir.path()).unwrap();
    assert_eq!(letters.replay(&DeadLetterFilter::default(), 5).unwrap(), 0);
    assert_eq!(letters.list(&DeadLetterFilter::default(), 9).unwrap().len(), 1);
    assert_eq!(letters.drop(&DeadLetterFilter::default()).unwrap(), 1);
}

#[test]
fn many_letters_are_replayed_in_several_transactions() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open(dir.path());
    let large = || dead_letter("f", FailureCode::Trap, vec![b'x'; 400_000]);
    for _ in 0..7 {
        rig.commit(vec![Commit { dead_letters: vec![large()], ..Commit::default() }]);
    }
    rig.close();
    let mut letters = DeadLetters::open(dir.path()).unwrap();
    // The sixth cannot be replayed: those of earlier transactions are.
    let mut seen = 0;
    let failed = letters.remove(&DeadLetterFilter::default(), |_, _| {
        seen += 1;
        if seen == 6 { Err(rusqlite::Error::InvalidQuery) } else { Ok(true) }
    });
    assert!(failed.is_err());
    assert_eq!(letters.list(&DeadLetterFilter::default(), 9).unwrap().len(), 4);
    assert_eq!(letters.replay(&DeadLetterFilter::default(), 5).unwrap(), 4);
    assert_eq!(Rig::open(dir.path()).recovered.parked.len(), 4);
}

#[test]
fn a_replay_just_before_the_daemon_parks_a_job_is_not_missed() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open(dir.path());
    letters(&mut rig, 1);
    DeadLetters::open(dir.path()).unwrap().replay(&only(1), 5).unwrap();
    let message = message("a", "b").into();
    let job = Parked { id: ParkedId::NEW, function: "f".into(), message, due_ms: 9, wait_ms: 9 };
    rig.start(vec![Commit { park: vec![job], ..Commit::default() }]);
    let (mut own, mut replayed) = (None, None);
    while own.is_none() || replayed.is_none() {
        match rig.event() {
            StoreEvent::Committed { parked, .. } => own = Some(parked[0].id),
            StoreEvent::Parked(jobs) => replayed = Some(jobs[0].id),
            other => panic!("{other:?}"),
        }
    }
    assert_ne!(own, replayed);
}

#[test]
fn ids_of_dropped_dead_letters_are_not_reused() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open(dir.path());
    letters(&mut rig, 3);
    let mut dead_letters = DeadLetters::open(dir.path()).unwrap();
    assert_eq!(dead_letters.drop(&DeadLetterFilter::default()).unwrap(), 3);
    letters(&mut rig, 1);
    assert_eq!(dead_letters.list(&DeadLetterFilter::default(), 9).unwrap()[0].0, DeadLetterId(4));
}

#[test]
fn dead_letters_are_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let config = config::Store { dead_letter_max_bytes: NonZeroU64::new(1000).unwrap(), ..config::Store::default() };
    let mut rig = Rig::open_with(dir.path(), &config);
    letters(&mut rig, 50);
    let kept = DeadLetters::open(dir.path()).unwrap().list(&DeadLetterFilter::default(), 99).unwrap();
    assert!(kept.len() < 15 && kept[0].0 == DeadLetterId(50), "{} are kept", kept.len());
    assert_eq!(rig.handle.stats().dead_letters_dropped.load(Relaxed), 50 - kept.len() as u64);
}

#[test]
fn old_dead_letters_are_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let config = config::Store { dead_letter_max_age_secs: NonZeroU64::new(1), ..config::Store::default() };
    let mut rig = Rig::open_with(dir.path(), &config);
    letters(&mut rig, 2);
    let started = std::time::Instant::now();
    while rig.handle.stats().dead_letters_dropped.load(Relaxed) < 2 {
        assert!(started.elapsed().as_secs() < 30, "nothing was dropped");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    rig.close();
    assert_eq!(DeadLetters::open(dir.path()).unwrap().list(&DeadLetterFilter::default(), 99).unwrap(), []);
}

/// The board booted in 1970, was set meanwhile, or was ten years ahead for a moment.
#[test]
fn a_wrong_clock_drops_no_dead_letter() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open(dir.path());
    let now_ms = now().unix_ms;
    for at_ms in [0, 1000, now_ms - 10 * 365 * 24 * 3_600_000, now_ms - 40 * 24 * 3_600_000, now_ms] {
        let letter = sedge_core::store::DeadLetter { at_ms, ..dead_letter("f", FailureCode::Trap, "x") };
        rig.commit(vec![Commit { dead_letters: vec![letter], ..Commit::default() }]);
    }
    rig.close();
    let rig = Rig::open(dir.path());
    rig.after_ticks(2);
    assert_eq!(rig.handle.stats().dead_letters_dropped.load(Relaxed), 0);
    rig.close();
    assert_eq!(DeadLetters::open(dir.path()).unwrap().list(&DeadLetterFilter::default(), 99).unwrap().len(), 5);
}

#[test]
fn another_process_gets_the_lock_under_load() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open(dir.path());
    letters(&mut rig, 20);
    let path = dir.path().to_owned();
    let other = std::thread::spawn(move || {
        let mut letters = DeadLetters::open(&path).unwrap();
        (1..=20).map(|id| letters.drop(&only(id)).unwrap()).sum::<u64>()
    });
    let (mut sent, mut committed) = (0, 0);
    while !other.is_finished() {
        while sent < committed + 4 {
            sent = rig.start(vec![records(vec![record(Stream::DATA, vec![1; 2000])])]);
        }
        if let StoreEvent::Committed { batch: BatchNo(seq), stored, .. } = rig.event() {
            committed = seq;
            rig.send(StoreRequest::Delivered { stream: Stream::DATA, through: stored.last().unwrap().id });
        }
    }
    assert_eq!(other.join().unwrap(), 20);
}

#[test]
fn a_folder_without_a_database_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(DeadLetters::open(dir.path()), Err(DeadLettersError::Missing(_))));
    assert!(!dir.path().join("sedge.db").exists());
}
