//! Recordings of functions while messages are under way.
#![allow(clippy::unwrap_used, reason = "a test says by panicking what is wrong")]

use std::time::Duration;

use sedge_core::board::{Input, RecordEvent, RecordOrder, TappedRun};
use sedge_core::manifest::StateScope;
use sedge_core::message::Verdict;
use sedge_core::recording::Why;
use sedge_sim::rig::{Rig, manifest};

fn order(messages: u64) -> RecordOrder {
    let (time, bytes) = (Duration::from_secs(60), 1 << 20);
    RecordOrder { id: "r".into(), function: "f".into(), time, messages, bytes }
}

fn rig(state: StateScope) -> Rig {
    let mut rig = Rig::new(vec![manifest("f", "t/#", state)]);
    rig.settle();
    rig
}

fn begin(rig: &mut Rig, order: RecordOrder) {
    rig.handle(Input::Record(order));
    rig.perform();
}

fn runs(rig: &Rig) -> Vec<&TappedRun> {
    rig.recorded
        .iter()
        .filter_map(|event| match event {
            RecordEvent::Run(run) => Some(&**run),
            _ => None,
        })
        .collect()
}

/// Topic, payload, and of the state before the number that the function counts: "-" where none is recorded.
fn lines(rig: &Rig) -> Vec<String> {
    let line = |run: &&TappedRun| {
        let state = run.state.as_ref().map(|(_, entries)| {
            entries.first().map_or("nothing".to_owned(), |(_, value)| String::from_utf8_lossy(value).into_owned())
        });
        let payload = String::from_utf8_lossy(&run.message.payload).into_owned();
        format!("{} {payload} {}", run.message.topic, state.as_deref().unwrap_or("-"))
    };
    runs(rig).iter().map(line).collect()
}

fn ended(rig: &Rig) -> Option<Why> {
    rig.recorded.iter().find_map(|event| match event {
        RecordEvent::Ended { why } => Some(*why),
        _ => None,
    })
}

#[test]
fn each_scope_is_recorded_with_its_state_before_the_first_run() {
    let mut rig = rig(StateScope::Topic);
    rig.receive("t/1", "c1", 1, false);
    rig.settle();
    begin(&mut rig, order(100));
    assert!(matches!(rig.recorded[..], [RecordEvent::Begun { .. }]));
    for (number, topic) in [(2, "t/1"), (3, "t/2"), (4, "t/1"), (5, "t/2")] {
        rig.receive(topic, &format!("c{number}"), number, false);
    }
    rig.settle();
    let mut lines = lines(&rig);
    lines.sort();
    assert_eq!(lines, ["t/1 c2 1", "t/1 c4 -", "t/2 c3 nothing", "t/2 c5 -"]);
    assert!(runs(&rig)[0].version.is_some() && runs(&rig)[1..].iter().all(|run| run.version.is_none()));
}

#[test]
fn what_was_handed_out_before_the_beginning_is_not_recorded() {
    for state in [StateScope::None, StateScope::Topic, StateScope::Function] {
        let mut rig = rig(state);
        rig.receive("t/1", "c1", 1, false);
        rig.perform();
        begin(&mut rig, order(100));
        rig.receive("t/1", "c2", 2, false);
        rig.settle();
        let expected = match state {
            StateScope::None => vec!["t/1 c2 -"],
            _ => vec!["t/1 c2 1"],
        };
        // A job that had not asked for its state is recorded from there.
        let lines = lines(&rig);
        assert!(lines == expected || lines == ["t/1 c1 nothing", "t/1 c2 -"], "{state:?}: {lines:?}");
    }
}

#[test]
fn a_run_is_recorded_once_it_is_on_disk_and_again_if_it_never_was() {
    let mut rig = rig(StateScope::Topic);
    begin(&mut rig, order(100));
    rig.receive("t/1", "c1", 1, false);
    rig.work_until(|rig| rig.loads() == 1);
    rig.answer();
    rig.work_until(|rig| rig.commits() == 1);
    assert!(runs(&rig).is_empty(), "its commit is under way");
    rig.fail_disk();
    rig.receive("t/1", "c1", 1, true);
    rig.settle();
    assert_eq!(lines(&rig), ["t/1 c1 nothing"], "once, and with the state that is on disk");
    rig.receive("t/1", "c2", 2, false);
    rig.settle();
    assert_eq!(lines(&rig), ["t/1 c1 nothing", "t/1 c2 -"]);
    assert_eq!(rig.disk.count("f", Some("t/1")), 2);
}

#[test]
fn messages_with_no_effect_retries_and_failures_are_recorded_as_what_they_are() {
    let mut rig = rig(StateScope::Topic);
    begin(&mut rig, order(100));
    for (number, payload) in ["n", "r", "t", "c", "E"].into_iter().enumerate() {
        rig.receive(&format!("t/{number}"), payload, number as u16 + 1, false);
        rig.settle();
    }
    let ends: Vec<&str> = runs(&rig)
        .iter()
        .map(|run| match &run.outcome.verdict {
            Verdict::Done(_) => "done",
            Verdict::Retry { .. } => "retry",
            Verdict::Failed(_) => "failed",
        })
        .collect();
    assert_eq!(ends, ["done", "failed", "retry", "done", "failed"]);
    rig.pass(2);
    rig.settle();
    let last = *runs(&rig).last().unwrap();
    assert_eq!((last.message.attempt, &*last.message.topic), (2, "t/2"));
}

#[test]
fn a_recording_ends_by_messages_bytes_time_and_with_its_function() {
    let mut rig = rig(StateScope::None);
    begin(&mut rig, order(2));
    (1..=4).for_each(|number| rig.receive("t/1", "o", number, false));
    rig.settle();
    assert_eq!((runs(&rig).len(), ended(&rig)), (2, Some(Why::Messages)));

    let mut rig = self::rig(StateScope::None);
    begin(&mut rig, RecordOrder { bytes: 1500, ..order(100) });
    (1..=9).for_each(|number| rig.receive("t/1", "o", number, false));
    rig.settle();
    assert!((1..9).contains(&runs(&rig).len()));
    assert_eq!(ended(&rig), Some(Why::Bytes));
    assert_eq!(rig.acknowledged().len(), 9, "no message waits for it");

    let mut rig = self::rig(StateScope::None);
    begin(&mut rig, order(100));
    rig.pass(60);
    assert!(rig.next_due().is_some_and(|due| due <= rig.now));
    rig.settle();
    assert_eq!(ended(&rig), Some(Why::Time));
    begin(&mut rig, order(100));
    rig.recorded.clear();
    rig.handle(Input::Remove { function: "f".into() });
    rig.settle();
    assert_eq!(ended(&rig), Some(Why::Removed));
}

#[test]
fn a_recording_ends_when_it_is_asked_to_and_only_for_its_own_function() {
    let mut rig = rig(StateScope::None);
    begin(&mut rig, order(100));
    let end = |function: Option<&str>| Input::EndRecording {
        id: "r".into(),
        function: function.map(Into::into),
        why: Why::Asked,
    };
    rig.handle(end(Some("g")));
    rig.perform();
    assert_eq!(ended(&rig), None);
    rig.handle(end(Some("f")));
    rig.perform();
    assert_eq!(ended(&rig), Some(Why::Asked));
    rig.receive("t/1", "o", 1, false);
    rig.settle();
    assert!(runs(&rig).is_empty());
}

#[test]
fn what_cannot_be_recorded_is_refused_with_the_reason() {
    let refused = |rig: &Rig| match rig.recorded.last() {
        Some(RecordEvent::Refused { reason }) => reason.clone(),
        other => panic!("{other:?}"),
    };
    let mut rig = rig(StateScope::None);
    begin(&mut rig, RecordOrder { function: "g".into(), ..order(1) });
    assert!(refused(&rig).contains("g is not installed on this board"));
    begin(&mut rig, order(1));
    begin(&mut rig, RecordOrder { id: "r2".into(), ..order(1) });
    assert!(refused(&rig).contains("f is being recorded already"));
}

#[test]
fn runs_during_a_change_of_settings_are_marked_and_those_after_name_the_new_ones() {
    let mut rig = rig(StateScope::None);
    begin(&mut rig, order(100));
    rig.receive("t/1", "o1", 1, false);
    rig.settle();
    rig.receive("t/1", "o2", 2, false);
    rig.perform();
    rig.set("f", 7);
    rig.receive("t/1", "o3", 3, false);
    rig.settle();
    rig.receive("t/1", "o4", 4, false);
    rig.settle();
    let runs = runs(&rig);
    let unsure: Vec<bool> = runs.iter().map(|run| run.is_unsure).collect();
    assert_eq!(unsure, [false, true, true, false]);
    let setting = |run: &TappedRun| run.version.as_ref().map(|version| version.settings.get("n").cloned());
    assert_eq!((setting(runs[0]), setting(runs[3])), (Some(None), Some(Some("7".to_owned()))));
}

#[test]
fn state_that_the_board_deletes_is_recorded_anew() {
    let mut rig = rig(StateScope::Topic);
    begin(&mut rig, order(100));
    rig.receive("t/1", "c1", 1, false);
    rig.settle();
    rig.disk.forget_state("f", &[]);
    rig.handle(Input::Store(sedge_core::store::StoreEvent::StateExpired { function: "f".into() }));
    rig.receive("t/1", "c2", 2, false);
    rig.settle();
    assert_eq!(lines(&rig), ["t/1 c1 nothing", "t/1 c2 nothing"]);
}

#[test]
fn a_wake_is_recorded_with_the_state_of_the_topic_that_set_it() {
    let mut rig = rig(StateScope::Topic);
    rig.receive("t/1", "c1", 1, false);
    rig.receive("t/1", "w3", 2, false);
    rig.settle();
    begin(&mut rig, RecordOrder { time: Duration::from_secs(600), ..order(100) });
    for _ in 0..100 {
        rig.pass(1);
        rig.settle();
    }
    rig.receive("t/1", "c2", 3, false);
    rig.settle();
    let runs = runs(&rig);
    let state_topic = |run: &TappedRun| run.state.as_ref().and_then(|(topic, _)| topic.as_deref().map(str::to_owned));
    let topics: Vec<&str> = runs.iter().map(|run| &*run.message.topic).collect();
    assert_eq!(topics, ["$wake/k0", "t/1"], "the first run of the scope is that of the wake");
    assert_eq!((state_topic(runs[0]), state_topic(runs[1])), (Some("t/1".to_owned()), None));
}
