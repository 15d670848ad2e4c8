#![allow(clippy::unwrap_used, reason = "a test says by panicking what is wrong")]

use super::*;
use crate::store::{Record, Stored};

const STREAMS: [Stream; 2] = [Stream::Alert, Stream::Data];

fn lane(limit: usize) -> Lane {
    let backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60), 7);
    let recovered = Recovered { store_id: "s".into(), ..Recovered::default() };
    let mut lane = Lane::new(&STREAMS, Origin::new("s", "n", None), &recovered, limit, backoff);
    lane.connected();
    lane
}

fn commit(lane: &mut Lane, stream: Stream, id: u64) {
    let record = Record {
        stream,
        function: "f".into(),
        topic: "t".into(),
        payload: "{}".into(),
        content_type: None,
        retain: false,
        hops: 1,
        at_ms: 0,
    };
    lane.tail(stream).unwrap().committed(Stored { id, record });
}

fn gap(first_id: u64) -> Gap {
    Gap {
        stream: Stream::Data,
        reason: "full".into(),
        first_id,
        last_id: first_id,
        records: 1,
        bytes: 1,
        first_at_ms: 0,
        last_at_ms: 0,
    }
}

/// Everything there is to do now: ids of what is sent with their tokens, and the requests to the store.
fn run(lane: &mut Lane, now: Instant) -> (Vec<(String, u64)>, Vec<Request>) {
    let (mut sent, mut requests) = (Vec::new(), Vec::new());
    while let Some(step) = lane.poll(now) {
        match step {
            Step::Send { token, envelope } => sent.push((envelope.property("id").unwrap().to_owned(), token)),
            Step::Store(request) => requests.push(request),
        }
    }
    (sent, requests)
}

fn names(sent: &[(String, u64)]) -> Vec<&str> {
    sent.iter().map(|(id, _)| &**id).collect()
}

#[test]
fn alerts_go_before_gaps_and_gaps_before_data() {
    let now = Instant::now();
    let mut lane = lane(10);
    commit(&mut lane, Stream::Data, 1);
    commit(&mut lane, Stream::Data, 2);
    lane.gaps(1, vec![gap(9)]);
    commit(&mut lane, Stream::Alert, 1);
    assert_eq!(names(&run(&mut lane, now).0), ["s-a-1", "s-g-d-9-9", "s-d-1", "s-d-2"]);
}

#[test]
fn data_waits_for_alerts_that_are_still_on_disk() {
    let now = Instant::now();
    let recovered = Recovered { store_id: "s".into(), last: [3, 3, 0], ..Recovered::default() };
    let backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60), 7);
    let mut lane = Lane::new(&STREAMS, Origin::new("s", "n", None), &recovered, 10, backoff);
    lane.connected();
    let (sent, requests) = run(&mut lane, now);
    assert!(sent.is_empty());
    assert!(matches!(
        requests[..],
        [
            Request::ReadOutbox { stream: Stream::Alert, after: 0, .. },
            Request::ReadOutbox { stream: Stream::Data, after: 0, .. }
        ]
    ));
    let stored = |stream, id| {
        let mut other = self::lane(1);
        commit(&mut other, stream, id);
        other.tail(stream).unwrap().next().unwrap().clone()
    };
    lane.tail(Stream::Data).unwrap().loaded(vec![stored(Stream::Data, 3)], true);
    assert!(run(&mut lane, now).0.is_empty(), "data has no way past alerts");
    lane.tail(Stream::Alert).unwrap().loaded(vec![stored(Stream::Alert, 3)], true);
    assert_eq!(names(&run(&mut lane, now).0), ["s-a-3", "s-d-3"]);
}

#[test]
fn no_more_than_the_limit_is_under_way() {
    let now = Instant::now();
    let mut lane = lane(2);
    (1..=4).for_each(|id| commit(&mut lane, Stream::Alert, id));
    let (sent, _) = run(&mut lane, now);
    assert_eq!(names(&sent), ["s-a-1", "s-a-2"]);
    assert_eq!(lane.answered(sent[1].1, Answer::Taken, now), Some(Stream::Alert));
    let (sent, requests) = run(&mut lane, now);
    assert_eq!(names(&sent), ["s-a-3"]);
    assert!(requests.is_empty(), "the first one is not answered: {requests:?}");
}

#[test]
fn one_watermark_is_told_for_many_answers() {
    let now = Instant::now();
    let mut lane = lane(10);
    (1..=4).for_each(|id| commit(&mut lane, Stream::Alert, id));
    let (sent, _) = run(&mut lane, now);
    for (_, token) in sent {
        lane.answered(token, Answer::Taken, now);
    }
    let (_, requests) = run(&mut lane, now);
    assert!(matches!(requests[..], [Request::Delivered { stream: Stream::Alert, through: 4 }]), "{requests:?}");
    assert!(lane.is_empty());
}

#[test]
fn a_refusal_is_told_before_the_watermark_that_passes_it() {
    let now = Instant::now();
    let mut lane = lane(10);
    (1..=2).for_each(|id| commit(&mut lane, Stream::Data, id));
    let (sent, _) = run(&mut lane, now);
    assert_eq!(lane.answered(sent[0].1, Answer::Refused("http-422".into()), now), None);
    lane.answered(sent[1].1, Answer::Taken, now);
    let (_, requests) = run(&mut lane, now);
    let [Request::Refused { stream: Stream::Data, id: 1, reason }, Request::Delivered { through: 2, .. }] =
        &requests[..]
    else {
        panic!("{requests:?}");
    };
    assert_eq!(&**reason, "http-422");
}

#[test]
fn a_receiver_that_asks_for_time_gets_it_once_for_all() {
    let now = Instant::now();
    let mut lane = lane(3);
    (1..=3).for_each(|id| commit(&mut lane, Stream::Alert, id));
    let (sent, _) = run(&mut lane, now);
    for (_, token) in &sent {
        lane.answered(*token, Answer::Again { reason: "busy".into(), after: None }, now);
    }
    let until = lane.wake_at().unwrap();
    assert!(until > now && until <= now + Duration::from_secs(1), "one failure, not three");
    assert!(run(&mut lane, until - Duration::from_millis(1)).0.is_empty());
    let (sent, _) = run(&mut lane, until);
    assert_eq!(names(&sent), ["s-a-1", "s-a-2", "s-a-3"]);
    let after = Some(Duration::from_secs(20));
    lane.answered(sent[0].1, Answer::Again { reason: "busy".into(), after }, until);
    assert_eq!(lane.wake_at(), Some(until + Duration::from_secs(20)), "the receiver knows best");
    let until = lane.wake_at().unwrap();
    let (sent, _) = run(&mut lane, until);
    let after = Some(Duration::from_secs(1_000_000));
    lane.answered(sent[0].1, Answer::Again { reason: "busy".into(), after }, until);
    assert_eq!(lane.wake_at(), Some(until + Duration::from_secs(60)), "within bounds");
}

#[test]
fn a_lost_connection_sends_again_under_the_same_ids_and_ignores_late_answers() {
    let now = Instant::now();
    let mut lane = lane(10);
    lane.gaps(5, vec![gap(9)]);
    (1..=2).for_each(|id| commit(&mut lane, Stream::Data, id));
    let (first, _) = run(&mut lane, now);
    lane.disconnected();
    assert!(run(&mut lane, now).0.is_empty());
    lane.connected();
    let (second, _) = run(&mut lane, now);
    assert_eq!(names(&first), names(&second));
    for (_, token) in first {
        assert_eq!(lane.answered(token, Answer::Taken, now), None);
    }
    assert!(!lane.is_empty());
    for (_, token) in second {
        lane.answered(token, Answer::Taken, now);
    }
    assert!(lane.is_empty());
}

#[test]
fn gaps_are_reported_to_the_store_when_all_are_answered() {
    let now = Instant::now();
    let mut lane = lane(10);
    lane.gaps(7, vec![gap(1), gap(2)]);
    let (sent, _) = run(&mut lane, now);
    lane.answered(sent[1].1, Answer::Taken, now);
    assert!(run(&mut lane, now).1.is_empty());
    lane.answered(sent[0].1, Answer::Refused("http-422".into()), now);
    let (_, requests) = run(&mut lane, now);
    assert!(matches!(requests[..], [Request::GapsReported { through: 7 }]), "{requests:?}");
}

#[test]
fn a_full_channel_stops_sending_until_there_is_room() {
    let now = Instant::now();
    let mut lane = lane(10);
    (1..=3).for_each(|id| commit(&mut lane, Stream::Alert, id));
    let Some(Step::Send { token: first, .. }) = lane.poll(now) else { panic!() };
    let Some(Step::Send { token, .. }) = lane.poll(now) else { panic!() };
    lane.returned(token);
    assert!(lane.poll(now).is_none());
    lane.answered(first, Answer::Taken, now);
    assert_eq!(names(&run(&mut lane, now).0), ["s-a-2", "s-a-3"]);
}

#[test]
fn a_reopened_store_gets_nothing_that_belongs_to_before() {
    let now = Instant::now();
    let mut lane = lane(10);
    lane.gaps(7, vec![gap(1)]);
    (1..=3).for_each(|id| commit(&mut lane, Stream::Data, id));
    let (sent, _) = run(&mut lane, now);
    for (_, token) in &sent[..2] {
        lane.answered(*token, Answer::Refused("no".into()), now);
    }
    let recovered = Recovered { store_id: "new".into(), last: [0, 3, 0], ..Recovered::default() };
    lane.reopened(&recovered, Origin::new("new", "n", None));
    lane.answered(sent[2].1, Answer::Taken, now);
    let (sent, requests) = run(&mut lane, now);
    assert!(sent.is_empty());
    assert!(matches!(requests[..], [Request::ReadOutbox { after: 0, .. }]), "{requests:?}");
}
