#![allow(clippy::unwrap_used, reason = "a test says by panicking what is wrong")]

use super::*;
use crate::store::{Record, StoredRecord};
use crate::stream::SinkId;

const STREAMS: [Stream; 2] = [Stream::ALERT, Stream::DATA];

impl Lane {
    /// Whether everything that was committed is delivered.
    pub(crate) fn is_empty(&self) -> bool {
        self.gaps.is_empty() && self.streams.iter().all(|it| it.tail.is_empty())
    }
}

fn lane(limit: usize) -> Lane {
    let backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60), 7);
    let recovered = Recovered { store_id: "s".into(), ..Recovered::default() };
    let mut lane = Lane::new(
        Destination::UPSTREAM,
        &STREAMS,
        EnvelopeBuilder::new(&recovered, "n", "p/"),
        &recovered,
        limits(limit, backoff, Some(Duration::from_secs(600))),
    );
    lane.connected();
    lane
}

fn limits(in_flight: usize, backoff: Backoff, patience: Option<Duration>) -> LaneLimits {
    LaneLimits {
        in_flight,
        window_bytes: 512 << 10,
        answer_timeout: Some(Duration::from_secs(3600)),
        backoff,
        patience,
        given_up_key: None,
    }
}

fn commit(lane: &mut Lane, stream: Stream, id: u64) {
    commit_on(lane, stream, id, "t");
}

fn commit_on(lane: &mut Lane, stream: Stream, id: u64, topic: &str) {
    let record = Record {
        stream,
        function: "f".into(),
        topic: topic.into(),
        payload: "{}".into(),
        content_type: None,
        retain: false,
        hops: 1,
        fan_out: 9,
        clock_synced: true,
        at_ms: 0,
        trace: None,
        is_folded: false,
    };
    lane.tail(stream).committed(StoredRecord { id: RecordId(id), record });
}

fn gap(first_id: u64) -> Gap {
    Gap {
        stream: Stream::DATA,
        reason: "full".into(),
        first_id: RecordId(first_id),
        last_id: RecordId(first_id),
        records: 1,
        bytes: 1,
        first_at_ms: 0,
        last_at_ms: 0,
    }
}

/// Everything there is to do now: ids of what is sent with their tokens, and the requests to the store.
fn run(lane: &mut Lane, now: Instant) -> (Vec<(String, PublishToken)>, Vec<StoreRequest>) {
    let (mut sent, mut requests) = (Vec::new(), Vec::new());
    while let Some(step) = lane.poll(now) {
        match step {
            Action::Send { token, envelope, .. } => sent.push((envelope.property("id").unwrap().to_owned(), token)),
            Action::Store(request) => requests.push(request),
            Action::Reconnect { .. } => panic!("every answer is in time"),
        }
    }
    (sent, requests)
}

fn names(sent: &[(String, PublishToken)]) -> Vec<&str> {
    sent.iter().map(|(id, _)| &**id).collect()
}

#[test]
fn a_connection_on_which_an_answer_never_comes_is_broken_once() {
    let now = Instant::now();
    let mut lane = lane(10);
    commit(&mut lane, Stream::DATA, 1);
    assert_eq!(run(&mut lane, now).0.len(), 1);
    let due = lane.wake_at().unwrap();
    assert_eq!(due, now + Duration::from_secs(3600));
    assert!(matches!(lane.poll(due), Some(Action::Reconnect { .. })));
    assert!(lane.poll(due).is_none() && lane.wake_at().is_none(), "it is being broken");
    lane.disconnected(due);
    lane.connected();
    let (sent, _) = run(&mut lane, due + STEADY);
    assert_eq!(names(&sent).len(), 0, "a careful lane waits first");
    assert_eq!(run(&mut lane, due + 2 * STEADY).0.len(), 1, "it is sent again");
}

#[test]
fn alerts_go_before_gaps_and_gaps_before_data() {
    let now = Instant::now();
    let mut lane = lane(10);
    commit(&mut lane, Stream::DATA, 1);
    commit(&mut lane, Stream::DATA, 2);
    lane.gaps(vec![(GapId(1), gap(9))]);
    commit(&mut lane, Stream::ALERT, 1);
    assert_eq!(names(&run(&mut lane, now).0), ["s-a-1", "s-g-d-9-9", "s-d-1", "s-d-2"]);
}

#[test]
fn data_waits_for_alerts_that_are_still_on_disk() {
    let now = Instant::now();
    let recovered =
        Recovered { store_id: "s".into(), last: PerStream::of_first([3, 3, 0].map(RecordId)), ..Recovered::default() };
    let backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60), 7);
    let mut lane = Lane::new(
        Destination::UPSTREAM,
        &STREAMS,
        EnvelopeBuilder::new(&recovered, "n", "p/"),
        &recovered,
        limits(10, backoff, None),
    );
    lane.connected();
    let (sent, requests) = run(&mut lane, now);
    assert!(sent.is_empty());
    assert!(matches!(
        requests[..],
        [
            StoreRequest::ReadOutbox { stream: Stream::ALERT, after: RecordId(0), .. },
            StoreRequest::ReadOutbox { stream: Stream::DATA, after: RecordId(0), .. }
        ]
    ));
    let stored = |stream, id| {
        let mut other = self::lane(1);
        commit(&mut other, stream, id);
        other.tail(stream).next().unwrap().clone()
    };
    lane.tail(Stream::DATA).loaded(vec![stored(Stream::DATA, 3)], true);
    assert!(run(&mut lane, now).0.is_empty(), "data has no way past alerts");
    lane.tail(Stream::ALERT).loaded(vec![stored(Stream::ALERT, 3)], true);
    assert_eq!(names(&run(&mut lane, now).0), ["s-a-3", "s-d-3"]);
}

#[test]
fn no_more_than_the_limit_is_under_way() {
    let now = Instant::now();
    let mut lane = lane(2);
    (1..=4).for_each(|id| commit(&mut lane, Stream::ALERT, id));
    let (sent, _) = run(&mut lane, now);
    assert_eq!(names(&sent), ["s-a-1", "s-a-2"]);
    assert_eq!(lane.answered(sent[1].1, Answer::Accepted, now), Some((Stream::ALERT, None)));
    let (sent, requests) = run(&mut lane, now);
    assert_eq!(names(&sent), ["s-a-3"]);
    assert!(requests.is_empty(), "the first one is not answered: {requests:?}");
}

#[test]
fn many_answers_give_one_watermark() {
    let now = Instant::now();
    let mut lane = lane(10);
    (1..=4).for_each(|id| commit(&mut lane, Stream::ALERT, id));
    let (sent, _) = run(&mut lane, now);
    for (_, token) in sent {
        lane.answered(token, Answer::Accepted, now);
    }
    let (_, requests) = run(&mut lane, now);
    assert!(
        matches!(requests[..], [StoreRequest::Delivered { stream: Stream::ALERT, through: RecordId(4) }]),
        "{requests:?}"
    );
    assert!(lane.is_empty());
}

#[test]
fn a_refusal_is_reported_before_the_watermark_that_passes_it() {
    let now = Instant::now();
    let mut lane = lane(10);
    (1..=2).for_each(|id| commit(&mut lane, Stream::DATA, id));
    let (sent, _) = run(&mut lane, now);
    assert_eq!(lane.answered(sent[0].1, Answer::Refused("http-422".into()), now), None);
    lane.answered(sent[1].1, Answer::Accepted, now);
    let (_, requests) = run(&mut lane, now);
    let [
        StoreRequest::Refused { stream: Stream::DATA, id: RecordId(1), reason },
        StoreRequest::Delivered { through: RecordId(2), .. },
    ] = &requests[..]
    else {
        panic!("{requests:?}");
    };
    assert_eq!(&**reason, "http-422");
}

#[test]
fn a_receiver_that_asks_for_time_gets_it_once_for_all() {
    let now = Instant::now();
    let mut lane = lane(3);
    (1..=3).for_each(|id| commit(&mut lane, Stream::ALERT, id));
    let (sent, _) = run(&mut lane, now);
    for (_, token) in &sent {
        lane.answered(*token, Answer::Retry { reason: "busy".into(), after: None }, now);
    }
    let until = lane.wake_at().unwrap();
    assert!(until > now && until <= now + Duration::from_secs(1), "one failure, not three");
    assert!(run(&mut lane, until - Duration::from_millis(1)).0.is_empty());
    let (sent, _) = run(&mut lane, until);
    assert_eq!(names(&sent), ["s-a-1", "s-a-2", "s-a-3"]);
    let after = Some(Duration::from_secs(20));
    lane.answered(sent[0].1, Answer::Retry { reason: "busy".into(), after }, until);
    assert_eq!(lane.wake_at(), Some(until + Duration::from_secs(20)), "the receiver knows best");
    let until = lane.wake_at().unwrap();
    let (sent, _) = run(&mut lane, until);
    let after = Some(Duration::from_secs(1_000_000));
    lane.answered(sent[0].1, Answer::Retry { reason: "busy".into(), after }, until);
    // Nothing else is waited for.
    lane.in_flight.clear();
    assert_eq!(lane.wake_at(), Some(until + Duration::from_secs(3600)), "within bounds");
}

#[test]
fn a_lost_connection_sends_again_under_the_same_ids_and_ignores_late_answers() {
    let now = Instant::now();
    let mut lane = lane(10);
    lane.gaps(vec![(GapId(5), gap(9))]);
    (1..=2).for_each(|id| commit(&mut lane, Stream::DATA, id));
    let (first, _) = run(&mut lane, now);
    lane.disconnected(now);
    assert!(run(&mut lane, now).0.is_empty());
    lane.connected();
    assert!(run(&mut lane, now).0.is_empty(), "the next connection is given a moment");
    let now = lane.wake_at().unwrap();
    for (_, token) in &first {
        assert_eq!(lane.answered(*token, Answer::Accepted, now), None);
    }
    assert!(!lane.is_empty());
    let mut second = run(&mut lane, now).0;
    assert_eq!(second.len(), 1, "and one record to begin with");
    lane.answered(second[0].1, Answer::Accepted, now);
    second.extend(run(&mut lane, now).0);
    assert_eq!(names(&first), names(&second));
    for (_, token) in &second[1..] {
        lane.answered(*token, Answer::Accepted, now);
    }
    assert!(lane.is_empty());
}

#[test]
fn a_gap_counts_what_was_delivered_by_no_one() {
    let now = Instant::now();
    let mut lane = lane(3);
    (1..=6).for_each(|id| commit(&mut lane, Stream::DATA, id));
    let (sent, _) = run(&mut lane, now);
    assert_eq!(names(&sent), ["s-d-1", "s-d-2", "s-d-3"]);
    // The watermark waits for the first, so the store counts the second too.
    lane.answered(sent[1].1, Answer::Accepted, now);
    let late = lane.dropped(Stream::DATA, GapId(1), &[(RecordId(0), RecordId(5))]);
    assert_eq!(late, Late { gap: GapId(1), size: (1, 2) });
    lane.accepted_late(late);
    lane.gaps(vec![(GapId(1), Gap { last_id: RecordId(5), records: 5, bytes: 10, ..gap(1) })]);
    let (others, _) = run(&mut lane, now);
    assert_eq!(names(&others), ["s-d-6"], "what was dropped before it was sent stays, and the gap waits for the rest");
    for token in [sent[0].1, sent[2].1] {
        let (_, late) = lane.answered(token, Answer::Accepted, now).unwrap();
        lane.accepted_late(late.unwrap());
    }
    let Some(Action::Send { envelope, .. }) =
        std::iter::from_fn(|| lane.poll(now)).find(|action| matches!(action, Action::Send { .. }))
    else {
        panic!("the gap is sent")
    };
    let report: serde_json::Value = serde_json::from_slice(&envelope.payload).unwrap();
    assert_eq!((report["records"].as_u64(), report["bytes"].as_u64()), (Some(2), Some(4)));
}

/// Reports to come: number of records by id of the gap.
fn gap_reports(lane: &mut Lane, now: Instant) -> Vec<(String, u64)> {
    let mut reports = Vec::new();
    while let Some(action) = lane.poll(now) {
        if let Action::Send { envelope, token, .. } = action {
            let id = envelope.property("id").unwrap().to_owned();
            if id.contains("-g-") {
                let report: serde_json::Value = serde_json::from_slice(&envelope.payload).unwrap();
                reports.push((id, report["records"].as_u64().unwrap()));
            }
            lane.answered(token, Answer::Accepted, now);
        }
    }
    reports
}

/// Records of one function were dropped from between others: the ranges of gaps overlap.
#[test]
fn what_was_delivered_is_taken_off_the_gap_that_counts_it() {
    let now = Instant::now();
    let mut lane = lane(4);
    (1..=8).for_each(|id| commit(&mut lane, Stream::DATA, id));
    let (sent, _) = run(&mut lane, now);
    let ids = |ids: &[u64]| ids.iter().map(|id| (RecordId(id - 1), RecordId(*id))).collect::<Vec<_>>();
    lane.answered(sent[1].1, Answer::Accepted, now);
    // 2 was accepted, 4 may be, 6 was never sent.
    let late = lane.dropped(Stream::DATA, GapId(1), &ids(&[2, 4, 6]));
    assert_eq!(late, Late { gap: GapId(1), size: (1, 2) });
    lane.accepted_late(late);
    lane.gaps(vec![(GapId(1), Gap { last_id: RecordId(6), records: 3, bytes: 6, ..gap(2) })]);
    // Then all that is left of the first is dropped, with a gap of its own that begins before the other.
    let late = lane.dropped(Stream::DATA, GapId(2), &[(RecordId(0), RecordId(5))]);
    assert_eq!(late.size, (0, 0), "2 is not counted again");
    let (others, _) = run(&mut lane, now);
    assert_eq!(names(&others), ["s-d-7"], "5 and 6 were not sent, and the gap waits for 1, 3 and 4");
    for token in [sent[0].1, sent[2].1, sent[3].1, others[0].1] {
        let (_, late) = lane.answered(token, Answer::Accepted, now).unwrap();
        late.into_iter().for_each(|late| lane.accepted_late(late));
    }
    assert_eq!(gap_reports(&mut lane, now), [("s-g-d-2-6".to_owned(), 1)], "6 alone");
    lane.gaps(vec![(GapId(2), Gap { last_id: RecordId(5), records: 3, bytes: 6, ..gap(1) })]);
    assert_eq!(gap_reports(&mut lane, now), [("s-g-d-1-5".to_owned(), 1)], "5 alone");
    assert!(lane.is_empty());
}

#[test]
fn a_gap_of_which_all_was_delivered_is_not_reported() {
    let now = Instant::now();
    let mut lane = lane(3);
    commit(&mut lane, Stream::DATA, 1);
    let (sent, _) = run(&mut lane, now);
    lane.dropped(Stream::DATA, GapId(1), &[(RecordId(0), RecordId(1))]);
    lane.gaps(vec![(GapId(1), gap(1))]);
    // The connection breaks: whether the receiver has the record is known when it accepts it.
    lane.disconnected(now);
    lane.connected();
    assert!(lane.answered(sent[0].1, Answer::Accepted, now).is_none());
    run(&mut lane, now);
    let (again, _) = run(&mut lane, now + STEADY);
    assert_eq!(names(&again), ["s-d-1"]);
    let (_, late) = lane.answered(again[0].1, Answer::Accepted, now).unwrap();
    lane.accepted_late(late.unwrap());
    let (sent, requests) = run(&mut lane, now + STEADY);
    assert!(sent.is_empty());
    assert!(
        requests
            .iter()
            .any(|it| matches!(it, StoreRequest::GapsReported { sink: SinkId::UPSTREAM, through: GapId(1) }))
    );
}

#[test]
fn gaps_are_reported_to_the_store_when_all_are_answered() {
    let now = Instant::now();
    let mut lane = lane(10);
    lane.gaps(vec![(GapId(6), gap(1)), (GapId(7), gap(2))]);
    let (sent, _) = run(&mut lane, now);
    lane.answered(sent[1].1, Answer::Accepted, now);
    assert!(run(&mut lane, now).1.is_empty());
    lane.answered(sent[0].1, Answer::Refused("http-422".into()), now);
    let (_, requests) = run(&mut lane, now);
    assert!(
        matches!(requests[..], [StoreRequest::GapsReported { sink: SinkId::UPSTREAM, through: GapId(7) }]),
        "{requests:?}"
    );
}

#[test]
fn a_full_channel_stops_sending_until_there_is_room() {
    let now = Instant::now();
    let mut lane = lane(10);
    (1..=3).for_each(|id| commit(&mut lane, Stream::ALERT, id));
    let Some(Action::Send { token: first, .. }) = lane.poll(now) else { panic!() };
    let Some(Action::Send { token, .. }) = lane.poll(now) else { panic!() };
    lane.returned(token);
    assert!(lane.poll(now).is_none());
    lane.answered(first, Answer::Accepted, now);
    assert_eq!(names(&run(&mut lane, now).0), ["s-a-2", "s-a-3"]);
}

#[test]
fn a_reopened_store_gets_nothing_that_belongs_to_before() {
    let now = Instant::now();
    let mut lane = lane(10);
    lane.gaps(vec![(GapId(7), gap(1))]);
    (1..=3).for_each(|id| commit(&mut lane, Stream::DATA, id));
    let (sent, _) = run(&mut lane, now);
    for (_, token) in &sent[..2] {
        lane.answered(*token, Answer::Refused("no".into()), now);
    }
    let recovered = Recovered {
        store_id: "new".into(),
        last: PerStream::of_first([0, 3, 0].map(RecordId)),
        ..Recovered::default()
    };
    lane.reopened(&recovered, EnvelopeBuilder::new(&recovered, "n", "p/"));
    lane.answered(sent[2].1, Answer::Accepted, now);
    let (sent, requests) = run(&mut lane, now);
    assert!(sent.is_empty());
    assert!(matches!(requests[..], [StoreRequest::ReadOutbox { after: RecordId(0), .. }]), "{requests:?}");
}

fn declined() -> Answer {
    Answer::Declined("not-authorized".into())
}

/// Has the first record of what is sent declined until the lane gives it up. Returns when that was.
fn give_up(lane: &mut Lane, stream: Stream, id: u64, mut now: Instant) -> Instant {
    let begin = now;
    let name = format!("s-{}-{id}", if stream == Stream::ALERT { "a" } else { "d" });
    for _ in 0..100 {
        let (sent, _) = run(lane, now);
        assert_eq!(names(&sent), [&*name], "it is tried alone");
        lane.answered(sent[0].1, declined(), now);
        match lane.poll(now) {
            Some(Action::Store(StoreRequest::Refused { stream: of, id: lost, reason })) => {
                assert_eq!((of, lost, &*reason), (stream, RecordId(id), "not-authorized"));
                assert!(now - begin >= Duration::from_secs(600), "{:?}", now - begin);
                return now;
            }
            None => now = lane.wake_at().unwrap(),
            other => panic!("{other:?}"),
        }
    }
    panic!("it is never given up")
}

#[test]
fn nothing_new_of_a_stream_is_sent_before_a_record_that_was_declined() {
    let now = Instant::now();
    let mut lane = lane(2);
    (1..=4).for_each(|id| commit(&mut lane, Stream::DATA, id));
    let (sent, _) = run(&mut lane, now);
    assert_eq!(names(&sent), ["s-d-1", "s-d-2"]);
    lane.answered(sent[0].1, declined(), now);
    assert!(run(&mut lane, now).0.is_empty());
    lane.answered(sent[1].1, Answer::Accepted, now);
    assert!(run(&mut lane, now).0.is_empty(), "the success of another is no reason to go on");
    let later = lane.wake_at().unwrap();
    let (sent, _) = run(&mut lane, later);
    assert_eq!(names(&sent), ["s-d-1"], "alone");
    assert_eq!(lane.wake_at(), Some(later + Duration::from_secs(3600)), "there is only its answer to wait for");
    lane.answered(sent[0].1, Answer::Accepted, later);
    assert_eq!(names(&run(&mut lane, later).0), ["s-d-3", "s-d-4"]);
}

#[test]
fn the_pauses_of_a_declined_record_grow_although_others_are_taken() {
    let mut now = Instant::now();
    let mut lane = lane(2);
    commit(&mut lane, Stream::ALERT, 1);
    let mut pauses = Vec::new();
    for id in 1..=6 {
        let (sent, _) = run(&mut lane, now);
        lane.answered(sent[0].1, declined(), now);
        commit(&mut lane, Stream::DATA, id);
        let (sent, _) = run(&mut lane, now);
        assert_eq!(names(&sent), [&*format!("s-d-{id}")], "other streams go on");
        lane.answered(sent[0].1, Answer::Accepted, now);
        run(&mut lane, now);
        let until = lane.wake_at().unwrap();
        pauses.push((until - now).as_secs());
        now = until;
    }
    assert!(pauses[5] >= 16, "{pauses:?}");
}

#[test]
fn a_record_that_is_declined_for_ever_becomes_a_gap_and_the_stream_continues() {
    let now = Instant::now();
    let mut lane = lane(1);
    (1..=2).for_each(|id| commit_on(&mut lane, Stream::DATA, id, "forbidden"));
    commit_on(&mut lane, Stream::DATA, 3, "good");
    let now = give_up(&mut lane, Stream::DATA, 1, now);
    // Nothing was taken since: perhaps the receiver declines everything, and the next record has the full patience too.
    let now = give_up(&mut lane, Stream::DATA, 2, now);
    let (sent, _) = run(&mut lane, now);
    assert_eq!(names(&sent), ["s-d-3"]);
    lane.answered(sent[0].1, Answer::Accepted, now);
    assert!(matches!(
        run(&mut lane, now).1[..],
        [StoreRequest::Delivered { stream: Stream::DATA, through: RecordId(3) }]
    ));
    assert!(lane.is_empty());
}

#[test]
fn a_topic_that_was_given_up_costs_no_more_time_while_others_are_taken() {
    let now = Instant::now();
    let mut lane = lane(4);
    commit_on(&mut lane, Stream::ALERT, 1, "forbidden");
    let now = give_up(&mut lane, Stream::ALERT, 1, now);
    commit_on(&mut lane, Stream::ALERT, 2, "good");
    (3..=4).for_each(|id| commit_on(&mut lane, Stream::ALERT, id, "forbidden"));
    let (sent, _) = run(&mut lane, now);
    lane.answered(sent[0].1, Answer::Accepted, now);
    lane.answered(sent[1].1, declined(), now);
    let (_, requests) = run(&mut lane, now);
    assert!(matches!(
        requests[..],
        [StoreRequest::Refused { id: RecordId(3), .. }, StoreRequest::Delivered { through: RecordId(3), .. }]
    ));
    // Permission came: the topic is like any other again.
    lane.answered(sent[2].1, Answer::Accepted, now);
    commit_on(&mut lane, Stream::ALERT, 5, "forbidden");
    let (sent, _) = run(&mut lane, now);
    lane.answered(sent[0].1, declined(), now);
    assert!(run(&mut lane, now).1.is_empty());
    assert!(!lane.is_empty());
}

#[test]
fn the_first_of_several_declined_records_is_tried_first() {
    let now = Instant::now();
    let mut lane = lane(3);
    (1..=4).for_each(|id| commit(&mut lane, Stream::DATA, id));
    let (sent, _) = run(&mut lane, now);
    for (_, token) in sent.iter().rev() {
        lane.answered(*token, declined(), now);
    }
    let later = now + Duration::from_secs(1);
    let (sent, _) = run(&mut lane, later);
    assert_eq!(names(&sent), ["s-d-1"]);
    lane.disconnected(later);
    lane.connected();
    assert!(run(&mut lane, later).0.is_empty());
    let later = lane.wake_at().unwrap();
    assert_eq!(names(&run(&mut lane, later).0), ["s-d-1"], "also on the next connection");
}

#[test]
fn a_success_from_before_a_pause_does_not_shorten_the_next() {
    let mut now = Instant::now();
    let mut lane = lane(2);
    let mut pauses = Vec::new();
    for id in 1..=5 {
        commit(&mut lane, Stream::DATA, 2 * id);
        commit(&mut lane, Stream::DATA, 2 * id + 1);
        let (sent, _) = run(&mut lane, now);
        lane.answered(sent[0].1, Answer::Retry { reason: "busy".into(), after: None }, now);
        lane.answered(sent[1].1, Answer::Accepted, now);
        run(&mut lane, now);
        let until = lane.wake_at().unwrap();
        pauses.push((until - now).as_secs());
        now = until;
    }
    assert!(pauses[4] >= 8, "{pauses:?}");
}

#[test]
fn a_record_that_breaks_every_connection_is_found_and_given_up() {
    let mut now = Instant::now();
    let mut lane = lane(8);
    (1..=3).for_each(|id| commit_on(&mut lane, Stream::DATA, id, "t"));
    let (sent, _) = run(&mut lane, now);
    lane.answered(sent[0].1, Answer::Accepted, now);
    // The second is what the broker closes the connection over, each time.
    let mut breaks = 0;
    let begin = now;
    loop {
        lane.disconnected(now);
        breaks += 1;
        let (_, requests) = run(&mut lane, now);
        if requests.iter().any(|request| matches!(request, StoreRequest::Refused { id: RecordId(2), .. })) {
            break;
        }
        assert!(breaks < 50);
        lane.connected();
        let (mut sent, _) = run(&mut lane, now);
        while sent.is_empty() {
            now = lane.wake_at().unwrap();
            sent = run(&mut lane, now).0;
        }
        assert_eq!(sent[0].0, "s-d-2");
        assert!(sent.len() == 1 || breaks == 1, "one at a time after a break: {sent:?}");
    }
    assert!(now - begin >= Duration::from_secs(600));
    lane.connected();
    assert!(run(&mut lane, now).0.is_empty());
    now = lane.wake_at().unwrap();
    assert_eq!(names(&run(&mut lane, now).0), ["s-d-3"]);
}

#[test]
fn a_network_that_breaks_young_connections_loses_nothing() {
    let mut now = Instant::now();
    let mut lane = lane(8);
    commit(&mut lane, Stream::DATA, 1);
    lane.connected();
    for n in 0..200 {
        let (sent, requests) = run(&mut lane, now);
        assert!(requests.is_empty(), "{requests:?}");
        assert_eq!(sent.is_empty(), n > 0);
        now += STEADY / 2;
        lane.disconnected(now);
        lane.connected();
    }
    run(&mut lane, now);
    now = lane.wake_at().unwrap();
    assert_eq!(names(&run(&mut lane, now).0), ["s-d-1"]);
}

#[test]
fn a_topic_that_was_given_up_holds_nothing_up_after_a_restart() {
    let started = |recovered: &Recovered| {
        let backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60), 7);
        let limits = LaneLimits { given_up_key: Some("topics"), ..limits(1, backoff, Some(Duration::from_secs(600))) };
        let mut lane =
            Lane::new(Destination::UPSTREAM, &STREAMS, EnvelopeBuilder::new(recovered, "n", "p/"), recovered, limits);
        lane.connected();
        commit_on(&mut lane, Stream::DATA, 1, "forbidden");
        commit_on(&mut lane, Stream::DATA, 2, "good");
        lane
    };
    let mut recovered = Recovered { store_id: "s".into(), ..Recovered::default() };
    let mut lane = started(&recovered);
    let mut now = Instant::now();
    let saved = loop {
        let (sent, requests) = run(&mut lane, now);
        if let [StoreRequest::SetMeta { key, value }, ..] = &requests[..] {
            break ((*key).to_owned(), value.clone());
        }
        lane.answered(sent[0].1, declined(), now);
        now = lane.wake_at().unwrap_or(now);
    };
    recovered.meta.push(saved);
    let mut lane = started(&recovered);
    let (sent, _) = run(&mut lane, now);
    lane.answered(sent[0].1, declined(), now);
    let (sent, requests) = run(&mut lane, now);
    assert_eq!(names(&sent), ["s-d-2"], "at once");
    assert!(matches!(requests[..], [StoreRequest::Refused { id: RecordId(1), .. }, ..]), "{requests:?}");
    lane.reopened(&Recovered::default(), EnvelopeBuilder::new(&recovered, "n", "p/"));
    let (_, requests) = run(&mut lane, now);
    assert!(requests.iter().any(|it| matches!(it, StoreRequest::SetMeta { .. })), "a new file is told");
}

fn busy() -> Answer {
    Answer::Retry { reason: "the receiver answered 502 Bad Gateway".into(), after: None }
}

/// Plays a receiver for so long. Returns what was accepted in order, what was refused, and the tries of the first record.
fn play(
    lane: &mut Lane,
    now: &mut Instant,
    time: Duration,
    answer: impl Fn(&str) -> Answer,
) -> (Vec<String>, Vec<u64>, u32) {
    let end = *now + time;
    let (mut accepted, mut refused, mut tries) = (Vec::new(), Vec::new(), 0);
    while *now < end {
        let (sent, requests) = run(lane, *now);
        refused.extend(requests.iter().filter_map(|it| match it {
            StoreRequest::Refused { id, reason, .. } => {
                assert_eq!(&**reason, NEVER_ACCEPTED);
                Some(id.0)
            }
            _ => None,
        }));
        for (id, token) in &sent {
            tries += u32::from(id == "s-d-1");
            let answer = answer(id);
            if answer == Answer::Accepted {
                accepted.push(id.clone());
            }
            lane.answered(*token, answer, *now);
        }
        if sent.is_empty() {
            *now = lane.wake_at().unwrap_or(end).min(end);
        }
    }
    (accepted, refused, tries)
}

#[test]
fn a_record_over_which_a_gateway_fails_does_not_block_others_for_ever() {
    let mut now = Instant::now();
    let mut lane = lane(1);
    (1..=5).for_each(|id| commit_on(&mut lane, Stream::DATA, id, if id == 1 { "bad" } else { "good" }));
    let fails = |id: &str| if matches!(id, "s-d-1" | "s-d-9") { busy() } else { Answer::Accepted };
    let (accepted, refused, _) = play(&mut lane, &mut now, Duration::from_secs(590), fails);
    assert_eq!((accepted.len(), refused.len()), (0, 0), "order is kept while there is patience");
    let (accepted, refused, tries) = play(&mut lane, &mut now, Duration::from_secs(200), fails);
    assert_eq!(accepted, ["s-d-2", "s-d-3", "s-d-4", "s-d-5"]);
    assert_eq!(refused, [1]);
    assert!((1..=3).contains(&tries), "{tries}");
    // The topic is remembered: the next such record costs some tries.
    commit_on(&mut lane, Stream::DATA, 9, "bad");
    commit_on(&mut lane, Stream::DATA, 10, "good");
    let (accepted, refused, _) = play(&mut lane, &mut now, Duration::from_secs(20), fails);
    assert_eq!((&accepted[..], &refused[..]), (&["s-d-10".to_owned()][..], &[9][..]));
    assert!(lane.is_empty());
}

#[test]
fn several_such_records_in_a_row_are_found_one_after_the_other() {
    let mut now = Instant::now();
    let mut lane = lane(1);
    lane.gaps(vec![(GapId(3), gap(99))]);
    (1..=4).for_each(|id| commit(&mut lane, Stream::DATA, id));
    let fails = |id: &str| if id == "s-d-4" { Answer::Accepted } else { busy() };
    let (accepted, refused, _) = play(&mut lane, &mut now, Duration::from_secs(3600), fails);
    assert_eq!((&accepted[..], &refused[..]), (&["s-d-4".to_owned()][..], &[1, 2, 3][..]));
    assert!(lane.is_empty(), "the gap report is given up as well");
}

#[test]
fn a_receiver_that_is_away_for_hours_costs_no_record() {
    let mut now = Instant::now();
    let mut lane = lane(1);
    lane.gaps(vec![(GapId(3), gap(99))]);
    (1..=4).for_each(|id| commit(&mut lane, Stream::DATA, id));
    commit(&mut lane, Stream::ALERT, 1);
    let (accepted, refused, _) = play(&mut lane, &mut now, Duration::from_secs(4 * 3600), |_| busy());
    assert_eq!((accepted.len(), refused.len()), (0, 0));
    let (accepted, refused, _) = play(&mut lane, &mut now, Duration::from_secs(600), |_| Answer::Accepted);
    assert_eq!(accepted, ["s-a-1", "s-g-d-99-99", "s-d-1", "s-d-2", "s-d-3", "s-d-4"]);
    assert_eq!(refused.len(), 0);
}

#[test]
fn data_waits_for_the_alerts_behind_one_over_which_a_gateway_fails() {
    let mut now = Instant::now();
    let mut lane = lane(1);
    commit(&mut lane, Stream::DATA, 1);
    (1..=3).for_each(|id| commit(&mut lane, Stream::ALERT, id));
    let fails = |id: &str| if id == "s-a-1" { busy() } else { Answer::Accepted };
    let (accepted, refused, _) = play(&mut lane, &mut now, Duration::from_secs(800), fails);
    assert_eq!((&accepted[..], &refused[..]), (&["s-a-2", "s-a-3", "s-d-1"].map(str::to_owned)[..], &[1][..]));
}

#[test]
fn an_alert_is_tried_while_data_pauses() {
    let now = Instant::now();
    let mut lane = lane(1);
    commit(&mut lane, Stream::DATA, 1);
    let (sent, _) = run(&mut lane, now);
    lane.answered(sent[0].1, busy(), now);
    commit(&mut lane, Stream::ALERT, 1);
    let (sent, _) = run(&mut lane, now);
    assert_eq!(names(&sent), ["s-a-1"]);
    lane.answered(sent[0].1, busy(), now);
    commit(&mut lane, Stream::ALERT, 2);
    assert!(run(&mut lane, now).0.is_empty(), "alerts have a pause of their own");
    let later = lane.wake_at().unwrap();
    let after = Some(Duration::from_secs(30));
    let (sent, _) = run(&mut lane, later);
    lane.answered(sent[0].1, Answer::Accepted, later);
    let (sent, _) = run(&mut lane, later);
    lane.answered(sent[0].1, Answer::Accepted, later);
    let later = lane.wake_at().unwrap_or(later);
    let (sent, _) = run(&mut lane, later);
    assert_eq!(names(&sent), ["s-d-1"]);
    lane.answered(sent[0].1, Answer::Retry { reason: "busy".into(), after }, later);
    commit(&mut lane, Stream::ALERT, 3);
    assert!(run(&mut lane, later).0.is_empty(), "the receiver asked for time");
}
