//! Redelivery window, message ids, state, and commits without effect.

use std::sync::atomic::Ordering::Relaxed;

use super::testing::*;
use sedge_core::store::{BatchNo, Commit, StoreEvent, StoreRequest};
use sedge_core::stream::Stream;

fn digests(rig: &Rig) -> Vec<u64> {
    rig.recovered.window.iter().map(|fingerprint| fingerprint.digest).collect()
}

#[test]
fn the_last_deliveries_survive_a_crash() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open(dir.path());
    for n in 1..=200 {
        let with_effect = Commit { records: vec![record(Stream::DATA, "x")], ..delivery(n) };
        rig.commit(vec![with_effect]);
    }
    drop(rig);
    let rig = Rig::open(dir.path());
    assert_eq!(digests(&rig), (185..=200).collect::<Vec<_>>());
}

#[test]
fn the_window_continues_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    for n in 1..=40 {
        let mut rig = Rig::open(dir.path());
        rig.commit(vec![Commit { records: vec![record(Stream::DATA, "x")], ..delivery(n) }]);
        rig.close();
    }
    assert_eq!(digests(&Rig::open(dir.path())), (25..=40).collect::<Vec<_>>());
}

#[test]
fn deliveries_of_a_lost_session_are_forgotten_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open(dir.path());
    for n in 1..=40 {
        rig.commit(vec![Commit { records: vec![record(Stream::DATA, "x")], ..delivery(n) }]);
    }
    rig.commit(vec![delivery(41)]);
    rig.send(StoreRequest::ForgetDeliveries);
    // The answer may come before that of the next commit or together with it.
    let answer = rig.event();
    assert!(matches!(answer, StoreEvent::DeliveriesForgotten), "{answer:?}");
    rig.commit(vec![Commit { records: vec![record(Stream::DATA, "x")], ..delivery(42) }]);
    drop(rig);
    let rig = Rig::open(dir.path());
    assert_eq!(digests(&rig), [42]);
    assert_eq!(rig.recovered.last[Stream::DATA].0, 41);
}

#[test]
fn deliveries_without_effect_are_written_with_the_next_effect() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open(dir.path());
    for n in 1..=10 {
        rig.commit(vec![delivery(n)]);
    }
    assert_eq!(rig.handle.stats().commits.load(Relaxed), 0);
    rig.commit(vec![records(vec![record(Stream::ALERT, "x")])]);
    assert_eq!(rig.handle.stats().commits.load(Relaxed), 1);
    rig.commit(vec![delivery(11)]);
    drop(rig);
    assert_eq!(digests(&Rig::open(dir.path())), (1..=10).collect::<Vec<_>>());
}

#[test]
fn old_fingerprints_are_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open(dir.path());
    for round in 0..20 {
        let commits =
            (0..100).map(|n| Commit { records: vec![record(Stream::DATA, "x")], ..delivery(round * 100 + n) });
        rig.commit(commits.collect());
    }
    rig.close();
    let connection = rusqlite::Connection::open(dir.path().join("sedge.db")).unwrap();
    let bytes: u64 = connection.query_row("SELECT sum(length(body)) FROM progress", (), |row| row.get(0)).unwrap();
    assert!(bytes < 4000, "{bytes} bytes of fingerprints are kept");
}

#[test]
fn message_ids_survive_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open(dir.path());
    for n in 0..300 {
        let message_id = Some(format!("message-{n}").into());
        rig.commit(vec![Commit { message_id, records: vec![record(Stream::DATA, "x")], ..Commit::default() }]);
    }
    drop(rig);
    let mut rig = Rig::open(dir.path());
    let now = now().monotonic;
    for n in 0..300 {
        assert!(rig.recovered.message_ids.insert(&format!("message-{n}"), now), "message-{n} was forgotten");
    }
    assert!(!rig.recovered.message_ids.insert("message-300", now));
}

#[test]
fn meta_values_survive_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::open(dir.path());
    let store_id = rig.recovered.store_id.clone();
    assert_eq!(store_id.len(), 16);
    rig.send(StoreRequest::SetMeta { key: "subscriptions", value: "a/#".into() });
    rig.close();
    let rig = Rig::open(dir.path());
    assert_eq!(rig.recovered.store_id, store_id);
    assert_eq!(rig.recovered.meta, [("subscriptions".to_owned(), "a/#".into())]);
}

#[test]
fn state_is_loaded_as_of_what_was_sent_before() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open(dir.path());
    let of = |writes| Commit { state: vec![(scope(Some("a")), writes)], ..Commit::default() };
    rig.start(vec![of(vec![write("n", Some("1"))])]);
    rig.start(vec![of(vec![write("n", Some("2")), write("m", Some("3"))])]);
    assert_eq!(rig.state(&scope(Some("a"))), [("m".to_owned(), "3".into()), ("n".to_owned(), "2".into())]);
    rig.start(vec![of(vec![write("n", None)])]);
    assert_eq!(rig.state(&scope(Some("a"))), [("m".to_owned(), "3".into())]);
    assert_eq!(rig.state(&scope(Some("b"))), []);
    assert_eq!(rig.state(&scope(None)), []);
}

#[test]
fn every_commit_is_answered_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open(dir.path());
    for n in 1..=500u64 {
        // Every third commit has no effect.
        let commit = if n % 3 == 0 { delivery(n) } else { records(vec![record(Stream::DATA, n.to_string())]) };
        rig.start(vec![commit]);
    }
    let (mut answered, mut ids) = (0, Vec::new());
    while answered < 500 {
        let StoreEvent::Committed { batch: BatchNo(seq), stored, .. } = rig.event() else {
            panic!("only commits were sent")
        };
        assert!(seq > answered);
        answered = seq;
        ids.extend(stored.iter().map(|stored| stored.id.0));
    }
    assert_eq!(ids, (1..=334).collect::<Vec<_>>());
    assert!(rig.handle.stats().commits.load(Relaxed) < 300, "commits are grouped");
}
