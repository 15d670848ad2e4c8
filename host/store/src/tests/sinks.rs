//! Sinks with names: each has its own records, limits and gaps, and a file from before is taken over.

use sedge_core::config::{self, SinkShare, WhenFull};
use sedge_core::store::{Gap, REMOVED, RecordId, Recovered, StoreEvent, StoreRequest};
use sedge_core::stream::{SinkId, Stream};

use super::testing::{Rig, record, records};

fn config(sinks: &[(&str, u64, WhenFull)]) -> config::Store {
    let share = |(name, max_bytes, when_full): &(&str, u64, WhenFull)| SinkShare {
        name: (*name).to_owned(),
        max_bytes: *max_bytes,
        when_full: *when_full,
    };
    config::Store { sinks: sinks.iter().map(share).collect(), ..config::Store::default() }
}

fn roomy(names: &[&str]) -> config::Store {
    config(&names.iter().map(|name| (*name, 1 << 20, WhenFull::DropOldestData)).collect::<Vec<_>>())
}

fn id(recovered: &Recovered, name: &str) -> SinkId {
    recovered.sink(name).unwrap()
}

/// The next report of lost records.
fn gaps(rig: &mut Rig) -> (SinkId, Vec<Gap>) {
    loop {
        if let StoreEvent::Gaps { sink, gaps } = rig.event() {
            let through = gaps.last().unwrap().0;
            rig.send(StoreRequest::GapsReported { sink, through });
            return (sink, gaps.into_iter().map(|(_, gap)| gap).collect());
        }
    }
}

fn commit_to(rig: &mut Rig, streams: &[Stream], payload: &'static str) {
    rig.commit(vec![records(streams.iter().map(|stream| record(*stream, payload)).collect())]);
}

fn payloads(rig: &mut Rig, stream: Stream) -> Vec<String> {
    let stored = rig.read_all(stream).into_iter();
    stored.map(|stored| String::from_utf8_lossy(&stored.record.payload).into_owned()).collect()
}

#[test]
fn each_sink_has_its_own_records_and_watermarks_over_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let store = roomy(&["upstream", "lake", "stick"]);
    let mut rig = Rig::open_with(dir.path(), &store);
    let [up, lake, stick] = ["upstream", "lake", "stick"].map(|name| Stream::data(id(&rig.recovered, name)));
    for payload in ["a", "b", "c"] {
        commit_to(&mut rig, &[up, lake, stick], payload);
    }
    rig.send(StoreRequest::Delivered { stream: lake, through: RecordId(2) });
    rig.send(StoreRequest::Refused { stream: stick, id: RecordId(2), reason: "no".into() });
    rig.commit(vec![records(vec![record(Stream::LOCAL, "x")])]);
    rig.close();
    let mut rig = Rig::open_with(dir.path(), &store);
    assert_eq!((rig.recovered.delivered[lake], rig.recovered.last[lake]), (RecordId(2), RecordId(3)));
    assert_eq!(payloads(&mut rig, up), ["a", "b", "c"]);
    assert_eq!(payloads(&mut rig, lake), ["c"]);
    assert_eq!(payloads(&mut rig, stick), ["a", "c"]);
    let stored = rig.commit(vec![records(vec![record(lake, "d"), record(stick, "d")])]);
    assert_eq!(stored.iter().map(|it| (it.record.stream, it.id.0)).collect::<Vec<_>>(), [(lake, 4), (stick, 4)]);
    rig.close();
}

#[test]
fn a_full_sink_loses_its_own_oldest_data_and_nobody_elses() {
    let dir = tempfile::tempdir().unwrap();
    let sinks = [("upstream", 1 << 20, WhenFull::DropOldestData), ("lake", 4_000, WhenFull::DropOldestData)];
    let mut rig = Rig::open_with(dir.path(), &config(&sinks));
    let (up, lake) = (id(&rig.recovered, "upstream"), id(&rig.recovered, "lake"));
    rig.commit(vec![records(vec![record(Stream::alerts(lake), "fire"), record(Stream::LOCAL, "here")])]);
    for n in 0..20 {
        let copies = [Stream::data(up), Stream::data(lake)].map(|stream| record(stream, vec![n; 500]));
        rig.commit(vec![records(copies.into())]);
    }
    assert_eq!(rig.read_all(Stream::data(up)).len(), 20);
    assert_eq!(payloads(&mut rig, Stream::LOCAL), ["here"]);
    assert_eq!(payloads(&mut rig, Stream::alerts(lake)), ["fire"], "alerts are dropped last");
    let left = rig.read_all(Stream::data(lake)).len() as u64;
    assert!((3..8).contains(&left), "{left} are left");
    let stats = &rig.handle.stats().dropped;
    let full = |stream: Stream| stats[stream].counts().into_iter().find(|(reason, _)| *reason == "full").unwrap().1;
    assert_eq!((full(Stream::data(up)), full(Stream::data(lake))), (0, 20 - left));
    rig.close();
}

#[test]
fn gaps_are_reported_to_the_sink_that_lost_records_each_in_its_own_turn() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open_with(dir.path(), &roomy(&["upstream", "lake"]));
    let (up, lake) = (id(&rig.recovered, "upstream"), id(&rig.recovered, "lake"));
    commit_to(&mut rig, &[Stream::data(up), Stream::data(lake), Stream::LOCAL], "x");
    rig.send(StoreRequest::Refused { stream: Stream::data(lake), id: RecordId(1), reason: "no".into() });
    let StoreEvent::Gaps { sink, gaps: first, .. } = rig.event() else { panic!("no report") };
    assert_eq!((sink, first[0].1.stream), (lake, Stream::data(lake)));
    // That report is not confirmed, and upstream has its own all the same.
    rig.send(StoreRequest::Refused { stream: Stream::LOCAL, id: RecordId(1), reason: "no".into() });
    let (sink, gaps) = gaps(&mut rig);
    assert_eq!((sink, gaps.len(), gaps[0].stream), (up, 1, Stream::LOCAL));
    rig.close();
    let mut rig = Rig::open_with(dir.path(), &roomy(&["upstream", "lake"]));
    let StoreEvent::Gaps { sink, .. } = rig.event() else { panic!("no report") };
    assert_eq!(sink, lake, "what was not confirmed is reported again");
}

#[test]
fn only_a_sink_that_is_to_block_blocks() {
    let dir = tempfile::tempdir().unwrap();
    let sinks = [("upstream", 1 << 20, WhenFull::DropOldestData), ("lake", 3_000, WhenFull::Block)];
    let mut rig = Rig::open_with(dir.path(), &config(&sinks));
    let lake = Stream::data(id(&rig.recovered, "lake"));
    rig.commit(vec![records(vec![record(lake, vec![1; 2_500])])]);
    for _ in 0..5 {
        rig.commit(vec![records(vec![record(Stream::DATA, vec![1; 2_500])])]);
    }
    let held = rig.start(vec![records(vec![record(lake, vec![2; 2_500])])]);
    while !matches!(rig.event(), StoreEvent::Blocked(true)) {}
    rig.send(StoreRequest::Delivered { stream: lake, through: RecordId(1) });
    loop {
        if let StoreEvent::Committed { batch, .. } = rig.event()
            && batch.0 == held
        {
            break;
        }
    }
    rig.close();
}

fn in_the_file(dir: &std::path::Path, sql: &str) {
    let connection = rusqlite::Connection::open(dir.join("sedge.db")).unwrap();
    connection.execute_batch(sql).unwrap();
}

#[test]
fn a_database_of_the_layout_before_is_taken_over_with_its_backlog() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open(dir.path());
    for payload in ["a", "b", "c"] {
        commit_to(&mut rig, &Stream::FIRST, payload);
    }
    rig.send(StoreRequest::Delivered { stream: Stream::DATA, through: RecordId(1) });
    rig.commit(vec![records(vec![record(Stream::ALERT, "d")])]);
    rig.close();
    in_the_file(
        dir.path(),
        "DROP TABLE sink; ALTER TABLE progress DROP COLUMN sinks; DELETE FROM meta WHERE key = 'sinks';
         PRAGMA user_version = 6;",
    );
    let mut rig = Rig::open_with(dir.path(), &roomy(&["upstream", "lake"]));
    assert_eq!(id(&rig.recovered, "upstream"), SinkId::UPSTREAM);
    assert_eq!(rig.recovered.delivered[Stream::DATA], RecordId(1));
    assert_eq!(payloads(&mut rig, Stream::DATA), ["b", "c"]);
    assert_eq!(payloads(&mut rig, Stream::ALERT), ["a", "b", "c", "d"]);
    assert_eq!(payloads(&mut rig, Stream::LOCAL), ["a", "b", "c"]);
    let lake = Stream::data(id(&rig.recovered, "lake"));
    assert_eq!(payloads(&mut rig, lake), [""; 0]);
    commit_to(&mut rig, &[lake], "new");
    assert_eq!(payloads(&mut rig, lake), ["new"]);
    rig.close();
}

#[test]
fn records_of_a_sink_that_was_removed_wait_for_it_and_are_a_gap_after_seven_days() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open_with(dir.path(), &roomy(&["upstream", "lake", "stick"]));
    let (lake, stick) = (Stream::data(id(&rig.recovered, "lake")), Stream::alerts(id(&rig.recovered, "stick")));
    commit_to(&mut rig, &[lake, stick], "x");
    rig.close();

    // One of them comes back in time and finds its records.
    Rig::open_with(dir.path(), &roomy(&["upstream"])).close();
    let mut rig = Rig::open_with(dir.path(), &roomy(&["lake", "upstream"]));
    assert_eq!(payloads(&mut rig, lake), ["x"]);
    assert!(rig.recovered.sinks.iter().any(|sink| &*sink.name == "stick" && sink.is_removed));
    rig.close();

    let week = 7 * 24 * 3600;
    in_the_file(dir.path(), &format!("REPLACE INTO meta VALUES ('running-secs', x'{}')", hex(week + 60)));
    let mut rig = Rig::open_with(dir.path(), &roomy(&["lake", "upstream"]));
    let (sink, gaps) = gaps(&mut rig);
    assert_eq!(sink, id(&rig.recovered, "lake"), "the first sink is told");
    assert_eq!((gaps[0].stream, &*gaps[0].reason, gaps[0].records), (stick, REMOVED, 1));
    assert_eq!(payloads(&mut rig, lake), ["x"]);
    rig.close();
    let rig = Rig::open_with(dir.path(), &roomy(&["lake", "upstream"]));
    assert!(rig.recovered.sinks.iter().all(|sink| &*sink.name != "stick"), "{:?}", rig.recovered.sinks);
}

/// As the running time is stored.
fn hex(secs: u64) -> String {
    secs.to_le_bytes().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn an_outbox_without_sinks_keeps_what_an_earlier_one_left() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open(dir.path());
    commit_to(&mut rig, &[Stream::DATA], "x");
    rig.close();
    let mut rig = Rig::open_with(dir.path(), &roomy(&["lake"]));
    assert_eq!(payloads(&mut rig, Stream::DATA), ["x"]);
    assert!(rig.recovered.sink("upstream").is_none());
    rig.close();
    let mut rig = Rig::open(dir.path());
    assert_eq!(id(&rig.recovered, "upstream"), SinkId::UPSTREAM);
    assert_eq!(payloads(&mut rig, Stream::DATA), ["x"]);
    rig.close();
}
